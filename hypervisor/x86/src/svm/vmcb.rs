//! The virtual machine control block (APM vol. 2, appendix B).
//!
//! Fields are private: a setter clears the clean bit that covers the field, so that the CPU never works with a stale
//! copy (section 15.15.3). The layout is checked at compile time against the manual's offsets.

use core::mem::offset_of;

use bitflags::bitflags;
use zerocopy::FromZeros;

use super::exit_code::ExitCode;
use super::intercept::Intercepts;
use crate::segment::{Attributes, DescriptorTable, Segment};

bitflags! {
    /// VMCB clean bits (section 15.15.3): a set bit lets the CPU use its cached copy of the group.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Clean: u32 {
        /// Intercepts, TSC offset, pause filter.
        const INTERCEPTS = 1 << 0;
        /// Permission-map addresses.
        const MAPS = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// The virtual-interrupt word.
        const TPR = 1 << 3;
        /// Nested paging: nCR3, gPAT.
        const NESTED_PAGING = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CONTROL_REGISTERS = 1 << 5;
        /// DR6, DR7.
        const DEBUG_REGISTERS = 1 << 6;
        /// GDTR, IDTR.
        const DESCRIPTOR_TABLES = 1 << 7;
        /// CS, DS, SS, ES, CPL.
        const SEGMENTS = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// Last-branch records, DEBUGCTL.
        const LAST_BRANCH = 1 << 10;
        /// AVIC.
        const AVIC = 1 << 11;
        /// Shadow-stack state.
        const SHADOW_STACK = 1 << 12;
    }
}

/// TLB_CONTROL (section 15.16.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TlbControl {
    /// Nothing is flushed.
    None = 0,
    /// The whole TLB, every ASID.
    FlushAll = 1,
    /// This guest's entries (needs FLUSH_BY_ASID).
    FlushAsid = 3,
}

/// A segment register in the save area.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromZeros)]
#[repr(C)]
pub struct VmcbSegment {
    selector: u16,
    attributes: u16,
    limit: u32,
    base: u64,
}

impl From<VmcbSegment> for Segment {
    fn from(s: VmcbSegment) -> Self {
        Self { selector: s.selector, attributes: Attributes(s.attributes), limit: s.limit, base: s.base }
    }
}

impl From<Segment> for VmcbSegment {
    fn from(s: Segment) -> Self {
        Self { selector: s.selector, attributes: s.attributes.0, limit: s.limit, base: s.base }
    }
}

impl From<VmcbSegment> for DescriptorTable {
    fn from(s: VmcbSegment) -> Self {
        Self { base: s.base, limit: s.limit as u16 }
    }
}

impl From<DescriptorTable> for VmcbSegment {
    fn from(t: DescriptorTable) -> Self {
        Self { selector: 0, attributes: 0, limit: u32::from(t.limit), base: t.base }
    }
}

/// The kind of an injected or interrupted event (section 15.20).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EventKind {
    /// External or virtual interrupt.
    Interrupt = 0,
    /// NMI.
    Nmi = 2,
    /// Exception (fault or trap).
    Exception = 3,
    /// INTn.
    SoftwareInterrupt = 4,
}

/// EVENTINJ and EXITINTINFO (sections 15.20 and 15.7.2): bits 7:0 vector, 10:8 kind, 11 error code valid, 31 valid,
/// 63:32 error code.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(transparent)]
pub struct EventInjection(pub u64);

impl EventInjection {
    /// No event.
    pub const NONE: Self = Self(0);

    /// An event to be delivered.
    #[must_use]
    pub const fn new(kind: EventKind, vector: u8, error_code: Option<u32>) -> Self {
        let base = vector as u64 | (kind as u64) << 8 | 1 << 31;
        match error_code {
            Some(code) => Self(base | 1 << 11 | (code as u64) << 32),
            None => Self(base),
        }
    }

