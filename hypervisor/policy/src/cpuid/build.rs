//! Making a domain's table: the host's leaves through the policy, then what is the domain's own.

use caisson_x86::Xcr0;

use super::table::Decision;
use super::{
    BASIC_SLOTS, CpuidResult, CpuidTable, EXTENDED_SLOTS, Kind, Paravirt, SLOTS, SUBLEAVES, Topology,
    XSTATE_COMPONENTS, hypervisor, slot_of,
};
use crate::Limits;

/// Whose rules a CPU follows where the two differ.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Vendor {
    /// Intel, and every CPU that is not AMD's.
    Intel,
    /// AMD and Hygon.
    Amd,
}

impl Vendor {
    /// The vendor named in leaf 0.
    #[must_use]
    pub const fn of(leaf_0: &CpuidResult) -> Self {
        match (leaf_0.ebx, leaf_0.edx, leaf_0.ecx) {
            // "AuthenticAMD", "HygonGenuine".
            (0x6874_7541, 0x6974_6e65, 0x444d_4163) | (0x6f67_7948, 0x6e65_476e, 0x656e_6975) => Self::Amd,
            _ => Self::Intel,
        }
    }
}

/// What Caisson can carry for a guest on this host, beyond what CPUID says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostCaps {
    /// Physical-address bits that stage 2 can map: the guest's MAXPHYADDR.
    pub physical_bits: u8,
    /// XCR0 components whose state is saved and restored with a vCPU. What the host lacks is taken away.
    pub xcr0: u64,
    /// SPEC_CTRL is switched with the vCPU and PRED_CMD passed on.
    pub spec_ctrl: bool,
    /// TSC_AUX is switched with the vCPU.
    pub tsc_aux: bool,
    /// The host's ARCH_CAPABILITIES is handed to [`crate::MsrSetup`].
    pub arch_capabilities: bool,
    /// XSAVES and XRSTORS work in guests. IA32_XSS is 0 and stays so: no supervisor state is carried.
    pub xsaves: bool,
}

/// What a domain's table is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuidSetup {
    /// What Caisson can carry.
    pub caps: HostCaps,
    /// How the vCPUs appear.
    pub topology: Topology,
    /// The paravirtual features.
    pub paravirt: Paravirt,
    /// The guest's TSC, in kHz; 0 leaves the frequency leaf out.
    pub tsc_khz: u32,
    /// The virtual APIC timer's input clock, in kHz.
    pub apic_khz: u32,
}

/// A leaf: its registers, or where its subleaves are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) result: CpuidResult,
    pub(super) kind: Kind,
    /// Index of the first subleaf.
    pub(super) first: u8,
    /// Number of subleaves; above them, all read zero.
    pub(super) count: u8,
}

impl Slot {
    const EMPTY: Self = Self { result: CpuidResult::ZERO, kind: Kind::Plain, first: 0, count: 0 };
}

/// Caches that leaves 4 and 8000001DH may list.
const MAX_CACHES: u32 = 8;
/// The highest subleaf of leaf 7 that has a policy.
const MAX_STRUCTURED: u32 = 2;
/// The extended topology leaf that is served on hosts that have it.
const TOPOLOGY_V2: u32 = 0x1f;
/// The highest basic leaf on other hosts.
const HIGHEST_COMMON: u32 = 0xd;

impl CpuidTable {
    /// Makes the table of a domain. `host` executes CPUID with the leaf and subleaf it is given, in 64-bit mode; it is
    /// asked for nothing beyond the leaves that the host announces.
    #[must_use]
    pub fn build(setup: &CpuidSetup, mut host: impl FnMut(u32, u32) -> CpuidResult) -> Self {
        let leaf_0 = host(0, 0);
        let vendor = Vendor::of(&leaf_0);
        let highest_extended = host(0x8000_0000, 0).eax;
        let mut host = Host { query: host, basic: leaf_0.eax, extended: highest_extended };
        let xcr0 = supported_xcr0(&mut host, setup.caps.xcr0);
        let mut builder = Builder {
            host,
            decision: Decision { vendor, caps: &setup.caps, xcr0 },
            topology: setup.topology,
            slots: [Slot::EMPTY; SLOTS],
            subleaves: [CpuidResult::ZERO; SUBLEAVES],
            used: 0,
        };
        builder.basic_leaves();
        builder.extended_leaves(setup.caps.physical_bits);
        for (leaf, result) in hypervisor::leaves(setup) {
            builder.set(leaf, Slot { result, ..Slot::EMPTY });
        }
        builder.finish(setup)
    }
}

/// The host's CPUID, which reads zero beyond the leaves that it announces.
struct Host<F> {
    query: F,
    basic: u32,
    extended: u32,
}

impl<F: FnMut(u32, u32) -> CpuidResult> Host<F> {
    fn get(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        let highest = if leaf < 0x8000_0000 { self.basic } else { self.extended };
        if leaf <= highest { (self.query)(leaf, subleaf) } else { CpuidResult::ZERO }
    }
}

