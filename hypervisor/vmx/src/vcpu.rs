//! A vCPU: its VMCS and the registers beside it.

use alloc::sync::Arc;
use core::cell::Cell;

use bitflags::bitflags;
use caisson_frames::Owner;
use caisson_hwvirt::vmx::Injection;
use caisson_hwvirt::{InterruptWindow, VcpuSetup, VcpuState};
use caisson_machine::memory::PageBox;
use caisson_stage2::{Ept, Format};
use caisson_types::VcpuId;
use caisson_x86::vmx::field::{self, Field, Natural, ReadWrite};
use caisson_x86::vmx::{AccessRights, ExitReason, Interruptibility, VmxFeatures};
use caisson_x86::{
    ApicPage, Attributes, CpuMode, Cr0, Cr4, DescriptorTable, Efer, Gpr, Gprs, Rflags, Segment,
    SegmentRegister, TopVectors,
};

use crate::context::Context;
use crate::control::CR0_HOST;
use crate::enable::Shared;
use crate::log::WriteLog;
use crate::run::{POINTERS, exit_address};
use crate::vmcs::{Register, Vmcs};
use crate::vpid::Vpid;

/// #DB and #AC can be raised without end while they are delivered (CVE-2015-8104, CVE-2015-5307), #MC is the host's.
pub(crate) const EXITING_EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;
/// PAUSEs of one loop are at most this many cycles apart, and the loop exits after that many.
const PAUSE_LOOP: (u32, u32) = (128, 4096);
/// Bits behind the point of the TSC multiplier (section 25.6.5).
pub(crate) const TSC_FRACTION_BITS: u32 = 48;
/// Levels of the stage-2 tables.
const LEVELS: u8 = 4;
/// PAT after reset (SDM vol. 3, section 12.12.4).
const RESET_PAT: u64 = 0x0007_0406_0007_0406;
const SELECTOR_PRIVILEGE: u16 = 7;

bitflags! {
    /// Translations of the guest's that must not be used any more.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct Stale: u8 {
        /// Linear ones: tagged with the VPID.
        const LINEAR = 1 << 0;
        /// Guest-physical ones: tagged with the EPT pointer.
        const GUEST_PHYSICAL = 1 << 1;
    }
}

/// A vCPU of VT-x.
pub struct VmxVcpu {
    // First, so that it is off the CPU before the pages that it names go.
    pub(crate) vmcs: Vmcs,
    pub(crate) id: VcpuId,
    /// The guest's registers but RSP, which the VMCS holds.
    pub(crate) gprs: Gprs,
    /// What the VMCS holds as the host's RSP.
    pub(crate) host_rsp: Cell<u64>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) vpid: Vpid,
    pub(crate) eptp: u64,
    /// That of the tables in which the APIC-access page is mapped.
    pub(crate) apic_eptp: Option<u64>,
    pub(crate) stale: Stale,
    pub(crate) context: Context,
    /// CR4 bits that the guest owns.
    pub(crate) cr4_owned: u64,
    /// The virtual-APIC page, where the CPU keeps at least CR8 in it.
    pub(crate) virtual_apic: Option<PageBox<ApicPage>>,
    /// CR8, where it does not.
    pub(crate) cr8: u8,
    /// The highest vectors of the page that the core has changed and the VMCS does not have yet.
    pub(crate) top_vectors: Option<TopVectors>,
    /// The vectors whose end of service exits.
    pub(crate) level_vectors: [u64; 4],
    /// The log of written pages, where the CPU has one.
    pub(crate) log: Option<WriteLog>,
    pub(crate) window: InterruptWindow,
    /// The core waits for the end of the blocking of NMIs.
    pub(crate) nmi_window: bool,
    /// What the preemption timer is set to when it has fired.
    pub(crate) backstop: u32,
    /// What the next entry delivers.
    pub(crate) injection: Option<Injection>,
    /// The last exit.
    pub(crate) reason: ExitReason,
    /// Exits so far, to 256.
    pub(crate) exits: u8,
    pub(crate) exit_rip: u64,
    /// The end of the instruction that exited, once it has been asked for.
    pub(crate) next_rip: Cell<Option<u64>>,
    /// The error of an entry that failed at once.
    pub(crate) instruction_error: Option<u32>,
}

