//! A machine that runs: expect, type, end.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use regex_lite::Regex;
use xtask::{
    emulator::{Kind, Running},
    outcome::Outcome,
    qmp::Qmp,
};

use crate::{
    Failure, Verdict,
    transcript::{From, Line, Match, Transcript},
};

/// A running machine. Dropping it ends it. Seconds of time limits are those of QEMU's translator; on a slower emulator
/// the limits are longer ([`xtask::emulator::Kind::limit`]).
#[derive(Debug)]
pub struct Run {
    machine: Running,
    transcript: Transcript,
    log: File,
    read: usize,
    outcome: Option<Outcome>,
}

impl Run {
    pub(crate) fn new(machine: Running, log: File) -> Self {
        Self { machine, transcript: Transcript::default(), log, read: 0, outcome: None }
    }

    /// Waits until `from` says a line that the regular expression `pattern` matches, behind the last line of theirs that
    /// was expected.
    ///
    /// # Errors
    /// When that takes longer than `seconds`, or the machine ends before.
    pub fn expect(&mut self, from: From<'_>, seconds: u64, pattern: &str) -> Verdict<Match> {
        self.wait_for(from, seconds, pattern, Transcript::find)
    }

    /// The same for what need not be a whole line: a prompt, or a screen that is drawn without line ends.
    ///
    /// # Errors
    /// As with [`Run::expect`].
    pub fn expect_prompt(&mut self, from: From<'_>, seconds: u64, pattern: &str) -> Verdict<Match> {
        self.wait_for(from, seconds, pattern, Transcript::find_unfinished)
    }

