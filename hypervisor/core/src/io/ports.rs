//! Event ports.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use caisson_abi::events::{PAGE_WORDS, Source};
use caisson_abi::io::{CHANGES, MAX_QUEUES};
use caisson_abi::{CallError, CallResult};
use caisson_events::{Name, Page, Word};
use caisson_hwvirt::Backend;
use caisson_irqchip::InterruptMessage;
use caisson_stage2::Format;
use caisson_types::{DomainId, Gpa, GuestMemory, PAGE_SIZE};

use super::Io;
use crate::domains::Entry;
use crate::guests::Live;
use crate::scheduler::{Machine, System};

/// Event ports of a domain: a bit each in one word of its shared page's pending events is looked at for every 64.
const PORTS: u16 = 1024;

/// A domain's shared page, and the way to interrupt it.
pub(super) struct Endpoint<B: Backend, F: Format> {
    live: Arc<Live<B, F>>,
    page: Gpa,
    /// `None` for the pin of the door.
    vector: Option<u8>,
}

impl<B: Backend, F: Format> Endpoint<B, F> {
    fn at(&self, word: Word) -> Gpa {
        // Within the page, which lies in RAM whole.
        Gpa::new(self.page.as_u64() + word.index() as u64 * 8)
    }

    /// Interrupts the domain.
    fn interrupt(&self, system: &System<B, F>) {
        let mut host = Machine::outside(system, &self.live);
        match self.vector {
            Some(vector) => self.live.domain.interrupt(&InterruptMessage::fixed(0, vector), &mut host),
            None => self.live.domain.ring(&mut host),
        }
    }
}

/// The page was RAM of the domain's when it was connected, and its RAM does not go before its ports do: no access fails.
impl<B: Backend, F: Format> Page for Endpoint<B, F> {
    fn load(&self, word: Word) -> u64 {
        self.live.domain.memory.read_u64(self.at(word)).unwrap_or(0)
    }

    fn set(&self, word: Word, bit: u32) -> bool {
        self.live.domain.memory.set_bit(self.at(word), bit).unwrap_or(true)
    }

    fn clear(&self, word: Word, bit: u32) -> bool {
        self.live.domain.memory.clear_bit(self.at(word), bit).unwrap_or(false)
    }

    fn take(&self, word: Word) -> u64 {
        self.live.domain.memory.swap_u64(self.at(word), 0).unwrap_or(0)
    }
}

const _: () = assert!(PAGE_WORDS as u64 * 8 == PAGE_SIZE);

/// The port of one source. 0 for none: no port has such a name.
struct Port(AtomicU64);

impl Port {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn set(&self, name: Name) {
        self.0.store(name.to_bits(), Ordering::Release);
    }

    fn get(&self) -> Option<Name> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            bits => Some(Name::from_bits(bits)),
        }
    }
}

/// The ports of a device: one for each queue, and one for changes.
struct DevicePorts([Port; MAX_QUEUES + 1]);

impl DevicePorts {
    fn of(&self, queue: u16) -> Option<&Port> {
        let index = if queue == CHANGES { MAX_QUEUES } else { usize::from(queue) };
        self.0.get(index).filter(|_| queue == CHANGES || usize::from(queue) < MAX_QUEUES)
    }
}

/// The ports of one guest's sources, and its own as a backend: those that were bound last. Read without a lock.
pub(super) struct GuestPorts {
    /// Its devices that others serve.
    devices: Box<[DevicePorts]>,
    /// The guest is a backend, and its list has changed.
    backend: Port,
    /// Its state has changed, for who controls domains.
    state: Port,
    /// Its console has output, or room for input, likewise.
    console: Port,
}

impl GuestPorts {
    /// For a guest with so many devices that others serve.
    pub(super) fn new(devices: usize) -> Self {
        let ports = |_| DevicePorts([const { Port::new() }; MAX_QUEUES + 1]);
        Self {
            devices: (0..devices).map(ports).collect(),
            backend: Port::new(),
            state: Port::new(),
            console: Port::new(),
        }
    }

    /// The port of a device's queue, or of its changes; `device` counts those that others serve.
    fn queue(&self, device: usize, queue: u16) -> Option<&Port> {
        self.devices.get(device)?.of(queue)
    }
}

