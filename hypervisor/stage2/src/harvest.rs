//! Looking at leaves, and harvesting accessed and dirty bits: which pages a guest used or wrote since they
//! were harvested last.

use caisson_types::{Gpa, Hpa, PageSize};

use crate::stage2::{Range, leaf_size, slots};
use crate::{Error, Flush, Format, Stage2, TableMemory, Translation};

/// Which trace of a guest's accesses to harvest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trace {
    /// Pages that were read, written or executed: a working set.
    Accessed,
    /// Pages that were written: what to send again when a guest migrates.
    Dirty,
}

impl<F: Format> Stage2<F> {
    /// Calls `visit` with the first address and the translation of every leaf that touches the range, in
    /// ascending order: what a domain's end, a save or a dump of its memory goes through.
    ///
    /// # Errors
    /// [`Error::Misaligned`] or [`Error::BeyondWidth`], with nothing visited.
    pub fn leaves<M: TableMemory>(
        &self,
        memory: &M,
        gpa: Gpa,
        len: u64,
        mut visit: impl FnMut(Gpa, Translation),
    ) -> Result<(), Error> {
        let range = self.range(gpa, len)?;
        if len != 0 {
            Self::visit_table(memory, self.root(), self.levels, 0, range, &mut visit);
        }
        Ok(())
    }

    fn visit_table<M: TableMemory>(
        memory: &M,
        table: Hpa,
        level: u8,
        base: u64,
        range: Range,
        visit: &mut impl FnMut(Gpa, Translation),
    ) {
        for slot in slots(table, level, base, range) {
            let entry = memory.read(table, slot.index);
            if !F::is_present(entry) {
                continue;
            }
            if Self::is_leaf(entry, level) {
                visit(Gpa::new(slot.start), Self::leaf(entry, slot.start, leaf_size(level)));
            } else {
                Self::visit_table(memory, Self::child(entry), level - 1, slot.start, range, visit);
            }
        }
    }

    /// Calls `visit` for every leaf that touches the range and carries the trace, and clears it there. New
    /// and split leaves carry both.
    ///
    /// Until the flush, processors may access such pages without a trace. So: harvest, flush, and only then
    /// read the pages. A processor without accessed and dirty bits leaves no traces but the first.
    ///
    /// # Errors
    /// [`Error::Misaligned`] or [`Error::BeyondWidth`], with nothing changed.
    pub fn harvest<M: TableMemory>(
        &mut self,
        memory: &mut M,
        gpa: Gpa,
        len: u64,
        trace: Trace,
        mut visit: impl FnMut(Gpa, PageSize),
    ) -> Result<Flush, Error> {
        let range = self.range(gpa, len)?;
        if len == 0 {
            return Ok(Flush::None);
        }
        let bit = match trace {
            Trace::Accessed => F::ACCESSED,
            Trace::Dirty => F::DIRTY,
        };
        let changed = Self::harvest_table(memory, self.root(), self.levels, 0, range, bit, &mut visit);
        Ok(Flush::range_if(changed, range))
    }

    fn harvest_table<M: TableMemory>(
        memory: &mut M,
        table: Hpa,
        level: u8,
        base: u64,
        range: Range,
        bit: u64,
        visit: &mut impl FnMut(Gpa, PageSize),
    ) -> bool {
        let mut changed = false;
        for slot in slots(table, level, base, range) {
            let entry = memory.read(table, slot.index);
            if !F::is_present(entry) {
                continue;
            }
            if !Self::is_leaf(entry, level) {
                let child = Self::child(entry);
                changed |= Self::harvest_table(memory, child, level - 1, slot.start, range, bit, visit);
            } else if entry & bit != 0 {
                Self::update(memory, &slot, entry, |leaf| leaf & !bit);
                visit(Gpa::new(slot.start), leaf_size(level));
                changed = true;
            }
        }
        changed
    }
}
