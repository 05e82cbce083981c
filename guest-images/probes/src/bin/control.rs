//! A guest with the privilege to control others, by hypercalls: the domains `ward` and `busy` (the probes of these names), and
//! `awaited`, whose device this one never describes.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use caisson_abi::control::{ConsoleHeader, MAX_BLOB, VcpuRecord, ended, flag, state};
use caisson_abi::events::{MASK, PENDING};
use caisson_abi::{CallError, Number};
use caisson_probes::control::{
    self, DATA, DATA_BYTES, await_that, domains, find, is_up, machine, make, record, sleep,
};
use caisson_probes::{Shared, check, check_eq, cpu, probe, say};

probe!("control", run_probe);

#[repr(C, align(4096))]
struct EventPage([AtomicU64; 512]);

/// The shared page of events, and what is typed.
static EVENTS: EventPage = EventPage([const { AtomicU64::new(0) }; 512]);
static TYPED: Shared<u64> = Shared::new(b'q' as u64);

/// Resumes as one has to: again while a vCPU is on its way.
fn resume(id: u64) {
    await_that("domain_resume", || match make(Number::DomainResume, &[id]) {
        Ok(0) => true,
        other => {
            check_eq!(other, Err(CallError::Busy), "domain_resume");
            false
        }
    });
}

/// Waits until none of a domain's vCPUs is on a CPU, or about to be.
fn await_still(id: u64) {
    await_that("vCPUs that stand still", || {
        let count = make(Number::VcpuList, &[id, DATA.address() as u64, DATA_BYTES]).unwrap_or(0);
        (0..count as usize).all(|index| record::<VcpuRecord>(0, index).activity == 0)
    });
}

/// A console, read on and on from where it was.
struct Reader {
    id: u64,
    position: u64,
    /// The last bytes.
    tail: [u8; 64],
}

impl Reader {
    /// Reads what there is; answers how many bytes.
    fn read(&mut self) -> u64 {
        let arguments = [self.id, self.position, DATA.address() as u64, DATA_BYTES];
        let Ok(count) = make(Number::ConsoleRead, &arguments) else { return 0 };
        let header: ConsoleHeader = record(0, 0);
        check!(header.first >= self.position && header.first + count <= header.end, "a console's header");
        for at in 0..count as usize {
            self.tail.rotate_left(1);
            self.tail[63] = cpu::read8(DATA.address() + size_of::<ConsoleHeader>() + at);
        }
        self.position = header.first + count;
        count
    }

    /// Waits for a text. What stands before it is not looked at again.
    fn expect(&mut self, text: &str) {
        await_that(text, || {
            self.read();
            self.tail.windows(text.len()).any(|window| window == text.as_bytes())
        });
        self.tail = [0; 64];
    }
}

/// Whether an event has come by this port since the last time.
fn take_event(port: u64) -> bool {
    let bit = 1 << (port % 64);
    EVENTS.0[PENDING + port as usize / 64].fetch_and(!bit, Ordering::SeqCst) & bit != 0
}

fn run_probe() {
    control::start();
    // Events are looked for, and interrupt nobody.
    let page = core::ptr::from_ref(&EVENTS).addr() as u64;
    check_eq!(make(Number::EventConnect, &[page, 0x50]), Ok(0), "event_connect");
    EVENTS.0[MASK..MASK + 64].iter().for_each(|word| word.store(u64::MAX, Ordering::SeqCst));
    what_is_refused();
    let ward = u64::from(find("ward").id);
    refuses_to_make(u64::from(machine().caller), ward);
    pauses(ward);
    shuts_down_and_starts(ward);
    awaited();
    busy();
    resets(ward);
    for id in [ward, u64::from(find("busy").id)] {
        check_eq!(make(Number::DomainDestroy, &[id]), Ok(0), "domain_destroy at the end");
    }
    await_that("everybody gone", || {
        domains().all(|record| record.flags & flag::CALLER != 0 || record.state == state::GONE)
    });
    for name in ["awaited", "ward"] {
        forgets(name);
    }
}

