//! Resets the machine in the way that the command line names: `by=cf9` (chipset), `by=64` (keyboard controller),
//! `by=60` (the controller's output port, whose bit 0 is the CPU's reset line), `by=92` (system control port A).
//!
//! What must not reset is tried before: 0xCF9 without a rise of bit 2, other pulses of the controller, and port 0x92 with
//! the bit set already.

#![no_std]
#![no_main]

use caisson_probes::{argument, check, cpu, probe, say};

probe!("reset", run);

fn run() {
    let by = argument("by").unwrap_or("cf9");
    say!("by {}", by);
    match by {
        "64" => {
            // 0xFE pulses bit 0 of the output port, which is RESET; 0xFF pulses none.
            cpu::outb(0x64, 0xff);
            cpu::outb(0x64, 0xfe);
        }
        "60" => {
            cpu::outb(0x64, 0xd1);
            cpu::outb(0x60, 0xfe);
        }
        "92" => {
            // Fast A20 on, then the reset bit.
            cpu::outb(0x92, 0x02);
            cpu::outb(0x92, 0x03);
        }
        _ => {
            // SYS_RST chooses the kind; a rise of RST_CPU does it.
            cpu::outb(0xcf9, 0x02);
            cpu::outb(0xcf9, 0x06);
        }
    }
    check!(false, "reset by {}", by);
}
