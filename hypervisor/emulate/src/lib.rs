//! What the CPU does with a guest's instruction, done in software: page walks, instruction lengths, and the
//! execution of instructions whose memory is a device.
//!
//! - [`walk`]: the guest's page tables, for the emulator and for anything else that has a guest-virtual
//!   address.
//! - [`length`]: where the instruction that exited ends, on the exit path.
//! - [`emulate`]: one instruction that met a device in memory space, [`strings`]: INS and OUTS; [`SUPPORTED`]
//!   lists what they have.
//! - [`task`]: task switches, which VT-x leaves to software.
//! - [`cr`]: the operands of accesses to control and debug registers.
//!
//! A guest chooses every byte that is read here. Nothing panics or loops on it; each call does a bounded amount
//! of work and allocates nothing, once [`prepare`] has run.

#![no_std]
#![forbid(unsafe_code)]

mod access;
mod alu;
pub mod cr;
mod decode;
pub mod emulate;
mod execute;
mod fast;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod length;
mod operand;
pub mod strings;
mod supported;
pub mod task;
#[cfg(any(test, feature = "fuzzing"))]
pub mod testing;
pub mod walk;

pub use access::MmioBus;
pub use cr::{CrAccess, DrAccess, decode_cr, decode_dr};
pub use decode::{InstructionBytes, prepare};
pub use emulate::{Done, STRING_BOUND, StepError, step};
pub use length::{LengthError, Opcode, instruction_end};
pub use strings::{IoBus, string_io};
pub use supported::{SUPPORTED, Supported};
pub use task::{TaskError, TaskRequest, switch_task};
pub use walk::{Access, AccessKind, PagingFeatures, fetch_translate, translate};
