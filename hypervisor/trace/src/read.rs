//! From a serial log to the events again.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::bytes::Bytes;
use crate::packet::{DomainName, Position, VERSION, classes, kind, open};
use crate::{Event, MARK};
use caisson_types::DomainId;

/// More physical CPUs than any machine has: a log that says so is nonsense.
const MAX_CPUS: usize = 4096;

/// An event, and where it was recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The physical CPU.
    pub cpu: usize,
    /// The event.
    pub event: Event,
}

/// A dump as it was read.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Trace {
    /// Ticks in a second; at least 1.
    pub tsc_hz: u64,
    /// When the dump was begun, in ticks.
    pub now: u64,
    /// Physical CPUs.
    pub cpus: usize,
    /// The domains that there were.
    pub domains: Vec<DomainName>,
    /// Names of classes of exits, by index.
    pub classes: Vec<String>,
    /// Events: those of each CPU in their order, CPU after CPU.
    pub events: Vec<Record>,
    /// For each CPU, events that were overwritten before the dump reached them.
    pub lost: Vec<u64>,
    /// Packets that are missing: their lines were damaged or lost.
    pub missing: u64,
    /// The end was seen.
    pub complete: bool,
}

impl Trace {
    /// The name of a class of exits.
    #[must_use]
    pub fn class(&self, index: u8) -> &str {
        self.classes.get(usize::from(index)).filter(|name| !name.is_empty()).map_or("exit", String::as_str)
    }

    /// The name of a domain, where the dump tells it.
    #[must_use]
    pub fn domain(&self, id: DomainId) -> Option<&DomainName> {
        self.domains.iter().find(|domain| domain.id == id)
    }
}

/// Why a log gives no trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceError {
    /// There is no dump in it.
    None,
    /// The dump is of another version of the format.
    Version(u16),
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "the log has no trace: boot with `trace=on` and let the run end"),
            Self::Version(version) => write!(
                f,
                "the trace is of format {version}, and this program reads format {VERSION}: use the xtask of the Caisson that wrote it"
            ),
        }
    }
}

/// Reads a log line by line. Of several dumps the last one counts.
#[derive(Debug, Default)]
pub struct Reader {
    trace: Option<Trace>,
    /// The number that the next packet has, modulo 2^16.
    next: u16,
    packets: u64,
    other_version: Option<u16>,
}

impl Reader {
    /// Nothing read yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a line of the log, which need not be the dump's.
    pub fn line(&mut self, line: &str) {
        let Some((_, text)) = line.rsplit_once(MARK) else { return };
        let text = text.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && !"+/=".contains(c));
        let Ok(packet) = STANDARD.decode(text) else { return };
        if let Some((kind, number, bytes)) = open(&packet) {
            // What is malformed behind a right checksum is a bug or a lie; its packet is missing then.
            let _ = self.packet(kind, number, bytes);
        }
    }

    fn packet(&mut self, kind: u8, number: u16, mut bytes: Bytes<'_>) -> Option<()> {
        if kind == kind::START {
            return self.start(number, bytes);
        }
        let trace = self.trace.as_mut()?;
        if trace.complete {
            return None;
        }
        match kind {
            kind::DOMAIN => {
                let (id, vcpus) = (DomainId(bytes.number()?), bytes.number()?);
                let name = core::str::from_utf8(bytes.rest()).ok()?.into();
                trace.domains.push(DomainName { id, vcpus, name });
            }
            kind::CLASSES => {
                let (first, names) = classes(&mut bytes)?;
                // 256 at most: an index is a byte.
                let end = (first + names.len()).min(256);
                if trace.classes.len() < end {
                    trace.classes.resize(end, String::new());
                }
                for (place, name) in trace.classes.iter_mut().skip(first).zip(names) {
                    *place = name;
                }
            }
            kind::EVENTS => events(trace, &mut bytes)?,
            kind::END => {
                let sent = bytes.varint()?;
                trace.missing = sent.saturating_sub(self.packets);
                trace.complete = true;
                return Some(());
            }
            _ => return None,
        }
        trace.missing = trace.missing.saturating_add(u64::from(number.wrapping_sub(self.next)));
        self.next = number.wrapping_add(1);
        self.packets += 1;
        Some(())
    }

    fn start(&mut self, number: u16, mut bytes: Bytes<'_>) -> Option<()> {
        let version = bytes.u16()?;
        self.trace = None;
        self.other_version = (version != VERSION).then_some(version);
        if version != VERSION {
            return None;
        }
        let tsc_hz = bytes.u64()?.max(1);
        let now = bytes.u64()?;
        let cpus = bytes.number().filter(|cpus| *cpus <= MAX_CPUS)?;
        let lost = alloc::vec![0; cpus];
        self.trace = Some(Trace { tsc_hz, now, cpus, lost, ..Trace::default() });
        self.next = number.wrapping_add(1);
        self.packets = 1;
        Some(())
    }

    /// The last dump. One without its end is better than none.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn finish(self) -> Result<Trace, TraceError> {
        match (self.trace, self.other_version) {
            (Some(trace), _) => Ok(trace),
            (None, Some(version)) => Err(TraceError::Version(version)),
            (None, None) => Err(TraceError::None),
        }
    }
}

/// Reads a packet of events, all of them or none.
fn events(trace: &mut Trace, bytes: &mut Bytes<'_>) -> Option<()> {
    let cpu = bytes.number().filter(|cpu| *cpu < trace.cpus)?;
    let lost = bytes.varint()?;
    let mut position = Position::new(bytes.u64()?);
    let before = trace.events.len();
    while !bytes.is_empty() {
        let Some(event) = position.read(bytes) else {
            trace.events.truncate(before);
            return None;
        };
        trace.events.push(Record { cpu, event });
    }
    let sum = trace.lost.get_mut(cpu)?;
    *sum = sum.saturating_add(lost);
    Some(())
}
