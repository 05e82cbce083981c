//! Caps: an upper limit on what a group of entities (a domain) uses of one CPU.
//!
//! A cap is a *quota* of ticks in every *window*. Windows follow one another without gap. A group whose quota is used
//! up is *spent*: its entities are parked until a window brings a new one. What a window did not use is lost; what was
//! used too much (the timer came late) is taken from the windows that follow, so that the cap holds exactly over time.

use alloc::vec::Vec;

use crate::heap::IndexHeap;
use crate::{MAX_PERIOD, NEVER, ParameterError};

/// A group of entities that share a cap: the index of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupId(pub u32);

/// At most `quota` ticks of the CPU in every `window` ticks. A quota as long as the window is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap {
    /// Ticks of the CPU, at least 1.
    pub quota: u64,
    /// Ticks, 1 to [`MAX_PERIOD`].
    pub window: u64,
}

impl Cap {
    fn is_valid(&self) -> bool {
        self.quota != 0 && (1..=MAX_PERIOD).contains(&self.window)
    }
}

/// The end of a list of parked entities.
pub(crate) const NOBODY: u32 = u32::MAX;

#[derive(Clone)]
struct Group {
    /// `None`: no limit.
    cap: Option<Cap>,
    /// When the window began that `left` is for.
    start: u64,
    /// Ticks left in the window; spent where not positive.
    left: i64,
    /// The first of the list of parked entities.
    parked: u32,
}

/// The groups of one run queue.
pub(crate) struct Groups {
    groups: Vec<Group>,
    /// The groups that have parked entities, by when they go on.
    timers: IndexHeap<u64>,
}

impl Groups {
    pub(crate) fn new(count: usize) -> Self {
        let group = Group { cap: None, start: 0, left: 0, parked: NOBODY };
        Self { groups: alloc::vec![group; count], timers: IndexHeap::new(count) }
    }

    pub(crate) fn contains(&self, group: GroupId) -> bool {
        (group.0 as usize) < self.groups.len()
    }

    /// Sets a cap, whose first window starts now. What the group owes under the old cap is forgiven.
    pub(crate) fn set(&mut self, group: GroupId, cap: Option<Cap>, now: u64) -> Result<(), ParameterError> {
        if cap.is_some_and(|cap| !cap.is_valid()) {
            return Err(ParameterError::Cap);
        }
        let group = self.groups.get_mut(group.0 as usize).ok_or(ParameterError::Unknown)?;
        group.cap = cap.filter(|cap| cap.quota < cap.window);
        group.start = now;
        group.left = group.cap.map_or(0, |cap| cap.quota as i64);
        Ok(())
    }

    /// Takes `ran` ticks that ended now from the quota.
    pub(crate) fn charge(&mut self, group: GroupId, ran: u64, now: u64) {
        let Some(group) = self.groups.get_mut(group.0 as usize) else { return };
        if group.cap.is_none() {
            return;
        }
        let ran = ran.min(i64::MAX as u64);
        // What was used before the latest window began belongs to those before it.
        let windows = group.windows(now);
        let latest = if windows == 0 { ran } else { ran.min(now - group.start_after(windows)) };
        group.left = group.left.saturating_sub((ran - latest) as i64);
        group.refill(windows);
        group.left = group.left.saturating_sub(latest as i64);
    }

    /// Whether the quota is used up.
    pub(crate) fn is_spent(&mut self, group: GroupId, now: u64) -> bool {
        let Some(group) = self.groups.get_mut(group.0 as usize) else { return false };
        if group.cap.is_none() || group.left > 0 {
            return false;
        }
        group.refill(group.windows(now));
        group.left <= 0
    }

    /// Until when a group may run that starts now and is not spent.
    pub(crate) fn limit(&self, group: GroupId, now: u64) -> u64 {
        let Some(group) = self.groups.get(group.0 as usize) else { return NEVER };
        let Some(cap) = group.cap else { return NEVER };
        let mut seen = group.clone();
        seen.refill(seen.windows(now));
        let left = seen.left.max(0) as u64;
        let end = seen.start.saturating_add(cap.window);
        if now.saturating_add(left) < end { now.saturating_add(left) } else { end.saturating_add(cap.quota) }
    }

    /// Puts an entity at the head of its group's list of the parked, and answers who follows it.
    pub(crate) fn park(&mut self, id: GroupId, who: u32) -> u32 {
        let Some(group) = self.groups.get_mut(id.0 as usize) else { return NOBODY };
        self.timers.set(id.0 as usize, group.goes_on());
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

    /// A group with parked entities that may go on by now.
    pub(crate) fn due(&self, now: u64) -> Option<GroupId> {
        self.timers
            .first()
            .filter(|&(at, _)| at <= now && at != NEVER)
            .map(|(_, group)| GroupId(group as u32))
    }

    /// The group still cannot go on (it was charged meanwhile): sets its timer to when it can.
    pub(crate) fn postpone(&mut self, id: GroupId) {
        if let Some(group) = self.groups.get(id.0 as usize) {
            self.timers.set(id.0 as usize, group.goes_on());
        }
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

impl Group {
    /// How many windows have begun since the one that `left` is for.
    fn windows(&self, now: u64) -> u64 {
        self.cap.map_or(0, |cap| now.saturating_sub(self.start) / cap.window)
    }

    /// When the window starts that is `windows` after the one that `left` is for.
    fn start_after(&self, windows: u64) -> u64 {
        let window = self.cap.map_or(0, |cap| cap.window);
        self.start.saturating_add(windows.saturating_mul(window))
    }

    fn refill(&mut self, windows: u64) {
        let Some(cap) = self.cap else { return };
        if windows == 0 {
            return;
        }
        self.start = self.start_after(windows);
        // The debt is at most 2^63: the sum fits, and is at most a quota.
        let left = i128::from(self.left) + i128::from(windows) * i128::from(cap.quota);
        self.left = left.min(i128::from(cap.quota)).max(i128::from(i64::MIN)) as i64;
    }

    /// When a spent group has ticks to use again.
    fn goes_on(&self) -> u64 {
        let Some(cap) = self.cap else { return 0 };
        if self.left > 0 {
            return 0;
        }
        self.start_after(self.left.unsigned_abs() / cap.quota + 1)
    }
}
