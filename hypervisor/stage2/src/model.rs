//! A table memory that remembers every write in order, and a model that each state in between is held against. For
//! the tests and the fuzz target.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::Cell;

use caisson_types::{Gpa, Hpa, PAGE_SIZE, PageSize};

use crate::{
    Config, ENTRIES, Ept, Error, Flush, Format, Levels, MemoryType, Npt, Permissions, Stage2, TableMemory,
    Trace,
};

/// One write to a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    table: Hpa,
    index: usize,
    old: u64,
    new: u64,
}

/// Tables on the heap, which remember every write, and give out no more pages than `left`.
pub(crate) struct Tables {
    tables: BTreeMap<Hpa, Vec<u64>>,
    next: u64,
    pub(crate) left: usize,
    log: Vec<Write>,
    reads: Cell<u64>,
    /// Bits that a processor sets in an entry just before it is exchanged, once.
    pub(crate) race: u64,
}

impl Tables {
    pub(crate) fn new(left: usize) -> Self {
        Self {
            tables: BTreeMap::new(),
            next: 0x7_0000_0000,
            left,
            log: Vec::new(),
            reads: Cell::new(0),
            race: 0,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.tables.len()
    }

    #[cfg(test)]
    pub(crate) fn reads(&self) -> u64 {
        self.reads.get()
    }
}

impl TableMemory for Tables {
    fn allocate(&mut self) -> Option<Hpa> {
        self.left = self.left.checked_sub(1)?;
        let table = Hpa::new(self.next);
        // Addresses are never used twice, so that a pointer to a freed table is found out.
        self.next += PAGE_SIZE;
        self.tables.insert(table, alloc::vec![0; ENTRIES]);
        Some(table)
    }

    fn free(&mut self, table: Hpa) {
        assert!(self.tables.remove(&table).is_some(), "{table} is freed twice");
        self.left += 1;
    }

    fn read(&self, table: Hpa, index: usize) -> u64 {
        self.reads.set(self.reads.get() + 1);
        self.tables[&table][index]
    }

    fn write(&mut self, table: Hpa, index: usize, entry: u64) {
        let slot = self.tables.get_mut(&table).and_then(|table| table.get_mut(index));
        let Some(slot) = slot else { unreachable!("{table} was freed") };
        self.log.push(Write { table, index, old: *slot, new: entry });
        *slot = entry;
    }

    fn compare_exchange(&mut self, table: Hpa, index: usize, current: u64, new: u64) -> Result<(), u64> {
        let raced = current | core::mem::take(&mut self.race);
        if raced != current {
            self.write(table, index, raced);
        }
        match self.read(table, index) {
            entry if entry == current => {
                self.write(table, index, new);
                Ok(())
            }
            entry => Err(entry),
        }
    }
}

/// What a page is mapped to.
pub(crate) type Page = (Hpa, Permissions, MemoryType);

/// An address space beside a map of its pages.
pub(crate) struct Checked<F: Format> {
    pub(crate) memory: Tables,
    pub(crate) space: Stage2<F>,
    pages: BTreeMap<u64, Page>,
    /// Pages that were written or split since the last harvest at least, and which may be reported.
    largest: PageSize,
}

/// An operation on an address space, in pages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Map { gpa: u64, hpa: u64, pages: u64, permissions: Permissions, memory_type: MemoryType },
    Unmap { gpa: u64, pages: u64 },
    Protect { gpa: u64, pages: u64, permissions: Permissions },
    Harvest { gpa: u64, pages: u64, trace: Trace },
    Flushed,
}

/// The bytes of so many pages.
const fn bytes(pages: u64) -> u64 {
    pages.wrapping_mul(PAGE_SIZE)
}

impl<F: Format> Checked<F> {
    pub(crate) fn new(config: Config, left: usize) -> Self {
        let mut memory = Tables::new(left + 1);
        let Ok(space) = Stage2::new(&mut memory, config) else { unreachable!("there is a page") };
        let largest = if config.huge_pages { PageSize::Size1G } else { PageSize::Size2M };
        Self { memory, space, pages: BTreeMap::new(), largest }
    }

    fn look(&self, gpa: u64) -> Option<Page> {
        let found = self.space.translate(&self.memory, Gpa::new(gpa))?;
        assert!(found.size <= self.largest);
        assert_eq!(found.remaining, found.size.bytes() - gpa % found.size.bytes());
        Some((found.hpa, found.permissions, found.memory_type))
    }

