//! Register accesses: xAPIC by MMIO, x2APIC by MSR.
//!
//! Intel SDM volume 3, "The Local APIC Block Diagram" (the register map), "x2APIC Register Address Space", "Reserved Bit
//! Checking", "x2APIC Register Availability", "Error Handling", "Issuing Interprocessor Interrupts".
//!
//! A register is named by its index: MMIO offset divided by 16, or MSR number less 0x800.

use caisson_types::Instant;

use super::lvt::{DELIVERY_STATUS, Lvt, REMOTE_IRR};
use super::timer::TimerMode;
use super::{ApicMode, Effect, FIRST_LEGAL_VECTOR, GeneralProtection, LVT_ENTRIES, LocalApic, TscClock, esr};
use crate::{BROADCAST, DeliveryMode, DestinationMode, InterruptMessage, Ipi, Shorthand, TriggerMode};

/// The first MSR of the x2APIC range.
pub const MSR_X2APIC_FIRST: u32 = 0x800;
/// The last MSR of the x2APIC range.
pub const MSR_X2APIC_LAST: u32 = 0x8ff;
/// `IA32_TSC_DEADLINE`.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;

pub(super) const SVR_ENABLE: u32 = 1 << 8;
pub(super) const SVR_SUPPRESS_EOI_BROADCAST: u32 = 1 << 12;
/// Vector, enable, focus-processor checking (stored, without effect), EOI-broadcast suppression.
const SVR_WRITABLE: u32 = 0xff | SVR_ENABLE | 1 << 9 | SVR_SUPPRESS_EOI_BROADCAST;

/// An integrated APIC that is an xAPIC, its last LVT entry's number, EOI-broadcast suppression.
const VERSION: u32 = 0x14 | (LVT_ENTRIES as u32 - 1) << 16 | 1 << 24;

pub(super) mod index {
    pub(in crate::lapic) const ID: u8 = 0x02;
    pub(in crate::lapic) const VERSION: u8 = 0x03;
    pub(in crate::lapic) const TPR: u8 = 0x08;
    pub(in crate::lapic) const PPR: u8 = 0x0a;
    pub(in crate::lapic) const EOI: u8 = 0x0b;
    pub(in crate::lapic) const LDR: u8 = 0x0d;
    pub(in crate::lapic) const DFR: u8 = 0x0e;
    pub(in crate::lapic) const SVR: u8 = 0x0f;
    pub(in crate::lapic) const ISR: u8 = 0x10;
    pub(in crate::lapic) const ISR_LAST: u8 = 0x17;
    pub(in crate::lapic) const TMR: u8 = 0x18;
    pub(in crate::lapic) const TMR_LAST: u8 = 0x1f;
    pub(in crate::lapic) const IRR: u8 = 0x20;
    pub(in crate::lapic) const IRR_LAST: u8 = 0x27;
    pub(in crate::lapic) const ESR: u8 = 0x28;
    pub(in crate::lapic) const ICR: u8 = 0x30;
    pub(in crate::lapic) const ICR_HIGH: u8 = 0x31;
    pub(in crate::lapic) const LVT: u8 = 0x32;
    pub(in crate::lapic) const LVT_LAST: u8 = 0x37;
    pub(in crate::lapic) const INITIAL_COUNT: u8 = 0x38;
    pub(in crate::lapic) const CURRENT_COUNT: u8 = 0x39;
    pub(in crate::lapic) const DIVIDE: u8 = 0x3e;
    pub(in crate::lapic) const SELF_IPI: u8 = 0x3f;
}

mod icr {
    pub(super) const LOGICAL: u64 = 1 << 11;
    pub(super) const DELIVERY_STATUS: u64 = 1 << 12;
    pub(super) const ASSERT: u64 = 1 << 14;
    pub(super) const LEVEL: u64 = 1 << 15;
    /// What software can write in the low word.
    pub(super) const WRITABLE: u64 = 0xfff | ASSERT | LEVEL | 3 << 18;
    /// The low word's reserved bits. The delivery status is read-only: always idle.
    pub(super) const RESERVED: u64 = 0xffff_ffff & !(WRITABLE | DELIVERY_STATUS);
}

impl LocalApic {
    // ---- MMIO

