//! A guest's memory in its backend's domain: at its machine address, in the part of the backend's memory map that is
//! soft-reserved. The backend's devices find it there as well, where there is an IOMMU.

use caisson_hwvirt::Backend;
use caisson_machine::memory::DomainTables;
use caisson_stage2::{Format, MemoryType, Permissions};
use caisson_types::Gpa;

use crate::guests::Live;

/// What could not be mapped as a whole is not mapped at all: whether that is so.
pub(super) struct Undone(pub(super) bool);

impl<B: Backend, F: Format> Live<B, F> {
    /// Maps `guest`'s memory in this domain, where the machine has it.
    ///
    /// # Errors
    /// Whether nothing is mapped, after a failure: where that is not so, the memory counts as granted.
    pub(super) fn grant(&self, guest: &Self) -> Result<(), Undone> {
        self.grant_dma(guest)?;
        let mut tables = self.tables.lock();
        let frames = &mut DomainTables(self.domain.id);
        let extents = guest.domain.memory.extents();
        let (permissions, ram) = (Permissions::READ_WRITE, MemoryType::WriteBack);
        let mut mapped = 0;
        let mut complete = true;
        'all: for table in tables.all() {
            for extent in extents {
                let at = Gpa::new(extent.hpa.as_u64());
                if table.map(frames, at, extent.hpa, extent.bytes, permissions, ram).is_err() {
                    complete = false;
                    break 'all;
                }
                mapped += 1;
            }
        }
        if complete {
            return Ok(());
        }
        let mut undone = true;
        // What was mapped has not been used: no CPU has cached any of it.
        for table in tables.all() {
            for extent in extents.iter().take(mapped) {
                undone &= table.unmap(frames, Gpa::new(extent.hpa.as_u64()), extent.bytes).is_ok();
            }
            mapped = mapped.saturating_sub(extents.len());
            table.flushed(frames);
        }
        drop(tables);
        undone &= self.revoke_dma(guest).is_ok();
        Err(Undone(undone))
    }

    /// The same for this domain's devices, where they are restricted.
    fn grant_dma(&self, guest: &Self) -> Result<(), Undone> {
        let Some(dma) = &self.dma else { return Ok(()) };
        let extents = guest.domain.memory.extents();
        let mut extents =
            extents.iter().map(|extent| (Gpa::new(extent.hpa.as_u64()), extent.hpa, extent.bytes));
        let result = extents.try_for_each(|(at, hpa, bytes)| dma.map(at, hpa, bytes, true));
        result.map_err(|_| Undone(self.revoke_dma(guest).is_ok()))
    }

    fn revoke_dma(&self, guest: &Self) -> Result<(), caisson_iommu::Error> {
        let Some(dma) = &self.dma else { return Ok(()) };
        let mut extents = guest.domain.memory.extents().iter();
        extents.try_for_each(|extent| dma.unmap(Gpa::new(extent.hpa.as_u64()), extent.bytes))
    }

    /// Takes `guest`'s memory out of this domain: no CPU and no device reaches it from there when this returns. With no lock held,
    /// between turns. `false` where a device or a CPU may reach it for ever.
    pub(super) fn revoke(&self, guest: &Self) -> bool {
        let stopped = self.revoke_dma(guest);
        if let Err(error) = stopped {
            log::error!("guest {}: devices cannot be kept out of its memory: {error}", guest.domain.id);
        }
        let frames = &mut DomainTables(self.domain.id);
        let mut unmapped = true;
        let mut tables = self.tables.lock();
        for table in tables.all() {
            for extent in guest.domain.memory.extents() {
                // What was mapped as a whole goes as a whole: no table is needed for it.
                if let Err(error) = table.unmap(frames, Gpa::new(extent.hpa.as_u64()), extent.bytes) {
                    log::error!("guest {}: its memory stays granted: {error}", guest.domain.id);
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
