//! A domain's ports.

use alloc::boxed::Box;

use caisson_abi::events::{PortState, PortStatus, Source};
use caisson_types::DomainId;

use crate::error::Error;
use crate::name::Name;
use crate::page::{self, Page, Word};
use crate::port::{Kind, Port};
use crate::sync::{AtomicU64, Ordering};

/// How often a port is looked at for its status while other vCPUs of its domain change it: more often than it can change
/// in one life.
const LOOKS: usize = 8;

/// What a domain has of events, in one of its lives.
pub(crate) struct Table<E> {
    domain: DomainId,
    /// The serial number of the life.
    life: u64,
    ports: Box<[Port]>,
    /// A bit for each port that is to be had. Who clears it has the port.
    free: Box<[AtomicU64]>,
    endpoint: E,
}

impl<E: Page> Table<E> {
    /// With `ports` free ports.
    pub(crate) fn new(domain: DomainId, life: u64, ports: u16, endpoint: E) -> Self {
        page::reset(&endpoint, ports);
        let group = |group: u16| {
            let there = ports - group * 64;
            AtomicU64::new(if there >= 64 { u64::MAX } else { (1 << there) - 1 })
        };
        Self {
            domain,
            life,
            ports: (0..ports).map(|_| Port::new()).collect(),
            free: (0..ports.div_ceil(64)).map(group).collect(),
            endpoint,
        }
    }

    pub(crate) fn domain(&self) -> DomainId {
        self.domain
    }

    /// The name of this life of the domain.
    pub(crate) fn life(&self) -> Name {
        Name::of_domain(self.domain, self.life)
    }

    pub(crate) fn into_endpoint(self) -> E {
        self.endpoint
    }

    pub(crate) fn port(&self, port: u16) -> Option<&Port> {
        self.ports.get(usize::from(port))
    }

    /// All ports.
    pub(crate) fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// Takes the lowest free port and begins its life.
    pub(crate) fn open(&self, kind: Kind, serial: u64, other: u64) -> Result<Name, Error> {
        let port = self.take().ok_or(Error::NoPorts)?;
        self.port(port).ok_or(Error::NoPorts)?.open(kind, serial, other);
        Ok(Name::new(self.domain, port, serial))
    }

    fn take(&self) -> Option<u16> {
        for (group, free) in (0..).zip(&self.free) {
            loop {
                let bits = free.load(Ordering::Relaxed);
                if bits == 0 {
                    break;
                }
                let bit = bits & bits.wrapping_neg();
                if free.fetch_and(!bit, Ordering::Acquire) & bit != 0 {
                    return Some(group * 64 + bit.trailing_zeros() as u16);
                }
            }
        }
        None
    }

    /// Ends the life of a port that is [`Kind::Closing`] and to which nobody new can send.
    pub(crate) fn end(&self, number: u16, port: &Port) {
        port.drain();
        self.release(number, port);
    }

    /// The last steps of that, when nobody pins the port.
    pub(crate) fn release(&self, number: u16, port: &Port) {
        page::forget(&self.endpoint, number);
        port.finish();
        if let Some(free) = self.free.get(usize::from(number / 64)) {
            free.fetch_or(1 << (number % 64), Ordering::Release);
        }
    }

    /// A port's own name and that of the port it is bound to.
    #[inline]
    pub(crate) fn connection(&self, number: u16) -> Result<(Name, Name), Error> {
        let (state, other) = self.port(number).ok_or(Error::BadPort)?.read();
        match (state.kind(), other) {
            (Kind::Bound, Some(other)) => {
                Ok((Name::new(self.domain, number, state.serial()), Name::from_bits(other)))
            }
            (Kind::Bound, None) | (Kind::Unbound | Kind::Claimed | Kind::Source, _) => {
                Err(Error::NotConnected)
            }
            (Kind::PeerClosed, _) => Err(Error::PeerClosed),
            (Kind::Free | Kind::Binding | Kind::Closing, _) => Err(Error::BadPort),
        }
    }

