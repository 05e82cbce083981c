//! Caps: an upper limit on what a group of entities (a domain) uses of all its CPUs together.
//!
//! A cap is a *quota* of ticks in every *window*. Windows follow one another without gap. A group whose quota is used
//! up is *spent*: its entities are parked until a window brings a new one. What a window did not use is lost; what was
//! used too much (the timer came late) is taken from the windows that follow, so that the cap holds exactly over time.
//!
//! A [`CapAccount`] is shared by all CPUs, without a lock. A CPU *claims* ticks before it runs an entity, and gives back
//! what that did not use: so CPUs that run at the same time cannot use the same ticks. A claim ends with the window at
//! the latest.
//!
//! # Invariants
//!
//! - `position` counts ticks that were used or are claimed, each window's unused ones included: in window *n* the
//!   group may use what lies between it (or *n* quotas, whichever is more) and *n + 1* quotas.
//! - Counts wrap, and are compared by their difference: nothing ends after years.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::heap::{IndexHeap, grow};
use crate::{MAX_PERIOD, NEVER, ParameterError};

/// A group of entities that share a cap: the index of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupId(pub u32);

/// At most `quota` ticks of CPU time in every `window` ticks, over all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// Ticks of CPU time, at least 1; more than the window is more than one CPU. Up to 2^20 CPUs.
    pub quota: u64,
    /// Ticks, 1 to [`MAX_PERIOD`].
    pub window: u64,
}

impl Cap {
    fn is_valid(&self) -> bool {
        (1..=MAX_PERIOD).contains(&self.window) && (1..=self.window << 20).contains(&self.quota)
    }
}

/// What a capped group has used, on all CPUs.
pub struct CapAccount {
    cap: Cap,
    /// When the first window began.
    origin: u64,
    /// The most that is claimed at once.
    grain: u64,
    position: AtomicU64,
    /// What of `position` was claimed, by those that have not settled yet.
    claimed: AtomicU64,
}

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// So many ticks may be used, until the window ends.
    Granted(u64),
    /// The quota is used up. Ask again then.
    Spent(u64),
}

impl CapAccount {
    /// An account whose first window begins now. `entities` is how many the group has: one alone claims all that is left,
    /// several claim up to `quantum` at once, so that none has to wait for what another claimed and does not use.
    ///
    /// # Errors
    ///
    /// The cap makes no sense.
    pub fn new(cap: Cap, entities: u32, quantum: u64, now: u64) -> Result<Arc<Self>, ParameterError> {
        if !cap.is_valid() {
            return Err(ParameterError::Cap);
        }
        let grain = if entities <= 1 { NEVER } else { quantum.max(1) };
        let (position, claimed) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Arc::new(Self { cap, origin: now, grain, position, claimed }))
    }

    /// The cap.
    #[must_use]
    pub fn cap(&self) -> Cap {
        self.cap
    }

    /// The number of the window of `now`, and when it ends.
    fn window(&self, now: u64) -> (u64, u64) {
        let window = now.saturating_sub(self.origin) / self.cap.window;
        (window, self.start(window + 1))
    }

    fn start(&self, window: u64) -> u64 {
        self.origin.saturating_add(window.saturating_mul(self.cap.window))
    }

    /// Where the account is in window `window` that was last at `position`: what no window used is lost.
    fn at(&self, position: u64, window: u64) -> u64 {
        let base = window.wrapping_mul(self.cap.quota);
        if (position.wrapping_sub(base) as i64) < 0 { base } else { position }
    }

    /// `position` and `used` more, but not so far from `window` that it would seem to be behind it.
    fn add(&self, position: u64, used: u64, window: u64) -> u64 {
        let base = window.wrapping_mul(self.cap.quota);
        let ahead = i128::from(position.wrapping_sub(base) as i64) + i128::from(used);
        base.wrapping_add(ahead.min(i128::from(i64::MAX / 2)) as i64 as u64)
    }

    /// Ticks left in a window; not positive: spent.
    fn left(&self, position: u64, window: u64) -> i64 {
        (window + 1).wrapping_mul(self.cap.quota).wrapping_sub(self.at(position, window)) as i64
    }

    /// Asks for ticks to use from now on.
    pub(crate) fn claim(&self, now: u64) -> Claim {
        let (window, end) = self.window(now);
        let want = |position| {
            self.left(position, window).max(0).unsigned_abs().min(self.grain).min(end.saturating_sub(now))
        };
        let next = |position| {
            let want = want(position);
            (want != 0).then(|| self.at(position, window).wrapping_add(want))
        };
        match self.position.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(old) => {
                let granted = want(old);
                self.claimed.fetch_add(granted, Ordering::Relaxed);
                Claim::Granted(granted)
            }
            Err(position) => Claim::Spent(self.goes_on(position, window, now)),
        }
    }

    /// Ends a claim of `granted`, of which `left` was not used.
    pub(crate) fn settle(&self, granted: u64, left: u64) {
        self.claimed.fetch_sub(granted, Ordering::Relaxed);
        if left != 0 {
            self.position.fetch_sub(left, Ordering::Relaxed);
        }
    }

    /// Takes ticks that were used without a claim.
    pub(crate) fn overrun(&self, used: u64, now: u64) {
        let (window, _) = self.window(now);
        let next = |position| {
            // What was used before this window began belongs to those before it.
            let latest = used.min(now.saturating_sub(self.start(window)));
            let before = self.add(position, used - latest, window);
            Some(self.add(self.at(before, window), latest, window))
        };
        let _ = self.position.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    /// Whether there is nothing to claim.
    pub(crate) fn is_spent(&self, now: u64) -> bool {
        self.left(self.position.load(Ordering::Relaxed), self.window(now).0) <= 0
    }

    /// When a group has ticks to use again that is spent in `window`. While others hold claims, those may be given back.
    fn goes_on(&self, position: u64, window: u64, now: u64) -> u64 {
        let over = self.left(position, window).min(0).unsigned_abs();
        let at = self.start((window + 1).saturating_add(over / self.cap.quota));
        if self.claimed.load(Ordering::Relaxed) == 0 { at } else { at.min(now.saturating_add(self.grain)) }
    }
}

