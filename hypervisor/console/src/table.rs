//! The table on the screen: when it is shown, and how it gets onto the line.

use alloc::string::String;

use crate::Mux;
use crate::mux::LINE_BYTES;

/// Lines of the log under the table.
pub(crate) const LOG_LINES: usize = 3;
/// Columns of the screen; the last one stays free, where some terminals wrap.
pub(crate) const COLUMNS: usize = 79;
/// Output that may still wait when the next table is made: a slow line shows fewer of them, and is not filled with them.
const STILL_WAITING: usize = 1024;

/// Output that may still wait when a line of the trace is added: what guests say meanwhile goes out between such lines.
const TRACE_WAITING: usize = 4096;

const CLEAR: &[u8] = b"\x1b[2J\x1b[H";
const HOME: &[u8] = b"\x1b[H";
const CLEAR_TO_END_OF_LINE: &[u8] = b"\x1b[K";
const CLEAR_BELOW: &[u8] = b"\x1b[J";

impl Mux {
    /// Whether a table is wanted now: one is shown, and the line has taken the last one.
    #[must_use]
    pub fn table_wanted(&self) -> bool {
        self.table && self.output.len() <= STILL_WAITING
    }

    /// Whether the table is shown, in place of any console.
    #[must_use]
    pub fn table_shown(&self) -> bool {
        self.table
    }

    /// Shows a table of `lines` with the last of the log below it, if a table is shown at all. A line is cut after 79
    /// characters.
    pub fn show_table(&mut self, lines: &[String]) {
        if !self.table {
            return;
        }
        self.push(HOME);
        for line in lines {
            self.table_line(line);
        }
        self.table_line("");
        for at in self.log.len().saturating_sub(LOG_LINES)..self.log.len() {
            // Taken out for the moment in which it is written.
            let line = core::mem::take(&mut self.log[at]);
            self.table_line(&line);
            self.log[at] = line;
        }
        self.push(CLEAR_BELOW);
    }

    fn table_line(&mut self, line: &str) {
        let end = line.char_indices().nth(COLUMNS).map_or(line.len(), |(at, _)| at);
        self.push(line.get(..end).unwrap_or_default().as_bytes());
        self.push(CLEAR_TO_END_OF_LINE);
        self.push(b"\r\n");
    }

    pub(crate) fn toggle_table(&mut self) {
        if self.table {
            self.leave_table();
        } else {
            self.table = true;
            self.push(CLEAR);
        }
    }

    /// Shows again what was shown before the table, if it was shown.
    pub(crate) fn leave_table(&mut self) {
        if self.clear_table() {
            self.announce();
        }
    }

    /// Takes the table off the screen; whether it was there.
    pub(crate) fn clear_table(&mut self) -> bool {
        let was_there = core::mem::take(&mut self.table);
        if was_there {
            self.push(CLEAR);
        }
        was_there
    }

    /// A line of the trace, for a program at the other end. `false` where there is no room for it now; then nothing of it
    /// is on the line.
    #[must_use]
    pub fn trace_line(&mut self, line: &str) -> bool {
        if self.output.len() > TRACE_WAITING || line.len() > LINE_BYTES {
            return false;
        }
        if core::mem::take(&mut self.mid_line) {
            self.push(b"\r\n");
        }
        self.push(line.as_bytes());
        self.push(b"\r\n");
        true
    }
}
