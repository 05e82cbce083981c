//! Clocks: the TSC as the host's time, the APIC timer as its alarm, both measured at start against a clock whose rate
//! is known.

use core::fmt;

use arrayvec::ArrayVec;
use spin::Once;

use crate::acpi::Platform;
use crate::apic;
use crate::cpu::{PATIENCE, cpuid, inb, inl, outb, tsc, wait_until};
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

/// None of the machine's clocks counts, so that neither the TSC's rate nor the timer's can be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoReference;

impl fmt::Display for NoReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "no clock of this machine counts (HPET, ACPI PM timer, 8254), against which Caisson could measure the TSC: \
             turn one of them on in the firmware's setup",
        )
    }
}

/// A clock of known rate.
enum Reference {
    Hpet(Registers, u64),
    PmTimer(u16, u64),
    Pit,
}

impl Reference {
    const fn name(&self) -> &'static str {
        match self {
            Self::Hpet(..) => "HPET",
            Self::PmTimer(..) => "ACPI PM timer",
            Self::Pit => "8254",
        }
    }
}

/// Measures the TSC and the APIC timer against the best clock that the machine has: HPET, PM timer, or 8254. One that
/// stands still is passed over.
///
/// # Errors
/// [`NoReference`] where all of them do.
///
/// # Safety
/// Once, on the boot CPU, after [`apic::init`], with interrupts off: the clocks must be Caisson's.
pub unsafe fn init(platform: &Platform) -> Result<Clock, NoReference> {
    // SAFETY: promised by the caller.
    let references = unsafe { references(platform) };
    apic::mask_timer(true);
    let measured = references.iter().find_map(|reference| Some((reference.name(), median(reference)?)));
    apic::arm_timer(0);
    apic::mask_timer(false);
    let (reference, (tsc_hz, apic_hz)) = measured.ok_or(NoReference)?;
    let tsc_hz = told_tsc_hz().unwrap_or(tsc_hz).max(1);
    let apic_per_tsc = ((u128::from(apic_hz) << 32) / u128::from(tsc_hz)) as u64;
    Ok(*CLOCK.call_once(|| Clock { tsc_hz, apic_hz, reference, apic_per_tsc }))
}

