//! A guest that makes others, by hypercalls, of a blob that came with it as a module. It has the privileges `control` and
//! `io-backend`, and no more, and owns no PCI functions. In the blob:
//!
//! | number | name | what |
//! |---|---|---|
//! | 0 | `greedy` | has a privilege that this guest has not |
//! | 1 | `served` | has a disk that this guest is to serve |
//! | 2 | `server` | has the privilege `io-backend` |
//! | 3 | `client` | has a disk that `server` is to serve |
//! | 4 and on | `many-N` | have 64 vCPUs each |

#![no_std]
#![no_main]

use caisson_abi::control::{DomainRecord, ended, state};
use caisson_abi::io::{ChannelDescription, ChannelRecord};
use caisson_abi::{CallError, Number};
use caisson_probes::control::{
    self, DATA, DATA_BYTES, await_that, domains, find, is_up, machine, make, record,
};
use caisson_probes::{check, check_eq, cpu, module, number, probe, say};
use zerocopy::{FromZeros, IntoBytes};

probe!("maker", run_probe);

/// The most bytes of a call's argument, and of those that are shown of a refusal.
const PIECE: usize = 65536;
/// The first of the domains with many vCPUs.
const FIRST_OF_MANY: u64 = 4;
const VERSION_1: u64 = 1 << 32;
const DISK: u32 = 2;

fn run_probe() {
    control::start();
    upload();
    refuses_privileges();
    does_not_grant();
    keeps_the_order();
    promises_its_heap(number("many", 0));
    check_eq!(make(Number::BlobEnd, &[]), Ok(0), "blob_end");
}

/// Brings the blob.
fn upload() {
    let (start, bytes) = module();
    check!(start.is_multiple_of(8) && bytes > 0, "a module at {:#x} of {} bytes", start, bytes);
    check_eq!(make(Number::BlobBegin, &[bytes as u64]), Ok(0), "blob_begin");
    for at in (0..bytes).step_by(PIECE) {
        let piece = PIECE.min(bytes - at);
        let written = make(Number::BlobWrite, &[at as u64, (start + at) as u64, piece as u64]);
        check_eq!(written, Ok(0), "blob_write at {:#x}", at);
    }
}

fn create(index: u64) -> Result<u64, CallError> {
    make(Number::DomainCreate, &[index, DATA.address() as u64, DATA_BYTES])
}

/// The refusal of a domain begins with this text.
fn refused(index: u64, why: &str) {
    check_eq!(create(index), Err(CallError::Refused), "domain {} of the blob", index);
    check_why(why);
}

fn check_why(why: &str) {
    for (at, &byte) in why.as_bytes().iter().enumerate() {
        let said = cpu::read8(DATA.address() + at);
        check_eq!(
            char::from(said),
            char::from(byte),
            "character {} of a refusal that is to be {:?}",
            at,
            why
        );
    }
}

fn made(index: u64) -> u64 {
    let id = create(index);
    check!(id.is_ok(), "domain {} is made: {:?}", index, id);
    id.unwrap_or(0)
}

fn of(id: u64) -> DomainRecord {
    match domains().find(|record| u64::from(record.id) == id) {
        Some(record) => record,
        None => caisson_probes::fail(file!(), line!(), format_args!("there is no domain {id}")),
    }
}

fn act(number: Number, id: u64) -> Result<u64, CallError> {
    make(number, &[id])
}

/// Ends a domain and waits until it is gone.
fn destroy(id: u64) {
    check_eq!(act(Number::DomainDestroy, id), Ok(0), "domain_destroy of {}", id);
    await_that("a domain that is gone", || of(id).state == state::GONE);
    check_eq!(of(id).ended == ended::FAILED, false, "a domain that could be made");
}

fn forget(id: u64) {
    check_eq!(act(Number::DomainForget, id), Ok(0), "domain_forget of {}", id);
}

/// Nobody gives away what he has not.
fn refuses_privileges() {
    let count = machine().domains;
    refused(0, "privileges: who makes a domain can give it no more than its own; leave out \"events\"\0");
    check_eq!(machine().domains, count, "domains after a refusal");
    // Nor has it that itself: event ports.
    check_eq!(make(Number::EventAllocate, &[1]), Err(CallError::NotPermitted), "event_allocate");
    say!("no privilege was given away");
}

/// The channel of a domain's only device.
fn channel_of(id: u64) -> u64 {
    let count = make(Number::ChannelList, &[DATA.address() as u64, DATA_BYTES]).unwrap_or(0);
    let records = (0..count as usize).map(|index| record::<ChannelRecord>(0, index));
    let mut found = records.filter(|record| u64::from(record.domain) == id);
    found.next().map_or(u64::MAX, |record| record.channel.into())
}

