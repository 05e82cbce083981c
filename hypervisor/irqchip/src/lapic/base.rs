//! Modes and resets of the local APIC.
//!
//! Intel SDM volume 3, "Enabling or Disabling the Local APIC", "Local APIC Status and Location", "x2APIC State
//! Transitions", "Local APIC State After Power-Up or Reset", "Local APIC State After an INIT Reset".

use caisson_types::{Gpa, PAGE_SIZE};

use super::{ApicMode, Effect, GeneralProtection, LocalApic, lvt};
use crate::VectorSet;

/// Where the registers are after power-up.
pub const APIC_DEFAULT_BASE: u64 = 0xfee0_0000;

/// `IA32_APIC_BASE`.
pub const MSR_APIC_BASE: u32 = 0x1b;

const BSP: u64 = 1 << 8;
const EXTENDED: u64 = 1 << 10;
const ENABLE: u64 = 1 << 11;

impl LocalApic {
    /// After power-up or a machine reset, as [`LocalApic::new`] leaves it. The caller publishes the routing again.
    pub fn power_on_reset(&mut self) {
        let bsp = if self.config.bsp { BSP } else { 0 };
        self.base = APIC_DEFAULT_BASE | ENABLE | bsp;
        self.mode = ApicMode::XApic;
        self.reset_registers();
    }

    /// After an INIT: as after power-up, but the mode, the address and the id stay. The caller publishes the routing
    /// again.
    pub fn init_reset(&mut self) {
        self.reset_registers();
    }

    fn reset_registers(&mut self) {
        (self.vectors_changed, self.registers_changed) = (true, true);
        self.irr = VectorSet::new();
        self.isr = VectorSet::new();
        self.tmr = VectorSet::new();
        self.tpr = 0;
        self.ppr = 0;
        self.nmis = 0;
        self.extint = false;
        self.svr = 0xff;
        self.ldr = 0;
        self.dfr = u32::MAX;
        self.icr = 0;
        self.lvt.fill(lvt::MASKED);
        self.esr = 0;
        self.errors = 0;
        self.timer.reset();
    }

    /// `IA32_APIC_BASE`.
    #[must_use]
    pub const fn apic_base(&self) -> u64 {
        self.base
    }

    /// Whether this is the boot CPU.
    #[must_use]
    pub const fn is_bsp(&self) -> bool {
        self.config.bsp
    }

    /// The page where the registers are, in xAPIC mode.
    #[must_use]
    pub fn mmio_base(&self) -> Option<Gpa> {
        let page = Gpa::new(self.base & !(PAGE_SIZE - 1));
        (self.mode == ApicMode::XApic).then_some(page)
    }

    /// Writes `IA32_APIC_BASE`. Disabling loses the registers' state. The BSP flag is what hardware made it: writes do not
    /// change it.
    ///
    /// # Errors
    ///
    /// #GP for reserved bits, x2APIC where CPUID does not announce it, and the transitions that do not exist: x2APIC to
    /// xAPIC, disabled to x2APIC, and x2APIC without enable.
    pub fn write_apic_base(&mut self, value: u64) -> Result<Effect, GeneralProtection> {
        let width = u32::from(self.config.physical_bits.clamp(32, 52));
        let address = ((1 << width) - 1) & !(PAGE_SIZE - 1);
        let extended = if self.config.x2apic { EXTENDED } else { 0 };
        if value & !(address | BSP | ENABLE | extended) != 0 {
            return Err(GeneralProtection);
        }
        let mode = match (value & ENABLE != 0, value & EXTENDED != 0) {
            (false, false) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) => ApicMode::X2Apic,
            (false, true) => return Err(GeneralProtection),
        };
        match (self.mode, mode) {
            (ApicMode::X2Apic, ApicMode::XApic) | (ApicMode::Disabled, ApicMode::X2Apic) => {
                return Err(GeneralProtection);
            }
            (ApicMode::XApic, ApicMode::X2Apic) => self.icr &= u64::from(u32::MAX),
            (_, ApicMode::Disabled) if self.mode != mode => self.reset_registers(),
            _ => {}
        }
        let value = value & !BSP | self.base & BSP;
        if value == self.base {
            return Ok(Effect::None);
        }
        self.base = value;
        self.mode = mode;
        self.registers_changed = true;
        Ok(Effect::RoutingChanged)
    }
}
