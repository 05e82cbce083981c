//! What a task state segment holds, with 16 and with 32 bits (SDM vol. 3, figures 8-2 and 8-10).

use caisson_hwvirt::VcpuState;
use caisson_x86::{Attributes, Gpr, SegmentRegister};

/// The longest part of a TSS that a switch saves.
pub(super) const SAVED_BYTES: usize = 0x40;

/// The segment registers in the order in which both formats hold them; 16 bits have the first four.
const SEGMENTS: [SegmentRegister; 6] = [
    SegmentRegister::Es,
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];

/// The two formats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    /// 16 bits.
    Narrow,
    /// 32 bits.
    Wide,
}

/// The state that a TSS gives to the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Incoming {
    pub(super) ip: u64,
    pub(super) flags: u64,
    /// By encoding.
    pub(super) registers: [u64; 8],
    /// By encoding.
    selectors: [u16; 6],
    pub(super) ldt: u16,
    pub(super) cr3: Option<u32>,
    /// The T flag.
    pub(super) trap: bool,
}

impl Incoming {
    pub(super) fn selector(&self, register: SegmentRegister) -> u16 {
        self.selectors.get(register as usize).copied().unwrap_or(0)
    }

    pub(super) fn selectors(&self) -> impl Iterator<Item = (SegmentRegister, u16)> {
        SEGMENTS.into_iter().zip(self.selectors)
    }
}

impl Format {
    /// The format of a TSS descriptor of this type, whose busy flag is `busy`.
    pub(super) fn of(attributes: Attributes, busy: bool) -> Option<Self> {
        let system = attributes.0 & 1 << 4 == 0;
        (system && (attributes.kind() & 2 != 0) == busy).then(|| Self::of_kind(attributes.kind())).flatten()
    }

    /// The format of a type of system segment.
    pub(super) fn of_kind(kind: u8) -> Option<Self> {
        match kind {
            1 | 3 => Some(Self::Narrow),
            9 | 11 => Some(Self::Wide),
            _ => None,
        }
    }

    /// The offset of the last byte that the limit has to have.
    pub(super) const fn last_byte(self) -> u32 {
        match self {
            Self::Narrow => 0x2b,
            Self::Wide => 0x67,
        }
    }

    /// Offset and length of what a switch saves: from the instruction pointer to the last selector but the LDT's.
    pub(super) const fn saved(self) -> (u64, u64) {
        match self {
            Self::Narrow => (0x0e, 0x2a - 0x0e),
            Self::Wide => (0x20, 0x60 - 0x20),
        }
    }

    /// The outgoing state, as [`Format::saved`] places it: words of the format's width, selectors among them.
    pub(super) fn save<'a>(
        self,
        state: &impl VcpuState,
        ip: u64,
        flags: u64,
        image: &'a mut [u8; SAVED_BYTES],
    ) -> &'a [u8] {
        let (width, segments) = match self {
            Self::Narrow => (2, 4),
            Self::Wide => (4, 6),
        };
        let registers = (0..8).map(|number| state.gpr(Gpr::from_encoding(number)));
        let selectors =
            SEGMENTS.into_iter().take(segments).map(|register| u64::from(state.segment(register).selector));
        let words = [ip, flags].into_iter().chain(registers).chain(selectors);
        for (slot, word) in image.chunks_exact_mut(width).zip(words) {
            slot.iter_mut().zip(word.to_le_bytes()).for_each(|(slot, byte)| *slot = byte);
        }
        image.get(..self.saved().1 as usize).unwrap_or(&[])
    }

    /// The state in the bytes of a TSS. What 16 bits lack is as on every CPU: the upper halves of registers are ones.
    pub(super) fn load(self, bytes: &[u8; 104]) -> Incoming {
        let at = |offset: usize, width: usize| {
            let field = bytes.get(offset..offset + width).unwrap_or(&[]);
            field.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let mut registers = [0; 8];
        let mut selectors = [0; 6];
        match self {
            Self::Narrow => {
                let word = |index: usize| at(0x0e + 2 * index, 2);
                registers.iter_mut().enumerate().for_each(|(i, r)| *r = word(2 + i) | 0xffff_0000);
                selectors.iter_mut().take(4).enumerate().for_each(|(i, s)| *s = word(10 + i) as u16);
                let (ip, flags, ldt) = (word(0), word(1), word(14) as u16);
                Incoming { ip, flags, registers, selectors, ldt, cr3: None, trap: false }
            }
            Self::Wide => {
                let word = |index: usize| at(0x20 + 4 * index, 4);
                registers.iter_mut().enumerate().for_each(|(i, r)| *r = word(2 + i));
                selectors.iter_mut().enumerate().for_each(|(i, s)| *s = word(10 + i) as u16);
                let (ip, flags, ldt) = (word(0), word(1), word(16) as u16);
                let cr3 = Some(at(0x1c, 4) as u32);
                Incoming { ip, flags, registers, selectors, ldt, cr3, trap: bytes[0x64] & 1 != 0 }
            }
        }
    }
}
