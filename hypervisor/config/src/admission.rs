//! Which CPU each reservation goes to. The scheduler's own test decides, here when a configuration is checked and again
//! when it is started.

use caisson_sched::{Reservation, Utilisation};

use crate::cpus::CpuList;
use crate::error::{BlobError, Field, Reason};
use crate::pools::{ContractValues, Contracts, PoolValues, RESERVABLE};
use crate::settings::PoolPolicy;

/// Reservations go to CPUs below this number.
pub(crate) const CPUS: usize = 256;

/// Places the reservations of a pool's domains, in their order, and tells `placed` of each: domain, vCPU, CPU. Nothing is
/// placed in a pool whose CPUs depend on the machine while `cpus`, the number of its CPUs, is unknown.
pub(crate) fn place<'a, P, D>(
    contracts: &Contracts<P, D>,
    pool: usize,
    cpus: Option<u32>,
    mut placed: impl FnMut(usize, u32, u32),
) -> Result<(), BlobError<'a>>
where
    P: Iterator<Item = PoolValues<'a>> + Clone,
    D: Iterator<Item = ContractValues<'a>> + Clone,
{
    let Some(values) = contracts.pools.clone().nth(pool) else { return Ok(()) };
    if values.policy != PoolPolicy::Sedf || (values.cpus.is_empty() && cpus.is_none()) {
        return Ok(());
    }
    let has = contracts.cpus_of(pool, cpus);
    let mut booked = [Utilisation::default(); CPUS];
    for (index, domain) in contracts.domains.clone().enumerate() {
        let Some(time) = domain.contract.reservation.filter(|_| domain.pool == Some(pool)) else { continue };
        let list = CpuList::parse(domain.cpus).unwrap_or_else(CpuList::none);
        let own = list.set();
        let reservation =
            Reservation { period: u64::from(time.period), slice: u64::from(time.slice), extra: time.extra };
        let allowed = |cpu: usize| has.contains(cpu as u32) && (list.is_empty() || own.contains(cpu as u32));
        for vcpu in 0..domain.vcpus {
            let cpu = caisson_sched::place(&mut booked, RESERVABLE, &reservation, allowed).ok_or(
                BlobError::new(
                    Field::Domain(index, "slice"),
                    Reason::Overbooked { slice: time.slice, period: time.period, vcpu, pool: values.name },
                ),
            )?;
            placed(index, vcpu, cpu as u32);
        }
    }
    Ok(())
}
