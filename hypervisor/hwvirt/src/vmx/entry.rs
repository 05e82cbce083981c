//! The checks that a VM entry makes of the guest's state (SDM vol. 3, section 27.3.1), for telling which one failed.
//!
//! The CPU only says that the state was bad. [`check_entry`] goes through the manual's checks in its order, over a copy of
//! the fields, for a guest with EPT and unrestricted guest.

use caisson_x86::vmx::{AccessRights, EventInfo, EventType, Interruptibility, PendingDebug};
use caisson_x86::{Cr0, Cr4, DescriptorTable, Efer, Rflags, SegmentRegister};

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

/// Access-right bits 11:8 and 31:17.
const RESERVED_RIGHTS: u32 = 0xfffe_0f00;

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

    /// Section 27.3.1.1.
    fn control_registers(&self) -> Check {
        // Unrestricted guest frees PE and PG.
        let cr0_must = self.cr0_fixed.0 & !(Cr0::PE | Cr0::PG).bits();
        // CD and NW are not checked.
        let cr0_may = self.cr0_fixed.1 | (Cr0::CD | Cr0::NW).bits();
        require(self.cr0 & cr0_must == cr0_must, "guest CR0: a bit that must be 1 is 0", self.cr0)?;
        require(self.cr0 & !cr0_may == 0, "guest CR0: a bit that must be 0 is 1", self.cr0)?;
        let paging = self.paging();
        require(
            !paging || self.cr0 & Cr0::PE.bits() != 0,
            "guest CR0: paging without protected mode",
            self.cr0,
        )?;
        require(
            self.cr4 & self.cr4_fixed.0 == self.cr4_fixed.0,
            "guest CR4: a bit that must be 1 is 0",
            self.cr4,
        )?;
        require(self.cr4 & !self.cr4_fixed.1 == 0, "guest CR4: a bit that must be 0 is 1", self.cr4)?;
        require(
            self.cr4 & Cr4::CET.bits() == 0 || self.cr0 & Cr0::WP.bits() != 0,
            "guest CR4: CET without CR0.WP",
            self.cr4,
        )?;
        if self.long_mode {
            require(paging, "guest CR0: IA-32e mode without paging", self.cr0)?;
            require(self.cr4 & Cr4::PAE.bits() != 0, "guest CR4: IA-32e mode without PAE", self.cr4)?;
        } else {
            require(self.cr4 & Cr4::PCIDE.bits() == 0, "guest CR4: PCIDE outside IA-32e mode", self.cr4)?;
        }
        require(self.cr3 >> self.physical_bits == 0, "guest CR3: beyond the physical addresses", self.cr3)?;
        require(self.dr7 >> 32 == 0, "guest DR7: a bit above 31 is 1", self.dr7)?;
        require(self.debugctl & !0xdfc3 == 0, "guest IA32_DEBUGCTL: a reserved bit is 1", self.debugctl)?;
        for (check, address) in [
            ("guest IA32_SYSENTER_ESP: not canonical", self.sysenter_esp),
            ("guest IA32_SYSENTER_EIP: not canonical", self.sysenter_eip),
        ] {
            require(self.canonical(address), check, address)?;
        }
        Ok(())
    }

    /// Section 27.3.1.1, the MSRs that entry controls load.
    fn msrs(&self) -> Check {
        let types = self.pat.to_le_bytes();
        require(
            types.iter().all(|t| matches!(t, 0 | 1 | 4..=7)),
            "guest IA32_PAT: a byte is no memory type",
            self.pat,
        )?;
        let known = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
        require(self.efer & !known.bits() == 0, "guest IA32_EFER: a reserved bit is 1", self.efer)?;
        let (lma, lme) = (self.efer & Efer::LMA.bits() != 0, self.efer & Efer::LME.bits() != 0);
        require(
            lma == self.long_mode,
            "guest IA32_EFER: LMA is not the entry control for IA-32e mode",
            self.efer,
        )?;
        require(!self.paging() || lma == lme, "guest IA32_EFER: paging with LMA other than LME", self.efer)
    }

    /// Section 27.3.1.2.
    fn segment_registers(&self) -> Check {
        use SegmentRegister as S;
        let (tr, ldtr) = (self.segment(S::Tr), self.segment(S::Ldtr));
        let table_indicator = |s: &SegmentState| s.selector & 4 != 0;
        require(!table_indicator(tr), "guest TR selector: in the LDT", u64::from(tr.selector))?;
        require(
            ldtr.rights.unusable() || !table_indicator(ldtr),
            "guest LDTR selector: in the LDT",
            u64::from(ldtr.selector),
        )?;
        self.segment_bases()?;
        if self.virtual_8086() {
            return self.virtual_8086_segments();
        }
        self.code_segment()?;
        self.stack_segment()?;
        for (register, check, limit) in [
            (
                S::Ds,
                "guest DS access rights: not a readable segment at its privilege",
                "guest DS limit: granularity",
            ),
            (
                S::Es,
                "guest ES access rights: not a readable segment at its privilege",
                "guest ES limit: granularity",
            ),
            (
                S::Fs,
                "guest FS access rights: not a readable segment at its privilege",
                "guest FS limit: granularity",
            ),
            (
                S::Gs,
                "guest GS access rights: not a readable segment at its privilege",
                "guest GS limit: granularity",
            ),
        ] {
            let segment = self.segment(register);
            if !segment.rights.unusable() {
                let rights = segment.rights.0;
                let accessed = rights & 1 != 0;
                let readable = rights & 8 == 0 || rights & 2 != 0;
                require(
                    accessed && readable && rights & 0x90 == 0x90 && rights & RESERVED_RIGHTS == 0,
                    check,
                    u64::from(rights),
                )?;
                require(segment.granularity_fits(), limit, u64::from(segment.limit))?;
            }
        }
        self.task_and_local_tables()
    }

    fn segment_bases(&self) -> Check {
        use SegmentRegister as S;
        for (register, check) in [
            (S::Tr, "guest TR base: not canonical"),
            (S::Fs, "guest FS base: not canonical"),
            (S::Gs, "guest GS base: not canonical"),
        ] {
            let base = self.segment(register).base;
            require(self.canonical(base), check, base)?;
        }
        let ldtr = self.segment(S::Ldtr);
        require(
            ldtr.rights.unusable() || self.canonical(ldtr.base),
            "guest LDTR base: not canonical",
            ldtr.base,
        )?;
        let cs = self.segment(S::Cs).base;
        require(cs >> 32 == 0, "guest CS base: above 4 GiB", cs)?;
        for (register, check) in [
            (S::Ss, "guest SS base: above 4 GiB"),
            (S::Ds, "guest DS base: above 4 GiB"),
            (S::Es, "guest ES base: above 4 GiB"),
        ] {
            let segment = self.segment(register);
            require(segment.rights.unusable() || segment.base >> 32 == 0, check, segment.base)?;
        }
        Ok(())
    }

    fn virtual_8086_segments(&self) -> Check {
        for segment in &self.segments[..6] {
            let selector = u64::from(segment.selector);
            require(
                segment.base == selector << 4,
                "virtual-8086 guest: a base is not selector * 16",
                segment.base,
            )?;
            require(
                segment.limit == 0xffff,
                "virtual-8086 guest: a limit is not FFFFH",
                u64::from(segment.limit),
            )?;
            let rights = u64::from(segment.rights.0);
            require(rights == 0xf3, "virtual-8086 guest: access rights are not F3H", rights)?;
        }
        Ok(())
    }

    fn code_segment(&self) -> Check {
        let (cs, ss) = (self.segment(SegmentRegister::Cs), self.segment(SegmentRegister::Ss));
        let rights = cs.rights.0;
        let value = u64::from(rights);
        require(
            matches!(rights & 15, 3 | 9 | 11 | 13 | 15),
            "guest CS access rights: the type is not accessed code",
            value,
        )?;
        require(rights & 0x10 != 0, "guest CS access rights: a system segment", value)?;
        let (dpl, ss_dpl) = (cs.rights.dpl(), ss.rights.dpl());
        let privilege = match rights & 15 {
            3 => dpl == 0,
            9 | 11 => dpl == ss_dpl,
            _ => dpl <= ss_dpl,
        };
        require(privilege, "guest CS access rights: the privilege level does not go with SS", value)?;
        require(rights & 0x80 != 0, "guest CS access rights: not present", value)?;
        require(rights & RESERVED_RIGHTS == 0, "guest CS access rights: a reserved bit is 1", value)?;
        require(
            !self.long_mode || rights & 1 << 13 == 0 || rights & 1 << 14 == 0,
            "guest CS access rights: 64-bit code with D set",
            value,
        )?;
        require(cs.granularity_fits(), "guest CS limit: granularity", u64::from(cs.limit))
    }

    fn stack_segment(&self) -> Check {
        let ss = self.segment(SegmentRegister::Ss);
        let rights = ss.rights.0;
        let value = u64::from(rights);
        let real = self.cr0 & Cr0::PE.bits() == 0;
        let cs_type = self.segment(SegmentRegister::Cs).rights.0 & 15;
        require(
            !(real || cs_type == 3) || ss.rights.dpl() == 0,
            "guest SS access rights: a privilege level in real mode",
            value,
        )?;
        if ss.rights.unusable() {
            return Ok(());
        }
        require(
            matches!(rights & 15, 3 | 7),
            "guest SS access rights: the type is not accessed writable data",
            value,
        )?;
        require(
            rights & 0x90 == 0x90 && rights & RESERVED_RIGHTS == 0,
            "guest SS access rights: system segment, not present, or a reserved bit",
            value,
        )?;
        require(ss.granularity_fits(), "guest SS limit: granularity", u64::from(ss.limit))
    }

    fn task_and_local_tables(&self) -> Check {
        let (tr, ldtr) = (self.segment(SegmentRegister::Tr), self.segment(SegmentRegister::Ldtr));
        let rights = tr.rights.0;
        let busy = if self.long_mode { rights & 15 == 11 } else { matches!(rights & 15, 3 | 11) };
        require(busy, "guest TR access rights: the type is not a busy task", u64::from(rights))?;
        require(
            rights & 0x90 == 0x80 && !tr.rights.unusable() && rights & RESERVED_RIGHTS == 0,
            "guest TR access rights: not a present, usable system segment",
            u64::from(rights),
        )?;
        require(tr.granularity_fits(), "guest TR limit: granularity", u64::from(tr.limit))?;
        if ldtr.rights.unusable() {
            return Ok(());
        }
        let rights = ldtr.rights.0;
        require(
            rights & 0x9f == 0x82 && rights & RESERVED_RIGHTS == 0,
            "guest LDTR access rights: not a present LDT",
            u64::from(rights),
        )?;
        require(ldtr.granularity_fits(), "guest LDTR limit: granularity", u64::from(ldtr.limit))
    }

    /// Section 27.3.1.3.
    fn tables(&self) -> Check {
        require(self.canonical(self.gdtr.base), "guest GDTR base: not canonical", self.gdtr.base)?;
        require(self.canonical(self.idtr.base), "guest IDTR base: not canonical", self.idtr.base)
    }

    /// Section 27.3.1.4.
    fn instruction_pointer(&self) -> Check {
        let long_code = self.long_mode && self.segment(SegmentRegister::Cs).rights.0 & 1 << 13 != 0;
        require(long_code || self.rip >> 32 == 0, "guest RIP: above 4 GiB outside 64-bit code", self.rip)?;
        // 64-bit code: bits above the linear-address width are the same, canonical or not by one.
        let flags = self.rflags;
        let reserved = !0x3f_ffff | 1 << 15 | 1 << 5 | 1 << 3;
        require(flags & reserved == 0 && flags & 2 != 0, "guest RFLAGS: a reserved bit", flags)?;
        require(
            !self.virtual_8086() || (!self.long_mode && self.cr0 & Cr0::PE.bits() != 0),
            "guest RFLAGS: virtual-8086 mode in IA-32e or real mode",
            flags,
        )?;
        let interrupt = self.event.is_valid() && self.event.kind() == Some(EventType::Interrupt);
        require(
            !interrupt || flags & Rflags::IF.bits() != 0,
            "guest RFLAGS: an interrupt is injected with IF clear",
            flags,
        )
    }

    /// Section 27.3.1.5.
    fn non_register_state(&self) -> Check {
        let activity = u64::from(self.activity);
        let blocked = self.interruptibility;
        let word = u64::from(blocked.bits());
        let shadow = Interruptibility::STI | Interruptibility::MOV_SS;
        require(activity <= 3, "activity state: reserved", activity)?;
        require(
            activity != 1 || self.segment(SegmentRegister::Ss).rights.dpl() == 0,
            "activity state: HLT outside ring 0",
            activity,
        )?;
        require(
            activity == 0 || !blocked.intersects(shadow),
            "activity state: not active in the shadow of STI or MOV SS",
            activity,
        )?;
        require(word & !0x1f == 0, "interruptibility state: a reserved bit is 1", word)?;
        require(!blocked.contains(shadow), "interruptibility state: both STI and MOV SS", word)?;
        let enabled = self.rflags & Rflags::IF.bits() != 0;
        require(
            enabled || !blocked.contains(Interruptibility::STI),
            "interruptibility state: the shadow of STI with IF clear",
            word,
        )?;
        require(
            !blocked.contains(Interruptibility::SMI),
            "interruptibility state: SMIs blocked outside SMM",
            word,
        )?;
        match self.event.kind().filter(|_| self.event.is_valid()) {
            Some(EventType::Interrupt) => {
                require(
                    !blocked.intersects(shadow),
                    "interruptibility state: an interrupt in a shadow",
                    word,
                )?;
            }
            Some(EventType::Nmi) => {
                require(
                    !blocked.contains(Interruptibility::MOV_SS),
                    "interruptibility state: an NMI in the shadow of MOV SS",
                    word,
                )?;
                require(
                    !self.virtual_nmis || !blocked.contains(Interruptibility::NMI),
                    "interruptibility state: an NMI while NMIs are blocked",
                    word,
                )?;
            }
            _ => {}
        }
        let known = PendingDebug::BREAKPOINTS
            | PendingDebug::ENABLED_BREAKPOINT
            | PendingDebug::SINGLE_STEP
            | PendingDebug::TRANSACTION;
        let pending = self.pending_debug;
        require(pending & !known.bits() == 0, "pending debug exceptions: a reserved bit is 1", pending)?;
        if blocked.intersects(shadow) || activity == 1 {
            const BRANCH_STEPS: u64 = 1 << 1;
            let steps = self.rflags & Rflags::TF.bits() != 0 && self.debugctl & BRANCH_STEPS == 0;
            let step = pending & PendingDebug::SINGLE_STEP.bits() != 0;
            require(steps == step, "pending debug exceptions: single step is not RFLAGS.TF", pending)?;
        }
        require(self.link_pointer == u64::MAX, "VMCS link pointer: not all ones", self.link_pointer)
    }

    /// Section 27.3.1.6.
    fn page_directory_pointers(&self) -> Check {
        let pae = self.paging() && self.cr4 & Cr4::PAE.bits() != 0 && !self.long_mode;
        if !pae {
            return Ok(());
        }
        let reserved = 0x1e6 | !0 << self.physical_bits;
        for entry in self.pdptes {
            require(entry & 1 == 0 || entry & reserved == 0, "guest PDPTE: a reserved bit is 1", entry)?;
        }
        Ok(())
    }
}

