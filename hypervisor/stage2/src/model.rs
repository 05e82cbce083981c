//! A table memory that remembers every write in order, and a model that each state in between is held
//! against. For the tests and the fuzz target.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::Cell;

use caisson_types::{Gpa, Hpa, PAGE_SIZE, PageSize};

use crate::{
    AmdVi, Config, ENTRIES, Ept, Error, Flush, Format, Levels, MemoryType, Npt, Permissions, Stage2,
    TableMemory, Trace, Vtd,
};

/// One write to a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    table: Hpa,
    index: usize,
    old: u64,
    new: u64,
}

/// Where the first table is.
const FIRST: u64 = 0x7_0000_0000;

/// Tables on the heap, which remember every write, and give out no more pages than `left`.
pub(crate) struct Tables {
    /// By address, from [`FIRST`] on. No address is used twice, so that a pointer to a freed table is found
    /// out.
    tables: Vec<Option<Box<[u64; ENTRIES]>>>,
    pub(crate) left: usize,
    log: Vec<Write>,
    reads: Cell<u64>,
    /// Bits that a processor sets in an entry just before it is exchanged, once.
    pub(crate) race: u64,
}

impl Tables {
    pub(crate) fn new(left: usize) -> Self {
        Self { tables: Vec::new(), left, log: Vec::new(), reads: Cell::new(0), race: 0 }
    }

    /// How many tables are allocated.
    pub(crate) fn count(&self) -> usize {
        self.tables.iter().flatten().count()
    }

    #[cfg(test)]
    pub(crate) fn reads(&self) -> u64 {
        self.reads.get()
    }

    fn number(table: Hpa) -> usize {
        (table.as_u64().wrapping_sub(FIRST) / PAGE_SIZE) as usize
    }

    fn get(&self, table: Hpa) -> Option<&[u64; ENTRIES]> {
        self.tables.get(Self::number(table))?.as_deref()
    }

    /// Writes without remembering, if the table is still there.
    fn poke(&mut self, table: Hpa, index: usize, entry: u64) {
        if let Some(Some(table)) = self.tables.get_mut(Self::number(table)) {
            table[index] = entry;
        }
    }
}

impl TableMemory for Tables {
    fn allocate(&mut self) -> Option<Hpa> {
        self.left = self.left.checked_sub(1)?;
        let table = Hpa::new(FIRST + self.tables.len() as u64 * PAGE_SIZE);
        self.tables.push(Some(Box::new([0; ENTRIES])));
        Some(table)
    }

    fn free(&mut self, table: Hpa) {
        let freed = self.tables.get_mut(Self::number(table)).and_then(Option::take);
        assert!(freed.is_some(), "{table} is no table, or freed twice");
        self.left += 1;
    }

    fn read(&self, table: Hpa, index: usize) -> u64 {
        self.reads.set(self.reads.get() + 1);
        let found = self.get(table);
        assert!(found.is_some(), "{table} is read, but no table");
        found.map_or(0, |table| table[index])
    }

    fn write(&mut self, table: Hpa, index: usize, entry: u64) {
        let old = self.read(table, index);
        self.log.push(Write { table, index, old, new: entry });
        self.poke(table, index, entry);
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
type Page = (Hpa, Permissions, MemoryType);

/// Addresses up to `end` that are mapped alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    end: u64,
    /// Host-physical minus guest-physical address, modulo 2^64.
    offset: u64,
    permissions: Permissions,
    memory_type: MemoryType,
}

/// The model: what is mapped, as runs by their first address.
#[derive(Clone, Default)]
struct Runs(BTreeMap<u64, Run>);

impl Runs {
    fn get(&self, gpa: u64) -> Option<Page> {
        let (_, run) = self.0.range(..=gpa).next_back()?;
        (gpa < run.end).then(|| (Hpa::new(gpa.wrapping_add(run.offset)), run.permissions, run.memory_type))
    }

    /// Takes out what is mapped from `start` to before `end`.
    fn take(&mut self, start: u64, end: u64) -> Vec<(u64, Run)> {
        let touched = self.0.range(..end).filter(|(_, run)| run.end > start);
        let touched: Vec<(u64, Run)> = touched.map(|(&at, &run)| (at, run)).collect();
        let mut taken = Vec::new();
        for (at, run) in touched {
            self.0.remove(&at);
            if at < start {
                self.0.insert(at, Run { end: start, ..run });
            }
            if run.end > end {
                self.0.insert(end, run);
            }
            taken.push((at.max(start), Run { end: run.end.min(end), ..run }));
        }
        taken
    }

