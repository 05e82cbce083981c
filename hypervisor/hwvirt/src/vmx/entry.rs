//! The checks that a VM entry makes of the guest's state (SDM vol. 3, section 27.3.1), for telling which one failed.
//!
//! The CPU only says that the state was bad. [`check_entry`] goes through the manual's checks in its order, over a copy of
//! the fields, for a guest with EPT and unrestricted guest; a file has the sections that its first line names.

mod activity;
mod registers;
mod segments;
#[cfg(test)]
mod tests;

use caisson_x86::vmx::{AccessRights, EventInfo, Interruptibility};
use caisson_x86::{Cr0, Cr4, DescriptorTable, Rflags, SegmentRegister};

use crate::Refusal;

/// A segment register as the VMCS has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentState {
    /// The visible part.
    pub selector: u16,
    /// Linear address of offset 0.
    pub base: u64,
    /// The last byte's offset.
    pub limit: u32,
    /// Access rights.
    pub rights: AccessRights,
}

/// The guest state that an entry checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryState {
    /// CR0, as the CPU has it.
    pub cr0: u64,
    /// CR0 bits that must be 1, and those that may.
    pub cr0_fixed: (u64, u64),
    /// CR3.
    pub cr3: u64,
    /// CR4, as the CPU has it.
    pub cr4: u64,
    /// CR4 bits that must be 1, and those that may.
    pub cr4_fixed: (u64, u64),
    /// The entry control for IA-32e mode.
    pub long_mode: bool,
    /// EFER.
    pub efer: u64,
    /// PAT.
    pub pat: u64,
    /// DEBUGCTL.
    pub debugctl: u64,
    /// DR7.
    pub dr7: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// Segment registers, in the order of [`SegmentRegister`].
    pub segments: [SegmentState; 8],
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Activity state.
    pub activity: u32,
    /// Interruptibility state.
    pub interruptibility: Interruptibility,
    /// Pending debug exceptions.
    pub pending_debug: u64,
    /// The event to deliver.
    pub event: EventInfo,
    /// Virtual NMIs are on.
    pub virtual_nmis: bool,
    /// VMCS link pointer.
    pub link_pointer: u64,
    /// The page-directory-pointer-table entries.
    pub pdptes: [u64; 4],
    /// The CPU's physical-address bits.
    pub physical_bits: u8,
}

type Check = Result<(), Refusal>;

/// Fails with `check` unless `holds`.
fn require(holds: bool, check: &'static str, value: u64) -> Check {
    if holds { Ok(()) } else { Err(Refusal { check, value }) }
}

/// The first check that the state fails; `None` where it passes all of them.
#[must_use]
pub fn check_entry(state: &EntryState) -> Option<Refusal> {
    state
        .control_registers()
        .and_then(|()| state.msrs())
        .and_then(|()| state.segment_registers())
        .and_then(|()| state.tables())
        .and_then(|()| state.instruction_pointer())
        .and_then(|()| state.non_register_state())
        .and_then(|()| state.page_directory_pointers())
        .err()
}

impl EntryState {
    fn paging(&self) -> bool {
        self.cr0 & Cr0::PG.bits() != 0
    }

    fn virtual_8086(&self) -> bool {
        self.rflags & Rflags::VM.bits() != 0
    }

    fn segment(&self, register: SegmentRegister) -> &SegmentState {
        &self.segments[register as usize]
    }

    const fn canonical(&self, address: u64) -> bool {
        let bits = if self.cr4 & Cr4::LA57.bits() != 0 { 57 } else { 48 };
        let shift = 64 - bits;
        (((address << shift) as i64) >> shift) as u64 == address
    }
}
