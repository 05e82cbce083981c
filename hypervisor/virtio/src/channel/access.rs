//! The guest's side: reads and writes of the device's page.

use core::sync::atomic::Ordering;

use caisson_types::GuestMemory;

use super::state::{State, Status};
use super::{Change, Channel, Effect, Interrupt, register};
use crate::features::RING_RESET;

/// The bytes of a control register.
const WIDTH: u8 = 4;
/// What a shared memory region that is not there reads as length and as base (section 4.2.2, SHMLenLow).
const NO_REGION: u32 = u32::MAX;

impl Channel {
    /// Reads `size` bytes (1 to 8) at `offset` of the device's page.
    #[must_use]
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        if offset >= register::CONFIG {
            return self.page.read_bytes(offset, size);
        }
        if size != WIDTH || !offset.is_multiple_of(WIDTH.into()) {
            return 0;
        }
        u64::from(self.page.read(offset))
    }

    /// Writes the low `size` bytes (1 to 8) of `value` at `offset` of the device's page. `memory` is the guest's RAM, in
    /// which a queue's rings have to lie.
    pub fn write(&self, offset: u64, size: u8, value: u64, memory: &impl GuestMemory) -> Effect {
        if offset >= register::CONFIG {
            return self.write_config(offset - register::CONFIG, size, value);
        }
        let value = match size {
            WIDTH => value as u32,
            _ => return Effect::Nothing,
        };
        match offset {
            register::QUEUE_NOTIFY => self.notify(u64::from(value)),
            register::INTERRUPT_ACK => self.acknowledge_interrupt(value),
            register::STATUS if value == 0 => self.reset(),
            register::STATUS => self.write_status(value),
            register::QUEUE_READY => self.write_ready(value, memory),
            register::QUEUE_RESET => self.reset_queue(value),
            _ => {
                self.state().write(offset, value);
                Effect::Nothing
            }
        }
    }

    fn acknowledge_interrupt(&self, value: u32) -> Effect {
        self.page.interrupt_status().fetch_and(!value, Ordering::AcqRel);
        Effect::Nothing
    }

    fn write_status(&self, value: u32) -> Effect {
        let mut state = self.state();
        if state.resetting {
            return Effect::Nothing;
        }
        let (before, was_running) = (state.status, state.is_running());
        state.write_status(value);
        let set = state.status.difference(before);
        self.publish(&state);
        if set.contains(Status::FAILED) && was_running {
            Effect::Changed(Change::DriverFailed)
        } else if set.contains(Status::DRIVER_OK) && state.is_running() {
            Effect::Changed(Change::DriverOk)
        } else {
            Effect::Nothing
        }
    }

    /// The driver writes 0 to the status (section 2.4).
    fn reset(&self) -> Effect {
        let mut state = self.state();
        if state.resetting {
            return Effect::Nothing;
        }
        // The backend may touch the rings from DRIVER_OK on, whatever became of the device then.
        if state.status.contains(Status::DRIVER_OK) {
            state.resetting = true;
            state.change = state.change.wrapping_add(1);
            self.publish(&state);
            if !self.attached.load(Ordering::Relaxed) {
                self.clear(&mut state);
            }
            return Effect::Changed(Change::Reset);
        }
        self.clear(&mut state);
        self.publish(&state);
        Effect::Nothing
    }

    fn write_ready(&self, value: u32, memory: &impl GuestMemory) -> Effect {
        let mut state = self.state();
        match value {
            0 => self.stop_selected(&mut state),
            1 => self.start_selected(&mut state, memory),
            _ => Effect::Nothing,
        }
    }

    fn start_selected(&self, state: &mut State, memory: &impl GuestMemory) -> Effect {
        if !state.status.contains(Status::FEATURES_OK) || state.status.intersects(Status::BROKEN) {
            return Effect::Nothing;
        }
        let index = state.queue_sel as u16;
        let Some(queue) = state.selected_mut() else { return Effect::Nothing };
        match queue.check(memory) {
            Ok(()) => queue.ready = true,
            Err(why) => {
                let _ = self.break_down(state);
                return Effect::Changed(Change::Refused { queue: index, why });
            }
        }
        self.publish(state);
        if state.is_running() { Effect::Changed(Change::QueueReady(index)) } else { Effect::Nothing }
    }

    fn stop_selected(&self, state: &mut State) -> Effect {
        let Some((bit, queue)) = state.selected() else { return Effect::Nothing };
        if !queue.ready || state.resetting || state.stopping & bit != 0 {
            return Effect::Nothing;
        }
        let served = state.status.contains(Status::DRIVER_OK);
        state.stopping |= bit;
        if !served {
            state.finish_queue(bit);
            return Effect::Nothing;
        }
        state.change = state.change.wrapping_add(1);
        if !self.attached.load(Ordering::Relaxed) {
            state.finish();
        }
        self.publish(state);
        Effect::Changed(Change::QueueStopped(state.queue_sel as u16))
    }

    /// The driver resets the selected queue (section 2.6.1): its end, after which it is as after the device's reset.
    fn reset_queue(&self, value: u32) -> Effect {
        let mut state = self.state();
        if value != 1 || state.features() & RING_RESET == 0 {
            return Effect::Nothing;
        }
        match state.selected() {
            Some((bit, queue)) if queue.ready && state.stopping & bit == 0 => state.restoring |= bit,
            _ => return Effect::Nothing,
        }
        self.stop_selected(&mut state)
    }

    /// DEVICE_NEEDS_RESET, of which a driver that is ready is told (section 2.1.2). To be called under the lock.
    pub(super) fn break_down(&self, state: &mut State) -> Effect {
        if state.resetting || state.status.contains(Status::DEVICE_NEEDS_RESET) {
            return Effect::Nothing;
        }
        state.status |= Status::DEVICE_NEEDS_RESET;
        self.publish(state);
        if state.status.contains(Status::DRIVER_OK) { self.raise(Interrupt::Config) } else { Effect::Nothing }
    }

    fn write_config(&self, offset: u64, size: u8, value: u64) -> Effect {
        let mut state = self.state();
        if state.resetting || !state.write_config(offset, size, value) {
            return Effect::Nothing;
        }
        self.page.show_config(&state);
        Effect::Changed(Change::Config { offset: offset as u16, length: size })
    }
}

