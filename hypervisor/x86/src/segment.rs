//! Segment registers with their hidden parts, descriptor tables, and the CPU mode they make up.

/// A segment register; the discriminants of the first six are their encodings.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegmentRegister {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
    Ldtr = 6,
    Tr = 7,
}

/// The attributes of a segment as the VMCB packs them (APM vol. 2, section 15.5.1): bits 3:0 type, 4 S, 6:5 DPL,
/// 7 present, 8 AVL, 9 L, 10 D/B, 11 G. A segment that is not present is what VMX calls unusable.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(transparent)]
pub struct Attributes(pub u16);

impl Attributes {
    /// A flat 64-bit code segment of ring 0.
    pub const CODE64: Self = Self(0xa9b);
    /// A flat 32-bit code segment of ring 0.
    pub const CODE32: Self = Self(0xc9b);
    /// A flat 32-bit data segment of ring 0.
    pub const DATA32: Self = Self(0xc93);
    /// A code segment after reset (real mode; APM vol. 2, table 14-1).
    pub const CODE16: Self = Self(0x09b);
    /// A data segment after reset.
    pub const DATA16: Self = Self(0x093);
    /// An LDT.
    pub const LDT: Self = Self(0x082);
    /// A busy 32- or 64-bit task-state segment.
    pub const TSS_BUSY: Self = Self(0x08b);

    /// The type field.
    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.0 & 15) as u8
    }
    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }
    /// Present.
    #[must_use]
    pub const fn present(self) -> bool {
        self.0 & 1 << 7 != 0
    }
    /// 64-bit code.
    #[must_use]
    pub const fn long(self) -> bool {
        self.0 & 1 << 9 != 0
    }
    /// D/B: 32-bit default operand and address size, or stack size.
    #[must_use]
    pub const fn big(self) -> bool {
        self.0 & 1 << 10 != 0
    }
    /// Limit counted in pages.
    #[must_use]
    pub const fn granular(self) -> bool {
        self.0 & 1 << 11 != 0
    }
    /// Code (and not data); meaningful where S is set.
    #[must_use]
    pub const fn code(self) -> bool {
        self.0 & 1 << 3 != 0
    }
    /// Writable data, or readable code.
    #[must_use]
    pub const fn writable_or_readable(self) -> bool {
        self.0 & 1 << 1 != 0
    }
    /// Expand-down data, or conforming code.
    #[must_use]
    pub const fn expand_down_or_conforming(self) -> bool {
        self.0 & 1 << 2 != 0
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// The attributes.
    pub attributes: Attributes,
    /// The last byte's offset, in bytes (already expanded by the granularity).
    pub limit: u32,
    /// The linear address of offset 0.
    pub base: u64,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// The last byte's offset.
    pub limit: u16,
}

/// The CPU's mode of operation (APM vol. 2, section 1.3), as far as decoding and address formation depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuMode {
    /// CR0.PE clear.
    Real,
    /// RFLAGS.VM set.
    Virtual8086,
    /// Protected (or compatibility) mode, 16-bit code.
    Protected16,
    /// Protected (or compatibility) mode, 32-bit code.
    Protected32,
    /// 64-bit mode.
    Long64,
}

impl CpuMode {
    /// Default code size in bits: 16, 32 or 64.
    #[must_use]
    pub const fn code_bits(self) -> u32 {
        match self {
            Self::Real | Self::Virtual8086 | Self::Protected16 => 16,
            Self::Protected32 => 32,
            Self::Long64 => 64,
        }
    }
}