/// The end of a list of parked entities.
pub(crate) const NOBODY: u32 = u32::MAX;

#[derive(Clone)]
struct Group {
    /// `None`: no limit.
    account: Option<Arc<CapAccount>>,
    /// The first of the list of parked entities.
    parked: u32,
}

/// What the current entity of a queue has claimed.
#[derive(Clone, Copy)]
struct Held {
    group: GroupId,
    granted: u64,
    left: u64,
}

/// The groups of one run queue.
pub(crate) struct Groups {
    groups: Vec<Group>,
    /// The groups that have parked entities, by when they go on.
    timers: IndexHeap<u64>,
    held: Option<Held>,
}

impl Groups {
    pub(crate) fn new(count: usize) -> Self {
        let group = Group { account: None, parked: NOBODY };
        Self { groups: alloc::vec![group; count], timers: IndexHeap::new(count), held: None }
    }

    /// Room for `count` groups, if that is more. Allocates.
    pub(crate) fn grow(&mut self, count: usize) {
        grow(&mut self.groups, count, Group { account: None, parked: NOBODY });
        self.timers.grow(count);
    }

    pub(crate) fn contains(&self, group: GroupId) -> bool {
        (group.0 as usize) < self.groups.len()
    }

    fn account(&self, group: GroupId) -> Option<&CapAccount> {
        self.groups.get(group.0 as usize)?.account.as_deref()
    }

    /// Whether the group has a limit.
    pub(crate) fn is_capped(&self, group: GroupId) -> bool {
        self.account(group).is_some()
    }

    /// Gives a group an account, or none. Those that are parked ask again at once.
    pub(crate) fn set(
        &mut self,
        id: GroupId,
        account: Option<Arc<CapAccount>>,
        now: u64,
    ) -> Result<(), ParameterError> {
        if !self.contains(id) {
            return Err(ParameterError::Unknown);
        }
        if self.held.is_some_and(|held| held.group == id) {
            self.release();
        }
        let group = &mut self.groups[id.0 as usize];
        group.account = account;
        if group.parked != NOBODY {
            self.timers.set(id.0 as usize, now);
        }
        Ok(())
    }

    /// Takes `ran` ticks that ended now from the quota: from what the current entity claimed, where it was the one.
    pub(crate) fn charge(&mut self, group: GroupId, ran: u64, current: bool, now: u64) {
        let mut rest = ran;
        if let Some(held) = self.held.as_mut().filter(|held| current && held.group == group) {
            let used = rest.min(held.left);
            held.left -= used;
            rest -= used;
        }
        if rest != 0
            && let Some(account) = self.account(group)
        {
            account.overrun(rest, now);
        }
    }

    /// Whether the quota is used up.
    pub(crate) fn is_spent(&self, group: GroupId, now: u64) -> bool {
        self.account(group).is_some_and(|account| account.is_spent(now))
    }

    /// Claims ticks for the entity that runs next, `same` as before or another: for how long it may run.
    pub(crate) fn claim(&mut self, group: GroupId, same: bool, now: u64) -> Claim {
        if let Some(held) = self.held.filter(|held| same && held.group == group && held.left != 0) {
            return Claim::Granted(held.left);
        }
        self.release();
        let Some(account) = self.account(group) else { return Claim::Granted(NEVER) };
        let claim = account.claim(now);
        if let Claim::Granted(granted) = claim {
            self.held = Some(Held { group, granted, left: granted });
        }
        claim
    }

