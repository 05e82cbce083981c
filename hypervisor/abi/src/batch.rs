//! A list of operations in guest memory, made by one hypercall.
//!
//! An entry is 48 bytes: number, four arguments, answer, each a little-endian 64-bit word. The list is copied once and
//! decoded whole before anything is done; what the guest writes to it afterwards changes nothing. Each operation is done,
//! in the order of the list, whatever became of those before it, and its answer written to its entry. A batch in a batch is
//! refused, so that a call does at most [`BATCH_MAX`] operations.

use caisson_types::{Gpa, GuestMemory};

use crate::call::{Call, Operation, decode};
use crate::error::{CallError, CallResult, answer_of};
use crate::number::Privileges;

/// The most entries of a batch.
pub const BATCH_MAX: usize = 32;
/// Bytes of an entry.
pub const BATCH_ENTRY_BYTES: u64 = 48;
/// Where in an entry its answer is.
const ANSWER: u64 = 40;

/// Where a batch's entries are: an address that is a multiple of 8, and a number of entries up to [`BATCH_MAX`], which do
/// not go beyond the end of the address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct List {
    at: Gpa,
    count: u8,
}

impl List {
    /// `count` entries at `at`.
    ///
    /// # Errors
    /// [`CallError::Invalid`] for an address that is not a multiple of 8, [`CallError::TooBig`] for too many entries,
    /// [`CallError::Fault`] for some beyond the end of the address space.
    pub fn new(at: Gpa, count: u64) -> Result<Self, CallError> {
        if !at.as_u64().is_multiple_of(8) {
            return Err(CallError::Invalid);
        }
        let count = u8::try_from(count).ok().filter(|&count| usize::from(count) <= BATCH_MAX);
        let count = count.ok_or(CallError::TooBig)?;
        at.checked_add(u64::from(count) * BATCH_ENTRY_BYTES).ok_or(CallError::Fault)?;
        Ok(Self { at, count })
    }

    /// Where an entry is.
    fn entry(&self, index: u8) -> Result<Gpa, CallError> {
        self.at.checked_add(u64::from(index) * BATCH_ENTRY_BYTES).ok_or(CallError::Fault)
    }

    /// Copies and decodes the entries, for a caller with `privileges`.
    ///
    /// # Errors
    /// [`CallError::Fault`] where they are not in the guest's memory.
    pub fn read(self, memory: &impl GuestMemory, privileges: Privileges) -> Result<Batch, CallError> {
        let mut operations = [Err(CallError::NoSuchCall); BATCH_MAX];
        for (index, operation) in (0..self.count).zip(&mut operations) {
            let mut bytes = [0; ANSWER as usize];
            memory.read(self.entry(index)?, &mut bytes).map_err(|_| CallError::Fault)?;
            let mut words = [0; 5];
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            let [number, arguments @ ..] = words;
            *operation = match decode(number, arguments, privileges) {
                Ok(Call::One(operation)) => Ok(operation),
                Ok(Call::Batch(_)) => Err(CallError::Invalid),
                Err(error) => Err(error),
            };
        }
        Ok(Batch { list: self, operations })
    }
}

/// A batch that has been read and decoded, and not been done yet.
#[derive(Clone, Copy, Debug)]
#[must_use = "a batch does nothing before it is performed"]
pub struct Batch {
    list: List,
    operations: [Result<Operation, CallError>; BATCH_MAX],
}

impl Batch {
    /// The operations, or what is answered in their place.
    pub fn operations(&self) -> &[Result<Operation, CallError>] {
        self.operations.get(..usize::from(self.list.count)).unwrap_or_default()
    }

