//! What each instruction does to a device, but for string instructions.
//!
//! SDM vol. 2, each instruction's page. Registers are looked up and places found before anything is read or
//! written, so that an instruction that is refused or faults has changed nothing.

use caisson_hwvirt::VcpuState;
use caisson_types::GuestMemory;
use caisson_x86::{CpuMode, Exception, Gpr, SegmentRegister};
use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

use crate::access::{Context, MmioBus, Place};
use crate::alu::{self, Binary, Bit, Shift};
use crate::emulate::{Done, Stop};
use crate::fast::{Other, PlainMov};
use crate::operand::{Effective, Part, effective, mask, segment_register, sign_extend};
use crate::walk::AccessKind;

impl<S: VcpuState, M: GuestMemory, B: MmioBus> Context<'_, S, M, B> {
    /// Executes what the hand decoder found.
    pub(crate) fn plain_mov(&mut self, mov: &PlainMov) -> Result<(), Exception> {
        match mov.other {
            Other::Load(gpr) => {
                let place = self.only_place(mov.operand, mov.size, AccessKind::Read)?;
                let value = self.load(place);
                Part::new(gpr, mov.size).write(self.state, value);
            }
            Other::Store(gpr) => {
                let place = self.only_place(mov.operand, mov.size, AccessKind::Write)?;
                self.store(place, self.state.gpr(gpr));
            }
            Other::Immediate(value) => {
                let place = self.only_place(mov.operand, mov.size, AccessKind::Write)?;
                self.store(place, value);
            }
        }
        Ok(())
    }

    /// Executes a decoded instruction, but for the step to the next.
    pub(crate) fn execute(&mut self, instruction: &Instruction) -> Result<Done, Stop> {
        use Mnemonic as M;
        if let Some(string) = crate::strings::of(instruction) {
            return self.string(instruction, string);
        }
        // What has no explicit memory operand (PUSH of a register, say) met the device with an implicit one.
        if !instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
            return Err(Stop::Unsupported);
        }
        let size = operand_size(instruction.memory_size()).ok_or(Stop::Unsupported)?;
        match instruction.mnemonic() {
            M::Mov | M::Movnti => self.mov(instruction, size),
            M::Movzx => self.extend(instruction, size, |value, _| value),
            M::Movsx | M::Movsxd => self.extend(instruction, size, sign_extend),
            M::Movbe => self.movbe(instruction, size),
            M::Add => self.binary(instruction, size, Binary::Add, true),
            M::Or => self.binary(instruction, size, Binary::Or, true),
            M::Adc => self.binary(instruction, size, Binary::Adc, true),
            M::Sbb => self.binary(instruction, size, Binary::Sbb, true),
            M::And => self.binary(instruction, size, Binary::And, true),
            M::Sub => self.binary(instruction, size, Binary::Sub, true),
            M::Xor => self.binary(instruction, size, Binary::Xor, true),
            M::Cmp => self.binary(instruction, size, Binary::Sub, false),
            M::Test => self.binary(instruction, size, Binary::And, false),
            M::Not => self.modify_operand(instruction, size, |a, flags| (!a, flags)),
            M::Neg => {
                self.modify_operand(instruction, size, |a, flags| alu::binary(Binary::Sub, 0, a, size, flags))
            }
            M::Inc => self.modify_operand(instruction, size, |a, flags| alu::increment(a, 1, size, flags)),
            M::Dec => self.modify_operand(instruction, size, |a, flags| alu::increment(a, -1, size, flags)),
            M::Rol => self.shift(instruction, size, Shift::Rol),
            M::Ror => self.shift(instruction, size, Shift::Ror),
            M::Rcl => self.shift(instruction, size, Shift::Rcl),
            M::Rcr => self.shift(instruction, size, Shift::Rcr),
            M::Shl | M::Sal => self.shift(instruction, size, Shift::Shl),
            M::Shr => self.shift(instruction, size, Shift::Shr),
            M::Sar => self.shift(instruction, size, Shift::Sar),
            M::Bt => self.bit(instruction, size, Bit::Test),
            M::Bts => self.bit(instruction, size, Bit::Set),
            M::Btr => self.bit(instruction, size, Bit::Reset),
            M::Btc => self.bit(instruction, size, Bit::Complement),
            M::Xchg => self.xchg(instruction, size),
            M::Xadd => self.xadd(instruction, size),
            M::Cmpxchg => self.cmpxchg(instruction, size),
            M::Push => self.push(instruction, size),
            M::Pop => self.pop(instruction, size),
            mnemonic => match (set_condition(mnemonic), move_condition(mnemonic)) {
                (Some(code), _) => self.set(instruction, code),
                (_, Some(code)) => self.conditional_move(instruction, size, code),
                _ => Err(Stop::Unsupported),
            },
        }
    }

    /// The place of the explicit memory operand.
    fn operand_place(
        &self,
        instruction: &Instruction,
        size: u8,
        kind: AccessKind,
    ) -> Result<Place, Exception> {
        self.only_place(effective(self.state, self.mode, instruction), size, kind)
    }

    /// Reads the explicit memory operand.
    fn load_operand(&mut self, instruction: &Instruction, size: u8) -> Result<u64, Exception> {
        let place = self.operand_place(instruction, size, AccessKind::Read)?;
        Ok(self.load(place))
    }

    /// The value of operand `index`, which is a register or an immediate.
    fn value(&self, instruction: &Instruction, index: u32) -> Result<u64, Stop> {
        if instruction.op_kind(index) == OpKind::Register {
            let register = instruction.op_register(index);
            if let Some(segment) = segment_register(register) {
                return Ok(u64::from(self.state.segment(segment).selector));
            }
            return Ok(Part::of(register).ok_or(Stop::Unsupported)?.read(self.state));
        }
        instruction.try_immediate(index).map_err(|_| Stop::Unsupported)
    }

    /// The register that operand `index` is.
    fn register(instruction: &Instruction, index: u32) -> Result<Part, Stop> {
        Part::of(instruction.op_register(index)).ok_or(Stop::Unsupported)
    }

    fn mov(&mut self, instruction: &Instruction, size: u8) -> Result<Done, Stop> {
        if is_memory(instruction, 0) {
            let value = self.value(instruction, 1)?;
            let place = self.operand_place(instruction, size, AccessKind::Write)?;
            self.store(place, value);
        } else {
            let target = Self::register(instruction, 0)?;
            let value = self.load_operand(instruction, size)?;
            target.write(self.state, value);
        }
        Ok(Done::Completed)
    }

    /// MOVZX, MOVSX and MOVSXD from memory.
    fn extend(
        &mut self,
        instruction: &Instruction,
        size: u8,
        extend: fn(u64, u8) -> u64,
    ) -> Result<Done, Stop> {
        let target = Self::register(instruction, 0)?;
        let value = self.load_operand(instruction, size)?;
        target.write(self.state, extend(value, size));
        Ok(Done::Completed)
    }

    fn movbe(&mut self, instruction: &Instruction, size: u8) -> Result<Done, Stop> {
        let swap = |value: u64| value.swap_bytes() >> (64 - u32::from(size) * 8);
        if is_memory(instruction, 0) {
            let value = self.value(instruction, 1)?;
            let place = self.operand_place(instruction, size, AccessKind::Write)?;
            self.store(place, swap(value));
        } else {
            let target = Self::register(instruction, 0)?;
            let value = self.load_operand(instruction, size)?;
            target.write(self.state, swap(value));
        }
        Ok(Done::Completed)
    }

    /// An operation of two operands, one of them memory; its result is kept where `keep`.
    fn binary(&mut self, instruction: &Instruction, size: u8, op: Binary, keep: bool) -> Result<Done, Stop> {
        if is_memory(instruction, 0) {
            let b = self.value(instruction, 1)?;
            if keep {
                return self.modify_operand(instruction, size, |a, flags| alu::binary(op, a, b, size, flags));
            }
            let a = self.load_operand(instruction, size)?;
            let (_, rflags) = alu::binary(op, a, b, size, self.state.rflags());
            self.state.set_rflags(rflags);
        } else {
            let target = Self::register(instruction, 0)?;
            let b = self.load_operand(instruction, size)?;
            let (result, rflags) = alu::binary(op, target.read(self.state), b, size, self.state.rflags());
            self.state.set_rflags(rflags);
            if keep {
                target.write(self.state, result);
            }
        }
        Ok(Done::Completed)
    }

    /// Reads the explicit memory operand, changes it and RFLAGS by `change`, and writes it back.
    fn modify_operand(
        &mut self,
        instruction: &Instruction,
        size: u8,
        change: impl FnOnce(u64, u64) -> (u64, u64),
    ) -> Result<Done, Stop> {
        let operand = effective(self.state, self.mode, instruction);
        Ok(match self.modify(operand, size, change)? {
            Some(_) => Done::Completed,
            None => Done::Retry,
        })
    }

    /// Read-modify-write of `operand`. The old value; or `None`, with nothing done, where the operand is RAM: only
    /// the CPU can do it atomically there.
    fn modify(
        &mut self,
        operand: Effective,
        size: u8,
        change: impl FnOnce(u64, u64) -> (u64, u64),
    ) -> Result<Option<u64>, Exception> {
        let place = self.only_place(operand, size, AccessKind::Write)?;
        let old = self.load(place);
        if !self.reached_bus && !self.touches_refused(place) {
            return Ok(None);
        }
        let (new, rflags) = change(old, self.state.rflags());
        self.store(place, new & mask(size));
        self.state.set_rflags(rflags);
        Ok(Some(old))
    }

    fn shift(&mut self, instruction: &Instruction, size: u8, op: Shift) -> Result<Done, Stop> {
        let count = self.value(instruction, 1)? as u8;
        self.modify_operand(instruction, size, |a, flags| alu::shift(op, a, count, size, flags))
    }

    /// BT and its kin. A register counts bits from the operand's address in either direction, an immediate
    /// within it.
    fn bit(&mut self, instruction: &Instruction, size: u8, op: Bit) -> Result<Done, Stop> {
        let bits = u64::from(size) * 8;
        let number = self.value(instruction, 1)?;
        let mut operand = effective(self.state, self.mode, instruction);
        if instruction.op_kind(1) == OpKind::Register {
            let words = sign_extend(number, size) as i64 >> bits.ilog2();
            operand = operand.plus((words as u64).wrapping_mul(u64::from(size)));
        }
        let index = (number % bits) as u32;
        if op == Bit::Test {
            let place = self.only_place(operand, size, AccessKind::Read)?;
            let (_, rflags) = alu::bit(op, self.load(place), index, self.state.rflags());
            self.state.set_rflags(rflags);
            return Ok(Done::Completed);
        }
        let old = self.modify(operand, size, |a, flags| alu::bit(op, a, index, flags))?;
        Ok(if old.is_some() { Done::Completed } else { Done::Retry })
    }

    fn xchg(&mut self, instruction: &Instruction, size: u8) -> Result<Done, Stop> {
        let register = Self::register(instruction, 1)?;
        let new = register.read(self.state);
        let operand = effective(self.state, self.mode, instruction);
        let Some(old) = self.modify(operand, size, |_, flags| (new, flags))? else {
            return Ok(Done::Retry);
        };
        register.write(self.state, old);
        Ok(Done::Completed)
    }

    fn xadd(&mut self, instruction: &Instruction, size: u8) -> Result<Done, Stop> {
        let register = Self::register(instruction, 1)?;
        let addend = register.read(self.state);
        let operand = effective(self.state, self.mode, instruction);
        let old = self.modify(operand, size, |a, flags| alu::binary(Binary::Add, a, addend, size, flags))?;
        let Some(old) = old else { return Ok(Done::Retry) };
        register.write(self.state, old);
        Ok(Done::Completed)
    }

    /// CMPXCHG writes the destination in any case: its own old value where the comparison failed.
    fn cmpxchg(&mut self, instruction: &Instruction, size: u8) -> Result<Done, Stop> {
        let accumulator = Part::new(Gpr::Rax, size);
        let expected = accumulator.read(self.state);
        let new = self.value(instruction, 1)?;
        let operand = effective(self.state, self.mode, instruction);
        let old = self.modify(operand, size, |a, flags| {
            let (_, flags) = alu::binary(Binary::Sub, expected, a, size, flags);
            (if a == expected { new } else { a }, flags)
        })?;
        let Some(old) = old else { return Ok(Done::Retry) };
        if old != expected {
            accumulator.write(self.state, old);
        }
        Ok(Done::Completed)
    }

    fn set(&mut self, instruction: &Instruction, code: u8) -> Result<Done, Stop> {
        let place = self.operand_place(instruction, 1, AccessKind::Write)?;
        self.store(place, u64::from(alu::condition(code, self.state.rflags())));
        Ok(Done::Completed)
    }

    /// CMOVcc from memory, which is read in any case.
    fn conditional_move(&mut self, instruction: &Instruction, size: u8, code: u8) -> Result<Done, Stop> {
        let target = Self::register(instruction, 0)?;
        let value = self.load_operand(instruction, size)?;
        let moved = alu::condition(code, self.state.rflags());
        let value = if moved { value } else { target.read(self.state) };
        target.write(self.state, value);
        Ok(Done::Completed)
    }

    /// The stack pointer as an operand of the stack segment.
    fn stack(&self) -> Effective {
        let mask = if self.mode == CpuMode::Long64 {
            u64::MAX
        } else if self.state.segment(SegmentRegister::Ss).attributes.big() {
            0xffff_ffff
        } else {
            0xffff
        };
        let offset = self.state.gpr(Gpr::Rsp) & mask;
        Effective { segment: SegmentRegister::Ss, offset, mask }
    }

    /// RSP with the stack pointer's part of it set to `pointer`.
    fn rsp_with(&self, pointer: Effective) -> u64 {
        let rsp = self.state.gpr(Gpr::Rsp);
        match pointer.mask {
            0xffff => rsp & !0xffff | pointer.offset,
            _ => pointer.offset,
        }
    }

    fn push(&mut self, instruction: &Instruction, size: u8) -> Result<Done, Stop> {
        let source = self.place(effective(self.state, self.mode, instruction), size, AccessKind::Read)?;
        let top = self.stack().plus(u64::from(size).wrapping_neg());
        let target = self.place(top, size, AccessKind::Write)?;
        let value = self.load(source);
        self.store(target, value);
        let rsp = self.rsp_with(top);
        self.state.set_gpr(Gpr::Rsp, rsp);
        Ok(Done::Completed)
    }

    /// POP to memory. A destination that is based on RSP counts from the incremented one.
    fn pop(&mut self, instruction: &Instruction, size: u8) -> Result<Done, Stop> {
        let top = self.stack();
        let source = self.place(top, size, AccessKind::Read)?;
        let before = self.state.gpr(Gpr::Rsp);
        let after = self.rsp_with(top.plus(u64::from(size)));
        self.state.set_gpr(Gpr::Rsp, after);
        let operand = effective(self.state, self.mode, instruction);
        match self.place(operand, size, AccessKind::Write) {
            Ok(target) => {
                let value = self.load(source);
                self.store(target, value);
                Ok(Done::Completed)
            }
            Err(exception) => {
                self.state.set_gpr(Gpr::Rsp, before);
                Err(exception.into())
            }
        }
    }
}

