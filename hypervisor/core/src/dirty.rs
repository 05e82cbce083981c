//! Which pages a domain writes: the ground of live migration, and, with the boot word `dirty-log=`, a line now and then that
//! tells a person how much a migration would have to move.
//!
//! # The interface
//!
//! [`Live::start_tracking`], [`Live::harvest`] and [`Live::stop_tracking`] begin something; [`Live::track`] is called until it
//! says that it is done. After a harvest the domain's log ([`WriteLog::harvested`](caisson_stage2::WriteLog::harvested)) has
//! the pages that were written since the harvest before, or since the start: who then reads them sees these writes, and a
//! write that comes later is in the next harvest. A page is 4 KiB: while a domain is tracked its stage-2 leaves are split.
//!
//! # Who tells
//!
//! - Caisson marks what it writes itself ([`GuestRam`](caisson_machine::memory::GuestRam)).
//! - What the guest writes is told as the CPU can ([`WriteTrace`]): by a log of the pages whose dirty bits it sets, by the
//!   dirty bits, or by a fault of the first write.
//!
//! # Other CPUs
//!
//! After each change of the tables every CPU that holds a vCPU of the domain empties its log and flushes its translations
//! before it enters the guest again, and before what has changed counts: [`Live::flush_everywhere`]. A vCPU that is on no CPU
//! needs nothing: its log was emptied when it left, and it flushes when it is loaded.
//!
//! All of this is work of the guest's [chores](crate::life): at its expense, a chunk of its memory at a time.

use alloc::string::String;
use core::fmt::Write;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use caisson_boot::BootInfo;
use caisson_domain::{Ended, KillReason, VirtualCpu};
use caisson_hwvirt::{Backend, Vcpu, WriteTrace};
use caisson_locks::{Mutex, Rank};
use caisson_machine::clock::Clock;
use caisson_machine::cpu;
use caisson_machine::memory::{DomainMarks, DomainTables};
use caisson_stage2::{Error, Format, Permissions, Stage2, Trace, WriteLog};
use caisson_types::{Gpa, PAGE_SIZE, PageSize};

use crate::guests::{Live, Tables};
use crate::scheduler::{System, serve_between_steps};

/// How many runs of pages are told one by one.
const RUNS: usize = 16;

/// How often it is told what guests write: the boot word `dirty-log=SECONDS` or `dirty-log=SECONDS,TIMES`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Meter {
    /// TSC ticks from one time to the next.
    period: u64,
    /// TSC ticks in a second.
    second: u64,
    /// How many times; for ever where that is `None`.
    times: Option<u32>,
}

impl Meter {
    /// What the boot words ask for.
    pub(crate) fn of(info: &BootInfo, clock: &Clock) -> Option<Self> {
        let word = info.option("dirty-log")?;
        let (seconds, times) = word.split_once(',').map_or((word, None), |(s, t)| (s, Some(t)));
        let times = times.map(|times| times.parse().ok().filter(|times| *times > 0));
        match (seconds.parse::<u32>(), times) {
            (Ok(seconds @ 1..), None | Some(Some(_))) => Some(Self {
                period: u64::from(seconds).saturating_mul(clock.tsc_hz),
                second: clock.tsc_hz,
                times: times.flatten(),
            }),
            _ => {
                log::warn!("dirty-log={word}: give a number of seconds, and behind a comma how many times");
                None
            }
        }
    }
}

/// How far the work has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// There is more to do.
    More,
    /// There is nothing to do before this TSC.
    Rest(u64),
}

/// What is being done to a domain's tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Nothing, and nothing is tracked.
    Off,
    /// Chunk by chunk, leaves are split and their traces cleared.
    Clean(usize),
    /// Nothing; writes leave traces.
    On,
    /// Chunk by chunk, traces are taken.
    Collect(usize),
    /// Chunk by chunk, leaves are joined again.
    Join(usize),
    /// The tables that were joined can go.
    Release,
}

