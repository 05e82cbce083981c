//! How guests end and start again.
//!
//! A guest ends when one of its vCPUs says so. The others are taken out of their queues, wherever they are; the CPU that
//! runs one, or still holds its registers, does that itself when it is told to look. When the last one is out, the guest's
//! *chores* begin: its devices are stopped, its memory is scrubbed and given back, and the guest is made again if that is its
//! configuration's wish. In which order, and what becomes of memory that a device may reach for ever, [`caisson_life`] decides;
//! what its steps do here is in [`course`](crate::course).
//! Chores run in the queues like vCPUs, with the guest's weight and at its expense, so that a guest that ends and starts
//! without end takes no more of the machine than one that computes.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use caisson_domain::{Ended, VirtualCpu};
use caisson_hwvirt::Backend;
use caisson_life::{End, Next, Step};
use caisson_machine::cpu;
use caisson_machine::memory::GuestRam;
use caisson_pci::Reset;
use caisson_stage2::Format;
use caisson_types::Instant;

use crate::course::{Ending, Loss};
use crate::dirty::Progress;
use crate::domains::{Definition, Entry};
use crate::guests::Live;
use crate::scheduler::System;

/// What is to be done for a guest beside running it.
pub(crate) enum Phase {
    /// It has not been made yet: the domains that serve its devices are to describe them first.
    Awaited,
    /// It cannot be made: who was to serve its devices is gone.
    Unmade,
    /// Nothing, but that somebody may want to know what it writes, or does not use its memory any more.
    Living,
    /// All its vCPUs are out of the queues, and what is left of it goes. While a step is done, this stands at its beginning.
    Ending(End<GuestRam, Reset, Loss>),
    /// It is made again when the TSC has come to this.
    Restart(u64),
    /// Nothing any more.
    Gone,
}

/// What a turn of chores came to.
pub(crate) enum Chore {
    /// There is more to do, or it is blocked already.
    More,
    /// Others have to do something first.
    Later,
    /// The guest is gone for good; whether it ended as it should.
    Gone(bool),
}

impl<B: Backend, F: Format> System<B, F> {
    /// A guest has come to its end: one of its vCPUs reports it, which the CPU that it is on takes out afterwards, by
    /// [`System::retire`]; or somebody who may has said so.
    pub(crate) fn end(&self, live: &Arc<Live<B, F>>, ended: Ended, vcpu: Option<&VirtualCpu<B::Vcpu>>) {
        if live.set_ending() {
            // Another vCPU was faster, or somebody else.
            return;
        }
        live.entry.guest.lock().end(&live.entry, ended, vcpu);
        self.io.ended(self, &live.entry);
        let here = vcpu.map(VirtualCpu::index);
        for (index, task) in live.tasks.iter().enumerate().filter(|(index, _)| Some(*index) != here) {
            if self.withdraw(&task.place) {
                self.left(live, index);
            }
        }
    }

    /// Takes a vCPU of a guest that has ended out of this CPU's queue; its registers are off the CPU.
    pub(crate) fn retire(&self, live: &Arc<Live<B, F>>, index: usize) {
        if self.remove_here(&live.tasks[index].place) {
            self.left(live, index);
        }
    }

