//! Turning VMX on (SDM vol. 3, sections 24.6 to 24.8), and what all vCPUs share.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::arch::asm;

use caisson_frames::Owner;
use caisson_hwvirt::{Backend, EnableError, MsrPassthrough, Policy, VcpuSetup, WriteTrace};
use caisson_machine::acpi::MAX_CPUS;
use caisson_machine::clock;
use caisson_machine::context::Carried;
use caisson_machine::cpu::{Features, cpuid, probe_msr, read_msr, write_msr};
use caisson_machine::memory::PageBox;
use caisson_machine::percpu;
use caisson_types::{Hpa, VcpuId};
use caisson_x86::vmx::{Capabilities, EptVpid, REGION_BYTES, VmxFeatures, msr_bitmap_bits};
use caisson_x86::{Cr4, msr};
use spin::Once;

use crate::apic;
use crate::backstop::Backstop;
use crate::caps::Controls;
use crate::vcpu::{TSC_FRACTION_BITS, VmxVcpu};
use crate::vmcs::Cpu;
use crate::vpid;

/// IA32_FEATURE_CONTROL (SDM vol. 3, section 24.7): locked until reset; VMX outside SMX.
const FEATURE_LOCK: u64 = 1 << 0;
const FEATURE_VMX: u64 = 1 << 2;

/// One CPU's state that every exit loads there; it does not change after start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostState {
    pub(crate) cr0: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) pat: u64,
    pub(crate) cs: u16,
    pub(crate) ss: u16,
    pub(crate) tr: u16,
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    pub(crate) tr_base: u64,
    pub(crate) gdt_base: u64,
    pub(crate) idt_base: u64,
}

/// What all vCPUs share: read by the CPU, never written after start.
pub(crate) struct Shared {
    pub(crate) features: VmxFeatures,
    pub(crate) caps: Capabilities,
    pub(crate) controls: Controls,
    /// Which MSRs exit.
    pub(crate) msr_bitmap: PageBox<[u8; REGION_BYTES]>,
    /// The same for a guest whose x2APIC MSRs are in its virtual-APIC page.
    pub(crate) x2apic_bitmap: Option<PageBox<[u8; REGION_BYTES]>>,
    /// The page of which accesses are virtualised; nothing ever reaches it.
    pub(crate) apic_access: Option<PageBox<[u8; REGION_BYTES]>>,
    /// What is swapped beside the VMCS.
    pub(crate) carried: Carried,
    /// The CPU has IBPB (leaf 7 EDX bit 26).
    pub(crate) prediction_barrier: bool,
    /// RDX after reset: the CPU's signature (leaf 1 EAX).
    pub(crate) signature: u32,
    /// How the preemption timer is set.
    pub(crate) backstop: Backstop,
    pub(crate) physical_bits: u8,
    /// What belongs to each CPU that VMX is on on, by its number.
    cpus: Box<[Once<&'static Cpu>]>,
}

impl Shared {
    /// What belongs to this CPU.
    ///
    /// # Panics
    /// Where VMX is not on: a bug of Caisson's.
    #[inline]
    pub(crate) fn this_cpu(&self) -> &'static Cpu {
        #[allow(clippy::expect_used)]
        self.cpus
            .get(percpu::current().index() as usize)
            .and_then(Once::get)
            .expect("VMX is turned on on every CPU that runs vCPUs")
    }
}

/// VT-x.
pub struct Vmx {
    shared: Arc<Shared>,
    /// The boot CPU.
    host: Features,
    policy_xcr0: u64,
}

impl Vmx {
    /// The optional features that the capability MSRs announce; none without VMX.
    #[must_use]
    pub fn features(cpu: &Features) -> VmxFeatures {
        if cpu.vmx { capabilities().features() } else { VmxFeatures::empty() }
    }

