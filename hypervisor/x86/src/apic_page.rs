//! The page in which virtualisation hardware keeps a virtual local APIC: VT-x's virtual-APIC page (SDM vol. 3, section
//! 30.1.1), laid out as the registers' own page is (table 11-1): 32 bits at each multiple of 16.

use zerocopy::FromZeros;

/// Words between two registers.
const STRIDE: usize = 4;

/// A virtual local APIC's registers. A register's index is its offset in the page divided by 16.
#[derive(FromZeros)]
#[repr(C, align(4096))]
pub struct ApicPage([u32; 256 * STRIDE]);

const _: () = assert!(size_of::<ApicPage>() == 4096);

impl ApicPage {
    /// Index of the task priority.
    pub const TPR: u8 = 0x08;

    /// All registers zero.
    #[must_use]
    pub const fn new() -> Self {
        Self([0; 256 * STRIDE])
    }

    /// A register.
    #[inline]
    #[must_use]
    pub const fn get(&self, index: u8) -> u32 {
        self.0[index as usize * STRIDE]
    }

    /// Sets a register.
    #[inline]
    pub const fn set(&mut self, index: u8, value: u32) {
        self.0[index as usize * STRIDE] = value;
    }

    /// Sets the upper half of a register that has 64 bits in x2APIC mode.
    #[inline]
    pub const fn set_upper(&mut self, index: u8, value: u32) {
        self.0[index as usize * STRIDE + 1] = value;
    }

    /// The upper half of such a register.
    #[inline]
    #[must_use]
    pub const fn upper(&self, index: u8) -> u32 {
        self.0[index as usize * STRIDE + 1]
    }
}

impl Default for ApicPage {
    fn default() -> Self {
        Self::new()
    }
}

/// The highest vectors of IRR and ISR, which the hardware keeps beside the page (SDM vol. 3, section 25.4.2: guest interrupt
/// status); 0 where there is none.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TopVectors {
    /// Requested.
    pub requested: u8,
    /// In service.
    pub in_service: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_sixteen_bytes_apart() {
        let mut page = ApicPage::new();
        page.set(ApicPage::TPR, 0x45);
        page.set(0xff, 7);
        page.set_upper(0x30, 9);
        assert_eq!((page.0[0x80 / 4], page.0[0xff0 / 4], page.0[0x304 / 4]), (0x45, 7, 9));
        assert_eq!((page.get(ApicPage::TPR), page.upper(0x30)), (0x45, 9));
    }
}
