//! A device's transport: what the guest reads and writes at its registers, and what a backend does to it.
//!
//! virtio-mmio of version 2 (section 4.2.2), modern devices alone.
//!
//! **The caller's part.** The guest's accesses go to [`Channel::read`] and [`Channel::write`]. After every [`Effect`] but
//! [`Effect::Nothing`] and [`Effect::Notify`] the interrupt line is driven to [`Channel::line`]; a caller that orders this
//! by a lock of its own, under which it asks, leaves the line as it is now. Line and interrupt status are one thing: the
//! line is up while any bit of the status is set (section 4.2.3.4).
//!
//! **Waiting.** A reset, and the end of a queue, are done when the backend no longer touches the rings
//! ([`Channel::acknowledge`]), and at once where it never did or where there is none. Until then the registers show the
//! state before, and the vCPU that asked is not to go on ([`Channel::is_waiting`]): a driver of virtio-mmio does not look.
//!
//! **What is illegal.** A control register takes accesses of 32 bits alone (section 4.2.2.2): others read 0 and write
//! nothing. So do registers that are not there. Bits of the status are set in their order (section 3.1.1), each only with
//! the one before, and cleared by a reset alone; those that may not be set stay clear. A queue that is made ready without
//! its rings in RAM puts the device into DEVICE_NEEDS_RESET.

mod access;
mod backend;
mod queue;
pub mod register;
mod state;
#[cfg(test)]
mod tests;

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use caisson_locks::{Mutex, MutexGuard, Rank};

use crate::{Description, DescriptionError};
use state::State;

pub use queue::Refusal;
pub use state::Status;

/// Why the guest is interrupted: the bits of InterruptStatus (section 4.2.2, 0x060).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Interrupt {
    /// A buffer has been used.
    Used = 1 << 0,
    /// The configuration has changed, or the device needs a reset.
    Config = 1 << 1,
}

/// What has changed for the backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The driver is ready: the device is to serve its queues, all of which are to be looked at.
    DriverOk,
    /// The driver has given up: it will reset the device before it does anything else.
    DriverFailed,
    /// The driver resets the device. To be acknowledged.
    Reset,
    /// A queue can be used, after [`Change::DriverOk`].
    QueueReady(u16),
    /// A queue ends. To be acknowledged.
    QueueStopped(u16),
    /// The guest has written to the configuration: so many bytes from an offset.
    Config {
        /// Of the first byte.
        offset: u16,
        /// How many.
        length: u8,
    },
    /// The guest has asked for a queue that cannot be; the device needs a reset.
    Refused {
        /// The queue.
        queue: u16,
        /// What is wrong with it.
        why: Refusal,
    },
}

/// What an access, or a call of the backend's, leaves to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an effect is to be carried out by the caller"]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// The interrupt line is to be driven to [`Channel::line`].
    Line,
    /// The backend is to look at this queue, of which it has not been told since it last looked.
    Notify {
        /// The queue's index.
        queue: u16,
    },
    /// The backend, if there is one, is to be told; and the line as by [`Effect::Line`].
    Changed(Change),
}

impl Effect {
    /// Whether the interrupt line is to be driven to [`Channel::line`].
    #[must_use]
    pub const fn drives_line(self) -> bool {
        matches!(self, Self::Line | Self::Changed(_))
    }
}

/// A device's transport, shared by the vCPUs of its guest and its backend.
#[derive(Debug)]
pub struct Channel {
    /// The queues that can be notified, a bit each. Written under the lock.
    live: AtomicU64,
    /// The queues that the backend has been told of and has not looked at.
    pending: AtomicU64,
    /// InterruptStatus. Set under the lock; acknowledged without.
    interrupts: AtomicU32,
    /// Whether there is a backend. Written under the lock.
    attached: AtomicBool,
    state: Mutex<State>,
}

impl Channel {
    /// A device after power-on, without a backend.
    ///
    /// # Errors
    /// [`DescriptionError`] for a description of no device.
    pub fn new(description: &Description<'_>) -> Result<Self, DescriptionError> {
        description.check()?;
        Ok(Self::checked(description))
    }

    /// The same of a description that has been checked.
    pub(crate) fn checked(description: &Description<'_>) -> Self {
        Self {
            live: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            interrupts: AtomicU32::new(0),
            attached: AtomicBool::new(false),
            state: Mutex::new(Rank::Channel, State::new(description)),
        }
    }

    /// Whether the device asserts its interrupt line.
    #[inline]
    #[must_use]
    pub fn line(&self) -> bool {
        self.interrupts.load(Ordering::Acquire) != 0
    }

    /// Whether a reset or the end of a queue waits for [`Channel::acknowledge`].
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.state().is_waiting()
    }

    #[cfg_attr(debug_assertions, track_caller)]
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// A notification of `queue`: no lock, two atomic operations at most.
    #[inline]
    fn notify(&self, queue: u64) -> Effect {
        if queue >= u64::from(u64::BITS) {
            return Effect::Nothing;
        }
        let bit = 1 << queue;
        if self.live.load(Ordering::Acquire) & bit == 0 {
            return Effect::Nothing;
        }
        // A new backend looks at every queue after it is attached, so that it misses none that is noted before; hence the
        // order of the two.
        let before = self.pending.fetch_or(bit, Ordering::SeqCst);
        if before & bit == 0 && self.attached.load(Ordering::SeqCst) {
            Effect::Notify { queue: queue as u16 }
        } else {
            Effect::Nothing
        }
    }

    /// Sets a bit of the interrupt status. To be called under the lock.
    fn raise(&self, interrupt: Interrupt) -> Effect {
        match self.interrupts.fetch_or(interrupt as u32, Ordering::AcqRel) {
            0 => Effect::Line,
            _ => Effect::Nothing,
        }
    }

    /// Lets `live` follow the state. To be called under the lock, before it is given back.
    fn publish(&self, state: &State) {
        let live = state.live();
        let before = self.live.swap(live, Ordering::AcqRel);
        // A queue that starts is looked at; what is noted of one that has ended means nothing any more.
        self.pending.fetch_or(live & !before, Ordering::SeqCst);
        self.pending.fetch_and(live, Ordering::SeqCst);
    }

    /// Carries out a reset that nothing holds back any more.
    fn clear(&self, state: &mut State) {
        state.reset();
        self.interrupts.store(0, Ordering::Release);
    }
}
