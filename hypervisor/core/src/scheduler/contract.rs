//! What the configuration says of who gets which CPUs, in the scheduler's own terms.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use caisson_config::{Blob, Domain as Record};
use caisson_machine::clock::Clock;
use caisson_sched::{CapAccount, Parameters, PolicyKind, Pool as SharedPool, Reservation, Settings};

/// A pool of CPUs: its policy, and what their queues show each other.
pub(super) struct Pool {
    /// The policy is SEDF, not BVT.
    sedf: AtomicBool,
    pub(super) settings: Settings,
    pub(super) shared: Arc<SharedPool>,
    /// Some guest may run on a part of the CPUs only.
    pub(super) is_divided: bool,
}

impl Pool {
    /// The pools of a configuration on a machine with so many CPUs, and behind them one without guests of the CPUs that no
    /// pool names: those have nothing to do but the machine's own work.
    pub(super) fn all(blob: &Blob<'static>, cpus: u32, clock: &Clock) -> Box<[Self]> {
        let pool = |(index, pool): (usize, caisson_config::Pool<'_>)| {
            let members: Vec<u32> = blob.pool_cpus(index, cpus).iter().collect();
            let mut guests = blob.domains().filter(|record| record.pool() == index);
            Self {
                sedf: AtomicBool::new(pool.policy.kind() == PolicyKind::Sedf),
                settings: pool.settings(khz(clock)),
                shared: SharedPool::new(&members),
                is_divided: guests.any(|record| !record.cpus().is_empty()),
            }
        };
        let mut pools: Vec<Self> = blob.pools().enumerate().map(pool).collect();
        let is_free = |cpu: &u32| pools.iter().all(|pool| !pool.shared.members().contains(cpu));
        let rest: Vec<u32> = (0..cpus).filter(is_free).collect();
        if let Some(settings) = pools.first().map(|pool| pool.settings).filter(|_| !rest.is_empty()) {
            pools.push(Self {
                sedf: AtomicBool::new(false),
                settings,
                shared: SharedPool::new(&rest),
                is_divided: false,
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

    /// Its queues have that policy from now on.
    pub(super) fn set_policy(&self, kind: PolicyKind) {
        self.sedf.store(kind == PolicyKind::Sedf, Ordering::Relaxed);
    }
}

/// What a guest gets of its pool's CPUs.
pub(crate) struct Share {
    /// What each of its vCPUs gets.
    pub(super) vcpu: Parameters,
    /// What its chores get: no more than one of its vCPUs, and nothing is reserved for them.
    pub(super) chores: Parameters,
    /// What all of them may use together.
    pub(super) cap: Option<Arc<CapAccount>>,
    /// Where they may run; none: everywhere in the pool.
    allowed: CpuList,
    /// Where they should, while there is room; none: anywhere.
    preferred: CpuList,
    /// Where each vCPU starts.
    pub(super) homes: Box<[u32]>,
}

/// Numbers of CPUs; empty for all of them.
type CpuList = Box<[u32]>;

impl Share {
    /// What each guest of a configuration gets, on a machine with so many CPUs.
    pub(super) fn all(
        blob: &Blob<'static>,
        pools: &[Pool],
        cpus: u32,
        clock: &Clock,
        now: u64,
    ) -> Box<[Self]> {
        // One vCPU after the other of a pool goes to the next of its CPUs.
        let mut next: Vec<usize> = pools.iter().map(|_| 0).collect();
        let mut shares: Box<[Self]> =
            blob.domains().map(|record| Self::of(&record, pools, &mut next, clock, now)).collect();
        // Reservations are kept where they were admitted.
        let placed = blob.place_reservations(cpus, |domain, vcpu, cpu| {
            if let Some(home) = shares.get_mut(domain).and_then(|share| share.homes.get_mut(vcpu as usize)) {
                *home = cpu;
            }
        });
        debug_assert!(placed.is_ok(), "the configuration has been checked against the machine");
        shares
    }

    fn of(record: &Record<'static>, pools: &[Pool], next: &mut [usize], clock: &Clock, now: u64) -> Self {
        let pool = record.pool();
        let (contract, vcpus) = (record.contract(), record.vcpus());
        let members = pools[pool].shared.members();
        let allowed: CpuList = record.cpus().iter().filter(|cpu| members.contains(cpu)).collect();
        let preferred: CpuList = record.prefer().iter().filter(|cpu| members.contains(cpu)).collect();
        let starts = if !preferred.is_empty() {
            &preferred
        } else if !allowed.is_empty() {
            &allowed
        } else {
            members
        };
        let homes = (0..vcpus)
            .map(|_| {
                let turn = next[pool];
                next[pool] += 1;
                starts[turn % starts.len()]
            })
            .collect();
        let vcpu = contract.parameters(khz(clock));
        // Chores and vCPUs are never there at the same time.
        let cap = contract.cap_ticks(khz(clock));
        Self {
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
