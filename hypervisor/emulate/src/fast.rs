//! The MOV forms that drivers' register accesses compile to, decoded by hand: what Linux's `readl`, `writel`
//! and xAPIC code use. Everything else is left to the full decoder.
//!
//! Encodings 8B /r, 89 /r and C7 /0 with a 32-bit operand (64-bit with REX.W), in 32- and 64-bit code with 32- and
//! 64-bit addresses (SDM vol. 2, sections 2.1 and 2.2).

use caisson_hwvirt::VcpuState;
use caisson_x86::{CpuMode, Gpr, SegmentRegister};

use crate::operand::{Effective, mask};

/// What the MOV moves besides its memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Other {
    /// Memory to register.
    Load(Gpr),
    /// Register to memory.
    Store(Gpr),
    /// Immediate, sign-extended, to memory.
    Immediate(u64),
}

/// A MOV between memory and a register or an immediate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PlainMov {
    pub(crate) other: Other,
    pub(crate) operand: Effective,
    /// 4 or 8 bytes.
    pub(crate) size: u8,
    /// Bytes of the instruction.
    pub(crate) length: u8,
}

/// A cursor over the instruction's bytes.
struct Bytes<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bytes<'_> {
    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied();
        self.at += 1;
        byte
    }

    /// A sign-extended 8-bit number.
    #[inline]
    fn signed8(&mut self) -> Option<u64> {
        Some(i64::from(self.byte()? as i8) as u64)
    }

    /// A sign-extended 32-bit number.
    #[inline]
    fn signed32(&mut self) -> Option<u64> {
        let bytes = self.bytes.get(self.at..self.at + 4)?;
        self.at += 4;
        Some(i64::from(i32::from_le_bytes(bytes.try_into().ok()?)) as u64)
    }
}

/// Decodes `bytes`, or gives `None` for everything that this decoder leaves alone.
pub(crate) fn plain_mov(state: &impl VcpuState, mode: CpuMode, bytes: &[u8]) -> Option<PlainMov> {
    let long = match mode {
        CpuMode::Long64 => true,
        CpuMode::Protected32 => false,
        _ => return None,
    };
    let mut bytes = Bytes { bytes, at: 0 };
    let mut opcode = bytes.byte()?;
    let mut address_size = if long { 8 } else { 4 };
    if long && opcode == 0x67 {
        address_size = 4;
        opcode = bytes.byte()?;
    }
    let mut rex = 0;
    if long && opcode & 0xf0 == 0x40 {
        rex = opcode;
        opcode = bytes.byte()?;
    }
    if !matches!(opcode, 0x89 | 0x8b | 0xc7) {
        return None;
    }
    let modrm = bytes.byte()?;
    let register = Gpr::from_encoding(modrm >> 3 & 7 | (rex & 4) << 1);
    if opcode == 0xc7 && modrm & 0x38 != 0 {
        return None;
    }
    let address = address(state, &mut bytes, modrm, rex, long)?;
    let other = match opcode {
        0x89 => Other::Store(register),
        0x8b => Other::Load(register),
        _ => Other::Immediate(bytes.signed32()?),
    };
    let mut offset = address.offset;
    if address.rip_relative {
        offset = offset.wrapping_add(state.rip()).wrapping_add(bytes.at as u64);
    }
    let mask = mask(address_size);
    let operand = Effective { segment: address.segment, offset: offset & mask, mask };
    let size = if rex & 8 != 0 { 8 } else { 4 };
    Some(PlainMov { other, operand, size, length: bytes.at as u8 })
}

/// A ModRM memory operand, before RIP and the address size.
struct Address {
    segment: SegmentRegister,
    offset: u64,
    rip_relative: bool,
}

/// Decodes ModRM's memory operand with SIB and displacement (SDM vol. 2, tables 2-2 and 2-3).
fn address(state: &impl VcpuState, bytes: &mut Bytes<'_>, modrm: u8, rex: u8, long: bool) -> Option<Address> {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    if mode == 3 {
        return None;
    }
    let mut base = Some(Gpr::from_encoding(rm | (rex & 1) << 3));
    let mut offset = 0u64;
    let mut no_base_displacement = rm == 5;
    if rm == 4 {
        let sib = bytes.byte()?;
        let index = Gpr::from_encoding(sib >> 3 & 7 | (rex & 2) << 2);
        if index != Gpr::Rsp {
            offset = state.gpr(index) << (sib >> 6);
        }
        base = Some(Gpr::from_encoding(sib & 7 | (rex & 1) << 3));
        no_base_displacement = sib & 7 == 5;
    }
    let rip_relative = long && mode == 0 && rm == 5;
    let displacement = match mode {
        0 if no_base_displacement => {
            base = None;
            bytes.signed32()?
        }
        0 => 0,
        1 => bytes.signed8()?,
        _ => bytes.signed32()?,
    };
    let segment = match base {
        Some(Gpr::Rsp | Gpr::Rbp) => SegmentRegister::Ss,
        _ => SegmentRegister::Ds,
    };
    let base = base.map_or(0, |gpr| state.gpr(gpr));
    Some(Address { segment, offset: offset.wrapping_add(base).wrapping_add(displacement), rip_relative })
}
