//! The tables of one guest-physical address space: making, walking and ending them.

use core::marker::PhantomData;

use caisson_types::{Gpa, Hpa, PAGE_SIZE, PageSize};

use crate::table::TableList;
use crate::{ENTRIES, Error, Format, MemoryType, Permissions, TableMemory};

/// log2 of a page's bytes.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// Address bits that one level resolves.
pub(crate) const LEVEL_BITS: u32 = 9;
/// One past the last host-physical address that an entry can hold.
const HOST_END: u64 = 1 << 52;

/// How deep the tables are. An IOMMU's unit says what it walks. For EPT the EPTP says so; NPT is walked in the host's own paging mode (AMD APM
/// vol. 2, 15.25.3), so that it has five levels just where the host's CR4.LA57 is set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Levels {
    /// 39 bits of guest-physical address: for IOMMUs alone.
    Three,
    /// 48 bits of guest-physical address.
    Four,
    /// 57 bits of guest-physical address.
    Five,
}

impl Levels {
    /// The number of levels.
    #[must_use]
    pub const fn count(self) -> u8 {
        match self {
            Self::Three => 3,
            Self::Four => 4,
            Self::Five => 5,
        }
    }
}

/// The shape of a guest-physical address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// How deep the tables are.
    pub levels: Levels,
    /// The largest leaf: what the processor takes, or less.
    pub largest_leaf: PageSize,
    /// Bits of a guest-physical address; what the levels cannot span is cut.
    pub address_bits: u8,
}

impl Config {
    /// Four levels, 48 bits, and 1 GiB leaves if `huge_pages`.
    #[must_use]
    pub const fn four_levels(huge_pages: bool) -> Self {
        let largest_leaf = if huge_pages { PageSize::Size1G } else { PageSize::Size2M };
        Self { levels: Levels::Four, largest_leaf, address_bits: 48 }
    }
}

/// What must be flushed from the TLBs of every CPU that may have run on the tables, before anything relies on
/// the change and before [`Stage2::flushed`].
#[must_use = "stale translations live until they are flushed"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// Nothing.
    None,
    /// All translations of a range of guest-physical addresses.
    Range {
        /// The first address.
        gpa: Gpa,
        /// How many bytes.
        len: u64,
    },
    /// All translations of the address space.
    All,
}

impl Flush {
    /// One flush that does the work of both.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, flush) | (flush, Self::None) => flush,
            (Self::All, _) | (_, Self::All) => Self::All,
            (Self::Range { gpa: a, len: a_len }, Self::Range { gpa: b, len: b_len }) => {
                let start = a.min(b);
                let end = |gpa: Gpa, len: u64| gpa.as_u64().saturating_add(len);
                Self::Range { gpa: start, len: end(a, a_len).max(end(b, b_len)) - start.as_u64() }
            }
        }
    }

    pub(crate) fn range_if(changed: bool, range: Range) -> Self {
        if changed {
            Self::Range { gpa: Gpa::new(range.start), len: range.end - range.start }
        } else {
            Self::None
        }
    }
}

/// Where a guest-physical address leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The host-physical address of the byte.
    pub hpa: Hpa,
    /// Bytes from there to the end of the page, at least 1: all are contiguous and alike.
    pub remaining: u64,
    /// The size of the leaf.
    pub size: PageSize,
    /// What the guest may do there.
    pub permissions: Permissions,
    /// The memory type of the leaf.
    pub memory_type: MemoryType,
}

/// Guest-physical addresses from `start` to before `end`, both multiples of 4 KiB.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// One entry of a table, by position.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) table: Hpa,
    pub(crate) index: usize,
    /// The first guest-physical address that the entry translates.
    pub(crate) start: u64,
    /// One past the last.
    pub(crate) end: u64,
}

impl Slot {
    pub(crate) const fn is_within(&self, range: Range) -> bool {
        range.start <= self.start && self.end <= range.end
    }
}

/// log2 of the bytes that an entry of a table of `level` (1 is the last) translates.
pub(crate) const fn level_shift(level: u8) -> u32 {
    PAGE_SHIFT + LEVEL_BITS * (level as u32 - 1)
}

/// The entries that `range` touches of a table of `level` that translates from `base` on. The table's span
/// and the range have an address in common.
pub(crate) fn slots(table: Hpa, level: u8, base: u64, range: Range) -> impl Iterator<Item = Slot> {
    let shift = level_shift(level);
    let first = range.start.saturating_sub(base) >> shift;
    let last = ((range.end - 1 - base) >> shift).min(ENTRIES as u64 - 1);
    (first..=last).map(move |index| {
        let start = base + (index << shift);
        Slot { table, index: index as usize, start, end: start + (1 << shift) }
    })
}

/// The page size of a leaf at `level`.
pub(crate) const fn leaf_size(level: u8) -> PageSize {
    match level {
        1 => PageSize::Size4K,
        2 => PageSize::Size2M,
        _ => PageSize::Size1G,
    }
}

/// The stage-2 tables of one guest-physical address space.
///
/// It owns its table pages. As they live in memory that is passed to each call, dropping it does not free
/// them: [`destroy`](Self::destroy) does.
pub struct Stage2<F> {
    root: Hpa,
    pub(crate) levels: u8,
    /// The highest level that leaves are put at.
    pub(crate) largest_leaf: u8,
    /// One past the last guest-physical address, a power of two.
    end: u64,
    /// Unlinked tables that a CPU may still walk.
    pub(crate) retired: TableList,
    format: PhantomData<F>,
}

