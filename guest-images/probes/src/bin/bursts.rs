//! Work that is due: in every period of `period=N` microseconds a burst of `burst=N` microseconds of work has to be done
//! before the next period begins, `times=N` times. Between bursts the guest sleeps. It fails where a burst ends late.

#![no_std]
#![no_main]

use core::hint::black_box;

use caisson_probes::{Frame, apic, check, cpu, number, probe, say, time, trap};

probe!("bursts", run_probe);

/// The timer's vector.
const TIMER: u8 = 0x40;

/// Some hundreds of instructions.
fn batch() {
    let mut word = black_box(1u64);
    for _ in 0..200 {
        word = black_box(word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
    }
}

/// Ticks that a batch takes when nobody comes between.
fn quickest() -> u64 {
    let mut quickest = u64::MAX;
    for _ in 0..1000 {
        let start = cpu::tsc();
        batch();
        quickest = quickest.min(cpu::tsc() - start);
    }
    quickest
}

/// Sleeps until the TSC is at `due`.
fn sleep_until(due: u64) {
    while cpu::tsc() < due {
        cpu::wrmsr(apic::TSC_DEADLINE, due);
        cpu::sti_hlt();
        cpu::cli();
    }
}

fn run_probe() {
    trap::handle(TIMER, (|_: &mut Frame| apic::eoi()) as trap::Handler);
    apic::enable_x2();
    apic::write(apic::register::LVT_TIMER, apic::DEADLINE | u32::from(TIMER));
    let ticks = |microseconds: u64| time::tsc_hz() / 1000 * microseconds / 1000;
    let (period, burst) = (ticks(number("period", 10_000)), ticks(number("burst", 3000)));
    let (times, batches) = (number("times", 100), burst / quickest());
    let (mut late, mut slowest) = (0u64, 0u64);
    let mut begin = cpu::tsc() + period;
    for _ in 0..times {
        sleep_until(begin);
        (0..batches).for_each(|_| batch());
        let took = cpu::tsc() - begin;
        late += u64::from(took > period);
        slowest = slowest.max(took);
        begin += period;
        // A period that has been missed as a whole is not made up for.
        while begin + period < cpu::tsc() {
            begin += period;
        }
    }
    say!("{} of {} late, the slowest took {}% of its period", late, times, slowest * 100 / period);
    check!(late == 0, "bursts that ended late: {}", late);
}
