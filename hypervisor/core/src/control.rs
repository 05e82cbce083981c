//! What a domain that controls others asks for: it has been decoded, and its caller's privileges looked at.
//!
//! # Standing still
//!
//! A domain is paused by a word that each of its vCPUs looks at before its turn ([`Pause`]). One that runs is told to look; one
//! that waits or sleeps stays where it is. One that wakes meanwhile, by an interrupt or by its timer, rests at once: a mailbox
//! wakes once until it is looked at, so that a paused domain costs no more than one such turn for each vCPU.
//!
//! Its clock stands still from the moment when the last of its vCPUs left its guest: each one notes that under its own lock,
//! and who has the domain go on has seen all those locks open. A vCPU that runs on has passed the look before the word was
//! said; its lock is closed then, or it has not entered its guest yet.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use caisson_abi::control::{
    Action, ConsoleHeader, ControlCall, DomainRecord, MachineRecord, VcpuRecord, ended, flag, state,
};
use caisson_abi::{Buffer, CallError, CallResult};
use caisson_accounts::Activity;
use caisson_console::{HISTORY_BYTES, VcpuSnapshot};
use caisson_domain::Ended;
use caisson_hwvirt::Backend;
use caisson_machine::{cpu, memory};
use caisson_smp as smp;
use caisson_stage2::Format;
use caisson_types::{DomainId, GuestMemory, PAGE_SIZE};
use zerocopy::IntoBytes;

use crate::console;
use crate::domains::Entry;
use crate::guests::{Guest, Live};
use crate::life::Phase;
use crate::scheduler::{Machine, System};

/// Whether a domain stands still.
pub(crate) struct Pause {
    is_on: AtomicBool,
    /// The last TSC at which it was paused, or one of its vCPUs left its guest since.
    stopped: AtomicU64,
}

impl Pause {
    pub(crate) const fn new() -> Self {
        Self { is_on: AtomicBool::new(false), stopped: AtomicU64::new(0) }
    }

    /// To be looked at before each turn.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Acquire)
    }

    /// A vCPU has left its guest, and is still locked.
    #[inline]
    pub(crate) fn note_stop(&self) {
        if self.is_on() {
            self.stopped.fetch_max(cpu::tsc(), Ordering::AcqRel);
        }
    }
}

/// Writes records into the caller's memory, as many as there is room for, and counts them all.
struct Records<'a, B: Backend, F: Format> {
    caller: &'a Live<B, F>,
    into: Buffer,
    count: u64,
}

impl<B: Backend, F: Format> Records<'_, B, F> {
    fn add<T: IntoBytes + zerocopy::Immutable>(&mut self, record: &T) -> Result<(), CallError> {
        let bytes = record.as_bytes();
        let offset = self.count * bytes.len() as u64;
        self.count += 1;
        if offset + bytes.len() as u64 > u64::from(self.into.bytes) {
            return Ok(());
        }
        let at = self.into.at.checked_add(offset).ok_or(CallError::Fault)?;
        self.caller.domain.memory.write(at, bytes).map_err(|_| CallError::Fault)
    }
}

impl<B: Backend, F: Format> System<B, F> {
    /// Does what the domain `caller` asks for, on one of its vCPUs.
    pub(crate) fn control(&self, caller: &Live<B, F>, call: ControlCall) -> CallResult {
        let records = |into| Records { caller, into, count: 0 };
        match call {
            ControlCall::Machine { into } => self.machine_info(caller, into),
            ControlCall::List { into } => self.list(records(into)),
            ControlCall::Vcpus { domain, into } => self.vcpus(&*self.find(domain)?, records(into)),
            ControlCall::Do { domain, .. } if domain == caller.domain.id => Err(CallError::Invalid),
            ControlCall::Do { action, domain } => self.act(caller, action, &self.find(domain)?),
            ControlCall::Read { domain, position, into } => self.read(caller, domain, position, into),
            ControlCall::Write { domain, from } => self.write(caller, domain, from),
            ControlCall::BlobBegin { size } => self.blob_begin(caller, size),
            ControlCall::BlobWrite { offset, from } => caller.blob_write(offset, from),
            ControlCall::BlobEnd => self.blob_end(caller),
            ControlCall::Create { index, into } => self.create(caller, index, into),
        }
    }

