//! The run queue of one CPU: the policy's queue, what each of its entities is, and when the blocked ones wake by themselves.

use alloc::sync::Arc;
use alloc::vec::Vec;

use caisson_accounts::Activity;
use caisson_hwvirt::Backend;
use caisson_machine::cpu;
use caisson_sched::{
    CpuQueue, Decision, EntityId, GroupId, IndexHeap, Key, NEVER, Parameters, Parcel, PolicyKind, Reservation,
};
use caisson_smp::{Place, Woken};
use caisson_stage2::Format;

use super::contract::Pool;
use crate::domains::Entry;
use crate::guests::Live;
use crate::trace::{self, What};

/// What an entity of a queue stands for.
pub(crate) enum Work<B: Backend, F: Format> {
    /// A vCPU: its guest, and its number there.
    Vcpu(Arc<Live<B, F>>, usize),
    /// What is to be done for a guest beside running it.
    Chore(Arc<Entry<B, F>>),
}

impl<B: Backend, F: Format> Clone for Work<B, F> {
    fn clone(&self) -> Self {
        match self {
            Self::Vcpu(live, index) => Self::Vcpu(live.clone(), *index),
            Self::Chore(entry) => Self::Chore(entry.clone()),
        }
    }
}

impl<B: Backend, F: Format> Work<B, F> {
    /// Whose it is.
    pub(super) fn entry(&self) -> &Arc<Entry<B, F>> {
        match self {
            Self::Vcpu(live, _) => &live.entry,
            Self::Chore(entry) => entry,
        }
    }

    /// Where it is.
    pub(super) fn place(&self) -> &Place {
        match self {
            Self::Vcpu(live, index) => &live.tasks[*index].place,
            Self::Chore(entry) => &entry.chores,
        }
    }

    /// The group of all that is the guest's.
    fn group(&self) -> GroupId {
        GroupId(self.entry().index() as u32)
    }

    /// Whether another CPU can run it: what it had in a CPU has been taken off it.
    pub(super) fn can_move(&self) -> bool {
        match self {
            Self::Vcpu(live, index) => live.tasks[*index].place.holder().is_none(),
            Self::Chore(_) => true,
        }
    }

    /// It waits for a CPU from now on.
    fn woken(&self, now: u64) {
        if let Self::Vcpu(live, index) = self {
            live.tasks[*index].account.change(now, Activity::Ready);
            trace::note(live.vcpu_id(*index), What::Wake);
        }
    }
}

/// An entity, beside what the policy knows of it.
struct Slot<B: Backend, F: Format> {
    id: EntityId,
    work: Work<B, F>,
}

/// What a CPU does next.
pub(super) struct Turn<B: Backend, F: Format> {
    pub(super) work: Work<B, F>,
    /// The TSC at which the queue wants to be asked again.
    pub(super) until: u64,
}

/// An entity on its way from one queue to another.
pub(super) struct Stolen<B: Backend, F: Format> {
    pub(super) work: Work<B, F>,
    parcel: Parcel,
}

/// The run queue of one CPU.
pub(crate) struct Queue<B: Backend, F: Format> {
    cpu: u32,
    policy: CpuQueue,
    slots: Vec<Option<Slot<B, F>>>,
    /// The blocked entities that wake by themselves, by the TSC at which they do.
    timers: IndexHeap<u64>,
    /// Up to when the current one has been charged.
    since: u64,
}

impl<B: Backend, F: Format> Queue<B, F> {
    /// The queue of `cpu`, with room for nobody.
    pub(super) fn new(pool: &Pool, cpu: u32) -> Self {
        Self {
            cpu,
            policy: CpuQueue::new(pool.shared.clone(), cpu, pool.policy(), &pool.settings, 0, 0),
            slots: Vec::new(),
            timers: IndexHeap::new(0),
            since: 0,
        }
    }

    /// Makes room for so many entities of the guests at places below `guests`.
    pub(super) fn grow(&mut self, entities: usize, guests: usize) {
        self.policy.grow(entities, guests);
        self.slots.reserve_exact(entities.saturating_sub(self.slots.len()));
        self.slots.resize_with(entities.max(self.slots.len()), || None);
        self.timers.grow(entities);
    }

