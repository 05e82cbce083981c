//! `cargo xtask fuzz`: the fuzz targets under `hypervisor/fuzz`, one after the other, each for a given time.
//!
//! They need a nightly toolchain; cargo-fuzz and the C++ compiler that libFuzzer is built with are installed when they
//! are missing. The crates under test have no unsafe code, so no sanitizer slows the targets down: what is looked for
//! are panics, overflows, broken promises and inputs that take too long.
//!
//! | below `target/` | what |
//! |---|---|
//! | `tools/` | cargo-fuzz |
//! | `fuzz/` | the targets' programs |
//! | `caisson/fuzz/corpus/` | inputs found so far, on top of those in `hypervisor/fuzz/seeds` |
//! | `caisson/fuzz/artefacts/` | inputs that a target failed on |

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    cli::FuzzArgs,
    error::{Context, Error, Result},
    paths::Workspace,
    process,
    progress::Step,
    tools::{self, Sign, Tool},
};

/// Where the fuzz targets are.
const FOLDER: &str = "hypervisor/fuzz";
/// An input that takes longer, in seconds, counts as a failure.
const TIMEOUT: u32 = 10;
/// The releases of cargo-fuzz that the command line below is written for.
const CARGO_FUZZ: &str = "^0.13";

/// The oldest Rust that builds the crates under test.
const RUST_VERSION: &str = env!("CARGO_PKG_RUST_VERSION");

/// What builds libFuzzer.
static CXX: Tool = Tool { package: "g++", sign: Sign::Program("c++"), purpose: "builds libFuzzer" };

/// What is missing for fuzzing and is not installed without being asked for, as an error that says how to get it.
#[must_use]
pub fn missing(workspace: &Workspace) -> Option<Error> {
    if !workspace.source(FOLDER).join("Cargo.toml").exists() {
        return Some(Error::Failed(format!("there are no fuzz targets: {FOLDER} is not in the source tree")));
    }
    let Some(nightly) = Nightly::find() else {
        return Some(Error::Missing {
            what: "fuzzing needs a nightly toolchain".to_owned(),
            command: "rustup toolchain install nightly --profile minimal".to_owned(),
        });
    };
    if nightly.minor < minor(RUST_VERSION).unwrap_or(0) {
        return Some(Error::Missing {
            what: format!(
                "fuzzing needs a nightly toolchain of Rust {RUST_VERSION} or later, and there is 1.{}",
                nightly.minor
            ),
            command: "rustup update nightly".to_owned(),
        });
    }
    None
}

/// A program of the nightly toolchain, or one that finds this toolchain's programs on its path.
fn nightly(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly"]).arg(program);
    // The pinned toolchain and its flags are cargo's and not the fuzzer's.
    for variable in [
        "RUSTUP_TOOLCHAIN",
        "CARGO",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
    ] {
        command.env_remove(variable);
    }
    command
}

/// What there is of a nightly toolchain.
#[derive(Debug, PartialEq, Eq)]
struct Nightly {
    /// Its target triple.
    host: String,
    /// The 95 of Rust 1.95.
    minor: u32,
}

impl Nightly {
    fn find() -> Option<Self> {
        if !process::on_path("rustup") {
            return None;
        }
        let ran = process::capture(nightly("rustc").arg("-vV"), None).ok().filter(|ran| ran.success)?;
        Self::parse(&String::from_utf8_lossy(&ran.stdout))
    }

    /// Reads what `rustc -vV` prints.
    fn parse(output: &str) -> Option<Self> {
        let after = |mark: &str| output.lines().find_map(|line| line.strip_prefix(mark));
        Some(Self { host: after("host: ")?.to_owned(), minor: minor(after("release: ")?)? })
    }
}

/// The 95 of `1.95.0`.
fn minor(version: &str) -> Option<u32> {
    version.split('.').nth(1)?.parse().ok()
}

/// The fuzz targets, built.
#[derive(Debug)]
pub struct Fuzzer<'a> {
    workspace: &'a Workspace,
    targets: Vec<String>,
    programs: PathBuf,
}

