//! Unmapping and protecting: what changes part of what is mapped, and may split large leaves for it.

use caisson_types::{Gpa, Hpa};

use crate::stage2::{Range, Slot, leaf_size, level_shift, slots};
use crate::table::TableList;
use crate::{ENTRIES, Error, Flush, Format, Permissions, Stage2, TableMemory};

/// What happens to the pages of a range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Unmap,
    Protect(Permissions),
}

impl<F: Format> Stage2<F> {
    /// Unmaps `len` bytes at `gpa`; what is not mapped there is left so. Large leaves that reach out of the
    /// range are split, tables that become empty are retired until [`flushed`](Self::flushed).
    ///
    /// # Errors
    /// [`Error`], with nothing changed.
    pub fn unmap<M: TableMemory>(&mut self, memory: &mut M, gpa: Gpa, len: u64) -> Result<Flush, Error> {
        self.change(memory, gpa, len, Change::Unmap)
    }

    /// Changes the permissions of `len` bytes at `gpa`, all of which are mapped. Large leaves that reach out
    /// of the range are split; no page is absent in between, and none has other permissions than the old or
    /// the new ones.
    ///
    /// # Errors
    /// [`Error`], with nothing changed.
    pub fn protect<M: TableMemory>(
        &mut self,
        memory: &mut M,
        gpa: Gpa,
        len: u64,
        permissions: Permissions,
    ) -> Result<Flush, Error> {
        if !permissions.read {
            return Err(Error::Unreadable);
        }
        self.change(memory, gpa, len, Change::Protect(permissions))
    }

    fn change<M: TableMemory>(
        &mut self,
        memory: &mut M,
        gpa: Gpa,
        len: u64,
        change: Change,
    ) -> Result<Flush, Error> {
        let range = self.range(gpa, len)?;
        if len == 0 {
            return Ok(Flush::None);
        }
        let (root, levels) = (self.root(), self.levels);
        let needed = Self::tables_for_change(memory, root, levels, 0, range, change)?;
        let mut pool = TableList::allocate(memory, needed)?;
        let changed = self.apply(memory, &mut pool, root, levels, 0, range, change);
        pool.free_all(memory);
        Ok(Flush::range_if(changed, range))
    }

    /// Whether a leaf need not be touched for `change`.
    fn is_done(leaf: u64, change: Change) -> bool {
        change == Change::Protect(F::permissions(leaf))
    }

    /// How many tables it takes to split what `change` changes in part.
    fn tables_for_change<M: TableMemory>(
        memory: &M,
        table: Hpa,
        level: u8,
        base: u64,
        range: Range,
        change: Change,
    ) -> Result<u64, Error> {
        let mut needed = 0;
        for slot in slots(table, level, base, range) {
            let entry = memory.read(table, slot.index);
            if !F::is_present(entry) {
                if change != Change::Unmap {
                    return Err(Error::NotMapped(Gpa::new(slot.start.max(range.start))));
                }
            } else if Self::is_leaf(entry, level) {
                if !Self::is_done(entry, change) {
                    needed += tables_for_split(&slot, level, range);
                }
            } else if change != Change::Unmap || !slot.is_within(range) {
                let child = Self::child(entry);
                needed += Self::tables_for_change(memory, child, level - 1, slot.start, range, change)?;
            }
        }
        Ok(needed)
    }

    /// Changes what is mapped below `table`. Answers whether anything was.
    #[allow(clippy::too_many_arguments, reason = "a recursive walk's state")]
    fn apply<M: TableMemory>(
        &mut self,
        memory: &mut M,
        pool: &mut TableList,
        table: Hpa,
        level: u8,
        base: u64,
        range: Range,
        change: Change,
    ) -> bool {
        let mut changed = false;
        for slot in slots(table, level, base, range) {
            let entry = memory.read(table, slot.index);
            if !F::is_present(entry) {
                continue;
            }
            if Self::is_leaf(entry, level) {
                if Self::is_done(entry, change) {
                    continue;
                }
                changed = true;
                if slot.is_within(range) {
                    match change {
                        Change::Unmap => memory.write(table, slot.index, 0),
                        Change::Protect(to) => {
                            Self::update(memory, &slot, entry, |leaf| F::with_permissions(leaf, to));
                        }
                    }
                } else if let Some(child) = Self::split(memory, pool, entry, level) {
                    self.apply(memory, pool, child, level - 1, slot.start, range, change);
                    memory.write(table, slot.index, F::table(child, level - 1));
                }
                continue;
            }
            let child = Self::child(entry);
            if change == Change::Unmap && slot.is_within(range) {
                memory.write(table, slot.index, 0);
                self.retire(memory, child, level - 1);
                changed = true;
                continue;
            }
            changed |= self.apply(memory, pool, child, level - 1, slot.start, range, change);
            if change == Change::Unmap && Self::is_empty(memory, child) {
                memory.write(table, slot.index, 0);
                self.retired.push(memory, child);
            }
        }
        changed
    }

    /// A table, not linked yet, that maps what the leaf of `level` does, by smaller leaves. They count as
    /// accessed and dirty, as the processor may set those bits of the leaf up to its replacement.
    pub(crate) fn split<M: TableMemory>(
        memory: &mut M,
        pool: &mut TableList,
        leaf: u64,
        level: u8,
    ) -> Option<Hpa> {
        let child = pool.pop(memory)?;
        let page = leaf & F::ADDRESS & !(leaf_size(level).bytes() - 1);
        let (permissions, memory_type) = (F::permissions(leaf), F::memory_type(leaf, true));
        for index in 0..ENTRIES {
            let part = Hpa::new(page + ((index as u64) << level_shift(level - 1)));
            memory.write(child, index, F::leaf(part, level > 2, permissions, memory_type));
        }
        Some(child)
    }

    /// Replaces an entry that was read as `entry` by what `new` makes of it, and keeps accessed and dirty
    /// bits that the processor sets meanwhile. It sets each once, so that this ends.
    pub(crate) fn update<M: TableMemory>(
        memory: &mut M,
        slot: &Slot,
        mut entry: u64,
        new: impl Fn(u64) -> u64,
    ) {
        while let Err(now) = memory.compare_exchange(slot.table, slot.index, entry, new(entry)) {
            entry = now;
        }
    }

    fn is_empty<M: TableMemory>(memory: &M, table: Hpa) -> bool {
        (0..ENTRIES).all(|index| !F::is_present(memory.read(table, index)))
    }
}

/// How many tables it takes to split the leaf in `slot` such that every smaller one is in `range` wholly or
/// not at all.
fn tables_for_split(slot: &Slot, level: u8, range: Range) -> u64 {
    if level == 1 || slot.is_within(range) {
        return 0;
    }
    let mut parts = slots(slot.table, level - 1, slot.start, range);
    // All parts between the first and the last are within the range.
    let first = parts.next();
    let last = parts.last();
    let below = |part: Option<Slot>| part.map_or(0, |part| tables_for_split(&part, level - 1, range));
    1 + below(first) + below(last)
}
