//! Other sizes for leaves that map the same: small ones, each with a dirty bit of its own, while it matters which pages a
//! guest writes, and large ones again when it no longer does.

use caisson_types::{Gpa, Hpa};

use crate::stage2::{Range, leaf_size, level_shift, slots};
use crate::table::TableList;
use crate::{ENTRIES, Error, Flush, Format, Stage2, TableMemory};

impl<F: Format> Stage2<F> {
    /// Replaces every large leaf that touches the range by 4 KiB ones, all of which count as accessed and dirty. What is not
    /// mapped is left so.
    ///
    /// # Errors
    /// [`Error`], with nothing changed.
    pub fn split_leaves<M: TableMemory>(
        &mut self,
        memory: &mut M,
        gpa: Gpa,
        len: u64,
    ) -> Result<Flush, Error> {
        let range = self.range(gpa, len)?;
        if len == 0 {
            return Ok(Flush::None);
        }
        let needed = Self::tables_for_small(memory, self.root(), self.levels, 0, range);
        let mut pool = TableList::allocate(memory, needed)?;
        Self::make_small(memory, &mut pool, self.root(), self.levels, 0, range);
        pool.free_all(memory);
        // Large leaves reach out of the range, with the same translations there.
        Ok(if needed == 0 { Flush::None } else { Flush::All })
    }

    /// How many tables it takes.
    fn tables_for_small<M: TableMemory>(memory: &M, table: Hpa, level: u8, base: u64, range: Range) -> u64 {
        let mut needed = 0;
        for slot in slots(table, level, base, range).filter(|_| level > 1) {
            let entry = memory.read(table, slot.index);
            if !F::is_present(entry) {
                continue;
            }
            needed += if !Self::is_leaf(entry, level) {
                Self::tables_for_small(memory, Self::child(entry), level - 1, slot.start, range)
            } else if level == 2 {
                1
            } else {
                1 + slots(table, level - 1, slot.start, range).count() as u64
            };
        }
        needed
    }

    fn make_small<M: TableMemory>(
        memory: &mut M,
        pool: &mut TableList,
        table: Hpa,
        level: u8,
        base: u64,
        range: Range,
    ) {
        for slot in slots(table, level, base, range).filter(|_| level > 1) {
            let entry = memory.read(table, slot.index);
            if !F::is_present(entry) {
                continue;
            }
            if !Self::is_leaf(entry, level) {
                Self::make_small(memory, pool, Self::child(entry), level - 1, slot.start, range);
            } else if let Some(child) = Self::split(memory, pool, entry, level) {
                Self::make_small(memory, pool, child, level - 1, slot.start, range);
                memory.write(table, slot.index, F::table(child, level - 1));
            }
        }
    }

    /// Replaces tables by large leaves where these map the same, within the range and up to the size that mapping takes.
    /// Such leaves count as accessed and dirty.
    ///
    /// # Errors
    /// [`Error::Misaligned`] or [`Error::BeyondWidth`], with nothing changed.
    pub fn join_leaves<M: TableMemory>(
        &mut self,
        memory: &mut M,
        gpa: Gpa,
        len: u64,
    ) -> Result<Flush, Error> {
        let range = self.range(gpa, len)?;
        if len == 0 {
            return Ok(Flush::None);
        }
        let (root, levels) = (self.root(), self.levels);
        let changed = self.make_large(memory, root, levels, 0, range);
        Ok(Flush::range_if(changed, range))
    }

    fn make_large<M: TableMemory>(
        &mut self,
        memory: &mut M,
        table: Hpa,
        level: u8,
        base: u64,
        range: Range,
    ) -> bool {
        let mut changed = false;
        for slot in slots(table, level, base, range).filter(|_| level > 1) {
            let entry = memory.read(table, slot.index);
            if !F::is_present(entry) || Self::is_leaf(entry, level) {
                continue;
            }
            let child = Self::child(entry);
            changed |= self.make_large(memory, child, level - 1, slot.start, range);
            if level <= self.largest_leaf
                && slot.is_within(range)
                && let Some(leaf) = Self::joined(memory, child, level)
            {
                memory.write(table, slot.index, leaf);
                self.retired.push(memory, child);
                changed = true;
            }
        }
        changed
    }

    /// The leaf of `level` that maps what the table `child` below does, if one can.
    fn joined<M: TableMemory>(memory: &M, child: Hpa, level: u8) -> Option<u64> {
        let large = level > 2;
        let first = memory.read(child, 0);
        let page = first & F::ADDRESS & !(leaf_size(level - 1).bytes() - 1);
        if !F::is_present(first) || page & (leaf_size(level).bytes() - 1) != 0 {
            return None;
        }
        let (permissions, memory_type) = (F::permissions(first), F::memory_type(first, large));
        let traces = F::ACCESSED | F::DIRTY;
        let alike = (0..ENTRIES).all(|index| {
            let part = Hpa::new(page + ((index as u64) << level_shift(level - 1)));
            let entry = memory.read(child, index);
            entry | traces == F::leaf(part, large, permissions, memory_type) | traces
        });
        alike.then(|| F::leaf(Hpa::new(page), true, permissions, memory_type))
    }
}
