//! Another CPU than the first ends the machine, in the way that the command line names, while all others spin without ever
//! leaving to the hypervisor, leave all the time, or sleep: `by=off`, `by=reset`, `by=triple`, `by=init` (everybody, by INIT
//! to all; then the first CPU powers the machine off).

#![no_std]
#![no_main]

use caisson_probes::{apic, argument, check_eq, cpu, end, number, probe, say, smp, time};

probe!("smp-end", run_probe);

fn run_probe() {
    let cpus = smp::count();
    check_eq!(cpus as u64, number("vcpus", cpus as u64), "CPUs");
    say!("by={}", argument("by").unwrap_or("off"));
    apic::enable();
    smp::prepare(work);
    smp::own_timer();
    for cpu in 1..cpus {
        smp::start(cpu);
    }
    if argument("by") != Some("init") {
        spend(0);
    }
    time::spin(5000);
    for cpu in 1..cpus {
        smp::init(cpu);
    }
}

fn work() {
    let me = smp::me();
    if me + 1 < smp::count() || argument("by") == Some("init") {
        spend(me);
    }
    time::spin(number("after", 5) * 1000);
    match argument("by") {
        Some("triple") => end::triple_fault(),
        Some("reset") => {
            cpu::outb(0xcf9, 0x02);
            cpu::outb(0xcf9, 0x06);
        }
        _ => caisson_probes::pass(),
    }
}

/// Never ends by itself.
fn spend(me: usize) -> ! {
    loop {
        match me % 3 {
            0 => cpu::pause(),
            1 => _ = cpu::cpuid(0, 0),
            _ => cpu::hlt(),
        }
    }
}
