//! The daemon: which devices there are, a thread for each that has a guest, and who hears of which event.
//!
//! One thread, this one, takes Caisson's interrupt and hands events on to the devices' threads; it does no I/O. A device's course:
//!
//! ```text
//! listed ── a thread opens it ──► open ── describe ──► described ── its guest lives: attach ──► attached, a thread
//!   ▲               │ fails: tried again, a second later           ▲                                        │
//!   └───────────────┘                                              └──── detach ◄── its guest has ended ────┘
//! ```
//!
//! A guest is started when all its devices have been described, so one whose file is missing waits, and the log says for what. A
//! daemon that starts anew finds guests alive: it describes and attaches as ever, and each device's thread goes on where the rings
//! say that the one before it was (`ring.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use caisson_abi::io::{CHANGES, ChannelRecord, device_of, record};
use caisson_abi::{CallError, Number};
use caisson_events::consumer;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use crate::bell::{Bell, CHANGED, queue_bit};
use crate::control::{Desk, Question};
use crate::device::Device;
use crate::guests::Guests;
use crate::host::{Caisson, Host, Refusal};
use crate::kinds::{self, OpenError};
use crate::log::{Voice, log};
use crate::service::{End, Service};
use crate::statistics::{Counter, Counters};

/// How long to wait before a device that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a file may be busy before that is worth a line.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long to wait for what passes by itself.
const SOON: Duration = Duration::from_millis(10);

/// The daemon.
pub struct Daemon {
    caisson: Caisson,
    entries: BTreeMap<u16, Entry>,
    /// By port: whose bell an event there rings, and with which bit. No bell: the list is to be read again.
    ports: Vec<Option<(Option<Arc<Bell>>, u64)>>,
    /// Rung by threads that end, when they have sent what is left of them.
    bell: Arc<Bell>,
    ended: (Sender<Ended>, Receiver<Ended>),
    opened: (Sender<Opened>, Receiver<Opened>),
    /// When to try again what has failed.
    retry: Option<Instant>,
    /// Devices beyond those that one daemon can serve.
    unserved: u64,
    guests: Guests,
    questions: (Sender<Question>, Receiver<Question>),
}

/// A device.
struct Entry {
    voice: Arc<Voice>,
    stage: Stage,
    /// What it was opened with last: its virtio type and parameters.
    wanted: Wanted,
    /// What was said of it last, so that it is not said again.
    complaint: String,
}

enum Stage {
    /// Not open yet.
    Listed,
    /// A thread opens it.
    Opening,
    /// It could not be opened, and is tried again then.
    Failed(Instant),
    /// Open; whether this daemon has described it since it was opened or its guest was last there.
    Open { device: Box<dyn Device>, described: bool },
    /// A thread has it.
    Attached(Attached),
}

struct Attached {
    life: u64,
    ports: Vec<u16>,
    counters: Arc<Counters>,
}

/// A device whose thread has ended.
struct Ended {
    channel: u16,
    device: Box<dyn Device>,
    end: End,
}

/// A device's virtio type, and what the configuration says of it.
type Wanted = (u32, String);

/// A device that has been opened, or why not.
struct Opened {
    channel: u16,
    wanted: Wanted,
    result: Result<Box<dyn Device>, String>,
}

/// What a device has done, for who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Its channel.
    pub channel: u16,
    /// Its name.
    pub name: String,
    /// `listed`, `opening`, `open` or `attached`.
    pub stage: &'static str,
    /// What is wrong with it, or nothing.
    pub complaint: String,
    /// Its counters, while it is attached to.
    pub counters: Vec<(&'static str, u64)>,
}

impl Daemon {
    /// Takes the shared page into use.
    ///
    /// # Errors
    /// Why that cannot be.
    pub fn new(host: Arc<dyn Host>, guests: Guests) -> Result<Self, OpenError> {
        let caisson = Caisson::new(host);
        caisson.connect()?;
        let port = caisson.bind_backend()?;
        let mut daemon = Self {
            caisson,
            entries: BTreeMap::new(),
            ports: Vec::new(),
            bell: Arc::new(Bell::new()?),
            ended: mpsc::channel(),
            opened: mpsc::channel(),
            retry: None,
            unserved: 0,
            guests,
            questions: mpsc::channel(),
        };
        daemon.set_port(port, None, CHANGED);
        Ok(daemon)
    }

    /// Where questions are put: each is answered in its turn.
    #[must_use]
    pub fn desk(&self) -> Desk {
        Desk::new(self.questions.0.clone(), Arc::clone(&self.bell), self.caisson.clone())
    }

    /// Serves guests until the door fails.
    ///
    /// # Errors
    /// That failure.
    pub fn run(&mut self) -> Result<(), OpenError> {
        self.refresh()?;
        loop {
            self.step(None)?;
        }
    }

