//! The local vector table and the LINT pins.
//!
//! Intel SDM volume 3, "Local Vector Table" and "Local Interrupt Acceptance"; MultiProcessor Specification, "Virtual Wire
//! Mode".

use super::{ApicMode, LocalApic, registers};
use crate::{DeliveryMode, TriggerMode};

pub(super) const LVT_ENTRIES: usize = 6;

/// An entry of the table, in the order of the registers from 0x320.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Lvt {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

impl Lvt {
    pub(super) const fn from_index(index: u8) -> Option<Self> {
        match index {
            0 => Some(Self::Timer),
            1 => Some(Self::Thermal),
            2 => Some(Self::Performance),
            3 => Some(Self::Lint0),
            4 => Some(Self::Lint1),
            5 => Some(Self::Error),
            _ => None,
        }
    }

    /// The bits that software can write.
    pub(super) const fn writable(self, tsc_deadline: bool) -> u32 {
        const VECTOR: u32 = 0xff;
        const DELIVERY: u32 = 7 << 8;
        VECTOR
            | MASKED
            | match self {
                Self::Timer if tsc_deadline => 3 << 17,
                Self::Timer => 1 << 17,
                Self::Thermal | Self::Performance => DELIVERY,
                Self::Lint0 | Self::Lint1 => DELIVERY | POLARITY | LEVEL,
                Self::Error => 0,
            }
    }
}

pub(super) const MASKED: u32 = 1 << 16;
pub(super) const LEVEL: u32 = 1 << 15;
pub(super) const REMOTE_IRR: u32 = 1 << 14;
pub(super) const POLARITY: u32 = 1 << 13;
pub(super) const DELIVERY_STATUS: u32 = 1 << 12;

/// A local interrupt pin.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LintPin {
    /// On a PC: the output of the 8259 pair.
    Lint0,
    /// On a PC: NMI.
    Lint1,
}

impl LintPin {
    const fn lvt(self) -> Lvt {
        match self {
            Self::Lint0 => Lvt::Lint0,
            Self::Lint1 => Lvt::Lint1,
        }
    }
}

impl LocalApic {
    pub(super) const fn lvt(&self, lvt: Lvt) -> u32 {
        self.lvt[lvt as usize]
    }

    pub(super) const fn lvt_is_masked(&self, lvt: Lvt) -> bool {
        self.lvt(lvt) & MASKED != 0
    }

    pub(super) const fn lvt_is_extint(&self, lvt: Lvt) -> bool {
        !self.lvt_is_masked(lvt)
            && matches!(DeliveryMode::from_bits(self.lvt(lvt) >> 8), Some(DeliveryMode::ExtInt))
    }

    /// Stores an entry; the caller has taken out the reserved bits. The mask stays while the APIC is software disabled.
    pub(super) fn set_lvt(&mut self, lvt: Lvt, value: u32) {
        let mut value = value & lvt.writable(self.config.tsc_deadline);
        if !self.is_software_enabled() {
            value |= MASKED;
        }
        self.registers_changed = true;
        let entry = &mut self.lvt[lvt as usize];
        // A pin that is made edge-triggered no longer waits for an EOI.
        let keep = if value & LEVEL != 0 { *entry & REMOTE_IRR } else { 0 };
        *entry = value | keep;
        match lvt {
            Lvt::Lint0 => self.deliver_level_pin(LintPin::Lint0),
            Lvt::Lint1 => self.deliver_level_pin(LintPin::Lint1),
            _ => {}
        }
    }

    /// SVR disables the APIC by software: every entry is masked.
    pub(super) fn mask_lvt(&mut self) {
        self.registers_changed = true;
        self.lvt.iter_mut().for_each(|entry| *entry |= MASKED);
    }

    /// Something that raises an edge has happened at the entry's source.
    pub(super) fn deliver_lvt(&mut self, lvt: Lvt) {
        let entry = self.lvt(lvt);
        if entry & MASKED != 0 {
            return;
        }
        // Timer and error have no delivery mode: the field is 0, that is fixed.
        match DeliveryMode::from_bits(entry >> 8) {
            Some(DeliveryMode::Fixed) => self.accept(entry as u8, TriggerMode::Edge),
            Some(DeliveryMode::Nmi) => self.add_nmi(),
            // ExtINT: the 8259 pair's output is sampled by `accepts_extint`. SMI, INIT: not part of this machine.
            _ => {}
        }
    }

    /// The performance counters have overflowed.
    ///
    /// On delivery the entry is masked, as software expects of newer processors (Intel SDM volume 3, "Local Vector
    /// Table").
    pub fn performance_interrupt(&mut self) {
        self.deliver_lvt(Lvt::Performance);
        self.lvt[Lvt::Performance as usize] |= MASKED;
        self.registers_changed = true;
    }

    /// The thermal sensor has tripped.
    pub fn thermal_interrupt(&mut self) {
        self.deliver_lvt(Lvt::Thermal);
    }

    /// The wire at `pin` is asserted or not. LINT0 in ExtINT mode only stores it: ask [`Self::accepts_extint`].
    pub fn set_lint(&mut self, pin: LintPin, asserted: bool) {
        let was = core::mem::replace(&mut self.lint[pin as usize], asserted);
        let rises = asserted && !was;
        if self.mode == ApicMode::Disabled {
            // The pins are INTR and NMI.
            if rises && pin == LintPin::Lint1 {
                self.add_nmi();
            }
            return;
        }
        let lvt = pin.lvt();
        if self.is_level_pin(lvt) {
            self.deliver_level_pin(pin);
        } else if rises {
            self.deliver_lvt(lvt);
        }
    }

    /// Whether the entry's trigger mode counts and is level: NMI and ExtINT have a trigger of their own.
    const fn is_level_pin(&self, lvt: Lvt) -> bool {
        let entry = self.lvt(lvt);
        entry & LEVEL != 0 && matches!(DeliveryMode::from_bits(entry >> 8), Some(DeliveryMode::Fixed))
    }

    fn deliver_level_pin(&mut self, pin: LintPin) {
        let lvt = pin.lvt();
        let entry = self.lvt(lvt);
        let vector = entry as u8;
        if self.is_level_pin(lvt) && self.lint[pin as usize] && entry & (MASKED | REMOTE_IRR) == 0 {
            self.accept(vector, TriggerMode::Level);
            // An illegal vector is never served, so no EOI would come.
            if vector >= super::FIRST_LEGAL_VECTOR {
                self.lvt[lvt as usize] |= REMOTE_IRR;
                self.registers_changed = true;
            }
        }
    }

    /// The EOI of a level-triggered vector: a pin that delivered it may deliver again.
    #[cold]
    pub(super) fn eoi_lint(&mut self, vector: u8) {
        for pin in [LintPin::Lint0, LintPin::Lint1] {
            let entry = &mut self.lvt[pin.lvt() as usize];
            if *entry & REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !REMOTE_IRR;
                self.registers_changed = true;
                self.deliver_level_pin(pin);
            }
        }
    }

    /// Sets the state that firmware leaves behind on the boot CPU of a PC in virtual-wire mode: software enabled, LINT0
    /// takes the 8259 pair's interrupts, LINT1 is NMI. No effect on a disabled APIC.
    pub fn set_virtual_wire(&mut self) {
        if self.mode != ApicMode::Disabled {
            self.svr |= registers::SVR_ENABLE;
            self.registers_changed = true;
            self.set_lvt(Lvt::Lint0, 7 << 8);
            self.set_lvt(Lvt::Lint1, 4 << 8);
        }
    }
}
