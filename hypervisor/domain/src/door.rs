//! The [door](caisson_abi::door) of a domain that owns real functions: the registers of Caisson's own, and its interrupt.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use caisson_abi::door::{AREA_PAGES, CALLS_COUNT, MAGIC, register};
use caisson_abi::io::reason;
use caisson_abi::{Call, CallError, List, VERSION, answer_of, decode, hypercall};
use caisson_types::{Gpa, GuestMemory};

use crate::domain::{Domain, Host};

/// The most writes of one instruction that are carried out.
const MAX_WRITES: usize = 4;
/// No pin of the I/O APIC.
const NO_PIN: u8 = 0xff;

/// The registers' state.
pub(crate) struct Door {
    /// Where its pages are.
    area: Gpa,
    /// The low half of a list's address, until the high one comes.
    low: AtomicU32,
    /// What the last list has answered.
    answer: AtomicU64,
    /// The pin of the domain's I/O APIC that its interrupt leads to, as the domain knows it.
    pin: AtomicU8,
}

/// What one instruction has written to the registers, to be carried out when it has ended.
pub(crate) struct Writes {
    writes: [(u16, u8, u64); MAX_WRITES],
    used: usize,
    /// The function's configuration may have been written.
    configured: bool,
}

impl Writes {
    pub(crate) const fn new() -> Self {
        Self { writes: [(0, 0, 0); MAX_WRITES], used: 0, configured: false }
    }

    /// Something was written at `offset`.
    pub(crate) fn push(&mut self, offset: u16, size: u8, value: u64) {
        if let Some(place) = self.writes.get_mut(self.used) {
            *place = (offset, size, value);
            self.used += 1;
        }
    }

    /// Configuration space was written.
    pub(crate) const fn note(&mut self) {
        self.configured = true;
    }
}

impl Door {
    pub(crate) const fn new(area: Gpa) -> Self {
        Self { area, low: AtomicU32::new(0), answer: AtomicU64::new(0), pin: AtomicU8::new(NO_PIN) }
    }
}

/// Whether no device of the virtual chipset has this pin: those of PCI's alone, and of the ISA's those that firmware routes PCI's
/// interrupts to where there are no others.
const fn is_free(pin: u8) -> bool {
    matches!(pin, 5 | 7 | 10 | 11 | 16..=23)
}

/// The part of a register of 8 bytes that an access of 4 or 8 bytes at `offset` reads.
fn part(offset: u16, start: u16, size: u8, value: u64) -> u64 {
    match (offset - start, size) {
        (0, 8) => value,
        (0, 4) => value & 0xffff_ffff,
        (4, 4) => value >> 32,
        _ => 0,
    }
}

impl<M> Domain<M> {
    /// The door's register at `gpa`, if it is one.
    #[inline]
    pub(crate) fn door_register(&self, gpa: Gpa) -> Option<u16> {
        self.door.as_ref()?;
        self.functions()?.own_register(gpa.as_u64())
    }

    /// Reads `size` bytes at `offset`.
    pub(crate) fn read_door(&self, offset: u16, size: u8) -> u64 {
        let Some(door) = &self.door else { return 0 };
        match offset {
            register::AREA..register::AREA_PAGES => part(offset, register::AREA, size, door.area.as_u64()),
            register::ANSWER..register::SEND => {
                part(offset, register::ANSWER, size, door.answer.load(Ordering::Acquire))
            }
            _ if size != 4 => 0,
            register::MAGIC => MAGIC.into(),
            register::VERSION => VERSION,
            register::AREA_PAGES => AREA_PAGES.into(),
            register::DOMAIN => self.id.0.into(),
            register::STATUS => {
                self.functions().is_some_and(|mut bus| bus.own().is_some_and(|own| own.asserted())).into()
            }
            register::PIN => door.pin.load(Ordering::Relaxed).into(),
            _ => 0,
        }
    }

    /// Something has come for who uses the door: its interrupt is asserted.
    pub fn ring(&self, host: &mut impl Host) {
        if let Some(mut bus) = self.functions()
            && let Some(own) = bus.own()
        {
            own.assert();
        }
        self.drive_door(host);
    }

