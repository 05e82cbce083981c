//! One serial line for all consoles.
//!
//! Where several consoles are shown, each line carries its domain's name; a selected one is shown raw, and gets what is
//! typed. `Ctrl-A c` goes to the next: all, each guest with a console, Caisson's log. Output is buffered, and sent as
//! fast as the line takes it: a guest that writes faster waits, nobody else does.

use core::fmt::{self, Write};

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use caisson_machine::{memory, screen, serial};
use caisson_types::DomainId;
use spin::Mutex;

/// Bytes of output that wait for the line.
const OUTPUT_BYTES: usize = 64 << 10;
/// What guests may not fill of it, so that Caisson can always speak.
const RESERVED_BYTES: usize = 16 << 10;
/// The longest line that is kept together.
const LINE_BYTES: usize = 512;
/// Lines of Caisson's log that are shown when one comes back to it.
const KEPT_LINES: usize = 100;
/// Bytes that wait for a guest's serial port.
const INPUT_BYTES: usize = 4096;
/// Bytes of input that are taken off the line at a time.
const INPUT_STEP: usize = 64;

const ESCAPE: u8 = 0x01;
const LOG_NAME: &str = "caisson";
/// Colours of prefixes, in turn: ANSI foregrounds that read on dark and light.
const COLOURS: [u8; 6] = [36, 32, 33, 35, 34, 31];

/// What is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shown {
    /// Everything, line by line.
    All,
    /// Caisson's log.
    Log,
    /// One guest, raw.
    Guest(DomainId),
}

/// A guest's side of the console.
struct GuestConsole {
    id: DomainId,
    name: String,
    line: Vec<u8>,
    input: VecDeque<u8>,
}

/// All consoles.
struct Console {
    shown: Shown,
    guests: Vec<GuestConsole>,
    output: VecDeque<u8>,
    log: VecDeque<String>,
    escaped: bool,
    /// The last byte of raw output was not the end of a line.
    mid_line: bool,
}

static CONSOLE: Mutex<Console> = Mutex::new(Console {
    shown: Shown::All,
    guests: Vec::new(),
    output: VecDeque::new(),
    log: VecDeque::new(),
    escaped: false,
    mid_line: false,
});

/// Adds a guest's console; again after a restart, it goes on as it was.
pub(crate) fn add_guest(id: DomainId, name: &str) {
    let mut console = CONSOLE.lock();
    if console.guests.iter().all(|g| g.id != id) {
        let guest = GuestConsole {
            id,
            name: name.into(),
            line: Vec::with_capacity(LINE_BYTES),
            input: VecDeque::with_capacity(INPUT_BYTES),
        };
        console.guests.push(guest);
    }
}

/// Shows what the configuration asks for.
pub(crate) fn show(shown: Shown) {
    CONSOLE.lock().shown = shown;
}

/// A byte of a guest's output. `false` where the line cannot keep up: the guest is to wait.
pub(crate) fn guest_output(id: DomainId, byte: u8) -> bool {
    let mut console = CONSOLE.lock();
    if console.output.len() >= OUTPUT_BYTES - RESERVED_BYTES {
        console.send();
        if console.output.len() >= OUTPUT_BYTES - RESERVED_BYTES {
            return false;
        }
    }
    console.guest_byte(id, byte);
    console.send();
    true
}

/// Ends a guest's unfinished line, when the guest has ended.
pub(crate) fn end_line(id: DomainId) {
    let mut console = CONSOLE.lock();
    if let Some(index) = console.guests.iter().position(|g| g.id == id)
        && !console.guests[index].line.is_empty()
    {
        console.flush_line(index);
    }
    console.send();
}

/// Sends what waits, takes what was typed. Called when the line interrupts.
pub(crate) fn poll() {
    let mut console = CONSOLE.lock();
    console.send();
    for _ in 0..INPUT_STEP {
        let Some(byte) = serial::read() else { break };
        console.typed(byte);
    }
    console.send();
}

/// Offers each guest what was typed for it; `take` answers whether the guest had room.
pub(crate) fn deliver_input(mut take: impl FnMut(DomainId, u8) -> bool) {
    let mut console = CONSOLE.lock();
    for guest in &mut console.guests {
        while let Some(&byte) = guest.input.front() {
            if !take(guest.id, byte) {
                break;
            }
            guest.input.pop_front();
        }
    }
}

/// Whether some guest has input waiting.
pub(crate) fn has_input() -> bool {
    CONSOLE.lock().guests.iter().any(|g| !g.input.is_empty())
}

/// Waits until everything is on the line: before the machine is turned off.
pub(crate) fn drain() {
    loop {
        let mut console = CONSOLE.lock();
        console.send();
        if console.output.is_empty() {
            return;
        }
    }
}

