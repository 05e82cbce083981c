//! Kinds of exits, for those who count them.

use core::fmt;

use crate::Exit;

/// Makes the enum, its list and its names from one table.
macro_rules! classes {
    ($($(#[$doc:meta])* $class:ident $name:literal,)*) => {
        /// The kind of an [`Exit`]: a small number without a gap, which arrays can be indexed by.
        ///
        /// The numbers are not stable between versions of Caisson; the names are.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum ExitClass {
            $($(#[$doc])* $class,)*
        }

        impl ExitClass {
            /// All of them, each at its own index.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$class),*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// What people call it: at most 12 characters, lower case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$class => $name,)*
                }
            }
        }
    };
}

classes! {
    /// CPUID.
    Cpuid "cpuid",
    /// RDMSR.
    ReadMsr "rdmsr",
    /// WRMSR.
    WriteMsr "wrmsr",
    /// A port access.
    Port "port",
    /// A hypercall.
    Hypercall "hypercall",
    /// HLT.
    Halt "hlt",
    /// PAUSE.
    Pause "pause",
    /// An access that stage 2 did not allow: MMIO, as a rule.
    Stage2 "mmio",
    /// A full log of written pages.
    LogFull "log-full",
    /// A physical interrupt.
    Interrupt "interrupt",
    /// A physical NMI.
    Nmi "nmi",
    /// A window for an interrupt or NMI.
    Window "window",
    /// What the hardware's virtual local APIC leaves to the core.
    Apic "apic",
    /// An access to CR0, CR4 or CR8.
    ControlRegister "cr",
    /// An access to a debug register.
    DebugRegister "dr",
    /// XSETBV.
    Xsetbv "xsetbv",
    /// INVD, WBINVD or WBNOINVD.
    CacheFlush "wbinvd",
    /// RDPMC.
    ReadCounter "rdpmc",
    /// An instruction that the virtual machine does not have.
    Unsupported "unsupported",
    /// An exception, or an x87 error served by interrupt.
    Exception "exception",
    /// A task switch.
    TaskSwitch "task-switch",
    /// What ends a guest or its vCPU: triple fault, INIT, a refused entry, an exit without a name.
    Fatal "fatal",
}

impl ExitClass {
    /// Its index in [`ExitClass::ALL`], below [`ExitClass::COUNT`].
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The class at `index`; `None` from [`ExitClass::COUNT`] on.
    #[must_use]
    pub const fn at(index: usize) -> Option<Self> {
        if index < Self::COUNT { Some(Self::ALL[index]) } else { None }
    }
}

impl fmt::Display for ExitClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Exit {
    /// Its kind: a look-up by the variant.
    #[inline(always)]
    #[must_use]
    pub const fn class(&self) -> ExitClass {
        match self {
            Self::Cpuid => ExitClass::Cpuid,
            Self::ReadMsr => ExitClass::ReadMsr,
            Self::WriteMsr => ExitClass::WriteMsr,
            Self::Io(_) => ExitClass::Port,
            Self::Hypercall => ExitClass::Hypercall,
            Self::Halt => ExitClass::Halt,
            Self::Pause => ExitClass::Pause,
            Self::NestedFault(_) => ExitClass::Stage2,
            Self::LogFull => ExitClass::LogFull,
            Self::ExternalInterrupt => ExitClass::Interrupt,
            Self::Nmi => ExitClass::Nmi,
            Self::InterruptWindow | Self::NmiWindow => ExitClass::Window,
            Self::WriteCr4(_) | Self::WriteCr0(_) | Self::WriteCr8(_) | Self::ReadCr8(_) => {
                ExitClass::ControlRegister
            }
            Self::EndOfInterrupt(_) | Self::ApicWrite { .. } => ExitClass::Apic,
            Self::Debug(_) => ExitClass::DebugRegister,
            Self::Xsetbv => ExitClass::Xsetbv,
            Self::CacheFlush => ExitClass::CacheFlush,
            Self::Unsupported => ExitClass::Unsupported,
            Self::ReadCounter => ExitClass::ReadCounter,
            Self::Exception { .. } | Self::X87Error => ExitClass::Exception,
            Self::TaskSwitch { .. } => ExitClass::TaskSwitch,
            Self::TripleFault | Self::Init | Self::EntryFailure { .. } | Self::Unknown { .. } => {
                ExitClass::Fatal
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_have_no_gap_and_names_fit_a_table() {
        for (index, class) in ExitClass::ALL.into_iter().enumerate() {
            assert_eq!(class.index(), index);
            assert_eq!(ExitClass::at(index), Some(class));
            assert!((1..=12).contains(&class.name().len()), "{class}");
            assert!(ExitClass::ALL.iter().all(|other| *other == class || other.name() != class.name()));
        }
        assert_eq!(ExitClass::at(ExitClass::COUNT), None);
        assert_eq!(ExitClass::at(usize::MAX), None);
    }

    #[test]
    fn exits_have_their_class() {
        assert_eq!(Exit::Cpuid.class(), ExitClass::Cpuid);
        assert_eq!(Exit::ReadCr8(caisson_x86::Gpr::Rax).class(), ExitClass::ControlRegister);
        assert_eq!(Exit::EntryFailure { reason: 1, qualification: 2 }.class(), ExitClass::Fatal);
    }
}
