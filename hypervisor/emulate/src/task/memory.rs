//! Descriptor tables and task state segments at their linear addresses.

use caisson_hwvirt::VcpuState;
use caisson_types::{Gpa, GuestMemory, Gva, PAGE_SIZE};
use caisson_x86::{Attributes, Exception, ExceptionKind, SegmentRegister};

use crate::walk::{Access, AccessKind, PagingFeatures, translate};

/// How often a flag is set anew when another CPU changes the word around it.
const RETRIES: usize = 16;
/// The longest range: a 32-bit TSS.
const LONGEST: usize = 104;

/// Bytes at a linear address, translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Range {
    first: Gpa,
    /// Bytes at `first`; the rest are at `second`.
    first_len: usize,
    second: Gpa,
    len: usize,
}

impl Range {
    /// The bytes, all ones where there is no RAM.
    pub(super) fn bytes(&self, memory: &impl GuestMemory) -> [u8; LONGEST] {
        let mut bytes = [0xff; LONGEST];
        let (first, rest) = bytes.split_at_mut(self.first_len.min(LONGEST));
        let rest = rest.get_mut(..self.len - self.first_len).unwrap_or(&mut []);
        for (gpa, part) in [(self.first, first), (self.second, rest)] {
            if memory.read(gpa, part).is_err() {
                part.fill(0xff);
            }
        }
        bytes
    }

    /// Writes the bytes of `data`, which are as many.
    pub(super) fn write(&self, memory: &impl GuestMemory, data: &[u8]) {
        let (first, rest) = data.split_at(self.first_len.min(data.len()));
        // Nothing is lost where there is no RAM.
        let _ = memory.write(self.first, first);
        if !rest.is_empty() {
            let _ = memory.write(self.second, rest);
        }
    }

    /// Replaces the range's first byte by `new` if it is `current`, with the bytes around it left alone. Where there is no
    /// RAM nothing is to be replaced.
    pub(super) fn exchange(&self, memory: &impl GuestMemory, current: u8, new: u8) -> bool {
        self.replace(memory, |byte| (byte == current).then_some(new))
    }

    /// Changes the range's first byte.
    pub(super) fn update(&self, memory: &impl GuestMemory, change: impl Fn(u8) -> u8) {
        let _ = self.replace(memory, |byte| Some(change(byte)));
    }

    fn replace(&self, memory: &impl GuestMemory, change: impl Fn(u8) -> Option<u8>) -> bool {
        let word = Gpa::new(self.first.as_u64() & !3);
        let index = (self.first.as_u64() & 3) as usize;
        for _ in 0..RETRIES {
            let Ok(current) = memory.read_u32(word) else { return true };
            let mut bytes = current.to_le_bytes();
            let Some(byte) = bytes.get_mut(index) else { return true };
            let Some(new) = change(*byte) else { return false };
            *byte = new;
            match memory.compare_exchange_u32(word, current, u32::from_le_bytes(bytes)) {
                Ok(false) => {}
                Ok(true) | Err(_) => return true,
            }
        }
        false
    }
}

/// A segment descriptor of 8 bytes (SDM vol. 3, figure 3-8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Descriptor(u64);

impl Descriptor {
    pub(super) const fn attributes(self) -> Attributes {
        Attributes((self.0 >> 40 & 0xff | self.0 >> 44 & 0xf00) as u16)
    }

    /// Its byte with the type.
    pub(super) const fn access(self) -> u8 {
        (self.0 >> 40) as u8
    }

    pub(super) const fn base(self) -> u64 {
        self.0 >> 16 & 0xff_ffff | self.0 >> 56 << 24
    }

    /// The last byte's offset.
    pub(super) const fn limit(self) -> u32 {
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.attributes().granular() { limit << 12 | 0xfff } else { limit }
    }
}

/// The guest's tables, as its CPU sees them now.
pub(super) struct Tables<'a, S, M> {
    pub(super) state: &'a mut S,
    pub(super) memory: &'a M,
    pub(super) features: &'a PagingFeatures,
    pub(super) external: bool,
}

impl<S: VcpuState, M: GuestMemory> Tables<'_, S, M> {
    /// A fault that names a selector.
    pub(super) fn fault(&self, kind: ExceptionKind, selector: u16) -> Exception {
        let error_code = u32::from(selector & !3) | u32::from(self.external);
        Exception { error_code, ..Exception::plain(kind) }
    }

    /// `len` bytes (at most [`LONGEST`]) at a linear address, for a supervisor access.
    pub(super) fn range(&self, linear: u64, len: u64, kind: AccessKind) -> Result<Range, Exception> {
        let walk = |at: u64| {
            let at = Gva::new(at & 0xffff_ffff);
            translate(&*self.state, self.memory, at, Access::implicit(kind), self.features)
        };
        let left = PAGE_SIZE - linear % PAGE_SIZE;
        let first = walk(linear)?;
        let second = if len > left { walk(linear.wrapping_add(left))? } else { first };
        Ok(Range { first, first_len: len.min(left) as usize, second, len: len as usize })
    }

    /// The descriptor that a selector names, with its linear address; `None` for a null selector, and beyond the limit
    /// of its table.
    pub(super) fn find(&self, selector: u16) -> Result<Option<(u64, Descriptor)>, Exception> {
        let offset = u64::from(selector & !7);
        let (base, limit) = if selector & 4 == 0 {
            let gdtr = self.state.gdtr();
            (gdtr.base, u64::from(gdtr.limit))
        } else {
            let ldtr = self.state.segment(SegmentRegister::Ldtr);
            if !ldtr.attributes.present() {
                return Ok(None);
            }
            (ldtr.base, u64::from(ldtr.limit))
        };
        if selector & !3 == 0 || offset + 7 > limit {
            return Ok(None);
        }
        let at = base.wrapping_add(offset) & 0xffff_ffff;
        let bytes = self.range(at, 8, AccessKind::Read)?.bytes(self.memory);
        let raw = bytes.first_chunk().map_or(u64::MAX, |raw| u64::from_le_bytes(*raw));
        Ok(Some((at, Descriptor(raw))))
    }
}
