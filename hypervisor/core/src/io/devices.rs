//! A guest's devices and their backends.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use caisson_abi::io::{ChannelDescription, device_of};
use caisson_abi::{CallError, CallResult};
use caisson_domain::VirtioDevice;
use caisson_hwvirt::Backend;
use caisson_served::{Attached, Described};
use caisson_stage2::Format;
use caisson_types::DomainId;
use caisson_virtio::Effect;

use super::{Io, index_of};
use crate::guests::Live;
use crate::scheduler::{Machine, System};

impl<B: Backend, F: Format> Io<B, F> {
    /// The guest and the device, among those that others serve, of a channel that the caller serves.
    pub(super) fn find(&self, caller: DomainId, channel: u16) -> Result<(usize, usize), CallError> {
        let (domain, slot) = device_of(channel);
        let index = index_of(domain).ok_or(CallError::Refused)?;
        let guest = self.guest(index).ok_or(CallError::Refused)?;
        let devices = guest.served.devices();
        let device = devices.iter().position(|device| device.slot == slot && device.backend == caller);
        device.map(|device| (index, device)).ok_or(CallError::Refused)
    }

    /// The guest of a channel that the caller is attached to, and the device's slot.
    pub(super) fn attached(
        &self,
        caller: DomainId,
        channel: u16,
    ) -> Result<(Arc<Live<B, F>>, usize), CallError> {
        let (domain, slot) = device_of(channel);
        let guest = index_of(domain).and_then(|index| self.guest(index)).ok_or(CallError::Refused)?;
        guest.served.attached(slot, caller)?;
        guest.live.clone().map(|live| (live, usize::from(slot))).ok_or(CallError::NotConnected)
    }

    /// Whether the guest has devices that others serve, and one of them has not been described.
    pub(crate) fn is_awaited(&self, guest: usize) -> bool {
        self.guest(guest).is_some_and(|guest| !guest.served.is_described())
    }

    /// Who a guest waits for, by the number in the configuration: a backend that has not described its device.
    pub(crate) fn awaited(&self, guest: usize) -> Option<usize> {
        let guest = self.guest(guest)?;
        let device = guest.served.devices().iter().find(|device| device.description().is_none())?;
        index_of(device.backend)
    }

    /// The devices that a guest is made with.
    pub(crate) fn described(&self, guest: usize) -> Vec<VirtioDevice> {
        let Some(guest) = self.guest(guest) else { return Vec::new() };
        let devices = guest.served.devices().iter();
        devices.filter_map(|device| Some(VirtioDevice::Served(Box::new(*device.description()?)))).collect()
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
        let index = index_of(domain).ok_or(CallError::Refused)?;
        let mut guest = self.guest(index).ok_or(CallError::Refused)?;
        let described = guest.served.describe(slot, caller, description)?;
        let live = guest.live.clone();
        drop(guest);
        match described {
            Described::Waiting => {}
            // Its chores make it.
            Described::Complete => system.wake(&system.chores[index]),
            Described::Living => self.update(system, live.as_ref(), slot.into(), &description),
        }
        Ok(0)
    }

