//! The policies of a queue behind one set of operations.
//!
//! Both are one machine: [`Bvt`] shares out what [`Edf`] leaves. Under [`PolicyKind::Bvt`] nothing is reserved, so that
//! it has everything; under [`PolicyKind::Sedf`] it has the extra time. That is why a queue can change its policy while
//! its entities stay where they are.

use alloc::vec::Vec;

use crate::bvt::{Bvt, DEFAULT_WEIGHT, Share};
use crate::edf::{Due, Edf, Turn};
use crate::heap::grow;
use crate::pool::Join;
use crate::{NEVER, ParameterError};

/// A scheduling policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// Borrowed virtual time: shares by weight.
    Bvt,
    /// Simple earliest deadline first: reservations; what they leave is shared by weight.
    Sedf,
}

/// A slice of the CPU in every period, under [`PolicyKind::Sedf`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Ticks, 1 to [`MAX_PERIOD`](crate::MAX_PERIOD).
    pub period: u64,
    /// Ticks of the CPU in every period, up to the period. 0 (no reservation) needs `extra`.
    pub slice: u64,
    /// Whether it takes part in the time that the reservations leave, by its weight.
    pub extra: bool,
}

impl Reservation {
    /// Nothing is reserved: extra time only.
    pub const NONE: Self = Self { period: 1, slice: 0, extra: true };

    /// A reservation in ticks of a clock of `khz`. It is rounded so that it takes no more of the CPU than was asked for.
    #[must_use]
    pub fn from_micros(period: u32, slice: u32, extra: bool, khz: u64) -> Self {
        let ticks = |micros: u32| u128::from(micros) * u128::from(khz);
        let period = ticks(period).div_ceil(1000).clamp(1, u128::from(crate::MAX_PERIOD)) as u64;
        let slice = (ticks(slice) / 1000).min(u128::from(period)) as u64;
        Self { period, slice, extra: extra || slice == 0 }
    }
}

/// What a person sets for each vCPU, for either policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The share, in relation to the weights of others. Not 0.
    pub weight: u32,
    /// By how much it goes ahead of its turn, in ticks of an entity of [`DEFAULT_WEIGHT`]; 0: it does not warp.
    pub warp: u64,
    /// For how many ticks it may run warped in every `warp_period`.
    pub warp_limit: u64,
    /// Ticks after which a wake brings a new `warp_limit`.
    pub warp_period: u64,
    /// Heeded under [`PolicyKind::Sedf`] only.
    pub reservation: Reservation,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            weight: DEFAULT_WEIGHT,
            warp: 0,
            warp_limit: 0,
            warp_period: 0,
            reservation: Reservation::NONE,
        }
    }
}

impl Parameters {
    /// A weight, and nothing else.
    #[must_use]
    pub fn with_weight(weight: u32) -> Self {
        Self { weight, ..Self::default() }
    }

    /// A reservation, and the usual weight.
    #[must_use]
    pub fn with_reservation(reservation: Reservation) -> Self {
        Self { reservation, ..Self::default() }
    }

    fn check(&self) -> Result<(), ParameterError> {
        if self.weight == 0 {
            return Err(ParameterError::Weight);
        }
        self.reservation.check()
    }
}

/// What is set for the CPUs of a pool. Times are in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long the heaviest entity runs while another waits. Cut to 2^32 - 1, as the other two.
    pub quantum: u64,
    /// The shortest turn: lighter ones than `min_turn / quantum` of the heaviest get longer turns (and not more of
    /// them) than exact fairness at every moment would have it.
    pub min_turn: u64,
    /// The context switch allowance: how far in its virtual time one may run ahead of one that wakes, before it is
    /// pre-empted.
    pub allowance: u64,
    /// How much of each CPU may be reserved, in thousandths, up to 1000. What is left covers the hypervisor's own work.
    pub reservable: u32,
}

/// What an entity has and owes, under way to another queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Belongings {
    parameters: Parameters,
    share: Option<Share>,
    due: Due,
}

impl Belongings {
    /// The same, of one that has no reservation.
    pub(crate) fn without_reservation(self) -> Self {
        let parameters = Parameters { reservation: Reservation::NONE, ..self.parameters };
        Self { parameters, due: Due::default(), ..self }
    }
}

