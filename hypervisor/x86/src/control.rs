//! Control registers, EFER, RFLAGS and XCR0 (SDM vol. 3, section 2.5; APM vol. 2, chapter 3).

use bitflags::bitflags;

bitflags! {
    /// CR0.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cr0: u64 {
        /// Protection enable.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Emulate the FPU.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type, always 1.
        const ET = 1 << 4;
        /// Native FPU errors.
        const NE = 1 << 5;
        /// Write protection of read-only pages in supervisor mode.
        const WP = 1 << 16;
        /// Alignment checks.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
    }

    /// CR4.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Cr4: u64 {
        /// Virtual-8086 extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// RDTSC only in ring 0.
        const TSD = 1 << 2;
        /// Debugging extensions.
        const DE = 1 << 3;
        /// 4 MiB pages in 32-bit paging.
        const PSE = 1 << 4;
        /// Physical-address extension.
        const PAE = 1 << 5;
        /// Machine checks.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// RDPMC outside ring 0.
        const PCE = 1 << 8;
        /// FXSAVE, FXRSTOR and SSE.
        const OSFXSR = 1 << 9;
        /// Unmasked SSE exceptions.
        const OSXMMEXCPT = 1 << 10;
        /// User-mode instruction prevention.
        const UMIP = 1 << 11;
        /// 57-bit linear addresses.
        const LA57 = 1 << 12;
        /// VMX.
        const VMXE = 1 << 13;
        /// SMX.
        const SMXE = 1 << 14;
        /// RDFSBASE and its kin.
        const FSGSBASE = 1 << 16;
        /// Process-context ids.
        const PCIDE = 1 << 17;
        /// XSAVE and XCR0.
        const OSXSAVE = 1 << 18;
        /// Key locker.
        const KL = 1 << 19;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys for user pages.
        const PKE = 1 << 22;
        /// Control-flow enforcement.
        const CET = 1 << 23;
        /// Protection keys for supervisor pages.
        const PKS = 1 << 24;
    }

    /// IA32_EFER, MSR C000_0080.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Efer: u64 {
        /// SYSCALL and SYSRET.
        const SCE = 1 << 0;
        /// Long mode enable.
        const LME = 1 << 8;
        /// Long mode active.
        const LMA = 1 << 10;
        /// No-execute pages.
        const NXE = 1 << 11;
        /// AMD-V enable.
        const SVME = 1 << 12;
        /// Long-mode segment limits (AMD).
        const LMSLE = 1 << 13;
        /// Fast FXSAVE and FXRSTOR (AMD).
        const FFXSR = 1 << 14;
        /// Translation-cache extension (AMD).
        const TCE = 1 << 15;
        /// Automatic IBRS (AMD).
        const AUTOIBRS = 1 << 21;
    }

    /// RFLAGS.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Rflags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Always 1.
        const FIXED = 1 << 1;
        /// Parity.
        const PF = 1 << 2;
        /// Auxiliary carry.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Single step.
        const TF = 1 << 8;
        /// Maskable interrupts.
        const IF = 1 << 9;
        /// String direction: down.
        const DF = 1 << 10;
        /// Overflow.
        const OF = 1 << 11;
        /// I/O privilege level, both bits.
        const IOPL = 3 << 12;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume: no instruction breakpoint on the next instruction.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment checks, and access to user pages under SMAP.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID can be used.
        const ID = 1 << 21;
    }

    /// XCR0, the enabled state components (SDM vol. 1, section 13.3).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Xcr0: u64 {
        /// x87, always 1.
        const X87 = 1 << 0;
        /// XMM registers.
        const SSE = 1 << 1;
        /// Upper halves of YMM registers.
        const AVX = 1 << 2;
        /// MPX bound registers.
        const BNDREGS = 1 << 3;
        /// MPX configuration.
        const BNDCSR = 1 << 4;
        /// AVX-512 mask registers.
        const OPMASK = 1 << 5;
        /// Upper halves of ZMM0 to ZMM15.
        const ZMM_HI256 = 1 << 6;
        /// ZMM16 to ZMM31.
        const HI16_ZMM = 1 << 7;
        /// Protection keys.
        const PKRU = 1 << 9;
    }
}

impl Xcr0 {
    /// Whether XSETBV accepts the value (SDM vol. 1, section 13.3): x87 always on, AVX needs SSE, and the parts of
    /// MPX and AVX-512 come together. `supported` is what the CPU, or the guest's policy, has.
    #[must_use]
    pub const fn is_valid(value: u64, supported: u64) -> bool {
        let avx512 = Self::OPMASK.bits() | Self::ZMM_HI256.bits() | Self::HI16_ZMM.bits();
        let mpx = Self::BNDREGS.bits() | Self::BNDCSR.bits();
        value & !supported == 0
            && value & 1 != 0
            && (value & Self::AVX.bits() == 0 || value & Self::SSE.bits() != 0)
            && (value & avx512 == 0 || (value & avx512 == avx512 && value & Self::AVX.bits() != 0))
            && (value & mpx == 0 || value & mpx == mpx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xcr0_parts_come_together() {
        let all = 0xe7;
        assert!(Xcr0::is_valid(1, all));
        assert!(Xcr0::is_valid(7, all));
        assert!(!Xcr0::is_valid(5, all));
        assert!(!Xcr0::is_valid(6, all));
        assert!(!Xcr0::is_valid(0x27, all));
        assert!(Xcr0::is_valid(0xe7, all));
        assert!(!Xcr0::is_valid(0x207, all));
    }
}
