//! The one front door of Caisson: `cargo xtask run|test|image|config|bench|trace|fuzz|doctor`.
//!
//! It is a library as well, so that the whole-machine tests make their images and run their machines with the same code:
//! [`images::Images`] provides Caisson, payloads and ISOs, [`qemu::Machine`] and
//! [`bochs::Machine`] a machine, [`emulator::Running`] one that runs, [`outcome::Outcome`] its end.

pub mod accel;
pub mod bench;
pub mod bochs;
pub mod cargo;
pub mod cli;
pub mod config;
pub mod console;
pub mod cpio;
pub mod dax;
pub mod disk;

pub mod doctor;
pub mod driver;
pub mod elf;
pub mod emulator;
pub mod error;
pub mod fuzz;
pub mod images;
pub mod initrd;
pub mod io_tools;
pub mod iso;
pub mod measure;
pub mod modules;
pub mod near;
pub mod outcome;
pub mod packages;
pub mod paths;
pub mod process;
pub mod programs;
pub mod progress;
pub mod qemu;
pub mod qmp;
pub mod run;
pub mod serial;
pub mod size;
pub mod stamp;
pub mod test;
pub mod tools;
pub mod trace;
