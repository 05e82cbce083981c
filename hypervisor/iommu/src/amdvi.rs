//! AMD's IOMMU (AMD I/O Virtualization Technology Specification 3.10): a device table, I/O page tables, a ring of commands and a
//! ring of events.
//!
//! An entry of the device table that is not valid lets its device through. So the table has one for every id there is, and
//! each is valid from the start, for no memory at all.

mod commands;
mod events;

use caisson_stage2::{AmdVi as Pages, ENTRIES, Format as _, Levels};
use caisson_types::{Hpa, PAGE_SIZE, PageSize};

use crate::unit::wait;
use crate::{Error, Fault, Hardware, Interrupt, Ivhd, IvhdDevices, Memory, Message, Shape, Tag, Unit};
use alloc::vec::Vec;
use commands::Commands;
use events::Events;

/// Registers (section 3.4).
mod register {
    pub(super) const DEVICE_TABLE: u64 = 0x0000;
    pub(super) const COMMANDS: u64 = 0x0008;
    pub(super) const EVENTS: u64 = 0x0010;
    pub(super) const CONTROL: u64 = 0x0018;
    pub(super) const EXCLUSION_BASE: u64 = 0x0020;
    pub(super) const FEATURES: u64 = 0x0030;
    pub(super) const COMMANDS_HEAD: u64 = 0x2000;
    pub(super) const COMMANDS_TAIL: u64 = 0x2008;
    pub(super) const EVENTS_HEAD: u64 = 0x2010;
    pub(super) const EVENTS_TAIL: u64 = 0x2018;
    pub(super) const STATUS: u64 = 0x2020;
}

/// Bits of the control register (section 3.4.1, offset 18h).
mod control {
    pub(super) const ENABLE: u64 = 1 << 0;
    pub(super) const EVENT_LOG: u64 = 1 << 2;
    pub(super) const EVENT_INTERRUPT: u64 = 1 << 3;
    pub(super) const COHERENT: u64 = 1 << 10;
    pub(super) const COMMANDS: u64 = 1 << 12;
    /// What the firmware's flags stand for: a bit of its table, and the bit here.
    pub(super) const FLAGS: [(u8, u64); 4] = [(0, 1), (1, 8), (2, 9), (3, 11)];
    /// What else is known to be needed nowhere, and is off: peripheral page requests, guest translation and interrupts.
    pub(super) const KEPT: u64 = 0x1fff;
}

/// Bits of the status register (offset 2020h).
mod status {
    pub(super) const EVENT_OVERFLOW: u64 = 1 << 0;
    pub(super) const EVENT_INTERRUPT: u64 = 1 << 1;
    pub(super) const EVENTS_RUN: u64 = 1 << 3;
    pub(super) const COMMANDS_RUN: u64 = 1 << 4;
}

/// Of the feature register: all can be forgotten at once; how many levels beyond four.
const FORGETS_ALL: u64 = 1 << 6;
const MORE_LEVELS: u64 = 3 << 10;

/// The device table has an entry of 32 bytes for each of 65,536 ids.
const TABLE_ORDER: u8 = 9;
const TABLE_PAGES: u64 = 1 << TABLE_ORDER;
const ENTRY_WORDS: usize = 4;
/// Of an entry's first word: the entry is valid, and so is what it says of memory. Alone they give none.
const BLOCKED: u64 = 0b11;
/// Rings have 256 entries of 16 bytes: a page, whose size is told as a power of two.
const RING: u64 = 8 << 56;

/// A unit of AMD's.
pub struct AmdVi<H> {
    hardware: H,
    segment: u16,
    features: u64,
    flags: u8,
    /// System messages that devices may send.
    settings: Vec<IvhdDevices>,
    table: Option<Hpa>,
    commands: Option<Commands>,
    events: Option<Events>,
    enabled: bool,
}

impl<H: Hardware> AmdVi<H> {
    /// The unit with these registers, as its table describes it.
    ///
    /// # Errors
    /// [`Error::Absent`].
    pub fn new(hardware: H, unit: &Ivhd) -> Result<Self, Error> {
        let features = hardware.read64(register::FEATURES);
        if features == u64::MAX {
            return Err(Error::Absent);
        }
        let settings = unit.devices.iter().filter(|entry| entry.settings != 0).copied().collect();
        Ok(Self {
            hardware,
            segment: unit.segment,
            features,
            flags: unit.flags,
            settings,
            table: None,
            commands: None,
            events: None,
            enabled: false,
        })
    }

