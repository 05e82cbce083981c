//! A guest's devices and their backends.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use caisson_abi::io::{ChannelDescription, device_of};
use caisson_abi::{CallError, CallResult};
use caisson_domain::VirtioDevice;
use caisson_hwvirt::Backend;
use caisson_life::Reach;
use caisson_served::{Attached, Described, LetGo};
use caisson_stage2::Format;
use caisson_types::DomainId;
use caisson_virtio::Effect;

use super::{Io, Side};
use crate::domains::Entry;
use crate::guests::Live;
use crate::scheduler::{Machine, System};

impl<B: Backend, F: Format> Side<B, F> {
    /// Whether the guest has devices that others serve, and one of them has not been described.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.guest.lock().served.is_described()
    }

    /// Who it waits for: a backend that has not described its device.
    pub(crate) fn awaited(&self) -> Option<DomainId> {
        let guest = self.guest.lock();
        let mut devices = guest.served.devices().iter();
        devices.find(|device| device.description().is_none()).map(|device| device.backend)
    }

    /// It is about to be made: the devices that it is made with.
    pub(crate) fn making(&self) -> Vec<VirtioDevice> {
        let mut guest = self.guest.lock();
        guest.served.making();
        let devices = guest.served.devices().iter();
        devices.filter_map(|device| Some(VirtioDevice::Served(Box::new(*device.description()?)))).collect()
    }

    /// It could not be made.
    pub(crate) fn unmade(&self) {
        self.guest.lock().served.unmade();
    }

    /// Whether a domain is to serve one of its devices.
    pub(crate) fn is_served_by(&self, backend: DomainId) -> bool {
        self.guest.lock().served.devices().iter().any(|device| device.backend == backend)
    }

    /// Lets a guest that has ended go, if nobody uses anything of it any more. Otherwise `wait` is called, before anybody can
    /// change that.
    pub(crate) fn let_go(&self, wait: impl FnOnce()) -> LetGo {
        let mut guest = self.guest.lock();
        let held = guest.served.let_go();
        match held {
            LetGo::Used => wait(),
            LetGo::Free | LetGo::Lost(_) => guest.live = None,
        }
        held
    }

    /// Whether [`Io::revoke`] has something to do for it as a backend.
    pub(crate) fn has_revocations(&self) -> bool {
        self.has_revocations.load(Ordering::Acquire)
    }
}

impl<B: Backend, F: Format> Io<B, F> {
    /// The guest and the device, among those that others serve, of a channel that the caller serves.
    pub(super) fn find(
        &self,
        system: &System<B, F>,
        caller: DomainId,
        channel: u16,
    ) -> Result<(Arc<Entry<B, F>>, usize), CallError> {
        let (domain, slot) = device_of(channel);
        let entry = system.domains.get(domain).ok_or(CallError::Refused)?;
        let guest = entry.io.guest.lock();
        let mut devices = guest.served.devices().iter();
        let device = devices.position(|device| device.slot == slot && device.backend == caller);
        drop(guest);
        device.map(|device| (entry, device)).ok_or(CallError::Refused)
    }

    /// The guest of a channel that the caller is attached to, and the device's slot.
    pub(super) fn attached(
        &self,
        system: &System<B, F>,
        caller: DomainId,
        channel: u16,
    ) -> Result<(Arc<Live<B, F>>, usize), CallError> {
        let (domain, slot) = device_of(channel);
        let entry = system.domains.get(domain).ok_or(CallError::Refused)?;
        let guest = entry.io.guest.lock();
        guest.served.attached(slot, caller)?;
        guest.live.clone().map(|live| (live, usize::from(slot))).ok_or(CallError::NotConnected)
    }

    /// A backend says what a device is.
    pub(super) fn describe(
        &self,
        system: &System<B, F>,
        caller: DomainId,
        channel: u16,
        description: ChannelDescription,
    ) -> CallResult {
        let (domain, slot) = device_of(channel);
        let entry = system.domains.get(domain).ok_or(CallError::Refused)?;
        let mut guest = entry.io.guest.lock();
        let described = guest.served.describe(slot, caller, description)?;
        let live = guest.live.clone();
        drop(guest);
        match described {
            Described::Waiting => {}
            // Its chores make it.
            Described::Complete => system.wake(&entry.chores),
            // One that is being made is told when it lives.
            Described::Living => {
                live.iter().for_each(|live| self.update(system, live, slot.into(), &description));
            }
        }
        Ok(0)
    }

