//! A vCPU: the hardware's part, its local APIC, its MSRs, and whether it runs.

use core::fmt;

use caisson_devices::Chipset;
use caisson_hwvirt::{Event, Vcpu};
use caisson_irqchip::{ApicConfig, DeliveryMode, InterruptMessage, LocalApic, VcpuSet};
use caisson_policy::{Dynamic, MsrState, StealTime};
use caisson_types::{Gpa, GuestMemory, Instant, VcpuId};
use caisson_x86::{Attributes, Exception, ExceptionKind, Rflags, Segment, SegmentRegister};

use crate::domain::{BOOT_VCPU, CPU_APIC_KHZ, Domain, Host, work};

/// An NMI, on its way once more.
const NMI: InterruptMessage =
    InterruptMessage { delivery: DeliveryMode::Nmi, ..InterruptMessage::fixed(0, 0) };

/// Why a guest had to be ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KillReason {
    /// An instruction that accessed a device cannot be executed.
    UnknownInstruction {
        /// Where it is.
        rip: u64,
        /// What it accessed.
        gpa: Gpa,
        /// Its first bytes, as many as are known.
        bytes: [u8; 8],
    },
    /// The CPU refused the vCPU's state.
    EntryFailure {
        /// The hardware's reason.
        reason: u64,
        /// What the hardware says beside it.
        qualification: u64,
    },
    /// The CPU reported something that Caisson does not know.
    UnknownExit {
        /// The hardware's reason.
        reason: u64,
        /// What the hardware says beside it.
        qualification: u64,
    },
    /// An exception or interrupt was being delivered with its tables or its stack outside of memory.
    LostDelivery {
        /// What was accessed.
        gpa: Gpa,
    },
    /// Stage 2 refused an access to the guest's own RAM: a bug of Caisson's, which costs this guest only.
    LostMemory {
        /// What was accessed.
        gpa: Gpa,
    },
}

impl fmt::Display for KillReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownInstruction { rip, gpa, bytes } => {
                write!(
                    f,
                    "the instruction at rip {rip:#x} (bytes {bytes:02x?}) cannot access the device at {gpa}"
                )
            }
            Self::EntryFailure { reason, qualification } => {
                write!(f, "the CPU refused the guest's state (reason {reason:#x}, {qualification:#x})")
            }
            Self::UnknownExit { reason, qualification } => {
                write!(f, "an exit that Caisson does not know (reason {reason:#x}, {qualification:#x})")
            }
            Self::LostDelivery { gpa } => {
                write!(
                    f,
                    "an exception or interrupt needed a table or a stack at {gpa}, where it has no memory"
                )
            }
            Self::LostMemory { gpa } => write!(f, "its memory at {gpa} is not mapped"),
        }
    }
}

/// How a guest came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It turned its machine off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// A triple fault.
    TripleFault {
        /// Where.
        rip: u64,
    },
    /// Caisson had to end it.
    Killed(KillReason),
    /// Somebody who controls domains ended it.
    Destroyed,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("powered off"),
            Self::Reset => f.write_str("reset"),
            Self::TripleFault { rip } => write!(f, "triple fault at rip {rip:#x}"),
            Self::Killed(reason) => write!(f, "ended: {reason}"),
            Self::Destroyed => f.write_str("told to end"),
        }
    }
}

/// What the run loop does after an exit. Two registers hold it: the run loop looks at it after each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// Enter again.
    Resume,
    /// A physical interrupt or NMI waits for the host.
    HostEvent,
    /// The vCPU would only wait: let others run.
    Yield,
    /// The vCPU waits for the one of its domain with this index, which the domain has and which is another one: let that
    /// one run in its place if it is ready to, and go on otherwise.
    YieldTo(usize),
    /// The hardware's log of written pages is full: empty it ([`Vcpu::take_written`]), and enter again.
    LogFull,
    /// The guest wrote a page of its RAM that stage 2 maps without the right to: allow it, and enter again.
    Protected(Gpa),
    /// The vCPU halted: enter again if [`VirtualCpu::prepare`] says so.
    Halted,
    /// The whole guest ended: [`VirtualCpu::ended`] tells how.
    Ended,
    /// The physical machine reported a machine check while the guest ran.
    MachineCheck,
    /// Somebody resets the physical machine: an INIT arrived, and stays pending until that is done.
    MachineReset,
}

/// Whether a vCPU executes instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunState {
    /// It does.
    Running,
    /// It waits in HLT.
    Halted,
    /// It waits for a start-up IPI.
    WaitForSipi,
}

/// What [`VirtualCpu::prepare`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Readiness {
    /// Enter the guest.
    Enter,
    /// Nothing to do before the vCPU's next deadline or mail.
    Blocked,
    /// The guest asked for its own end by an INIT to its boot CPU.
    Ended(Ended),
}