/// The policies over the entities `0..capacity` of one queue.
///
/// The queue keeps track of who is in, blocked or capped, and calls in order: [`Policies::add`] first,
/// [`Policies::enqueue`] and [`Policies::dequeue`] in turn, [`Policies::remove`] for what is not queued.
pub(crate) struct Policies {
    kind: PolicyKind,
    parameters: Vec<Parameters>,
    pub(crate) shares: Bvt,
    pub(crate) reservations: Edf,
}

impl Policies {
    pub(crate) fn new(kind: PolicyKind, capacity: usize, settings: &Settings) -> Self {
        Self {
            kind,
            parameters: alloc::vec![Parameters::default(); capacity],
            shares: Bvt::new(capacity, settings),
            reservations: Edf::new(capacity, settings.reservable),
        }
    }

    /// Room for `capacity` entities, if that is more. Allocates.
    pub(crate) fn grow(&mut self, capacity: usize) {
        grow(&mut self.parameters, capacity, Parameters::default());
        self.shares.grow(capacity);
        self.reservations.grow(capacity);
    }

    pub(crate) fn kind(&self) -> PolicyKind {
        self.kind
    }

    /// What of the parameters is heeded.
    fn heeded(kind: PolicyKind, parameters: &Parameters) -> Reservation {
        match kind {
            PolicyKind::Bvt => Reservation::NONE,
            PolicyKind::Sedf => parameters.reservation,
        }
    }

    /// Takes an entity in, not queued yet. `join` is the pool's virtual time.
    ///
    /// # Errors
    ///
    /// The parameters make no sense, or the CPU cannot serve them.
    pub(crate) fn add(
        &mut self,
        who: usize,
        parameters: Parameters,
        join: Join<'_>,
        now: u64,
    ) -> Result<(), ParameterError> {
        parameters.check()?;
        let slot = self.parameters.get_mut(who).ok_or(ParameterError::Unknown)?;
        self.reservations.add(who, Self::heeded(self.kind, &parameters), now)?;
        *slot = parameters;
        self.shares.add(who, &parameters, join);
        Ok(())
    }

    /// Changes the parameters of an entity, queued or not.
    ///
    /// # Errors
    ///
    /// As [`Policies::add`]; the old ones stay.
    pub(crate) fn set(
        &mut self,
        who: usize,
        parameters: Parameters,
        queued: bool,
        join: Join<'_>,
        now: u64,
    ) -> Result<(), ParameterError> {
        parameters.check()?;
        let slot = self.parameters.get_mut(who).ok_or(ParameterError::Unknown)?;
        let reservation = Self::heeded(self.kind, &parameters);
        if reservation != Self::heeded(self.kind, slot) {
            self.reservations.set(who, reservation, now)?;
            *slot = parameters;
            if queued {
                self.dequeue(who);
                self.enqueue(who, now, 0, join);
            }
        }
        self.parameters[who] = parameters;
        self.shares.set(who, &parameters);
        Ok(())
    }

    /// Forgets an entity.
    pub(crate) fn remove(&mut self, who: usize) {
        self.shares.remove(who);
        self.reservations.remove(who);
    }

    /// What an entity takes along that moves.
    pub(crate) fn pack(&self, who: usize) -> Belongings {
        Belongings {
            parameters: self.parameters.get(who).copied().unwrap_or_default(),
            share: self.shares.share(who),
            due: self.reservations.due(who),
        }
    }

    /// Takes an entity in with what it brings, not queued yet.
    ///
    /// # Errors
    ///
    /// As [`Policies::add`].
    pub(crate) fn unpack(
        &mut self,
        who: usize,
        belongings: &Belongings,
        join: Join<'_>,
        now: u64,
    ) -> Result<(), ParameterError> {
        self.add(who, belongings.parameters, join, now)?;
        if let Some(share) = belongings.share {
            self.shares.bring(who, share);
        }
        self.reservations.bring(who, belongings.due, now);
        Ok(())
    }

    /// An entity can run from now on: it woke, or its cap lets it again. See [`Bvt::enqueue`] for `idle` and `join`.
    pub(crate) fn enqueue(&mut self, who: usize, now: u64, idle: u64, join: Join<'_>) {
        if self.reservations.enqueue(who, now) == Turn::Extra {
            self.shares.enqueue(who, now, idle, join);
        }
    }

    /// An entity that was just taken in from another queue can run, as it could there.
    pub(crate) fn arrive(&mut self, who: usize, now: u64, join: Join<'_>) {
        if self.reservations.enqueue(who, now) == Turn::Extra {
            self.shares.arrive(who, join);
        }
    }

