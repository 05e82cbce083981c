//! All clocks and timers of the machine side by side, for `ms=N` milliseconds in which others may have most of the CPU: it
//! tells what each has counted, and fails where a timer was lost.
//!
//! - 8254 (100 Hz) and RTC (an interrupt a second): every tick is counted in the end, however long the guest was away.
//! - Local APIC: a chain of TSC deadlines, each of which comes exactly once and never early, then periods, which may fall
//!   together while the guest is away, in phase and not more than there are.
//! - PM timer, KVM clock, and the RTC's time, against the TSC.

#![no_std]
#![no_main]

use core::hint::black_box;

use caisson_probes::apic::register::{DIVIDE, INITIAL_COUNT, LVT_TIMER};
use caisson_probes::apic::{DEADLINE, MASKED, PERIODIC, TSC_DEADLINE};
use caisson_probes::ports::{PIT, cmos_read, cmos_write};
use caisson_probes::{Frame, Shared, apic, check, check_in, cpu, kvm_clock, number, probe, say, time, trap};

probe!("clock", run_probe);

const APIC: u8 = 0x40;
const PIN_PIT: u8 = 0x50;
const PIN_RTC: u8 = 0x51;

const PIT_HZ: u64 = 1_193_182;
/// The 8254's count: 100 Hz.
const PIT_COUNT: u64 = 11_932;
/// Microseconds between deadlines, and between the local APIC's periods.
const PERIOD: u64 = 4000;
/// The RTC's interrupt at the end of each update.
const UPDATE_ENDED: u8 = 0x10;

/// Interrupts that are looked at together: a storm is no two that were held up and come one behind the other.
const TOGETHER: usize = 10;

/// Interrupts of one source: when the last ones came, and the shortest time in which [`TOGETHER`] did.
struct Source {
    count: Shared<u64>,
    last: Shared<[u64; TOGETHER]>,
    densest: Shared<u64>,
}

impl Source {
    const fn new() -> Self {
        Self { count: Shared::new(0), last: Shared::new([0; TOGETHER]), densest: Shared::new(u64::MAX) }
    }

    fn came(&self, now: u64) {
        let count = self.count.bump() as usize;
        let mut last = self.last.get();
        let before = core::mem::replace(&mut last[count % TOGETHER], now);
        self.last.set(last);
        if count >= TOGETHER {
            self.densest.set(self.densest.get().min(now - before));
        }
    }

    /// Microseconds from one to the tenth behind it, where they came closest.
    fn densest(&self) -> u64 {
        microseconds(self.densest.get())
    }
}

static TICKS: Source = Source::new();
static SECONDS: Source = Source::new();
static DEADLINES: Source = Source::new();
static PERIODS: Source = Source::new();
/// The deadline that is armed; 0: none.
static DUE: Shared<u64> = Shared::new(0);
/// Interrupts of deadlines that came before their time, or twice.
static EXTRA: Shared<u64> = Shared::new(0);

fn ticks(microseconds: u64) -> u64 {
    (u128::from(microseconds) * u128::from(time::tsc_hz()) / 1_000_000) as u64
}

fn microseconds(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000 / u128::from(time::tsc_hz())) as u64
}

