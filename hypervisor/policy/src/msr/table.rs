//! The MSR policy for people: one row a register or range, and what passes without an exit.

use caisson_x86::msr;

use super::{INT_PENDING, MMIO_CONF_BASE, MsrClass};
use crate::{HostCaps, Vendor};

/// What a register's presence depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// Nothing.
    Always,
    /// The vendor.
    Only(Vendor),
    /// The CPUID feature of this name.
    Feature(&'static str),
}

/// A register, or several in a row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The first.
    pub first: u32,
    /// The last, inclusive.
    pub last: u32,
    /// The manuals' name.
    pub name: &'static str,
    /// Who answers.
    pub class: MsrClass,
    /// When it is there; otherwise #GP.
    pub condition: Condition,
    /// What a read gives and a write does.
    pub behaviour: &'static str,
    /// Why.
    pub reason: &'static str,
}

const fn row(
    number: u32,
    name: &'static str,
    class: MsrClass,
    condition: Condition,
    behaviour: &'static str,
    reason: &'static str,
) -> Row {
    Row { first: number, last: number, name, class, condition, behaviour, reason }
}

const fn rows(last: u32, row: Row) -> Row {
    Row { last, ..row }
}

const INTEL: Condition = Only(Vendor::Intel);
const AMD: Condition = Only(Vendor::Amd);
const MTRR: Condition = Feature("MTRR");
const MCA: Condition = Feature("MCA");
const SPEC: Condition = Feature("SPEC_CTRL");
const AUX: Condition = Feature("RDTSCP or RDPID");
const SEP: Condition = Feature("SEP");
const CLOCK: Condition = Feature("KVM CLOCKSOURCE2");

use Condition::{Always, Feature, Only};
use MsrClass::{
    ApicBase, Efer, Hardware, KvmPvEoi, KvmStealTime, KvmSystemTime, KvmWallClock, State, Tsc, TscDeadline,
    X2Apic,
};

const ZERO: &str = "reads 0; a write of 0 is taken, others #GP";
const KEPT: &str = "kept with the vCPU";
const STORED: &str = "stored; reserved bits and bad types #GP";

