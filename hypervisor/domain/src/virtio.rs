//! A domain's virtio devices: where the guest reaches them, their interrupts, and the backends that are Caisson's own.
//!
//! An access goes to the device's [`Channel`]; what it leaves to be done is done once the instruction has ended
//! ([`Domain::serve_virtio`]), without the chipset's lock held. Lines of devices that share a pin are joined.

use alloc::boxed::Box;

use caisson_firmware::{MAX_VIRTIO, VIRTIO_ADDRESS, virtio_pin};
use caisson_locks::{Mutex, Rank};
use caisson_types::{Gpa, GuestMemory, PAGE_SIZE};
use caisson_virtio::{Channel, Effect, Entropy};

use crate::domain::{Domain, Host};

/// A virtio device that a domain is to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VirtioDevice {
    /// Random numbers ([`Host::random`]).
    Entropy,
}

/// A device and who serves it.
struct Slot {
    channel: Channel,
    backend: Backend,
    pin: u8,
}

enum Backend {
    Entropy(Mutex<Entropy>),
}

/// A domain's devices, in the order of their pages.
pub(crate) struct VirtioDevices(Box<[Slot]>);

impl VirtioDevices {
    /// Devices after power-on.
    pub(crate) fn new(devices: &[VirtioDevice]) -> Self {
        let make = |(index, device): (usize, &VirtioDevice)| match device {
            VirtioDevice::Entropy => {
                let channel = Entropy::channel();
                let _ = channel.attach();
                let backend = Backend::Entropy(Mutex::new(Rank::Backend, Entropy::new()));
                Slot { channel, backend, pin: virtio_pin(index) }
            }
        };
        Self(devices.iter().take(MAX_VIRTIO).enumerate().map(make).collect())
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

    /// Writes the low `size` bytes of `value` at `gpa`: the bit of the device that is to be served after it, if one is.
    #[inline]
    pub(crate) fn write(&self, gpa: Gpa, size: u8, value: u64, memory: &impl GuestMemory) -> u32 {
        let Some((index, slot, offset)) = self.find(gpa) else { return 0 };
        match slot.channel.write(offset, size, value, memory) {
            Effect::Nothing => 0,
            _ => 1 << index,
        }
    }
}

impl<M: GuestMemory> Domain<M> {
    /// Does what accesses have left to be done for each device whose bit is set in `touched`.
    #[inline(never)]
    pub(crate) fn serve_virtio(&self, host: &mut impl Host, touched: u32) {
        let slots = self.virtio.0.iter().enumerate();
        for (_, slot) in slots.filter(|(index, _)| touched >> index & 1 != 0) {
            match &slot.backend {
                // A guest that breaks its ring finds the device in need of a reset.
                Backend::Entropy(entropy) => {
                    let _ =
                        entropy.lock().serve(&slot.channel, &self.memory, &mut |bytes| host.random(bytes));
                }
            }
            self.drive_virtio_line(host, slot.pin);
        }
    }

    /// Drives a pin as its devices ask for now.
    fn drive_virtio_line(&self, host: &mut impl Host, pin: u8) {
        // Asked under the lock, so that whoever comes last leaves the line as it is.
        let mut chipset = self.chipset();
        let level = self.virtio.0.iter().any(|slot| slot.pin == pin && slot.channel.line());
        chipset.set_irq(pin, level);
        let wake = self.settle(&mut chipset);
        drop(chipset);
        host.wake(wake);
    }
}
