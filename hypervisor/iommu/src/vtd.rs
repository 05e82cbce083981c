//! Intel's VT-d (specification 4.1), in legacy mode: root table, context tables, second-level tables.
//!
//! The unit is told to forget by queued invalidation, or by registers where it has no queue. Contexts change seldom, and then
//! all of them are forgotten.

mod fault;
mod interrupts;
mod queue;

use caisson_stage2::{ENTRIES, Format as _, Levels, Vtd as Pages};
use caisson_types::{Hpa, PageSize};

use crate::unit::wait;
use crate::{Error, Fault, Hardware, Interrupt, Memory, Message, Shape, Tag, Unit};
use queue::Queue;

/// Registers (section 11.4).
mod register {
    pub(super) const CAPABILITIES: u64 = 0x08;
    pub(super) const MORE_CAPABILITIES: u64 = 0x10;
    pub(super) const COMMAND: u64 = 0x18;
    pub(super) const STATUS: u64 = 0x1c;
    pub(super) const ROOT: u64 = 0x20;
    pub(super) const CONTEXT_COMMAND: u64 = 0x28;
    pub(super) const FAULT_STATUS: u64 = 0x34;
    pub(super) const FAULT_CONTROL: u64 = 0x38;
    pub(super) const FAULT_DATA: u64 = 0x3c;
    pub(super) const FAULT_ADDRESS: u64 = 0x40;
    pub(super) const FAULT_UPPER_ADDRESS: u64 = 0x44;
    pub(super) const PROTECTED_MEMORY: u64 = 0x64;
    pub(super) const QUEUE_HEAD: u64 = 0x80;
    pub(super) const QUEUE_TAIL: u64 = 0x88;
    pub(super) const QUEUE: u64 = 0x90;
    pub(super) const INTERRUPTS: u64 = 0xb8;
}

/// Bits of the command register, and of the status register (sections 11.4.4 and 11.4.5).
mod command {
    pub(super) const TRANSLATE: u32 = 1 << 31;
    pub(super) const SET_ROOT: u32 = 1 << 30;
    pub(super) const FLUSH_WRITES: u32 = 1 << 27;
    pub(super) const QUEUE: u32 = 1 << 26;
    pub(super) const REMAP_INTERRUPTS: u32 = 1 << 25;
    pub(super) const SET_INTERRUPTS: u32 = 1 << 24;
    pub(super) const OLD_INTERRUPTS: u32 = 1 << 23;
    /// Bits that order something once: they are not written back.
    pub(super) const ONCE: u32 = 1 << 30 | 1 << 29 | 1 << 27 | 1 << 24;
}

/// Bits of the capability registers (sections 11.4.2 and 11.4.3).
mod capability {
    pub(super) const FLUSH_WRITES: u64 = 1 << 4;
    pub(super) const PROTECTED_LOW: u64 = 1 << 5;
    pub(super) const PROTECTED_HIGH: u64 = 1 << 6;
    pub(super) const CACHES_ABSENT: u64 = 1 << 7;
    pub(super) const DRAIN_WRITES: u64 = 1 << 54;
    pub(super) const DRAIN_READS: u64 = 1 << 55;
    pub(super) const SNOOPS: u64 = 1 << 0;
    pub(super) const QUEUE: u64 = 1 << 1;
    pub(super) const INTERRUPTS: u64 = 1 << 3;
    pub(super) const WIDE_INTERRUPTS: u64 = 1 << 4;
}

/// The register that holds the root's address: which of the unit's modes.
const MODE: u64 = 3 << 10;
/// Protected memory: on, and in effect.
const PROTECTED: u32 = 1 << 31;
const PROTECTED_STATUS: u32 = 1;
/// Of root and context entries.
const PRESENT: u64 = 1;
/// The tag in a context entry's upper half.
const TAG_SHIFT: u32 = 8;
/// Context and translation commands by register: done when the hardware clears it; everything, or one domain; with both
/// kinds of requests drained.
const COMMAND_BUSY: u64 = 1 << 63;
const CONTEXT_ALL: u64 = 1 << 61;
const TRANSLATION_ALL: u64 = 1 << 60;
const TRANSLATION_DOMAIN: u64 = 2 << 60;
const DRAIN_WRITES: u64 = 1 << 48;
const DRAIN_READS: u64 = 1 << 49;

