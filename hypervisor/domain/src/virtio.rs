//! A domain's virtio devices: where the guest reaches them, their interrupts, and who serves them.
//!
//! An access goes to the device's [`Channel`]; what it leaves to be done is done once the instruction has ended
//! ([`Domain::serve_virtio`]), without the chipset's lock held. Interrupts are edges, so that devices can share a pin: each has
//! its own.
//!
//! A device is served by Caisson itself, or by another domain: then [`Host`] carries what the guest does there, and the
//! answers come back by [`Domain::settle_channel`]. A vCPU whose write has to wait for such a backend ([`Channel::is_waiting`])
//! is not entered before.

use alloc::boxed::Box;
use alloc::vec::Vec;

use caisson_abi::io::ChannelDescription;
use caisson_firmware::{MAX_VIRTIO, VIRTIO_ADDRESS, virtio_pin};
use caisson_locks::{Mutex, Rank};
use caisson_types::{Gpa, GuestMemory, PAGE_SIZE};
use caisson_virtio::{Channel, Description, DescriptionError, Effect, Entropy, PageRef};

use crate::domain::{Domain, Host, work};

/// A virtio device that a domain is to have.
#[derive(Clone, Debug)]
pub enum VirtioDevice {
    /// Random numbers ([`Host::random`]).
    Entropy,
    /// What another domain serves, and has described.
    Served(Box<ChannelDescription>),
}

/// A description as a backend's domain gives it, checked.
///
/// # Errors
/// What [`Description::check`] finds; also [`DescriptionError::QueueCount`] and [`DescriptionError::ConfigTooLong`] for more than
/// it has room for.
pub fn description(given: &ChannelDescription) -> Result<Description<'_>, DescriptionError> {
    let queues = usize::from(given.queues);
    let bytes = usize::from(given.config_bytes);
    let description = Description {
        device: given.device,
        features: given.features,
        queues: given.queue_sizes.get(..queues).ok_or(DescriptionError::QueueCount(queues))?,
        config: given.config.get(..bytes).ok_or(DescriptionError::ConfigTooLong(bytes))?,
        writable: given.writable.get(..bytes).ok_or(DescriptionError::ConfigTooLong(bytes))?,
    };
    description.check().map(|()| description)
}

/// A device and who serves it.
struct Slot {
    channel: Channel,
    backend: Backend,
    pin: u8,
}

enum Backend {
    Entropy(Mutex<Entropy>),
    /// Another domain.
    Served,
}

/// What accesses have left to be done: a bit for each device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Touched {
    /// Something.
    any: u32,
    /// It may have to interrupt the guest.
    interrupt: u32,
    /// Its state has changed.
    changed: u32,
}

impl Touched {
    /// Whether there is nothing to do.
    #[inline]
    pub(crate) const fn is_empty(self) -> bool {
        self.any == 0
    }

    #[inline]
    pub(crate) const fn add(&mut self, other: Self) {
        self.any |= other.any;
        self.interrupt |= other.interrupt;
        self.changed |= other.changed;
    }
}

/// A domain's devices, in the order of their pages.
pub(crate) struct VirtioDevices(Box<[Slot]>);

impl VirtioDevices {
    /// Devices after power-on. One that is described wrongly is left out, with all behind it: descriptions are checked when they
    /// are given.
    pub(crate) fn new(devices: Vec<(VirtioDevice, PageRef)>) -> Self {
        let make = |(index, (device, page)): (usize, (VirtioDevice, PageRef))| {
            let (channel, backend) = match device {
                VirtioDevice::Entropy => {
                    let channel = Entropy::channel(page);
                    let _ = channel.attach();
                    (channel, Backend::Entropy(Mutex::new(Rank::Backend, Entropy::new())))
                }
                VirtioDevice::Served(given) => {
                    (Channel::new(&description(&given).ok()?, page).ok()?, Backend::Served)
                }
            };
            Some(Slot { channel, backend, pin: virtio_pin(index) })
        };
        Self(devices.into_iter().take(MAX_VIRTIO).enumerate().map_while(make).collect())
    }

    /// The device with a register at `gpa`, and that register's offset.
    #[inline]
    fn find(&self, gpa: Gpa) -> Option<(usize, &Slot, u64)> {
        let offset = gpa.as_u64().wrapping_sub(u64::from(VIRTIO_ADDRESS));
        let index = usize::try_from(offset / PAGE_SIZE).ok()?;
        Some((index, self.0.get(index)?, offset % PAGE_SIZE))
    }

