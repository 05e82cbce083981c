//! SEDF's reservations: who has a budget runs by the earliest deadline first.
//!
//! An entity that reserves a *slice* in every *period* gets that much of the CPU within every period in which it wants
//! it, whatever the others do: the *admission test* keeps the sum of all slices over their periods within what the CPU
//! has. *Extra time*, what the reservations leave, is shared out by weight among those that may take it: that part is
//! [`Bvt`](crate::bvt::Bvt)'s.
//!
//! Reservations are constant bandwidth servers in their hard form: a deadline of one period and a budget of one slice;
//! who has used the budget waits for the deadline, where both are renewed. An entity that wakes keeps its deadline and
//! budget where it cannot get more than its share by them, and begins a period otherwise.
//!
//! # Invariants
//!
//! - The shares of those that are in never exceed the limit together, and are an exact enough sum that the excess from
//!   rounding stays below one tick for as long as ticks can be counted.
//! - What an entity that leaves or shrinks had booked stays so until its deadline, for it may have used it already. One
//!   that comes meanwhile, and for which there is no room beside that, begins when all such deadlines have passed. So who
//!   leaves and comes again, as a guest does that reboots, is never turned down for what was its own.
//! - An entity is in the order of deadlines exactly while it is queued and its budget is positive.

use alloc::vec::Vec;

use crate::heap::{IndexHeap, grow};
use crate::{MAX_PERIOD, NEVER, ParameterError, Reservation};

/// Bits of the fraction of utilisations.
const FRACTION: u32 = 80;
/// The whole CPU.
pub(crate) const WHOLE: u128 = 1 << FRACTION;

/// What may be booked of a CPU of which `thousandths` can be reserved.
pub(crate) fn limit(thousandths: u32) -> u128 {
    if thousandths >= 1000 { WHOLE } else { WHOLE / 1000 * u128::from(thousandths) }
}

impl Reservation {
    /// Checks that the numbers make sense.
    pub(crate) fn check(&self) -> Result<(), ParameterError> {
        if !(1..=MAX_PERIOD).contains(&self.period) {
            return Err(ParameterError::Period);
        }
        if self.slice > self.period || (self.slice == 0 && !self.extra) {
            return Err(ParameterError::Slice);
        }
        Ok(())
    }

    /// Slice over period, of a valid reservation.
    pub(crate) fn share(&self) -> u128 {
        u128::from(self.slice) * WHOLE / u128::from(self.period.max(1))
    }
}

/// Where an entity belongs that can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It has budget, and is in the order of deadlines.
    Budget,
    /// It takes part in extra time.
    Extra,
    /// It waits for its deadline.
    Waits,
}

/// What of a reservation moves with its entity.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Due {
    deadline: u64,
    budget: i64,
}

#[derive(Clone, Copy)]
struct Entity {
    reservation: Reservation,
    /// Slice over period.
    share: u128,
    /// What of the CPU is kept for this place: at least `share`.
    booked: u128,
    /// When the current period ends.
    deadline: u64,
    /// Ticks left in it; not positive: wait for the deadline.
    budget: i64,
    queued: bool,
}

impl Entity {
    const ABSENT: Self =
        Self { reservation: Reservation::NONE, share: 0, booked: 0, deadline: 0, budget: 0, queued: false };

    /// When an entity without budget gets a new one: at its deadline, or later where it owes whole slices.
    fn release(&self) -> u64 {
        let owed = self.budget.min(0).unsigned_abs();
        let periods = owed.checked_div(self.reservation.slice).unwrap_or(0);
        self.deadline.saturating_add(periods.saturating_mul(self.reservation.period))
    }

    /// Begins the period that starts at `start`, with what is owed (less than a slice) taken off.
    fn renew(&mut self, start: u64) {
        let Reservation { period, slice, .. } = self.reservation;
        let owed = self.budget.min(0).unsigned_abs().checked_rem(slice).unwrap_or(0);
        self.budget = (slice - owed.min(slice)) as i64;
        self.deadline = start.saturating_add(period);
    }

    /// Whether the rest of the budget until the deadline is more than the entity's share of that time.
    fn exceeds_share(&self, now: u64) -> bool {
        let Reservation { period, slice, .. } = self.reservation;
        let left = self.deadline.saturating_sub(now);
        self.budget > 0
            && u128::from(self.budget.unsigned_abs()) * u128::from(period)
                > u128::from(left) * u128::from(slice)
    }

    fn turn(&self) -> Turn {
        match (self.budget > 0, self.reservation.extra) {
            (true, _) => Turn::Budget,
            (false, true) => Turn::Extra,
            (false, false) => Turn::Waits,
        }
    }
}

