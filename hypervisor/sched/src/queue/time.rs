//! What time does to a queue: who runs is charged, periods and windows end, spent groups are parked.

use super::{CpuQueue, State};
use crate::GroupId;
use crate::cap::NOBODY;
use crate::contention::Contention;
use crate::pool::Join;

impl CpuQueue {
    /// Looks at the clock on behalf of another CPU: the current entity is charged up to now, so that whoever is compared
    /// with it is compared with what it has used. The caller's own charge takes that off.
    pub(super) fn told(&mut self, now: u64) -> u64 {
        self.now = self.now.max(now);
        let now = self.now;
        if self.current.who != NOBODY && !self.current.rests {
            let ran = now.saturating_sub(self.current.since);
            self.current.prepaid = self.current.prepaid.saturating_add(ran);
            self.charge_current(ran, now);
        }
        now
    }

    /// The current entity ran for `ran` ticks that ended now, of those since it was charged last.
    pub(super) fn charge_current(&mut self, ran: u64, now: u64) {
        let moment = self.pool.contention().at(now);
        let contended = Contention::between(self.current.contention, moment).min(ran);
        self.current.since = self.current.since.max(now);
        self.current.contention = moment;
        if ran == 0 {
            return;
        }
        let who = self.current.who as usize;
        let join = Join { pool: &self.pool, cpu: self.cpu };
        self.policies.charge(who, ran, contended, join, now);
        self.groups.charge(self.entities[who].group, ran, true, now);
        self.current.used = self.current.used.saturating_add(ran);
    }

    /// What is due by now: periods, and the windows of caps.
    pub(super) fn advance(&mut self, now: u64) {
        let join = Join { pool: &self.pool, cpu: self.cpu };
        self.policies.advance(join, now);
        while let Some(group) = self.groups.due(now) {
            let who = self.groups.parked(group);
            let Some(entity) = self.entities.get_mut(who as usize) else {
                self.groups.set_parked(group, NOBODY);
                continue;
            };
            entity.state = State::Ready;
            let next = entity.next;
            self.groups.set_parked(group, next);
            self.policies.enqueue(who as usize, now, 0, join);
        }
    }

    /// Takes a queued entity whose group is spent out of the order.
    pub(super) fn park(&mut self, who: usize, group: GroupId, until: u64) {
        self.policies.dequeue(who);
        self.entities[who].state = State::Parked;
        self.entities[who].next = self.groups.park(group, who as u32, until);
        if self.current.who == who as u32 {
            self.stop();
        }
    }

    /// Takes an entity out of its group's list of the parked.
    pub(super) fn unlink(&mut self, who: u32) {
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
}
