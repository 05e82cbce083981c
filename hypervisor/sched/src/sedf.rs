//! SEDF: reservations, served by the earliest deadline first.
//!
//! An entity that reserves a *slice* in every *period* gets that much of the CPU within every period in which it wants
//! it, whatever the others do: the *admission test* keeps the sum of all slices over their periods within what the CPU
//! has. *Extra time*, what the reservations leave, goes in equal shares to those that may take it.
//!
//! Reservations are constant bandwidth servers in their hard form: a deadline of one period and a budget of one slice;
//! who has used the budget waits for the deadline, where both are renewed. An entity that wakes keeps its deadline and
//! budget where it cannot get more than its share by them, and begins a period otherwise.
//!
//! # Invariants
//!
//! - What is booked never exceeds the limit, and is an exact enough sum that the excess from rounding stays below one
//!   tick for as long as ticks can be counted.
//! - What an entity that leaves or shrinks had booked stays so until its deadline, for it may have used it already.
//! - An entity is in the order of deadlines exactly while it is queued and its budget is positive.

use alloc::vec::Vec;

use crate::heap::IndexHeap;
use crate::{MAX_PERIOD, NEVER, ParameterError, Policy};

/// Bits of the fraction of utilisations.
const FRACTION: u32 = 80;
/// The whole CPU.
const WHOLE: u128 = 1 << FRACTION;

/// What a person sets for each vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SedfParameters {
    /// Ticks, 1 to [`MAX_PERIOD`].
    pub period: u64,
    /// Ticks of the CPU in every period, up to the period. 0 (no reservation) needs `extra`.
    pub slice: u64,
    /// Whether it takes part in the time that the reservations leave.
    pub extra: bool,
}

/// What is set for a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SedfSettings {
    /// How much of the CPU may be reserved, in thousandths, up to 1000. What is left covers the hypervisor's own work.
    pub reservable: u32,
    /// How long one runs in extra time while another waits for it, in ticks.
    pub quantum: u64,
}

#[derive(Clone, Copy)]
struct Entity {
    parameters: SedfParameters,
    /// Slice over period.
    share: u128,
    /// What of the CPU is kept for this place: at least `share`.
    booked: u128,
    /// When the current period ends.
    deadline: u64,
    /// Ticks left in it; not positive: wait for the deadline.
    budget: i64,
    /// Ticks of extra time it had, from the floor it joined at.
    extra_used: u128,
    queued: bool,
}

impl Entity {
    const ABSENT: Self = Self {
        parameters: SedfParameters { period: 1, slice: 0, extra: false },
        share: 0,
        booked: 0,
        deadline: 0,
        budget: 0,
        extra_used: 0,
        queued: false,
    };

    /// When an entity without budget gets a new one: at its deadline, or later where it owes whole slices.
    fn release(&self) -> u64 {
        let owed = self.budget.min(0).unsigned_abs();
        let periods = owed.checked_div(self.parameters.slice).unwrap_or(0);
        self.deadline.saturating_add(periods.saturating_mul(self.parameters.period))
    }

    /// Begins the period that starts at `start`, with what is owed (less than a slice) taken off.
    fn renew(&mut self, start: u64) {
        let SedfParameters { period, slice, .. } = self.parameters;
        let owed = self.budget.min(0).unsigned_abs().checked_rem(slice).unwrap_or(0);
        self.budget = (slice - owed.min(slice)) as i64;
        self.deadline = start.saturating_add(period);
    }

    /// Whether the rest of the budget until the deadline is more than the entity's share of that time.
    fn exceeds_share(&self, now: u64) -> bool {
        let SedfParameters { period, slice, .. } = self.parameters;
        let left = self.deadline.saturating_sub(now);
        self.budget > 0
            && u128::from(self.budget.unsigned_abs()) * u128::from(period)
                > u128::from(left) * u128::from(slice)
    }
}

