//! The KVM clock (Linux `Documentation/virt/kvm/x86/msr.rst`): its arithmetic, its structures in guest memory, and the
//! addresses that its MSRs take.
//!
//! A guest computes its time as
//! `system_time + (((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32)`, a right shift where `tsc_shift` is
//! negative. Caisson uses the very same [`ClockParameters`] for the virtual time of the domain's devices, so that the
//! guest's clock and its timers agree to the nanosecond and cannot drift apart.
//!
//! Invariant: multiplier and shift are normalised (the multiplier has its highest bit set), so that the rate is off by
//! at most one part in 2^32: 0.12 s a year, and the same for every reader.

use caisson_types::{Gpa, GuestMemory, MemoryError};

use crate::GeneralProtection;

const NANOS: u64 = 1_000_000_000;

/// How TSC ticks become nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockParameters {
    /// `tsc_to_system_mul`: nanoseconds a (shifted) tick, as a fraction of 2^32; at least 2^31.
    mul: u32,
    /// `tsc_shift`: how far ticks are shifted left first; right where it is negative. -34 to 31.
    shift: i8,
}

impl ClockParameters {
    /// The parameters for a TSC of `hz` ticks a second; 0 counts as 1.
    #[must_use]
    pub const fn from_tsc_hz(hz: u64) -> Self {
        let hz = if hz == 0 { 1 } else { hz as u128 };
        // The largest shift whose multiplier, rounded to nearest, has its highest bit set. It cannot pass 32 bits: with
        // the next larger shift it was below 2^31 - 1/2, so here it is below 2^32 - 1.
        let mut shift = 31_i8;
        loop {
            let scaled = (NANOS as u128) << (32 - shift as i32) as u32;
            let mul = (scaled + hz / 2) / hz;
            if mul >= 1 << 31 {
                return Self { mul: mul as u32, shift };
            }
            shift -= 1;
        }
    }

    /// The multiplier, a fraction of 2^32.
    #[must_use]
    pub const fn mul(&self) -> u32 {
        self.mul
    }

    /// The shift of the ticks, to the left where positive.
    #[must_use]
    pub const fn shift(&self) -> i8 {
        self.shift
    }

    /// Nanoseconds that `ticks` take, by the guest's own formula (rounded down). Saturates at `u64::MAX`.
    #[inline]
    #[must_use]
    pub const fn tsc_to_ns(&self, ticks: u64) -> u64 {
        let ns = if self.shift < 0 {
            ((ticks >> -(self.shift as i32)) as u128 * self.mul as u128) >> 32
        } else {
            // At most 64 + 32 + 31 bits.
            (ticks as u128 * self.mul as u128) << self.shift as u32 >> 32
        };
        if ns > u64::MAX as u128 { u64::MAX } else { ns as u64 }
    }

    /// The first tick at which [`ClockParameters::tsc_to_ns`] gives at least `ns`; `u64::MAX` where there is none.
    #[inline]
    #[must_use]
    pub const fn ns_to_tsc(&self, ns: u64) -> u64 {
        // ceil(ns * 2^32 / mul) in two divisions of 64 bits: the remainder has at most 32. The highest bit of the
        // multiplier is always set; to say so spares the check for a division by zero.
        let mul = self.mul as u64 | 1 << 31;
        let low = (ns % mul) << 32;
        let shifted = ((ns / mul) as u128) << 32 | (low / mul) as u128;
        let shifted = shifted + !low.is_multiple_of(mul) as u128;
        let ticks = if self.shift < 0 {
            shifted << -(self.shift as i32)
        } else {
            (shifted + ((1 << self.shift as u32) - 1)) >> self.shift as u32
        };
        if ticks > u64::MAX as u128 { u64::MAX } else { ticks as u64 }
    }
}

/// `PVCLOCK_TSC_STABLE_BIT`: all vCPUs' structures describe one clock.
pub const TSC_STABLE: u8 = 1 << 0;

/// `struct pvclock_vcpu_time_info`, 32 bytes, little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimeInfo {
    /// Even; odd while the rest is being changed.
    pub version: u32,
    /// The vCPU's TSC at `system_time`.
    pub tsc_timestamp: u64,
    /// Nanoseconds of virtual time at `tsc_timestamp`.
    pub system_time: u64,
    /// How ticks since then become nanoseconds.
    pub parameters: ClockParameters,
    /// [`TSC_STABLE`] and no other.
    pub flags: u8,
}

impl TimeInfo {
    /// Its size in guest memory, in bytes.
    pub const SIZE: usize = 32;

    /// A clock that read 0 when the vCPU's TSC read `tsc_at_zero`, the same clock for all vCPUs.
    #[must_use]
    pub const fn new(parameters: &ClockParameters, tsc_at_zero: u64) -> Self {
        Self {
            version: 2,
            tsc_timestamp: tsc_at_zero,
            system_time: 0,
            parameters: *parameters,
            flags: TSC_STABLE,
        }
    }

