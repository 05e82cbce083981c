//! The probe's own page tables, and changing them.

use crate::{Shared, cpu};

/// Present.
pub const P: u64 = 1 << 0;
/// Writable.
pub const W: u64 = 1 << 1;
/// For user mode.
pub const U: u64 = 1 << 2;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// A large page.
pub const PS: u64 = 1 << 7;
/// No execution.
pub const NX: u64 = 1 << 63;
/// The address bits of an entry.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A page of one's own.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
pub struct Page(pub [u8; 4096]);

impl Page {
    /// Zeroes.
    pub const ZERO: Self = Self([0; 4096]);
}

const POOL: usize = 16;
static TABLES: [Shared<Page>; POOL] = [const { Shared::new(Page::ZERO) }; POOL];
static USED: Shared<usize> = Shared::new(0);

unsafe extern "C" {
    static mut probe_pml4: [u64; 512];
}

/// The root of the page tables.
#[must_use]
pub fn root() -> usize {
    (&raw const probe_pml4) as usize
}

/// An empty page for a table.
#[must_use]
pub fn new_table() -> usize {
    let used = USED.get();
    USED.set(used + 1);
    TABLES[used].address()
}

/// The address of the entry of `level` (4 to 1; 1 is the page table) that translates `address`. Tables that lack on the
/// way are made, with all rights; a large page is split into one of its like.
pub fn entry(address: usize, level: u32) -> usize {
    let mut table = root();
    let mut at = 4;
    loop {
        let slot = table + (address >> (12 + 9 * (at - 1)) & 511) * 8;
        if at == level {
            return slot;
        }
        let value = cpu::read64(slot);
        if value & P == 0 {
            cpu::write64(slot, new_table() as u64 | P | W | U);
        } else if value & PS != 0 {
            let child = new_table();
            let page = 1u64 << (12 + 9 * (at - 2));
            let keep = if at == 2 { !PS } else { !0 };
            for index in 0..512 {
                cpu::write64(child + index as usize * 8, (value & keep) + index * page);
            }
            cpu::write64(slot, child as u64 | P | W | U);
        }
        table = (cpu::read64(slot) & ADDRESS) as usize;
        at -= 1;
    }
}

/// Maps the 4 KiB page at `address` by `value` (address and bits of the entry).
pub fn map(address: usize, value: u64) {
    cpu::write64(entry(address, 1), value);
    cpu::invlpg(address);
}
