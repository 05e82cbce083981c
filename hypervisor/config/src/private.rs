//! Memory of a domain that nobody else ever sees, not even who serves its devices.

use core::fmt;

use crate::error::Size;

/// Private memory is given in multiples of this many bytes: what Linux maps of soft-reserved memory at a time (`device_dax`).
pub const PRIVATE_GRANULE: u64 = 2 << 20;

/// The least that a domain with private memory has beside that, in bytes.
pub const MIN_SHARED: u64 = PRIVATE_GRANULE;

/// What is wrong with an amount of private memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrivateReason {
    /// It is no multiple of [`PRIVATE_GRANULE`].
    NotGranules(u64),
    /// The domain's memory, of so many bytes, is none, so that its end cannot be private.
    MemoryNotGranules(u64),
    /// It leaves less than [`MIN_SHARED`].
    TooLarge {
        /// What is to be private.
        private: u64,
        /// The domain's memory.
        memory: u64,
    },
    /// The domain owns PCI functions, and so sees its memory where the machine has it.
    OwnsFunctions,
}

impl fmt::Display for PrivateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let granule = Size(PRIVATE_GRANULE);
        match *self {
            Self::NotGranules(bytes) => {
                write!(f, "{} is not a multiple of {granule}; write e.g. \"64M\"", Size(bytes))
            }
            Self::MemoryNotGranules(memory) => write!(
                f,
                "the memory of {} is not a multiple of {granule}, as it has to be to end with a private part; make it one",
                Size(memory)
            ),
            Self::TooLarge { private, memory } => write!(
                f,
                "{} of {} leaves less than {} for everything else; lower it, or give the domain more memory",
                Size(private),
                Size(memory),
                Size(MIN_SHARED)
            ),
            Self::OwnsFunctions => {
                f.write_str("a domain that owns PCI functions can have none; leave the line out")
            }
        }
    }
}

/// Checks an amount of private memory against the domain's memory, and whether it owns PCI functions.
pub(crate) fn check(private: u64, memory: u64, owns_functions: bool) -> Result<(), PrivateReason> {
    if private == 0 {
        Ok(())
    } else if !private.is_multiple_of(PRIVATE_GRANULE) {
        Err(PrivateReason::NotGranules(private))
    } else if !memory.is_multiple_of(PRIVATE_GRANULE) {
        Err(PrivateReason::MemoryNotGranules(memory))
    } else if memory.checked_sub(private).is_none_or(|rest| rest < MIN_SHARED) {
        Err(PrivateReason::TooLarge { private, memory })
    } else if owns_functions {
        Err(PrivateReason::OwnsFunctions)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts() {
        const MIB: u64 = 1 << 20;
        for (private, memory) in
            [(0, MIB + 4096), (2 * MIB, 4 * MIB), (62 * MIB, 64 * MIB), (3 << 40, 4 << 40)]
        {
            assert_eq!(check(private, memory, false), Ok(()), "{private:#x} of {memory:#x}");
        }
        assert_eq!(check(0, MIB, true), Ok(()));
        assert_eq!(check(2 * MIB, 4 * MIB, true), Err(PrivateReason::OwnsFunctions));
        for private in [1, 4096, MIB, 3 * MIB, u64::MAX] {
            assert_eq!(check(private, 64 * MIB, false), Err(PrivateReason::NotGranules(private)));
        }
        for memory in [MIB, 63 * MIB, 64 * MIB + 4096] {
            assert_eq!(check(2 * MIB, memory, false), Err(PrivateReason::MemoryNotGranules(memory)));
        }
        for private in [64 * MIB, 66 * MIB, u64::MAX - 2 * MIB + 1] {
            let memory = 64 * MIB;
            assert_eq!(check(private, memory, false), Err(PrivateReason::TooLarge { private, memory }));
        }
    }
}
