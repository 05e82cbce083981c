//! Lines on the standard error, which is the driver domain's console; those that a guest can cause are limited.

use std::fmt;
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Writes a line.
pub fn line(text: fmt::Arguments<'_>) {
    let line = format!("caisson-backend: {text}\n");
    // By one write: a shell may write to the console as well. Nobody is told where nobody listens.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Writes a line: `log!("{count} devices")`.
macro_rules! log {
    ($($argument:tt)*) => { $crate::log::line(format_args!($($argument)*)) };
}
pub(crate) use log;

/// Lets a few lines through in each interval, and counts the others.
#[derive(Debug)]
pub struct Limiter {
    start: Instant,
    lines: u32,
    held: u64,
}

impl Limiter {
    const INTERVAL: Duration = Duration::from_secs(10);
    const LINES: u32 = 4;

    /// Nothing was said yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { start: now, lines: 0, held: 0 }
    }

    /// Whether a line may be written now: with how many were held back before it.
    pub fn pass(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.start) >= Self::INTERVAL {
            (self.start, self.lines) = (now, 0);
        }
        if self.lines >= Self::LINES {
            self.held = self.held.saturating_add(1);
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.held))
    }
}

/// What is said of a device: its guest can cause it, by restarting again and again for one, and so it is limited. The daemon's own
/// thread and the device's share it.
#[derive(Debug)]
pub struct Voice {
    name: String,
    limiter: Mutex<Limiter>,
}

impl Voice {
    /// Of the device with this name.
    #[must_use]
    pub fn new(name: String) -> Self {
        Self { name, limiter: Mutex::new(Limiter::new(Instant::now())) }
    }

    /// How the device is called in the log.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Says something of it, if not too much has been said.
    pub fn say(&self, text: fmt::Arguments<'_>) {
        if let Some(text) = self.line(Instant::now(), text) {
            line(format_args!("{text}"));
        }
    }

    fn line(&self, now: Instant, text: fmt::Arguments<'_>) -> Option<String> {
        let held = self.limiter.lock().unwrap_or_else(PoisonError::into_inner).pass(now)?;
        let more =
            if held > 0 { format!(" ({held} lines before this one were left out)") } else { String::new() };
        Some(format!("{}: {text}{more}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_device_is_limited() {
        let voice = Voice::new("web disk 1".into());
        let now = Instant::now();
        let said: Vec<_> = (0..50).filter_map(|life| voice.line(now, format_args!("life {life}"))).collect();
        assert_eq!(
            said,
            ["web disk 1: life 0", "web disk 1: life 1", "web disk 1: life 2", "web disk 1: life 3"]
        );
        let later = voice.line(now + 2 * Limiter::INTERVAL, format_args!("life 50"));
        assert_eq!(later.unwrap(), "web disk 1: life 50 (46 lines before this one were left out)");
        let other = Voice::new("mail disk 1".into());
        assert!(other.line(now, format_args!("life 0")).is_some(), "each device has its own");
    }

    #[test]
    fn a_flood_becomes_a_few_lines_and_a_count() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let passed = (0..1000).filter(|_| limiter.pass(start).is_some()).count();
        assert_eq!(passed, 4);
        assert_eq!(limiter.pass(start + Limiter::INTERVAL), Some(996));
        assert_eq!(limiter.pass(start + Limiter::INTERVAL), Some(0));
    }
}