/// What is to be forgotten.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Forget {
    /// What one domain's tables say.
    Domain(Tag),
    /// Everything of memory, contexts included.
    All,
    /// What an entry of the interrupt table says, or all of them.
    Interrupt(Option<u8>),
}

/// A unit of Intel's.
pub struct Vtd<H> {
    hardware: H,
    segment: u16,
    capabilities: u64,
    more: u64,
    /// The root table, once there is one.
    root: Option<Hpa>,
    queue: Option<Queue>,
    /// The interrupt table, once there is one, and whether processors' ids in it are wide.
    interrupts: Option<(Hpa, bool)>,
    enabled: bool,
}

impl<H: Hardware> Vtd<H> {
    /// The unit with these registers, for devices of this segment.
    ///
    /// # Errors
    /// [`Error::Absent`].
    pub fn new(hardware: H, segment: u16) -> Result<Self, Error> {
        let capabilities = hardware.read64(register::CAPABILITIES);
        let more = hardware.read64(register::MORE_CAPABILITIES);
        if capabilities == u64::MAX || more == u64::MAX || capabilities == 0 {
            return Err(Error::Absent);
        }
        Ok(Self {
            hardware,
            segment,
            capabilities,
            more,
            root: None,
            queue: None,
            interrupts: None,
            enabled: false,
        })
    }

    fn has(&self, capability: u64) -> bool {
        self.capabilities & capability != 0
    }

    /// Sets and clears bits of the command register, and waits until the status register shows that.
    fn command(&mut self, set: u32, clear: u32, what: &'static str) -> Result<(), Error> {
        let now = self.hardware.read32(register::STATUS) & !command::ONCE;
        self.hardware.write32(register::COMMAND, (now | set) & !clear);
        wait(&self.hardware, what, |hardware| {
            // The order to flush writes is done when its bit is clear, all others as they say.
            let status = hardware.read32(register::STATUS);
            if set == command::FLUSH_WRITES {
                status & set == 0
            } else {
                status & set == set && status & clear == 0
            }
        })
    }

    /// Turns off whatever the firmware may have left on: devices reach everything.
    ///
    /// # Errors
    /// [`Error::Stuck`].
    pub fn turn_off(&mut self) -> Result<(), Error> {
        self.take_over()?;
        if self.is_on(command::TRANSLATE) {
            self.command(0, command::TRANSLATE, "translation off")?;
        }
        self.unprotect()
    }

    /// Ends the protection of ranges of memory, by which firmware keeps devices out while it starts (section 11.4.6).
    fn unprotect(&mut self) -> Result<(), Error> {
        if !self.has(capability::PROTECTED_LOW | capability::PROTECTED_HIGH) {
            return Ok(());
        }
        let now = self.hardware.read32(register::PROTECTED_MEMORY);
        self.hardware.write32(register::PROTECTED_MEMORY, now & !PROTECTED);
        wait(&self.hardware, "protected memory off", |hardware| {
            hardware.read32(register::PROTECTED_MEMORY) & PROTECTED_STATUS == 0
        })
    }

    fn is_on(&self, bit: u32) -> bool {
        self.hardware.read32(register::STATUS) & bit != 0
    }

    /// Ends what the firmware may have left on, but translation where that can stay until it is replaced.
    fn take_over(&mut self) -> Result<(), Error> {
        self.interrupt(None);
        if self.is_on(command::REMAP_INTERRUPTS) {
            self.command(0, command::REMAP_INTERRUPTS, "interrupt remapping off")?;
        }
        if self.is_on(command::QUEUE) {
            wait(&self.hardware, "the firmware's queue", |hardware| {
                hardware.read64(register::QUEUE_HEAD) == hardware.read64(register::QUEUE_TAIL)
            })?;
            self.command(0, command::QUEUE, "queue off")?;
        }
        // The mode does not change while it translates.
        if self.is_on(command::TRANSLATE) && self.hardware.read64(register::ROOT) & MODE != 0 {
            self.command(0, command::TRANSLATE, "translation off")?;
        }
        Ok(())
    }

