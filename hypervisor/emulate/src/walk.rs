//! The guest's own page tables, walked in software: what the CPU would find at a linear address.
//!
//! All paging modes of SDM vol. 3, chapter 5 (APM vol. 2, chapter 5): none, 32-bit with 4 MiB pages and PSE-36,
//! PAE, 4-level and 5-level, with the access rights of section 5.6 (U/S, R/W, NX, WP, SMEP, SMAP, protection
//! keys) and the error code of section 5.7. PAE's four page-directory pointers are read from memory, as AMD
//! does under nested paging (APM vol. 2, section 15.25.10).
//!
//! Invariants: a walk reads each entry once and decides on that copy; accessed and dirty bits are set by atomic
//! exchange against the very value that was judged, and only when the whole access is allowed. A table outside
//! RAM reads all ones, like a bus with nothing on it.

use caisson_hwvirt::VcpuState;
use caisson_types::{Gpa, GuestMemory, Gva};
use caisson_x86::exception::page_fault;
use caisson_x86::{Cr0, Cr4, Efer, Exception, Rflags};

/// Bits of a page-table entry (SDM vol. 3, section 5.5; the same in all formats but NX, which 32-bit entries lack).
mod entry {
    pub(super) const PRESENT: u64 = 1 << 0;
    pub(super) const WRITABLE: u64 = 1 << 1;
    pub(super) const USER: u64 = 1 << 2;
    pub(super) const ACCESSED: u64 = 1 << 5;
    pub(super) const DIRTY: u64 = 1 << 6;
    pub(super) const LARGE: u64 = 1 << 7;
    pub(super) const NO_EXECUTE: u64 = 1 << 63;
    /// Bits 51:12, the widest address that an entry can hold.
    pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Bits that PAE's page-directory pointers reserve below the address: 1, 2 and 8:5.
    pub(super) const PAE_POINTER_RESERVED: u64 = 0x1e6;
    /// The protection key, bits 62:59.
    pub(super) const KEY_SHIFT: u32 = 59;
}

/// How often a walk starts over when another CPU changes an entry between its judgement and its accessed bit.
const RETRIES: usize = 16;

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessKind {
    /// Reads data.
    Read,
    /// Writes data, or reads it in order to write it back.
    Write,
    /// Fetches an instruction.
    Fetch,
}

/// An access as the access rights see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// What it does.
    pub kind: AccessKind,
    /// It is made in user mode: CPL 3, and not one of the implicit accesses to system structures.
    pub user: bool,
    /// It is an implicit supervisor access (descriptor tables, TSS), which RFLAGS.AC does not let through SMAP.
    pub implicit: bool,
}

impl Access {
    /// An explicit access at the vCPU's current privilege.
    #[inline]
    #[must_use]
    pub fn explicit(kind: AccessKind, state: &impl VcpuState) -> Self {
        Self { kind, user: state.cpl() == 3, implicit: false }
    }

    /// An implicit access to a system structure, supervisor whatever the CPL.
    #[must_use]
    pub const fn implicit(kind: AccessKind) -> Self {
        Self { kind, user: false, implicit: true }
    }

    const fn write(self) -> bool {
        matches!(self.kind, AccessKind::Write)
    }

    const fn fetch(self) -> bool {
        matches!(self.kind, AccessKind::Fetch)
    }
}

/// What the virtual CPU's paging is able to do, beyond the bits of its control registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PagingFeatures {
    /// MAXPHYADDR, 32 to 52 bits: entry bits above it are reserved. Other values are taken as the nearest of these.
    pub physical_bits: u8,
    /// 1 GiB pages exist (CPUID Fn8000_0001 EDX bit 26); otherwise their bit is reserved.
    pub gigabyte_pages: bool,
    /// PKRU; counts only while CR4.PKE is set in long mode.
    pub pkru: u32,
}