impl<'a> Fuzzer<'a> {
    /// Builds the targets whose name contains `filter`, installing what that takes.
    ///
    /// # Errors
    /// [`Error::Missing`] when something is not there and cannot be installed from here; otherwise what the compiler
    /// says, or that no target has such a name.
    pub fn build(workspace: &'a Workspace, filter: &str) -> Result<Self> {
        if let Some(missing) = missing(workspace) {
            return Err(missing);
        }
        let host = Nightly::find().map(|nightly| nightly.host).unwrap_or_default();
        tools::ensure([&CXX])?;
        let cargo_fuzz = ensure_cargo_fuzz(workspace)?;
        let command = |word: &str| {
            let mut command = nightly(&cargo_fuzz);
            command.current_dir(workspace.root()).args(["fuzz", word, "--fuzz-dir", FOLDER]);
            command
        };
        let list = process::run(&mut command("list"), "listing the fuzz targets", None)?;
        let all: Vec<String> = String::from_utf8_lossy(&list).lines().map(str::to_owned).collect();
        let targets: Vec<String> = all.iter().filter(|name| name.contains(filter)).cloned().collect();
        if targets.is_empty() {
            return Err(Error::Usage(format!(
                "no fuzz target is named like `{filter}`; there are {}",
                all.join(", ")
            )));
        }
        let directory = workspace.target("fuzz");
        let step = Step::start("build the fuzz targets");
        let mut build = command("build");
        // One of them, or all at once: cargo-fuzz knows no third way.
        build.args(targets.first().filter(|_| targets.len() == 1));
        build.args(["--sanitizer", "none", "--target", &host, "--target-dir"]).arg(&directory);
        process::run(&mut build, "building the fuzz targets", Some(&step))?;
        step.done("");
        Ok(Self { workspace, targets, programs: directory.join(host).join("release") })
    }

    /// Runs every target for `time`, with one line each on standard output.
    ///
    /// # Errors
    /// When a target cannot be started.
    pub fn run(&self, time: Duration) -> Result<Tally> {
        let mut tally = Tally::default();
        for target in &self.targets {
            if self.run_one(target, time)? {
                tally.passed += 1;
            } else {
                tally.failed += 1;
            }
        }
        Ok(tally)
    }

    fn run_one(&self, target: &str, time: Duration) -> Result<bool> {
        let corpus = self.workspace.dir(&format!("fuzz/corpus/{target}"))?;
        let artefacts = self.workspace.dir(&format!("fuzz/artefacts/{target}"))?;
        let program = self.programs.join(target);
        let mut command = Command::new(&program);
        command.arg(format!("-max_total_time={}", time.as_secs())).arg(format!("-timeout={TIMEOUT}"));
        command.arg("-print_final_stats=1");
        // A prefix of names and not a directory: without the slash, it would end up in the name.
        command.arg(format!("-artifact_prefix={}/", artefacts.display()));
        let dictionary = self.workspace.source(FOLDER).join("dictionaries").join(target);
        if dictionary.exists() {
            command.arg(format!("-dict={}", dictionary.display()));
        }
        command.arg(corpus);
        let seeds = self.workspace.source(FOLDER).join("seeds").join(target);
        command.args(Some(seeds).filter(|seeds| seeds.exists()));

        let step = Step::start(&format!("fuzz {target}"));
        let ran = process::capture(&mut command, Some(&step))?;
        drop(step);
        if ran.success {
            println!("fuzz {target} ... ok ({})", Statistics::read(&ran.stderr));
            return Ok(true);
        }
        println!("fuzz {target} ... FAILED ({})", ran.ending);
        eprintln!("{}", failure(&ran.stderr).trim_end());
        for artefact in artefacts_in(&ran.stderr) {
            println!("    the input is kept: {artefact}");
            println!("    to run it again: {} {artefact}", program.display());
        }
        Ok(false)
    }
}

/// The path of cargo-fuzz; it is installed below the target directory when it is not on the search path.
fn ensure_cargo_fuzz(workspace: &Workspace) -> Result<PathBuf> {
    if process::on_path("cargo-fuzz") {
        return Ok("cargo-fuzz".into());
    }
    let directory = workspace.target("tools");
    let program = directory.join("bin/cargo-fuzz");
    if program.is_file() {
        return Ok(program);
    }
    // Two runs at once would both build it; the second one finds it done.
    let _lock = workspace.lock("cargo-fuzz")?;
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&directory).cannot(|| format!("make {}", directory.display()))?;
    let step = Step::start("install cargo-fuzz");
    let mut install = nightly("cargo");
    install.args(["install", "cargo-fuzz", "--locked", "--version", CARGO_FUZZ, "--root"]).arg(&directory);
    let ran = process::capture(&mut install, Some(&step))?;
    if !ran.success {
        eprintln!("{}", ran.stderr.trim_end());
        return Err(Error::Missing {
            what: "fuzzing needs cargo-fuzz, and it could not be installed".to_owned(),
            command: format!("cargo +nightly install cargo-fuzz --locked --version {CARGO_FUZZ}"),
        });
    }
    step.done("");
    Ok(program)
}