/// Whether operand `index` is the explicit memory operand.
fn is_memory(instruction: &Instruction, index: u32) -> bool {
    instruction.op_kind(index) == OpKind::Memory
}

/// Bytes of an integer memory operand.
const fn operand_size(size: MemorySize) -> Option<u8> {
    Some(match size {
        MemorySize::UInt8 | MemorySize::Int8 => 1,
        MemorySize::UInt16 | MemorySize::Int16 => 2,
        MemorySize::UInt32 | MemorySize::Int32 => 4,
        MemorySize::UInt64 | MemorySize::Int64 => 8,
        _ => return None,
    })
}

/// The condition of a SETcc, as its opcode's low four bits.
const fn set_condition(mnemonic: Mnemonic) -> Option<u8> {
    Some(match mnemonic {
        Mnemonic::Seto => 0,
        Mnemonic::Setno => 1,
        Mnemonic::Setb => 2,
        Mnemonic::Setae => 3,
        Mnemonic::Sete => 4,
        Mnemonic::Setne => 5,
        Mnemonic::Setbe => 6,
        Mnemonic::Seta => 7,
        Mnemonic::Sets => 8,
        Mnemonic::Setns => 9,
        Mnemonic::Setp => 10,
        Mnemonic::Setnp => 11,
        Mnemonic::Setl => 12,
        Mnemonic::Setge => 13,
        Mnemonic::Setle => 14,
        Mnemonic::Setg => 15,
        _ => return None,
    })
}

/// The condition of a CMOVcc, as its opcode's low four bits.
const fn move_condition(mnemonic: Mnemonic) -> Option<u8> {
    Some(match mnemonic {
        Mnemonic::Cmovo => 0,
        Mnemonic::Cmovno => 1,
        Mnemonic::Cmovb => 2,
        Mnemonic::Cmovae => 3,
        Mnemonic::Cmove => 4,
        Mnemonic::Cmovne => 5,
        Mnemonic::Cmovbe => 6,
        Mnemonic::Cmova => 7,
        Mnemonic::Cmovs => 8,
        Mnemonic::Cmovns => 9,
        Mnemonic::Cmovp => 10,
        Mnemonic::Cmovnp => 11,
        Mnemonic::Cmovl => 12,
        Mnemonic::Cmovge => 13,
        Mnemonic::Cmovle => 14,
        Mnemonic::Cmovg => 15,
        _ => return None,
    })
}