/// A backend's memory must be where the machine has it, so that others' has a place in it: this one's is not.
fn does_not_grant() {
    let id = made(1);
    check_eq!(of(id).state, state::WAITING, "a domain whose disk is not described");
    let channel = channel_of(id);
    let mut disk = ChannelDescription::new_zeroed();
    (disk.features, disk.device, disk.queues, disk.config_bytes) = (VERSION_1, DISK, 1, 8);
    disk.queue_sizes[0] = 8;
    for (at, byte) in disk.as_bytes().iter().enumerate() {
        cpu::write8(DATA.address() + at, *byte);
    }
    let described = make(
        Number::ChannelDescribe,
        &[channel, DATA.address() as u64, size_of::<ChannelDescription>() as u64],
    );
    check_eq!(described, Ok(0), "channel_describe");
    await_that("a domain whose disk is described", || is_up(&of(id)));
    for _ in 0..2 {
        check_eq!(make(Number::ChannelAttach, &[channel]), Err(CallError::Refused), "channel_attach");
    }
    // So nothing follows from it.
    let data = DATA.address() as u64;
    for (number, arguments) in [
        (Number::ChannelMemory, [channel, data, DATA_BYTES]),
        (Number::ChannelState, [channel, data, DATA_BYTES]),
        (Number::ChannelInterrupt, [channel, 1, 0]),
        (Number::ChannelFail, [channel, 0, 0]),
        (Number::ChannelDetach, [channel, 0, 0]),
    ] {
        check_eq!(make(number, &arguments), Err(CallError::NotConnected), "{:?} without a grant", number);
    }
    // It is let go at once: nobody holds its memory.
    destroy(id);
    forget(id);
    check_eq!(channel_of(id), u64::MAX, "the channel of one that is forgotten");
    check_eq!(make(Number::ChannelAttach, &[channel]), Err(CallError::Refused), "channel_attach to nobody");
    say!("nothing was granted");
}

/// Who serves others is not forgotten before them, and nobody is made for a server that is.
fn keeps_the_order() {
    refused(3, "backend: no domain called \"server\" serves devices: name one that does\0");
    let server = made(2);
    refused(2, "name: \"server\" is the name of a domain already");
    await_that("a server that lives", || is_up(&of(server)));
    check_eq!(act(Number::DomainForget, server), Err(CallError::Busy), "a server that lives, forgotten");
    let client = made(3);
    check_eq!(of(client).state, state::WAITING, "a client whose disk is not described");
    destroy(server);
    // Its client is told, and does not wait for ever.
    await_that("a client without its server", || of(client).state == state::GONE);
    check_eq!(of(client).ended, ended::FAILED, "how the client ended");
    check_eq!(act(Number::DomainForget, server), Err(CallError::Busy), "a server with a client, forgotten");
    // Both can come again.
    check_eq!(act(Number::DomainStart, client), Ok(0), "domain_start of the client");
    await_that("a client without its server, again", || of(client).state == state::GONE);
    forget(client);
    check_eq!(
        act(Number::DomainStart, client),
        Err(CallError::NoSuchDomain),
        "one that is forgotten, started"
    );
    // One that is gone serves: it may come again. One that is forgotten does not.
    let another = made(3);
    await_that("another client without its server", || of(another).state == state::GONE);
    forget(another);
    forget(server);
    refused(3, "backend: no domain called \"server\" serves devices");
    let again = made(2);
    await_that("a server of the same name", || is_up(&of(again)));
    check_eq!(find("server").life, 1, "the life of one that is new");
    destroy(again);
    forget(again);
    say!("the order was kept");
}

/// All that have been made live, each with all its vCPUs; for those that would be too many the heap has been promised to them.
fn promises_its_heap(many: u64) {
    check!(many >= 32, "{} domains with many vCPUs", many);
    let count = machine().domains;
    // Told one after the other, before the first one is made.
    let answers = || (FIRST_OF_MANY..FIRST_OF_MANY + many).map(create);
    let mut last = 0;
    let mut refusals = 0;
    for answer in answers() {
        match answer {
            Ok(id) => {
                check_eq!(refusals, 0, "refusals before one that is made");
                last = id;
            }
            Err(error) => {
                check_eq!(error, CallError::Refused, "one too many");
                check_why("no room: Caisson's heap has too little left: end and forget another domain\0");
                refusals += 1;
            }
        }
    }
    let more = u64::from(machine().domains - count);
    check!(more >= 2 && more + refusals == many, "{} were made and {} refused, of {}", more, refusals, many);
    check!(refusals > 0, "the heap has room for {} domains", many);
    let is_one = |record: &DomainRecord| record.vcpus == 64;
    await_that("domains that live", || domains().filter(is_one).all(|record| is_up(&record)));
    check_eq!(domains().filter(is_one).count() as u64, more, "domains with 64 vCPUs that live");
    // While they live there is no room either, and what is given back is enough for one.
    refused(FIRST_OF_MANY + many - 1, "no room: ");
    destroy(last);
    refused(FIRST_OF_MANY + many - 1, "no room: ");
    forget(last);
    let other = made(FIRST_OF_MANY + many - 1);
    await_that("one in the place of another", || is_up(&of(other)));
    let ids = || domains().filter(is_one).map(|record| u64::from(record.id));
    while let Some(id) = ids().last() {
        destroy(id);
        forget(id);
    }
    check_eq!(machine().domains, count, "domains at the end");
    say!("{} domains of 64 vCPUs were made", more);
}
