//! The new task's segments: loaded and qualified (SDM vol. 3, table 8-1), and its stack's first use.

use caisson_hwvirt::VcpuState;
use caisson_types::GuestMemory;
use caisson_x86::{Attributes, CpuMode, Exception, ExceptionKind, Gpr, Segment, SegmentRegister};

use super::memory::{Descriptor, Tables};
use super::tss::Incoming;
use crate::operand::linear;
use crate::walk::{Access, AccessKind, translate};

/// The accessed bit of code and data.
const ACCESSED: u8 = 1;
/// A segment of virtual-8086 mode: present, DPL 3, writable data, accessed.
pub(super) const VIRTUAL_8086: Attributes = Attributes(0xf3);
/// Code or data, not a system segment.
const CODE_OR_DATA: u16 = 1 << 4;

/// What stands for the code segment until, or unless, it has been qualified: the frame of a fault takes its selector.
pub(super) const fn stand_in(cpl: u8, wide: bool) -> Attributes {
    Attributes(Attributes::CODE16.0 | (cpl as u16) << 5 | if wide { 1 << 10 } else { 0 })
}

/// A segment that was not looked at: data that is not present.
pub(super) const fn unusable(cpl: u8) -> Attributes {
    Attributes(Attributes::DATA16.0 & !(1 << 7) | (cpl as u16) << 5)
}

impl<S: VcpuState, M: GuestMemory> Tables<'_, S, M> {
    /// LDTR: a null selector is none; otherwise a present LDT in the GDT.
    pub(super) fn load_ldtr(&mut self, selector: u16) -> Result<(), Exception> {
        if selector & !3 == 0 {
            return Ok(());
        }
        let refused = self.fault(ExceptionKind::InvalidTss, selector);
        let (_, descriptor) = if selector & 4 == 0 { self.find(selector)? } else { None }.ok_or(refused)?;
        let attributes = descriptor.attributes();
        let is_ldt = attributes.0 & CODE_OR_DATA == 0 && attributes.kind() == 2;
        if !is_ldt || !attributes.present() {
            return Err(refused);
        }
        self.put(SegmentRegister::Ldtr, selector, descriptor, attributes);
        Ok(())
    }

    /// Every other segment register, outside of virtual-8086 mode.
    pub(super) fn load_segments(&mut self, incoming: &Incoming, cpl: u8) -> Result<(), Exception> {
        self.load_code(incoming.selector(SegmentRegister::Cs))?;
        self.load_stack(incoming.selector(SegmentRegister::Ss), cpl)?;
        for register in [SegmentRegister::Ds, SegmentRegister::Es, SegmentRegister::Fs, SegmentRegister::Gs] {
            self.load_data(register, incoming.selector(register), cpl)?;
        }
        Ok(())
    }

    fn load_code(&mut self, selector: u16) -> Result<(), Exception> {
        let refused = self.fault(ExceptionKind::InvalidTss, selector);
        let (at, descriptor) = self.find(selector)?.ok_or(refused)?;
        let attributes = descriptor.attributes();
        let rpl = selector as u8 & 3;
        let privilege = if attributes.expand_down_or_conforming() {
            attributes.dpl() <= rpl
        } else {
            attributes.dpl() == rpl
        };
        if attributes.0 & CODE_OR_DATA == 0 || !attributes.code() || !privilege {
            return Err(refused);
        }
        if !attributes.present() {
            return Err(self.fault(ExceptionKind::SegmentNotPresent, selector));
        }
        self.take(SegmentRegister::Cs, selector, at, descriptor)
    }

    fn load_stack(&mut self, selector: u16, cpl: u8) -> Result<(), Exception> {
        let refused = self.fault(ExceptionKind::InvalidTss, selector);
        let (at, descriptor) = self.find(selector)?.ok_or(refused)?;
        let attributes = descriptor.attributes();
        let is_stack =
            attributes.0 & CODE_OR_DATA != 0 && !attributes.code() && attributes.writable_or_readable();
        if !is_stack || attributes.dpl() != cpl || selector as u8 & 3 != cpl {
            return Err(refused);
        }
        if !attributes.present() {
            return Err(self.fault(ExceptionKind::StackFault, selector));
        }
        self.take(SegmentRegister::Ss, selector, at, descriptor)
    }

    fn load_data(&mut self, register: SegmentRegister, selector: u16, cpl: u8) -> Result<(), Exception> {
        if selector & !3 == 0 {
            return Ok(());
        }
        let refused = self.fault(ExceptionKind::InvalidTss, selector);
        let (at, descriptor) = self.find(selector)?.ok_or(refused)?;
        let attributes = descriptor.attributes();
        let readable = !attributes.code() || attributes.writable_or_readable();
        let conforming = attributes.code() && attributes.expand_down_or_conforming();
        let privilege = conforming || attributes.dpl() >= cpl.max(selector as u8 & 3);
        if attributes.0 & CODE_OR_DATA == 0 || !readable || !privilege {
            return Err(refused);
        }
        if !attributes.present() {
            return Err(self.fault(ExceptionKind::SegmentNotPresent, selector));
        }
        self.take(register, selector, at, descriptor)
    }

    /// Loads a code or data segment that has passed, and says in its descriptor that it is in use.
    fn take(
        &mut self,
        register: SegmentRegister,
        selector: u16,
        at: u64,
        descriptor: Descriptor,
    ) -> Result<(), Exception> {
        if descriptor.access() & ACCESSED == 0 {
            let access = self.range(at.wrapping_add(5), 1, AccessKind::Write)?;
            access.update(self.memory, |access| access | ACCESSED);
        }
        let attributes = Attributes(descriptor.attributes().0 | u16::from(ACCESSED));
        self.put(register, selector, descriptor, attributes);
        Ok(())
    }

    fn put(
        &mut self,
        register: SegmentRegister,
        selector: u16,
        descriptor: Descriptor,
        attributes: Attributes,
    ) {
        let (limit, base) = (descriptor.limit(), descriptor.base());
        self.state.set_segment(register, Segment { selector, attributes, limit, base });
    }

    /// The error code of the event that took the task gate, on the new task's stack.
    pub(super) fn push_error_code(&mut self, code: u32, wide: bool) -> Result<(), Exception> {
        let mode = self.state.mode();
        let stack = self.state.segment(SegmentRegister::Ss);
        let size: u8 = if wide { 4 } else { 2 };
        let top = self.state.gpr(Gpr::Rsp);
        let big = stack.attributes.big() && mode != CpuMode::Virtual8086;
        let mask: u64 = if big { 0xffff_ffff } else { 0xffff };
        let pointer = top.wrapping_sub(u64::from(size)) & mask;
        let external = u32::from(self.external);
        let start =
            linear(self.state, mode, SegmentRegister::Ss, pointer, size, true).map_err(|e| match e.kind {
                ExceptionKind::StackFault => Exception { error_code: external, ..e },
                _ => e,
            })?;
        let access = Access::explicit(AccessKind::Write, &*self.state);
        let bytes = code.to_le_bytes();
        let mut places = [caisson_types::Gpa::new(0); 4];
        for (place, offset) in places.iter_mut().zip(0..u64::from(size)) {
            let at = caisson_types::Gva::new(start.as_u64().wrapping_add(offset) & 0xffff_ffff);
            *place = translate(&*self.state, self.memory, at, access, self.features)?;
        }
        for (place, byte) in places.iter().zip(bytes).take(usize::from(size)) {
            let _ = self.memory.write(*place, &[byte]);
        }
        self.state.set_gpr(Gpr::Rsp, top & !mask | pointer);
        Ok(())
    }
}
