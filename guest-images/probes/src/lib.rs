//! What the probe guests have in common.
//!
//! A probe is a kernel of its own that checks one behaviour of the virtual machine: it starts by multiboot1 or PVH,
//! prints `probe NAME: ok` on COM1 and powers the machine off by ACPI; or it prints
//! `probe NAME: FAIL file:line what: expected .., got ..` and brings itself down by a triple fault, so that the run
//! fails.
//!
//! # Soundness
//!
//! A probe is alone in its machine, with all memory readable, writable and executable. The functions here
//! that execute privileged instructions are safe to call in Rust's terms only because the probes keep to one rule: what
//! is broken on purpose (tables, segments, stacks) is never what compiled code relies on at that moment. Snippets of
//! machine code run through [`run()`], which gives and takes all registers.

#![no_std]
#![allow(unsafe_code)]

pub mod apic;
pub mod control;
pub mod cpu;
pub mod end;
pub mod gdt;
pub mod hypercall;
pub mod kvm_clock;
pub mod paging;
pub mod ports;
pub mod random;
pub mod run;
mod serial;
pub mod shared;
pub mod smp;
pub mod time;
pub mod trap;
pub mod virtio;

use core::{arch::global_asm, ffi::CStr, panic::PanicInfo};

pub use end::{fail, pass};
pub use run::{Regs, run, run_at};
pub use serial::write as write_serial;
pub use shared::Shared;
pub use trap::{Frame, Trap};

global_asm!(include_str!("entry.S"), options(att_syntax));
global_asm!(include_str!("trap.S"), options(att_syntax));

/// Makes a probe of a function: gives it a name and calls it; when it returns, the probe has passed.
#[macro_export]
macro_rules! probe {
    ($name:literal, $function:path) => {
        /// The probe's name, for the lines it prints.
        // SAFETY: the runtime declares it with this very type.
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        static probe_name: &str = $name;

        // SAFETY: the runtime declares it with this very signature.
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        extern "Rust" fn probe_main() {
            $function()
        }
    };
}

/// Prints a line on the console, behind the probe's name.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => { $crate::write_serial(format_args!("probe {}: {}\n", $crate::name(), format_args!($($part)*))) };
}

/// Ends the probe as failed when a condition does not hold.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($what:tt)*) => {
        if !$condition {
            $crate::fail(file!(), line!(), format_args!("{}: expected {}, got the contrary",
                format_args!($($what)*), stringify!($condition)));
        }
    };
}

/// Ends the probe as failed when a value is not the expected one.
#[macro_export]
macro_rules! check_eq {
    ($got:expr, $want:expr, $($what:tt)*) => {{
        let (got, want) = ($got, $want);
        if got != want {
            $crate::fail(file!(), line!(), format_args!("{}: expected {:x?}, got {:x?}",
                format_args!($($what)*), want, got));
        }
    }};
}

/// Ends the probe as failed when a value is not in a range.
#[macro_export]
macro_rules! check_in {
    ($got:expr, $range:expr, $($what:tt)*) => {{
        let (got, range) = ($got, $range);
        if !range.contains(&got) {
            $crate::fail(file!(), line!(), format_args!("{}: expected {:?}, got {}",
                format_args!($($what)*), range, got));
        }
    }};
}

unsafe extern "Rust" {
    safe static probe_name: &'static str;
    safe fn probe_main();
}

unsafe extern "C" {
    static probe_boot_magic: u32;
    static probe_boot_info: u32;
}

/// The running probe's name.
#[must_use]
pub fn name() -> &'static str {
    probe_name
}

/// The command line that the loader handed over.
#[must_use]
pub fn cmdline() -> &'static str {
    const MULTIBOOT: u32 = 0x2bad_b002;
    const HAS_CMDLINE: u32 = 1 << 2;
    // SAFETY: the entry code has written both.
    let (magic, info) = unsafe { (probe_boot_magic, probe_boot_info as usize) };
    let text = if magic == MULTIBOOT {
        match cpu::read32(info) & HAS_CMDLINE {
            0 => 0,
            _ => cpu::read32(info + 16) as usize,
        }
    } else {
        cpu::read32(info + 24) as usize
    };
    if text == 0 {
        return "";
    }
    // SAFETY: the loader's text ends with a zero byte and lies in memory that no probe uses.
    unsafe { CStr::from_ptr(text as *const _) }.to_str().unwrap_or("")
}

/// Where the loader has put what it tells.
#[must_use]
pub fn boot_info() -> usize {
    // SAFETY: the entry code has written it.
    unsafe { probe_boot_info as usize }
}

/// The file that came with the probe: address and bytes; none is 0 of both.
#[must_use]
pub fn module() -> (usize, usize) {
    const MULTIBOOT: u32 = 0x2bad_b002;
    const HAS_MODULES: u32 = 1 << 3;
    let info = boot_info();
    // SAFETY: the entry code has written it.
    if unsafe { probe_boot_magic } == MULTIBOOT {
        if cpu::read32(info) & HAS_MODULES == 0 || cpu::read32(info + 20) == 0 {
            return (0, 0);
        }
        let list = cpu::read32(info + 24) as usize;
        let (start, end) = (cpu::read32(list) as usize, cpu::read32(list + 4) as usize);
        return (start, end - start);
    }
    if cpu::read32(info + 12) == 0 {
        return (0, 0);
    }
    let list = cpu::read64(info + 16) as usize;
    (cpu::read64(list) as usize, cpu::read64(list + 8) as usize)
}

/// The value of the word `key=…` of the command line.
#[must_use]
pub fn argument(key: &str) -> Option<&'static str> {
    cmdline().split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// The number that the command line gives for `key`, or `default`.
#[must_use]
pub fn number(key: &str, default: u64) -> u64 {
    argument(key).and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Called by the entry code.
// SAFETY: no other function of that name exists.
#[unsafe(no_mangle)]
extern "C" fn probe_start() -> ! {
    serial::start();
    gdt::start();
    trap::start();
    probe_main();
    pass()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let (file, line) = info.location().map_or(("?", 0), |at| (at.file(), at.line()));
    fail(file, line, format_args!("{}", info.message()))
}
