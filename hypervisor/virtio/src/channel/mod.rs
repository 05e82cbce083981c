//! A device's transport: what the guest reads and writes at its registers, and what a backend does to it.
//!
//! virtio-mmio of version 2 (section 4.2.2), modern devices alone.
//!
//! **The caller's part.** The guest's writes go to [`Channel::write`], and its reads to [`Channel::read`], or to the
//! [`RegisterPage`] itself, where the guest has it mapped for reading.
//!
//! **Interrupts** are edges: one for each bit of the interrupt status that was clear before. A driver reads the status, acknowledges
//! what it has read, and then looks (section 4.2.3.4): what comes before it acknowledges it finds, and what comes after is an edge
//! again. So the end of an interrupt needs no exit.
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
mod page;
mod queue;
pub mod register;
mod state;
#[cfg(test)]
mod tests;

use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use caisson_locks::{Mutex, MutexGuard, Rank};

use crate::{Description, DescriptionError};
use state::State;

pub use page::{PageRef, RegisterPage};
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
    /// The guest is to be interrupted.
    Interrupt,
    /// What the guest waited for is done: its vCPU may go on ([`Channel::is_waiting`]).
    Released,
    /// The backend is to look at this queue, of which it has not been told since it last looked.
    Notify {
        /// The queue's index.
        queue: u16,
    },
    /// The backend, if there is one, is to be told; and the guest interrupted if [`Channel::has_interrupt`].
    Changed(Change),
}

/// A device's transport, shared by the vCPUs of its guest and its backend.
pub struct Channel {
    /// The queues that can be notified, a bit each. Written under the lock.
    live: AtomicU64,
    /// The queues that the backend has been told of and has not looked at.
    pending: AtomicU64,
    /// What the guest reads. InterruptStatus in it is set under the lock, and acknowledged without.
    page: PageRef,
    /// Whether there is a backend. Written under the lock.
    attached: AtomicBool,
    state: Mutex<State>,
}

impl Channel {
    /// A device after power-on, without a backend, with its registers in `page`.
    ///
    /// # Errors
    /// [`DescriptionError`] for a description of no device.
    pub fn new(description: &Description<'_>, page: PageRef) -> Result<Self, DescriptionError> {
        description.check()?;
        Ok(Self::checked(description, page))
    }

    /// The same of a description that has been checked.
    pub(crate) fn checked(description: &Description<'_>, page: PageRef) -> Self {
        let state = State::new(description);
        page.show_all(&state);
        Self {
            live: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            page,
            attached: AtomicBool::new(false),
            state: Mutex::new(Rank::Channel, state),
        }
    }

    /// The reasons to interrupt that have not been acknowledged: InterruptStatus.
    #[inline]
    #[must_use]
    pub fn reasons(&self) -> u32 {
        self.page.interrupt_status().load(Ordering::Acquire)
    }

    /// Whether there are any.
    #[inline]
    #[must_use]
    pub fn has_interrupt(&self) -> bool {
        self.reasons() != 0
    }

    /// Whether a reset or the end of a queue waits for [`Channel::acknowledge`].
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.state().is_waiting()
    }

    #[cfg_attr(debug_assertions, track_caller)]
    fn state(&self) -> Shown<'_> {
        Shown { state: self.state.lock(), page: &self.page, changed: false }
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
        let bit = interrupt as u32;
        match self.page.interrupt_status().fetch_or(bit, Ordering::AcqRel) & bit {
            0 => Effect::Interrupt,
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
        self.page.interrupt_status().store(0, Ordering::Release);
    }
}

/// The state under its lock, which the page shows before the lock is given back.
struct Shown<'a> {
    state: MutexGuard<'a, State>,
    page: &'a PageRef,
    changed: bool,
}

impl Deref for Shown<'_> {
    type Target = State;

    #[inline]
    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Shown<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut State {
        self.changed = true;
        &mut self.state
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if self.changed {
            self.page.show(&self.state);
        }
    }
}

impl core::fmt::Debug for Channel {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Channel").field("page", &**self.page).finish_non_exhaustive()
    }
}