    fn edges(&self) -> impl Iterator<Item = u64> {
        self.0.iter().flat_map(|(&start, run)| [start, run.end])
    }
}

/// An address space beside the model of what is mapped.
pub(crate) struct Checked<F: Format> {
    pub(crate) memory: Tables,
    pub(crate) space: Stage2<F>,
    runs: Runs,
    largest: PageSize,
}

/// An operation on an address space, in pages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Map { gpa: u64, hpa: u64, pages: u64, permissions: Permissions, memory_type: MemoryType },
    Unmap { gpa: u64, pages: u64 },
    Protect { gpa: u64, pages: u64, permissions: Permissions },
    Harvest { gpa: u64, pages: u64, trace: Trace },
    Split { gpa: u64, pages: u64 },
    Join { gpa: u64, pages: u64 },
    Flushed,
}

impl Op {
    /// The same for a device, which does not execute and whose accesses have their own memory type.
    pub(crate) fn by_device(self) -> Self {
        let no_execute = |permissions| Permissions { execute: false, ..permissions };
        match self {
            Self::Map { gpa, hpa, pages, permissions, .. } => {
                let permissions = no_execute(permissions);
                Self::Map { gpa, hpa, pages, permissions, memory_type: MemoryType::WriteBack }
            }
            Self::Protect { gpa, pages, permissions } => {
                Self::Protect { gpa, pages, permissions: no_execute(permissions) }
            }
            other => other,
        }
    }

    /// The range in bytes: first address and length.
    fn range(self) -> (u64, u64) {
        match self {
            Self::Map { gpa, pages, .. }
            | Self::Unmap { gpa, pages }
            | Self::Protect { gpa, pages, .. }
            | Self::Harvest { gpa, pages, .. }
            | Self::Split { gpa, pages }
            | Self::Join { gpa, pages } => (bytes(gpa), bytes(pages)),
            Self::Flushed => (0, 0),
        }
    }
}

/// The bytes of so many pages.
const fn bytes(pages: u64) -> u64 {
    pages.wrapping_mul(PAGE_SIZE)
}

impl<F: Format> Checked<F> {
    /// An address space with `left` tables beside the root.
    pub(crate) fn new(config: Config, left: usize) -> Self {
        let mut memory = Tables::new(left + 1);
        let Ok(space) = Stage2::new(&mut memory, config) else { unreachable!("there is a page") };
        Self { memory, space, runs: Runs::default(), largest: config.largest_leaf }
    }

    fn look(&self, gpa: u64) -> Option<Page> {
        let found = self.space.translate(&self.memory, Gpa::new(gpa))?;
        assert!(found.size <= self.largest);
        assert_eq!(found.remaining, found.size.bytes() - gpa % found.size.bytes());
        Some((found.hpa, found.permissions, found.memory_type))
    }

    /// Carries `op` out on the tables and the model, and checks what the tables said after every single
    /// write.
    pub(crate) fn step(&mut self, op: Op) -> Result<Flush, Error> {
        let before = self.runs.clone();
        let (tables, left) = (self.memory.count(), self.memory.left);
        self.memory.log.clear();
        let (memory, space) = (&mut self.memory, &mut self.space);
        let (gpa, len) = op.range();
        let start = Gpa::new(gpa);
        let result = match op {
            Op::Map { hpa, permissions, memory_type, .. } => {
                space.map(memory, start, Hpa::new(bytes(hpa)), len, permissions, memory_type)
            }
            Op::Unmap { .. } => space.unmap(memory, start, len),
            Op::Protect { permissions, .. } => space.protect(memory, start, len, permissions),
            Op::Harvest { trace, .. } => space.harvest(memory, start, len, trace, |_, _| {}),
            Op::Split { .. } => space.split_leaves(memory, start, len),
            Op::Join { .. } => space.join_leaves(memory, start, len),
            Op::Flushed => {
                space.flushed(memory);
                Ok(Flush::None)
            }
        };
        if result.is_ok() {
            self.expect(op);
        } else {
            assert_eq!((self.memory.count(), self.memory.left), (tables, left), "a refusal keeps tables");
        }
        let log = core::mem::take(&mut self.memory.log);
        let probes = self.probes(&before, gpa, len);
        // Tables that are freed cannot be replayed; nothing linked is written then.
        if !matches!(op, Op::Flushed) {
            self.replay(&before, &log, &probes);
        }
        for &page in &probes {
            assert_eq!(self.look(page), self.runs.get(page), "{page:#x} after {op:?}");
        }
        for table in self.linked().into_keys().filter(|&table| table != self.space.root()) {
            let entries = self.memory.get(table);
            assert!(entries.is_some_and(|entries| entries.iter().any(|&entry| F::is_present(entry))));
        }
        if let Ok(flush) = result {
            self.check_flush(&before, flush, &probes, op);
        }
        result
    }

