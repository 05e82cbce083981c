//! Table pages: where they come from, and lists of those that are not linked.

use caisson_types::Hpa;

use crate::Error;

/// Entries of a table.
pub const ENTRIES: usize = 512;

/// The memory that tables live in. Indices are below [`ENTRIES`], and a table is one that
/// [`allocate`](Self::allocate) gave and [`free`](Self::free) has not got back.
pub trait TableMemory {
    /// A 4 KiB page filled with zeros, or `None` where there is none left.
    fn allocate(&mut self) -> Option<Hpa>;

    /// Takes a page back, whatever it holds.
    fn free(&mut self, table: Hpa);

    /// Reads an entry, in one access.
    fn read(&self, table: Hpa, index: usize) -> u64;

    /// Writes an entry, in one access, after all earlier writes.
    fn write(&mut self, table: Hpa, index: usize, entry: u64);

    /// Writes `new` over an entry that is still `current`.
    ///
    /// Must be atomic where guests may run on the tables meanwhile, as processors set accessed and dirty bits
    /// at any time; what is provided here is not.
    ///
    /// # Errors
    /// What the entry is instead of `current`; it was not written.
    fn compare_exchange(&mut self, table: Hpa, index: usize, current: u64, new: u64) -> Result<(), u64> {
        match self.read(table, index) {
            entry if entry == current => {
                self.write(table, index, new);
                Ok(())
            }
            entry => Err(entry),
        }
    }
}

/// A list of tables that are not linked, each one's first entry holding the address of the next.
///
/// A page address has its low 12 bits clear, which is an absent entry in either format: a processor that
/// still walks an unlinked table (by a pointer that it cached) finds nothing behind the link.
#[derive(Default)]
pub(crate) struct TableList {
    first: Option<Hpa>,
}

impl TableList {
    pub(crate) const EMPTY: Self = Self { first: None };

    /// A list of `count` new tables.
    pub(crate) fn allocate<M: TableMemory>(memory: &mut M, count: u64) -> Result<Self, Error> {
        let mut list = Self::EMPTY;
        for _ in 0..count {
            let Some(table) = memory.allocate() else {
                list.free_all(memory);
                return Err(Error::OutOfTables);
            };
            list.push(memory, table);
        }
        Ok(list)
    }

    pub(crate) fn push<M: TableMemory>(&mut self, memory: &mut M, table: Hpa) {
        memory.write(table, 0, self.first.map_or(0, Hpa::as_u64));
        self.first = Some(table);
    }

    fn unlink<M: TableMemory>(&mut self, memory: &M) -> Option<Hpa> {
        let table = self.first?;
        self.first = match memory.read(table, 0) {
            0 => None,
            next => Some(Hpa::new(next)),
        };
        Some(table)
    }

    /// A table from the list, all zero if it was so when pushed.
    pub(crate) fn pop<M: TableMemory>(&mut self, memory: &mut M) -> Option<Hpa> {
        let table = self.unlink(memory)?;
        memory.write(table, 0, 0);
        Some(table)
    }

    pub(crate) fn free_all<M: TableMemory>(&mut self, memory: &mut M) {
        while let Some(table) = self.unlink(memory) {
            memory.free(table);
        }
    }
}
