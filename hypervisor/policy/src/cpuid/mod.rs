//! The CPUID leaves of a domain: made once from the host's and the policy, looked up at each exit.
//!
//! [`CpuidTable::build`] asks the host, filters each answer through the policy ([`words`]) and lays in what is the
//! domain's own: topology, address width, XSAVE layout, the hypervisor leaves. [`CpuidTable::lookup`] is then one
//! indexed load; only five leaves have a part that depends on the vCPU ([`Dynamic`]).
//!
//! Leaves outside the table follow the hardware (SDM vol. 2A, CPUID, "Description"; APM vol. 3, appendix E.2): on
//! Intel they answer with the data of the highest basic leaf, on AMD with zeros. The hypervisor's range, 40000000H to
//! 4FFFFFFFH, answers zeros outside the leaves that are there.
//!
//! Invariants: a bit that no field of the policy names is 0; nothing here executes CPUID.

mod basic;
mod build;
mod extended;
mod hypervisor;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod topology;

use caisson_x86::Cr4;

pub use build::{CpuidSetup, HostCaps, Vendor};
pub use hypervisor::{ABI_VERSION, CAISSON_LEAF, CAISSON_SIGNATURE, KVM_LEAF, KVM_SIGNATURE, Paravirt};
pub use table::{Field, Need, Register, Rule, Subleaves, Word, words};
pub use topology::Topology;

use crate::Limits;
use build::Slot;

/// What CPUID leaves in its four registers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CpuidResult {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl CpuidResult {
    /// All zeros: a leaf that holds nothing.
    pub const ZERO: Self = Self::new(0, 0, 0, 0);

    /// The four registers.
    #[must_use]
    pub const fn new(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Self {
        Self { eax, ebx, ecx, edx }
    }

    /// One of them.
    #[must_use]
    pub const fn get(&self, register: Register) -> u32 {
        match register {
            Register::Eax => self.eax,
            Register::Ebx => self.ebx,
            Register::Ecx => self.ecx,
            Register::Edx => self.edx,
        }
    }

    /// One of them, to be changed.
    pub const fn get_mut(&mut self, register: Register) -> &mut u32 {
        match register {
            Register::Eax => &mut self.eax,
            Register::Ebx => &mut self.ebx,
            Register::Ecx => &mut self.ecx,
            Register::Edx => &mut self.edx,
        }
    }
}

/// The vCPU's state that some leaves mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dynamic {
    /// XCR0.
    pub xcr0: u64,
    /// CR4.
    pub cr4: u64,
    /// The x2APIC id; its low 8 bits are the xAPIC id.
    pub apic_id: u32,
    /// APIC_BASE has the APIC enabled.
    pub apic_enabled: bool,
}

/// What, if anything, of a leaf is computed at the look-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Kind {
    /// Nothing; ECX is ignored.
    Plain,
    /// Nothing; ECX picks a subleaf.
    Indexed,
    /// Leaf 1: APIC id, APIC, OSXSAVE.
    Identity,
    /// Leaf 7: subleaves, OSPKE.
    Structured,
    /// Leaves BH and 1FH: subleaves, x2APIC id.
    Levels,
    /// Leaf DH: subleaves, sizes.
    XState,
    /// Leaf 80000001H on AMD: APIC.
    AmdIdentity,
    /// Leaf 8000001EH: APIC id, core id.
    Unit,
}

/// Basic leaves that have a slot: 0 to 1FH.
const BASIC_SLOTS: u32 = 0x20;
/// Extended leaves that have a slot: 80000000H to 80000021H.
const EXTENDED_SLOTS: u32 = 0x22;
/// Leaves of the KVM interface that have a slot: 40000000H to 40000010H.
const KVM_SLOTS: u32 = 0x11;
/// Leaves of Caisson's own interface.
const CAISSON_SLOTS: u32 = 2;
const SLOTS: usize = (BASIC_SLOTS + EXTENDED_SLOTS + KVM_SLOTS + CAISSON_SLOTS) as usize;
/// Subleaves of leaves 4, 7, BH (1FH is the same), DH and 8000001DH together.
const SUBLEAVES: usize = 8 + 3 + 2 + XSTATE_COMPONENTS + 8;
/// Subleaves of leaf DH: components 0 to 9, of which XCR0 knows those up to PKRU.
const XSTATE_COMPONENTS: usize = 10;

/// Leaf 1 EDX and 80000001H EDX: APIC.
const APIC: u32 = 1 << 9;
/// Leaf 1 ECX: OSXSAVE.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 7 ECX: OSPKE.
const OSPKE: u32 = 1 << 4;

/// The leaves of a domain.
#[derive(Clone, Debug)]
pub struct CpuidTable {
    slots: [Slot; SLOTS],
    subleaves: [CpuidResult; SUBLEAVES],
    /// Where leaves that have no slot lead: a slot's index.
    out_of_range: u8,
    /// Bits of the APIC id that number threads of a core.
    thread_bits: u8,
    limits: Limits,
    vendor: Vendor,
}

/// Where a leaf's slot is.
#[inline]
const fn slot_of(leaf: u32) -> Option<usize> {
    let low = leaf & 0x0fff_ffff;
    let index = match leaf >> 28 {
        0 if low < BASIC_SLOTS => low,
        8 if low < EXTENDED_SLOTS => BASIC_SLOTS + low,
        4 if low < KVM_SLOTS => BASIC_SLOTS + EXTENDED_SLOTS + low,
        4 if low >= 0x100 && low < 0x100 + CAISSON_SLOTS => {
            BASIC_SLOTS + EXTENDED_SLOTS + KVM_SLOTS + low - 0x100
        }
        _ => return None,
    };
    Some(index as usize)
}

