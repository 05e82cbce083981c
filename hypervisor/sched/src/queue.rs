//! The run queue of one CPU: who is in it, in which state, and whose turn it is.

mod moving;
mod rest;
mod time;

use alloc::sync::Arc;
use alloc::vec::Vec;

pub use self::moving::Parcel;
use crate::cap::{CapAccount, Claim, GroupId, Groups, NOBODY};
use crate::contention::Contention;
use crate::heap::grow;
use crate::policy::Policies;
use crate::pool::{Join, Shown};
use crate::{AddError, Key, NEVER, ParameterError, Parameters, PolicyKind, Pool, Settings};

/// An entity of one run queue. It is given out again once its entity is removed or taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntityId(u32);

impl EntityId {
    /// A number below the queue's capacity, for tables beside the queue.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Who runs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The entity to run.
    pub who: EntityId,
    /// When to charge it and pick again, [`NEVER`] where nothing but an event asks for it. It is after `now`.
    pub until: u64,
}

/// When an entity blocked: the time, and the pool's contention clock.
#[derive(Clone, Copy, Debug)]
struct Blocked {
    at: u64,
    contention: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No entity has this place.
    Free,
    /// It cannot run.
    Blocked,
    /// The policy has it queued; it may be running.
    Ready,
    /// It could run, if its group were not spent.
    Parked,
}

#[derive(Clone)]
struct Entity {
    state: State,
    group: GroupId,
    /// Who follows in the list of the free places, or of the group's parked.
    next: u32,
    blocked: Blocked,
}

/// The entity whose turn it is.
#[derive(Clone, Copy)]
struct Current {
    /// [`NOBODY`], or who it is.
    who: u32,
    /// What it used of its turn, in ticks.
    used: u64,
    /// Up to when it is charged.
    since: u64,
    /// The pool's contention clock then.
    contention: u64,
    /// Ticks it was charged for ahead of the caller's charge, because another asked meanwhile.
    prepaid: u64,
    /// Until when it was told to run.
    until: u64,
    /// It has no turn to end, for nobody waited.
    endless: bool,
    /// It waits, and keeps the CPU meanwhile.
    rests: bool,
}

/// The run queue of one CPU of a pool. The caller has it behind the CPU's lock, and may call from any CPU.
///
/// The entity that runs stays queued; [`CpuQueue::charge`] moves it back.
pub struct CpuQueue {
    pool: Arc<Pool>,
    cpu: u32,
    policies: Policies,
    groups: Groups,
    entities: Vec<Entity>,
    /// The first free place.
    free: u32,
    current: Current,
    /// What the pool was shown last.
    shown: Shown,
    /// The latest time that was told.
    now: u64,
}

impl CpuQueue {
    /// The queue of `cpu`, one of the pool's members, for up to `capacity` entities in groups below `groups`. All memory
    /// is taken here and in [`CpuQueue::grow`]. All queues of a pool have the same settings.
    #[must_use]
    pub fn new(
        pool: Arc<Pool>,
        cpu: u32,
        kind: PolicyKind,
        settings: &Settings,
        capacity: usize,
        groups: usize,
    ) -> Self {
        let capacity = capacity.min(NOBODY as usize - 1);
        let place = |index: usize| Entity {
            state: State::Free,
            group: GroupId(0),
            next: if index + 1 < capacity { index as u32 + 1 } else { NOBODY },
            blocked: Blocked { at: 0, contention: 0 },
        };
        Self {
            pool,
            cpu,
            policies: Policies::new(kind, capacity, settings),
            groups: Groups::new(groups),
            entities: (0..capacity).map(place).collect(),
            free: if capacity == 0 { NOBODY } else { 0 },
            current: Current {
                who: NOBODY,
                used: 0,
                since: 0,
                contention: 0,
                prepaid: 0,
                until: NEVER,
                endless: false,
                rests: false,
            },
            shown: Shown::NOTHING,
            now: 0,
        }
    }

    /// Makes room for up to `capacity` entities in groups below `groups`, where it has less. All memory for that is taken
    /// here; nothing else changes.
    pub fn grow(&mut self, capacity: usize, groups: usize) {
        let capacity = capacity.min(NOBODY as usize - 1);
        self.policies.grow(capacity);
        self.groups.grow(groups);
        let have = self.entities.len();
        let free = Entity {
            state: State::Free,
            group: GroupId(0),
            next: NOBODY,
            blocked: Blocked { at: 0, contention: 0 },
        };
        grow(&mut self.entities, capacity, free);
        // Those that were free come after the new ones.
        for index in (have..capacity).rev() {
            self.entities[index].next = core::mem::replace(&mut self.free, index as u32);
        }
    }