/// Every register that a guest may find, in the order of the numbers. All others: #GP.
pub const TABLE: &[Row] = &[
    row(msr::P5_MC_ADDR, "P5_MC_ADDR", State, MCA, ZERO, "no machine-check bank is announced"),
    row(msr::P5_MC_TYPE, "P5_MC_TYPE", State, MCA, ZERO, "no machine-check bank is announced"),
    row(
        msr::TSC,
        "TSC",
        Tsc,
        Always,
        "the guest's TSC; a write moves its offset",
        "the TSC is the vCPU's own",
    ),
    row(msr::PLATFORM_ID, "PLATFORM_ID", State, INTEL, "reads 0; #GP on write", "a guest loads no microcode"),
    row(msr::APIC_BASE, "APIC_BASE", ApicBase, Always, "the virtual APIC's", "the APIC is emulated"),
    row(
        msr::FEATURE_CONTROL,
        "FEATURE_CONTROL",
        State,
        INTEL,
        "reads 1 (locked); #GP on write",
        "VMX and SGX are off for good, as if by firmware",
    ),
    row(
        msr::TSC_ADJUST,
        "TSC_ADJUST",
        State,
        Feature("TSC_ADJUST"),
        "stored; a write moves the TSC's offset",
        "emulated through the offset",
    ),
    row(msr::SPEC_CTRL, "SPEC_CTRL", Hardware, SPEC, KEPT, "switched with the vCPU"),
    row(msr::PRED_CMD, "PRED_CMD", Hardware, SPEC, "write-only", "a barrier that hurts nobody else"),
    row(
        msr::BIOS_SIGN_ID,
        "BIOS_SIGN_ID",
        State,
        Always,
        "reads the host's revision; a write is dropped on Intel, #GP on AMD",
        "workarounds are chosen by it; on Intel a write of 0 is part of reading it, and CPUID undoes any write",
    ),
    row(msr::MTRR_CAP, "MTRRCAP", State, MTRR, "reads 508H; #GP on write", "8 ranges, fixed ranges, WC"),
    row(
        msr::ARCH_CAPABILITIES,
        "ARCH_CAPABILITIES",
        State,
        Feature("ARCH_CAPABILITIES"),
        "reads the host's facts; #GP on write",
        "tells which flaws the CPU does not have; bits that announce MSRs are left out",
    ),
    row(msr::SYSENTER_CS, "SYSENTER_CS", Hardware, SEP, KEPT, "system calls must not exit"),
    row(msr::SYSENTER_ESP, "SYSENTER_ESP", Hardware, SEP, KEPT, "system calls must not exit"),
    row(msr::SYSENTER_EIP, "SYSENTER_EIP", Hardware, SEP, KEPT, "system calls must not exit"),
    row(msr::MCG_CAP, "MCG_CAP", State, MCA, "reads 0; #GP on write", "no machine-check bank is announced"),
    row(msr::MCG_STATUS, "MCG_STATUS", State, MCA, ZERO, "no machine check is delivered to a guest"),
    row(
        msr::MISC_ENABLE,
        "MISC_ENABLE",
        State,
        INTEL,
        "fast strings can be switched; BTS and PEBS unavailable; other changes #GP",
        "Linux checks fast strings before it uses REP MOVSB",
    ),
    row(msr::DEBUGCTL, "DEBUGCTL", State, Always, ZERO, "branch records and branch steps are not carried"),
    rows(
        msr::MTRR_PHYSBASE0 + 15,
        row(
            msr::MTRR_PHYSBASE0,
            "MTRR_PHYSBASEn, PHYSMASKn",
            State,
            MTRR,
            STORED,
            "memory types are stage 2's",
        ),
    ),
    row(msr::MTRR_FIX64K_00000, "MTRR_FIX64K", State, MTRR, STORED, "memory types are stage 2's"),
    rows(
        msr::MTRR_FIX16K_A0000,
        row(msr::MTRR_FIX16K_80000, "MTRR_FIX16K", State, MTRR, STORED, "memory types are stage 2's"),
    ),
    rows(
        msr::MTRR_FIX4K_C0000 + 7,
        row(msr::MTRR_FIX4K_C0000, "MTRR_FIX4K", State, MTRR, STORED, "memory types are stage 2's"),
    ),
    row(
        msr::PAT,
        "PAT",
        Hardware,
        Feature("PAT"),
        "kept with the vCPU; bad types #GP",
        "part of nested paging",
    ),
    row(msr::MTRR_DEF_TYPE, "MTRR_DEF_TYPE", State, MTRR, STORED, "memory types are stage 2's"),
    row(
        msr::TSC_DEADLINE,
        "TSC_DEADLINE",
        TscDeadline,
        Feature("TSC-deadline timer"),
        "the virtual APIC timer's",
        "the APIC is emulated",
    ),
    rows(
        msr::X2APIC_LAST,
        row(
            msr::X2APIC_FIRST,
            "x2APIC registers",
            X2Apic,
            Always,
            "the virtual APIC's",
            "the APIC is emulated",
        ),
    ),
    row(msr::XSS, "XSS", State, Feature("XSAVES"), ZERO, "no supervisor state is carried"),
    row(
        msr::KVM_WALL_CLOCK_NEW,
        "KVM wall clock",
        KvmWallClock,
        CLOCK,
        "a write fills the structure it points to",
        "the time of day without a device",
    ),
    row(
        msr::KVM_SYSTEM_TIME_NEW,
        "KVM system time",
        KvmSystemTime,
        CLOCK,
        "a write says where the clock's structure is",
        "a clock without calibration and without exits",
    ),
    row(
        msr::KVM_STEAL_TIME,
        "KVM steal time",
        KvmStealTime,
        Feature("KVM STEAL_TIME"),
        "a write says where the structure is",
        "the guest is told of time that it did not run",
    ),
    row(
        msr::KVM_PV_EOI_EN,
        "KVM PV EOI",
        KvmPvEoi,
        Feature("KVM PV_EOI"),
        "a write says where the flag is",
        "most ends of interrupt need no exit",
    ),
    row(
        msr::EFER,
        "EFER",
        Efer,
        Always,
        "kept with the vCPU; reserved bits #GP",
        "SVME is Caisson's and stays on",
    ),
    row(msr::STAR, "STAR", Hardware, Always, KEPT, "system calls must not exit"),
    row(msr::LSTAR, "LSTAR", Hardware, Always, KEPT, "system calls must not exit"),
    row(msr::CSTAR, "CSTAR", Hardware, Always, KEPT, "system calls must not exit"),
    row(msr::SFMASK, "SFMASK", Hardware, Always, KEPT, "system calls must not exit"),
    row(msr::FS_BASE, "FS_BASE", Hardware, Always, KEPT, "thread switches must not exit"),
    row(msr::GS_BASE, "GS_BASE", Hardware, Always, KEPT, "thread switches must not exit"),
    row(msr::KERNEL_GS_BASE, "KERNEL_GS_BASE", Hardware, Always, KEPT, "thread switches must not exit"),
    row(
        msr::TSC_AUX,
        "TSC_AUX",
        Hardware,
        AUX,
        KEPT,
        "swapped at a switch of vCPUs; RDTSCP and RDPID read it",
    ),
    row(
        msr::SYSCFG,
        "SYSCFG",
        State,
        AMD,
        ZERO,
        "Linux reads it beside the fixed MTRRs: no DRAM bits, no SME",
    ),
    row(
        msr::HWCR,
        "HWCR",
        State,
        AMD,
        "TscFreqSel reads 1 with an invariant TSC; bits without effect here are stored; others #GP",
        "Linux warns of the firmware where TscFreqSel is 0",
    ),
    row(
        msr::TOP_MEM,
        "TOP_MEM",
        State,
        AMD,
        "reads the end of low RAM; #GP on write",
        "the chipset is not there",
    ),
    row(
        msr::TOP_MEM2,
        "TOP_MEM2",
        State,
        AMD,
        "reads the end of high RAM; #GP on write",
        "the chipset is not there",
    ),
    row(
        msr::NB_CFG,
        "NB_CFG",
        State,
        AMD,
        "bit 46 (EnableCf8ExtCfg) is stored; others #GP",
        "Linux sets it on every CPU from family 10h on, unguarded",
    ),
    row(INT_PENDING, "INT_PENDING", State, AMD, ZERO, "Linux reads it on families 0Fh and 10h, unguarded"),
    row(MMIO_CONF_BASE, "MMIO_CONF_BASE", State, AMD, ZERO, "Linux reads it on family 10h, unguarded"),
    row(
        msr::OSVW_ID_LENGTH,
        "OSVW_ID_LENGTH",
        State,
        AMD,
        "reads 5; #GP on write",
        "all numbered errata are known about",
    ),
    row(
        msr::OSVW_STATUS,
        "OSVW_STATUS",
        State,
        AMD,
        "reads 0; #GP on write",
        "none of them reaches a guest: its APIC timer and idle states are virtual",
    ),
    row(
        msr::DE_CFG,
        "DE_CFG",
        State,
        AMD,
        "reads whether LFENCE serialises; changes #GP",
        "Linux sets the bit where it is clear, and relies on LFENCE",
    ),
];

