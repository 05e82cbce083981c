//! Segment registers (section 27.3.1.2) and descriptor-table registers (section 27.3.1.3).

use caisson_x86::{Cr0, SegmentRegister};

use super::{Check, EntryState, SegmentState, require};

/// Access-right bits 11:8 and 31:17.
const RESERVED_RIGHTS: u32 = 0xfffe_0f00;

impl EntryState {
    /// Section 27.3.1.2.
    pub(super) fn segment_registers(&self) -> Check {
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
    pub(super) fn tables(&self) -> Check {
        require(self.canonical(self.gdtr.base), "guest GDTR base: not canonical", self.gdtr.base)?;
        require(self.canonical(self.idtr.base), "guest IDTR base: not canonical", self.idtr.base)
    }
}

impl SegmentState {
    /// G goes with the limit: pages where it reaches above 1 MiB, and only where its low bits are all ones.
    const fn granularity_fits(&self) -> bool {
        let granular = self.rights.0 & 1 << 15 != 0;
        (self.limit & 0xfff == 0xfff || !granular) && (self.limit & 0xfff0_0000 == 0 || granular)
    }
}