impl<B: Backend, F: Format> Io<B, F> {
    /// The domain's shared page is at `page` from now on, and it has no ports but those that it will ask for.
    pub(super) fn connect(
        &self,
        system: &System<B, F>,
        id: DomainId,
        page: Gpa,
        vector: Option<u8>,
    ) -> CallResult {
        let live = system.live(id).ok_or(CallError::NotPermitted)?;
        if !live.domain.memory.is_ram(page, PAGE_SIZE) || (vector.is_none() && !live.domain.has_door()) {
            return Err(CallError::Fault);
        }
        self.disconnect(system, id);
        let endpoint = Endpoint { live, page, vector };
        // Another vCPU of the domain's was faster, and the page is the one that it gave.
        self.registry.join(id, PORTS, endpoint).map_err(|_| CallError::Invalid)?;
        Ok(0)
    }

    /// The domain has no ports any more, if it had any.
    pub(crate) fn disconnect(&self, system: &System<B, F>, id: DomainId) {
        drop(self.registry.leave(id, |endpoint| endpoint.interrupt(system)));
    }

    /// What a domain does to its ports.
    pub(super) fn event_call(
        &self,
        system: &System<B, F>,
        caller: DomainId,
        call: caisson_abi::EventCall,
    ) -> CallResult {
        let interrupt = |endpoint: &Endpoint<B, F>| endpoint.interrupt(system);
        self.registry.perform(caller, call, interrupt, |source| self.bind_source(system, caller, source))
    }

    fn bind_source(&self, system: &System<B, F>, caller: DomainId, source: Source) -> CallResult {
        let of = |domain| system.domains.get(domain).ok_or(CallError::NoSuchDomain);
        let (entry, device) = match source {
            Source::Backend => (of(caller)?, 0),
            Source::Channel { channel, .. } => self.find(system, caller, channel)?,
            Source::DomainState { domain } | Source::Console { domain } => (of(domain)?, 0),
        };
        let ports = &entry.io.ports;
        let port = match source {
            Source::Backend => Some(&ports.backend),
            Source::Channel { queue, .. } => ports.queue(device, queue),
            Source::DomainState { .. } => Some(&ports.state),
            Source::Console { .. } => Some(&ports.console),
        };
        let port = port.ok_or(CallError::Refused)?;
        let name = self.registry.bind_source(caller, source)?;
        port.set(name);
        Ok(name.port().into())
    }

    fn notify(&self, system: &System<B, F>, port: Option<&Port>) {
        if let Some(name) = port.and_then(Port::get) {
            // A port that is closed has nobody who looks.
            let _ = self.registry.notify(name, |endpoint| endpoint.interrupt(system));
        }
    }

    /// A guest has notified queues of a device, a bit each.
    pub(super) fn tell_queues(
        &self,
        system: &System<B, F>,
        guest: &Entry<B, F>,
        device: usize,
        mut queues: u64,
    ) {
        while queues != 0 {
            let queue = queues.trailing_zeros() as u16;
            queues &= queues - 1;
            self.notify(system, guest.io.ports.queue(device, queue));
        }
    }

    /// A device's state has changed.
    pub(super) fn tell_change(&self, system: &System<B, F>, guest: &Entry<B, F>, device: usize) {
        self.notify(system, guest.io.ports.queue(device, CHANGES));
    }

    /// The list of what a backend serves has changed.
    pub(super) fn tell_backend(&self, system: &System<B, F>, backend: DomainId) {
        if let Some(entry) = system.domains.get(backend) {
            self.notify(system, Some(&entry.io.ports.backend));
        }
    }

    /// A guest's console has output, or room for input.
    pub(crate) fn tell_console(&self, system: &System<B, F>, guest: &Entry<B, F>) {
        self.notify(system, Some(&guest.io.ports.console));
    }

    /// A guest has come, ended, or changed its state otherwise.
    pub(crate) fn tell_state(&self, system: &System<B, F>, guest: &Entry<B, F>) {
        self.notify(system, Some(&guest.io.ports.state));
    }
}
