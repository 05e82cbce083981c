//! `cargo xtask test`: formatting, lints, host tests, whole-machine tests, a little fuzzing. Everything runs even after
//! a failure; the last line is `N passed, N failed`. A check counts as one test.

use std::{
    io::{self, BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    cargo::{self, Package},
    cli::{TestArgs, TestMachineArg},
    emulator::{self, Kind},
    error::{Context, Error, Result},
    fuzz::Fuzzer,
    images::Images,
    paths::Workspace,
    process,
    progress::Step,
    tools,
};

/// How long each fuzz target runs among the tests.
const FUZZ_TIME: Duration = Duration::from_secs(3);

/// What passed and what failed.
#[derive(Debug, Default)]
struct Report {
    passed: usize,
    failed: usize,
    failures: Vec<String>,
}

impl Report {
    fn check(&mut self, name: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.failures.push(name.to_owned());
        }
    }
}

/// Runs `cargo xtask test`; gives the exit code.
///
/// # Errors
/// When the tests cannot be run at all.
pub fn command(workspace: &Workspace, args: &TestArgs) -> Result<u8> {
    let packages = cargo::packages(workspace)?;
    let filter = args.filter.as_deref();
    let mut report = Report::default();
    if !args.machine_only {
        if filter.is_none() {
            lints(workspace, &packages, &mut report)?;
        }
        host_tests(workspace, &packages, filter, &mut report)?;
    }
    if !args.host_only {
        machine_tests(workspace, &packages, filter, &machines(args.machine), &mut report)?;
    }
    if !args.machine_only && filter.is_none() {
        fuzzing(workspace, &mut report)?;
    }
    for failure in &report.failures {
        println!("failed: {failure}");
    }
    println!("{} passed, {} failed", report.passed, report.failed);
    Ok(u8::from(report.failed > 0))
}

/// Options that leave out `packages`.
fn exclude<'a>(packages: impl Iterator<Item = &'a Package>) -> Vec<String> {
    packages.flat_map(|package| ["--exclude".to_owned(), package.name.clone()]).collect()
}

fn lints(workspace: &Workspace, packages: &[Package], report: &mut Report) -> Result<()> {
    let mut format = cargo::command(workspace);
    format.args(["fmt", "--all", "--check"]);
    quiet(&mut format, "check the formatting", report)?;

    let mut clippy = cargo::command(workspace);
    clippy.args(["clippy", "--quiet", "--keep-going", "--workspace", "--all-targets"]);
    clippy.args(exclude(packages.iter().filter(|package| package.bare_metal)));
    clippy.args(["--", "-D", "warnings"]);
    quiet(&mut clippy, "lint the host's side", report)?;

    let mut document = cargo::command(workspace);
    document.args(["doc", "--quiet", "--keep-going", "--no-deps", "--workspace", "--document-private-items"]);
    // The probes' panic handler and the standard library's do not go together on the host.
    document.args(["--exclude", cargo::PROBES]).env("RUSTDOCFLAGS", "-D warnings");
    quiet(&mut document, "check the documentation", report)?;

    let hypervisor: Vec<_> =
        packages.iter().filter(|package| package.bare_metal || package.hypervisor).collect();
    if !hypervisor.is_empty() {
        tools::ensure_rust_target()?;
        let mut clippy = cargo::command(workspace);
        clippy.args(["clippy", "--quiet", "--keep-going", "--target", tools::TARGET]);
        clippy.args(hypervisor.iter().flat_map(|package| ["--package", &package.name]));
        clippy.args(["--", "-D", "warnings"]);
        quiet(&mut clippy, "lint the bare-metal side", report)?;
    }
    Ok(())
}

/// Runs a check that has something to say only when it fails.
fn quiet(command: &mut Command, name: &str, report: &mut Report) -> Result<()> {
    let step = Step::start(name);
    let ran = process::capture(command, Some(&step))?;
    step.done("");
    println!("{name} ... {}", if ran.success { "ok" } else { "FAILED" });
    if !ran.success {
        print!("{}", String::from_utf8_lossy(&ran.stdout));
        eprintln!("{}", ran.stderr.trim_end());
    }
    report.check(name, ran.success);
    Ok(())
}

