//! Exceptions and how they combine (SDM vol. 3, chapter 7; APM vol. 2, chapter 8).

/// An exception's or interrupt's number.
pub type Vector = u8;

/// The exceptions of the architecture, by vector.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum ExceptionKind {
    /// #DE.
    DivideError = 0,
    /// #DB.
    Debug = 1,
    /// #BP, from INT3.
    Breakpoint = 3,
    /// #OF, from INTO.
    Overflow = 4,
    /// #BR.
    BoundRange = 5,
    /// #UD.
    InvalidOpcode = 6,
    /// #NM.
    DeviceNotAvailable = 7,
    /// #DF.
    DoubleFault = 8,
    /// #TS.
    InvalidTss = 10,
    /// #NP.
    SegmentNotPresent = 11,
    /// #SS.
    StackFault = 12,
    /// #GP.
    GeneralProtection = 13,
    /// #PF.
    PageFault = 14,
    /// #MF.
    X87 = 16,
    /// #AC.
    AlignmentCheck = 17,
    /// #MC.
    MachineCheck = 18,
    /// #XM.
    Simd = 19,
    /// #VE (Intel).
    Virtualization = 20,
    /// #CP.
    ControlProtection = 21,
    /// #VC (AMD).
    VmmCommunication = 29,
    /// #SX (AMD).
    Security = 30,
}

impl ExceptionKind {
    const ALL: [Self; 21] = [
        Self::DivideError,
        Self::Debug,
        Self::Breakpoint,
        Self::Overflow,
        Self::BoundRange,
        Self::InvalidOpcode,
        Self::DeviceNotAvailable,
        Self::DoubleFault,
        Self::InvalidTss,
        Self::SegmentNotPresent,
        Self::StackFault,
        Self::GeneralProtection,
        Self::PageFault,
        Self::X87,
        Self::AlignmentCheck,
        Self::MachineCheck,
        Self::Simd,
        Self::Virtualization,
        Self::ControlProtection,
        Self::VmmCommunication,
        Self::Security,
    ];

    /// The exception with this vector, if the architecture has one.
    #[must_use]
    pub fn from_vector(vector: Vector) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == vector)
    }

    /// Whether the CPU pushes an error code.
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        Self::vector_has_error_code(self as u8)
    }

    /// Whether the exception with this vector pushes an error code.
    #[must_use]
    pub const fn vector_has_error_code(vector: Vector) -> bool {
        matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
    }

    /// Whether the exception is a fault, whose instruction is executed again and whose frame therefore says RF: neither
    /// trap nor abort (SDM vol. 3, table 7-1). #DB can be either, and does not say RF where it is a fault.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        !matches!(
            self,
            Self::Debug | Self::Breakpoint | Self::Overflow | Self::DoubleFault | Self::MachineCheck
        )
    }

    /// Whether the exception counts as contributory for double faults (SDM vol. 3, table 7-4).
    #[must_use]
    pub const fn vector_is_contributory(vector: Vector) -> bool {
        matches!(vector, 0 | 10..=13 | 21)
    }
}

/// An exception to be raised in a guest, complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Which.
    pub kind: ExceptionKind,
    /// What is pushed, for those that push a code; 0 for the others.
    pub error_code: u32,
    /// The faulting linear address of a page fault, which goes to CR2; 0 for the others.
    pub address: u64,
}

impl Exception {
    /// #UD.
    pub const UNDEFINED: Self = Self::plain(ExceptionKind::InvalidOpcode);
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self::plain(ExceptionKind::GeneralProtection);
    /// #SS(0).
    pub const STACK: Self = Self::plain(ExceptionKind::StackFault);

    /// The exception with an error code of 0, where it has one.
    #[must_use]
    pub const fn plain(kind: ExceptionKind) -> Self {
        Self { kind, error_code: 0, address: 0 }
    }

    /// #PF with its error code and address.
    #[must_use]
    pub const fn page_fault(error_code: u32, address: u64) -> Self {
        Self { kind: ExceptionKind::PageFault, error_code, address }
    }
}

/// Bits of a page fault's error code (SDM vol. 3, figure 5-12).
pub mod page_fault {
    /// The page was present: a protection fault.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was made in user mode.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in an entry.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was an instruction fetch.
    pub const FETCH: u32 = 1 << 4;
    /// A protection key forbade it.
    pub const KEY: u32 = 1 << 5;
}
