//! Task switches by hardware, done in software: VT-x leaves them to the hypervisor (SDM vol. 3, section 26.4.2).
//!
//! [`switch_task`] does what section 8.3 of the manual lists, in its order: checks of the new TSS, the outgoing task's
//! state into its TSS, busy flags, the back link, the incoming state, its segments, the error code on its stack. The CPU
//! has looked at the gate and the privileges before the exit. What it has checked of the TSS is checked once more,
//! because the guest's memory may have changed since.
//!
//! Invariants: every page that the switch writes outside the new task's own translations is translated before anything
//! changes, so that a fault up to there leaves the old task as it was ([`TaskError::Before`]). Later faults are the new
//! task's ([`TaskError::After`]); its segment registers are then good for an entry all the same: those that were not
//! qualified are unusable, and CS has a stand-in that only the delivery of the fault looks at.
//!
//! Accesses to the GDT, the LDT and both TSSs are supervisor accesses whatever the CPL (section 5.6). A table outside of
//! RAM reads all ones and takes no writes.

mod memory;
mod segments;
mod tss;

use caisson_hwvirt::{TaskSwitchSource, VcpuState};
use caisson_types::GuestMemory;
use caisson_x86::{Attributes, Cr0, Cr4, Exception, ExceptionKind, Gpr, Rflags, Segment, SegmentRegister};

use crate::walk::{AccessKind, PagingFeatures};
use memory::{Descriptor, Range, Tables};
use tss::{Format, Incoming};

/// A type of system descriptor with its busy bit.
const BUSY: u8 = 2;
/// DR7: the local breakpoints and LE, which end with the task.
const DR7_LOCAL: u64 = 0x155;
/// The flags that a task state segment can hold.
const FLAGS: u64 = 0x003f_7fd5;
/// Bits of a page-directory pointer that must be 0 below the address.
const PDPTE_RESERVED: u64 = 0x1e6;

/// A task switch that is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskRequest {
    /// The selector of the new task's TSS.
    pub selector: u16,
    /// What asked for it.
    pub source: TaskSwitchSource,
    /// Where the old task goes on.
    pub return_rip: u64,
    /// What the event that took a task gate pushes on the new stack.
    pub error_code: Option<u32>,
    /// A task gate was taken by an exception or interrupt, not by an instruction: error codes say EXT.
    pub external: bool,
}

/// Why a task switch was not done, or what came behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskError {
    /// Nothing has changed: the old task raises this.
    Before(Exception),
    /// The new task runs, and raises this before its first instruction.
    After(Exception),
    /// Another CPU took the new task meanwhile. Nothing has changed: look again.
    Retry,
}

/// Switches to the task that `request` names. `true`: its TSS asks for a debug trap before its first instruction.
///
/// # Errors
/// [`TaskError`]; see there for what has changed.
pub fn switch_task(
    state: &mut impl VcpuState,
    memory: &impl GuestMemory,
    request: &TaskRequest,
    features: &PagingFeatures,
) -> Result<bool, TaskError> {
    let mut tables = Tables { state, memory, features, external: request.external };
    let plan = tables.plan(request).map_err(TaskError::Before)?;
    if !tables.commit(request, &plan) {
        return Err(TaskError::Retry);
    }
    let incoming = plan.format.load(&plan.new.bytes(memory));
    tables.enter(request, &plan, &incoming).map_err(TaskError::After)?;
    Ok(incoming.trap)
}

/// All that was checked and translated before anything changes.
struct Plan {
    descriptor: Descriptor,
    format: Format,
    /// The new TSS, as far as it is read.
    new: Range,
    /// Its back link, where the switch nests.
    link: Option<Range>,
    /// Where the outgoing state goes.
    old: Range,
    old_format: Format,
    /// The byte with the busy flag of the new task's descriptor, and of the old one's.
    new_type: Range,
    old_type: Option<Range>,
}

