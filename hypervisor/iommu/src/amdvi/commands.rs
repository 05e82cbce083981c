//! The ring of commands (section 2.4), each batch ended by one that has the unit write a word when it is done.

use caisson_types::Hpa;

use super::register;
use crate::unit::wait;
use crate::{Error, Hardware, Memory};

/// Commands of 16 bytes in a page.
const COMMANDS: usize = 256;
/// Of COMPLETION_WAIT: write a word; begin nothing before it is written.
const WAIT: u64 = 1 << 60;
const STORE: u64 = 1 << 0;
const FLUSH: u64 = 1 << 2;

/// INVALIDATE_IOMMU_ALL.
pub(super) const ALL: (u64, u64) = (8 << 60, 0);

/// INVALIDATE_DEVTAB_ENTRY.
pub(super) fn device(device: u16) -> (u64, u64) {
    (2 << 60 | u64::from(device), 0)
}

/// INVALIDATE_IOMMU_PAGES: all pages of a domain, and pointers to tables.
pub(super) fn pages(tag: u16) -> (u64, u64) {
    const EVERY_PAGE: u64 = 0x7fff_ffff_ffff_f000;
    const SIZE: u64 = 1;
    const POINTERS: u64 = 2;
    (3 << 60 | u64::from(tag) << 32, EVERY_PAGE | POINTERS | SIZE)
}

/// The ring. Between calls it is empty.
pub(super) struct Commands {
    ring: Hpa,
    /// A page, in whose first word the unit writes.
    answer: Hpa,
    tail: usize,
    /// What it wrote there last.
    number: u64,
}

impl Commands {
    pub(super) fn new(memory: &mut impl Memory) -> Result<Self, Error> {
        let mut page = || memory.allocate_run(0).ok_or(Error::OutOfMemory);
        Ok(Self { ring: page()?, answer: page()?, tail: 0, number: 0 })
    }

    pub(super) fn ring(&self) -> Hpa {
        self.ring
    }

    fn push(&mut self, memory: &mut impl Memory, (low, high): (u64, u64)) {
        memory.write(self.ring, self.tail * 2, low);
        memory.write(self.ring, self.tail * 2 + 1, high);
        self.tail = (self.tail + 1) % COMMANDS;
    }

    /// Runs a batch, of a few commands, and waits until they are done.
    pub(super) fn run(
        &mut self,
        hardware: &mut impl Hardware,
        memory: &mut impl Memory,
        batch: &[(u64, u64)],
    ) -> Result<(), Error> {
        for command in batch {
            self.push(memory, *command);
        }
        self.number = self.number.wrapping_add(1);
        let (number, answer) = (self.number, self.answer);
        self.push(memory, (WAIT | answer.as_u64() | FLUSH | STORE, number));
        hardware.write64(register::COMMANDS_TAIL, self.tail as u64 * 16);
        wait(hardware, "commands", |_| memory.read(answer, 0) == number)
    }
}
