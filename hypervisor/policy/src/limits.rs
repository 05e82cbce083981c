//! What a guest may put into CR0, CR4, EFER and XCR0, following from its CPUID leaves.
//!
//! For writes that the hardware does not check itself, because they are intercepted or emulated. The rules are those of
//! SDM vol. 3, sections 2.5, 2.6 and 11.8.5, and APM vol. 2, sections 3.1 and 14.6. What the hardware answers with
//! #GP(0) is [`GeneralProtection`].

use caisson_x86::{Cr0, Cr4, Efer, Xcr0};

use crate::cpuid::{CpuidTable, Register};
use crate::{GeneralProtection, Vendor};

/// The bits that a domain's guests may set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// CR4 bits that are not reserved.
    pub cr4: u64,
    /// EFER bits that are not reserved, LMA among them.
    pub efer: u64,
    /// XCR0 components; 0 where the guest has no XSAVE.
    pub xcr0: u64,
    /// SPEC_CTRL bits; 0 where the guest has no such MSR.
    pub spec_ctrl: u64,
    /// PRED_CMD bits; 0 where the guest has no such MSR.
    pub pred_cmd: u64,
    /// Physical-address bits (MAXPHYADDR).
    pub physical_bits: u8,
    /// Linear-address bits that the CPU has: 48 or 57.
    pub linear_bits: u8,
}

/// The state of a vCPU that decides whether a write to CR4 is valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cr4Context {
    /// CR4 before the write.
    pub old: u64,
    /// CR3.
    pub cr3: u64,
    /// EFER.
    pub efer: u64,
}

/// The state of a vCPU that decides whether a write to CR0 is valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cr0Context {
    /// CR0 before the write.
    pub old: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// CS.L: the code segment is a 64-bit one.
    pub long_code: bool,
    /// TR holds a 16-bit TSS.
    pub task_16: bool,
}

/// What decides about PAE paging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagingControls {
    /// CR0.
    pub cr0: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.LME: paging is long mode's.
    pub long: bool,
}

impl PagingControls {
    const fn pae_paging(self) -> bool {
        self.cr0 & Cr0::PG.bits() != 0 && self.cr4 & Cr4::PAE.bits() != 0 && !self.long
    }

    /// Whether a write to CR0 or CR4 that makes these controls `new` loads the page-directory pointers, on a CPU that
    /// keeps them in registers (SDM vol. 3, section 4.4.1).
    #[must_use]
    pub const fn loads_pointers(self, new: Self) -> bool {
        const CR0_LOADS: u64 = Cr0::PG.bits() | Cr0::CD.bits() | Cr0::NW.bits();
        const CR4_LOADS: u64 = Cr4::PAE.bits() | Cr4::PGE.bits() | Cr4::PSE.bits() | Cr4::SMEP.bits();
        new.pae_paging() && ((self.cr0 ^ new.cr0) & CR0_LOADS != 0 || (self.cr4 ^ new.cr4) & CR4_LOADS != 0)
    }
}

/// Reserved bits of a page-directory pointer, below the physical-address width.
const POINTER_RESERVED: u64 = 0x1e6;

/// What CR0 has. The other bits below bit 32 are ignored, those above are reserved.
const CR0_DEFINED: Cr0 = Cr0::all();

/// Feature bits that a control-register bit comes with.
struct Gate {
    bits: u64,
    leaf: u32,
    subleaf: u32,
    register: Register,
    bit: u8,
}

const fn gate(bits: u64, leaf: u32, register: Register, bit: u8) -> Gate {
    Gate { bits, leaf, subleaf: 0, register, bit }
}

