//! How a machine run ends, and what the front door's exit code says about it.
//!
//! Caisson gets a boot word that names the emulator's way to end a run (see its `exit_device.rs`), and gives it one of
//! these results when it is done. `exit=isa-debug:0xf4` is QEMU's `isa-debug-exit`: the result `r` ends QEMU with exit code
//! `(r << 1) | 1`. How Bochs tells is in [`crate::bochs`].
//!
//! | `r` | QEMU's exit code | meaning | exit code of `cargo xtask run` |
//! |--:|--:|---|--:|
//! | 0x10 | 33 | every guest ended cleanly | 0 |
//! | 0x11 | 35 | a guest crashed or was killed | 1 |
//! | 0x12 | 37 | Caisson refused to boot (configuration or hardware), and said why | 2 |
//! | 0x13 | 39 | Caisson itself panicked, and left a crash record | 101 |
//! | – | 0 | the machine reset or powered off without a result: a triple fault of Caisson's | 1 |
//! | – | – | the time limit passed and the emulator was killed | 124 |

use std::{fmt, os::unix::process::ExitStatusExt as _, process::ExitStatus, time::Duration};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every guest ended cleanly.
    Clean,
    /// A guest crashed or was killed.
    GuestFailed,
    /// Caisson refused to boot.
    Refused,
    /// Caisson panicked.
    Panicked,
    /// The machine was reset or powered off, and no result was given.
    NoResult,
    /// The emulator ended with an exit code that is no result of Caisson's.
    Emulator(i32),
    /// The emulator was ended by a signal that is none of ours.
    Signal(i32),
    /// The time limit passed.
    TimedOut(Duration),
    /// The person quit (Ctrl-A x).
    Quit,
}

impl Outcome {
    /// Reads QEMU's exit status.
    #[must_use]
    pub fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(0), _) => Self::NoResult,
            (Some(code), _) => {
                let result = u8::try_from(code >> 1).ok().filter(|_| code & 1 == 1);
                result.and_then(Self::of_result).unwrap_or(Self::Emulator(code))
            }
            (None, signal) => Self::Signal(signal.unwrap_or_default()),
        }
    }

    /// The outcome that Caisson's result `code` means.
    #[must_use]
    pub fn of_result(code: u8) -> Option<Self> {
        match code {
            0x10 => Some(Self::Clean),
            0x11 => Some(Self::GuestFailed),
            0x12 => Some(Self::Refused),
            0x13 => Some(Self::Panicked),
            _ => None,
        }
    }

    /// The exit code for the person's shell.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Clean | Self::Quit => 0,
            Self::GuestFailed | Self::NoResult | Self::Emulator(_) | Self::Signal(_) => 1,
            Self::Refused => 2,
            Self::Panicked => 101,
            Self::TimedOut(_) => 124,
        }
    }

    /// Whether the run is a success.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.exit_code() == 0
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("every guest ended cleanly"),
            Self::GuestFailed => f.write_str("a guest crashed or was killed: see its last lines"),
            Self::Refused => f.write_str("Caisson refused to boot: see the line it printed"),
            Self::Panicked => f.write_str("Caisson panicked: see its crash record"),
            Self::NoResult => {
                f.write_str("the machine reset without a result: most likely a triple fault in Caisson")
            }
            Self::Emulator(code) => {
                write!(f, "the emulator ended with exit code {code}, which is no result of Caisson's")
            }
            Self::Signal(signal) => write!(f, "the emulator was killed by signal {signal}"),
            Self::TimedOut(limit) => {
                write!(
                    f,
                    "no end after {} s: the emulator was killed; --timeout sets another limit",
                    limit.as_secs()
                )
            }
            Self::Quit => f.write_str("ended from the keyboard"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> Outcome {
        Outcome::of(ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn results_come_through_the_exit_port() {
        for (result, outcome, code) in [
            (0x10, Outcome::Clean, 0),
            (0x11, Outcome::GuestFailed, 1),
            (0x12, Outcome::Refused, 2),
            (0x13, Outcome::Panicked, 101),
        ] {
            assert_eq!(exited((result << 1) | 1), outcome);
            assert_eq!(outcome.exit_code(), code);
        }
    }

    #[test]
    fn an_end_without_a_result_is_a_failure() {
        assert_eq!(exited(0), Outcome::NoResult);
        assert_eq!(exited(1), Outcome::Emulator(1));
        assert_eq!(Outcome::of(ExitStatus::from_raw(9)), Outcome::Signal(9));
        for outcome in [exited(0), exited(1), Outcome::Signal(9), Outcome::TimedOut(Duration::from_secs(1))] {
            assert!(!outcome.is_success());
        }
    }
}
