//! Writes a known set of pages over and over, then another one, so that whoever tracks a guest's writes can be held against
//! it: `ms=N` milliseconds each. Beside them it writes its own stack, and the CPU its page tables, all of which lie below
//! 2 MiB. The first set has more pages than a log of 512 entries; it is read, not written, in the second part.

#![no_std]
#![no_main]

use caisson_probes::{check_eq, cpu, number, probe, say, time};

probe!("dirty", run_probe);

const PAGE: usize = 4096;
/// First pages and their number, by set.
const SETS: [&[(usize, usize)]; 2] =
    [&[(0x20_0000, 700), (0x58_0000, 1), (0x5a_0000, 1)], &[(0x58_0000, 1), (0x60_0000, 40)]];

fn run_probe() {
    let part = time::tsc_hz() / 1000 * number("ms", 3000);
    let mut word = 0;
    for (name, set) in ["first", "second"].into_iter().zip(SETS) {
        let pages = || set.iter().flat_map(|&(start, count)| (0..count).map(move |i| start + i * PAGE));
        say!("{name} set");
        let end = cpu::tsc() + part;
        while cpu::tsc() < end {
            word += 1;
            // The last bytes of each.
            pages().for_each(|page| cpu::write64(page + PAGE - 8, word));
            if name == "second" {
                SETS[0].iter().for_each(|&(start, _)| {
                    let _ = cpu::read64(start);
                });
            }
        }
        for page in pages() {
            check_eq!(cpu::read64(page + PAGE - 8), word, "what was written last at {page:#x}");
        }
    }
    say!("done");
}