impl VmxVcpu {
    pub(crate) fn new(shared: Arc<Shared>, id: VcpuId, setup: &VcpuSetup) -> Option<Self> {
        let owner = Owner::Domain(id.domain);
        let vmcs = Vmcs::new(shared.this_cpu(), shared.caps.basic.revision(), owner)?;
        let virtual_apic = match shared.features.contains(VmxFeatures::TPR_SHADOW) {
            true => Some(PageBox::zeroed(owner)?),
            false => None,
        };
        let log = match shared.features.contains(VmxFeatures::PML) {
            true => Some(WriteLog::new(owner)?),
            false => None,
        };
        let accessed_dirty = shared.features.contains(VmxFeatures::EPT_ACCESSED_DIRTY);
        let eptp = |root| Ept::root_pointer(root, LEVELS, accessed_dirty);
        let mut vcpu = Self {
            vmcs,
            id,
            gprs: Gprs::default(),
            host_rsp: Cell::new(0),
            eptp: eptp(setup.stage2_root),
            apic_eptp: setup.apic_root.map(eptp),
            context: Context::new(shared.carried, id.domain)?,
            shared,
            vpid: Vpid::NONE,
            stale: Stale::all(),
            cr4_owned: Self::owned_cr4(setup.cr4),
            virtual_apic,
            cr8: 0,
            top_vectors: None,
            level_vectors: [0; 4],
            log,
            window: InterruptWindow::Closed,
            nmi_window: false,
            backstop: 1,
            injection: None,
            reason: ExitReason(u32::MAX),
            exits: 0,
            exit_rip: 0,
            next_rip: Cell::new(None),
            instruction_error: None,
        };
        vcpu.write_controls(setup);
        vcpu.write_host_state();
        vcpu.reset_registers(false);
        Some(vcpu)
    }

    fn write_controls(&mut self, setup: &VcpuSetup) {
        let (vmcs, shared) = (&self.vmcs, &*self.shared);
        vmcs.write(field::PIN_CONTROLS, shared.controls.pin);
        vmcs.write(field::EXIT_CONTROLS, shared.controls.exit);
        vmcs.write(field::PAGE_FAULT_MASK, 0);
        vmcs.write(field::PAGE_FAULT_MATCH, 0);
        vmcs.write(field::CR3_TARGET_COUNT, 0);
        vmcs.write(field::EXIT_MSR_STORE_COUNT, 0);
        vmcs.write(field::EXIT_MSR_LOAD_COUNT, 0);
        vmcs.write(field::ENTRY_MSR_LOAD_COUNT, 0);
        vmcs.write(field::ENTRY_EVENT, 0);
        vmcs.write(field::TSC_OFFSET, setup.tsc_offset);
        vmcs.write(field::LINK_POINTER, u64::MAX);
        vmcs.write(field::CR0_MASK, CR0_HOST);
        vmcs.write(field::CR4_MASK, !self.cr4_owned);
        let features = shared.features;
        if let Some(page) = &self.virtual_apic {
            vmcs.write(field::VIRTUAL_APIC, page.hpa().as_u64());
        }
        if let Some(page) = &shared.apic_access {
            vmcs.write(field::APIC_ACCESS, page.hpa().as_u64());
        }
        if features.contains(VmxFeatures::PAUSE_LOOP) {
            vmcs.write(field::PAUSE_LOOP_GAP, PAUSE_LOOP.0);
            vmcs.write(field::PAUSE_LOOP_WINDOW, PAUSE_LOOP.1);
        }
        if features.contains(VmxFeatures::TSC_SCALING) {
            let multiplier = setup.tsc_multiplier.unwrap_or(1 << TSC_FRACTION_BITS);
            vmcs.write(field::TSC_MULTIPLIER, multiplier);
        }
        if features.contains(VmxFeatures::XSAVES) {
            // IA32_XSS is 0, so that none of them ever does.
            vmcs.write(field::XSS_EXITING, u64::MAX);
        }
        if features.contains(VmxFeatures::ENCLS) {
            vmcs.write(field::ENCLS_EXITING, u64::MAX);
        }
    }

