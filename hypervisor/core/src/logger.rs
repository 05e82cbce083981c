//! The `log` crate's back end: Caisson's own console.

use core::fmt::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::console;

/// The target of lines that are shown whatever console is selected, as warnings and errors are: a guest's end.
pub(crate) const EVENT: &str = "event";

struct Logger;

static LOGGER: Logger = Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = console::LogLine::new(record.level() <= Level::Warn || record.target() == EVENT);
        let tag = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            _ => "",
        };
        // A line too long is cut.
        let _ = write!(line, "{tag}{}", record.args());
        line.finish();
    }

    fn flush(&self) {}
}

/// Starts logging.
pub(crate) fn init() {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