/// What the meter waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reading {
    /// To begin.
    New,
    /// For the time of the next harvest, since the last one.
    Until(u64, u64),
    /// For a harvest, since the last one.
    Harvest(u64),
    /// For nothing: it has told what it was to tell.
    Over,
}

struct State {
    step: Step,
    trace: WriteTrace,
    reading: Reading,
    told: u32,
}

/// What a domain's tracking has come to.
pub(crate) struct Tracking {
    /// CPUs log.
    logs: AtomicBool,
    /// Pages are write-protected.
    protects: AtomicBool,
    state: Mutex<State>,
}

impl Tracking {
    /// None.
    pub(crate) fn new() -> Self {
        let (trace, reading, told) = (WriteTrace::None, Reading::New, 0);
        Self {
            logs: AtomicBool::new(false),
            protects: AtomicBool::new(false),
            state: Mutex::new(Rank::Tracking, State { step: Step::Off, trace, reading, told }),
        }
    }
}

impl<B: Backend, F: Format> Live<B, F> {
    /// Puts what the CPU has logged of a vCPU, which is on it, into the domain's log.
    pub(crate) fn empty_log(&self, vcpu: &mut VirtualCpu<B::Vcpu>) {
        vcpu.hw.take_written(|gpa| self.domain.memory.written(gpa, PAGE_SIZE));
    }

    /// The same, and has the CPU log from now on what the vCPU writes, or no longer.
    pub(crate) fn settle_log(&self, vcpu: &mut VirtualCpu<B::Vcpu>) {
        self.empty_log(vcpu);
        vcpu.hw.set_write_log(self.tracking.logs.load(Ordering::Relaxed));
    }

    /// A vCPU has written a page that stage 2 protects, as is right where that is how writes are told.
    ///
    /// # Errors
    /// The guest's end, where it is not.
    #[cold]
    pub(crate) fn allow_write(&self, vcpu: &mut VirtualCpu<B::Vcpu>, gpa: Gpa) -> Result<(), Ended> {
        let frames = &mut DomainTables(self.domain.id);
        let mut tables = self.tables.lock();
        let page = Gpa::new(gpa.as_u64() & !(PAGE_SIZE - 1));
        let lost = Ended::Killed(KillReason::LostMemory { gpa });
        for tables in tables.all() {
            let writable = tables.translate(frames, page).ok_or(lost)?.permissions.write;
            if !writable {
                if !self.tracking.protects.load(Ordering::Acquire) {
                    return Err(lost);
                }
                // The fault has dropped this CPU's translation; another's fault only brings it here.
                let _ = tables.protect(frames, page, PAGE_SIZE, Permissions::ALL).map_err(|_| lost)?;
                self.domain.memory.written(page, PAGE_SIZE);
            }
        }
        vcpu.hw.flush_tlb();
        Ok(())
    }

    /// Begins to track what the domain writes. `false` without memory for the log.
    fn start_tracking(&self, system: &System<B, F>, state: &mut State) -> bool {
        if !self.domain.memory.start_log() {
            return false;
        }
        state.trace = system.backend.write_trace();
        self.tracking.logs.store(state.trace == WriteTrace::Log, Ordering::Release);
        self.tracking.protects.store(state.trace == WriteTrace::None, Ordering::Release);
        state.step = Step::Clean(0);
        self.flush_everywhere(&None);
        true
    }

    /// Begins a harvest.
    fn harvest(&self, state: &mut State) {
        state.step = Step::Collect(0);
        if state.trace == WriteTrace::Log {
            // What the CPUs have logged so far belongs to it.
            self.flush_everywhere(&None);
        }
    }

    /// Begins to leave the domain alone again.
    fn stop_tracking(&self, state: &mut State) {
        self.tracking.logs.store(false, Ordering::Release);
        state.step = Step::Join(0);
        self.flush_everywhere(&None);
    }