fn what_is_refused() {
    let own = u64::from(machine().caller);
    let record = domains().find(|record| u64::from(record.id) == own);
    check!(record.is_some_and(|record| record.flags & flag::CALLER != 0), "the caller's own record");
    for number in [
        Number::DomainStart,
        Number::DomainShutdown,
        Number::DomainReset,
        Number::DomainDestroy,
        Number::DomainPause,
        Number::DomainResume,
    ] {
        check_eq!(make(number, &[own]), Err(CallError::Invalid), "{:?} of the caller", number);
        for nobody in [0, 99, 0xffff] {
            check_eq!(make(number, &[nobody]), Err(CallError::NoSuchDomain), "{:?} of nobody", number);
        }
        check_eq!(make(number, &[1 << 32 | 2]), Err(CallError::Invalid), "{:?} beyond", number);
    }
    let far = 1 << 40;
    for (number, arguments) in [
        (Number::DomainList, &[far, 4096][..]),
        (Number::MachineInfo, &[far, 64]),
        (Number::VcpuList, &[own, far, 4096]),
        (Number::ConsoleRead, &[own, 0, far, 4096]),
        (Number::ConsoleWrite, &[own, far, 8]),
    ] {
        check_eq!(make(number, arguments), Err(CallError::Fault), "{:?} outside of memory", number);
    }
    // No room: counted all the same, and nothing written.
    let all = make(Number::DomainList, &[far, 0]);
    check_eq!(all, make(Number::DomainList, &[DATA.address() as u64, DATA_BYTES]), "domains that there are");
    check_eq!(all, Ok(machine().domains.into()), "the machine's domains");
}

/// A guest is paused: it stands still, and its clock with it; then it goes on.
fn pauses(ward: u64) {
    let state_port = make(Number::EventBindDomain, &[ward]).unwrap_or(0);
    let console_port = make(Number::EventBindConsole, &[ward]).unwrap_or(0);
    let mut reader = Reader { id: ward, position: 0, tail: [0; 64] };
    reader.expect("probe ward: ready\r\n");
    check!(is_up(&find("ward")), "a ward that is up");
    check_eq!(make(Number::DomainStart, &[ward]), Err(CallError::Busy), "start of one that lives");
    check_eq!(make(Number::DomainResume, &[ward]), Ok(0), "resume of one that runs");
    let _ = (take_event(state_port), take_event(console_port));
    for _ in 0..2 {
        check_eq!(make(Number::DomainPause, &[ward]), Ok(0), "domain_pause");
        check_eq!(find("ward").state, state::PAUSED, "the state of one that is paused");
    }
    check!(take_event(state_port), "an event of the pause");
    await_still(ward);
    let before = find("ward");
    // Typed while it stands still: it finds that when it goes on.
    check_eq!(make(Number::ConsoleWrite, &[ward, TYPED.address() as u64, 1]), Ok(1), "console_write");
    sleep(3000);
    let after = find("ward");
    check_eq!((after.state, after.guest_time), (before.state, before.guest_time), "one that stands still");
    check!(after.stolen_time - before.stolen_time < 100_000_000, "a pause that is not stolen time");
    reader.read();
    check_eq!(reader.read(), 0, "output of one that stands still");
    let _ = take_event(console_port);
    resume(ward);
    check!(take_event(state_port), "an event of the resumption");
    reader.expect("probe ward: typed q\r\n");
    // What was read may be faster than the event.
    await_that("an event of the console", || take_event(console_port));
    check!(is_up(&find("ward")), "a ward that is up again");
    say!("paused and resumed");
}

