//! A vCPU: its VMCB and the registers beside it.

use alloc::sync::Arc;

use caisson_frames::Owner;
use caisson_hwvirt::{VcpuSetup, VcpuState};
use caisson_machine::context::GuestContext;
use caisson_machine::memory::PageBox;
use caisson_types::VcpuId;
use caisson_x86::svm::{Clean, ExitCode, Intercepts, SvmFeatures, Vmcb};
use caisson_x86::{Attributes, Cr0, Cr4, DescriptorTable, Efer, Gpr, Gprs, Rflags, Segment, SegmentRegister};

use crate::asid::Asid;
use crate::enable::{Cpu, Shared};

/// What is always intercepted: physical events, and instructions whose effect is not the guest's alone.
const INTERCEPTS: Intercepts = Intercepts::INTR
    .union(Intercepts::NMI)
    .union(Intercepts::INIT)
    .union(Intercepts::RDPMC)
    .union(Intercepts::CPUID)
    .union(Intercepts::RSM)
    .union(Intercepts::INVD)
    .union(Intercepts::HLT)
    .union(Intercepts::INVLPGA)
    .union(Intercepts::IOIO)
    .union(Intercepts::MSR)
    .union(Intercepts::FERR_FREEZE)
    .union(Intercepts::SHUTDOWN)
    .union(Intercepts::VMRUN)
    .union(Intercepts::VMMCALL)
    .union(Intercepts::VMLOAD)
    .union(Intercepts::VMSAVE)
    .union(Intercepts::STGI)
    .union(Intercepts::CLGI)
    .union(Intercepts::SKINIT)
    .union(Intercepts::WBINVD)
    .union(Intercepts::MONITOR)
    .union(Intercepts::MWAIT)
    .union(Intercepts::XSETBV)
    .union(Intercepts::RDPRU);

/// #DB and #AC can be raised without end while they are delivered (CVE-2015-8104, CVE-2015-5307), #MC is the host's.
pub(crate) const INTERCEPTED_EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;
/// CR4 writes.
pub(crate) const INTERCEPTED_CR: u32 = 1 << (16 + 4);
/// Every debug register, until the guest's are loaded.
pub(crate) const INTERCEPTED_DR: u32 = u32::MAX;
/// PAUSEs before an exit, where the CPU counts them, and cycles that start the count again.
const PAUSE_FILTER: (u16, u16) = (3000, 128);
/// V_INTR_MASKING of the virtual-interrupt word.
pub(crate) const V_INTR_MASKING: u64 = 1 << 24;
/// PAT after reset (APM vol. 2, section 7.8.2).
const RESET_PAT: u64 = 0x0007_0406_0007_0406;

/// Whether the exit is an instruction's, for which the CPU saves the next RIP (section 15.7.1).
#[inline]
fn saves_next_rip(code: ExitCode) -> bool {
    matches!(code.0, 0x00..=0x3f | 0x65..=0x7c | 0x80..=0x8e)
}

/// A vCPU of AMD-V.
pub struct SvmVcpu {
    pub(crate) id: VcpuId,
    pub(crate) vmcb: PageBox<Vmcb>,
    /// The guest's registers but RAX and RSP, which the VMCB holds.
    pub(crate) gprs: Gprs,
    pub(crate) shared: Arc<Shared>,
    /// The CPU that the vCPU is on, or was on last.
    pub(crate) cpu: &'static Cpu,
    pub(crate) asid: Asid,
    pub(crate) context: GuestContext,
    pub(crate) nmi: crate::event::NmiState,
    /// An interrupt is in the virtual-interrupt word, for the guest to take at its next entry.
    pub(crate) delivering: bool,
    /// The next exit may mean something for `nmi` or `delivering`.
    pub(crate) watched: bool,
    /// What the CPU has, out of [`Shared::features`].
    pub(crate) features: SvmFeatures,
    /// What need not be read again after an exit: everything, or nothing where the CPU knows no clean bits.
    pub(crate) clean: Clean,
    /// The physical CPU that the vCPU last ran on.
    pub(crate) last_cpu: Option<u32>,
}

