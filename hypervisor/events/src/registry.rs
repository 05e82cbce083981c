//! All domains' ports, and what they do to each other's.

use alloc::boxed::Box;

use caisson_abi::events::{PortState, PortStatus, Source};
use caisson_abi::{CallResult, EventCall};
use caisson_types::DomainId;

use crate::error::{Error, JoinError};
use crate::name::{MAX_DOMAINS, Name, SERIAL_MASK};
use crate::page::Page;
use crate::port::Kind;
use crate::sync::{AtomicU64, Ordering, Slot};
use crate::table::Table;

/// Where a domain is between its coming and its going.
mod phase {
    pub(super) const ABSENT: u64 = 0;
    pub(super) const COMING: u64 = 1;
    pub(super) const HERE: u64 = 2;
    pub(super) const GOING: u64 = 3;
}

/// A domain's place.
#[repr(align(64))]
struct Seat<E> {
    phase: AtomicU64,
    table: Slot<Table<E>>,
}

/// The ports of all domains. `E` is a domain's shared page, with whatever the caller needs to interrupt that domain.
///
/// Operations take a closure `interrupt`, which is called with the endpoint of the domain that must be interrupted, if one
/// must. The endpoint stays for as long as the closure runs; so the closure must not wait for a domain to leave.
pub struct Registry<E> {
    seats: Box<[Seat<E>]>,
    /// The last serial number that was given out.
    serials: AtomicU64,
}

/// What a domain leaves behind.
#[derive(Debug)]
pub struct Left<E> {
    /// Its endpoint, which nobody reaches any more.
    pub endpoint: E,
    /// How many ports of others have lost their peer, and were told.
    pub told: usize,
}

impl<E: Page> Registry<E> {
    /// Room for domains with numbers below `domains`, and no more than [`MAX_DOMAINS`]. Allocates.
    #[must_use]
    pub fn new(domains: usize) -> Self {
        let seat = |_| Seat { phase: AtomicU64::new(phase::ABSENT), table: Slot::empty() };
        Self { seats: (0..domains.min(MAX_DOMAINS)).map(seat).collect(), serials: AtomicU64::new(0) }
    }

    pub(crate) fn serial(&self) -> u64 {
        loop {
            let serial = self.serials.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & SERIAL_MASK;
            if serial != 0 {
                return serial;
            }
        }
    }

    fn seat(&self, domain: DomainId) -> Option<&Seat<E>> {
        self.seats.get(usize::from(domain.0))
    }

    /// Takes a domain in, with `ports` ports, and zeroes what they use of its page. Allocates.
    ///
    /// # Errors
    /// [`JoinError`]; the endpoint is then dropped.
    pub fn join(&self, domain: DomainId, ports: u16, endpoint: E) -> Result<(), JoinError> {
        if !(1..=caisson_abi::events::MAX_PORTS).contains(&ports) {
            return Err(JoinError::Ports);
        }
        let seat = self.seat(domain).ok_or(JoinError::NoRoom)?;
        let begun =
            seat.phase.compare_exchange(phase::ABSENT, phase::COMING, Ordering::AcqRel, Ordering::Relaxed);
        begun.map_err(|_| JoinError::Exists)?;
        seat.table.replace(Some(Table::new(domain, self.serial(), ports, endpoint)));
        seat.phase.store(phase::HERE, Ordering::Release);
        Ok(())
    }

