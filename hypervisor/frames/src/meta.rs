//! One frame's metadata: a word of 64 bits, used by the first frame of a block.
//!
//! | bits  | free block        | allocated block                |
//! |-------|-------------------|--------------------------------|
//! | 5:0   | 1 + order         | 20 + order                     |
//! | 34:6  | next in free list | next in chain                  |
//! | 63:35 | previous          | 36:35 owner kind, 52:37 domain, 53 chained |
//!
//! A word of 0 is no block: the frame is not managed, or lies inside a block that starts lower.

use caisson_types::DomainId;

use crate::{MAX_ORDER, ORDERS, Owner};

const TAG_BITS: u32 = 6;
const LINK_BITS: u32 = 29;
const NEXT_SHIFT: u32 = TAG_BITS;
const PREVIOUS_SHIFT: u32 = TAG_BITS + LINK_BITS;
const KIND_SHIFT: u32 = PREVIOUS_SHIFT;
const DOMAIN_SHIFT: u32 = KIND_SHIFT + 2;
const CHAINED: u64 = 1 << (DOMAIN_SHIFT + 16);
const FREE_TAG: u64 = 1;
const USED_TAG: u64 = FREE_TAG + ORDERS as u64;
const LINK_MASK: u64 = (1 << LINK_BITS) - 1;

const KIND_HYPERVISOR: u64 = 1;
const KIND_DOMAIN: u64 = 2;
const KIND_RESERVED: u64 = 3;

/// The link that leads nowhere.
pub(crate) const NIL: u32 = LINK_MASK as u32;

/// The most frames that links can name: 2 TiB of them, holes inside zones included.
pub(crate) const MAX_FRAMES: u64 = LINK_MASK;

/// The metadata of one frame, 8 bytes. All zero bytes are the valid value [`FrameMeta::ABSENT`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(transparent)]
pub struct FrameMeta(u64);

const _: () = assert!(size_of::<FrameMeta>() == 8);

/// What a metadata word says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Not the first frame of a block.
    Absent,
    /// The first frame of a free block.
    Free { order: u8 },
    /// The first frame of an allocated block.
    Used { order: u8, owner: Owner, chained: bool },
}

impl FrameMeta {
    /// No block starts here. A metadata slice consists of these when the allocator is set up.
    pub const ABSENT: Self = Self(0);

    pub(crate) const fn free(order: u8, previous: u32, next: u32) -> Self {
        Self(
            (FREE_TAG + order as u64)
                | (next as u64 & LINK_MASK) << NEXT_SHIFT
                | (previous as u64 & LINK_MASK) << PREVIOUS_SHIFT,
        )
    }

    /// An allocated block's word, in no chain. `owner` is not [`Owner::Free`] (it would read back as
    /// reserved).
    pub(crate) const fn used(order: u8, owner: Owner) -> Self {
        let (kind, domain) = match owner {
            Owner::Hypervisor => (KIND_HYPERVISOR, 0),
            Owner::Domain(DomainId(id)) => (KIND_DOMAIN, id as u64),
            Owner::Reserved | Owner::Free => (KIND_RESERVED, 0),
        };
        Self(
            (USED_TAG + order as u64)
                | (NIL as u64) << NEXT_SHIFT
                | kind << KIND_SHIFT
                | domain << DOMAIN_SHIFT,
        )
    }

    /// Whether no block starts here.
    pub(crate) const fn is_absent(self) -> bool {
        self.0 == 0
    }

    /// Whether a free block of just this order starts here.
    pub(crate) const fn is_free_of(self, order: u8) -> bool {
        self.0 & ((1 << TAG_BITS) - 1) == FREE_TAG + order as u64
    }

    pub(crate) const fn state(self) -> State {
        let tag = self.0 & ((1 << TAG_BITS) - 1);
        if tag == 0 {
            return State::Absent;
        }
        if tag < USED_TAG {
            return State::Free { order: (tag - FREE_TAG) as u8 };
        }
        let order = (tag - USED_TAG) as u8;
        let owner = match self.0 >> KIND_SHIFT & 3 {
            KIND_HYPERVISOR => Owner::Hypervisor,
            KIND_DOMAIN => Owner::Domain(DomainId((self.0 >> DOMAIN_SHIFT) as u16)),
            _ => Owner::Reserved,
        };
        State::Used {
            order: if order > MAX_ORDER { MAX_ORDER } else { order },
            owner,
            chained: self.0 & CHAINED != 0,
        }
    }

    pub(crate) const fn next(self) -> u32 {
        (self.0 >> NEXT_SHIFT & LINK_MASK) as u32
    }

    pub(crate) const fn previous(self) -> u32 {
        (self.0 >> PREVIOUS_SHIFT & LINK_MASK) as u32
    }

    /// This word with another next link.
    pub(crate) const fn with_next(self, next: u32) -> Self {
        Self(self.0 & !(LINK_MASK << NEXT_SHIFT) | (next as u64 & LINK_MASK) << NEXT_SHIFT)
    }

    /// This free block's word with another previous link.
    pub(crate) const fn with_previous(self, previous: u32) -> Self {
        Self(self.0 & !(LINK_MASK << PREVIOUS_SHIFT) | (previous as u64 & LINK_MASK) << PREVIOUS_SHIFT)
    }

    /// This allocated block's word as the member of a chain.
    pub(crate) const fn with_chained(self) -> Self {
        Self(self.0 | CHAINED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_read_back(order in 0..=MAX_ORDER, a in 0..=NIL, b in 0..=NIL, id: u16) {
            let free = FrameMeta::free(order, a, b);
            prop_assert_eq!(free.state(), State::Free { order });
            prop_assert!(free.is_free_of(order));
            prop_assert_eq!((free.previous(), free.next()), (a, b));
            let free = free.with_next(a).with_previous(b);
            prop_assert_eq!(free, FrameMeta::free(order, b, a));

            let owners = [Owner::Hypervisor, Owner::Reserved, Owner::Domain(DomainId(id))];
            for owner in owners {
                let used = FrameMeta::used(order, owner);
                prop_assert_eq!(used.state(), State::Used { order, owner, chained: false });
                prop_assert_eq!(used.next(), NIL);
                let linked = used.with_chained().with_next(a);
                prop_assert_eq!(linked.state(), State::Used { order, owner, chained: true });
                prop_assert_eq!(linked.next(), a);
            }
        }
    }

    #[test]
    fn zero_is_absent() {
        assert_eq!(FrameMeta::default(), FrameMeta::ABSENT);
        assert_eq!(FrameMeta::ABSENT.state(), State::Absent);
        assert!(FrameMeta::ABSENT.is_absent());
    }
}