/// A vCPU.
pub struct VirtualCpu<V> {
    /// The hardware's part.
    pub hw: V,
    /// Its id.
    pub id: VcpuId,
    pub(crate) apic: LocalApic,
    pub(crate) msrs: MsrState,
    /// What CPUID mirrors of the vCPU.
    pub(crate) mirrored: Dynamic,
    pub(crate) run_state: RunState,
    /// Something happened that [`VirtualCpu::prepare`] must look at before the next entry.
    pub(crate) attention: bool,
    /// The 8259 pair has an interrupt for this vCPU.
    pub(crate) pic_asserted: bool,
    /// An event whose delivery an exit interrupted.
    pub(crate) interrupted: Option<Event>,
    /// An acknowledged interrupt on whose way the guest met an exception, which goes first.
    pub(crate) postponed: Option<u8>,
    /// What the guest last wrote to KVM's clock MSRs.
    pub(crate) system_time: u64,
    pub(crate) wall_clock: u64,
    /// The guest's PV EOI word, and whether its bit is set now.
    pub(crate) pv_eoi: Option<Gpa>,
    pub(crate) pv_eoi_armed: bool,
    /// The guest's record of stolen time; what it was last told, in nanoseconds; and whether it says that this vCPU is
    /// preempted.
    pub(crate) steal_time: Option<StealTime>,
    pub(crate) stolen: u64,
    pub(crate) shown_preempted: bool,
    /// Another vCPU has ended this one's next HLT.
    pub(crate) kicked: bool,
    /// It has written what a backend has to finish before it goes on.
    pub(crate) waits_for_backend: bool,
    /// What the guest has added to its TSC.
    pub(crate) tsc_adjust: u64,
    /// The domain's own offset, as the hardware was last told of it.
    pub(crate) clock_offset: u64,
    /// An INIT reached the boot vCPU, whose reset vector is the machine's.
    pub(crate) reset_requested: bool,
    /// When to look again at what waits, where no exit will tell.
    pub(crate) look_again: Instant,
    /// [`VirtualCpu::next_deadline`] may be another than when the core last asked.
    pub(crate) deadline_changed: bool,
    /// How the guest came to its end by this vCPU.
    ended: Option<Ended>,
}

impl<V: Vcpu> VirtualCpu<V> {
    /// A vCPU after power-on: the first one runs, the others wait for SIPI.
    #[must_use]
    pub fn new<M>(hw: V, id: VcpuId, domain: &Domain<M>) -> Self {
        let index = usize::from(id.index);
        let apic = LocalApic::new(ApicConfig {
            bsp: index == 0,
            physical_bits: domain.cpuid.limits().physical_bits,
            timer_hz: u64::from(CPU_APIC_KHZ) * 1000,
            ..ApicConfig::new(u32::from(id.index))
        });
        domain.apics.update(index, &apic.routing());
        Self {
            hw,
            id,
            mirrored: Dynamic { xcr0: 1, cr4: 0, apic_id: apic.id(), apic_enabled: true },
            apic,
            msrs: MsrState::new(&domain.cpuid, &domain.msrs),
            run_state: if index == 0 { RunState::Running } else { RunState::WaitForSipi },
            attention: true,
            pic_asserted: false,
            interrupted: None,
            postponed: None,
            system_time: 0,
            wall_clock: 0,
            pv_eoi: None,
            pv_eoi_armed: false,
            steal_time: None,
            stolen: 0,
            shown_preempted: false,
            kicked: false,
            waits_for_backend: false,
            tsc_adjust: 0,
            clock_offset: domain.clock.tsc_offset(),
            reset_requested: false,
            look_again: Instant::NEVER,
            deadline_changed: true,
            ended: None,
        }
    }

    /// The guest's end, with the exit that this vCPU is answering.
    #[cold]
    pub(crate) fn end(&mut self, how: Ended) -> Outcome {
        self.ended = Some(how);
        Outcome::Ended
    }

    /// How the guest came to its end, where the last answer was [`Outcome::Ended`].
    #[must_use]
    pub const fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Its index in the domain.
    #[inline]
    #[must_use]
    pub fn index(&self) -> usize {
        usize::from(self.id.index)
    }

    /// Whether it executes instructions.
    #[must_use]
    pub const fn run_state(&self) -> RunState {
        self.run_state
    }

    /// Takes over that the domain's time has stood still, if it has since this was last called: before the guest is entered, on
    /// the CPU that holds the vCPU's state.
    #[inline]
    pub fn follow_clock<M>(&mut self, domain: &Domain<M>) {
        let offset = domain.clock.tsc_offset();
        if offset != self.clock_offset {
            self.clock_offset = offset;
            self.hw.set_tsc_offset(offset.wrapping_add(self.tsc_adjust));
            self.deadline_changed = true;
        }
    }

    /// Sets a local APIC up as a PC's firmware leaves it: enabled, with the 8259 pair on LINT0 and NMI on LINT1.
    pub fn set_virtual_wire<M>(&mut self, domain: &Domain<M>) {
        self.apic.set_virtual_wire();
        domain.apics.update(self.index(), &self.apic.routing());
        self.place_apic();
    }

