//! Runs scenarios, two at a time, and reports: one line each, and `N passed, N failed` at the end.

use std::{
    fs,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use xtask::emulator::{Kind, MACHINES_VARIABLE, parse_list};

use crate::{Lab, Verdict, lab::SERIAL_LOG, transcript::Transcript};

/// How many run at once when the command line does not say: an emulated machine keeps one CPU of the host's busy, and
/// continuous integration has two.
const AT_ONCE: usize = 2;

/// How many lines of the log a failure shows.
const SHOWN_LINES: usize = 20;

/// What the name of a scenario ends with when it runs on Bochs.
const ON_BOCHS: &str = "-on-bochs";

/// A scenario: its name, and what it does.
pub type Scenario = (&'static str, fn(&Lab, &str) -> Verdict);

/// A scenario on an emulator.
#[derive(Clone, Debug)]
struct Job {
    name: String,
    scenario: fn(&Lab, &str) -> Verdict,
    machine: Kind,
}

/// The jobs on these emulators. On Bochs, which is slow, only the scenarios named in `on_bochs` and `only_on_bochs` run,
/// and first.
fn jobs(scenarios: &[Scenario], on_bochs: &[&str], only_on_bochs: &[&str], machines: &[Kind]) -> Vec<Job> {
    let wanted = |machine: Kind| {
        scenarios.iter().filter(move |(name, _)| {
            let only_there = only_on_bochs.contains(name);
            machines.contains(&machine)
                && match machine {
                    Kind::Qemu => !only_there,
                    Kind::Bochs => only_there || on_bochs.contains(name),
                }
        })
    };
    let bochs = wanted(Kind::Bochs).map(|&(name, scenario)| Job {
        name: format!("{name}{ON_BOCHS}"),
        scenario,
        machine: Kind::Bochs,
    });
    let qemu = wanted(Kind::Qemu).map(|&(name, scenario)| Job {
        name: name.to_owned(),
        scenario,
        machine: Kind::Qemu,
    });
    bochs.chain(qemu).collect()
}

/// What the command line asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Options {
    list: bool,
    at_once: usize,
    filters: Vec<String>,
}

impl Options {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { list: false, at_once: AT_ONCE, filters: Vec::new() };
        let mut words = words;
        while let Some(word) = words.next() {
            match word.as_str() {
                "--list" => options.list = true,
                "--jobs" => {
                    let number = words.next().and_then(|n| n.parse().ok()).filter(|&n| n > 0);
                    options.at_once = number.ok_or("--jobs takes a number from 1 on")?;
                }
                option if option.starts_with('-') => {
                    return Err(format!(
                        "{option} is unknown; there are --list, --jobs N and parts of names"
                    ));
                }
                _ => options.filters.push(word),
            }
        }
        Ok(options)
    }

    fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|part| name.contains(part))
    }
}

/// Runs those of `scenarios` that the command line asks for, the first ones first, on the emulators that the environment
/// names ([`MACHINES_VARIABLE`]); on Bochs only those named in `on_bochs`, and in `only_on_bochs`, which run nowhere else.
/// Scenarios that take long should come first, so that none of them is left over for the end.
#[must_use]
pub fn main(scenarios: &[Scenario], on_bochs: &[&str], only_on_bochs: &[&str]) -> ExitCode {
    let machines = parse_list(&std::env::var(MACHINES_VARIABLE).unwrap_or_default());
    let arguments = machines
        .map_err(|error| error.to_string())
        .and_then(|machines| Ok((machines, Options::parse(std::env::args().skip(1))?)));
    let (machines, options) = match arguments {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let mut wanted = jobs(scenarios, on_bochs, only_on_bochs, &machines);
    wanted.retain(|job| options.wants(&job.name));
    if options.list {
        wanted.iter().for_each(|job| println!("{}", job.name));
        return ExitCode::SUCCESS;
    }
    if wanted.is_empty() {
        println!("0 passed, 0 failed");
        return ExitCode::SUCCESS;
    }
    let lab = match Lab::open() {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("{error}");
            println!("0 passed, {} failed", wanted.len());
            return ExitCode::FAILURE;
        }
    };
    let failed = run_all(&lab, &wanted, options.at_once);
    println!("{} passed, {failed} failed", wanted.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs them; gives how many failed.
fn run_all(lab: &Lab, jobs: &[Job], at_once: usize) -> usize {
    let (next, failed, output) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(()));
    thread::scope(|scope| {
        for _ in 0..at_once.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(Job { name, scenario, machine }) =
                    jobs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let lab = &lab.on(*machine);
                    let start = Instant::now();
                    forget_log(lab, name);
                    let verdict = scenario(lab, name);
                    let seconds = start.elapsed().as_secs_f32();
                    let _output = output.lock().unwrap_or_else(PoisonError::into_inner);
                    match verdict {
                        Ok(()) => println!("test {name} ... ok ({seconds:.1} s)"),
                        Err(failure) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            println!("{failure}");
                            show_log(lab, name);
                            println!("test {name} ... FAILED");
                        }
                    }
                }
            });
        }
    });
    failed.into_inner()
}

/// Removes the log of an earlier run; what remains of a scenario is its last run's.
fn forget_log(lab: &Lab, scenario: &str) {
    if let Ok(directory) = lab.directory(scenario) {
        // There may be none.
        let _ = fs::remove_file(directory.join(SERIAL_LOG));
    }
}

/// Says where the log of a failed scenario is, and how it ends. One that failed before its machine started has none.
fn show_log(lab: &Lab, scenario: &str) {
    let Ok(path) = lab.directory(scenario).map(|directory| directory.join(SERIAL_LOG)) else { return };
    let Ok(bytes) = fs::read(&path) else { return };
    let mut transcript = Transcript::default();
    transcript.push(&bytes, Instant::now());
    let lines = transcript.lines();
    for line in lines.get(lines.len().saturating_sub(SHOWN_LINES)..).unwrap_or_default() {
        match &line.speaker {
            Some(name) => println!("  | [{name}] {}", line.text),
            None => println!("  | {}", line.text),
        }
    }
    println!("  whole log: {}", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, String> {
        Options::parse(words.iter().map(ToString::to_string))
    }

    #[test]
    fn names_are_picked_by_their_parts() {
        let options = parse(&["refus", "linux", "--jobs", "3"]).unwrap();
        assert_eq!(options.at_once, 3);
        assert!(options.wants("refusal-no-svm") && options.wants("two-linux") && !options.wants("shell"));
        assert!(parse(&[]).unwrap().wants("anything"));
        assert!(parse(&["--list"]).unwrap().list);
    }

    #[test]
    fn each_emulator_gets_its_scenarios() {
        let scenarios: [Scenario; 3] = [("a", |_, _| Ok(())), ("b", |_, _| Ok(())), ("c", |_, _| Ok(()))];
        let names = |machines: &[Kind]| -> Vec<String> {
            jobs(&scenarios, &["b"], &["c"], machines).into_iter().map(|job| job.name).collect()
        };
        assert_eq!(names(&[Kind::Qemu]), ["a", "b"]);
        assert_eq!(names(&[Kind::Bochs]), ["b-on-bochs", "c-on-bochs"]);
        assert_eq!(names(&Kind::ALL), ["b-on-bochs", "c-on-bochs", "a", "b"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for words in [&["--jobs"][..], &["--jobs", "0"], &["--exact"]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
