//! CPU pools and the domains' contracts with them: the limits, and the checks. As in `rules`, text and blob are checked
//! by these very functions.

use crate::admission;
use crate::cpus::{CpuList, CpuSet};
use crate::error::{BlobError, Field, Reason};
use crate::rules;
use crate::settings::{Contract, PoolPolicy, ReservedTime};

/// The pool of domains that name none. There always is one.
pub const DEFAULT_POOL: &str = "default";
/// The most pools.
pub const MAX_POOLS: usize = 64;
/// The largest weight.
pub const MAX_WEIGHT: u32 = 65_535;
/// The largest cap, in percent of a CPU.
pub const MAX_CAP: u32 = 100 * rules::MAX_VCPUS;
/// The shortest quantum, warp, period and slice, in microseconds: below that the CPU does little but switch.
pub const MIN_TIME: u32 = 100;
/// The longest, in microseconds.
pub const MAX_TIME: u32 = 10_000_000;
/// The quantum where none is given, in microseconds.
pub const QUANTUM: u32 = 10_000;
/// How often a warp limit is filled, in microseconds.
pub const WARP_PERIOD: u32 = 100_000;
/// How much of each CPU reservations may take together, in thousandths. The rest is for the hypervisor's own work.
pub const RESERVABLE: u32 = 950;

/// A CPU pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pool<'a> {
    /// Its name.
    pub name: &'a str,
    /// The CPUs that the configuration names; empty for those that no pool names. See
    /// [`Blob::pool_cpus`](crate::Blob::pool_cpus).
    pub cpus: CpuList<'a>,
    /// How they are shared out.
    pub policy: PoolPolicy,
    /// How long a vCPU runs while another waits, in microseconds; 0 for a pool of the machine's, of which no more than the name
    /// is told ([`Pool::is_machines`]).
    pub quantum: u32,
}

impl Pool<'_> {
    /// Whether the pool is the machine's, found there by its name: of those that [`Purpose::Later`](crate::Purpose) is about.
    #[must_use]
    pub fn is_machines(&self) -> bool {
        self.quantum == 0
    }
}

/// A pool's values before they are checked.
#[derive(Clone, Copy)]
pub(crate) struct PoolValues<'a> {
    pub(crate) name: &'a str,
    pub(crate) cpus: &'a str,
    pub(crate) policy: PoolPolicy,
    pub(crate) quantum: u32,
}

impl PoolValues<'_> {
    /// No more than the name of a pool of the machine's is told: what it has is not known here.
    pub(crate) fn is_machines(&self) -> bool {
        self.quantum == 0 && self.cpus.is_empty() && self.policy == PoolPolicy::Bvt
    }
}

/// A domain's contract before it is checked.
#[derive(Clone, Copy)]
pub(crate) struct ContractValues<'a> {
    /// The pool's number; `None` where the name that was given is no pool's.
    pub(crate) pool: Option<usize>,
    /// That name, for the message.
    pub(crate) pool_name: &'a str,
    pub(crate) cpus: &'a str,
    pub(crate) prefer: &'a str,
    pub(crate) vcpus: u32,
    pub(crate) contract: Contract,
}

/// All pools and domains of a configuration.
pub(crate) struct Contracts<P, D> {
    pub(crate) pools: P,
    pub(crate) domains: D,
}