    /// Carries `op` out on the tables and the model, and checks what the tables said after every single write.
    pub(crate) fn step(&mut self, op: Op) -> Result<Flush, Error> {
        let before = self.pages.clone();
        let (tables, left) = (self.memory.count(), self.memory.left);
        self.memory.log.clear();
        let (memory, space) = (&mut self.memory, &mut self.space);
        let (result, touched) = match op {
            Op::Map { gpa, hpa, pages, permissions, memory_type } => {
                let (gpa, hpa) = (Gpa::new(bytes(gpa)), Hpa::new(bytes(hpa)));
                (space.map(memory, gpa, hpa, bytes(pages), permissions, memory_type), (gpa, pages))
            }
            Op::Unmap { gpa, pages } => {
                let gpa = Gpa::new(bytes(gpa));
                (space.unmap(memory, gpa, bytes(pages)), (gpa, pages))
            }
            Op::Protect { gpa, pages, permissions } => {
                let gpa = Gpa::new(bytes(gpa));
                (space.protect(memory, gpa, bytes(pages), permissions), (gpa, pages))
            }
            Op::Harvest { gpa, pages, trace } => {
                let gpa = Gpa::new(bytes(gpa));
                (space.harvest(memory, gpa, bytes(pages), trace, |_, _| {}), (gpa, pages))
            }
            Op::Flushed => {
                space.flushed(memory);
                (Ok(Flush::None), (Gpa::new(0), 0))
            }
        };
        if result.is_ok() {
            self.expect(op);
        } else {
            assert_eq!((self.memory.count(), self.memory.left), (tables, left), "a refusal keeps tables");
        }
        let log = core::mem::take(&mut self.memory.log);
        if !matches!(op, Op::Flushed) {
            self.replay(&before, &log, result.is_ok());
        }
        self.check_flush(&before, result, touched);
        result
    }

    /// What the model says of an operation that was not refused.
    fn expect(&mut self, op: Op) {
        match op {
            Op::Map { gpa, hpa, pages, permissions, memory_type } => {
                for page in 0..pages {
                    let target = (Hpa::new(bytes(hpa + page)), permissions, memory_type);
                    assert_eq!(self.pages.insert(bytes(gpa + page), target), None, "mapped over a mapping");
                }
            }
            Op::Unmap { gpa, pages } => {
                self.pages.retain(|&page, _| page < bytes(gpa) || page >= bytes(gpa + pages));
            }
            Op::Protect { gpa, pages, permissions } => {
                let mut found = 0;
                for (_, page) in self.pages.range_mut(bytes(gpa)..bytes(gpa + pages)) {
                    page.1 = permissions;
                    found += 1;
                }
                assert_eq!(found, pages, "protected what is not mapped");
            }
            Op::Harvest { .. } | Op::Flushed => {}
        }
    }

    /// Takes all writes back and repeats them one by one; after each, every page is as before or as after.
    ///
    /// A write can change only what lies below its entry, so that only writes to linked tables need a look, and only
    /// at the edges of what differs.
    fn replay(&mut self, before: &BTreeMap<u64, Page>, log: &[Write], done: bool) {
        for write in log.iter().rev() {
            self.poke(write.table, write.index, write.old);
        }
        let probes = self.probes(before);
        for &page in &probes {
            assert_eq!(self.look(page), before.get(&page).copied(), "before the operation");
        }
        let mut linked = self.linked();
        for write in log {
            self.poke(write.table, write.index, write.new);
            let leads = |entry: u64| self.memory.tables.contains_key(&Hpa::new(entry & F::ADDRESS));
            if leads(write.old) || leads(write.new) {
                linked = self.linked();
            }
            if linked.contains_key(&write.table) {
                for &page in &probes {
                    let now = self.look(page);
                    let expected = [before.get(&page), self.pages.get(&page)];
                    assert!(
                        expected.contains(&now.as_ref()),
                        "{page:#x} is {now:x?} after {write:x?}, not one of {expected:x?}"
                    );
                }
            }
        }
        for &page in &probes {
            assert_eq!(self.look(page), self.pages.get(&page).copied(), "after the operation");
        }
        assert!(done || *before == self.pages);
        for table in self.linked().into_keys().filter(|&table| table != self.space.root()) {
            let entries = &self.memory.tables[&table];
            assert!(entries.iter().any(|&entry| F::is_present(entry)), "{table} is empty but linked");
        }
    }

    /// Pages worth a look: the edges of all that is or was mapped, and where it differs.
    fn probes(&self, before: &BTreeMap<u64, Page>) -> Vec<u64> {
        let mut probes = Vec::new();
        for map in [before, &self.pages] {
            let mut last = None;
            for (&gpa, &(hpa, permissions, memory_type)) in map {
                let kind = (hpa.as_u64().wrapping_sub(gpa), permissions, memory_type);
                let large = gpa % PageSize::Size2M.bytes();
                let joined =
                    last.replace((gpa, kind)).is_some_and(|last| last == (gpa.wrapping_sub(PAGE_SIZE), kind));
                if !joined || large == 0 || large == PageSize::Size2M.bytes() - PAGE_SIZE {
                    probes.extend([gpa.saturating_sub(PAGE_SIZE), gpa, gpa + PAGE_SIZE]);
                }
            }
        }
        probes.sort_unstable();
        probes.dedup();
        probes
    }

