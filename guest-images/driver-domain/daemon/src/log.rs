//! Lines on the standard error, which is the driver domain's console; those that a guest can cause are limited.

use std::fmt;
use std::time::{Duration, Instant};

/// Writes a line.
pub fn line(text: fmt::Arguments<'_>) {
    eprintln!("caisson-backend: {text}");
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

#[cfg(test)]
mod tests {
    use super::*;

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