    /// The pool that it belongs to.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> PolicyKind {
        self.policies.kind()
    }

    /// The reserved part of the CPU, in millionths, rounded up.
    #[must_use]
    pub fn booked_ppm(&self) -> u32 {
        self.policies.reservations.booked_ppm()
    }

    /// Adds an entity, blocked.
    ///
    /// # Errors
    ///
    /// The queue is full, the group is not below the count it was made for, or the policy turns the parameters down.
    pub fn add(&mut self, group: GroupId, parameters: Parameters, now: u64) -> Result<EntityId, AddError> {
        let now = self.told(now);
        self.admit(group, |policies, who, join| policies.add(who, parameters, join, now))
    }

    /// Removes an entity, in whichever state. For one that is parked this takes a step for each of its group.
    pub fn remove(&mut self, who: EntityId) {
        self.forget(who);
        self.show();
    }

    /// Changes an entity's parameters.
    ///
    /// # Errors
    ///
    /// No such entity, or the policy turns the parameters down; the old ones stay.
    pub fn set(&mut self, who: EntityId, parameters: Parameters, now: u64) -> Result<(), ParameterError> {
        let now = self.told(now);
        let state = self.state(who);
        if state == State::Free {
            return Err(ParameterError::Unknown);
        }
        let join = Join { pool: &self.pool, cpu: self.cpu };
        self.policies.set(who.index(), parameters, state == State::Ready, join, now)?;
        self.show();
        Ok(())
    }

    /// Sets or lifts the cap of a group. All queues of the pool must be given the same account.
    ///
    /// # Errors
    ///
    /// No such group.
    pub fn set_cap(
        &mut self,
        group: GroupId,
        account: Option<Arc<CapAccount>>,
        now: u64,
    ) -> Result<(), ParameterError> {
        let now = self.told(now);
        self.groups.set(group, account, now)
    }

    /// Changes the policy; entities, their states and their caps stay. Takes O(n log n).
    ///
    /// # Errors
    ///
    /// To [`PolicyKind::Sedf`]: the reservations of the entities do not fit this CPU. Nothing has changed.
    pub fn switch_policy(&mut self, kind: PolicyKind, now: u64) -> Result<(), ParameterError> {
        let now = self.told(now);
        let join = Join { pool: &self.pool, cpu: self.cpu };
        let members = self
            .entities
            .iter()
            .enumerate()
            .filter(|(_, entity)| entity.state != State::Free)
            .map(|(who, entity)| (who, entity.state == State::Ready));
        self.policies.switch(kind, members, join, now)?;
        self.show();
        Ok(())
    }

    /// A blocked entity can run. Ask [`CpuQueue::should_preempt`] next, or pick.
    pub fn wake(&mut self, who: EntityId, now: u64) {
        if self.state(who) != State::Blocked {
            return;
        }
        let now = self.told(now);
        self.entities[who.index()].state = State::Ready;
        self.enqueue(who.index(), now);
        self.show();
    }

    /// Whether an entity waits for something: [`CpuQueue::wake`] would have it run.
    #[must_use]
    pub fn is_blocked(&self, who: EntityId) -> bool {
        self.state(who) == State::Blocked
    }

    /// An entity waits for something.
    pub fn block(&mut self, who: EntityId) {
        match self.state(who) {
            State::Free | State::Blocked => return,
            State::Ready => self.policies.dequeue(who.index()),
            State::Parked => self.unlink(who.0),
        }
        let blocked = self.moment(self.now);
        let entity = &mut self.entities[who.index()];
        entity.state = State::Blocked;
        entity.blocked = blocked;
        if self.current.who == who.0 {
            // Who runs next is picked before the lock is given back.
            self.stop();
        } else {
            self.show();
        }
    }

    /// An entity's guest reboots: it gains nothing by it. The entity keeps its state.
    pub fn restart(&mut self, who: EntityId, now: u64) {
        if self.state(who) != State::Free {
            self.told(now);
            self.policies.restart(who.index());
        }
    }

    /// An entity, or the hypervisor for it, used the CPU for `ran` ticks that ended now.
    pub fn charge(&mut self, who: EntityId, ran: u64, now: u64) {
        self.now = self.now.max(now);
        if self.state(who) == State::Free {
            return;
        }
        if self.current.who == who.0 {
            if self.current.rests {
                return;
            }
            let due = ran.saturating_sub(self.current.prepaid);
            self.current.prepaid = self.current.prepaid.saturating_sub(ran);
            self.charge_current(due, now);
        } else {
            let now = self.told(now);
            let join = Join { pool: &self.pool, cpu: self.cpu };
            self.policies.charge(who.index(), ran, ran, join, now);
            self.groups.charge(self.entities[who.index()].group, ran, false, now);
        }
    }

    /// An entity ends its turn in favour of others, as one that spins on a lock should.
    pub fn give_way(&mut self, who: EntityId) {
        if self.state(who) == State::Ready {
            self.policies.give_way(who.index());
            if self.current.who == who.0 {
                self.stop();
            }
        }
    }

    /// Whether the CPU should pick again now that `woken` can run: it should take the CPU from `current` before its turn
    /// ends, or `current` was told to run until later than it may now.
    pub fn should_preempt(&mut self, current: EntityId, woken: EntityId, now: u64) -> bool {
        let now = self.told(now);
        if self.state(current) != State::Ready || self.next_deadline() < self.current.until {
            return true;
        }
        // Beside one without an end, even who may not run yet is looked at: only then is it known when it may.
        let spent = || self.groups.is_spent(self.entities[woken.index()].group, now);
        self.state(woken) == State::Ready
            && (self.current.endless || (!spent() && self.policies.preempts(woken.index(), current.index())))
    }

    /// Whose turn it is.
    #[must_use]
    pub fn current(&self) -> Option<EntityId> {
        (self.current.who != NOBODY).then_some(EntityId(self.current.who))
    }

    /// Who runs from now on: the current one while its turn lasts and nobody pre-empts it. `None`: nobody can run until
    /// [`CpuQueue::next_deadline`] or a wake; try to steal, then idle.
    ///
    /// It may be asked at any time by the CPU itself, once what runs is charged. Where a turn may have ended, look first
    /// whether to pull one from another queue.
    pub fn pick(&mut self, now: u64) -> Option<Decision> {
        let now = self.told(now);
        self.advance(now);
        let elsewhere = self.pool.elsewhere(self.cpu);
        self.policies.shares.set_heaviest_elsewhere(elsewhere.heaviest);
        if let Some(level) = elsewhere.level {
            self.policies.shares.align(level);
        }
        let contended = elsewhere.level.is_some();
        let claimed = loop {
            let Some(best) = self.policies.best() else {
                self.stop();
                self.show();
                return None;
            };
            let keeps = self.keeps(best, contended);
            let who = if keeps { self.current.who as usize } else { best };
            let group = self.entities[who].group;
            match self.groups.claim(group, who as u32 == self.current.who, now) {
                Claim::Granted(claimed) => {
                    if !keeps {
                        self.start(who, now);
                    }
                    break claimed;
                }
                Claim::Spent(until) => self.park(who, group, until),
            }
        };
        let who = self.current.who as usize;
        let left = self.policies.turn_left(who, self.current.used, contended);
        self.current.endless = left == NEVER;
        self.show();
        let until = now
            .saturating_add(left.max(1))
            .min(now.saturating_add(claimed))
            .min(self.next_deadline())
            .max(now.saturating_add(1));
        self.current.until = until;
        Some(Decision { who: EntityId(who as u32), until })
    }

    /// Whether the turn of the current entity is over, or there is none: when to look whether to pull.
    #[must_use]
    pub fn turn_is_over(&self) -> bool {
        let who = self.current.who as usize;
        self.current.who == NOBODY
            || self.entities[who].state != State::Ready
            || self.policies.turn_left(who, self.current.used, true) == 0
    }

    /// When a parked or waiting entity may run again, [`NEVER`] where none will by time alone.
    #[must_use]
    pub fn next_deadline(&self) -> u64 {
        self.policies.next_event().min(self.groups.next_event())
    }

    /// The best entity that is queued and not current, and may be stolen. It is what the pool is shown.
    #[must_use]
    pub fn waiting(&self) -> Option<Key> {
        self.policies.shares.best_but(self.current.who as usize).map(|(key, _)| key)
    }

    /// Where the entity stands that this CPU would run next if its turn ended now: what one must be behind that is pulled.
    /// [`Key::NEVER`] where there is none, [`Key::FIRST`] where a reservation needs the CPU first.
    #[must_use]
    pub fn next_key(&self) -> Key {
        if self.policies.reservations.best().is_some() {
            return Key::FIRST;
        }
        self.policies.shares.best_but(NOBODY as usize).map_or(Key::NEVER, |(key, _)| key)
    }

    /// Whether the turn of the current entity goes on, though `best` is the best.
    fn keeps(&self, best: usize, contended: bool) -> bool {
        let current = self.current.who as usize;
        self.current.who != NOBODY
            && self.entities[current].state == State::Ready
            && self.policies.turn_left(current, self.current.used, contended) != 0
            && (best == current || !self.policies.preempts(best, current))
    }

    /// The turn of `who` begins. Where it is the one that ran, it goes on being charged from where it was.
    fn start(&mut self, who: usize, now: u64) {
        self.current.used = 0;
        if self.current.who == who as u32 {
            return;
        }
        let contention = self.pool.contention().at(now);
        self.current = Current {
            who: who as u32,
            used: 0,
            since: now,
            contention,
            prepaid: 0,
            until: NEVER,
            endless: false,
            rests: false,
        };
    }

    /// The current entity runs no longer.
    fn stop(&mut self) {
        self.groups.release();
        self.current.who = NOBODY;
        self.current.endless = false;
        self.current.rests = false;
    }

    fn moment(&self, now: u64) -> Blocked {
        Blocked { at: now, contention: self.pool.contention().at(now) }
    }

    /// Queues one that was blocked.
    fn enqueue(&mut self, who: usize, now: u64) {
        let blocked = self.entities[who].blocked;
        let contended = Contention::between(blocked.contention, self.pool.contention().at(now));
        let idle = now.saturating_sub(blocked.at).saturating_sub(contended);
        let join = Join { pool: &self.pool, cpu: self.cpu };
        self.policies.enqueue(who, now, idle, join);
    }

    /// Gives a new entity a place, blocked, if `admit` lets the policies have it.
    fn admit(
        &mut self,
        group: GroupId,
        admit: impl FnOnce(&mut Policies, usize, Join<'_>) -> Result<(), ParameterError>,
    ) -> Result<EntityId, AddError> {
        if !self.groups.contains(group) {
            return Err(ParameterError::Unknown.into());
        }
        let who = self.free;
        let entity = self.entities.get(who as usize).ok_or(AddError::Full)?;
        let next = entity.next;
        admit(&mut self.policies, who as usize, Join { pool: &self.pool, cpu: self.cpu })?;
        self.free = next;
        let blocked = self.moment(self.now);
        self.entities[who as usize] = Entity { state: State::Blocked, group, next: NOBODY, blocked };
        self.show();
        Ok(EntityId(who))
    }

    /// Takes an entity out of everything.
    fn forget(&mut self, who: EntityId) {
        match self.state(who) {
            State::Free => return,
            State::Parked => self.unlink(who.0),
            State::Blocked | State::Ready => {}
        }
        self.policies.remove(who.index());
        if self.current.who == who.0 {
            self.stop();
        }
        let entity = &mut self.entities[who.index()];
        entity.state = State::Free;
        entity.next = self.free;
        self.free = who.0;
    }

    fn state(&self, who: EntityId) -> State {
        self.entities.get(who.index()).map_or(State::Free, |entity| entity.state)
    }

    /// Shows the pool where this queue is.
    fn show(&mut self) {
        let shares = &self.policies.shares;
        let shown = Shown {
            waiting: self.waiting().unwrap_or(Key::NEVER),
            level: shares.level(),
            heaviest: shares.heaviest_here(),
            busy: shares.len() != usize::from(self.current.rests),
            lone: self.current.endless && !self.current.rests,
        };
        self.pool.show(self.cpu, self.shown, shown, self.now);
        self.pool.set_margin(shares.margin());
        self.shown = shown;
    }

    #[cfg(test)]
    pub(crate) fn comparisons(&self) -> u64 {
        self.policies.shares.comparisons()
            + self.policies.reservations.comparisons()
            + self.groups.comparisons()
    }
}
