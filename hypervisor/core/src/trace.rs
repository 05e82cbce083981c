//! The trace: a ring of events for each CPU, where the boot word `trace=on|EVENTS` asks for it, and how it gets onto the
//! serial line: as a whole when the last guest has ended, or bit by bit beside what guests print (`Ctrl-A d`).
//!
//! Without the boot word an event costs one load and a branch.

use alloc::boxed::Box;
use alloc::vec::Vec;

use caisson_boot::BootInfo;
use caisson_locks::{Mutex, Rank};
use caisson_machine::{clock, cpu, percpu};
use caisson_trace::{Dump, Event, Line, MAX_EVENTS, NoMemory, Ring};
use caisson_types::VcpuId;
use spin::Once;

pub(crate) use caisson_trace::{DomainName, NOBODY, What, Why};

use crate::console;

/// Events that each CPU keeps where the boot word names no number.
const EVENTS: usize = 8192;

/// By CPU; empty until [`start`] finds that a trace is wanted.
static RINGS: Once<Box<[Ring]>> = Once::new();
/// The dump that is on its way.
static DUMP: Mutex<Option<Progress>> = Mutex::new(Rank::Dump, None);

/// A dump, and the line of it that had no room yet.
struct Progress {
    dump: Dump<'static>,
    line: Option<Line>,
}

/// Starts recording, if the boot words ask for it. Once all CPUs are there.
pub(crate) fn start(info: &BootInfo) {
    let events = match info.option("trace") {
        None | Some("off") => return,
        Some("on") => EVENTS,
        Some(word) => match word.parse() {
            Ok(events @ 2..=MAX_EVENTS) => events,
            _ => {
                log::warn!(
                    "trace={word}: give on, off, or the number of events for each CPU, 2 to {MAX_EVENTS}"
                );
                return;
            }
        },
    };
    let rings: Result<Vec<Ring>, NoMemory> = (0..percpu::count()).map(|_| Ring::new(events)).collect();
    match rings {
        Ok(rings) => {
            log::info!("trace: the last {} events of each CPU", rings.first().map_or(0, Ring::capacity));
            RINGS.call_once(|| rings.into_boxed_slice());
        }
        Err(error) => log::warn!("trace={events}: {error}"),
    }
}

/// This CPU's ring, if there is a trace.
#[inline]
fn ring() -> Option<&'static Ring> {
    RINGS.get()?.get(percpu::current().index() as usize)
}

/// Whether there is a trace.
#[inline]
pub(crate) fn is_on() -> bool {
    RINGS.is_completed()
}

/// Records an event of this CPU's, where there is a trace. Not for interrupt handlers.
#[inline]
pub(crate) fn record(event: impl FnOnce() -> Event) {
    if is_on() {
        record_cold(|| Some(event()));
    }
}

/// Out of the way of those who leave no trace: the exit path would not be inlined with this in it.
#[cold]
#[inline(never)]
fn record_cold(event: impl FnOnce() -> Option<Event>) {
    if let Some(ring) = ring()
        && ring.is_on()
        && let Some(event) = event()
    {
        ring.record(|| event);
    }
}

/// Records what happens to a vCPU now.
#[inline]
pub(crate) fn note(vcpu: VcpuId, what: What) {
    record(|| Event { time: cpu::tsc(), vcpu, what });
}

fn dump(domains: Vec<DomainName>) -> Option<Dump<'static>> {
    let rings = RINGS.get()?;
    Some(Dump::new(clock::get().tsc_hz, cpu::tsc(), domains, rings.iter().collect()))
}

/// Begins to write the trace onto the line, beside what else is said there; [`go_on`] does the rest. Nothing is recorded
/// until it is done.
pub(crate) fn begin(domains: Vec<DomainName>) {
    let mut progress = DUMP.lock();
    if progress.is_some() {
        return;
    }
    match dump(domains) {
        Some(dump) => *progress = Some(Progress { dump, line: None }),
        None => log::warn!("no trace is kept: boot with trace=on"),
    }
}

/// Gives the line as much of a dump as it takes now. Called when it has taken what it had.
pub(crate) fn go_on() {
    let mut place = DUMP.lock();
    let Some(Progress { dump, line }) = place.as_mut() else { return };
    loop {
        if line.is_none() {
            *line = dump.next_line();
        }
        match line {
            Some(text) if console::trace_line(text) => *line = None,
            Some(_) => return,
            None => break,
        }
    }
    *place = None;
    drop(place);
    log::info!("the trace is written");
}

/// Writes the whole trace, if there is one, when nobody else has anything to say any more.
pub(crate) fn write_all(domains: Vec<DomainName>) {
    // One that is on its way is of no use beside this one.
    *DUMP.lock() = None;
    let Some(mut dump) = dump(domains) else { return };
    while let Some(line) = dump.next_line() {
        if !console::trace_line(&line) {
            console::drain();
            if !console::trace_line(&line) {
                // A line that takes nothing takes no trace.
                return;
            }
        }
    }
    console::drain();
}
