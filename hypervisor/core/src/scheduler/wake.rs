//! Waking: whoever leaves something for a vCPU has it run, wherever it is.

use alloc::sync::Arc;

use caisson_hwvirt::Backend;
use caisson_locks::MutexGuard;
use caisson_machine::percpu::{self, pending};
use caisson_machine::{cpu, ipi};
use caisson_smp::{self as smp, Cpus as _, Place, Queue as _};
use caisson_stage2::Format;

use super::queue::Queue;
use super::{Cpu, System, Work};
use crate::domains::Entry;
use crate::guests::Live;
use crate::trace::{self, NOBODY, What};

/// A CPU's number, with its queue locked.
pub(super) type Locked<'a, B, F> = (u32, MutexGuard<'a, Queue<B, F>>);

impl<B: Backend, F: Format> smp::Cpus for System<B, F> {
    type Queue = Queue<B, F>;
    type Locked<'a>
        = MutexGuard<'a, Queue<B, F>>
    where
        Self: 'a;

    fn lock(&self, cpu: u32) -> Option<MutexGuard<'_, Queue<B, F>>> {
        self.cpus.get(cpu as usize).map(Cpu::lock)
    }

    fn kick(&self, cpu: u32, bits: u32) {
        let this = percpu::current();
        if cpu == this.index() {
            let _ = this.pending().set(bits);
        } else if let Some(other) = percpu::get(cpu) {
            trace::note(NOBODY, What::Kick { cpu });
            ipi::poke(other, bits);
        }
    }

    fn claim_idle(&self, cpu: u32, last: Option<u32>) -> Option<u32> {
        let pool = self.cpus.get(cpu as usize)?.pool;
        // Members are in the order of their numbers.
        self.shown(pool).claim_idle(|cpu| last.is_none_or(|last| cpu > last), |_| true)
    }

    fn offers_to_all(&self, cpu: u32) -> bool {
        self.cpus.get(cpu as usize).is_some_and(|cpu| self.pools[cpu.pool].is_divided())
    }

    fn relocate<'a>(
        &'a self,
        cpu: u32,
        queue: Self::Locked<'a>,
        place: &Place,
    ) -> Option<(u32, Self::Locked<'a>)> {
        self.find_home((cpu, queue), place)
    }
}

impl<B: Backend, F: Format> System<B, F> {
    /// A vCPU's mailbox has got its first message since it was last looked at.
    pub(crate) fn wake_vcpu(&self, live: &Live<B, F>, index: usize) {
        if let Some(task) = live.tasks.get(index) {
            self.wake(&task.place);
        }
    }

    /// There is something to do at `place`: it runs, if it was blocked; if it runs, it looks at its mail.
    pub(crate) fn wake(&self, place: &Place) {
        smp::wake(self, place);
    }

    /// Puts a guest's vCPUs, and its chores, into queues: one CPU after the other, with the chores beside the boot vCPU.
    pub(crate) fn enrol_guest(&self, entry: &Arc<Entry<B, F>>) {
        let live = entry.guest.lock().live.clone();
        self.enrol_chore(entry, false);
        if let Some(live) = live {
            self.enrol_vcpus(&live);
        }
    }

    /// Puts the chores of a guest that was gone, or has just come, into a queue, beside where its boot vCPU will be.
    pub(crate) fn enrol_chores(&self, entry: &Arc<Entry<B, F>>) {
        self.enrol_chore(entry, true);
    }

    fn enrol_chore(&self, entry: &Arc<Entry<B, F>>, ready: bool) {
        let home = entry.share.homes.first().copied().unwrap_or(0);
        self.enrol(&Work::Chore(entry.clone()), home, ready);
    }

    /// Puts a guest's vCPUs into queues, ready to be looked at.
    pub(crate) fn enrol_vcpus(&self, live: &Arc<Live<B, F>>) {
        for (index, &home) in (0..live.tasks.len()).zip(&live.entry.share.homes) {
            self.enrol(&Work::Vcpu(live.clone(), index), home, true);
        }
    }

    fn enrol(&self, work: &Work<B, F>, home: u32, ready: bool) {
        let cpu = &self.cpus[home as usize];
        let now = cpu::tsc();
        let mut queue = cpu.lock();
        let room = queue.add(work.clone(), now);
        assert!(room, "the queues have room for every vCPU and chore that there is");
        if ready {
            let _ = queue.wake(work.place());
        }
        drop(queue);
        self.kick(cpu.index, pending::RESCHEDULE);
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
    /// the one that has just taken it over.
    pub(crate) fn withdraw(&self, place: &Place) -> bool {
        smp::withdraw(self, place).is_some()
    }

    /// Has the CPU that still holds a vCPU's registers look whether its guest has ended.
    pub(crate) fn unload_from(&self, index: u32) {
        self.kick(index, pending::RESCHEDULE);
    }
}