impl<F: Format> Stage2<F> {
    /// An address space in which nothing is mapped. All calls for it take the same `memory`.
    ///
    /// # Errors
    /// [`Error::OutOfTables`] where there is no memory for the root table.
    pub fn new<M: TableMemory>(memory: &mut M, config: Config) -> Result<Self, Error> {
        let levels = config.levels.count();
        let spanned = level_shift(levels) + LEVEL_BITS;
        Ok(Self {
            root: memory.allocate().ok_or(Error::OutOfTables)?,
            levels,
            largest_leaf: match config.largest_leaf {
                PageSize::Size4K => 1,
                PageSize::Size2M => 2,
                PageSize::Size1G => 3,
            },
            end: 1 << u32::from(config.address_bits).min(spanned),
            retired: TableList::EMPTY,
            format: PhantomData,
        })
    }

    /// The root table's address.
    #[must_use]
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// What the control block takes as root: nCR3 for [`Npt`](crate::Npt), the EPTP for [`Ept`](crate::Ept),
    /// with accessed and dirty bits enabled if `accessed_dirty` (the processor must have them; NPT always
    /// does). For an IOMMU, its part of a device's entry.
    #[must_use]
    pub fn root_pointer(&self, accessed_dirty: bool) -> u64 {
        F::root_pointer(self.root, self.levels, accessed_dirty)
    }

    /// Bits of a guest-physical address.
    #[must_use]
    pub const fn address_bits(&self) -> u8 {
        self.end.trailing_zeros() as u8
    }

    /// Where `gpa` leads; `None` where nothing is mapped.
    ///
    /// One read a level and a few instructions beside it: a walk down constant shifts, without a loop. What
    /// of the answer the caller does not use costs nothing.
    #[inline]
    #[must_use]
    pub fn translate<M: TableMemory>(&self, memory: &M, gpa: Gpa) -> Option<Translation> {
        let gpa = gpa.as_u64();
        if gpa >= self.end {
            return None;
        }
        let mut table = self.root;
        if self.levels > 4 {
            table = Self::child(Self::walk::<48, M>(memory, table, gpa)?);
        }
        // Leaves are put at level 3 at most.
        if self.levels > 3 {
            table = Self::child(Self::walk::<39, M>(memory, table, gpa)?);
        }
        let entry = Self::walk::<30, M>(memory, table, gpa)?;
        if entry & F::LARGE != 0 {
            return Some(Self::leaf(entry, gpa, PageSize::Size1G));
        }
        let entry = Self::walk::<21, M>(memory, Self::child(entry), gpa)?;
        if entry & F::LARGE != 0 {
            return Some(Self::leaf(entry, gpa, PageSize::Size2M));
        }
        let entry = Self::walk::<12, M>(memory, Self::child(entry), gpa)?;
        Some(Self::leaf(entry, gpa, PageSize::Size4K))
    }

    /// The entry for `gpa` of a table whose entries translate 2^`SHIFT` bytes, if it is present.
    #[inline(always)]
    fn walk<const SHIFT: u32, M: TableMemory>(memory: &M, table: Hpa, gpa: u64) -> Option<u64> {
        let entry = memory.read(table, (gpa >> SHIFT) as usize % ENTRIES);
        F::is_present(entry).then_some(entry)
    }

    /// What a leaf of `size` says of `gpa`.
    #[inline(always)]
    pub(crate) fn leaf(leaf: u64, gpa: u64, size: PageSize) -> Translation {
        let offset = gpa & (size.bytes() - 1);
        Translation {
            hpa: Hpa::new(leaf & F::ADDRESS & !(size.bytes() - 1) | offset),
            remaining: size.bytes() - offset,
            size,
            permissions: F::permissions(leaf),
            memory_type: F::memory_type(leaf, size != PageSize::Size4K),
        }
    }

    /// Says that every [`Flush`] returned so far was carried out on every CPU: frees the tables that were
    /// unlinked.
    pub fn flushed<M: TableMemory>(&mut self, memory: &mut M) {
        self.retired.free_all(memory);
    }

    /// Frees all tables. No CPU may run on them any more, nor hold translations from them.
    pub fn destroy<M: TableMemory>(mut self, memory: &mut M) {
        self.retire(memory, self.root, self.levels);
        self.retired.free_all(memory);
    }

    /// Whether the entry at `level` is a leaf (it is present).
    pub(crate) fn is_leaf(entry: u64, level: u8) -> bool {
        level == 1 || entry & F::LARGE != 0
    }

    pub(crate) fn child(entry: u64) -> Hpa {
        Hpa::new(entry & F::ADDRESS)
    }

    /// Retires the unlinked `table` of `level` and all tables that it leads to.
    pub(crate) fn retire<M: TableMemory>(&mut self, memory: &mut M, table: Hpa, level: u8) {
        if level > 1 {
            for index in 0..ENTRIES {
                let entry = memory.read(table, index);
                if F::is_present(entry) && !Self::is_leaf(entry, level) {
                    self.retire(memory, Self::child(entry), level - 1);
                }
            }
        }
        self.retired.push(memory, table);
    }

    /// The range, if it is made of whole pages within the address space.
    pub(crate) fn range(&self, gpa: Gpa, len: u64) -> Result<Range, Error> {
        let start = gpa.as_u64();
        if !(start | len).is_multiple_of(PAGE_SIZE) {
            return Err(Error::Misaligned);
        }
        match start.checked_add(len) {
            Some(end) if end <= self.end => Ok(Range { start, end }),
            _ => Err(Error::BeyondWidth),
        }
    }

    /// Whether `len` bytes at `hpa` are whole pages that entries can address.
    pub(crate) fn check_host(hpa: Hpa, len: u64) -> Result<(), Error> {
        if hpa.page_offset() != 0 {
            return Err(Error::Misaligned);
        }
        match hpa.as_u64().checked_add(len) {
            Some(end) if end <= HOST_END => Ok(()),
            _ => Err(Error::BeyondWidth),
        }
    }
}