    /// A guest's entities may use what its share says, from now on.
    pub(super) fn welcome(&mut self, entry: &Entry<B, F>, now: u64) {
        // There is room for its group.
        let _ = self.policy.set_cap(GroupId(entry.index() as u32), entry.share.cap.clone(), now);
    }

    /// Takes an entity in, blocked. `false` where there is no room, which is a bug of Caisson's.
    pub(super) fn add(&mut self, work: Work<B, F>, now: u64) -> bool {
        let share = &work.entry().share;
        let parameters = match work {
            Work::Vcpu(..) => share.vcpu,
            Work::Chore(_) => share.chores,
        };
        let group = work.group();
        // A policy with reservations may have come into force while it was gone, and others may have come.
        let without = || Parameters { reservation: Reservation::NONE, ..parameters };
        let added = self.policy.add(group, parameters, now);
        match added.or_else(|_| self.policy.add(group, without(), now)) {
            Ok(id) => {
                self.settle(id, work);
                true
            }
            Err(_) => false,
        }
    }

    fn settle(&mut self, id: EntityId, work: Work<B, F>) {
        work.place().set(self.cpu, id.index() as u32);
        if let Some(slot) = self.slots.get_mut(id.index()) {
            *slot = Some(Slot { id, work });
        }
    }

    fn id(&self, place: &Place) -> Option<EntityId> {
        self.slots.get(place.entity()? as usize)?.as_ref().map(|slot| slot.id)
    }

    /// Charges what runs for what it has used.
    pub(super) fn charge(&mut self, now: u64) {
        if let Some(id) = self.policy.current() {
            self.policy.charge(id, now.saturating_sub(self.since), now);
        }
        self.since = now;
    }

    /// What runs would only wait for others, who go first.
    pub(super) fn give_way(&mut self, now: u64) {
        self.charge(now);
        if let Some(id) = self.policy.current() {
            self.policy.give_way(id);
        }
    }

    /// What runs waits, and may do so in place, where nobody else could run meanwhile: when it is to be looked at again, beside its own
    /// time.
    pub(super) fn rest(&mut self, now: u64) -> Option<u64> {
        if !self.policy.is_alone() {
            return None;
        }
        self.charge(now);
        self.policy.rest().then(|| self.next_timer())
    }

    /// What has rested goes on. `false`: it is to be blocked.
    pub(super) fn resume(&mut self, now: u64) -> bool {
        self.since = now;
        self.policy.resume(now)
    }

    /// Brings everything up to now. Whether a turn has ended, so that others' queues are looked at before the next one.
    pub(super) fn settle_up(&mut self, now: u64) -> bool {
        self.charge(now);
        while let Some((at, index)) = self.timers.first()
            && at <= now
        {
            self.timers.remove(index);
            if let Some(slot) = self.slots.get(index).and_then(Option::as_ref) {
                self.policy.wake(slot.id, now);
                slot.work.woken(now);
            }
        }
        self.policy.turn_is_over()
    }

    /// What the CPU runs from now on, once everything is settled up to `now`.
    pub(super) fn pick(&mut self, now: u64) -> Option<Turn<B, F>> {
        self.charge(now);
        let Decision { who, until } = self.policy.pick(now)?;
        self.since = now;
        let slot = self.slots.get(who.index())?.as_ref()?;
        Some(Turn { work: slot.work.clone(), until: until.min(self.next_timer()) })
    }

    /// When somebody wakes by itself, or may run again.
    pub(super) fn deadline(&self) -> u64 {
        self.next_timer().min(self.policy.next_deadline())
    }

    fn next_timer(&self) -> u64 {
        self.timers.first().map_or(NEVER, |(at, _)| at)
    }

    /// Whether somebody waits here for a CPU.
    pub(super) fn has_waiting(&self) -> bool {
        self.policy.waiting().is_some()
    }

    /// Where the entity stands that would run here next.
    pub(super) fn next_key(&self) -> Key {
        self.policy.next_key()
    }

