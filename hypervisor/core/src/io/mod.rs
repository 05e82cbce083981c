//! Split I/O: devices of guests that other domains serve.
//!
//! | file | what |
//! |---|---|
//! | [`ports`] | event ports: a domain's shared page, and which port each source of Caisson's leads to |
//! | [`calls`] | what domains ask for by hypercalls |
//! | [`devices`] | a guest's devices and their backends: descriptions, attachments, notifications, interrupts |
//! | [`grants`] | a guest's memory in its backend's domain |
//!
//! What is decided is decided by pure crates: [`caisson_abi`] decodes, [`caisson_events`] has the ports, [`caisson_served`] who
//! serves whom, [`caisson_virtio`] a device's transport. Here it is done.

mod calls;
mod devices;
mod grants;
mod ports;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::AtomicBool;

use caisson_abi::io::channel_of;
use caisson_config::Domain as Record;
use caisson_events::Registry;
use caisson_frames::MAX_DOMAINS;
use caisson_hwvirt::Backend;
use caisson_locks::{Mutex, Rank};
use caisson_served::{Device, Served};
use caisson_stage2::Format;
use caisson_types::DomainId;

use crate::guests::Live;
use ports::{Endpoint, GuestPorts};

/// What all domains have of split I/O together.
pub(crate) struct Io<B: Backend, F: Format> {
    registry: Registry<Endpoint<B, F>>,
}

/// What one domain has of it, from life to life.
pub(crate) struct Side<B: Backend, F: Format> {
    /// Its devices that others serve.
    guest: Mutex<Guest<B, F>>,
    /// The ports that its sources lead to.
    ports: GuestPorts,
    /// Something is granted to it as a backend that it does not use any more.
    has_revocations: AtomicBool,
}

/// A guest's devices that others serve.
pub(crate) struct Guest<B: Backend, F: Format> {
    served: Served,
    /// The guest, while it lives.
    live: Option<Arc<Live<B, F>>>,
    /// What the configuration says of each device for its backend.
    parameters: Vec<Box<str>>,
}

impl<B: Backend, F: Format> Io<B, F> {
    /// Nobody has any of it.
    pub(crate) fn new() -> Self {
        // Numbers begin with 1.
        Self { registry: Registry::new(MAX_DOMAINS + 1) }
    }
}

impl<B: Backend, F: Format> Side<B, F> {
    /// For the domain `id` with a record, which does not live. `own` of its devices, the first ones, are Caisson's; `backends`
    /// serve the others, one each.
    pub(crate) fn new(record: &Record<'_>, id: DomainId, own: u16, backends: &[DomainId]) -> Self {
        let devices: Vec<_> = (own..)
            .zip(record.virtio_devices().zip(backends))
            .filter(|(slot, _)| channel_of(id, *slot).is_some())
            .map(|(slot, (device, backend))| Device::new(slot, u32::from(device.kind.code()), *backend))
            .collect();
        let parameters = record.virtio_devices().map(|device| device.parameters.into()).collect();
        let ports = GuestPorts::new(devices.len());
        let guest = Guest { served: Served::new(devices), live: None, parameters };
        Self { guest: Mutex::new(Rank::Served, guest), ports, has_revocations: AtomicBool::new(false) }
    }
}
