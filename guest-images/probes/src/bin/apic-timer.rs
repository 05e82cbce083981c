//! The local APIC's timer (SDM vol. 3, section 12.5.4): its divisors, one-shot, periodic and TSC-deadline mode, masks,
//! counts and changes of mode, by MMIO and by MSR; and that it, the TSC and the ACPI PM timer keep the same time.

#![no_std]
#![no_main]

use caisson_probes::apic::register::{CURRENT_COUNT, DIVIDE, INITIAL_COUNT, LVT_TIMER};
use caisson_probes::apic::{self, DEADLINE, MASKED, PERIODIC, TSC_DEADLINE};
use caisson_probes::{Frame, Shared, check, check_eq, check_in, cpu, number, probe, time, trap};

probe!("apic-timer", run);

const VECTOR: u8 = 0x40;
const TIMER: u32 = VECTOR as u32;
/// Divide by 1.
const BY_ONE: u32 = 0xb;

/// The TSC when the handler was last called.
static FIRED: Shared<u64> = Shared::new(0);

fn run() {
    trap::handle(
        VECTOR,
        (|_: &mut Frame| {
            FIRED.set(cpu::tsc());
            apic::eoi();
        }) as trap::Handler,
    );
    let khz = time::tsc_hz() / 1000;
    check_eq!(khz, number("tsc_khz", khz), "kHz of the TSC");
    pm_timer();
    apic::enable();
    all();
    apic::enable_x2();
    all();
}

fn all() {
    divisors();
    one_shot();
    masked();
    periodic();
    if cpu::cpuid(1, 0)[2] & 1 << 24 != 0 {
        deadline();
    }
}

/// The PM timer and the TSC agree within 1%.
fn pm_timer() {
    let (tsc, pm) = time::both();
    time::spin(50_000);
    let (tsc_end, pm_end) = time::both();
    let ticks = u64::from(pm_end.wrapping_sub(pm));
    let expected = (tsc_end - tsc) * time::PM_HZ / time::tsc_hz();
    check_in!(ticks, expected * 99 / 100..=expected * 101 / 100, "PM timer ticks in 50 ms");
}

/// The count and the TSC, read as close together as possible.
fn count_and_tsc() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..8 {
        let before = cpu::tsc();
        let count = apic::read(CURRENT_COUNT);
        let after = cpu::tsc();
        if after - before < best.0 {
            best = (after - before, u64::from(count), before + (after - before) / 2);
        }
    }
    (best.1, best.2)
}

/// Each divisor counts at its share of the input clock, within 1%.
fn divisors() {
    apic::write(LVT_TIMER, MASKED | TIMER);
    for (code, divisor) in
        [(0xb, 1), (0x0, 2), (0x1, 4), (0x2, 8), (0x3, 16), (0x8, 32), (0x9, 64), (0xa, 128u64)]
    {
        apic::write(DIVIDE, code);
        check_eq!(apic::read(DIVIDE), code, "divide configuration");
        apic::write(INITIAL_COUNT, u32::MAX);
        let (count, tsc) = count_and_tsc();
        time::spin(4000);
        let (count_end, tsc_end) = count_and_tsc();
        let expected = (tsc_end - tsc) * (time::apic_hz() / 1000) / (time::tsc_hz() / 1000) / divisor;
        check_in!(count - count_end, expected * 99 / 100..=expected * 101 / 100, "count by {}", divisor);
    }
    apic::write(INITIAL_COUNT, 0);
    check_eq!(apic::read(CURRENT_COUNT), 0, "count of a stopped timer");
    apic::write(DIVIDE, BY_ONE);
}

/// Ticks of the timer in some microseconds.
fn ticks(microseconds: u64) -> u32 {
    (time::apic_hz() / 1_000_000 * microseconds) as u32
}

/// One interrupt, not before its time; then the count stays zero.
fn one_shot() {
    for microseconds in [1, 50, 1000, 5000] {
        let count = trap::count(VECTOR);
        apic::write(LVT_TIMER, TIMER);
        let start = cpu::tsc();
        apic::write(INITIAL_COUNT, ticks(microseconds));
        check_eq!(apic::read(INITIAL_COUNT), ticks(microseconds), "initial count");
        check!(time::wait(2000, || trap::count(VECTOR) > count), "one-shot of {} us fires", microseconds);
        let took = (FIRED.get() - start) * 1_000_000 / time::tsc_hz();
        check_in!(took, microseconds * 99 / 100..=microseconds + 1_000_000, "microseconds of a one-shot");
        check_eq!(apic::read(CURRENT_COUNT), 0, "count after a one-shot");
        time::wait(2, || false);
        check_eq!(trap::count(VECTOR), count + 1, "interrupts of a one-shot");
    }
    // A running timer is stopped by a count of zero.
    let count = trap::count(VECTOR);
    apic::write(INITIAL_COUNT, ticks(300_000));
    check!(apic::read(CURRENT_COUNT) > 0, "the timer runs");
    apic::write(INITIAL_COUNT, 0);
    check_eq!(apic::read(CURRENT_COUNT), 0, "count of a timer that was stopped");
    time::wait(320, || false);
    check_eq!(trap::count(VECTOR), count, "interrupts of a stopped timer");
}

