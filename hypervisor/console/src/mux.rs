//! Who is shown, who is spoken to, and what waits for the line.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use caisson_types::DomainId;

use crate::history::{History, Piece};
use crate::{Filter, RING_BYTES, Ring};

/// Bytes of output that can wait for the line.
pub const OUTPUT_BYTES: usize = 64 << 10;
/// What guests may not fill of it, so that Caisson can always speak.
pub const RESERVED_BYTES: usize = 16 << 10;
/// The longest line that is kept together where several consoles are shown.
pub const LINE_BYTES: usize = 512;
/// Bytes that are taken out of the guests' rings at a time: it bounds what the serial line's CPU does for other CPUs' guests.
pub const TAKEN_AT_ONCE: usize = 1024;
/// Bytes that can wait for a guest's serial port.
pub const INPUT_BYTES: usize = 4096;
/// Lines of Caisson's log that are shown when one comes back to it.
const KEPT_LINES: usize = 100;
/// What a byte of a guest's can add at most: a line's worth with its prefix and end.
pub(crate) const LONGEST_STEP: usize = 2 * LINE_BYTES;

/// The name of Caisson's own lines.
pub const LOG_NAME: &str = "caisson";
/// Colours of names, in turn: ANSI foregrounds that can be read on dark and on light.
const COLOURS: [u8; 6] = [36, 32, 33, 35, 34, 31];
const BOLD: u8 = 1;
const PLAIN: &[u8] = b"\x1b[0m";

/// What is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    /// Everything, line by line.
    All,
    /// Caisson's log.
    Log,
    /// One guest, raw.
    Guest(DomainId),
}

/// A guest's side.
pub(crate) struct Guest {
    pub(crate) id: DomainId,
    pub(crate) name: String,
    colour: u8,
    pub(crate) ring: Arc<Ring>,
    pub(crate) line: Vec<u8>,
    filter: Filter,
    /// It has ended, and so does its line when the ring is empty.
    ends: bool,
    pub(crate) input: VecDeque<u8>,
    /// What it wrote last.
    history: History,
    /// Somebody who typed found no room.
    refused: bool,
    /// It has written something, or there is room again, and nobody has been told.
    news: bool,
}

/// All consoles on one line.
pub struct Mux {
    pub(crate) shown: Shown,
    pub(crate) guests: Vec<Guest>,
    /// Whose ring is looked at first the next time.
    turn: usize,
    pub(crate) output: VecDeque<u8>,
    pub(crate) log: VecDeque<String>,
    pub(crate) after_prefix: bool,
    /// The last byte of raw output was not the end of a line.
    pub(crate) mid_line: bool,
    /// The table is shown in place of `shown`.
    pub(crate) table: bool,
    /// Somebody asked for a trace.
    pub(crate) trace_wanted: bool,
    /// Somebody asked for the pools' other policy.
    pub(crate) policy_wanted: bool,
}

/// Writes what a line begins with where several consoles are shown: whose it is, in a colour.
fn prefix(colour: u8, name: &str, mut write: impl FnMut(&[u8])) {
    write(&[0x1b, b'[', b'0' + colour / 10, b'0' + colour % 10, b'm', b'[']);
    write(name.as_bytes());
    write(b"]");
    write(PLAIN);
    write(b" ");
}

/// Writes what one of Caisson's own lines begins with.
pub fn log_prefix(write: impl FnMut(&[u8])) {
    prefix(BOLD, LOG_NAME, write);
}

