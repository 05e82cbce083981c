//! Who runs where: every CPU has a run queue of its own ([`queue`]) and takes from it ([`run`]) or sleeps ([`idle`]); who waits is put there by
//! whoever wakes it ([`wake`]), and a CPU that has nothing to do, or less urgent things than another, takes work over
//! ([`balance`]). Beside vCPUs the queues hold the guests' [chores](crate::life): their end and their new start.
//!
//! # Locks
//!
//! There is one lock for each queue, held for one decision at a time, and none for all. A CPU holds one of them at most.
//! While a vCPU runs no lock is held but that of its own state, for which nobody else asks before it has left the CPU.
//!
//! What makes no wake-up lost, nobody wait beside an idle CPU, and an entity leave its queue exactly once is in
//! [`caisson_smp`], which loom checks.

mod balance;
mod contract;
mod grow;
mod host;
mod idle;
mod queue;
mod run;
mod shoot;
mod wake;
mod watch;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use caisson_accounts::CpuAccount;
use caisson_config::{Blob, DeviceBackend, VirtioDevice};
use caisson_console::Top;
use caisson_frames::Owner;
use caisson_hwvirt::Backend;
use caisson_locks::{Mutex, MutexGuard, Rank};
use caisson_machine::clock::{self, Clock};
use caisson_machine::memory::Taken;
use caisson_machine::percpu::{self, pending};
use caisson_machine::power::{self, RunResult};
use caisson_machine::{cpu, memory};
use caisson_sched::PolicyKind;
use caisson_smp::{Cpus as _, Place};
use caisson_stage2::Format;
use caisson_types::{DomainId, PAGE_SIZE};
use spin::Once;

use crate::console;
use crate::create::Creation;
use crate::dirty::Meter;
use crate::domains::{Definition, Domains, Entry, Facts, id_at};
use crate::drill::Drill;
use crate::functions::Routes;
use crate::guests::{Guest, Live};
use crate::io::{Io, Side};
use crate::life::Phase;
use crate::maker::Maker;
use crate::trace;
use contract::Pool;
pub(crate) use contract::{Share, ShareError, Turns};
pub(crate) use host::Machine;
use queue::Queue;
pub(crate) use queue::Work;
pub(crate) use shoot::serve_between_steps;

/// A physical CPU, as the others see it.
pub(crate) struct Cpu<B: Backend, F: Format> {
    pub(crate) index: u32,
    /// The number of its pool.
    pool: usize,
    queue: Mutex<Queue<B, F>>,
    /// Where its time goes.
    pub(crate) account: CpuAccount,
}

impl<B: Backend, F: Format> Cpu<B, F> {
    /// `None` for a CPU of no pool, of which there are none.
    fn new(index: u32, pools: &[Pool]) -> Option<Self> {
        let pool = pools.iter().position(|pool| pool.shared.members().contains(&index))?;
        let queue = Queue::new(&pools[pool], index);
        Some(Self { index, pool, queue: Mutex::new(Rank::Queue, queue), account: CpuAccount::new() })
    }

    #[cfg_attr(debug_assertions, track_caller)]
    fn lock(&self) -> MutexGuard<'_, Queue<B, F>> {
        self.queue.lock()
    }
}

/// Everything that runs guests.
pub(crate) struct System<B: Backend, F: Format> {
    pub(crate) backend: &'static B,
    pub(crate) maker: Maker,
    pub(crate) clock: &'static Clock,
    pub(crate) cpus: Box<[Cpu<B, F>]>,
    /// The CPUs that share work.
    pools: Box<[Pool]>,
    /// The domains that there are.
    pub(crate) domains: Domains<B, F>,
    /// What making another one needs.
    pub(crate) creation: Mutex<Creation>,
    /// Where functions' interrupts go.
    pub(crate) routes: Routes,
    /// Devices of guests that other domains serve, and event ports.
    pub(crate) io: Io<B, F>,
    /// What can be in the queues: every vCPU, and a chore for each guest.
    entities: AtomicUsize,
    /// Guests that live, or will.
    living: AtomicUsize,
    /// Some guest ended as it should not.
    failed: AtomicBool,
    drill: Once<Drill>,
    /// How often it is told what guests write.
    pub(crate) meter: Once<Meter>,
    drilled: AtomicBool,
    /// KiB of memory that were free before the first guest was made, when all CPUs had what they need.
    free_before: AtomicU64,
    /// What the table showed last.
    pub(crate) top: Mutex<Top>,
    /// Bytes of the heap that were in use before anything was made for guests.
    heap_before: u64,
}

/// KiB of memory that no one owns.
fn free_kib() -> u64 {
    memory::frames().free_frames() * (PAGE_SIZE >> 10)
}

/// Bytes of memory that `owner` has.
fn frame_bytes(owner: Owner) -> u64 {
    memory::frames().owned_by(owner) * PAGE_SIZE
}

