//! The form of the CPUID policy: words of four registers, fields of bits, a rule and a reason each.

use core::fmt;

use caisson_x86::Xcr0;

use super::{CpuidResult, HostCaps, Vendor, basic, extended};

/// One of the four registers that CPUID writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// What must hold for a field's host bits to be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// All of these XCR0 components are saved and restored.
    State(u64),
    /// SPEC_CTRL and PRED_CMD are carried.
    SpecCtrl,
    /// TSC_AUX is carried.
    TscAux,
    /// The host's ARCH_CAPABILITIES value was handed over.
    ArchCapabilities,
    /// XSAVES works, and so do the other instructions on XSAVE state.
    Xsaves,
}

/// Where a field's value comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// The host's bits.
    Pass,
    /// The host's bits where Caisson carries what they need, else 0.
    With(Need),
    /// Zero, whatever the host has.
    Hide,
    /// All ones, whatever the host has: Caisson emulates it.
    Set,
    /// All ones on AMD, zero on Intel, whatever the host has.
    SetOnAmd,
    /// Computed for the domain (its topology, its address width, ...) when the table is made.
    Domain,
    /// Computed at each CPUID, from the vCPU's own state.
    Vcpu,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "host's",
            Self::With(Need::State(_)) => "host's, with its XSAVE state",
            Self::With(Need::SpecCtrl) => "host's, with SPEC_CTRL",
            Self::With(Need::TscAux) => "host's, with TSC_AUX",
            Self::With(Need::Xsaves) => "host's, where XSAVES works",
            Self::With(Need::ArchCapabilities) => "host's, with its MSR",
            Self::Hide => "hidden",
            Self::Set => "set",
            Self::SetOnAmd => "set on AMD",
            Self::Domain => "the domain's",
            Self::Vcpu => "the vCPU's",
        })
    }
}

/// Bits of a register that one rule stands over.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Lowest bit.
    pub first: u8,
    /// Highest bit, inclusive.
    pub last: u8,
    /// The manuals' name.
    pub name: &'static str,
    /// Where the value comes from.
    pub rule: Rule,
    /// Why.
    pub reason: &'static str,
}

impl Field {
    /// The field's bits.
    #[must_use]
    pub const fn mask(&self) -> u32 {
        let width = self.last - self.first + 1;
        (u32::MAX >> (32 - width as u32)) << self.first
    }
}

/// Which subleaves a word is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subleaves {
    /// The leaf has none, or all are treated alike.
    All,
    /// This one.
    Only(u32),
    /// This one and those above.
    From(u32),
}

impl Subleaves {
    /// Whether `subleaf` is among them.
    #[must_use]
    pub const fn contains(self, subleaf: u32) -> bool {
        match self {
            Self::All => true,
            Self::Only(only) => only == subleaf,
            Self::From(first) => subleaf >= first,
        }
    }
}

/// One register of one leaf. Bits that no field names are hidden.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// EAX at CPUID.
    pub leaf: u32,
    /// ECX at CPUID.
    pub subleaves: Subleaves,
    /// The register.
    pub register: Register,
    /// Its fields, from the lowest bit up.
    pub fields: &'static [Field],
}

/// The whole policy, in the order of the leaves: basic first, then extended.
pub fn words() -> impl Iterator<Item = &'static Word> {
    basic::WORDS.iter().chain(extended::WORDS)
}

/// What the rules are decided on.
pub(super) struct Decision<'a> {
    pub(super) vendor: Vendor,
    pub(super) caps: &'a HostCaps,
    pub(super) xcr0: u64,
}

impl Decision<'_> {
    fn has(&self, need: Need) -> bool {
        match need {
            Need::State(components) => self.xcr0 & components == components,
            Need::SpecCtrl => self.caps.spec_ctrl,
            Need::TscAux => self.caps.tsc_aux,
            Need::Xsaves => self.caps.xsaves && self.xcr0 & 3 == 3,
            Need::ArchCapabilities => self.caps.arch_capabilities,
        }
    }

    /// What the policy leaves of the host's answer. The domain's and the vCPU's fields are 0 as yet.
    pub(super) fn filter(&self, leaf: u32, subleaf: u32, host: CpuidResult) -> CpuidResult {
        let mut guest = CpuidResult::ZERO;
        for word in words().filter(|w| w.leaf == leaf && w.subleaves.contains(subleaf)) {
            let from = host.get(word.register);
            let to = guest.get_mut(word.register);
            for field in word.fields {
                match field.rule {
                    Rule::Pass => *to |= from & field.mask(),
                    Rule::With(need) if self.has(need) => *to |= from & field.mask(),
                    Rule::Set => *to |= field.mask(),
                    Rule::SetOnAmd if self.vendor == Vendor::Amd => *to |= field.mask(),
                    _ => {}
                }
            }
        }
        guest
    }
}

