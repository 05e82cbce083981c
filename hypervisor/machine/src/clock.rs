//! Clocks: the TSC as the host's time, the APIC timer as its alarm, both measured at start against a clock whose rate
//! is known.

use spin::Once;

use crate::acpi::Platform;
use crate::apic;
use crate::cpu::{cpuid, inb, inl, outb, tsc};
use crate::device::Registers;

/// The ACPI PM timer's rate (ACPI 6.4, section 4.8.3.3).
const PM_TIMER_HZ: u64 = 3_579_545;
/// The 8254's rate.
const PIT_HZ: u64 = 1_193_182;
/// How long is measured: long enough that a microsecond's delay at either end is 40 ppm.
const WINDOW_MS: u64 = 25;
const FEMTOSECONDS: u64 = 1_000_000_000_000_000;

/// The measured rates.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// TSC ticks a second.
    pub tsc_hz: u64,
    /// APIC timer ticks a second, with the divider that [`apic`] sets.
    pub apic_hz: u64,
    /// What they were measured against.
    pub reference: &'static str,
    /// APIC ticks for a TSC tick, as a 32.32 fixed-point number.
    apic_per_tsc: u64,
}

static CLOCK: Once<Clock> = Once::new();

/// A clock of known rate.
enum Reference {
    Hpet(Registers, u64),
    PmTimer(u16, u64),
    Pit,
}

/// Measures the TSC and the APIC timer against the best clock that the machine has: HPET, PM timer, or 8254.
///
/// # Safety
/// Once, on the boot CPU, after [`apic::init`], with interrupts off: the clocks must be Caisson's.
pub unsafe fn init(platform: &Platform) -> Clock {
    // SAFETY: promised by the caller.
    let reference = unsafe { choose(platform) };
    apic::mask_timer(true);
    // The first round warms caches (and an emulator's translations) up.
    let _ = measure(&reference, 1);
    // A system-management interrupt at either end of a window spoils it: the median of three stands.
    let mut rounds = [(); 3].map(|()| measure(&reference, WINDOW_MS));
    rounds.sort_unstable();
    let [_, (tsc_hz, apic_hz), _] = rounds;
    apic::arm_timer(0);
    apic::mask_timer(false);
    let tsc_hz = told_tsc_hz().unwrap_or(tsc_hz).max(1);
    let clock = Clock {
        tsc_hz,
        apic_hz,
        reference: match reference {
            Reference::Hpet(..) => "HPET",
            Reference::PmTimer(..) => "ACPI PM timer",
            Reference::Pit => "8254",
        },
        apic_per_tsc: ((u128::from(apic_hz) << 32) / u128::from(tsc_hz)) as u64,
    };
    *CLOCK.call_once(|| clock)
}

/// The TSC's rate where a hypervisor below tells it exactly (KVM and VMware: CPUID leaf 0x40000010, in kHz).
fn told_tsc_hz() -> Option<u64> {
    let hypervisor = cpuid(1, 0).ecx & 1 << 31 != 0;
    if !hypervisor || cpuid(0x4000_0000, 0).eax < 0x4000_0010 {
        return None;
    }
    match cpuid(0x4000_0010, 0).eax {
        0 => None,
        khz => Some(u64::from(khz) * 1000),
    }
}

unsafe fn choose(platform: &Platform) -> Reference {
    if let Some(at) = platform.hpet
        // SAFETY: ACPI names the HPET's registers, and promised by the caller.
        && let Some(registers) = unsafe { Registers::map(at, 0x100) }
    {
        // General capabilities: bits 63:32 the period in femtoseconds, at most 100 ns (HPET specification 1.0a, 2.3.4).
        let period = registers.read64(0) >> 32;
        if period != 0 && period <= 100_000_000 {
            let configuration = registers.read32(0x10);
            registers.write32(0x10, configuration | 1);
            return Reference::Hpet(registers, FEMTOSECONDS / period);
        }
    }
    match platform.pm_timer {
        Some((port, wide)) => Reference::PmTimer(port, if wide { 0xffff_ffff } else { 0x00ff_ffff }),
        None => Reference::Pit,
    }
}

/// TSC and APIC ticks a second, measured over about `ms` milliseconds.
fn measure(reference: &Reference, ms: u64) -> (u64, u64) {
    apic::arm_timer(u32::MAX);
    let ((start_tsc, start_apic), (end_tsc, end_apic), ticks, hz) = match reference {
        Reference::Hpet(registers, hz) => counted(|| u64::from(registers.read32(0xf0)), 0xffff_ffff, *hz, ms),
        Reference::PmTimer(port, mask) => {
            // SAFETY: ACPI names the port; reading it changes nothing.
            counted(|| u64::from(unsafe { inl(*port) }), *mask, PM_TIMER_HZ, ms)
        }
        Reference::Pit => pit(ms),
    };
    let rate = |count: u64| (u128::from(count) * u128::from(hz) / u128::from(ticks.max(1))) as u64;
    (rate(end_tsc.wrapping_sub(start_tsc)), rate(u64::from(start_apic.wrapping_sub(end_apic))))
}

