//! Who runs: a plain round robin over all vCPUs on the boot CPU.
//!
//! A vCPU runs until it blocks, gives way, or has used its slice while another waits. When none can run, the CPU sleeps
//! until the earliest deadline or an interrupt. Between any two runs the pending work of the CPU is done: timers, the
//! serial line.

use alloc::vec::Vec;

use caisson_config::Blob;
use caisson_domain::{Ended, Host, Outcome, Readiness, VirtualCpu};
use caisson_hwvirt::{Backend, Vcpu};
use caisson_irqchip::VcpuSet;
use caisson_machine::clock::{self, Clock};
use caisson_machine::cpu;
use caisson_machine::memory::{self, GuestRam};
use caisson_machine::percpu::{self, pending};
use caisson_machine::power::{self, RunResult};
use caisson_stage2::Format;
use caisson_types::{DomainId, Instant, PAGE_SIZE};

use crate::console;
use crate::drill::Drill;
use crate::guests::{Guest, Live, Maker};

/// How long a vCPU runs while another waits, in seconds of the TSC: 1/100.
const SLICES_PER_SECOND: u64 = 100;
/// The part of a slice, as its divisor, that others' timers do not shorten.
const UNDISTURBED: u64 = 4;

/// The machine as a guest's vCPU sees it while it runs.
struct Machine {
    domain: DomainId,
    has_console: bool,
    /// The vCPU that is running.
    index: usize,
    /// Another vCPU of the domain got mail since this was last false.
    woken: bool,
}

impl Machine {
    fn new(domain: DomainId) -> Self {
        Self { domain, has_console: true, index: usize::MAX, woken: false }
    }
}

impl Host for Machine {
    #[inline]
    fn tsc(&self) -> u64 {
        cpu::tsc()
    }

    fn console(&mut self, byte: u8) -> bool {
        !self.has_console || console::guest_output(self.domain, byte)
    }

    #[inline]
    fn wake(&mut self, vcpus: VcpuSet) {
        self.woken |= vcpus.into_iter().any(|index| index != self.index);
    }
}

/// Why a vCPU stopped running.
enum Stop {
    /// It waits for an interrupt.
    Blocked,
    /// It could go on, and others have their turn.
    Preempted,
    /// The CPU has work of its own, after which the turn goes on.
    HostWork,
    /// Its guest ended.
    Ended(Ended),
}

/// All guests, and whose turn it is.
pub(crate) struct Scheduler<B: Backend, F: Format> {
    backend: B,
    maker: Maker,
    guests: Vec<Guest<B, F>>,
    /// Guest and vCPU that ran last.
    last: (usize, usize),
    /// Guest and vCPU whose vector state and debug registers are in the CPU: they stay until another's are needed.
    loaded: Option<(usize, usize)>,
    /// Memory of guests that have ended, scrubbed a piece at a time between turns, so that nobody waits for it.
    dying: Vec<GuestRam>,
    slice: u64,
    clock: &'static Clock,
    /// KiB of memory that were free before the first guest was made.
    free_before: u64,
}

/// KiB of memory that no one owns.
fn free_kib() -> u64 {
    memory::frames().free_frames() * (PAGE_SIZE >> 10)
}

impl<B: Backend, F: Format> Scheduler<B, F> {
    /// Makes every guest of the configuration. `Err` has said which could not be made.
    pub(crate) fn new(backend: B, maker: Maker, blob: &Blob<'static>) -> Result<Self, ()> {
        let clock = clock::get();
        let mut scheduler = Self {
            backend,
            maker,
            guests: Vec::new(),
            last: (0, 0),
            loaded: None,
            dying: Vec::new(),
            slice: clock.tsc_hz / SLICES_PER_SECOND,
            clock,
            free_before: free_kib(),
        };
        for (index, record) in blob.domains().enumerate() {
            let mut guest = Guest::new(record, DomainId(index as u16 + 1));
            match scheduler.maker.make(&mut scheduler.backend, &guest.record, guest.id) {
                Ok(live) => guest.live = Some(live),
                Err(error) => {
                    log::error!("cannot start: config: domain[{index}] ({}): {error}", guest.name());
                    return Err(());
                }
            }
            log::info!(
                "guest {}: {} MiB, {} vCPU{}, started",
                guest.name(),
                guest.record.memory() >> 20,
                guest.record.vcpus(),
                if guest.record.vcpus() == 1 { "" } else { "s" }
            );
            scheduler.guests.push(guest);
        }
        Ok(scheduler)
    }

