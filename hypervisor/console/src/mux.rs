//! Who is shown, who is spoken to, and what waits for the line.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use caisson_types::DomainId;

use crate::Filter;

/// Bytes of output that can wait for the line.
pub const OUTPUT_BYTES: usize = 64 << 10;
/// What guests may not fill of it, so that Caisson can always speak.
pub const RESERVED_BYTES: usize = 16 << 10;
/// The longest line that is kept together where several consoles are shown.
pub const LINE_BYTES: usize = 512;
/// Bytes that can wait for a guest's serial port.
pub const INPUT_BYTES: usize = 4096;
/// Lines of Caisson's log that are shown when one comes back to it.
const KEPT_LINES: usize = 100;
/// What a byte of a guest's can add at most: a line's worth with its prefix and end.
const LONGEST_STEP: usize = 2 * LINE_BYTES;

/// Ctrl-A.
const PREFIX: u8 = 0x01;
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
struct Guest {
    id: DomainId,
    name: String,
    line: Vec<u8>,
    filter: Filter,
    input: VecDeque<u8>,
}

/// All consoles on one line.
pub struct Mux {
    shown: Shown,
    guests: Vec<Guest>,
    output: VecDeque<u8>,
    log: VecDeque<String>,
    after_prefix: bool,
    /// The last byte of raw output was not the end of a line.
    mid_line: bool,
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
            output: VecDeque::with_capacity(OUTPUT_BYTES),
            log: VecDeque::with_capacity(KEPT_LINES),
            after_prefix: false,
            mid_line: false,
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
            line: Vec::with_capacity(LINE_BYTES),
            filter: Filter::new(),
            input: VecDeque::with_capacity(INPUT_BYTES),
        });
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

    /// Whether a guest's byte has room. Where it has not the guest is to wait.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.output.len() + LONGEST_STEP <= OUTPUT_BYTES - RESERVED_BYTES
    }

    /// A byte of a guest's output. It is lost where there is no room ([`Mux::has_room`]).
    pub fn guest_byte(&mut self, id: DomainId, byte: u8) {
        let Some(index) = self.guests.iter().position(|g| g.id == id) else { return };
        if self.shown == Shown::Guest(id) {
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

    /// Ends a guest's unfinished line: when it has ended itself.
    pub fn end_line(&mut self, id: DomainId) {
        if let Some(index) = self.guests.iter().position(|g| g.id == id)
            && !self.guests[index].line.is_empty()
        {
            self.close_line(index);
        }
    }

    fn close_line(&mut self, index: usize) {
        if self.shown == Shown::All {
            self.flush_line(index);
        } else {
            self.guests[index].line.clear();
        }
    }

    fn flush_line(&mut self, index: usize) {
        let colour = COLOURS[index % COLOURS.len()];
        let Self { guests, output, .. } = self;
        let guest = &mut guests[index];
        prefix(colour, &guest.name, |bytes| push(output, bytes));
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
        if important || !matches!(self.shown, Shown::Guest(_)) {
            if core::mem::take(&mut self.mid_line) {
                self.push(b"\r\n");
            }
            self.log_now(text);
        }
    }

    fn log_now(&mut self, text: &str) {
        let output = &mut self.output;
        log_prefix(|bytes| push(output, bytes));
        push(output, text.as_bytes());
        push(output, b"\r\n");
    }

    /// A byte that a person typed.
    pub fn typed(&mut self, byte: u8) {
        if core::mem::take(&mut self.after_prefix) {
            match byte {
                b'c' | b'C' => self.show_next(),
                b'a' | b'A' | PREFIX => self.speak(PREFIX),
                // Other keys behind Ctrl-A mean nothing here.
                _ => {}
            }
        } else if byte == PREFIX {
            self.after_prefix = true;
        } else {
            self.speak(byte);
        }
    }

    /// Whom a person speaks to: the guest that is shown, or the only one.
    fn speak(&mut self, byte: u8) {
        let selected = match self.shown {
            Shown::Guest(id) => Some(id),
            Shown::All if self.guests.len() == 1 => Some(self.guests[0].id),
            Shown::All | Shown::Log => None,
        };
        if let Some(guest) = self.guests.iter_mut().find(|g| Some(g.id) == selected)
            && guest.input.len() < INPUT_BYTES
        {
            guest.input.push_back(byte);
        }
    }

    /// Offers each guest what was typed for it, until `take` answers that it has no room.
    pub fn deliver_input(&mut self, mut take: impl FnMut(DomainId, u8) -> bool) {
        for guest in &mut self.guests {
            while let Some(&byte) = guest.input.front()
                && take(guest.id, byte)
            {
                guest.input.pop_front();
            }
        }
    }

    /// Whether some guest has input waiting.
    #[must_use]
    pub fn has_input(&self) -> bool {
        self.guests.iter().any(|g| !g.input.is_empty())
    }

    /// All, each guest, the log, and around again; says so, and shows the guest's unfinished line or the last of the log.
    fn show_next(&mut self) {
        let guest = |at: usize| self.guests.get(at).map_or(Shown::Log, |g| Shown::Guest(g.id));
        self.shown = match self.shown {
            Shown::All => guest(0),
            Shown::Guest(id) => guest(self.guests.iter().position(|g| g.id == id).map_or(0, |at| at + 1)),
            Shown::Log => Shown::All,
        };
        self.mid_line = false;
        self.push(b"\r\n");
        let output = &mut self.output;
        log_prefix(|bytes| push(output, bytes));
        push(output, b"showing ");
        match self.shown {
            Shown::All => push(output, b"all consoles"),
            Shown::Log => push(output, b"Caisson's log"),
            Shown::Guest(id) => {
                if let Some(guest) = self.guests.iter().find(|g| g.id == id) {
                    push(output, guest.name.as_bytes());
                }
            }
        }
        push(output, b"; Ctrl-A c shows the next\r\n");
        match self.shown {
            Shown::All => {}
            Shown::Log => {
                for line in &self.log {
                    push(output, line.as_bytes());
                    push(output, b"\r\n");
                }
            }
            Shown::Guest(id) => {
                if let Some(guest) = self.guests.iter().find(|g| g.id == id) {
                    push(output, &guest.line);
                    self.mid_line = !guest.line.is_empty();
                }
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        push(&mut self.output, bytes);
    }
}

impl Default for Mux {
    fn default() -> Self {
        Self::new()
    }
}

/// Adds to what waits for the line; what does not fit is lost.
fn push(output: &mut VecDeque<u8>, bytes: &[u8]) {
    let room = OUTPUT_BYTES - output.len().min(OUTPUT_BYTES);
    output.extend(bytes.iter().take(room));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RED: DomainId = DomainId(1);
    const BLUE: DomainId = DomainId(2);

    fn two() -> Mux {
        let mut mux = Mux::new();
        mux.add_guest(RED, "red");
        mux.add_guest(BLUE, "blue");
        mux
    }

    fn output(mux: &mut Mux) -> String {
        let mut text = Vec::new();
        while !mux.waiting().is_empty() {
            let piece = mux.waiting().to_vec();
            mux.sent(piece.len());
            text.extend(piece);
        }
        String::from_utf8(text).unwrap()
    }

    fn write(mux: &mut Mux, id: DomainId, text: &str) {
        text.bytes().for_each(|byte| mux.guest_byte(id, byte));
    }

    fn input(mux: &mut Mux, id: DomainId) -> Vec<u8> {
        let mut got = Vec::new();
        mux.deliver_input(|to, byte| {
            if to == id {
                got.push(byte);
            }
            to == id
        });
        got
    }

    #[test]
    fn lines_of_several_stay_whole_and_carry_names() {
        let mut mux = two();
        write(&mut mux, RED, "one ");
        write(&mut mux, BLUE, "two\r\n");
        write(&mut mux, RED, "three\r\nfour");
        mux.end_line(RED);
        mux.end_line(RED);
        assert_eq!(
            output(&mut mux),
            "\x1b[32m[blue]\x1b[0m two\r\n\x1b[36m[red]\x1b[0m one three\r\n\x1b[36m[red]\x1b[0m four\r\n"
        );
    }

    #[test]
    fn a_selected_console_is_raw_and_gets_what_is_typed() {
        let mut mux = two();
        mux.show(Shown::Guest(BLUE));
        write(&mut mux, BLUE, "\x1b[2Jraw");
        write(&mut mux, RED, "unseen\n");
        mux.log_line("quiet", false);
        mux.log_line("loud", true);
        assert_eq!(output(&mut mux), "\x1b[2Jraw\r\n\x1b[01m[caisson]\x1b[0m loud\r\n");
        b"ls\x01a\x01\x01\x01q\r".iter().for_each(|&byte| mux.typed(byte));
        assert!(mux.has_input());
        assert_eq!(input(&mut mux, BLUE), b"ls\x01\x01\r");
        assert!(!mux.has_input());
    }

    #[test]
    fn control_a_c_goes_around_and_the_log_comes_back() {
        let mut mux = two();
        mux.log_line("first", false);
        let _ = output(&mut mux);
        let mut seen = Vec::new();
        for _ in 0..4 {
            mux.typed(PREFIX);
            mux.typed(b'c');
            seen.push(output(&mut mux));
        }
        for (text, name) in seen.iter().zip(["red", "blue", "Caisson's log", "all consoles"]) {
            assert!(text.contains(name), "{text:?}");
        }
        assert!(seen[2].ends_with("\r\nfirst\r\n"));
        mux.typed(b'x');
        assert!(!mux.has_input(), "nobody is spoken to while several are shown");
    }

    #[test]
    fn a_prompt_is_there_when_its_guest_is_shown() {
        let mut mux = two();
        write(&mut mux, RED, "up\r\nred # ");
        write(&mut mux, BLUE, "blue # ");
        let _ = output(&mut mux);
        let mut next = |text: &str| {
            mux.typed(PREFIX);
            mux.typed(b'c');
            write(&mut mux, RED, text);
            output(&mut mux)
        };
        assert!(next("ls").ends_with("showing red; Ctrl-A c shows the next\r\nred # ls"));
        assert!(next("\r\nfile\r\nred # ").ends_with("showing blue; Ctrl-A c shows the next\r\nblue # "));
        assert!(next("").ends_with("showing Caisson's log; Ctrl-A c shows the next\r\n"));
        assert!(
            next("\r\n")
                .ends_with("all consoles; Ctrl-A c shows the next\r\n\x1b[36m[red]\x1b[0m red # \r\n")
        );
        assert!(next("").ends_with("showing red; Ctrl-A c shows the next\r\n"));
    }

    #[test]
    fn guests_cannot_forge_lines_or_fill_what_is_reserved() {
        let mut mux = two();
        write(&mut mux, RED, "a\x1b[1A\x1b[G\r\x1b[01m[caisson]\x1b[0m lies\n");
        assert_eq!(output(&mut mux), "\x1b[36m[red]\x1b[0m a\x1b[01m[caisson]\x1b[0m lies\x1b[0m\r\n");
        while mux.has_room() {
            write(&mut mux, RED, "flood\n");
        }
        assert!(mux.output.len() <= OUTPUT_BYTES - RESERVED_BYTES);
        mux.log_line("still heard", false);
        assert!(output(&mut mux).ends_with("still heard\r\n"));
    }

    proptest! {
        #[test]
        fn nothing_grows_beyond_its_bounds(bytes in proptest::collection::vec((any::<bool>(), any::<u8>()), 0..2000)) {
            let mut mux = two();
            for (red, byte) in bytes {
                let before = mux.output.len();
                mux.guest_byte(if red { RED } else { BLUE }, byte);
                prop_assert!(mux.output.len() - before <= LONGEST_STEP);
                prop_assert!(mux.guests.iter().all(|g| g.line.len() <= LINE_BYTES && g.line.capacity() == LINE_BYTES));
                mux.typed(byte);
            }
        }
    }
}
