//! A domain's clock: its TSC, and the virtual time of its devices, which is the KVM clock's too.
//!
//! Virtual time is a function of the guest's TSC alone (the KVM clock's own formula, with its zero at the guest's TSC 0),
//! so that the guest's clock, its timers and its devices cannot drift apart.

use caisson_irqchip::TscClock;
use caisson_policy::pvclock::ClockParameters;
use caisson_types::Instant;

/// A domain's clock.
#[derive(Clone, Copy, Debug)]
pub struct DomainClock {
    /// Added to the host's TSC to make the guest's.
    offset: u64,
    /// TSC ticks a second.
    hz: u64,
    parameters: ClockParameters,
}

impl DomainClock {
    /// A clock whose TSC and virtual time are 0 when the host's TSC is `start`; the TSC has `hz` ticks a second.
    #[must_use]
    pub fn starting_at(start: u64, hz: u64) -> Self {
        Self { offset: start.wrapping_neg(), hz, parameters: ClockParameters::from_tsc_hz(hz) }
    }

    /// What is added to the host's TSC to make the guest's.
    #[must_use]
    pub const fn tsc_offset(&self) -> u64 {
        self.offset
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
        Instant::from_nanos(self.parameters.tsc_to_ns(host_tsc.wrapping_add(self.offset)))
    }

    /// The host's TSC at which the virtual time reaches `instant`, never early; `u64::MAX` for never.
    #[must_use]
    pub fn host_tsc_of(&self, instant: Instant) -> u64 {
        if instant == Instant::NEVER {
            return u64::MAX;
        }
        match self.parameters.ns_to_tsc(instant.as_nanos()) {
            u64::MAX => u64::MAX,
            // The offset is negative as a rule, and a guest may name any time: what is beyond the host's TSC never comes.
            tsc => {
                let host = i128::from(tsc) - i128::from(self.offset as i64);
                u64::try_from(host.max(0)).unwrap_or(u64::MAX)
            }
        }
    }

    /// The same point of time on the guest's TSC and in virtual time, for TSC deadlines. `adjust` is what the guest has
    /// added to this vCPU's TSC.
    #[must_use]
    pub fn tsc_clock(&self, host_tsc: u64, adjust: u64) -> TscClock {
        TscClock {
            now: self.at(host_tsc),
            tsc: host_tsc.wrapping_add(self.offset).wrapping_add(adjust),
            hz: self.hz,
        }
    }
}
