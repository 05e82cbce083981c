//! The entropy device (section 5.4): one queue, whose buffers the device fills with random bytes.
//!
//! Its backend is Caisson itself, on the vCPU that notifies. How much it does at a time is bounded: [`FILL`] bytes of a
//! chain, whatever the driver has asked for (a device may write less, section 5.4.6), and as many chains as the queue has
//! entries. A chain that comes later brings a notification of its own.

use caisson_types::GuestMemory;

use crate::features::{EVENT_IDX, INDIRECT_DESC};
use crate::{Channel, Description, Interrupt, PageRef, Ring, RingError};

/// The device type.
pub const ENTROPY: u32 = 4;
/// The most bytes that a chain gets.
const FILL: usize = 64;
/// Entries of the queue.
const SIZE: u16 = 8;
/// The queue.
const REQUESTS: u16 = 0;

/// The backend of an entropy device.
#[derive(Debug, Default)]
pub struct Entropy {
    ring: Option<Ring>,
}

impl Entropy {
    /// The device.
    pub const DESCRIPTION: Description<'static> = Description {
        device: ENTROPY,
        features: INDIRECT_DESC | EVENT_IDX,
        queues: &[SIZE],
        config: &[],
        writable: &[],
    };

    /// Such a device after power-on, without its backend, with its registers in `page`.
    #[must_use]
    pub fn channel(page: PageRef) -> Channel {
        Channel::checked(&Self::DESCRIPTION, page)
    }

    /// A backend that has seen nothing of its device yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { ring: None }
    }

    /// Does what there is to do, after any [`Effect`](crate::Effect) of an access to `channel`. `source` fills as much of a
    /// slice with random bytes as it can, and answers how much that is. Afterwards the guest is to be interrupted if
    /// [`Channel::reasons`] has a bit that it had not before.
    ///
    /// # Errors
    /// What the driver has done wrong; the device is in DEVICE_NEEDS_RESET then.
    pub fn serve(
        &mut self,
        channel: &Channel,
        memory: &impl GuestMemory,
        source: &mut impl FnMut(&mut [u8]) -> usize,
    ) -> Result<(), RingError> {
        let told = channel.take_notifications();
        if channel.is_waiting() {
            self.ring = None;
            let _ = channel.acknowledge(channel.snapshot().change);
        }
        if told & 1 << REQUESTS == 0 {
            return Ok(());
        }
        match self.fill(channel, memory, source) {
            Ok(true) => {
                let _ = channel.interrupt(Interrupt::Used);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                self.ring = None;
                let _ = channel.fail();
                Err(error)
            }
        }
    }

    /// Whether the guest is to be interrupted.
    fn fill(
        &mut self,
        channel: &Channel,
        memory: &impl GuestMemory,
        source: &mut impl FnMut(&mut [u8]) -> usize,
    ) -> Result<bool, RingError> {
        let ring = match &mut self.ring {
            Some(ring) => ring,
            None => {
                let Some(queue) = channel.queue(REQUESTS).filter(|queue| queue.ready != 0) else {
                    return Ok(false);
                };
                self.ring.insert(Ring::new(&queue, channel.snapshot().features, memory)?)
            }
        };
        for _ in 0..ring.size() {
            let Some(mut chain) = ring.pop(memory)? else { break };
            let mut bytes = [0; FILL];
            let there = source(&mut bytes).min(FILL);
            let mut written = 0;
            // Descriptors that are not looked at any more are none of the device's business.
            while written < there
                && let Some(buffer) = chain.next(memory)?
            {
                if buffer.writable {
                    let part = there.min(written + buffer.length as usize);
                    memory.write(buffer.gpa, bytes.get(written..part).unwrap_or_default())?;
                    written = part;
                }
            }
            ring.push(memory, chain, written as u32)?;
        }
        // A driver that heeds event indices is to tell of each chain.
        let _ = ring.enable_notifications(memory)?;
        ring.needs_interrupt(memory)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use caisson_types::{Gpa, SliceMemory};

    use super::*;
    use crate::{Effect, RegisterPage, register};

    const DESCRIPTORS: u64 = 0x1000;
    const DRIVER: u64 = 0x2000;
    const DEVICE: u64 = 0x3000;
    const DATA: u64 = 0x4000;

    fn started(memory: &SliceMemory<'_>) -> (Channel, Entropy) {
        let (channel, mut entropy) =
            (Channel::new(&Entropy::DESCRIPTION, RegisterPage::boxed()).unwrap(), Entropy::new());
        let _ = channel.attach();
        let writes = [
            (register::STATUS, 3),
            (register::DRIVER_FEATURES_SEL, 1),
            (register::DRIVER_FEATURES, 1),
            (register::STATUS, 11),
            (register::QUEUE_DESC_LOW, DESCRIPTORS),
            (register::QUEUE_DRIVER_LOW, DRIVER),
            (register::QUEUE_DEVICE_LOW, DEVICE),
            (register::QUEUE_READY, 1),
            (register::STATUS, 15),
        ];
        for (offset, value) in writes {
            let _ = channel.write(offset, 4, value, memory);
            assert_eq!(entropy.serve(&channel, memory, &mut |_| panic!("no chain")), Ok(()));
        }
        (channel, entropy)
    }

    fn offer(memory: &SliceMemory<'_>, index: u16, gpa: u64, length: u32, flags: u16, next: u16) {
        let at = Gpa::new(DESCRIPTORS + 16 * u64::from(index));
        memory.write_u64(at, gpa).unwrap();
        let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
        memory.write_u64(at.wrapping_add(8), rest).unwrap();
    }

    fn notify(channel: &Channel, entropy: &mut Entropy, memory: &SliceMemory<'_>) -> Result<(), RingError> {
        let effect = channel.write(register::QUEUE_NOTIFY, 4, 0, memory);
        assert_eq!(effect, Effect::Notify { queue: 0 });
        let mut next = 0;
        entropy.serve(channel, memory, &mut |bytes| {
            bytes.iter_mut().for_each(|byte| {
                next += 1;
                *byte = next;
            });
            bytes.len()
        })
    }

    #[test]
    fn it_is_a_device() {
        assert_eq!(Entropy::DESCRIPTION.check(), Ok(()));
        assert_eq!(Entropy::channel(RegisterPage::boxed()).read(register::DEVICE_ID, 4), 4);
    }

    #[test]
    fn buffers_are_filled_in_their_order() {
        let mut bytes = vec![0; 0x8000];
        let memory = SliceMemory::new(&mut bytes);
        let (channel, mut entropy) = started(&memory);
        // A buffer to read is of no use; 70 bytes are asked for, in two parts.
        offer(&memory, 0, DATA, 8, 1, 1);
        offer(&memory, 1, DATA + 0x100, 10, 3, 2);
        offer(&memory, 2, DATA + 0x200, 60, 2, 0);
        memory.write_u16(Gpa::new(DRIVER + 2), 1).unwrap();
        assert_eq!((notify(&channel, &mut entropy, &memory), channel.has_interrupt()), (Ok(()), true));
        let mut found = [0; 64];
        memory.read(Gpa::new(DATA + 0x100), &mut found[..10]).unwrap();
        memory.read(Gpa::new(DATA + 0x200), &mut found[10..]).unwrap();
        assert!(found.iter().copied().eq(1..=64));
        assert_eq!(memory.read_u64(Gpa::new(DEVICE + 4)), Ok(64 << 32));
        assert_eq!(memory.read_u32(Gpa::new(DATA + 0x200 + 54)), Ok(0), "no more than it says");
        assert_eq!(memory.read_u32(Gpa::new(DATA)), Ok(0));
    }

    #[test]
    fn a_broken_ring_ends_the_device_until_its_reset() {
        let mut bytes = vec![0; 0x8000];
        let memory = SliceMemory::new(&mut bytes);
        let (channel, mut entropy) = started(&memory);
        offer(&memory, 0, 0x7fff, 2, 2, 0);
        memory.write_u16(Gpa::new(DRIVER + 2), 1).unwrap();
        let error = RingError::NotRam { gpa: Gpa::new(0x7fff), length: 2 };
        assert_eq!(notify(&channel, &mut entropy, &memory), Err(error));
        assert_eq!((channel.read(register::STATUS, 4), channel.has_interrupt()), (79, true));
        let _ = channel.write(register::STATUS, 4, 0, &memory);
        assert!(channel.is_waiting());
        assert_eq!(entropy.serve(&channel, &memory, &mut |_| 0), Ok(()));
        assert_eq!((channel.read(register::STATUS, 4), channel.has_interrupt()), (0, false));
    }

    #[test]
    fn a_source_that_has_nothing_gives_nothing() {
        let mut bytes = vec![0; 0x8000];
        let memory = SliceMemory::new(&mut bytes);
        let (channel, mut entropy) = started(&memory);
        offer(&memory, 0, DATA, 8, 2, 0);
        memory.write_u16(Gpa::new(DRIVER + 2), 1).unwrap();
        let _ = channel.write(register::QUEUE_NOTIFY, 4, 0, &memory);
        assert_eq!(entropy.serve(&channel, &memory, &mut |_| 0), Ok(()));
        assert_eq!((memory.read_u64(Gpa::new(DEVICE + 4)), channel.has_interrupt()), (Ok(0), true));
    }
}
