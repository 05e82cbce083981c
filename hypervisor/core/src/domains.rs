//! The domains that there are: those of the machine's configuration, and those that were made since.
//!
//! Each has an [`Entry`] from when it is there until it is forgotten, through all its lives. Who looks one up holds it for as
//! long as he looks; so nothing waits for an entry to go, and nothing of one that went is another's.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use caisson_abi::Privileges;
use caisson_config::{Blob, Console, Domain as Record, OnExit};
use caisson_frames::MAX_DOMAINS;
use caisson_hwvirt::Backend;
use caisson_locks::{Mutex, Rank};
use caisson_machine::memory::Piece;
use caisson_smp::Place;
use caisson_stage2::Format;
use caisson_types::DomainId;

use crate::guests::Guest;
use crate::io::Side;
use crate::scheduler::Share;

/// A domain, from life to life.
pub(crate) struct Entry<B: Backend, F: Format> {
    pub(crate) id: DomainId,
    /// What the configuration says of it.
    pub(crate) facts: Facts,
    /// What exists of it now, and what is to be done for it.
    pub(crate) guest: Mutex<Guest<B, F>>,
    /// What it gets of the CPUs.
    pub(crate) share: Share,
    /// Where its chores are.
    pub(crate) chores: Place,
    /// What it has of split I/O.
    pub(crate) io: Side<B, F>,
}

impl<B: Backend, F: Format> Entry<B, F> {
    /// Its place among the domains; for those of the machine's configuration their number there.
    pub(crate) fn index(&self) -> usize {
        index_of(self.id)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.facts.name
    }
}

/// What the configuration says of a domain, as far as it is asked for beside making it.
pub(crate) struct Facts {
    pub(crate) name: Box<str>,
    /// Bytes of RAM.
    pub(crate) memory: u64,
    /// Those of them that no other domain sees.
    pub(crate) private: u64,
    pub(crate) vcpus: u32,
    pub(crate) privileges: Privileges,
    pub(crate) on_exit: OnExit,
    pub(crate) max_restarts: Option<u32>,
    /// What it writes to its serial port is shown.
    pub(crate) has_console: bool,
    /// It owns PCI functions.
    pub(crate) owns_devices: bool,
}

impl Facts {
    pub(crate) fn of(record: &Record<'_>) -> Self {
        Self {
            name: record.name().into(),
            memory: record.memory(),
            private: record.private(),
            vcpus: record.vcpus(),
            privileges: record.privileges(),
            on_exit: record.on_exit(),
            max_restarts: record.max_restarts(),
            has_console: record.console() == Console::Serial,
            owns_devices: record.owns_devices(),
        }
    }
}

/// Where a domain's record is, with the kernel and the files that it starts from.
#[derive(Clone)]
pub(crate) struct Definition {
    source: Source,
    /// Its number there.
    index: usize,
}

#[derive(Clone)]
enum Source {
    /// In the blob that Caisson was started with.
    Start(Blob<'static>),
    /// In one that came later, and was checked then.
    Later(Arc<Piece>),
}

impl Definition {
    /// A domain of the machine's configuration.
    pub(crate) fn at_start(blob: Blob<'static>, index: usize) -> Self {
        Self { source: Source::Start(blob), index }
    }

    /// A domain of a blob that has been checked.
    pub(crate) fn later(blob: Arc<Piece>, index: usize) -> Self {
        Self { source: Source::Later(blob), index }
    }

    /// The record.
    pub(crate) fn record(&self) -> Option<Record<'_>> {
        match &self.source {
            Source::Start(blob) => blob.domain(self.index),
            Source::Later(blob) => later_blob(blob).ok()?.domain(self.index),
        }
    }

    /// What is to be given back once nobody makes a domain of it any more.
    pub(crate) fn blob(&self) -> Option<&Arc<Piece>> {
        match &self.source {
            Source::Start(_) => None,
            Source::Later(blob) => Some(blob),
        }
    }

    pub(crate) fn into_blob(self) -> Option<Arc<Piece>> {
        match self.source {
            Source::Start(_) => None,
            Source::Later(blob) => Some(blob),
        }
    }
}

/// Checks a blob that came at run time.
pub(crate) fn later_blob(blob: &Piece) -> Result<Blob<'_>, caisson_config::BlobError<'_>> {
    Blob::parse_unhashed(blob.bytes())
}

/// A place for one.
type Seat<B, F> = Mutex<Option<Arc<Entry<B, F>>>>;

/// All of them, by number: 1 is the first.
pub(crate) struct Domains<B: Backend, F: Format> {
    places: Box<[Seat<B, F>]>,
    /// Places behind this one have never been used.
    end: AtomicUsize,
}

/// The place of a domain with a number.
fn index_of(id: DomainId) -> usize {
    usize::from(id.0).wrapping_sub(1)
}

/// The number of a domain at a place.
pub(crate) fn id_at(index: usize) -> DomainId {
    DomainId(u16::try_from(index + 1).unwrap_or(u16::MAX))
}

impl<B: Backend, F: Format> Domains<B, F> {
    /// None, and room for [`MAX_DOMAINS`].
    pub(crate) fn new() -> Self {
        let places = (0..MAX_DOMAINS).map(|_| Mutex::new(Rank::Domains, None)).collect();
        Self { places, end: AtomicUsize::new(0) }
    }

    /// Puts one in its place, which is free: who calls sees to that.
    pub(crate) fn add(&self, entry: Arc<Entry<B, F>>) {
        let index = entry.index();
        if let Some(place) = self.places.get(index) {
            *place.lock() = Some(entry);
            self.end.fetch_max(index + 1, Ordering::AcqRel);
        }
    }

    /// Takes one out. Who looks at it goes on to do so.
    pub(crate) fn remove(&self, id: DomainId) -> Option<Arc<Entry<B, F>>> {
        self.places.get(index_of(id))?.lock().take()
    }

    /// The domain with a number.
    pub(crate) fn get(&self, id: DomainId) -> Option<Arc<Entry<B, F>>> {
        self.places.get(index_of(id))?.lock().clone()
    }

    /// All that there are, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Arc<Entry<B, F>>> + '_ {
        let end = self.end.load(Ordering::Acquire);
        self.places.iter().take(end).filter_map(|place| place.lock().clone())
    }

    /// The domain with a name.
    pub(crate) fn named(&self, name: &str) -> Option<Arc<Entry<B, F>>> {
        self.iter().find(|entry| entry.name() == name)
    }

    /// A free number, the first behind `last`, around.
    pub(crate) fn free_id(&self, last: DomainId) -> Option<DomainId> {
        let from = usize::from(last.0) % self.places.len();
        let mut order = (from..self.places.len()).chain(0..from);
        order.find(|&index| self.places[index].lock().is_none()).map(id_at)
    }
}
