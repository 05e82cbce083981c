//! String instructions: MOVS, STOS, LODS, CMPS and SCAS with a device as an operand, INS and OUTS at any port.
//!
//! SDM vol. 2, "REP/REPE/REPZ/REPNE/REPNZ" and the instructions' own pages. Each element is done whole, with
//! its registers, before the next begins, so that a fault or the bound leaves the state that the CPU would
//! show. F2 repeats like F3 where nothing is compared.

use caisson_hwvirt::{Direction, IoExit, VcpuState};
use caisson_types::GuestMemory;
use caisson_x86::{Gpr, Rflags, SegmentRegister};
use iced_x86::{Code, Instruction, OpKind};

use crate::access::{Context, MmioBus};
use crate::alu::{self, Binary};
use crate::decode::{decode_at_rip, next_rip, window};
use crate::emulate::{Done, STRING_BOUND, StepError, Stop};
use crate::operand::{Effective, Part, mask, segment_register};
use crate::walk::{AccessKind, PagingFeatures};

/// What stands at I/O ports, beside what stands in memory space.
pub trait IoBus: MmioBus {
    /// Reads `size` bytes (1, 2 or 4) from `port`. Where nothing is, all ones.
    fn port_read(&mut self, port: u16, size: u8) -> u32;
    /// Writes the low `size` bytes of `value` to `port`. Where nothing is, nothing happens. `false` where that cannot be
    /// done now: the instruction stops before this element, to be run again.
    #[must_use]
    fn port_write(&mut self, port: u16, size: u8, value: u32) -> bool;
}

/// What an element does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
}

/// When the repetition goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Repeat {
    /// Not at all: no prefix.
    Once,
    /// As long as the counter lasts.
    Counted,
    /// ... and ZF is as given.
    WhileZero(bool),
}

/// A string instruction on memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StringOp {
    kind: Kind,
    size: u8,
}

/// The string instruction that `instruction` is, if any (but INS and OUTS, which are port accesses).
pub(crate) const fn of(instruction: &Instruction) -> Option<StringOp> {
    use Code as C;
    let (kind, size) = match instruction.code() {
        C::Movsb_m8_m8 => (Kind::Movs, 1),
        C::Movsw_m16_m16 => (Kind::Movs, 2),
        C::Movsd_m32_m32 => (Kind::Movs, 4),
        C::Movsq_m64_m64 => (Kind::Movs, 8),
        C::Stosb_m8_AL => (Kind::Stos, 1),
        C::Stosw_m16_AX => (Kind::Stos, 2),
        C::Stosd_m32_EAX => (Kind::Stos, 4),
        C::Stosq_m64_RAX => (Kind::Stos, 8),
        C::Lodsb_AL_m8 => (Kind::Lods, 1),
        C::Lodsw_AX_m16 => (Kind::Lods, 2),
        C::Lodsd_EAX_m32 => (Kind::Lods, 4),
        C::Lodsq_RAX_m64 => (Kind::Lods, 8),
        C::Cmpsb_m8_m8 => (Kind::Cmps, 1),
        C::Cmpsw_m16_m16 => (Kind::Cmps, 2),
        C::Cmpsd_m32_m32 => (Kind::Cmps, 4),
        C::Cmpsq_m64_m64 => (Kind::Cmps, 8),
        C::Scasb_AL_m8 => (Kind::Scas, 1),
        C::Scasw_AX_m16 => (Kind::Scas, 2),
        C::Scasd_EAX_m32 => (Kind::Scas, 4),
        C::Scasq_RAX_m64 => (Kind::Scas, 8),
        _ => return None,
    };
    Some(StringOp { kind, size })
}

/// The address size of a string instruction, as a mask.
fn address_mask(instruction: &Instruction) -> u64 {
    let short = |kind| matches!(kind, OpKind::MemorySegSI | OpKind::MemoryESDI);
    let middle = |kind| matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI);
    if instruction.op_kinds().any(short) {
        0xffff
    } else if instruction.op_kinds().any(middle) {
        0xffff_ffff
    } else {
        u64::MAX
    }
}

/// The segment of the source, which is DS or what a prefix says.
fn source_segment(instruction: &Instruction) -> SegmentRegister {
    segment_register(instruction.segment_prefix()).unwrap_or(SegmentRegister::Ds)
}

/// Where the elements are and how the registers move.
#[derive(Clone, Copy)]
struct Elements {
    /// Segment of the operand at rSI.
    segment: SegmentRegister,
    /// The address size.
    mask: u64,
    /// Bytes of an element.
    size: u8,
}