fn shuts_down_and_starts(ward: u64) {
    check_eq!(make(Number::DomainShutdown, &[ward]), Ok(0), "domain_shutdown");
    await_that("a shutdown", || find("ward").state == state::GONE);
    let gone = find("ward");
    check_eq!((gone.ended, gone.life), (ended::POWEROFF, 1), "how it ended");
    for number in [Number::DomainShutdown, Number::DomainReset, Number::DomainDestroy, Number::DomainPause] {
        check_eq!(make(number, &[ward]), Err(CallError::NoSuchDomain), "{:?} of one that is gone", number);
    }
    check_eq!(make(Number::VcpuList, &[ward, DATA.address() as u64, DATA_BYTES]), Ok(0), "vCPUs of nobody");
    check_eq!(make(Number::DomainStart, &[ward]), Ok(0), "domain_start");
    await_that("a start", || is_up(&find("ward")));
    check_eq!(find("ward").life, 2, "its second life");
    // Destroyed while it stands still, and pressed before that.
    check_eq!(make(Number::DomainPause, &[ward]), Ok(0), "domain_pause");
    check_eq!(make(Number::DomainShutdown, &[ward]), Ok(0), "domain_shutdown of one that is paused");
    check_eq!(make(Number::DomainDestroy, &[ward]), Ok(0), "domain_destroy of one that is paused");
    await_that("an end", || find("ward").state == state::GONE);
    check_eq!(find("ward").ended, ended::DESTROYED, "how it ended");
    // Told to start, and destroyed before it is made or just after.
    check_eq!(make(Number::DomainStart, &[ward]), Ok(0), "domain_start");
    check_eq!(make(Number::DomainDestroy, &[ward]), Ok(0), "domain_destroy of one that starts");
    await_that("an early end", || find("ward").state == state::GONE);
    check_eq!(make(Number::DomainStart, &[ward]), Ok(0), "domain_start");
    await_that("another start", || is_up(&find("ward")));
    say!("shut down, started and destroyed");
}

/// One that waits for who serves its device: this guest, which does not.
fn awaited() {
    let record = find("awaited");
    check_eq!((record.state, record.life), (state::WAITING, 0), "one that waits");
    let id = u64::from(record.id);
    for number in [Number::DomainPause, Number::DomainResume, Number::DomainShutdown, Number::DomainReset] {
        check_eq!(make(number, &[id]), Ok(0), "{:?} of one that waits", number);
    }
    check_eq!(find("awaited").state, state::WAITING, "one that waits on");
    check_eq!(make(Number::DomainDestroy, &[id]), Ok(0), "domain_destroy of one that waits");
    await_that("the end of one that waits", || find("awaited").state == state::GONE);
    check_eq!(make(Number::DomainStart, &[id]), Ok(0), "domain_start of one that will wait");
    await_that("one that waits again", || find("awaited").state == state::WAITING);
    check_eq!(make(Number::DomainDestroy, &[id]), Ok(0), "domain_destroy of one that waits again");
    await_that("its end", || find("awaited").state == state::GONE);
    say!("an awaited guest was destroyed");
}

/// One whose vCPUs never wait: they are taken off their CPUs.
fn busy() {
    let record = find("busy");
    let id = u64::from(record.id);
    check_eq!(record.state, state::RUNNING, "one that computes");
    for round in 0..5 {
        check_eq!(make(Number::DomainPause, &[id]), Ok(0), "domain_pause");
        sleep(round * 10 + 5);
        await_still(id);
        let before = find("busy");
        sleep(50);
        let after = find("busy");
        check_eq!(after.state, state::PAUSED, "one that computed");
        check_eq!(after.guest_time, before.guest_time, "the time of one that stands still");
        resume(id);
        await_that("its next steps", || find("busy").guest_time > after.guest_time);
    }
    let count = make(Number::VcpuList, &[id, DATA.address() as u64, DATA_BYTES]);
    check_eq!(count, Ok(record.vcpus.into()), "vCPUs");
    for index in 0..record.vcpus as usize {
        let vcpu: VcpuRecord = self::record(0, index);
        check!(usize::from(vcpu.index) == index && vcpu.blocked_time > 0, "a vCPU that was paused");
    }
    say!("a busy guest was paused {} times", 5);
}

