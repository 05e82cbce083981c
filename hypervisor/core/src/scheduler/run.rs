//! One CPU's life: do what the machine asks for, pick who runs, let it run.

use alloc::sync::Arc;

use caisson_accounts::Charge;
use caisson_domain::{Ended, Host, Outcome, Readiness, RunState, VirtualCpu};
use caisson_hwvirt::{Backend, Vcpu};
use caisson_machine::clock::Clock;
use caisson_machine::memory::GuestRam;
use caisson_machine::pci::Configuration;
use caisson_machine::percpu::{self, pending};
use caisson_machine::{cpu, ipi, power};
use caisson_pci::Reset;
use caisson_sched::NEVER;
use caisson_smp::{self as smp, Queue as _};
use caisson_stage2::Format;
use caisson_trace::Event;
use caisson_types::{DomainId, Instant, PAGE_SIZE};

use super::System;
use super::host::Machine;
use super::queue::{Turn, Work};
use super::shoot::{serve_between_steps, settle};
use super::watch::Watch;
use crate::console::{self, SERIAL_CPU};
use crate::dma::Dma;
use crate::domains::Entry;
use crate::functions::Arrival;
use crate::guests::Live;
use crate::life::Chore;
use crate::trace::{self, What, Why};

/// Whose vector state, debug registers and control block are in this CPU: they stay until another's are needed.
pub(crate) type Loaded<B, F> = Option<(Arc<Live<B, F>>, usize)>;

/// Why a vCPU stopped running.
enum Stop {
    /// It waits for an interrupt, or for its own timer at this TSC.
    Blocked(u64),
    /// It could go on; the queue is asked whether it does.
    Asked,
    /// It would only wait for others: for this vCPU of its guest's, where it is told.
    Yielded(Option<usize>),
    /// Its guest ended.
    Ended(Ended),
}

impl<B: Backend, F: Format> System<B, F> {
    /// Runs what there is on this CPU, for ever.
    pub(crate) fn run(&self) -> ! {
        self.this().account.begin(cpu::tsc());
        let mut loaded = None;
        let mut idled = false;
        loop {
            self.host_work(&mut loaded);
            let turn = self.next_turn();
            if core::mem::take(&mut idled) && turn.is_some() {
                self.hand_on();
            }
            match turn {
                Some(Turn { work: Work::Vcpu(live, index), until }) => {
                    self.vcpu_turn(&live, index, until, &mut loaded);
                }
                Some(Turn { work: Work::Chore(entry), until }) => {
                    self.unload(&mut loaded);
                    self.chore_turn(&entry, until);
                }
                None => {
                    self.idle();
                    idled = true;
                }
            }
        }
    }

    /// What this CPU runs next, out of its own queue or another's.
    fn next_turn(&self) -> Option<Turn<B, F>> {
        let this = self.this();
        let mut queue = this.lock();
        let turn_ended = queue.settle_up(cpu::tsc());
        if turn_ended && self.shown(this.pool).is_contended() {
            let own = queue.next_key();
            drop(queue);
            self.pull(this, own);
            queue = this.lock();
        }
        let turn = queue.pick(cpu::tsc());
        let waiting = queue.has_waiting();
        drop(queue);
        if waiting {
            self.share(this, turn_ended);
        }
        turn
    }