    /// Reads `size` bytes at `offset` of the register page. Only the first four bytes of each 16 exist; other
    /// addresses and sizes are undefined in the manual and read 0 here. Unless the mode is xAPIC there is no register
    /// page, and all of it reads all ones.
    pub fn mmio_read(&mut self, offset: u64, size: u8, now: Instant) -> u32 {
        let within = (offset & 0xf) as u32;
        let mask = match size {
            1 => 0xff,
            2 => 0xffff,
            _ => u32::MAX,
        };
        if self.mode != ApicMode::XApic {
            return mask;
        }
        let Some(index) = mmio_index(offset) else { return 0 };
        if !matches!(size, 1 | 2 | 4) || within + u32::from(size) > 4 {
            return 0;
        }
        match self.read_xapic(index, now) {
            Some(value) => value >> (8 * within) & mask,
            None => {
                self.record_error(esr::ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// Writes `size` bytes at `offset` of the register page. Anything but four bytes at a multiple of 16 is undefined in
    /// the manual and ignored here, and so is everything unless the mode is xAPIC.
    pub fn mmio_write(&mut self, offset: u64, size: u8, value: u32, now: Instant) -> Effect {
        let Some(index) = mmio_index(offset) else { return Effect::None };
        if self.mode != ApicMode::XApic || size != 4 || offset & 0xf != 0 {
            return Effect::None;
        }
        self.registers_changed = true;
        match index {
            index::EOI => self.eoi(),
            index::ICR => self.write_icr(self.icr & !u64::from(u32::MAX) | u64::from(value)),
            index::ICR_HIGH => {
                self.icr = self.icr & u64::from(u32::MAX) | u64::from(value & 0xff00_0000) << 32;
                Effect::None
            }
            index::LDR => self.set_logical(value & 0xff00_0000, self.dfr),
            index::DFR => self.set_logical(self.ldr, value | 0x0fff_ffff),
            index::SELF_IPI => self.reserved_register(),
            _ => match self.write_common(index, value, now) {
                Some(effect) => effect,
                // Read-only registers ignore writes.
                None if self.read_xapic(index, now).is_some() => Effect::None,
                None => self.reserved_register(),
            },
        }
    }

    fn reserved_register(&mut self) -> Effect {
        self.record_error(esr::ILLEGAL_REGISTER);
        Effect::None
    }

    fn read_xapic(&mut self, index: u8, now: Instant) -> Option<u32> {
        match index {
            index::ID => Some(self.config.id << 24),
            index::LDR => Some(self.ldr),
            index::DFR => Some(self.dfr),
            index::ICR => Some(self.icr as u32),
            index::ICR_HIGH => Some((self.icr >> 32) as u32),
            // Write-only.
            index::EOI => Some(0),
            _ => self.read_common(index, now),
        }
    }

    // ---- MSRs

    /// Reads an MSR of the x2APIC range.
    ///
    /// # Errors
    ///
    /// #GP outside of x2APIC mode and for reserved and write-only registers.
    pub fn read_x2apic(&mut self, msr: u32, now: Instant) -> Result<u64, GeneralProtection> {
        let index = self.msr_index(msr)?;
        match index {
            index::ID => Ok(u64::from(self.config.id)),
            index::LDR => Ok(u64::from(self.x2apic_logical_id())),
            index::ICR => Ok(self.icr),
            _ => self.read_common(index, now).map(u64::from).ok_or(GeneralProtection),
        }
    }

    /// Writes an MSR of the x2APIC range.
    ///
    /// # Errors
    ///
    /// #GP outside of x2APIC mode, for reserved and read-only registers, and for reserved bits.
    pub fn write_x2apic(&mut self, msr: u32, value: u64, now: Instant) -> Result<Effect, GeneralProtection> {
        let index = self.msr_index(msr)?;
        // The two hot ones first.
        match index {
            index::ICR if value & icr::RESERVED == 0 => return Ok(self.write_icr(value)),
            index::EOI if value == 0 => return Ok(self.eoi()),
            index::ICR | index::EOI => return Err(GeneralProtection),
            _ => {}
        }
        let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
        if value & !self.x2apic_writable(index) != 0 {
            return Err(GeneralProtection);
        }
        if index == index::SELF_IPI {
            self.self_ipi(value as u8);
            return Ok(Effect::None);
        }
        // Not before: what is refused changes nothing.
        let effect = self.write_common(index, value, now).ok_or(GeneralProtection)?;
        self.registers_changed = true;
        Ok(effect)
    }

    fn msr_index(&self, msr: u32) -> Result<u8, GeneralProtection> {
        if self.mode != ApicMode::X2Apic {
            return Err(GeneralProtection);
        }
        msr.checked_sub(MSR_X2APIC_FIRST).and_then(|index| u8::try_from(index).ok()).ok_or(GeneralProtection)
    }

    /// The bits of a 32-bit register that are not reserved.
    fn x2apic_writable(&self, index: u8) -> u32 {
        match index {
            index::ESR => 0,
            index::TPR | index::SELF_IPI => 0xff,
            index::SVR => SVR_WRITABLE,
            index::DIVIDE => 0b1011,
            index::LVT..=index::LVT_LAST => Lvt::from_index(index - index::LVT)
                .map_or(0, |lvt| lvt.writable(self.config.tsc_deadline) | DELIVERY_STATUS | REMOTE_IRR),
            _ => u32::MAX,
        }
    }

    // ---- both

    /// Reads what is the same in both modes; `None` for what is not there.
    fn read_common(&mut self, index: u8, now: Instant) -> Option<u32> {
        match index {
            index::IRR..=index::IRR_LAST => self.advance(now),
            index::CURRENT_COUNT => return Some(self.timer.current_count(now)),
            _ => {}
        }
        self.register(index)
    }

    /// A register that is the same in both modes and does not change by itself; `None` for what is none.
    fn register(&self, index: u8) -> Option<u32> {
        Some(match index {
            index::VERSION => VERSION,
            index::TPR => u32::from(self.tpr),
            index::PPR => u32::from(self.ppr),
            index::SVR => self.svr,
            index::ISR..=index::ISR_LAST => self.isr.register(index - index::ISR),
            index::TMR..=index::TMR_LAST => self.tmr.register(index - index::TMR),
            index::IRR..=index::IRR_LAST => self.irr.register(index - index::IRR),
            index::ESR => u32::from(self.esr),
            index::LVT..=index::LVT_LAST => self.lvt(Lvt::from_index(index - index::LVT)?),
            index::INITIAL_COUNT => self.timer.initial_count(),
            index::DIVIDE => u32::from(self.timer.divide()),
            _ => return None,
        })
    }

    /// What a page shows of the register at `index` in the mode that the APIC is in.
    pub(super) fn shown(&self, index: u8) -> u32 {
        let value = match (self.mode, index) {
            (ApicMode::X2Apic, index::ID) => Some(self.config.id),
            (ApicMode::X2Apic, index::LDR) => Some(self.x2apic_logical_id()),
            (_, index::ID) => Some(self.config.id << 24),
            (_, index::LDR) => Some(self.ldr),
            (_, index::DFR) => Some(self.dfr),
            (_, index::ICR) => Some(self.icr as u32),
            (_, index::ICR_HIGH) => Some((self.icr >> 32) as u32),
            _ => self.register(index),
        };
        value.unwrap_or(0)
    }

    /// The logical id that x2APIC derives from the id ("Deriving Logical x2APIC ID from the Local x2APIC ID").
    const fn x2apic_logical_id(&self) -> u32 {
        let id = self.config.id;
        (id >> 4 & 0xffff) << 16 | 1 << (id & 0xf)
    }

    /// Writes what is the same in both modes; `None` for what is read-only or not there.
    fn write_common(&mut self, index: u8, value: u32, now: Instant) -> Option<Effect> {
        Some(match index {
            index::TPR => {
                self.set_tpr(value as u8);
                Effect::TprChanged
            }
            index::SVR => self.write_svr(value, now),
            index::ESR => {
                self.esr = core::mem::take(&mut self.errors);
                Effect::None
            }
            index::LVT..=index::LVT_LAST => self.write_lvt(Lvt::from_index(index - index::LVT)?, value, now),
            index::INITIAL_COUNT => {
                self.advance(now);
                self.timer.set_initial_count(value, now);
                Effect::TimerChanged
            }
            index::DIVIDE => {
                self.advance(now);
                self.timer.set_divide(value as u8, now);
                Effect::TimerChanged
            }
            _ => return None,
        })
    }

    fn write_lvt(&mut self, lvt: Lvt, value: u32, now: Instant) -> Effect {
        if lvt != Lvt::Timer {
            self.set_lvt(lvt, value);
            return Effect::None;
        }
        // What was due before the write goes by the old entry.
        self.advance(now);
        self.set_lvt(lvt, value);
        self.timer.set_mode(TimerMode::from_lvt(self.lvt(lvt)));
        Effect::TimerChanged
    }

    fn write_svr(&mut self, value: u32, now: Instant) -> Effect {
        // What was due before the write goes by the unmasked entry.
        self.advance(now);
        let was_enabled = self.is_software_enabled();
        self.svr = value & SVR_WRITABLE;
        if self.is_software_enabled() == was_enabled {
            return Effect::None;
        }
        if was_enabled {
            self.mask_lvt();
        }
        Effect::RoutingChanged
    }

    fn set_logical(&mut self, ldr: u32, dfr: u32) -> Effect {
        if (ldr, dfr) == (self.ldr, self.dfr) {
            return Effect::None;
        }
        (self.ldr, self.dfr) = (ldr, dfr);
        Effect::RoutingChanged
    }

    /// Writes the ICR as one 64-bit register (in xAPIC mode: the low word, with the high one as it stands). The caller
    /// has checked reserved bits; they are not stored.
    #[inline]
    pub fn write_icr(&mut self, value: u64) -> Effect {
        let x2apic = self.mode == ApicMode::X2Apic;
        self.registers_changed = true;
        self.icr = value & (icr::WRITABLE | 0xffff_ffff << 32);
        let vector = value as u8;
        let delivery = match DeliveryMode::from_bits((value >> 8) as u32) {
            // Reserved in an ICR, or not part of this machine.
            None | Some(DeliveryMode::ExtInt | DeliveryMode::Smi) => return Effect::None,
            // INIT level de-assert: nothing since the Pentium 4.
            Some(DeliveryMode::Init) if value & (icr::LEVEL | icr::ASSERT) == icr::LEVEL => {
                return Effect::None;
            }
            Some(delivery) => delivery,
        };
        if delivery.is_vectored() && vector < FIRST_LEGAL_VECTOR {
            // It is sent all the same: each receiver finds its own error.
            self.record_error(esr::SEND_ILLEGAL_VECTOR);
        }
        let shorthand = match value >> 18 & 3 {
            0 => Shorthand::None,
            1 => Shorthand::SelfOnly,
            2 => Shorthand::AllIncludingSelf,
            _ => Shorthand::AllExcludingSelf,
        };
        if shorthand == Shorthand::SelfOnly && delivery.is_vectored() {
            if self.is_software_enabled() {
                self.accept(vector, TriggerMode::Edge);
            }
            return Effect::None;
        }
        let destination = match (value >> 32) as u32 {
            high if x2apic => high,
            0xff00_0000 => BROADCAST,
            high => high >> 24,
        };
        let destination_mode =
            if value & icr::LOGICAL != 0 { DestinationMode::Logical } else { DestinationMode::Physical };
        // IPIs are edge-triggered whatever the trigger bit says.
        let message = InterruptMessage {
            destination,
            destination_mode,
            delivery,
            vector,
            trigger: TriggerMode::Edge,
            assert: true,
        };
        Effect::SendIpi(Ipi { message, shorthand })
    }

    pub(super) fn self_ipi(&mut self, vector: u8) {
        if vector < FIRST_LEGAL_VECTOR {
            self.record_error(esr::SEND_ILLEGAL_VECTOR);
        }
        if self.is_software_enabled() {
            self.accept(vector, TriggerMode::Edge);
        }
    }

    // ---- TSC deadline

    /// Reads `IA32_TSC_DEADLINE`: 0 when it is not armed, has fired, or the timer is in another mode.
    ///
    /// # Errors
    ///
    /// #GP where CPUID does not announce it.
    pub fn read_tsc_deadline(&mut self, now: Instant) -> Result<u64, GeneralProtection> {
        if !self.config.tsc_deadline {
            return Err(GeneralProtection);
        }
        self.advance(now);
        Ok(self.timer.tsc_deadline())
    }

    /// Writes `IA32_TSC_DEADLINE`: arms the timer, disarms it by 0, is ignored in other modes. A deadline that has passed
    /// fires at once.
    ///
    /// # Errors
    ///
    /// #GP where CPUID does not announce it.
    #[inline]
    pub fn write_tsc_deadline(
        &mut self,
        deadline: u64,
        clock: &TscClock,
    ) -> Result<Effect, GeneralProtection> {
        if !self.config.tsc_deadline {
            return Err(GeneralProtection);
        }
        self.advance(clock.now);
        self.timer.set_tsc_deadline(deadline, clock);
        self.advance(clock.now);
        Ok(Effect::TimerChanged)
    }

    /// The guest's TSC has been moved against virtual time (restored, migrated, or written by the guest): the deadline,
    /// which is a TSC value, comes at another time.
    pub fn retime_tsc_deadline(&mut self, clock: &TscClock) -> Effect {
        let deadline = self.timer.tsc_deadline();
        if deadline == 0 {
            return Effect::None;
        }
        self.timer.set_tsc_deadline(deadline, clock);
        Effect::TimerChanged
    }
}

/// The register that an offset within the page belongs to; `None` past the registers' 16-byte slots and the page.
fn mmio_index(offset: u64) -> Option<u8> {
    u8::try_from(offset >> 4).ok()
}
