//! Exit codes (APM vol. 2, appendix C).

/// VMCB.EXITCODE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct ExitCode(pub u64);

#[allow(missing_docs)]
impl ExitCode {
    pub const CR0_READ: Self = Self(0x00);
    pub const CR15_READ: Self = Self(0x0f);
    pub const CR0_WRITE: Self = Self(0x10);
    pub const CR4_WRITE: Self = Self(0x14);
    pub const CR8_WRITE: Self = Self(0x18);
    pub const CR15_WRITE: Self = Self(0x1f);
    pub const DR0_READ: Self = Self(0x20);
    pub const DR15_READ: Self = Self(0x2f);
    pub const DR0_WRITE: Self = Self(0x30);
    pub const DR15_WRITE: Self = Self(0x3f);
    pub const EXCEPTION_0: Self = Self(0x40);
    pub const EXCEPTION_31: Self = Self(0x5f);
    pub const INTR: Self = Self(0x60);
    pub const NMI: Self = Self(0x61);
    pub const SMI: Self = Self(0x62);
    pub const INIT: Self = Self(0x63);
    pub const VINTR: Self = Self(0x64);
    pub const CR0_SELECTIVE_WRITE: Self = Self(0x65);
    pub const IDTR_READ: Self = Self(0x66);
    pub const GDTR_READ: Self = Self(0x67);
    pub const LDTR_READ: Self = Self(0x68);
    pub const TR_READ: Self = Self(0x69);
    pub const IDTR_WRITE: Self = Self(0x6a);
    pub const GDTR_WRITE: Self = Self(0x6b);
    pub const LDTR_WRITE: Self = Self(0x6c);
    pub const TR_WRITE: Self = Self(0x6d);
    pub const RDTSC: Self = Self(0x6e);
    pub const RDPMC: Self = Self(0x6f);
    pub const PUSHF: Self = Self(0x70);
    pub const POPF: Self = Self(0x71);
    pub const CPUID: Self = Self(0x72);
    pub const RSM: Self = Self(0x73);
    pub const IRET: Self = Self(0x74);
    pub const SOFTWARE_INT: Self = Self(0x75);
    pub const INVD: Self = Self(0x76);
    pub const PAUSE: Self = Self(0x77);
    pub const HLT: Self = Self(0x78);
    pub const INVLPG: Self = Self(0x79);
    pub const INVLPGA: Self = Self(0x7a);
    pub const IOIO: Self = Self(0x7b);
    pub const MSR: Self = Self(0x7c);
    pub const TASK_SWITCH: Self = Self(0x7d);
    pub const FERR_FREEZE: Self = Self(0x7e);
    pub const SHUTDOWN: Self = Self(0x7f);
    pub const VMRUN: Self = Self(0x80);
    pub const VMMCALL: Self = Self(0x81);
    pub const VMLOAD: Self = Self(0x82);
    pub const VMSAVE: Self = Self(0x83);
    pub const STGI: Self = Self(0x84);
    pub const CLGI: Self = Self(0x85);
    pub const SKINIT: Self = Self(0x86);
    pub const RDTSCP: Self = Self(0x87);
    pub const ICEBP: Self = Self(0x88);
    pub const WBINVD: Self = Self(0x89);
    pub const MONITOR: Self = Self(0x8a);
    pub const MWAIT: Self = Self(0x8b);
    pub const MWAIT_CONDITIONAL: Self = Self(0x8c);
    pub const XSETBV: Self = Self(0x8d);
    pub const RDPRU: Self = Self(0x8e);
    pub const EFER_WRITE_TRAP: Self = Self(0x8f);
    pub const INVLPGB: Self = Self(0xa0);
    pub const INVLPGB_ILLEGAL: Self = Self(0xa1);
    pub const INVPCID: Self = Self(0xa2);
    pub const MCOMMIT: Self = Self(0xa3);
    pub const TLBSYNC: Self = Self(0xa4);
    pub const BUSLOCK: Self = Self(0xa5);
    pub const IDLE_HLT: Self = Self(0xa6);
    pub const NPF: Self = Self(0x400);
    pub const AVIC_INCOMPLETE_IPI: Self = Self(0x401);
    pub const AVIC_NOACCEL: Self = Self(0x402);
    pub const VMGEXIT: Self = Self(0x403);
    pub const INVALID: Self = Self(u64::MAX);
    /// `INVALID` as QEMU's emulation gives it: only the lower half of the field is written.
    pub const INVALID_LOWER_HALF: Self = Self(u32::MAX as u64);
    pub const BUSY: Self = Self(u64::MAX - 1);
}
