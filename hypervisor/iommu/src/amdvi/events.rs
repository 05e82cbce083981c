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
            // The tail was ahead of the event itself, which is told with the next one: that one is to interrupt.
            self.restart(hardware);
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

    /// There is nothing to read: the unit may interrupt again, and goes on if the ring had been full.
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
    use alloc::collections::BTreeMap;

    use caisson_stage2::TableMemory;

    use super::*;

    /// Registers that remember; bits of the status are cleared by writing them.
    #[derive(Default)]
    struct Registers(BTreeMap<u64, u64>);

    impl Hardware for Registers {
        fn read32(&self, offset: u64) -> u32 {
            self.read64(offset) as u32
        }
        fn write32(&mut self, offset: u64, value: u32) {
            self.write64(offset, value.into());
        }
        fn read64(&self, offset: u64) -> u64 {
            self.0.get(&offset).copied().unwrap_or(0)
        }
        fn write64(&mut self, offset: u64, value: u64) {
            let now = self.read64(offset);
            self.0.insert(offset, if offset == register::STATUS { now & !value } else { value });
        }
        fn now(&self) -> u64 {
            0
        }
    }

    /// One page.
    struct Page([u64; 512]);

    impl TableMemory for Page {
        fn allocate(&mut self) -> Option<Hpa> {
            Some(Hpa::new(0x1000))
        }
        fn free(&mut self, _: Hpa) {}
        fn read(&self, _: Hpa, index: usize) -> u64 {
            self.0[index]
        }
        fn write(&mut self, _: Hpa, index: usize, entry: u64) {
            self.0[index] = entry;
        }
    }

    impl Memory for Page {
        fn allocate_run(&mut self, _: u8) -> Option<Hpa> {
            self.allocate()
        }
        fn set_snooped(&mut self, _: bool) {}
    }

    #[test]
    fn an_event_that_comes_behind_its_tail_does_not_end_all_interrupts() {
        let (mut hardware, mut page) = (Registers::default(), Page([0; 512]));
        let mut events = Events::new(&mut page).unwrap();
        hardware.0.insert(register::STATUS, status::EVENT_INTERRUPT);
        hardware.write64(register::EVENTS_TAIL, EVENT);
        assert_eq!(events.take(&mut hardware, &mut page, 0), None);
        assert_eq!(hardware.read64(register::STATUS), 0, "the next one interrupts");
        page.0[0] = 2 << 60 | 0x18;
        page.0[2] = 2 << 60 | 0x20;
        hardware.write64(register::EVENTS_TAIL, 2 * EVENT);
        let mut next = || events.take(&mut hardware, &mut page, 0).and_then(|fault| fault.device);
        let at = |routing| Some(Address { segment: 0, routing });
        assert_eq!((next(), next(), next()), (at(0x18), at(0x20), None));
    }

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
