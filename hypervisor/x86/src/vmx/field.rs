//! VMCS fields with their width and access (SDM vol. 3, section 25.11.2 and appendix B).
//!
//! A field of the exit-information area has no write: [`Field`] carries [`ReadOnly`], and a backend offers VMWRITE only
//! for [`ReadWrite`]. Both marks are checked against the encoding at compile time.

use core::marker::PhantomData;

/// A field's width: the type of its value, and bits 14:13 of its encoding.
pub trait Width {
    /// What is read and written.
    type Value: Copy;
    /// Bits 14:13 of the encoding.
    const CODE: u32;
    /// The value as VMREAD leaves it in a register.
    fn from_raw(raw: u64) -> Self::Value;
    /// The value as VMWRITE takes it.
    fn into_raw(value: Self::Value) -> u64;
}

/// Natural width: 64 bits on the CPUs that Caisson runs on.
#[derive(Clone, Copy, Debug)]
pub struct Natural;

macro_rules! widths {
    ($($width:ty, $value:ty, $code:literal;)*) => {
        $(impl Width for $width {
            type Value = $value;
            const CODE: u32 = $code;
            #[inline]
            fn from_raw(raw: u64) -> $value {
                raw as $value
            }
            #[inline]
            fn into_raw(value: $value) -> u64 {
                #[allow(clippy::cast_lossless)]
                { value as u64 }
            }
        })*
    };
}

widths! {
    u16, u16, 0;
    u64, u64, 1;
    u32, u32, 2;
    Natural, u64, 3;
}

/// Whether a field can be written.
pub trait Access {
    /// Bits 11:10 of the encoding are 1.
    const READ_ONLY: bool;
}

/// The field can be read and written.
#[derive(Clone, Copy, Debug)]
pub struct ReadWrite;
/// The field belongs to the exit-information area.
#[derive(Clone, Copy, Debug)]
pub struct ReadOnly;

impl Access for ReadWrite {
    const READ_ONLY: bool = false;
}
impl Access for ReadOnly {
    const READ_ONLY: bool = true;
}

/// A field of the VMCS.
#[derive(Debug)]
pub struct Field<W, A> {
    encoding: u32,
    marks: PhantomData<(W, A)>,
}

impl<W, A> Clone for Field<W, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W, A> Copy for Field<W, A> {}

impl<W: Width, A: Access> Field<W, A> {
    const fn new(encoding: u32) -> Self {
        assert!(encoding >> 13 & 3 == W::CODE, "the width is not the encoding's");
        assert!((encoding >> 10 & 3 == 1) == A::READ_ONLY, "the access is not the encoding's");
        Self { encoding, marks: PhantomData }
    }

