//! Registers and memory operands of a decoded instruction: values by width, effective addresses, and the
//! segment checks that turn an offset into a linear address.
//!
//! SDM vol. 1, section 3.7 (addressing) and vol. 3, sections 6.3 to 6.5 (limit, type and null-selector checks;
//! AMD: APM vol. 2, sections 4.5 to 4.12). Limits and types are checked on the hidden parts of the segment
//! registers, so that "unreal" mode works as on the CPU.

use caisson_hwvirt::VcpuState;
use caisson_types::Gva;
use caisson_x86::{
    Attributes, CpuMode, Cr0, Cr4, Exception, ExceptionKind, Gpr, Rflags, Segment, SegmentRegister,
};
use iced_x86::{Instruction, Register};

/// The bits of an operand of `size` bytes (1 to 8).
pub(crate) const fn mask(size: u8) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size as u32 * 8)) - 1 }
}

/// `value`, `size` bytes wide, with its sign carried to 64 bits.
pub(crate) const fn sign_extend(value: u64, size: u8) -> u64 {
    if size >= 8 || size == 0 {
        return value;
    }
    let shift = 64 - size as u32 * 8;
    ((value << shift) as i64 >> shift) as u64
}

/// A general-purpose register, or a part of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) gpr: Gpr,
    /// Bytes: 1, 2, 4 or 8.
    pub(crate) size: u8,
    /// AH, CH, DH or BH.
    pub(crate) high: bool,
}

impl Part {
    pub(crate) const fn new(gpr: Gpr, size: u8) -> Self {
        Self { gpr, size, high: false }
    }

    /// The part that the decoder's `register` names, or `None` for other registers.
    pub(crate) fn of(register: Register) -> Option<Self> {
        let number = register as u32;
        let part = |first: Register, size, skip: u32| Self {
            gpr: Gpr::from_encoding((number - first as u32 + skip) as u8),
            size,
            high: false,
        };
        match register {
            _ if number < Register::AL as u32 => None,
            _ if number < Register::AH as u32 => Some(part(Register::AL, 1, 0)),
            _ if number < Register::SPL as u32 => Some(Self { high: true, ..part(Register::AH, 1, 0) }),
            _ if number < Register::AX as u32 => Some(part(Register::SPL, 1, 4)),
            _ if number < Register::EAX as u32 => Some(part(Register::AX, 2, 0)),
            _ if number < Register::RAX as u32 => Some(part(Register::EAX, 4, 0)),
            _ if number <= Register::R15 as u32 => Some(part(Register::RAX, 8, 0)),
            _ => None,
        }
    }

    pub(crate) fn read(self, state: &impl VcpuState) -> u64 {
        let value = state.gpr(self.gpr) >> if self.high { 8 } else { 0 };
        value & mask(self.size)
    }

    /// Writes as an instruction does: 32 bits clear the upper half, 8 and 16 leave the rest alone.
    pub(crate) fn write(self, state: &mut impl VcpuState, value: u64) {
        let old = state.gpr(self.gpr);
        let new = match self.size {
            8 => value,
            4 => value & 0xffff_ffff,
            size => {
                let shift = if self.high { 8 } else { 0 };
                let field = mask(size) << shift;
                old & !field | value << shift & field
            }
        };
        state.set_gpr(self.gpr, new);
    }
}

/// The segment register with the decoder's name.
pub(crate) const fn segment_register(register: Register) -> Option<SegmentRegister> {
    Some(match register {
        Register::ES => SegmentRegister::Es,
        Register::CS => SegmentRegister::Cs,
        Register::SS => SegmentRegister::Ss,
        Register::DS => SegmentRegister::Ds,
        Register::FS => SegmentRegister::Fs,
        Register::GS => SegmentRegister::Gs,
        _ => return None,
    })
}

/// A memory operand before segmentation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Effective {
    pub(crate) segment: SegmentRegister,
    /// The offset, cut to the address size.
    pub(crate) offset: u64,
    /// The bits of the address size.
    pub(crate) mask: u64,
}

impl Effective {
    /// The operand `bytes` further on.
    pub(crate) const fn plus(self, bytes: u64) -> Self {
        Self { offset: self.offset.wrapping_add(bytes) & self.mask, ..self }
    }
}

