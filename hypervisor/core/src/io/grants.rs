//! A guest's memory in its backend's domain: at its machine address, in the part of the backend's memory map that is
//! soft-reserved.

use caisson_hwvirt::Backend;
use caisson_machine::memory::DomainTables;
use caisson_stage2::{Error, Format, MemoryType, Permissions};
use caisson_types::Gpa;

use crate::guests::Live;

impl<B: Backend, F: Format> Live<B, F> {
    /// Maps `guest`'s memory in this domain, where the machine has it. Nothing is mapped if that fails.
    pub(super) fn grant(&self, guest: &Self) -> Result<(), Error> {
        let mut tables = self.tables.lock();
        let frames = &mut DomainTables(self.domain.id);
        let extents = guest.domain.memory.extents();
        let mut result = Ok(());
        for table in tables.all() {
            for extent in extents {
                let at = Gpa::new(extent.hpa.as_u64());
                let (all, ram) = (Permissions::READ_WRITE, MemoryType::WriteBack);
                result = result.and(table.map(frames, at, extent.hpa, extent.bytes, all, ram).map(|_| ()));
            }
        }
        if result.is_err() {
            // None of it has been used: no CPU has cached any of it.
            for table in tables.all() {
                for extent in extents {
                    let _ = table.unmap(frames, Gpa::new(extent.hpa.as_u64()), extent.bytes);
                }
                table.flushed(frames);
            }
        }
        result
    }

    /// Takes `guest`'s memory out of this domain: no CPU reaches it from there when this returns. With no lock held, between turns.
    pub(super) fn revoke(&self, guest: &Self) {
        let frames = &mut DomainTables(self.domain.id);
        let mut tables = self.tables.lock();
        for table in tables.all() {
            for extent in guest.domain.memory.extents() {
                // What was mapped as a whole goes as a whole: no table is needed for it.
                if let Err(error) = table.unmap(frames, Gpa::new(extent.hpa.as_u64()), extent.bytes) {
                    log::error!("guest {}: its memory stays granted: {error}", guest.domain.id);
                }
            }
        }
        drop(tables);
        self.flush_everywhere(&None);
        for table in self.tables.lock().all() {
            table.flushed(frames);
        }
    }
}