    fn root(&mut self, memory: &mut impl Memory) -> Result<Hpa, Error> {
        match self.root {
            Some(root) => Ok(root),
            None => {
                let root = memory.allocate_run(0).ok_or(Error::OutOfMemory)?;
                self.root = Some(root);
                Ok(root)
            }
        }
    }

    /// The context table of a device's bus, and the index of the device's entry there.
    fn context(&self, memory: &impl Memory, device: u16) -> Option<(Hpa, usize)> {
        let entry = memory.read(self.root?, usize::from(device >> 8) * 2);
        let at = usize::from(device & 0xff) * 2 % ENTRIES;
        (entry & PRESENT != 0).then(|| (Hpa::new(entry & Pages::ADDRESS), at))
    }

    /// Has the unit forget, and waits.
    fn forget_what(&mut self, memory: &mut impl Memory, what: Forget) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        if self.has(capability::FLUSH_WRITES) {
            self.command(command::FLUSH_WRITES, 0, "writes flushed")?;
        }
        let drains = (self.has(capability::DRAIN_WRITES), self.has(capability::DRAIN_READS));
        if let Some(queue) = &mut self.queue {
            return queue.forget(&mut self.hardware, memory, what, drains);
        }
        if what == Forget::All {
            self.order(register::CONTEXT_COMMAND, CONTEXT_ALL, "contexts forgotten")?;
        }
        let which = match what {
            Forget::All => TRANSLATION_ALL,
            Forget::Domain(tag) => TRANSLATION_DOMAIN | u64::from(tag.0) << 32,
            // Only units with a queue remap interrupts.
            Forget::Interrupt(_) => return Err(Error::NoRemapping),
        };
        let drain = if drains.0 { DRAIN_WRITES } else { 0 } | if drains.1 { DRAIN_READS } else { 0 };
        // The register lies where the unit says (section 11.4.8.1): behind the one for addresses.
        let register = (self.more >> 8 & 0x3ff) * 16 + 8;
        self.order(register, which | drain, "translations forgotten")
    }

    /// Writes a command to a register that takes one at a time, and waits for its end.
    fn order(&mut self, register: u64, order: u64, what: &'static str) -> Result<(), Error> {
        self.hardware.write64(register, order | COMMAND_BUSY);
        wait(&self.hardware, what, |hardware| hardware.read64(register) & COMMAND_BUSY == 0)
    }
}

impl<H: Hardware> Unit for Vtd<H> {
    type Pages = Pages;

    fn shape(&self) -> Shape {
        let depths = self.capabilities >> 8;
        let largest_leaf = match self.capabilities >> 34 & 3 {
            3 => PageSize::Size1G,
            1 => PageSize::Size2M,
            _ => PageSize::Size4K,
        };
        Shape {
            levels: [1, 2, 3].map(|bit| depths & 1 << bit != 0),
            largest_leaf,
            address_bits: (self.capabilities >> 16 & 0x3f) as u8 + 1,
            snooped: self.more & capability::SNOOPS != 0,
            tags: 1 << (4 + 2 * (self.capabilities & 7)).min(16),
        }
    }

    fn enable(&mut self, memory: &mut impl Memory) -> Result<(), Error> {
        let root = self.root(memory)?;
        self.take_over()?;
        if self.more & capability::QUEUE != 0 {
            let queue = Queue::new(memory)?;
            queue.start(&mut self.hardware);
            self.command(command::QUEUE, 0, "queue on")?;
            self.queue = Some(queue);
        }
        self.enabled = true;
        self.hardware.write64(register::ROOT, root.as_u64());
        self.command(command::SET_ROOT, 0, "root set")?;
        self.forget_what(memory, Forget::All)?;
        self.command(command::TRANSLATE, 0, "translation on")?;
        self.unprotect()?;
        // What the firmware's time left: as many as a unit can remember.
        let _ = (0..256).take_while(|_| self.take_fault(memory).is_some()).count();
        Ok(())
    }

    fn prepare(&mut self, memory: &mut impl Memory, device: u16) -> Result<(), Error> {
        let root = self.root(memory)?;
        if self.context(memory, device).is_none() {
            let table = memory.allocate_run(0).ok_or(Error::OutOfMemory)?;
            memory.write(root, usize::from(device >> 8) * 2, table.as_u64() | PRESENT);
        }
        Ok(())
    }

