//! `cargo xtask fuzz`: the fuzz targets under `hypervisor/fuzz`, one after the other, each for a given time. They need a
//! nightly toolchain and `cargo-fuzz`.

use std::{process::Command, time::Duration};

use crate::{
    cli::FuzzArgs,
    error::{Error, Result},
    paths::Workspace,
    process,
    progress::Step,
};

/// Where the fuzz targets are.
const FOLDER: &str = "hypervisor/fuzz";

/// What is missing for fuzzing, as an error that says how to get it; `None` when nothing is.
#[must_use]
pub fn missing(workspace: &Workspace) -> Option<Error> {
    if !workspace.source(FOLDER).join("Cargo.toml").exists() {
        return Some(Error::Failed(format!("there are no fuzz targets: {FOLDER} is not in the source tree")));
    }
    let works = |words: &[&str]| {
        process::on_path("rustup")
            && process::capture(Command::new("rustup").args(words), None).is_ok_and(|ran| ran.success)
    };
    if !works(&["run", "nightly", "rustc", "--version"]) {
        return Some(Error::Missing {
            what: "fuzzing needs a nightly toolchain".to_owned(),
            command: "rustup toolchain install nightly --profile minimal".to_owned(),
        });
    }
    if !works(&["run", "nightly", "cargo", "fuzz", "--version"]) {
        return Some(Error::Missing {
            what: "fuzzing needs cargo-fuzz".to_owned(),
            command: "cargo install cargo-fuzz".to_owned(),
        });
    }
    None
}

fn cargo_fuzz(workspace: &Workspace, words: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo", "fuzz"]).args(words).args(["--fuzz-dir", FOLDER]);
    // The pinned toolchain and its flags are cargo's and not the fuzzer's.
    for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "CARGO_TARGET_DIR"] {
        command.env_remove(variable);
    }
    command.current_dir(workspace.root());
    command
}

/// How many targets held and how many did not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// No crash was found.
    pub passed: usize,
    /// A crash was found, or the target does not build.
    pub failed: usize,
}

/// Runs each target whose name contains `filter` for `time`.
///
/// # Errors
/// When the targets cannot be listed.
pub fn run(workspace: &Workspace, time: Duration, filter: &str) -> Result<Tally> {
    let list = process::run(&mut cargo_fuzz(workspace, &["list"]), "listing the fuzz targets", None)?;
    let mut tally = Tally::default();
    for target in String::from_utf8_lossy(&list).lines().filter(|name| name.contains(filter)) {
        let step = Step::start(&format!("fuzz {target}"));
        let mut command = cargo_fuzz(workspace, &["run"]);
        command.args([target, "--", &format!("-max_total_time={}", time.as_secs()), "-timeout=10"]);
        let ran = process::capture(&mut command, Some(&step))?;
        step.done(if ran.success { "holds" } else { "FAILED" });
        if ran.success {
            tally.passed += 1;
        } else {
            tally.failed += 1;
            eprintln!("{}", ran.stderr.trim_end());
        }
    }
    Ok(tally)
}

/// Runs `cargo xtask fuzz`.
///
/// # Errors
/// When something needed is missing.
pub fn command(workspace: &Workspace, args: &FuzzArgs) -> Result<u8> {
    if let Some(missing) = missing(workspace) {
        return Err(missing);
    }
    let tally = run(workspace, args.time, args.filter.as_deref().unwrap_or_default())?;
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(u8::from(tally.failed > 0))
}
