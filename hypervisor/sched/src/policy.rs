//! What a policy does for a run queue.

use crate::ParameterError;

/// A scheduling policy over the entities `0..capacity` of one CPU.
///
/// The run queue keeps track of who is in, blocked or capped, and calls in order: [`Policy::add`] first,
/// [`Policy::enqueue`] and [`Policy::dequeue`] in turn, [`Policy::remove`] for what is not queued.
pub trait Policy {
    /// What a person sets for each entity.
    type Parameters: Copy;

    /// Takes an entity in, not queued yet.
    ///
    /// # Errors
    ///
    /// The parameters make no sense, or the CPU cannot serve them.
    fn add(&mut self, who: usize, parameters: Self::Parameters, now: u64) -> Result<(), ParameterError>;

    /// Changes the parameters of an entity, queued or not.
    ///
    /// # Errors
    ///
    /// As [`Policy::add`]; the old ones stay.
    fn set(&mut self, who: usize, parameters: Self::Parameters, now: u64) -> Result<(), ParameterError>;

    /// Forgets an entity.
    fn remove(&mut self, who: usize);

    /// An entity can run from now on: it woke, or its cap lets it again.
    fn enqueue(&mut self, who: usize, now: u64);

    /// An entity cannot run from now on.
    fn dequeue(&mut self, who: usize);

    /// An entity starts anew (its guest reboots): what it had saved up is gone, what it owes is not.
    fn restart(&mut self, who: usize, now: u64);

    /// An entity, queued or not, used the CPU for `ran` ticks that ended now.
    fn charge(&mut self, who: usize, ran: u64, now: u64);

    /// A queued entity lets the others go first, as far as the policy allows.
    fn give_way(&mut self, who: usize);

    /// Does what is due by now.
    fn advance(&mut self, now: u64);

    /// The queued entity that should run.
    fn best(&self) -> Option<usize>;

    /// For how many more ticks `who` may run that has run for `used` in this turn; 0 where the turn is over
    /// or it waits for a deadline,
    /// [`NEVER`](crate::NEVER) where nobody else is waiting.
    fn turn_left(&self, who: usize, used: u64) -> u64;

    /// Whether `challenger` should take the CPU from `current` in the middle of a turn. Both are queued.
    fn preempts(&self, challenger: usize, current: usize) -> bool;

    /// When [`Policy::advance`] has something to do next, [`NEVER`](crate::NEVER) where nothing is to come.
    fn next_event(&self) -> u64;
}
