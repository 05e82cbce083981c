//! Names that are never used twice.

use caisson_types::DomainId;

/// The most domains that a [`Registry`](crate::Registry) has room for.
pub const MAX_DOMAINS: usize = 1 << DOMAIN_BITS;

const DOMAIN_BITS: u32 = 12;
const PORT_BITS: u32 = 12;
/// Bits of a serial number.
pub(crate) const SERIAL_BITS: u32 = 64 - DOMAIN_BITS - PORT_BITS;
const DOMAIN_SHIFT: u32 = PORT_BITS + SERIAL_BITS;

/// A port of a domain from when it is made until it is closed: domain, number, and a serial number that tells it from the
/// port's other lives, and the domain's. A name that has been kept for too long names nothing.
///
/// Serial numbers have 40 bits and begin anew after 2^40 ports have been made, by all domains together. At a million a
/// second that is after twelve days; a name is then wrong only if it was kept all the while, and the same number came up
/// for the same port again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Name(u64);

impl Name {
    /// `domain` is below [`MAX_DOMAINS`] and `port` below [`MAX_PORTS`](caisson_abi::events::MAX_PORTS): else some other
    /// name results.
    pub(crate) const fn new(domain: DomainId, port: u16, serial: u64) -> Self {
        let domain = domain.0 as u64 & ((1 << DOMAIN_BITS) - 1);
        let port = port as u64 & ((1 << PORT_BITS) - 1);
        Self(domain << DOMAIN_SHIFT | port << SERIAL_BITS | serial & SERIAL_MASK)
    }

    /// The name of a domain's life as a whole.
    pub(crate) const fn of_domain(domain: DomainId, serial: u64) -> Self {
        Self::new(domain, 0, serial)
    }

    /// Whose port it is.
    #[must_use]
    pub const fn domain(self) -> DomainId {
        DomainId((self.0 >> DOMAIN_SHIFT) as u16)
    }

    /// The port's number.
    #[must_use]
    pub const fn port(self) -> u16 {
        (self.0 >> SERIAL_BITS) as u16 & ((1 << PORT_BITS) - 1)
    }

    pub(crate) const fn serial(self) -> u64 {
        self.0 & SERIAL_MASK
    }

    /// As a word, for who keeps it in an atomic one. Never 0.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The reverse. A word that [`Name::to_bits`] never gave names nothing.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

pub(crate) const SERIAL_MASK: u64 = (1 << SERIAL_BITS) - 1;

const _: () = assert!(1 << PORT_BITS == caisson_abi::events::MAX_PORTS);

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_keeps_its_parts(domain in 0..MAX_DOMAINS as u16, port in 0..4096u16, serial in 1..=SERIAL_MASK) {
            let name = Name::new(DomainId(domain), port, serial);
            prop_assert_eq!((name.domain(), name.port(), name.serial()), (DomainId(domain), port, serial));
            prop_assert_eq!(Name::from_bits(name.to_bits()), name);
            prop_assert_ne!(name.to_bits(), 0);
        }
    }
}
