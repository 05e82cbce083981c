//! Base address registers: what a function decodes (PCI Local Bus Specification 3.0, section 6.2.5.1).

use arrayvec::ArrayVec;

use crate::function::HeaderKind;
use crate::registers::{
    BAR_64, BAR_IO, BAR_PREFETCHABLE, BAR_TYPE, BARS, COMMAND, COMMAND_IO, COMMAND_MEMORY,
};
use crate::{Address, ConfigSpace};

/// What a base address register decodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// Ports.
    Ports,
    /// Memory.
    Memory {
        /// The address has 64 bits, and the next register holds the upper half.
        wide: bool,
        /// Reads have no effects.
        prefetchable: bool,
    },
}

/// A base address register that is there (PCI Local Bus Specification 3.0, section 6.2.5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// Which of the six.
    pub index: u8,
    /// Where the firmware has put it; 0 where it has not.
    pub address: u64,
    /// Bytes that it decodes, a power of two.
    pub bytes: u64,
    /// Of what.
    pub kind: BarKind,
}

impl Bar {
    /// Whether it decodes memory, and not ports.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        matches!(self.kind, BarKind::Memory { .. })
    }

    /// Whether the firmware has placed it, where nothing else is.
    #[must_use]
    pub fn is_placed(&self) -> bool {
        self.address != 0
    }

    /// Past its last byte or port.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.bytes)
    }

    /// Whether it decodes all of the `size` bytes at `at`.
    #[must_use]
    pub(crate) fn covers(&self, at: u64, size: u8) -> bool {
        let end = at.checked_add(u64::from(size));
        self.is_placed() && at >= self.address && end.is_some_and(|end| end <= self.end())
    }

    /// Both halves of the register with this value.
    pub(crate) fn raw(&self, value: u64) -> (u32, u32) {
        match self.kind {
            BarKind::Ports => (value as u32 & !3 | BAR_IO, 0),
            BarKind::Memory { wide, prefetchable } => {
                let flags = if wide { BAR_64 } else { 0 } | if prefetchable { BAR_PREFETCHABLE } else { 0 };
                (value as u32 & !15 | flags, (value >> 32) as u32)
            }
        }
    }

    /// Whether the address has 64 bits.
    pub(crate) fn is_wide(&self) -> bool {
        matches!(self.kind, BarKind::Memory { wide: true, .. })
    }
}

/// Sizes the base address registers (section 6.2.5.1): what is written as ones and reads as zeros is decoded.
pub(crate) fn size_bars(
    space: &mut impl ConfigSpace,
    address: Address,
    header: HeaderKind,
) -> ArrayVec<Bar, 6> {
    let mut bars = ArrayVec::new();
    let count = match header {
        HeaderKind::Device => 6,
        HeaderKind::Bridge => 2,
        HeaderKind::Other => 0,
    };
    let command = space.read(address, COMMAND, 2);
    space.write(address, COMMAND, 2, command & !(COMMAND_IO | COMMAND_MEMORY));
    let mut index = 0;
    while index < count {
        let at = BARS + 4 * u16::from(index);
        let low = space.read(address, at, 4);
        let wide = low & BAR_IO == 0 && low & BAR_TYPE == BAR_64 && index + 1 < count;
        let high = if wide { space.read(address, at + 4, 4) } else { 0 };
        let mask = {
            let mut size = |at, value| {
                space.write(address, at, 4, u32::MAX);
                let mask = space.read(address, at, 4);
                space.write(address, at, 4, value);
                mask
            };
            let mask = size(at, low);
            u64::from(mask) | u64::from(if wide { size(at + 4, high) } else { u32::MAX }) << 32
        };
        if let Some(bar) = bar(index, u64::from(low) | u64::from(high) << 32, mask, wide) {
            let _ = bars.try_push(bar);
        }
        index += if wide { 2 } else { 1 };
    }
    space.write(address, COMMAND, 2, command);
    bars
}

/// The register with this value, which reads as `mask` with ones written.
fn bar(index: u8, value: u64, mask: u64, wide: bool) -> Option<Bar> {
    let ports = value & u64::from(BAR_IO) != 0;
    // Of ports the upper half need not be decoded.
    let flags = if ports { 3 } else { 15 };
    let decoded = if ports { mask & 0xfffc | !0xffff } else { mask & !flags };
    if mask as u32 == 0 || mask as u32 == u32::MAX && !wide || decoded as u32 == 0 && !wide {
        return None;
    }
    let bytes = decoded.wrapping_neg();
    if !bytes.is_power_of_two() {
        return None;
    }
    let kind = if ports {
        BarKind::Ports
    } else {
        BarKind::Memory { wide, prefetchable: value & u64::from(BAR_PREFETCHABLE) != 0 }
    };
    // An address that is not a multiple of the size is none that the function decodes.
    let address = value & !flags & !(bytes - 1);
    Some(Bar { index, address, bytes, kind })
}