    /// A vCPU is out of the queues.
    fn left(&self, live: &Live<B, F>, index: usize) {
        if let Some(cpu) = live.tasks[index].place.holder() {
            self.unload_from(cpu);
        }
        if live.vcpus_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            live.entry.guest.lock().phase = Phase::Ending(End::Used);
            self.wake(&live.entry.chores);
        }
    }

    /// Works on a guest's chores until the TSC is at `until`, or something else wants this CPU.
    pub(crate) fn chore(&self, entry: &Arc<Entry<B, F>>, until: u64) -> Chore {
        let mut guest = entry.guest.lock();
        match core::mem::replace(&mut guest.phase, Phase::Living) {
            Phase::Awaited | Phase::Unmade | Phase::Restart(_) if guest.lives.is_unwanted() => {
                Chore::Gone(true)
            }
            Phase::Unmade => Chore::Gone(false),
            Phase::Awaited => {
                guest.phase = Phase::Awaited;
                drop(guest);
                self.await_backend(entry)
            }
            Phase::Living => {
                let live = guest.live.clone();
                drop(guest);
                if let Some(live) = &live {
                    self.io.revoke(self, live);
                }
                if !self.scrub_blobs(until) {
                    return Chore::More;
                }
                match live.map_or(Progress::Rest(u64::MAX), |live| self.watch_writes(&live, until)) {
                    Progress::More => Chore::More,
                    Progress::Rest(deadline) => {
                        // It may have ended meanwhile; who says so wakes the chores afterwards.
                        let guest = entry.guest.lock();
                        if matches!(guest.phase, Phase::Living) {
                            self.block_chore(deadline);
                        }
                        drop(guest);
                        // Who detaches between the two wakes in vain.
                        if entry.io.has_revocations() {
                            self.wake(&entry.chores);
                        }
                        Chore::More
                    }
                }
            }
            Phase::Ending(end) => {
                guest.phase = Phase::Ending(End::Used);
                drop(guest);
                self.bring_to_an_end(entry, end, until)
            }
            Phase::Gone => {
                guest.phase = Phase::Gone;
                self.block_chore(u64::MAX);
                Chore::More
            }
            Phase::Restart(at) => {
                if cpu::tsc() < at {
                    guest.phase = Phase::Restart(at);
                    self.block_chore(at);
                    return Chore::More;
                }
                let definition = guest.definition.clone();
                guest.phase = Phase::Restart(at);
                drop(guest);
                self.restart(entry, definition.as_ref())
            }
        }
    }

    /// Does the next step of a guest's end.
    fn bring_to_an_end(
        &self,
        entry: &Arc<Entry<B, F>>,
        end: End<GuestRam, Reset, Loss>,
        until: u64,
    ) -> Chore {
        let step = end.step(&mut Ending { system: self, entry, until });
        let mut guest = entry.guest.lock();
        match step {
            Step::More(end) => guest.phase = Phase::Ending(end),
            Step::Wait(end, time) => {
                guest.phase = Phase::Ending(end);
                self.block_chore(self.host_tsc(time));
            }
            // Another CPU may be at it already.
            Step::Asked => {}
            Step::Later => return Chore::Later,
            Step::Over(outcome) => match guest.lives.over(outcome) {
                Next::Restart(at) => guest.phase = Phase::Restart(at),
                Next::Gone(well) => return Chore::Gone(well),
            },
        }
        Chore::More
    }

    /// The TSC then, or a little later.
    fn host_tsc(&self, time: Instant) -> u64 {
        let ticks = u128::from(time.as_nanos()) * u128::from(self.clock.tsc_hz) / 1_000_000_000;
        u64::try_from(ticks + 1).unwrap_or(u64::MAX)
    }

    /// The chores of a guest whose devices have to be described before it can be made.
    fn await_backend(&self, entry: &Entry<B, F>) -> Chore {
        // First: who describes the last device, or is gone, wakes it from here on.
        self.block_chore(u64::MAX);
        let backend = entry.io.awaited();
        let is_gone = backend.is_some_and(|backend| self.is_gone(backend));
        let mut guest = entry.guest.lock();
        // Another CPU may have been woken for it meanwhile.
        if !matches!(guest.phase, Phase::Awaited) {
            return Chore::More;
        }
        if backend.is_none() {
            guest.phase = Phase::Restart(0);
            self.wake(&entry.chores);
        } else if is_gone {
            // What is asleep may be another CPU's already: it is taken out of its queue when it runs.
            guest.phase = Phase::Unmade;
            guest.lives.could_not_be_made(false);
            let name = entry.name();
            log::error!("guest {name}: cannot be started: the domain that serves its devices is gone");
            self.wake(&entry.chores);
        }
        Chore::More
    }

    fn restart(&self, entry: &Arc<Entry<B, F>>, definition: Option<&Definition>) -> Chore {
        let start = cpu::tsc();
        // Who forgets a domain has seen that it is gone.
        let Some(record) = definition.and_then(Definition::record) else {
            return Chore::Gone(false);
        };
        match self.maker.make(self.backend, entry, &record, entry.io.making()) {
            Ok(live) => {
                let live = Arc::new(live);
                // Before it can be ended.
                self.io.started(self, &live);
                let mut guest = entry.guest.lock();
                guest.started(live.clone(), cpu::tsc().wrapping_sub(start));
                guest.say_start(&entry.facts);
                let unwanted = guest.lives.is_unwanted();
                drop(guest);
                self.io.tell_state(self, entry);
                self.enrol_vcpus(&live);
                if unwanted {
                    // That was said while it was being made.
                    self.end(&live, Ended::Destroyed, None);
                }
                Chore::More
            }
            Err(error) => {
                entry.io.unmade();
                entry.guest.lock().lives.could_not_be_made(error.has_lost_memory());
                log::error!("guest {}: cannot be started: {error}", entry.name());
                Chore::Gone(false)
            }
        }
    }
}
