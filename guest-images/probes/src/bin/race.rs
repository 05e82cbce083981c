//! A piece of work that takes nothing but the CPU, and how long it took: `batches=N` of equal ones. What a batch takes when
//! nobody comes between tells how long all would have taken on a CPU of their own: the median of the first thousand, few of
//! which anybody comes into.

#![no_std]
#![no_main]

use core::hint::black_box;

use caisson_probes::{Shared, cpu, number, probe, say, time};

probe!("race", run_probe);

/// Batches that are looked at one by one.
const LOOKED_AT: usize = 1000;

static TICKS: [Shared<u64>; LOOKED_AT] = [const { Shared::new(0) }; LOOKED_AT];

/// Some thousands of instructions.
fn batch() {
    let mut word = black_box(1u64);
    for _ in 0..2000 {
        word = black_box(word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
    }
}

fn run_probe() {
    let batches = number("batches", 2000);
    let start = cpu::tsc();
    let mut last = start;
    for index in 0..batches {
        batch();
        if let Some(ticks) = TICKS.get(index as usize) {
            let now = cpu::tsc();
            ticks.set(now - last);
            last = now;
        }
    }
    let took = cpu::tsc() - start;
    let mut ticks = TICKS.each_ref().map(Shared::get);
    let looked_at = &mut ticks[..LOOKED_AT.min(batches as usize)];
    looked_at.sort_unstable();
    let alone = looked_at[looked_at.len() / 2] * batches;
    let microseconds = |ticks: u64| ticks * 1000 / (time::tsc_hz() / 1000);
    say!("{} us for {} us of work", microseconds(took), microseconds(alone));
}
