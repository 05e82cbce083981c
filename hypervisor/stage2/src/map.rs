//! Mapping: count the tables that are needed, allocate them, then fill and link.

use caisson_types::{Gpa, Hpa};

use crate::stage2::{Range, Slot, slots};
use crate::table::TableList;
use crate::{Error, Flush, Format, MemoryType, Permissions, Stage2, TableMemory};

/// What is being mapped.
#[derive(Clone, Copy)]
struct Mapping {
    range: Range,
    /// Host-physical minus guest-physical address, modulo 2^64.
    offset: u64,
    permissions: Permissions,
    memory_type: MemoryType,
    /// The highest level for leaves.
    largest_leaf: u8,
}

impl Mapping {
    const fn hpa(&self, gpa: u64) -> u64 {
        gpa.wrapping_add(self.offset)
    }

    /// Whether the entry at `level` becomes a leaf.
    const fn fits(&self, slot: &Slot, level: u8) -> bool {
        level <= self.largest_leaf
            && slot.is_within(self.range)
            && self.offset & (slot.end - slot.start - 1) == 0
    }
}

impl<F: Format> Stage2<F> {
    /// Maps `len` bytes at `gpa`, where nothing is mapped, to `hpa`, by the largest leaves that the two
    /// addresses allow. `permissions` include reading.
    ///
    /// The answer is [`Flush::None`], as processors cache no absent entries; a page is there as soon as its
    /// leaf is written.
    ///
    /// # Errors
    /// [`Error`], with nothing changed.
    pub fn map<M: TableMemory>(
        &mut self,
        memory: &mut M,
        gpa: Gpa,
        hpa: Hpa,
        len: u64,
        permissions: Permissions,
        memory_type: MemoryType,
    ) -> Result<Flush, Error> {
        if !permissions.read {
            return Err(Error::Unreadable);
        }
        let range = self.range(gpa, len)?;
        Self::check_host(hpa, len)?;
        if len == 0 {
            return Ok(Flush::None);
        }
        let mapping = Mapping {
            range,
            offset: hpa.as_u64().wrapping_sub(gpa.as_u64()),
            permissions,
            memory_type,
            largest_leaf: self.largest_leaf,
        };
        let needed = Self::tables_for_map(memory, Some(self.root()), self.levels, 0, &mapping)?;
        let mut pool = TableList::allocate(memory, needed)?;
        let (root, levels) = (self.root(), self.levels);
        self.fill(memory, &mut pool, root, levels, 0, &mapping);
        pool.free_all(memory);
        Ok(Flush::None)
    }

    /// How many tables mapping takes below `table`, which is `None` when it has to be made as well (and is
    /// not counted).
    fn tables_for_map<M: TableMemory>(
        memory: &M,
        table: Option<Hpa>,
        level: u8,
        base: u64,
        mapping: &Mapping,
    ) -> Result<u64, Error> {
        if table.is_none() && level == 1 {
            return Ok(0);
        }
        let mut needed = 0;
        for slot in slots(table.unwrap_or_default(), level, base, mapping.range) {
            let entry = table.map_or(0, |table| memory.read(table, slot.index));
            let present = F::is_present(entry);
            let fits = mapping.fits(&slot, level);
            // A table is never empty, so that it is in the way of a leaf as surely as a leaf is.
            if present && (fits || Self::is_leaf(entry, level)) {
                return Err(Error::Overlap(Gpa::new(slot.start.max(mapping.range.start))));
            }
            if !fits {
                let child = present.then(|| Self::child(entry));
                needed += u64::from(child.is_none());
                needed += Self::tables_for_map(memory, child, level - 1, slot.start, mapping)?;
            }
        }
        Ok(needed)
    }

    /// Maps below `table`, where [`tables_for_map`](Self::tables_for_map) found nothing in the way.
    fn fill<M: TableMemory>(
        &mut self,
        memory: &mut M,
        pool: &mut TableList,
        table: Hpa,
        level: u8,
        base: u64,
        mapping: &Mapping,
    ) {
        for slot in slots(table, level, base, mapping.range) {
            if mapping.fits(&slot, level) {
                let page = Hpa::new(mapping.hpa(slot.start));
                let leaf = F::leaf(page, level > 1, mapping.permissions, mapping.memory_type);
                memory.write(table, slot.index, leaf);
                continue;
            }
            let entry = memory.read(table, slot.index);
            if F::is_present(entry) {
                self.fill(memory, pool, Self::child(entry), level - 1, slot.start, mapping);
            } else if let Some(child) = pool.pop(memory) {
                self.fill(memory, pool, child, level - 1, slot.start, mapping);
                memory.write(table, slot.index, F::table(child, level - 1));
            }
        }
    }
}
