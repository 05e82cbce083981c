//! The admission test for the CPUs of a pool: on which of them a reservation goes.
//!
//! Reservations are *partitioned*: each stays on one CPU, where EDF meets all deadlines whenever the sum of slice over
//! period fits. Finding the best partition is bin packing; this is *first fit*, which of *m* whole CPUs turns down
//! nothing as long as all reservations, the new one included, add up to at most *(m + 1) / 2* (J. M. López, J. L. Díaz
//! and D. F. García, "Utilization bounds for EDF scheduling on real-time multiprocessor systems", Real-Time Systems 28,
//! 2004; spreading them out, worst fit, guarantees no more than one CPU's worth).

use crate::Reservation;
use crate::edf::{WHOLE, limit};

/// What of a CPU is reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Utilisation(u128);

impl Utilisation {
    /// In millionths, rounded up.
    #[must_use]
    pub fn ppm(self) -> u32 {
        (self.0 * 1_000_000).div_ceil(WHOLE) as u32
    }
}

/// Books a reservation on the first `allowed` CPU that has room, and answers which; `None` where it is invalid, or fits
/// none. `reservable` thousandths of each CPU may be booked; `booked` is by CPU.
///
/// The test is that of [`CpuQueue::add`](crate::CpuQueue::add): reservations that were placed in any order on empty CPUs
/// are admitted there.
pub fn place(
    booked: &mut [Utilisation],
    reservable: u32,
    reservation: &Reservation,
    allowed: impl Fn(usize) -> bool,
) -> Option<usize> {
    reservation.check().ok()?;
    let fits = |has: &Utilisation| has.0.saturating_add(reservation.share()) <= limit(reservable);
    let (cpu, has) = booked.iter_mut().enumerate().find(|(cpu, has)| allowed(*cpu) && fits(has))?;
    has.0 += reservation.share();
    Some(cpu)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Utilisation, place};
    use crate::{CpuQueue, GroupId, Parameters, PolicyKind, Pool, Reservation, Settings};

    const SETTINGS: Settings = Settings { quantum: 1000, min_turn: 100, allowance: 100, reservable: 950 };

    #[test]
    fn the_first_with_room_gets_it() {
        let mut booked = [Utilisation::default(); 3];
        let half = Reservation { period: 100, slice: 50, extra: true };
        let mut one = |allowed: u64| place(&mut booked, 1000, &half, |cpu| allowed >> cpu & 1 != 0);
        let got = [one(7), one(6), one(7), one(7), one(1), one(3), one(7), one(7)];
        assert_eq!(got, [Some(0), Some(1), Some(0), Some(1), None, None, Some(2), Some(2)]);
        assert_eq!(one(7), None);
        assert_eq!(booked.map(Utilisation::ppm), [1_000_000; 3]);
    }

    proptest! {
        /// What is placed offline, in microseconds, is admitted at boot, in ticks of any clock.
        #[test]
        fn what_is_placed_is_admitted(
            wishes in proptest::collection::vec((1000u32..1_000_000, 1u32..500), 1..60),
            khz in 1_000u64..6_000_000,
        ) {
            let mut booked = [Utilisation::default(); 4];
            let pool = Pool::new(&[0, 1, 2, 3]);
            let mut queues: std::vec::Vec<_> = (0..4)
                .map(|cpu| CpuQueue::new(pool.clone(), cpu, PolicyKind::Sedf, &SETTINGS, 64, 1))
                .collect();
            for (period, thousandths) in wishes {
                let slice = (u64::from(period) * u64::from(thousandths) / 1000) as u32;
                let micros = Reservation { period: u64::from(period), slice: u64::from(slice), extra: true };
                if let Some(cpu) = place(&mut booked, 950, &micros, |_| true) {
                    let ticks = Reservation::from_micros(period, slice, true, khz);
                    let added = queues[cpu].add(GroupId(0), Parameters::with_reservation(ticks), 0);
                    prop_assert!(added.is_ok(), "{:?}", added);
                }
            }
        }
    }
}
