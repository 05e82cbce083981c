//! Making domains while the machine runs, and forgetting them: of configuration blobs that come piece by piece over hypercalls.
//!
//! A domain with the privilege has a blob brought, in memory of Caisson's ([`Upload`]). When it has a domain made of it for the
//! first time, the blob is sealed, and checked there as one is at the start: nobody changes what has been checked. Domains
//! that are made of it hold it until they are forgotten.
//!
//! What is left of a blob is scrubbed by domains' chores, a piece at a time, like the memory of a domain that has ended: nobody
//! waits for it.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use caisson_abi::{Buffer, CallError, CallResult, Privileges};
use caisson_config::{Blob, BlobError, Domain as Record};
use caisson_hwvirt::Backend;
use caisson_irqchip::MAX_VCPUS;
use caisson_locks::{Mutex, Rank};
use caisson_machine::memory::{self, Piece};
use caisson_machine::{cpu, percpu};
use caisson_smp::Place;
use caisson_stage2::Format;
use caisson_types::{DomainId, GuestMemory, PAGE_SIZE};

use crate::domains::{Definition, Entry, Facts, later_blob};
use crate::guests::{Guest, Live};
use crate::io::Side;
use crate::life::Phase;
use crate::scheduler::{Share, ShareError, System, Turns, serve_between_steps};

/// What a domain, its event ports and one of its vCPUs may take of the heap, and what an entity takes in the queue of each CPU: more
/// than they do. What is left beyond that is for everything else.
const HEAP_OF_DOMAIN: u64 = 48 << 10;
const HEAP_OF_PORTS: u64 = 48 << 10;
const HEAP_OF_VCPU: u64 = 8 << 10;
const HEAP_OF_ENTITY: u64 = 512;
const HEAP_LEFT: u64 = 256 << 10;

/// A blob that a domain makes others of.
pub(crate) enum Upload {
    /// It is being brought.
    Open(Piece),
    /// A domain has been made of it, or was to be.
    Sealed(Arc<Piece>),
}

/// What making a domain needs.
pub(crate) struct Creation {
    turns: Turns,
    /// The number that was given last.
    last: DomainId,
    /// What is left of blobs, to be scrubbed.
    left: Vec<Piece>,
}

impl Creation {
    pub(crate) fn new(turns: Turns, last: DomainId) -> Self {
        Self { turns, last, left: Vec::new() }
    }
}

