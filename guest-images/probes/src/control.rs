//! Hypercalls about domains, and what they write.

use caisson_abi::control::{DomainRecord, MachineRecord, state};
use caisson_abi::{CallError, Number};
use zerocopy::FromBytes;

use crate::apic::{self, DEADLINE, TSC_DEADLINE, register::LVT_TIMER};
use crate::hypercall::call;
use crate::{Shared, check, check_eq, cpu, time, trap};

const VECTOR: u8 = 0x40;
/// How long others may take for what they are told.
const PATIENCE_MS: u64 = 60_000;

/// A page of words.
#[repr(C, align(4096))]
#[derive(Clone, Copy, Debug)]
pub struct Page([u64; 512]);

/// What calls write into.
pub static DATA: Shared<[Page; 5]> = Shared::new([Page([0; 512]); 5]);
/// How much that is.
pub const DATA_BYTES: u64 = 5 * 4096;

/// To be called first: [`sleep`] needs the timer.
pub fn start() {
    trap::handle(VECTOR, apic::count_and_eoi as trap::Handler);
    apic::enable_x2();
    apic::write(LVT_TIMER, DEADLINE | u32::from(VECTOR));
}

/// Makes a call.
///
/// # Errors
/// What it answers.
pub fn make(number: Number, arguments: &[u64]) -> Result<u64, CallError> {
    let mut all = [0; 4];
    all.iter_mut().zip(arguments).for_each(|(to, from)| *to = *from);
    let answer = call(number.value(), all);
    u64::try_from(answer).map_err(|_| match CallError::of_answer(answer as u64) {
        Some(error) => error,
        None => crate::fail(file!(), line!(), format_args!("{number:?} answers {answer:#x}")),
    })
}

/// The record at `index` of those that a call has written behind `offset` bytes.
#[must_use]
pub fn record<T: FromBytes>(offset: usize, index: usize) -> T {
    let mut bytes = [0; 128];
    let bytes = &mut bytes[..size_of::<T>()];
    let from = DATA.address() + offset + index * size_of::<T>();
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = cpu::read8(from + at);
    }
    match T::read_from_bytes(bytes) {
        Ok(record) => record,
        Err(_) => crate::fail(file!(), line!(), format_args!("a record of {} bytes", size_of::<T>())),
    }
}

/// All domains.
pub fn domains() -> impl Iterator<Item = DomainRecord> {
    let count = make(Number::DomainList, &[DATA.address() as u64, DATA_BYTES]);
    (0..count.unwrap_or(0) as usize).map(|index| record(0, index))
}

/// The domain of a name, which there is.
#[must_use]
pub fn find(name: &str) -> DomainRecord {
    let is = |record: &DomainRecord| {
        let end = record.name.iter().position(|&byte| byte == 0).unwrap_or(record.name.len());
        record.name[..end] == *name.as_bytes()
    };
    match domains().find(is) {
        Some(record) => record,
        None => crate::fail(file!(), line!(), format_args!("there is no domain {name}")),
    }
}

/// The machine as a whole.
#[must_use]
pub fn machine() -> MachineRecord {
    check_eq!(make(Number::MachineInfo, &[DATA.address() as u64, DATA_BYTES]), Ok(64), "machine_info");
    record(0, 0)
}

/// Sleeps, by the timer.
pub fn sleep(milliseconds: u64) {
    cpu::wrmsr(TSC_DEADLINE, cpu::tsc() + time::tsc_hz() * milliseconds / 1000);
    cpu::sti_hlt();
    cpu::cli();
}

/// Waits until `condition` holds, a while.
pub fn await_that(what: &str, mut condition: impl FnMut() -> bool) {
    let end = cpu::tsc() + time::tsc_hz() / 1000 * PATIENCE_MS;
    while !condition() {
        check!(cpu::tsc() < end, "{}", what);
        sleep(5);
    }
}

/// Whether a domain lives, and does not stand still.
#[must_use]
pub fn is_up(record: &DomainRecord) -> bool {
    matches!(record.state, state::RUNNING | state::BLOCKED)
}
