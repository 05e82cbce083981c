//! The consoles' one line, and the physical serial line behind it. Who is shown and what may be said is
//! `caisson-console`'s; here is only when bytes move.
//!
//! A guest's byte goes into the guest's own ring, and nothing else is touched on the way of its exit. [`SERIAL_CPU`] takes
//! what has come, [`TAKES_PER_SECOND`] times a second at most while guests write. When nothing has come for so long it
//! rests, which its beacon shows: the next byte's writer finds that, and tells it. A guest that is quick to write thus
//! costs its neighbours on that CPU no more than so many looks, and the first byte after a rest is on the line at once.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use alloc::sync::Arc;

use caisson_console::{LINE_BYTES, Mux, Ring, log_prefix};
use caisson_locks::{Mutex, Rank};
use caisson_machine::percpu::{self, pending};
use caisson_machine::{clock, cpu, ipi, memory, screen, serial};
use caisson_smp::{Beacon, before_looking_for_idle};
use caisson_types::DomainId;

pub(crate) use caisson_console::Shown;

/// Bytes of input that are taken off the line at a time.
const INPUT_STEP: usize = 64;
/// How often guests' output is looked for while there is some.
const TAKES_PER_SECOND: u64 = 2000;
/// How often the line is tried while it has not taken all it was given; as a rule its interrupt is faster.
const LINE_TRIES_PER_SECOND: u64 = 100;
/// How often input that a guest had no room for is offered to it again.
const INPUT_TRIES_PER_SECOND: u64 = 100;
/// The CPU to which the serial line's interrupt goes.
pub(crate) const SERIAL_CPU: u32 = 0;
/// Seconds after which a line that takes nothing is given up.
const PATIENCE: u64 = 5;

/// `None` until there is a heap.
static MUX: Mutex<Option<Mux>> = Mutex::new(Rank::Console, None);
/// When the next table is due.
static TABLE_DUE: AtomicU64 = AtomicU64::new(u64::MAX);
/// When guests' output is looked for next: at the start at once, to rest then.
static OUTPUT_DUE: AtomicU64 = AtomicU64::new(0);
/// Idle while [`SERIAL_CPU`] does not look for guests' output by itself.
static RESTS: Beacon = Beacon::new();
/// Some guest has written something, or has room for input again.
static NEWS: AtomicBool = AtomicBool::new(false);
/// Some guest has input waiting.
static INPUT: AtomicBool = AtomicBool::new(false);

fn with<T>(work: impl FnOnce(&mut Mux) -> T) -> T {
    let mut mux = MUX.lock();
    let mux = mux.get_or_insert_with(Mux::new);
    let answer = work(mux);
    send(mux);
    answer
}

/// Gives the line what it takes at once, and asks for an interrupt when it can take the rest.
fn send(mux: &mut Mux) {
    while !mux.waiting().is_empty() {
        let sent = serial::try_write(mux.waiting());
        if sent == 0 {
            serial::interrupt_when_sent(true);
            return;
        }
        mux.sent(sent);
    }
    serial::interrupt_when_sent(false);
}

/// Adds a guest's console; again after a restart, it goes on as it was.
pub(crate) fn add_guest(id: DomainId, name: &str) {
    with(|mux| mux.add_guest(id, name));
}

/// Takes away the console of a guest that does not come again.
pub(crate) fn remove_guest(id: DomainId) {
    with(|mux| mux.remove_guest(id));
}

/// Shows what the configuration asks for.
pub(crate) fn show(shown: Shown) {
    with(|mux| mux.show(shown));
}

/// Where a guest's output goes.
pub(crate) fn ring(id: DomainId) -> Option<Arc<Ring>> {
    with(|mux| mux.ring(id))
}

/// A byte of a guest's output. `false` where the line cannot keep up: the guest is to wait.
pub(crate) fn guest_output(ring: &Ring, byte: u8) -> bool {
    let room = ring.put(byte);
    before_looking_for_idle();
    if RESTS.claim() {
        tell_serial_cpu();
    }
    room
}