    /// A table with an entry for every device, all of which are blocked.
    fn table(&mut self, memory: &mut impl Memory) -> Result<Hpa, Error> {
        if let Some(table) = self.table {
            return Ok(table);
        }
        let table = memory.allocate_run(TABLE_ORDER).ok_or(Error::OutOfMemory)?;
        for page in 0..TABLE_PAGES {
            let page = Hpa::new(table.as_u64() + page * PAGE_SIZE);
            for index in (0..ENTRIES).step_by(ENTRY_WORDS) {
                memory.write(page, index, BLOCKED);
            }
        }
        for entry in &self.settings {
            let (second, third) = system_messages(entry.settings);
            for device in entry.range.first..=entry.range.last {
                let (page, index) = place(table, device);
                memory.write(page, index + 1, second);
                memory.write(page, index + 2, third);
            }
        }
        self.table = Some(table);
        Ok(table)
    }

    /// Ends the firmware's rings. Translation goes on, if it is on, until its table is replaced.
    fn take_over(&mut self) -> Result<(), Error> {
        let now = self.hardware.read64(register::CONTROL);
        self.hardware.write64(
            register::CONTROL,
            now & control::KEPT & !(control::COMMANDS | control::EVENT_LOG | control::EVENT_INTERRUPT),
        );
        wait(&self.hardware, "the firmware's rings", |hardware| {
            hardware.read64(register::STATUS) & (status::COMMANDS_RUN | status::EVENTS_RUN) == 0
        })
    }

    /// Turns off whatever the firmware may have left on: devices reach everything.
    ///
    /// # Errors
    /// [`Error::Stuck`].
    pub fn turn_off(&mut self) -> Result<(), Error> {
        self.take_over()?;
        let now = self.hardware.read64(register::CONTROL);
        self.hardware.write64(register::CONTROL, now & !control::ENABLE);
        Ok(())
    }

    /// Runs a batch of commands, and waits for its end.
    fn run(&mut self, memory: &mut impl Memory, batch: &[(u64, u64)]) -> Result<(), Error> {
        match &mut self.commands {
            Some(commands) if self.enabled => commands.run(&mut self.hardware, memory, batch),
            _ => Ok(()),
        }
    }

    /// Has the unit forget a device's entry, and what it has cached of a domain.
    fn forget_device(&mut self, memory: &mut impl Memory, device: u16, tag: u16) -> Result<(), Error> {
        // The entry first: what is cached again in between is then cached for the new one.
        self.run(memory, &[commands::device(device), commands::pages(tag)])
    }

    /// Has the unit forget everything.
    fn forget_all(&mut self, memory: &mut impl Memory) -> Result<(), Error> {
        if self.features & FORGETS_ALL != 0 {
            return self.run(memory, &[commands::ALL]);
        }
        for device in 0..=u16::MAX {
            self.run(memory, &[commands::device(device)])?;
        }
        for tag in 0..=u16::MAX {
            self.run(memory, &[commands::pages(tag)])?;
        }
        Ok(())
    }
}

/// Where a device's entry is in the table.
fn place(table: Hpa, device: u16) -> (Hpa, usize) {
    let word = usize::from(device) * ENTRY_WORDS;
    (Hpa::new(table.as_u64() + (word / ENTRIES) as u64 * PAGE_SIZE), word % ENTRIES)
}

/// The second and third word of an entry for what the firmware's table says of system messages (section 5.2.2.2): bits 105:104,
/// 184 to 186, 190 and 191 of the entry.
fn system_messages(settings: u8) -> (u64, u64) {
    let settings = u64::from(settings);
    ((settings >> 4 & 3) << 40, (settings & 7) << 56 | (settings >> 6 & 3) << 62)
}

/// Of an entry's second word: the domain's tag.
const TAG: u64 = 0xffff;

impl<H: Hardware> Unit for AmdVi<H> {
    type Pages = Pages;

    fn shape(&self) -> Shape {
        Shape {
            levels: [true, true, self.features & MORE_LEVELS != 0],
            largest_leaf: PageSize::Size1G,
            address_bits: 64,
            snooped: true,
            tags: 1 << 16,
        }
    }