/// The shape of a set of page tables.
#[derive(Clone, Copy)]
struct Shape {
    /// Physical address of the first table.
    root: u64,
    /// Bit of the linear address where the first table's index starts.
    top_shift: u32,
    /// Index bits of a table: 9, or 10 where entries have 4 bytes.
    index_bits: u32,
}

impl Shape {
    /// The tables in use, or `None` without paging.
    #[inline]
    fn of(state: &impl VcpuState) -> Option<Self> {
        if state.cr0() & Cr0::PG.bits() == 0 {
            return None;
        }
        let (cr3, cr4) = (state.cr3(), state.cr4());
        Some(if state.efer() & Efer::LMA.bits() != 0 {
            let top_shift = if cr4 & Cr4::LA57.bits() != 0 { 48 } else { 39 };
            Self { root: cr3 & entry::ADDRESS, top_shift, index_bits: 9 }
        } else if cr4 & Cr4::PAE.bits() != 0 {
            Self { root: cr3 & 0xffff_ffe0, top_shift: 30, index_bits: 9 }
        } else {
            Self { root: cr3 & 0xffff_f000, top_shift: 22, index_bits: 10 }
        })
    }

    /// Entries of 4 bytes.
    const fn narrow(self) -> bool {
        self.index_bits == 10
    }

    /// PAE: the first table has four pointers without rights or accessed bits.
    const fn pae(self) -> bool {
        self.top_shift == 30
    }

    /// Where the entry for `linear` is in `table`.
    #[inline]
    const fn slot(self, table: u64, linear: u64, shift: u32) -> Gpa {
        let index_mask = if self.top_shift == shift && self.pae() { 3 } else { (1 << self.index_bits) - 1 };
        let size_log = if self.narrow() { 2 } else { 3 };
        Gpa::new(table + ((linear >> shift & index_mask) << size_log))
    }
}

/// Where `linear` leads, whatever the rights, or `None` where it leads nowhere. Sets no bit.
///
/// For an instruction that the CPU itself has just fetched, whose rights and accessed bits it has dealt with.
/// Costs one table read and some ten instructions a level. `linear` is canonical, or below 4 GiB outside long
/// mode.
#[inline]
#[must_use]
pub fn fetch_translate(state: &impl VcpuState, memory: &impl GuestMemory, linear: Gva) -> Option<Gpa> {
    let linear = linear.as_u64();
    if state.cr0() & Cr0::PG.bits() == 0 {
        return Some(Gpa::new(linear & 0xffff_ffff));
    }
    if state.efer() & Efer::LMA.bits() == 0 {
        return legacy_translate(state, memory, linear);
    }
    long_translate(state, memory, linear)
}

/// [`fetch_translate`] in long mode.
#[inline(always)]
pub(crate) fn long_translate(state: &impl VcpuState, memory: &impl GuestMemory, linear: u64) -> Option<Gpa> {
    // One level after the other, not a loop: with constant shifts a level takes about a dozen instructions.
    let mut table = state.cr3();
    if state.cr4() & Cr4::LA57.bits() != 0 {
        table = present_entry::<48>(memory, table, linear)?;
    }
    table = present_entry::<39>(memory, table, linear)?;
    table = present_entry::<30>(memory, table, linear)?;
    if table & entry::LARGE != 0 {
        return Some(page_address::<30>(table, linear));
    }
    table = present_entry::<21>(memory, table, linear)?;
    if table & entry::LARGE != 0 {
        return Some(page_address::<21>(table, linear));
    }
    table = present_entry::<12>(memory, table, linear)?;
    Some(page_address::<12>(table, linear))
}

/// The 8-byte entry for `linear` in the table that `above` (an entry, or CR3) points to, if it is present.
#[inline(always)]
fn present_entry<const SHIFT: u32>(memory: &impl GuestMemory, above: u64, linear: u64) -> Option<u64> {
    let slot = (above & entry::ADDRESS) + (linear >> SHIFT & 511) * 8;
    let value = memory.entry(Gpa::new(slot));
    if value & entry::PRESENT != 0 { Some(value) } else { None }
}

