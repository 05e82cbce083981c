//! BVT, borrowed virtual time: the CPU is shared out by weight, and latency is borrowed against the future.
//!
//! Every entity has an *actual virtual time* (AVT) that advances by what it runs, divided by its weight. Who is furthest
//! behind runs. An entity that *warps* is put ahead in the order by its warp value (its *effective* virtual time is
//! less), but is charged as everyone is, so that it gets the CPU sooner and not more of it.
//!
//! The queues of a pool keep their times in one *frame*, so that they can be compared ([`Key`]) and an entity can move
//! with its own. A queue stores times of its own frame, from which the pool's differs by an offset: where what cannot be
//! helped (affinity, a weight of more than a CPU) lets one queue's times run away from the others', the offset is
//! moved, and nobody's place within the queue changes ([`Bvt::align`]).
//!
//! # Invariants
//!
//! - The *scheduler virtual time*, the least AVT of those queued, never goes back within the queue's frame: who is
//!   queued anew starts at it or at its own AVT, whichever is later. So there is nothing to gain by sleeping or rebooting.
//! - AVT is exact: its fraction has 32 bits and what the division leaves is carried to the next charge.
//! - A turn is as long in virtual time for everyone: the quantum goes to the heaviest entity of the pool, and others
//!   get less by their weight. That keeps the lag of everyone, against ideal sharing, within one quantum on one CPU.

use alloc::vec::Vec;
use core::cmp::Reverse;

use crate::heap::{IndexHeap, grow};
use crate::pool::Join;
use crate::{Key, NEVER, Parameters, Settings};

/// The weight of an entity for which no one has set another.
pub const DEFAULT_WEIGHT: u32 = 256;

/// Bits of the fraction of virtual time.
const FRACTION: u32 = 32;
/// Bits of it that a [`Key`] leaves out.
const DROPPED: u32 = FRACTION - Key::FRACTION;
/// Where virtual time starts: far enough from 0 that warps and offsets can be taken from it.
const BEGIN: u128 = 1 << 112;
/// Turns and allowances are shorter than this many ticks, so that their virtual time fits 64 bits.
const LONGEST: u64 = u32::MAX as u64;
/// By how many turns the frames of two queues may differ while both have somebody waiting.
const SLACK: u64 = 4;

/// A moment of the pool's virtual time.
pub(crate) type Virtual = u128;

fn key(at: Virtual) -> Key {
    let past = at.saturating_sub(BEGIN) >> DROPPED;
    Key(u64::try_from(past).unwrap_or(u64::MAX).min(Key::LAST.0))
}

fn virtual_of(key: Key) -> Virtual {
    BEGIN + (u128::from(key.0) << DROPPED)
}

/// What moves with an entity. Times are of the pool's frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    actual: Virtual,
    rest: u32,
    warp_left: u64,
    warp_filled: Option<u64>,
}

#[derive(Clone, Copy)]
struct Entity {
    weight: u32,
    /// What the last division by the weight left.
    rest: u32,
    /// Actual virtual time, in ticks by weight, with [`FRACTION`] bits of fraction, of the queue's frame.
    actual: Virtual,
    /// The warp value in virtual time.
    warp: u128,
    warp_limit: u64,
    warp_period: u64,
    /// Ticks that it may still run warped.
    warp_left: u64,
    /// When `warp_left` was filled last.
    warp_filled: Option<u64>,
}

impl Entity {
    const ABSENT: Self = Self {
        weight: DEFAULT_WEIGHT,
        rest: 0,
        actual: BEGIN,
        warp: 0,
        warp_limit: 0,
        warp_period: 0,
        warp_left: 0,
        warp_filled: None,
    };

    fn warps(&self) -> bool {
        self.warp != 0 && self.warp_left != 0
    }

    fn effective(&self) -> Virtual {
        if self.warps() { self.actual.saturating_sub(self.warp) } else { self.actual }
    }

    fn set(&mut self, parameters: &Parameters) {
        if self.weight != parameters.weight {
            self.rest = 0;
        }
        self.weight = parameters.weight.max(1);
        self.warp = (u128::from(parameters.warp) << FRACTION) / u128::from(DEFAULT_WEIGHT);
        self.warp_limit = parameters.warp_limit;
        self.warp_period = parameters.warp_period;
        self.warp_left = self.warp_left.min(parameters.warp_limit);
    }

