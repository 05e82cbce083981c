//! Where an entity is.
//!
//! An entity is in the queue of one CPU, or on its way from one to another. Its place is written under the lock of the
//! queue that it leaves or enters, and read without one to find the lock to take; who has the lock looks again.
//!
//! A CPU that runs a vCPU *holds* it: its registers, its control block, its translations. It holds it beyond the turn,
//! until it needs the room, and no other CPU may run it so long.

use crate::sync::{AtomicU32, Ordering, constructor, fence};

/// Where an entity is, and who holds it.
#[derive(Debug)]
pub struct Place {
    cpu: AtomicU32,
    entity: AtomicU32,
    holder: AtomicU32,
}

/// No entity, no CPU.
const NONE: u32 = u32::MAX;

impl Place {
    constructor! {
        /// In no queue; the first will be that of `cpu`.
        pub fn new(cpu: u32) -> Self {
            Self { cpu: AtomicU32::new(cpu), entity: AtomicU32::new(NONE), holder: AtomicU32::new(NONE) }
        }
    }

    /// The CPU in whose queue it is, or was last, or will be.
    #[must_use]
    pub fn cpu(&self) -> u32 {
        self.cpu.load(Ordering::Acquire)
    }

    /// Which entity it is in the queue of [`Place::cpu`]; `None` while it is in no queue.
    #[must_use]
    pub fn entity(&self) -> Option<u32> {
        some(self.entity.load(Ordering::Acquire))
    }

    /// It is in the queue of `cpu`, as `entity`. Under that queue's lock.
    pub fn set(&self, cpu: u32, entity: u32) {
        self.cpu.store(cpu, Ordering::Release);
        self.entity.store(entity, Ordering::Release);
    }

    /// It has left its queue, and will be in that of `cpu` next. Under the lock of the queue that it leaves.
    pub fn leave(&self, cpu: u32) {
        // In this order: who has the other CPU's lock and finds that CPU here finds no entity.
        self.entity.store(NONE, Ordering::Release);
        self.cpu.store(cpu, Ordering::Release);
    }

    /// Takes the lock of the queue that it is in, by `lock`, and answers the CPU beside it. `None` while it is in none:
    /// before it is put into its first, after it is taken out for good, and on its way from one to another, which it is
    /// only while it can run anyway.
    pub fn find<G>(&self, mut lock: impl FnMut(u32) -> Option<G>) -> Option<(u32, G)> {
        loop {
            let cpu = self.cpu();
            let guard = lock(cpu)?;
            if self.cpu() == cpu {
                return self.entity().is_some().then_some((cpu, guard));
            }
        }
    }

    /// `cpu`, the calling one, holds it from now on. Before it runs it catches up with its domain's changes, which it does
    /// behind this: see [`shoot_down`](crate::shoot_down).
    pub fn hold(&self, cpu: u32) {
        self.holder.store(cpu, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// It is off the CPU: any other may take it.
    pub fn release(&self) {
        self.holder.store(NONE, Ordering::Release);
    }

    /// Who holds it.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        some(self.holder.load(Ordering::Acquire))
    }
}

fn some(value: u32) -> Option<u32> {
    (value != NONE).then_some(value)
}