const CR4_GATES: &[Gate] = &[
    gate(Cr4::VME.bits() | Cr4::PVI.bits(), 1, Register::Edx, 1),
    gate(Cr4::TSD.bits(), 1, Register::Edx, 4),
    gate(Cr4::DE.bits(), 1, Register::Edx, 2),
    gate(Cr4::PSE.bits(), 1, Register::Edx, 3),
    gate(Cr4::PAE.bits(), 1, Register::Edx, 6),
    gate(Cr4::MCE.bits(), 1, Register::Edx, 7),
    gate(Cr4::PGE.bits(), 1, Register::Edx, 13),
    gate(Cr4::OSFXSR.bits(), 1, Register::Edx, 24),
    gate(Cr4::OSXMMEXCPT.bits(), 1, Register::Edx, 25),
    gate(Cr4::UMIP.bits(), 7, Register::Ecx, 2),
    gate(Cr4::LA57.bits(), 7, Register::Ecx, 16),
    gate(Cr4::FSGSBASE.bits(), 7, Register::Ebx, 0),
    gate(Cr4::PCIDE.bits(), 1, Register::Ecx, 17),
    gate(Cr4::OSXSAVE.bits(), 1, Register::Ecx, 26),
    gate(Cr4::SMEP.bits(), 7, Register::Ebx, 7),
    gate(Cr4::SMAP.bits(), 7, Register::Ebx, 20),
    gate(Cr4::PKE.bits(), 7, Register::Ecx, 3),
];

const EFER_GATES: &[Gate] = &[
    gate(Efer::SCE.bits(), 0x8000_0001, Register::Edx, 11),
    gate(Efer::LME.bits() | Efer::LMA.bits(), 0x8000_0001, Register::Edx, 29),
    gate(Efer::NXE.bits(), 0x8000_0001, Register::Edx, 20),
    gate(Efer::FFXSR.bits(), 0x8000_0001, Register::Edx, 25),
    gate(Efer::TCE.bits(), 0x8000_0001, Register::Ecx, 17),
    gate(Efer::AUTOIBRS.bits(), 0x8000_0021, Register::Eax, 8),
];

/// A bit of SPEC_CTRL that comes with a bit of leaf 7 subleaf 2 EDX.
const fn spec_gate(bits: u64, bit: u8) -> Gate {
    Gate { bits, leaf: 7, subleaf: 2, register: Register::Edx, bit }
}

/// SPEC_CTRL (SDM vol. 4, MSR 48H; APM vol. 2, section 3.2.9), by Intel's and by AMD's leaves.
const SPEC_CTRL_GATES: &[Gate] = &[
    gate(IBRS, 7, Register::Edx, 26),
    gate(IBRS, 0x8000_0008, Register::Ebx, 14),
    gate(STIBP, 7, Register::Edx, 27),
    gate(STIBP, 0x8000_0008, Register::Ebx, 15),
    gate(SSBD, 7, Register::Edx, 31),
    gate(SSBD, 0x8000_0008, Register::Ebx, 24),
    gate(PSFD, 0x8000_0008, Register::Ebx, 28),
    spec_gate(PSFD, 0),
    spec_gate(3 << 3, 1),
    spec_gate(3 << 5, 2),
    spec_gate(1 << 8, 3),
    spec_gate(1 << 10, 4),
];
const IBRS: u64 = 1 << 0;
const STIBP: u64 = 1 << 1;
const SSBD: u64 = 1 << 2;
const PSFD: u64 = 1 << 7;

/// PRED_CMD: IBPB, and AMD's SBPB.
const PRED_CMD_GATES: &[Gate] = &[
    gate(1 << 0, 7, Register::Edx, 26),
    gate(1 << 0, 0x8000_0008, Register::Ebx, 12),
    gate(1 << 7, 0x8000_0021, Register::Eax, 27),
];

/// EFER bits that only AMD defines.
const EFER_AMD: u64 = Efer::FFXSR.bits() | Efer::TCE.bits() | Efer::AUTOIBRS.bits();

fn granted(table: &CpuidTable, gates: &[Gate]) -> u64 {
    let open = gates.iter().filter(|gate| table.has(gate.leaf, gate.subleaf, gate.register, gate.bit));
    open.fold(0, |bits, gate| bits | gate.bits)
}

impl Limits {
    /// Nothing allowed: what a table under construction has.
    pub(crate) const NONE: Self =
        Self { cr4: 0, efer: 0, xcr0: 0, spec_ctrl: 0, pred_cmd: 0, physical_bits: 0, linear_bits: 48 };

