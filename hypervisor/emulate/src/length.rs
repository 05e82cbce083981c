//! Where the instruction that exited ends.
//!
//! The hardware's own word is used where there is one (NRIPS on AMD, the exit instruction length on Intel).
//! Otherwise the bytes at RIP are compared with the plain encoding of the instruction that the exit announces,
//! one read and one comparison; what has prefixes or crosses a page goes through the decoder. Encodings: SDM
//! vol. 2, APM vol. 3.

use core::fmt;

use caisson_hwvirt::VcpuState;
use caisson_types::{Gpa, GuestMemory, PAGE_SIZE};
use caisson_x86::{CpuMode, Efer, SegmentRegister};
use iced_x86::{Code, Instruction, Mnemonic};

use crate::decode::{code_address, decode, next_rip, window};
use crate::walk::{fetch_translate, long_translate};

/// An instruction that an exit announces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opcode {
    /// CPUID.
    Cpuid,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// VMMCALL or VMCALL.
    Hypercall,
    /// HLT.
    Hlt,
    /// PAUSE.
    Pause,
    /// XSETBV.
    Xsetbv,
    /// RDPMC.
    Rdpmc,
    /// INVD, WBINVD or WBNOINVD.
    CacheFlush,
    /// MOV to or from a control register, LMSW, SMSW or CLTS.
    Control,
    /// MOV to or from a debug register.
    Debug,
    /// IN, OUT, INS or OUTS.
    PortIo,
    /// INTn, INT3, INT1 or INTO.
    Int,
    /// RDTSC or RDTSCP.
    Rdtsc,
    /// INVLPG or INVLPGA.
    Invlpg,
    /// Whatever is there.
    Any,
}

/// Why the end of an instruction could not be told. In both cases the guest has changed its code or page tables
/// behind the CPU's back: flush its TLB entries and let it run the instruction again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LengthError {
    /// The bytes at RIP cannot be read.
    Unreadable,
    /// The bytes at RIP are another instruction than the one that exited.
    Different,
}

impl fmt::Display for LengthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreadable => {
                "the instruction that exited is no longer mapped: flush the guest's TLB and retry"
            }
            Self::Different => {
                "another instruction is in the place of the one that exited: flush the TLB and retry"
            }
        })
    }
}

impl Opcode {
    /// The length of the instruction when `word`, the first four bytes, is its plain encoding.
    #[inline]
    const fn plain_length(self, word: u32) -> Option<u64> {
        let two = word & 0xffff;
        let three = word & 0xff_ffff;
        let (fits, length) = match self {
            Self::Cpuid => (two == 0xa20f, 2),
            Self::Rdmsr => (two == 0x320f, 2),
            Self::Wrmsr => (two == 0x300f, 2),
            Self::Hypercall => (three == 0xd9_010f || three == 0xc1_010f, 3),
            Self::Hlt => (word & 0xff == 0xf4, 1),
            Self::Pause => (two == 0x90f3, 2),
            Self::Xsetbv => (three == 0xd1_010f, 3),
            Self::Rdpmc => (two == 0x330f, 2),
            Self::CacheFlush => (two == 0x080f || two == 0x090f, 2),
            // MOV from and to; the mod field of ModRM is ignored, so that there is never more than ModRM.
            Self::Control => (two == 0x200f || two == 0x220f, 3),
            Self::Debug => (two == 0x210f || two == 0x230f, 3),
            Self::Int => (word & 0xff == 0xcd, 2),
            Self::Rdtsc => (two == 0x310f, 2),
            Self::PortIo | Self::Invlpg | Self::Any => (false, 0),
        };
        if fits { Some(length) } else { None }
    }