    /// What has changed for a page that was mapped is to be flushed, and no more than was touched.
    fn check_flush(
        &self,
        before: &BTreeMap<u64, Page>,
        result: Result<Flush, Error>,
        (gpa, pages): (Gpa, u64),
    ) {
        let Ok(flush) = result else { return };
        let flushed = |page: u64| match flush {
            Flush::None => false,
            Flush::All => true,
            Flush::Range { gpa, len } => page >= gpa.as_u64() && page - gpa.as_u64() < len,
        };
        for (&page, old) in before {
            assert!(self.pages.get(&page) == Some(old) || flushed(page), "{page:#x} is not flushed");
        }
        if let Flush::Range { gpa: start, len } = flush {
            assert!(start >= gpa && start.as_u64() + len <= gpa.as_u64() + bytes(pages));
        }
    }

    fn poke(&mut self, table: Hpa, index: usize, entry: u64) {
        if let Some(slot) = self.memory.tables.get_mut(&table).and_then(|table| table.get_mut(index)) {
            *slot = entry;
        }
    }

    /// All linked tables, with their levels.
    fn linked(&self) -> BTreeMap<Hpa, u8> {
        let mut linked = BTreeMap::new();
        let mut todo = alloc::vec![(self.space.root(), self.space.levels)];
        while let Some((table, level)) = todo.pop() {
            assert_eq!(linked.insert(table, level), None, "{table} is linked twice");
            let entries = &self.memory.tables[&table];
            if level > 1 {
                let tables = entries.iter().filter(|&&entry| F::is_present(entry) && entry & F::LARGE == 0);
                todo.extend(tables.map(|&entry| (Hpa::new(entry & F::ADDRESS), level - 1)));
            }
        }
        linked
    }

    /// Ends the address space, and checks that no table is left behind at any point.
    pub(crate) fn finish(mut self) {
        self.space.flushed(&mut self.memory);
        assert_eq!(self.linked().len(), self.memory.count(), "a table is neither linked nor freed");
        self.space.destroy(&mut self.memory);
        assert_eq!(self.memory.count(), 0, "a table outlives its address space");
    }
}

/// Operations as bytes of a fuzzer's say them.
struct Bytes<'a>(core::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u64> {
        self.0.next().map(|&byte| u64::from(byte))
    }

    /// A page number: a small step away from a multiple of a page size, so that edges meet.
    fn page(&mut self) -> Option<u64> {
        let (coarse, fine) = (self.byte()?, self.byte()?);
        let unit = [1 << 18, 1 << 9, 1, 1 << 9][(coarse & 3) as usize];
        Some(((coarse >> 2 & 7) * unit + (fine & 7)).saturating_sub(fine >> 3 & 3))
    }

    /// A number of pages up to 3 MiB: enough for a leaf of 2 MiB with something on both sides.
    fn pages(&mut self) -> Option<u64> {
        let (coarse, fine) = (self.byte()?, self.byte()?);
        Some((coarse & 1) * 512 + (fine & 0x7f) + (coarse >> 1 & 1) * 128)
    }

    fn op(&mut self) -> Option<Op> {
        let kind = self.byte()?;
        let flags = self.byte()?;
        let permissions =
            Permissions { read: flags & 0x1f != 0, write: flags & 0x20 != 0, execute: flags & 0x40 != 0 };
        let memory_type = [
            MemoryType::WriteBack,
            MemoryType::Uncacheable,
            MemoryType::WriteCombining,
            MemoryType::WriteThrough,
        ][(flags & 3) as usize];
        let gpa = self.page()?;
        let pages = self.pages()?;
        Some(match kind % 8 {
            0..=2 => {
                let hpa = self.page()?;
                let hpa = if flags & 0x80 == 0 { gpa + (1 << 20) } else { hpa };
                Op::Map { gpa, hpa, pages, permissions, memory_type }
            }
            3 | 4 => Op::Unmap { gpa, pages },
            5 => Op::Protect { gpa, pages, permissions },
            6 => {
                Op::Harvest { gpa, pages, trace: if flags & 1 == 0 { Trace::Accessed } else { Trace::Dirty } }
            }
            _ => Op::Flushed,
        })
    }
}

fn drive_format<F: Format>(config: Config, left: usize, mut data: Bytes) {
    let mut checked = Checked::<F>::new(config, left);
    for _ in 0..64 {
        let Some(op) = data.op() else { break };
        let _ = checked.step(op);
    }
    checked.finish();
}

/// Runs the operations that `data` spells against the model, in the format and shape that its first byte says.
///
/// # Panics
/// Where the tables do not do what the model says: that is what fuzzing looks for.
pub fn drive(data: &[u8]) {
    let mut data = Bytes(data.iter());
    let Some(shape) = data.byte() else { return };
    let config = Config {
        levels: if shape & 1 == 0 { Levels::Four } else { Levels::Five },
        huge_pages: shape & 2 != 0,
        address_bits: if shape & 4 == 0 { 48 } else { 32 },
    };
    let left = if shape & 8 == 0 { 64 } else { (shape >> 4) as usize };
    if shape & 16 == 0 {
        drive_format::<Npt>(config, left, data);
    } else {
        drive_format::<Ept>(config, left, data);
    }
}