    /// What the CPU's pending word asks for.
    fn host_work(&self, loaded: &mut Loaded<B, F>) {
        let this = percpu::current();
        if this.pending().look() != 0 {
            ipi::serve(this, || settle(loaded));
            let work = this.pending().take(!pending::CALL);
            if work & pending::SERIAL != 0 {
                console::poll();
                if console::take_trace_wanted() {
                    trace::begin(self.names());
                }
                trace::go_on();
                if console::take_policy_wanted() {
                    self.switch_policies();
                }
            }
            if work & pending::FUNCTIONS != 0 {
                this.take_functions(|vector| self.function_interrupt(vector));
            }
            if work & pending::DMA_FAULT != 0 {
                self.tell_faults();
            }
            if work & pending::NMI != 0 {
                log::warn!("the machine raised an NMI that nobody asked for");
            }
        }
        if loaded.as_ref().is_some_and(|(live, _)| live.is_ending()) {
            self.unload(loaded);
        }
        if this.index() == SERIAL_CPU {
            let now = cpu::tsc();
            if console::output_due() <= now {
                console::poll();
            }
            if console::has_input() {
                self.deliver_input();
            }
            self.tell_consoles();
            if console::table_due() <= now {
                self.show_table();
            }
            if self.faults_due() <= now {
                self.tell_faults();
            }
        }
    }

    /// A function's interrupt has arrived.
    fn function_interrupt(&self, vector: u8) {
        let Some((domain, arrival)) = self.routes.arrive(vector) else { return };
        let Some(live) = self.live(domain) else { return };
        let mut host = Machine::outside(self, &live);
        match arrival {
            Arrival::Message(message) => live.domain.interrupt(&message, &mut host),
            Arrival::Line(line) => live.domain.raise_line(line, &mut host),
        }
    }

    /// A guest that owns functions has ended: they do nothing any more. Their reset is left to be done.
    pub(crate) fn quiesce(&self, live: &Live<B, F>) -> Option<Reset> {
        let mut bus = live.domain.functions()?;
        bus.quiesce(&mut Configuration);
        self.routes.release(live.domain.id);
        Some(self.maker.devices.as_ref()?.reset(live.entry.index()))
    }

    fn deliver_input(&self) {
        console::deliver_input(|id: DomainId, byte| match self.live(id) {
            Some(live) => {
                let mut host = Machine::outside(self, &live);
                live.domain.console_input(byte, &mut host)
            }
            // Input for a guest that is gone is dropped.
            None => true,
        });
    }

    /// When the consoles, or others that go by the same clock, want this CPU.
    pub(super) fn console_deadline(&self) -> u64 {
        if percpu::current().index() == SERIAL_CPU { console::due().min(self.faults_due()) } else { u64::MAX }
    }

    /// When the IOMMU wants it.
    fn faults_due(&self) -> u64 {
        self.maker.dma.map_or(u64::MAX, Dma::due)
    }

    /// Puts a vCPU's state into the CPU, in place of whichever was there.
    fn load(&self, live: &Arc<Live<B, F>>, index: usize, loaded: &mut Loaded<B, F>) {
        if loaded.as_ref().is_some_and(|(old, at)| Arc::ptr_eq(old, live) && *at == index) {
            return;
        }
        self.unload(loaded);
        let task = &live.tasks[index];
        task.place.hold(percpu::current().index());
        {
            let mut vcpu = task.vcpu.lock();
            vcpu.hw.switch_in();
            vcpu.scheduled_in(&live.domain, stolen(live, index));
        }
        live.catch_up(index);
        *loaded = Some((live.clone(), index));
    }

    /// Takes off the CPU what is in it, so that any other can run it.
    fn unload(&self, loaded: &mut Loaded<B, F>) {
        let Some((live, index)) = loaded.take() else { return };
        let task = &live.tasks[index];
        {
            let mut vcpu = task.vcpu.lock();
            let preempted = vcpu.run_state() == RunState::Running;
            vcpu.scheduled_out(&live.domain, preempted);
            vcpu.hw.take_written(|gpa| live.domain.memory.written(gpa, PAGE_SIZE));
            vcpu.hw.switch_out();
            if self.shown(self.this().pool).members().len() > 1 || live.is_ending() {
                vcpu.hw.leave_cpu();
            }
        }
        task.place.release();
        // Until now it could not be taken over. Who wakes it from here on sees that it can.
        let this = self.this();
        if self.shown(this.pool).members().len() > 1 && this.lock().has_waiting() {
            smp::offer(self, this.index);
        }
    }