    /// A domain that there is.
    fn find(&self, domain: DomainId) -> Result<Arc<Entry<B, F>>, CallError> {
        self.domains.get(domain).ok_or(CallError::NoSuchDomain)
    }

    /// Whether a domain is gone for good, or was never there.
    pub(crate) fn is_gone(&self, domain: DomainId) -> bool {
        self.domains.get(domain).is_none_or(|entry| entry.guest.lock().is_gone())
    }

    /// Ticks of the TSC in nanoseconds.
    fn nanoseconds(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1_000_000_000 / u128::from(self.clock.tsc_hz.max(1))) as u64
    }

    // ---- What there is.

    fn machine_info(&self, caller: &Live<B, F>, into: Buffer) -> CallResult {
        let now = cpu::tsc();
        let free = memory::frames().free_frames();
        let mut record = MachineRecord {
            now: self.nanoseconds(now),
            free_memory: free * PAGE_SIZE,
            tsc_khz: self.clock.tsc_hz / 1000,
            cpus: self.cpus.len() as u32,
            domains: self.domains.iter().count() as u32,
            caller: caller.domain.id.0.into(),
            ..MachineRecord::default()
        };
        for cpu in &self.cpus {
            let times = cpu.account.times(now);
            record.guest_time += self.nanoseconds(times.guests);
            record.hypervisor_time += self.nanoseconds(times.hypervisor);
            record.idle_time += self.nanoseconds(times.idle);
        }
        let bytes = record.as_bytes();
        let bytes = bytes.get(..into.bytes as usize).unwrap_or(bytes);
        caller.domain.memory.write(into.at, bytes).map_err(|_| CallError::Fault)?;
        Ok(size_of::<MachineRecord>() as u64)
    }

    fn list(&self, mut records: Records<'_, B, F>) -> CallResult {
        for entry in self.domains.iter() {
            let (mut record, live) = {
                let guest = entry.guest.lock();
                (record_of(&entry, &guest), guest.live.clone())
            };
            if record.id == records.caller.domain.id.0 {
                record.flags |= flag::CALLER;
            }
            if let Some(live) = live {
                self.add_times(&mut record, &live);
            }
            records.add(&record)?;
        }
        Ok(records.count)
    }

    /// What a domain's vCPUs have used, and whether one of them has something to do.
    fn add_times(&self, record: &mut DomainRecord, live: &Live<B, F>) {
        let now = cpu::tsc();
        let mut is_busy = false;
        for (index, task) in live.tasks.iter().enumerate() {
            let Some(snapshot) = VcpuSnapshot::of(&task.account, now) else { continue };
            let vcpu = self.vcpu_record(live, index, &snapshot);
            is_busy |= snapshot.times.activity != Activity::Blocked;
            record.guest_time = record.guest_time.saturating_add(vcpu.guest_time);
            record.hypervisor_time = record.hypervisor_time.saturating_add(vcpu.hypervisor_time);
            record.stolen_time = record.stolen_time.saturating_add(vcpu.stolen_time);
            record.elapsed = record.elapsed.max(self.nanoseconds(snapshot.times.elapsed()));
        }
        if record.state == state::RUNNING && !is_busy {
            record.state = state::BLOCKED;
        }
    }

    fn vcpus(&self, guest: &Entry<B, F>, mut records: Records<'_, B, F>) -> CallResult {
        let live = guest.guest.lock().live.clone();
        let Some(live) = live else { return Ok(0) };
        let now = cpu::tsc();
        for (index, task) in live.tasks.iter().enumerate() {
            let record = match VcpuSnapshot::of(&task.account, now) {
                Some(snapshot) => self.vcpu_record(&live, index, &snapshot),
                None => VcpuRecord { index: index as u16, ..VcpuRecord::default() },
            };
            records.add(&record)?;
        }
        Ok(records.count)
    }

    fn vcpu_record(&self, live: &Live<B, F>, index: usize, snapshot: &VcpuSnapshot) -> VcpuRecord {
        let VcpuSnapshot { times, exits } = snapshot;
        let task = &live.tasks[index];
        let answering: u64 = exits.iter().fold(0, |sum, class| class.ticks.wrapping_add(sum));
        let hypervisor = answering.wrapping_add(task.account.turns().ticks).min(times.running);
        VcpuRecord {
            index: index as u16,
            activity: times.activity as u16,
            cpu: task.place.cpu(),
            exits: exits.iter().fold(0, |sum, class| class.count.wrapping_add(sum)),
            guest_time: self.nanoseconds(times.running - hypervisor),
            hypervisor_time: self.nanoseconds(hypervisor),
            stolen_time: self.nanoseconds(times.stolen()),
            blocked_time: self.nanoseconds(times.blocked),
        }
    }

    // ---- What is done to a domain.

    fn act(&self, caller: &Live<B, F>, action: Action, guest: &Arc<Entry<B, F>>) -> CallResult {
        match action {
            Action::Start => self.start_again(guest)?,
            Action::Shutdown => {
                let live = lives(guest)?;
                if let Some(live) = live {
                    live.domain.press_power_button(&mut Machine::outside(self, &live));
                }
            }
            Action::Reset => {
                if let Some(live) = lives(guest)? {
                    self.end(&live, Ended::Reset, None);
                }
            }
            Action::Destroy => self.destroy(guest)?,
            Action::Pause => self.pause(guest)?,
            Action::Resume => self.resume(guest)?,
            Action::Forget => self.forget(caller, guest)?,
        }
        Ok(0)
    }

    fn start_again(&self, entry: &Arc<Entry<B, F>>) -> Result<(), CallError> {
        let mut guest = entry.guest.lock();
        if !guest.is_gone() {
            return Err(CallError::Busy);
        }
        if guest.definition.is_none() {
            // It has just been forgotten.
            return Err(CallError::NoSuchDomain);
        }
        if !guest.begin_anew() {
            return Err(CallError::Busy);
        }
        // The caller lives, so that the last guest has not gone.
        self.expect_another();
        log::info!("guest {}: told to start", entry.name());
        drop(guest);
        self.io.returns(self, entry);
        self.enrol_chores(entry);
        Ok(())
    }

    fn destroy(&self, entry: &Entry<B, F>) -> Result<(), CallError> {
        let live = {
            let mut guest = entry.guest.lock();
            if guest.is_gone() {
                return Err(CallError::NoSuchDomain);
            }
            guest.lives.told_to_go();
            guest.live.clone()
        };
        match live {
            Some(live) => self.end(&live, Ended::Destroyed, None),
            // Its chores see what is wanted before they make it, and after.
            None => self.wake(&entry.chores),
        }
        Ok(())
    }

    fn pause(&self, entry: &Entry<B, F>) -> Result<(), CallError> {
        let guest = entry.guest.lock();
        if guest.is_gone() {
            return Err(CallError::NoSuchDomain);
        }
        let Some(live) = guest.live.clone() else { return Ok(()) };
        if live.is_ending() || live.pause.is_on.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        live.pause.stopped.fetch_max(cpu::tsc(), Ordering::AcqRel);
        for task in &live.tasks {
            smp::interrupt(self, &task.place);
        }
        drop(guest);
        self.io.tell_state(self, entry);
        Ok(())
    }

    fn resume(&self, entry: &Entry<B, F>) -> Result<(), CallError> {
        let guest = entry.guest.lock();
        if guest.is_gone() {
            return Err(CallError::NoSuchDomain);
        }
        let Some(live) = guest.live.clone().filter(|live| live.pause.is_on()) else { return Ok(()) };
        if live.tasks.iter().any(|task| task.vcpu.try_lock().is_none()) {
            return Err(CallError::Busy);
        }
        live.domain.clock.stood_still(live.pause.stopped.load(Ordering::Acquire), cpu::tsc());
        live.pause.is_on.store(false, Ordering::Release);
        for task in &live.tasks {
            self.wake(&task.place);
        }
        drop(guest);
        self.io.tell_state(self, entry);
        Ok(())
    }

    /// The vCPU that this CPU was about to run belongs to a domain that stands still: it waits until that goes on, or ends.
    pub(crate) fn rest(&self, live: &Live<B, F>, index: usize) {
        let task = &live.tasks[index];
        let this = self.this();
        task.account.change(cpu::tsc(), Activity::Blocked);
        let stays = || live.is_ending() || !live.pause.is_on();
        smp::block(self, this.index, &task.place, u64::MAX, stays);
    }

    // ---- Consoles.

    fn read(&self, caller: &Live<B, F>, domain: DomainId, position: u64, into: Buffer) -> CallResult {
        self.find(domain)?;
        let room = (into.bytes as usize).saturating_sub(size_of::<ConsoleHeader>()).min(HISTORY_BYTES);
        let mut bytes: Vec<u8> = alloc::vec![0; room];
        let piece = console::read(domain, position, &mut bytes).ok_or(CallError::NotConnected)?;
        let header = ConsoleHeader { first: piece.first, end: piece.end };
        let behind = into.at.checked_add(size_of::<ConsoleHeader>() as u64).ok_or(CallError::Fault)?;
        let memory = &caller.domain.memory;
        memory.write(into.at, header.as_bytes()).map_err(|_| CallError::Fault)?;
        memory.write(behind, bytes.get(..piece.count).unwrap_or_default()).map_err(|_| CallError::Fault)?;
        Ok(piece.count as u64)
    }

    fn write(&self, caller: &Live<B, F>, domain: DomainId, from: Buffer) -> CallResult {
        self.find(domain)?;
        // More there is no room for.
        let mut bytes = alloc::vec![0; (from.bytes as usize).min(caisson_console::INPUT_BYTES + 1)];
        caller.domain.memory.read(from.at, &mut bytes).map_err(|_| CallError::Fault)?;
        console::write(domain, &bytes).map(|count| count as u64).ok_or(CallError::NotConnected)
    }

    /// Tells who listens that guests have written something. On the serial line's CPU, with no lock held.
    pub(crate) fn tell_consoles(&self) {
        while let Some(domain) = console::take_news() {
            if let Some(entry) = self.domains.get(domain) {
                self.io.tell_console(self, &entry);
            }
        }
    }
}