fn host_tests(
    workspace: &Workspace,
    packages: &[Package],
    filter: Option<&str>,
    report: &mut Report,
) -> Result<()> {
    let mut tests = cargo::command(workspace);
    tests.args(["test", "--workspace", "--no-fail-fast"]);
    tests.args(exclude(
        packages.iter().filter(|package| package.bare_metal || package.name == cargo::MACHINE_TESTS),
    ));
    tests.args(filter);
    counted(&mut tests, "host tests", report)
}

/// The emulators to test on.
fn machines(wanted: Option<TestMachineArg>) -> Vec<Kind> {
    match wanted {
        Some(TestMachineArg::Qemu) => vec![Kind::Qemu],
        Some(TestMachineArg::Bochs) => vec![Kind::Bochs],
        Some(TestMachineArg::All) => Kind::ALL.to_vec(),
        None => emulator::TESTED.to_vec(),
    }
}

fn machine_tests(
    workspace: &Workspace,
    packages: &[Package],
    filter: Option<&str>,
    machines: &[Kind],
    report: &mut Report,
) -> Result<()> {
    if !packages.iter().any(|package| package.name == cargo::MACHINE_TESTS) {
        println!("whole-machine tests ... none in this source tree");
        return Ok(());
    }
    // Before the first test's clock runs: installing, fetching and building take their time once.
    if machines.contains(&Kind::Qemu) {
        tools::ensure(tools::for_run(true))?;
    }
    if machines.contains(&Kind::Bochs) {
        tools::ensure(tools::for_bochs())?;
    }
    let images = Images::new(workspace.clone());
    images.caisson()?;
    for name in ["@linux", "@initrd"] {
        images.provide(name)?;
    }
    // Only one test needs it, and says so: some distributions have it in another form.
    let _ = images.provide("@memtest");
    let mut tests = cargo::command(workspace);
    tests.args(["test", "--package", cargo::MACHINE_TESTS, "--no-fail-fast"]).args(filter);
    let names: Vec<&str> = machines.iter().map(|machine| machine.name()).collect();
    tests.env(emulator::MACHINES_VARIABLE, names.join(","));
    counted(&mut tests, "whole-machine tests", report)
}

/// Runs a `cargo test`, passing on what it prints and adding up its results.
fn counted(command: &mut Command, name: &str, report: &mut Report) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .cannot(|| format!("start {}", process::shown(command)))?;
    let mut failed = 0;
    for line in
        child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(io::Result::ok)
    {
        println!("{line}");
        if let Some((passed, failures)) = result_line(&line) {
            report.passed += passed;
            report.failed += failures;
            failed += failures;
        } else if let Some(test) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            report.failures.push(test.to_owned());
        }
    }
    let status = child.wait().cannot(|| format!("wait for the {name}"))?;
    if !status.success() && failed == 0 {
        // They did not build, or a test program ended without its results.
        report.check(name, false);
    }
    Ok(())
}

/// The counts in a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; …`, or in the last line of the
/// whole-machine tests, `3 passed, 0 failed`.
fn result_line(line: &str) -> Option<(usize, usize)> {
    let counts = match line.strip_prefix("test result: ") {
        Some(result) => result.split_once(". ")?.1,
        None => line,
    };
    let count = |word: &str| {
        counts.split([';', ',']).find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<usize>().ok())
    };
    Some((count("passed")?, count("failed")?))
}

fn fuzzing(workspace: &Workspace, report: &mut Report) -> Result<()> {
    let fuzzer = match Fuzzer::build(workspace, "") {
        Ok(fuzzer) => fuzzer,
        Err(missing @ Error::Missing { .. }) => {
            println!("fuzzing ... left out: {missing}");
            return Ok(());
        }
        Err(error) => {
            println!("fuzzing ... FAILED");
            eprintln!("{}", error.tool_output().unwrap_or_default());
            report.check(&error.to_string(), false);
            return Ok(());
        }
    };
    let tally = fuzzer.run(FUZZ_TIME)?;
    report.passed += tally.passed;
    report.failed += tally.failed;
    if tally.failed > 0 {
        report.failures.push(format!("{} fuzz targets", tally.failed));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_cargos_result_lines() {
        let line =
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        assert_eq!(result_line(line), Some((12, 0)));
        assert_eq!(result_line("test result: FAILED. 1 passed; 2 failed; 0 ignored"), Some((1, 2)));
        assert_eq!(result_line("10 passed, 3 failed"), Some((10, 3)));
        assert_eq!(result_line("10 passed, some failed"), None);
        assert_eq!(result_line("test a ... ok"), None);
        assert_eq!(result_line("test result: ok. passed"), None);
    }
}