impl<'a, P, D> Contracts<P, D>
where
    P: Iterator<Item = PoolValues<'a>> + Clone,
    D: Iterator<Item = ContractValues<'a>> + Clone,
{
    /// Checks all that can be checked without knowing the machine, and with `cpus`, the number of its CPUs, the rest.
    pub(crate) fn check(&self, cpus: Option<u32>) -> Result<(), BlobError<'a>> {
        rules::check_count(self.pools.clone().count(), 1, MAX_POOLS)
            .map_err(|reason| BlobError::new(Field::Pools, reason))?;
        for (index, pool) in self.pools.clone().enumerate() {
            self.check_pool(index, &pool, cpus)?;
        }
        for (index, domain) in self.domains.clone().enumerate() {
            self.check_domain(index, &domain, cpus)?;
        }
        for pool in 0..self.pools.clone().count() {
            admission::place(self, pool, cpus, |_, _, _| {})?;
        }
        Ok(())
    }

    fn check_pool(
        &self,
        index: usize,
        pool: &PoolValues<'a>,
        cpus: Option<u32>,
    ) -> Result<(), BlobError<'a>> {
        let at = |name, reason| BlobError::new(Field::Pool(index, name), reason);
        rules::check_name(pool.name).map_err(|reason| at("name", reason))?;
        let mut earlier = self.pools.clone().take(index);
        if let Some(first) = earlier.position(|earlier| earlier.name == pool.name) {
            return Err(at("name", Reason::DuplicatePool { name: pool.name, first }));
        }
        if pool.is_machines() {
            return Ok(());
        }
        check_time(pool.quantum).map_err(|reason| at("quantum", reason))?;
        let list = CpuList::parse(pool.cpus).ok_or(at("cpus", Reason::BadCpuList(pool.cpus)))?;
        if list.is_empty() && pool.name != DEFAULT_POOL {
            return Err(at("cpus", Reason::NoCpus));
        }
        for (first, earlier) in self.pools.clone().take(index).enumerate() {
            let earlier = CpuList::parse(earlier.cpus).unwrap_or_else(CpuList::none).set();
            if let Some(cpu) = list.iter().find(|&cpu| earlier.contains(cpu)) {
                return Err(at("cpus", Reason::CpuInTwoPools { cpu, first }));
            }
        }
        match cpus.and_then(|have| list.iter().find(|&cpu| cpu >= have).map(|cpu| (cpu, have))) {
            Some((cpu, have)) => Err(at("cpus", Reason::CpuBeyondMachine { cpu, have })),
            None => Ok(()),
        }
    }

    fn check_domain(
        &self,
        index: usize,
        domain: &ContractValues<'a>,
        cpus: Option<u32>,
    ) -> Result<(), BlobError<'a>> {
        let at = |name, reason| BlobError::new(Field::Domain(index, name), reason);
        let number = domain.pool.ok_or(at("pool", Reason::NoSuchPool(domain.pool_name)))?;
        let no_pool = at("pool", Reason::NoSuch { what: "pool", index: number as u32 });
        let pool = self.pools.clone().nth(number).ok_or(no_pool)?;
        check_contract(&domain.contract).map_err(|(name, reason)| at(name, reason))?;
        let list = |name, text| CpuList::parse(text).ok_or(at(name, Reason::BadCpuList(text)));
        let (allowed, preferred) = (list("cpus", domain.cpus)?, list("prefer", domain.prefer)?);
        let among = allowed.set();
        if let Some(cpu) = preferred.iter().find(|&cpu| !allowed.is_empty() && !among.contains(cpu)) {
            return Err(at("prefer", Reason::CpuNotAllowed(cpu)));
        }
        if pool.is_machines() {
            return Ok(());
        }
        if domain.contract.reservation.is_some() && pool.policy != PoolPolicy::Sedf {
            return Err(at("slice", Reason::NoReservations(pool.name)));
        }
        let has = self.cpus_of(number, cpus);
        for (name, list) in [("cpus", allowed), ("prefer", preferred)] {
            if let Some(cpu) = list.iter().find(|&cpu| !has.contains(cpu)) {
                return Err(at(name, Reason::CpuNotInPool { cpu, pool: pool.name }));
            }
        }
        match cpus {
            Some(have) if has == CpuSet::NONE => Err(at("pool", Reason::PoolEmpty { pool: pool.name, have })),
            _ => Ok(()),
        }
    }

    /// The CPUs of a pool, of those below `cpus` where that is known.
    pub(crate) fn cpus_of(&self, pool: usize, cpus: Option<u32>) -> CpuSet {
        let mut set = CpuSet::NONE;
        let named = |pool: PoolValues<'a>| CpuList::parse(pool.cpus).unwrap_or_else(CpuList::none);
        match self.pools.clone().nth(pool) {
            None => {}
            Some(pool) if pool.is_machines() => {}
            Some(pool) if pool.cpus.is_empty() => {
                self.pools.clone().flat_map(|pool| named(pool).iter()).for_each(|cpu| set.add(cpu));
                set.invert();
            }
            Some(pool) => named(pool).iter().for_each(|cpu| set.add(cpu)),
        }
        if let Some(cpus) = cpus {
            set.keep_below(cpus);
        }
        set
    }
}

fn check_contract(contract: &Contract) -> Result<(), (&'static str, Reason<'static>)> {
    let range = |name, value: u32, max: u32| match value {
        value if (1..=max).contains(&value) => Ok(()),
        value => Err((name, Reason::OutOfRange { value, max })),
    };
    range("weight", contract.weight, MAX_WEIGHT)?;
    contract.cap.map_or(Ok(()), |cap| range("cap", cap, MAX_CAP))?;
    let time = |name, micros| check_time(micros).map_err(|reason| (name, reason));
    match (contract.warp, contract.warp_limit) {
        (0, 0) => {}
        (_, 0) => return Err(("warp", Reason::Needs("warp_limit"))),
        (0, _) => return Err(("warp_limit", Reason::Needs("warp"))),
        (warp, limit) => {
            time("warp", warp)?;
            time("warp_limit", limit)?;
        }
    }
    if let Some(ReservedTime { period, slice, .. }) = contract.reservation {
        match (period, slice) {
            (0, _) => return Err(("slice", Reason::Needs("period"))),
            (_, 0) => return Err(("period", Reason::Needs("slice"))),
            _ => {}
        }
        time("period", period)?;
        time("slice", slice)?;
        if slice > period {
            return Err(("slice", Reason::SliceTooLong { slice, period }));
        }
    }
    Ok(())
}

fn check_time(micros: u32) -> Result<(), Reason<'static>> {
    if (MIN_TIME..=MAX_TIME).contains(&micros) { Ok(()) } else { Err(Reason::BadTime(micros)) }
}
