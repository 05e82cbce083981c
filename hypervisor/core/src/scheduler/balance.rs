//! Taking work over from another CPU's queue: by a CPU that has nothing to do, and by one whose turn is over and that would
//! go on with somebody who has had more than one that waits elsewhere.

use caisson_hwvirt::Backend;
use caisson_machine::cpu;
use caisson_machine::percpu::pending;
use caisson_sched::{Key, should_pull};
use caisson_smp::{self as smp, Cpus as _, Place};
use caisson_stage2::Format;

use super::queue::{Queue, Stolen};
use super::wake::Locked;
use super::{Cpu, System, Work};

impl<B: Backend, F: Format> System<B, F> {
    /// Takes over the one that is furthest behind of all that wait at other CPUs, where it is further behind than `own`,
    /// which this CPU would run next. Who would rather run elsewhere has to be twice as far behind. Whether there was one.
    pub(super) fn pull(&self, this: &Cpu<B, F>, own: Key) -> bool {
        let shown = self.shown(this.pool);
        let margin = shown.margin();
        let mut last = None;
        while let Some(victim) = shown.behind(this.index, last)
            && should_pull(own, victim.0, margin)
        {
            last = Some(victim);
            let Some(other) = self.cpus.get(victim.1 as usize) else { continue };
            if self.steal_from(this, other, own.earlier(margin), true)
                || self.steal_from(this, other, own.earlier(margin.saturating_mul(2)), false)
            {
                return true;
            }
        }
        false
    }

    fn steal_from(&self, this: &Cpu<B, F>, other: &Cpu<B, F>, before: Key, at_home: bool) -> bool {
        let pool = &self.pools[this.pool];
        let allowed = |work: &Work<B, F>| {
            let share = &work.entry().share;
            // The other queue may not have taken over yet what the pool's policy is now.
            let stays = matches!(work, Work::Vcpu(..)) && share.is_reserved(pool);
            share.allows(this.index) && (!at_home || share.prefers(this.index)) && !stays && work.can_move()
        };
        smp::take_over(
            self,
            other.index,
            this.index,
            |queue| queue.steal(before, allowed, cpu::tsc()),
            |stolen| stolen.work.place().leave(this.index),
            Self::put,
        )
    }

    /// A vCPU that is about to wake is put where it can run at once, or rather would: on an idle CPU. The queue it is in then.
    pub(super) fn find_home<'a>(&'a self, from: Locked<'a, B, F>, place: &Place) -> Option<Locked<'a, B, F>> {
        let (index, mut queue) = from;
        let home = self.cpus.get(index as usize)?;
        let Some(to) = self.better_home(home, &queue, place) else { return Some((index, queue)) };
        let Some(beacon) = self.shown(to.pool).beacon(to.index) else { return Some((index, queue)) };
        let Some(stolen) = queue.give(place, cpu::tsc()) else { return Some((index, queue)) };
        // From here to `put` it is in no queue: others that wake it leave that to us.
        place.leave(to.index);
        drop(queue);
        // Where it was claimed by another meanwhile, it hands on what it does not run.
        smp::put_to_wake(self, to.index, beacon, place, |queue| Self::put(queue, stolen))
    }

    /// The idle CPU on which a blocked vCPU should wake, if its home is busy or liked less.
    fn better_home(&self, home: &Cpu<B, F>, queue: &Queue<B, F>, place: &Place) -> Option<&Cpu<B, F>> {
        if !queue.sleeps_unloaded(place) {
            return None;
        }
        let shown = self.shown(home.pool);
        let share = &queue.guest_of(place)?.share;
        let home_idles = shown.is_idle(home.index);
        if (home_idles && share.prefers(home.index)) || share.is_reserved(&self.pools[home.pool]) {
            return None;
        }
        let to = shown.find_idle(|cpu| share.allows(cpu), |cpu| share.prefers(cpu))?;
        let better = to != home.index && (share.prefers(to) || !home_idles);
        better.then(|| self.cpus.get(to as usize)).flatten()
    }

    /// The vCPU that runs here has nothing to do before the one at `place` has done something: takes that one over, where it
    /// waits for another CPU. What runs here is to give way then.
    pub(super) fn fetch(&self, place: &Place) {
        let this = self.this();
        let Some((home, mut queue)) = place.find(|cpu| self.lock(cpu)) else { return };
        let Some(home) = self.cpus.get(home as usize) else { return };
        let Some(share) = queue.guest_of(place).map(|entry| &entry.share) else { return };
        let there = home.index == this.index || home.pool != this.pool;
        if there || !share.allows(this.index) || share.is_reserved(&self.pools[this.pool]) {
            return;
        }
        if !queue.waits_unloaded(place) {
            return;
        }
        let Some(stolen) = queue.give(place, cpu::tsc()) else { return };
        place.leave(this.index);
        drop(queue);
        Self::put(&mut this.lock(), stolen);
    }

    fn put(queue: &mut Queue<B, F>, stolen: Stolen<B, F>) {
        let room = queue.put(stolen, cpu::tsc());
        assert!(room, "the queues have room for every vCPU and chore that there is");
    }

    /// Somebody waits here after a turn: an idle CPU takes them over, or one that runs a single vCPU without an end shares.
    pub(super) fn share(&self, this: &Cpu<B, F>, turn_ended: bool) {
        smp::offer(self, this.index);
        let apart = self.pools[this.pool].settings.allowance;
        if turn_ended && let Some(lone) = self.shown(this.pool).tell_lone(this.index, apart, cpu::tsc()) {
            self.kick(lone, pending::RESCHEDULE);
        }
    }
}