/// The policy. See the module.
pub struct Sedf {
    /// What may be booked.
    limit: u128,
    /// What is.
    total: u128,
    quantum: u64,
    entities: Vec<Entity>,
    /// Those that are queued and have budget, by deadline.
    deadlines: IndexHeap<(u64, u64)>,
    /// Those that are queued without budget and take extra time, by how much they had.
    extra: IndexHeap<(u128, u64)>,
    /// Those whose period must be watched: by when it ends.
    timers: IndexHeap<u64>,
    /// The least extra time that anyone in `extra` had.
    extra_floor: u128,
    count: u64,
}

impl Sedf {
    /// A policy for up to `capacity` entities. All memory is taken here.
    #[must_use]
    pub fn new(capacity: usize, settings: SedfSettings) -> Self {
        Self {
            limit: WHOLE / 1000 * u128::from(settings.reservable.min(1000))
                + if settings.reservable >= 1000 { WHOLE % 1000 } else { 0 },
            total: 0,
            quantum: settings.quantum.max(1),
            entities: alloc::vec![Entity::ABSENT; capacity],
            deadlines: IndexHeap::new(capacity),
            extra: IndexHeap::new(capacity),
            timers: IndexHeap::new(capacity),
            extra_floor: 0,
            count: 0,
        }
    }

    /// What was set for an entity.
    #[cfg(test)]
    pub(crate) fn parameters(&self, who: usize) -> SedfParameters {
        self.entities[who].parameters
    }

    /// The reserved part of the CPU, in millionths.
    #[must_use]
    pub fn booked_ppm(&self) -> u32 {
        (self.total * 1_000_000).div_ceil(WHOLE) as u32
    }

    /// The admission test for a place: books what `parameters` ask for in place of what the place had booked.
    fn book(&mut self, who: usize, parameters: SedfParameters, now: u64) -> Result<(), ParameterError> {
        let SedfParameters { period, slice, extra } = parameters;
        if !(1..=MAX_PERIOD).contains(&period) {
            return Err(ParameterError::Period);
        }
        if slice > period || (slice == 0 && !extra) {
            return Err(ParameterError::Slice);
        }
        let entity = self.entities.get_mut(who).ok_or(ParameterError::Unknown)?;
        let share = u128::from(slice) * WHOLE / u128::from(period);
        // What was booked may have been used ahead until the deadline: it cannot be given to another before.
        let booked = if now < entity.deadline { share.max(entity.booked) } else { share };
        let total = self.total - entity.booked + booked;
        if total > self.limit && booked > entity.booked {
            return Err(ParameterError::Overbooked);
        }
        self.total = total;
        entity.booked = booked;
        entity.share = share;
        entity.parameters = parameters;
        // The new reservation begins where the old one's period ends.
        entity.budget = 0;
        entity.deadline = entity.deadline.max(now);
        Ok(())
    }

    /// The period has ended: what is booked beyond the share is free.
    fn unbook(&mut self, who: usize) {
        let entity = &mut self.entities[who];
        self.total -= entity.booked - entity.share;
        entity.booked = entity.share;
    }

    /// Puts a queued entity where its budget belongs.
    fn place(&mut self, who: usize) {
        let entity = &mut self.entities[who];
        self.count += 1;
        if entity.budget > 0 {
            self.extra.remove(who);
            self.timers.remove(who);
            self.deadlines.set(who, (entity.deadline, self.count));
            return;
        }
        self.deadlines.remove(who);
        if entity.parameters.slice != 0 || entity.booked != entity.share {
            self.timers.set(who, entity.release());
        }
        if entity.parameters.extra {
            if let Some(((least, _), _)) = self.extra.first() {
                self.extra_floor = self.extra_floor.max(least);
            }
            entity.extra_used = entity.extra_used.max(self.extra_floor);
            self.extra.set(who, (entity.extra_used, self.count));
        }
    }

    #[cfg(test)]
    pub(crate) fn comparisons(&self) -> u64 {
        self.deadlines.comparisons.get() + self.extra.comparisons.get() + self.timers.comparisons.get()
    }
}

impl Policy for Sedf {
    type Parameters = SedfParameters;

