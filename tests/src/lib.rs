//! The harness of the whole-machine tests: it boots Caisson in QEMU's TCG, headless, reads its serial line as it comes,
//! types on it, and checks what it reads against what a scenario expects.
//!
//! - [`lab::Lab`] has what is common to all scenarios; [`lab::Boot`] describes one machine and starts it.
//! - [`run::Run`] is a machine that runs: *expect this line by then*, *type that*, *end like so*.
//! - [`transcript::Transcript`] takes the serial line apart: who said which line, and when.
//! - [`runner`] runs a list of scenarios, two at a time, and reports.
//!
//! # Invariants
//!
//! - Time limits are there to end a test that hangs. None asserts speed: they hold on a machine that is many times
//!   slower than today's.
//! - A scenario that fails leaves the whole serial log under `target/caisson/scenarios/NAME/`, and says so.
//! - QEMU never outlives its scenario, however that ends.

pub mod failure;
pub mod lab;
pub mod run;
pub mod runner;
pub mod transcript;

pub use failure::{Failure, Verdict};
pub use lab::{Boot, Lab};
pub use run::Run;
pub use transcript::From;