    /// Whether there is an event.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & 1 << 31 != 0
    }

    /// The event's vector.
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// The event's kind, or `None` for an encoding that the manual reserves.
    #[must_use]
    pub const fn kind(self) -> Option<EventKind> {
        match self.0 >> 8 & 7 {
            0 => Some(EventKind::Interrupt),
            2 => Some(EventKind::Nmi),
            3 => Some(EventKind::Exception),
            4 => Some(EventKind::SoftwareInterrupt),
            _ => None,
        }
    }

    /// The error code, where the event has one.
    #[must_use]
    pub const fn error_code(self) -> Option<u32> {
        if self.0 & 1 << 11 != 0 { Some((self.0 >> 32) as u32) } else { None }
    }
}

/// The control area, 1 KiB (table B-1).
#[derive(FromZeros)]
#[repr(C)]
struct Control {
    intercept_cr: u32,
    intercept_dr: u32,
    intercept_exceptions: u32,
    intercepts_low: u32,
    intercepts_high: u32,
    intercepts_5: u32,
    _reserved_018: [u8; 0x24],
    pause_filter_threshold: u16,
    pause_filter_count: u16,
    port_map: u64,
    msr_map: u64,
    tsc_offset: u64,
    asid: u32,
    tlb_control: u8,
    _reserved_05d: [u8; 3],
    virtual_interrupt: u64,
    interrupt_shadow: u64,
    exit_code: u64,
    exit_info_1: u64,
    exit_info_2: u64,
    exit_int_info: u64,
    nested_control: u64,
    avic_bar: u64,
    ghcb: u64,
    event_injection: u64,
    nested_cr3: u64,
    virtualization_control: u64,
    clean: u32,
    _reserved_0c4: u32,
    next_rip: u64,
    fetched: u8,
    instruction: [u8; 15],
    _reserved_0e0: [u8; 0x320],
}

/// The state-save area (table B-2).
#[derive(FromZeros)]
#[repr(C)]
struct Save {
    es: VmcbSegment,
    cs: VmcbSegment,
    ss: VmcbSegment,
    ds: VmcbSegment,
    fs: VmcbSegment,
    gs: VmcbSegment,
    gdtr: VmcbSegment,
    ldtr: VmcbSegment,
    idtr: VmcbSegment,
    tr: VmcbSegment,
    _reserved_0a0: [u8; 0x2b],
    cpl: u8,
    _reserved_0cc: u32,
    efer: u64,
    _reserved_0d8: [u8; 0x70],
    cr4: u64,
    cr3: u64,
    cr0: u64,
    dr7: u64,
    dr6: u64,
    rflags: u64,
    rip: u64,
    _reserved_180: [u8; 0x58],
    rsp: u64,
    _shadow_stack: [u64; 3],
    rax: u64,
    star: u64,
    lstar: u64,
    cstar: u64,
    sfmask: u64,
    kernel_gs_base: u64,
    sysenter_cs: u64,
    sysenter_esp: u64,
    sysenter_eip: u64,
    cr2: u64,
    _reserved_248: [u8; 0x20],
    guest_pat: u64,
    debugctl: u64,
    _last_branch: [u64; 4],
    _reserved_298: [u8; 0x968],
}

/// The VMCB of a vCPU: one page, page-aligned, which the CPU reads at VMRUN and writes at #VMEXIT. A new one is zeros,
/// nothing clean.
#[derive(FromZeros)]
#[repr(C, align(4096))]
pub struct Vmcb {
    control: Control,
    save: Save,
}

const _: () = {
    assert!(size_of::<Control>() == 0x400);
    assert!(size_of::<Vmcb>() == 0x1000);
    assert!(offset_of!(Control, pause_filter_threshold) == 0x3c);
    assert!(offset_of!(Control, port_map) == 0x40);
    assert!(offset_of!(Control, asid) == 0x58);
    assert!(offset_of!(Control, virtual_interrupt) == 0x60);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, exit_int_info) == 0x88);
    assert!(offset_of!(Control, event_injection) == 0xa8);
    assert!(offset_of!(Control, nested_cr3) == 0xb0);
    assert!(offset_of!(Control, clean) == 0xc0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Control, instruction) == 0xd1);
    assert!(offset_of!(Save, tr) == 0x90);
    assert!(offset_of!(Save, cpl) == 0xcb);
    assert!(offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, rflags) == 0x170);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, kernel_gs_base) == 0x220);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, guest_pat) == 0x268);
    assert!(offset_of!(Save, debugctl) == 0x270);
};