    /// The backend that came later has another configuration for a living guest's device.
    fn update(
        &self,
        system: &System<B, F>,
        live: &Arc<Live<B, F>>,
        slot: usize,
        description: &ChannelDescription,
    ) {
        let Some(channel) = live.domain.served_channel(slot) else { return };
        let new = description.config.get(..usize::from(description.config_bytes)).unwrap_or_default();
        let mut old = [0; caisson_virtio::MAX_CONFIG];
        let count = channel.config(0, &mut old);
        if old.get(..count) != Some(new)
            && let Some(effect) = channel.set_config(0, new)
        {
            self.settle(system, live, slot, effect);
        }
    }

    /// A backend takes a device on.
    pub(super) fn attach(&self, system: &System<B, F>, caller: &Live<B, F>, channel: u16) -> CallResult {
        let (domain, slot) = device_of(channel);
        let entry = system.domains.get(domain).ok_or(CallError::Refused)?;
        let mut guest = entry.io.guest.lock();
        if !caller.entry.facts.owns_devices {
            // Its memory is not where the machine has it, but where it may have others'.
            return Err(CallError::Refused);
        }
        let attached = guest.served.attach(slot, caller.domain.id)?;
        let live = guest.live.clone().ok_or(CallError::NoSuchDomain)?;
        if attached == Attached::Grant && !caller.grant(&live) {
            // Told by the answer alone: the caller could fill the log with it.
            guest.served.cannot_grant(caller.domain.id);
            drop(guest);
            caller.entry.io.has_revocations.store(true, Ordering::Release);
            system.wake(&caller.entry.chores);
            return Err(CallError::NoMemory);
        }
        if let Some(channel) = live.domain.served_channel(slot.into()) {
            // Whoever was attached before is dead: what waited for it goes on.
            self.settle(system, &live, slot.into(), channel.detach());
            let _ = channel.attach();
        }
        Ok(guest.served.life().into())
    }

    /// A backend lets go of a device.
    pub(super) fn detach(&self, system: &System<B, F>, caller: DomainId, channel: u16) -> CallResult {
        let (domain, slot) = device_of(channel);
        let entry = system.domains.get(domain).ok_or(CallError::Refused)?;
        let mut guest = entry.io.guest.lock();
        let is_last = guest.served.detach(slot, caller)?;
        if let Some(live) = &guest.live {
            self.let_go_of(system, live, slot.into());
        }
        drop(guest);
        if is_last && let Some(backend) = system.domains.get(caller) {
            backend.io.has_revocations.store(true, Ordering::Release);
            system.wake(&backend.chores);
        }
        Ok(0)
    }

    /// Nobody serves a device any more: what waited for its backend goes on.
    fn let_go_of(&self, system: &System<B, F>, live: &Arc<Live<B, F>>, slot: usize) {
        if let Some(channel) = live.domain.served_channel(slot) {
            self.settle(system, live, slot, channel.detach());
        }
    }

    /// Carries out what a call to a device's channel has left to be done.
    pub(super) fn settle(&self, system: &System<B, F>, live: &Arc<Live<B, F>>, slot: usize, effect: Effect) {
        let mut host = Machine::outside(system, live);
        live.domain.settle_channel(slot, effect, &mut host);
    }

    /// The guest has notified queues, a bit each, of the device `slot`.
    pub(crate) fn notified(&self, system: &System<B, F>, live: &Live<B, F>, slot: usize, queues: u64) {
        if let Some(device) = slot.checked_sub(live.own_devices) {
            self.tell_queues(system, &live.entry, device, queues);
        }
    }

