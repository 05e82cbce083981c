//! CR0 and CR4: which bits are the guest's, and what it reads in the others (SDM vol. 3, sections 25.6.6 and 26.1.3).
//!
//! The guest owns every bit that changes nothing outside of it, paging and protection among them, so that the CPU itself
//! makes all checks, keeps EFER.LMA and loads page-directory pointers. Caisson owns what VMX operation fixes, what would
//! act on the host (CD, NW, MCE), and what the guest's CPUID does not announce.

use caisson_hwvirt::VcpuState;
use caisson_x86::{CpuMode, Cr0, Cr4, Efer, Gpr};

use crate::vcpu::{EXITING_EXCEPTIONS, VmxVcpu};
use crate::vmcs::Register;

/// CR0 bits that the guest does not own: NE is fixed in VMX operation, and caches are the host's.
pub(crate) const CR0_HOST: u64 = Cr0::NE.bits() | Cr0::CD.bits() | Cr0::NW.bits();
/// CR4 bits that a guest may set and does not own: a machine check is the host's.
const CR4_VIRTUAL: u64 = Cr4::MCE.bits();
/// #MF in the exception bitmap.
const X87_ERROR: u32 = 1 << 16;
/// Access types of the exit qualification (table 28-3).
const MOV_TO: u64 = 0;

impl VmxVcpu {
    /// The CR4 bits that the guest owns, out of those that it may set.
    pub(crate) const fn owned_cr4(allowed: u64) -> u64 {
        allowed & !(CR4_VIRTUAL | Cr4::VMXE.bits() | Cr4::SMXE.bits())
    }

    pub(crate) fn guest_cr0(&self) -> u64 {
        self.vmcs.get(Register::Cr0) & !CR0_HOST | self.vmcs.get(Register::Cr0Shadow) & CR0_HOST
    }

    pub(crate) fn write_guest_cr0(&mut self, value: u64) {
        let fixed = self.shared.caps.cr0.0 & !(Cr0::PE | Cr0::PG).bits();
        self.vmcs.set(Register::Cr0, value & !CR0_HOST | fixed);
        self.shadow_cr0(value);
    }

    /// What the guest reads in the host's bits. VMX operation fixes NE: where the guest has it clear, #MF exits, so that
    /// it can be the interrupt that the guest expects.
    fn shadow_cr0(&mut self, value: u64) {
        self.vmcs.set(Register::Cr0Shadow, value & CR0_HOST);
        let x87 = if value & Cr0::NE.bits() == 0 { X87_ERROR } else { 0 };
        self.vmcs.set(Register::Exceptions, u64::from(EXITING_EXCEPTIONS | x87));
    }

    pub(crate) fn guest_cr4(&self) -> u64 {
        let owned = self.cr4_owned;
        self.vmcs.get(Register::Cr4) & owned | self.vmcs.get(Register::Cr4Shadow) & !owned
    }

    pub(crate) fn write_guest_cr4(&mut self, value: u64) {
        let owned = self.cr4_owned;
        let host = self.shared.caps.cr4.0 | Cr4::VMXE.bits() | self.shared.host.cr4 & CR4_VIRTUAL;
        self.vmcs.set(Register::Cr4, value & owned | host);
        self.vmcs.set(Register::Cr4Shadow, value & !owned);
    }

    /// Answers a MOV to CR0 or CR4 that sets a bit of the host's and at once starts or changes PAE paging: the page-directory
    /// pointers are the CPU's to load, so it shall execute the instruction itself, with the shadow as the guest wants it.
    /// `false`: the exit is the core's to answer.
    pub(crate) fn leave_to_cpu(&mut self) -> bool {
        let qualification = self.vmcs.get(Register::Qualification);
        if qualification >> 4 & 3 != MOV_TO {
            return false;
        }
        let mut value = self.gpr(Gpr::from_encoding((qualification >> 8) as u8));
        if self.mode() != CpuMode::Long64 {
            value &= 0xffff_ffff;
        }
        let state =
            Paging { cr0: self.guest_cr0(), cr4: self.guest_cr4(), efer: self.vmcs.get(Register::Efer) };
        match qualification & 15 {
            0 if state.cr0_starts_pae(value) => self.shadow_cr0(value),
            4 if state.cr4_keeps_pae(value, self.cr4_owned) => {
                self.vmcs.set(Register::Cr4Shadow, value & !self.cr4_owned);
            }
            _ => return false,
        }
        true
    }
}

/// What decides about paging, as the guest sees it.
#[derive(Clone, Copy, Debug)]
struct Paging {
    cr0: u64,
    cr4: u64,
    efer: u64,
}

impl Paging {
    /// Whether CR0 may be set to `value`, and PAE paging starts with it (SDM vol. 3, section 4.4.1).
    fn cr0_starts_pae(self, value: u64) -> bool {
        let (pg, pe) = (Cr0::PG.bits(), Cr0::PE.bits());
        let caches = value & (Cr0::CD | Cr0::NW).bits();
        let valid = value >> 32 == 0 && value & pe != 0 && caches != Cr0::NW.bits();
        let starts = self.cr0 & pg == 0 && value & pg != 0;
        valid && starts && self.cr4 & Cr4::PAE.bits() != 0 && self.efer & Efer::LME.bits() == 0
    }

    /// Whether CR4 may be set to `value` by a guest that owns the bits `owned`, and PAE paging is in effect afterwards.
    fn cr4_keeps_pae(self, value: u64, owned: u64) -> bool {
        let valid = value & !(owned | CR4_VIRTUAL) == 0;
        let paging = self.cr0 & Cr0::PG.bits() != 0 && self.efer & Efer::LMA.bits() == 0;
        valid && paging && value & Cr4::PAE.bits() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: Paging = Paging { cr0: 0x6000_0010, cr4: 0x20, efer: 0 };

    #[test]
    fn the_cpu_starts_pae_paging_with_the_caches() {
        assert!(REAL.cr0_starts_pae(0x8000_0011));
        assert!(REAL.cr0_starts_pae(0xc000_0031));
        // The core answers these: no paging, a bad combination, 32-bit paging, long mode.
        for value in [0x11, 0x8000_0010, 0xa000_0011, 0x1_8000_0011] {
            assert!(!REAL.cr0_starts_pae(value), "{value:#x}");
        }
        assert!(!Paging { cr4: 0, ..REAL }.cr0_starts_pae(0x8000_0011));
        assert!(!Paging { efer: 0x100, ..REAL }.cr0_starts_pae(0x8000_0011));
        assert!(!Paging { cr0: 0x8000_0011, ..REAL }.cr0_starts_pae(0xc000_0011));
    }

    #[test]
    fn the_cpu_loads_pointers_with_machine_checks_on() {
        let paging = Paging { cr0: 0x8000_0011, cr4: 0, efer: 0 };
        let owned = VmxVcpu::owned_cr4(0x6ff | Cr4::VMXE.bits());
        assert_eq!(owned, 0x6ff & !0x40);
        assert!(paging.cr4_keeps_pae(0x60, owned));
        assert!(!paging.cr4_keeps_pae(0x40, owned), "32-bit paging has no pointers");
        assert!(!paging.cr4_keeps_pae(0x2060, owned), "VMXE is reserved");
        assert!(!Paging { efer: 0x500, ..paging }.cr4_keeps_pae(0x60, owned));
        assert!(!REAL.cr4_keeps_pae(0x60, owned));
    }
}