/// `linear` within the page of 1 << `SHIFT` bytes that `leaf` maps.
#[inline(always)]
const fn page_address<const SHIFT: u32>(leaf: u64, linear: u64) -> Gpa {
    let offset = (1 << SHIFT) - 1;
    Gpa::new(leaf & entry::ADDRESS & !offset | linear & offset)
}

/// [`fetch_translate`] outside long mode.
#[inline(never)]
fn legacy_translate(state: &impl VcpuState, memory: &impl GuestMemory, linear: u64) -> Option<Gpa> {
    let shape = Shape::of(state)?;
    let pse = shape.index_bits == 9 || state.cr4() & Cr4::PSE.bits() != 0;
    let mut table = shape.root;
    let mut shift = shape.top_shift;
    loop {
        let slot = shape.slot(table, linear, shift);
        let value = if shape.narrow() {
            u64::from(memory.read_u32(slot).ok()?)
        } else {
            memory.read_u64(slot).ok()?
        };
        if value & entry::PRESENT == 0 {
            return None;
        }
        let large = value & entry::LARGE != 0 && pse && matches!(shift, 21 | 22);
        if shift == 12 || large {
            let base = if large && shape.narrow() { pse36_base(value) } else { value & entry::ADDRESS };
            let offset = (1 << shift) - 1;
            return Some(Gpa::new(base & !offset | linear & offset));
        }
        table = value & entry::ADDRESS;
        shift -= shape.index_bits;
    }
}

/// The base of a 4 MiB page: bits 20:13 of the entry are address bits 39:32 (SDM vol. 3, table 5-4).
const fn pse36_base(value: u64) -> u64 {
    value & 0xffc0_0000 | (value >> 13 & 0xff) << 32
}

/// Where an access leads, with everything that the CPU would check, and the accessed and dirty bits that it
/// would set.
///
/// `linear` is canonical, or below 4 GiB outside long mode (segmentation has seen to that).
///
/// # Errors
/// The #PF that the CPU would raise.
pub fn translate(
    state: &impl VcpuState,
    memory: &impl GuestMemory,
    linear: Gva,
    access: Access,
    features: &PagingFeatures,
) -> Result<Gpa, Exception> {
    let Some(shape) = Shape::of(state) else {
        return Ok(Gpa::new(linear.as_u64() & 0xffff_ffff));
    };
    let walker = Walker { memory, shape, rules: Rules::of(state, shape, features), access };
    for _ in 0..RETRIES {
        let path = walker.read_path(linear.as_u64())?;
        if walker.mark(&path) {
            return Ok(path.gpa);
        }
    }
    // Another CPU keeps rewriting these entries: a spurious fault is what the CPU may raise too.
    Err(Exception::page_fault(walker.code(0), linear.as_u64()))
}

/// What the control registers make of entries and rights.
#[derive(Clone, Copy)]
struct Rules {
    /// Entry bits that are reserved at every level.
    reserved: u64,
    /// Address bits 39:32 that PSE-36 has beyond MAXPHYADDR, and bit 21, as reserved bits of a 4 MiB entry.
    reserved_4m: u64,
    large_4m: bool,
    gigabyte_pages: bool,
    no_execute: bool,
    write_protect: bool,
    smep: bool,
    smap: bool,
    /// RFLAGS.AC, which lets explicit accesses through SMAP.
    ac: bool,
    /// PKRU where protection keys are on.
    pkru: Option<u32>,
    /// Fetches are told apart in the error code.
    fetch_in_code: bool,
}

