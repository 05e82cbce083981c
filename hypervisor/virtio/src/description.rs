//! What a device is made of, as its backend describes it.

use core::fmt;

use crate::features::{RESERVED, SUPPORTED};

/// The most queues of a device: one bit each in the word of notifications.
pub const MAX_QUEUES: usize = 64;
/// The most entries of a queue (section 2.7).
pub const MAX_QUEUE_SIZE: u16 = 1 << 15;
/// The most bytes of a device's configuration: what its page has room for is more.
pub const MAX_CONFIG: usize = 256;

/// A device before it is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Description<'a> {
    /// The device type (chapter 5): 4 is entropy.
    pub device: u32,
    /// The feature bits that are offered. [`VERSION_1`](crate::features::VERSION_1) is always offered and need not be in.
    pub features: u64,
    /// The most entries of each queue: powers of two, at most [`MAX_QUEUE_SIZE`].
    pub queues: &'a [u16],
    /// The device's configuration to start with.
    pub config: &'a [u8],
    /// The bits of the configuration that the guest can write: as long as that, or empty where it can write none.
    pub writable: &'a [u8],
}

/// Why a description is not one of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DescriptionError {
    /// Type 0 says that there is no device.
    NoDevice,
    /// A device needs from one to [`MAX_QUEUES`] queues, and this has another number.
    QueueCount(usize),
    /// A queue, by its index, whose size is no power of two, or too large.
    QueueSize {
        /// The queue.
        queue: usize,
        /// Its size.
        size: u16,
    },
    /// The configuration has more than [`MAX_CONFIG`] bytes: so many.
    ConfigTooLong(usize),
    /// The mask of writable bits has another length than the configuration.
    MaskLength(usize),
    /// These features of rings or transport are not supported.
    Features(u64),
}

impl fmt::Display for DescriptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str("device type 0 is none: name a type"),
            Self::QueueCount(count) => {
                write!(f, "a device cannot have {count} queues: give it 1 to {MAX_QUEUES}")
            }
            Self::QueueSize { queue, size } => write!(
                f,
                "queue {queue} cannot have {size} entries: choose a power of two up to {MAX_QUEUE_SIZE}"
            ),
            Self::ConfigTooLong(length) => {
                write!(f, "{length} bytes of configuration are too many: keep to {MAX_CONFIG}")
            }
            Self::MaskLength(length) => {
                write!(
                    f,
                    "the mask of writable bits has {length} bytes: make it as long as the configuration"
                )
            }
            Self::Features(bits) => {
                write!(f, "the features {bits:#x} are not supported: offer {SUPPORTED:#x} and the device's")
            }
        }
    }
}

impl Description<'_> {
    /// Checks the description.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self) -> Result<(), DescriptionError> {
        if self.device == 0 {
            return Err(DescriptionError::NoDevice);
        }
        if !(1..=MAX_QUEUES).contains(&self.queues.len()) {
            return Err(DescriptionError::QueueCount(self.queues.len()));
        }
        for (queue, &size) in self.queues.iter().enumerate() {
            if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
                return Err(DescriptionError::QueueSize { queue, size });
            }
        }
        if self.config.len() > MAX_CONFIG {
            return Err(DescriptionError::ConfigTooLong(self.config.len()));
        }
        if !self.writable.is_empty() && self.writable.len() != self.config.len() {
            return Err(DescriptionError::MaskLength(self.writable.len()));
        }
        match self.features & RESERVED & !SUPPORTED {
            0 => Ok(()),
            bits => Err(DescriptionError::Features(bits)),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn each_mistake_is_named() {
        let good = Description { device: 4, features: 1, queues: &[8], config: &[1, 2], writable: &[] };
        assert_eq!(good.check(), Ok(()));
        assert_eq!(Description { features: SUPPORTED | 1 << 23 | 1 << 50, ..good }.check(), Ok(()));
        let cases = [
            (Description { device: 0, ..good }, DescriptionError::NoDevice),
            (Description { queues: &[], ..good }, DescriptionError::QueueCount(0)),
            (Description { queues: &[1; 65], ..good }, DescriptionError::QueueCount(65)),
            (Description { queues: &[8, 0], ..good }, DescriptionError::QueueSize { queue: 1, size: 0 }),
            (Description { queues: &[12], ..good }, DescriptionError::QueueSize { queue: 0, size: 12 }),
            (Description { config: &[0; 257], ..good }, DescriptionError::ConfigTooLong(257)),
            (Description { writable: &[1], ..good }, DescriptionError::MaskLength(1)),
            (Description { features: 1 << 33, ..good }, DescriptionError::Features(1 << 33)),
            (Description { features: 1 << 34 | 1, ..good }, DescriptionError::Features(1 << 34)),
        ];
        for (description, error) in cases {
            assert_eq!(description.check(), Err(error));
            assert!(!error.to_string().is_empty());
        }
    }
}
