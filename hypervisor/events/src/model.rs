//! The same operations, one at a time and by plain means: what a [`Registry`](crate::Registry) is held against.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use caisson_abi::events::{ANY, MASK, PAGE_WORDS, PENDING, PortState, PortStatus, Source};
use caisson_types::DomainId;

use crate::Error;

/// Where a port is: domain and number.
pub(crate) type Place = (u16, u16);

/// A port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Port {
    Free,
    /// Offered to a domain in one of its lives.
    Unbound(u16, u32),
    Bound(Place),
    Source(Source),
    PeerClosed,
}

/// A domain.
#[derive(Debug)]
pub(crate) struct Domain {
    life: u32,
    ports: Vec<Port>,
    pub(crate) page: [u64; PAGE_WORDS],
}

/// All domains.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) domains: BTreeMap<u16, Domain>,
    lives: u32,
    /// Domains that have been interrupted, since somebody looked.
    pub(crate) interrupted: Vec<u16>,
}

fn word(first: usize, port: u16) -> usize {
    first + usize::from(port / 64)
}

fn bit(port: u16) -> u64 {
    1 << (port % 64)
}

impl Domain {
    fn open(&mut self, port: Port) -> Result<u16, Error> {
        let at = self.ports.iter().position(|port| *port == Port::Free).ok_or(Error::NoPorts)?;
        self.ports[at] = port;
        Ok(at as u16)
    }

    fn port(&self, port: u16) -> Result<Port, Error> {
        self.ports.get(usize::from(port)).copied().ok_or(Error::BadPort)
    }

    fn used(&self, port: u16) -> Result<Port, Error> {
        self.port(port).and_then(|port| if port == Port::Free { Err(Error::BadPort) } else { Ok(port) })
    }
}

impl Model {
    pub(crate) fn join(&mut self, domain: u16, ports: u16, page: [u64; PAGE_WORDS]) {
        self.lives += 1;
        let ports = alloc::vec![Port::Free; usize::from(ports)];
        let mut domain_ = Domain { life: self.lives, ports, page };
        domain_.page[ANY] = 0;
        for group in 0..domain_.ports.len().div_ceil(64) {
            domain_.page[PENDING + group] = 0;
            domain_.page[MASK + group] = 0;
        }
        self.domains.insert(domain, domain_);
    }

    /// How many others were told.
    pub(crate) fn leave(&mut self, domain: u16) -> Option<usize> {
        let gone = self.domains.remove(&domain)?;
        let peers = gone.ports.iter().filter_map(|port| match port {
            Port::Bound(peer) if peer.0 != domain => Some(*peer),
            _ => None,
        });
        let peers: Vec<_> = peers.collect();
        for &peer in &peers {
            self.lose_peer(peer);
        }
        Some(peers.len())
    }

    fn life(&self, domain: u16) -> Option<u32> {
        self.domains.get(&domain).map(|domain| domain.life)
    }

    fn deliver(&mut self, (domain, port): Place) -> bool {
        let Some(to) = self.domains.get_mut(&domain) else { return false };
        let pending = &mut to.page[word(PENDING, port)];
        let was = *pending & bit(port) != 0;
        *pending |= bit(port);
        if was || to.page[word(MASK, port)] & bit(port) != 0 {
            return false;
        }
        self.any(domain)
    }

    fn any(&mut self, domain: u16) -> bool {
        let Some(to) = self.domains.get_mut(&domain) else { return false };
        let was = to.page[ANY] & 1 != 0;
        to.page[ANY] |= 1;
        if !was {
            self.interrupted.push(domain);
        }
        !was
    }

    fn lose_peer(&mut self, peer: Place) {
        if let Some(domain) = self.domains.get_mut(&peer.0) {
            domain.ports[usize::from(peer.1)] = Port::PeerClosed;
        }
        self.deliver(peer);
    }