    /// What follows from a table.
    pub(crate) fn of(table: &CpuidTable, xcr0: u64, physical_bits: u8) -> Self {
        // RDPMC is on every CPU; it exits, and the guest has no counter to read.
        let cr4 = granted(table, CR4_GATES) | Cr4::PCE.bits();
        let mut efer = granted(table, EFER_GATES);
        if table.vendor() == Vendor::Intel {
            efer &= !EFER_AMD;
        }
        let linear_bits = if cr4 & Cr4::LA57.bits() != 0 { 57 } else { 48 };
        let (spec_ctrl, pred_cmd) = (granted(table, SPEC_CTRL_GATES), granted(table, PRED_CMD_GATES));
        Self { cr4, efer, xcr0, spec_ctrl, pred_cmd, physical_bits: physical_bits.min(52), linear_bits }
    }

    /// Whether CR0 may be set to `new`; returns what it then reads, with the fixed and ignored bits as hardware has
    /// them. Setting EFER.LMA along with PG is the caller's.
    ///
    /// # Errors
    /// Bits above 31; PG without PE, NW without CD; PG set with LME but without PAE, with 64-bit code, or with a 16-bit
    /// TSS (SDM vol. 3, section 10.8.5); PG cleared in 64-bit code or with PCIDE.
    pub const fn check_cr0(&self, new: u64, context: &Cr0Context) -> Result<u64, GeneralProtection> {
        let (pg, pe) = (Cr0::PG.bits(), Cr0::PE.bits());
        if new >> 32 != 0
            || (new & pg != 0 && new & pe == 0)
            || (new & Cr0::NW.bits() != 0 && new & Cr0::CD.bits() == 0)
        {
            return Err(GeneralProtection);
        }
        let paging_starts = new & pg != 0 && context.old & pg == 0;
        let paging_ends = new & pg == 0 && context.old & pg != 0;
        let long = context.efer & Efer::LME.bits() != 0;
        let ready = context.cr4 & Cr4::PAE.bits() != 0 && !context.long_code && !context.task_16;
        if paging_starts && long && !ready {
            return Err(GeneralProtection);
        }
        let code_64 = context.efer & Efer::LMA.bits() != 0 && context.long_code;
        if paging_ends && (code_64 || context.cr4 & Cr4::PCIDE.bits() != 0) {
            return Err(GeneralProtection);
        }
        Ok(new & CR0_DEFINED.bits() | Cr0::ET.bits())
    }

    /// Whether CR4 may be set to `new`.
    ///
    /// # Errors
    /// Reserved bits; PAE cleared or LA57 changed in long mode; PCIDE set outside long mode or with a PCID in CR3.
    pub const fn check_cr4(&self, new: u64, context: &Cr4Context) -> Result<(), GeneralProtection> {
        if new & !self.cr4 != 0 {
            return Err(GeneralProtection);
        }
        let changed = new ^ context.old;
        let long = context.efer & Efer::LMA.bits() != 0;
        if long && (new & Cr4::PAE.bits() == 0 || changed & Cr4::LA57.bits() != 0) {
            return Err(GeneralProtection);
        }
        let pcid_starts = changed & new & Cr4::PCIDE.bits() != 0;
        if pcid_starts && (!long || context.cr3 & 0xfff != 0) {
            return Err(GeneralProtection);
        }
        Ok(())
    }

    /// Whether page-directory pointers may be loaded (SDM vol. 3, table 4-8).
    ///
    /// # Errors
    /// Reserved bits in one that is present.
    pub fn check_pointers(&self, pointers: &[u64; 4]) -> Result<(), GeneralProtection> {
        let reserved = POINTER_RESERVED | self.reserved_physical();
        if pointers.iter().any(|entry| entry & 1 != 0 && entry & reserved != 0) {
            return Err(GeneralProtection);
        }
        Ok(())
    }

    /// Whether EFER may be written with `new`; returns what it then reads. LMA is not writable: it keeps its value,
    /// whatever is written.
    ///
    /// # Errors
    /// Reserved bits, SVME among them; LME changed while paging is on.
    pub const fn check_efer(&self, old: u64, new: u64, cr0: u64) -> Result<u64, GeneralProtection> {
        let lma = Efer::LMA.bits();
        if new & !(self.efer | lma) != 0 {
            return Err(GeneralProtection);
        }
        if (old ^ new) & Efer::LME.bits() != 0 && cr0 & Cr0::PG.bits() != 0 {
            return Err(GeneralProtection);
        }
        Ok(new & !lma | old & lma)
    }

