//! Model-specific registers by number (SDM vol. 4; APM vol. 2, appendix A; Linux `kvm/x86/msr.rst` for KVM's).

macro_rules! msrs {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        $($(#[$doc])* pub const $name: u32 = $number;)*
    };
}

msrs! {
    /// IA32_P5_MC_ADDR.
    P5_MC_ADDR = 0x0000_0000;
    /// IA32_P5_MC_TYPE.
    P5_MC_TYPE = 0x0000_0001;
    /// IA32_TIME_STAMP_COUNTER.
    TSC = 0x0000_0010;
    /// IA32_PLATFORM_ID.
    PLATFORM_ID = 0x0000_0017;
    /// IA32_APIC_BASE.
    APIC_BASE = 0x0000_001b;
    /// IA32_FEATURE_CONTROL.
    FEATURE_CONTROL = 0x0000_003a;
    /// IA32_TSC_ADJUST.
    TSC_ADJUST = 0x0000_003b;
    /// IA32_SPEC_CTRL.
    SPEC_CTRL = 0x0000_0048;
    /// IA32_PRED_CMD, write-only.
    PRED_CMD = 0x0000_0049;
    /// IA32_BIOS_UPDT_TRIG.
    BIOS_UPDT_TRIG = 0x0000_0079;
    /// IA32_BIOS_SIGN_ID, the microcode revision.
    BIOS_SIGN_ID = 0x0000_008b;
    /// IA32_MTRRCAP.
    MTRR_CAP = 0x0000_00fe;
    /// IA32_ARCH_CAPABILITIES.
    ARCH_CAPABILITIES = 0x0000_010a;
    /// IA32_FLUSH_CMD.
    FLUSH_CMD = 0x0000_010b;
    /// IA32_SYSENTER_CS.
    SYSENTER_CS = 0x0000_0174;
    /// IA32_SYSENTER_ESP.
    SYSENTER_ESP = 0x0000_0175;
    /// IA32_SYSENTER_EIP.
    SYSENTER_EIP = 0x0000_0176;
    /// IA32_MCG_CAP.
    MCG_CAP = 0x0000_0179;
    /// IA32_MCG_STATUS.
    MCG_STATUS = 0x0000_017a;
    /// IA32_MCG_CTL.
    MCG_CTL = 0x0000_017b;
    /// IA32_MISC_ENABLE.
    MISC_ENABLE = 0x0000_01a0;
    /// IA32_DEBUGCTL.
    DEBUGCTL = 0x0000_01d9;
    /// IA32_MTRR_PHYSBASE0; base and mask alternate from here.
    MTRR_PHYSBASE0 = 0x0000_0200;
    /// IA32_MTRR_FIX64K_00000.
    MTRR_FIX64K_00000 = 0x0000_0250;
    /// IA32_MTRR_FIX16K_80000.
    MTRR_FIX16K_80000 = 0x0000_0258;
    /// IA32_MTRR_FIX16K_A0000.
    MTRR_FIX16K_A0000 = 0x0000_0259;
    /// IA32_MTRR_FIX4K_C0000, the first of eight.
    MTRR_FIX4K_C0000 = 0x0000_0268;
    /// IA32_PAT.
    PAT = 0x0000_0277;
    /// IA32_MTRR_DEF_TYPE.
    MTRR_DEF_TYPE = 0x0000_02ff;
    /// IA32_MC0_CTL; four registers a bank.
    MC0_CTL = 0x0000_0400;
    /// IA32_TSC_DEADLINE.
    TSC_DEADLINE = 0x0000_06e0;
    /// First x2APIC register.
    X2APIC_FIRST = 0x0000_0800;
    /// x2APIC local APIC id.
    X2APIC_ID = 0x0000_0802;
    /// x2APIC end of interrupt.
    X2APIC_EOI = 0x0000_080b;
    /// x2APIC interrupt command.
    X2APIC_ICR = 0x0000_0830;
    /// Last x2APIC register.
    X2APIC_LAST = 0x0000_08ff;
    /// IA32_XSS.
    XSS = 0x0000_0da0;
    /// IA32_EFER.
    EFER = 0xc000_0080;
    /// IA32_STAR.
    STAR = 0xc000_0081;
    /// IA32_LSTAR.
    LSTAR = 0xc000_0082;
    /// IA32_CSTAR.
    CSTAR = 0xc000_0083;
    /// IA32_FMASK.
    SFMASK = 0xc000_0084;
    /// IA32_FS_BASE.
    FS_BASE = 0xc000_0100;
    /// IA32_GS_BASE.
    GS_BASE = 0xc000_0101;
    /// IA32_KERNEL_GS_BASE.
    KERNEL_GS_BASE = 0xc000_0102;
    /// IA32_TSC_AUX.
    TSC_AUX = 0xc000_0103;
    /// AMD TSC ratio of guests.
    TSC_RATIO = 0xc000_0104;
    /// AMD SYSCFG.
    SYSCFG = 0xc001_0010;
    /// AMD HWCR.
    HWCR = 0xc001_0015;
    /// AMD IORR base 0.
    IORR_BASE0 = 0xc001_0016;
    /// AMD TOP_MEM: where RAM below 4 GiB ends.
    TOP_MEM = 0xc001_001a;
    /// AMD TOP_MEM2: where RAM above 4 GiB ends.
    TOP_MEM2 = 0xc001_001d;
    /// AMD northbridge configuration.
    NB_CFG = 0xc001_001f;
    /// AMD microcode patch level loader.
    PATCH_LOADER = 0xc001_0020;
    /// AMD P-state current limit; the first P-state MSR.
    PSTATE_LIMIT = 0xc001_0061;
    /// AMD VM_CR: SVM lock and disable.
    VM_CR = 0xc001_0114;
    /// AMD VM_HSAVE_PA: the host save area.
    VM_HSAVE_PA = 0xc001_0117;
    /// AMD virtual SPEC_CTRL.
    VIRT_SPEC_CTRL = 0xc001_011f;
    /// AMD OSVW id length.
    OSVW_ID_LENGTH = 0xc001_0140;
    /// AMD OSVW status.
    OSVW_STATUS = 0xc001_0141;
    /// AMD LS_CFG.
    LS_CFG = 0xc001_1020;
    /// AMD DE_CFG: whether LFENCE serializes.
    DE_CFG = 0xc001_1029;
    /// KVM wall clock.
    KVM_WALL_CLOCK_NEW = 0x4b56_4d00;
    /// KVM system time of a vCPU.
    KVM_SYSTEM_TIME_NEW = 0x4b56_4d01;
    /// KVM asynchronous page faults.
    KVM_ASYNC_PF_EN = 0x4b56_4d02;
    /// KVM steal time.
    KVM_STEAL_TIME = 0x4b56_4d03;
    /// KVM paravirtual end of interrupt.
    KVM_PV_EOI_EN = 0x4b56_4d04;
    /// KVM halt-polling control.
    KVM_POLL_CONTROL = 0x4b56_4d05;
}

/// VM_CR.SVMDIS: EFER.SVME cannot be set (APM vol. 2, section 15.30.1).
pub const VM_CR_SVMDIS: u64 = 1 << 4;
/// VM_CR.LOCK: SVMDIS cannot be changed until reset.
pub const VM_CR_LOCK: u64 = 1 << 3;
/// APIC_BASE: the APIC is enabled.
pub const APIC_BASE_ENABLE: u64 = 1 << 11;
/// APIC_BASE: x2APIC mode.
pub const APIC_BASE_X2APIC: u64 = 1 << 10;
