//! A domain's clock: its TSC, and the virtual time of its devices, which is the KVM clock's too.
//!
//! Virtual time is a function of the guest's TSC alone (the KVM clock's own formula, with its zero at the guest's TSC 0),
//! so that the guest's clock, its timers and its devices cannot drift apart.
//!
//! While a guest is paused its time stands still: the TSC that it reads, and all that is made of it, goes on where it was when
//! the last of its vCPUs left its CPU ([`DomainClock::stood_still`]).

use core::sync::atomic::{AtomicU64, Ordering};

use caisson_irqchip::TscClock;
use caisson_policy::pvclock::ClockParameters;
use caisson_types::Instant;

/// How a guest's TSC runs beside the host's: multiplied, by the hardware and here alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TscScale {
    multiplier: u64,
    fraction_bits: u32,
}

impl TscScale {
    /// The scale between a host's TSC of `host_hz` and a guest's of `guest_hz` ticks a second (0 counts as 1), with
    /// `fraction_bits` (at most 63) bits behind the point, rounded to nearest. `None` where that is 0 or does not fit.
    #[must_use]
    pub fn between(host_hz: u64, guest_hz: u64, fraction_bits: u32) -> Option<Self> {
        let host = u128::from(host_hz.max(1));
        let fraction_bits = fraction_bits.min(63);
        let multiplier = ((u128::from(guest_hz) << fraction_bits) + host / 2) / host;
        let multiplier = u64::try_from(multiplier).ok().filter(|&multiplier| multiplier != 0)?;
        Some(Self { multiplier, fraction_bits })
    }

    /// What the hardware is told.
    #[must_use]
    pub const fn multiplier(&self) -> u64 {
        self.multiplier
    }

    /// The guest's ticks, before any offset, when the host has counted `host`. The hardware keeps 64 bits of it.
    #[inline]
    const fn scale(&self, host: u64) -> u128 {
        (host as u128 * self.multiplier as u128) >> self.fraction_bits
    }

    /// The first tick of the host's at which [`TscScale::scale`] gives at least `ticks`; `u64::MAX` where there is none.
    const fn unscale(&self, ticks: u128) -> u64 {
        if ticks > self.scale(u64::MAX) {
            return u64::MAX;
        }
        // At most 64 + 64 bits, because of the test above.
        let (product, multiplier) = (ticks << self.fraction_bits, self.multiplier as u128);
        product.div_ceil(multiplier) as u64
    }
}

/// A domain's clock.
#[derive(Debug)]
pub struct DomainClock {
    /// Added to the host's TSC, which has been scaled, to make the guest's. Written while no vCPU of the guest's runs.
    offset: AtomicU64,
    /// Ticks of the guest's TSC for which its time has stood still: `offset` has been lessened by so much.
    stood: AtomicU64,
    /// Where the guest's TSC has another frequency than the host's: its scale, and the scaled TSC at virtual time 0.
    scaled: Option<(TscScale, u128)>,
    /// TSC ticks a second.
    hz: u64,
    parameters: ClockParameters,
}

impl DomainClock {
    /// A clock whose TSC and virtual time are 0 when the host's TSC is `start`; the TSC has `hz` ticks a second.
    #[must_use]
    pub fn starting_at(start: u64, hz: u64) -> Self {
        let parameters = ClockParameters::from_tsc_hz(hz);
        let offset = AtomicU64::new(start.wrapping_neg());
        Self { offset, stood: AtomicU64::new(0), scaled: None, hz, parameters }
    }

    /// The same with a TSC of `hz` ticks a second that runs by `scale` beside the host's.
    #[must_use]
    pub fn scaled(start: u64, hz: u64, scale: TscScale) -> Self {
        let base = scale.scale(start);
        let offset = AtomicU64::new((base as u64).wrapping_neg());
        Self { offset, scaled: Some((scale, base)), ..Self::starting_at(0, hz) }
    }

    /// What the host's TSC is multiplied by, where it is.
    #[must_use]
    pub fn tsc_multiplier(&self) -> Option<u64> {
        self.scaled.map(|(scale, _)| scale.multiplier())
    }

    /// The guest's TSC when the host's is `host_tsc`, but for what the guest has added to it.
    #[inline]
    #[must_use]
    pub fn guest_tsc(&self, host_tsc: u64) -> u64 {
        self.ticks(host_tsc).wrapping_add(self.tsc_offset())
    }

