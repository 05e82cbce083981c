//! What a person types: keys behind Ctrl-A for Caisson, all others for the guest that is shown.

use crate::mux::{INPUT_BYTES, push};
use crate::{Mux, Shown, log_prefix};

/// Ctrl-A.
pub(crate) const PREFIX: u8 = 0x01;

/// What the keys behind Ctrl-A do. `Ctrl-A x` is the terminal's on the other end (`cargo xtask run`).
const HELP: &[&str] = &[
    "Ctrl-A c  the next console: each guest, Caisson's log, all together",
    "Ctrl-A t  where the time goes, each second; again to leave it",
    "Ctrl-A d  write the trace to this line, where there is one (boot word trace=on)",
    "Ctrl-A p  the other scheduling policy for every pool: bvt or sedf",
    "Ctrl-A a  a Ctrl-A for the guest",
    "Ctrl-A ?  this list",
    "Ctrl-A x  quit, where cargo xtask run started the machine",
];

impl Mux {
    /// A byte that a person typed.
    pub fn typed(&mut self, byte: u8) {
        if core::mem::take(&mut self.after_prefix) {
            match byte {
                b'c' | b'C' => self.show_next(),
                b't' | b'T' => self.toggle_table(),
                b'd' | b'D' => {
                    self.leave_table();
                    self.trace_wanted = true;
                }
                b'p' | b'P' => self.policy_wanted = true,
                b'?' | b'h' | b'H' => self.help(),
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

    /// Whom a person speaks to: the guest that is shown, or the only one; nobody at the table, which `q` leaves.
    fn speak(&mut self, byte: u8) {
        if self.table {
            if matches!(byte, b'q' | b'Q') {
                self.leave_table();
            }
            return;
        }
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

    /// Whether somebody asked for the trace since the last call.
    #[must_use]
    pub fn take_trace_wanted(&mut self) -> bool {
        core::mem::take(&mut self.trace_wanted)
    }

    /// Whether somebody asked for the pools' other policy since the last call.
    #[must_use]
    pub fn take_policy_wanted(&mut self) -> bool {
        core::mem::take(&mut self.policy_wanted)
    }

    fn help(&mut self) {
        self.leave_table();
        if core::mem::take(&mut self.mid_line) {
            self.push(b"\r\n");
        }
        HELP.iter().for_each(|line| self.log_now(line));
    }

    /// All, each guest, the log, and around again.
    fn show_next(&mut self) {
        let guest = |at: usize| self.guests.get(at).map_or(Shown::Log, |g| Shown::Guest(g.id));
        self.shown = match self.shown {
            Shown::All => guest(0),
            Shown::Guest(id) => guest(self.guests.iter().position(|g| g.id == id).map_or(0, |at| at + 1)),
            Shown::Log => Shown::All,
        };
        if !self.clear_table() {
            self.push(b"\r\n");
        }
        self.announce();
    }

    /// Says what is shown, and shows the guest's unfinished line or the last of the log.
    pub(crate) fn announce(&mut self) {
        self.mid_line = false;
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
}