    /// Runs the guests until the last one has ended, and answers how that was.
    ///
    /// A `drill` happens when the first guest has run for the first time.
    pub(crate) fn run(&mut self, mut drill: Option<Drill>) -> RunResult {
        loop {
            self.host_work();
            self.bury();
            self.restart();
            if self.all_ended() {
                self.account();
                let well = self.guests.iter().all(Guest::ended_well);
                return if well { RunResult::Clean } else { RunResult::GuestFailed };
            }
            match self.next() {
                Some((guest, vcpu)) => {
                    self.last = (guest, vcpu);
                    let stop = self.turn(guest, vcpu);
                    if let Some(drill) = drill.take() {
                        drill.crash();
                    }
                    if let Stop::Ended(ended) = stop {
                        self.end(guest, ended);
                    }
                }
                None if self.dying.is_empty() => self.idle(),
                None => {}
            }
        }
    }

    /// Scrubs a piece of a dead guest's memory. When that was the last of it, all that the guest had is free.
    fn bury(&mut self) {
        let Some(memory) = self.dying.last_mut() else { return };
        if !memory.scrub_step() {
            return;
        }
        let id = memory.domain();
        self.dying.pop();
        if let Some(guest) = self.guests.iter_mut().find(|g| g.id == id) {
            guest.buried();
        }
    }

    /// Starts a guest again whose time has come. Making it is work that nobody's slice pays for: the guest waits
    /// until [`Guest::restart_at`].
    fn restart(&mut self) {
        let now = cpu::tsc();
        let Some(guest) = self.guests.iter_mut().find(|g| g.restart_at.is_some_and(|at| at <= now)) else {
            return;
        };
        guest.restart_at = None;
        match self.maker.make(&mut self.backend, &guest.record, guest.id) {
            Ok(live) => guest.started(live, cpu::tsc().wrapping_sub(now)),
            Err(error) => {
                log::error!("guest {}: cannot be restarted: {error}", guest.name());
                // However it ended, it was to go on.
                guest.ended = None;
            }
        }
    }

    /// Whether no guest lives, nor will.
    fn all_ended(&self) -> bool {
        self.dying.is_empty() && self.guests.iter().all(|g| g.live.is_none() && g.restart_at.is_none())
    }

    /// Says whether all that was free before the guests were made is free again.
    fn account(&self) {
        let free = free_kib();
        let before = self.free_before;
        if free == before {
            log::info!("memory free at the end: {free} KiB of {before} KiB");
        } else {
            log::warn!("memory free at the end: {free} KiB of {before} KiB: guests left some behind, a bug");
        }
    }

    /// What the CPU's pending word asks for, and what is due.
    fn host_work(&mut self) {
        let work = percpu::current().take_pending();
        if work & pending::SERIAL != 0 {
            console::poll();
        }
        if work & pending::NMI != 0 {
            log::warn!("the machine raised an NMI that nobody asked for");
        }
        let now = cpu::tsc();
        for guest in &mut self.guests {
            let Some(live) = &mut guest.live else { continue };
            let mut host = Machine::new(guest.id);
            let Live { vcpus, domain, .. } = &mut **live;
            let time = domain.clock.at(now);
            for vcpu in vcpus {
                if vcpu.next_deadline(domain) <= time {
                    vcpu.advance(domain, &mut host, time);
                }
            }
        }
        if console::has_input() {
            let guests = &self.guests;
            console::deliver_input(|id, byte| {
                let live = guests.iter().find(|g| g.id == id).and_then(|g| g.live.as_ref());
                // Input for a guest that is gone is dropped.
                live.is_none_or(|live| {
                    let mut host = Machine::new(id);
                    live.domain.console_input(byte, &mut host)
                })
            });
        }
    }

