//! Accesses to control and debug registers, for hardware that does not tell their operands.
//!
//! MOV to and from CRn and DRn, LMSW, SMSW and CLTS (SDM vol. 2, the instructions' pages; APM vol. 2, section
//! 15.8.1). A MOV's ModRM has no memory form: its mod field is ignored, and its operand has 64 bits in 64-bit
//! mode and 32 elsewhere, whatever the prefixes. On AMD, LOCK MOV to or from CR0 means CR8.

use caisson_hwvirt::VcpuState;
use caisson_types::GuestMemory;
use caisson_x86::{CpuMode, Cr0, Gpr};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::access::{Context, MmioBus};
use crate::decode::{InstructionBytes, decode_at_rip, next_rip, window};
use crate::emulate::StepError;
use crate::operand::{Part, effective};
use crate::walk::{AccessKind, PagingFeatures};

/// What an instruction does to a control register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrAccess {
    /// MOV to a control register.
    Write {
        /// CR0 to CR15.
        register: u8,
        /// Where the value comes from.
        gpr: Gpr,
    },
    /// MOV from a control register.
    Read {
        /// CR0 to CR15.
        register: u8,
        /// Where the value goes.
        gpr: Gpr,
    },
    /// LMSW with this operand, already read.
    Lmsw(u16),
    /// SMSW to a register.
    Smsw {
        /// Where CR0 goes.
        gpr: Gpr,
        /// Bytes of it: 2, 4 or 8.
        size: u8,
    },
    /// CLTS.
    Clts,
}

impl CrAccess {
    /// The value that the guest wants in CR0, or `None` where CR0 is not written. Nothing has been checked: #GP
    /// for reserved bits and for forbidden combinations is the caller's. LMSW sets the low four bits and cannot
    /// clear PE.
    #[must_use]
    pub fn new_cr0(self, state: &impl VcpuState) -> Option<u64> {
        let cr0 = state.cr0();
        match self {
            Self::Write { register: 0, gpr } => Some(operand(state, gpr)),
            Self::Lmsw(word) => Some(cr0 & !0xe | u64::from(word) & 0xf),
            Self::Clts => Some(cr0 & !Cr0::TS.bits()),
            _ => None,
        }
    }

    /// The value that the guest wants in CR4, unchecked, or `None` where CR4 is not written.
    #[must_use]
    pub fn new_cr4(self, state: &impl VcpuState) -> Option<u64> {
        match self {
            Self::Write { register: 4, gpr } => Some(operand(state, gpr)),
            _ => None,
        }
    }

    /// The value that the guest wants in CR8, unchecked, or `None` where CR8 is not written.
    #[must_use]
    pub fn new_cr8(self, state: &impl VcpuState) -> Option<u64> {
        match self {
            Self::Write { register: 8, gpr } => Some(operand(state, gpr)),
            _ => None,
        }
    }
}

/// What an instruction does to a debug register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DrAccess {
    /// DR0 to DR15.
    pub register: u8,
    /// MOV to the register.
    pub write: bool,
    /// The other operand.
    pub gpr: Gpr,
}

/// The operand of a MOV to a control or debug register: all of `gpr` in 64-bit mode, its low half elsewhere.
#[must_use]
pub fn operand(state: &impl VcpuState, gpr: Gpr) -> u64 {
    let value = state.gpr(gpr);
    if state.mode() == CpuMode::Long64 { value } else { value & 0xffff_ffff }
}

/// Gives `gpr` the value of a control or debug register: all of it in 64-bit mode, its low half elsewhere.
pub fn set_operand(state: &mut impl VcpuState, gpr: Gpr, value: u64) {
    let size = if state.mode() == CpuMode::Long64 { 8 } else { 4 };
    Part::new(gpr, size).write(state, value);
}

