//! The backend's side.

use core::sync::atomic::Ordering;

use super::state::State;
use super::{Channel, Effect, Interrupt};
use crate::{DeviceState, QueueState};

impl Channel {
    /// A backend takes the device on: what it has to know. Every queue that can be notified is to be looked at, for the one
    /// before may have heard of work that it has not done.
    pub fn attach(&self) -> DeviceState {
        let state = self.state();
        self.attached.store(true, Ordering::SeqCst);
        self.pending.fetch_or(self.live.load(Ordering::Relaxed), Ordering::SeqCst);
        drop(state);
        self.snapshot()
    }

    /// The backend is gone, or lets go of the device: it touches the rings no more. Notifications are remembered for the
    /// next one, and the guest waits; what waited for an acknowledgement goes on.
    pub fn detach(&self) -> Effect {
        let mut state = self.state();
        self.attached.store(false, Ordering::SeqCst);
        // Under one lock: a change that comes from here on waits for nobody, and releases nobody.
        self.release(&mut state)
    }

    /// Whether there is a backend.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached.load(Ordering::SeqCst)
    }

    /// The device as it is now. Its queues by [`Channel::queue`].
    #[must_use]
    pub fn snapshot(&self) -> DeviceState {
        let state = self.state();
        DeviceState {
            features: state.features(),
            pending: self.pending.load(Ordering::SeqCst),
            device: state.device,
            status: state.status.bits(),
            change: state.change,
            queues: state.queues.len() as u32,
            config: state.config.len() as u32,
            waiting: u32::from(state.is_waiting()),
        }
    }

    /// One of the queues; `None` past the last. A queue that is about to end is not ready any more.
    #[must_use]
    pub fn queue(&self, index: u16) -> Option<QueueState> {
        let state = self.state();
        let mut queue = state.queues.get(usize::from(index))?.snapshot();
        if state.resetting || state.stopping >> (index & 63) & 1 != 0 {
            queue.ready = 0;
        }
        Some(queue)
    }

    /// The queues that the backend is to look at, a bit each, of which it will be told again from now on. Without a lock;
    /// to be called before it looks at them.
    #[inline]
    #[must_use]
    pub fn take_notifications(&self) -> u64 {
        self.pending.swap(0, Ordering::SeqCst)
    }

    /// The backend has seen all changes up to number `change` ([`DeviceState::change`]), and touches no ring that they
    /// have ended. Another number than the last one's says nothing: there is a later change to see.
    pub fn acknowledge(&self, change: u32) -> Effect {
        let mut state = self.state();
        if change == state.change { self.release(&mut state) } else { Effect::Nothing }
    }

    /// What waits for the backend is done.
    fn release(&self, state: &mut State) -> Effect {
        if !state.is_waiting() {
            return Effect::Nothing;
        }
        if state.resetting {
            self.clear(state);
        } else {
            state.finish();
        }
        self.publish(state);
        Effect::Released
    }

    /// Interrupts the guest. Nothing is left to do where it has not seen the last one yet, or where the device does not run.
    pub fn interrupt(&self, interrupt: Interrupt) -> Effect {
        let state = self.state();
        if state.is_running() { self.raise(interrupt) } else { Effect::Nothing }
    }

    /// Changes the configuration at `offset` and tells the guest (section 2.5.2: the generation says that parts which were
    /// read before belong to something else). `None` where the configuration has no room for it; nothing has changed then.
    pub fn set_config(&self, offset: usize, bytes: &[u8]) -> Option<Effect> {
        let mut state = self.state();
        let end = offset.checked_add(bytes.len())?;
        state.config.get_mut(offset..end)?.copy_from_slice(bytes);
        // Before and after, for who reads it meanwhile without an exit; and what is read in between is read once more after the
        // interrupt.
        state.config_generation = state.config_generation.wrapping_add(1);
        self.page.show(&state);
        self.page.show_config(&state);
        state.config_generation = state.config_generation.wrapping_add(1);
        Some(if state.is_running() { self.raise(Interrupt::Config) } else { Effect::Nothing })
    }

    /// Reads the configuration from `offset` on, as the guest may have written it: how many bytes there were.
    pub fn config(&self, offset: usize, into: &mut [u8]) -> usize {
        let state = self.state();
        let there = state.config.get(offset..).unwrap_or_default();
        into.iter_mut().zip(there).map(|(to, from)| *to = *from).count()
    }

    /// The device cannot go on before a reset: DEVICE_NEEDS_RESET.
    pub fn fail(&self) -> Effect {
        let mut state = self.state();
        self.break_down(&mut state)
    }
}