    fn run(&mut self, ran: u64) {
        // A turn of less than 2^32 ticks needs no division of 128 bits.
        let advance = if ran < LONGEST {
            let sum = (ran << FRACTION) + u64::from(self.rest);
            self.rest = (sum % u64::from(self.weight)) as u32;
            u128::from(sum / u64::from(self.weight))
        } else {
            let sum = (u128::from(ran) << FRACTION) + u128::from(self.rest);
            self.rest = (sum % u128::from(self.weight)) as u32;
            sum / u128::from(self.weight)
        };
        self.actual = self.actual.saturating_add(advance);
    }
}

/// Virtual time, and a count by which of equals the one that came first goes first. Those that woke go before those
/// that ran: see [`RAN`].
type Place = (Virtual, u64);

/// Added to the count of an entity that is placed anew because it ran.
const RAN: u64 = 1 << 63;

/// The shares of one CPU's queue. See the module.
pub(crate) struct Bvt {
    quantum: u64,
    min_turn: u64,
    allowance: u64,
    entities: Vec<Entity>,
    /// All that are queued, by actual virtual time.
    actual: IndexHeap<Place>,
    /// Those of them that warp, by effective virtual time.
    warped: IndexHeap<Place>,
    /// All there are, the heaviest first.
    weights: IndexHeap<Reverse<u32>>,
    /// The heaviest of the pool's other queues, as far as known.
    heaviest_elsewhere: u32,
    /// The scheduler virtual time when it was looked at last.
    floor: Virtual,
    /// What is added (wrapping) to a time of this queue to make it one of the pool's frame.
    offset: u128,
    count: u64,
}

impl Bvt {
    /// Shares for up to `capacity` entities. All memory is taken here.
    pub(crate) fn new(capacity: usize, settings: &Settings) -> Self {
        let cut = |ticks: u64| ticks.clamp(1, LONGEST);
        Self {
            quantum: cut(settings.quantum),
            min_turn: cut(settings.min_turn).min(cut(settings.quantum)),
            allowance: settings.allowance.min(LONGEST),
            entities: alloc::vec![Entity::ABSENT; capacity],
            actual: IndexHeap::new(capacity),
            warped: IndexHeap::new(capacity),
            weights: IndexHeap::new(capacity),
            heaviest_elsewhere: 0,
            floor: BEGIN,
            offset: 0,
            count: 0,
        }
    }

    /// Room for `capacity` entities, if that is more. Allocates.
    pub(crate) fn grow(&mut self, capacity: usize) {
        grow(&mut self.entities, capacity, Entity::ABSENT);
        self.actual.grow(capacity);
        self.warped.grow(capacity);
        self.weights.grow(capacity);
    }

    /// Takes an entity in, not queued yet.
    pub(crate) fn add(&mut self, who: usize, parameters: &Parameters, join: Join<'_>) {
        let start = self.start(join);
        let Some(entity) = self.entities.get_mut(who) else { return };
        *entity = Entity { actual: start, ..Entity::ABSENT };
        entity.set(parameters);
        self.weights.set(who, Reverse(entity.weight));
    }

    /// Changes the weight and the warp of an entity.
    pub(crate) fn set(&mut self, who: usize, parameters: &Parameters) {
        let Some(entity) = self.entities.get_mut(who) else { return };
        entity.set(parameters);
        self.weights.set(who, Reverse(entity.weight));
        if self.actual.contains(who) {
            self.place(who, RAN);
        }
    }

    /// Forgets an entity.
    pub(crate) fn remove(&mut self, who: usize) {
        self.dequeue(who);
        self.weights.remove(who);
    }

    /// What an entity takes along to another queue.
    pub(crate) fn share(&self, who: usize) -> Option<Share> {
        let entity = self.entities.get(who)?;
        Some(Share {
            actual: entity.actual.wrapping_add(self.offset),
            rest: entity.rest,
            warp_left: entity.warp_left,
            warp_filled: entity.warp_filled,
        })
    }

    /// Gives an entity that was just added what it brings from another queue.
    pub(crate) fn bring(&mut self, who: usize, share: Share) {
        let Some(entity) = self.entities.get_mut(who) else { return };
        entity.actual = share.actual.wrapping_sub(self.offset);
        entity.rest = share.rest.min(entity.weight - 1);
        entity.warp_left = share.warp_left.min(entity.warp_limit);
        entity.warp_filled = share.warp_filled;
    }

