//! MSRs of a guest that the VMCB or the vCPU switch carries.

use caisson_x86::{SegmentRegister, msr};

use caisson_hwvirt::VcpuState;

use crate::vcpu::SvmVcpu;

impl SvmVcpu {
    pub(crate) fn carried_msr(&self, number: u32) -> Option<u64> {
        let vmcb = &self.vmcb;
        Some(match number {
            msr::STAR => vmcb.star(),
            msr::LSTAR => vmcb.lstar(),
            msr::CSTAR => vmcb.cstar(),
            msr::SFMASK => vmcb.sfmask(),
            msr::KERNEL_GS_BASE => vmcb.kernel_gs_base(),
            msr::FS_BASE => vmcb.fs().base,
            msr::GS_BASE => vmcb.gs().base,
            msr::SYSENTER_CS => vmcb.sysenter_cs(),
            msr::SYSENTER_ESP => vmcb.sysenter_esp(),
            msr::SYSENTER_EIP => vmcb.sysenter_eip(),
            msr::PAT => vmcb.guest_pat(),
            msr::DEBUGCTL => vmcb.debugctl(),
            msr::TSC_AUX if self.shared.carried.rdtscp => self.context.tsc_aux(),
            _ => return None,
        })
    }

    pub(crate) fn set_carried_msr(&mut self, number: u32, value: u64) -> bool {
        let base = |vcpu: &mut Self, register| {
            let segment = vcpu.segment(register);
            vcpu.set_segment(register, caisson_x86::Segment { base: value, ..segment });
        };
        match number {
            msr::STAR => self.vmcb.set_star(value),
            msr::LSTAR => self.vmcb.set_lstar(value),
            msr::CSTAR => self.vmcb.set_cstar(value),
            msr::SFMASK => self.vmcb.set_sfmask(value),
            msr::KERNEL_GS_BASE => self.vmcb.set_kernel_gs_base(value),
            msr::FS_BASE => base(self, SegmentRegister::Fs),
            msr::GS_BASE => base(self, SegmentRegister::Gs),
            msr::SYSENTER_CS => self.vmcb.set_sysenter_cs(value),
            msr::SYSENTER_ESP => self.vmcb.set_sysenter_esp(value),
            msr::SYSENTER_EIP => self.vmcb.set_sysenter_eip(value),
            msr::PAT => self.vmcb.set_guest_pat(value),
            msr::DEBUGCTL => self.vmcb.set_debugctl(value),
            msr::TSC_AUX if self.shared.carried.rdtscp => self.context.set_tsc_aux(value),
            _ => return false,
        }
        true
    }
}
