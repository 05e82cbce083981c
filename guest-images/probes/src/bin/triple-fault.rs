//! Ends by a triple fault (SDM vol. 3, section 7.15, "Interrupt 8"): the guest is to end, and nothing else.

#![no_std]
#![no_main]

use caisson_probes::{cpu, probe, run, say, trap};

probe!("triple-fault", run_probe);

fn run_probe() {
    say!("the end comes now");
    // No gate is present: #UD, #NP, #DF, shutdown.
    cpu::lidt(trap::idt(), 0);
    let _ = run(&[0x0f, 0x0b], &mut caisson_probes::Regs::default());
}