impl Mux {
    /// No guests, everything shown.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shown: Shown::All,
            guests: Vec::new(),
            turn: 0,
            output: VecDeque::with_capacity(OUTPUT_BYTES),
            log: VecDeque::with_capacity(KEPT_LINES),
            after_prefix: false,
            mid_line: false,
            table: false,
            trace_wanted: false,
            policy_wanted: false,
        }
    }

    /// Adds a guest's console. One that is there already, of a guest that was restarted, goes on as it was.
    pub fn add_guest(&mut self, id: DomainId, name: &str) {
        if self.guests.iter().any(|g| g.id == id) {
            return;
        }
        self.guests.push(Guest {
            id,
            name: name.into(),
            colour: COLOURS[self.guests.len() % COLOURS.len()],
            ring: Arc::new(Ring::new()),
            ends: false,
            line: Vec::with_capacity(LINE_BYTES),
            filter: Filter::new(),
            input: VecDeque::with_capacity(INPUT_BYTES),
            history: History::new(),
            refused: false,
            news: false,
        });
    }

    /// Takes away the console of a guest that has ended and does not come again. What it wrote last is shown as far as there is
    /// room.
    pub fn remove_guest(&mut self, id: DomainId) {
        self.end_guest(id);
        self.guests.retain(|guest| guest.id != id);
        self.turn = 0;
        if self.shown == Shown::Guest(id) {
            self.shown = Shown::All;
            if !self.table {
                if core::mem::take(&mut self.mid_line) {
                    self.push(b"\r\n");
                }
                self.announce();
            }
        }
    }

    /// Shows something else, without a word.
    pub fn show(&mut self, shown: Shown) {
        self.shown = shown;
    }

    /// What waits for the line, as far as it lies in one piece; empty when nothing waits.
    #[must_use]
    pub fn waiting(&self) -> &[u8] {
        self.output.as_slices().0
    }

    /// The line took the first `bytes` of [`Mux::waiting`].
    pub fn sent(&mut self, bytes: usize) {
        self.output.drain(..bytes.min(self.output.len()));
    }

    /// Where a guest's bytes go in; `None` for a guest without a console.
    #[must_use]
    pub fn ring(&self, id: DomainId) -> Option<Arc<Ring>> {
        self.guests.iter().find(|g| g.id == id).map(|g| g.ring.clone())
    }

    /// Whether a guest's byte has room, where so much is reserved.
    fn has_room(&self, reserved: usize) -> bool {
        self.output.len() + LONGEST_STEP <= OUTPUT_BYTES - reserved
    }

    /// Takes what guests have written, as far as there is room, and at most [`TAKEN_AT_ONCE`] bytes: of each guest an equal
    /// part, and what one leaves of it goes to others. How many it took.
    pub fn take_output(&mut self) -> usize {
        let guests = self.guests.len();
        let mut left = TAKEN_AT_ONCE;
        for step in 0..guests {
            let part = left.div_ceil(guests - step);
            left -= self.take_from((self.turn + step) % guests, part, RESERVED_BYTES);
        }
        self.turn = (self.turn + 1) % guests.max(1);
        TAKEN_AT_ONCE - left
    }

    /// Whether some guest's ring has something that [`Mux::take_output`] has not taken.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.guests.iter().any(|g| !g.ring.is_empty())
    }

    fn take_from(&mut self, index: usize, most: usize, reserved: usize) -> usize {
        let mut taken = 0;
        while taken < most && self.has_room(reserved) {
            let Some(byte) = self.guests[index].ring.take() else { break };
            self.guest_byte(index, byte);
            taken += 1;
        }
        if self.guests[index].ends && self.guests[index].ring.is_empty() {
            self.guests[index].ends = false;
            if !self.guests[index].line.is_empty() {
                self.close_line(index);
            }
        }
        taken
    }

    /// A byte of a guest's output.
    pub(crate) fn guest_byte(&mut self, index: usize, byte: u8) {
        self.guests[index].history.write(byte);
        self.guests[index].news = true;
        if self.shown == Shown::Guest(self.guests[index].id) && !self.table {
            self.mid_line = byte != b'\n';
            self.push(&[byte]);
        }
        self.line_byte(index, byte);
    }

    /// A byte of a line, which stands among others' where all are shown. Otherwise the line is kept for the moment when
    /// this guest is shown next: as a rule it is a prompt then.
    fn line_byte(&mut self, index: usize, byte: u8) {
        let guest = &mut self.guests[index];
        if byte == b'\n' {
            return self.close_line(index);
        }
        let Guest { filter, line, .. } = guest;
        filter.feed(byte, |shown| line.extend_from_slice(shown));
        // A colour sequence is short enough never to make the line grow beyond its allocation.
        if line.len() + 32 > LINE_BYTES && filter.is_in_text() {
            self.close_line(index);
        }
    }

    /// A guest has ended: what it wrote comes before what is said of it, and ends its line. Where the line is so far behind
    /// that not even half of what is reserved has room for that, the rest follows later.
    pub fn end_guest(&mut self, id: DomainId) {
        if let Some(index) = self.guests.iter().position(|g| g.id == id) {
            self.guests[index].ends = true;
            self.take_from(index, RING_BYTES, RESERVED_BYTES / 2);
        }
    }

    fn close_line(&mut self, index: usize) {
        if self.shown == Shown::All && !self.table {
            self.flush_line(index);
        } else {
            self.guests[index].line.clear();
        }
    }

    fn flush_line(&mut self, index: usize) {
        let Self { guests, output, .. } = self;
        let guest = &mut guests[index];
        prefix(guest.colour, &guest.name, |bytes| push(output, bytes));
        push(output, &guest.line);
        if guest.line.contains(&0x1b) {
            push(output, PLAIN);
        }
        push(output, b"\r\n");
        guest.line.clear();
    }

    /// A line of Caisson's log. An important one is shown whatever console is.
    pub fn log_line(&mut self, text: &str, important: bool) {
        if self.log.len() == KEPT_LINES {
            self.log.pop_front();
        }
        self.log.push_back(text.into());
        if !self.table && (important || !matches!(self.shown, Shown::Guest(_))) {
            if core::mem::take(&mut self.mid_line) {
                self.push(b"\r\n");
            }
            self.log_now(text);
        }
    }

    pub(crate) fn log_now(&mut self, text: &str) {
        let output = &mut self.output;
        log_prefix(|bytes| push(output, bytes));
        push(output, text.as_bytes());
        push(output, b"\r\n");
    }

    /// The first byte that waits for a guest, beginning with the guest at place `from`: its place, the guest, the byte. It
    /// stays until [`Mux::input_taken`], so that it can be offered while the consoles are used by others.
    #[must_use]
    pub fn peek_input(&self, from: usize) -> Option<(usize, DomainId, u8)> {
        let mut guests = self.guests.iter().enumerate().skip(from);
        guests.find_map(|(place, guest)| Some((place, guest.id, *guest.input.front()?)))
    }

    /// The guest `id` at `place` has taken its first byte, if it is still there.
    pub fn input_taken(&mut self, place: usize, id: DomainId) {
        if let Some(guest) = self.guests.get_mut(place).filter(|guest| guest.id == id) {
            guest.input.pop_front();
            if guest.input.is_empty() && core::mem::take(&mut guest.refused) {
                guest.news = true;
            }
        }
    }

    /// What a guest has written, from byte `position` on. `None` for a guest without a console.
    #[must_use]
    pub fn read(&self, id: DomainId, position: u64, into: &mut [u8]) -> Option<Piece> {
        self.guests.iter().find(|guest| guest.id == id).map(|guest| guest.history.read(position, into))
    }

    /// Types on a guest's console, whichever is shown: no byte means anything here. How many there was room for; `None` for a
    /// guest without a console.
    pub fn write(&mut self, id: DomainId, bytes: &[u8]) -> Option<usize> {
        let guest = self.guests.iter_mut().find(|guest| guest.id == id)?;
        let room = bytes.len().min(INPUT_BYTES.saturating_sub(guest.input.len()));
        guest.input.extend(bytes.iter().take(room));
        guest.refused |= room < bytes.len();
        Some(room)
    }

    /// A guest that has written something, or has room again, since this was last said of it.
    pub fn take_news(&mut self) -> Option<DomainId> {
        let guest = self.guests.iter_mut().find(|guest| guest.news)?;
        guest.news = false;
        Some(guest.id)
    }

    /// Whether there is such a guest.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.guests.iter().any(|guest| guest.news)
    }

    /// Whether some guest has input waiting.
    #[must_use]
    pub fn has_input(&self) -> bool {
        self.guests.iter().any(|g| !g.input.is_empty())
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        push(&mut self.output, bytes);
    }
}

impl Default for Mux {
    fn default() -> Self {
        Self::new()
    }
}

/// Adds to what waits for the line; what does not fit is lost.
pub(crate) fn push(output: &mut VecDeque<u8>, bytes: &[u8]) {
    let room = OUTPUT_BYTES - output.len().min(OUTPUT_BYTES);
    output.extend(bytes.iter().take(room));
}
