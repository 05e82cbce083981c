//! Control registers, debug registers and MSRs (section 27.3.1.1), and the page-directory pointers that go with them
//! (section 27.3.1.6).

use caisson_x86::{Cr0, Cr4, Efer};

use super::{Check, EntryState, require};

impl EntryState {
    /// Section 27.3.1.1.
    pub(super) fn control_registers(&self) -> Check {
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
    pub(super) fn msrs(&self) -> Check {
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

    /// Section 27.3.1.6.
    pub(super) fn page_directory_pointers(&self) -> Check {
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