/// Blobs of which nothing can be made, and domains that cannot be forgotten.
fn refuses_to_make(own: u64, ward: u64) {
    let data = DATA.address() as u64;
    let create = |index| make(Number::DomainCreate, &[index, data, DATA_BYTES]);
    for number in [Number::BlobEnd, Number::BlobWrite, Number::DomainCreate] {
        check_eq!(make(number, &[0, data, 8]), Err(CallError::NotConnected), "{:?} without a blob", number);
    }
    check_eq!(make(Number::BlobBegin, &[0]), Err(CallError::Invalid), "a blob of nothing");
    check_eq!(make(Number::BlobBegin, &[MAX_BLOB + 1]), Err(CallError::TooBig), "a blob that is too long");
    check_eq!(make(Number::BlobBegin, &[MAX_BLOB]), Err(CallError::NoMemory), "a blob without memory for it");
    let free = machine().free_memory;
    check_eq!(make(Number::BlobBegin, &[3 << 20 | 5]), Ok(0), "blob_begin");
    check_eq!(machine().free_memory, free - (3 << 20 | 0x1000), "the memory of a blob");
    for (offset, bytes) in [(3 << 20, 8), (u64::MAX, 1), (u64::MAX - 7, 8), ((3 << 20) + 5, 1)] {
        let wrong = make(Number::BlobWrite, &[offset, data, bytes]);
        check_eq!(wrong, Err(CallError::Invalid), "a piece of {} at {:#x}", bytes, offset);
    }
    check_eq!(make(Number::BlobWrite, &[0, 1 << 40, 8]), Err(CallError::Fault), "a piece of nobody's");
    check_eq!(make(Number::BlobWrite, &[3 << 20, data, 5]), Ok(0), "the last piece");
    check_eq!(make(Number::DomainCreate, &[0, 1 << 40, 64]), Err(CallError::Fault), "words for nobody");
    check_eq!(create(0), Err(CallError::Refused), "a domain of a blob that is none");
    let why: [u8; 21] = record(0, 0);
    check_eq!(&why, b"header.magic: not a C", "why not");
    check_eq!(make(Number::BlobWrite, &[0, data, 8]), Err(CallError::Busy), "a piece of a sealed blob");
    // Another takes its place, and what it had is free again.
    check_eq!(make(Number::BlobBegin, &[1]), Ok(0), "another blob");
    check_eq!(make(Number::BlobEnd, &[]), Ok(0), "blob_end");
    await_that("the blobs' memory", || machine().free_memory == free);
    check_eq!(make(Number::DomainForget, &[own]), Err(CallError::Invalid), "the caller, forgotten");
    check_eq!(make(Number::DomainForget, &[ward]), Err(CallError::Busy), "one that lives, forgotten");
    check_eq!(make(Number::DomainForget, &[99]), Err(CallError::NoSuchDomain), "nobody, forgotten");
    say!("nothing was made of nothing");
}

/// A domain that is gone is forgotten, name and number.
fn forgets(name: &str) {
    let count = machine().domains;
    let id = u64::from(find(name).id);
    check_eq!(make(Number::DomainForget, &[id]), Ok(0), "domain_forget");
    check_eq!(machine().domains, count - 1, "domains that are left");
    for number in [Number::DomainForget, Number::DomainStart, Number::VcpuList, Number::ConsoleRead] {
        let answer = make(number, &[id, DATA.address() as u64, 64, 64]);
        check_eq!(answer, Err(CallError::NoSuchDomain), "{:?} of one that is forgotten", number);
    }
    say!("one was forgotten");
}

fn resets(ward: u64) {
    let life = find("ward").life;
    for (round, paused) in [false, true].into_iter().enumerate() {
        if paused {
            check_eq!(make(Number::DomainPause, &[ward]), Ok(0), "domain_pause");
        }
        check_eq!(make(Number::DomainReset, &[ward]), Ok(0), "domain_reset");
        let next = life + round as u32 + 1;
        await_that("a new life", || {
            let record = find("ward");
            record.life == next && is_up(&record)
        });
        check_eq!(find("ward").ended, ended::RESET, "how it ended");
    }
    check_eq!(find("ward").restarts, 2, "restarts");
    say!("reset");
}