/// The reservations of one CPU. See the module.
pub(crate) struct Edf {
    /// What may be booked.
    limit: u128,
    /// The shares of those that are in.
    promised: u128,
    /// What is booked: the same, and what is kept for those that have left or shrunk.
    total: u128,
    entities: Vec<Entity>,
    /// Those that are queued and have budget, by deadline.
    deadlines: IndexHeap<(u64, u64)>,
    /// Those whose period must be watched: by when it ends.
    timers: IndexHeap<u64>,
    count: u64,
}

impl Edf {
    /// Reservations for up to `capacity` entities on a CPU of which `reservable` thousandths may be booked.
    pub(crate) fn new(capacity: usize, reservable: u32) -> Self {
        Self {
            limit: limit(reservable),
            promised: 0,
            total: 0,
            entities: alloc::vec![Entity::ABSENT; capacity],
            deadlines: IndexHeap::new(capacity),
            timers: IndexHeap::new(capacity),
            count: 0,
        }
    }

    /// Room for `capacity` entities, if that is more. Allocates.
    pub(crate) fn grow(&mut self, capacity: usize) {
        grow(&mut self.entities, capacity, Entity::ABSENT);
        self.deadlines.grow(capacity);
        self.timers.grow(capacity);
    }

    /// The reserved part of the CPU, in millionths, rounded up.
    pub(crate) fn booked_ppm(&self) -> u32 {
        (self.total * 1_000_000).div_ceil(WHOLE) as u32
    }

    /// What may be booked.
    pub(crate) fn limit(&self) -> u128 {
        self.limit
    }

    /// Forgets all bookings, those included that end later.
    pub(crate) fn clear(&mut self) {
        (self.promised, self.total) = (0, 0);
        for (who, entity) in self.entities.iter_mut().enumerate() {
            self.deadlines.remove(who);
            self.timers.remove(who);
            *entity = Entity::ABSENT;
        }
    }

    /// The admission test for a place: books what is asked for in place of what the place had booked. Takes O(n) where it
    /// has to wait for what others have booked.
    fn book(&mut self, who: usize, reservation: Reservation, now: u64) -> Result<(), ParameterError> {
        reservation.check()?;
        let entity = *self.entities.get(who).ok_or(ParameterError::Unknown)?;
        let share = reservation.share();
        let promised = self.promised - entity.share + share;
        if promised > self.limit && share > entity.share {
            return Err(ParameterError::Overbooked);
        }
        // What was booked may have been used ahead until the deadline: it cannot be given to another before.
        let booked = if now < entity.deadline { share.max(entity.booked) } else { share };
        let mut start = entity.deadline.max(now);
        let limit = self.limit;
        let fits = |total: u128| total - entity.booked + booked <= limit;
        if !fits(self.total) {
            let end = self.end_of_leftovers(who, now);
            if !fits(self.total) {
                start = start.max(end);
            }
        }
        self.promised = promised;
        let entity = &mut self.entities[who];
        self.total = self.total - entity.booked + booked;
        entity.booked = booked;
        entity.share = share;
        entity.reservation = reservation;
        // The new reservation begins where the old one's period ends.
        entity.budget = 0;
        entity.deadline = start;
        Ok(())
    }

    /// When all that is booked beyond the shares at other places than `who` will have ended. What has ended is given up.
    fn end_of_leftovers(&mut self, who: usize, now: u64) -> u64 {
        let mut end = now;
        for other in (0..self.entities.len()).filter(|&other| other != who) {
            let entity = &self.entities[other];
            if entity.booked == entity.share {
                continue;
            }
            end = end.max(entity.deadline);
            if entity.deadline <= now {
                self.unbook(other);
            }
        }
        end
    }

    /// Takes an entity in, not queued yet.
    pub(crate) fn add(
        &mut self,
        who: usize,
        reservation: Reservation,
        now: u64,
    ) -> Result<(), ParameterError> {
        self.book(who, reservation, now)?;
        self.timers.remove(who);
        self.entities[who].queued = false;
        Ok(())
    }

    /// Changes an entity's reservation. One that is queued must be queued anew.
    pub(crate) fn set(
        &mut self,
        who: usize,
        reservation: Reservation,
        now: u64,
    ) -> Result<(), ParameterError> {
        self.book(who, reservation, now)
    }

    /// Forgets an entity. Its booking ends with its period.
    pub(crate) fn remove(&mut self, who: usize) {
        self.dequeue(who);
        let Some(entity) = self.entities.get_mut(who) else { return };
        self.promised -= entity.share;
        entity.share = 0;
        entity.budget = 0;
        if entity.booked != 0 {
            self.timers.set(who, entity.deadline);
        }
    }

    /// What an entity takes along to another CPU.
    pub(crate) fn due(&self, who: usize) -> Due {
        self.entities
            .get(who)
            .map_or_else(Due::default, |entity| Due { deadline: entity.deadline, budget: entity.budget })
    }