    /// Whether XSETBV may write `value` to register `index` (ECX). CPL and CR4.OSXSAVE are the caller's to check.
    ///
    /// # Errors
    /// A register other than XCR0; components that the guest does not have, or that need others.
    pub const fn check_xcr(&self, index: u32, value: u64) -> Result<(), GeneralProtection> {
        if index == 0 && Xcr0::is_valid(value, self.xcr0) { Ok(()) } else { Err(GeneralProtection) }
    }

    /// Whether a linear address is canonical for a vCPU with this CR4.
    #[must_use]
    pub const fn is_canonical(&self, address: u64, cr4: u64) -> bool {
        let bits = if cr4 & Cr4::LA57.bits() != 0 { 57 } else { 48 };
        Self::sign_extended(address, bits)
    }

    /// Whether an MSR that holds a linear address takes this one. Such MSRs take whatever the widest mode of the CPU
    /// can address, whatever CR4.LA57 is: the check goes by the width that CPUID announces.
    #[must_use]
    pub const fn is_msr_canonical(&self, address: u64) -> bool {
        Self::sign_extended(address, self.linear_bits)
    }

    const fn sign_extended(address: u64, bits: u8) -> bool {
        let shift = 64 - bits as u32;
        (((address << shift) as i64) >> shift) as u64 == address
    }