/// How many targets held and how many did not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Nothing was found.
    pub passed: usize,
    /// An input was found that a target fails on.
    pub failed: usize,
}

/// What libFuzzer counted in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Statistics {
    runs: u64,
    runs_per_second: u64,
    /// Edges of the control flow that were reached.
    edges: u64,
}

impl Statistics {
    /// Picks them out of what libFuzzer prints; what is not there counts as 0.
    fn read(output: &str) -> Self {
        let number = |text: &str| text.split_whitespace().next().and_then(|word| word.parse().ok());
        let after =
            |mark: &str| output.lines().rev().find_map(|line| number(line.split_once(mark)?.1)).unwrap_or(0);
        Self {
            runs: after("stat::number_of_executed_units:"),
            runs_per_second: after("stat::average_exec_per_sec:"),
            edges: after(" cov: "),
        }
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} runs, {} a second, {} edges", self.runs, self.runs_per_second, self.edges)
    }
}

/// What libFuzzer prints from the failure on, without the progress before it.
fn failure(output: &str) -> &str {
    [") panicked at ", " ERROR: libFuzzer", " WARNING: libFuzzer"]
        .into_iter()
        .filter_map(|mark| output.find(mark))
        .min()
        .and_then(|at| output.get(..at)?.rfind('\n'))
        .and_then(|line| output.get(line + 1..))
        .unwrap_or(output)
}

/// The files that libFuzzer says it has kept.
fn artefacts_in(output: &str) -> impl Iterator<Item = &str> {
    output
        .lines()
        .filter_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path.trim()))
        .filter(|path| Path::new(path).is_absolute())
}

/// Runs `cargo xtask fuzz`.
///
/// # Errors
/// When something needed is missing.
pub fn command(workspace: &Workspace, args: &FuzzArgs) -> Result<u8> {
    let fuzzer = Fuzzer::build(workspace, args.filter.as_deref().unwrap_or_default())?;
    let tally = fuzzer.run(args.time)?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(u8::from(tally.failed > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "INFO: Seed: 1\n\
        #2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb\n\
        #900\tDONE   cov: 345 ft: 400 corp: 9/99b lim: 8 exec/s: 300 rss: 31Mb\n\
        stat::number_of_executed_units: 900\n\
        stat::average_exec_per_sec:     300\n";

    #[test]
    fn statistics_are_read_from_libfuzzers_output() {
        let statistics = Statistics::read(OUTPUT);
        assert_eq!(statistics, Statistics { runs: 900, runs_per_second: 300, edges: 345 });
        assert_eq!(statistics.to_string(), "900 runs, 300 a second, 345 edges");
        assert_eq!(Statistics::read(""), Statistics::default());
    }

    #[test]
    fn the_toolchain_is_read_from_what_rustc_prints() {
        let output =
            "rustc 1.97.0-nightly (0 2026-05-01)\nbinary: rustc\nhost: a-b-c\nrelease: 1.97.0-nightly\n";
        assert_eq!(Nightly::parse(output), Some(Nightly { host: "a-b-c".to_owned(), minor: 97 }));
        assert_eq!(Nightly::parse("error"), None);
        assert!(minor(RUST_VERSION).is_some());
    }

    #[test]
    fn artefacts_are_found_in_libfuzzers_output() {
        let output = "artifact_prefix='/t/'; Test unit written to /t/crash-1f\nBase64: AAAA\n";
        assert_eq!(artefacts_in(output).collect::<Vec<_>>(), ["/t/crash-1f"]);
        assert_eq!(artefacts_in(OUTPUT).count(), 0);
    }

    #[test]
    fn progress_is_left_out_of_a_failure() {
        let panic =
            "thread '<unnamed>' (1) panicked at a.rs:1:2:\nwhy\n==1== ERROR: libFuzzer: deadly signal\n";
        assert_eq!(failure(&format!("{OUTPUT}{panic}")), panic);
        let timeout = "==1== ERROR: libFuzzer: timeout after 11 seconds\n";
        assert_eq!(failure(&format!("{OUTPUT}{timeout}")), timeout);
        assert_eq!(failure(OUTPUT), OUTPUT);
    }
}