    /// Whether a decoded instruction is this one.
    fn is(self, instruction: &Instruction) -> bool {
        use Mnemonic as M;
        let mnemonic = instruction.mnemonic();
        match self {
            Self::Cpuid => mnemonic == M::Cpuid,
            Self::Rdmsr => mnemonic == M::Rdmsr,
            Self::Wrmsr => mnemonic == M::Wrmsr,
            Self::Hypercall => matches!(mnemonic, M::Vmmcall | M::Vmcall),
            Self::Hlt => mnemonic == M::Hlt,
            Self::Pause => mnemonic == M::Pause,
            Self::Xsetbv => mnemonic == M::Xsetbv,
            Self::Rdpmc => mnemonic == M::Rdpmc,
            Self::CacheFlush => matches!(mnemonic, M::Invd | M::Wbinvd | M::Wbnoinvd),
            Self::Control => {
                matches!(mnemonic, M::Lmsw | M::Smsw | M::Clts)
                    || matches!(
                        instruction.code(),
                        Code::Mov_r32_cr | Code::Mov_r64_cr | Code::Mov_cr_r32 | Code::Mov_cr_r64
                    )
            }
            Self::Debug => matches!(
                instruction.code(),
                Code::Mov_r32_dr | Code::Mov_r64_dr | Code::Mov_dr_r32 | Code::Mov_dr_r64
            ),
            Self::PortIo => matches!(
                mnemonic,
                M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd
            ),
            Self::Int => matches!(mnemonic, M::Int | M::Int3 | M::Int1 | M::Into),
            Self::Rdtsc => matches!(mnemonic, M::Rdtsc | M::Rdtscp),
            Self::Invlpg => matches!(mnemonic, M::Invlpg | M::Invlpga),
            Self::Any => true,
        }
    }
}

/// The RIP behind the instruction at RIP, which is `expected`, as the exit says.
///
/// # Errors
/// [`LengthError`] where the bytes at RIP are not there or are not that instruction.
#[inline(always)]
pub fn instruction_end(
    state: &impl VcpuState,
    memory: &impl GuestMemory,
    expected: Opcode,
) -> Result<u64, LengthError> {
    if let Some(next) = state.next_rip() {
        return Ok(next);
    }
    let rip = state.rip();
    // 64-bit mode, asked for by no more than it takes: EFER.LMA implies CR0.PE, CR0.PG and no virtual-8086 mode.
    let long = state.efer() & Efer::LMA.bits() != 0 && state.segment(SegmentRegister::Cs).attributes.long();
    if long
        && rip % PAGE_SIZE <= PAGE_SIZE - 4
        && let Some(gpa) = long_translate(state, memory, rip)
        && let Some(length) = plain_length_at(memory, gpa, expected)
    {
        return Ok(rip.wrapping_add(length));
    }
    general_end(state, memory, expected)
}

/// The length of `expected` where its plain encoding is at `gpa`, four bytes or more before a page's end.
#[inline(always)]
fn plain_length_at(memory: &impl GuestMemory, gpa: Gpa, expected: Opcode) -> Option<u64> {
    expected.plain_length(memory.read_u32(gpa).ok()?)
}

/// [`instruction_end`] outside 64-bit mode, and for what is not a plain encoding within a page.
#[inline(never)]
fn general_end(
    state: &impl VcpuState,
    memory: &impl GuestMemory,
    expected: Opcode,
) -> Result<u64, LengthError> {
    let mode = state.mode();
    let linear = code_address(state, mode, state.rip());
    if mode != CpuMode::Long64
        && linear.page_offset() <= PAGE_SIZE - 4
        && let Some(gpa) = fetch_translate(state, memory, linear)
        && let Some(length) = plain_length_at(memory, gpa, expected)
    {
        return Ok(next_rip(mode, state.rip(), length));
    }
    decoded_end(state, memory, expected)
}

/// [`instruction_end`] for prefixes and page crossings.
#[cold]
#[inline(never)]
fn decoded_end(
    state: &impl VcpuState,
    memory: &impl GuestMemory,
    expected: Opcode,
) -> Result<u64, LengthError> {
    let mode = state.mode();
    let window = window(state, memory, mode);
    match decode(mode, &window.bytes) {
        Ok(instruction) if expected.is(&instruction) => {
            Ok(next_rip(mode, state.rip(), instruction.len() as u64))
        }
        Ok(_) => Err(LengthError::Different),
        Err(_) if window.missing.is_some() => Err(LengthError::Unreadable),
        Err(_) => Err(LengthError::Different),
    }
}