    /// Gives an entity that was just added what it brings from another CPU. Where its place is still booked for another
    /// until later, it brings its debt only.
    pub(crate) fn bring(&mut self, who: usize, due: Due, now: u64) {
        let Some(entity) = self.entities.get_mut(who) else { return };
        if entity.reservation.slice == 0 {
            return;
        }
        if entity.deadline > now {
            entity.budget = due.budget.min(0);
        } else {
            entity.budget = due.budget.min(entity.reservation.slice as i64);
            entity.deadline = due.deadline;
        }
    }

    /// An entity can run from now on. Answers where it belongs; only the order of deadlines is kept here.
    pub(crate) fn enqueue(&mut self, who: usize, now: u64) -> Turn {
        let Some(entity) = self.entities.get_mut(who) else { return Turn::Waits };
        entity.queued = true;
        if now >= entity.release() {
            entity.budget = entity.budget.min(0);
            entity.renew(now);
            self.unbook(who);
        } else if entity.exceeds_share(now) {
            entity.budget = 0;
            entity.renew(now);
        }
        self.place(who)
    }

    /// An entity cannot run from now on.
    pub(crate) fn dequeue(&mut self, who: usize) {
        self.deadlines.remove(who);
        self.timers.remove(who);
        if let Some(entity) = self.entities.get_mut(who) {
            entity.queued = false;
        }
    }

    /// Whether an entity has a reservation.
    pub(crate) fn is_reserved(&self, who: usize) -> bool {
        self.entities.get(who).is_some_and(|entity| entity.reservation.slice != 0)
    }

    /// Whether an entity is in the order of deadlines.
    pub(crate) fn is_queued(&self, who: usize) -> bool {
        self.deadlines.contains(who)
    }

    /// An entity used the CPU on its budget. Answers where it belongs from now on, where that is not the order of
    /// deadlines any more.
    pub(crate) fn charge(&mut self, who: usize, ran: u64) -> Option<Turn> {
        let entity = self.entities.get_mut(who)?;
        entity.budget = entity.budget.saturating_sub(ran.min(i64::MAX as u64) as i64);
        (entity.queued && entity.budget <= 0).then(|| self.place(who))
    }

    /// One whose period has ended by now, and where it belongs from now on; `None` where nothing (more) is due.
    /// `Some((who, None))` is one that is not queued.
    pub(crate) fn advance(&mut self, now: u64) -> Option<(usize, Option<Turn>)> {
        let (at, who) = self.timers.first().filter(|&(at, _)| at <= now && at != NEVER)?;
        self.timers.remove(who);
        let entity = &mut self.entities[who];
        let queued = entity.queued;
        if queued {
            // Late by whole periods: those are lost, and the grid stays.
            let late = (now - at) / entity.reservation.period.max(1);
            entity.renew(at + late * entity.reservation.period);
        }
        self.unbook(who);
        Some((who, queued.then(|| self.place(who))))
    }

    /// Who has budget and the earliest deadline.
    pub(crate) fn best(&self) -> Option<usize> {
        self.deadlines.first().map(|(_, who)| who)
    }

    /// What is left of an entity's budget.
    pub(crate) fn budget(&self, who: usize) -> u64 {
        self.entities.get(who).map_or(0, |entity| entity.budget.max(0).unsigned_abs())
    }

    /// Whether `challenger`, which has budget, should take the CPU from `current`.
    pub(crate) fn preempts(&self, challenger: usize, current: usize) -> bool {
        let (Some(a), Some(b)) = (self.entities.get(challenger), self.entities.get(current)) else {
            return false;
        };
        a.budget > 0 && (b.budget <= 0 || a.deadline < b.deadline)
    }

    /// When [`Edf::advance`] has something to do next, [`NEVER`] where nothing is to come.
    pub(crate) fn next_event(&self) -> u64 {
        self.timers.first().map_or(NEVER, |(at, _)| at)
    }

    /// The period has ended: what is booked beyond the share is free.
    fn unbook(&mut self, who: usize) {
        let entity = &mut self.entities[who];
        self.total -= entity.booked - entity.share;
        entity.booked = entity.share;
    }

    /// Puts a queued entity where its budget belongs.
    fn place(&mut self, who: usize) -> Turn {
        let entity = &self.entities[who];
        let turn = entity.turn();
        if turn == Turn::Budget {
            self.count += 1;
            self.timers.remove(who);
            self.deadlines.set(who, (entity.deadline, self.count));
        } else {
            self.deadlines.remove(who);
            if entity.reservation.slice != 0 || entity.booked != entity.share {
                self.timers.set(who, entity.release());
            }
        }
        turn
    }

    #[cfg(test)]
    pub(crate) fn comparisons(&self) -> u64 {
        self.deadlines.comparisons.get() + self.timers.comparisons.get()
    }
}