    /// Does the operations, one after the other, by `perform`, and writes each one's answer before the next is done.
    /// Answers how many entries there were.
    ///
    /// # Errors
    /// [`CallError::Fault`] where an answer cannot be written: what follows is then not done.
    pub fn perform(
        &self,
        memory: &impl GuestMemory,
        mut perform: impl FnMut(Operation) -> CallResult,
    ) -> CallResult {
        for (index, &operation) in (0..self.list.count).zip(&self.operations) {
            let answer = answer_of(operation.and_then(&mut perform));
            let at = self.list.entry(index)?.checked_add(ANSWER).ok_or(CallError::Fault)?;
            memory.write_u64(at, answer).map_err(|_| CallError::Fault)?;
        }
        Ok(u64::from(self.list.count))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use caisson_types::SliceMemory;

    use super::*;
    use crate::call::EventCall;
    use crate::{answer, hypercall};

    const AT: u64 = 0x100;

    fn write(memory: &SliceMemory<'_>, index: u64, words: &[u64]) {
        for (word, value) in (0..).zip(words) {
            memory.write_u64(Gpa::new(AT + index * BATCH_ENTRY_BYTES + word * 8), *value).unwrap();
        }
    }

    fn answer(memory: &SliceMemory<'_>, index: u64) -> u64 {
        memory.read_u64(Gpa::new(AT + index * BATCH_ENTRY_BYTES + ANSWER)).unwrap()
    }

    #[test]
    fn each_entry_has_its_own_answer() {
        let mut bytes = vec![0xee; 0x400];
        let memory = SliceMemory::new(&mut bytes);
        write(&memory, 0, &[hypercall::VERSION]);
        write(&memory, 1, &[hypercall::EVENT_SEND, 5]);
        write(&memory, 2, &[hypercall::EVENT_SEND, 5000]);
        write(&memory, 3, &[hypercall::BATCH, AT, 1]);
        write(&memory, 4, &[5, 0]);
        write(&memory, 5, &[hypercall::EVENT_BIND_BACKEND]);
        write(&memory, 6, &[hypercall::EVENT_CLOSE, 6]);
        let batch = List::new(Gpa::new(AT), 7).unwrap().read(&memory, Privileges::EVENTS).unwrap();
        assert_eq!(batch.operations().len(), 7);
        let mut done = Vec::new();
        let result = batch.perform(&memory, |operation| {
            done.push(operation);
            if done.len() == 2 { Err(CallError::BadPort) } else { Ok(40 + done.len() as u64) }
        });
        assert_eq!(result, Ok(7));
        let event = Operation::Event;
        let expected =
            [Operation::Version, event(EventCall::Send { port: 5 }), event(EventCall::Close { port: 6 })];
        assert_eq!(done, expected);
        let answers: Vec<_> = (0..7).map(|index| answer(&memory, index)).collect();
        let bad = CallError::BadPort.answer();
        let expected =
            [41, bad, answer::INVALID, answer::INVALID, answer::NO_SUCH_CALL, answer::NOT_PERMITTED, 43];
        assert_eq!(answers, expected);
        assert_eq!(answer(&memory, 7), u64::from_le_bytes([0xee; 8]), "nothing behind the list is written");
    }

    /// Another vCPU writes to the list while it is done.
    #[test]
    fn what_is_written_to_the_list_later_changes_nothing() {
        let mut bytes = vec![0; 0x400];
        let memory = SliceMemory::new(&mut bytes);
        for index in 0..3 {
            write(&memory, index, &[hypercall::EVENT_SEND, index]);
        }
        let batch = List::new(Gpa::new(AT), 3).unwrap().read(&memory, Privileges::EVENTS).unwrap();
        let mut ports = Vec::new();
        let result = batch.perform(&memory, |operation| {
            for index in 0..3 {
                write(&memory, index, &[hypercall::EVENT_CLOSE, 9, 9, 9, 9, 9]);
            }
            let Operation::Event(EventCall::Send { port }) = operation else { panic!("{operation:?}") };
            ports.push(port);
            Ok(0)
        });
        assert_eq!((result, ports), (Ok(3), vec![0, 1, 2]));
    }

    #[test]
    fn a_list_that_is_nowhere_is_a_fault() {
        let mut bytes = vec![0; 0x200];
        let memory = SliceMemory::new(&mut bytes);
        let read = |at, count| {
            List::new(Gpa::new(at), count)?
                .read(&memory, Privileges::all())
                .map(|batch| batch.operations().len())
        };
        assert_eq!(read(0x200 - 48, 1), Ok(1));
        assert_eq!(read(0x200 - 40, 1), Ok(1), "its answer has no room, which shows when it is written");
        assert_eq!(read(0x200 - 32, 1), Err(CallError::Fault));
        assert_eq!(read(0x200 - 48, 2), Err(CallError::Fault));
        assert_eq!(read(0, 0), Ok(0));
        assert_eq!(read(!7, 0), Ok(0));
        assert_eq!(read(!7, 1), Err(CallError::Fault));
        assert_eq!(read(4, 1), Err(CallError::Invalid));
        assert_eq!(read(0, 33), Err(CallError::TooBig));
        for count in [0x100, 0x101, 1 << 32, u64::MAX] {
            assert_eq!(read(0, count), Err(CallError::TooBig));
        }
    }

    #[test]
    fn an_answer_without_room_ends_the_batch() {
        let mut bytes = vec![0; 0x100 + 48 + 40];
        let memory = SliceMemory::new(&mut bytes);
        for index in 0..2 {
            write(&memory, index, &[hypercall::VERSION, 0, 0, 0, 0]);
        }
        let batch = List::new(Gpa::new(AT), 2).unwrap().read(&memory, Privileges::empty()).unwrap();
        assert_eq!(batch.perform(&memory, |_| Ok(1)), Err(CallError::Fault));
        assert_eq!(answer(&memory, 0), 1);
    }
}
