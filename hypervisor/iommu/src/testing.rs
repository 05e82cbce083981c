//! Units made of tables, as the manuals have them, that cache as much as they may and for as long as they may; memory that they
//! read; and random owners of devices, held against what they should reach.

mod amdvi;
pub mod random;
mod vtd;

use alloc::boxed::Box;
use alloc::vec::Vec;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use caisson_stage2::{ENTRIES, TableMemory};
use caisson_types::{Hpa, PAGE_SIZE};

use crate::Memory;

pub use amdvi::AmdViModel;
pub use random::{drive, parse};
pub use vtd::{VtdModel, VtdOptions};

/// Where the first page of tables is, beyond all that is mapped in tests.
const FIRST: u64 = 1 << 36;

/// The number of the page at an address.
fn number(at: u64) -> usize {
    (at.wrapping_sub(FIRST) / PAGE_SIZE) as usize
}

/// Pages, and the time.
#[derive(Debug, Default)]
struct State {
    /// From [`FIRST`] on.
    pages: Vec<Option<Box<[u64; ENTRIES]>>>,
    time: u64,
    snooped: bool,
}

/// The memory that units and Caisson share, and the time that passes for both.
#[derive(Clone, Debug, Default)]
pub struct World(Arc<Mutex<State>>);

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A microsecond later than the last time that somebody asked.
    pub(crate) fn now(&self) -> u64 {
        let mut state = self.state();
        state.time += 1000;
        state.time
    }

    /// How many pages are allocated.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.state().pages.iter().flatten().count()
    }

    /// Whether units are said to see what is written.
    #[must_use]
    pub fn is_snooped(&self) -> bool {
        self.state().snooped
    }

    /// A word, by its address. `None` where there is no page: a unit that reads there has been led astray.
    pub(crate) fn word(&self, at: u64) -> Option<u64> {
        let state = self.state();
        Some(state.pages.get(number(at))?.as_ref()?[(at % PAGE_SIZE / 8) as usize])
    }

    /// Writes it. Whether it is there.
    pub(crate) fn set_word(&self, at: u64, value: u64) -> bool {
        if let Some(Some(page)) = self.state().pages.get_mut(number(at)) {
            page[(at % PAGE_SIZE / 8) as usize] = value;
            return true;
        }
        false
    }
}

impl TableMemory for World {
    fn allocate(&mut self) -> Option<Hpa> {
        self.allocate_run(0)
    }

    fn free(&mut self, table: Hpa) {
        let freed = self.state().pages.get_mut(number(table.as_u64())).and_then(Option::take);
        assert!(freed.is_some(), "{table} is freed twice");
    }

    fn read(&self, table: Hpa, index: usize) -> u64 {
        let word = self.word(table.as_u64() + index as u64 * 8);
        assert!(word.is_some(), "{table} is no table");
        word.unwrap_or(0)
    }

    fn write(&mut self, table: Hpa, index: usize, entry: u64) {
        assert!(self.set_word(table.as_u64() + index as u64 * 8, entry), "{table} is no table");
    }
}

impl Memory for World {
    fn allocate_run(&mut self, order: u8) -> Option<Hpa> {
        let mut state = self.state();
        // No address is used twice, so that whoever keeps one is found out.
        let start = state.pages.len().next_multiple_of(1 << order);
        state.pages.resize_with(start, || None);
        state.pages.resize_with(start + (1 << order), || Some(Box::new([0; ENTRIES])));
        Some(Hpa::new(FIRST + start as u64 * PAGE_SIZE))
    }

    fn set_snooped(&mut self, snooped: bool) {
        self.state().snooped = snooped;
    }
}

/// What a device finds at an address: where it is, and whether it may write.
pub type Found = Option<(u64, bool)>;

/// A unit as a device sees it.
pub trait Translate {
    /// What a device finds at an address, as cached or as the tables say, which is cached from then on.
    fn look(&mut self, device: u16, address: u64) -> Found;

    /// A device writes or reads there. Whether it could; else there is a fault to be read.
    fn access(&mut self, device: u16, address: u64, write: bool) -> bool;
}

/// An ACPI table with this signature: header, body, and the right sum.
#[must_use]
pub fn acpi_table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend((36 + body.len() as u32).to_le_bytes());
    table.resize(36, 0);
    table.extend(body);
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = 0_u8.wrapping_sub(sum);
    table
}
