//! Waiting in place: an entity that is alone on its CPU waits without giving it up.
//!
//! Blocking and waking cost the queue's order twice, and the pool's attention. Where there is nobody to whom the order would matter, the
//! entity stays the current one, and uses nothing meanwhile. To the pool its CPU is one that nobody is queued on. Whatever asks for
//! the CPU interrupts it as it would one that runs: it goes on to be blocked then.

use super::{CpuQueue, EntityId, State};
use crate::cap::NOBODY;
use crate::pool::Shown;
use crate::{NEVER, PolicyKind};

impl CpuQueue {
    /// The current entity waits for something, and has been charged up to now. `true` where it may do so in place: until
    /// [`CpuQueue::resume`] it is not charged. `false`: block it.
    pub fn rest(&mut self) -> bool {
        if !self.is_alone() {
            return false;
        }
        self.current.rests = true;
        self.show_rest();
        true
    }

    /// What rested can go on. `true` where it does so as if it had run all the time; `false` where others have come, or had to wait
    /// somewhere in the pool: block it, wake it, and pick.
    pub fn resume(&mut self, now: u64) -> bool {
        self.now = self.now.max(now);
        if self.current.who == NOBODY || !core::mem::take(&mut self.current.rests) {
            return false;
        }
        let contention = self.pool.contention().at(self.now);
        let undisturbed = contention == self.current.contention;
        self.current.since = self.now;
        self.current.contention = contention;
        self.show_rest();
        undisturbed && self.is_alone()
    }

    /// Shows the pool whether the current entity waits. Nothing else has changed.
    fn show_rest(&mut self) {
        let rests = self.current.rests;
        let shown = Shown { busy: !rests, lone: !rests, ..self.shown };
        self.pool.show(self.cpu, self.shown, shown, self.now);
        self.shown = shown;
    }

    /// Whether nobody else, here or at another CPU, and no time has a say in whether the current entity runs on.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        let who = self.current.who;
        self.current.endless
            && self.state(EntityId(who)) == State::Ready
            && self.policies.kind() == PolicyKind::Bvt
            && self.policies.shares.len() == 1
            && !self.groups.is_capped(self.entities[who as usize].group)
            && self.next_deadline() == NEVER
            && !self.pool.is_contended()
    }
}
