//! Guest-virtual, guest-physical and host-physical addresses, each a type of its own.

use core::fmt;

/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $tag:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with the given number.
            #[must_use]
            pub const fn new(address: u64) -> Self {
                Self(address)
            }

            /// The address as a number.
            #[must_use]
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// Bytes past the start of the 4 KiB page that holds this address.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 % PAGE_SIZE
            }

            /// The start of the page of `size` that holds this address.
            #[must_use]
            pub const fn align_down(self, size: PageSize) -> Self {
                Self(self.0 & !(size.bytes() - 1))
            }

            /// The first page boundary of `size` at or above this address, or `None` past the end of the space.
            #[must_use]
            pub const fn align_up(self, size: PageSize) -> Option<Self> {
                match self.0.checked_add(size.bytes() - 1) {
                    Some(top) => Some(Self(top & !(size.bytes() - 1))),
                    None => None,
                }
            }

            /// Whether this address is the start of a page of `size`.
            #[must_use]
            pub const fn is_aligned(self, size: PageSize) -> bool {
                self.0 & (size.bytes() - 1) == 0
            }

            /// The address `bytes` further up, or `None` past the end of the space.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// The address `bytes` further up, modulo 2^64, as the CPU computes it.
            #[must_use]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($tag, ":{:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// A guest-physical address: what a guest's own page tables produce.
    Gpa,
    "gpa"
);
address!(
    /// A host-physical address: what is on the machine's memory bus.
    Hpa,
    "hpa"
);
address!(
    /// A guest-virtual (linear) address, before the guest's own page tables.
    Gva,
    "gva"
);

/// The page sizes of x86-64 long-mode and stage-2 tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PageSize {
    /// 4 KiB, mapped by a level-1 entry.
    Size4K,
    /// 2 MiB, mapped by a level-2 entry.
    Size2M,
    /// 1 GiB, mapped by a level-3 entry.
    Size1G,
}

impl PageSize {
    /// The page's size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        PAGE_SIZE << self.order()
    }

    /// log2 of the number of 4 KiB pages in a page of this size.
    #[must_use]
    pub const fn order(self) -> u8 {
        match self {
            Self::Size4K => 0,
            Self::Size2M => 9,
            Self::Size1G => 18,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_by_page_size() {
        let a = Gpa::new(0x4020_1234);
        assert_eq!(a.align_down(PageSize::Size4K), Gpa::new(0x4020_1000));
        assert_eq!(a.align_down(PageSize::Size2M), Gpa::new(0x4020_0000));
        assert_eq!(a.align_up(PageSize::Size1G), Some(Gpa::new(0x8000_0000)));
        assert_eq!(Gpa::new(u64::MAX).align_up(PageSize::Size4K), None);
        assert!(Gpa::new(0x20_0000).is_aligned(PageSize::Size2M));
        assert_eq!(a.page_offset(), 0x234);
    }
}
