//! What can be wrong with what a person asks of the scheduler.

use core::fmt;

use crate::MAX_PERIOD;

/// Parameters that a policy turns down; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterError {
    /// The weight is 0.
    Weight,
    /// The period is 0 or longer than [`MAX_PERIOD`].
    Period,
    /// The slice is longer than the period, or 0 without extra time.
    Slice,
    /// The CPU's reservations would add up to more than it has to give.
    Overbooked,
    /// The cap's window is 0 or longer than [`MAX_PERIOD`], or its quota is 0.
    Cap,
    /// No such entity or group in this queue.
    Unknown,
}

impl fmt::Display for ParameterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weight => f.write_str("the weight is 0: give 1 or more (256 is the usual one)"),
            Self::Period => write!(f, "the period must be 1 to {MAX_PERIOD} ticks"),
            Self::Slice => f.write_str(
                "the slice must not exceed the period, and may be 0 only together with extra time",
            ),
            Self::Overbooked => {
                f.write_str("the CPU is booked out: shorten a slice, lengthen a period, or use another CPU")
            }
            Self::Cap => write!(f, "a cap needs a quota of 1 or more ticks in a window of 1 to {MAX_PERIOD}"),
            Self::Unknown => f.write_str("there is no such vCPU or domain on this CPU"),
        }
    }
}

impl core::error::Error for ParameterError {}

/// An entity that could not be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    /// The queue holds as many entities as it was made for.
    Full,
    /// The parameters were turned down.
    Parameters(ParameterError),
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the CPU's run queue is full: make it larger or use another CPU"),
            Self::Parameters(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for AddError {}

impl From<ParameterError> for AddError {
    fn from(error: ParameterError) -> Self {
        Self::Parameters(error)
    }
}
