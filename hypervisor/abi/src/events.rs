//! What events look like to a guest: its shared page, where events come from, the status of a port.
//!
//! The page is a domain's alone and Caisson's; `docs/events.md` has the protocol. All words are 64 bits, little-endian, and
//! are changed by locked instructions.
//!
//! | offset | words | what |
//! |---|--:|---|
//! | 0 | 1 | bit 0: something is pending that has not been looked at. Caisson sets it, and interrupts when it was clear |
//! | 0x200 | 64 | a bit for each port: an event has come. Caisson sets, the domain clears |
//! | 0x400 | 64 | a bit for each port: no interrupt for it. The domain sets and clears |
//!
//! Everything else is zero, and reserved.

use caisson_types::DomainId;

/// Words of the page.
pub const PAGE_WORDS: usize = 512;
/// The word whose bit 0 says that something is pending.
pub const ANY: usize = 0;
/// The first word of pending events.
pub const PENDING: usize = 64;
/// The first word of masks.
pub const MASK: usize = 128;
/// Ports that the page has room for.
pub const MAX_PORTS: u16 = 4096;

/// Where an event comes from, if not from another domain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// A guest with a device that the receiver serves has come or has ended.
    Backend,
    /// A domain's console has output, or room for input.
    Console {
        /// Whose.
        domain: DomainId,
    },
    /// A domain has been made, has ended, or has changed its state otherwise.
    DomainState {
        /// Which.
        domain: DomainId,
    },
    /// A guest has notified a queue of a device that the receiver serves.
    Channel {
        /// The device's channel.
        channel: u16,
        /// The queue.
        queue: u16,
    },
}

impl Source {
    /// As a word: the kind in bits 0 to 3, its numbers in bits 16 to 31 and 32 to 47.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        let (kind, first, second) = match self {
            Self::Backend => (0, 0, 0),
            Self::Console { domain } => (1, domain.0, 0),
            Self::DomainState { domain } => (2, domain.0, 0),
            Self::Channel { channel, queue } => (3, channel, queue),
        };
        kind | (first as u64) << 16 | (second as u64) << 32
    }

    /// The reverse; `None` for a kind that does not exist. Bits without a meaning are not looked at.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        let (first, second) = ((bits >> 16) as u16, (bits >> 32) as u16);
        Some(match bits & 0xf {
            0 => Self::Backend,
            1 => Self::Console { domain: DomainId(first) },
            2 => Self::DomainState { domain: DomainId(first) },
            3 => Self::Channel { channel: first, queue: second },
            _ => return None,
        })
    }
}

/// What a port is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PortState {
    /// Not in use.
    Free,
    /// Offered to a domain, which has not bound to it yet.
    Unbound {
        /// That domain.
        remote: DomainId,
    },
    /// Connected to a port of a domain, which may be the same.
    Bound {
        /// That domain.
        remote: DomainId,
        /// Its port.
        port: u16,
    },
    /// Connected to a source of Caisson's.
    Source(Source),
    /// The other side has closed, or is gone.
    PeerClosed,
}

/// The answer of [`Number::EventStatus`](crate::Number::EventStatus).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PortStatus {
    /// What the port is.
    pub state: PortState,
    /// Its bit among the pending events, as it is in the shared page.
    pub pending: bool,
    /// Its bit among the masks, likewise.
    pub masked: bool,
}

impl PortStatus {
    /// As a word: the state in bits 0 to 3 (0 free, 1 unbound, 2 bound, 3 source, 4 closed by its peer), a source's kind in
    /// bits 4 to 7, pending in bit 8, masked in bit 9, the domain or the source's first number in bits 16 to 31, the port
    /// or the source's second number in bits 32 to 47.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        let state = match self.state {
            PortState::Free => 0,
            PortState::Unbound { remote } => 1 | (remote.0 as u64) << 16,
            PortState::Bound { remote, port } => 2 | (remote.0 as u64) << 16 | (port as u64) << 32,
            PortState::Source(source) => 3 | (source.to_bits() & 0xf) << 4 | source.to_bits() & !0xf,
            PortState::PeerClosed => 4,
        };
        state | (self.pending as u64) << 8 | (self.masked as u64) << 9
    }

    /// The reverse; `None` for what no answer looks like.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        let (remote, port) = (DomainId((bits >> 16) as u16), (bits >> 32) as u16);
        let state = match bits & 0xf {
            0 => PortState::Free,
            1 => PortState::Unbound { remote },
            2 => PortState::Bound { remote, port },
            3 => match Source::from_bits(bits >> 4 & 0xf | bits & !0xf) {
                Some(source) => PortState::Source(source),
                None => return None,
            },
            4 => PortState::PeerClosed,
            _ => return None,
        };
        Some(Self { state, pending: bits >> 8 & 1 != 0, masked: bits >> 9 & 1 != 0 })
    }
}

const _: () = assert!(PENDING + MAX_PORTS as usize / 64 <= MASK);
const _: () = assert!(MASK + MAX_PORTS as usize / 64 <= PAGE_WORDS);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source() -> impl Strategy<Value = Source> {
        (0..4u8, any::<u16>(), any::<u16>()).prop_map(|(kind, first, second)| match kind {
            0 => Source::Backend,
            1 => Source::Console { domain: DomainId(first) },
            2 => Source::DomainState { domain: DomainId(first) },
            _ => Source::Channel { channel: first, queue: second },
        })
    }

    fn state() -> impl Strategy<Value = PortState> {
        prop_oneof![
            Just(PortState::Free),
            any::<u16>().prop_map(|remote| PortState::Unbound { remote: DomainId(remote) }),
            any::<(u16, u16)>()
                .prop_map(|(remote, port)| PortState::Bound { remote: DomainId(remote), port }),
            source().prop_map(PortState::Source),
            Just(PortState::PeerClosed),
        ]
    }

    proptest! {
        #[test]
        fn words_lead_back(state in state(), pending: bool, masked: bool, other: u64) {
            let status = PortStatus { state, pending, masked };
            prop_assert_eq!(PortStatus::from_bits(status.to_bits()), Some(status));
            prop_assert!(status.to_bits() >> 63 == 0, "an answer that says yes");
            if let PortState::Source(source) = state {
                prop_assert_eq!(Source::from_bits(source.to_bits()), Some(source));
            }
            // Any other word is read without a panic.
            let _ = (PortStatus::from_bits(other), Source::from_bits(other));
        }
    }
}