    fn attach(
        &mut self,
        memory: &mut impl Memory,
        device: u16,
        tag: Tag,
        root: Hpa,
        levels: Levels,
    ) -> Result<(), Error> {
        let (table, at) = self.context(memory, device).ok_or(Error::OutOfMemory)?;
        if memory.read(table, at) & PRESENT != 0 {
            self.block(memory, device)?;
        }
        // Widths are numbered from that of two levels.
        let width = u64::from(levels.count()) - 2;
        memory.write(table, at + 1, width | u64::from(tag.0) << TAG_SHIFT);
        memory.write(table, at, Pages::root_pointer(root, levels.count(), false) | PRESENT);
        // It may have cached that there was none, and this tag of an earlier domain.
        self.forget_what(memory, Forget::All)
    }

    fn block(&mut self, memory: &mut impl Memory, device: u16) -> Result<(), Error> {
        let Some((table, at)) = self.context(memory, device) else { return Ok(()) };
        memory.write(table, at, 0);
        self.forget_what(memory, Forget::All)?;
        memory.write(table, at + 1, 0);
        Ok(())
    }

    fn mapped(&mut self, memory: &mut impl Memory, tag: Tag) -> Result<(), Error> {
        if self.has(capability::CACHES_ABSENT | capability::FLUSH_WRITES) {
            return self.forget_what(memory, Forget::Domain(tag));
        }
        Ok(())
    }

    fn forget(&mut self, memory: &mut impl Memory, tag: Tag) -> Result<(), Error> {
        self.forget_what(memory, Forget::Domain(tag))
    }

    fn interrupt(&mut self, message: Option<Message>) {
        const MASKED: u32 = 1 << 31;
        self.hardware.write32(register::FAULT_CONTROL, MASKED);
        if let Some(message) = message {
            self.hardware.write32(register::FAULT_DATA, message.data);
            self.hardware.write32(register::FAULT_ADDRESS, message.address);
            self.hardware.write32(register::FAULT_UPPER_ADDRESS, 0);
            self.hardware.write32(register::FAULT_CONTROL, 0);
        }
    }

    fn can_remap(&self, wide: bool) -> bool {
        let needed =
            capability::QUEUE | capability::INTERRUPTS | if wide { capability::WIDE_INTERRUPTS } else { 0 };
        self.more & needed == needed
    }

    fn remap(&mut self, memory: &mut impl Memory, wide: bool) -> Result<(), Error> {
        if !self.can_remap(wide) || !self.enabled {
            return Err(Error::NoRemapping);
        }
        let table = memory.allocate_run(0).ok_or(Error::OutOfMemory)?;
        self.interrupts = Some((table, wide));
        self.hardware.write64(register::INTERRUPTS, interrupts::table(table, wide));
        self.command(command::SET_INTERRUPTS, 0, "interrupt table set")?;
        self.forget_what(memory, Forget::Interrupt(None))?;
        if self.is_on(command::OLD_INTERRUPTS) {
            self.command(0, command::OLD_INTERRUPTS, "unremapped interrupts off")?;
        }
        self.command(command::REMAP_INTERRUPTS, 0, "interrupt remapping on")
    }

    fn set_interrupt(
        &mut self,
        memory: &mut impl Memory,
        index: u8,
        interrupt: Option<Interrupt>,
    ) -> Result<(), Error> {
        let (table, wide) = self.interrupts.ok_or(Error::NoRemapping)?;
        let (low, high) = interrupt.map_or((0, 0), |interrupt| interrupts::entry(&interrupt, wide));
        let at = usize::from(index) * 2;
        if (memory.read(table, at), memory.read(table, at + 1)) == (low, high) {
            return Ok(());
        }
        if memory.read(table, at + 1) != high {
            // The halves are written one after the other: never a new one beside an old one that is present.
            memory.write(table, at, 0);
            self.forget_what(memory, Forget::Interrupt(Some(index)))?;
            memory.write(table, at + 1, high);
        }
        memory.write(table, at, low);
        self.forget_what(memory, Forget::Interrupt(Some(index)))
    }

    fn take_fault(&mut self, _: &mut impl Memory) -> Option<Fault> {
        fault::take(&mut self.hardware, self.capabilities, self.segment)
    }
}