    /// An entity can run from now on. `idle` ticks passed since it stopped in which nobody of the pool had to wait: what
    /// it owes others is less by that. `join` is the pool's virtual time, for where nobody is queued here.
    pub(crate) fn enqueue(&mut self, who: usize, now: u64, idle: u64, join: Join<'_>) {
        let floor = self.start(join);
        let heaviest = self.heaviest();
        let Some(entity) = self.entities.get_mut(who) else { return };
        let forgiven = (u128::from(idle) << FRACTION) / u128::from(heaviest);
        entity.actual = entity.actual.saturating_sub(forgiven).max(floor);
        if entity.warp_filled.is_none_or(|at| now.saturating_sub(at) >= entity.warp_period) {
            entity.warp_left = entity.warp_limit;
            entity.warp_filled = Some(now);
        }
        self.place(who, 0);
    }

    /// An entity comes from another queue, where it could run: what it is behind comes along, as far as queues may be apart.
    pub(crate) fn arrive(&mut self, who: usize, join: Join<'_>) {
        let floor = self.start(join);
        let Some(slack) = self.entities.get(who).map(|entity| self.slack(entity)) else { return };
        if let Some(entity) = self.entities.get_mut(who) {
            entity.actual = entity.actual.max(floor.saturating_sub(slack));
        }
        self.place(who, 0);
    }

    /// An entity cannot run from now on.
    pub(crate) fn dequeue(&mut self, who: usize) {
        self.now_virtual();
        self.actual.remove(who);
        self.warped.remove(who);
    }

    /// An entity starts anew: what it had saved up is gone, what it owes is not.
    pub(crate) fn restart(&mut self, who: usize) {
        let floor = self.now_virtual();
        let Some(entity) = self.entities.get_mut(who) else { return };
        entity.actual = entity.actual.max(floor);
        if self.actual.contains(who) {
            self.place(who, RAN);
        }
    }

    /// An entity, queued or not, used the CPU for `ran` ticks, for `contended` of which somebody of the pool waited.
    pub(crate) fn charge(&mut self, who: usize, ran: u64, contended: u64) {
        let Some(entity) = self.entities.get_mut(who) else { return };
        entity.run(contended);
        entity.warp_left = entity.warp_left.saturating_sub(ran);
        if self.actual.contains(who) {
            self.place(who, RAN);
        }
    }

    /// A queued entity lets the others go first, as far as that is fair to them.
    pub(crate) fn give_way(&mut self, who: usize) {
        if !self.actual.contains(who) {
            return;
        }
        let (first, second) = (self.actual.first(), self.actual.second());
        let Some(entity) = self.entities.get_mut(who) else { return };
        entity.warp_left = 0;
        if let (Some((_, first)), Some(((next, _), _))) = (first, second)
            && first == who
        {
            entity.actual = entity.actual.max(next);
        }
        self.place(who, RAN);
    }

    pub(crate) fn is_queued(&self, who: usize) -> bool {
        self.actual.contains(who)
    }

    /// How many are queued.
    pub(crate) fn len(&self) -> usize {
        self.actual.len()
    }

    /// The queued entity that should run.
    pub(crate) fn best(&self) -> Option<usize> {
        self.best_but(usize::MAX).map(|(_, who)| who)
    }

    /// The best of those queued, but for one, and where it stands in the pool's frame.
    pub(crate) fn best_but(&self, but: usize) -> Option<(Key, usize)> {
        let pick = |heap: &IndexHeap<Place>| match heap.first() {
            Some((_, first)) if first == but => heap.second(),
            first => first,
        };
        // Where the first by actual time is a warped one, it is ahead by effective time too: the comparison is exact.
        let (place, who) = match (pick(&self.actual), pick(&self.warped)) {
            (Some(a), Some(w)) if w.0.0 <= a.0.0 => w,
            (Some(a), _) => a,
            (None, w) => w?,
        };
        Some((key(place.0.wrapping_add(self.offset)), who))
    }

    /// The best of those queued that come before `before` and are `wanted`. Looks at up to `most` of each order.
    pub(crate) fn find(&self, before: Key, most: usize, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let one = |heap: &IndexHeap<Place>| {
            let mut found = None;
            heap.visit(most, |place, who| {
                if key(place.0.wrapping_add(self.offset)) >= before {
                    return true;
                }
                if wanted(who) {
                    found = Some((place, who));
                }
                found.is_some()
            });
            found
        };
        match (one(&self.actual), one(&self.warped)) {
            (Some(a), Some(w)) => Some(if w.0 <= a.0 { w.1 } else { a.1 }),
            (a, w) => a.or(w).map(|(_, who)| who),
        }
    }

