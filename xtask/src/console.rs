//! The terminal between a person and the serial line, and the plain relay of headless runs.
//!
//! On a terminal every key goes to the machine as it is typed, but for the prefix Ctrl-A: `Ctrl-A x` quits. Any
//! other key after it is passed on together with the Ctrl-A, for Caisson switches between consoles itself (`Ctrl-A c`) and
//! sends a Ctrl-A to a guest (`Ctrl-A a`). What the machine prints is passed through byte for byte.
//!
//! One thread waits in `poll` for the keyboard, the serial line and signals at once; nothing is polled in a loop.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    termios::{OptionalActions, Termios, tcgetattr, tcsetattr},
};

use crate::{
    emulator::Running,
    error::{Context, Error, Result},
    outcome::Outcome,
    serial::Serial,
};

/// Ctrl-A.
const PREFIX: u8 = 1;

/// Keys waiting for the machine beyond which no more are read: enough for a pasted file, and no hoard.
const PENDING_LIMIT: usize = 64 << 10;

/// What a session is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Standard input, with the keys of the module's description.
    Keyboard,
    /// Nothing.
    None,
}

/// Sorts typed bytes into those for the machine and the wish to quit.
#[derive(Debug, Default)]
struct Keys {
    after_prefix: bool,
}

impl Keys {
    /// Appends to `out` what `typed` means for the machine; true when the person wants to quit.
    fn feed(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &key in typed {
            match (self.after_prefix, key) {
                (false, PREFIX) => {
                    self.after_prefix = true;
                    continue;
                }
                (false, _) => out.push(key),
                (true, b'x' | b'X') => return true,
                (true, _) => out.extend([PREFIX, key]),
            }
            self.after_prefix = false;
        }
        false
    }
}

/// Leaves lines of a trace out of what a person sees: they are for [`crate::trace`], which reads the log.
#[derive(Debug, Default)]
struct Shown {
    /// Bytes since the last line end, as far as they may be a trace line's beginning; more than the mark where they are not.
    matched: usize,
}

impl Shown {
    /// Appends to `out` what of `bytes` is to be shown. The beginning of what may be a trace line is held back.
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mark = caisson_trace::MARK.as_bytes();
        for &byte in bytes {
            match self.matched {
                // In a trace line.
                at if at == mark.len() => {}
                at if mark.get(at) == Some(&byte) => {
                    self.matched += 1;
                    continue;
                }
                at => {
                    out.extend(mark.iter().take(if at < mark.len() { at } else { 0 }));
                    out.push(byte);
                    self.matched = usize::MAX;
                }
            }
            if byte == b'\n' {
                self.matched = 0;
            }
        }
    }
}

/// The terminal's settings before raw mode, for whoever has to put them back: [`RawMode`] or a panic.
static BEFORE_RAW: Mutex<Option<Termios>> = Mutex::new(None);

/// Puts the terminal back as it was, if it is in raw mode.
pub fn restore_terminal() {
    if let Some(before) = BEFORE_RAW.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // There is nobody to tell if it fails: the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &before);
    }
}

/// The terminal passes every key at once, uninterpreted, for as long as this lives.
struct RawMode;

impl RawMode {
    fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin()).cannot(|| "read the terminal's settings".to_owned())?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE_RAW.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let mode = Self;
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw).cannot(|| "set the terminal".to_owned())?;
        Ok(mode)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// Signals that end a session, as bytes on a socket that `poll` can wait for.
fn signals() -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair().cannot(|| "make a socket".to_owned())?;
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        let end = theirs.try_clone().cannot(|| "duplicate a socket".to_owned())?;
        signal_hook::low_level::pipe::register(signal, end).cannot(|| "wait for signals".to_owned())?;
    }
    Ok(ours)
}

/// Connects the machine's serial line until the machine ends, the limit passes or the person quits. All that it prints
/// goes to standard output and into `log`.
///
/// # Errors
/// When the person interrupts, or the system fails us. The machine is ended in every case.
pub fn attach(machine: &mut Running, input: Input, limit: Option<Duration>, log: File) -> Result<Outcome> {
    let raw =
        if input == Input::Keyboard && io::stdin().is_terminal() { Some(RawMode::enter()?) } else { None };
    let mut session = Session::new(machine, input, log)?;
    let deadline = limit.map(|limit| (Instant::now() + limit, limit));
    let ended = session.relay(deadline);
    let unfinished_line = session.unfinished_line;
    drop(session);
    drop(raw);
    if unfinished_line {
        // Whoever read it may be gone.
        let _ = writeln!(io::stdout());
    }
    match ended {
        Ok(Some(outcome)) => {
            machine.kill();
            Ok(outcome)
        }
        Ok(None) => machine.end(),
        Err(error) => {
            machine.kill();
            Err(error)
        }
    }
}

struct Session {
    serial: Serial,
    signals: UnixStream,
    log: File,
    keys: Keys,
    pending: Vec<u8>,
    keyboard: bool,
    unfinished_line: bool,
    shown: Shown,
}

impl Session {
    fn new(machine: &Running, input: Input, log: File) -> Result<Self> {
        let serial = machine.serial().try_clone().cannot(|| "duplicate a socket".to_owned())?;
        serial.set_nonblocking(true).cannot(|| "set up the serial line".to_owned())?;
        Ok(Self {
            serial,
            signals: signals()?,
            log,
            keys: Keys::default(),
            pending: Vec::new(),
            keyboard: input == Input::Keyboard,
            unfinished_line: false,
            shown: Shown::default(),
        })
    }