    /// Ticks of the guest's TSC, before any offset.
    #[inline]
    const fn ticks(&self, host_tsc: u64) -> u64 {
        match &self.scaled {
            None => host_tsc,
            Some((scale, _)) => scale.scale(host_tsc) as u64,
        }
    }

    /// The guest's time stood still while the host's TSC went from `from` to `to`: at `to` the guest's is what it was at
    /// `from`. To be called while no vCPU of the guest's runs; each takes the new offset before it does
    /// ([`VirtualCpu::follow_clock`](crate::VirtualCpu::follow_clock)).
    pub fn stood_still(&self, from: u64, to: u64) {
        let ticks = self.ticks(to.max(from)).wrapping_sub(self.ticks(from));
        self.offset.store(self.tsc_offset().wrapping_sub(ticks), Ordering::Release);
        self.stood.store(self.stood.load(Ordering::Relaxed).wrapping_add(ticks), Ordering::Release);
    }

    /// What is added to the host's TSC, once that is multiplied, to make the guest's.
    #[inline]
    #[must_use]
    pub fn tsc_offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// TSC ticks a second.
    #[must_use]
    pub const fn tsc_hz(&self) -> u64 {
        self.hz
    }

    /// The KVM clock's multiplier and shift.
    #[must_use]
    pub const fn parameters(&self) -> &ClockParameters {
        &self.parameters
    }

    /// The virtual time when the host's TSC is `host_tsc`.
    #[inline]
    #[must_use]
    pub fn at(&self, host_tsc: u64) -> Instant {
        Instant::from_nanos(self.parameters.tsc_to_ns(self.guest_tsc(host_tsc)))
    }

    /// The host's TSC at which the virtual time reaches `instant`, never early; `u64::MAX` for never.
    #[must_use]
    pub fn host_tsc_of(&self, instant: Instant) -> u64 {
        if instant == Instant::NEVER {
            return u64::MAX;
        }
        match self.parameters.ns_to_tsc(instant.as_nanos()) {
            u64::MAX => u64::MAX,
            tsc if self.scaled.is_some() => {
                let stood = u128::from(self.stood.load(Ordering::Relaxed));
                self.scaled.map_or(u64::MAX, |(scale, base)| scale.unscale(base + stood + u128::from(tsc)))
            }
            // The offset is negative as a rule, and a guest may name any time: what is beyond the host's TSC never comes.
            tsc => {
                let host = i128::from(tsc) - i128::from(self.tsc_offset() as i64);
                u64::try_from(host.max(0)).unwrap_or(u64::MAX)
            }
        }
    }

