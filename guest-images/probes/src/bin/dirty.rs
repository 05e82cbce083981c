//! Writes a known set of pages over and over, then another one, so that whoever tracks a guest's writes can be held against
//! it: `ms=N` milliseconds each. Beside them it writes its own stack, and the CPU its page tables, all of which lie below
//! 2 MiB. The first set has more pages than a log of 512 entries; it is read, not written, in the second part.
//!
//! With `vcpus=N` so many CPUs do that at the same time, each with sets of its own, `APART` bytes behind the last one's. None
//! of them leaves to the hypervisor of itself meanwhile.

#![no_std]
#![no_main]

use caisson_probes::smp::{self, Barrier, me};
use caisson_probes::{Shared, apic, check_eq, cpu, number, probe, say, time};

probe!("dirty", run_probe);

const PAGE: usize = 4096;
/// First pages and their number, by set.
const SETS: [&[(usize, usize)]; 2] =
    [&[(0x20_0000, 700), (0x58_0000, 1), (0x5a_0000, 1)], &[(0x58_0000, 1), (0x60_0000, 40)]];
const APART: usize = 0x80_0000;

static BARRIER: Barrier = Barrier::new();
static CPUS: Shared<usize> = Shared::new(1);
/// The TSC at which the first part begins.
static START: Shared<u64> = Shared::new(0);

fn run_probe() {
    CPUS.set(number("vcpus", 1) as usize);
    check_eq!(smp::count(), CPUS.get(), "CPUs");
    apic::enable();
    smp::prepare(|| {
        apic::enable();
        smp::own_timer();
        write();
    });
    smp::own_timer();
    START.set(cpu::tsc());
    for cpu in 1..CPUS.get() {
        smp::start(cpu);
    }
    write();
    say!("done");
}

fn write() {
    let part = time::tsc_hz() / 1000 * number("ms", 3000);
    let (mut end, mut word) = (START.get(), 0);
    for (name, set) in ["first", "second"].into_iter().zip(SETS) {
        let own = move |page: usize| page + me() * APART;
        let pages = || set.iter().flat_map(|&(start, count)| (0..count).map(move |i| own(start) + i * PAGE));
        if me() == 0 {
            say!("{name} set");
        }
        end += part;
        while cpu::tsc() < end {
            word += 1;
            // The last bytes of each.
            pages().for_each(|page| cpu::write64(page + PAGE - 8, word));
            if name == "second" {
                SETS[0].iter().for_each(|&(start, _)| {
                    let _ = cpu::read64(own(start));
                });
            }
        }
        for page in pages() {
            check_eq!(cpu::read64(page + PAGE - 8), word, "what was written last at {page:#x}");
        }
    }
    BARRIER.meet("the end", CPUS.get());
}
