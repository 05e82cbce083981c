//! Taking work over from another CPU's queue: by a CPU that has nothing to do, and by one whose turn is over and that would
//! go on with somebody who has had more than one that waits elsewhere.

use caisson_hwvirt::Backend;
use caisson_machine::cpu;
use caisson_machine::percpu::pending;
use caisson_sched::{Key, should_pull};
use caisson_stage2::Format;

use super::queue::{Place, Queue, Stolen};
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
        let allowed = |work: &Work<B, F>| {
            let share = &self.shares[work.guest()];
            share.allows(this.index) && (!at_home || share.prefers(this.index)) && work.can_move()
        };
        let mut queue = other.lock();
        let Some(stolen) = queue.steal(before, allowed, cpu::tsc()) else { return false };
        // From here to `put` it is in no queue: who wakes it finds that it can run anyway.
        self.place_of(&stolen.work, |place| place.leave(this.index));
        drop(queue);
        self.take_over(this, stolen);
        true
    }

    /// A vCPU that is about to wake is put where it can run at once, or rather would: on an idle CPU. The queue it is in then.
    pub(super) fn relocate<'a>(&'a self, from: Locked<'a, B, F>, place: &Place) -> Option<Locked<'a, B, F>> {
        let (home, mut queue) = from;
        let Some(to) = self.better_home(home, &queue, place) else { return Some((home, queue)) };
        let Some(stolen) = queue.give(place, cpu::tsc()) else { return Some((home, queue)) };
        // From here to `put` it is in no queue: others that wake it leave that to us.
        place.leave(to.index);
        drop(queue);
        self.shown(to.pool).set_idle(to.index, false);
        self.take_over(to, stolen);
        self.queue_of(place)
    }

    /// The idle CPU on which a blocked vCPU should wake, if its home is busy or liked less.
    fn better_home(&self, home: &Cpu<B, F>, queue: &Queue<B, F>, place: &Place) -> Option<&Cpu<B, F>> {
        if !queue.sleeps_unloaded(place) {
            return None;
        }
        let shown = self.shown(home.pool);
        let share = &self.shares[queue.guest_of(place)?];
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
        let Some((home, mut queue)) = self.queue_of(place) else { return };
        let Some(share) = queue.guest_of(place).map(|guest| &self.shares[guest]) else { return };
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
        self.take_over(this, stolen);
    }

    fn take_over(&self, this: &Cpu<B, F>, stolen: Stolen<B, F>) {
        let work = stolen.work.clone();
        let room = self.place_of(&work, |place| this.lock().put(stolen, place, cpu::tsc()));
        assert!(room, "the queues have room for every vCPU and chore of the configuration");
    }

    fn place_of<T>(&self, work: &Work<B, F>, use_it: impl FnOnce(&Place) -> T) -> T {
        match work {
            Work::Vcpu(live, index) => use_it(&live.tasks[*index].place),
            Work::Chore(guest) => use_it(&self.chores[*guest]),
        }
    }

    /// Somebody waits here after a turn: an idle CPU takes them over, or one that runs a single vCPU without an end shares.
    pub(super) fn share(&self, this: &Cpu<B, F>, turn_ended: bool) {
        self.offer(this.pool);
        if turn_ended
            && let Some(lone) = self.shown(this.pool).find_lone(this.index)
            && let Some(cpu) = self.cpus.get(lone as usize)
        {
            self.kick(cpu, pending::RESCHEDULE);
        }
    }
}
