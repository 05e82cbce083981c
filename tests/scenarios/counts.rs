//! The table of exact counts: what exits cost has not risen.

use caisson_tests::{Lab, Verdict};
use xtask::{bench::counts, images::Images};

/// Measures all of it again, with Caisson as it is used, and compares.
pub(crate) fn exact(lab: &Lab, _: &str) -> Verdict {
    Ok(counts::check(&Images::new(lab.workspace().clone()))?)
}
