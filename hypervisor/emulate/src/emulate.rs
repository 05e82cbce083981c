//! One instruction whose memory operand is a device, executed.
//!
//! [`step`] decodes the instruction at RIP, translates its operands, and does what the CPU would have done,
//! with the device's side going through an [`MmioBus`]. Everything that can fault is found out before anything
//! is changed; a string instruction with REP changes the state element by element and stops after
//! [`STRING_BOUND`] of them, with RIP still on it, so that the guest can take its interrupts. LOCK is a plain
//! access at a device (there is one owner of it); should the operand of a read-modify-write turn out to be RAM,
//! the CPU is asked to do it itself ([`Done::Retry`]).
//!
//! The caller raises the single-step trap where RFLAGS.TF was set, as after any instruction that it completes;
//! data breakpoints do not see these accesses. A fault met while an event was being delivered is not the
//! instruction's and not for [`step`].
//!
//! What is executed is listed in [`crate::SUPPORTED`]. Not executed: x87, SSE and AVX accesses, far and near
//! branches through a device, loads of segment registers, and whatever else the list lacks.

use core::fmt;

use caisson_hwvirt::{NestedFault, VcpuState};
use caisson_types::GuestMemory;
use caisson_x86::Exception;

use crate::access::{Context, MmioBus};
use crate::decode::{DecodeError, InstructionBytes, Window, decode_at_rip, next_rip, window};
use crate::fast::plain_mov;
use crate::walk::PagingFeatures;

/// The most elements of a string instruction that one call executes.
pub const STRING_BOUND: u32 = 64;

/// How an instruction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Done {
    /// The instruction is finished; RIP is behind it.
    Completed,
    /// A string instruction has elements left, perhaps all; RIP is still on it. Running the guest again goes on with it.
    Partial,
    /// Nothing was done and nothing has changed: the operand is RAM. The guest is to run the instruction itself.
    Retry,
}

/// Why an instruction did not end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StepError {
    /// The instruction raises this in the guest. RIP is on it, and elements of a string instruction before the
    /// one that faulted are done.
    Exception(Exception),
    /// The emulator does not have this instruction. Nothing has changed.
    Unhandleable(InstructionBytes),
}

impl StepError {
    /// What becomes of bytes that were not decoded.
    pub(crate) fn of(error: DecodeError, window: &Window) -> Self {
        match error {
            DecodeError::Exception(exception) => Self::Exception(exception),
            DecodeError::Vector => Self::Unhandleable(window.bytes),
        }
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exception(exception) => write!(f, "the instruction raises {exception:?}"),
            Self::Unhandleable(bytes) => {
                write!(f, "cannot execute {bytes} on a device: the guest must use a plain integer access")
            }
        }
    }
}

/// Why the execution of a decoded instruction stopped.
pub(crate) enum Stop {
    Exception(Exception),
    Unsupported,
    /// A port does not take this element of a string instruction now.
    Busy,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// Executes the instruction at RIP, whose access `fault` stage 2 refused because no RAM is there (or none to
/// write).
///
/// # Errors
/// [`StepError`]; see there for what has changed.
pub fn step(
    state: &mut impl VcpuState,
    memory: &impl GuestMemory,
    bus: &mut impl MmioBus,
    fault: NestedFault,
    features: &PagingFeatures,
) -> Result<Done, StepError> {
    let mode = state.mode();
    let mut window = window(state, memory, mode);
    let mut context = Context { state, memory, bus, features, fault: Some(fault), mode, reached_bus: false };
    if let Some(mov) = plain_mov(context.state, mode, window.bytes.as_slice()) {
        context.plain_mov(&mov).map_err(StepError::Exception)?;
        let next = next_rip(mode, context.state.rip(), u64::from(mov.length));
        context.state.advance_to(next);
        return Ok(Done::Completed);
    }
    let instruction = decode_at_rip(context.state, memory, mode, &mut window, features)
        .map_err(|error| StepError::of(error, &window))?;
    let done = context.execute(&instruction).map_err(|stop| match stop {
        Stop::Exception(exception) => StepError::Exception(exception),
        Stop::Unsupported | Stop::Busy => StepError::Unhandleable(window.bytes.truncated(instruction.len())),
    })?;
    if done == Done::Completed {
        let next = next_rip(mode, context.state.rip(), instruction.len() as u64);
        context.state.advance_to(next);
    }
    Ok(done)
}