pub(super) const fn word(leaf: u32, register: Register, fields: &'static [Field]) -> Word {
    Word { leaf, subleaves: Subleaves::All, register, fields }
}

pub(super) const fn word_of(
    leaf: u32,
    subleaves: Subleaves,
    register: Register,
    fields: &'static [Field],
) -> Word {
    Word { leaf, subleaves, register, fields }
}

/// A field of one bit.
pub(super) const fn bit(bit: u8, name: &'static str, rule: Rule, reason: &'static str) -> Field {
    Field { first: bit, last: bit, name, rule, reason }
}

/// A field of several bits, both ends inclusive.
pub(super) const fn bits(first: u8, last: u8, name: &'static str, rule: Rule, reason: &'static str) -> Field {
    Field { first, last, name, rule, reason }
}

/// A whole register.
pub(super) const fn whole(name: &'static str, rule: Rule, reason: &'static str) -> Field {
    bits(0, 31, name, rule, reason)
}

/// The XSAVE instructions.
pub(super) const XSAVE: Rule = Rule::With(Need::State(Xcr0::X87.bits() | Xcr0::SSE.bits()));
/// Instructions on YMM registers.
pub(super) const AVX: Rule = Rule::With(Need::State(AVX_STATE));
/// Instructions on ZMM or mask registers.
pub(super) const AVX512: Rule =
    Rule::With(Need::State(AVX_STATE | Xcr0::OPMASK.bits() | Xcr0::ZMM_HI256.bits() | Xcr0::HI16_ZMM.bits()));
/// Protection keys for user pages.
pub(super) const PKU: Rule = Rule::With(Need::State(Xcr0::X87.bits() | Xcr0::SSE.bits() | Xcr0::PKRU.bits()));
/// Controls over speculation.
pub(super) const SPEC: Rule = Rule::With(Need::SpecCtrl);
/// What reads TSC_AUX.
pub(super) const AUX: Rule = Rule::With(Need::TscAux);

const AVX_STATE: u64 = Xcr0::X87.bits() | Xcr0::SSE.bits() | Xcr0::AVX.bits();

/// Reasons that many fields share.
pub(super) mod why {
    pub(crate) const PLAIN: &str = "plain instructions on state that the vCPU owns";
    pub(crate) const FACT: &str = "a fact about the CPU that holds in the guest too";
    pub(crate) const VECTOR: &str = "vector state up to XCR0 is saved with the vCPU";
    pub(crate) const PAGING: &str = "the CPU walks the guest's page tables itself";
    pub(crate) const CR4: &str = "a control-register bit that belongs to the vCPU";
    pub(crate) const MSRS: &str = "it comes with MSRs that are not virtualised";
    pub(crate) const PERF: &str = "performance monitoring is the host's: it would show what other guests do";
    pub(crate) const POWER: &str = "power and heat are the host's to manage";
    pub(crate) const NESTED: &str = "guests do not run hypervisors";
    pub(crate) const STATE: &str = "its state is not saved with the vCPU";
    pub(crate) const TRACE: &str = "tracing and branch records are the host's";
    pub(crate) const SPECULATION: &str = "shown when SPEC_CTRL and PRED_CMD are switched with the vCPU";
    pub(crate) const SAFE: &str = "tells the guest that it needs no workaround, or which one works";
    pub(crate) const EMULATED: &str = "Caisson emulates it on every host";
    pub(crate) const TOPOLOGY: &str = "the guest's own topology, not the host's";
    pub(crate) const RAS: &str = "machine-check banks belong to the host";
    pub(crate) const KEY: &str = "memory encryption and enclaves are the host's";
}
