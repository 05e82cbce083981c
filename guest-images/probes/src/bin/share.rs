//! How much of the CPU this guest gets, by its own progress: it works in equal batches for `ms=N` milliseconds. The quickest
//! batch tells what one takes when nobody comes between, and how many there were tells the rest.

#![no_std]
#![no_main]

use core::hint::black_box;

use caisson_probes::{check, cpu, number, probe, say, time};

probe!("share", run_probe);

/// The parts of the time that are looked at one by one.
const WINDOWS: usize = 8;

/// Some thousands of instructions.
fn batch() {
    let mut word = black_box(1u64);
    for _ in 0..2000 {
        word = black_box(word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
    }
}

fn run_probe() {
    let window = time::tsc_hz() * number("ms", 800) / 1000 / WINDOWS as u64;
    let mut quickest = u64::MAX;
    // Batches, and the time that they took with all that came between.
    let mut windows = [(0, 0); WINDOWS];
    let mut last = cpu::tsc();
    for (batches, ticks) in &mut windows {
        let start = last;
        while last - start < window {
            batch();
            let now = cpu::tsc();
            quickest = quickest.min(now - last);
            (*batches, last) = (*batches + 1, now);
        }
        *ticks = last - start;
    }
    let percent = |(batches, ticks): (u64, u64)| batches * quickest * 100 / ticks;
    let all = windows.iter().fold((0, 0), |sum, window| (sum.0 + window.0, sum.1 + window.1));
    check!(all.0 > 100, "batches: {}", all.0);
    let least = windows.into_iter().map(percent).min().unwrap_or(0);
    say!("percent, one after the other: {:?}", windows.map(percent));
    // Others begin and end a little earlier or later than this one.
    let middle =
        windows[1..WINDOWS - 1].iter().fold((0, 0), |sum, window| (sum.0 + window.0, sum.1 + window.1));
    say!("{} of 10000 in the middle", middle.0 * quickest * 10_000 / middle.1);
    say!("{}% of the CPU, {}% at least", percent(all), least);
}