impl State {
    /// What a control register reads, but for InterruptStatus.
    pub(super) fn read(&self, offset: u64) -> u32 {
        let queue = self.selected();
        match offset {
            register::MAGIC_VALUE => register::MAGIC,
            register::VERSION => register::MODERN,
            register::DEVICE_ID => self.device,
            register::VENDOR_ID => register::VENDOR,
            register::DEVICE_FEATURES => match self.device_features_sel {
                0 => self.offered as u32,
                1 => (self.offered >> 32) as u32,
                _ => 0,
            },
            register::QUEUE_NUM_MAX => queue.map_or(0, |(_, queue)| u32::from(queue.max)),
            register::QUEUE_READY => queue.map_or(0, |(_, queue)| u32::from(queue.ready)),
            register::QUEUE_RESET => queue.map_or(0, |(bit, _)| u32::from(self.restoring & bit != 0)),
            register::STATUS => self.status.bits(),
            register::SHM_LEN_LOW
            | register::SHM_LEN_HIGH
            | register::SHM_BASE_LOW
            | register::SHM_BASE_HIGH => NO_REGION,
            register::CONFIG_GENERATION => self.config_generation,
            _ => 0,
        }
    }

    /// The registers that only remember.
    fn write(&mut self, offset: u64, value: u32) {
        if self.resetting {
            return;
        }
        match offset {
            register::DEVICE_FEATURES_SEL => return self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => return self.driver_features_sel = value,
            register::DRIVER_FEATURES => return self.write_features(value),
            register::QUEUE_SEL => return self.queue_sel = value,
            _ => {}
        }
        let Some(queue) = self.selected_mut() else { return };
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            register::QUEUE_NUM => queue.size = value,
            register::QUEUE_DESC_LOW => queue.descriptors = low(queue.descriptors),
            register::QUEUE_DESC_HIGH => queue.descriptors = high(queue.descriptors),
            register::QUEUE_DRIVER_LOW => queue.driver = low(queue.driver),
            register::QUEUE_DRIVER_HIGH => queue.driver = high(queue.driver),
            register::QUEUE_DEVICE_LOW => queue.device = low(queue.device),
            register::QUEUE_DEVICE_HIGH => queue.device = high(queue.device),
            _ => {}
        }
    }

    /// Whether the guest could write any bit of it.
    fn write_config(&mut self, offset: u64, size: u8, value: u64) -> bool {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.config.get_mut(at..).unwrap_or_default().iter_mut();
        let masks = self.writable.get(at..).unwrap_or_default();
        let mut any = false;
        for ((byte, &mask), new) in bytes.zip(masks).zip(value.to_le_bytes()).take(usize::from(size)) {
            *byte = *byte & !mask | new & mask;
            any |= mask != 0;
        }
        any
    }
}