    /// What the model says of an operation that was not refused.
    fn expect(&mut self, op: Op) {
        let (gpa, len) = op.range();
        if len == 0 {
            return;
        }
        match op {
            Op::Map { hpa, permissions, memory_type, .. } => {
                let offset = bytes(hpa).wrapping_sub(gpa);
                let run = Run { end: gpa + len, offset, permissions, memory_type };
                assert!(self.runs.take(gpa, gpa + len).is_empty(), "mapped over a mapping");
                self.runs.0.insert(gpa, run);
            }
            Op::Unmap { .. } => {
                self.runs.take(gpa, gpa + len);
            }
            Op::Protect { permissions, .. } => {
                let taken = self.runs.take(gpa, gpa + len);
                let found: u64 = taken.iter().map(|(at, run)| run.end - at).sum();
                assert_eq!(found, len, "protected what is not mapped");
                self.runs.0.extend(taken.into_iter().map(|(at, run)| (at, Run { permissions, ..run })));
            }
            Op::Harvest { .. } | Op::Split { .. } | Op::Join { .. } | Op::Flushed => {}
        }
    }

    /// Takes all writes back and repeats them one by one; after each, every page is as before or as after.
    fn replay(&mut self, before: &Runs, log: &[Write], probes: &[u64]) {
        for write in log.iter().rev() {
            self.memory.poke(write.table, write.index, write.old);
        }
        for &page in probes {
            assert_eq!(self.look(page), before.get(page), "{page:#x} before the operation");
        }
        let mut linked = self.linked();
        for write in log {
            self.memory.poke(write.table, write.index, write.new);
            let leads = |entry: u64| self.memory.get(Hpa::new(entry & F::ADDRESS)).is_some();
            if leads(write.old) || leads(write.new) {
                linked = self.linked();
            }
            // A write to a table that is not linked shows nowhere.
            if !linked.contains_key(&write.table) {
                continue;
            }
            for &page in probes {
                let (now, allowed) = (self.look(page), [before.get(page), self.runs.get(page)]);
                assert!(
                    allowed.contains(&now),
                    "{page:#x} is {now:x?} after {write:x?}, not one of {allowed:x?}"
                );
            }
        }
    }