/// A register that the guest reads and writes without an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Passthrough {
    /// The register.
    pub number: u32,
    /// Reads pass.
    pub read: bool,
    /// Writes pass.
    pub write: bool,
    /// When: [`Condition::Always`], or the feature that is carried.
    pub condition: Condition,
    /// Why that is safe.
    pub reason: &'static str,
}

const fn pass(number: u32, condition: Condition, reason: &'static str) -> Passthrough {
    Passthrough { number, read: true, write: true, condition, reason }
}

const CARRIED: &str = "saved and loaded with the control block (VMSAVE, VMLOAD; the VMCS)";

/// What the permission map lets through on every host. Everything else exits, but for
/// [`PASSTHROUGH_WHERE_CARRIED`].
pub const PASSTHROUGH: &[Passthrough] = &[
    pass(msr::SYSENTER_CS, Always, CARRIED),
    pass(msr::SYSENTER_ESP, Always, CARRIED),
    pass(msr::SYSENTER_EIP, Always, CARRIED),
    pass(msr::STAR, Always, CARRIED),
    pass(msr::LSTAR, Always, CARRIED),
    pass(msr::CSTAR, Always, CARRIED),
    pass(msr::SFMASK, Always, CARRIED),
    pass(msr::FS_BASE, Always, CARRIED),
    pass(msr::GS_BASE, Always, CARRIED),
    pass(msr::KERNEL_GS_BASE, Always, CARRIED),
];

/// What the permission map lets through only where [`HostCaps`] says that the register is carried: elsewhere it would be
/// the host's own.
pub const PASSTHROUGH_WHERE_CARRIED: &[Passthrough] = &[
    pass(msr::TSC_AUX, AUX, "swapped by the backend at a switch of vCPUs; Caisson itself never reads it"),
    pass(msr::SPEC_CTRL, SPEC, "swapped by the backend at every entry and exit"),
    Passthrough {
        number: msr::PRED_CMD,
        read: false,
        write: true,
        condition: SPEC,
        reason: "write-only: a barrier on the CPU that the guest is running on",
    },
];