impl<S: VcpuState, M: GuestMemory, B: MmioBus> Context<'_, S, M, B> {
    /// Executes a string instruction on memory, at most [`STRING_BOUND`] elements of it.
    pub(crate) fn string(&mut self, instruction: &Instruction, op: StringOp) -> Result<Done, Stop> {
        let elements =
            Elements { segment: source_segment(instruction), mask: address_mask(instruction), size: op.size };
        let compares = matches!(op.kind, Kind::Cmps | Kind::Scas);
        let repeat = match (instruction.has_repe_prefix(), instruction.has_repne_prefix()) {
            (false, false) => Repeat::Once,
            (_, not_equal) if compares => Repeat::WhileZero(!not_equal),
            _ => Repeat::Counted,
        };
        self.repeat(repeat, elements.mask, |context| context.element(op, elements))
    }

    /// Does `element` again and again as `repeat` says.
    fn repeat(
        &mut self,
        repeat: Repeat,
        mask: u64,
        mut element: impl FnMut(&mut Self) -> Result<(), Stop>,
    ) -> Result<Done, Stop> {
        if repeat == Repeat::Once {
            return match element(self) {
                Ok(()) => Ok(Done::Completed),
                Err(Stop::Busy) => Ok(Done::Partial),
                Err(stop) => Err(stop),
            };
        }
        for done in 0..STRING_BOUND {
            let left = self.state.gpr(Gpr::Rcx) & mask;
            if left == 0 {
                return Ok(Done::Completed);
            }
            match element(self) {
                // Nothing has happened yet: the instruction is as new.
                Err(Stop::Busy) if done == 0 => return Ok(Done::Partial),
                Err(Stop::Busy) => break,
                result => result?,
            }
            self.set_index(Gpr::Rcx, left - 1, mask);
            if let Repeat::WhileZero(wanted) = repeat
                && (self.state.rflags() & Rflags::ZF.bits() != 0) != wanted
            {
                return Ok(Done::Completed);
            }
        }
        if self.state.gpr(Gpr::Rcx) & mask == 0 {
            return Ok(Done::Completed);
        }
        self.state.set_interrupt_shadow(false);
        Ok(Done::Partial)
    }

    /// One element of `op`.
    fn element(&mut self, op: StringOp, elements: Elements) -> Result<(), Stop> {
        let size = op.size;
        let accumulator = Part::new(Gpr::Rax, size);
        match op.kind {
            Kind::Movs => {
                let from = self.place(self.source(elements), size, AccessKind::Read)?;
                let to = self.place(self.destination(elements), size, AccessKind::Write)?;
                let value = self.load(from);
                self.store(to, value);
            }
            Kind::Stos => {
                let to = self.place(self.destination(elements), size, AccessKind::Write)?;
                self.store(to, self.state.gpr(Gpr::Rax));
            }
            Kind::Lods => {
                let from = self.place(self.source(elements), size, AccessKind::Read)?;
                let value = self.load(from);
                accumulator.write(self.state, value);
            }
            Kind::Cmps => {
                let first = self.place(self.source(elements), size, AccessKind::Read)?;
                let second = self.place(self.destination(elements), size, AccessKind::Read)?;
                let (a, b) = (self.load(first), self.load(second));
                self.compare(a, b, size);
            }
            Kind::Scas => {
                let place = self.place(self.destination(elements), size, AccessKind::Read)?;
                let (a, b) = (accumulator.read(self.state), self.load(place));
                self.compare(a, b, size);
            }
        }
        if matches!(op.kind, Kind::Movs | Kind::Lods | Kind::Cmps) {
            self.step_index(Gpr::Rsi, elements);
        }
        if op.kind != Kind::Lods {
            self.step_index(Gpr::Rdi, elements);
        }
        Ok(())
    }

    fn compare(&mut self, a: u64, b: u64, size: u8) {
        let (_, rflags) = alu::binary(Binary::Sub, a, b, size, self.state.rflags());
        self.state.set_rflags(rflags);
    }

    /// The operand at rSI.
    fn source(&self, elements: Elements) -> Effective {
        let offset = self.state.gpr(Gpr::Rsi) & elements.mask;
        Effective { segment: elements.segment, offset, mask: elements.mask }
    }

    /// The operand at ES:rDI, whose segment no prefix changes.
    fn destination(&self, elements: Elements) -> Effective {
        let offset = self.state.gpr(Gpr::Rdi) & elements.mask;
        Effective { segment: SegmentRegister::Es, offset, mask: elements.mask }
    }

    /// Moves an index register one element in the direction of RFLAGS.DF.
    fn step_index(&mut self, register: Gpr, elements: Elements) {
        let old = self.state.gpr(register) & elements.mask;
        let down = self.state.rflags() & Rflags::DF.bits() != 0;
        let by = u64::from(elements.size);
        let new = if down { old.wrapping_sub(by) } else { old.wrapping_add(by) };
        self.set_index(register, new, elements.mask);
    }

    /// Writes a register of the address size: 16 bits leave the rest alone, 32 clear it.
    fn set_index(&mut self, register: Gpr, value: u64, mask: u64) {
        let size = match mask {
            0xffff => 2,
            0xffff_ffff => 4,
            _ => 8,
        };
        Part::new(register, size).write(self.state, value & mask);
    }
}

