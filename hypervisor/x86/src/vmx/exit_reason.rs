//! Exit reasons (SDM vol. 3, appendix C and section 25.9.1).

/// The exit-reason field: the basic reason in bits 15:0, flags above.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct ExitReason(pub u32);

#[allow(missing_docs)]
impl ExitReason {
    pub const EXCEPTION_OR_NMI: u16 = 0;
    pub const EXTERNAL_INTERRUPT: u16 = 1;
    pub const TRIPLE_FAULT: u16 = 2;
    pub const INIT: u16 = 3;
    pub const STARTUP: u16 = 4;
    pub const INTERRUPT_WINDOW: u16 = 7;
    pub const NMI_WINDOW: u16 = 8;
    pub const TASK_SWITCH: u16 = 9;
    pub const CPUID: u16 = 10;
    pub const GETSEC: u16 = 11;
    pub const HLT: u16 = 12;
    pub const INVD: u16 = 13;
    pub const INVLPG: u16 = 14;
    pub const RDPMC: u16 = 15;
    pub const RDTSC: u16 = 16;
    pub const RSM: u16 = 17;
    pub const VMCALL: u16 = 18;
    pub const VMCLEAR: u16 = 19;
    pub const VMXON: u16 = 27;
    pub const CONTROL_REGISTER: u16 = 28;
    pub const DEBUG_REGISTER: u16 = 29;
    pub const IO: u16 = 30;
    pub const RDMSR: u16 = 31;
    pub const WRMSR: u16 = 32;
    pub const ENTRY_GUEST_STATE: u16 = 33;
    pub const ENTRY_MSR_LOADING: u16 = 34;
    pub const MWAIT: u16 = 36;
    pub const MONITOR: u16 = 39;
    pub const PAUSE: u16 = 40;
    pub const ENTRY_MACHINE_CHECK: u16 = 41;
    pub const TPR_BELOW_THRESHOLD: u16 = 43;
    pub const APIC_ACCESS: u16 = 44;
    pub const VIRTUALIZED_EOI: u16 = 45;
    pub const EPT_VIOLATION: u16 = 48;
    pub const EPT_MISCONFIGURATION: u16 = 49;
    pub const INVEPT: u16 = 50;
    pub const RDTSCP: u16 = 51;
    pub const PREEMPTION_TIMER: u16 = 52;
    pub const INVVPID: u16 = 53;
    pub const WBINVD: u16 = 54;
    pub const XSETBV: u16 = 55;
    pub const APIC_WRITE: u16 = 56;
    pub const INVPCID: u16 = 58;
    pub const VMFUNC: u16 = 59;
    pub const ENCLS: u16 = 60;
    pub const LOG_FULL: u16 = 62;
    pub const SEAMCALL: u16 = 76;
    pub const TDCALL: u16 = 77;
}

impl ExitReason {
    /// The basic reason.
    #[inline]
    #[must_use]
    pub const fn basic(self) -> u16 {
        self.0 as u16
    }

    /// The entry failed after the host's state had been checked: bit 31.
    #[inline]
    #[must_use]
    pub const fn entry_failed(self) -> bool {
        self.0 & 1 << 31 != 0
    }

    /// Whether an instruction caused the exit, whose length the CPU then tells (section 28.2.5).
    #[inline]
    #[must_use]
    pub const fn is_instruction(self) -> bool {
        const fn set(reasons: &[u16]) -> u64 {
            let mut bits = 0;
            let mut i = 0;
            while i < reasons.len() {
                bits |= 1 << reasons[i];
                i += 1;
            }
            bits
        }
        const SET: u64 = set(&[
            10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 36,
            39, 40, 46, 47, 50, 51, 53, 54, 55, 57, 58, 59, 60, 61, 63,
        ]);
        self.0 < 64 && SET >> self.0 & 1 != 0
    }

    /// Whether the exit may have interrupted the delivery of an event (section 28.2.4): exceptions, task switches,
    /// accesses to the APIC's page, EPT faults and a full log of written pages. Every other exit comes between
    /// instructions, or is an instruction's own.
    #[inline]
    #[must_use]
    pub const fn may_interrupt_delivery(self) -> bool {
        const SET: u64 = 1 << ExitReason::EXCEPTION_OR_NMI
            | 1 << ExitReason::TASK_SWITCH
            | 1 << ExitReason::APIC_ACCESS
            | 1 << ExitReason::EPT_VIOLATION
            | 1 << ExitReason::EPT_MISCONFIGURATION
            | 1 << ExitReason::LOG_FULL;
        self.0 < 64 && SET >> self.0 & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_instruction() {
        for basic in [ExitReason::CPUID, ExitReason::IO, ExitReason::XSETBV, ExitReason::VMXON] {
            assert!(ExitReason(u32::from(basic)).is_instruction());
        }
        for basic in [0, 1, 2, 7, 8, 9, 33, 44, 45, 48, 49, 52, 56, 62] {
            assert!(!ExitReason(basic).is_instruction());
        }
        assert!(!ExitReason(1 << 31 | 33).is_instruction() && ExitReason(1 << 31 | 33).entry_failed());
        assert!(ExitReason(48).may_interrupt_delivery() && ExitReason(62).may_interrupt_delivery());
        assert!(!ExitReason(10).may_interrupt_delivery());
    }
}