    /// The state of its device `slot` has changed.
    pub(crate) fn changed(&self, system: &System<B, F>, live: &Live<B, F>, slot: usize) {
        if let Some(device) = slot.checked_sub(live.own_devices) {
            self.tell_change(system, &live.entry, device);
        }
    }

    // ---- The guest's life.

    /// A guest lives from now on.
    pub(crate) fn started(&self, system: &System<B, F>, live: &Arc<Live<B, F>>) {
        let mut guest = live.entry.io.guest.lock();
        guest.served.started();
        if !guest.served.devices().is_empty() {
            guest.live = Some(live.clone());
            // What they were described as while it was being made.
            for device in guest.served.devices() {
                device
                    .description()
                    .into_iter()
                    .for_each(|now| self.update(system, live, device.slot.into(), now));
            }
        }
        drop(guest);
        self.tell_all(system, &live.entry);
    }

    /// It has ended: its backends are told to let go of it.
    pub(crate) fn ended(&self, system: &System<B, F>, guest: &Entry<B, F>) {
        let devices = {
            let mut guest = guest.io.guest.lock();
            guest.served.ended();
            guest.served.devices().len()
        };
        (0..devices).for_each(|device| self.tell_change(system, guest, device));
        self.tell_all(system, guest);
    }

    /// It does not come again.
    pub(crate) fn gone(&self, system: &System<B, F>, guest: &Entry<B, F>) {
        guest.io.guest.lock().served.gone();
        self.tell_all(system, guest);
    }

    /// One that was gone is to come again.
    pub(crate) fn returns(&self, system: &System<B, F>, guest: &Entry<B, F>) {
        guest.io.guest.lock().served.returns();
        self.tell_all(system, guest);
    }

    /// Tells all backends of a guest that their list has changed, and who controls domains that a state has.
    pub(crate) fn tell_all(&self, system: &System<B, F>, guest: &Entry<B, F>) {
        let devices = |side: &super::Guest<B, F>| -> Vec<_> {
            side.served.devices().iter().map(|device| device.backend).collect()
        };
        let mut backends = devices(&guest.io.guest.lock());
        backends.dedup();
        backends.into_iter().for_each(|backend| self.tell_backend(system, backend));
        self.tell_state(system, guest);
    }

    /// A domain has ended: what it served waits for its next life, or another's. Its functions reach what they still can.
    pub(crate) fn backend_ended(&self, system: &System<B, F>, backend: DomainId, reach: Reach) {
        for entry in system.domains.iter() {
            let mut guest = entry.io.guest.lock();
            let slots = match reach {
                Reach::Nothing => guest.served.backend_ended(backend),
                Reach::Forever => guest.served.backend_lost(backend),
            };
            if let Some(live) = &guest.live {
                slots.into_iter().for_each(|slot| self.let_go_of(system, live, slot.into()));
            }
            drop(guest);
            system.wake(&entry.chores);
        }
    }

    /// Wakes the chores of guests that wait for a domain, which is gone for good.
    pub(crate) fn disappoint(&self, system: &System<B, F>, backend: DomainId) {
        for entry in system.domains.iter() {
            if entry.io.awaited() == Some(backend) {
                system.wake(&entry.chores);
            }
        }
    }

    /// Takes away from a backend what is granted to it and it does not use any more: on its own chores, and so at its expense, with
    /// no lock held and nothing loaded on this CPU.
    pub(crate) fn revoke(&self, system: &System<B, F>, backend: &Arc<Live<B, F>>) {
        let id = backend.domain.id;
        if !backend.entry.io.has_revocations.swap(false, Ordering::AcqRel) {
            return;
        }
        for entry in system.domains.iter() {
            let mut guest = entry.io.guest.lock();
            let Some(live) = guest.live.clone().filter(|_| guest.served.begin_revocation(id)) else {
                continue;
            };
            drop(guest);
            let revoked = backend.revoke(&live);
            drop(live);
            let mut guest = entry.io.guest.lock();
            if revoked {
                guest.served.revoked(id);
            } else {
                // It is nobody else's again.
                guest.served.cannot_revoke(id);
            }
            drop(guest);
            // It may wait for that with its end.
            system.wake(&entry.chores);
        }
    }
}