impl Rules {
    fn of(state: &impl VcpuState, shape: Shape, features: &PagingFeatures) -> Self {
        let (cr4, efer) = (state.cr4(), state.efer());
        let long = efer & Efer::LMA.bits() != 0;
        let no_execute = efer & Efer::NXE.bits() != 0 && !shape.narrow();
        let physical_bits = u32::from(features.physical_bits.clamp(32, 52));
        let mut reserved = 0;
        if !shape.narrow() {
            reserved = entry::ADDRESS & !((1 << physical_bits) - 1);
            if !no_execute {
                reserved |= entry::NO_EXECUTE;
            }
            if !long {
                reserved |= 0x7ff << 52;
            }
        }
        let high_bits = physical_bits.min(40) - 32;
        let reserved_4m = (0x1ff << 13) & !(((1 << high_bits) - 1) << 13);
        let smep = cr4 & Cr4::SMEP.bits() != 0;
        Self {
            reserved,
            reserved_4m,
            large_4m: cr4 & Cr4::PSE.bits() != 0,
            gigabyte_pages: long && features.gigabyte_pages,
            no_execute,
            write_protect: state.cr0() & Cr0::WP.bits() != 0,
            smep,
            smap: cr4 & Cr4::SMAP.bits() != 0,
            pkru: (long && cr4 & Cr4::PKE.bits() != 0).then_some(features.pkru),
            ac: state.rflags() & Rflags::AC.bits() != 0,
            fetch_in_code: no_execute || smep,
        }
    }
}

/// The entries that a walk used, and where it ended.
struct Path {
    /// Each entry's place and value, from the root; `used` of them.
    entries: [(Gpa, u64); 5],
    used: usize,
    gpa: Gpa,
}

/// One walk's circumstances.
struct Walker<'a, M> {
    memory: &'a M,
    shape: Shape,
    rules: Rules,
    access: Access,
}