type Sample = (u64, u32);

/// Waits for `ms` on a counter that counts up and wraps at `mask`.
fn counted(read: impl Fn() -> u64, mask: u64, hz: u64, ms: u64) -> (Sample, Sample, u64, u64) {
    let first = read();
    // Start at a tick's edge.
    let mut now = read();
    while now == first {
        now = read();
    }
    let start = now;
    let start_sample = (tsc(), apic::timer_left());
    let want = hz * ms / 1000;
    let mut ticks = 0;
    while ticks < want {
        ticks = read().wrapping_sub(start) & mask;
    }
    (start_sample, (tsc(), apic::timer_left()), ticks, hz)
}

/// Waits on channel 2 of the 8254, whose output is bit 5 of port 0x61.
fn pit(ms: u64) -> (Sample, Sample, u64, u64) {
    let ticks = PIT_HZ * ms / 1000;
    // SAFETY: the 8254 and port 0x61 are Caisson's; the speaker stays off. Channel 2, mode 0, gate on.
    unsafe {
        outb(0x61, inb(0x61) & !3);
        outb(0x43, 0xb0);
        outb(0x42, ticks as u8);
        outb(0x42, (ticks >> 8) as u8);
        outb(0x61, inb(0x61) & !3 | 1);
    }
    let start = (tsc(), apic::timer_left());
    // SAFETY: as above.
    while unsafe { inb(0x61) } & 0x20 == 0 {}
    (start, (tsc(), apic::timer_left()), ticks, PIT_HZ)
}

/// The measured rates.
///
/// # Panics
/// Before [`init`]: a bug of Caisson's.
#[must_use]
pub fn get() -> &'static Clock {
    #[allow(clippy::expect_used)]
    CLOCK.get().expect("the clocks are measured first")
}

/// The measured rates, or `None` before [`init`].
#[must_use]
pub fn try_get() -> Option<&'static Clock> {
    CLOCK.get()
}

impl Clock {
    /// Arms the timer for the time at which the TSC reaches `deadline`: never early by more than a tick, and at once
    /// when that time has passed. A deadline beyond the timer's range fires early, and is then armed again.
    #[inline]
    pub fn arm(&self, deadline: u64) {
        let left = deadline.saturating_sub(tsc());
        let ticks = (u128::from(left) * u128::from(self.apic_per_tsc)) >> 32;
        apic::arm_timer(ticks.min(u128::from(u32::MAX) - 1) as u32 + 1);
    }

    /// Disarms the timer.
    #[inline]
    pub fn disarm(&self) {
        apic::arm_timer(0);
    }
}

/// Seconds since 1970 by the machine's CMOS clock (MC146818 data sheet), at start; 0 where it makes no sense.
#[must_use]
pub fn wall_clock() -> u64 {
    let read = |register: u8| -> u8 {
        // SAFETY: the CMOS clock is Caisson's; the index register has no other state. Bit 7 keeps NMIs enabled at 0.
        unsafe {
            outb(0x70, register);
            inb(0x71)
        }
    };
    // Wait out an update, then read until two readings agree.
    let mut last = [0; 6];
    for _ in 0..1000 {
        if read(0x0a) & 0x80 != 0 {
            continue;
        }
        let now = [0, 2, 4, 7, 8, 9].map(read);
        if now == last {
            break;
        }
        last = now;
    }
    let status = read(0x0b);
    let [s, m, mut h, d, mo, y] = last;
    let afternoon = status & 2 == 0 && h & 0x80 != 0;
    h &= 0x7f;
    let binary =
        |v: u8| if status & 4 == 0 { u64::from(v >> 4) * 10 + u64::from(v & 15) } else { u64::from(v) };
    let mut hour = binary(h);
    if status & 2 == 0 {
        hour = hour % 12 + if afternoon { 12 } else { 0 };
    }
    seconds_since_1970(2000 + binary(y), binary(mo), binary(d)) + hour * 3600 + binary(m) * 60 + binary(s)
}

/// Midnight of a date of the Gregorian calendar; 0 for a date that is none.
fn seconds_since_1970(year: u64, month: u64, day: u64) -> u64 {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return 0;
    }
    // Days since 1 March of year 0, with years that start in March.
    let y = if month <= 2 { year - 1 } else { year };
    let m = (month + 9) % 12;
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (m * 306 + 5) / 10 + day - 1;
    (days - 719_468) * 86_400
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_count_from_1970() {
        assert_eq!(seconds_since_1970(1970, 1, 1), 0);
        assert_eq!(seconds_since_1970(2000, 3, 1), 951_868_800);
        assert_eq!(seconds_since_1970(2026, 1, 1), 1_767_225_600);
        assert_eq!(seconds_since_1970(2026, 13, 1), 0);
    }
}