    /// Lets a vCPU run.
    fn vcpu_turn(&self, live: &Arc<Live<B, F>>, index: usize, until: u64, loaded: &mut Loaded<B, F>) {
        if live.is_ending() {
            self.unload(loaded);
            self.retire(live, index);
            return;
        }
        if live.pause.is_on() {
            self.unload(loaded);
            self.rest(live, index);
            return;
        }
        let stop = loop {
            match self.stint(live, index, until, loaded) {
                Stop::Blocked(deadline) if self.wait_in_place(live, index, deadline, until) => {}
                stop => break stop,
            }
        };
        match stop {
            Stop::Blocked(deadline) => self.block(live, index, deadline),
            Stop::Yielded(to) => {
                if let Some(task) = to.and_then(|to| live.tasks.get(to)) {
                    self.fetch(&task.place);
                }
                self.this().lock().give_way(cpu::tsc());
            }
            Stop::Ended(_) => {
                self.unload(loaded);
                self.retire(live, index);
            }
            Stop::Asked => {}
        }
    }

    /// A vCPU's time on the CPU until it stops.
    #[inline]
    fn stint(&self, live: &Arc<Live<B, F>>, index: usize, until: u64, loaded: &mut Loaded<B, F>) -> Stop {
        let task = &live.tasks[index];
        let watch = Watch::start(&self.this().account, &task.account, live.vcpu_id(index));
        self.load(live, index, loaded);
        let (stop, charge) = {
            let mut vcpu = task.vcpu.lock();
            vcpu.follow_clock(&live.domain);
            let mut host = Machine { system: self, live, index, charge: Charge::TURN };
            let until = until.min(self.console_deadline());
            let stop = run_vcpu(&mut vcpu, live, &mut host, self.clock, until, &watch);
            live.pause.note_stop();
            if let Stop::Ended(ended) = stop {
                self.end(live, ended, Some(&vcpu));
            }
            (stop, host.charge)
        };
        let why = match stop {
            Stop::Blocked(_) => Why::Blocked,
            Stop::Yielded(_) => Why::Yielded,
            Stop::Ended(_) => Why::Ended,
            Stop::Asked if cpu::tsc() >= until => Why::Preempted,
            Stop::Asked => Why::HostWork,
        };
        watch.stop(charge, why);
        self.drill();
        stop
    }

    /// The vCPU that runs here waits, unless it has got mail since it looked, or its guest has ended: then nobody would take
    /// it out of the queue.
    fn block(&self, live: &Live<B, F>, index: usize, deadline: u64) {
        let stays = || live.domain.mailbox(index).has_work() || live.is_ending();
        smp::block(self, self.this().index, &live.tasks[index].place, deadline, stays);
    }

    /// Works on a guest's chores.
    fn chore_turn(&self, entry: &Arc<Entry<B, F>>, until: u64) {
        let this = self.this();
        serve_between_steps();
        match self.chore(entry, until.min(self.console_deadline())) {
            Chore::More => {}
            Chore::Later => this.lock().give_way(cpu::tsc()),
            Chore::Gone(well) => {
                let work = this.lock().remove(&entry.chores);
                drop(work);
                self.gone(entry, well);
            }
        }
    }

    /// The chore that runs here has nothing to do before `deadline`, or before it is woken.
    pub(crate) fn block_chore(&self, deadline: u64) {
        self.this().lock().block(deadline);
    }
}

/// The nanoseconds that others have had while a vCPU could have run.
fn stolen<B: Backend, F: Format>(live: &Live<B, F>, index: usize) -> u64 {
    let times = live.tasks[index].account.times();
    times.map_or(0, |times| live.domain.clock.parameters().tsc_to_ns(times.stolen()))
}