    /// The bits of a physical address that are reserved.
    #[must_use]
    pub const fn reserved_physical(&self) -> u64 {
        !0 << self.physical_bits
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpuid::tests::{epyc, setup, xeon};

    const PE_PG: u64 = Cr0::PE.bits() | Cr0::PG.bits();

    fn limits() -> Limits {
        *CpuidTable::build(&setup(2), xeon).limits()
    }

    #[test]
    fn limits_follow_from_the_leaves() {
        let intel = limits();
        assert_eq!(intel.xcr0, 0x2e7);
        assert_eq!(intel.efer, 0xd01, "SCE, LME, LMA, NXE");
        let expected = Cr4::all() - Cr4::VMXE - Cr4::SMXE - Cr4::KL - Cr4::CET - Cr4::PKS;
        assert_eq!(intel.cr4, expected.bits());
        assert_eq!((intel.spec_ctrl, intel.pred_cmd), (0, 0));
        let mut carried = setup(1);
        carried.caps.spec_ctrl = true;
        let spec = *CpuidTable::build(&carried, xeon).limits();
        assert_eq!((spec.spec_ctrl, spec.pred_cmd), (0x5ff, 1));
        let amd = CpuidTable::build(&setup(1), epyc);
        assert_eq!(amd.limits().xcr0, 7);
        assert_eq!(amd.limits().cr4 & (Cr4::VME | Cr4::PKE | Cr4::UMIP | Cr4::PCIDE).bits(), 0);
        assert_eq!(amd.limits().physical_bits, 40);
        assert_eq!(amd.limits().reserved_physical(), 0xffff_ff00_0000_0000);
    }

    #[test]
    fn cr0() {
        let l = limits();
        let real = Cr0Context { old: 0x10, cr4: 0, efer: 0, long_code: false, task_16: false };
        assert_eq!(l.check_cr0(PE_PG, &real), Ok(PE_PG | Cr0::ET.bits()));
        assert_eq!(l.check_cr0(0x1000_ffc0, &real), Ok(0x10), "undefined bits below 32 are ignored");
        let wrong = [1 << 32, Cr0::PG.bits(), Cr0::NW.bits()];
        for value in wrong {
            assert_eq!(l.check_cr0(value, &real), Err(GeneralProtection), "{value:#x}");
        }
        let entering = Cr0Context { efer: Efer::LME.bits(), ..real };
        assert!(l.check_cr0(PE_PG, &entering).is_err(), "no PAE");
        let entering = Cr0Context { cr4: Cr4::PAE.bits(), ..entering };
        assert!(l.check_cr0(PE_PG, &entering).is_ok());
        assert!(l.check_cr0(PE_PG, &Cr0Context { long_code: true, ..entering }).is_err());
        assert!(l.check_cr0(PE_PG, &Cr0Context { task_16: true, ..entering }).is_err());
        assert!(l.check_cr0(PE_PG, &Cr0Context { task_16: true, efer: 0, ..entering }).is_ok());
        let efer = (Efer::LME | Efer::LMA).bits();
        let long = Cr0Context { old: PE_PG, cr4: Cr4::PAE.bits(), efer, ..real };
        assert!(l.check_cr0(1, &long).is_ok(), "leaving from compatibility mode");
        assert!(l.check_cr0(1, &Cr0Context { long_code: true, ..long }).is_err());
        assert!(l.check_cr0(1, &Cr0Context { cr4: (Cr4::PAE | Cr4::PCIDE).bits(), ..long }).is_err());
    }

    #[test]
    fn cr4() {
        let l = limits();
        let pae = Cr4::PAE.bits();
        let legacy = Cr4Context { old: 0, cr3: 0, efer: 0 };
        let long = Cr4Context { old: pae, cr3: 0x1000, efer: (Efer::LME | Efer::LMA).bits() };
        assert!(l.check_cr4(Cr4::VMXE.bits(), &legacy).is_err());
        assert!(l.check_cr4(1 << 40, &legacy).is_err());
        assert!(l.check_cr4(pae | Cr4::LA57.bits(), &legacy).is_ok());
        assert!(l.check_cr4(pae | Cr4::LA57.bits(), &long).is_err());
        assert!(l.check_cr4(0, &long).is_err());
        assert!(l.check_cr4(pae | Cr4::PCIDE.bits(), &long).is_ok());
        assert!(l.check_cr4(pae | Cr4::PCIDE.bits(), &Cr4Context { cr3: 0x1001, ..long }).is_err());
        assert!(l.check_cr4(pae | Cr4::PCIDE.bits(), &legacy).is_err());
        let on = Cr4Context { old: pae | Cr4::PCIDE.bits(), cr3: 0x1001, ..long };
        assert!(l.check_cr4(on.old, &on).is_ok(), "a PCID may be in use once PCIDE is on");
    }

    #[test]
    fn efer() {
        let l = limits();
        let (lme, lma) = (Efer::LME.bits(), Efer::LMA.bits());
        assert_eq!(l.check_efer(0, lme, 0), Ok(lme));
        assert_eq!(l.check_efer(0, lme | lma, 0), Ok(lme), "LMA is not writable");
        assert_eq!(l.check_efer(lme | lma, lme, PE_PG), Ok(lme | lma));
        assert_eq!(l.check_efer(lme | lma, lma, PE_PG), Err(GeneralProtection));
        assert_eq!(l.check_efer(0, Efer::SVME.bits(), 0), Err(GeneralProtection));
        assert_eq!(Limits { efer: 1, ..l }.check_efer(0, Efer::NXE.bits(), 0), Err(GeneralProtection));
    }

    #[test]
    fn xcr0_and_addresses() {
        let l = limits();
        assert!(l.check_xcr(0, 7).is_ok());
        assert!(l.check_xcr(1, 7).is_err());
        assert!(l.check_xcr(0, 0x18).is_err());
        assert!(l.is_canonical(0xffff_8000_0000_0000, 0));
        assert!(!l.is_canonical(0x0000_8000_0000_0000, 0));
        assert!(l.is_canonical(0x00ff_0000_0000_0000, Cr4::LA57.bits()));
        assert!(l.is_msr_canonical(0x00ff_0000_0000_0000));
        assert!(!CpuidTable::build(&setup(1), epyc).limits().is_msr_canonical(0x00ff_0000_0000_0000));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_allowed(new: u64, old: u64, cr0: u64, cr3: u64, cr4: u64, long_code: bool) {
            let l = limits();
            if let Ok(efer) = l.check_efer(old & l.efer, new, cr0) {
                prop_assert_eq!(efer & !l.efer, 0);
                prop_assert_eq!((efer ^ old) & Efer::LMA.bits() & l.efer, 0);
            }
            if l.check_cr4(new, &Cr4Context { old: cr4, cr3, efer: old }).is_ok() {
                prop_assert_eq!(new & !l.cr4, 0);
            }
            if let Ok(value) = l.check_cr0(new, &Cr0Context { old: cr0, cr4, efer: old, long_code, task_16: false }) {
                prop_assert!(value >> 32 == 0 && value & Cr0::ET.bits() != 0);
            }
        }
    }
}
