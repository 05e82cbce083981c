//! The whole-machine scenarios. `cargo xtask test` runs them; `cargo test -p caisson-tests -- PART-OF-A-NAME` runs some,
//! `-- --list` lists them. They are told in files by subject; each is a function that takes the laboratory and its own
//! name, and says what it expects on the serial line and by when.
//!
//! QEMU's TCG has no x2APIC and no way to lock SVM off: those paths of the start are not seen here.

mod linux;
mod workload;

use std::process::ExitCode;

use caisson_tests::runner;

fn main() -> ExitCode {
    // What takes longest comes first.
    runner::main(&[("linux", linux::alone), ("two-guests", linux::two_guests), ("shell", linux::shell)])
}