/// There is output, which the serial line's CPU does not expect.
#[cold]
fn tell_serial_cpu() {
    let this = percpu::current();
    if this.index() == SERIAL_CPU {
        let _ = this.pending().set(pending::SERIAL);
    } else if let Some(other) = percpu::get(SERIAL_CPU) {
        ipi::poke(other, pending::SERIAL);
    }
}

/// Shows the last that a guest wrote, and ends its line, when the guest has ended.
pub(crate) fn end_guest(id: DomainId) {
    with(|mux| mux.end_guest(id));
}

/// Sends what waits, takes what guests have written and what was typed. Called on [`SERIAL_CPU`] when the line interrupts,
/// when somebody has output and it rests, and when [`due`].
pub(crate) fn poll() {
    with(|mux| {
        let _ = RESTS.end_idle();
        send(mux);
        let taken = mux.take_output();
        send(mux);
        OUTPUT_DUE.store(next_look(mux, taken), Ordering::Relaxed);
        let shown = mux.table_shown();
        for _ in 0..INPUT_STEP {
            let Some(byte) = serial::read() else { break };
            mux.typed(byte);
        }
        if mux.table_shown() != shown {
            // The first one is due at once.
            TABLE_DUE.store(if shown { u64::MAX } else { 0 }, Ordering::Relaxed);
        }
        INPUT.store(mux.has_input(), Ordering::Relaxed);
        NEWS.store(mux.has_news(), Ordering::Relaxed);
    });
}

/// The TSC at which guests' output is to be looked for again, after so many bytes were taken; never, where it is told of it.
fn next_look(mux: &Mux, taken: usize) -> u64 {
    let in_part = |part: u64| cpu::tsc() + clock::get().tsc_hz / part;
    if taken > 0 {
        return in_part(TAKES_PER_SECOND);
    }
    if !mux.waiting().is_empty() {
        return in_part(LINE_TRIES_PER_SECOND);
    }
    RESTS.set_idle();
    // Who put something in before this has not seen that it is to tell.
    if mux.has_output() { 0 } else { u64::MAX }
}

/// Whether somebody asked for the pools' other policy.
pub(crate) fn take_policy_wanted() -> bool {
    with(Mux::take_policy_wanted)
}

/// Whether somebody asked for the trace.
pub(crate) fn take_trace_wanted() -> bool {
    with(Mux::take_trace_wanted)
}

/// A line of the trace; `false` where there is no room for it yet.
pub(crate) fn trace_line(line: &str) -> bool {
    with(|mux| mux.trace_line(line))
}

/// The TSC at which the next table of where the time goes is due; never, while none is shown.
pub(crate) fn table_due() -> u64 {
    TABLE_DUE.load(Ordering::Relaxed)
}

/// The TSC at which guests' output is to be looked for next.
pub(crate) fn output_due() -> u64 {
    OUTPUT_DUE.load(Ordering::Relaxed)
}

/// When the consoles want [`SERIAL_CPU`] at the latest.
pub(crate) fn due() -> u64 {
    let input =
        if has_input() { cpu::tsc() + clock::get().tsc_hz / INPUT_TRIES_PER_SECOND } else { u64::MAX };
    input.min(table_due()).min(output_due())
}

/// Shows a table, and wants the next one at `next`; `lines` is not called where the line is not ready for one.
pub(crate) fn show_table(next: u64, lines: impl FnOnce() -> Vec<String>) {
    TABLE_DUE.store(next, Ordering::Relaxed);
    // The lines are made without the lock, which whoever makes them may need.
    if MUX.lock().as_ref().is_some_and(Mux::table_wanted) {
        let lines = lines();
        with(|mux| mux.show_table(&lines));
    }
}