/// The components that both the host has and Caisson carries, less those that lack what they build on (SDM vol. 1,
/// section 13.3); 0 where the host has no XSAVE.
fn supported_xcr0<F: FnMut(u32, u32) -> CpuidResult>(host: &mut Host<F>, carried: u64) -> u64 {
    let xsave = host.get(1, 0).ecx >> 26 & 1 != 0;
    let leaf = host.get(0xd, 0);
    let known = Xcr0::X87 | Xcr0::SSE | Xcr0::AVX | AVX512_STATE | Xcr0::PKRU;
    let mut xcr0 =
        Xcr0::from_bits_truncate((u64::from(leaf.edx) << 32 | u64::from(leaf.eax)) & carried) & known;
    if !xsave || !xcr0.contains(Xcr0::X87 | Xcr0::SSE) {
        return 0;
    }
    if !xcr0.contains(AVX512_STATE | Xcr0::AVX) {
        xcr0 -= AVX512_STATE;
    }
    xcr0.bits()
}

const AVX512_STATE: Xcr0 = Xcr0::OPMASK.union(Xcr0::ZMM_HI256).union(Xcr0::HI16_ZMM);

struct Builder<'a, F> {
    host: Host<F>,
    decision: Decision<'a>,
    topology: Topology,
    slots: [Slot; SLOTS],
    subleaves: [CpuidResult; SUBLEAVES],
    used: u8,
}