/// What a line of several consoles begins with: whose it is, in a colour.
fn prefix(colour: u8, name: &str, mut write: impl FnMut(&[u8])) {
    let (tens, ones) = (b'0' + colour / 10, b'0' + colour % 10);
    write(&[0x1b, b'[', tens, ones, b'm', b'[']);
    write(name.as_bytes());
    write(b"]\x1b[0m ");
}

impl Console {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.output.len() < OUTPUT_BYTES {
                self.output.push_back(byte);
            }
        }
    }

    fn send(&mut self) {
        while !self.output.is_empty() {
            let sent = serial::try_write(self.output.as_slices().0);
            if sent == 0 {
                serial::interrupt_when_sent(true);
                return;
            }
            self.output.drain(..sent);
        }
        serial::interrupt_when_sent(false);
    }

    fn guest_byte(&mut self, id: DomainId, byte: u8) {
        let Some(index) = self.guests.iter().position(|g| g.id == id) else { return };
        match self.shown {
            Shown::Guest(shown) if shown == id => {
                self.mid_line = byte != b'\n';
                self.push(&[byte]);
            }
            Shown::All => {
                let line = &mut self.guests[index].line;
                match byte {
                    b'\n' => self.flush_line(index),
                    b'\r' => {}
                    _ => {
                        line.push(byte);
                        if line.len() == LINE_BYTES {
                            self.flush_line(index);
                        }
                    }
                }
            }
            Shown::Guest(_) | Shown::Log => {}
        }
    }

    fn flush_line(&mut self, index: usize) {
        let colour = COLOURS[index % COLOURS.len()];
        let line = core::mem::take(&mut self.guests[index].line);
        let name = core::mem::take(&mut self.guests[index].name);
        self.prefix(colour, &name);
        self.push(&line);
        self.push(b"\r\n");
        self.guests[index].name = name;
        self.guests[index].line = line;
        self.guests[index].line.clear();
    }

    fn prefix(&mut self, colour: u8, name: &str) {
        prefix(colour, name, |bytes| self.push(bytes));
    }

    fn log_line(&mut self, text: &str, important: bool) {
        if self.log.len() == KEPT_LINES {
            self.log.pop_front();
        }
        self.log.push_back(text.into());
        let shown = match self.shown {
            Shown::All | Shown::Log => true,
            Shown::Guest(_) => important,
        };
        if shown {
            if core::mem::take(&mut self.mid_line) {
                self.push(b"\r\n");
            }
            self.prefix(1, LOG_NAME);
            self.push(text.as_bytes());
            self.push(b"\r\n");
        }
    }

    fn typed(&mut self, byte: u8) {
        if core::mem::take(&mut self.escaped) {
            match byte {
                b'c' => return self.next(),
                ESCAPE => {}
                // Other keys behind Ctrl-A mean nothing here.
                _ => return,
            }
        } else if byte == ESCAPE {
            self.escaped = true;
            return;
        }
        let selected = match self.shown {
            Shown::Guest(id) => Some(id),
            // With one guest there is no doubt about whom one speaks to.
            Shown::All if self.guests.len() == 1 => Some(self.guests[0].id),
            _ => None,
        };
        if let Some(guest) = self.guests.iter_mut().find(|g| Some(g.id) == selected)
            && guest.input.len() < INPUT_BYTES
        {
            guest.input.push_back(byte);
        }
    }

    /// All, each guest, the log, and around again.
    fn next(&mut self) {
        let first = self.guests.first().map(|g| Shown::Guest(g.id));
        self.shown = match self.shown {
            Shown::All => first.unwrap_or(Shown::Log),
            Shown::Guest(id) => {
                let at = self.guests.iter().position(|g| g.id == id).unwrap_or(0);
                self.guests.get(at + 1).map_or(Shown::Log, |g| Shown::Guest(g.id))
            }
            Shown::Log => Shown::All,
        };
        self.mid_line = false;
        self.push(b"\r\n");
        let name: String = match self.shown {
            Shown::All => "all consoles".into(),
            Shown::Log => "Caisson's log".into(),
            Shown::Guest(id) => {
                self.guests.iter().find(|g| g.id == id).map_or_else(String::new, |g| g.name.clone())
            }
        };
        self.prefix(1, LOG_NAME);
        self.push(b"showing ");
        self.push(name.as_bytes());
        self.push(b"; Ctrl-A c shows the next\r\n");
        if self.shown == Shown::Log {
            let lines = core::mem::take(&mut self.log);
            for line in &lines {
                self.push(line.as_bytes());
                self.push(b"\r\n");
            }
            self.log = lines;
        }
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
            let mut console = CONSOLE.lock();
            console.log_line(&self.text, self.important);
            console.send();
        } else {
            // Nothing can be kept yet.
            prefix(1, LOG_NAME, serial::write);
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