    /// The backend that came later has another configuration for a living guest's device.
    fn update(
        &self,
        system: &System<B, F>,
        live: Option<&Arc<Live<B, F>>>,
        slot: usize,
        description: &ChannelDescription,
    ) {
        let Some((live, channel)) = live.and_then(|live| Some((live, live.domain.served_channel(slot)?)))
        else {
            return;
        };
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
        let index = index_of(domain).ok_or(CallError::Refused)?;
        let mut guest = self.guest(index).ok_or(CallError::Refused)?;
        let attached = guest.served.attach(slot, caller.domain.id)?;
        let live = guest.live.clone().ok_or(CallError::NoSuchDomain)?;
        if attached == Attached::Grant && !caller.grant(&live) {
            // Told by the answer alone: the caller could fill the log with it.
            let _ = guest.served.detach(slot, caller.domain.id)?;
            drop(guest);
            self.revocations[caller.guest].store(true, Ordering::Release);
            system.wake(&system.chores[caller.guest]);
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
        let index = index_of(domain).ok_or(CallError::Refused)?;
        let mut guest = self.guest(index).ok_or(CallError::Refused)?;
        let is_last = guest.served.detach(slot, caller)?;
        if let Some(live) = &guest.live {
            self.let_go_of(system, live, slot.into());
        }
        drop(guest);
        if is_last && let Some(backend) = index_of(caller) {
            self.revocations[backend].store(true, Ordering::Release);
            system.wake(&system.chores[backend]);
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
            self.tell_queues(system, live.guest, device, queues);
        }
    }

    /// The state of its device `slot` has changed.
    pub(crate) fn changed(&self, system: &System<B, F>, live: &Live<B, F>, slot: usize) {
        if let Some(device) = slot.checked_sub(live.own_devices) {
            self.tell_change(system, live.guest, device);
        }
    }

    // ---- The guest's life.

    /// A guest lives from now on.
    pub(crate) fn started(&self, system: &System<B, F>, live: &Arc<Live<B, F>>) {
        if let Some(mut guest) = self.guest(live.guest)
            && !guest.served.devices().is_empty()
        {
            guest.served.started();
            guest.live = Some(live.clone());
        }
        self.tell_all(system, live.guest);
    }

    /// It has ended: its backends are told to let go of it.
    pub(crate) fn ended(&self, system: &System<B, F>, guest: usize) {
        let devices = match self.guest(guest) {
            Some(mut guest) => {
                guest.served.ended();
                guest.served.devices().len()
            }
            None => 0,
        };
        (0..devices).for_each(|device| self.tell_change(system, guest, device));
        self.tell_all(system, guest);
    }

    /// It does not come again.
    pub(crate) fn gone(&self, system: &System<B, F>, guest: usize) {
        if let Some(mut guest) = self.guest(guest) {
            guest.served.gone();
        }
        self.tell_all(system, guest);
    }

    /// One that was gone is to come again.
    pub(crate) fn returns(&self, system: &System<B, F>, guest: usize) {
        if let Some(mut guest) = self.guest(guest) {
            guest.served.returns();
        }
        self.tell_all(system, guest);
    }

    /// Tells all backends of a guest that their list has changed, and who controls domains that a state has.
    fn tell_all(&self, system: &System<B, F>, guest: usize) {
        let mut backends: Vec<_> = match self.guest(guest) {
            Some(guest) => guest.served.devices().iter().map(|device| device.backend).collect(),
            None => Vec::new(),
        };
        backends.dedup();
        backends.into_iter().for_each(|backend| self.tell_backend(system, backend));
        self.tell_state(system, guest);
    }

    /// A domain has ended, and its functions do nothing any more: what it served waits for its next life, or another's.
    pub(crate) fn backend_ended(&self, system: &System<B, F>, backend: DomainId) {
        for index in 0..self.guests.len() {
            let Some(mut guest) = self.guest(index) else { return };
            let slots = guest.served.backend_ended(backend);
            if let Some(live) = &guest.live {
                slots.into_iter().for_each(|slot| self.let_go_of(system, live, slot.into()));
            }
            drop(guest);
            system.wake(&system.chores[index]);
        }
    }

    /// Wakes the chores of guests that wait for a domain, which is gone for good.
    pub(crate) fn disappoint(&self, system: &System<B, F>, backend: usize) {
        for guest in 0..self.guests.len() {
            if self.awaited(guest) == Some(backend) {
                system.wake(&system.chores[guest]);
            }
        }
    }

    /// Lets a guest that has ended go, if nobody uses anything of it any more. Otherwise `wait` is called, before anybody can
    /// change that. Whether it may be taken apart.
    pub(crate) fn let_go(&self, guest: usize, wait: impl FnOnce()) -> bool {
        let Some(mut guest) = self.guest(guest) else { return true };
        if guest.served.let_go() {
            guest.live = None;
            return true;
        }
        wait();
        false
    }

    /// Whether [`Io::revoke`] has something to do for a backend.
    pub(crate) fn has_revocations(&self, backend: usize) -> bool {
        self.revocations[backend].load(Ordering::Acquire)
    }

    /// Takes away from a backend what is granted to it and it does not use any more: on its own chores, and so at its expense, with
    /// no lock held and nothing loaded on this CPU.
    pub(crate) fn revoke(&self, system: &System<B, F>, backend: &Arc<Live<B, F>>) {
        let id = backend.domain.id;
        if !self.revocations[backend.guest].swap(false, Ordering::AcqRel) {
            return;
        }
        for index in 0..self.guests.len() {
            let Some(mut guest) = self.guest(index) else { return };
            let Some(live) = guest.live.clone().filter(|_| guest.served.begin_revocation(id)) else {
                continue;
            };
            drop(guest);
            let revoked = backend.revoke(&live);
            drop(live);
            // What cannot be taken away is nobody else's again: the guest is never let go.
            if revoked && let Some(mut guest) = self.guest(index) {
                guest.served.revoked(id);
            }
            // It may wait for that with its end.
            system.wake(&system.chores[index]);
        }
    }
}