impl<F: FnMut(u32, u32) -> CpuidResult> Builder<'_, F> {
    /// The host's answer through the policy.
    fn filtered(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        let host = self.host.get(leaf, subleaf);
        self.decision.filter(leaf, subleaf, host)
    }

    fn set(&mut self, leaf: u32, slot: Slot) {
        if let Some(place) = slot_of(leaf).and_then(|index| self.slots.get_mut(index)) {
            *place = slot;
        }
    }

    fn plain(&mut self, leaf: u32) {
        let result = self.filtered(leaf, 0);
        self.set(leaf, Slot { result, ..Slot::EMPTY });
    }

    /// Appends a subleaf to those of a leaf under construction.
    fn push(&mut self, slot: &mut Slot, subleaf: CpuidResult) {
        if let Some(place) = self.subleaves.get_mut(self.used as usize) {
            *place = subleaf;
            self.used += 1;
            slot.count += 1;
        }
    }

    fn indexed(&self, kind: Kind) -> Slot {
        Slot { kind, first: self.used, ..Slot::EMPTY }
    }

    fn basic_leaves(&mut self) {
        let highest = if self.host.basic >= TOPOLOGY_V2 { TOPOLOGY_V2 } else { HIGHEST_COMMON };
        for leaf in 0..=highest {
            match leaf {
                0 => {
                    let mut result = self.filtered(0, 0);
                    result.eax = highest;
                    self.set(0, Slot { result, ..Slot::EMPTY });
                }
                1 => self.identity(),
                4 => self.caches(4),
                7 => self.structured(),
                0xb => self.levels(),
                0xd => self.xstate(),
                TOPOLOGY_V2 => self.copy(0xb, TOPOLOGY_V2),
                _ => self.plain(leaf),
            }
        }
        if self.decision.vendor == Vendor::Intel {
            for leaf in highest + 1..BASIC_SLOTS {
                self.copy(highest, leaf);
            }
        }
    }

    fn extended_leaves(&mut self, physical_bits: u8) {
        // The address widths are on every 64-bit CPU, and a guest must have ours.
        let highest = self.host.extended.clamp(0x8000_0008, 0x8000_0000 + EXTENDED_SLOTS - 1);
        let amd = self.decision.vendor == Vendor::Amd;
        let topology = self.topology;
        for leaf in 0x8000_0000..=highest {
            let mut result = self.filtered(leaf, 0);
            let mut kind = Kind::Plain;
            match leaf {
                0x8000_0000 => result.eax = highest,
                0x8000_0001 if amd => {
                    kind = Kind::AmdIdentity;
                    if topology.logical() > 1 {
                        result.ecx |= CMP_LEGACY;
                    }
                }
                0x8000_0008 => {
                    result.eax |= u32::from(physical_bits);
                    if amd {
                        result.ecx |= topology.amd_core_count();
                    }
                }
                0x8000_001d if self.topology_extensions() => {
                    self.caches(leaf);
                    continue;
                }
                0x8000_001e if self.topology_extensions() => {
                    kind = Kind::Unit;
                    result.ebx |= (topology.threads() - 1) << 8;
                }
                0x8000_001d | 0x8000_001e => result = CpuidResult::ZERO,
                _ => {}
            }
            self.set(leaf, Slot { result, kind, ..Slot::EMPTY });
        }
        if !amd {
            // Beyond the highest extended leaf, Intel answers with the highest basic one.
            let highest_basic = self.highest_basic();
            for leaf in highest + 1..0x8000_0000 + EXTENDED_SLOTS {
                self.copy(highest_basic, leaf);
            }
        }
    }

    fn highest_basic(&self) -> u32 {
        self.slots.first().map_or(0, |slot| slot.result.eax)
    }

    fn topology_extensions(&mut self) -> bool {
        self.filtered(0x8000_0001, 0).ecx & TOPOLOGY_EXTENSIONS != 0
    }

    fn copy(&mut self, from: u32, to: u32) {
        if let Some(slot) = slot_of(from).and_then(|index| self.slots.get(index)).copied() {
            self.set(to, slot);
        }
    }

    fn identity(&mut self) {
        let mut result = self.filtered(1, 0);
        result.ebx |= self.topology.leaf1_ebx(self.decision.vendor);
        if self.topology.logical() > 1 {
            result.edx |= HTT;
        }
        self.set(1, Slot { result, kind: Kind::Identity, ..Slot::EMPTY });
    }

    fn structured(&mut self) {
        let mut slot = self.indexed(Kind::Structured);
        let highest = if self.host.basic >= 7 { self.host.get(7, 0).eax.min(MAX_STRUCTURED) } else { 0 };
        for subleaf in 0..=highest {
            let mut result = self.filtered(7, subleaf);
            if subleaf == 0 {
                result.eax = highest;
            }
            self.push(&mut slot, result);
        }
        self.set(7, slot);
    }

    fn caches(&mut self, leaf: u32) {
        let mut slot = self.indexed(Kind::Indexed);
        for subleaf in 0..MAX_CACHES {
            let mut result = self.filtered(leaf, subleaf);
            if result.eax & CACHE_TYPE == 0 {
                break;
            }
            result.eax = if leaf == 4 {
                self.topology.intel_cache_eax(result.eax)
            } else {
                self.topology.amd_cache_eax(result.eax)
            };
            self.push(&mut slot, result);
        }
        self.set(leaf, slot);
    }

    fn levels(&mut self) {
        let mut slot = self.indexed(Kind::Levels);
        for level in self.topology.levels() {
            self.push(&mut slot, level);
        }
        self.set(0xb, slot);
    }

    fn xstate(&mut self) {
        let mut slot = self.indexed(Kind::XState);
        let xcr0 = self.decision.xcr0;
        if xcr0 == 0 {
            self.set(0xd, Slot::EMPTY);
            return;
        }
        for component in 0..XSTATE_COMPONENTS as u32 {
            let result = match component {
                0 => CpuidResult { eax: xcr0 as u32, edx: (xcr0 >> 32) as u32, ..CpuidResult::ZERO },
                1 => self.filtered(0xd, 1),
                _ if xcr0 >> component & 1 != 0 => {
                    let host = self.host.get(0xd, component);
                    CpuidResult::new(host.eax, host.ebx, host.ecx & super::XSAVE_ALIGN, 0)
                }
                _ => CpuidResult::ZERO,
            };
            self.push(&mut slot, result);
        }
        self.set(0xd, slot);
    }

    fn finish(self, setup: &CpuidSetup) -> CpuidTable {
        let out_of_range = match self.decision.vendor {
            Vendor::Intel => self.highest_basic() as u8,
            // A slot of the KVM range that is always zero.
            Vendor::Amd => slot_of(hypervisor::KVM_LEAF + 2).unwrap_or(0) as u8,
        };
        let mut table = CpuidTable {
            slots: self.slots,
            subleaves: self.subleaves,
            out_of_range,
            thread_bits: self.topology.thread_bits(),
            limits: Limits::NONE,
            vendor: self.decision.vendor,
        };
        table.set_largest_xsave_area(self.decision.xcr0);
        table.limits = Limits::of(&table, self.decision.xcr0, setup.caps.physical_bits);
        table
    }
}

impl CpuidTable {
    /// Leaf DH subleaf 0 ECX, once the components are known.
    fn set_largest_xsave_area(&mut self, xcr0: u64) {
        let Some(slot) = self.slots.get(0xd).copied() else { return };
        if xcr0 == 0 || slot.kind != Kind::XState {
            return;
        }
        let (standard, _) = self.xsave_sizes(&slot, xcr0);
        if let Some(subleaf) = self.subleaves.get_mut(slot.first as usize) {
            subleaf.ecx = standard;
        }
    }
}

/// Leaf 1 EDX: more than one logical processor.
const HTT: u32 = 1 << 28;
/// Leaf 80000001H ECX, AMD: the logical processors are cores.
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 80000001H ECX, AMD: leaves 8000001DH and 8000001EH.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Leaves 4 and 8000001DH EAX: 0 ends the list.
const CACHE_TYPE: u32 = 0x1f;
