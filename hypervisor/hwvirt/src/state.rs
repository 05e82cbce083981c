//! A virtual CPU's registers, as the core and the instruction emulator see them.

use caisson_x86::{Attributes, CpuMode, Cr0, DescriptorTable, Efer, Gpr, Rflags, Segment, SegmentRegister};

/// The architectural state of a vCPU that is not running.
pub trait VcpuState {
    /// A general-purpose register.
    fn gpr(&self, register: Gpr) -> u64;
    /// Sets a whole general-purpose register.
    fn set_gpr(&mut self, register: Gpr, value: u64);
    /// RIP.
    fn rip(&self) -> u64;
    /// Sets RIP and nothing else; see [`VcpuState::advance_to`] for the end of an instruction.
    fn set_rip(&mut self, rip: u64);
    /// RFLAGS.
    fn rflags(&self) -> u64;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, rflags: u64);
    /// CR0.
    fn cr0(&self) -> u64;
    /// Sets CR0.
    fn set_cr0(&mut self, value: u64);
    /// CR2.
    fn cr2(&self) -> u64;
    /// Sets CR2.
    fn set_cr2(&mut self, value: u64);
    /// CR3.
    fn cr3(&self) -> u64;
    /// Sets CR3. The guest's TLB entries are flushed as a MOV to CR3 would.
    fn set_cr3(&mut self, value: u64);
    /// Loads the page-directory pointers of PAE paging, which have been checked, where the CPU keeps them.
    fn set_page_directory_pointers(&mut self, _pointers: [u64; 4]) {}
    /// CR4.
    fn cr4(&self) -> u64;
    /// Sets CR4. The guest's TLB entries are flushed where the change asks for it.
    fn set_cr4(&mut self, value: u64);
    /// EFER, as the guest sees it.
    fn efer(&self) -> u64;
    /// Sets EFER, as the guest sees it.
    fn set_efer(&mut self, value: u64);
    /// Current privilege level.
    fn cpl(&self) -> u8;
    /// Sets the current privilege level: CS and SS are loaded apart.
    fn set_cpl(&mut self, cpl: u8);
    /// A segment register with its hidden part.
    fn segment(&self, register: SegmentRegister) -> Segment;
    /// Sets a segment register with its hidden part.
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment);
    /// GDTR.
    fn gdtr(&self) -> DescriptorTable;
    /// Sets GDTR.
    fn set_gdtr(&mut self, table: DescriptorTable);
    /// IDTR.
    fn idtr(&self) -> DescriptorTable;
    /// Sets IDTR.
    fn set_idtr(&mut self, table: DescriptorTable);
    /// DR7.
    fn dr7(&self) -> u64;
    /// Sets DR7.
    fn set_dr7(&mut self, value: u64);
    /// DR6.
    fn dr6(&self) -> u64;
    /// Sets DR6.
    fn set_dr6(&mut self, value: u64);
    /// Whether the last instruction was STI, MOV SS or POP SS, which hold interrupts off for one more.
    fn interrupt_shadow(&self) -> bool;
    /// Sets or clears the interrupt shadow.
    fn set_interrupt_shadow(&mut self, shadow: bool);
    /// Where the instruction after the one that exited starts, when the hardware says so.
    fn next_rip(&self) -> Option<u64>;
    /// Instruction bytes at RIP that the hardware saved at the exit; empty when it did not.
    fn fetched_bytes(&self) -> &[u8];

    /// Ends the instruction that exited: RIP moves to `next_rip`, the interrupt shadow and RFLAGS.RF end.
    #[inline]
    fn advance_to(&mut self, next_rip: u64) {
        self.set_rip(next_rip);
        self.set_interrupt_shadow(false);
        let rflags = self.rflags();
        if rflags & Rflags::RF.bits() != 0 {
            self.set_rflags(rflags & !Rflags::RF.bits());
        }
    }

    /// The mode that decoding depends on.
    #[inline]
    fn mode(&self) -> CpuMode {
        if self.cr0() & Cr0::PE.bits() == 0 {
            return CpuMode::Real;
        }
        if self.rflags() & Rflags::VM.bits() != 0 {
            return CpuMode::Virtual8086;
        }
        let cs: Attributes = self.segment(SegmentRegister::Cs).attributes;
        if self.efer() & Efer::LMA.bits() != 0 && cs.long() {
            CpuMode::Long64
        } else if cs.big() {
            CpuMode::Protected32
        } else {
            CpuMode::Protected16
        }
    }
}