    fn enable(&mut self, memory: &mut impl Memory) -> Result<(), Error> {
        let table = self.table(memory)?;
        self.take_over()?;
        let commands = Commands::new(memory)?;
        let events = Events::new(memory)?;
        self.hardware.write64(register::COMMANDS, commands.ring().as_u64() | RING);
        self.hardware.write64(register::COMMANDS_HEAD, 0);
        self.hardware.write64(register::COMMANDS_TAIL, 0);
        self.hardware.write64(register::EVENTS, events.ring().as_u64() | RING);
        self.hardware.write64(register::EVENTS_HEAD, 0);
        self.hardware.write64(register::EVENTS_TAIL, 0);
        self.hardware.write64(register::EXCLUSION_BASE, 0);
        self.hardware.write64(register::DEVICE_TABLE, table.as_u64() | (TABLE_PAGES - 1));
        (self.commands, self.events) = (Some(commands), Some(events));
        let mut now = self.hardware.read64(register::CONTROL) & control::KEPT;
        for (flag, bit) in control::FLAGS {
            now = now & !(1 << bit) | u64::from(self.flags >> flag & 1) << bit;
        }
        now |= control::COHERENT | control::COMMANDS | control::EVENT_LOG | control::ENABLE;
        self.hardware.write64(register::CONTROL, now);
        self.enabled = true;
        self.forget_all(memory)
    }

    fn prepare(&mut self, memory: &mut impl Memory, _: u16) -> Result<(), Error> {
        self.table(memory).map(|_| ())
    }

    fn attach(
        &mut self,
        memory: &mut impl Memory,
        device: u16,
        tag: Tag,
        root: Hpa,
        levels: Levels,
    ) -> Result<(), Error> {
        let (page, index) = place(self.table.ok_or(Error::OutOfMemory)?, device);
        if memory.read(page, index) != BLOCKED {
            self.block(memory, device)?;
        }
        // A blocked entry does not care whose it is.
        let second = memory.read(page, index + 1);
        memory.write(page, index + 1, second & !TAG | u64::from(tag.0));
        memory.write(page, index, Pages::root_pointer(root, levels.count(), false) | BLOCKED);
        self.forget_device(memory, device, tag.0)
    }

    fn block(&mut self, memory: &mut impl Memory, device: u16) -> Result<(), Error> {
        let Some(table) = self.table else { return Ok(()) };
        let (page, index) = place(table, device);
        let second = memory.read(page, index + 1);
        memory.write(page, index, BLOCKED);
        self.forget_device(memory, device, (second & TAG) as u16)?;
        memory.write(page, index + 1, second & !TAG);
        Ok(())
    }

    fn mapped(&mut self, _: &mut impl Memory, _: Tag) -> Result<(), Error> {
        // It caches no absent entries, but where it is emulated and says so, which none does that Caisson knows (section 2.4).
        Ok(())
    }

    fn forget(&mut self, memory: &mut impl Memory, tag: Tag) -> Result<(), Error> {
        self.run(memory, &[commands::pages(tag.0)])
    }

    fn interrupt(&mut self, message: Option<Message>) {
        let now = self.hardware.read64(register::CONTROL);
        let interrupt = if message.is_some() { control::EVENT_INTERRUPT } else { 0 };
        self.hardware.write64(register::CONTROL, now & !control::EVENT_INTERRUPT | interrupt);
    }

    fn can_remap(&self, _: bool) -> bool {
        false
    }

    fn remap(&mut self, _: &mut impl Memory, _: bool) -> Result<(), Error> {
        Err(Error::NoRemapping)
    }

    fn set_interrupt(&mut self, _: &mut impl Memory, _: u8, _: Option<Interrupt>) -> Result<(), Error> {
        Err(Error::NoRemapping)
    }

    fn take_fault(&mut self, memory: &mut impl Memory) -> Option<Fault> {
        self.events.as_mut()?.take(&mut self.hardware, memory, self.segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_where_the_manual_has_them() {
        let table = Hpa::new(0x20_0000);
        assert_eq!(place(table, 0), (table, 0));
        assert_eq!(place(table, 1), (table, 4));
        assert_eq!(place(table, 0x80), (Hpa::new(0x20_1000), 0));
        assert_eq!(place(table, 0xffff), (Hpa::new(0x3f_f000), 508));
    }

    #[test]
    fn system_messages_go_where_the_manual_has_them() {
        assert_eq!(system_messages(0xd7), (1 << 40, 7 << 56 | 3 << 62));
        assert_eq!(system_messages(0), (0, 0));
        assert_eq!(system_messages(0x28), (2 << 40, 0));
    }
}
