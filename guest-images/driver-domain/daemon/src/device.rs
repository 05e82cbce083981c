//! What a kind of device has to be able to do: everything that [`service`](crate::service) does not do for all of them.

use std::fmt;
use std::io;
use std::time::Instant;

use caisson_abi::io::{ChannelDescription, MAX_CONFIG, MAX_QUEUES};
use rustix::event::PollFd;

use crate::ring::{QueueSetup, RingError};
use crate::statistics::Counters;

/// What a device is, for Caisson and its guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Description {
    /// The virtio device type.
    pub kind: u32,
    /// The features that are offered.
    pub features: u64,
    /// The most entries of each queue: powers of two.
    pub queues: Vec<u16>,
    /// Its configuration.
    pub config: Vec<u8>,
}

impl Description {
    /// As Caisson takes it. Queues and configuration are cut to what it has room for.
    #[must_use]
    pub fn record(&self) -> ChannelDescription {
        let (mut queue_sizes, mut config) = ([0; MAX_QUEUES], [0; MAX_CONFIG]);
        queue_sizes.iter_mut().zip(&self.queues).for_each(|(to, from)| *to = *from);
        config.iter_mut().zip(&self.config).for_each(|(to, from)| *to = *from);
        ChannelDescription {
            features: self.features,
            device: self.kind,
            queues: self.queues.len().min(MAX_QUEUES) as u16,
            config_bytes: self.config.len().min(MAX_CONFIG) as u16,
            queue_sizes,
            config,
            writable: [0; MAX_CONFIG],
        }
    }
}

/// Why a device cannot go on before its guest resets it.
#[derive(Debug)]
pub enum Fault {
    /// The guest's ring or a chain in it is broken.
    Ring(RingError),
    /// A chain is well-formed, and no request of this device's.
    Request(&'static str),
    /// What serves the device fails.
    Backend(io::Error),
}

impl From<RingError> for Fault {
    fn from(error: RingError) -> Self {
        Self::Ring(error)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => write!(f, "the guest's driver has broken its ring: {error}"),
            Self::Request(what) => write!(f, "the guest's driver has made no valid request: {what}"),
            Self::Backend(error) => write!(f, "it cannot be served: {error}"),
        }
    }
}

impl std::error::Error for Fault {}

/// What came of a device's work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Something was done: there may be more.
    pub any: bool,
    /// The guest is to be interrupted.
    pub interrupt: bool,
}

/// What a device that has nothing to do waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Awaits {
    /// The guest.
    Guest,
    /// The end of what is under way.
    End,
    /// The ends of much. Nobody looks for them: who sleeps finds several at once, and tells the guest of several at once.
    Ends,
}

/// A kind of device. One thread at a time uses it.
pub trait Device: Send {
    /// What it is.
    fn description(&self) -> Description;

    /// A queue starts. With the first one the device begins a new life.
    ///
    /// # Errors
    /// [`Fault`]: the device cannot be served.
    fn start(&mut self, setup: &QueueSetup) -> Result<(), Fault>;

    /// A queue ends. When this returns, nothing touches its ring nor the buffers that were taken from it. For a queue that has
    /// not started it does nothing.
    fn stop(&mut self, queue: u16);

    /// Does what there is to do in all queues, up to a bound, without waiting. `told` has a bit for each queue that the guest
    /// has notified since the last time.
    ///
    /// # Errors
    /// [`Fault`]: the device needs a reset. Its queues are stopped then.
    fn work(&mut self, told: u64, counters: &Counters) -> Result<Progress, Fault>;

    /// Asks to be told of what comes from now on, before the thread sleeps. Whether there is something already.
    ///
    /// # Errors
    /// As [`Device::work`].
    fn arm(&mut self) -> Result<bool, Fault>;

    /// What comes next.
    fn awaits(&self) -> Awaits {
        Awaits::Guest
    }

    /// What else the thread has to wait for.
    fn sources<'a>(&'a self, into: &mut Vec<PollFd<'a>>);

    /// When the thread has to wake at the latest.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}