impl SvmVcpu {
    pub(crate) fn new(shared: Arc<Shared>, id: VcpuId, setup: &VcpuSetup) -> Option<Self> {
        let mut vmcb = PageBox::<Vmcb>::zeroed(Owner::Domain(id.domain))?;
        vmcb.set_intercepts(INTERCEPTS);
        vmcb.set_intercept_exceptions(INTERCEPTED_EXCEPTIONS);
        vmcb.set_intercept_cr(INTERCEPTED_CR);
        vmcb.set_intercept_dr(INTERCEPTED_DR);
        vmcb.set_port_map(shared.port_map.hpa().as_u64());
        vmcb.set_msr_map(shared.msr_map.hpa().as_u64());
        vmcb.set_nested_control(1);
        vmcb.set_nested_cr3(setup.stage2_root.as_u64());
        vmcb.set_tsc_offset(setup.tsc_offset);
        vmcb.set_virtual_interrupt(V_INTR_MASKING);
        if shared.features.contains(SvmFeatures::PAUSE_FILTER) {
            vmcb.set_intercepts(INTERCEPTS | Intercepts::PAUSE);
            vmcb.set_pause_filter_count(PAUSE_FILTER.0);
            if shared.features.contains(SvmFeatures::PAUSE_THRESHOLD) {
                vmcb.set_pause_filter_threshold(PAUSE_FILTER.1);
            }
        }
        let features = shared.features;
        let context = GuestContext::new(shared.carried, id.domain)?;
        let mut vcpu = Self {
            id,
            vmcb,
            gprs: Gprs::default(),
            cpu: shared.this_cpu(),
            shared,
            asid: Asid::NONE,
            context,
            nmi: crate::event::NmiState::default(),
            delivering: false,
            watched: false,
            features,
            clean: if features.contains(SvmFeatures::CLEAN_BITS) { Clean::all() } else { Clean::empty() },
            last_cpu: None,
        };
        vcpu.reset_registers(false);
        Some(vcpu)
    }

    /// The state after power-on or INIT (APM vol. 2, table 14-1).
    pub(crate) fn reset_registers(&mut self, init: bool) {
        let vmcb = &mut self.vmcb;
        let caches = if init { vmcb.cr0() & (Cr0::CD | Cr0::NW).bits() } else { (Cr0::CD | Cr0::NW).bits() };
        vmcb.set_cr0(Cr0::ET.bits() | caches);
        vmcb.set_cr2(0);
        vmcb.set_cr3(0);
        vmcb.set_cr4(0);
        vmcb.set_efer(Efer::SVME.bits());
        vmcb.set_rflags(Rflags::FIXED.bits());
        vmcb.set_rip(0xfff0);
        vmcb.set_rsp(0);
        vmcb.set_rax(0);
        vmcb.set_cpl(0);
        vmcb.set_dr6(0xffff_0ff0);
        vmcb.set_dr7(0x400);
        vmcb.set_interrupt_shadow(0);
        let data = Segment { selector: 0, attributes: Attributes::DATA16, limit: 0xffff, base: 0 };
        vmcb.set_cs(Segment {
            selector: 0xf000,
            attributes: Attributes::CODE16,
            limit: 0xffff,
            base: 0xffff_0000,
        });
        vmcb.set_ds(data);
        vmcb.set_es(data);
        vmcb.set_fs(data);
        vmcb.set_gs(data);
        vmcb.set_ss(data);
        vmcb.set_ldtr(Segment { attributes: Attributes::LDT, ..data });
        vmcb.set_tr(Segment { attributes: Attributes::TSS_BUSY, ..data });
        vmcb.set_gdtr(DescriptorTable { base: 0, limit: 0xffff });
        vmcb.set_idtr(DescriptorTable { base: 0, limit: 0xffff });
        if !init {
            vmcb.set_guest_pat(RESET_PAT);
            for set in [
                Vmcb::set_star,
                Vmcb::set_lstar,
                Vmcb::set_cstar,
                Vmcb::set_sfmask,
                Vmcb::set_kernel_gs_base,
                Vmcb::set_sysenter_cs,
                Vmcb::set_sysenter_esp,
                Vmcb::set_sysenter_eip,
            ] {
                set(vmcb, 0);
            }
        }
        self.gprs = Gprs::default();
        self.gprs.set(Gpr::Rdx, u64::from(self.shared.signature));
        self.cancel_events();
        self.context.reset(init);
        self.drop_asid();
    }

    /// Makes the next entry use a fresh id, and so none of the old TLB entries.
    pub(crate) fn drop_asid(&mut self) {
        self.asid = Asid::NONE;
    }

    /// Flushes this guest's TLB entries before the next entry, as narrowly as the CPU can.
    pub(crate) fn flush_guest_tlb(&mut self) {
        if self.features.contains(SvmFeatures::FLUSH_BY_ASID) {
            self.vmcb.set_tlb_control(caisson_x86::svm::TlbControl::FlushAsid);
        } else {
            self.drop_asid();
        }
    }
}

impl VcpuState for SvmVcpu {
    #[inline]
    fn gpr(&self, register: Gpr) -> u64 {
        match register {
            Gpr::Rax => self.vmcb.rax(),
            Gpr::Rsp => self.vmcb.rsp(),
            other => self.gprs.get(other),
        }
    }

