//! The run queue of one CPU: who is in it, in which state, and whose turn it is.

use alloc::vec::Vec;

use crate::cap::{Cap, GroupId, Groups, NOBODY};
use crate::{AddError, NEVER, ParameterError, Policy};

/// An entity of one run queue. It is given out again once its entity is removed.
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
}

/// The run queue of one CPU under one policy.
///
/// The entity that runs stays queued; [`RunQueue::charge`] moves it back.
pub struct RunQueue<P> {
    policy: P,
    groups: Groups,
    entities: Vec<Entity>,
    /// The first free place.
    free: u32,
    /// Whose turn it is.
    current: u32,
    /// What the current one used of its turn, in ticks.
    used: u64,
}

impl<P: Policy> RunQueue<P> {
    /// A queue of up to `capacity` entities in groups below `groups`. All memory is taken here; `policy` must be made
    /// for the same capacity.
    #[must_use]
    pub fn new(policy: P, capacity: usize, groups: usize) -> Self {
        let capacity = capacity.min(NOBODY as usize - 1);
        let place = |index: usize| Entity {
            state: State::Free,
            group: GroupId(0),
            next: if index + 1 < capacity { index as u32 + 1 } else { NOBODY },
        };
        Self {
            policy,
            groups: Groups::new(groups),
            entities: (0..capacity).map(place).collect(),
            free: if capacity == 0 { NOBODY } else { 0 },
            current: NOBODY,
            used: 0,
        }
    }

    /// The policy, to look at.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// Adds an entity, blocked.
    ///
    /// # Errors
    ///
    /// The queue is full, the group is not below the count it was made for, or the policy turns the parameters down.
    pub fn add(&mut self, group: GroupId, parameters: P::Parameters, now: u64) -> Result<EntityId, AddError> {
        if !self.groups.contains(group) {
            return Err(ParameterError::Unknown.into());
        }
        let who = self.free;
        let entity = self.entities.get_mut(who as usize).ok_or(AddError::Full)?;
        self.policy.add(who as usize, parameters, now)?;
        self.free = entity.next;
        *entity = Entity { state: State::Blocked, group, next: NOBODY };
        Ok(EntityId(who))
    }

    /// Removes an entity, in whichever state. For one that is parked this takes a step for each of its group.
    pub fn remove(&mut self, who: EntityId) {
        match self.state(who) {
            State::Free => return,
            State::Parked => self.unlink(who.0),
            State::Blocked | State::Ready => {}
        }
        self.policy.remove(who.index());
        if self.current == who.0 {
            self.current = NOBODY;
        }
        self.entities[who.index()] = Entity { state: State::Free, group: GroupId(0), next: self.free };
        self.free = who.0;
    }

    /// Changes an entity's parameters.
    ///
    /// # Errors
    ///
    /// No such entity, or the policy turns the parameters down; the old ones stay.
    pub fn set(&mut self, who: EntityId, parameters: P::Parameters, now: u64) -> Result<(), ParameterError> {
        match self.state(who) {
            State::Free => Err(ParameterError::Unknown),
            _ => self.policy.set(who.index(), parameters, now),
        }
    }

    /// Sets or lifts the cap of a group. Its first window begins now.
    ///
    /// # Errors
    ///
    /// No such group, or the cap makes no sense.
    pub fn set_cap(&mut self, group: GroupId, cap: Option<Cap>, now: u64) -> Result<(), ParameterError> {
        self.groups.set(group, cap, now)?;
        if self.groups.parked(group) != NOBODY {
            self.groups.postpone(group);
        }
        Ok(())
    }

    /// A blocked entity can run. Ask [`RunQueue::should_preempt`] next, or pick.
    pub fn wake(&mut self, who: EntityId, now: u64) {
        if self.state(who) == State::Blocked {
            self.entities[who.index()].state = State::Ready;
            self.policy.enqueue(who.index(), now);
        }
    }

    /// Whether an entity waits for something: [`RunQueue::wake`] would have it run.
    pub fn is_blocked(&self, who: EntityId) -> bool {
        self.state(who) == State::Blocked
    }

    /// An entity waits for something.
    pub fn block(&mut self, who: EntityId) {
        match self.state(who) {
            State::Free | State::Blocked => return,
            State::Ready => self.policy.dequeue(who.index()),
            State::Parked => self.unlink(who.0),
        }
        self.entities[who.index()].state = State::Blocked;
        if self.current == who.0 {
            self.current = NOBODY;
        }
    }

