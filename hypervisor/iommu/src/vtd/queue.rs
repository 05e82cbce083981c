//! Queued invalidation (VT-d specification, section 6.5.2): descriptors in a ring, the last of each batch one that has the
//! unit write a word when all before it are done.

use caisson_types::Hpa;

use super::{Forget, register};
use crate::unit::wait;
use crate::{Error, Hardware, Memory};

/// Descriptors of 16 bytes in a page.
const DESCRIPTORS: usize = 256;
/// Types of descriptors.
const CONTEXTS: u64 = 1;
const TRANSLATIONS: u64 = 2;
const INTERRUPTS: u64 = 4;
const WAIT: u64 = 5;
/// How much: everything, or one domain.
const ALL: u64 = 1 << 4;
const DOMAIN: u64 = 2 << 4;
/// Of interrupts: one entry, not all.
const ONE_INTERRUPT: u64 = 1 << 4;
const DRAIN_WRITES: u64 = 1 << 6;
const DRAIN_READS: u64 = 1 << 7;
/// The unit is to write a word, and is to begin nothing before that.
const WRITE: u64 = 1 << 5;
const FENCE: u64 = 1 << 6;
/// In the fault status register: the unit cannot go on with the queue.
const ERRORS: u32 = 7 << 4;

/// The queue. Between calls it is empty.
pub(super) struct Queue {
    ring: Hpa,
    /// A page, in whose first word the unit writes.
    answer: Hpa,
    tail: usize,
    /// What it wrote there last.
    number: u32,
}

impl Queue {
    pub(super) fn new(memory: &mut impl Memory) -> Result<Self, Error> {
        let mut page = || memory.allocate_run(0).ok_or(Error::OutOfMemory);
        Ok(Self { ring: page()?, answer: page()?, tail: 0, number: 0 })
    }

    /// Tells the unit of it, which is off.
    pub(super) fn start(&self, hardware: &mut impl Hardware) {
        hardware.write64(register::QUEUE_TAIL, 0);
        // Descriptors of 128 bits, one page.
        hardware.write64(register::QUEUE, self.ring.as_u64());
    }

    fn push(&mut self, memory: &mut impl Memory, low: u64, high: u64) {
        memory.write(self.ring, self.tail * 2, low);
        memory.write(self.ring, self.tail * 2 + 1, high);
        self.tail = (self.tail + 1) % DESCRIPTORS;
    }

    /// Has the unit forget, and waits until it has.
    pub(super) fn forget(
        &mut self,
        hardware: &mut impl Hardware,
        memory: &mut impl Memory,
        what: Forget,
        (drain_writes, drain_reads): (bool, bool),
    ) -> Result<(), Error> {
        let drain = if drain_writes { DRAIN_WRITES } else { 0 } | if drain_reads { DRAIN_READS } else { 0 };
        match what {
            Forget::All => {
                self.push(memory, CONTEXTS | ALL, 0);
                self.push(memory, TRANSLATIONS | ALL | drain, 0);
            }
            Forget::Domain(tag) => {
                self.push(memory, TRANSLATIONS | DOMAIN | drain | u64::from(tag.0) << 16, 0);
            }
            Forget::Interrupt(None) => self.push(memory, INTERRUPTS, 0),
            Forget::Interrupt(Some(index)) => {
                self.push(memory, INTERRUPTS | ONE_INTERRUPT | u64::from(index) << 32, 0);
            }
        }
        self.number = self.number.wrapping_add(1);
        let number = self.number;
        self.push(memory, WAIT | WRITE | FENCE | u64::from(number) << 32, self.answer.as_u64());
        hardware.write64(register::QUEUE_TAIL, self.tail as u64 * 16);
        let answer = self.answer;
        let mut failed = false;
        wait(hardware, "invalidation queue", |hardware| {
            if memory.read(answer, 0) as u32 == number {
                return true;
            }
            failed = hardware.read32(register::FAULT_STATUS) & ERRORS != 0;
            failed
        })?;
        if failed { Err(Error::Stuck("an invalidation was turned down")) } else { Ok(()) }
    }
}