    /// Drives the pin that the interrupt leads to as the function asks for now. An interrupt that the I/O APIC has taken for it
    /// masks the function, whose pin is low from then on. Where another one of the pin's was under way before, its handler may
    /// have looked already: the pin stays, and is sent again when that one ends.
    pub(crate) fn drive_door(&self, host: &mut impl Host) {
        let Some(door) = &self.door else { return };
        let pin = door.pin.load(Ordering::Relaxed);
        if pin == NO_PIN {
            return;
        }
        // Asked under the lock, so that whoever comes last leaves the line as it is.
        let mut chipset = self.chipset();
        let level = self.functions().is_some_and(|mut bus| bus.own().is_some_and(|own| own.pin()));
        let was_under_way = chipset.is_under_way(pin);
        chipset.set_irq(pin, level);
        let wake = self.settle(&mut chipset);
        if level
            && !was_under_way
            && chipset.is_under_way(pin)
            && let Some(mut bus) = self.functions()
            && let Some(own) = bus.own()
        {
            own.sent();
            chipset.set_irq(pin, false);
        }
        drop(chipset);
        host.wake(wake);
    }
}

impl<M: GuestMemory> Domain<M> {
    /// Carries out what an instruction has written to the registers.
    pub(crate) fn serve_door(&self, host: &mut impl Host, writes: &Writes) {
        for &(offset, size, value) in writes.writes.iter().take(writes.used) {
            self.write_door(host, offset, size, value);
        }
        if writes.configured {
            self.drive_door(host);
        }
    }

    #[inline(never)]
    fn write_door(&self, host: &mut impl Host, offset: u16, size: u8, value: u64) {
        const CALLS_HIGH: u16 = register::CALLS + 4;
        let Some(door) = &self.door else { return };
        match (offset, size) {
            (register::CALLS, 8) => self.call_list(host, door, value),
            (register::CALLS, 4) => door.low.store(value as u32, Ordering::Relaxed),
            (CALLS_HIGH, 4) => {
                let low = door.low.load(Ordering::Relaxed);
                self.call_list(host, door, value << 32 | u64::from(low));
            }
            (register::SEND, 4) => self.call_quietly(host, hypercall::EVENT_SEND, [value, 0, 0, 0]),
            (register::INTERRUPT, 4) => {
                self.call_quietly(host, hypercall::CHANNEL_INTERRUPT, [value, reason::USED, 0, 0]);
            }
            (register::STATUS, 4) => {
                if let Some(mut bus) = self.functions()
                    && let Some(own) = bus.own()
                {
                    own.acknowledge();
                }
                self.drive_door(host);
            }
            (register::PIN, 4) => {
                // The line that it may have held goes down first.
                let before = door.pin.swap(NO_PIN, Ordering::Relaxed);
                if before != NO_PIN {
                    let mut chipset = self.chipset();
                    chipset.set_irq(before, false);
                    let wake = self.settle(&mut chipset);
                    drop(chipset);
                    host.wake(wake);
                }
                if let Ok(pin) = u8::try_from(value)
                    && is_free(pin)
                {
                    door.pin.store(pin, Ordering::Relaxed);
                    self.drive_door(host);
                }
            }
            _ => {}
        }
    }

    /// Makes the calls of a list, as the hypercall `batch` does.
    fn call_list(&self, host: &mut impl Host, door: &Door, value: u64) {
        let list = List::new(Gpa::new(value & !CALLS_COUNT), value & CALLS_COUNT);
        let result = list.and_then(|list| self.perform(host, Call::Batch(list)));
        door.answer.store(answer_of(result), Ordering::Release);
    }

    /// Makes a call whose answer nobody sees.
    fn call_quietly(&self, host: &mut impl Host, number: u64, arguments: [u64; 4]) {
        let call = decode(number, arguments, self.privileges);
        let _: Result<u64, CallError> = call.and_then(|call| self.perform(host, call));
    }
}
