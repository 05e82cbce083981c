//! Fault recording (VT-d specification, section 7.2, and 11.4.14 for the registers).

use caisson_pci::Address;

use super::register;
use crate::{Fault, FaultKind, Hardware};

/// Faults were lost; there are some.
const OVERFLOW: u32 = 1 << 0;
const PENDING: u32 = 1 << 1;
/// Of a record's upper half: it holds a fault; the device was to read.
const FAULT: u64 = 1 << 63;
const READ: u64 = 1 << 62;
/// Reasons from here on are of interrupts.
const INTERRUPTS: u8 = 0x20;

/// The next record, which is free for another fault from then on.
pub(super) fn take(hardware: &mut impl Hardware, capabilities: u64, segment: u16) -> Option<Fault> {
    let status = hardware.read32(register::FAULT_STATUS);
    if status & (PENDING | OVERFLOW) == 0 {
        return None;
    }
    let first = (capabilities >> 24 & 0x3ff) * 16;
    let count = (capabilities >> 40 & 0xff) + 1;
    // The unit says which is the oldest; they are filled in a circle.
    let oldest = u64::from(status >> 8 & 0xff) % count;
    for index in 0..count {
        let at = first + (oldest + index) % count * 16;
        let upper = hardware.read64(at + 8);
        if upper & FAULT == 0 {
            continue;
        }
        let address = hardware.read64(at) & !0xfff;
        // Only this bit is cleared by writing it.
        hardware.write32(at + 12, 1 << 31);
        return Some(decode(upper, address, segment));
    }
    hardware.write32(register::FAULT_STATUS, status & OVERFLOW);
    None
}

fn decode(upper: u64, address: u64, segment: u16) -> Fault {
    let code = (upper >> 32) as u8;
    let kind = if code >= INTERRUPTS {
        FaultKind::Interrupt
    } else {
        FaultKind::Memory { address, write: upper & READ == 0 }
    };
    Fault { device: Some(Address { segment, routing: upper as u16 }), kind, reason: reason(code) }
}

/// Reasons (section 7.1, tables of legacy mode).
fn reason(code: u8) -> &'static str {
    match code {
        0x01 | 0x02 => "the device belongs to no domain",
        0x03 | 0x0b => "the device's context is wrong",
        0x04 => "the address is beyond those that are translated",
        0x05 => "its domain may not write there",
        0x06 => "its domain has nothing there",
        0x07..=0x09 => "a table cannot be read",
        0x0a | 0x0c => "a reserved bit of a table is set",
        0x0d => "devices do not translate for themselves",
        0x25 => "messages must name an entry of the table",
        0x20..=0x26 => "the interrupt is not the device's",
        _ => "the unit gives no reason that is known",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read() {
        let fault = decode(FAULT | 5 << 32 | 0x18, 0x1234_5000, 1);
        let device = Some(Address { segment: 1, routing: 0x18 });
        assert_eq!(
            (fault.device, fault.kind),
            (device, FaultKind::Memory { address: 0x1234_5000, write: true })
        );
        let fault = decode(FAULT | READ | 6 << 32 | 0x18, 0x1234_5000, 0);
        assert_eq!(fault.kind, FaultKind::Memory { address: 0x1234_5000, write: false });
        assert_eq!(
            std::format!("{fault}"),
            "0000:00:03.0: DMA read of 0x12345000 stopped: its domain has nothing there"
        );
        assert_eq!(decode(FAULT | 0x26 << 32, 0, 0).kind, FaultKind::Interrupt);
        for code in 0..=u8::MAX {
            assert!(!reason(code).is_empty());
        }
    }
}
