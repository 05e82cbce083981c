//! Caisson: a type-1 hypervisor for x86-64.
//!
//! This crate ties the others together: it starts the machine ([`start`]), makes domains from the configuration blob
//! ([`domains`], [`maker`]), brings up all processors ([`cpus`]) and runs the guests' vCPUs on them ([`scheduler`]) until they end
//! ([`life`]), with one serial line for all consoles ([`console`]);
//! [`drill`] crashes it on demand. It holds no `unsafe` but what hands the boot-time promises of the machine crates on,
//! in [`start`], and the fault of that drill.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(any(target_os = "none", doc))]
extern crate alloc;

#[cfg(any(target_os = "none", doc))]
mod console;
#[cfg(any(target_os = "none", doc))]
mod control;
#[cfg(any(target_os = "none", doc))]
mod course;
#[cfg(any(target_os = "none", doc))]
mod cpus;
#[cfg(any(target_os = "none", doc))]
mod create;
#[cfg(any(target_os = "none", doc))]
mod dirty;
#[cfg(any(target_os = "none", doc))]
mod dma;
#[cfg(any(target_os = "none", doc))]
mod domains;
#[cfg(any(target_os = "none", doc))]
mod drill;
#[cfg(any(target_os = "none", doc))]
mod functions;
#[cfg(any(target_os = "none", doc))]
mod guests;
#[cfg(any(target_os = "none", doc))]
mod io;
#[cfg(any(target_os = "none", doc))]
mod life;
#[cfg(any(target_os = "none", doc))]
mod logger;
#[cfg(any(target_os = "none", doc))]
mod maker;
#[cfg(any(target_os = "none", doc))]
mod scheduler;
#[cfg(any(target_os = "none", doc))]
mod start;
#[cfg(any(target_os = "none", doc))]
mod table;
#[cfg(any(target_os = "none", doc))]
mod trace;

#[cfg(target_os = "none")]
caisson_boot::entry_point!(start::main);

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    caisson_machine::crash::panic(info)
}

/// The image is for bare metal; on a host there is only this, so that the whole workspace can be checked.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("caisson runs on bare metal: start it with `cargo xtask run`");
    std::process::exit(2);
}