    /// What an exit loads on the CPU that the VMCS is on.
    pub(crate) fn write_host_state(&self) {
        let vmcs = &self.vmcs;
        let host = &vmcs.cpu().host;
        vmcs.write(field::HOST_CR0, host.cr0);
        vmcs.write(field::HOST_CR3, host.cr3);
        vmcs.write(field::HOST_CR4, host.cr4);
        vmcs.write(field::HOST_EFER, host.efer);
        vmcs.write(field::HOST_PAT, host.pat);
        vmcs.write(field::HOST_CS_SELECTOR, host.cs & !SELECTOR_PRIVILEGE);
        vmcs.write(field::HOST_SS_SELECTOR, host.ss & !SELECTOR_PRIVILEGE);
        vmcs.write(field::HOST_TR_SELECTOR, host.tr & !SELECTOR_PRIVILEGE);
        for selector in [
            field::HOST_DS_SELECTOR,
            field::HOST_ES_SELECTOR,
            field::HOST_FS_SELECTOR,
            field::HOST_GS_SELECTOR,
        ] {
            vmcs.write(selector, 0);
        }
        vmcs.write(field::HOST_FS_BASE, host.fs_base);
        vmcs.write(field::HOST_GS_BASE, host.gs_base);
        vmcs.write(field::HOST_TR_BASE, host.tr_base);
        vmcs.write(field::HOST_GDTR_BASE, host.gdt_base);
        vmcs.write(field::HOST_IDTR_BASE, host.idt_base);
        vmcs.write(field::HOST_SYSENTER_CS, 0);
        vmcs.write(field::HOST_SYSENTER_ESP, 0);
        vmcs.write(field::HOST_SYSENTER_EIP, 0);
        vmcs.write(field::HOST_RIP, exit_address());
    }

    /// The state after power-on or INIT (SDM vol. 3, table 10-1).
    pub(crate) fn reset_registers(&mut self, init: bool) {
        let caches = (Cr0::CD | Cr0::NW).bits();
        let caches = if init { self.guest_cr0() & caches } else { caches };
        self.write_guest_cr0(Cr0::ET.bits() | caches);
        self.write_guest_cr4(0);
        let vmcs = &self.vmcs;
        vmcs.set(Register::Cr3, 0);
        vmcs.set(Register::Efer, 0);
        vmcs.set(Register::Rflags, Rflags::FIXED.bits());
        vmcs.set(Register::Rip, 0xfff0);
        vmcs.set(Register::Rsp, 0);
        vmcs.set(Register::Dr7, 0x400);
        vmcs.set(Register::Interruptibility, u64::from(Interruptibility::empty().bits()));
        // Active, for ever: the core keeps a vCPU that is halted or waits for SIPI out of the CPU, and nested KVM has no
        // wait-for-SIPI state.
        vmcs.write(field::GUEST_ACTIVITY, 0);
        vmcs.write(field::GUEST_PENDING_DEBUG, 0);
        vmcs.write(field::GUEST_DEBUGCTL, 0);
        if !init {
            vmcs.write(field::GUEST_PAT, RESET_PAT);
            vmcs.write(field::GUEST_SYSENTER_CS, 0);
            vmcs.write(field::GUEST_SYSENTER_ESP, 0);
            vmcs.write(field::GUEST_SYSENTER_EIP, 0);
        }
        let data = Segment { selector: 0, attributes: Attributes::DATA16, limit: 0xffff, base: 0 };
        for register in [
            SegmentRegister::Es,
            SegmentRegister::Ss,
            SegmentRegister::Ds,
            SegmentRegister::Fs,
            SegmentRegister::Gs,
        ] {
            self.set_segment(register, data);
        }
        self.set_segment(
            SegmentRegister::Cs,
            Segment { selector: 0xf000, attributes: Attributes::CODE16, limit: 0xffff, base: 0xffff_0000 },
        );
        self.set_segment(SegmentRegister::Ldtr, Segment { attributes: Attributes::LDT, ..data });
        self.set_segment(SegmentRegister::Tr, Segment { attributes: Attributes::TSS_BUSY, ..data });
        self.set_gdtr(DescriptorTable { base: 0, limit: 0xffff });
        self.set_idtr(DescriptorTable { base: 0, limit: 0xffff });
        self.gprs = Gprs::default();
        self.gprs.set(Gpr::Rdx, u64::from(self.shared.signature));
        self.cr8 = 0;
        self.reset_virtual_apic();
        self.cancel_events();
        self.context.reset(init);
        self.stale |= Stale::LINEAR;
    }

    pub(crate) fn table(
        &self,
        base: Field<Natural, ReadWrite>,
        limit: Field<u32, ReadWrite>,
    ) -> DescriptorTable {
        DescriptorTable { base: self.vmcs.read(base), limit: self.vmcs.read(limit) as u16 }
    }

