//! What can go wrong, told to a person in one line, and the exit code each kind ends with.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done; for a run: every guest ended cleanly, or the person quit |
//! | 1 | something failed: a build, a test, a guest |
//! | 2 | the person has to change something: the command line, a config, a missing package |
//!
//! How a finished machine run maps to an exit code is in [`crate::outcome`].

use std::fmt;

/// A failure of one of the front door's commands.
#[derive(Debug)]
pub enum Error {
    /// What was typed, or a file it names, has to be changed (exit code 2).
    Usage(String),
    /// Something has to be installed first (exit code 2).
    Missing {
        /// What is missing and for what.
        what: String,
        /// The one command that provides it.
        command: String,
    },
    /// A step failed (exit code 1).
    Failed(String),
    /// A step failed and a tool's own words tell why (exit code 1); they are shown before the line.
    Tool {
        /// The one line.
        line: String,
        /// What the tool printed.
        output: String,
    },
    /// The person interrupted the command (exit code 130, as shells have it).
    Interrupted,
}

/// The result of a step.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The process exit code that goes with the error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Missing { .. } => 2,
            Self::Failed(_) | Self::Tool { .. } => 1,
            Self::Interrupted => 130,
        }
    }

    /// What a tool printed before it failed, if that is known.
    #[must_use]
    pub fn tool_output(&self) -> Option<&str> {
        match self {
            Self::Tool { output, .. } if !output.trim().is_empty() => Some(output.trim_end()),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(line) | Self::Failed(line) | Self::Tool { line, .. } => f.write_str(line),
            Self::Missing { what, command } => write!(f, "{what}; type: {command}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {}

/// Turns a system error into one line that says what was being done.
pub trait Context<T> {
    /// `what` completes the sentence "cannot …".
    fn cannot(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn cannot(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Failed(format!("cannot {}: {error}", what())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_tell_what_to_do() {
        assert_eq!(Error::Usage(String::new()).exit_code(), 2);
        assert_eq!(Error::Missing { what: String::new(), command: String::new() }.exit_code(), 2);
        assert_eq!(Error::Failed(String::new()).exit_code(), 1);
    }

    #[test]
    fn a_missing_tool_names_its_command() {
        let error = Error::Missing { what: "QEMU is missing".into(), command: "apt-get install qemu".into() };
        assert_eq!(error.to_string(), "QEMU is missing; type: apt-get install qemu");
    }
}