/// The explicit memory operand of `instruction`, which was decoded as if at address 0.
pub(crate) fn effective(state: &impl VcpuState, mode: CpuMode, instruction: &Instruction) -> Effective {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let displacement = instruction.memory_displacement64();
    let segment = operand_segment(mode, instruction.memory_segment(), base);
    match base {
        // The decoder has added the instruction's length.
        Register::RIP => {
            return Effective { segment, offset: state.rip().wrapping_add(displacement), mask: u64::MAX };
        }
        Register::EIP => {
            let offset = state.rip().wrapping_add(displacement) & 0xffff_ffff;
            return Effective { segment, offset, mask: 0xffff_ffff };
        }
        _ => {}
    }
    let (base, index) = (Part::of(base), Part::of(index));
    let mask = match (base.or(index), instruction.memory_displ_size()) {
        (Some(part), _) => mask(part.size),
        (None, 2) => 0xffff,
        (None, 4) => 0xffff_ffff,
        (None, _) => u64::MAX,
    };
    let base = base.map_or(0, |part| part.read(state));
    let index = index.map_or(0, |part| part.read(state));
    let scaled = index.wrapping_mul(u64::from(instruction.memory_index_scale()));
    let offset = base.wrapping_add(scaled).wrapping_add(displacement) & mask;
    Effective { segment, offset, mask }
}

/// The segment that counts. In 64-bit mode the prefixes of the first four segments mean nothing (SDM vol. 1,
/// section 3.7.4).
fn operand_segment(mode: CpuMode, named: Register, base: Register) -> SegmentRegister {
    let segment = segment_register(named).unwrap_or(SegmentRegister::Ds);
    if mode != CpuMode::Long64 || matches!(segment, SegmentRegister::Fs | SegmentRegister::Gs) {
        return segment;
    }
    match base {
        Register::RSP | Register::RBP | Register::ESP | Register::EBP => SegmentRegister::Ss,
        _ => SegmentRegister::Ds,
    }
}

/// The linear address of `size` bytes (at least 1) at `offset` of `segment`, all checks passed.
///
/// # Errors
/// #GP(0), or #SS(0) for the stack segment; #AC(0) for a misaligned user access while alignment checks are on.
pub(crate) fn linear(
    state: &impl VcpuState,
    mode: CpuMode,
    segment: SegmentRegister,
    offset: u64,
    size: u8,
    write: bool,
) -> Result<Gva, Exception> {
    let refused =
        if segment == SegmentRegister::Ss { Exception::STACK } else { Exception::GENERAL_PROTECTION };
    let last = offset.wrapping_add(u64::from(size).wrapping_sub(1));
    let address = if mode == CpuMode::Long64 {
        let base = match segment {
            SegmentRegister::Fs | SegmentRegister::Gs => state.segment(segment).base,
            _ => 0,
        };
        let (first, last) = (base.wrapping_add(offset), base.wrapping_add(last));
        if !is_canonical(state, first) || !is_canonical(state, last) {
            return Err(refused);
        }
        first
    } else {
        let hidden = state.segment(segment);
        let protected = matches!(mode, CpuMode::Protected16 | CpuMode::Protected32);
        if (protected && !type_allows(hidden.attributes, write)) || !within_limit(&hidden, offset, last) {
            return Err(refused);
        }
        hidden.base.wrapping_add(offset) & 0xffff_ffff
    };
    let alignment_checked = state.cpl() == 3
        && state.cr0() & Cr0::AM.bits() != 0
        && state.rflags() & Rflags::AC.bits() != 0
        && size.is_power_of_two();
    if alignment_checked && address & (u64::from(size) - 1) != 0 {
        return Err(Exception::plain(ExceptionKind::AlignmentCheck));
    }
    Ok(Gva::new(address))
}

/// Whether the upper bits of `address` repeat the sign of the widest linear address (48 bits, or 57).
pub(crate) fn is_canonical(state: &impl VcpuState, address: u64) -> bool {
    let unused = if state.cr4() & Cr4::LA57.bits() != 0 { 7 } else { 16 };
    ((address << unused) as i64 >> unused) as u64 == address
}

/// Whether a segment of this type may be read or written in protected mode. A null selector is not present.
const fn type_allows(attributes: Attributes, write: bool) -> bool {
    if !attributes.present() {
        return false;
    }
    match (attributes.code(), write) {
        (false, false) => true,
        (true, true) => false,
        (false, true) | (true, false) => attributes.writable_or_readable(),
    }
}

/// Whether `offset` to `last` lie within the segment.
fn within_limit(segment: &Segment, offset: u64, last: u64) -> bool {
    let attributes = segment.attributes;
    let limit = u64::from(segment.limit);
    let expand_down = !attributes.code() && attributes.expand_down_or_conforming();
    if expand_down {
        let top = if attributes.big() { 0xffff_ffff } else { 0xffff };
        offset > limit && last <= top
    } else {
        last <= limit
    }
}