/// Executes INS or OUTS, which exited as `io`, at most [`STRING_BOUND`] elements of it.
///
/// A place in memory is found and checked before the port is touched. [`Done::Partial`] at the bound, and before an
/// element that the port does not take now; [`Done::Retry`] where the instruction has changed since the exit.
///
/// # Errors
/// [`StepError::Exception`] of the memory operand; the elements before it are done, RIP is on the instruction.
pub fn string_io(
    state: &mut impl VcpuState,
    memory: &impl GuestMemory,
    bus: &mut impl IoBus,
    io: &IoExit,
    features: &PagingFeatures,
) -> Result<Done, StepError> {
    let mode = state.mode();
    let input = io.direction == Direction::In;
    let known_mask = match io.address_bits {
        16 => Some(0xffff),
        32 => Some(0xffff_ffff),
        64 => Some(u64::MAX),
        _ => None,
    };
    // INS has no choice of a segment.
    let known_segment = if input { Some(SegmentRegister::Es) } else { io.segment };
    let (mask, segment, next) = match (known_mask, known_segment, io.next_rip) {
        (Some(mask), Some(segment), Some(next)) => (mask, segment, next),
        _ => {
            let mut window = window(state, memory, mode);
            let instruction = decode_at_rip(state, memory, mode, &mut window, features)
                .map_err(|error| StepError::of(error, &window))?;
            if port_element(&instruction) != Some((io.direction, io.size)) {
                return Ok(Done::Retry);
            }
            let next = next_rip(mode, state.rip(), instruction.len() as u64);
            (address_mask(&instruction), source_segment(&instruction), next)
        }
    };
    if !matches!(io.size, 1 | 2 | 4) {
        return Ok(Done::Retry);
    }
    let elements = Elements { segment, mask, size: io.size };
    let repeat = if io.repeat { Repeat::Counted } else { Repeat::Once };
    let mut context = Context { state, memory, bus, features, fault: None, mode, reached_bus: false };
    let done = context.repeat(repeat, mask, |context| context.port_element(io, elements)).map_err(
        |stop| match stop {
            Stop::Exception(exception) => StepError::Exception(exception),
            Stop::Unsupported | Stop::Busy => StepError::Unhandleable(crate::InstructionBytes::EMPTY),
        },
    )?;
    if done == Done::Completed {
        context.state.advance_to(next);
    }
    Ok(done)
}

/// Direction and size of an INS or OUTS.
const fn port_element(instruction: &Instruction) -> Option<(Direction, u8)> {
    Some(match instruction.code() {
        Code::Insb_m8_DX => (Direction::In, 1),
        Code::Insw_m16_DX => (Direction::In, 2),
        Code::Insd_m32_DX => (Direction::In, 4),
        Code::Outsb_DX_m8 => (Direction::Out, 1),
        Code::Outsw_DX_m16 => (Direction::Out, 2),
        Code::Outsd_DX_m32 => (Direction::Out, 4),
        _ => return None,
    })
}

impl<S: VcpuState, M: GuestMemory, B: IoBus> Context<'_, S, M, B> {
    /// One element of INS or OUTS.
    fn port_element(&mut self, io: &IoExit, elements: Elements) -> Result<(), Stop> {
        let size = elements.size;
        match io.direction {
            Direction::In => {
                let to = self.place(self.destination(elements), size, AccessKind::Write)?;
                let value = self.bus.port_read(io.port, size);
                self.store(to, u64::from(value) & mask(size));
                self.step_index(Gpr::Rdi, elements);
            }
            Direction::Out => {
                let from = self.place(self.source(elements), size, AccessKind::Read)?;
                let value = self.load(from);
                if !self.bus.port_write(io.port, size, value as u32) {
                    return Err(Stop::Busy);
                }
                self.step_index(Gpr::Rsi, elements);
            }
        }
        Ok(())
    }
}