    /// Turns VMX on on the boot CPU, with every optional feature that the capability MSRs announce and that is not in
    /// `without`.
    ///
    /// # Errors
    /// [`EnableError`] in words for the person at the machine.
    ///
    /// # Safety
    /// Once, after traps, paging and clocks have been set up. The host's segments, descriptor tables and page
    /// tables must not change afterwards.
    pub unsafe fn enable(
        cpu: &Features,
        without: VmxFeatures,
        policy: &Policy<'_>,
    ) -> Result<Self, EnableError> {
        if !cpu.vmx {
            return Err(EnableError::NotSupported);
        }
        // SAFETY: the CPU has VMX.
        unsafe { allow_vmx()? };
        let caps = capabilities();
        if !caps.has_nested_paging() {
            return Err(EnableError::NoNestedPaging);
        }
        let mut without = without;
        if !caps.ept_vpid.contains(EptVpid::INVEPT_ALL) {
            without -= VmxFeatures::INVEPT_SINGLE;
        }
        let features = (caps.features() - without).consistent();
        let controls = Controls::choose(&caps, features)?;
        // SAFETY: promised by the caller; Caisson itself uses no vector state.
        let carried = unsafe { Carried::enable(cpu, policy.xcr0) };
        let rdtscp = carried.rdtscp && features.contains(VmxFeatures::RDTSCP);
        let x2apic_bitmap = match features.contains(VmxFeatures::X2APIC) {
            true => Some(msr_bitmap(policy.passthrough.iter().copied().chain(apic::x2apic_msrs(features)))?),
            false => None,
        };
        let apic_access = match features.contains(VmxFeatures::APIC_ACCESSES) {
            true => Some(zeroed()?),
            false => None,
        };
        let msr_bitmap = msr_bitmap(policy.passthrough.iter().copied())?;
        let leaf_7 = if cpu.max_leaf >= 7 { cpuid(7, 0).edx } else { 0 };
        let shared = Shared {
            features,
            caps,
            controls,
            msr_bitmap,
            x2apic_bitmap,
            apic_access,
            carried: Carried { rdtscp, ..carried },
            prediction_barrier: leaf_7 & 1 << 26 != 0,
            signature: cpuid(1, 0).eax,
            backstop: Backstop::new(clock::get().tsc_hz, caps.misc.preemption_timer_shift()),
            physical_bits: cpu.physical_bits,
            cpus: (0..MAX_CPUS).map(|_| Once::new()).collect(),
        };
        // SAFETY: VMX is allowed here, and on this CPU it was off.
        let this = unsafe { begin(&shared)? };
        shared.cpus[percpu::current().index() as usize].call_once(|| this);
        Ok(Self { shared: Arc::new(shared), host: *cpu, policy_xcr0: policy.xcr0 })
    }

    /// The microcode's revision, as RDMSR of IA32_BIOS_SIGN_ID gives it (SDM vol. 3, section 10.11.7.1); 0 where an
    /// emulated CPU lacks the MSR.
    #[must_use]
    pub fn microcode(&self) -> u64 {
        // SAFETY: the MSR only tells; CPUID leaf 1 loads it, if there is a revision, after software has cleared it.
        unsafe {
            if probe_msr(msr::BIOS_SIGN_ID).is_none() {
                return 0;
            }
            write_msr(msr::BIOS_SIGN_ID, 0);
            let _ = cpuid(1, 0);
            read_msr(msr::BIOS_SIGN_ID)
        }
    }

    /// The optional features that are in use.
    #[must_use]
    pub fn used(&self) -> VmxFeatures {
        self.shared.features
    }
}

/// What the capability MSRs of this CPU say, which has VMX.
fn capabilities() -> Capabilities {
    // SAFETY: a CPU with VMX has the MSRs that are asked for; reading changes nothing.
    Capabilities::read(|number| unsafe { read_msr(number) })
}

/// Allows VMX in IA32_FEATURE_CONTROL, and locks it where the firmware has left it open.
///
/// # Safety
/// The CPU has VMX.
unsafe fn allow_vmx() -> Result<(), EnableError> {
    // SAFETY: every CPU with VMX has the MSR.
    let control = unsafe { read_msr(msr::FEATURE_CONTROL) };
    if let Some(control) = feature_control(control)? {
        // SAFETY: it is not locked, and the CPU has VMX.
        unsafe { write_msr(msr::FEATURE_CONTROL, control) };
    }
    Ok(())
}

