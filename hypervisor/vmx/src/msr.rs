//! MSRs of a guest that the VMCS or the vCPU switch carries.

use caisson_x86::msr;
use caisson_x86::vmx::field;

use crate::vcpu::VmxVcpu;

impl VmxVcpu {
    pub(crate) fn carried_msr(&self, number: u32) -> Option<u64> {
        let vmcs = &self.vmcs;
        Some(match number {
            msr::FS_BASE => vmcs.read(field::GUEST_FS_BASE),
            msr::GS_BASE => vmcs.read(field::GUEST_GS_BASE),
            msr::SYSENTER_CS => u64::from(vmcs.read(field::GUEST_SYSENTER_CS)),
            msr::SYSENTER_ESP => vmcs.read(field::GUEST_SYSENTER_ESP),
            msr::SYSENTER_EIP => vmcs.read(field::GUEST_SYSENTER_EIP),
            msr::PAT => vmcs.read(field::GUEST_PAT),
            msr::TSC_AUX if !self.shared.carried.rdtscp => return None,
            _ => return self.context.msr(number),
        })
    }

    pub(crate) fn set_carried_msr(&mut self, number: u32, value: u64) -> bool {
        let vmcs = &self.vmcs;
        match number {
            msr::FS_BASE => vmcs.write(field::GUEST_FS_BASE, value),
            msr::GS_BASE => vmcs.write(field::GUEST_GS_BASE, value),
            // The CPU keeps 32 bits of it.
            msr::SYSENTER_CS => vmcs.write(field::GUEST_SYSENTER_CS, value as u32),
            msr::SYSENTER_ESP => vmcs.write(field::GUEST_SYSENTER_ESP, value),
            msr::SYSENTER_EIP => vmcs.write(field::GUEST_SYSENTER_EIP, value),
            msr::PAT => vmcs.write(field::GUEST_PAT, value),
            msr::TSC_AUX if !self.shared.carried.rdtscp => return false,
            _ => return self.context.set_msr(number, value),
        }
        true
    }
}