    /// The current entity stops: gives back what it claimed and did not use.
    pub(crate) fn release(&mut self) {
        let Some(held) = self.held.take() else { return };
        if let Some(account) = self.account(held.group) {
            account.settle(held.granted, held.left);
        }
    }

    /// Puts an entity at the head of its group's list of the parked, until `until`; answers who follows it.
    pub(crate) fn park(&mut self, id: GroupId, who: u32, until: u64) -> u32 {
        let Some(group) = self.groups.get_mut(id.0 as usize) else { return NOBODY };
        self.timers.set(id.0 as usize, until);
        core::mem::replace(&mut group.parked, who)
    }

    /// The first of the parked, whom `next` follows, has gone on or left: `next` is the first now.
    pub(crate) fn set_parked(&mut self, id: GroupId, next: u32) {
        let Some(group) = self.groups.get_mut(id.0 as usize) else { return };
        group.parked = next;
        if next == NOBODY {
            self.timers.remove(id.0 as usize);
        }
    }

    pub(crate) fn parked(&self, id: GroupId) -> u32 {
        self.groups.get(id.0 as usize).map_or(NOBODY, |group| group.parked)
    }

    /// A group with parked entities that may go on by now. What is still spent is put off.
    pub(crate) fn due(&mut self, now: u64) -> Option<GroupId> {
        while let Some((at, index)) = self.timers.first()
            && at <= now
            && at != NEVER
        {
            let id = GroupId(index as u32);
            let Some(account) = self.account(id).filter(|account| account.is_spent(now)) else {
                return Some(id);
            };
            let (window, _) = account.window(now);
            let at = account.goes_on(account.position.load(Ordering::Relaxed), window, now);
            self.timers.set(index, at.max(now.saturating_add(1)));
        }
        None
    }

    /// When [`Groups::due`] has one next.
    pub(crate) fn next_event(&self) -> u64 {
        self.timers.first().map_or(NEVER, |(at, _)| at)
    }

    #[cfg(test)]
    pub(crate) fn comparisons(&self) -> u64 {
        self.timers.comparisons.get()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::vec::Vec;

    use super::{Cap, CapAccount, Claim};

    /// Four CPUs claim, give back and overrun at once, in windows that each thread enters when it likes: what they use is
    /// never more than the windows' quotas, and what nobody used of a window that all are in can be used.
    #[test]
    fn claims_of_many_cpus_never_exceed_the_quota() {
        const WINDOW: u64 = 1000;
        const WINDOWS: u64 = 200;
        let cap = Cap { quota: 2_345, window: WINDOW };
        let account = CapAccount::new(cap, 4, 7, 0).unwrap();
        let cpus: Vec<_> = (0..4u64)
            .map(|cpu| {
                let account = account.clone();
                thread::spawn(move || {
                    let mut used = 0;
                    for step in 0..WINDOWS * 100 {
                        let now = step * WINDOW / 100 + cpu;
                        if let Claim::Granted(granted) = account.claim(now) {
                            let left = granted * (step % 3) / 2;
                            used += granted - left.min(granted);
                            account.settle(granted, left.min(granted));
                        }
                    }
                    used
                })
            })
            .collect();
        let used: u64 = cpus.into_iter().map(|cpu| cpu.join().unwrap()).sum();
        assert!(used <= WINDOWS * cap.quota, "{used} of {}", WINDOWS * cap.quota);
        assert_ne!(used, 0);
        let now = WINDOWS * WINDOW;
        let mut rest = 0;
        while let Claim::Granted(granted) = account.claim(now) {
            account.settle(granted, 0);
            rest += granted;
        }
        assert_eq!(rest, cap.quota);
        assert_eq!(account.claim(now), Claim::Spent(now + WINDOW));
    }

    /// An overrun is paid back to the tick, however large, and does not wrap into credit.
    #[test]
    fn overruns_are_debts() {
        let account = CapAccount::new(Cap { quota: 10, window: 100 }, 1, 1, 50).unwrap();
        account.overrun(25, 60);
        assert_eq!(account.claim(60), Claim::Spent(250));
        assert_eq!(account.claim(250), Claim::Granted(5));
        account.settle(5, 5);
        // 3 of these 8 ticks were used in the window before, of which 5 were left.
        account.overrun(8, 355);
        assert_eq!(account.claim(356), Claim::Granted(5));
        account.overrun(u64::MAX, 360);
        account.overrun(u64::MAX, 361);
        assert!(account.is_spent(1 << 50));
    }
}
