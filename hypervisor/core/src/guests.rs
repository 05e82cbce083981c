//! What exists of a domain while it lives, and what is kept of its lives: how it ended, and whether it comes again.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use caisson_accounts::{Activity, VcpuAccount};
use caisson_console::Ring;
use caisson_domain::{Domain, Ended, VirtualCpu};
use caisson_hwvirt::{Backend, Vcpu};
use caisson_life::{Cause, Lives, Verdict};
use caisson_locks::{Mutex, Rank};
use caisson_machine::memory::GuestRam;
use caisson_machine::pci::Access;
use caisson_machine::{clock, cpu, percpu};
use caisson_smp::{Changes, Place, Seen};
use caisson_stage2::{Format, Stage2};
use caisson_types::{DomainId, VcpuId};

use crate::console;
use crate::control::Pause;
use crate::create::Upload;
use crate::dirty::Tracking;
use crate::dma::DmaDomain;
use crate::domains::{Definition, Entry, Facts};
use crate::life::Phase;
use crate::logger::EVENT;

/// A guest that restarts again and again takes one part in so many of the machine's time for being made.
const RESTART_PART: u64 = 20;
/// How often it is said that a guest ended and is started again.
const LINES_PER_SECOND: u64 = 1;

/// What there is of a domain now. Its name and what else does not change is in its [`Entry`].
pub(crate) struct Guest<B: Backend, F: Format> {
    /// What it is made of; `None` once it has been forgotten.
    pub(crate) definition: Option<Definition>,
    /// What exists while it lives.
    pub(crate) live: Option<Arc<Live<B, F>>>,
    /// What is to be done for it beside running it.
    pub(crate) phase: Phase,
    /// The number of its life, or its last one; 0 before the first.
    pub(crate) life: u32,
    /// Whether it comes again.
    pub(crate) lives: Lives,
    /// How it ended last.
    ended: Option<Ended>,
    /// The TSC when it was last said how it ended, and how often it ended since without a word.
    said: u64,
    unsaid: u64,
}

/// A vCPU, and where it is.
pub(crate) struct Task<V> {
    /// Locked by the CPU that runs it, for as long as it does.
    pub(crate) vcpu: Mutex<VirtualCpu<V>>,
    /// Where it is, and which CPU holds its registers.
    pub(crate) place: Place,
    /// Where its time goes: written by the CPU that runs it, and by who wakes it, under its queue's lock.
    pub(crate) account: VcpuAccount,
    /// The last change of its domain's stage-2 tables for which it has flushed.
    pub(crate) seen: Seen,
}

impl<V: Vcpu> Task<V> {
    pub(crate) fn new(vcpu: VirtualCpu<V>) -> Self {
        Self {
            vcpu: Mutex::new(Rank::Vcpu, vcpu),
            place: Place::new(0),
            account: VcpuAccount::new(cpu::tsc(), Activity::Blocked),
            seen: Seen::new(),
        }
    }
}

/// A living guest. Its end is in the order of the fields: the vCPUs go first, then what its functions reach, then the
/// memory, and with it every frame that the domain owns, those of its stage-2 tables included. No CPU walks those any more: the vCPUs are gone, and their
/// address-space ids are not used again before a flush.
pub(crate) struct Live<B: Backend, F: Format> {
    pub(crate) tasks: Box<[Task<B::Vcpu>]>,
    pub(crate) tables: Mutex<Tables<F>>,
    /// How often they have lost something that CPUs may have cached ([`Live::flush_everywhere`]).
    pub(crate) changes: Changes,
    /// Which pages it writes, where somebody wants to know.
    pub(crate) tracking: Tracking,
    /// What its functions reach, where the machine has an IOMMU.
    pub(crate) dma: Option<DmaDomain>,
    /// What the vCPUs share.
    pub(crate) domain: Domain<GuestRam>,
    /// What Caisson accesses of its functions for it, if it owns any.
    pub(crate) access: Option<Arc<Access>>,
    /// What stays of it.
    pub(crate) entry: Arc<Entry<B, F>>,
    /// How many of its virtio devices Caisson serves itself; they come before the others.
    pub(crate) own_devices: usize,
    /// Where what it writes to its serial line goes, if that is shown.
    pub(crate) console: Option<Arc<Ring>>,
    /// One of its vCPUs has reported its end: none is entered any more.
    pub(crate) ending: AtomicBool,
    /// vCPUs that are in some queue.
    pub(crate) vcpus_left: AtomicUsize,
    /// Whether it stands still.
    pub(crate) pause: Pause,
    /// The blob that it makes domains of.
    pub(crate) upload: Mutex<Option<Upload>>,
}

/// A domain's stage-2 tables.
pub(crate) struct Tables<F: Format> {
    /// RAM alone.
    pub(crate) plain: Stage2<F>,
    /// The same with the backend's page where a local APIC is, if it has one.
    pub(crate) with_apic: Option<Stage2<F>>,
}

impl<F: Format> Tables<F> {
    /// All of them: what is done to the guest's RAM is done to each.
    pub(crate) fn all(&mut self) -> impl Iterator<Item = &mut Stage2<F>> {
        core::iter::once(&mut self.plain).chain(&mut self.with_apic)
    }
}

impl<B: Backend, F: Format> Live<B, F> {
    /// A vCPU's name.
    #[inline]
    pub(crate) fn vcpu_id(&self, index: usize) -> VcpuId {
        VcpuId { domain: self.domain.id, index: index as u16 }
    }