    /// Goes on with what was begun, until the TSC is at `until`. [`Progress::Rest`] when it is done.
    ///
    /// # Errors
    /// No memory for smaller leaves.
    fn track(&self, state: &mut State, until: u64) -> Result<Progress, Error> {
        loop {
            serve_between_steps();
            let (Step::Clean(chunk) | Step::Collect(chunk) | Step::Join(chunk)) = state.step else {
                if state.step == Step::Release {
                    let frames = &mut DomainTables(self.domain.id);
                    self.tables.lock().all().for_each(|tables| tables.flushed(frames));
                    self.domain.memory.stop_log();
                    self.tracking.protects.store(false, Ordering::Release);
                    state.step = Step::Off;
                }
                return Ok(Progress::Rest(u64::MAX));
            };
            if chunk < self.domain.memory.log().map_or(0, WriteLog::chunks) {
                self.work_on(state, chunk)?;
            } else {
                state.step = match state.step {
                    Step::Join(_) => Step::Release,
                    _ => Step::On,
                };
                self.flush_everywhere(&None);
                continue;
            }
            if cpu::tsc() >= until {
                return Ok(Progress::More);
            }
        }
    }

    /// Does one chunk. The flush comes behind the last one.
    fn work_on(&self, state: &mut State, chunk: usize) -> Result<(), Error> {
        let Some(log) = self.domain.memory.log() else { return Ok(()) };
        let mut tables = self.tables.lock();
        match state.step {
            Step::Clean(_) => {
                tables.all().try_for_each(|tables| self.clean(tables, log.addresses(chunk), state.trace))?;
                state.step = Step::Clean(chunk + 1);
            }
            Step::Collect(_) => {
                self.collect(&mut tables, log, chunk, state.trace)?;
                state.step = Step::Collect(chunk + 1);
            }
            _ => {
                let last = chunk + 1 == log.chunks();
                let protected = state.trace == WriteTrace::None;
                tables.all().try_for_each(|t| self.join(t, log.addresses(chunk), protected, last))?;
                state.step = Step::Join(chunk + 1);
            }
        }
        Ok(())
    }

    /// Splits the leaves of a chunk, and clears their traces.
    fn clean(&self, tables: &mut Stage2<F>, addresses: Range<u64>, trace: WriteTrace) -> Result<(), Error> {
        let frames = &mut DomainTables(self.domain.id);
        let (start, len) = (Gpa::new(addresses.start), addresses.end - addresses.start);
        let _ = tables.split_leaves(frames, start, len)?;
        if trace == WriteTrace::None {
            for (gpa, len) in self.ram_in(addresses) {
                let _ = tables.protect(frames, gpa, len, Permissions::READ_EXECUTE)?;
            }
        } else {
            let _ = tables.harvest(frames, start, len, Trace::Dirty, |_, _| {})?;
        }
        Ok(())
    }

    /// Takes the traces of a chunk, from where they are, into the harvest.
    fn collect(
        &self,
        tables: &mut Tables<F>,
        log: &WriteLog<DomainMarks>,
        chunk: usize,
        trace: WriteTrace,
    ) -> Result<(), Error> {
        let frames = &mut DomainTables(self.domain.id);
        if trace == WriteTrace::DirtyBits {
            for (gpa, len) in self.ram_in(log.addresses(chunk)) {
                for tables in tables.all() {
                    let mark = |gpa, size: PageSize| log.mark_taken(gpa, size.bytes());
                    let _ = tables.harvest(frames, gpa, len, Trace::Dirty, mark)?;
                }
            }
        }
        let mut result = Ok(());
        log.take(chunk, |gpa, len| {
            for tables in tables.all() {
                let done = match trace {
                    WriteTrace::DirtyBits => return,
                    WriteTrace::Log => tables.harvest(frames, gpa, len, Trace::Dirty, |_, _| {}),
                    WriteTrace::None => tables.protect(frames, gpa, len, Permissions::READ_EXECUTE),
                };
                result = result.and(done.map(drop));
            }
        });
        result
    }