    /// Waits for something to happen, for as long as `limit`, and does what is to be done.
    ///
    /// # Errors
    /// As [`Daemon::run`].
    pub fn step(&mut self, limit: Option<Duration>) -> Result<(), OpenError> {
        let now = Instant::now();
        let retry = self.retry.map(|at| at.saturating_duration_since(now));
        let left = [retry, limit].into_iter().flatten().min();
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let host = Arc::clone(self.caisson.host());
        let mut sources = [
            PollFd::from_borrowed_fd(host.interrupt_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.bell.fd(), PollFlags::IN),
        ];
        match poll(&mut sources, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::NOMEM) => {}
            Err(error) => return Err(Box::new(io::Error::from(error))),
        }
        let [interrupted, rung] = sources.map(|source| !source.revents().is_empty());
        if rung {
            self.bell.drain();
        }
        let mut again = self.bell.take() != 0;
        if interrupted {
            host.take_interrupt()?;
        }
        again |= self.hand_on();
        while let Ok(question) = self.questions.1.try_recv() {
            question.answer(&self.status());
        }
        if again || self.retry.is_some_and(|at| at <= Instant::now()) {
            self.refresh()?;
        }
        Ok(())
    }

    /// Hands pending events on. Whether the list is to be read again.
    fn hand_on(&self) -> bool {
        let mut again = false;
        consumer::take(self.caisson.host().events(), self.ports.len() as u16, |port| {
            match self.ports.get(usize::from(port)) {
                Some(Some((Some(bell), bit))) => bell.ring(*bit),
                Some(Some((None, _))) => again = true,
                _ => {}
            }
        });
        again
    }

    fn set_port(&mut self, port: u16, bell: Option<&Arc<Bell>>, bit: u64) {
        let index = usize::from(port);
        if self.ports.len() <= index {
            self.ports.resize_with(index + 1, || None);
        }
        if let Some(place) = self.ports.get_mut(index) {
            *place = Some((bell.cloned(), bit));
        }
    }

    /// Brings every device as far as it can come now.
    fn refresh(&mut self) -> Result<(), OpenError> {
        self.retry = None;
        // Devices that are free again first: they are attached to anew where the guest lives again.
        while let Ok(ended) = self.ended.1.try_recv() {
            self.detach(ended);
        }
        while let Ok(opened) = self.opened.1.try_recv() {
            self.opened(opened);
        }
        let (records, more) = self.caisson.list()?;
        if more > self.unserved {
            log!("{more} devices are more than can be served here; give them to another driver domain");
        }
        self.unserved = more;
        self.entries.retain(|channel, entry| {
            matches!(entry.stage, Stage::Attached(_))
                || records.iter().any(|record| record.channel == *channel)
        });
        for record in &records {
            self.advance(record);
        }
        // Told by what Caisson says and not by what is attached to: a daemon that has just begun is attached to nothing.
        let mut living = BTreeSet::new();
        for record in &records {
            let stays = record.life != 0 || self.guests.has(record.channel);
            if stays && record.state & record::GONE == 0 {
                living.insert(record.channel);
            }
        }
        self.guests.update(&living);
        Ok(())
    }

    /// Brings a device as far as it can come now.
    fn advance(&mut self, record: &ChannelRecord) {
        let mut entry = self.entries.remove(&record.channel).unwrap_or_else(|| Entry {
            voice: Arc::new(Voice::new(name_of(record))),
            stage: Stage::Listed,
            wanted: Wanted::default(),
            complaint: String::new(),
        });
        // The number of a domain that was forgotten may be another's.
        let name = name_of(record);
        if entry.voice.name() != name {
            entry.voice = Arc::new(Voice::new(name));
        }
        match self.stages(record, &mut entry) {
            Ok(()) if matches!(entry.stage, Stage::Opening | Stage::Failed(_)) => {}
            Ok(()) => content(&mut entry),
            Err(error) if is_passing(error.as_ref()) => self.retry = Some(Instant::now() + SOON),
            Err(error) => self.complain(&mut entry, error.to_string()),
        }
        self.entries.insert(record.channel, entry);
    }

    /// Says what is wrong with a device, if that is something new, and sees to it that it is tried again.
    fn complain(&mut self, entry: &mut Entry, complaint: String) {
        if complaint != entry.complaint {
            entry.voice.say(format_args!("{complaint}; trying again"));
            entry.complaint = complaint;
        }
        self.retry = Some(Instant::now() + RETRY);
    }

    /// A thread has opened a device, or could not.
    fn opened(&mut self, Opened { channel, wanted, result }: Opened) {
        let Some(mut entry) = self.entries.remove(&channel) else { return };
        match result {
            // Of a domain that was forgotten meanwhile, and its number is another's: that one's is on its way.
            _ if entry.wanted != wanted || !matches!(entry.stage, Stage::Opening) => {}
            Ok(device) => {
                entry.stage = Stage::Open { device, described: false };
                content(&mut entry);
            }
            Err(complaint) => {
                entry.stage = Stage::Failed(Instant::now() + RETRY);
                self.complain(&mut entry, complaint);
            }
        }
        self.entries.insert(channel, entry);
    }

    /// Has a thread open a device: that may take its time, and events of others do not wait for it.
    fn open(&self, record: &ChannelRecord, wanted: Wanted) -> Result<(), OpenError> {
        let (sender, bell, record) = (self.opened.0.clone(), Arc::clone(&self.bell), *record);
        let run = move || {
            let result = open_patiently(&record, &wanted.1).map_err(|error| error.to_string());
            // The daemon is gone where nobody receives it.
            let _ = sender.send(Opened { channel: record.channel, wanted, result });
            bell.ring(CHANGED);
        };
        thread::Builder::new().name(format!("open {}", record.channel)).spawn(run)?;
        Ok(())
    }

    fn wanted(&self, record: &ChannelRecord) -> Result<Wanted, OpenError> {
        Ok((record.kind, self.caisson.parameters(record.channel, record.parameters)?))
    }

    fn stages(&mut self, record: &ChannelRecord, entry: &mut Entry) -> Result<(), OpenError> {
        let channel = record.channel;
        let ended = record.state & record::ENDED != 0;
        if ended && record.state & record::ATTACHED != 0 && !matches!(entry.stage, Stage::Attached(_)) {
            // Attached by a daemon before this one, to a guest that is no more; whether the device can be opened again or not.
            self.caisson.detach(channel)?;
            return Ok(());
        }
        match entry.stage {
            Stage::Failed(again) if again > Instant::now() => {
                self.retry = Some(self.retry.map_or(again, |retry| retry.min(again)));
                return Ok(());
            }
            Stage::Listed | Stage::Failed(_) => {
                entry.wanted = self.wanted(record)?;
                self.open(record, entry.wanted.clone())?;
                entry.stage = Stage::Opening;
            }
            // Another domain may have the number of one that was forgotten: this is not its device then.
            Stage::Open { .. } if record.state & record::DESCRIBED == 0 => {
                let wanted = self.wanted(record)?;
                if entry.wanted != wanted {
                    // The file of the old one is let go of first.
                    entry.stage = Stage::Listed;
                    self.open(record, wanted.clone())?;
                    (entry.wanted, entry.stage) = (wanted, Stage::Opening);
                }
            }
            _ => {}
        }
        if let Stage::Open { device, described } = &mut entry.stage
            && (!*described || record.state & record::DESCRIBED == 0)
        {
            self.caisson.describe(channel, &device.description().record())?;
            *described = true;
        }
        if record.life == 0 || ended {
            return Ok(());
        }
        match std::mem::replace(&mut entry.stage, Stage::Listed) {
            Stage::Open { device, described } => match self.attach(record, &entry.voice, device) {
                Ok(Some(attached)) => {
                    entry.voice.say(format_args!("attached to life {}", attached.life));
                    entry.stage = Stage::Attached(attached);
                }
                Ok(None) => entry.stage = Stage::Listed,
                Err((device, error)) => {
                    entry.stage = Stage::Open { device, described };
                    return Err(error);
                }
            },
            other => entry.stage = other,
        }
        Ok(())
    }

    /// Attaches to a device whose guest lives, and starts its thread. `None` where the thread could not be started.
    fn attach(
        &mut self,
        record: &ChannelRecord,
        voice: &Arc<Voice>,
        device: Box<dyn Device>,
    ) -> Result<Option<Attached>, (Box<dyn Device>, OpenError)> {
        let channel = record.channel;
        let queues = device.description().queues.len() as u16;
        let numbers: Vec<_> = (0..queues).chain([CHANGES]).collect();
        let bell = match Bell::new() {
            Ok(bell) => Arc::new(bell),
            Err(error) => return Err((device, error.into())),
        };
        let ports = match self.caisson.bind_channel(channel, &numbers) {
            Ok(ports) => ports,
            Err(error) => return Err((device, error.into())),
        };
        for (&port, &number) in ports.iter().zip(&numbers) {
            let bit = if number == CHANGES { CHANGED } else { queue_bit(number) };
            self.set_port(port, Some(&bell), bit);
        }
        let (life, memory) = match self.take_on(channel) {
            Ok(taken) => taken,
            Err(error) => {
                self.let_go(channel, &ports);
                return Err((device, error));
            }
        };
        bell.ring(CHANGED);
        let counters = Arc::new(Counters::default());
        let service = Service {
            caisson: self.caisson.clone(),
            channel,
            voice: Arc::clone(voice),
            bell,
            memory,
            counters: Arc::clone(&counters),
            device,
        };
        let dispatcher = Arc::clone(&self.bell);
        let sender = self.ended.0.clone();
        let run = move || {
            let (device, end) = service.run();
            // The daemon is gone where nobody receives it.
            let _ = sender.send(Ended { channel, device, end });
            dispatcher.ring(CHANGED);
        };
        match thread::Builder::new().name(format!("channel {channel}")).spawn(run) {
            Ok(_) => Ok(Some(Attached { life, ports, counters })),
            Err(error) => {
                // The device went with the thread; it is opened again.
                self.let_go(channel, &ports);
                voice.say(format_args!("cannot start its thread: {error}"));
                self.retry = Some(Instant::now() + RETRY);
                Ok(None)
            }
        }
    }

    fn take_on(&self, channel: u16) -> Result<(u64, Arc<crate::sys::Memory>), OpenError> {
        let life = self.caisson.attach(channel)?;
        let ranges = self.caisson.memory(channel)?;
        Ok((life, Arc::new(self.caisson.host().map(&ranges)?)))
    }

    /// Gives ports back, and the channel.
    fn let_go(&mut self, channel: u16, ports: &[u16]) {
        self.close(ports);
        // Refused where it was not attached to.
        let _ = self.caisson.detach(channel);
    }

    fn close(&mut self, ports: &[u16]) {
        self.caisson.close(ports);
        for &port in ports {
            if let Some(place) = self.ports.get_mut(usize::from(port)) {
                *place = None;
            }
        }
    }

    /// A device's thread has ended.
    fn detach(&mut self, Ended { channel, device, end }: Ended) {
        let Some(mut entry) = self.entries.remove(&channel) else { return };
        let next = match end {
            End::Guest => Stage::Open { device, described: true },
            // Whoever has it now; this daemon does not take it back at once.
            End::Lost(_) => Stage::Failed(Instant::now() + RETRY),
        };
        if let Stage::Attached(attached) = std::mem::replace(&mut entry.stage, next) {
            let Counters { requests, events, sleeps, interrupts, .. } = &*attached.counters;
            let [requests, events, sleeps, interrupts] =
                [requests, events, sleeps, interrupts].map(Counter::get);
            let done =
                format!("{requests} requests, {events} events, {sleeps} sleeps, {interrupts} interrupts");
            match end {
                End::Guest => entry.voice.say(format_args!("its guest has ended, after {done}")),
                End::Lost(error) => entry.voice.say(format_args!("given up after {done}: {error}")),
            }
            self.close(&attached.ports);
            if end == End::Guest {
                // Refused where Caisson has seen to it already.
                let _ = self.caisson.detach(channel);
            }
        }
        self.entries.insert(channel, entry);
    }

    /// What there is of devices.
    #[must_use]
    pub fn status(&self) -> Vec<Status> {
        let status = |(&channel, entry): (&u16, &Entry)| {
            let (stage, counters) = match &entry.stage {
                Stage::Listed | Stage::Failed(_) => ("listed", Vec::new()),
                Stage::Opening => ("opening", Vec::new()),
                Stage::Open { .. } => ("open", Vec::new()),
                Stage::Attached(attached) => ("attached", attached.counters.all()),
            };
            let (name, complaint) = (entry.voice.name().to_owned(), entry.complaint.clone());
            Status { channel, name, stage, complaint, counters }
        };
        self.entries.iter().map(status).collect()
    }
}

/// Makes the device of a record. What a daemon before this one had under way may hold its file for a moment.
fn open_patiently(record: &ChannelRecord, parameters: &str) -> Result<Box<dyn Device>, OpenError> {
    let start = Instant::now();
    loop {
        match kinds::open(record, parameters) {
            Err(error) if is_busy(error.as_ref()) && start.elapsed() < PATIENCE => thread::sleep(SOON),
            result => return result,
        }
    }
}

fn is_busy(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
}

/// Whether it is only too early: a guest's memory is just being taken away, or the guest has just ended.
fn is_passing(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(|refusal| {
        refusal.call == Number::ChannelAttach
            && matches!(refusal.error, CallError::Busy | CallError::NoSuchDomain)
    })
}

/// Says that nothing is wrong with a device any more, if something was.
fn content(entry: &mut Entry) {
    if !std::mem::take(&mut entry.complaint).is_empty() {
        entry.voice.say(format_args!("works now"));
    }
}

/// How a device is called in the log: `web disk 1`.
fn name_of(record: &ChannelRecord) -> String {
    let (_, slot) = device_of(record.channel);
    format!("{} {} {slot}", kinds::guest_of(record), kinds::word(record.kind))
}

#[cfg(test)]
mod tests;
