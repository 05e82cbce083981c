//! A guest that computes without an end, until somebody ends it: on its boot CPU alone.

#![no_std]
#![no_main]

use caisson_probes::{check, cpu, probe};

probe!("busy", run_probe);

fn run_probe() {
    let mut last = cpu::tsc();
    loop {
        let now = cpu::tsc();
        check!(now >= last, "time that does not go back");
        last = now;
    }
}