/// What IA32_FEATURE_CONTROL has to be written with, if with anything, so that VMXON works.
const fn feature_control(control: u64) -> Result<Option<u64>, EnableError> {
    match (control & FEATURE_LOCK != 0, control & FEATURE_VMX != 0) {
        (false, _) => Ok(Some(control | FEATURE_LOCK | FEATURE_VMX)),
        (true, true) => Ok(None),
        (true, false) => Err(EnableError::DisabledByFirmware),
    }
}

/// Enters VMX operation on this CPU, with nothing cached of earlier guests.
///
/// # Safety
/// Once on each CPU, where VMX is allowed.
unsafe fn begin(shared: &Shared) -> Result<&'static Cpu, EnableError> {
    let caps = &shared.caps;
    let mut vmxon = zeroed()?;
    vmxon[..4].copy_from_slice(&caps.basic.revision().to_le_bytes());
    // SAFETY: VMX is allowed, the region is Caisson's for as long as VMX is on and holds the revision.
    unsafe { start(caps, vmxon.hpa().as_u64())? };
    // SAFETY: VMX is on.
    unsafe {
        if shared.features.contains(VmxFeatures::VPID) {
            vpid::invalidate_all_vpids();
        }
        if caps.ept_vpid.contains(EptVpid::INVEPT_ALL) {
            vpid::invalidate_all_ept();
        }
    }
    // CR0 and CR4 are now what VMX operation asks for.
    Ok(Box::leak(Box::new(Cpu::new(HostState::current(), vmxon))))
}

/// Enters VMX operation: CR0 and CR4 as the CPU asks for, then VMXON.
///
/// # Safety
/// VMX is allowed, and the region at `vmxon` is the caller's for as long as VMX is on.
unsafe fn start(caps: &Capabilities, vmxon: u64) -> Result<(), EnableError> {
    let failed: u8;
    // SAFETY: the fixed bits are protection and paging, which are on, NE and VMXE; no feature that Caisson uses is among
    // those that VMX operation forbids. Promised by the caller for the rest.
    unsafe {
        asm!(
            "mov {t}, cr0", "or {t}, {must_0}", "and {t}, {may_0}", "mov cr0, {t}",
            "mov {t}, cr4", "or {t}, {must_4}", "and {t}, {may_4}", "mov cr4, {t}",
            "vmxon [{vmxon}]",
            "setbe {failed}",
            t = out(reg) _, must_0 = in(reg) caps.cr0.0, may_0 = in(reg) caps.cr0.1,
            must_4 = in(reg) caps.cr4.0 | Cr4::VMXE.bits(), may_4 = in(reg) caps.cr4.1,
            vmxon = in(reg) &vmxon, failed = out(reg_byte) failed, options(nostack),
        );
    }
    if failed == 0 { Ok(()) } else { Err(EnableError::MissingControl("VMXON failed")) }
}

/// The MSR bitmap: every access exits but those that pass.
fn msr_bitmap(
    passthrough: impl Iterator<Item = MsrPassthrough>,
) -> Result<PageBox<[u8; REGION_BYTES]>, EnableError> {
    let mut map = zeroed()?;
    map.fill(0xff);
    for pass in passthrough {
        if let Some((read, write)) = msr_bitmap_bits(pass.number) {
            for (passes, bit) in [(pass.read, read), (pass.write, write)] {
                if passes {
                    map[bit / 8] &= !(1 << (bit % 8));
                }
            }
        }
    }
    Ok(map)
}

fn zeroed() -> Result<PageBox<[u8; REGION_BYTES]>, EnableError> {
    PageBox::zeroed(Owner::Hypervisor).ok_or(EnableError::OutOfMemory)
}

/// The operand of SGDT and SIDT.
#[repr(C, packed)]
#[derive(Default)]
struct TablePointer {
    limit: u16,
    base: u64,
}