    fn set_table(
        &mut self,
        base: Field<Natural, ReadWrite>,
        limit: Field<u32, ReadWrite>,
        table: DescriptorTable,
    ) {
        self.vmcs.write(base, table.base);
        self.vmcs.write(limit, u32::from(table.limit));
    }

    fn rights(&self, register: SegmentRegister) -> AccessRights {
        AccessRights(match register {
            SegmentRegister::Cs => self.vmcs.get(Register::CsRights) as u32,
            SegmentRegister::Ss => self.vmcs.get(Register::SsRights) as u32,
            other => self.vmcs.read(field::SEGMENTS[other as usize].rights),
        })
    }

    fn set_rights(&mut self, register: SegmentRegister, rights: AccessRights) {
        match register {
            SegmentRegister::Cs => self.vmcs.set(Register::CsRights, u64::from(rights.0)),
            SegmentRegister::Ss => self.vmcs.set(Register::SsRights, u64::from(rights.0)),
            other => self.vmcs.write(field::SEGMENTS[other as usize].rights, rights.0),
        }
    }

    /// The RIP behind the instruction that exited; it wraps at 4 GiB outside 64-bit code.
    #[inline]
    pub(crate) fn instruction_end(&self) -> u64 {
        if let Some(next) = self.next_rip.get() {
            return next;
        }
        let mut next = self.exit_rip.wrapping_add(self.vmcs.get(Register::InstructionLength));
        if (next ^ self.exit_rip) >> 32 != 0 && self.mode() != CpuMode::Long64 {
            next &= 0xffff_ffff;
        }
        self.next_rip.set(Some(next));
        next
    }
}

impl Drop for VmxVcpu {
    fn drop(&mut self) {
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        for (reason, count) in self.vmcs.counts().enumerate().filter(|(_, count)| count.exits != 0) {
            let per_exit = |n: u64| (n / count.exits, n * 10 / count.exits % 10);
            let (reads, writes) = (per_exit(count.reads), per_exit(count.writes));
            log::debug!(
                "{}: {} exits {reason}: {}.{} VMREADs and {}.{} VMWRITEs each",
                self.id,
                count.exits,
                reads.0,
                reads.1,
                writes.0,
                writes.1
            );
        }
    }
}

impl VcpuState for VmxVcpu {
    #[inline]
    fn gpr(&self, register: Gpr) -> u64 {
        match register {
            Gpr::Rsp => self.vmcs.get(Register::Rsp),
            other => self.gprs.get(other),
        }
    }