    /// Relays until the serial line closes (`None`) or something else ends the session.
    fn relay(&mut self, deadline: Option<(Instant, Duration)>) -> Result<Option<Outcome>> {
        loop {
            let left = match deadline {
                Some((at, limit)) => match at.checked_duration_since(Instant::now()) {
                    Some(left) => Some(left),
                    None => return Ok(Some(Outcome::TimedOut(limit))),
                },
                None => None,
            };
            let ready = self.wait(left)?;
            if ready.signal {
                return Err(Error::Interrupted);
            }
            if ready.serial && !self.print()? {
                return Ok(None);
            }
            if ready.keyboard && self.read_keys()? {
                return Ok(Some(Outcome::Quit));
            }
            self.send()?;
        }
    }

    fn wait(&self, left: Option<Duration>) -> Result<Ready> {
        let stdin = io::stdin();
        let writing = if self.pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let mut waiting = vec![
            PollFd::new(&self.serial, PollFlags::IN | writing),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        if self.keyboard && self.pending.len() < PENDING_LIMIT {
            waiting.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut waiting, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).cannot(|| "wait for the console".to_owned()),
        }
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        let is_ready = |i: usize| waiting.get(i).is_some_and(|entry| entry.revents().intersects(readable));
        Ok(Ready { serial: is_ready(0), signal: is_ready(1), keyboard: is_ready(2) })
    }

    /// Shows what the machine printed; false at its end.
    fn print(&mut self) -> Result<bool> {
        let mut buffer = [0; 16 << 10];
        let length = match (&self.serial).read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(true);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error).cannot(|| "read the serial line".to_owned()),
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        self.log.write_all(bytes).cannot(|| "write the serial log".to_owned())?;
        let mut shown = Vec::with_capacity(bytes.len());
        self.shown.feed(bytes, &mut shown);
        if let Some(last) = shown.last() {
            self.unfinished_line = *last != b'\n';
        }
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(&shown)
            .and_then(|()| stdout.flush())
            .cannot(|| "write to standard output".to_owned())?;
        Ok(true)
    }

    /// Takes typed keys; true when the person wants to quit.
    fn read_keys(&mut self) -> Result<bool> {
        let mut buffer = [0; 4 << 10];
        match rustix::io::read(io::stdin(), &mut buffer) {
            // The end of a piped input does not end the machine.
            Ok(0) => self.keyboard = false,
            Ok(length) => {
                return Ok(self.keys.feed(buffer.get(..length).unwrap_or_default(), &mut self.pending));
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(rustix::io::Errno::IO) => self.keyboard = false,
            Err(error) => return Err(error).cannot(|| "read the keyboard".to_owned()),
        }
        Ok(false)
    }

    /// Sends as much of the pending keys as the machine takes.
    fn send(&mut self) -> Result<()> {
        while !self.pending.is_empty() {
            match (&self.serial).write(&self.pending) {
                Ok(0) => break,
                Ok(sent) => {
                    self.pending.drain(..sent);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The machine has just ended; reading will find that out.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
                {
                    self.pending.clear();
                }
                Err(error) => return Err(error).cannot(|| "write to the serial line".to_owned()),
            }
        }
        Ok(())
    }
}

struct Ready {
    serial: bool,
    signal: bool,
    keyboard: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(parts: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut keys, mut out) = (Keys::default(), Vec::new());
        let quit = parts.iter().any(|part| keys.feed(part, &mut out));
        (out, quit)
    }

    #[test]
    fn ordinary_keys_pass_untouched() {
        let typed = "ls -l\r\x03\x04\x1b[A ä".as_bytes();
        assert_eq!(feed(&[typed]), (typed.to_vec(), false));
    }

    #[test]
    fn the_prefix_quits_doubles_or_passes_on() {
        assert_eq!(feed(&[b"hi\x01xlost"]), (b"hi".to_vec(), true));
        assert_eq!(feed(&[b"\x01a!"]), (b"\x01a!".to_vec(), false));
        assert_eq!(feed(&[b"\x01\x01!"]), (b"\x01\x01!".to_vec(), false));
        assert_eq!(feed(&[b"\x01c\x01t"]), (b"\x01c\x01t".to_vec(), false));
    }

    #[test]
    fn trace_lines_are_not_shown() {
        let log = b"% 5%trace 7\r\n%trace AAAA\r\n%trac\r\n%trace BBBB\r\n%%trace C\r\nend%".as_slice();
        let expected = b"% 5%trace 7\r\n%trac\r\n%%trace C\r\nend%".as_slice();
        for chunk in [1, 3, 7, 100] {
            let (mut shown, mut out) = (Shown::default(), Vec::new());
            log.chunks(chunk).for_each(|bytes| shown.feed(bytes, &mut out));
            assert_eq!(out, expected, "{}", String::from_utf8_lossy(&out));
        }
    }

    #[test]
    fn the_prefix_is_remembered_between_reads() {
        assert_eq!(feed(&[b"a\x01", b"x"]), (b"a".to_vec(), true));
        assert_eq!(feed(&[b"\x01", b"c", b"x"]), (b"\x01cx".to_vec(), false));
    }
}
