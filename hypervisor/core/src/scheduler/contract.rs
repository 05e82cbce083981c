//! What the configuration says of who gets which CPUs, in the scheduler's own terms.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use caisson_config::{Blob, Contract, CpuList, Domain as Record};
use caisson_machine::clock::Clock;
use caisson_sched::{
    CapAccount, Parameters, PolicyKind, Pool as SharedPool, Reservation, Settings, Utilisation, place,
};

/// A pool of CPUs: its policy, and what their queues show each other.
pub(super) struct Pool {
    pub(super) name: Box<str>,
    /// The policy is SEDF, not BVT.
    sedf: AtomicBool,
    pub(super) settings: Settings,
    pub(super) shared: Arc<SharedPool>,
    /// Some guest may run on a part of the CPUs only.
    is_divided: AtomicBool,
}

impl Pool {
    /// The pools of a configuration on a machine with so many CPUs, and behind them one without guests of the CPUs that no
    /// pool names: those have nothing to do but the machine's own work.
    pub(super) fn all(blob: &Blob<'static>, cpus: u32, clock: &Clock) -> Box<[Self]> {
        let pool = |(index, pool): (usize, caisson_config::Pool<'_>)| {
            let members: Vec<u32> = blob.pool_cpus(index, cpus).iter().collect();
            Self {
                name: pool.name.into(),
                sedf: AtomicBool::new(pool.policy.kind() == PolicyKind::Sedf),
                settings: pool.settings(khz(clock)),
                shared: SharedPool::new(&members),
                is_divided: AtomicBool::new(false),
            }
        };
        let mut pools: Vec<Self> = blob.pools().enumerate().map(pool).collect();
        let is_free = |cpu: &u32| pools.iter().all(|pool| !pool.shared.members().contains(cpu));
        let rest: Vec<u32> = (0..cpus).filter(is_free).collect();
        if let Some(settings) = pools.first().map(|pool| pool.settings).filter(|_| !rest.is_empty()) {
            pools.push(Self {
                name: "".into(),
                sedf: AtomicBool::new(false),
                settings,
                shared: SharedPool::new(&rest),
                is_divided: AtomicBool::new(false),
            });
        }
        pools.into_boxed_slice()
    }
}

impl Pool {
    /// The policy of its queues.
    pub(super) fn policy(&self) -> PolicyKind {
        if self.sedf.load(Ordering::Relaxed) { PolicyKind::Sedf } else { PolicyKind::Bvt }
    }

    /// Whether some guest may run on a part of the CPUs only.
    pub(super) fn is_divided(&self) -> bool {
        self.is_divided.load(Ordering::Relaxed)
    }

    /// Its queues have that policy from now on.
    pub(super) fn set_policy(&self, kind: PolicyKind) {
        self.sedf.store(kind == PolicyKind::Sedf, Ordering::Relaxed);
    }
}

/// What a guest gets of its pool's CPUs.
pub(crate) struct Share {
    /// The pool's number.
    pub(super) pool: usize,
    /// What was said of it.
    contract: Contract,
    /// What each of its vCPUs gets.
    pub(super) vcpu: Parameters,
    /// What its chores get: no more than one of its vCPUs, and nothing is reserved for them.
    pub(super) chores: Parameters,
    /// What all of them may use together.
    pub(super) cap: Option<Arc<CapAccount>>,
    /// Where they may run; none: everywhere in the pool.
    allowed: Cpus,
    /// Where they should, while there is room; none: anywhere.
    preferred: Cpus,
    /// Where each vCPU starts.
    pub(super) homes: Box<[u32]>,
}

/// Numbers of CPUs; empty for all of them.
type Cpus = Box<[u32]>;

/// Whose turn it is to be where the next vCPU starts: one after the other of a pool goes to the next of its CPUs.
pub(crate) struct Turns(Vec<usize>);

impl Turns {
    pub(super) fn new(pools: &[Pool]) -> Self {
        Self(pools.iter().map(|_| 0).collect())
    }

    fn next(&mut self, pool: usize) -> usize {
        self.0.get_mut(pool).map_or(0, |turn| {
            *turn = turn.wrapping_add(1);
            turn.wrapping_sub(1)
        })
    }
}

/// Why a guest that comes later cannot have what it asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ShareError {
    /// There is no pool of the name.
    Pool,
    /// It has a reservation, and the pool's policy knows none.
    Reserves,
    /// It names a CPU that its pool does not have, by this key of its record.
    Cpu(&'static str, u32),
    /// No CPU of the pool has room for a reservation of these microseconds in those.
    Overbooked(u32, u32),
}