    #[inline]
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        match register {
            Gpr::Rsp => self.vmcs.set(Register::Rsp, value),
            other => self.gprs.set(other, value),
        }
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.vmcs.get(Register::Rip)
    }

    #[inline]
    fn set_rip(&mut self, rip: u64) {
        self.vmcs.set(Register::Rip, rip);
    }

    #[inline]
    fn rflags(&self) -> u64 {
        self.vmcs.get(Register::Rflags)
    }

    #[inline]
    fn set_rflags(&mut self, rflags: u64) {
        self.vmcs.set(Register::Rflags, rflags);
    }

    #[inline]
    fn cr0(&self) -> u64 {
        self.guest_cr0()
    }

    fn set_cr0(&mut self, value: u64) {
        self.write_guest_cr0(value);
        self.stale |= Stale::LINEAR;
    }

    fn cr2(&self) -> u64 {
        self.context.cr2()
    }

    fn set_cr2(&mut self, value: u64) {
        self.context.set_cr2(value);
    }

    #[inline]
    fn cr3(&self) -> u64 {
        self.vmcs.get(Register::Cr3)
    }

    fn set_cr3(&mut self, value: u64) {
        self.vmcs.set(Register::Cr3, value);
        self.stale |= Stale::LINEAR;
    }

    fn set_page_directory_pointers(&mut self, pointers: [u64; 4]) {
        for (entry, value) in POINTERS.into_iter().zip(pointers) {
            self.vmcs.write(entry, value);
        }
    }

    #[inline]
    fn cr4(&self) -> u64 {
        self.guest_cr4()
    }

    fn set_cr4(&mut self, value: u64) {
        // What a MOV to CR4 flushes for (SDM vol. 3, section 4.10.4.1): PGE, PCIDE, PAE, PSE, LA57, SMEP, SMAP, PKE.
        let flushing =
            Cr4::PGE | Cr4::PCIDE | Cr4::PAE | Cr4::PSE | Cr4::LA57 | Cr4::SMEP | Cr4::SMAP | Cr4::PKE;
        if (self.guest_cr4() ^ value) & flushing.bits() != 0 {
            self.stale |= Stale::LINEAR;
        }
        self.write_guest_cr4(value);
    }

    #[inline]
    fn efer(&self) -> u64 {
        self.vmcs.get(Register::Efer)
    }

    fn set_efer(&mut self, value: u64) {
        self.vmcs.set(Register::Efer, value);
        self.stale |= Stale::LINEAR;
    }

    /// The privilege level of SS, whatever CS says (SDM vol. 3, section 25.4.1).
    #[inline]
    fn cpl(&self) -> u8 {
        self.rights(SegmentRegister::Ss).dpl()
    }

    fn set_cpl(&mut self, cpl: u8) {
        let rights = self.rights(SegmentRegister::Ss).with_dpl(cpl);
        self.set_rights(SegmentRegister::Ss, rights);
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        let fields = field::SEGMENTS[register as usize];
        Segment {
            selector: self.vmcs.read(fields.selector),
            attributes: self.rights(register).into(),
            limit: self.vmcs.read(fields.limit),
            base: self.vmcs.read(fields.base),
        }
    }

    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        let fields = field::SEGMENTS[register as usize];
        self.vmcs.write(fields.selector, segment.selector);
        self.vmcs.write(fields.limit, segment.limit);
        self.vmcs.write(fields.base, segment.base);
        self.set_rights(register, segment.attributes.into());
    }

    fn gdtr(&self) -> DescriptorTable {
        self.table(field::GUEST_GDTR_BASE, field::GUEST_GDTR_LIMIT)
    }

    fn set_gdtr(&mut self, table: DescriptorTable) {
        self.set_table(field::GUEST_GDTR_BASE, field::GUEST_GDTR_LIMIT, table);
    }

    fn idtr(&self) -> DescriptorTable {
        self.table(field::GUEST_IDTR_BASE, field::GUEST_IDTR_LIMIT)
    }

    fn set_idtr(&mut self, table: DescriptorTable) {
        self.set_table(field::GUEST_IDTR_BASE, field::GUEST_IDTR_LIMIT, table);
    }

    fn dr7(&self) -> u64 {
        self.vmcs.get(Register::Dr7)
    }

    fn set_dr7(&mut self, value: u64) {
        self.vmcs.set(Register::Dr7, value);
    }

    fn dr6(&self) -> u64 {
        self.context.dr6()
    }

    fn set_dr6(&mut self, value: u64) {
        self.context.set_dr6(value);
    }

    #[inline]
    fn interrupt_shadow(&self) -> bool {
        self.interruptibility().intersects(Interruptibility::STI | Interruptibility::MOV_SS)
    }

    #[inline]
    fn set_interrupt_shadow(&mut self, shadow: bool) {
        if shadow {
            let state = self.interruptibility() - Interruptibility::MOV_SS;
            self.set_interruptibility(state | Interruptibility::STI);
        } else if self.interrupt_shadow() {
            self.end_shadow();
        }
    }

    #[inline]
    fn next_rip(&self) -> Option<u64> {
        self.reason.is_instruction().then(|| self.instruction_end())
    }

    fn fetched_bytes(&self) -> &[u8] {
        &[]
    }

    #[inline]
    fn mode(&self) -> CpuMode {
        let rights = self.rights(SegmentRegister::Cs);
        let attributes = Attributes::from(rights);
        if self.efer() & Efer::LMA.bits() != 0 {
            // Long mode is protected mode, and has no virtual-8086 mode.
            return match (attributes.long(), attributes.big()) {
                (true, _) => CpuMode::Long64,
                (false, true) => CpuMode::Protected32,
                (false, false) => CpuMode::Protected16,
            };
        }
        if self.vmcs.get(Register::Cr0) & Cr0::PE.bits() == 0 {
            CpuMode::Real
        } else if self.rflags() & Rflags::VM.bits() != 0 {
            CpuMode::Virtual8086
        } else if attributes.big() {
            CpuMode::Protected32
        } else {
            CpuMode::Protected16
        }
    }
}
