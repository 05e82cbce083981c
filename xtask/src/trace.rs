//! `cargo xtask trace`: a run with Caisson's trace on, and what becomes of it: a file for ui.perfetto.dev ([`perfetto`]),
//! a picture ([`svg`]). Caisson writes the trace to the serial line when the last guest has ended; the log of a real
//! machine's serial line does as well.

pub mod perfetto;
pub mod svg;
pub mod timeline;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::Path,
    time::Duration,
};

use caisson_trace::{Reader, Trace};

use crate::{
    cli::{RunArgs, TraceArgs},
    error::{Context, Error, Result},
    paths::Workspace,
    run,
};
use timeline::{Span, Timeline};

/// Runs `cargo xtask trace`; gives the exit code.
///
/// # Errors
/// When the machine cannot be started, the log has no trace, or a file cannot be written.
pub fn command(workspace: &Workspace, args: TraceArgs) -> Result<u8> {
    let TraceArgs { mut config, machine, timeout, events, log, output, svg, from, span } = args;
    let mut code = 0;
    let log = match log {
        Some(log) => log,
        None => {
            config.hv_cmdline = format!("{} trace={events}", config.hv_cmdline).trim_start().to_owned();
            let run = RunArgs { config, machine, headless: true, timeout, keep: true };
            let outcome = run::command(workspace, &run)?;
            if !outcome.is_success() {
                eprintln!("error: {outcome}");
            }
            code = outcome.exit_code();
            run::log_path(workspace)?
        }
    };
    let trace = read(&log)?;
    remarks(&trace);
    let timeline = Timeline::of(&trace);
    let output = match (output, &svg) {
        (None, Some(_)) => None,
        (output, _) => Some(output.unwrap_or_else(|| workspace.target("trace.json"))),
    };
    if let Some(path) = output {
        let file = File::create(&path).cannot(|| format!("write {}", path.display()))?;
        let mut file = BufWriter::new(file);
        let written = perfetto::write(&trace, &timeline, &mut file).and_then(|()| file.flush());
        written.cannot(|| format!("write {}", path.display()))?;
        println!("{}: {} events; open it in https://ui.perfetto.dev", path.display(), trace.events.len());
    }
    if let Some(path) = svg {
        let picture = svg::draw(&trace, &timeline, window(&timeline, from, span)?);
        fs::write(&path, picture).cannot(|| format!("write {}", path.display()))?;
        println!("{}: a picture of the trace", path.display());
    }
    Ok(code)
}

/// Reads the trace in a log.
fn read(log: &Path) -> Result<Trace> {
    let file = File::open(log).cannot(|| format!("read {}", log.display()))?;
    let (mut file, mut line) = (BufReader::new(file), Vec::new());
    let mut reader = Reader::new();
    while file.read_until(b'\n', &mut line).cannot(|| format!("read {}", log.display()))? > 0 {
        // Guests print what they like, also what is no text.
        reader.line(&String::from_utf8_lossy(&line));
        line.clear();
    }
    reader.finish().map_err(|error| Error::Failed(format!("{}: {error}", log.display())))
}

/// What is not in the trace, said to a person.
fn remarks(trace: &Trace) {
    let lost: u64 = trace.lost.iter().fold(0, |sum, lost| sum.saturating_add(*lost));
    if lost > 0 {
        eprintln!("  {lost} older events were overwritten: --events keeps more");
    }
    if trace.missing > 0 {
        eprintln!("  {} lines of the trace are missing or damaged", trace.missing);
    }
    if !trace.complete {
        eprintln!("  the trace has no end: the log was cut off");
    }
}

/// The part of the trace that a picture shows.
fn window(timeline: &Timeline, from: Option<Duration>, span: Option<Duration>) -> Result<Span> {
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let from = from.map_or(0, ns);
    if from > timeline.end {
        let end = Duration::from_nanos(timeline.end);
        return Err(Error::Usage(format!("--from is behind the end of the trace, which is {end:.3?} long")));
    }
    let to = span.map_or(timeline.end, |span| from.saturating_add(ns(span)).min(timeline.end));
    Ok(Span { from, to })
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_trace::{Dump, Event, NOBODY, Ring, What};

    #[test]
    fn a_log_gives_its_trace_whatever_else_is_in_it() {
        let ring = Ring::new(4).unwrap();
        ring.record(|| Event { time: 1, vcpu: NOBODY, what: What::Idle });
        let mut dump = Dump::new(1000, 2, Vec::new(), vec![&ring]);
        let mut log = b"GRUB \xff\xfe\r\n[caisson] hello\r\n".to_vec();
        while let Some(line) = dump.next_line() {
            log.extend([line.as_bytes(), b"\r\nmore \xc0\r\n"].concat());
        }
        let path = std::env::temp_dir().join(format!("caisson-trace-{}.log", std::process::id()));
        fs::write(&path, log).unwrap();
        let trace = read(&path);
        fs::remove_file(&path).unwrap();
        let trace = trace.unwrap();
        assert!(trace.complete && trace.missing == 0 && trace.events.len() == 1);
        assert!(read(&path).unwrap_err().to_string().contains("read"));
    }

    #[test]
    fn windows_lie_within_the_trace() {
        let timeline = Timeline { end: 10_000_000, ..Timeline::default() };
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(window(&timeline, None, None).unwrap(), Span { from: 0, to: 10_000_000 });
        assert_eq!(window(&timeline, ms(2), ms(3)).unwrap(), Span { from: 2_000_000, to: 5_000_000 });
        assert_eq!(window(&timeline, ms(8), ms(30)).unwrap(), Span { from: 8_000_000, to: 10_000_000 });
        assert_eq!(window(&timeline, ms(11), None).unwrap_err().exit_code(), 2);
    }
}
