//! What a backend does beyond state: turn the hardware on, make vCPUs, run them.

use core::fmt;

use caisson_types::{Gpa, Hpa, VcpuId};
use caisson_x86::{ApicPage, TopVectors};

use crate::{Event, Exit, VcpuState};

/// Why virtualisation could not be turned on, or a vCPU not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnableError {
    /// CPUID announces neither SVM nor VMX.
    NotSupported,
    /// The firmware turned it off and locked it.
    DisabledByFirmware,
    /// The CPU lacks nested paging (NPT, or EPT with unrestricted guest).
    NoNestedPaging,
    /// VT-x lacks a control that Caisson cannot do without.
    MissingControl(&'static str),
    /// No memory for the hardware's structures.
    OutOfMemory,
    /// This CPU's capabilities are not those of the boot CPU.
    Different,
}

impl fmt::Display for EnableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSupported => {
                "this CPU has neither AMD-V (SVM) nor Intel VT-x (VMX): use a CPU, or an emulated CPU model, that has"
            }
            Self::DisabledByFirmware => {
                "hardware virtualisation is disabled and locked by the firmware: enable SVM or VT-x in its setup"
            }
            Self::NoNestedPaging => {
                "this CPU has no nested paging (AMD NPT, or Intel EPT with unrestricted guest), which Caisson needs: use a newer CPU"
            }
            Self::MissingControl(name) => {
                return write!(f, "this CPU's VT-x lacks what Caisson needs ({name}): use a newer CPU");
            }
            Self::Different => "its virtualisation is not like the boot CPU's: update the firmware",
            Self::OutOfMemory => "too little memory for the virtualisation structures: give the machine more",
        })
    }
}

/// What a backend is told of the policy for all guests.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// MSRs that do not exit, or only when read or written. Every other one exits.
    pub passthrough: &'a [MsrPassthrough],
    /// State components that guests may enable in XCR0.
    pub xcr0: u64,
}

/// An MSR that the guest reaches by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsrPassthrough {
    /// Its number.
    pub number: u32,
    /// Reads do not exit.
    pub read: bool,
    /// Writes do not exit.
    pub write: bool,
}

/// What a vCPU is made with.
#[derive(Clone, Copy, Debug)]
pub struct VcpuSetup {
    /// Root of the domain's stage-2 tables, which have four levels.
    pub stage2_root: Hpa,
    /// Root of the same tables with [`Backend::apic_access_page`] mapped where a local APIC is after reset.
    pub apic_root: Option<Hpa>,
    /// Added to the host's TSC to make the guest's.
    pub tsc_offset: u64,
    /// What the host's TSC is multiplied by before, with [`Backend::tsc_fraction_bits`] bits behind the point; `None` for 1.
    pub tsc_multiplier: Option<u64>,
    /// CR4 bits that the guest may set. Where the hardware can tell them from the others, only these do not exit.
    pub cr4: u64,
}

/// Which of the manual's checks a refused entry failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The field or fields, and what is wrong with them.
    pub check: &'static str,
    /// The field's value.
    pub value: u64,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (value {:#x})", self.check, self.value)
    }
}

/// When [`Exit::InterruptWindow`] is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptWindow {
    /// Never.
    Closed,
    /// As soon as the guest can take an interrupt, whatever its task priority.
    Any,
    /// As soon as the guest can take an interrupt of this priority class (vector bits 7:4), which its task priority now
    /// holds back.
    Above(u8),
}

/// Where a guest finds its local APIC, for hardware that answers some of the accesses by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicPlace {
    /// Every access exits: it is disabled, or not where the hardware can serve it.
    Software,
    /// In memory, at the address after reset.
    Memory,
    /// In the MSRs of x2APIC.
    Msrs,
}

/// How the hardware tells which pages a guest has written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteTrace {
    /// Not at all: pages have to be write-protected.
    None,
    /// By dirty bits in the stage-2 tables.
    DirtyBits,
    /// By dirty bits, and each page whose bit it sets is put into the vCPU's log ([`Vcpu::take_written`]).
    Log,
}

/// A vCPU: its state, and what stands between it and the hardware.
pub trait Vcpu: VcpuState {
    /// The CPU keeps the page-directory pointers of PAE paging in registers, and so must a write to CR0 or CR4 that is
    /// executed for the guest ([`VcpuState::set_page_directory_pointers`]). Otherwise it reads them when it needs them.
    const KEEPS_POINTERS: bool;

    /// What the hardware has written about an exit, as far as the vCPU does not keep it.
    type Raw: Copy;

    /// Runs the guest until it exits. Interrupts are off on the host before and after; a physical interrupt that
    /// ended the run is still pending.
    fn run(&mut self) -> Self::Raw;

    /// Why the guest has stopped running. Not [`Vcpu::run`]'s answer, so that it can be part of the dispatcher: compiled
    /// together, the hardware's reason leads straight to what is done about it.
    fn decode(&self, raw: Self::Raw) -> Exit;

    /// Delivers `event` at the next entry. At most one event an entry.
    fn inject(&mut self, event: Event);

    /// Whether an event is waiting for the next entry.
    fn injecting(&self) -> bool;

    /// Whether the last exit interrupted the delivery of an event.
    fn has_interrupted_event(&self) -> bool;

    /// Takes that event, where there is one. `None` as well where the guest's instruction raises it once more.
    fn take_interrupted_event(&mut self) -> Option<Event>;

    /// Asks for [`Exit::InterruptWindow`], or no longer.
    fn set_interrupt_window(&mut self, window: InterruptWindow);

    /// Whether NMIs are blocked, because the guest is in its NMI handler.
    fn nmi_blocked(&self) -> bool;

    /// Blocks NMIs, or ends their being blocked, as the start and the end of a handler do that is a task of its own.
    fn set_nmi_blocked(&mut self, blocked: bool);