/// Says what Caisson has taken of memory before the first guest is made.
fn say_taken() {
    let Some(Taken { image, tables, records }) = memory::taken() else { return };
    let (heap, used) = (memory::heap_bytes(), memory::heap_used());
    let frames = frame_bytes(Owner::Hypervisor).saturating_sub(heap);
    log::debug!(
        "Caisson's memory in bytes: image {image}, page tables {tables}, records of frames {records}, frames {frames}, \
         heap {heap}, of which used {used}"
    );
}

impl<B: Backend, F: Format> System<B, F> {
    /// Room on all CPUs that have come up for every guest of the configuration, none of which exists yet.
    pub(crate) fn new(backend: &'static B, maker: Maker, blob: &Blob<'static>) -> Self {
        let heap_before = memory::heap_used();
        let clock = clock::get();
        let count = percpu::count();
        let pools = Pool::all(blob, count, clock);
        let mut turns = Turns::new(&pools);
        let shares = Share::all(blob, &pools, &mut turns, count, clock, cpu::tsc());
        let cpus: Box<[Cpu<B, F>]> = (0..count).filter_map(|index| Cpu::new(index, &pools)).collect();
        // At once, so that the queues' memory is taken once.
        let entities = blob.domains().map(|record| record.vcpus() as usize + 1).sum();
        cpus.iter().for_each(|cpu| cpu.lock().grow(entities, shares.len()));
        let routes = Routes::new(maker.devices.as_ref(), maker.dma, id_at);
        let system = Self {
            backend,
            maker,
            clock,
            cpus,
            pools,
            entities: AtomicUsize::new(0),
            living: AtomicUsize::new(shares.len()),
            routes,
            io: Io::new(),
            domains: Domains::new(),
            creation: Mutex::new(Rank::Creation, Creation::new(turns, id_at(shares.len().wrapping_sub(1)))),
            failed: AtomicBool::new(false),
            drill: Once::new(),
            meter: Once::new(),
            drilled: AtomicBool::new(false),
            free_before: AtomicU64::new(0),
            top: Mutex::new(Rank::Table, Top::new()),
            heap_before,
        };
        for ((index, record), share) in blob.domains().enumerate().zip(shares) {
            let definition = Definition::at_start(*blob, index);
            let backend = |device: VirtioDevice<'_>| match device.backend {
                DeviceBackend::Domain(backend) => id_at(backend),
                // `check_complete` has seen that there is none.
                DeviceBackend::Named(_) => DomainId(0),
            };
            let backends: Vec<_> = record.virtio_devices().map(backend).collect();
            let io = Side::new(&record, id_at(index), system.maker.own_devices(&record), &backends);
            system.welcome(Entry {
                id: id_at(index),
                facts: Facts::of(&record),
                guest: Mutex::new(Rank::Guest, Guest::new(definition, Phase::Living)),
                share,
                chores: Place::new(0),
                io,
            });
        }
        system
    }

    /// Makes every guest, and puts their vCPUs into the queues. `Err` has said which could not be made.
    pub(crate) fn start(&self) -> Result<(), ()> {
        self.free_before.store(free_kib(), Ordering::Relaxed);
        say_taken();
        for entry in self.domains.iter() {
            let mut guest = entry.guest.lock();
            if entry.io.is_awaited() {
                log::info!("guest {}: waits for the domain that serves its devices", entry.name());
                guest.phase = Phase::Awaited;
                continue;
            }
            let Some(record) = guest.definition.as_ref().and_then(Definition::record) else { continue };
            let before = (frame_bytes(Owner::Free), memory::heap_used());
            match self.maker.make(self.backend, &entry, &record, Vec::new()) {
                Ok(live) => {
                    let heap = memory::heap_used().saturating_sub(before.1);
                    let frames = before.0.saturating_sub(frame_bytes(Owner::Free));
                    let frames = frames.saturating_sub(live.domain.memory.bytes());
                    log::debug!(
                        "guest {}: {frames} bytes of frames and {heap} of the heap beside its RAM",
                        entry.name()
                    );
                    guest.started(Arc::new(live), 0);
                }
                Err(error) => {
                    let index = entry.index();
                    log::error!("cannot start: config: domain[{index}] ({}): {error}", entry.name());
                    return Err(());
                }
            }
            guest.say_start(&entry.facts);
        }
        self.say_cost();
        for entry in self.domains.iter() {
            self.enrol_guest(&entry);
        }
        Ok(())
    }

    /// Says what the guests take of memory beside their RAM, as they are made.
    fn say_cost(&self) {
        let made = || self.domains.iter().filter_map(|entry| entry.guest.lock().live.clone());
        let guests = made().count() as u64;
        let ram: u64 = made().map(|live| live.domain.memory.bytes() >> 10).sum();
        let frames = self.free_before.load(Ordering::Relaxed) - free_kib();
        let heap = (memory::heap_used() - self.heap_before) >> 10;
        let beside = (frames + heap).saturating_sub(ram);
        log::info!(
            "the guests take {beside} KiB beside their RAM, {} KiB each of {guests}",
            beside.div_ceil(guests.max(1))
        );
    }

    /// A `drill` happens when the first guest has run for the first time.
    pub(crate) fn plan(&self, drill: Option<Drill>) {
        if let Some(drill) = drill {
            self.drill.call_once(|| drill);
        }
    }

    /// It is told what the guests write, as often as the meter says. Their chores do that.
    pub(crate) fn tell_writes(&self, meter: Option<Meter>) {
        if let Some(meter) = meter {
            self.meter.call_once(|| meter);
            self.domains.iter().for_each(|entry| self.wake(&entry.chores));
        }
    }

    /// Crashes, if that was asked for.
    fn drill(&self) {
        if let Some(drill) = self.drill.get()
            && !self.drilled.swap(true, Ordering::Relaxed)
        {
            drill.crash();
        }
    }

    /// What the CPUs of a pool show each other.
    fn shown(&self, pool: usize) -> &caisson_sched::Pool {
        &self.pools[pool].shared
    }

    /// Gives every pool the other policy, while everything runs. One whose reservations would not fit keeps what it has.
    pub(crate) fn switch_policies(&self) {
        for (index, pool) in self.pools.iter().enumerate() {
            let (old, new) = match pool.policy() {
                PolicyKind::Bvt => (PolicyKind::Bvt, PolicyKind::Sedf),
                PolicyKind::Sedf => (PolicyKind::Sedf, PolicyKind::Bvt),
            };
            // Nobody is moved away from where a reservation was admitted, from here on.
            pool.set_policy(new);
            let members = || self.cpus.iter().filter(|cpu| cpu.pool == index);
            if members().all(|cpu| cpu.lock().switch_policy(new, cpu::tsc())) {
                log::info!("pool {index}: {new:?} from now on");
                // Who runs now was given its turn by the other policy.
                members().for_each(|cpu| self.kick(cpu.index, pending::RESCHEDULE));
            } else {
                pool.set_policy(old);
                members().for_each(|cpu| {
                    // It fitted before.
                    let _ = cpu.lock().switch_policy(old, cpu::tsc());
                });
                log::warn!(
                    "pool {index}: stays with {old:?}: its reservations do not fit where its vCPUs are"
                );
            }
        }
    }

    /// Bytes of the heap that there are for guests.
    pub(crate) fn heap_for_guests(&self) -> u64 {
        memory::heap_bytes().saturating_sub(self.heap_before)
    }

    /// What belongs to this CPU.
    pub(crate) fn this(&self) -> &Cpu<B, F> {
        &self.cpus[percpu::current().index() as usize]
    }

    /// A guest that was gone is to live again.
    pub(crate) fn expect_another(&self) {
        self.living.fetch_add(1, Ordering::AcqRel);
    }

    /// A guest is gone for good. After the last one the machine is turned off.
    pub(crate) fn gone(&self, entry: &Entry<B, F>, well: bool) {
        // In this order: once it is gone, it can be told to start.
        self.io.gone(self, entry);
        entry.guest.lock().phase = Phase::Gone;
        self.io.tell_state(self, entry);
        self.io.disappoint(self, entry.id);
        self.failed.fetch_or(!well, Ordering::Relaxed);
        if self.living.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.account();
            self.say_cpu_times();
            log::info!("all guests have ended");
            console::drain();
            trace::write_all(self.names());
            let failed = self.failed.load(Ordering::Relaxed);
            power::finish(if failed { RunResult::GuestFailed } else { RunResult::Clean });
        }
    }

    /// Says whether all that was free before the guests were made is free again.
    fn account(&self) {
        // What domains could still be made of is nobody's loss.
        let free = free_kib() + (self.kept_for_blobs() >> 10);
        let before = self.free_before.load(Ordering::Relaxed);
        let lost = self.domains.iter().filter(|entry| entry.guest.lock().lives.is_lost());
        let lost: u64 = lost.map(|entry| frame_bytes(Owner::Domain(entry.id)) >> 10).sum();
        if free == before {
            log::info!("memory free at the end: {free} KiB of {before} KiB");
        } else if lost > 0 {
            // And tables of the IOMMU.
            log::warn!(
                "memory free at the end: {free} KiB of {before} KiB: guests have lost {lost} KiB to devices"
            );
        } else {
            log::warn!("memory free at the end: {free} KiB of {before} KiB: guests left some behind, a bug");
        }
    }

    /// The guest's living part, if it has one.
    pub(crate) fn live(&self, id: DomainId) -> Option<Arc<Live<B, F>>> {
        self.domains.get(id)?.guest.lock().live.clone()
    }
}
