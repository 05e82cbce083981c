//! `cargo xtask test`: formatting, lints, host tests, whole-machine tests, a little fuzzing. Everything runs even after
//! a failure; the last line is `N passed, N failed`. A check counts as one test.

use std::{
    io::{self, BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    accel,
    cargo::{self, Package, Profile},
    cli::{TestArgs, TestMachineArg},
    emulator::{self, Kind},
    error::{Context, Error, Result},
    fuzz::Fuzzer,
    images::Images,
    near::near,
    paths::Workspace,
    process,
    progress::Step,
    tools::{self, Tool},
};

/// How long each fuzz target runs among the tests.
const FUZZ_TIME: Duration = Duration::from_secs(3);

/// The crates whose unit tests have models for `loom`, in modules named `loom_models`.
const MODEL_CHECKED: [&str; 5] =
    ["caisson-irqchip", "caisson-accounts", "caisson-events", "caisson-trace", "caisson-smp"];

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
    let machines = machines(args.machine);
    let (host, machine) = match filter {
        Some(filter) => wanted(workspace, &packages, args, filter, &machines)?,
        None => (!args.machine_only, !args.host_only),
    };
    if machine {
        // First and at once: a person who has to install by hand is told so now, and types one command.
        tools::ensure(needed(&machines))?;
    }
    let mut report = Report::default();
    if host {
        if filter.is_none() {
            lints(workspace, &packages, &mut report)?;
        }
        counted(host_tests(workspace, &packages).args(filter), "host tests", &mut report)?;
        if filter.is_none() {
            counted(&mut model_checks(workspace), "model checks", &mut report)?;
        }
    }
    if machine {
        machine_tests(workspace, &packages, filter, &machines, &mut report)?;
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
        tools::ensure_rust_target(tools::TARGET)?;
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

/// Whether host tests and whole-machine tests have any whose name contains `filter`.
///
/// # Errors
/// When neither has.
fn wanted(
    workspace: &Workspace,
    packages: &[Package],
    args: &TestArgs,
    filter: &str,
    machines: &[Kind],
) -> Result<(bool, bool)> {
    let step = Step::start("look the tests up");
    let list = |there: bool, mut tests: Command| {
        if !there {
            return Ok(Some(Vec::new()));
        }
        let ran = process::capture(tests.args(["--", "--list"]), Some(&step))?;
        Ok::<_, Error>(ran.success.then(|| listed(&String::from_utf8_lossy(&ran.stdout))))
    };
    let host = list(!args.machine_only, host_tests(workspace, packages))?;
    let there = !args.host_only && packages.iter().any(|package| package.name == cargo::MACHINE_TESTS);
    let machine = list(there, machine_command(workspace, machines))?;
    step.done("");
    // Where they do not build, running them says why.
    let has = |names: &Option<Vec<String>>| {
        names.as_ref().is_none_or(|names| names.iter().any(|name| name.contains(filter)))
    };
    match (has(&host), has(&machine)) {
        (false, false) => {
            let names: Vec<String> = [host, machine].into_iter().flatten().flatten().collect();
            Err(Error::Usage(nothing_fits(filter, &names)))
        }
        wanted => Ok(wanted),
    }
}

/// The names in what test programs print for `--list`.
fn listed(printed: &str) -> Vec<String> {
    let counts = |line: &str| line.ends_with(" benchmarks");
    let lines = printed.lines().filter(|line| !line.is_empty() && !counts(line));
    lines.map(|line| line.strip_suffix(": test").unwrap_or(line).to_owned()).collect()
}

/// The line that says that no test is called so.
fn nothing_fits(filter: &str, names: &[String]) -> String {
    let near = near(filter, names.iter().map(String::as_str));
    match &near[..] {
        [] => format!(
            "no test's name contains {filter:?}; cargo xtask test without a name runs all {}",
            names.len()
        ),
        near => format!("no test's name contains {filter:?}; near are {}", near.join(", ")),
    }
}

/// The command that runs the host tests.
fn host_tests(workspace: &Workspace, packages: &[Package]) -> Command {
    let mut tests = cargo::command(workspace);
    tests.args(["test", "--workspace", "--no-fail-fast"]);
    tests.args(exclude(
        packages.iter().filter(|package| package.bare_metal || package.name == cargo::MACHINE_TESTS),
    ));
    tests
}

/// The command that runs the crates' models of what several CPUs do at once, under every interleaving.
fn model_checks(workspace: &Workspace) -> Command {
    let mut tests = cargo::command(workspace);
    tests.args(["test", "--release", "--lib", "--no-fail-fast"]);
    tests.args(MODEL_CHECKED.iter().flat_map(|package| ["--package", package])).arg("loom_");
    // Apart from the usual builds, which other flags would make anew.
    tests.arg("--target-dir").arg(workspace.target("loom")).env("RUSTFLAGS", "--cfg loom");
    tests
}

/// The command that runs the whole-machine tests, on these emulators.
fn machine_command(workspace: &Workspace, machines: &[Kind]) -> Command {
    let mut tests = cargo::command(workspace);
    tests.args(["test", "--package", cargo::MACHINE_TESTS, "--no-fail-fast"]);
    let names: Vec<&str> = machines.iter().map(|machine| machine.name()).collect();
    tests.env(emulator::MACHINES_VARIABLE, names.join(","));
    tests
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

/// What the whole-machine tests on these emulators stand on.
fn needed(machines: &[Kind]) -> impl Iterator<Item = &'static Tool> {
    let on = |machine| machines.contains(&machine);
    let (qemu, bochs) = (on(Kind::Qemu), on(Kind::Bochs));
    let qemu = qemu.then(|| tools::for_run(true)).into_iter().flatten();
    qemu.chain(bochs.then(tools::for_bochs).into_iter().flatten())
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
    if machines.contains(&Kind::Qemu)
        && let Err(error) = accel::check_emulation()
    {
        println!("whole-machine tests ... FAILED");
        eprintln!("{error}");
        report.check("whole-machine tests", false);
        return Ok(());
    }
    // Before the first test's clock runs: fetching and building take their time once. Most scenarios boot the checked
    // image, those of the front door the one for use.
    let images = Images::new(workspace.clone());
    images.caisson()?;
    images.clone().with_profile(Profile::Checked).caisson()?;
    for name in ["@linux", "@initrd"] {
        images.provide(name)?;
    }
    // Only one test needs it, and says so: some distributions have it in another form.
    let _ = images.provide("@memtest");
    counted(machine_command(workspace, machines).args(filter), "whole-machine tests", report)
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
    fn names_are_read_from_lists_of_tests() {
        let printed =
            "qemu::tests::a: test\nsrc/x.rs - f (line 3): test\n\n2 tests, 0 benchmarks\nlinux-on-bochs\n";
        assert_eq!(listed(printed), ["qemu::tests::a", "src/x.rs - f (line 3)", "linux-on-bochs"]);
    }

    #[test]
    fn a_name_that_fits_nothing_is_told_with_near_ones() {
        let names = ["linux", "two-guests"].map(str::to_owned);
        assert_eq!(nothing_fits("linix", &names), "no test's name contains \"linix\"; near are linux");
        let line = nothing_fits("xyzzy", &names);
        assert!(line.ends_with("without a name runs all 2"), "{line}");
    }

    #[test]
    fn all_that_the_emulators_need_is_asked_for_at_once() {
        let packages =
            |machines: &[Kind]| -> Vec<&str> { needed(machines).map(|tool| tool.package).collect() };
        assert!(packages(&[]).is_empty());
        let all = packages(&Kind::ALL);
        for (machine, own, others) in [(Kind::Qemu, "ovmf", "bochs"), (Kind::Bochs, "bochs", "ovmf")] {
            let some = packages(&[machine]);
            assert!(some.contains(&own) && some.contains(&"xorriso") && !some.contains(&others));
            assert!(some.iter().all(|package| all.contains(package)));
        }
    }

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