    /// Its bytes in guest memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let fields = [
            (0, u64::from(self.version)),
            (8, self.tsc_timestamp),
            (16, self.system_time),
            (24, u64::from(self.parameters.mul)),
        ];
        for (at, value) in fields {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[28] = self.parameters.shift.to_le_bytes()[0];
        bytes[29] = self.flags;
        bytes
    }

    /// Puts it into guest memory so that a reader on another vCPU never takes half of it: the version goes odd first and
    /// on to the next even number last. The version in memory is counted on from; that of `self` is not used.
    ///
    /// # Errors
    /// [`MemoryError`] where the guest has no memory at `at`.
    pub fn publish(&self, memory: &impl GuestMemory, at: Gpa) -> Result<(), MemoryError> {
        publish(memory, at, &self.to_bytes())
    }

    /// What the guest computes from it when its TSC reads `tsc`.
    #[must_use]
    pub const fn time_at(&self, tsc: u64) -> u64 {
        self.system_time.wrapping_add(self.parameters.tsc_to_ns(tsc.wrapping_sub(self.tsc_timestamp)))
    }
}

/// `struct pvclock_wall_clock`, 12 bytes, little-endian: the time of day at virtual time 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WallClock {
    /// Seconds since 1970-01-01 00:00 UTC, modulo 2^32.
    pub seconds: u32,
    /// Nanoseconds beyond them, below 10^9.
    pub nanoseconds: u32,
}

impl WallClock {
    /// Its size in guest memory, in bytes.
    pub const SIZE: usize = 12;

    /// Virtual time 0 at `seconds` since 1970 (UTC).
    #[must_use]
    pub const fn new(seconds: u64) -> Self {
        Self { seconds: seconds as u32, nanoseconds: 0 }
    }

    /// Virtual time 0 at `nanoseconds` since 1970 (UTC).
    #[must_use]
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self { seconds: (nanoseconds / NANOS) as u32, nanoseconds: (nanoseconds % NANOS) as u32 }
    }

    /// Its bytes in guest memory, with an even version.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (at, value) in [(0, 2), (4, self.seconds), (8, self.nanoseconds)] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// Puts it into guest memory, as [`TimeInfo::publish`] does.
    ///
    /// # Errors
    /// [`MemoryError`] where the guest has no memory at `at`.
    pub fn publish(&self, memory: &impl GuestMemory, at: Gpa) -> Result<(), MemoryError> {
        publish(memory, at, &self.to_bytes())
    }
}

/// Writes a structure that starts with a version of 4 bytes.
fn publish(memory: &impl GuestMemory, at: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
    let outside = MemoryError { gpa: at };
    let (_, body) = bytes.split_at_checked(4).ok_or(outside)?;
    let body_at = at.checked_add(4).ok_or(outside)?;
    // Whatever the guest left there, even or odd, the next odd number is new to a reader.
    let odd = memory.read_u32(at)?.wrapping_add(1) | 1;
    memory.write_u32(at, odd)?;
    memory.write(body_at, body)?;
    memory.write_u32(at, odd.wrapping_add(1))
}

/// The address in a write to KVM's system-time or PV EOI MSR: bit 0 says whether it is in use, `None` where it is not.
///
/// # Errors
/// Bit 1 is set: the structure must lie on a multiple of 4.
pub const fn enabled_address(value: u64) -> Result<Option<Gpa>, GeneralProtection> {
    match value & 3 {
        0 => Ok(None),
        1 => Ok(Some(Gpa::new(value & !3))),
        _ => Err(GeneralProtection),
    }
}

/// The address in a write to KVM's wall-clock MSR.
///
/// # Errors
/// It is not a multiple of 4.
pub const fn wall_clock_address(value: u64) -> Result<Gpa, GeneralProtection> {
    if value & 3 == 0 { Ok(Gpa::new(value)) } else { Err(GeneralProtection) }
}

#[cfg(test)]
mod tests {
    use caisson_types::SliceMemory;
    use proptest::prelude::*;

    use super::*;

    /// The formula of the documentation, word for word, in 64-bit registers as a guest has them.
    fn guest_formula(info: &[u8; 32], tsc: u64) -> u64 {
        let word = |at: usize| u64::from_le_bytes(info[at..at + 8].try_into().unwrap());
        let mut delta = tsc.wrapping_sub(word(8));
        let shift = info[28] as i8;
        if shift < 0 {
            delta >>= -shift;
        } else {
            delta <<= shift;
        }
        let mul = word(24) as u32;
        word(16).wrapping_add(((u128::from(delta) * u128::from(mul)) >> 32) as u64)
    }

    #[test]
    fn parameters_of_common_clocks() {
        let table = [
            (1_000_000_000, 1 << 31, 1),
            (2_000_000_000, 1 << 31, 0),
            (4_000_000_000, 1 << 31, -1),
            (2_500_000_000, 3_435_973_837, -1),
            (1, 4_000_000_000, 30),
            (0, 4_000_000_000, 30),
        ];
        for (hz, mul, shift) in table {
            let p = ClockParameters::from_tsc_hz(hz);
            assert_eq!((p.mul(), p.shift()), (mul, shift), "{hz}");
        }
        assert_eq!(ClockParameters::from_tsc_hz(u64::MAX).shift(), -34);
    }

