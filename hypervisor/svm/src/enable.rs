//! Turning SVM on (APM vol. 2, section 15.4).

use alloc::boxed::Box;
use alloc::sync::Arc;

use caisson_frames::Owner;
use caisson_hwvirt::{Backend, EnableError, MsrPassthrough, Policy, VcpuSetup};
use caisson_machine::acpi::MAX_CPUS;
use caisson_machine::context::Carried;
use caisson_machine::cpu::{Features, cpuid, probe_msr, read_msr, write_msr};
use caisson_machine::memory::PageBox;
use caisson_machine::percpu;
use caisson_types::VcpuId;
use caisson_x86::svm::{MSR_MAP_BYTES, MsrIntercept, PORT_MAP_BYTES, SvmFeatures, Vmcb, msr_map_bit};
use caisson_x86::{Efer, msr};
use spin::Once;

use crate::asid::Asids;
use crate::vcpu::SvmVcpu;

const SVM_LEAF: u32 = 0x8000_000a;

/// What all vCPUs share: read by the CPU, never written after start.
pub(crate) struct Shared {
    pub(crate) features: SvmFeatures,
    /// Every port exits.
    pub(crate) port_map: PageBox<[u8; PORT_MAP_BYTES]>,
    /// Which MSRs exit.
    pub(crate) msr_map: PageBox<[u8; MSR_MAP_BYTES]>,
    /// What is swapped beside the VMCB.
    pub(crate) carried: Carried,
    /// The CPU has IBPB (Fn8000_0008 EBX bit 12).
    pub(crate) prediction_barrier: bool,
    /// The CPU is QEMU's translator, which may deliver an interrupt of EVENTINJ a second time, at any instruction before the next exit.
    pub(crate) repeats_interrupts: bool,
    /// RDX after reset: the CPU's signature (Fn0000_0001 EAX).
    pub(crate) signature: u32,
    /// What belongs to each CPU that SVM is on on, by its number.
    cpus: Box<[Once<&'static Cpu>]>,
}

impl Shared {
    /// What belongs to this CPU.
    ///
    /// # Panics
    /// Where SVM is not on: a bug of Caisson's.
    #[inline]
    pub(crate) fn this_cpu(&self) -> &'static Cpu {
        #[allow(clippy::expect_used)]
        self.cpus
            .get(percpu::current().index() as usize)
            .and_then(Once::get)
            .expect("SVM is turned on on every CPU that runs vCPUs")
    }
}

/// What belongs to one CPU, for as long as Caisson runs.
pub(crate) struct Cpu {
    /// The host's FS, GS, TR, LDTR and SYSCALL state, as VMSAVE stored it.
    pub(crate) host: PageBox<Vmcb>,
    pub(crate) asids: Asids,
    host_save_area: PageBox<[u8; 4096]>,
}

/// AMD-V.
pub struct Svm {
    shared: Arc<Shared>,
    /// The boot CPU, and what it announces.
    host: Features,
    announced: SvmFeatures,
    policy_xcr0: u64,
    lfence_serializes: bool,
}

impl Svm {
    /// The SVM features that CPUID announces, or `None` without SVM.
    #[must_use]
    pub fn features(cpu: &Features) -> Option<SvmFeatures> {
        (cpu.svm && cpu.max_extended >= SVM_LEAF)
            .then(|| SvmFeatures::from_bits_retain(cpuid(SVM_LEAF, 0).edx))
    }