    /// A domain's end: all its ports are closed, and each peer is told once. When this returns, nobody reaches its endpoint
    /// any more. `None` if the domain is not in. Frees memory.
    pub fn leave(&self, domain: DomainId, mut interrupt: impl FnMut(&E)) -> Option<Left<E>> {
        let seat = self.seat(domain)?;
        seat.phase.compare_exchange(phase::HERE, phase::GOING, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        let table = seat.table.replace(None)?;
        let mut told = 0;
        for port in table.ports() {
            if port.state().kind() == Kind::Bound {
                let peer = Name::from_bits(port.other());
                let lost = |table: &Table<E>| table.lose_peer(peer, &mut interrupt);
                told += usize::from(self.look(peer.domain(), lost).unwrap_or(false));
            }
        }
        seat.phase.store(phase::ABSENT, Ordering::Release);
        Some(Left { endpoint: table.into_endpoint(), told })
    }

    /// Looks at a domain's ports. `None`, without waiting, if it is not in, or is coming or going.
    #[inline]
    pub(crate) fn look<R>(&self, domain: DomainId, with: impl FnOnce(&Table<E>) -> R) -> Option<R> {
        let table = self.seat(domain)?.table.look()?;
        table.as_ref().map(with)
    }

    /// Looks at the ports of a domain of which `own` may be one already looked at.
    #[inline]
    fn beside<R>(&self, own: &Table<E>, domain: DomainId, with: impl FnOnce(&Table<E>) -> R) -> Option<R> {
        if own.domain() == domain { Some(with(own)) } else { self.look(domain, with) }
    }

    /// A new port of `owner`, offered to `remote` as it lives now: to a domain of the same number that comes later it is
    /// not.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`], [`Error::NoPorts`].
    pub fn allocate(&self, owner: DomainId, remote: DomainId) -> Result<u16, Error> {
        let allocate = |own: &Table<E>| {
            let life = self.beside(own, remote, Table::life).ok_or(Error::NoSuchDomain)?;
            own.open(Kind::Unbound, self.serial(), life.to_bits()).map(Name::port)
        };
        self.look(owner, allocate).unwrap_or(Err(Error::NoPorts))
    }

    /// A new port of `owner`, connected to `port` of `remote`, which that domain has allocated for `owner`.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`], [`Error::Refused`], [`Error::NoPorts`].
    pub fn bind(&self, owner: DomainId, remote: DomainId, port: u16) -> Result<u16, Error> {
        let bind = |own: &Table<E>| {
            let beside = |remote: &Table<E>| self.bind_to(own, remote, port);
            self.beside(own, remote, beside).unwrap_or(Err(Error::NoSuchDomain))
        };
        self.look(owner, bind).unwrap_or(Err(Error::NoPorts))
    }

    fn bind_to(&self, own: &Table<E>, remote: &Table<E>, number: u16) -> Result<u16, Error> {
        let theirs = remote.port(number).ok_or(Error::Refused)?;
        let (state, other) = theirs.read();
        if state.kind() != Kind::Unbound || other != Some(own.life().to_bits()) {
            return Err(Error::Refused);
        }
        let to = Name::new(remote.domain(), number, state.serial());
        let name = own.open(Kind::Binding, self.serial(), to.to_bits())?;
        let ours = own.port(name.port()).ok_or(Error::NoPorts)?;
        if !theirs.claim(to.serial(), name) {
            if ours.abandon(name.serial()) {
                own.end(name.port(), ours);
            }
            return Err(Error::Refused);
        }
        // Where the other side has closed meanwhile, it has told this one, and the port stays as it is.
        let _ = ours.turn(name.serial(), Kind::Binding, Kind::Bound);
        Ok(name.port())
    }

    /// A new port of `owner`, connected to a source of Caisson's. The source keeps the name for [`Registry::notify`];
    /// whether the owner may have its events, the caller has made sure of.
    ///
    /// # Errors
    /// [`Error::NoPorts`].
    pub fn bind_source(&self, owner: DomainId, source: Source) -> Result<Name, Error> {
        let bind = |own: &Table<E>| own.open(Kind::Source, self.serial(), source.to_bits());
        self.look(owner, bind).unwrap_or(Err(Error::NoPorts))
    }

    /// Closes a port. When this returns, no event for it is on its way, and the port can be had again; what was pending
    /// is forgotten. Whether its peer was told.
    ///
    /// # Errors
    /// [`Error::BadPort`].
    pub fn close(&self, owner: DomainId, port: u16, interrupt: impl FnOnce(&E)) -> Result<bool, Error> {
        let close = |own: &Table<E>| {
            let ours = own.port(port).ok_or(Error::BadPort)?;
            let before = ours.begin_close().ok_or(Error::BadPort)?;
            let told = before.kind() == Kind::Bound && {
                let peer = Name::from_bits(ours.other());
                let lost = |table: &Table<E>| table.lose_peer(peer, interrupt);
                self.beside(own, peer.domain(), lost).unwrap_or(false)
            };
            own.end(port, ours);
            Ok(told)
        };
        self.look(owner, close).unwrap_or(Err(Error::BadPort))
    }

    /// An event from `port` of `owner` to its peer. Whether the peer was interrupted for it.
    ///
    /// # Errors
    /// [`Error::BadPort`], [`Error::NotConnected`], [`Error::PeerClosed`].
    #[inline]
    pub fn send(&self, owner: DomainId, port: u16, interrupt: impl FnOnce(&E)) -> Result<bool, Error> {
        let send = |own: &Table<E>| {
            let (from, to) = own.connection(port)?;
            let receive = |table: &Table<E>| table.receive(to, from, interrupt);
            self.beside(own, to.domain(), receive).unwrap_or(Err(Error::PeerClosed))
        };
        self.look(owner, send).unwrap_or(Err(Error::BadPort))
    }

    /// An event from a source of Caisson's to the port that is bound to it. Whether the domain was interrupted for it.
    ///
    /// # Errors
    /// [`Error::PeerClosed`] where the port has been closed, or its domain is gone: the name is of no more use.
    #[inline]
    pub fn notify(&self, to: Name, interrupt: impl FnOnce(&E)) -> Result<bool, Error> {
        let receive = |table: &Table<E>| table.receive_from_source(to, interrupt);
        self.look(to.domain(), receive).unwrap_or(Err(Error::PeerClosed))
    }

    /// Masks a port, as its domain can do in its page by itself.
    ///
    /// # Errors
    /// [`Error::BadPort`].
    pub fn mask(&self, owner: DomainId, port: u16) -> Result<(), Error> {
        self.look(owner, |own| own.mask(port)).unwrap_or(Err(Error::BadPort))
    }

    /// Unmasks a port, and interrupts its domain if an event has come meanwhile and no interrupt is under way. Whether it
    /// did.
    ///
    /// # Errors
    /// [`Error::BadPort`].
    pub fn unmask(&self, owner: DomainId, port: u16, interrupt: impl FnOnce(&E)) -> Result<bool, Error> {
        self.look(owner, |own| own.unmask(port, interrupt)).unwrap_or(Err(Error::BadPort))
    }

    /// What became of a port. An offer to a domain that is gone counts as closed by the peer.
    ///
    /// # Errors
    /// [`Error::BadPort`] for one beyond the domain's last.
    pub fn status(&self, owner: DomainId, port: u16) -> Result<PortStatus, Error> {
        let status = |own: &Table<E>| {
            let (mut status, offered) = own.status(port)?;
            if let Some(life) = offered
                && self.beside(own, life.domain(), Table::life) != Some(life)
            {
                status.state = PortState::PeerClosed;
            }
            Ok(status)
        };
        self.look(owner, status).unwrap_or(Err(Error::BadPort))
    }

    /// Does what a call of `caller` asks for, but for a port for a source of Caisson's: that is left to `bind_source`,
    /// which has to make sure that the source is there and the caller's to have.
    ///
    /// # Errors
    /// As the operations.
    pub fn perform(
        &self,
        caller: DomainId,
        call: EventCall,
        interrupt: impl FnOnce(&E),
        bind_source: impl FnOnce(Source) -> CallResult,
    ) -> CallResult {
        Ok(match call {
            EventCall::Allocate { remote } => self.allocate(caller, remote)?.into(),
            EventCall::Bind { remote, port } => self.bind(caller, remote, port)?.into(),
            EventCall::BindSource(source) => bind_source(source)?,
            EventCall::Close { port } => self.close(caller, port, interrupt).map(|_| 0)?,
            EventCall::Send { port } => self.send(caller, port, interrupt).map(|_| 0)?,
            EventCall::Mask { port } => self.mask(caller, port).map(|()| 0)?,
            EventCall::Unmask { port } => self.unmask(caller, port, interrupt).map(|_| 0)?,
            EventCall::Status { port } => self.status(caller, port)?.to_bits(),
        })
    }
}
