//! Who owns which functions.

use alloc::vec::Vec;
use core::fmt;

use crate::{Address, Function};

/// Which functions a guest is to own: these; none: all that no other guest names.
pub type Choice = Option<Vec<Address>>;

/// The guests that own functions, by their numbers in the configuration.
#[derive(Clone, Debug, Default)]
pub struct Owners(Vec<(usize, Choice)>);

/// Why a machine's functions cannot be owned as a configuration wants it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OwnerError {
    /// A function is not there, or is the mainboard's.
    Missing {
        /// Who names it.
        guest: usize,
        /// The function.
        address: Address,
        /// Those that can be named.
        there: Vec<Address>,
    },
    /// A function has nothing but its pin to interrupt by, whose line is another guest's.
    NeedsLine {
        /// Who names it.
        guest: usize,
        /// The function.
        address: Address,
        /// Whose lines are.
        owner: usize,
    },
}

impl OwnerError {
    /// Whose choice is at fault.
    #[must_use]
    pub fn guest(&self) -> usize {
        match self {
            Self::Missing { guest, .. } | Self::NeedsLine { guest, .. } => *guest,
        }
    }
}

impl fmt::Display for OwnerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// As many functions are told of as fit into a line.
        const TOLD: usize = 12;
        match self {
            Self::Missing { address, there, .. } if there.is_empty() => {
                write!(
                    f,
                    "this machine has no PCI function {address} to own, and no other; leave the line out"
                )
            }
            Self::Missing { address, there, .. } => {
                write!(f, "this machine has no PCI function {address} to own; name others, of")?;
                let told = there.iter().take(TOLD).enumerate();
                told.into_iter().try_for_each(|(index, address)| {
                    write!(f, "{} {address}", if index == 0 { "" } else { "," })
                })?;
                match there.len().saturating_sub(TOLD) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            Self::NeedsLine { address, owner, .. } => write!(
                f,
                "{address} interrupts by its pin alone, and the lines of pins are domain[{owner}]'s; name it there, or nowhere"
            ),
        }
    }
}

impl Owners {
    /// These, each with what it is to own. No two have chosen the same function, or all others'.
    #[must_use]
    pub fn new(choices: Vec<(usize, Choice)>) -> Self {
        Self(choices)
    }

    /// The guests.
    pub fn guests(&self) -> impl Iterator<Item = usize> + Clone {
        self.0.iter().map(|(guest, _)| *guest)
    }

    /// Who owns a function, if anybody does.
    #[must_use]
    pub fn owner(&self, function: &Function) -> Option<usize> {
        if function.is_mainboard() {
            return None;
        }
        let names = |choice: &Choice| choice.as_ref().is_some_and(|named| named.contains(&function.address));
        let owner = self.0.iter().find(|(_, choice)| names(choice)).or_else(|| self.rest());
        owner.map(|(guest, _)| *guest)
    }

    /// Who has the lines that the functions' pins lead to: who owns what nobody names, or the first. Which function's pin leads
    /// to which line only ACPI's code tells, and functions of several owners might share one. The others' functions have
    /// messages alone.
    #[must_use]
    pub fn line_owner(&self) -> Option<usize> {
        self.rest().or(self.0.first()).map(|(guest, _)| *guest)
    }

    /// Checks that a machine with these functions has those that are named, and that each can interrupt its owner.
    ///
    /// # Errors
    /// The first that is not there, or cannot.
    pub fn check<'a>(
        &self,
        functions: &(impl Iterator<Item = &'a Function> + Clone),
    ) -> Result<(), OwnerError> {
        for (guest, named) in self.0.iter().filter_map(|(guest, choice)| Some((*guest, choice.as_ref()?))) {
            for &address in named {
                let mut all = functions.clone().filter(|function| !function.is_mainboard());
                let Some(function) = all.find(|function| function.address == address) else {
                    let all = functions.clone().filter(|function| !function.is_mainboard());
                    let there = all.map(|function| function.address).collect();
                    return Err(OwnerError::Missing { guest, address, there });
                };
                let has_messages = function.msi.is_some() || function.msix.is_some();
                if let Some(owner) = self.line_owner().filter(|&owner| owner != guest)
                    && function.pin != 0
                    && !has_messages
                {
                    return Err(OwnerError::NeedsLine { guest, address, owner });
                }
            }
        }
        Ok(())
    }

    fn rest(&self) -> Option<&(usize, Choice)> {
        self.0.iter().find(|(_, choice)| choice.is_none())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;
    use crate::testing::{BRIDGE, DISK, HOST_BRIDGE, NETWORK, SMALL, functions, machine};

    fn owners(choices: &[(usize, Option<&[Address]>)]) -> Owners {
        Owners::new(choices.iter().map(|(guest, named)| (*guest, named.map(<[_]>::to_vec))).collect())
    }

    #[test]
    fn what_is_named_is_taken_from_the_rest() {
        let found = functions(&mut machine());
        let owner = |owners: &Owners, at| owners.owner(found.iter().find(|one| one.address == at).unwrap());
        let some = owners(&[(4, None), (2, Some(&[DISK, SMALL[1]]))]);
        assert_eq!(
            [DISK, SMALL[1], SMALL[0], NETWORK].map(|at| owner(&some, at)),
            [Some(2), Some(2), Some(4), Some(4)]
        );
        assert_eq!([HOST_BRIDGE, BRIDGE].map(|at| owner(&some, at)), [None, None]);
        assert_eq!((some.line_owner(), some.check(&found.iter())), (Some(4), Ok(())));
        let few = owners(&[(2, Some(&[DISK])), (3, Some(&[NETWORK]))]);
        assert_eq!([DISK, SMALL[1], NETWORK].map(|at| owner(&few, at)), [Some(2), None, Some(3)]);
        assert_eq!((few.line_owner(), few.check(&found.iter())), (Some(2), Ok(())));
        assert_eq!(Owners::default().line_owner(), None);
    }

    #[test]
    fn what_cannot_be_owned_is_told() {
        let mut found = functions(&mut machine());
        let reason =
            |found: &[Function], owners: &Owners| owners.check(&found.iter()).unwrap_err().to_string();
        let nobody = Address::new(0, 0, 9, 0);
        for at in [nobody, BRIDGE, HOST_BRIDGE] {
            assert_eq!(
                reason(&found, &owners(&[(0, Some(&[DISK, at]))])),
                alloc::format!(
                    "this machine has no PCI function {at} to own; name others, of 0000:00:04.0, 0000:00:05.0, 0000:00:05.1, 0000:01:00.0"
                )
            );
        }
        assert!(reason(&[], &owners(&[(0, Some(&[DISK]))])).ends_with("and no other; leave the line out"));
        found.iter_mut().filter(|one| one.address == NETWORK).for_each(|one| one.msi = None);
        assert_eq!(
            reason(&found, &owners(&[(0, None), (3, Some(&[NETWORK]))])),
            "0000:01:00.0 interrupts by its pin alone, and the lines of pins are domain[0]'s; name it there, or nowhere"
        );
        assert_eq!(owners(&[(3, Some(&[NETWORK]))]).check(&found.iter()), Ok(()));
    }
}
