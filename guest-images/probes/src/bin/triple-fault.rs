//! Ends in a way that no guest survives, by the word `by=` of the command line: `idt` (the default), a triple fault for
//! want of gates (SDM vol. 3, section 7.15, "Interrupt 8"); `stack`, an exception whose frame goes where no memory is.
//! The guest is to end, and nothing else.

#![no_std]
#![no_main]

use caisson_probes::{Regs, argument, check, cpu, gdt, probe, run, say, trap};

probe!("triple-fault", run_probe);

fn run_probe() {
    let by = argument("by").unwrap_or("idt");
    say!("the end comes now, by {}", by);
    if by == "stack" {
        gdt::set_stack(3, 0xd000_0800);
        trap::set_kind(trap::vector::UD, trap::GATE, 3);
    } else {
        // No gate is present: #UD, #NP, #DF, shutdown.
        cpu::lidt(trap::idt(), 0);
    }
    let _ = run(&[0x0f, 0x0b], &mut Regs::default());
    check!(false, "the end by {}", by);
}
