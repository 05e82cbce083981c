//! What the VMCS does not carry and is swapped when another vCPU gets the CPU: vector state and debug addresses
//! ([`GuestContext`]), the MSRs of SYSCALL and SWAPGS, CR2, and DR6 while debug registers do not exit.
//!
//! Caisson uses none of it: no SYSCALL, no SWAPGS, and a page fault of its own is a bug. So it stays in the CPU while exits
//! are answered, and the MSR load and store areas stay empty.

use core::arch::asm;

use caisson_machine::context::{Carried, GuestContext};
use caisson_machine::cpu::{read_msr, write_msr};
use caisson_types::DomainId;
use caisson_x86::msr;

/// The MSRs, in the order of [`Context::msrs`].
const MSRS: [u32; 5] = [msr::STAR, msr::LSTAR, msr::CSTAR, msr::SFMASK, msr::KERNEL_GS_BASE];
/// DR6 after reset (SDM vol. 3, table 10-1).
const DR6_RESET: u64 = 0xffff_0ff0;

/// One vCPU's state beside its VMCS.
pub(crate) struct Context {
    vector: GuestContext,
    msrs: [u64; MSRS.len()],
    cr2: u64,
    dr6: u64,
}

impl Context {
    pub(crate) fn new(carried: Carried, domain: DomainId) -> Option<Self> {
        let vector = GuestContext::new(carried, domain)?;
        Some(Self { vector, msrs: [0; MSRS.len()], cr2: 0, dr6: DR6_RESET })
    }

    /// Power-on; an INIT leaves vector state and these MSRs alone (SDM vol. 3, table 10-1).
    pub(crate) fn reset(&mut self, init: bool) {
        self.vector.reset(init);
        self.set_cr2(0);
        self.set_dr6(DR6_RESET);
        if !init {
            for number in MSRS {
                let _ = self.set_msr(number, 0);
            }
        }
    }

    /// Loads everything onto this CPU.
    pub(crate) fn load(&mut self) {
        self.vector.load();
        for (number, value) in MSRS.into_iter().zip(self.msrs) {
            // SAFETY: every CPU with 64-bit mode has these; the values were the guest's own or have been checked.
            unsafe { write_msr(number, value) };
        }
        // SAFETY: Caisson does not use CR2.
        unsafe { asm!("mov cr2, {}", in(reg) self.cr2, options(nomem, nostack, preserves_flags)) };
        if self.vector.debug_loaded() {
            self.write_dr6();
        }
    }

    /// Stores everything off this CPU.
    pub(crate) fn store(&mut self) {
        self.cr2 = self.cr2();
        self.dr6 = self.dr6();
        self.msrs = MSRS.map(|number| {
            // SAFETY: every CPU with 64-bit mode has these; reading changes nothing.
            unsafe { read_msr(number) }
        });
        self.vector.store();
    }

    pub(crate) fn cr2(&self) -> u64 {
        if !self.vector.is_loaded() {
            return self.cr2;
        }
        let value;
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }

    pub(crate) fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
        if self.vector.is_loaded() {
            // SAFETY: Caisson does not use CR2.
            unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
        }
    }

    pub(crate) fn dr6(&self) -> u64 {
        if !(self.vector.is_loaded() && self.vector.debug_loaded()) {
            return self.dr6;
        }
        let value;
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, dr6", out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }

    pub(crate) fn set_dr6(&mut self, value: u64) {
        self.dr6 = value;
        if self.vector.is_loaded() && self.vector.debug_loaded() {
            self.write_dr6();
        }
    }

    fn write_dr6(&self) {
        // SAFETY: a status register that Caisson does not use; its upper half is clear.
        unsafe {
            asm!("mov dr6, {}", in(reg) self.dr6 & 0xffff_ffff, options(nomem, nostack, preserves_flags));
        }
    }

    /// Whether the guest's debug registers are in the CPU whenever it runs.
    pub(crate) fn debug_loaded(&self) -> bool {
        self.vector.debug_loaded()
    }

    /// Puts the guest's DR0 to DR3 and DR6 into the CPU. DR7 is in the VMCS.
    pub(crate) fn load_debug(&mut self) {
        self.vector.load_debug();
        self.write_dr6();
    }

    /// The guest has stopped using them.
    pub(crate) fn release_debug(&mut self) {
        self.vector.release_debug();
    }

    /// One of the swapped MSRs, or `None` where `number` is none of them.
    pub(crate) fn msr(&self, number: u32) -> Option<u64> {
        if number == msr::TSC_AUX {
            return Some(self.vector.tsc_aux());
        }
        let index = MSRS.iter().position(|&known| known == number)?;
        if self.vector.is_loaded() {
            // SAFETY: every CPU with 64-bit mode has it; reading changes nothing.
            Some(unsafe { read_msr(number) })
        } else {
            Some(self.msrs[index])
        }
    }

    /// Sets one of them; `false` where `number` is none. The value has been checked.
    pub(crate) fn set_msr(&mut self, number: u32, value: u64) -> bool {
        if number == msr::TSC_AUX {
            self.vector.set_tsc_aux(value);
            return true;
        }
        let Some(index) = MSRS.iter().position(|&known| known == number) else { return false };
        self.msrs[index] = value;
        if self.vector.is_loaded() {
            // SAFETY: the value has been checked; Caisson uses none of these MSRs.
            unsafe { write_msr(number, value) };
        }
        true
    }

    pub(crate) fn xcr0(&self) -> u64 {
        self.vector.xcr0()
    }

    pub(crate) fn set_xcr0(&mut self, value: u64) {
        self.vector.set_xcr0(value);
    }
}