/// Runs a vCPU until it blocks, or the queue is to be asked again, at the host's TSC `until` at the latest.
fn run_vcpu<B: Backend, F: Format>(
    vcpu: &mut VirtualCpu<B::Vcpu>,
    live: &Live<B, F>,
    host: &mut Machine<'_, B, F>,
    clock: &Clock,
    until: u64,
    watch: &Watch<'_>,
) -> Stop {
    let pending = percpu::current().pending();
    let domain = &live.domain;
    vcpu.hw.begin_turn(if until == NEVER { NEVER } else { until.saturating_sub(cpu::tsc()) });
    // The first look at the timers and the mail answers for what the CPU was woken by.
    if pending.look() & (pending::TIMER | pending::MAIL) != 0 {
        let _ = pending.take(pending::TIMER | pending::MAIL);
    }
    own_timer(vcpu, domain, host, clock, until);
    loop {
        match vcpu.prepare(domain, host) {
            Readiness::Enter => {}
            Readiness::Blocked => return Stop::Blocked(deadline_of(vcpu, domain)),
            Readiness::Ended(ended) => return Stop::Ended(ended),
        }
        if vcpu.take_deadline_changed() {
            arm(vcpu, domain, clock, until);
        }
        // The last look before the entry: all of the above may have set bits as well, of which no interrupt tells.
        let work = pending.look();
        if work != 0 {
            if work & !(pending::TIMER | pending::MAIL) != 0 || cpu::tsc() >= until {
                return Stop::Asked;
            }
            // The timer is the vCPU's own as a rule, and the mail is looked at next: no detour.
            if pending.take(pending::TIMER | pending::MAIL) & pending::TIMER != 0 {
                own_timer(vcpu, domain, host, clock, until);
            }
            continue;
        }
        watch.enter(host.charge);
        let raw = vcpu.hw.run();
        match vcpu.answer(domain, host, raw) {
            Outcome::Resume | Outcome::Halted => {}
            Outcome::LogFull => live.empty_log(vcpu),
            Outcome::Protected(gpa) => {
                if let Err(ended) = live.allow_write(vcpu, gpa) {
                    return Stop::Ended(ended);
                }
            }
            Outcome::HostEvent => cpu::take_interrupts(),
            Outcome::Yield => return Stop::Yielded(None),
            Outcome::YieldTo(index) => return Stop::Yielded(Some(index)),
            Outcome::Ended => return Stop::Ended(vcpu.ended().unwrap_or(Ended::Destroyed)),
            Outcome::MachineCheck => machine_check(),
            Outcome::MachineReset => machine_reset(),
        }
    }
}

/// The host's TSC at a vCPU's next deadline.
fn deadline_of<V: Vcpu>(vcpu: &VirtualCpu<V>, domain: &caisson_domain::Domain<GuestRam>) -> u64 {
    match vcpu.next_deadline(domain) {
        Instant::NEVER => u64::MAX,
        instant => domain.clock.host_tsc_of(instant),
    }
}

/// Sets the one-shot timer to what comes first.
fn arm<V: Vcpu>(vcpu: &VirtualCpu<V>, domain: &caisson_domain::Domain<GuestRam>, clock: &Clock, until: u64) {
    match deadline_of(vcpu, domain).min(until) {
        u64::MAX => clock.disarm(),
        deadline => clock.arm(deadline),
    }
}

/// Brings the vCPU's timers up to now, and sets the one-shot timer anew.
fn own_timer<V: Vcpu>(
    vcpu: &mut VirtualCpu<V>,
    domain: &caisson_domain::Domain<GuestRam>,
    host: &mut impl Host,
    clock: &Clock,
    until: u64,
) {
    let now = cpu::tsc();
    let time = domain.clock.at(now);
    if vcpu.next_deadline(domain) <= time {
        trace::record(|| {
            let late = now.saturating_sub(deadline_of(vcpu, domain)).min(u64::from(u32::MAX)) as u32;
            Event { time: now, vcpu: vcpu.id, what: What::Timer { late } }
        });
        vcpu.advance(domain, host, time);
    }
    let _ = vcpu.take_deadline_changed();
    arm(vcpu, domain, clock, until);
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