impl<M: GuestMemory> Walker<'_, M> {
    /// The error code of a fault with `cause` (of `PRESENT`, `RESERVED`, `KEY`).
    fn code(&self, cause: u32) -> u32 {
        let mut code = cause;
        if self.access.write() {
            code |= page_fault::WRITE;
        }
        if self.access.user {
            code |= page_fault::USER;
        }
        if self.access.fetch() && self.rules.fetch_in_code {
            code |= page_fault::FETCH;
        }
        code
    }

    fn read_entry(&self, slot: Gpa) -> u64 {
        if self.shape.narrow() {
            u64::from(self.memory.read_u32(slot).unwrap_or(u32::MAX))
        } else {
            self.memory.read_u64(slot).unwrap_or(u64::MAX)
        }
    }

    /// Walks down to the page and checks the access. Changes nothing.
    fn read_path(&self, linear: u64) -> Result<Path, Exception> {
        let fault = |cause| Exception::page_fault(self.code(cause), linear);
        let mut path = Path { entries: [(Gpa::new(0), 0); 5], used: 0, gpa: Gpa::new(0) };
        let mut table = self.shape.root;
        let mut shift = self.shape.top_shift;
        // R/W and U/S are allowed where every level allows them, NX forbids at any level.
        let mut rights = entry::WRITABLE | entry::USER;
        let mut no_execute = false;
        loop {
            let slot = self.shape.slot(table, linear, shift);
            let value = self.read_entry(slot);
            if value & entry::PRESENT == 0 {
                return Err(fault(0));
            }
            let pointer = self.shape.pae() && shift == 30;
            let large = !pointer && self.is_large(value, shift);
            if value & self.reserved_bits(shift, pointer, large) != 0 {
                return Err(fault(page_fault::PRESENT | page_fault::RESERVED));
            }
            if !pointer {
                rights &= value;
                no_execute |= self.rules.no_execute && value & entry::NO_EXECUTE != 0;
                if let Some(place) = path.entries.get_mut(path.used) {
                    *place = (slot, value);
                    path.used += 1;
                }
            }
            if shift == 12 || large {
                let base =
                    if large && self.shape.narrow() { pse36_base(value) } else { value & entry::ADDRESS };
                let offset = (1 << shift) - 1;
                path.gpa = Gpa::new(base & !offset | linear & offset);
                return match self.refusal(rights, no_execute, value) {
                    None => Ok(path),
                    Some(cause) => Err(fault(cause)),
                };
            }
            table = value & entry::ADDRESS;
            shift -= self.shape.index_bits;
        }
    }

    /// Whether the entry at `shift` maps a large page. Its bit is reserved where no large page exists.
    const fn is_large(&self, value: u64, shift: u32) -> bool {
        value & entry::LARGE != 0
            && match shift {
                21 => true,
                22 => self.rules.large_4m,
                30 => self.rules.gigabyte_pages,
                _ => false,
            }
    }

    /// The bits that must be 0 in an entry (SDM vol. 3, tables 5-4 to 5-20).
    const fn reserved_bits(&self, shift: u32, pointer: bool, large: bool) -> u64 {
        if pointer {
            return self.rules.reserved | entry::PAE_POINTER_RESERVED | entry::NO_EXECUTE;
        }
        if self.shape.narrow() {
            return if large { self.rules.reserved_4m } else { 0 };
        }
        let own = match (shift, large) {
            // PAT (bit 12) is no address bit of a large page.
            (_, true) => ((1 << shift) - 1) & entry::ADDRESS & !(1 << 12),
            (30.., false) => entry::LARGE,
            _ => 0,
        };
        self.rules.reserved | own
    }

    /// Why the access is refused, as bits of the error code, or `None` (SDM vol. 3, section 5.6).
    fn refusal(&self, rights: u64, no_execute: bool, leaf: u64) -> Option<u32> {
        let Access { user, implicit, .. } = self.access;
        let rules = &self.rules;
        let user_page = rights & entry::USER != 0;
        let writable = rights & entry::WRITABLE != 0;
        let allowed = match self.access.kind {
            AccessKind::Fetch => !no_execute && if user { user_page } else { !(user_page && rules.smep) },
            AccessKind::Read | AccessKind::Write => {
                let reachable =
                    if user { user_page } else { !user_page || !rules.smap || (rules.ac && !implicit) };
                let write_ok = writable || !self.access.write() || (!user && !rules.write_protect);
                reachable && write_ok
            }
        };
        let key_refuses = user_page && !self.access.fetch() && self.key_refuses(leaf);
        match (allowed, key_refuses) {
            (true, false) => None,
            (_, true) => Some(page_fault::PRESENT | page_fault::KEY),
            (false, false) => Some(page_fault::PRESENT),
        }
    }

    /// Whether the protection key of a user page forbids the access (SDM vol. 3, section 5.6.2).
    fn key_refuses(&self, leaf: u64) -> bool {
        let Some(pkru) = self.rules.pkru else { return false };
        let key_rights = pkru >> ((leaf >> entry::KEY_SHIFT & 15) * 2);
        let access_disabled = key_rights & 1 != 0;
        let write_disabled = key_rights & 2 != 0;
        access_disabled
            || (write_disabled && self.access.write() && (self.access.user || self.rules.write_protect))
    }

    /// Sets the accessed bits of a path and the dirty bit of its end. `false` when an entry has changed meanwhile.
    fn mark(&self, path: &Path) -> bool {
        let entries = path.entries.get(..path.used).unwrap_or(&[]);
        entries.iter().enumerate().all(|(index, &(slot, value))| {
            let leaf = index + 1 == path.used;
            let dirty = if leaf && self.access.write() { entry::DIRTY } else { 0 };
            let marked = value | entry::ACCESSED | dirty;
            if marked == value {
                return true;
            }
            // A table outside RAM takes no bits: the exchange fails there and nothing is lost.
            if self.shape.narrow() {
                self.memory.compare_exchange_u32(slot, value as u32, marked as u32).unwrap_or(true)
            } else {
                self.memory.compare_exchange_u64(slot, value, marked).unwrap_or(true)
            }
        })
    }
}