/// TSC and APIC ticks a second.
fn median(reference: &Reference) -> Option<(u64, u64)> {
    // The first round warms caches (and an emulator's translations) up.
    let _ = measure(reference, 1)?;
    // A system-management interrupt at either end of a window spoils it: the median of three stands.
    let mut rounds =
        [measure(reference, WINDOW_MS)?, measure(reference, WINDOW_MS)?, measure(reference, WINDOW_MS)?];
    rounds.sort_unstable();
    Some(rounds[1])
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

/// What there is to measure against, the best first.
unsafe fn references(platform: &Platform) -> ArrayVec<Reference, 3> {
    let mut references = ArrayVec::new();
    if let Some(at) = platform.hpet
        // SAFETY: ACPI names the HPET's registers, and promised by the caller.
        && let Some(registers) = unsafe { Registers::map(at, 0x100) }
    {
        // General capabilities: bits 63:32 the period in femtoseconds, at most 100 ns (HPET specification 1.0a, 2.3.4).
        let period = registers.read64(0) >> 32;
        if period != 0 && period <= 100_000_000 {
            let configuration = registers.read32(0x10);
            registers.write32(0x10, configuration | 1);
            references.push(Reference::Hpet(registers, FEMTOSECONDS / period));
        }
    }
    if let Some((port, wide)) = platform.pm_timer {
        references.push(Reference::PmTimer(port, if wide { 0xffff_ffff } else { 0x00ff_ffff }));
    }
    references.push(Reference::Pit);
    references
}

/// TSC and APIC ticks a second, measured over about `ms` milliseconds; `None` where the reference stands still.
fn measure(reference: &Reference, ms: u64) -> Option<(u64, u64)> {
    apic::arm_timer(u32::MAX);
    let sample = || (tsc(), apic::timer_left());
    let window = match reference {
        Reference::Hpet(registers, hz) => {
            counted(|| u64::from(registers.read32(0xf0)), 0xffff_ffff, *hz, ms, sample)
        }
        Reference::PmTimer(port, mask) => {
            // SAFETY: ACPI names the port; reading it changes nothing.
            counted(|| u64::from(unsafe { inl(*port) }), *mask, PM_TIMER_HZ, ms, sample)
        }
        Reference::Pit => pit(ms, sample),
    }?;
    let Window { start, end, ticks, hz } = window;
    let rate = |count: u64| (u128::from(count) * u128::from(hz) / u128::from(ticks.max(1))) as u64;
    Some((rate(end.0.wrapping_sub(start.0)), rate(u64::from(start.1.wrapping_sub(end.1)))))
}

/// A reading of the TSC and of the APIC timer.
type Sample = (u64, u32);

/// What was read around `ticks` of a clock of rate `hz`.
#[derive(Debug)]
struct Window {
    start: Sample,
    end: Sample,
    ticks: u64,
    hz: u64,
}

/// Waits for `ms` on a counter that counts up and wraps at `mask`; `None` where it does not.
fn counted(
    read: impl Fn() -> u64,
    mask: u64,
    hz: u64,
    ms: u64,
    sample: impl Fn() -> Sample,
) -> Option<Window> {
    // Start at a tick's edge.
    let first = read();
    let mut from = first;
    if !wait_until(PATIENCE, || {
        from = read();
        from != first
    }) {
        return None;
    }
    let start = sample();
    let want = hz * ms / 1000;
    let mut ticks = 0;
    wait_until(PATIENCE, || {
        ticks = read().wrapping_sub(from) & mask;
        ticks >= want
    })
    .then(|| Window { start, end: sample(), ticks, hz })
}

/// Waits on channel 2 of the 8254, whose output is bit 5 of port 0x61; `None` where it never rises.
fn pit(ms: u64, sample: impl Fn() -> Sample) -> Option<Window> {
    let ticks = PIT_HZ * ms / 1000;
    // SAFETY: the 8254 and port 0x61 are Caisson's; the speaker stays off. Channel 2, mode 0, gate on.
    unsafe {
        outb(0x61, inb(0x61) & !3);
        outb(0x43, 0xb0);
        outb(0x42, ticks as u8);
        outb(0x42, (ticks >> 8) as u8);
    }
    // SAFETY: as above.
    let risen = || unsafe { inb(0x61) } & 0x20 != 0;
    // The output is low until the gate opens; a port that is not there reads all ones.
    if risen() {
        return None;
    }
    // SAFETY: as above.
    unsafe { outb(0x61, inb(0x61) & !3 | 1) };
    let start = sample();
    wait_until(PATIENCE, risen).then(|| Window { start, end: sample(), ticks, hz: PIT_HZ })
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
    use core::cell::Cell;

    use super::*;

    #[test]
    fn dates_count_from_1970() {
        assert_eq!(seconds_since_1970(1970, 1, 1), 0);
        assert_eq!(seconds_since_1970(2000, 3, 1), 951_868_800);
        assert_eq!(seconds_since_1970(2026, 1, 1), 1_767_225_600);
        assert_eq!(seconds_since_1970(2026, 13, 1), 0);
    }

    #[test]
    fn a_window_ends_when_the_counter_has_counted_enough() {
        let counter = Cell::new(0xffff_f000_u64);
        let read = || {
            counter.set((counter.get() + 7) & 0xffff_ffff);
            counter.get()
        };
        let window = counted(read, 0xffff_ffff, 1_000_000, 25, || (1, 2)).unwrap();
        assert!((25_000..25_007).contains(&window.ticks), "{window:?}");
    }

    #[test]
    fn a_counter_that_stands_still_is_given_up() {
        assert!(counted(|| 0xffff_ffff, 0xffff_ffff, 1_000_000, 25, || (0, 0)).is_none());
    }
}
