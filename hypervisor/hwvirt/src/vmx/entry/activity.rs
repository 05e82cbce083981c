//! RIP and RFLAGS (section 27.3.1.4), and what is in no register: activity, interruptibility, pending debug exceptions, the
//! link pointer (section 27.3.1.5).

use caisson_x86::vmx::{EventType, Interruptibility, PendingDebug};
use caisson_x86::{Cr0, Rflags, SegmentRegister};

use super::{Check, EntryState, require};

impl EntryState {
    /// Section 27.3.1.4.
    pub(super) fn instruction_pointer(&self) -> Check {
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
    pub(super) fn non_register_state(&self) -> Check {
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
}