    /// An entity's guest reboots: it gains nothing by it. The entity keeps its state.
    pub fn restart(&mut self, who: EntityId, now: u64) {
        if self.state(who) != State::Free {
            self.policy.restart(who.index(), now);
        }
    }

    /// An entity, or the hypervisor for it, used the CPU for `ran` ticks that ended now.
    pub fn charge(&mut self, who: EntityId, ran: u64, now: u64) {
        if self.state(who) == State::Free {
            return;
        }
        self.policy.charge(who.index(), ran, now);
        self.groups.charge(self.entities[who.index()].group, ran, now);
        if self.current == who.0 {
            self.used = self.used.saturating_add(ran);
        }
    }

    /// An entity ends its turn in favour of others, as one that spins on a lock should.
    pub fn give_way(&mut self, who: EntityId) {
        if self.state(who) == State::Ready {
            self.policy.give_way(who.index());
            if self.current == who.0 {
                self.current = NOBODY;
            }
        }
    }

    /// Whether `woken` should take the CPU from `current` before its turn ends. Charge `current` first.
    pub fn should_preempt(&mut self, current: EntityId, woken: EntityId, now: u64) -> bool {
        self.state(woken) == State::Ready
            && !self.groups.is_spent(self.entities[woken.index()].group, now)
            && (self.state(current) != State::Ready || self.policy.preempts(woken.index(), current.index()))
    }

    /// Who runs from now on: the current one while its turn lasts and nobody pre-empts it. `None`: nobody can run until
    /// [`RunQueue::next_deadline`] or a wake.
    ///
    /// It may be asked at any time, once what runs is charged.
    pub fn pick(&mut self, now: u64) -> Option<Decision> {
        self.policy.advance(now);
        self.unpark(now);
        let best = loop {
            let Some(best) = self.policy.best() else {
                self.current = NOBODY;
                return None;
            };
            let group = self.entities[best].group;
            if !self.groups.is_spent(group, now) {
                break best;
            }
            self.park(best, group);
        };
        let who = self.keep_or(best, now);
        let left = self.policy.turn_left(who, self.used).max(1);
        let until = now
            .saturating_add(left)
            .min(self.groups.limit(self.entities[who].group, now))
            .min(self.next_deadline())
            .max(now.saturating_add(1));
        Some(Decision { who: EntityId(who as u32), until })
    }

    /// When a parked or waiting entity may run again, [`NEVER`] where none will by time alone.
    pub fn next_deadline(&self) -> u64 {
        self.policy.next_event().min(self.groups.next_event())
    }

    /// The current entity while its turn goes on, else `best`, whose turn begins.
    fn keep_or(&mut self, best: usize, now: u64) -> usize {
        let current = self.current as usize;
        if self.current != NOBODY
            && self.entities[current].state == State::Ready
            && self.policy.turn_left(current, self.used) != 0
            && (best == current || !self.policy.preempts(best, current))
            && !self.groups.is_spent(self.entities[current].group, now)
        {
            return current;
        }
        self.current = best as u32;
        self.used = 0;
        best
    }

    /// Takes a queued entity whose group is spent out of the order.
    fn park(&mut self, who: usize, group: GroupId) {
        self.policy.dequeue(who);
        self.entities[who].state = State::Parked;
        self.entities[who].next = self.groups.park(group, who as u32);
    }

    /// Queues the parked whose group may go on.
    fn unpark(&mut self, now: u64) {
        while let Some(group) = self.groups.due(now) {
            let who = self.groups.parked(group);
            if self.groups.is_spent(group, now) {
                self.groups.postpone(group);
                continue;
            }
            let Some(entity) = self.entities.get_mut(who as usize) else {
                self.groups.set_parked(group, NOBODY);
                continue;
            };
            entity.state = State::Ready;
            self.groups.set_parked(group, entity.next);
            self.policy.enqueue(who as usize, now);
        }
    }

    /// Takes an entity out of its group's list of the parked.
    fn unlink(&mut self, who: u32) {
        let (group, next) = {
            let entity = &self.entities[who as usize];
            (entity.group, entity.next)
        };
        let mut at = self.groups.parked(group);
        if at == who {
            self.groups.set_parked(group, next);
            return;
        }
        while let Some(entity) = self.entities.get_mut(at as usize) {
            if entity.next == who {
                entity.next = next;
                return;
            }
            at = entity.next;
        }
    }

    fn state(&self, who: EntityId) -> State {
        self.entities.get(who.index()).map_or(State::Free, |entity| entity.state)
    }

    #[cfg(test)]
    pub(crate) fn cap_comparisons(&self) -> u64 {
        self.groups.comparisons()
    }
}

const _: () = assert!(NEVER == u64::MAX);