    /// Asks for [`Exit::NmiWindow`] when the guest can take the next NMI, or no longer. `false`: the hardware will not tell
    /// (AMD's tells of the end of an NMI handler, and not of that of a shadow or of another event), and the caller has to
    /// look again by itself.
    fn set_nmi_window(&mut self, on: bool) -> bool;

    /// The task priority that the guest set through CR8, bits 3:0.
    fn cr8(&self) -> u8;

    /// Sets what the guest reads from CR8.
    fn set_cr8(&mut self, priority: u8);

    // ---- hardware with a virtual local APIC
    //
    // It takes interrupts out of the page's IRR by itself as soon as the guest can take them, moves them to ISR, and may
    // carry out the guest's accesses to TPR, EOI and the rest there. While the guest does not run the page is the core's.
    // Events are injected all the same: NMIs, exceptions, the 8259 pair's interrupts.

    /// Whether the hardware delivers interrupts out of a virtual local APIC. It never changes.
    #[inline]
    fn delivers_interrupts(&self) -> bool {
        false
    }

    /// The virtual local APIC, where the hardware delivers out of it.
    #[inline]
    fn apic_page(&mut self) -> Option<&mut ApicPage> {
        None
    }

    /// The core has changed the highest vectors of the page's IRR and ISR.
    fn set_top_vectors(&mut self, _top: TopVectors) {}

    /// The vectors, 64 in a word, whose end of service is to exit ([`Exit::EndOfInterrupt`]).
    #[inline]
    fn set_level_vectors(&mut self, _vectors: &[u64; 4]) {}

    /// Where the guest finds its local APIC from now on; [`ApicPlace::Software`] at first.
    fn set_apic_place(&mut self, _place: ApicPlace) {}

    /// Sets the amount that is added to the host's TSC.
    fn set_tsc_offset(&mut self, offset: u64);

    /// Flushes the guest's TLB entries (guest-virtual and guest-physical) before the next entry.
    fn flush_tlb(&mut self);

    /// Has the CPU put each page whose dirty bit it sets into the vCPU's log, or no longer. On the CPU that the vCPU is on;
    /// nothing where there is no log ([`Backend::write_trace`]).
    fn set_write_log(&mut self, _on: bool) {}

    /// Calls `page` with every page of the log, and empties it. On the CPU that the vCPU is on.
    fn take_written(&mut self, _page: impl FnMut(Gpa)) {}

    /// The state after power-on or INIT (APM vol. 2, table 14-1; SDM vol. 3, table 11-1).
    fn reset(&mut self, init: bool);

    /// Loads onto this CPU what a run needs beyond the control block: vector state, XCR0, debug registers.
    fn switch_in(&mut self);

    /// Takes the same off this CPU.
    fn switch_out(&mut self);

    /// A turn begins, for whose end the host's timer is set in so many `ticks` of its TSC; `u64::MAX` for none. A CPU on which
    /// that might not end the guest's run ends it by itself soon after.
    #[inline]
    fn begin_turn(&mut self, _ticks: u64) {}

    /// Answers [`Exit::Debug`]: loads the guest's debug registers, which then no longer exit until the vCPU leaves this
    /// CPU. The instruction is executed again.
    fn load_debug_registers(&mut self);

    /// An MSR that the hardware keeps in the control block (SYSCALL, SYSENTER, FS and GS bases, PAT, ...), or `None`
    /// where `msr` is none of them.
    fn hardware_msr(&self, msr: u32) -> Option<u64>;

    /// Sets such an MSR; `false` where `msr` is none of them. The value has been checked.
    fn set_hardware_msr(&mut self, msr: u32, value: u64) -> bool;

    /// The guest's XCR0.
    fn xcr0(&self) -> u64;

    /// Sets the guest's XCR0, which has been checked.
    fn set_xcr0(&mut self, value: u64);

    /// At the guest's end: which check its last entry failed, where it did and that can be told.
    fn refusal(&self) -> Option<Refusal> {
        None
    }

    /// Takes off this CPU what the hardware has cached of the vCPU there, so that another CPU can run it. To be called on
    /// the CPU where it last ran, after [`Vcpu::switch_out`].
    fn leave_cpu(&mut self) {}
}

/// A vendor's virtualisation, turned on on the boot CPU.
pub trait Backend: Sized + Send + Sync + 'static {
    /// Its vCPU.
    type Vcpu: Vcpu + Send;

    /// The vendor's name for it, for people: `AMD-V` or `VT-x`.
    const NAME: &'static str;

    /// Turns it on on the CPU that this is called on, where traps and paging have been set up; nothing where it is on.
    ///
    /// # Errors
    /// [`EnableError`]: the CPU cannot run guests.
    fn enable_here(&self) -> Result<(), EnableError>;

    /// How many bits behind the point has what a guest's TSC can be multiplied by; `None` where the CPU cannot do that.
    fn tsc_fraction_bits(&self) -> Option<u32> {
        None
    }

    /// The page that stage 2 must have at the address of a local APIC, for guests whose accesses to it the hardware is to
    /// carry out. A guest that has its APIC there never reaches the page itself; one that has it elsewhere must not find
    /// the page, so that a domain has tables with and without it.
    fn apic_access_page(&self) -> Option<Hpa> {
        None
    }

    /// How the CPUs tell which pages a guest has written.
    fn write_trace(&self) -> WriteTrace {
        WriteTrace::DirtyBits
    }

    /// Makes a vCPU in the state after power-on; its memory is the domain's. Any CPU can run it.
    ///
    /// # Errors
    /// [`EnableError::OutOfMemory`].
    fn create_vcpu(&self, id: VcpuId, setup: &VcpuSetup) -> Result<Self::Vcpu, EnableError>;
}
