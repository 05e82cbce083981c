//! The registers that are not asked for without the lock, and the rules of the device status.

use alloc::boxed::Box;
use alloc::vec;

use bitflags::bitflags;

use super::queue::Queue;
use crate::features::VERSION_1;
use crate::{Description, MAX_QUEUES};

bitflags! {
    /// The device status (section 2.1).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Status: u32 {
        /// The guest has found the device.
        const ACKNOWLEDGE = 1;
        /// It knows how to drive it.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// The features are agreed upon.
        const FEATURES_OK = 8;
        /// The device has met an error that only a reset ends.
        const DEVICE_NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}

impl Status {
    /// Nothing works any more before a reset.
    pub(super) const BROKEN: Self = Self::DEVICE_NEEDS_RESET.union(Self::FAILED);

    /// The steps of initialisation (section 3.1.1), each with the one that comes before it.
    const STEPS: [(Self, Self); 4] = [
        (Self::ACKNOWLEDGE, Self::empty()),
        (Self::DRIVER, Self::ACKNOWLEDGE),
        (Self::FEATURES_OK, Self::DRIVER),
        (Self::DRIVER_OK, Self::FEATURES_OK),
    ];
}

/// Words of features that a driver can select and take: the most that the specification defines.
const FEATURE_WORDS: usize = 4;

#[derive(Debug)]
pub(super) struct State {
    pub(super) device: u32,
    pub(super) offered: u64,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    driver_features: [u32; FEATURE_WORDS],
    /// The driver has taken a feature beyond all words.
    beyond: bool,
    pub(super) queue_sel: u32,
    pub(super) status: Status,
    pub(super) queues: Box<[Queue]>,
    pub(super) config: Box<[u8]>,
    pub(super) writable: Box<[u8]>,
    pub(super) config_generation: u32,
    /// Queues that end, a bit each, once the backend has acknowledged it; those that a reset of the queue ends.
    pub(super) stopping: u64,
    pub(super) restoring: u64,
    /// The device is reset once the backend has acknowledged it.
    pub(super) resetting: bool,
    /// The number of the last change to acknowledge.
    pub(super) change: u32,
}

impl State {
    /// A device of a description that has been checked.
    pub(super) fn new(description: &Description<'_>) -> Self {
        let config: Box<[u8]> = description.config.into();
        let writable = match description.writable {
            [] => vec![0; config.len()].into(),
            mask => mask.into(),
        };
        Self {
            device: description.device,
            offered: description.features | VERSION_1,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: [0; FEATURE_WORDS],
            beyond: false,
            queue_sel: 0,
            status: Status::empty(),
            queues: description.queues.iter().take(MAX_QUEUES).map(|&max| Queue::new(max)).collect(),
            config,
            writable,
            config_generation: 0,
            stopping: 0,
            restoring: 0,
            resetting: false,
            change: 0,
        }
    }

    /// After a reset (section 4.2.2.1): as after power-on but for the configuration.
    pub(super) fn reset(&mut self) {
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = [0; FEATURE_WORDS];
        self.beyond = false;
        self.queue_sel = 0;
        self.status = Status::empty();
        self.queues.iter_mut().for_each(|queue| *queue = Queue::new(queue.max));
        self.stopping = 0;
        self.restoring = 0;
        self.resetting = false;
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.resetting || self.stopping != 0
    }

    /// Whether the device serves its queues.
    pub(super) fn is_running(&self) -> bool {
        self.status.contains(Status::DRIVER_OK) && !self.status.intersects(Status::BROKEN) && !self.resetting
    }

    /// The queues that can be notified.
    pub(super) fn live(&self) -> u64 {
        if !self.is_running() {
            return 0;
        }
        let ready = (0..).zip(&self.queues).filter(|(_, queue)| queue.ready);
        ready.fold(0, |live, (index, _)| live | 1 << index) & !self.stopping
    }

    /// The selected queue, with its bit.
    pub(super) fn selected(&self) -> Option<(u64, &Queue)> {
        let index = usize::try_from(self.queue_sel).ok()?;
        Some((1 << (index & 63), self.queues.get(index)?))
    }

    /// The same to be changed, while it is neither ready nor ending, nor the device about to be reset.
    pub(super) fn selected_mut(&mut self) -> Option<&mut Queue> {
        let index = usize::try_from(self.queue_sel).ok()?;
        if self.resetting || self.stopping >> (index & 63) & 1 != 0 {
            return None;
        }
        self.queues.get_mut(index).filter(|queue| !queue.ready)
    }

    // ---- features

    /// The features that the driver has written.
    pub(super) fn driver_features(&self) -> u64 {
        let [low, high, ..] = self.driver_features;
        u64::from(high) << 32 | u64::from(low)
    }

    /// The features that are agreed upon.
    pub(super) fn features(&self) -> u64 {
        if self.status.contains(Status::FEATURES_OK) { self.driver_features() } else { 0 }
    }

    /// The driver takes features; after FEATURES_OK it cannot (section 3.1.1, step 5).
    pub(super) fn write_features(&mut self, value: u32) {
        if self.status.contains(Status::FEATURES_OK) {
            return;
        }
        let selected = usize::try_from(self.driver_features_sel).unwrap_or(usize::MAX);
        match self.driver_features.get_mut(selected) {
            Some(word) => *word = value,
            None => self.beyond |= value != 0,
        }
    }

    /// Whether the device accepts what the driver has taken (section 2.2.2).
    fn accepts_features(&self) -> bool {
        let taken = self.driver_features();
        let [_, _, rest @ ..] = self.driver_features;
        taken & VERSION_1 != 0 && taken & !self.offered == 0 && rest == [0; 2] && !self.beyond
    }

    // ---- status

    /// The driver writes a status that is not 0. No bit is cleared; of the steps each is taken that may be.
    pub(super) fn write_status(&mut self, value: u32) {
        let asked = Status::from_bits_truncate(value);
        for (step, before) in Status::STEPS {
            let refused = step == Status::FEATURES_OK && !self.accepts_features();
            let may = self.status.contains(before) && !self.status.intersects(Status::BROKEN) && !refused;
            if asked.contains(step) && may {
                self.status |= step;
            }
        }
        self.status |= asked & Status::FAILED;
    }

    /// The queues that were about to end are at their end.
    pub(super) fn finish(&mut self) {
        self.finish_queue(self.stopping);
    }

    /// The same for those of which a bit is set in `ended`.
    pub(super) fn finish_queue(&mut self, ended: u64) {
        for (index, queue) in (0..).zip(&mut self.queues) {
            if ended >> index & 1 != 0 {
                queue.ready = false;
                if self.restoring >> index & 1 != 0 {
                    *queue = Queue::new(queue.max);
                }
            }
        }
        self.stopping &= !ended;
        self.restoring &= !ended;
    }
}