    /// An event from port `from` of a domain comes to port `to` of this one. Whether this one was interrupted.
    #[inline]
    pub(crate) fn receive(&self, to: Name, from: Name, interrupt: impl FnOnce(&E)) -> Result<bool, Error> {
        let port = self.port(to.port()).ok_or(Error::PeerClosed)?;
        let pin = port.pin(to.serial()).ok_or(Error::PeerClosed)?;
        if !matches!(pin.kind(), Kind::Bound | Kind::Binding) || port.other() != from.to_bits() {
            return Err(Error::PeerClosed);
        }
        let raise = page::deliver(&self.endpoint, to.port());
        drop(pin);
        Ok(self.raise(raise, interrupt))
    }

    /// An event from the source to which the port `to` is bound.
    #[inline]
    pub(crate) fn receive_from_source(&self, to: Name, interrupt: impl FnOnce(&E)) -> Result<bool, Error> {
        let port = self.port(to.port()).ok_or(Error::PeerClosed)?;
        let pin = port.pin(to.serial()).filter(|pin| pin.kind() == Kind::Source).ok_or(Error::PeerClosed)?;
        let raise = page::deliver(&self.endpoint, to.port());
        drop(pin);
        Ok(self.raise(raise, interrupt))
    }

    /// The peer of the port `to` goes: its domain is told, once. Whether it was now.
    pub(crate) fn lose_peer(&self, to: Name, interrupt: impl FnOnce(&E)) -> bool {
        let Some(pin) = self.port(to.port()).and_then(|port| port.lose_peer(to.serial())) else {
            return false;
        };
        let raise = page::deliver(&self.endpoint, to.port());
        drop(pin);
        self.raise(raise, interrupt);
        true
    }

    #[inline]
    fn raise(&self, raise: bool, interrupt: impl FnOnce(&E)) -> bool {
        if raise {
            interrupt(&self.endpoint);
        }
        raise
    }

    /// That the port is in use, as far as its domain knows.
    fn used(&self, port: u16) -> Result<(), Error> {
        match self.port(port).map(|port| port.state().kind()) {
            None | Some(Kind::Free | Kind::Binding | Kind::Closing) => Err(Error::BadPort),
            Some(_) => Ok(()),
        }
    }

    pub(crate) fn mask(&self, port: u16) -> Result<(), Error> {
        self.used(port)?;
        self.endpoint.set(Word::mask(port / 64), u32::from(port % 64));
        Ok(())
    }

    pub(crate) fn unmask(&self, port: u16, interrupt: impl FnOnce(&E)) -> Result<bool, Error> {
        self.used(port)?;
        Ok(self.raise(page::unmask(&self.endpoint, port), interrupt))
    }

    /// What became of the port. An offer comes with the name of the life that it is for.
    pub(crate) fn status(&self, number: u16) -> Result<(PortStatus, Option<Name>), Error> {
        let port = self.port(number).ok_or(Error::BadPort)?;
        let (mut state, mut offered) = (PortState::Free, None);
        for _ in 0..LOOKS {
            let (now, Some(other)) = port.read() else { continue };
            let name = Name::from_bits(other);
            state = match now.kind() {
                Kind::Free | Kind::Binding | Kind::Closing => PortState::Free,
                // Its name is half the old one's and half the new one's.
                Kind::Claimed => continue,
                Kind::Unbound => {
                    offered = Some(name);
                    PortState::Unbound { remote: name.domain() }
                }
                Kind::Bound => PortState::Bound { remote: name.domain(), port: name.port() },
                Kind::Source => Source::from_bits(other).map_or(PortState::Free, PortState::Source),
                Kind::PeerClosed => PortState::PeerClosed,
            };
            break;
        }
        let (pending, masked) = page::look(&self.endpoint, number);
        Ok((PortStatus { state, pending, masked }, offered))
    }
}
