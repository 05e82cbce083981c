//! Room in the queues for the domains that there are.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use caisson_config::Domain as Record;
use caisson_hwvirt::Backend;
use caisson_machine::cpu;
use caisson_sched::PolicyKind;
use caisson_stage2::Format;

use super::System;
use super::contract::{Share, ShareError, Turns};
use crate::console;
use crate::domains::Entry;

impl<B: Backend, F: Format> System<B, F> {
    /// Puts a domain among the others, with room for its vCPUs and its chores in every queue. It has no life yet. Who calls sees to
    /// it that its number is free, and that one comes after the other.
    pub(crate) fn welcome(&self, entry: Entry<B, F>) -> Arc<Entry<B, F>> {
        let entry = Arc::new(entry);
        let own = entities_of(&entry);
        let entities = self.entities.fetch_add(own, Ordering::AcqRel) + own;
        for cpu in &self.cpus {
            let mut queue = cpu.lock();
            queue.grow(entities, entry.index() + 1);
            queue.welcome(&entry, cpu::tsc());
        }
        if entry.facts.has_console {
            console::add_guest(entry.id, entry.name());
        }
        self.domains.add(entry.clone());
        entry
    }

    /// What a domain gets that comes while others are there, in the pool with a name.
    pub(crate) fn share_later(
        &self,
        record: &Record<'_>,
        pool: &str,
        turns: &mut Turns,
    ) -> Result<Share, ShareError> {
        // The pool without a name is nobody's.
        let index = self.pools.iter().position(|other| *other.name == *pool && !pool.is_empty());
        let index = index.ok_or(ShareError::Pool)?;
        if record.contract().reservation.is_some() && self.pools[index].policy() != PolicyKind::Sedf {
            return Err(ShareError::Reserves);
        }
        let others: Vec<_> = self.domains.iter().collect();
        let others = others.iter().map(|entry| &entry.share);
        Share::later(record, index, &self.pools, turns, others, self.clock, cpu::tsc())
    }

    /// Takes a domain out that is gone for good: its number and its name are free.
    pub(crate) fn dismiss(&self, entry: &Entry<B, F>) {
        drop(self.domains.remove(entry.id));
        console::remove_guest(entry.id);
        self.entities.fetch_sub(entities_of(entry), Ordering::AcqRel);
    }
}

/// What of a domain can be in queues at the same time: every vCPU, and its chores.
fn entities_of<B: Backend, F: Format>(entry: &Entry<B, F>) -> usize {
    entry.facts.vcpus as usize + 1
}