    pub(crate) fn allocate(&mut self, owner: u16, remote: u16) -> Result<u16, Error> {
        let life = self.life(remote);
        let own = self.domains.get_mut(&owner).ok_or(Error::NoPorts)?;
        own.open(Port::Unbound(remote, life.ok_or(Error::NoSuchDomain)?))
    }

    pub(crate) fn bind(&mut self, owner: u16, remote: u16, port: u16) -> Result<u16, Error> {
        let life = self.life(owner).ok_or(Error::NoPorts)?;
        let theirs = self.domains.get(&remote).ok_or(Error::NoSuchDomain)?;
        if theirs.port(port) != Ok(Port::Unbound(owner, life)) {
            return Err(Error::Refused);
        }
        let own = self.domains.get_mut(&owner).ok_or(Error::NoPorts)?;
        let ours = own.open(Port::Bound((remote, port)))?;
        if let Some(theirs) = self.domains.get_mut(&remote) {
            theirs.ports[usize::from(port)] = Port::Bound((owner, ours));
        }
        Ok(ours)
    }

    pub(crate) fn bind_source(&mut self, owner: u16, source: Source) -> Result<u16, Error> {
        self.domains.get_mut(&owner).ok_or(Error::NoPorts)?.open(Port::Source(source))
    }

    pub(crate) fn close(&mut self, owner: u16, port: u16) -> Result<bool, Error> {
        let own = self.domains.get_mut(&owner).ok_or(Error::BadPort)?;
        let before = own.used(port)?;
        own.ports[usize::from(port)] = Port::Free;
        let told = match before {
            Port::Bound(peer) => {
                self.lose_peer(peer);
                true
            }
            _ => false,
        };
        if let Some(own) = self.domains.get_mut(&owner) {
            own.page[word(PENDING, port)] &= !bit(port);
            own.page[word(MASK, port)] &= !bit(port);
        }
        Ok(told)
    }

    pub(crate) fn send(&mut self, owner: u16, port: u16) -> Result<bool, Error> {
        match self.domains.get(&owner).ok_or(Error::BadPort)?.used(port)? {
            Port::Bound(peer) => Ok(self.deliver(peer)),
            Port::PeerClosed => Err(Error::PeerClosed),
            _ => Err(Error::NotConnected),
        }
    }

    /// From the source that was bound to a port in this life of it, as the caller knows.
    pub(crate) fn notify(&mut self, to: Place) -> bool {
        self.deliver(to)
    }

    pub(crate) fn mask(&mut self, owner: u16, port: u16) -> Result<(), Error> {
        let own = self.domains.get_mut(&owner).ok_or(Error::BadPort)?;
        own.used(port)?;
        own.page[word(MASK, port)] |= bit(port);
        Ok(())
    }

    pub(crate) fn unmask(&mut self, owner: u16, port: u16) -> Result<bool, Error> {
        let own = self.domains.get_mut(&owner).ok_or(Error::BadPort)?;
        own.used(port)?;
        own.page[word(MASK, port)] &= !bit(port);
        let pending = own.page[word(PENDING, port)] & bit(port) != 0;
        Ok(pending && self.any(owner))
    }

    pub(crate) fn status(&self, owner: u16, port: u16) -> Result<PortStatus, Error> {
        let own = self.domains.get(&owner).ok_or(Error::BadPort)?;
        let state = match own.port(port)? {
            Port::Free => PortState::Free,
            Port::Unbound(remote, life) if self.life(remote) == Some(life) => {
                PortState::Unbound { remote: DomainId(remote) }
            }
            Port::Unbound(..) | Port::PeerClosed => PortState::PeerClosed,
            Port::Bound((remote, port)) => PortState::Bound { remote: DomainId(remote), port },
            Port::Source(source) => PortState::Source(source),
        };
        let set = |first| own.page[word(first, port)] & bit(port) != 0;
        Ok(PortStatus { state, pending: set(PENDING), masked: set(MASK) })
    }
}