    /// Joins the leaves of a chunk, after they have got their rights back where they were `protected`. With the `last` chunk
    /// come the leaves that are larger than one.
    fn join(
        &self,
        tables: &mut Stage2<F>,
        addresses: Range<u64>,
        protected: bool,
        last: bool,
    ) -> Result<(), Error> {
        let frames = &mut DomainTables(self.domain.id);
        if protected {
            for (gpa, len) in self.ram_in(addresses.clone()) {
                let _ = tables.protect(frames, gpa, len, Permissions::ALL)?;
            }
        }
        let start = if last { 0 } else { addresses.start };
        let _ = tables.join_leaves(frames, Gpa::new(start), addresses.end - start)?;
        Ok(())
    }

    /// The domain's RAM among these addresses.
    fn ram_in(&self, addresses: Range<u64>) -> impl Iterator<Item = (Gpa, u64)> {
        self.domain.memory.extents().iter().filter_map(move |extent| {
            let start = extent.gpa.as_u64().max(addresses.start);
            let end = (extent.gpa.as_u64() + extent.bytes).min(addresses.end);
            (start < end).then(|| (Gpa::new(start), end - start))
        })
    }
}

impl<B: Backend, F: Format> System<B, F> {
    /// What there is to do for those who want to know what a guest writes.
    pub(crate) fn watch_writes(&self, live: &Live<B, F>, until: u64) -> Progress {
        let Some(meter) = self.meter.get() else { return Progress::Rest(u64::MAX) };
        let mut state = live.tracking.state.lock();
        let state = &mut *state;
        loop {
            match live.track(state, until) {
                Ok(Progress::Rest(_)) => {}
                Ok(progress) => return progress,
                Err(error) => {
                    self.say_untracked(live, &error);
                    state.reading = Reading::Over;
                    match state.step {
                        // Joining needs no memory; what is left is as right, if slower.
                        Step::Join(_) => state.step = Step::Off,
                        _ => live.stop_tracking(state),
                    }
                    continue;
                }
            }
            let now = cpu::tsc();
            match state.reading {
                Reading::Over => return Progress::Rest(u64::MAX),
                Reading::Until(next, _) if now < next => return Progress::Rest(next),
                Reading::Until(_, since) => {
                    state.reading = Reading::Harvest(since);
                    live.harvest(state);
                }
                Reading::New if state.step == Step::Off => {
                    if !live.start_tracking(self, state) {
                        self.say_untracked(live, &Error::OutOfTables);
                        state.reading = Reading::Over;
                    }
                }
                Reading::New => state.reading = Reading::Until(now.saturating_add(meter.period), now),
                Reading::Harvest(since) => {
                    self.tell(live, now.saturating_sub(since), meter);
                    state.told = state.told.saturating_add(1);
                    state.reading = Reading::Until(now.saturating_add(meter.period), now);
                    if meter.times.is_some_and(|times| state.told >= times) {
                        state.reading = Reading::Over;
                        live.stop_tracking(state);
                    }
                }
            }
        }
    }

    fn say_untracked(&self, live: &Live<B, F>, error: &Error) {
        let name = live.entry.name();
        log::warn!(
            "guest {name}: what it writes cannot be told: {error}: give it less memory, or the machine more"
        );
    }

    /// Tells what a harvest has found.
    fn tell(&self, live: &Live<B, F>, ticks: u64, meter: &Meter) {
        let name = live.entry.name();
        let Some(log) = live.domain.memory.log() else { return };
        let (mut bytes, mut runs, mut list) = (0, 0, String::new());
        for chunk in 0..log.chunks() {
            log.harvested(chunk, |gpa, len| {
                bytes += len;
                runs += 1;
                if runs <= RUNS && log::log_enabled!(log::Level::Debug) {
                    let _ = write!(list, " {:#x}+{}", gpa.as_u64(), len >> 10);
                }
            });
        }
        let millis = ticks / (meter.second / 1000).max(1);
        log::info!("guest {name}: wrote {} KiB in {}.{:03} s", bytes >> 10, millis / 1000, millis % 1000);
        if !list.is_empty() {
            let more = if runs > RUNS { " and more" } else { "" };
            log::debug!("guest {name}: wrote (KiB behind the plus){list}{more}");
        }
    }
}
