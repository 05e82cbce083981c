//! What the queues of a CPU pool show each other, without a lock.
//!
//! Each CPU has a [`Slot`] that only the holder of its queue's lock writes, and everyone reads: which entity waits there
//! and since when in virtual time, how far the queue is, its heaviest entity. From that a CPU decides whether to look
//! into another's queue at all. What it reads may be old by the time it has that queue's lock: it then decides again.
//!
//! # Idle CPUs
//!
//! One that waits must be found by one that idles, whoever is first. The queue shows in its slot's [`Beacon`] that somebody
//! waits, and its owner then claims an idle CPU ([`Pool::claim_idle`]); a CPU that idles shows that it does
//! ([`Beacon::set_idle`]) and then looks for who waits ([`Pool::behind`]). The fences between are the beacon's.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use caisson_smp::{Beacon, before_looking_for_idle};

use crate::contention::Contention;

/// A moment of the virtual time of a pool: the less, the longer due. It can be compared between the queues of one pool.
///
/// In ticks of an entity of weight 1, with four bits of fraction. It does not wrap: after 9 years of nothing but
/// entities of weight 1 (and 2,000 of the usual weight) at 4 GHz it stands still, and queues are not compared any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(pub u64);

impl Key {
    /// Before all others.
    pub const FIRST: Self = Self(0);
    /// After all others: what an idle CPU would run next.
    pub const NEVER: Self = Self(u64::MAX);
    /// The last of an entity.
    pub(crate) const LAST: Self = Self(u64::MAX - 1);
    /// Bits of fraction.
    pub(crate) const FRACTION: u32 = 4;

    /// This moment, `by` earlier.
    #[must_use]
    pub fn earlier(self, by: u64) -> Self {
        if self == Self::NEVER { self } else { Self(self.0.saturating_sub(by)) }
    }
}

/// Whether a CPU that would run `own` next should take one that waits at `other` in another queue: at once where it
/// has none of its own ([`Key::NEVER`]), else where that one is behind by more than `margin` ([`Pool::margin`]).
#[must_use]
pub fn should_pull(own: Key, other: Key, margin: u64) -> bool {
    other < own.earlier(margin)
}

/// What one CPU shows. On a cache line of its own.
#[repr(align(64))]
struct Slot {
    /// Whether the CPU sleeps, and the [`Key`] of the best that waits, [`Key::NEVER`] where nobody does.
    beacon: Beacon,
    /// The [`Key`] of the queue's own virtual time.
    level: AtomicU64,
    /// The heaviest weight, 0 where there is none.
    heaviest: AtomicU32,
    /// Whether anyone is queued.
    busy: AtomicBool,
    /// Whether its one entity runs without an end.
    lone: AtomicBool,
    /// When it was told of others last: see [`Pool::tell_lone`].
    told: AtomicU64,
}

impl Slot {
    fn new() -> Self {
        Self {
            beacon: Beacon::new(),
            level: AtomicU64::new(0),
            heaviest: AtomicU32::new(0),
            busy: AtomicBool::new(false),
            lone: AtomicBool::new(false),
            told: AtomicU64::new(0),
        }
    }

    fn waiting(&self) -> Key {
        Key(self.beacon.waiting())
    }
}

/// What a queue shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) waiting: Key,
    pub(crate) level: Key,
    pub(crate) heaviest: u32,
    pub(crate) busy: bool,
    pub(crate) lone: bool,
}

impl Shown {
    pub(crate) const NOTHING: Self =
        Self { waiting: Key::NEVER, level: Key::FIRST, heaviest: 0, busy: false, lone: false };
}

/// The CPUs that share entities, and what they show each other. All memory is taken in [`Pool::new`].
pub struct Pool {
    members: Vec<u32>,
    /// By CPU.
    slots: Vec<Slot>,
    contention: Contention,
    /// What the settings' quantum is for the heaviest weight that was seen last, as a [`Key`]'s difference.
    margin: AtomicU64,
}

/// Where one joins that is queued alone: looked up when it is needed.
#[derive(Clone, Copy)]
pub(crate) struct Join<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) cpu: u32,
}

impl Join<'_> {
    pub(crate) fn key(self) -> Key {
        self.pool.join(self.cpu)
    }
}

/// What a queue has to know of the others.
pub(crate) struct Elsewhere {
    /// The heaviest weight.
    pub(crate) heaviest: u32,
    /// The least level of those in which somebody waits.
    pub(crate) level: Option<Key>,
}

impl Pool {
    /// A pool of the CPUs `members` (each named once, up to 1023 of them).
    #[must_use]
    pub fn new(members: &[u32]) -> Arc<Self> {
        let slots = members.iter().copied().max().map_or(0, |last| last as usize + 1);
        Arc::new(Self {
            members: members.to_vec(),
            slots: (0..slots).map(|_| Slot::new()).collect(),
            contention: Contention::new(),
            margin: AtomicU64::new(0),
        })
    }

    /// The CPUs.
    #[must_use]
    pub fn members(&self) -> &[u32] {
        &self.members
    }