impl CpuidTable {
    /// What the guest gets for CPUID with `leaf` in EAX and `subleaf` in ECX.
    #[inline(always)]
    #[must_use]
    pub fn lookup(&self, leaf: u32, subleaf: u32, vcpu: &Dynamic) -> CpuidResult {
        let index = match slot_of(leaf) {
            Some(index) => index,
            None if leaf >> 28 == 4 => return CpuidResult::ZERO,
            None => self.out_of_range as usize,
        };
        let Some(slot) = self.slots.get(index) else { return CpuidResult::ZERO };
        match slot.kind {
            Kind::Plain => slot.result,
            Kind::Indexed => self.subleaf(slot, subleaf),
            Kind::Identity => {
                let mut result = slot.result;
                result.ebx |= vcpu.apic_id << 24;
                if vcpu.cr4 & Cr4::OSXSAVE.bits() != 0 {
                    result.ecx |= OSXSAVE;
                }
                if vcpu.apic_enabled {
                    result.edx |= APIC;
                }
                result
            }
            Kind::Structured => {
                let mut result = self.subleaf(slot, subleaf);
                if subleaf == 0 && vcpu.cr4 & Cr4::PKE.bits() != 0 {
                    result.ecx |= OSPKE;
                }
                result
            }
            Kind::Levels => {
                let mut result = self.subleaf(slot, subleaf);
                result.ecx |= subleaf & 0xff;
                result.edx = vcpu.apic_id;
                result
            }
            Kind::XState => self.xstate(slot, subleaf, vcpu.xcr0),
            Kind::AmdIdentity => {
                let mut result = slot.result;
                if vcpu.apic_enabled {
                    result.edx |= APIC;
                }
                result
            }
            Kind::Unit => {
                let mut result = slot.result;
                result.eax = vcpu.apic_id;
                result.ebx |= (vcpu.apic_id >> self.thread_bits) & 0xff;
                result
            }
        }
    }

    /// What follows from the table for control registers.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whose rules the virtual CPU follows.
    #[must_use]
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// Whether `bit` of the leaf's register is set, leaving out what mirrors the vCPU.
    #[must_use]
    pub fn has(&self, leaf: u32, subleaf: u32, register: Register, bit: u8) -> bool {
        let Some(slot) = slot_of(leaf).and_then(|index| self.slots.get(index)) else { return false };
        let result = if slot.count == 0 { slot.result } else { self.subleaf(slot, subleaf) };
        bit < 32 && result.get(register) >> bit & 1 != 0
    }

    #[inline]
    fn subleaf(&self, slot: &Slot, subleaf: u32) -> CpuidResult {
        if subleaf >= u32::from(slot.count) {
            return CpuidResult::ZERO;
        }
        self.subleaves.get(slot.first as usize + subleaf as usize).copied().unwrap_or(CpuidResult::ZERO)
    }

    /// Leaf DH: the sizes in EBX of subleaves 0 and 1 are those for the vCPU's XCR0 (SDM vol. 1, sections 13.4.2 and
    /// 13.4.3): the end of the last component, and the components one after the other.
    fn xstate(&self, slot: &Slot, subleaf: u32, xcr0: u64) -> CpuidResult {
        let mut result = self.subleaf(slot, subleaf);
        if subleaf > 1 || slot.count == 0 {
            return result;
        }
        let (standard, compacted) = self.xsave_sizes(slot, xcr0);
        if subleaf == 0 {
            result.ebx = standard;
        } else if result.eax & (XSAVEC | XSAVES) != 0 {
            result.ebx = compacted;
        }
        result
    }

    /// Bytes of the standard and of the compacted XSAVE area for `xcr0`.
    fn xsave_sizes(&self, slot: &Slot, xcr0: u64) -> (u32, u32) {
        let (mut standard, mut compacted) = (XSAVE_LEGACY, XSAVE_LEGACY);
        let mut rest = xcr0 & COMPONENTS_ABOVE_SSE;
        while rest != 0 {
            let component = self.subleaf(slot, rest.trailing_zeros());
            standard = standard.max(component.ebx.saturating_add(component.eax));
            if component.ecx & XSAVE_ALIGN != 0 {
                compacted = compacted.saturating_add(63) & !63;
            }
            compacted = compacted.saturating_add(component.eax);
            rest &= rest - 1;
        }
        (standard, compacted)
    }
}

/// Bytes of the XSAVE area's legacy region and header.
const XSAVE_LEGACY: u32 = 576;
/// Leaf DH subleaf 1 EAX: XSAVEC.
const XSAVEC: u32 = 1 << 1;
/// Leaf DH subleaf 1 EAX: XSAVES, which saves what XCR0 and IA32_XSS name.
const XSAVES: u32 = 1 << 3;
/// Leaf DH subleaf n ECX: the component is aligned in the compacted form.
const XSAVE_ALIGN: u32 = 1 << 1;
/// XCR0 components that have a subleaf of their own.
const COMPONENTS_ABOVE_SSE: u64 = ((1 << XSTATE_COMPONENTS) - 1) & !3;