fn run_probe() {
    let length = ticks(number("ms", 2000) * 1000);
    kvm_clock::start();
    apic::enable_x2();
    trap::handle(PIN_PIT, on_tick as trap::Handler);
    trap::handle(PIN_RTC, on_second as trap::Handler);
    trap::handle(APIC, on_deadline as trap::Handler);

    cmos_write(0x0b, cmos_read(0x0b) | UPDATE_ENDED);
    let _ = cmos_read(0x0c);
    apic::io_route(8, 0, PIN_RTC.into());
    let (start, pm_start) = time::both();
    let second_start = rtc_seconds();
    let pit_start = cpu::tsc();
    start_pit();

    // The first half: deadlines, each armed for its time whenever the last one came.
    apic::write(LVT_TIMER, DEADLINE | u32::from(APIC));
    DUE.set(cpu::tsc() + ticks(PERIOD));
    let first_deadline = DUE.get();
    cpu::wrmsr(TSC_DEADLINE, DUE.get());
    work_until(start + length / 2);
    let (deadlines, _) =
        settle("deadlines", &DEADLINES, || (cpu::tsc() - first_deadline) / ticks(PERIOD) + 1);
    apic::write(LVT_TIMER, MASKED);
    cpu::take_interrupts();

    // The second half: periods.
    trap::handle(APIC, on_period as trap::Handler);
    apic::write(DIVIDE, 0xb);
    apic::write(LVT_TIMER, PERIODIC | u32::from(APIC));
    let periods_start = cpu::tsc();
    apic::write(INITIAL_COUNT, (u128::from(PERIOD) * u128::from(time::apic_hz()) / 1_000_000) as u32);
    work_until(start + length);
    apic::write(LVT_TIMER, MASKED);
    let periods_due = (cpu::tsc() - periods_start) / ticks(PERIOD);

    let pit_due = || {
        (u128::from(cpu::tsc() - pit_start) * u128::from(PIT_HZ) / u128::from(time::tsc_hz())) as u64
            / PIT_COUNT
    };
    let (pit_ticks, pit_due) = settle("ticks of the 8254", &TICKS, pit_due);
    let (end, pm_end) = time::both();
    let second_end = rtc_seconds();
    let elapsed = end - start;
    say!("TSC: {} ticks, of {} in a second", elapsed, time::tsc_hz());
    say!("KVM clock: {} ns", kvm_clock::at(end) - kvm_clock::at(start));
    say!("PM timer: {} ticks", pm_end.wrapping_sub(pm_start));
    say!("RTC: {} s, {} interrupts", (second_end + 86_400 - second_start) % 86_400, SECONDS.count.get());
    say!("8254: {} of {} ticks, ten in {} us", pit_ticks, pit_due, TICKS.densest());
    say!("deadlines: {}, {} too many, ten in {} us", deadlines, EXTRA.get(), DEADLINES.densest());
    say!("periods: {} of {}, ten in {} us", PERIODS.count.get(), periods_due, PERIODS.densest());
    let seconds = microseconds(elapsed) / 1_000_000;
    check_in!(SECONDS.count.get(), seconds.saturating_sub(1)..=seconds + 1, "interrupts of the RTC");
}

/// Counter 0 in mode 2, through pin 2.
fn start_pit() {
    apic::io_route(2, 0, PIN_PIT.into());
    cpu::outb(0x43, 0x34);
    cpu::outb(PIT, PIT_COUNT as u8);
    cpu::outb(PIT, (PIT_COUNT >> 8) as u8);
}

/// Computes, with interrupts on.
fn work_until(end: u64) {
    cpu::sti();
    let mut word = 1u64;
    while cpu::tsc() < end {
        for _ in 0..100 {
            word = black_box(word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
        }
    }
    cpu::cli();
}

/// Waits until all that are due, but for one that is on its way, have come; what is late has a second. How many came, and how
/// many were due then.
fn settle(what: &str, source: &Source, due: impl Fn() -> u64) -> (u64, u64) {
    let mut both = (0, 0);
    let came = time::wait(1000, || {
        both = (source.count.get(), due());
        both.0 + 1 >= both.1
    });
    check!(came, "{}: all that are due: {} of {}", what, both.0, both.1);
    both
}

fn on_tick(_: &mut Frame) {
    TICKS.came(cpu::tsc());
    apic::eoi();
}

fn on_second(_: &mut Frame) {
    let _ = cmos_read(0x0c);
    SECONDS.came(cpu::tsc());
    apic::eoi();
}

fn on_deadline(_: &mut Frame) {
    let (now, due) = (cpu::tsc(), DUE.get());
    if now < due {
        EXTRA.bump();
    } else {
        DEADLINES.came(now);
        DUE.set(due + ticks(PERIOD));
        cpu::wrmsr(TSC_DEADLINE, DUE.get());
    }
    apic::eoi();
}

fn on_period(_: &mut Frame) {
    PERIODS.came(cpu::tsc());
    apic::eoi();
}

/// The RTC's time of day in seconds, read between two updates.
fn rtc_seconds() -> u64 {
    let read = || {
        while cmos_read(0x0a) & 0x80 != 0 {}
        [4, 2, 0].map(cmos_read)
    };
    let mut time = read();
    loop {
        let again = read();
        if again == time {
            break;
        }
        time = again;
    }
    let binary = cmos_read(0x0b) & 4 != 0;
    time.into_iter().fold(0, |sum, part| {
        let value = if binary { part } else { (part >> 4) * 10 + (part & 15) };
        sum * 60 + u64::from(value)
    })
}