    /// Whether somebody in the pool waits for a CPU.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        self.contention.is_on()
    }

    /// By how much one of another queue must be behind before a CPU that has something to run pulls it: half of a turn.
    #[must_use]
    pub fn margin(&self) -> u64 {
        self.margin.load(Ordering::Relaxed)
    }

    /// Who waits in the queue of `cpu`.
    #[must_use]
    pub fn waiting(&self, cpu: u32) -> Option<Key> {
        self.slot(cpu).map(Slot::waiting).filter(|&key| key != Key::NEVER)
    }

    /// The queue, other than that of `me`, whose waiting entity is furthest behind, of those that come after `last` in
    /// this order; with `None` the first. So all can be tried in turn, each once.
    #[must_use]
    pub fn behind(&self, me: u32, last: Option<(Key, u32)>) -> Option<(Key, u32)> {
        self.others(me)
            .map(|(cpu, slot)| (slot.waiting(), cpu))
            .filter(|&at| at.0 != Key::NEVER && last.is_none_or(|last| at > last))
            .min()
    }

    /// A CPU other than `me` whose one entity runs without an end, because nobody waited when it began. Where somebody
    /// has waited in `me`'s queue for a turn, that CPU should look again, and share. It is told so every `apart` ticks at
    /// most, whoever asks: those who let each other wait for a moment, again and again, must not keep it from its work.
    #[must_use]
    pub fn tell_lone(&self, me: u32, apart: u64, now: u64) -> Option<u32> {
        let tell = |slot: &Slot| {
            let told = slot.told.load(Ordering::Relaxed);
            let now_told = || slot.told.compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed);
            slot.lone.load(Ordering::Relaxed) && now.saturating_sub(told) >= apart && now_told().is_ok()
        };
        self.others(me).find(|(_, slot)| tell(slot)).map(|(cpu, _)| cpu)
    }

    /// Where `cpu` shows that it sleeps.
    #[must_use]
    pub fn beacon(&self, cpu: u32) -> Option<&Beacon> {
        self.slot(cpu).map(|slot| &slot.beacon)
    }

    /// Whether `cpu` sleeps, and nobody has claimed it yet.
    #[must_use]
    pub fn is_idle(&self, cpu: u32) -> bool {
        self.beacon(cpu).is_some_and(Beacon::is_idle)
    }

    /// [`Pool::find_idle`], behind what the caller has shown; the CPU is the caller's to wake, and nobody else's.
    #[must_use]
    pub fn claim_idle(&self, allowed: impl Fn(u32) -> bool, preferred: impl Fn(u32) -> bool) -> Option<u32> {
        before_looking_for_idle();
        // Each round that fails is one in which somebody else has claimed one.
        while let Some(cpu) = self.find_idle(&allowed, &preferred) {
            if self.beacon(cpu).is_some_and(Beacon::claim) {
                return Some(cpu);
            }
        }
        None
    }

    /// A CPU that sleeps and is `allowed`: one that is `preferred` where there is one.
    #[must_use]
    pub fn find_idle(&self, allowed: impl Fn(u32) -> bool, preferred: impl Fn(u32) -> bool) -> Option<u32> {
        let mut found = None;
        for &cpu in &self.members {
            if self.is_idle(cpu) && allowed(cpu) {
                if preferred(cpu) {
                    return Some(cpu);
                }
                found = found.or(Some(cpu));
            }
        }
        found
    }

    /// The clock of the time in which somebody waited.
    pub(crate) fn contention(&self) -> &Contention {
        &self.contention
    }

    /// Where one joins that is queued alone on `me`: with the one furthest behind of the busy queues; where none is busy,
    /// where the pool stopped.
    fn join(&self, me: u32) -> Key {
        let level = |slot: &Slot| Key(slot.level.load(Ordering::Relaxed));
        let busy = self.others(me).filter(|(_, slot)| slot.busy.load(Ordering::Relaxed));
        busy.map(|(_, slot)| level(slot))
            .min()
            .unwrap_or_else(|| self.slots.iter().map(level).max().unwrap_or(Key::FIRST))
    }

    pub(crate) fn elsewhere(&self, me: u32) -> Elsewhere {
        let mut seen = Elsewhere { heaviest: 0, level: None };
        for (_, slot) in self.others(me) {
            seen.heaviest = seen.heaviest.max(slot.heaviest.load(Ordering::Relaxed));
            if slot.waiting() != Key::NEVER {
                let level = Key(slot.level.load(Ordering::Relaxed));
                seen.level = Some(seen.level.map_or(level, |least| least.min(level)));
            }
        }
        seen
    }

    /// The holder of the lock of `cpu`'s queue shows it: `new` in place of `old`.
    pub(crate) fn show(&self, cpu: u32, old: Shown, new: Shown, now: u64) {
        let Some(slot) = self.slot(cpu).filter(|_| old != new) else { return };
        slot.level.store(new.level.0, Ordering::Relaxed);
        slot.heaviest.store(new.heaviest, Ordering::Relaxed);
        slot.busy.store(new.busy, Ordering::Relaxed);
        slot.lone.store(new.lone, Ordering::Relaxed);
        if old.waiting != new.waiting {
            slot.beacon.show_waiting(new.waiting.0);
        }
        match (old.waiting == Key::NEVER, new.waiting == Key::NEVER) {
            (true, false) => self.contention.enter(now),
            (false, true) => self.contention.leave(now),
            _ => {}
        }
    }

    pub(crate) fn set_margin(&self, margin: u64) {
        if self.margin() != margin {
            self.margin.store(margin, Ordering::Relaxed);
        }
    }

    fn slot(&self, cpu: u32) -> Option<&Slot> {
        self.slots.get(cpu as usize)
    }

    fn others(&self, me: u32) -> impl Iterator<Item = (u32, &Slot)> {
        self.members
            .iter()
            .filter(move |&&cpu| cpu != me)
            .filter_map(|&cpu| self.slot(cpu).map(|slot| (cpu, slot)))
    }
}