    /// An entity cannot run from now on.
    pub(crate) fn dequeue(&mut self, who: usize) {
        self.shares.dequeue(who);
        self.reservations.dequeue(who);
    }

    /// An entity starts anew (its guest reboots): what it had saved up is gone, what it owes is not. A reservation knows
    /// nothing that a reboot could reset: the period goes on, with what is left of the budget.
    pub(crate) fn restart(&mut self, who: usize) {
        self.shares.restart(who);
    }

    /// An entity, queued or not, used the CPU for `ran` ticks that ended now, for `contended` of which somebody of the pool
    /// waited.
    pub(crate) fn charge(&mut self, who: usize, ran: u64, contended: u64, join: Join<'_>, now: u64) {
        if self.shares.is_queued(who) || !self.reservations.is_reserved(who) {
            self.shares.charge(who, ran, contended);
        } else if self.reservations.charge(who, ran) == Some(Turn::Extra) {
            self.shares.enqueue(who, now, 0, join);
        }
    }

    /// A queued entity lets the others go first, as far as the policy allows.
    pub(crate) fn give_way(&mut self, who: usize) {
        self.shares.give_way(who);
    }

    /// Does what is due by now.
    pub(crate) fn advance(&mut self, join: Join<'_>, now: u64) {
        while let Some((who, turn)) = self.reservations.advance(now) {
            match turn {
                Some(Turn::Extra) if !self.shares.is_queued(who) => self.shares.enqueue(who, now, 0, join),
                Some(Turn::Budget) => self.shares.dequeue(who),
                _ => {}
            }
        }
    }

    /// The queued entity that should run.
    pub(crate) fn best(&self) -> Option<usize> {
        self.reservations.best().or_else(|| self.shares.best())
    }

    /// For how many more ticks `who` may run that has run for `used` in this turn; 0 where the turn is over or it waits
    /// for a deadline, [`NEVER`] where nobody else is waiting, here or, where `contended`, elsewhere.
    pub(crate) fn turn_left(&self, who: usize, used: u64, contended: bool) -> u64 {
        if self.reservations.is_queued(who) {
            self.reservations.budget(who)
        } else if self.shares.is_queued(who) {
            self.shares.turn_left(who, used, contended)
        } else {
            0
        }
    }

    /// Whether `challenger` should take the CPU from `current` in the middle of a turn. Both are queued.
    pub(crate) fn preempts(&self, challenger: usize, current: usize) -> bool {
        match (self.reservations.is_queued(challenger), self.reservations.is_queued(current)) {
            (false, false) => self.shares.preempts(challenger, current),
            (false, true) => false,
            (true, _) => self.reservations.preempts(challenger, current),
        }
    }

    /// When [`Policies::advance`] has something to do next, [`NEVER`] where nothing is to come.
    pub(crate) fn next_event(&self) -> u64 {
        self.reservations.next_event()
    }

    /// Whether all reservations of the entities `members` fit the CPU together.
    fn admits(&self, members: impl Iterator<Item = usize>) -> bool {
        let total = members
            .filter_map(|who| self.parameters.get(who))
            .fold(0u128, |sum, parameters| sum.saturating_add(parameters.reservation.share()));
        total <= self.reservations.limit()
    }

    /// Changes the policy. `members` are all there are, each with whether it is queued; O(n log n).
    ///
    /// # Errors
    ///
    /// The reservations of the members do not fit the CPU; nothing has changed.
    pub(crate) fn switch(
        &mut self,
        kind: PolicyKind,
        members: impl Iterator<Item = (usize, bool)> + Clone,
        join: Join<'_>,
        now: u64,
    ) -> Result<(), ParameterError> {
        if kind == self.kind {
            return Ok(());
        }
        if kind == PolicyKind::Sedf && !self.admits(members.clone().map(|(who, _)| who)) {
            return Err(ParameterError::Overbooked);
        }
        self.reservations.clear();
        self.kind = kind;
        for (who, queued) in members {
            let reservation = Self::heeded(kind, &self.parameters[who]);
            // It fits, as was tested.
            let _ = self.reservations.add(who, reservation, now);
            if !queued {
                continue;
            }
            match (self.reservations.enqueue(who, now), self.shares.is_queued(who)) {
                (Turn::Extra, false) => self.shares.enqueue(who, now, 0, join),
                (Turn::Budget | Turn::Waits, true) => self.shares.dequeue(who),
                _ => {}
            }
        }
        Ok(())
    }
}

const _: () = assert!(NEVER == u64::MAX);