    /// The operand of VMREAD and VMWRITE.
    #[inline]
    #[must_use]
    pub const fn encoding(self) -> u32 {
        self.encoding
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $width:ty, $access:ty = $encoding:literal;)*) => {
        $($(#[$doc])* pub const $name: Field<$width, $access> = Field::new($encoding);)*

        #[cfg(test)]
        const ALL: &[(&str, u32)] = &[$((stringify!($name), $encoding)),*];
    };
}

fields! {
    /// Virtual-processor identifier.
    VPID: u16, ReadWrite = 0x0000;
    /// Guest ES selector; the selectors of CS, SS, DS, FS, GS, LDTR and TR follow at distances of 2.
    GUEST_ES_SELECTOR: u16, ReadWrite = 0x0800;
    /// Guest CS selector.
    GUEST_CS_SELECTOR: u16, ReadWrite = 0x0802;
    /// Guest SS selector.
    GUEST_SS_SELECTOR: u16, ReadWrite = 0x0804;
    /// Guest DS selector.
    GUEST_DS_SELECTOR: u16, ReadWrite = 0x0806;
    /// Guest FS selector.
    GUEST_FS_SELECTOR: u16, ReadWrite = 0x0808;
    /// Guest GS selector.
    GUEST_GS_SELECTOR: u16, ReadWrite = 0x080a;
    /// Guest LDTR selector.
    GUEST_LDTR_SELECTOR: u16, ReadWrite = 0x080c;
    /// Guest TR selector.
    GUEST_TR_SELECTOR: u16, ReadWrite = 0x080e;
    /// Guest interrupt status: the highest requested vector in bits 7:0, the highest in service in bits 15:8.
    GUEST_INTERRUPT_STATUS: u16, ReadWrite = 0x0810;
    /// Where the next page goes in the page-modification log: down from 511.
    LOG_INDEX: u16, ReadWrite = 0x0812;
    /// Host ES selector.
    HOST_ES_SELECTOR: u16, ReadWrite = 0x0c00;
    /// Host CS selector.
    HOST_CS_SELECTOR: u16, ReadWrite = 0x0c02;
    /// Host SS selector.
    HOST_SS_SELECTOR: u16, ReadWrite = 0x0c04;
    /// Host DS selector.
    HOST_DS_SELECTOR: u16, ReadWrite = 0x0c06;
    /// Host FS selector.
    HOST_FS_SELECTOR: u16, ReadWrite = 0x0c08;
    /// Host GS selector.
    HOST_GS_SELECTOR: u16, ReadWrite = 0x0c0a;
    /// Host TR selector.
    HOST_TR_SELECTOR: u16, ReadWrite = 0x0c0c;

    /// Address of the MSR bitmap.
    MSR_BITMAP: u64, ReadWrite = 0x2004;
    /// Address of the page-modification log.
    LOG_ADDRESS: u64, ReadWrite = 0x200e;
    /// Added to the TSC while the guest runs.
    TSC_OFFSET: u64, ReadWrite = 0x2010;
    /// Address of the virtual-APIC page.
    VIRTUAL_APIC: u64, ReadWrite = 0x2012;
    /// Address of the APIC-access page.
    APIC_ACCESS: u64, ReadWrite = 0x2014;
    /// EPT pointer.
    EPTP: u64, ReadWrite = 0x201a;
    /// Which vectors of the first 64 exit at their end; the other three fields follow at distances of 2.
    EOI_EXIT_0: u64, ReadWrite = 0x201c;
    /// Which vectors from 64 exit at their end.
    EOI_EXIT_1: u64, ReadWrite = 0x201e;
    /// Which vectors from 128 exit at their end.
    EOI_EXIT_2: u64, ReadWrite = 0x2020;
    /// Which vectors from 192 exit at their end.
    EOI_EXIT_3: u64, ReadWrite = 0x2022;
    /// Which components of IA32_XSS make XSAVES and XRSTORS exit.
    XSS_EXITING: u64, ReadWrite = 0x202c;
    /// Which leaves of ENCLS exit.
    ENCLS_EXITING: u64, ReadWrite = 0x202e;
    /// What the TSC is multiplied by while the guest runs, with 48 bits behind the point.
    TSC_MULTIPLIER: u64, ReadWrite = 0x2032;
    /// The guest-physical address of an EPT violation or misconfiguration.
    GUEST_PHYSICAL_ADDRESS: u64, ReadOnly = 0x2400;
    /// VMCS link pointer.
    LINK_POINTER: u64, ReadWrite = 0x2800;
    /// Guest IA32_DEBUGCTL.
    GUEST_DEBUGCTL: u64, ReadWrite = 0x2802;
    /// Guest IA32_PAT.
    GUEST_PAT: u64, ReadWrite = 0x2804;
    /// Guest IA32_EFER.
    GUEST_EFER: u64, ReadWrite = 0x2806;
    /// Guest page-directory-pointer-table entry 0.
    GUEST_PDPTE_0: u64, ReadWrite = 0x280a;
    /// Guest page-directory-pointer-table entry 1.
    GUEST_PDPTE_1: u64, ReadWrite = 0x280c;
    /// Guest page-directory-pointer-table entry 2.
    GUEST_PDPTE_2: u64, ReadWrite = 0x280e;
    /// Guest page-directory-pointer-table entry 3.
    GUEST_PDPTE_3: u64, ReadWrite = 0x2810;
    /// Host IA32_PAT.
    HOST_PAT: u64, ReadWrite = 0x2c00;
    /// Host IA32_EFER.
    HOST_EFER: u64, ReadWrite = 0x2c02;

    /// Pin-based execution controls.
    PIN_CONTROLS: u32, ReadWrite = 0x4000;
    /// Primary processor-based execution controls.
    PROCESSOR_CONTROLS: u32, ReadWrite = 0x4002;
    /// Which exceptions exit.
    EXCEPTION_BITMAP: u32, ReadWrite = 0x4004;
    /// Page-fault error-code mask.
    PAGE_FAULT_MASK: u32, ReadWrite = 0x4006;
    /// Page-fault error-code match.
    PAGE_FAULT_MATCH: u32, ReadWrite = 0x4008;
    /// CR3-target count.
    CR3_TARGET_COUNT: u32, ReadWrite = 0x400a;
    /// Exit controls.
    EXIT_CONTROLS: u32, ReadWrite = 0x400c;
    /// Count of MSRs that an exit stores.
    EXIT_MSR_STORE_COUNT: u32, ReadWrite = 0x400e;
    /// Count of MSRs that an exit loads.
    EXIT_MSR_LOAD_COUNT: u32, ReadWrite = 0x4010;
    /// Entry controls.
    ENTRY_CONTROLS: u32, ReadWrite = 0x4012;
    /// Count of MSRs that an entry loads.
    ENTRY_MSR_LOAD_COUNT: u32, ReadWrite = 0x4014;
    /// The event that an entry delivers.
    ENTRY_EVENT: u32, ReadWrite = 0x4016;
    /// Its error code.
    ENTRY_ERROR_CODE: u32, ReadWrite = 0x4018;
    /// The length of the instruction that raised it.
    ENTRY_INSTRUCTION_LENGTH: u32, ReadWrite = 0x401a;
    /// TPR threshold.
    TPR_THRESHOLD: u32, ReadWrite = 0x401c;
    /// Secondary processor-based execution controls.
    SECONDARY_CONTROLS: u32, ReadWrite = 0x401e;
    /// Pause-loop exiting: cycles between two PAUSEs of one loop.
    PAUSE_LOOP_GAP: u32, ReadWrite = 0x4020;
    /// Pause-loop exiting: cycles of a loop before it exits.
    PAUSE_LOOP_WINDOW: u32, ReadWrite = 0x4022;
    /// The error of the last VMX instruction.
    INSTRUCTION_ERROR: u32, ReadOnly = 0x4400;
    /// Exit reason.
    EXIT_REASON: u32, ReadOnly = 0x4402;
    /// The exception or interrupt that exited.
    EXIT_EVENT: u32, ReadOnly = 0x4404;
    /// Its error code.
    EXIT_ERROR_CODE: u32, ReadOnly = 0x4406;
    /// The event whose delivery the exit interrupted.
    INTERRUPTED_EVENT: u32, ReadOnly = 0x4408;
    /// Its error code.
    INTERRUPTED_ERROR_CODE: u32, ReadOnly = 0x440a;
    /// Bytes of the instruction that exited.
    INSTRUCTION_LENGTH: u32, ReadOnly = 0x440c;
    /// Operands of the instruction that exited.
    INSTRUCTION_INFORMATION: u32, ReadOnly = 0x440e;
    /// Guest ES limit.
    GUEST_ES_LIMIT: u32, ReadWrite = 0x4800;
    /// Guest CS limit.
    GUEST_CS_LIMIT: u32, ReadWrite = 0x4802;
    /// Guest SS limit.
    GUEST_SS_LIMIT: u32, ReadWrite = 0x4804;
    /// Guest DS limit.
    GUEST_DS_LIMIT: u32, ReadWrite = 0x4806;
    /// Guest FS limit.
    GUEST_FS_LIMIT: u32, ReadWrite = 0x4808;
    /// Guest GS limit.
    GUEST_GS_LIMIT: u32, ReadWrite = 0x480a;
    /// Guest LDTR limit.
    GUEST_LDTR_LIMIT: u32, ReadWrite = 0x480c;
    /// Guest TR limit.
    GUEST_TR_LIMIT: u32, ReadWrite = 0x480e;
    /// Guest GDTR limit.
    GUEST_GDTR_LIMIT: u32, ReadWrite = 0x4810;
    /// Guest IDTR limit.
    GUEST_IDTR_LIMIT: u32, ReadWrite = 0x4812;
    /// Guest ES access rights.
    GUEST_ES_RIGHTS: u32, ReadWrite = 0x4814;
    /// Guest CS access rights.
    GUEST_CS_RIGHTS: u32, ReadWrite = 0x4816;
    /// Guest SS access rights.
    GUEST_SS_RIGHTS: u32, ReadWrite = 0x4818;
    /// Guest DS access rights.
    GUEST_DS_RIGHTS: u32, ReadWrite = 0x481a;
    /// Guest FS access rights.
    GUEST_FS_RIGHTS: u32, ReadWrite = 0x481c;
    /// Guest GS access rights.
    GUEST_GS_RIGHTS: u32, ReadWrite = 0x481e;
    /// Guest LDTR access rights.
    GUEST_LDTR_RIGHTS: u32, ReadWrite = 0x4820;
    /// Guest TR access rights.
    GUEST_TR_RIGHTS: u32, ReadWrite = 0x4822;
    /// Interruptibility state.
    GUEST_INTERRUPTIBILITY: u32, ReadWrite = 0x4824;
    /// Activity state.
    GUEST_ACTIVITY: u32, ReadWrite = 0x4826;
    /// Guest IA32_SYSENTER_CS.
    GUEST_SYSENTER_CS: u32, ReadWrite = 0x482a;
    /// VMX-preemption timer.
    PREEMPTION_TIMER: u32, ReadWrite = 0x482e;
    /// Host IA32_SYSENTER_CS.
    HOST_SYSENTER_CS: u32, ReadWrite = 0x4c00;

    /// CR0 bits that are the host's.
    CR0_MASK: Natural, ReadWrite = 0x6000;
    /// CR4 bits that are the host's.
    CR4_MASK: Natural, ReadWrite = 0x6002;
    /// What the guest reads in the host's CR0 bits.
    CR0_SHADOW: Natural, ReadWrite = 0x6004;
    /// What the guest reads in the host's CR4 bits.
    CR4_SHADOW: Natural, ReadWrite = 0x6006;
    /// Exit qualification.
    EXIT_QUALIFICATION: Natural, ReadOnly = 0x6400;
    /// Guest CR0.
    GUEST_CR0: Natural, ReadWrite = 0x6800;
    /// Guest CR3.
    GUEST_CR3: Natural, ReadWrite = 0x6802;
    /// Guest CR4.
    GUEST_CR4: Natural, ReadWrite = 0x6804;
    /// Guest ES base.
    GUEST_ES_BASE: Natural, ReadWrite = 0x6806;
    /// Guest CS base.
    GUEST_CS_BASE: Natural, ReadWrite = 0x6808;
    /// Guest SS base.
    GUEST_SS_BASE: Natural, ReadWrite = 0x680a;
    /// Guest DS base.
    GUEST_DS_BASE: Natural, ReadWrite = 0x680c;
    /// Guest FS base.
    GUEST_FS_BASE: Natural, ReadWrite = 0x680e;
    /// Guest GS base.
    GUEST_GS_BASE: Natural, ReadWrite = 0x6810;
    /// Guest LDTR base.
    GUEST_LDTR_BASE: Natural, ReadWrite = 0x6812;
    /// Guest TR base.
    GUEST_TR_BASE: Natural, ReadWrite = 0x6814;
    /// Guest GDTR base.
    GUEST_GDTR_BASE: Natural, ReadWrite = 0x6816;
    /// Guest IDTR base.
    GUEST_IDTR_BASE: Natural, ReadWrite = 0x6818;
    /// Guest DR7.
    GUEST_DR7: Natural, ReadWrite = 0x681a;
    /// Guest RSP.
    GUEST_RSP: Natural, ReadWrite = 0x681c;
    /// Guest RIP.
    GUEST_RIP: Natural, ReadWrite = 0x681e;
    /// Guest RFLAGS.
    GUEST_RFLAGS: Natural, ReadWrite = 0x6820;
    /// Pending debug exceptions.
    GUEST_PENDING_DEBUG: Natural, ReadWrite = 0x6822;
    /// Guest IA32_SYSENTER_ESP.
    GUEST_SYSENTER_ESP: Natural, ReadWrite = 0x6824;
    /// Guest IA32_SYSENTER_EIP.
    GUEST_SYSENTER_EIP: Natural, ReadWrite = 0x6826;
    /// Host CR0.
    HOST_CR0: Natural, ReadWrite = 0x6c00;
    /// Host CR3.
    HOST_CR3: Natural, ReadWrite = 0x6c02;
    /// Host CR4.
    HOST_CR4: Natural, ReadWrite = 0x6c04;
    /// Host FS base.
    HOST_FS_BASE: Natural, ReadWrite = 0x6c06;
    /// Host GS base.
    HOST_GS_BASE: Natural, ReadWrite = 0x6c08;
    /// Host TR base.
    HOST_TR_BASE: Natural, ReadWrite = 0x6c0a;
    /// Host GDTR base.
    HOST_GDTR_BASE: Natural, ReadWrite = 0x6c0c;
    /// Host IDTR base.
    HOST_IDTR_BASE: Natural, ReadWrite = 0x6c0e;
    /// Host IA32_SYSENTER_ESP.
    HOST_SYSENTER_ESP: Natural, ReadWrite = 0x6c10;
    /// Host IA32_SYSENTER_EIP.
    HOST_SYSENTER_EIP: Natural, ReadWrite = 0x6c12;
    /// Host RSP.
    HOST_RSP: Natural, ReadWrite = 0x6c14;
    /// Host RIP.
    HOST_RIP: Natural, ReadWrite = 0x6c16;
}

/// The four fields of a guest segment register.
#[derive(Clone, Copy, Debug)]
pub struct SegmentFields {
    /// The visible part.
    pub selector: Field<u16, ReadWrite>,
    /// Linear address of offset 0.
    pub base: Field<Natural, ReadWrite>,
    /// The last byte's offset.
    pub limit: Field<u32, ReadWrite>,
    /// Access rights.
    pub rights: Field<u32, ReadWrite>,
}

/// The fields of ES, CS, SS, DS, FS, GS, LDTR and TR, in the order of [`crate::SegmentRegister`].
pub const SEGMENTS: [SegmentFields; 8] = {
    const fn of(number: u32) -> SegmentFields {
        SegmentFields {
            selector: Field::new(GUEST_ES_SELECTOR.encoding + 2 * number),
            base: Field::new(GUEST_ES_BASE.encoding + 2 * number),
            limit: Field::new(GUEST_ES_LIMIT.encoding + 2 * number),
            rights: Field::new(GUEST_ES_RIGHTS.encoding + 2 * number),
        }
    }
    [of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7)]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_full_width_and_unique() {
        let mut seen: [u32; ALL.len()] = core::array::from_fn(|i| ALL[i].1);
        seen.sort_unstable();
        assert!(seen.windows(2).all(|w| w[0] != w[1]));
        // Bit 0 would access the upper half alone; bits 31:15 and 12 are reserved.
        assert!(ALL.iter().all(|(_, encoding)| encoding & 0xffff_9001 == 0));
    }

    #[test]
    fn segments_are_in_the_order_of_their_numbers() {
        assert_eq!(SEGMENTS[7].selector.encoding(), GUEST_TR_SELECTOR.encoding());
        assert_eq!(SEGMENTS[7].base.encoding(), GUEST_TR_BASE.encoding());
        assert_eq!(SEGMENTS[6].limit.encoding(), GUEST_LDTR_LIMIT.encoding());
        assert_eq!(SEGMENTS[1].rights.encoding(), GUEST_CS_RIGHTS.encoding());
    }
}