/// Why a domain cannot be made, in words for the person who asked for it.
enum Refusal<'a> {
    /// The blob, or the domain's record in it.
    Blob(BlobError<'a>),
    /// It has the name of one that there is.
    Name(&'a str),
    /// It has a privilege that its maker has not.
    Privileges(Privileges),
    /// It would have more vCPUs than a domain can.
    Vcpus(u32),
    /// It wants more memory than is free, in bytes both.
    Memory(u64, u64),
    /// It names no pool of the machine's.
    Pool(&'a str),
    /// It names a CPU that is not in its pool.
    Cpu(&'static str, u32, &'a str),
    /// It has a reservation, and its pool's policy knows none.
    Reserves(&'a str),
    /// No CPU of the pool has room for its reservation: slice and period in microseconds.
    Overbooked(u32, u32, &'a str),
    /// Nobody of this name serves devices.
    Backend(&'a str),
    /// Caisson's own memory, or the numbers of domains.
    Full(&'static str),
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(error) => error.fmt(f),
            Self::Name(name) => {
                write!(
                    f,
                    "name: {name:?} is the name of a domain already: choose another, or forget that one"
                )
            }
            Self::Privileges(more) => {
                f.write_str("privileges: who makes a domain can give it no more than its own; leave out")?;
                more.iter_names().try_for_each(|(name, _)| {
                    // As the configuration has them.
                    write!(f, " {:?}", name.to_ascii_lowercase().replace('_', "-"))
                })
            }
            Self::Vcpus(wanted) => write!(f, "vcpus: {wanted} are more than a domain can have, {MAX_VCPUS}"),
            Self::Memory(wanted, free) => write!(
                f,
                "memory: {} MiB is more than the {} MiB that are free: give it less, or end another domain",
                wanted >> 20,
                free >> 20
            ),
            Self::Pool(name) => write!(f, "pool: {name:?} is no pool's name; name one of the machine's"),
            Self::Cpu(key, cpu, pool) => {
                write!(f, "{key}: CPU {cpu} is not in the pool {pool:?}; name CPUs of that pool")
            }
            Self::Reserves(pool) => {
                write!(
                    f,
                    "slice: the pool {pool:?} reserves nothing; leave it out, or name a pool with the policy sedf"
                )
            }
            Self::Overbooked(slice, period, pool) => write!(
                f,
                "slice: no CPU of the pool {pool:?} has {slice} us in {period} left for each vCPU: reserve less"
            ),
            Self::Backend("") => {
                f.write_str("backend: who makes the domain serves no devices: name a domain that does")
            }
            Self::Backend(name) => {
                write!(f, "backend: no domain called {name:?} serves devices: name one that does")
            }
            Self::Full(what) => write!(f, "no room: {what}: end and forget another domain"),
        }
    }
}

impl<'a> From<BlobError<'a>> for Refusal<'a> {
    fn from(error: BlobError<'a>) -> Self {
        Self::Blob(error)
    }
}

impl<B: Backend, F: Format> Live<B, F> {
    /// Puts a piece of the blob there.
    pub(crate) fn blob_write(&self, offset: u64, from: Buffer) -> CallResult {
        let mut upload = self.upload.lock();
        let piece = match upload.as_mut() {
            None => return Err(CallError::NotConnected),
            Some(Upload::Sealed(_)) => return Err(CallError::Busy),
            Some(Upload::Open(piece)) => piece,
        };
        let start = usize::try_from(offset).map_err(|_| CallError::Invalid)?;
        let end = start.checked_add(from.bytes as usize).ok_or(CallError::Invalid)?;
        let into = piece.bytes_mut().get_mut(start..end).ok_or(CallError::Invalid)?;
        self.domain.memory.read(from.at, into).map_err(|_| CallError::Fault)?;
        Ok(0)
    }

    /// The blob, which does not change from here on.
    fn sealed(&self) -> Result<Arc<Piece>, CallError> {
        let mut upload = self.upload.lock();
        let piece = match upload.take().ok_or(CallError::NotConnected)? {
            Upload::Open(piece) => Arc::new(piece),
            Upload::Sealed(piece) => piece,
        };
        *upload = Some(Upload::Sealed(piece.clone()));
        Ok(piece)
    }
}

impl<B: Backend, F: Format> System<B, F> {
    /// Takes memory for a blob of `caller`'s.
    pub(crate) fn blob_begin(&self, caller: &Live<B, F>, size: u64) -> CallResult {
        self.give_up_blob(caller);
        let piece = Piece::zeroed(size).ok_or(CallError::NoMemory)?;
        let old = caller.upload.lock().replace(Upload::Open(piece));
        self.leave(caller, old);
        Ok(0)
    }

    /// `caller` makes no more domains of its blob.
    pub(crate) fn blob_end(&self, caller: &Live<B, F>) -> CallResult {
        if self.give_up_blob(caller) { Ok(0) } else { Err(CallError::NotConnected) }
    }

    /// Takes its blob from a domain, if it has one. Whether it had.
    pub(crate) fn give_up_blob(&self, caller: &Live<B, F>) -> bool {
        let old = caller.upload.lock().take();
        let had = old.is_some();
        self.leave(caller, old);
        had
    }

    fn leave(&self, caller: &Live<B, F>, upload: Option<Upload>) {
        match upload {
            None => {}
            Some(Upload::Open(piece)) => self.discard(caller, Arc::new(piece)),
            Some(Upload::Sealed(piece)) => self.discard(caller, piece),
        }
    }

    /// One less holds a blob. What nobody holds is left to the chores.
    fn discard(&self, caller: &Live<B, F>, blob: Arc<Piece>) {
        if let Some(piece) = Arc::into_inner(blob) {
            self.creation.lock().left.push(piece);
            self.wake(&caller.entry.chores);
        }
    }

    /// Scrubs what is left of blobs until the TSC is at `until`, or something else wants this CPU: a part of somebody's chores.
    /// Whether all is done.
    pub(crate) fn scrub_blobs(&self, until: u64) -> bool {
        loop {
            let Some(mut piece) = self.creation.lock().left.pop() else { return true };
            while !piece.scrub_step() {
                serve_between_steps();
                if cpu::tsc() >= until || percpu::current().pending().look() != 0 {
                    self.creation.lock().left.push(piece);
                    return false;
                }
            }
        }
    }

    /// Bytes of memory that blobs have, or what is left of them.
    pub(crate) fn kept_for_blobs(&self) -> u64 {
        let mut blobs: Vec<Arc<Piece>> = Vec::new();
        for entry in self.domains.iter() {
            let guest = entry.guest.lock();
            blobs.extend(guest.definition.as_ref().and_then(Definition::blob).cloned());
        }
        blobs.sort_unstable_by_key(Arc::as_ptr);
        blobs.dedup_by_key(|blob| Arc::as_ptr(blob));
        let left: u64 = self.creation.lock().left.iter().map(Piece::footprint).sum();
        left + blobs.iter().map(|blob| blob.footprint()).sum::<u64>()
    }

    /// Makes the domain with a number in the caller's blob.
    pub(crate) fn create(&self, caller: &Live<B, F>, index: u32, into: Buffer) -> CallResult {
        let blob = caller.sealed()?;
        let made =
            self.create_of(caller, &blob, index as usize).map_err(|refusal| refusal.map(|why| line(&why)));
        self.discard(caller, blob);
        match made {
            Ok(id) => Ok(id.0.into()),
            Err(None) => Err(CallError::Invalid),
            Err(Some(mut why)) => {
                why.push('\0');
                let bytes = why.as_bytes().get(..into.bytes as usize).unwrap_or(why.as_bytes());
                caller.domain.memory.write(into.at, bytes).map_err(|_| CallError::Fault)?;
                Err(CallError::Refused)
            }
        }
    }

    /// The number of the domain that was made. `Err(None)`: the blob has no such domain.
    fn create_of<'a>(
        &self,
        caller: &Live<B, F>,
        piece: &'a Arc<Piece>,
        index: usize,
    ) -> Result<DomainId, Option<Refusal<'a>>> {
        let blob = later_blob(piece).map_err(Refusal::from)?;
        let record = blob.domain(index).ok_or(None)?;
        blob.check_later(index).map_err(Refusal::from)?;
        let facts = Facts::of(&record);
        let more = facts.privileges.difference(caller.entry.facts.privileges);
        if !more.is_empty() {
            return Err(Some(Refusal::Privileges(more)));
        }
        if facts.vcpus as usize > MAX_VCPUS {
            return Err(Some(Refusal::Vcpus(facts.vcpus)));
        }
        let mut creation = self.creation.lock();
        // None of them is forgotten from here on.
        let backends = self.backends(caller, &blob, &record)?;
        if self.domains.named(record.name()).is_some() {
            return Err(Some(Refusal::Name(record.name())));
        }
        self.check_room(&facts)?;
        let id =
            self.domains.free_id(creation.last).ok_or(Refusal::Full("all numbers of domains are in use"))?;
        let share = self.later_share(&blob, &record, &mut creation.turns)?;
        let io = Side::new(&record, id, self.maker.own_devices(&record), &backends);
        let phase = if backends.is_empty() { Phase::Restart(0) } else { Phase::Awaited };
        let entry = self.welcome(Entry {
            id,
            facts,
            guest: Mutex::new(Rank::Guest, Guest::new(Definition::later(piece.clone(), index), phase)),
            share,
            chores: Place::new(0),
            io,
        });
        creation.last = id;
        // The caller lives, so that the last guest has not gone.
        self.expect_another();
        drop(creation);
        log::info!("guest {}: made by guest {}", entry.name(), caller.entry.name());
        self.io.tell_all(self, &entry);
        self.enrol_chores(&entry);
        Ok(id)
    }

    /// Who serves each of a domain's devices.
    fn backends<'a>(
        &self,
        caller: &Live<B, F>,
        blob: &Blob<'a>,
        record: &Record<'a>,
    ) -> Result<Vec<DomainId>, Refusal<'a>> {
        let of = |name: &'a str| {
            let entry = if name.is_empty() { Some(caller.entry.clone()) } else { self.domains.named(name) };
            let serves = |entry: &Arc<Entry<B, F>>| entry.facts.privileges.contains(Privileges::IO_BACKEND);
            entry.filter(serves).map(|entry| entry.id).ok_or(Refusal::Backend(name))
        };
        record.virtio_devices().map(|device| of(blob.backend_name(device.backend))).collect()
    }

    /// Whether a domain's memory is free, and what Caisson itself needs for it in each of its lives.
    fn check_room<'a>(&self, facts: &Facts) -> Result<(), Refusal<'a>> {
        let free = memory::frames().free_frames() * PAGE_SIZE;
        if facts.memory > free {
            return Err(Refusal::Memory(facts.memory, free));
        }
        // Every domain there is may live, whatever it does now.
        let promised: u64 = self.domains.iter().map(|entry| self.heap_of(&entry.facts)).sum();
        if promised + self.heap_of(facts) + HEAP_LEFT > self.heap_for_guests() {
            return Err(Refusal::Full("Caisson's heap has too little left"));
        }
        Ok(())
    }

    /// The most that a domain takes of the heap, in bytes.
    fn heap_of(&self, facts: &Facts) -> u64 {
        let vcpus = u64::from(facts.vcpus);
        let ports = if facts.privileges.contains(Privileges::EVENTS) { HEAP_OF_PORTS } else { 0 };
        let entities = HEAP_OF_ENTITY * self.cpus.len() as u64 * (vcpus + 1);
        HEAP_OF_DOMAIN + ports + HEAP_OF_VCPU * vcpus + entities
    }

    fn later_share<'a>(
        &self,
        blob: &Blob<'a>,
        record: &Record<'a>,
        turns: &mut Turns,
    ) -> Result<Share, Refusal<'a>> {
        let pool = blob.pools().nth(record.pool()).map_or("", |pool| pool.name);
        self.share_later(record, pool, turns).map_err(|error| match error {
            ShareError::Pool => Refusal::Pool(pool),
            ShareError::Cpu(key, cpu) => Refusal::Cpu(key, cpu, pool),
            ShareError::Reserves => Refusal::Reserves(pool),
            ShareError::Overbooked(slice, period) => Refusal::Overbooked(slice, period, pool),
        })
    }

    /// Forgets a domain that is gone.
    pub(crate) fn forget(&self, caller: &Live<B, F>, entry: &Entry<B, F>) -> Result<(), CallError> {
        let creation = self.creation.lock();
        if entry.facts.owns_devices {
            // They would be nobody's.
            return Err(CallError::Invalid);
        }
        if self.domains.iter().any(|other| other.io.is_served_by(entry.id)) {
            return Err(CallError::Busy);
        }
        let mut guest = entry.guest.lock();
        if !guest.is_gone() || guest.lives.is_lost() {
            return Err(CallError::Busy);
        }
        let definition = guest.definition.take().ok_or(CallError::NoSuchDomain)?;
        drop(guest);
        self.dismiss(entry);
        drop(creation);
        log::info!("guest {}: forgotten", entry.name());
        if let Some(blob) = definition.into_blob() {
            self.discard(caller, blob);
        }
        self.io.tell_state(self, entry);
        Ok(())
    }
}

/// One line of text.
fn line(why: &Refusal<'_>) -> String {
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ = write!(text, "{why}");
    text
}
