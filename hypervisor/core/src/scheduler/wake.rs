//! Waking: whoever leaves something for a vCPU has it run, wherever it is.

use alloc::sync::Arc;

use caisson_hwvirt::Backend;
use caisson_machine::percpu::{self, pending};
use caisson_machine::{cpu, ipi};
use caisson_stage2::Format;
use spin::MutexGuard;

use super::queue::{Place, Queue};
use super::{Cpu, System, Work};
use crate::guests::Live;
use crate::trace::{self, NOBODY, What};

/// A CPU, with its queue locked.
pub(super) type Locked<'a, B, F> = (&'a Cpu<B, F>, MutexGuard<'a, Queue<B, F>>);

impl<B: Backend, F: Format> System<B, F> {
    /// A vCPU's mailbox has got its first message since it was last looked at.
    pub(crate) fn wake_vcpu(&self, live: &Live<B, F>, index: usize) {
        if let Some(task) = live.tasks.get(index) {
            self.wake(&task.place);
        }
    }

    /// There is something to do at `place`: it runs, if it was blocked; if it runs, it looks at its mail.
    pub(crate) fn wake(&self, place: &Place) {
        let Some(home) = self.queue_of(place) else { return };
        let Some((cpu, mut queue)) = self.relocate(home, place) else { return };
        let woken = queue.wake(place, cpu::tsc());
        let runs = queue.is_current(place);
        drop(queue);
        match woken {
            Some(woken) => {
                if woken.look {
                    self.kick(cpu, pending::RESCHEDULE);
                }
                if woken.waits {
                    self.offer(cpu.pool);
                }
            }
            None if runs => self.kick(cpu, pending::MAIL),
            None => {}
        }
    }

    /// The CPU in whose queue `place` is, with its queue; `None` while it is on its way from one to another, which it is
    /// only while it can run anyway.
    pub(super) fn queue_of(&self, place: &Place) -> Option<Locked<'_, B, F>> {
        loop {
            let index = place.cpu();
            let cpu = self.cpus.get(index as usize)?;
            let queue = cpu.lock();
            if place.cpu() == index {
                return place.entity().is_some().then_some((cpu, queue));
            }
        }
    }

    /// Has a CPU look at its queue ([`pending::RESCHEDULE`]) or at the mail of what it runs ([`pending::MAIL`]).
    pub(super) fn kick(&self, cpu: &Cpu<B, F>, bits: u32) {
        let this = percpu::current();
        if cpu.index == this.index() {
            let _ = this.set_pending(bits);
        } else if let Some(other) = cpu.percpu() {
            trace::note(NOBODY, What::Kick { cpu: cpu.index });
            ipi::poke(other, bits);
        }
    }

    /// Somebody waits in a pool: an idle CPU of it, if there is one, is told to look for work. All of them are where not
    /// everybody may run everywhere.
    pub(super) fn offer(&self, pool: usize) {
        let shown = self.shown(pool);
        while let Some(index) = shown.find_idle(|_| true, |_| true)
            && let Some(cpu) = self.cpus.get(index as usize)
        {
            // The next one is told to somebody else.
            shown.set_idle(index, false);
            self.kick(cpu, pending::RESCHEDULE);
            if !self.pools[pool].is_divided {
                break;
            }
        }
    }

    /// Puts a guest's vCPUs, and its chores, into queues: one CPU after the other, with the chores beside the boot vCPU.
    pub(crate) fn enrol_guest(&self, guest: usize) {
        let live = self.guests[guest].lock().live.clone();
        let home = self.shares[guest].homes.first().copied().unwrap_or(0);
        self.enrol(Work::Chore(guest), &self.chores[guest], home, false);
        if let Some(live) = live {
            self.enrol_vcpus(&live);
        }
    }

    /// Puts a guest's vCPUs into queues, ready to be looked at.
    pub(crate) fn enrol_vcpus(&self, live: &Arc<Live<B, F>>) {
        let homes = &self.shares[live.guest].homes;
        for ((index, task), &home) in live.tasks.iter().enumerate().zip(homes) {
            self.enrol(Work::Vcpu(live.clone(), index), &task.place, home, true);
        }
    }

    fn enrol(&self, work: Work<B, F>, place: &Place, home: u32, ready: bool) {
        let cpu = &self.cpus[home as usize];
        let share = &self.shares[work.guest()];
        let now = cpu::tsc();
        let mut queue = cpu.lock();
        let room = queue.add(work, place, share, now);
        assert!(room, "the queues have room for every vCPU and chore of the configuration");
        if ready {
            let _ = queue.wake(place, now);
        }
        drop(queue);
        self.kick(cpu, pending::RESCHEDULE);
    }

    /// Takes what is at `place` out of this CPU's queue; `false` where it was taken out before.
    pub(crate) fn remove_here(&self, place: &Place) -> bool {
        let this = self.this();
        let mut queue = this.lock();
        let work = queue.remove(place);
        drop(queue);
        work.is_some()
    }

    /// Takes a vCPU of a guest that has ended out of its queue. `false` where the CPU that runs it has to do it itself, or
    /// the one that has just taken it over: it is told to.
    pub(crate) fn withdraw(&self, place: &Place) -> bool {
        let Some((cpu, mut queue)) = self.queue_of(place) else { return false };
        if queue.is_current(place) {
            drop(queue);
            self.kick(cpu, pending::RESCHEDULE);
            return false;
        }
        let work = queue.remove(place);
        drop(queue);
        work.is_some()
    }

    /// Has the CPU that still holds a vCPU's registers look whether its guest has ended.
    pub(crate) fn unload_from(&self, index: u32) {
        if let Some(cpu) = self.cpus.get(index as usize) {
            self.kick(cpu, pending::RESCHEDULE);
        }
    }
}
