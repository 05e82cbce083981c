//! BVT, borrowed virtual time: the CPU is shared out by weight, and latency is borrowed against the future.
//!
//! Every entity has an *actual virtual time* (AVT) that advances by what it runs, divided by its weight. Who is furthest
//! behind runs. An entity that *warps* is put ahead in the order by its warp value (its *effective* virtual time is
//! less), but is charged as everyone is, so that it gets the CPU sooner and not more of it.
//!
//! # Invariants
//!
//! - The *scheduler virtual time*, the least AVT of those queued, never goes back: who is queued anew starts at it or
//!   at its own AVT, whichever is later. So there is nothing to gain by sleeping or rebooting.
//! - AVT is exact: its fraction has 32 bits and what the division leaves is carried to the next charge.
//! - A turn is as long in virtual time for everyone: the quantum goes to the heaviest entity of the CPU, and others
//!   get less by their weight. That keeps the lag of everyone, against ideal sharing, within one quantum.

use alloc::vec::Vec;
use core::cmp::Reverse;

use crate::heap::IndexHeap;
use crate::{NEVER, ParameterError, Policy};

/// The weight of an entity for which no one has set another.
pub const DEFAULT_WEIGHT: u32 = 256;

/// Bits of the fraction of virtual time.
const FRACTION: u32 = 32;
/// Where virtual time starts: far enough from 0 that a warp can be taken from it.
const BEGIN: u128 = 1 << 112;
/// Turns and allowances are shorter than this many ticks, so that their virtual time fits 64 bits.
const LONGEST: u64 = u32::MAX as u64;

/// What a person sets for each vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BvtParameters {
    /// The share of the CPU, in relation to the weights of others. Not 0.
    pub weight: u32,
    /// By how much it goes ahead of its turn, in ticks of an entity of [`DEFAULT_WEIGHT`]; 0: it does not warp.
    pub warp: u64,
    /// For how many ticks it may run warped in every `warp_period`.
    pub warp_limit: u64,
    /// Ticks after which a wake brings a new `warp_limit`.
    pub warp_period: u64,
}

impl Default for BvtParameters {
    fn default() -> Self {
        Self { weight: DEFAULT_WEIGHT, warp: 0, warp_limit: 0, warp_period: 0 }
    }
}

/// What is set for a CPU, in ticks. All are cut to 2^32 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BvtSettings {
    /// How long the heaviest entity runs while another waits.
    pub quantum: u64,
    /// The shortest turn: lighter ones than `min_turn / quantum` of the heaviest get longer turns (and not more of
    /// them) than exact fairness at every moment would have it.
    pub min_turn: u64,
    /// The context switch allowance: how far in its virtual time one may run ahead of one that wakes, before it is
    /// pre-empted.
    pub allowance: u64,
}

#[derive(Clone, Copy)]
struct Entity {
    parameters: BvtParameters,
    /// Actual virtual time, in ticks by weight, with [`FRACTION`] bits of fraction.
    actual: u128,
    /// What the last division by the weight left.
    rest: u32,
    /// The warp value in virtual time.
    warp: u128,
    /// Ticks that it may still run warped.
    warp_left: u64,
    /// When `warp_left` was filled last.
    warp_filled: Option<u64>,
}

impl Entity {
    const ABSENT: Self = Self {
        parameters: BvtParameters { weight: DEFAULT_WEIGHT, warp: 0, warp_limit: 0, warp_period: 0 },
        actual: BEGIN,
        rest: 0,
        warp: 0,
        warp_left: 0,
        warp_filled: None,
    };

    fn warps(&self) -> bool {
        self.warp != 0 && self.warp_left != 0
    }

    fn effective(&self) -> u128 {
        if self.warps() { self.actual.saturating_sub(self.warp) } else { self.actual }
    }

    fn set(&mut self, parameters: BvtParameters) {
        if self.parameters.weight != parameters.weight {
            self.rest = 0;
        }
        self.parameters = parameters;
        self.warp = (u128::from(parameters.warp) << FRACTION) / u128::from(DEFAULT_WEIGHT);
        self.warp_left = self.warp_left.min(parameters.warp_limit);
    }

    fn run(&mut self, ran: u64) {
        let weight = self.parameters.weight.max(1);
        // A turn of less than 2^32 ticks needs no division of 128 bits.
        let advance = if ran < LONGEST {
            let sum = (ran << FRACTION) + u64::from(self.rest);
            self.rest = (sum % u64::from(weight)) as u32;
            u128::from(sum / u64::from(weight))
        } else {
            let sum = (u128::from(ran) << FRACTION) + u128::from(self.rest);
            self.rest = (sum % u128::from(weight)) as u32;
            sum / u128::from(weight)
        };
        self.actual = self.actual.saturating_add(advance);
        self.warp_left = self.warp_left.saturating_sub(ran);
    }
}

/// Virtual time, and a count by which of equals the one that came first goes first. Those that woke go before those
/// that ran: see [`RAN`].
type Key = (u128, u64);

/// Added to the count of an entity that is placed anew because it ran.
const RAN: u64 = 1 << 63;

/// The policy. See the module.
pub struct Bvt {
    settings: BvtSettings,
    entities: Vec<Entity>,
    /// All that are queued, by actual virtual time.
    actual: IndexHeap<Key>,
    /// Those of them that warp, by effective virtual time.
    warped: IndexHeap<Key>,
    /// All there are, the heaviest first.
    weights: IndexHeap<Reverse<u32>>,
    /// The scheduler virtual time when it was looked at last.
    floor: u128,
    count: u64,
}