/// What there is of a guest that is not gone: nothing while it is on its way into life or out of it.
fn lives<B: Backend, F: Format>(entry: &Entry<B, F>) -> Result<Option<Arc<Live<B, F>>>, CallError> {
    let guest = entry.guest.lock();
    if guest.is_gone() {
        return Err(CallError::NoSuchDomain);
    }
    Ok(guest.live.clone().filter(|live| !live.is_ending()))
}

/// What a guest's record says; what its vCPUs do is added afterwards.
fn record_of<B: Backend, F: Format>(entry: &Entry<B, F>, guest: &Guest<B, F>) -> DomainRecord {
    let mut record = DomainRecord {
        id: entry.id.0,
        state: state_of(guest),
        ended: match guest.ended() {
            _ if guest.lives.is_unmade() => ended::FAILED,
            None => ended::NEVER,
            Some(Ended::PowerOff) => ended::POWEROFF,
            Some(Ended::Reset) => ended::RESET,
            Some(Ended::TripleFault { .. }) => ended::CRASH,
            Some(Ended::Killed(_)) => ended::KILLED,
            Some(Ended::Destroyed) => ended::DESTROYED,
        },
        vcpus: entry.facts.vcpus,
        memory: entry.facts.memory,
        restarts: guest.lives.restarts(),
        life: guest.life,
        privileges: entry.facts.privileges.bits(),
        private_mib: (entry.facts.private >> 20) as u32,
        ..DomainRecord::default()
    };
    if entry.facts.has_console {
        record.flags |= flag::CONSOLE;
    }
    if entry.facts.owns_devices {
        record.flags |= flag::DEVICES;
    }
    record.name.iter_mut().zip(entry.name().bytes()).for_each(|(to, from)| *to = from);
    record
}

fn state_of<B: Backend, F: Format>(guest: &Guest<B, F>) -> u32 {
    match (&guest.phase, &guest.live) {
        (Phase::Gone, _) => state::GONE,
        (Phase::Awaited | Phase::Unmade | Phase::Restart(_), _) | (Phase::Living, None) => state::WAITING,
        (Phase::Ending(_), _) => state::ENDING,
        (Phase::Living, Some(live)) if live.is_ending() => state::ENDING,
        (Phase::Living, Some(live)) if live.pause.is_on() => state::PAUSED,
        (Phase::Living, Some(_)) => state::RUNNING,
    }
}
