//! The ring of events (section 2.5).

use caisson_pci::Address;
use caisson_types::Hpa;

use super::{control, register, status};
use crate::{Error, Fault, FaultKind, Hardware, Memory};

/// Bytes of the ring, and of an event.
const BYTES: u64 = 4096;
const EVENT: u64 = 16;
/// Codes of events (table 41).
const ILLEGAL_ENTRY: u8 = 1;
const PAGE_FAULT: u8 = 2;
const INVALID_REQUEST: u8 = 8;
/// Of a page fault: it was an interrupt; something was there; the device was to write.
const INTERRUPT: u64 = 1 << 51;
const PRESENT: u64 = 1 << 52;
const WRITE: u64 = 1 << 53;

/// The ring.
pub(super) struct Events {
    ring: Hpa,
    /// The next event, in bytes.
    head: u64,
}

impl Events {
    pub(super) fn new(memory: &mut impl Memory) -> Result<Self, Error> {
        Ok(Self { ring: memory.allocate_run(0).ok_or(Error::OutOfMemory)?, head: 0 })
    }

    pub(super) fn ring(&self) -> Hpa {
        self.ring
    }

    /// The next event.
    pub(super) fn take(
        &mut self,
        hardware: &mut impl Hardware,
        memory: &mut impl Memory,
        segment: u16,
    ) -> Option<Fault> {
        if self.is_empty(hardware) {
            self.restart(hardware);
            // One may have come before that, for which there was no interrupt.
            if self.is_empty(hardware) {
                return None;
            }
        }
        let word = (self.head / 8) as usize;
        let (first, second) = (memory.read(self.ring, word), memory.read(self.ring, word + 1));
        if first == 0 {
            // The tail was ahead of the event itself.
            return None;
        }
        memory.write(self.ring, word, 0);
        self.head = (self.head + EVENT) % BYTES;
        hardware.write64(register::EVENTS_HEAD, self.head);
        Some(decode(first, second, segment))
    }

    fn is_empty(&self, hardware: &impl Hardware) -> bool {
        hardware.read64(register::EVENTS_TAIL) & (BYTES - 1) == self.head
    }

    /// The ring is empty: the unit may interrupt again, and goes on if it had been full.
    fn restart(&self, hardware: &mut impl Hardware) {
        let now = hardware.read64(register::STATUS);
        hardware.write64(register::STATUS, now & (status::EVENT_INTERRUPT | status::EVENT_OVERFLOW));
        if now & status::EVENT_OVERFLOW != 0 {
            let on = hardware.read64(register::CONTROL);
            hardware.write64(register::CONTROL, on & !control::EVENT_LOG);
            hardware.write64(register::CONTROL, on | control::EVENT_LOG);
        }
    }
}

fn decode(first: u64, second: u64, segment: u16) -> Fault {
    let code = (first >> 60) as u8;
    let memory = FaultKind::Memory { address: second, write: first & WRITE != 0 };
    let (kind, reason) = match code {
        ILLEGAL_ENTRY => (FaultKind::Other, "the device's entry is wrong"),
        PAGE_FAULT if first & INTERRUPT != 0 => (FaultKind::Interrupt, "the interrupt is not the device's"),
        PAGE_FAULT if first & PRESENT != 0 => (memory, "its domain may not do that there"),
        PAGE_FAULT => (memory, "its domain has nothing there"),
        3 | 4 => (FaultKind::Memory { address: second, write: false }, "a table cannot be read"),
        5..=7 => (FaultKind::Other, "the unit could not carry out a command"),
        INVALID_REQUEST => {
            (FaultKind::Memory { address: second, write: false }, "devices do not translate for themselves")
        }
        _ => (FaultKind::Other, "the unit gives no reason that is known"),
    };
    let named = !(5..=6).contains(&code);
    Fault { device: named.then_some(Address { segment, routing: first as u16 }), kind, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read() {
        let fault = decode(2 << 60 | WRITE | 7 << 32 | 0x18, 0x1234_5678, 0);
        let device = Some(Address { segment: 0, routing: 0x18 });
        assert_eq!(
            (fault.device, fault.kind),
            (device, FaultKind::Memory { address: 0x1234_5678, write: true })
        );
        assert_eq!(decode(2 << 60 | INTERRUPT, 0, 0).kind, FaultKind::Interrupt);
        assert_eq!(decode(5 << 60, 0, 0).device, None);
        assert_ne!(decode(2 << 60 | PRESENT, 0, 0).reason, decode(2 << 60, 0, 0).reason);
    }
}