    /// Pages worth a look: at the edges of all that is or was mapped and of the operation, and at the edges
    /// of the large pages that those lie in.
    fn probes(&self, before: &Runs, gpa: u64, len: u64) -> Vec<u64> {
        let mut probes = Vec::new();
        for edge in before.edges().chain(self.runs.edges()) {
            probes.extend([edge.saturating_sub(PAGE_SIZE), edge]);
        }
        for edge in [gpa, gpa.wrapping_add(len / 2) & !(PAGE_SIZE - 1), gpa.wrapping_add(len)] {
            for size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
                let start = Gpa::new(edge).align_down(size).as_u64();
                for probe in [start, start.wrapping_add(size.bytes())] {
                    probes.extend([probe.saturating_sub(PAGE_SIZE), probe, probe.saturating_add(PAGE_SIZE)]);
                }
            }
        }
        probes.sort_unstable();
        probes.dedup();
        probes
    }

    /// What has changed for a page that was mapped is to be flushed, and no more than was touched.
    fn check_flush(&self, before: &Runs, flush: Flush, probes: &[u64], op: Op) {
        let flushed = |page: u64| match flush {
            Flush::None => false,
            Flush::All => true,
            Flush::Range { gpa, len } => page >= gpa.as_u64() && page - gpa.as_u64() < len,
        };
        for &page in probes {
            let old = before.get(page);
            assert!(old.is_none() || old == self.runs.get(page) || flushed(page), "{page:#x} is not flushed");
        }
        if let Flush::Range { gpa: start, len } = flush {
            assert_eq!((start.as_u64(), len), op.range());
        }
    }

    /// All linked tables, with their levels.
    fn linked(&self) -> BTreeMap<Hpa, u8> {
        let mut linked = BTreeMap::new();
        let mut todo = alloc::vec![(self.space.root(), self.space.levels)];
        while let Some((table, level)) = todo.pop() {
            assert_eq!(linked.insert(table, level), None, "{table} is linked twice");
            let entries = self.memory.get(table);
            assert!(entries.is_some(), "{table} is linked, but freed");
            if level > 1 {
                let entries = entries.into_iter().flatten();
                let tables = entries.filter(|&&entry| F::is_present(entry) && entry & F::LARGE == 0);
                todo.extend(tables.map(|&entry| (Hpa::new(entry & F::ADDRESS), level - 1)));
            }
        }
        linked
    }

    /// Ends the address space, and checks that the leaves are those of the model and that no table is left
    /// behind.
    pub(crate) fn finish(mut self) {
        self.space.flushed(&mut self.memory);
        assert_eq!(self.linked().len(), self.memory.count(), "a table is neither linked nor freed");
        let mut mapped = 0;
        let whole = 1 << self.space.address_bits();
        let visited = self.space.leaves(&self.memory, Gpa::new(0), whole, |gpa, leaf| {
            assert_eq!(self.runs.get(gpa.as_u64()), Some((leaf.hpa, leaf.permissions, leaf.memory_type)));
            mapped += leaf.size.bytes();
        });
        assert_eq!(visited, Ok(()));
        assert_eq!(mapped, self.runs.0.iter().map(|(start, run)| run.end - start).sum::<u64>());
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

    /// So many pages of some size, and often a few small ones more or less, so that edges meet and miss.
    fn pages(&mut self) -> Option<u64> {
        let (coarse, fine) = (self.byte()?, self.byte()?);
        let unit = [1 << 18, 1 << 9, 1, 1 << 9][(coarse & 3) as usize];
        let large = (coarse >> 2 & 3) * unit + (coarse >> 4 & 1) * (1 << 18);
        Some(match fine >> 6 {
            0 => large + (fine & 7),
            1 => large.saturating_sub(fine & 7),
            _ => large,
        })
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
        let gpa = self.pages()?;
        let pages = self.pages()?;
        Some(match kind % 10 {
            0..=2 => {
                let hpa = self.pages()?;
                let hpa = if flags & 0x80 == 0 { gpa + (1 << 20) } else { hpa };
                Op::Map { gpa, hpa, pages, permissions, memory_type }
            }
            3 | 4 => Op::Unmap { gpa, pages },
            5 => Op::Protect { gpa, pages, permissions },
            6 => {
                Op::Harvest { gpa, pages, trace: if flags & 1 == 0 { Trace::Accessed } else { Trace::Dirty } }
            }
            7 => Op::Split { gpa, pages },
            8 => Op::Join { gpa, pages },
            _ => Op::Flushed,
        })
    }
}

fn drive_format<F: Format>(config: Config, left: usize, mut data: Bytes, as_for: fn(Op) -> Op) {
    let mut checked = Checked::<F>::new(config, left);
    for _ in 0..64 {
        let Some(op) = data.op() else { break };
        let _ = checked.step(as_for(op));
    }
    checked.finish();
}

/// Runs the operations that `data` spells against the model, in the format and shape that its first byte
/// says.
///
/// # Panics
/// Where the tables do not do what the model says: that is what fuzzing looks for.
pub fn drive(data: &[u8]) {
    let mut data = Bytes(data.iter());
    let Some(shape) = data.byte() else { return };
    let config = Config {
        levels: match shape & 0x41 {
            0 => Levels::Four,
            1 => Levels::Five,
            _ => Levels::Three,
        },
        largest_leaf: if shape & 2 == 0 { PageSize::Size1G } else { PageSize::Size2M },
        address_bits: if shape & 4 == 0 { 48 } else { 32 },
    };
    let left = if shape & 8 == 0 { 64 } else { (shape >> 4) as usize };
    match shape >> 4 & 3 {
        0 => drive_format::<Npt>(config, left, data, |op| op),
        1 => drive_format::<Ept>(config, left, data, |op| op),
        2 => drive_format::<Vtd>(config, left, data, Op::by_device),
        _ => drive_format::<AmdVi>(config, left, data, Op::by_device),
    }
}