/// Offers each guest what was typed for it; `take` answers whether the guest had room. It is called without the console's
/// lock, by one CPU: that of the serial line's interrupt.
pub(crate) fn deliver_input(mut take: impl FnMut(DomainId, u8) -> bool) {
    let mut from = 0;
    while let Some((place, id, byte)) = peek_input(from) {
        if take(id, byte) {
            with(|mux| mux.input_taken(place, id));
        } else {
            from = place + 1;
        }
    }
    with(|mux| {
        INPUT.store(mux.has_input(), Ordering::Relaxed);
        NEWS.store(mux.has_news(), Ordering::Relaxed);
    });
}

fn peek_input(from: usize) -> Option<(usize, DomainId, u8)> {
    MUX.lock().as_ref().and_then(|mux| mux.peek_input(from))
}

/// What a guest has written, from byte `position` on; `None` for one without a console.
pub(crate) fn read(id: DomainId, position: u64, into: &mut [u8]) -> Option<caisson_console::Piece> {
    with(|mux| {
        // What waits in its ring has been written, too.
        let _ = mux.take_output();
        mux.read(id, position, into)
    })
}

/// Types on a guest's console. How many bytes there was room for; `None` for one without a console.
pub(crate) fn write(id: DomainId, bytes: &[u8]) -> Option<usize> {
    let count = with(|mux| mux.write(id, bytes))?;
    // It delivers input.
    tell_serial_cpu();
    Some(count)
}

/// A guest of which there is something new to read, or room for input again: on [`SERIAL_CPU`], after [`poll`] or
/// [`deliver_input`].
pub(crate) fn take_news() -> Option<DomainId> {
    if !NEWS.load(Ordering::Relaxed) {
        return None;
    }
    with(|mux| {
        let news = mux.take_news();
        NEWS.store(mux.has_news(), Ordering::Relaxed);
        news
    })
}

/// Whether some guest has input waiting.
pub(crate) fn has_input() -> bool {
    INPUT.load(Ordering::Relaxed)
}

/// Waits until everything is on the line, or the line is found dead: before the machine is turned off.
pub(crate) fn drain() {
    if !memory::has_heap() {
        // Nothing was kept.
        return;
    }
    let start = cpu::tsc();
    let limit = clock::try_get().map_or(u64::MAX, |clock| clock.tsc_hz * PATIENCE);
    let is_left = || {
        with(|mux| {
            let _ = mux.take_output();
            send(mux);
            !mux.waiting().is_empty() || mux.has_output()
        })
    };
    while is_left() && cpu::tsc().wrapping_sub(start) < limit {}
}

/// Writes what still waits, whatever state things are in: before a crash record.
pub(crate) fn last_words() {
    let Some(mut mux) = MUX.try_lock() else { return };
    while let Some(mux) = mux.as_mut()
        && (!mux.waiting().is_empty() || mux.take_output() > 0)
    {
        serial::write(mux.waiting());
        mux.sent(mux.waiting().len());
    }
}

/// A line of Caisson's log under construction.
pub(crate) struct LogLine {
    text: arrayvec::ArrayString<LINE_BYTES>,
    important: bool,
}

impl LogLine {
    /// An empty line; an important one is shown whatever console is.
    pub(crate) fn new(important: bool) -> Self {
        Self { text: arrayvec::ArrayString::new(), important }
    }

    /// Shows it.
    pub(crate) fn finish(self) {
        if memory::has_heap() {
            with(|mux| {
                // What guests said before this stands before it.
                let _ = mux.take_output();
                mux.log_line(&self.text, self.important);
            });
        } else {
            // Nothing can be kept yet.
            log_prefix(serial::write);
            serial::write(self.text.as_bytes());
            serial::write(b"\r\n");
        }
        screen::write(self.text.as_bytes());
        screen::write(b"\n");
    }
}

impl Write for LogLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            // A guest's name or bytes in a message cannot steer the terminal.
            let c = if c.is_control() { '?' } else { c };
            self.text.try_push(c).map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}