    /// Whether it has ended.
    #[inline]
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// It has ended. Whether it had before.
    pub(crate) fn set_ending(&self) -> bool {
        self.ending.swap(true, Ordering::AcqRel)
    }

    /// Takes everything apart but the memory, which is still to be scrubbed.
    pub(crate) fn into_memory(self) -> GuestRam {
        drop(self.tasks);
        self.domain.memory
    }
}

impl<B: Backend, F: Format> Guest<B, F> {
    /// A guest that does not exist yet.
    pub(crate) fn new(definition: Definition, phase: Phase) -> Self {
        Self {
            definition: Some(definition),
            live: None,
            phase,
            life: 0,
            lives: Lives::new(),
            ended: None,
            said: 0,
            unsaid: 0,
        }
    }

    /// It lives again, after work of `cost` TSC ticks: the next time must wait so long that such work stays a small part
    /// of the machine's.
    pub(crate) fn started(&mut self, live: Arc<Live<B, F>>, cost: u64) {
        self.live = Some(live);
        self.phase = Phase::Living;
        // 0 is no life.
        self.life = self.life.checked_add(1).unwrap_or(1);
        self.lives.made(cpu::tsc().saturating_add(cost.saturating_mul(RESTART_PART)));
    }

    /// Says that it is started, the first time.
    pub(crate) fn say_start(&self, facts: &Facts) {
        if self.lives.restarts() != 0 {
            return;
        }
        let (memory, vcpus) = (facts.memory >> 20, facts.vcpus);
        let s = if vcpus == 1 { "" } else { "s" };
        log::info!("guest {}: {memory} MiB, {vcpus} vCPU{s}, started", facts.name);
    }

    /// It is gone, and is to live again as if for the first time. Whether it may.
    #[must_use]
    pub(crate) fn begin_anew(&mut self) -> bool {
        let may = self.lives.begin_anew();
        if may {
            self.phase = Phase::Awaited;
        }
        may
    }

    /// How it ended last.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Whether it is gone for good.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// It has ended, as `vcpu` reports, which is on this CPU, or as somebody has said: says so, and notes whether it is to be
    /// started again.
    pub(crate) fn end(&mut self, of: &Entry<B, F>, ended: Ended, vcpu: Option<&VirtualCpu<B::Vcpu>>) {
        console::end_guest(of.id);
        let cause = match ended {
            Ended::PowerOff => Cause::PowerOff,
            Ended::Reset => Cause::Reset,
            Ended::TripleFault { .. } | Ended::Killed(_) => Cause::Crash,
            Ended::Destroyed => Cause::Destroyed,
        };
        let verdict = self.lives.ended(cause, of.facts.on_exit, of.facts.max_restarts);
        self.say_end(of, ended, cause == Cause::Crash, verdict, vcpu);
        self.ended = Some(ended);
    }

    /// Says how it ended, with its registers where it failed. A guest that ends and starts again and again is heard
    /// [`LINES_PER_SECOND`] times a second at most.
    fn say_end(
        &mut self,
        of: &Entry<B, F>,
        ended: Ended,
        failed: bool,
        verdict: Verdict,
        vcpu: Option<&VirtualCpu<B::Vcpu>>,
    ) {
        let now = cpu::tsc();
        if verdict == Verdict::Restart && now.wrapping_sub(self.said) < clock::get().tsc_hz / LINES_PER_SECOND
        {
            self.unsaid += 1;
            return;
        }
        self.said = now;
        let unsaid = core::mem::take(&mut self.unsaid);
        if unsaid != 0 {
            log::warn!("guest {}: ended {unsaid} times more since it was last heard of", of.name());
        }
        if failed {
            log::error!("guest {}: {ended}; {verdict}", of.name());
            if let Some(vcpu) = vcpu {
                log_registers(of.id, vcpu);
            }
        } else {
            log::info!(target: EVENT, "guest {}: {ended}; {verdict}", of.name());
        }
    }
}

/// Where a vCPU of a guest was, and the last exits here.
fn log_registers<V: Vcpu>(guest: DomainId, vcpu: &VirtualCpu<V>) {
    use caisson_x86::{Gpr, SegmentRegister};
    for exit in percpu::current().recent_exits().iter().filter(|exit| exit.vcpu.domain == guest) {
        log::error!("  {}: exit {:#x} at rip {:#x}", exit.vcpu, exit.code, exit.rip);
    }
    let hw = &vcpu.hw;
    if let Some(refusal) = hw.refusal() {
        log::error!("  {}: the entry check that failed: {refusal}", vcpu.id);
    }
    let cs = hw.segment(SegmentRegister::Cs);
    log::error!(
        "  {}: {:?} cs:rip {:#x}:{:#x} (base {:#x}) rsp {:#x} rflags {:#x} rax {:#x}",
        vcpu.id,
        hw.mode(),
        cs.selector,
        hw.rip(),
        cs.base,
        hw.gpr(Gpr::Rsp),
        hw.rflags(),
        hw.gpr(Gpr::Rax)
    );
    log::error!(
        "  {}: cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} idt {:#x}+{:#x}",
        vcpu.id,
        hw.cr0(),
        hw.cr2(),
        hw.cr3(),
        hw.cr4(),
        hw.efer(),
        hw.idtr().base,
        hw.idtr().limit
    );
}
