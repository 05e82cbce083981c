//! What pools and contracts are to the scheduler: microseconds and percents become ticks of the machine's clock.

use caisson_sched::{Cap, MAX_PERIOD, Parameters, PolicyKind, Reservation, Settings};

use crate::pools::{Pool, RESERVABLE, WARP_PERIOD};
use crate::settings::{Contract, PoolPolicy};

/// How often the quota of a cap is renewed, in microseconds.
pub const CAP_WINDOW: u32 = 100_000;
/// The shortest turn, and how far one may run ahead of one that wakes, in parts of the quantum.
const PARTS: u64 = 10;

fn ticks(micros: u32, khz: u64) -> u64 {
    (u128::from(micros) * u128::from(khz) / 1000).min(u128::from(MAX_PERIOD)) as u64
}

impl PoolPolicy {
    /// The scheduler's name for it.
    #[must_use]
    pub fn kind(self) -> PolicyKind {
        match self {
            Self::Bvt => PolicyKind::Bvt,
            Self::Sedf => PolicyKind::Sedf,
        }
    }
}

impl Pool<'_> {
    /// The settings of the pool's queues, in ticks of a clock of `khz`.
    #[must_use]
    pub fn settings(&self, khz: u64) -> Settings {
        let quantum = ticks(self.quantum, khz).max(1);
        let part = (quantum / PARTS).max(1);
        Settings { quantum, min_turn: part, allowance: part, reservable: RESERVABLE }
    }
}

impl Contract {
    /// The parameters of each of the domain's vCPUs, in ticks of a clock of `khz`.
    #[must_use]
    pub fn parameters(&self, khz: u64) -> Parameters {
        Parameters {
            weight: self.weight,
            warp: ticks(self.warp, khz),
            warp_limit: ticks(self.warp_limit, khz),
            warp_period: ticks(WARP_PERIOD, khz),
            reservation: self.reservation.map_or(Reservation::NONE, |time| {
                Reservation::from_micros(time.period, time.slice, time.extra, khz)
            }),
        }
    }

    /// The cap of the whole domain, in ticks of a clock of `khz`.
    #[must_use]
    pub fn cap_ticks(&self, khz: u64) -> Option<Cap> {
        let window = ticks(CAP_WINDOW, khz).max(1);
        let quota = |percent: u32| (window.saturating_mul(u64::from(percent)) / 100).max(1);
        self.cap.map(|percent| Cap { quota: quota(percent), window })
    }
}

#[cfg(test)]
mod tests {
    use caisson_sched::{Cap, Reservation};

    use crate::settings::{Contract, ReservedTime};
    use crate::{CpuList, Pool, PoolPolicy};

    #[test]
    fn microseconds_become_ticks() {
        let pool = Pool { name: "p", cpus: CpuList::none(), policy: PoolPolicy::Sedf, quantum: 10_000 };
        let settings = pool.settings(2_500_000);
        assert_eq!(
            (settings.quantum, settings.min_turn, settings.allowance),
            (25_000_000, 2_500_000, 2_500_000)
        );
        let reservation = Some(ReservedTime { period: 1001, slice: 101, extra: false });
        let contract = Contract { weight: 7, cap: Some(150), warp: 5000, warp_limit: 100, reservation };
        let parameters = contract.parameters(3_333_333);
        assert_eq!((parameters.weight, parameters.warp, parameters.warp_limit), (7, 16_666_665, 333_333));
        // The period is rounded up and the slice down.
        let reservation = Reservation { period: 3_336_667, slice: 336_666, extra: false };
        assert_eq!(parameters.reservation, reservation);
        let cap = Cap { quota: 150_000_000, window: 100_000_000 };
        assert_eq!(contract.cap_ticks(1_000_000), Some(cap));
        assert_eq!(Contract::USUAL.cap_ticks(1_000_000), None);
        assert_eq!(Contract::USUAL.parameters(1).reservation, Reservation::NONE);
    }
}