    fn wait_for(
        &mut self,
        from: From<'_>,
        seconds: u64,
        pattern: &str,
        find: fn(&mut Transcript, From<'_>, &Regex) -> Option<Match>,
    ) -> Verdict<Match> {
        let regex = regex(pattern)?;
        let deadline = self.deadline(seconds);
        loop {
            if let Some(found) = find(&mut self.transcript, from, &regex) {
                return Ok(found);
            }
            if let Some(outcome) = self.outcome {
                return Err(self.failure(format!("{from:?} never said {pattern:?}: {outcome}")));
            }
            if Instant::now() >= deadline {
                return Err(self.failure(format!("{from:?} did not say {pattern:?} within {seconds} s")));
            }
            self.read(deadline)?;
        }
    }

    /// Types `keys` on the serial line.
    ///
    /// # Errors
    /// When the machine has ended.
    pub fn send(&mut self, keys: &str) -> Verdict {
        let sent = self.machine.serial().write_all(keys.as_bytes());
        sent.map_err(|error| self.failure(format!("cannot type {keys:?}: {error}")))
    }

    /// Waits for the machine's end, which is to be like this.
    ///
    /// # Errors
    /// When it ends otherwise, or takes longer than `seconds`.
    pub fn end(&mut self, seconds: u64, expected: Outcome) -> Verdict {
        match self.ended(seconds)? {
            outcome if outcome == expected => Ok(()),
            outcome => Err(self.failure(format!("ended with {outcome:?}, not {expected:?}"))),
        }
    }

    /// Waits for the machine's end; answers how it ended.
    ///
    /// # Errors
    /// When that takes longer than `seconds`.
    pub fn ended(&mut self, seconds: u64) -> Verdict<Outcome> {
        let deadline = self.deadline(seconds);
        loop {
            if let Some(outcome) = self.outcome {
                return Ok(outcome);
            }
            if Instant::now() >= deadline {
                return Err(self.failure(format!("no end within {seconds} s")));
            }
            self.read(deadline)?;
        }
    }

    /// Reads what the machine says for so long, whatever it is.
    ///
    /// # Errors
    /// When the system fails us.
    pub fn listen(&mut self, time: Duration) -> Verdict {
        let deadline = Instant::now() + time;
        while self.outcome.is_none() && Instant::now() < deadline {
            self.read(deadline)?;
        }
        Ok(())
    }

    /// Reads until `bytes` have been read since the start, and not one more.
    ///
    /// # Errors
    /// When that takes longer than `seconds`, or the machine ends before.
    pub fn read_up_to(&mut self, bytes: usize, seconds: u64) -> Verdict {
        let deadline = self.deadline(seconds);
        while let Some(left) = bytes.checked_sub(self.read).filter(|left| *left > 0) {
            if self.outcome.is_some() || Instant::now() >= deadline {
                return Err(self.failure(format!("{} bytes came within {seconds} s, not {bytes}", self.read)));
            }
            self.read_some(deadline, left)?;
        }
        Ok(())
    }

    /// Leaves what the machine says unread until so many bytes of it wait.
    ///
    /// # Errors
    /// When that takes longer than `seconds`.
    pub fn leave_unread(&mut self, bytes: usize, seconds: u64) -> Verdict {
        let deadline = self.deadline(seconds);
        loop {
            let waiting = self.machine.serial().waiting();
            let waiting =
                waiting.map_err(|error| self.failure(format!("cannot ask the serial line: {error}")))?;
            if usize::try_from(waiting).is_ok_and(|waiting| waiting >= bytes) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.failure(format!("{waiting} bytes wait after {seconds} s, not {bytes}")));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// How many bytes have been read since the start.
    #[must_use]
    pub fn bytes_read(&self) -> usize {
        self.read
    }

    /// Fails if `from` has ever said a line that `pattern` matches.
    ///
    /// # Errors
    /// With that line.
    pub fn never(&self, from: From<'_>, pattern: &str) -> Verdict {
        let regex = regex(pattern)?;
        match self.transcript.lines_from(from).find(|line| regex.is_match(&line.text)) {
            Some(line) => Err(self.failure(format!("{from:?} said {:?}", line.text))),
            None => Ok(()),
        }
    }

    /// The complete lines of `from` so far.
    pub fn lines<'a>(&'a self, from: From<'a>) -> impl Iterator<Item = &'a Line> {
        self.transcript.lines_from(from)
    }

    /// The complete lines of `from` so far that `pattern` matches.
    ///
    /// # Errors
    /// When the pattern is none.
    pub fn count(&self, from: From<'_>, pattern: &str) -> Verdict<usize> {
        let regex = regex(pattern)?;
        Ok(self.lines(from).filter(|line| regex.is_match(&line.text)).count())
    }

    /// The emulator that it runs on.
    #[must_use]
    pub fn machine(&self) -> Kind {
        self.machine.kind()
    }

    /// QEMU's monitor; it can be asked for once.
    ///
    /// # Errors
    /// When QEMU has ended, or this is another emulator.
    pub fn monitor(&mut self) -> Verdict<Qmp> {
        Ok(self.machine.monitor()?)
    }

    fn deadline(&self, seconds: u64) -> Instant {
        Instant::now() + self.machine.kind().limit(Duration::from_secs(seconds))
    }

    fn failure(&self, reason: String) -> Failure {
        let messages = self.machine.messages();
        Failure::new(if messages.is_empty() { reason } else { format!("{reason}\n{messages}") })
    }

    /// Reads what there is, or waits for it until `deadline`.
    fn read(&mut self, deadline: Instant) -> Verdict {
        self.read_some(deadline, usize::MAX)
    }

    /// The same for no more than `most` bytes.
    fn read_some(&mut self, deadline: Instant, most: usize) -> Verdict {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut buffer = [0; 16 << 10];
        let buffer = buffer.get_mut(..most.min(16 << 10)).unwrap_or_default();
        let mut serial = self.machine.serial();
        let read = serial.set_read_timeout(Some(left)).and_then(|()| serial.read(buffer));
        match read {
            Ok(0) => self.closed(),
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                self.read += bytes.len();
                self.transcript.push(bytes, Instant::now());
                self.log.write_all(bytes).map_err(|error| self.failure(format!("cannot log: {error}")))
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.closed(),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(self.failure(format!("cannot read the serial line: {error}"))),
        }
    }

    fn closed(&mut self) -> Verdict {
        self.outcome = Some(self.machine.end()?);
        Ok(())
    }
}

fn regex(pattern: &str) -> Verdict<Regex> {
    Regex::new(pattern).map_err(|error| Failure::new(format!("{pattern:?}: {error}")))
}
