//! Why a scenario failed.

use std::fmt;

/// What a scenario answers.
pub type Verdict<T = ()> = Result<T, Failure>;

/// Why a scenario failed: what was expected, and what was there instead. The runner adds where the log is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure(String);

impl Failure {
    /// A failure for this reason.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<xtask::error::Error> for Failure {
    fn from(error: xtask::error::Error) -> Self {
        Self::new(match error.tool_output() {
            Some(output) => format!("{error}\n{output}"),
            None => error.to_string(),
        })
    }
}

/// Fails with a reason unless a condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err($crate::Failure::new(format!($($reason)+)));
        }
    };
}