/// A masked timer counts, and its expiry is lost.
fn masked() {
    let count = trap::count(VECTOR);
    apic::write(LVT_TIMER, MASKED | TIMER);
    apic::write(INITIAL_COUNT, ticks(500));
    time::wait(3, || false);
    check_eq!(apic::read(CURRENT_COUNT), 0, "count of an expired masked timer");
    apic::write(LVT_TIMER, TIMER);
    time::wait(3, || false);
    check_eq!(trap::count(VECTOR), count, "interrupts of a masked timer");
    // Unmasked while it runs, it fires.
    apic::write(LVT_TIMER, MASKED | TIMER);
    apic::write(INITIAL_COUNT, ticks(300_000));
    apic::write(LVT_TIMER, TIMER);
    check!(time::wait(2000, || trap::count(VECTOR) == count + 1), "a timer that is unmasked in time fires");
}

/// Periods follow each other without drift; those that pass while the vCPU does not run become one.
fn periodic() {
    apic::write(LVT_TIMER, PERIODIC | TIMER);
    // Where others had their turns between the two, the start is not known well enough: again.
    let (mut count, mut start) = (0, 0);
    for _ in 0..20 {
        count = trap::count(VECTOR);
        start = cpu::tsc();
        apic::write(INITIAL_COUNT, ticks(1000));
        if cpu::tsc() - start < time::tsc_hz() / 10_000 {
            break;
        }
    }
    check!(time::wait(5000, || trap::count(VECTOR) >= count + 20), "20 periods");
    let elapsed = (cpu::tsc() - start) * 1_000_000 / time::tsc_hz();
    check_in!(elapsed, 19_990..=5_000_000, "microseconds of 20 periods");
    let (left, tsc) = count_and_tsc();
    let period = u64::from(ticks(1000));
    check_in!(left, 0..=period, "count of a periodic timer");
    // The phase is that of the first period, however late handlers were: within 20 us.
    let into = (tsc - start) * (time::apic_hz() / 1000) / (time::tsc_hz() / 1000) % period;
    let off = (period - left + period - into) % period;
    let off = off.min(period - off);
    check_in!(off, 0..=u64::from(ticks(200)), "ticks between the timer's phase and the TSC's");
    apic::write(INITIAL_COUNT, 0);
    time::wait(3, || false);
    let count = trap::count(VECTOR);
    time::wait(3, || false);
    check_eq!(trap::count(VECTOR), count, "interrupts after the end of periods");
}

fn deadline() {
    let count = trap::count(VECTOR);
    // In other modes the MSR reads as zero and ignores writes.
    apic::write(LVT_TIMER, TIMER);
    cpu::wrmsr(TSC_DEADLINE, 1);
    check_eq!(cpu::rdmsr(TSC_DEADLINE), 0, "deadline in one-shot mode");
    apic::write(LVT_TIMER, DEADLINE | TIMER);
    check_eq!(cpu::rdmsr(TSC_DEADLINE), 0, "deadline that is not armed");
    apic::write(INITIAL_COUNT, 1000);
    check_eq!(apic::read(CURRENT_COUNT), 0, "count in deadline mode");
    for microseconds in [0, 30, 2000] {
        let count = trap::count(VECTOR);
        let due = cpu::tsc() + microseconds * time::tsc_hz() / 1_000_000;
        cpu::wrmsr(TSC_DEADLINE, due);
        if microseconds == 2000 {
            let armed = cpu::rdmsr(TSC_DEADLINE);
            check!(armed == due || cpu::tsc() > due, "the deadline reads as it was written");
        }
        check!(time::wait(2000, || trap::count(VECTOR) > count), "deadline in {} us", microseconds);
        check!(FIRED.get() >= due, "the deadline's interrupt is not early");
        check_eq!(cpu::rdmsr(TSC_DEADLINE), 0, "deadline after its interrupt");
        time::wait(2, || false);
        check_eq!(trap::count(VECTOR), count + 1, "interrupts of a deadline");
    }
    let fired = trap::count(VECTOR);
    check_eq!(fired, count + 3, "interrupts of three deadlines");
    // Disarmed by zero; disarmed by another mode.
    cpu::wrmsr(TSC_DEADLINE, cpu::tsc() + time::tsc_hz() / 4);
    cpu::wrmsr(TSC_DEADLINE, 0);
    time::wait(300, || false);
    cpu::wrmsr(TSC_DEADLINE, cpu::tsc() + time::tsc_hz() / 4);
    apic::write(LVT_TIMER, TIMER);
    apic::write(LVT_TIMER, DEADLINE | TIMER);
    check_eq!(cpu::rdmsr(TSC_DEADLINE), 0, "deadline after a change of mode");
    time::wait(300, || false);
    check_eq!(trap::count(VECTOR), fired, "interrupts of disarmed deadlines");
    apic::write(LVT_TIMER, MASKED);
}