    /// Turns SVM on on the boot CPU, with every optional feature that is announced and not in `without`.
    ///
    /// # Errors
    /// [`EnableError`] in words for the person at the machine.
    ///
    /// # Safety
    /// Once. The host's segment and SYSCALL state must not change afterwards.
    pub unsafe fn enable(
        cpu: &Features,
        without: SvmFeatures,
        policy: &Policy<'_>,
    ) -> Result<Self, EnableError> {
        let features = Self::features(cpu).ok_or(EnableError::NotSupported)?;
        allowed()?;
        if !features.contains(SvmFeatures::NESTED_PAGING) {
            return Err(EnableError::NoNestedPaging);
        }
        let extended_8 = if cpu.max_extended >= 0x8000_0008 { cpuid(0x8000_0008, 0).ebx } else { 0 };
        let shared = Shared {
            features: features - (without - SvmFeatures::NESTED_PAGING),
            port_map: port_map()?,
            msr_map: msr_map(policy.passthrough)?,
            // SAFETY: promised by the caller; Caisson itself uses no vector state.
            carried: unsafe { Carried::enable(cpu, policy.xcr0) },
            prediction_barrier: extended_8 & 1 << 12 != 0,
            repeats_interrupts: is_translated(),
            signature: cpuid(1, 0).eax,
            cpus: (0..MAX_CPUS).map(|_| Once::new()).collect(),
        };
        let lfence_serializes = make_lfence_serialize(shared.signature);
        // SAFETY: promised by the caller.
        let this = unsafe { start(&shared)? };
        shared.cpus[percpu::current().index() as usize].call_once(|| this);
        Ok(Self {
            shared: Arc::new(shared),
            host: *cpu,
            announced: features,
            policy_xcr0: policy.xcr0,
            lfence_serializes,
        })
    }

    /// Whether LFENCE serialises, which [`Svm::enable`] sees to where the CPU lets it.
    #[must_use]
    pub fn lfence_serializes(&self) -> bool {
        self.lfence_serializes
    }

    /// The optional features that are in use.
    #[must_use]
    pub fn used(&self) -> SvmFeatures {
        self.shared.features
    }
}

/// Whether this is QEMU's translator, by the name in the leaves that are kept for software below (APM vol. 3, Fn4000_00xx).
fn is_translated() -> bool {
    let name = cpuid(0x4000_0000, 0);
    let below = cpuid(1, 0).ecx & 1 << 31 != 0;
    below
        && [name.ebx, name.ecx, name.edx]
            == [u32::from_le_bytes(*b"TCGT"), u32::from_le_bytes(*b"CGTC"), u32::from_le_bytes(*b"GTCG")]
}

/// Whether the firmware has left SVM on, by VM_CR (APM vol. 2, section 15.30.1), which an emulated CPU may lack.
fn check_lock(vm_cr: Option<u64>) -> Result<(), EnableError> {
    match vm_cr.unwrap_or(0) & msr::VM_CR_SVMDIS {
        0 => Ok(()),
        _ => Err(EnableError::DisabledByFirmware),
    }
}

/// Whether the firmware of this CPU has left SVM on.
fn allowed() -> Result<(), EnableError> {
    // SAFETY: reading it changes nothing. A CPU with SVM has VM_CR; an emulated one may lack it, and with it the lock.
    check_lock(unsafe { probe_msr(msr::VM_CR) })
}

/// Turns SVM on on this CPU.
///
/// # Safety
/// Once on each CPU, which has SVM. The host's segment and SYSCALL state must not change afterwards.
unsafe fn start(shared: &Shared) -> Result<&'static Cpu, EnableError> {
    let page = || PageBox::<[u8; 4096]>::zeroed(Owner::Hypervisor).ok_or(EnableError::OutOfMemory);
    let cpu = Cpu {
        host: PageBox::zeroed(Owner::Hypervisor).ok_or(EnableError::OutOfMemory)?,
        asids: Asids::new(cpuid(SVM_LEAF, 0).ebx),
        host_save_area: page()?,
    };
    // SAFETY: SVM is there and not disabled; the pages are Caisson's for ever.
    unsafe {
        write_msr(msr::EFER, read_msr(msr::EFER) | Efer::SVME.bits());
        write_msr(msr::VM_HSAVE_PA, cpu.host_save_area.hpa().as_u64());
        core::arch::asm!("vmsave rax", in("rax") cpu.host.hpa().as_u64(), options(nostack, preserves_flags));
    }
    let _ = make_lfence_serialize(shared.signature);
    Ok(Box::leak(Box::new(cpu)))
}