/// Getter and setter pairs; a setter clears the clean bit named behind the field.
macro_rules! fields {
    ($($(#[$doc:meta])* $area:ident.$field:ident: $type:ty, $set:ident, $clean:expr;)*) => {
        $(
            $(#[$doc])*
            #[inline]
            #[must_use]
            pub const fn $field(&self) -> $type {
                self.$area.$field
            }

            #[doc = concat!("Sets what [`Vmcb::", stringify!($field), "`] reads.")]
            #[inline]
            pub fn $set(&mut self, value: $type) {
                self.$area.$field = value;
                self.control.clean &= !$clean.bits();
            }
        )*
    };
}

macro_rules! segments {
    ($($(#[$doc:meta])* $field:ident: $type:ty, $set:ident, $clean:expr;)*) => {
        $(
            $(#[$doc])*
            #[inline]
            #[must_use]
            pub fn $field(&self) -> $type {
                self.save.$field.into()
            }

            #[doc = concat!("Sets what [`Vmcb::", stringify!($field), "`] reads.")]
            #[inline]
            pub fn $set(&mut self, value: $type) {
                self.save.$field = value.into();
                self.control.clean &= !$clean.bits();
            }
        )*
    };
}

impl Vmcb {
    fields! {
        /// Intercepted CR reads (bits 15:0) and writes (31:16).
        control.intercept_cr: u32, set_intercept_cr, Clean::INTERCEPTS;
        /// Intercepted DR reads (bits 15:0) and writes (31:16).
        control.intercept_dr: u32, set_intercept_dr, Clean::INTERCEPTS;
        /// Intercepted exceptions, a bit a vector.
        control.intercept_exceptions: u32, set_intercept_exceptions, Clean::INTERCEPTS;
        /// Cycles between PAUSEs that restart the count.
        control.pause_filter_threshold: u16, set_pause_filter_threshold, Clean::INTERCEPTS;
        /// PAUSEs before an exit.
        control.pause_filter_count: u16, set_pause_filter_count, Clean::INTERCEPTS;
        /// Host-physical address of the I/O permission map.
        control.port_map: u64, set_port_map, Clean::MAPS;
        /// Host-physical address of the MSR permission map.
        control.msr_map: u64, set_msr_map, Clean::MAPS;
        /// Added to the TSC that the guest reads.
        control.tsc_offset: u64, set_tsc_offset, Clean::INTERCEPTS;
        /// Address-space id; 0 is the host's.
        control.asid: u32, set_asid, Clean::ASID;
        /// V_TPR, V_IRQ, V_INTR_PRIO, V_INTR_MASKING, V_INTR_VECTOR and the virtual GIF.
        control.virtual_interrupt: u64, set_virtual_interrupt, Clean::TPR;
        /// Bit 0: the guest is in an interrupt shadow.
        control.interrupt_shadow: u64, set_interrupt_shadow, Clean::empty();
        /// Bit 0: nested paging.
        control.nested_control: u64, set_nested_control, Clean::NESTED_PAGING;
        /// Host-physical address of the nested page table.
        control.nested_cr3: u64, set_nested_cr3, Clean::NESTED_PAGING;
        /// Bit 0: LBR virtualisation; bit 1: virtual VMLOAD and VMSAVE.
        control.virtualization_control: u64, set_virtualization_control, Clean::LAST_BRANCH;
        /// The guest's CPL.
        save.cpl: u8, set_cpl, Clean::SEGMENTS;
        /// The guest's EFER, with SVME set.
        save.efer: u64, set_efer, Clean::CONTROL_REGISTERS;
        /// The guest's CR4.
        save.cr4: u64, set_cr4, Clean::CONTROL_REGISTERS;
        /// The guest's CR3.
        save.cr3: u64, set_cr3, Clean::CONTROL_REGISTERS;
        /// The guest's CR0.
        save.cr0: u64, set_cr0, Clean::CONTROL_REGISTERS;
        /// The guest's DR7.
        save.dr7: u64, set_dr7, Clean::DEBUG_REGISTERS;
        /// The guest's DR6.
        save.dr6: u64, set_dr6, Clean::DEBUG_REGISTERS;
        /// The guest's RFLAGS.
        save.rflags: u64, set_rflags, Clean::empty();
        /// The guest's RIP.
        save.rip: u64, set_rip, Clean::empty();
        /// The guest's RSP.
        save.rsp: u64, set_rsp, Clean::empty();
        /// The guest's RAX.
        save.rax: u64, set_rax, Clean::empty();
        /// STAR; VMLOAD and VMSAVE move it.
        save.star: u64, set_star, Clean::empty();
        /// LSTAR; VMLOAD and VMSAVE move it.
        save.lstar: u64, set_lstar, Clean::empty();
        /// CSTAR; VMLOAD and VMSAVE move it.
        save.cstar: u64, set_cstar, Clean::empty();
        /// SFMASK; VMLOAD and VMSAVE move it.
        save.sfmask: u64, set_sfmask, Clean::empty();
        /// KernelGSBase; VMLOAD and VMSAVE move it.
        save.kernel_gs_base: u64, set_kernel_gs_base, Clean::empty();
        /// SYSENTER_CS; VMLOAD and VMSAVE move it.
        save.sysenter_cs: u64, set_sysenter_cs, Clean::empty();
        /// SYSENTER_ESP; VMLOAD and VMSAVE move it.
        save.sysenter_esp: u64, set_sysenter_esp, Clean::empty();
        /// SYSENTER_EIP; VMLOAD and VMSAVE move it.
        save.sysenter_eip: u64, set_sysenter_eip, Clean::empty();
        /// The guest's CR2.
        save.cr2: u64, set_cr2, Clean::CR2;
        /// The guest's PAT under nested paging.
        save.guest_pat: u64, set_guest_pat, Clean::NESTED_PAGING;
        /// The guest's DEBUGCTL under LBR virtualisation.
        save.debugctl: u64, set_debugctl, Clean::LAST_BRANCH;
    }

    segments! {
        /// ES.
        es: Segment, set_es, Clean::SEGMENTS;
        /// CS.
        cs: Segment, set_cs, Clean::SEGMENTS;
        /// SS.
        ss: Segment, set_ss, Clean::SEGMENTS;
        /// DS.
        ds: Segment, set_ds, Clean::SEGMENTS;
        /// FS; VMLOAD and VMSAVE move its hidden part.
        fs: Segment, set_fs, Clean::empty();
        /// GS; VMLOAD and VMSAVE move its hidden part.
        gs: Segment, set_gs, Clean::empty();
        /// LDTR; VMLOAD and VMSAVE move it.
        ldtr: Segment, set_ldtr, Clean::empty();
        /// TR; VMLOAD and VMSAVE move it.
        tr: Segment, set_tr, Clean::empty();
        /// GDTR.
        gdtr: DescriptorTable, set_gdtr, Clean::DESCRIPTOR_TABLES;
        /// IDTR.
        idtr: DescriptorTable, set_idtr, Clean::DESCRIPTOR_TABLES;
    }

    /// The instruction intercepts.
    #[must_use]
    pub const fn intercepts(&self) -> Intercepts {
        Intercepts::from_bits_retain(
            self.control.intercepts_low as u64 | (self.control.intercepts_high as u64) << 32,
        )
    }

    /// Sets the instruction intercepts.
    pub fn set_intercepts(&mut self, intercepts: Intercepts) {
        self.control.intercepts_low = intercepts.bits() as u32;
        self.control.intercepts_high = (intercepts.bits() >> 32) as u32;
        self.control.clean &= !Clean::INTERCEPTS.bits();
    }

    /// Why the guest left.
    #[inline]
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        ExitCode(self.control.exit_code)
    }

    /// EXITINFO1, by exit code.
    #[inline]
    #[must_use]
    pub const fn exit_info_1(&self) -> u64 {
        self.control.exit_info_1
    }

    /// EXITINFO2, by exit code.
    #[inline]
    #[must_use]
    pub const fn exit_info_2(&self) -> u64 {
        self.control.exit_info_2
    }

    /// The event whose delivery the exit interrupted.
    #[inline]
    #[must_use]
    pub const fn exit_int_info(&self) -> EventInjection {
        EventInjection(self.control.exit_int_info)
    }

    /// Sets what an exit has interrupted, where the CPU does not tell.
    #[inline]
    pub fn set_exit_int_info(&mut self, event: EventInjection) {
        self.control.exit_int_info = event.0;
    }

    /// The event to be delivered at the next VMRUN; the CPU clears its valid bit when it has taken it.
    #[inline]
    #[must_use]
    pub const fn event_injection(&self) -> EventInjection {
        EventInjection(self.control.event_injection)
    }

    /// Sets the event to be delivered at the next VMRUN.
    #[inline]
    pub fn set_event_injection(&mut self, event: EventInjection) {
        self.control.event_injection = event.0;
    }

    /// The RIP behind the instruction that exited, where the CPU has NRIP_SAVE and the exit is an instruction's.
    #[inline]
    #[must_use]
    pub const fn next_rip(&self) -> u64 {
        self.control.next_rip
    }

    /// The bytes fetched at RIP, where the CPU has DECODE_ASSISTS and the exit is a data page fault.
    #[inline]
    #[must_use]
    pub fn fetched_bytes(&self) -> &[u8] {
        let length = usize::from(self.control.fetched & 15);
        &self.control.instruction[..length]
    }

    /// What is flushed at the next VMRUN.
    #[inline]
    pub fn set_tlb_control(&mut self, control: TlbControl) {
        self.control.tlb_control = control as u8;
    }

    /// Marks groups as clean, all or none: called after each exit, before any setter.
    #[inline]
    pub fn set_clean(&mut self, clean: Clean) {
        self.control.clean = clean.bits();
    }

    /// Makes the CPU read everything at the next VMRUN: for another physical CPU, or another VMCB at this address.
    #[inline]
    pub fn mark_dirty(&mut self) {
        self.control.clean = 0;
    }

    /// The groups that are clean.
    #[must_use]
    pub const fn clean(&self) -> Clean {
        Clean::from_bits_retain(self.control.clean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setters_clear_their_clean_bit() {
        let mut vmcb = Vmcb::new_zeroed();
        vmcb.set_clean(Clean::all());
        vmcb.set_cr3(0x1000);
        vmcb.set_rip(5);
        assert_eq!(vmcb.clean(), Clean::all() - Clean::CONTROL_REGISTERS);
        vmcb.set_intercepts(Intercepts::HLT | Intercepts::VMRUN);
        assert_eq!(vmcb.intercepts(), Intercepts::HLT | Intercepts::VMRUN);
        vmcb.set_idtr(DescriptorTable { base: 7, limit: 0xfff });
        assert_eq!(vmcb.idtr(), DescriptorTable { base: 7, limit: 0xfff });
        assert_eq!(
            vmcb.clean(),
            Clean::all() - Clean::CONTROL_REGISTERS - Clean::INTERCEPTS - Clean::DESCRIPTOR_TABLES
        );
    }

    #[test]
    fn events_pack_as_the_manual_says() {
        let event = EventInjection::new(EventKind::Exception, 14, Some(6));
        assert_eq!(event.0, 0x0000_0006_8000_0b0e);
        assert_eq!(event.kind(), Some(EventKind::Exception));
        assert_eq!(event.error_code(), Some(6));
        assert_eq!(EventInjection::new(EventKind::Interrupt, 0x30, None).0, 0x8000_0030);
        assert!(!EventInjection::NONE.is_valid());
        assert_eq!(EventInjection(1 << 8).kind(), None);
    }
}
