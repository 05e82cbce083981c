//! Entities that move between the queues of a pool.

use super::{Blocked, CpuQueue, EntityId, State};
use crate::heap::VISITED;
use crate::policy::{Belongings, Policies};
use crate::pool::Join;
use crate::{AddError, GroupId, Key};

/// An entity on its way from one queue of a pool to another, with all that it has and owes. It is in no queue: whoever
/// holds it puts it into one, once.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Parcel {
    group: GroupId,
    belongings: Belongings,
    blocked: Option<Blocked>,
}

impl Parcel {
    /// Its group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The same with a share by its weight in place of its reservation: for where there is no room for that.
    pub fn without_reservation(mut self) -> Self {
        self.belongings = self.belongings.without_reservation();
        self
    }

    /// Whether it waits for something: it arrives blocked.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }
}

impl CpuQueue {
    /// Takes an entity out, in whichever state, to put it into another queue. Charge it first where it ran.
    pub fn take(&mut self, who: EntityId, now: u64) -> Option<Parcel> {
        self.told(now);
        let parcel = self.pack(who)?;
        self.forget(who);
        self.show();
        Some(parcel)
    }

    /// Takes in an entity from another queue of the pool, in the state that it was taken in (one that was parked is
    /// ready). Its reservation must pass the admission test here.
    ///
    /// # Errors
    ///
    /// As [`CpuQueue::add`]; the parcel can be put elsewhere, or here [without it](Parcel::without_reservation).
    pub fn put(&mut self, parcel: Parcel, now: u64) -> Result<EntityId, AddError> {
        let now = self.told(now);
        let unpack = |policies: &mut Policies, who, join: Join<'_>| {
            policies.unpack(who, &parcel.belongings, join, now)
        };
        let who = self.admit(parcel.group, unpack)?;
        match parcel.blocked {
            Some(blocked) => self.entities[who.index()].blocked = blocked,
            None => {
                self.entities[who.index()].state = State::Ready;
                let join = Join { pool: &self.pool, cpu: self.cpu };
                self.policies.arrive(who.index(), now, join);
                self.show();
            }
        }
        Ok(who)
    }

    /// Takes out, for another CPU to run, the best of those that wait here before `before`, are `allowed`, may run by
    /// their cap, and have no reservation (those stay with the CPU that admitted them). An idle CPU gives [`Key::NEVER`]; one that has
    /// something to run, its [`CpuQueue::next_key`] less [`Pool::margin`](crate::Pool::margin). Looks at the first 32 in the order.
    pub fn steal(
        &mut self,
        before: Key,
        allowed: impl Fn(EntityId) -> bool,
        now: u64,
    ) -> Option<(EntityId, Parcel)> {
        let now = self.told(now);
        let current = self.current.who as usize;
        let (policies, groups, entities) = (&self.policies, &self.groups, &self.entities);
        let found = policies.shares.find(before, VISITED, |who| {
            who != current
                && !policies.reservations.is_reserved(who)
                && !groups.is_spent(entities[who].group, now)
                && allowed(EntityId(who as u32))
        })?;
        let who = EntityId(found as u32);
        self.take(who, now).map(|parcel| (who, parcel))
    }

    fn pack(&self, who: EntityId) -> Option<Parcel> {
        let entity = self.entities.get(who.index())?;
        let blocked = match entity.state {
            State::Free => return None,
            State::Blocked => Some(entity.blocked),
            State::Ready | State::Parked => None,
        };
        Some(Parcel { group: entity.group, belongings: self.policies.pack(who.index()), blocked })
    }
}