impl HostState {
    /// What this CPU works with now.
    fn current() -> Self {
        let (cr0, cr3, cr4): (u64, u64, u64);
        let (cs, ss, tr): (u16, u16, u16);
        let (mut gdt, mut idt) = (TablePointer::default(), TablePointer::default());
        // SAFETY: reads registers, and stores two table registers into locals of their size.
        unsafe {
            asm!("mov {}, cr0", "mov {}, cr3", "mov {}, cr4", out(reg) cr0, out(reg) cr3, out(reg) cr4,
                 options(nomem, nostack, preserves_flags));
            asm!("mov {0:x}, cs", "mov {1:x}, ss", "str {2:x}", out(reg) cs, out(reg) ss, out(reg) tr,
                 options(nomem, nostack, preserves_flags));
            asm!("sgdt [{}]", "sidt [{}]", in(reg) &raw mut gdt, in(reg) &raw mut idt,
                 options(nostack, preserves_flags));
        }
        let gdt_base = gdt.base;
        // SAFETY: the task register holds a selector of the GDT in use, where a 64-bit TSS descriptor has 16 bytes.
        let descriptor = unsafe { ((gdt_base + u64::from(tr & !7)) as *const [u64; 2]).read_unaligned() };
        // SAFETY: every CPU with 64-bit mode has these MSRs; reading changes nothing.
        let [efer, pat, fs_base, gs_base] =
            [msr::EFER, msr::PAT, msr::FS_BASE, msr::GS_BASE].map(|number| unsafe { read_msr(number) });
        Self {
            cr0,
            cr3,
            cr4,
            efer,
            pat,
            cs,
            ss,
            tr,
            fs_base,
            gs_base,
            tr_base: task_base(descriptor),
            gdt_base,
            idt_base: idt.base,
        }
    }
}

/// The base in a 64-bit TSS descriptor (SDM vol. 3, figure 8-4).
const fn task_base([low, high]: [u64; 2]) -> u64 {
    low >> 16 & 0xff_ffff | (low >> 56) << 24 | high << 32
}

impl Backend for Vmx {
    type Vcpu = VmxVcpu;

    const NAME: &'static str = "VT-x";

    fn apic_access_page(&self) -> Option<Hpa> {
        self.shared.apic_access.as_ref().map(PageBox::hpa)
    }

    fn enable_here(&self) -> Result<(), EnableError> {
        let place = &self.shared.cpus[percpu::current().index() as usize];
        if place.get().is_some() {
            return Ok(());
        }
        if !Features::detect().vmx {
            return Err(EnableError::NotSupported);
        }
        // SAFETY: the CPU has VMX.
        unsafe { allow_vmx()? };
        if capabilities() != self.shared.caps {
            return Err(EnableError::Different);
        }
        // SAFETY: once on this CPU, whose place is empty; what `Vmx::enable` was promised holds for all CPUs. Caisson itself
        // uses no vector state.
        let (carried, this) =
            unsafe { (Carried::enable(&self.host, self.policy_xcr0), begin(&self.shared)?) };
        if carried.xcr0 != self.shared.carried.xcr0 {
            return Err(EnableError::Different);
        }
        place.call_once(|| this);
        Ok(())
    }

    fn tsc_fraction_bits(&self) -> Option<u32> {
        self.shared.features.contains(VmxFeatures::TSC_SCALING).then_some(TSC_FRACTION_BITS)
    }

    fn write_trace(&self) -> WriteTrace {
        if self.shared.features.contains(VmxFeatures::PML) {
            WriteTrace::Log
        } else if self.shared.features.contains(VmxFeatures::EPT_ACCESSED_DIRTY) {
            WriteTrace::DirtyBits
        } else {
            WriteTrace::None
        }
    }

    fn create_vcpu(&self, id: VcpuId, setup: &VcpuSetup) -> Result<VmxVcpu, EnableError> {
        VmxVcpu::new(self.shared.clone(), id, setup).ok_or(EnableError::OutOfMemory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_has_the_last_word_on_vmx() {
        assert_eq!(feature_control(0), Ok(Some(5)), "left open: allowed and locked");
        assert_eq!(feature_control(0x4_0004), Ok(Some(0x4_0005)), "the other bits stay");
        assert_eq!(feature_control(5), Ok(None), "locked and allowed, as nested KVM and Bochs have it");
        for off in [1, 3, 0x4_0001] {
            assert_eq!(feature_control(off), Err(EnableError::DisabledByFirmware), "{off:#x}");
        }
    }

    #[test]
    fn a_task_base_has_four_parts() {
        let descriptor = [0x1200_8b34_5678_0067, 0x9abc_def0];
        assert_eq!(task_base(descriptor), 0x9abc_def0_1234_5678);
    }
}