impl Share {
    /// What each guest of a configuration gets, on a machine with so many CPUs.
    pub(super) fn all(
        blob: &Blob<'static>,
        pools: &[Pool],
        turns: &mut Turns,
        cpus: u32,
        clock: &Clock,
        now: u64,
    ) -> Vec<Self> {
        let of = |record: Record<'_>| Self::of(&record, record.pool(), pools, turns, clock, now);
        let mut shares: Vec<Self> = blob.domains().map(of).collect();
        // Reservations are kept where they were admitted.
        let placed = blob.place_reservations(cpus, |domain, vcpu, cpu| {
            if let Some(home) = shares.get_mut(domain).and_then(|share| share.homes.get_mut(vcpu as usize)) {
                *home = cpu;
            }
        });
        debug_assert!(placed.is_ok(), "the configuration has been checked against the machine");
        shares
    }

    /// What a guest gets that comes while others are there, in the pool with a number.
    pub(super) fn later<'a>(
        record: &Record<'_>,
        pool: usize,
        pools: &[Pool],
        turns: &mut Turns,
        others: impl Iterator<Item = &'a Self>,
        clock: &Clock,
        now: u64,
    ) -> Result<Self, ShareError> {
        let members = pools[pool].shared.members();
        let foreign = |list: CpuList<'_>| list.iter().find(|cpu| !members.contains(cpu));
        for (key, list) in [("cpus", record.cpus()), ("prefer", record.prefer())] {
            if let Some(cpu) = foreign(list) {
                return Err(ShareError::Cpu(key, cpu));
            }
        }
        let mut share = Self::of(record, pool, pools, turns, clock, now);
        if share.is_reserved(&pools[pool]) {
            share.admit(&pools[pool], others)?;
        }
        Ok(share)
    }

    /// Has the vCPUs start where there is room for their reservations beside those of `others`.
    fn admit<'a>(&mut self, pool: &Pool, others: impl Iterator<Item = &'a Self>) -> Result<(), ShareError> {
        let Some(wanted) = self.contract.reservation else { return Ok(()) };
        let reservation = |contract: &Contract| {
            let time = contract.reservation?;
            Some(Reservation { period: time.period.into(), slice: time.slice.into(), extra: time.extra })
        };
        let members = pool.shared.members();
        let mut booked = alloc::vec![Utilisation::default(); members.len()];
        let reservable = pool.settings.reservable;
        for other in others.filter(|other| other.pool == self.pool) {
            let Some(of_other) = reservation(&other.contract) else { continue };
            for home in &other.homes {
                // It was admitted there.
                let _ = place(&mut booked, reservable, &of_other, |at| members.get(at) == Some(home));
            }
        }
        let Some(own) = reservation(&self.contract) else { return Ok(()) };
        let allowed = self.allowed.clone();
        for home in &mut self.homes {
            let may =
                |at: usize| allowed.is_empty() || members.get(at).is_some_and(|cpu| allowed.contains(cpu));
            let at = place(&mut booked, reservable, &own, may);
            let cpu = at.and_then(|at| members.get(at));
            *home = *cpu.ok_or(ShareError::Overbooked(wanted.slice, wanted.period))?;
        }
        Ok(())
    }

    fn of(
        record: &Record<'_>,
        pool: usize,
        pools: &[Pool],
        turns: &mut Turns,
        clock: &Clock,
        now: u64,
    ) -> Self {
        let (contract, vcpus) = (record.contract(), record.vcpus());
        let members = pools[pool].shared.members();
        if !record.cpus().is_empty() {
            pools[pool].is_divided.store(true, Ordering::Relaxed);
        }
        let allowed: Cpus = record.cpus().iter().filter(|cpu| members.contains(cpu)).collect();
        let preferred: Cpus = record.prefer().iter().filter(|cpu| members.contains(cpu)).collect();
        let starts = if !preferred.is_empty() {
            &preferred
        } else if !allowed.is_empty() {
            &allowed
        } else {
            members
        };
        let homes = (0..vcpus).map(|_| starts[turns.next(pool) % starts.len()]).collect();
        let vcpu = contract.parameters(khz(clock));
        // Chores and vCPUs are never there at the same time.
        let cap = contract.cap_ticks(khz(clock));
        Self {
            pool,
            contract,
            vcpu,
            chores: Parameters { reservation: Reservation::NONE, warp: 0, ..vcpu },
            cap: cap.and_then(|cap| CapAccount::new(cap, vcpus, pools[pool].settings.quantum, now).ok()),
            allowed,
            preferred,
            homes,
        }
    }

    /// Whether its vCPUs stay where their reservations were admitted.
    pub(super) fn is_reserved(&self, pool: &Pool) -> bool {
        pool.policy() == PolicyKind::Sedf && self.vcpu.reservation.slice != 0
    }

    /// Whether the guest may run on `cpu`, which belongs to its pool.
    pub(super) fn allows(&self, cpu: u32) -> bool {
        self.allowed.is_empty() || self.allowed.contains(&cpu)
    }

    /// Whether the guest would rather run on `cpu` than on others.
    pub(super) fn prefers(&self, cpu: u32) -> bool {
        self.preferred.is_empty() || self.preferred.contains(&cpu)
    }
}

fn khz(clock: &Clock) -> u64 {
    clock.tsc_hz / 1000
}