impl SegmentState {
    /// G goes with the limit: pages where it reaches above 1 MiB, and only where its low bits are all ones.
    const fn granularity_fits(&self) -> bool {
        let granular = self.rights.0 & 1 << 15 != 0;
        (self.limit & 0xfff == 0xfff || !granular) && (self.limit & 0xfff0_0000 == 0 || granular)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(rights: u32) -> SegmentState {
        SegmentState { selector: 0x10, base: 0, limit: u32::MAX, rights: AccessRights(rights) }
    }

    /// A 64-bit guest.
    fn long() -> EntryState {
        let mut segments = [segment(0xc093); 8];
        segments[SegmentRegister::Cs as usize] = segment(0xa09b);
        segments[SegmentRegister::Ldtr as usize] = segment(AccessRights::UNUSABLE);
        segments[SegmentRegister::Tr as usize] = SegmentState { limit: 0x67, ..segment(0x8b) };
        EntryState {
            cr0: 0x8000_0031,
            cr0_fixed: (0x8000_0021, 0xffff_ffff),
            cr3: 0x1000,
            cr4: 0x2020,
            cr4_fixed: (0x2000, 0x0037_27ff),
            long_mode: true,
            efer: 0x500,
            pat: 0x0007_0406_0007_0406,
            debugctl: 0,
            dr7: 0x400,
            sysenter_esp: 0,
            sysenter_eip: 0,
            segments,
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            rip: 0xffff_8000_0000_0000,
            rflags: 2,
            activity: 0,
            interruptibility: Interruptibility::empty(),
            pending_debug: 0,
            event: EventInfo::NONE,
            virtual_nmis: true,
            link_pointer: u64::MAX,
            pdptes: [0; 4],
            physical_bits: 40,
        }
    }

    /// A guest after INIT.
    fn real() -> EntryState {
        let data = SegmentState { selector: 0, base: 0, limit: 0xffff, rights: AccessRights(0x93) };
        let mut segments = [data; 8];
        segments[SegmentRegister::Cs as usize] =
            SegmentState { selector: 0xf000, base: 0xffff_0000, rights: AccessRights(0x9b), ..data };
        segments[SegmentRegister::Ldtr as usize].rights = AccessRights(0x82);
        segments[SegmentRegister::Tr as usize].rights = AccessRights(0x8b);
        EntryState { cr0: 0x30, cr4: 0x2000, long_mode: false, efer: 0, segments, rip: 0xfff0, ..long() }
    }

    #[test]
    fn good_states_pass() {
        assert_eq!(check_entry(&long()), None);
        assert_eq!(check_entry(&real()), None);
        // Null segments in 64-bit mode, with the privilege level of user code in SS.
        let mut user = long();
        for register in [0, 2, 3, 4, 5] {
            user.segments[register] = segment(AccessRights::UNUSABLE | 0x60);
        }
        user.segments[1] = segment(0xa0fb);
        assert_eq!(check_entry(&user), None);
        let mut v86 = real();
        v86.cr0 |= 1;
        v86.rflags |= 1 << 17;
        for s in &mut v86.segments[..6] {
            *s = SegmentState { selector: 0x123, base: 0x1230, limit: 0xffff, rights: AccessRights(0xf3) };
        }
        assert_eq!(check_entry(&v86), None);
    }

    #[test]
    fn each_check_names_its_field() {
        type Change = fn(&mut EntryState);
        let table: &[(Change, &str)] = &[
            (|s| s.cr0 &= !0x20, "CR0: a bit that must be 1"),
            (|s| s.cr0 |= 1 << 40, "CR0: a bit that must be 0"),
            (|s| s.cr0 &= !1, "CR0: paging without"),
            (|s| s.cr4 &= !0x2000, "CR4: a bit that must be 1"),
            (|s| s.cr4 |= 1 << 30, "CR4: a bit that must be 0"),
            (|s| s.cr4 &= !0x20, "IA-32e mode without PAE"),
            (|s| s.cr3 = 1 << 40, "CR3"),
            (|s| s.dr7 = 1 << 32, "DR7"),
            (|s| s.debugctl = 1 << 20, "DEBUGCTL"),
            (|s| s.sysenter_eip = 1 << 63, "SYSENTER_EIP"),
            (|s| s.pat = 2, "PAT"),
            (|s| s.efer |= 1 << 12, "EFER: a reserved"),
            (|s| s.efer = 0x100, "EFER: LMA is not"),
            (|s| s.efer = 0x400, "EFER: paging"),
            (|s| s.segments[7].selector = 4, "TR selector"),
            (|s| s.segments[4].base = 1 << 63, "FS base"),
            (|s| s.segments[1].base = 1 << 32, "CS base"),
            (|s| s.segments[3].base = 1 << 32, "DS base"),
            (|s| s.segments[1].rights = AccessRights(0xa093 | 0x60), "CS access rights: the privilege"),
            (|s| s.segments[1].rights = AccessRights(0xa098), "CS access rights: the type"),
            (|s| s.segments[1].rights = AccessRights(0xe09b), "64-bit code with D"),
            (|s| s.segments[1].limit = 0xffff_0000, "CS limit"),
            (|s| s.segments[2].rights = AccessRights(0xc091), "SS access rights: the type"),
            (|s| s.segments[0].rights = AccessRights(0xc092), "ES access rights"),
            (|s| s.segments[5].limit = 0x1_0000, "GS limit"),
            (|s| s.segments[7].rights = AccessRights(0x89), "TR access rights: the type"),
            (|s| s.segments[7].rights = AccessRights(0x1_008b), "TR access rights: not"),
            (|s| s.segments[6].rights = AccessRights(0x83), "LDTR access rights"),
            (|s| s.gdtr.base = 1 << 60, "GDTR base"),
            (|s| s.idtr.base = 1 << 60, "IDTR base"),
            (|s| s.segments[1].rights = AccessRights(0xc09b), "RIP"),
            (|s| s.rflags = 0, "RFLAGS: a reserved"),
            (|s| s.rflags |= 1 << 17, "virtual-8086"),
            (|s| s.event = EventInfo(0x8000_0041), "injected with IF clear"),
            (|s| s.activity = 4, "activity state"),
            (|s| s.interruptibility = Interruptibility::STI, "the shadow of STI with IF clear"),
            (|s| s.interruptibility = Interruptibility::SMI, "SMIs"),
            (
                |s| {
                    s.interruptibility = Interruptibility::NMI;
                    s.event = EventInfo(0x8000_0202);
                },
                "an NMI while NMIs are blocked",
            ),
            (
                |s| {
                    s.interruptibility = Interruptibility::MOV_SS;
                    s.rflags |= 1 << 8;
                },
                "single step is not RFLAGS.TF",
            ),
            (|s| s.pending_debug = 1 << 5, "pending debug exceptions: a reserved"),
            (|s| s.link_pointer = 0, "link pointer"),
        ];
        for (index, (change, text)) in table.iter().enumerate() {
            let mut state = long();
            change(&mut state);
            let refusal = check_entry(&state);
            assert!(refusal.is_some_and(|r| r.check.contains(text)), "{index} {text}: {refusal:?}");
        }
    }

    #[test]
    fn pae_tables_are_checked_in_pae_paging_only() {
        let mut state = real();
        state.pdptes[2] = 0x1003;
        assert_eq!(check_entry(&state), None);
        state.cr0 |= 0x8000_0001;
        state.cr4 |= 0x20;
        assert_eq!(check_entry(&state).map(|r| r.value), Some(0x1003));
    }
}