impl Bvt {
    /// A policy for up to `capacity` entities. All memory is taken here.
    #[must_use]
    pub fn new(capacity: usize, settings: BvtSettings) -> Self {
        let cut = |ticks: u64| ticks.clamp(1, LONGEST);
        Self {
            settings: BvtSettings {
                quantum: cut(settings.quantum),
                min_turn: cut(settings.min_turn).min(cut(settings.quantum)),
                allowance: settings.allowance.min(LONGEST),
            },
            entities: alloc::vec![Entity::ABSENT; capacity],
            actual: IndexHeap::new(capacity),
            warped: IndexHeap::new(capacity),
            weights: IndexHeap::new(capacity),
            floor: BEGIN,
            count: 0,
        }
    }

    /// The scheduler virtual time.
    fn now_virtual(&mut self) -> u128 {
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

    /// The length of an entity's turn.
    fn turn(&self, entity: &Entity) -> u64 {
        let heaviest = self.weights.first().map_or(1, |(Reverse(weight), _)| weight.max(1));
        let share = self.settings.quantum * u64::from(entity.parameters.weight) / u64::from(heaviest);
        share.max(self.settings.min_turn)
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

impl Policy for Bvt {
    type Parameters = BvtParameters;

    fn add(&mut self, who: usize, parameters: BvtParameters, _now: u64) -> Result<(), ParameterError> {
        if parameters.weight == 0 {
            return Err(ParameterError::Weight);
        }
        let start = self.now_virtual();
        let entity = self.entities.get_mut(who).ok_or(ParameterError::Unknown)?;
        *entity = Entity { actual: start, ..Entity::ABSENT };
        entity.set(parameters);
        self.weights.set(who, Reverse(parameters.weight));
        Ok(())
    }

    fn set(&mut self, who: usize, parameters: BvtParameters, _now: u64) -> Result<(), ParameterError> {
        if parameters.weight == 0 {
            return Err(ParameterError::Weight);
        }
        let entity = self.entities.get_mut(who).ok_or(ParameterError::Unknown)?;
        entity.set(parameters);
        self.weights.set(who, Reverse(parameters.weight));
        if self.actual.contains(who) {
            self.place(who, RAN);
        }
        Ok(())
    }

    fn remove(&mut self, who: usize) {
        self.dequeue(who);
        self.weights.remove(who);
    }

    fn enqueue(&mut self, who: usize, now: u64) {
        let floor = self.now_virtual();
        let Some(entity) = self.entities.get_mut(who) else { return };
        entity.actual = entity.actual.max(floor);
        let BvtParameters { warp_limit, warp_period, .. } = entity.parameters;
        if entity.warp_filled.is_none_or(|at| now.saturating_sub(at) >= warp_period) {
            entity.warp_left = warp_limit;
            entity.warp_filled = Some(now);
        }
        self.place(who, 0);
    }

    fn dequeue(&mut self, who: usize) {
        self.now_virtual();
        self.actual.remove(who);
        self.warped.remove(who);
    }

    fn restart(&mut self, who: usize, _now: u64) {
        let floor = self.now_virtual();
        let Some(entity) = self.entities.get_mut(who) else { return };
        entity.actual = entity.actual.max(floor);
        if self.actual.contains(who) {
            self.place(who, RAN);
        }
    }

    fn charge(&mut self, who: usize, ran: u64, _now: u64) {
        let Some(entity) = self.entities.get_mut(who) else { return };
        entity.run(ran);
        if self.actual.contains(who) {
            self.place(who, RAN);
        }
    }

    fn give_way(&mut self, who: usize) {
        if !self.actual.contains(who) {
            return;
        }
        let (first, second) = (self.actual.first(), self.actual.second());
        let Some(entity) = self.entities.get_mut(who) else { return };
        entity.warp_left = 0;
        if let (Some((_, first)), Some((next, _))) = (first, second)
            && first == who
        {
            entity.actual = entity.actual.max(next);
        }
        self.place(who, RAN);
    }

    fn advance(&mut self, _now: u64) {}

    fn best(&self) -> Option<usize> {
        // Where the first by actual time is a warped one, it is ahead by effective time too: the comparison is exact.
        let (actual, warped) = (self.actual.first(), self.warped.first());
        match (actual, warped) {
            (Some(((a, _), _)), Some(((w, _), who))) if w <= a => Some(who),
            (Some((_, who)), _) => Some(who),
            (None, _) => None,
        }
    }

    fn turn_left(&self, who: usize, used: u64) -> u64 {
        let Some(entity) = self.entities.get(who) else { return 0 };
        if self.actual.len() <= 1 {
            return NEVER;
        }
        let turn = self.turn(entity).saturating_sub(used);
        if entity.warps() { turn.min(entity.warp_left) } else { turn }
    }

    fn preempts(&self, challenger: usize, current: usize) -> bool {
        let (Some(challenger), Some(current)) = (self.entities.get(challenger), self.entities.get(current))
        else {
            return false;
        };
        let allowance = (self.settings.allowance << FRACTION) / u64::from(current.parameters.weight.max(1));
        challenger.effective().saturating_add(u128::from(allowance)) < current.effective()
    }

    fn next_event(&self) -> u64 {
        NEVER
    }
}