/// What the permission map lets through on a host with these capabilities.
pub fn passthrough(caps: &HostCaps) -> impl Iterator<Item = &'static Passthrough> {
    let HostCaps { tsc_aux, spec_ctrl, .. } = *caps;
    let carried = PASSTHROUGH_WHERE_CARRIED.iter().filter(move |p| match p.number {
        msr::TSC_AUX => tsc_aux,
        _ => spec_ctrl,
    });
    PASSTHROUGH.iter().chain(carried)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::tests::{epyc, setup, xeon};
    use crate::{CpuidSetup, CpuidTable, GeneralProtection, MsrSetup, MsrState, Paravirt};

    fn everything(setup: CpuidSetup) -> CpuidSetup {
        let mut setup = setup;
        setup.caps.spec_ctrl = true;
        setup.caps.arch_capabilities = true;
        setup
    }

    fn states() -> [(Vendor, MsrState); 2] {
        let msrs = MsrSetup {
            paravirt: Paravirt::all(),
            arch_capabilities: Some(u64::MAX),
            spec_ctrl: true,
            lfence_serializes: true,
            microcode: 0x0800_1250,
            low_memory_end: 0xc000_0000,
            high_memory_end: 0,
        };
        let amd = CpuidTable::build(&everything(setup(1)), epyc);
        let intel = CpuidTable::build(&everything(setup(1)), xeon);
        [(Vendor::Amd, MsrState::new(&amd, &msrs)), (Vendor::Intel, MsrState::new(&intel, &msrs))]
    }

    #[test]
    fn rows_are_in_order_and_have_reasons() {
        let mut next = 0_u64;
        for row in TABLE {
            assert!(u64::from(row.first) >= next && row.last >= row.first, "{}", row.name);
            assert!(row.reason.len() > 8 && !row.behaviour.is_empty(), "{}", row.name);
            next = u64::from(row.last) + 1;
        }
        assert!(PASSTHROUGH.iter().chain(PASSTHROUGH_WHERE_CARRIED).all(|p| p.reason.len() > 8));
    }

    #[test]
    fn classification_and_table_agree() {
        let intervals =
            [0..0x2000_u32, 0x4b56_4d00..0x4b56_4d10, 0xc000_0000..0xc000_2000, 0xc001_0000..0xc001_2000];
        for (vendor, state) in states() {
            for number in intervals.iter().cloned().flatten() {
                let row = TABLE.iter().find(|r| (r.first..=r.last).contains(&number));
                let class = state.classify(number);
                let expected = match row {
                    None => MsrClass::Unknown,
                    Some(row) => match row.condition {
                        Only(only) if only != vendor => MsrClass::Unknown,
                        // QEMU's EPYC has neither.
                        Feature("ARCH_CAPABILITIES" | "XSAVES") if vendor == Vendor::Amd => MsrClass::Unknown,
                        _ => row.class,
                    },
                };
                assert_eq!(class, expected, "{vendor:?} {number:#x}");
                assert_eq!(state.read(number).is_ok(), class == State, "{vendor:?} {number:#x}");
            }
        }
    }

    #[test]
    fn only_what_the_hardware_keeps_passes() {
        for (_, state) in states() {
            let all = PASSTHROUGH.iter().chain(PASSTHROUGH_WHERE_CARRIED);
            assert!(all.into_iter().all(|p| state.classify(p.number) == Hardware));
        }
        let mut caps = setup(1).caps;
        let numbers = |caps: &HostCaps| {
            let mut found = [false; 3];
            for p in passthrough(caps) {
                found[0] |= p.number == msr::TSC_AUX;
                found[1] |= p.number == msr::SPEC_CTRL;
                found[2] |= p.number == msr::PRED_CMD;
            }
            found
        };
        assert_eq!(numbers(&caps), [true, false, false]);
        caps.tsc_aux = false;
        caps.spec_ctrl = true;
        assert_eq!(numbers(&caps), [false, true, true]);
    }

    #[test]
    fn everything_that_linux_touches_unguarded_on_amd_answers() {
        let [(_, mut amd), _] = states();
        for number in
            [0x8b, 0xfe, 0x2ff, 0x200, 0x250, 0x179, 0x17a, 0x1d9, 0xc001_0010, 0xc001_0015, 0xc001_001f]
        {
            assert!(amd.read(number).is_ok(), "{number:#x}");
        }
        for number in [0xc001_0055, 0xc001_0140, 0xc001_0141, 0xc001_1029] {
            assert!(amd.read(number).is_ok(), "{number:#x}");
        }
        let nb_cfg = amd.read(msr::NB_CFG).unwrap();
        assert!(amd.write(msr::NB_CFG, nb_cfg | 1 << 46).is_ok());
        assert_eq!(amd.read(msr::NB_CFG), Ok(1 << 46));
        for number in [0x17, 0x3a, 0x1a0, 0xc001_0004, 0xc001_0114, 0xc001_0117, 0xc001_0061, 0xc001_0020] {
            assert_eq!(amd.read(number), Err(GeneralProtection), "{number:#x}");
        }
    }
}
