//! A vCPU made of plain fields, for tests and fuzz targets.

use caisson_hwvirt::VcpuState;
use caisson_x86::{Attributes, Cr0, Cr4, DescriptorTable, Efer, Gpr, Gprs, Rflags, Segment, SegmentRegister};

/// A vCPU that is only its registers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FakeVcpu {
    /// General-purpose registers.
    pub gprs: Gprs,
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// CPL.
    pub cpl: u8,
    /// Segments, by [`SegmentRegister`].
    pub segments: [Segment; 8],
    /// What the hardware would say of the next instruction.
    pub next_rip: Option<u64>,
    /// Bytes that the hardware would have saved.
    pub fetched: [u8; 15],
    /// How many of them there are.
    pub fetched_len: usize,
    /// Interrupt shadow.
    pub shadow: bool,
    /// DR6 and DR7.
    pub debug: [u64; 2],
    /// GDTR and IDTR.
    pub tables: [DescriptorTable; 2],
}

impl FakeVcpu {
    fn flat(code: Attributes, data: Attributes, limit: u32) -> Self {
        let segment = |attributes| Segment { selector: 8, attributes, limit, base: 0 };
        let mut segments = [segment(data); 8];
        segments[SegmentRegister::Cs as usize] = segment(code);
        segments[SegmentRegister::Ldtr as usize] = segment(Attributes::LDT);
        segments[SegmentRegister::Tr as usize] = segment(Attributes::TSS_BUSY);
        Self {
            gprs: Gprs::default(),
            rip: 0,
            rflags: Rflags::FIXED.bits(),
            cr0: Cr0::PE.bits(),
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            cpl: 0,
            segments,
            next_rip: None,
            fetched: [0; 15],
            fetched_len: 0,
            shadow: false,
            debug: [0; 2],
            tables: [DescriptorTable::default(); 2],
        }
    }

    /// Real mode with all segments at 0.
    #[must_use]
    pub fn real() -> Self {
        let mut vcpu = Self::flat(Attributes::CODE16, Attributes::DATA16, 0xffff);
        vcpu.cr0 = 0;
        vcpu
    }

    /// Flat 32-bit protected mode without paging.
    #[must_use]
    pub fn protected() -> Self {
        Self::flat(Attributes::CODE32, Attributes::DATA32, u32::MAX)
    }

    /// 64-bit mode in ring 0 with 4-level tables at `cr3`.
    #[must_use]
    pub fn long(cr3: u64) -> Self {
        let mut vcpu = Self::flat(Attributes::CODE64, Attributes::DATA32, u32::MAX);
        vcpu.cr0 = (Cr0::PE | Cr0::PG | Cr0::WP).bits();
        vcpu.cr4 = Cr4::PAE.bits();
        vcpu.efer = (Efer::LME | Efer::LMA | Efer::NXE).bits();
        vcpu.cr3 = cr3;
        vcpu
    }
}

impl VcpuState for FakeVcpu {
    fn gpr(&self, register: Gpr) -> u64 {
        self.gprs.get(register)
    }
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gprs.set(register, value);
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.rflags = rflags;
    }
    fn cr0(&self) -> u64 {
        self.cr0
    }
    fn set_cr0(&mut self, value: u64) {
        self.cr0 = value;
    }
    fn cr2(&self) -> u64 {
        self.cr2
    }
    fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
    }
    fn cr3(&self) -> u64 {
        self.cr3
    }
    fn set_cr3(&mut self, value: u64) {
        self.cr3 = value;
    }
    fn cr4(&self) -> u64 {
        self.cr4
    }
    fn set_cr4(&mut self, value: u64) {
        self.cr4 = value;
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    fn set_efer(&mut self, value: u64) {
        self.efer = value;
    }
    fn cpl(&self) -> u8 {
        self.cpl
    }
    fn set_cpl(&mut self, cpl: u8) {
        self.cpl = cpl;
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments[register as usize]
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.segments[register as usize] = segment;
    }
    fn gdtr(&self) -> DescriptorTable {
        self.tables[0]
    }
    fn set_gdtr(&mut self, table: DescriptorTable) {
        self.tables[0] = table;
    }
    fn idtr(&self) -> DescriptorTable {
        self.tables[1]
    }
    fn set_idtr(&mut self, table: DescriptorTable) {
        self.tables[1] = table;
    }
    fn dr7(&self) -> u64 {
        self.debug[1]
    }
    fn set_dr7(&mut self, value: u64) {
        self.debug[1] = value;
    }
    fn dr6(&self) -> u64 {
        self.debug[0]
    }
    fn set_dr6(&mut self, value: u64) {
        self.debug[0] = value;
    }
    fn interrupt_shadow(&self) -> bool {
        self.shadow
    }
    fn set_interrupt_shadow(&mut self, shadow: bool) {
        self.shadow = shadow;
    }
    fn next_rip(&self) -> Option<u64> {
        self.next_rip
    }
    fn fetched_bytes(&self) -> &[u8] {
        &self.fetched[..self.fetched_len]
    }
}
