//! Entry point for fuzz target and property test: a guest that makes calls as the bytes say.

use caisson_types::{Gpa, GuestMemory, SliceMemory};

use crate::{
    BATCH_ENTRY_BYTES, Call, CallError, List, Number, Operation, Privileges, answer_of, decode, hypercall,
};

/// The guest's RAM.
const RAM: usize = 4096;
/// Calls of one input.
const CALLS: usize = 64;

/// What a call is made with, as the input has it.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn u8(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// A small number, a large one, or one at an end.
    fn value(&mut self) -> u64 {
        match self.u8() {
            0 => u64::MAX,
            1 => (0..8).fold(0, |value, _| value << 8 | u64::from(self.u8())),
            kind @ 2..=3 => 1 << (self.u8() & 63) | u64::from(kind & 1),
            kind => u64::from(kind >> 4) << 8 | u64::from(self.u8()),
        }
    }

    /// A call's number, more often than not.
    fn number(&mut self) -> u64 {
        match self.u8() {
            low @ 0..=0xbf => hypercall::FIRST + u64::from(low & 0x3f),
            _ => self.value(),
        }
    }
}

/// Whether the operation is one for which a caller needs these.
fn needs(operation: Operation) -> Privileges {
    use crate::EventCall::BindSource;
    use crate::events::Source;
    match operation {
        Operation::Version => Privileges::empty(),
        Operation::Event(BindSource(Source::Channel { .. } | Source::Backend)) => {
            Privileges::EVENTS | Privileges::IO_BACKEND
        }
        Operation::Event(BindSource(_)) => Privileges::EVENTS | Privileges::CONTROL,
        Operation::Event(_) | Operation::Connect { .. } => Privileges::EVENTS,
        Operation::Channel(_) => Privileges::IO_BACKEND,
        Operation::Control(_) => Privileges::CONTROL,
    }
}

/// Makes the calls that `data` says.
///
/// # Panics
/// Where a promise is broken: a bug of Caisson's.
pub fn drive(data: &[u8]) {
    let mut source = Source(data);
    let mut ram = alloc::vec![0; RAM];
    for _ in 0..CALLS {
        if source.0.is_empty() {
            return;
        }
        let privileges = Privileges::from_bits_truncate(u32::from(source.u8()));
        let number = source.number();
        let mut arguments = [source.value(), source.value(), source.value(), source.value()];
        if number == hypercall::BATCH && source.u8() < 0xe0 {
            arguments = [(arguments[0] % RAM as u64) & !7, arguments[1] % 40, 0, 0];
        }
        match decode(number, arguments, privileges) {
            Ok(Call::One(operation)) => assert!(privileges.contains(needs(operation)), "{operation:?}"),
            Ok(Call::Batch(list)) => batch(&mut ram, &mut source, (list, arguments), privileges),
            Err(error) => refused(number, error, privileges),
        }
    }
}

/// The error is one that fits the call and the caller.
fn refused(number: u64, error: CallError, privileges: Privileges) {
    let permitted = |number: Number| privileges.contains(number.privileges());
    match (Number::of(number), error) {
        (Some(number), CallError::NotPermitted) => assert!(!permitted(number)),
        (Some(number), error) => assert!(permitted(number) && number.errors().contains(&error)),
        (None, error) => assert_eq!(error, CallError::NoSuchCall, "{number:#x}"),
    }
}

/// A batch at the address that the arguments say: it changes the answers of its entries, and nothing else.
fn batch(
    ram: &mut [u8],
    source: &mut Source<'_>,
    (list, [at, count, ..]): (List, [u64; 4]),
    privileges: Privileges,
) {
    let memory = SliceMemory::new(ram);
    for index in 0..count {
        let word = |word: u64| Gpa::new(at.wrapping_add(index * BATCH_ENTRY_BYTES + word * 8));
        let _ = memory.write_u64(word(0), source.number());
        for argument in 1..5 {
            let _ = memory.write_u64(word(argument), source.value());
        }
    }
    let mut before = alloc::vec![0; RAM];
    assert_eq!(memory.read(Gpa::new(0), &mut before), Ok(()));
    let Ok(batch) = list.read(&memory, privileges) else { return };
    let operations = batch.operations();
    assert_eq!(operations.len() as u64, count);
    for &operation in operations {
        assert!(operation.is_err() || operation.is_ok_and(|one| privileges.contains(needs(one))));
    }
    let mut done = 0;
    let result = batch.perform(&memory, |operation| {
        done += 1;
        // What it answers, to be found again.
        if operation == Operation::Version { Ok(done) } else { Err(CallError::BadPort) }
    });
    let mut expected = 0;
    for (index, operation) in (0..).zip(operations) {
        let answer = match operation {
            Ok(operation) => {
                expected += 1;
                answer_of(if *operation == Operation::Version {
                    Ok(expected)
                } else {
                    Err(CallError::BadPort)
                })
            }
            Err(error) => error.answer(),
        };
        let at = (at + index * BATCH_ENTRY_BYTES + 40) as usize;
        match before.get_mut(at..at + 8) {
            Some(bytes) => bytes.copy_from_slice(&answer.to_le_bytes()),
            None => {
                assert_eq!(result, Err(CallError::Fault));
                break;
            }
        }
    }
    assert_eq!(done, expected, "an operation was done twice or not at all");
    assert!(result == Ok(count) || result == Err(CallError::Fault));
    let mut after = alloc::vec![0; RAM];
    assert_eq!(memory.read(Gpa::new(0), &mut after), Ok(()));
    assert!(before == after, "something else was written");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_that_a_guest_calls_panics(data in proptest::collection::vec(any::<u8>(), 0..3000)) {
            super::drive(&data);
        }
    }
}