impl<S: VcpuState, M: GuestMemory> Tables<'_, S, M> {
    /// Steps 1 to 5 of section 8.3, and the checks 1 to 5 of table 8-1.
    fn plan(&mut self, request: &TaskRequest) -> Result<Plan, Exception> {
        use ExceptionKind::{GeneralProtection, InvalidTss, SegmentNotPresent};
        let returns = request.source == TaskSwitchSource::Return;
        let unfit = if returns { InvalidTss } else { GeneralProtection };
        let selector = request.selector;
        let (at, descriptor) = match self.find(selector)? {
            Some(found) if selector & 4 == 0 => found,
            _ => return Err(self.fault(unfit, selector)),
        };
        let attributes = descriptor.attributes();
        // A busy task is returned to; any other switch is to one that is not.
        let Some(format) = Format::of(attributes, returns) else { return Err(self.fault(unfit, selector)) };
        if !attributes.present() {
            return Err(self.fault(SegmentNotPresent, selector));
        }
        if descriptor.limit() < format.last_byte() {
            return Err(self.fault(InvalidTss, selector));
        }
        let task = self.state.segment(SegmentRegister::Tr);
        let Some(old_format) = Format::of_kind(task.attributes.kind()) else {
            return Err(self.fault(InvalidTss, task.selector));
        };
        let (first, length) = old_format.saved();
        if u64::from(task.limit) + 1 < first + length {
            return Err(self.fault(InvalidTss, task.selector));
        }
        let base = descriptor.base();
        let new = self.range(base, u64::from(format.last_byte()) + 1, AccessKind::Read)?;
        let nests = request.source == TaskSwitchSource::Call;
        let link = if nests { Some(self.range(base, 2, AccessKind::Write)?) } else { None };
        let old = self.range(task.base.wrapping_add(first), length, AccessKind::Write)?;
        let new_type = self.range(at.wrapping_add(5), 1, AccessKind::Write)?;
        let old_type = if nests { None } else { self.old_type(task.selector)? };
        Ok(Plan { descriptor, format, new, link, old, old_format, new_type, old_type })
    }

    /// The busy flag of the task that is left, if its descriptor is still where TR was loaded from.
    fn old_type(&mut self, selector: u16) -> Result<Option<Range>, Exception> {
        match self.find(selector)? {
            Some((at, _)) if selector & 4 == 0 => {
                Ok(Some(self.range(at.wrapping_add(5), 1, AccessKind::Write)?))
            }
            _ => Ok(None),
        }
    }

    /// Steps 6 to 11: busy flags, the outgoing state, the back link. `false`: another CPU took the task; nothing has
    /// changed.
    fn commit(&mut self, request: &TaskRequest, plan: &Plan) -> bool {
        let memory = self.memory;
        let returns = request.source == TaskSwitchSource::Return;
        if !returns {
            let access = plan.descriptor.access();
            if !plan.new_type.exchange(memory, access, access | BUSY) {
                return false;
            }
        }
        if let Some(old) = &plan.old_type
            && (!returns || plan.new_type != *old)
        {
            old.update(memory, |access| access & !BUSY);
        }
        let mut flags = self.state.rflags();
        if returns {
            flags &= !Rflags::NT.bits();
        }
        let mut image = [0; tss::SAVED_BYTES];
        let saved = plan.old_format.save(self.state, request.return_rip, flags, &mut image);
        plan.old.write(memory, saved);
        if let Some(link) = &plan.link {
            let old = self.state.segment(SegmentRegister::Tr).selector;
            link.write(memory, &old.to_le_bytes());
        }
        true
    }

    /// Steps 11 to 14: the incoming state.
    fn enter(&mut self, request: &TaskRequest, plan: &Plan, incoming: &Incoming) -> Result<(), Exception> {
        let state = &mut *self.state;
        let attributes = Attributes(plan.descriptor.attributes().0 | u16::from(BUSY));
        state.set_segment(
            SegmentRegister::Tr,
            Segment {
                selector: request.selector,
                attributes,
                limit: plan.descriptor.limit(),
                base: plan.descriptor.base(),
            },
        );
        state.set_interrupt_shadow(false);
        state.set_dr7(state.dr7() & !DR7_LOCAL);
        let nested = if plan.link.is_some() { Rflags::NT.bits() } else { 0 };
        let flags = incoming.flags & FLAGS | nested | Rflags::FIXED.bits();
        state.set_rflags(flags);
        state.set_rip(incoming.ip);
        for (number, value) in incoming.registers.into_iter().enumerate() {
            state.set_gpr(Gpr::from_encoding(number as u8), value);
        }
        let virtual_8086 = flags & Rflags::VM.bits() != 0;
        let cpl = if virtual_8086 { 3 } else { incoming.selector(SegmentRegister::Cs) as u8 & 3 };
        for (register, selector) in incoming.selectors() {
            // Outside of virtual-8086 mode no segment is good before it has been looked at.
            let (attributes, base) = match register {
                _ if virtual_8086 => (segments::VIRTUAL_8086, u64::from(selector) << 4),
                SegmentRegister::Cs => (segments::stand_in(cpl, plan.format == Format::Wide), 0),
                _ => (segments::unusable(cpl), 0),
            };
            state.set_segment(register, Segment { selector, attributes, limit: 0xffff, base });
        }
        let ldt = Attributes(Attributes::LDT.0 & !(1 << 7));
        let ldtr = Segment { selector: incoming.ldt, attributes: ldt, limit: 0xffff, base: 0 };
        state.set_segment(SegmentRegister::Ldtr, ldtr);
        state.set_cpl(cpl);
        state.set_cr0(state.cr0() | Cr0::TS.bits());
        if let Some(cr3) = incoming.cr3
            && state.cr0() & Cr0::PG.bits() != 0
        {
            self.load_cr3(cr3)?;
        }
        self.load_ldtr(incoming.ldt)?;
        if !virtual_8086 {
            self.load_segments(incoming, cpl)?;
        }
        match request.error_code {
            Some(code) => self.push_error_code(code, plan.format == Format::Wide),
            None => Ok(()),
        }
    }

    /// CR3, with the page-directory pointers where PAE paging has them (section 5.4.1).
    fn load_cr3(&mut self, cr3: u32) -> Result<(), Exception> {
        self.state.set_cr3(u64::from(cr3));
        if self.state.cr4() & Cr4::PAE.bits() == 0 {
            return Ok(());
        }
        let table = u64::from(cr3 & !31);
        let pointers = [0, 8, 16, 24]
            .map(|at| self.memory.read_u64(caisson_types::Gpa::new(table + at)).unwrap_or(u64::MAX));
        let above = !((1 << self.features.physical_bits.clamp(32, 52)) - 1);
        if pointers.iter().any(|entry| entry & 1 != 0 && entry & (above | PDPTE_RESERVED) != 0) {
            return Err(Exception::GENERAL_PROTECTION);
        }
        self.state.set_page_directory_pointers(pointers);
        Ok(())
    }
}