    /// When the vCPU must be looked at although nothing else happens: its own timer, an NMI that waits where the hardware
    /// does not tell for how long, and at the boot vCPU the chipset's timers too. Where another vCPU moves those nearer, the
    /// boot vCPU gets mail and is woken. Takes no lock.
    #[must_use]
    pub fn next_deadline<M>(&self, domain: &Domain<M>) -> Instant {
        let own = self.apic.next_deadline().min(self.look_again);
        if self.index() == BOOT_VCPU { own.min(domain.chipset_deadline()) } else { own }
    }

    /// [`Domain::settle`] after an access of this vCPU's.
    pub(crate) fn settle<M>(&mut self, domain: &Domain<M>, chipset: &mut Chipset) -> VcpuSet {
        let mut deadline_changed = false;
        let mut wake = domain.settle_for(chipset, &mut deadline_changed);
        if deadline_changed && self.index() == BOOT_VCPU {
            self.deadline_changed = true;
        } else if deadline_changed {
            wake.extend(domain.post_work(BOOT_VCPU, work::DEADLINE));
        }
        wake
    }

    /// Whether [`VirtualCpu::next_deadline`] may have come nearer since this was last asked. To be asked after
    /// [`VirtualCpu::prepare`], which takes the mail.
    #[inline]
    #[must_use]
    pub fn take_deadline_changed(&mut self) -> bool {
        core::mem::take(&mut self.deadline_changed)
    }

    /// Brings its timers up to `now`; the boot vCPU's are also the chipset's.
    pub fn advance<M: GuestMemory>(&mut self, domain: &Domain<M>, host: &mut impl Host, now: Instant) {
        self.load_apic();
        self.settle_pv_eoi(domain);
        self.apic.advance(now);
        self.attention = true;
        if self.look_again <= now {
            self.look_again = Instant::NEVER;
        }
        if self.index() == BOOT_VCPU && domain.chipset_deadline() <= now {
            let mut chipset = domain.chipset();
            chipset.advance(now);
            let wake = self.settle(domain, &mut chipset);
            drop(chipset);
            host.wake(wake);
        }
    }

    /// Raises an exception by the rules for events that meet (SDM vol. 3, table 7-5; APM vol. 2, section 8.2.9). The
    /// answer is the guest's end where a third fault follows a double fault.
    pub(crate) fn raise(&mut self, exception: Exception) -> Outcome {
        let first = match self.interrupted.take() {
            Some(Event::Exception(first)) => first,
            other => {
                // Benign whatever follows: one after the other. INTn, INT3 and INTO are executed again.
                match other {
                    Some(Event::Interrupt(vector)) => self.postponed = Some(vector),
                    Some(Event::Nmi) => self.apic.receive(&NMI),
                    _ => {}
                }
                self.inject_exception(exception);
                return Outcome::Resume;
            }
        };
        let contributory = |kind: ExceptionKind| ExceptionKind::vector_is_contributory(kind as u8);
        let page_fault = |kind| kind == ExceptionKind::PageFault;
        let doubles = (contributory(first.kind) && contributory(exception.kind))
            || (page_fault(first.kind) && (contributory(exception.kind) || page_fault(exception.kind)));
        if first.kind == ExceptionKind::DoubleFault
            && (contributory(exception.kind) || page_fault(exception.kind))
        {
            return self.end(Ended::TripleFault { rip: self.hw.rip() });
        }
        // The first is given up: its instruction is executed again, or the double fault takes its place.
        let raised = if doubles { Exception::plain(ExceptionKind::DoubleFault) } else { exception };
        self.inject_exception(raised);
        Outcome::Resume
    }

    /// Injects an exception. A fault's frame says RF, so that an instruction breakpoint does not meet the instruction
    /// once more when it is executed again (SDM vol. 3, section 19.3.1.1); the hardware pushes what RFLAGS holds.
    pub(crate) fn inject_exception(&mut self, exception: Exception) {
        if exception.kind.is_fault() {
            self.hw.set_rflags(self.hw.rflags() | Rflags::RF.bits());
        }
        self.hw.inject(Event::Exception(exception));
    }

    /// INIT: everything but what survives it (SDM vol. 3, section 10.4.7.1), then wait for SIPI.
    pub(crate) fn init<M>(&mut self, domain: &Domain<M>) {
        self.hw.reset(true);
        self.apic.init_reset();
        self.interrupted = None;
        self.postponed = None;
        self.pv_eoi = None;
        self.pv_eoi_armed = false;
        self.system_time = 0;
        self.steal_time = None;
        self.shown_preempted = false;
        self.kicked = false;
        self.waits_for_backend = false;
        self.run_state = RunState::WaitForSipi;
        domain.apics.update(self.index(), &self.apic.routing());
        self.place_apic();
    }

    /// SIPI: real mode at the page that the vector names (SDM vol. 3, section 10.4.4).
    pub(crate) fn start_up(&mut self, vector: u8) {
        if self.run_state != RunState::WaitForSipi {
            return;
        }
        self.hw.set_segment(
            SegmentRegister::Cs,
            Segment {
                selector: u16::from(vector) << 8,
                attributes: Attributes::CODE16,
                limit: 0xffff,
                base: u64::from(vector) << 12,
            },
        );
        self.hw.set_rip(0);
        self.run_state = RunState::Running;
        self.attention = true;
    }
}