    /// For how many more ticks `who` may run that has run for `used` in this turn; [`NEVER`] where nobody waits.
    pub(crate) fn turn_left(&self, who: usize, used: u64, contended: bool) -> u64 {
        let Some(entity) = self.entities.get(who) else { return 0 };
        if self.actual.len() <= 1 && !contended {
            return NEVER;
        }
        let turn = self.turn(entity).saturating_sub(used);
        if entity.warps() { turn.min(entity.warp_left) } else { turn }
    }

    /// Whether `challenger` should take the CPU from `current` in the middle of a turn.
    pub(crate) fn preempts(&self, challenger: usize, current: usize) -> bool {
        let (Some(challenger), Some(current)) = (self.entities.get(challenger), self.entities.get(current))
        else {
            return false;
        };
        let allowance = (self.allowance << FRACTION) / u64::from(current.weight);
        challenger.effective().saturating_add(u128::from(allowance)) < current.effective()
    }

    /// The scheduler virtual time, in the pool's frame.
    pub(crate) fn level(&self) -> Key {
        let floor = self.actual.first().map_or(self.floor, |((least, _), _)| self.floor.max(least));
        key(floor.wrapping_add(self.offset))
    }

    /// The heaviest of this queue, 0 where there is none.
    pub(crate) fn heaviest_here(&self) -> u32 {
        self.weights.first().map_or(0, |(Reverse(weight), _)| weight)
    }

    /// Told which is the heaviest of the pool's other queues.
    pub(crate) fn set_heaviest_elsewhere(&mut self, weight: u32) {
        self.heaviest_elsewhere = weight;
    }

    /// Told the least level of the pool's other queues in which somebody waits: moves this queue's frame so that it is not
    /// further from it than a few turns. Where queues could even out, they are closer than that anyway.
    pub(crate) fn align(&mut self, elsewhere: Key) {
        let Some((_, first)) = self.actual.first() else { return };
        let Some(entity) = self.entities.get(first) else { return };
        let slack = self.slack(entity);
        let level = self.now_virtual().wrapping_add(self.offset);
        let elsewhere = virtual_of(elsewhere);
        if level.saturating_add(slack) < elsewhere {
            self.offset = self.offset.wrapping_add(elsewhere - slack - level);
        } else if level > elsewhere.saturating_add(slack) {
            self.offset = self.offset.wrapping_sub(level - slack - elsewhere);
        }
    }

    /// Half of a turn's length in virtual time, as a difference of [`Key`]s: what one of another queue must be behind to be
    /// pulled. Less would move entities that are level; with a whole turn, lags reach two quanta.
    pub(crate) fn margin(&self) -> u64 {
        let turn = (u128::from(self.quantum) << FRACTION) / u128::from(self.heaviest());
        (turn >> DROPPED) as u64 / 2
    }

    /// By how much queues may be apart in virtual time.
    fn slack(&self, entity: &Entity) -> u128 {
        let turn = u128::from(self.turn(entity)) << FRACTION;
        u128::from(SLACK) * (turn / u128::from(entity.weight))
    }

    /// Where one starts that is queued now.
    fn start(&mut self, join: Join<'_>) -> Virtual {
        if self.actual.len() == 0 {
            let join = join.key();
            if self.level() != join {
                self.floor = virtual_of(join).wrapping_sub(self.offset);
            }
        }
        self.now_virtual()
    }

    /// The scheduler virtual time.
    fn now_virtual(&mut self) -> Virtual {
        if let Some(((least, _), _)) = self.actual.first() {
            self.floor = self.floor.max(least);
        }
        self.floor
    }

    /// Puts an entity in the order by its times, among equals after those that came with the same `class`.
    fn place(&mut self, who: usize, class: u64) {
        let Some(entity) = self.entities.get(who) else { return };
        self.count += 1;
        let count = class | self.count;
        self.actual.set(who, (entity.actual, count));
        if entity.warps() {
            self.warped.set(who, (entity.effective(), count));
        } else {
            self.warped.remove(who);
        }
    }

    fn heaviest(&self) -> u32 {
        self.heaviest_here().max(self.heaviest_elsewhere).max(1)
    }

    /// The length of an entity's turn.
    fn turn(&self, entity: &Entity) -> u64 {
        let share = self.quantum * u64::from(entity.weight) / u64::from(self.heaviest());
        share.max(self.min_turn)
    }

    #[cfg(test)]
    pub(crate) fn comparisons(&self) -> u64 {
        self.actual.comparisons.get() + self.warped.comparisons.get() + self.weights.comparisons.get()
    }

    /// Actual virtual time since the start, for tests.
    #[cfg(test)]
    pub(crate) fn virtual_time(&self, who: usize) -> u128 {
        self.entities[who].actual - BEGIN
    }
}
