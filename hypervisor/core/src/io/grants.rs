//! A guest's memory in its backend's domain: at its machine address, in the part of the backend's memory map that is
//! soft-reserved. The backend's devices find it there as well, where there is an IOMMU.
//!
//! What of it is granted is [`GuestRam::granted`](caisson_machine::memory::GuestRam::granted), here and in what backends are told:
//! all but what the configuration keeps private.

use caisson_hwvirt::Backend;
use caisson_machine::memory::DomainTables;
use caisson_stage2::{Format, MemoryType, Permissions, Stage2};
use caisson_types::{Extent, Gpa};

use crate::guests::Live;

/// Where a backend finds it, as its devices do.
fn at(extent: Extent) -> Gpa {
    Gpa::new(extent.hpa.as_u64())
}

impl<B: Backend, F: Format> Live<B, F> {
    /// Maps what is granted of `guest`'s memory in this domain, where the machine has it, and for its devices where they are
    /// restricted. Where it cannot be mapped whole, a part may be, which other vCPUs may have reached already: it is to be revoked.
    /// Whether it was.
    pub(super) fn grant(&self, guest: &Self) -> bool {
        let granted = guest.domain.memory.granted();
        if self.dma.as_ref().is_some_and(|dma| dma.grant(granted.clone()).is_err()) {
            return false;
        }
        let there = || granted.clone().map(|extent| (at(extent), extent.hpa, extent.bytes));
        let (permissions, ram) = (Permissions::READ_WRITE, MemoryType::WriteBack);
        let frames = &mut DomainTables(self.domain.id);
        let mut map = |table: &mut Stage2<F>| {
            there().all(|(at, hpa, bytes)| table.map(frames, at, hpa, bytes, permissions, ram).is_ok())
        };
        self.tables.lock().all().all(&mut map)
    }

    /// Takes `guest`'s memory out of this domain: no CPU and no device reaches it from there when this returns. With no lock held,
    /// between turns. `false` where a device or a CPU may reach it for ever.
    pub(super) fn revoke(&self, guest: &Self) -> bool {
        let stopped = self.dma.as_ref().map_or(Ok(()), |dma| dma.revoke(guest.domain.memory.granted()));
        if let Err(error) = stopped {
            let name = guest.entry.name();
            log::error!("guest {name}: devices cannot be kept out of its memory: IOMMU: {error}");
        }
        let frames = &mut DomainTables(self.domain.id);
        let mut unmapped = true;
        let mut tables = self.tables.lock();
        for table in tables.all() {
            for extent in guest.domain.memory.granted() {
                // What was mapped as a whole goes as a whole: no table is needed for it.
                if let Err(error) = table.unmap(frames, at(extent), extent.bytes) {
                    log::error!("guest {}: its memory stays granted: {error}", guest.entry.name());
                    unmapped = false;
                }
            }
        }
        drop(tables);
        self.flush_everywhere(&None);
        for table in self.tables.lock().all() {
            table.flushed(frames);
        }
        stopped.is_ok() && unmapped
    }
}