    /// Reads `size` bytes at `gpa`; `None` where no device is.
    #[inline]
    pub(crate) fn read(&self, gpa: Gpa, size: u8) -> Option<u64> {
        let (_, slot, offset) = self.find(gpa)?;
        Some(slot.channel.read(offset, size))
    }

    /// Writes the low `size` bytes of `value` at `gpa`: what is to be done after it.
    #[inline]
    pub(crate) fn write(&self, gpa: Gpa, size: u8, value: u64, memory: &impl GuestMemory) -> Touched {
        let Some((index, slot, offset)) = self.find(gpa) else { return Touched::default() };
        let bit = 1 << index;
        match slot.channel.write(offset, size, value, memory) {
            Effect::Nothing => Touched::default(),
            Effect::Notify { .. } => Touched { any: bit, ..Touched::default() },
            Effect::Interrupt | Effect::Released => Touched { any: bit, interrupt: bit, changed: 0 },
            Effect::Changed(_) => Touched { any: bit, interrupt: bit, changed: bit },
        }
    }

    /// Whether the guest waits for a backend, at any device.
    pub(crate) fn is_waiting(&self) -> bool {
        self.0.iter().any(|slot| slot.channel.is_waiting())
    }
}

impl<M> Domain<M> {
    /// The transport of a device that another domain serves.
    #[must_use]
    pub fn served_channel(&self, slot: usize) -> Option<&Channel> {
        let slot = self.virtio.0.get(slot)?;
        matches!(slot.backend, Backend::Served).then_some(&slot.channel)
    }
}

impl<M: GuestMemory> Domain<M> {
    /// Does what accesses have left to be done. Whether the guest now waits for a backend.
    #[inline(never)]
    pub(crate) fn serve_virtio(&self, host: &mut impl Host, touched: Touched) -> bool {
        let mut waits = false;
        let slots = self.virtio.0.iter().enumerate();
        for (index, slot) in slots.filter(|(index, _)| touched.any >> index & 1 != 0) {
            match &slot.backend {
                // A guest that breaks its ring finds the device in need of a reset.
                Backend::Entropy(entropy) => {
                    let before = slot.channel.reasons();
                    let _ =
                        entropy.lock().serve(&slot.channel, &self.memory, &mut |bytes| host.random(bytes));
                    let is_new = slot.channel.reasons() & !before != 0;
                    if !is_new && touched.interrupt >> index & 1 == 0 {
                        continue;
                    }
                }
                Backend::Served => {
                    if slot.channel.is_attached() {
                        host.notify_backend(index, slot.channel.take_notifications());
                    }
                    if touched.changed >> index & 1 != 0 {
                        host.tell_backend(index);
                        waits |= slot.channel.is_waiting();
                    }
                    if touched.interrupt >> index & 1 == 0 {
                        continue;
                    }
                }
            }
            self.raise_virtio(host, slot);
        }
        waits
    }

    /// Carries out what a call of the backend's to the channel of device `slot` has left to be done.
    pub fn settle_channel(&self, slot: usize, effect: Effect, host: &mut impl Host) {
        let Some(device) = self.virtio.0.get(slot) else { return };
        match effect {
            Effect::Interrupt | Effect::Changed(_) => self.raise_virtio(host, device),
            Effect::Released => self.release_waiting(host),
            Effect::Nothing | Effect::Notify { .. } => {}
        }
    }

    /// The vCPUs that wait for a backend look whether they still have to.
    fn release_waiting(&self, host: &mut impl Host) {
        for index in 0..self.vcpus() {
            let wake = self.post_work(index, work::CHANNEL);
            host.wake(wake);
        }
    }

    /// An edge on a device's pin, if it has something that the guest has not acknowledged.
    fn raise_virtio(&self, host: &mut impl Host, slot: &Slot) {
        if !slot.channel.has_interrupt() {
            return;
        }
        let mut chipset = self.chipset();
        chipset.set_irq(slot.pin, true);
        chipset.set_irq(slot.pin, false);
        let wake = self.settle(&mut chipset);
        drop(chipset);
        host.wake(wake);
    }
}