/// Makes LFENCE wait for all earlier instructions, on which guests' defences against Spectre rest: DE_CFG bit 1 (AMD,
/// "Software Techniques for Managing Speculation"). `signature` is Fn0000_0001 EAX.
fn make_lfence_serialize(signature: u32) -> bool {
    const SERIALIZE: u64 = 1 << 1;
    let family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
    // Families 0Fh and 11h lack the register; LFENCE always serialises there.
    if family < 0x10 || family == 0x11 {
        return true;
    }
    // SAFETY: these families have the register; the bit only makes LFENCE slower. An emulator may ignore the write, or lack
    // the register.
    unsafe {
        let Some(config) = probe_msr(msr::DE_CFG) else { return false };
        write_msr(msr::DE_CFG, config | SERIALIZE);
        read_msr(msr::DE_CFG) & SERIALIZE != 0
    }
}

fn port_map() -> Result<PageBox<[u8; PORT_MAP_BYTES]>, EnableError> {
    let mut map =
        PageBox::<[u8; PORT_MAP_BYTES]>::zeroed(Owner::Hypervisor).ok_or(EnableError::OutOfMemory)?;
    map.fill(0xff);
    Ok(map)
}

fn msr_map(passthrough: &[MsrPassthrough]) -> Result<PageBox<[u8; MSR_MAP_BYTES]>, EnableError> {
    let mut map =
        PageBox::<[u8; MSR_MAP_BYTES]>::zeroed(Owner::Hypervisor).ok_or(EnableError::OutOfMemory)?;
    map.fill(0xff);
    for pass in passthrough {
        let intercept = match (pass.read, pass.write) {
            (true, true) => MsrIntercept::None,
            (true, false) => MsrIntercept::Write,
            (false, true) => MsrIntercept::Read,
            (false, false) => MsrIntercept::ReadWrite,
        };
        if let Some(bit) = msr_map_bit(pass.number) {
            // Two bits at an even place never straddle a byte.
            map[bit / 8] &= !(3 << (bit % 8));
            map[bit / 8] |= intercept.bits() << (bit % 8);
        }
    }
    Ok(map)
}

impl Backend for Svm {
    type Vcpu = SvmVcpu;

    const NAME: &'static str = "AMD-V";

    fn enable_here(&self) -> Result<(), EnableError> {
        let place = &self.shared.cpus[percpu::current().index() as usize];
        if place.get().is_some() {
            return Ok(());
        }
        allowed()?;
        // SAFETY: once on this CPU, whose place is empty; what `Svm::enable` was promised holds for all CPUs. Caisson itself
        // uses no vector state.
        let (this, carried) =
            unsafe { (start(&self.shared)?, Carried::enable(&self.host, self.policy_xcr0)) };
        if carried != self.shared.carried || Self::features(&self.host) != Some(self.announced) {
            return Err(EnableError::Different);
        }
        place.call_once(|| this);
        Ok(())
    }

    fn create_vcpu(&self, id: VcpuId, setup: &VcpuSetup) -> Result<SvmVcpu, EnableError> {
        SvmVcpu::new(self.shared.clone(), id, setup).ok_or(EnableError::OutOfMemory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svm_that_the_firmware_disabled_is_left_alone() {
        for (vm_cr, allowed) in
            [(None, true), (Some(0), true), (Some(msr::VM_CR_LOCK), true), (Some(msr::VM_CR_SVMDIS), false)]
        {
            let expected = if allowed { Ok(()) } else { Err(EnableError::DisabledByFirmware) };
            assert_eq!(check_lock(vm_cr), expected, "{vm_cr:?}");
        }
        assert!(check_lock(Some(msr::VM_CR_SVMDIS | msr::VM_CR_LOCK)).is_err());
    }
}
