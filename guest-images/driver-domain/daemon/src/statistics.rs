//! Counters of a device, written by its thread and read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $text:literal])+ $name:ident,)+) => {
        /// What a device has done since it was attached to.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $text])+ pub $name: Counter,)+
        }

        impl Counters {
            /// Each with its name.
            #[must_use]
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)+]
            }
        }
    };
}

counters! {
    /// Chains of descriptors that were taken from the rings.
    requests,
    /// Bytes from the device to the guest.
    bytes_to_guest,
    /// Bytes from the guest to the device.
    bytes_from_guest,
    /// Requests that failed.
    errors,
    /// Frames that a rule refused: another's address, a tag.
    refused,
    /// Frames that were lost for want of room, or that the kernel did not take.
    dropped,
    /// Events that woke the device's thread.
    events,
    /// Interrupts of the guest.
    interrupts,
    /// How often the thread went to sleep.
    sleeps,
}
