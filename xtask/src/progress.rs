//! Progress of the steps that take longer than a moment: a spinner on a terminal, a line afterwards for what took over
//! a second. Everything goes to standard error; standard output belongs to the guests.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A step shorter than this leaves no line behind.
const WORTH_A_LINE: Duration = Duration::from_secs(1);

/// One step under way. Dropping it without [`Step::done`] clears the spinner and says nothing.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
    name: String,
    started: Instant,
}

impl Step {
    /// Starts a step; `name` is a verb phrase ("build Caisson").
    #[must_use]
    pub fn start(name: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) =
            ProgressStyle::with_template("{spinner:.cyan} {prefix} {elapsed:.dim} {wide_msg:.dim}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, name: name.to_owned(), started: Instant::now() }
    }

    /// Shows what the step is busy with.
    pub fn detail(&self, what: &str) {
        self.bar.set_message(what.trim().to_owned());
    }

    /// Ends the step; `result` is a short remark and may be empty.
    pub fn done(self, result: &str) {
        self.bar.finish_and_clear();
        let took = self.started.elapsed();
        if took >= WORTH_A_LINE {
            let colon = if result.is_empty() { "" } else { ": " };
            eprintln!("  {}{colon}{result} ({:.1} s)", self.name, took.as_secs_f64());
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
