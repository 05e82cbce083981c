//! What the engine asks of a table format.

use caisson_types::Hpa;

/// What a guest may do with a page. A mapped page can always be read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Permissions {
    /// Loads.
    pub read: bool,
    /// Stores.
    pub write: bool,
    /// Instruction fetches.
    pub execute: bool,
}

impl Permissions {
    /// Read, write and execute: ordinary RAM.
    pub const ALL: Self = Self { read: true, write: true, execute: true };
    /// Read and write: device memory, granted buffers.
    pub const READ_WRITE: Self = Self { read: true, write: true, execute: false };
    /// Read and execute: ROM.
    pub const READ_EXECUTE: Self = Self { read: true, write: false, execute: true };
    /// Read alone.
    pub const READ: Self = Self { read: true, write: false, execute: false };
}

/// The memory type of a mapping. It is combined with the type that the guest's own page tables ask for, and
/// the stricter wins (AMD APM vol. 2, 15.25.8; Intel SDM vol. 3, 29.3.7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MemoryType {
    /// Cached: RAM.
    WriteBack,
    /// Cached for loads; stores go to memory.
    WriteThrough,
    /// Uncached, stores may be combined: frame buffers.
    WriteCombining,
    /// Uncached and in order: device registers.
    Uncacheable,
}

/// A table format: what the bits of an entry mean.
///
/// All formats put addresses into bits 51:12, mark a leaf above the last level by bit 7
/// ([`LARGE`](Self::LARGE)), and take an entry with its low 12 bits clear for absent.
pub trait Format {
    /// A leaf of 2 MiB or 1 GiB has this bit, and a pointer to a table has not. At the last level it may mean
    /// something else.
    const LARGE: u64 = 1 << 7;
    /// Where an entry's address is.
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// The processor sets this bit in the entries that it walks. None where it leaves no such trace.
    const ACCESSED: u64;
    /// The processor sets this bit in the leaf through which it writes. None where it leaves no such trace.
    const DIRTY: u64;

    /// Whether the entry is a leaf or points to a table.
    fn is_present(entry: u64) -> bool;

    /// An entry that points to the table at `child`, which is one of `level` (1 is the last), and restricts nothing.
    fn table(child: Hpa, level: u8) -> u64;

    /// A leaf for the page at `page`, with the accessed and dirty bits set. `large` for 2 MiB and 1 GiB.
    fn leaf(page: Hpa, large: bool, permissions: Permissions, memory_type: MemoryType) -> u64;

    /// A leaf's permissions.
    fn permissions(leaf: u64) -> Permissions;

    /// The leaf with other permissions and all else as it was.
    fn with_permissions(leaf: u64, permissions: Permissions) -> u64;

    /// A leaf's memory type. `large` for 2 MiB and 1 GiB.
    fn memory_type(leaf: u64, large: bool) -> MemoryType;

    /// What takes the root of the tables has it in this form: nCR3, the EPTP, the part of a device's entry in an IOMMU's
    /// table. `levels` is 3 to 5; `accessed_dirty` has the processor maintain those bits where that is an option.
    fn root_pointer(root: Hpa, levels: u8, accessed_dirty: bool) -> u64;
}
