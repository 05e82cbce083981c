//! CR0 and CR4: which bits are the guest's, and what it reads in the others (SDM vol. 3, sections 25.6.6 and 26.1.3).
//!
//! The guest owns every bit that changes nothing outside of it, paging and protection among them, so that the CPU itself
//! makes all checks, keeps EFER.LMA and loads page-directory pointers; where a write exits, the core does it. Caisson owns what VMX operation fixes, what would
//! act on the host (CD, NW, MCE), and what the guest's CPUID does not announce.

use caisson_x86::{Cr0, Cr4};

use crate::vcpu::{EXITING_EXCEPTIONS, VmxVcpu};
use crate::vmcs::Register;

/// CR0 bits that the guest does not own: NE is fixed in VMX operation, and caches are the host's.
pub(crate) const CR0_HOST: u64 = Cr0::NE.bits() | Cr0::CD.bits() | Cr0::NW.bits();
/// CR4 bits that a guest may set and does not own: a machine check is the host's.
const CR4_VIRTUAL: u64 = Cr4::MCE.bits();
/// #MF in the exception bitmap.
const X87_ERROR: u32 = 1 << 16;

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
        let host = self.shared.caps.cr4.0 | Cr4::VMXE.bits() | self.vmcs.cpu().host.cr4 & CR4_VIRTUAL;
        self.vmcs.set(Register::Cr4, value & owned | host);
        self.vmcs.set(Register::Cr4Shadow, value & !owned);
    }
}