/// The access to a control register at RIP, and the RIP behind it. Changes nothing.
///
/// SMSW to memory is left to the hardware and is [`StepError::Unhandleable`] here: it reads CR0 only, and no
/// policy wants to see that.
///
/// # Errors
/// [`StepError`]: the fault of LMSW's memory operand, or of code that has changed since the exit; unhandleable
/// where another instruction is there.
pub fn decode_cr(
    state: &mut impl VcpuState,
    memory: &impl GuestMemory,
    features: &PagingFeatures,
) -> Result<(CrAccess, u64), StepError> {
    let (instruction, bytes, next) = at_rip(state, memory, features)?;
    let unhandleable = StepError::Unhandleable(bytes);
    let access = match instruction.code() {
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => numbered(&instruction, 0, 1, Register::CR0)
            .map(|(register, gpr)| CrAccess::Write { register, gpr }),
        Code::Mov_r32_cr | Code::Mov_r64_cr => numbered(&instruction, 1, 0, Register::CR0)
            .map(|(register, gpr)| CrAccess::Read { register, gpr }),
        Code::Clts => Some(CrAccess::Clts),
        _ if instruction.mnemonic() == Mnemonic::Lmsw => {
            Some(CrAccess::Lmsw(source_word(state, memory, &instruction, features)?))
        }
        _ if instruction.mnemonic() == Mnemonic::Smsw => {
            Part::of(instruction.op0_register()).map(|part| CrAccess::Smsw { gpr: part.gpr, size: part.size })
        }
        _ => None,
    };
    Ok((access.ok_or(unhandleable)?, next))
}

/// The MOV to or from a debug register at RIP, and the RIP behind it.
///
/// # Errors
/// [`StepError`] of code that has changed since the exit; unhandleable where another instruction is there.
pub fn decode_dr(
    state: &impl VcpuState,
    memory: &impl GuestMemory,
    features: &PagingFeatures,
) -> Result<(DrAccess, u64), StepError> {
    let (instruction, bytes, next) = at_rip(state, memory, features)?;
    let access = match instruction.code() {
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => {
            numbered(&instruction, 0, 1, Register::DR0).map(|(register, gpr)| (register, true, gpr))
        }
        Code::Mov_r32_dr | Code::Mov_r64_dr => {
            numbered(&instruction, 1, 0, Register::DR0).map(|(register, gpr)| (register, false, gpr))
        }
        _ => None,
    };
    let (register, write, gpr) = access.ok_or(StepError::Unhandleable(bytes))?;
    Ok((DrAccess { register, write, gpr }, next))
}

/// Decodes what is at RIP.
fn at_rip(
    state: &impl VcpuState,
    memory: &impl GuestMemory,
    features: &PagingFeatures,
) -> Result<(Instruction, InstructionBytes, u64), StepError> {
    let mode = state.mode();
    let mut window = window(state, memory, mode);
    let instruction = decode_at_rip(state, memory, mode, &mut window, features)
        .map_err(|error| StepError::of(error, &window))?;
    let next = next_rip(mode, state.rip(), instruction.len() as u64);
    Ok((instruction, window.bytes.truncated(instruction.len()), next))
}

/// Operand `special` as a register number from `first` (CR0 or DR0), and operand `general` as a general-purpose
/// register.
fn numbered(instruction: &Instruction, special: u32, general: u32, first: Register) -> Option<(u8, Gpr)> {
    let number = (instruction.op_register(special) as u32).checked_sub(first as u32)?;
    let gpr = Part::of(instruction.op_register(general))?.gpr;
    u8::try_from(number).ok().filter(|&number| number < 16).map(|number| (number, gpr))
}

/// The 16 bits that LMSW loads.
fn source_word(
    state: &mut impl VcpuState,
    memory: &impl GuestMemory,
    instruction: &Instruction,
    features: &PagingFeatures,
) -> Result<u16, StepError> {
    if instruction.op0_kind() == OpKind::Register {
        return Ok(Part::of(instruction.op0_register()).map_or(0, |part| part.read(state)) as u16);
    }
    let mode = state.mode();
    let operand = effective(state, mode, instruction);
    let mut context =
        Context { state, memory, bus: &mut Nothing, features, fault: None, mode, reached_bus: false };
    let place = context.place(operand, 2, AccessKind::Read).map_err(StepError::Exception)?;
    Ok(context.load(place) as u16)
}

/// A bus with nothing on it.
struct Nothing;

impl MmioBus for Nothing {
    fn read(&mut self, _gpa: caisson_types::Gpa, _size: u8) -> u64 {
        u64::MAX
    }
    fn write(&mut self, _gpa: caisson_types::Gpa, _size: u8, _value: u64) {}
}