    /// Takes out somebody who waits here since before `before`, and whom `allowed` lets go.
    pub(super) fn steal(
        &mut self,
        before: Key,
        allowed: impl Fn(&Work<B, F>) -> bool,
        now: u64,
    ) -> Option<Stolen<B, F>> {
        let slots = &self.slots;
        let may = |id: EntityId| {
            slots.get(id.index()).and_then(Option::as_ref).is_some_and(|slot| allowed(&slot.work))
        };
        let (id, parcel) = self.policy.steal(before, may, now)?;
        let slot = self.slots.get_mut(id.index())?.take()?;
        Some(Stolen { work: slot.work, parcel })
    }

    /// The guest whose entity is at `place`.
    pub(super) fn guest_of(&self, place: &Place) -> Option<&Entry<B, F>> {
        let id = self.id(place)?;
        self.slots.get(id.index())?.as_ref().map(|slot| &**slot.work.entry())
    }

    /// Whether what is at `place` is blocked, and has left every CPU.
    pub(super) fn sleeps_unloaded(&self, place: &Place) -> bool {
        let slot = self.id(place).and_then(|id| self.slots.get(id.index())?.as_ref());
        slot.is_some_and(|slot| self.policy.is_blocked(slot.id) && slot.work.can_move())
    }

    /// Whether what is at `place` waits for a CPU, and has left every one.
    pub(super) fn waits_unloaded(&self, place: &Place) -> bool {
        let slot = self.id(place).and_then(|id| self.slots.get(id.index())?.as_ref());
        slot.is_some_and(|slot| {
            !self.policy.is_blocked(slot.id) && self.policy.current() != Some(slot.id) && slot.work.can_move()
        })
    }

    /// Takes out what is at `place`, in whichever state, to put it into another queue.
    pub(super) fn give(&mut self, place: &Place, now: u64) -> Option<Stolen<B, F>> {
        let id = self.id(place)?;
        let parcel = self.policy.take(id, now)?;
        self.timers.remove(id.index());
        let slot = self.slots.get_mut(id.index())?.take()?;
        Some(Stolen { work: slot.work, parcel })
    }

    /// The policy from now on. `false` where the reservations do not fit.
    pub(super) fn switch_policy(&mut self, kind: PolicyKind, now: u64) -> bool {
        self.charge(now);
        self.policy.switch_policy(kind, now).is_ok()
    }

    /// Puts in what another queue has given up. `false` where there is no room, which is a bug of Caisson's.
    pub(super) fn put(&mut self, stolen: Stolen<B, F>, now: u64) -> bool {
        let Stolen { parcel, .. } = stolen;
        // A policy with reservations may have come into force while one that has one was on its way.
        let put = self.policy.put(parcel, now);
        match put.or_else(|_| self.policy.put(parcel.without_reservation(), now)) {
            Ok(id) => {
                self.settle(id, stolen.work);
                true
            }
            Err(_) => false,
        }
    }
}

impl<B: Backend, F: Format> caisson_smp::Queue for Queue<B, F> {
    type Work = Work<B, F>;

    fn wake(&mut self, place: &Place) -> Option<Woken> {
        let now = cpu::tsc();
        let id = self.id(place)?;
        if !self.policy.is_blocked(id) {
            return None;
        }
        self.timers.remove(id.index());
        self.policy.wake(id, now);
        if let Some(slot) = self.slots.get(id.index()).and_then(Option::as_ref) {
            slot.work.woken(now);
        }
        let look = match self.policy.current() {
            Some(current) => self.policy.should_preempt(current, id, now),
            None => true,
        };
        Some(Woken { look, waits: self.policy.waiting().is_some() })
    }

    fn is_current(&self, place: &Place) -> bool {
        self.id(place).is_some_and(|id| self.policy.current() == Some(id))
    }

    fn block(&mut self, deadline: u64) {
        self.charge(cpu::tsc());
        let Some(id) = self.policy.current() else { return };
        self.policy.block(id);
        if deadline != NEVER {
            self.timers.set(id.index(), deadline);
        }
    }

    fn remove(&mut self, place: &Place) -> Option<Work<B, F>> {
        let id = self.id(place)?;
        let slot = self.slots.get_mut(id.index())?.take()?;
        place.leave(self.cpu);
        self.timers.remove(id.index());
        self.policy.remove(id);
        Some(slot.work)
    }
}