    /// The next vCPU in turn that has something to do.
    fn next(&mut self) -> Option<(usize, usize)> {
        let places: usize = self.guests.iter().filter_map(|g| g.live.as_ref()).map(|l| l.vcpus.len()).sum();
        let mut at = self.last;
        for _ in 0..places + self.guests.len() {
            at = self.after(at);
            let guest = &mut self.guests[at.0];
            let Some(live) = &mut guest.live else { continue };
            let mut host = Machine::new(guest.id);
            let Live { vcpus, domain, .. } = &mut **live;
            if let Some(vcpu) = vcpus.get_mut(at.1)
                && vcpu.prepare(domain, &mut host) != Readiness::Blocked
            {
                return Some(at);
            }
        }
        None
    }

    /// The place after `at`, around all guests and their vCPUs.
    fn after(&self, (guest, vcpu): (usize, usize)) -> (usize, usize) {
        let vcpus = self.guests[guest].live.as_ref().map_or(0, |l| l.vcpus.len());
        if vcpu + 1 < vcpus { (guest, vcpu + 1) } else { ((guest + 1) % self.guests.len(), 0) }
    }

    /// Lets one vCPU run.
    fn turn(&mut self, guest: usize, index: usize) -> Stop {
        let vcpus = self.guests.iter().filter_map(|g| g.live.as_ref()).map(|l| l.vcpus.len()).sum::<usize>();
        let alone = vcpus == 1 && self.dying.is_empty();
        let start = cpu::tsc();
        let end = if alone { u64::MAX } else { start + self.slice };
        self.load((guest, index));
        loop {
            // Others' timers end the turn early, but leave it a share, so that nobody can take the CPU away by timers.
            let share = start + self.slice / UNDISTURBED;
            let mut others = self.deadline_of_others((guest, index)).max(share);
            if console::has_input() {
                // Input that a guest had no room for is offered again.
                others = others.min(cpu::tsc() + self.slice);
            }
            let guest = &mut self.guests[guest];
            let Some(live) = &mut guest.live else { return Stop::Preempted };
            let Live { vcpus, domain, .. } = &mut **live;
            let vcpu = &mut vcpus[index];
            let has_console = guest.record.console() == caisson_config::Console::Serial;
            let mut host = Machine { has_console, index, ..Machine::new(guest.id) };
            match run_vcpu(vcpu, domain, &mut host, self.clock, end.min(others), share) {
                Stop::HostWork => self.host_work(),
                stop => return stop,
            }
        }
    }

    /// Puts a vCPU's state into the CPU, in place of whichever was there.
    fn load(&mut self, place: (usize, usize)) {
        if self.loaded == Some(place) {
            return;
        }
        if let Some(old) = self.loaded.replace(place)
            && let Some(vcpu) = self.vcpu(old)
        {
            vcpu.hw.switch_out();
        }
        if let Some(vcpu) = self.vcpu(place) {
            vcpu.hw.switch_in();
        }
    }

    fn vcpu(&mut self, (guest, index): (usize, usize)) -> Option<&mut VirtualCpu<B::Vcpu>> {
        self.guests.get_mut(guest)?.live.as_mut()?.vcpus.get_mut(index)
    }

    /// The host's TSC at the earliest deadline of all vCPUs but one.
    fn deadline_of_others(&self, but: (usize, usize)) -> u64 {
        let mut earliest = self.guests.iter().filter_map(|g| g.restart_at).min().unwrap_or(u64::MAX);
        for (g, guest) in self.guests.iter().enumerate() {
            let Some(live) = &guest.live else { continue };
            for (v, vcpu) in live.vcpus.iter().enumerate() {
                if (g, v) != but {
                    let deadline = live.domain.clock.host_tsc_of(vcpu.next_deadline(&live.domain));
                    earliest = earliest.min(deadline);
                }
            }
        }
        earliest
    }

    /// Sleeps until something happens.
    fn idle(&self) {
        match self.deadline_of_others((usize::MAX, 0)) {
            u64::MAX => self.clock.disarm(),
            deadline => self.clock.arm(deadline),
        }
        if percpu::current().pending() == 0 {
            cpu::wait_for_interrupt();
        }
    }

