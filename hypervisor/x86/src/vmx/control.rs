//! Control words of the VMCS (SDM vol. 3, sections 25.6 to 25.8).

use bitflags::bitflags;

bitflags! {
    /// Pin-based execution controls (table 25-5).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PinControls: u32 {
        /// Physical interrupts exit.
        const EXTERNAL_INTERRUPT = 1 << 0;
        /// Physical NMIs exit.
        const NMI = 1 << 3;
        /// The CPU keeps the blocking of the guest's NMIs apart from the host's.
        const VIRTUAL_NMIS = 1 << 5;
        /// The VMX-preemption timer counts while the guest runs.
        const PREEMPTION_TIMER = 1 << 6;
    }

    /// Primary processor-based execution controls (table 25-6).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ProcessorControls: u32 {
        /// Exit when the guest can take an interrupt.
        const INTERRUPT_WINDOW = 1 << 2;
        /// The TSC offset counts.
        const TSC_OFFSETTING = 1 << 3;
        /// HLT.
        const HLT = 1 << 7;
        /// MWAIT.
        const MWAIT = 1 << 10;
        /// RDPMC.
        const RDPMC = 1 << 11;
        /// MOV to CR3.
        const CR3_LOAD = 1 << 15;
        /// MOV from CR3.
        const CR3_STORE = 1 << 16;
        /// MOV to CR8.
        const CR8_LOAD = 1 << 19;
        /// MOV from CR8.
        const CR8_STORE = 1 << 20;
        /// CR8 is in the virtual-APIC page.
        const TPR_SHADOW = 1 << 21;
        /// Exit when the guest can take an NMI.
        const NMI_WINDOW = 1 << 22;
        /// MOV to and from debug registers.
        const MOV_DR = 1 << 23;
        /// Every port access.
        const UNCONDITIONAL_IO = 1 << 24;
        /// Port accesses by bitmap, in place of all.
        const IO_BITMAPS = 1 << 25;
        /// MSR accesses by bitmap, in place of all.
        const MSR_BITMAPS = 1 << 28;
        /// MONITOR.
        const MONITOR = 1 << 29;
        /// There are secondary controls.
        const SECONDARY = 1 << 31;
    }

    /// Secondary processor-based execution controls (table 25-7).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct SecondaryControls: u32 {
        /// Accesses to the APIC-access page are virtualised.
        const APIC_ACCESSES = 1 << 0;
        /// Extended page tables.
        const EPT = 1 << 1;
        /// RDTSCP and RDPID can be used.
        const RDTSCP = 1 << 3;
        /// x2APIC's MSRs are in the virtual-APIC page.
        const X2APIC = 1 << 4;
        /// TLB entries are tagged with the VPID.
        const VPID = 1 << 5;
        /// WBINVD and WBNOINVD.
        const WBINVD = 1 << 6;
        /// The guest may run without paging and in real mode.
        const UNRESTRICTED_GUEST = 1 << 7;
        /// The local APIC's registers are in the virtual-APIC page, and not the task priority alone.
        const APIC_REGISTERS = 1 << 8;
        /// Interrupts are delivered out of the virtual-APIC page.
        const VIRTUAL_INTERRUPTS = 1 << 9;
        /// Exit from a loop of PAUSEs in ring 0.
        const PAUSE_LOOP = 1 << 10;
        /// INVPCID can be used.
        const INVPCID = 1 << 12;
        /// ENCLS by bitmap.
        const ENCLS = 1 << 15;
        /// Page-modification logging.
        const PML = 1 << 17;
        /// XSAVES and XRSTORS can be used.
        const XSAVES = 1 << 20;
        /// The TSC is multiplied before the offset is added.
        const TSC_SCALING = 1 << 25;
    }

    /// Exit controls (table 25-13).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ExitControls: u32 {
        /// DR7 and DEBUGCTL are saved.
        const SAVE_DEBUG = 1 << 2;
        /// The host runs in 64-bit mode.
        const HOST_64_BIT = 1 << 9;
        /// The interrupt that exits is acknowledged.
        const ACKNOWLEDGE_INTERRUPT = 1 << 15;
        /// PAT is saved.
        const SAVE_PAT = 1 << 18;
        /// PAT is loaded.
        const LOAD_PAT = 1 << 19;
        /// EFER is saved.
        const SAVE_EFER = 1 << 20;
        /// EFER is loaded.
        const LOAD_EFER = 1 << 21;
        /// What is left of the preemption timer is saved.
        const SAVE_PREEMPTION_TIMER = 1 << 22;
    }

    /// Entry controls (table 25-15).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct EntryControls: u32 {
        /// DR7 and DEBUGCTL are loaded.
        const LOAD_DEBUG = 1 << 2;
        /// The guest is in IA-32e mode: EFER.LMA.
        const LONG_MODE_GUEST = 1 << 9;
        /// PAT is loaded.
        const LOAD_PAT = 1 << 14;
        /// EFER is loaded.
        const LOAD_EFER = 1 << 15;
    }
}