    fn add(&mut self, who: usize, parameters: SedfParameters, now: u64) -> Result<(), ParameterError> {
        self.book(who, parameters, now)?;
        self.timers.remove(who);
        self.entities[who].queued = false;
        self.entities[who].extra_used = self.extra_floor;
        Ok(())
    }

    fn set(&mut self, who: usize, parameters: SedfParameters, now: u64) -> Result<(), ParameterError> {
        self.book(who, parameters, now)?;
        if self.entities[who].queued {
            self.dequeue(who);
            self.enqueue(who, now);
        }
        Ok(())
    }

    fn remove(&mut self, who: usize) {
        self.dequeue(who);
        let Some(entity) = self.entities.get_mut(who) else { return };
        entity.share = 0;
        entity.budget = 0;
        let deadline = entity.deadline;
        // Its booking ends with its period.
        self.timers.set(who, deadline);
    }

    fn enqueue(&mut self, who: usize, now: u64) {
        let Some(entity) = self.entities.get_mut(who) else { return };
        entity.queued = true;
        if now >= entity.release() {
            entity.budget = entity.budget.min(0);
            entity.renew(now);
            self.unbook(who);
        } else if entity.exceeds_share(now) {
            entity.budget = 0;
            entity.renew(now);
        }
        self.place(who);
    }

    fn dequeue(&mut self, who: usize) {
        if let Some(((least, _), _)) = self.extra.first() {
            self.extra_floor = self.extra_floor.max(least);
        }
        self.deadlines.remove(who);
        self.extra.remove(who);
        self.timers.remove(who);
        if let Some(entity) = self.entities.get_mut(who) {
            entity.queued = false;
        }
    }

    fn restart(&mut self, _who: usize, _now: u64) {
        // A reservation knows nothing that a reboot could reset: the period goes on, with what is left of the budget.
    }

    fn charge(&mut self, who: usize, ran: u64, _now: u64) {
        let Some(entity) = self.entities.get_mut(who) else { return };
        if self.extra.contains(who) {
            entity.extra_used = entity.extra_used.saturating_add(u128::from(ran));
        } else {
            entity.budget = entity.budget.saturating_sub(ran.min(i64::MAX as u64) as i64);
        }
        if entity.queued && entity.budget <= 0 {
            self.place(who);
        }
    }

    fn give_way(&mut self, who: usize) {
        if !self.extra.contains(who) {
            return;
        }
        if let (Some((_, first)), Some((next, _))) = (self.extra.first(), self.extra.second())
            && first == who
        {
            let entity = &mut self.entities[who];
            entity.extra_used = entity.extra_used.max(next);
        }
        self.place(who);
    }

    fn advance(&mut self, now: u64) {
        while let Some((at, who)) = self.timers.first()
            && at <= now
            && at != NEVER
        {
            self.timers.remove(who);
            let entity = &mut self.entities[who];
            if entity.queued {
                // Late by whole periods: those are lost, and the grid stays.
                let late = (now - at) / entity.parameters.period.max(1);
                entity.renew(at + late * entity.parameters.period);
            }
            self.unbook(who);
            if self.entities[who].queued {
                self.place(who);
            }
        }
    }

    fn best(&self) -> Option<usize> {
        self.deadlines.first().map(|(_, who)| who).or_else(|| self.extra.first().map(|(_, who)| who))
    }

    fn turn_left(&self, who: usize, used: u64) -> u64 {
        let Some(entity) = self.entities.get(who) else { return 0 };
        if self.deadlines.contains(who) {
            entity.budget.unsigned_abs()
        } else if !self.extra.contains(who) {
            0
        } else if self.extra.len() <= 1 {
            NEVER
        } else {
            self.quantum.saturating_sub(used)
        }
    }

    fn preempts(&self, challenger: usize, current: usize) -> bool {
        let (Some(a), Some(b)) = (self.entities.get(challenger), self.entities.get(current)) else {
            return false;
        };
        a.budget > 0 && (b.budget <= 0 || a.deadline < b.deadline)
    }

    fn next_event(&self) -> u64 {
        self.timers.first().map_or(NEVER, |(at, _)| at)
    }
}