    /// Takes a guest apart; what follows is [`Scheduler::bury`]'s.
    fn end(&mut self, index: usize, ended: Ended) {
        if self.loaded.is_some_and(|(guest, _)| guest == index) {
            // What is in the CPU is a dead guest's, and is overwritten before the next one runs.
            self.loaded = None;
        }
        self.dying.extend(self.guests[index].end(ended));
    }
}

/// Runs a vCPU until it blocks, or its turn ends at `stop_at`, or at `share` where it has woken another vCPU (host TSC).
fn run_vcpu<V: Vcpu>(
    vcpu: &mut VirtualCpu<V>,
    domain: &caisson_domain::Domain<GuestRam>,
    host: &mut Machine,
    clock: &Clock,
    mut stop_at: u64,
    share: u64,
) -> Stop {
    let _ = vcpu.take_deadline_changed();
    arm(vcpu, domain, clock, stop_at);
    loop {
        if percpu::current().pending() != 0 {
            // The timer is the vCPU's own as a rule: its interrupt goes into it without a detour.
            if let Some(stop) = own_timer(vcpu, domain, host, clock, stop_at) {
                return stop;
            }
        }
        match vcpu.prepare(domain, host) {
            Readiness::Enter => {}
            Readiness::Blocked => return Stop::Blocked,
            Readiness::Ended(ended) => return Stop::Ended(ended),
        }
        if vcpu.take_deadline_changed() {
            arm(vcpu, domain, clock, stop_at);
        }
        let exit = vcpu.hw.run();
        match vcpu.answer(domain, host, exit) {
            Outcome::Resume | Outcome::Halted => {}
            Outcome::HostEvent => cpu::take_interrupts(),
            Outcome::Yield | Outcome::YieldTo(_) => return Stop::Preempted,
            Outcome::Ended(ended) => return Stop::Ended(ended),
            Outcome::MachineCheck => machine_check(),
            Outcome::MachineReset => machine_reset(),
        }
        if core::mem::take(&mut host.woken) && share < stop_at {
            stop_at = share;
            arm(vcpu, domain, clock, stop_at);
        }
    }
}

/// Sets the one-shot timer to what comes first.
fn arm<V: Vcpu>(
    vcpu: &VirtualCpu<V>,
    domain: &caisson_domain::Domain<GuestRam>,
    clock: &Clock,
    stop_at: u64,
) {
    let own = match vcpu.next_deadline(domain) {
        Instant::NEVER => u64::MAX,
        instant => domain.clock.host_tsc_of(instant),
    };
    match own.min(stop_at) {
        u64::MAX => clock.disarm(),
        deadline => clock.arm(deadline),
    }
}

/// The pending word is not empty: `Some` where the vCPU must stop for it.
fn own_timer<V: Vcpu>(
    vcpu: &mut VirtualCpu<V>,
    domain: &caisson_domain::Domain<GuestRam>,
    host: &mut Machine,
    clock: &Clock,
    stop_at: u64,
) -> Option<Stop> {
    let now = cpu::tsc();
    if now >= stop_at {
        return Some(Stop::Preempted);
    }
    if percpu::current().pending() != pending::TIMER {
        return Some(Stop::HostWork);
    }
    let _ = percpu::current().take_pending();
    let time = domain.clock.at(now);
    if vcpu.next_deadline(domain) <= time {
        vcpu.advance(domain, host, time);
    }
    arm(vcpu, domain, clock, stop_at);
    None
}

/// The machine reported an error of its own while a guest ran.
fn machine_check() -> ! {
    #[allow(clippy::panic)]
    {
        panic!("the machine reported a hardware error (#MC) while a guest ran: look at its event log")
    }
}

/// Somebody pulls the machine's INIT line, which cannot be turned down: it goes down cleanly instead of at random.
fn machine_reset() -> ! {
    log::error!("the machine was told to reset (INIT): resetting it, guests and all");
    console::drain();
    power::reset()
}
