//! `measure ROW[,ROW…]`: the benchmark program. It runs in a Linux guest under Caisson, under other hypervisors, or on the bare
//! machine, always the same, and reads the time-stamp counter: where that counts instructions, a figure is a number of
//! instructions and repeats.
//!
//! For each row it prints a line `bench: NAME MEDIAN LEAST MOST`; an empty measurement is a row of its own and is not taken off
//! the others. All lines come at the end, since printing interrupts the guest. At the start it prints `bench: now TSC`, by which
//! a listener with a clock of his own can tell the guest's. A row that cannot be had here prints `bench: NAME: WHY`.
//!
//! `measure relay COMMAND…` is for a first level: it runs a command, passes on what that prints, and tells how long it took
//! until the guest said `bench: now`.

mod files;
mod instructions;
mod kernel;
mod relay;
mod sample;

use std::{env, io::Write as _, process::ExitCode};

use sample::{Samples, tsc};

/// A row: its name, and what measures it. The number is what stands behind a colon in the row that was asked for.
type Row = (&'static str, fn(u64) -> Result<Samples, String>);

/// All rows, in the order in which `all` measures them; `idle` is only for who asks for it.
const ROWS: [Row; 13] = [
    ("empty", instructions::empty),
    ("cpuid", instructions::cpuid),
    ("hypercall", instructions::hypercall),
    ("port", instructions::port),
    ("msr", instructions::msr),
    ("msr-passed", instructions::msr_passed),
    ("sleep", kernel::sleep),
    ("pipe", kernel::pipe),
    ("fork-exec", kernel::fork_exec),
    ("fresh-memory", files::fresh_memory),
    ("sha256", files::sha256),
    ("gzip", files::gzip),
    (IDLE, kernel::idle),
];
const IDLE: &str = "idle";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match &arguments[..] {
        [word, command @ ..] if word == "relay" && !command.is_empty() => relay::run(command),
        [rows] => measure(rows),
        _ => {
            eprintln!("measure: ROW[,ROW…] or relay COMMAND…; the rows are all, {}", names().join(", "));
            ExitCode::from(2)
        }
    }
}

fn names() -> Vec<&'static str> {
    ROWS.iter().map(|(name, _)| *name).collect()
}

/// Measures rows by name, with commas in between.
fn measure(rows: &str) -> ExitCode {
    println!("bench: now {}", tsc());
    let mut lines = String::new();
    for row in rows.split(',') {
        let (name, number) = row.split_once(':').unwrap_or((row, ""));
        let wanted: Vec<&Row> =
            ROWS.iter().filter(|(known, _)| *known == name || (name == "all" && *known != IDLE)).collect();
        if wanted.is_empty() {
            lines.push_str(&format!(
                "bench: no row is called {name}; there are all, {}\n",
                names().join(", ")
            ));
        }
        for (name, work) in wanted {
            lines.push_str(&match work(number.parse().unwrap_or(1)) {
                Ok(samples) => format!("bench: {name} {samples}\n"),
                Err(why) => format!("bench: {name}: {why}\n"),
            });
        }
    }
    // Nobody listens any more where this fails.
    let _ = std::io::stdout().write_all(lines.as_bytes());
    ExitCode::SUCCESS
}