    #[test]
    fn icount_is_one_to_one() {
        let p = ClockParameters::from_tsc_hz(1_000_000_000);
        assert_eq!(p.tsc_to_ns(123_456_789_012), 123_456_789_012);
        assert_eq!(p.ns_to_tsc(123_456_789_012), 123_456_789_012);
    }

    #[test]
    fn structures_have_the_abi_layout() {
        let info = TimeInfo {
            version: 0x0403_0202,
            tsc_timestamp: 0x1817_1615_1413_1211,
            system_time: 0x2827_2625_2423_2221,
            parameters: ClockParameters::from_tsc_hz(4_000_000_000),
            flags: TSC_STABLE,
        };
        let mut expected = [0; 32];
        expected[..4].copy_from_slice(&[2, 2, 3, 4]);
        expected[8..16].copy_from_slice(&[0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
        expected[16..24].copy_from_slice(&[0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28]);
        expected[24..30].copy_from_slice(&[0, 0, 0, 0x80, 0xff, 1]);
        assert_eq!(info.to_bytes(), expected);
        let wall = WallClock::from_nanos(1_700_000_000_000_000_007);
        assert_eq!(wall.to_bytes(), [2, 0, 0, 0, 0x00, 0xf1, 0x53, 0x65, 7, 0, 0, 0]);
        assert_eq!(WallClock::new(1_700_000_000).seconds, wall.seconds);
    }

    #[test]
    fn publishing_counts_the_version_on() {
        let mut bytes = [0; 64];
        let memory = SliceMemory::new(&mut bytes);
        let info = TimeInfo::new(&ClockParameters::from_tsc_hz(3_000_000_000), 5);
        let at = Gpa::new(8);
        for version in [2, 4] {
            assert_eq!(info.publish(&memory, at), Ok(()));
            assert_eq!(memory.read_u32(at), Ok(version));
            assert_eq!(memory.read_u64(Gpa::new(16)), Ok(5));
        }
        memory.write_u32(at, u32::MAX).unwrap();
        info.publish(&memory, at).unwrap();
        assert_eq!(memory.read_u32(at).unwrap() & 1, 0);
        assert!(info.publish(&memory, Gpa::new(60)).is_err());
        assert!(WallClock::new(0).publish(&memory, Gpa::new(u64::MAX - 1)).is_err());
    }

    #[test]
    fn addresses() {
        assert_eq!(enabled_address(0x1000), Ok(None));
        assert_eq!(enabled_address(0x1005), Ok(Some(Gpa::new(0x1004))));
        assert_eq!(enabled_address(0x1003), Err(GeneralProtection));
        assert_eq!(wall_clock_address(0x1004), Ok(Gpa::new(0x1004)));
        assert_eq!(wall_clock_address(0x1001), Err(GeneralProtection));
    }

    proptest! {
        #[test]
        fn parameters_are_normalised_and_exact(hz in 1_u64..) {
            let p = ClockParameters::from_tsc_hz(hz);
            prop_assert!(p.mul() >= 1 << 31 && (-34..=31).contains(&p.shift()));
            // |mul - exact| <= 1/2, in units of 2^(shift - 32) nanoseconds a tick.
            let exact = u128::from(NANOS) << (32 - i32::from(p.shift())) as u32;
            prop_assert!((u128::from(p.mul()) * u128::from(hz)).abs_diff(exact) * 2 <= u128::from(hz));
        }

        #[test]
        fn time_is_exact_to_the_nanosecond(hz in 1_000_000_u64..20_000_000_000, ticks in 0_u64..1 << 54) {
            let p = ClockParameters::from_tsc_hz(hz);
            let exact = u128::from(ticks) * u128::from(NANOS) / u128::from(hz);
            let error = u128::from(p.tsc_to_ns(ticks)).abs_diff(exact);
            prop_assert!(error <= 2 + (exact >> 32), "{}", error);
        }

        #[test]
        fn guest_and_hypervisor_agree(hz in 1_000_000_u64..20_000_000_000, ticks in 0_u64..1 << 54, zero: u64) {
            let info = TimeInfo::new(&ClockParameters::from_tsc_hz(hz), zero);
            let tsc = zero.wrapping_add(ticks);
            prop_assert_eq!(guest_formula(&info.to_bytes(), tsc), info.time_at(tsc));
        }

        #[test]
        fn a_deadline_is_the_first_tick_that_reaches_it(hz in 1_u64.., ns: u64) {
            let p = ClockParameters::from_tsc_hz(hz);
            let tick = p.ns_to_tsc(ns);
            if tick != u64::MAX {
                prop_assert!(p.tsc_to_ns(tick) >= ns);
                prop_assert!(tick == 0 || p.tsc_to_ns(tick - 1) < ns);
            } else {
                prop_assert!(p.tsc_to_ns(u64::MAX - 1) < ns || ns == u64::MAX || p.shift() < 0);
            }
        }

        #[test]
        fn time_never_goes_back(hz in 1_u64.., a: u64, b: u64) {
            let p = ClockParameters::from_tsc_hz(hz);
            prop_assert!(p.tsc_to_ns(a.min(b)) <= p.tsc_to_ns(a.max(b)));
        }
    }
}
