//! Memory operands at their guest-physical places, in RAM or at a device.
//!
//! Invariants: a place is translated whole, both pages of it, before its first byte is read or written, so that
//! a fault leaves nothing half done. RAM is tried first, except on the very page whose access stage 2 refused;
//! what is not RAM goes to the bus. An access that crosses a page is split there; a part of odd size reaches a
//! device in aligned pieces.

use caisson_hwvirt::{NestedFault, VcpuState};
use caisson_types::{Gpa, GuestMemory, Gva, PAGE_SIZE, PageSize};
use caisson_x86::{CpuMode, Exception, SegmentRegister};

use crate::operand::{Effective, linear, mask};
use crate::walk::{Access, AccessKind, PagingFeatures, translate};

/// What stands at guest-physical addresses that are not RAM.
///
/// Sizes are 1, 2, 4 or 8 bytes. An access does not cross a 4 KiB page; it is aligned unless the guest's was not.
pub trait MmioBus {
    /// Reads `size` bytes, zero-extended. Where nothing is, all ones.
    fn read(&mut self, gpa: Gpa, size: u8) -> u64;
    /// Writes the low `size` bytes of `value`. Where nothing is, nothing happens.
    fn write(&mut self, gpa: Gpa, size: u8, value: u64);
}

/// A memory operand of 1 to 8 bytes, translated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    first: Gpa,
    /// Bytes at `first`; the rest are at `second`.
    first_len: u8,
    second: Gpa,
    size: u8,
}

/// The machine that an instruction works on.
pub(crate) struct Context<'a, S, M, B> {
    pub(crate) state: &'a mut S,
    pub(crate) memory: &'a M,
    pub(crate) bus: &'a mut B,
    pub(crate) features: &'a PagingFeatures,
    /// The access that stage 2 refused, where one did.
    pub(crate) fault: Option<NestedFault>,
    pub(crate) mode: CpuMode,
    /// Some access went to the bus.
    pub(crate) reached_bus: bool,
}

impl<S: VcpuState, M: GuestMemory, B: MmioBus> Context<'_, S, M, B> {
    /// The place of an instruction's only memory operand. Where stage 2 refused just this access, its walk and
    /// its checks are behind the CPU already.
    pub(crate) fn only_place(
        &self,
        operand: Effective,
        size: u8,
        kind: AccessKind,
    ) -> Result<Place, Exception> {
        if let Some(fault) = self.fault
            && !fault.page_walk
            && !fault.fetch
            && (fault.write || kind == AccessKind::Read)
        {
            let flat = self.mode == CpuMode::Long64
                && !matches!(operand.segment, SegmentRegister::Fs | SegmentRegister::Gs);
            let base = if flat { 0 } else { self.state.segment(operand.segment).base };
            let page_offset = base.wrapping_add(operand.offset) % PAGE_SIZE;
            if page_offset == fault.gpa.page_offset() && page_offset + u64::from(size) <= PAGE_SIZE {
                return Ok(Place { first: fault.gpa, first_len: size, second: fault.gpa, size });
            }
        }
        self.place(operand, size, kind)
    }

    /// The place of a memory operand, with every check.
    pub(crate) fn place(&self, operand: Effective, size: u8, kind: AccessKind) -> Result<Place, Exception> {
        let write = kind == AccessKind::Write;
        let start = linear(self.state, self.mode, operand.segment, operand.offset, size, write)?;
        let access = Access::explicit(kind, self.state);
        let walk = |at| translate(self.state, self.memory, at, access, self.features);
        let first = walk(start)?;
        let left_in_page = PAGE_SIZE - start.page_offset();
        if u64::from(size) <= left_in_page {
            return Ok(Place { first, first_len: size, second: first, size });
        }
        let mut next = start.wrapping_add(left_in_page);
        if self.mode != CpuMode::Long64 {
            next = Gva::new(next.as_u64() & 0xffff_ffff);
        }
        Ok(Place { first, first_len: left_in_page as u8, second: walk(next)?, size })
    }

    /// Reads a place.
    pub(crate) fn load(&mut self, place: Place) -> u64 {
        let low = self.load_part(place.first, place.first_len);
        let rest = place.size - place.first_len;
        if rest == 0 {
            return low;
        }
        low | self.load_part(place.second, rest) << (place.first_len * 8)
    }

    /// Writes the low bytes of `value` to a place.
    pub(crate) fn store(&mut self, place: Place, value: u64) {
        self.store_part(place.first, place.first_len, value);
        let rest = place.size - place.first_len;
        if rest != 0 {
            self.store_part(place.second, rest, value >> (place.first_len * 8));
        }
    }

    /// Whether `gpa` is on the page whose access stage 2 refused.
    fn refused(&self, gpa: Gpa) -> Option<NestedFault> {
        self.fault.filter(|fault| fault.gpa.align_down(PageSize::Size4K) == gpa.align_down(PageSize::Size4K))
    }

    /// Whether a part of `place` is on that page.
    pub(crate) fn touches_refused(&self, place: Place) -> bool {
        self.refused(place.first).is_some() || self.refused(place.second).is_some()
    }

    /// Reads up to 8 bytes within a page.
    fn load_part(&mut self, gpa: Gpa, len: u8) -> u64 {
        let unmapped = self.refused(gpa).is_some_and(|fault| !fault.present && !fault.page_walk);
        let mut bytes = [0; 8];
        if !unmapped
            && let Some(buf) = bytes.get_mut(..usize::from(len))
            && self.memory.read(gpa, buf).is_ok()
        {
            return u64::from_le_bytes(bytes);
        }
        self.reached_bus = true;
        if len.is_power_of_two() {
            return self.bus.read(gpa, len) & mask(len);
        }
        let read = |value, piece: Piece| {
            value | (self.bus.read(piece.gpa, piece.size) & mask(piece.size)) << (piece.at * 8)
        };
        pieces(gpa, len).fold(0, read)
    }

    /// Writes up to 8 bytes within a page.
    fn store_part(&mut self, gpa: Gpa, len: u8, value: u64) {
        let bytes = value.to_le_bytes();
        if self.refused(gpa).is_none()
            && let Some(data) = bytes.get(..usize::from(len))
            && self.memory.write(gpa, data).is_ok()
        {
            return;
        }
        self.reached_bus = true;
        if len.is_power_of_two() {
            return self.bus.write(gpa, len, value & mask(len));
        }
        for piece in pieces(gpa, len) {
            self.bus.write(piece.gpa, piece.size, value >> (piece.at * 8) & mask(piece.size));
        }
    }
}

/// A bus access within a larger one.
struct Piece {
    gpa: Gpa,
    size: u8,
    /// Bytes from the start of the larger one.
    at: u8,
}

/// `len` bytes (3, 5, 6 or 7: a part of an access that crosses a page) as aligned bus accesses.
fn pieces(gpa: Gpa, len: u8) -> impl Iterator<Item = Piece> {
    let mut at = 0;
    core::iter::from_fn(move || {
        let left = len.checked_sub(at).filter(|&left| left != 0)?;
        let here = gpa.wrapping_add(u64::from(at));
        // The alignment of the address and the largest power of two in what is left, whichever is less.
        let alignment = 1u8 << here.as_u64().trailing_zeros().min(3);
        let size = alignment.min(1 << left.ilog2());
        let piece = Piece { gpa: here, size, at };
        at += size;
        Some(piece)
    })
}