    /// The same point of time on the guest's TSC and in virtual time, for TSC deadlines. `adjust` is what the guest has
    /// added to this vCPU's TSC.
    #[must_use]
    pub fn tsc_clock(&self, host_tsc: u64, adjust: u64) -> TscClock {
        TscClock { now: self.at(host_tsc), tsc: self.guest_tsc(host_tsc).wrapping_add(adjust), hz: self.hz }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_scale_has_its_limits() {
        let scale = TscScale::between(50_000_000, 2_500_000_000, 48).unwrap();
        assert_eq!(scale.multiplier(), 50 << 48);
        assert_eq!((scale.scale(7), scale.unscale(350), scale.unscale(351)), (350, 7, 8));
        assert_eq!(TscScale::between(1, u64::MAX, 48), None);
        assert_eq!(TscScale::between(u64::MAX, 1, 48), None);
        assert!(TscScale::between(0, 1, 48).is_some());
        assert_eq!(scale.unscale(u128::MAX), u64::MAX);
    }

    #[test]
    fn a_scaled_clock_starts_at_zero() {
        let scale = TscScale::between(50_000_000, 2_500_000_000, 48).unwrap();
        let clock = DomainClock::scaled(1_000_000, 2_500_000_000, scale);
        assert_eq!((clock.guest_tsc(1_000_000), clock.guest_tsc(1_000_001)), (0, 50));
        assert_eq!(clock.at(1_000_000), Instant::ZERO);
        assert_eq!(clock.at(51_000_000), Instant::from_nanos(1_000_000_000));
        assert_eq!(clock.tsc_multiplier(), Some(50 << 48));
        assert_eq!(DomainClock::starting_at(5, 1_000).tsc_multiplier(), None);
    }

    fn scales() -> impl Strategy<Value = (u64, u64, TscScale)> {
        let hz = 1_000_000u64..10_000_000_000;
        (hz.clone(), hz, prop_oneof![Just(48u32), Just(32)])
            .prop_filter_map("too far apart", |(host, guest, bits)| {
                TscScale::between(host, guest, bits).map(|scale| (host, guest, scale))
            })
    }

    proptest! {
        /// What the hardware makes of the host's TSC is what is computed here.
        #[test]
        fn the_hardware_and_the_clock_agree((_, hz, scale) in scales(), start: u64, tsc: u64) {
            let clock = DomainClock::scaled(start, hz, scale);
            let product = u128::from(tsc) * u128::from(scale.multiplier());
            let hardware = ((product >> scale.fraction_bits) as u64).wrapping_add(clock.tsc_offset());
            prop_assert_eq!(clock.guest_tsc(tsc), hardware);
        }

        /// A frequency is kept within the multiplier's rounding: half a unit of its last place.
        #[test]
        fn the_rate_is_what_was_asked_for((host, guest, scale) in scales(), seconds in 1u64..100_000) {
            let ticks = scale.scale(host * seconds);
            let expected = u128::from(guest) * u128::from(seconds);
            let off = ((u128::from(host) * u128::from(seconds)) >> scale.fraction_bits) + 2;
            prop_assert!(ticks.abs_diff(expected) <= off, "{} of {}", ticks, expected);
        }

        /// There and back: the first tick of the host's, never early and never late.
        #[test]
        fn scaling_is_undone_exactly((_, _, scale) in scales(), ticks in 0u64..1 << 60) {
            let host = scale.unscale(u128::from(ticks));
            if host == u64::MAX {
                prop_assert!(scale.scale(u64::MAX) <= u128::from(ticks));
            } else {
                prop_assert!(scale.scale(host) >= u128::from(ticks));
                prop_assert!(host == 0 || scale.scale(host - 1) < u128::from(ticks));
            }
        }

        /// A deadline in virtual time, armed on the host's TSC.
        #[test]
        fn deadlines_come_at_the_first_tick(
            (_, hz, scale) in scales(),
            start in 0u64..1 << 50,
            ns in 1u64..1_000_000_000_000_000,
        ) {
            let clock = DomainClock::scaled(start, hz, scale);
            let instant = Instant::from_nanos(ns);
            let host = clock.host_tsc_of(instant);
            prop_assert!(host != u64::MAX && host >= start);
            prop_assert!(clock.at(host) >= instant);
            prop_assert!(clock.at(host - 1) < instant || host == start);
        }

        /// A pause is not there for the guest: its TSC, its time and its deadlines go on where they were.
        #[test]
        fn a_pause_is_not_seen(
            (_, hz, scale) in scales(),
            scaled: bool,
            start in 0u64..1 << 50,
            pauses in proptest::collection::vec((1u64..1 << 45, 0u64..1 << 45), 0..5),
            ahead in 1u64..1_000_000_000_000,
        ) {
            let clock = if scaled {
                DomainClock::scaled(start, hz, scale)
            } else {
                DomainClock::starting_at(start, hz)
            };
            let mut now = start;
            for (runs, stands) in pauses {
                let before = now;
                let reached = clock.guest_tsc(before);
                let stops = before + runs;
                let (tsc, time) = (clock.guest_tsc(stops), clock.at(stops));
                prop_assert!(tsc >= reached);
                now = stops + stands;
                clock.stood_still(stops, now);
                prop_assert_eq!((clock.guest_tsc(now), clock.at(now)), (tsc, time));
            }
            let instant = Instant::from_nanos(clock.at(now).as_nanos() + ahead);
            let host = clock.host_tsc_of(instant);
            prop_assert!(host > now && clock.at(host) >= instant);
            prop_assert!(clock.at(host - 1) < instant);
        }

        /// So does one in ticks of the guest's TSC.
        #[test]
        fn a_tsc_deadline_is_the_guests(
            (_, hz, scale) in scales(),
            start in 0u64..1 << 50,
            passed in 0u64..1 << 50,
            adjust: u64,
        ) {
            let clock = DomainClock::scaled(start, hz, scale);
            let point = clock.tsc_clock(start + passed, adjust);
            prop_assert_eq!(point.tsc.wrapping_sub(adjust), clock.guest_tsc(start + passed));
            prop_assert_eq!((point.now, point.hz), (clock.at(start + passed), hz));
        }
    }
}
