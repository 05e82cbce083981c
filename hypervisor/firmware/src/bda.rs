//! The BIOS data area and the extended one: the words that boot loaders and kernels look at.
//!
//! IBM PS/2 and PC BIOS Interface Technical Reference, "BIOS Data Area" and "Extended BIOS Data Area".

use alloc::vec;
use alloc::vec::Vec;

use caisson_devices::chipset::COM1;

use crate::map::EBDA;

/// Where the BIOS data area starts.
pub(crate) const BDA: u64 = 0x400;

/// Kilobytes of the extended area, as its first byte says.
const EBDA_KIB: u8 = 1;

/// Equipment: a mathematics coprocessor and one serial port.
const EQUIPMENT: u16 = 1 << 1 | 1 << 9;

/// The BIOS data area's 256 bytes.
pub(crate) fn bios_data_area() -> Vec<u8> {
    let mut bytes = vec![0; 256];
    let words = [
        (0x00, COM1),
        // The segment of the extended area.
        (0x0E, (EBDA >> 4) as u16),
        (0x10, EQUIPMENT),
        // Kilobytes of conventional memory.
        (0x13, (EBDA >> 10) as u16),
    ];
    for (offset, word) in words {
        bytes[offset..offset + 2].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// The extended BIOS data area.
pub(crate) fn extended_bios_data_area() -> Vec<u8> {
    let mut bytes = vec![0; usize::from(EBDA_KIB) << 10];
    bytes[0] = EBDA_KIB;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_where_they_are_looked_for() {
        let bda = bios_data_area();
        let word = |address: usize| u16::from_le_bytes([bda[address - 0x400], bda[address - 0x3FF]]);
        assert_eq!(word(0x400), 0x3F8);
        assert_eq!(word(0x402), 0);
        assert_eq!(word(0x40E), 0x9FC0);
        assert_eq!(word(0x413), 639);
        assert_eq!(extended_bios_data_area().len() as u64 + EBDA, 0xA_0000);
    }
}
