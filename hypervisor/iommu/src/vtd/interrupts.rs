//! Interrupt remapping (VT-d specification, section 5.1, and 9.10 for the table's entries).
//!
//! A message names an entry; the entry says what arrives, and whose messages may name it.

use caisson_stage2::Format as _;
use caisson_types::Hpa;

use crate::{INTERRUPTS, Interrupt, Sender};

/// Of an entry: present; by level.
const PRESENT: u64 = 1 << 0;
const LEVEL: u64 = 1 << 4;
/// Whose id is verified: all of it, or that its bus is in a range.
const EXACTLY: u64 = 1 << 18;
const BUS_RANGE: u64 = 2 << 18;
/// Of the table's register: ids of processors have 32 bits.
const WIDE: u64 = 1 << 11;

/// The register that tells of the table: where it is, and how large, as a power of two from 2 on.
pub(super) fn table(at: Hpa, wide: bool) -> u64 {
    const SIZE: u64 = INTERRUPTS.ilog2() as u64 - 1;
    at.as_u64() & caisson_stage2::Vtd::ADDRESS | if wide { WIDE } else { 0 } | SIZE
}

/// An entry: fixed delivery to one processor.
pub(super) fn entry(interrupt: &Interrupt, wide: bool) -> (u64, u64) {
    let processor =
        if wide { u64::from(interrupt.processor) } else { u64::from(interrupt.processor & 0xff) << 8 };
    let level = if interrupt.level { LEVEL } else { 0 };
    let low = PRESENT | level | u64::from(interrupt.vector) << 16 | processor << 32;
    let high = match interrupt.sender {
        Sender::Anybody => 0,
        Sender::Device(id) => EXACTLY | u64::from(id),
        Sender::Buses(first, last) => BUS_RANGE | u64::from(first) << 8 | u64::from(last),
    };
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_the_manual_draws_them() {
        let interrupt = Interrupt { vector: 0x41, processor: 3, level: false, sender: Sender::Device(0x1a8) };
        assert_eq!(entry(&interrupt, false), (0x300_0041_0001, 0x4_01a8));
        assert_eq!(entry(&interrupt, true), (0x3_0041_0001, 0x4_01a8));
        let line = Interrupt { level: true, sender: Sender::Buses(2, 5), ..interrupt };
        assert_eq!(entry(&line, true), (0x3_0041_0011, 0x8_0205));
        assert_eq!(table(Hpa::new(0x12_3000), true), 0x12_3807);
        assert_eq!(table(Hpa::new(0x12_3000), false), 0x12_3007);
    }
}
