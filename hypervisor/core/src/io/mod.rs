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
use caisson_config::{Blob, DeviceBackend};
use caisson_events::Registry;
use caisson_hwvirt::Backend;
use caisson_locks::{Mutex, MutexGuard, Rank};
use caisson_served::{Device, Served};
use caisson_stage2::Format;
use caisson_types::DomainId;

use crate::guests::Live;
use ports::{Endpoint, Sources};

/// What there is of split I/O.
pub(crate) struct Io<B: Backend, F: Format> {
    registry: Registry<Endpoint<B, F>>,
    /// The ports that sources of Caisson's lead to.
    sources: Sources,
    /// Each guest's devices that others serve.
    guests: Box<[Mutex<Guest<B, F>>]>,
    /// By the number of a backend: something is granted to it that it does not use any more.
    revocations: Box<[AtomicBool]>,
}

/// A guest's devices that others serve.
pub(crate) struct Guest<B: Backend, F: Format> {
    served: Served,
    /// The guest, while it lives.
    live: Option<Arc<Live<B, F>>>,
    /// What the configuration says of each device for its backend.
    parameters: Vec<&'static str>,
    name: &'static str,
}

/// A guest's number in the configuration.
pub(crate) fn index_of(domain: DomainId) -> Option<usize> {
    usize::from(domain.0).checked_sub(1)
}

/// The domain of the guest with a number in the configuration.
pub(crate) fn domain_of(guest: usize) -> DomainId {
    DomainId(u16::try_from(guest + 1).unwrap_or(u16::MAX))
}

impl<B: Backend, F: Format> Io<B, F> {
    /// For the guests of the configuration, none of which lives. `own` says how many devices a guest has that Caisson serves
    /// itself, which come first.
    pub(crate) fn new(blob: &Blob<'static>, own: impl Fn(&caisson_config::Domain<'static>) -> u16) -> Self {
        let mut most = 1;
        let guests: Box<[_]> = blob
            .domains()
            .enumerate()
            .map(|(index, record)| {
                let first = own(&record);
                let devices: Vec<_> = (first..)
                    .zip(record.virtio_devices())
                    .filter(|(slot, _)| channel_of(domain_of(index), *slot).is_some())
                    .map(|(slot, device)| {
                        // `check_complete` has seen that no device is served by a domain which is not here.
                        let backend = match device.backend {
                            DeviceBackend::Domain(backend) => domain_of(backend),
                            DeviceBackend::Named(_) => domain_of(usize::MAX - 1),
                        };
                        Device::new(slot, u32::from(device.kind.code()), backend)
                    })
                    .collect();
                most = index + 2;
                let parameters = record.virtio_devices().map(|device| device.parameters).collect();
                let guest =
                    Guest { served: Served::new(devices), live: None, parameters, name: record.name() };
                Mutex::new(Rank::Served, guest)
            })
            .collect();
        let slots = guests.iter().map(|guest| guest.lock().served.devices().len());
        let sources = Sources::new(slots);
        let revocations = guests.iter().map(|_| AtomicBool::new(false)).collect();
        Self { registry: Registry::new(most), sources, guests, revocations }
    }

    /// A guest's devices, by its number in the configuration.
    #[cfg_attr(debug_assertions, track_caller)]
    fn guest(&self, index: usize) -> Option<MutexGuard<'_, Guest<B, F>>> {
        self.guests.get(index).map(Mutex::lock)
    }
}