    #[inline]
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        match register {
            Gpr::Rax => self.vmcb.set_rax(value),
            Gpr::Rsp => self.vmcb.set_rsp(value),
            other => self.gprs.set(other, value),
        }
    }

    #[inline]
    fn rip(&self) -> u64 {
        self.vmcb.rip()
    }

    #[inline]
    fn set_rip(&mut self, rip: u64) {
        self.vmcb.set_rip(rip);
    }

    #[inline]
    fn rflags(&self) -> u64 {
        self.vmcb.rflags()
    }

    #[inline]
    fn set_rflags(&mut self, rflags: u64) {
        self.vmcb.set_rflags(rflags);
    }

    #[inline]
    fn cr0(&self) -> u64 {
        self.vmcb.cr0()
    }

    fn set_cr0(&mut self, value: u64) {
        self.vmcb.set_cr0(value);
        self.flush_guest_tlb();
    }

    fn cr2(&self) -> u64 {
        self.vmcb.cr2()
    }

    fn set_cr2(&mut self, value: u64) {
        self.vmcb.set_cr2(value);
    }

    #[inline]
    fn cr3(&self) -> u64 {
        self.vmcb.cr3()
    }

    fn set_cr3(&mut self, value: u64) {
        self.vmcb.set_cr3(value);
        self.flush_guest_tlb();
    }

    #[inline]
    fn cr4(&self) -> u64 {
        self.vmcb.cr4()
    }

    fn set_cr4(&mut self, value: u64) {
        // What a MOV to CR4 flushes for (SDM vol. 3, section 5.10.4.1): PGE, PCIDE, PAE, PSE, LA57, SMEP, SMAP, PKE.
        let flushing =
            Cr4::PGE | Cr4::PCIDE | Cr4::PAE | Cr4::PSE | Cr4::LA57 | Cr4::SMEP | Cr4::SMAP | Cr4::PKE;
        if (self.vmcb.cr4() ^ value) & flushing.bits() != 0 {
            self.flush_guest_tlb();
        }
        self.vmcb.set_cr4(value);
    }

    #[inline]
    fn efer(&self) -> u64 {
        self.vmcb.efer() & !Efer::SVME.bits()
    }

    fn set_efer(&mut self, value: u64) {
        self.vmcb.set_efer(value | Efer::SVME.bits());
        self.flush_guest_tlb();
    }

    #[inline]
    fn cpl(&self) -> u8 {
        self.vmcb.cpl()
    }

    fn set_cpl(&mut self, cpl: u8) {
        self.vmcb.set_cpl(cpl);
    }

    #[inline]
    fn segment(&self, register: SegmentRegister) -> Segment {
        let vmcb = &self.vmcb;
        match register {
            SegmentRegister::Es => vmcb.es(),
            SegmentRegister::Cs => vmcb.cs(),
            SegmentRegister::Ss => vmcb.ss(),
            SegmentRegister::Ds => vmcb.ds(),
            SegmentRegister::Fs => vmcb.fs(),
            SegmentRegister::Gs => vmcb.gs(),
            SegmentRegister::Ldtr => vmcb.ldtr(),
            SegmentRegister::Tr => vmcb.tr(),
        }
    }

    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        let vmcb = &mut self.vmcb;
        match register {
            SegmentRegister::Es => vmcb.set_es(segment),
            SegmentRegister::Cs => vmcb.set_cs(segment),
            SegmentRegister::Ss => vmcb.set_ss(segment),
            SegmentRegister::Ds => vmcb.set_ds(segment),
            SegmentRegister::Fs => vmcb.set_fs(segment),
            SegmentRegister::Gs => vmcb.set_gs(segment),
            SegmentRegister::Ldtr => vmcb.set_ldtr(segment),
            SegmentRegister::Tr => vmcb.set_tr(segment),
        }
    }

    fn gdtr(&self) -> DescriptorTable {
        self.vmcb.gdtr()
    }

    fn set_gdtr(&mut self, table: DescriptorTable) {
        self.vmcb.set_gdtr(table);
    }

    fn idtr(&self) -> DescriptorTable {
        self.vmcb.idtr()
    }

    fn set_idtr(&mut self, table: DescriptorTable) {
        self.vmcb.set_idtr(table);
    }

    fn dr7(&self) -> u64 {
        self.vmcb.dr7()
    }

    fn set_dr7(&mut self, value: u64) {
        self.vmcb.set_dr7(value);
    }

    fn dr6(&self) -> u64 {
        self.vmcb.dr6()
    }

    fn set_dr6(&mut self, value: u64) {
        self.vmcb.set_dr6(value);
    }

    #[inline]
    fn interrupt_shadow(&self) -> bool {
        self.vmcb.interrupt_shadow() & 1 != 0
    }

    #[inline]
    fn set_interrupt_shadow(&mut self, shadow: bool) {
        self.vmcb.set_interrupt_shadow(u64::from(shadow));
    }

    #[inline]
    fn next_rip(&self) -> Option<u64> {
        let there = self.features.contains(SvmFeatures::NRIP_SAVE) && saves_next_rip(self.vmcb.exit_code());
        there.then(|| self.vmcb.next_rip())
    }

    fn fetched_bytes(&self) -> &[u8] {
        if self.features.contains(SvmFeatures::DECODE_ASSISTS) { self.vmcb.fetched_bytes() } else { &[] }
    }
}
