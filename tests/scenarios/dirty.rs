//! The tracking of what guests write (`docs/memory.md`): what a harvest says is exactly what a probe wrote, by each of the
//! ways in which CPUs tell.

use std::ops::Range;

use caisson_tests::{Failure, From, Lab, Run, Verdict, ensure};
use xtask::{emulator::Kind, outcome::Outcome};

use crate::{
    lifecycle,
    workload::{BOOT, STEP},
};

/// Bochs's CPU with page-modification logging.
const LOGGING_CPU: &str = "corei7_skylake_x";

/// The sets of the probe `dirty`: addresses and KiB.
const FIRST: &[(u64, u64)] = &[(0x20_0000, 2800), (0x58_0000, 4), (0x5a_0000, 4)];
const SECOND: &[(u64, u64)] = &[(0x58_0000, 4), (0x60_0000, 160)];
/// Where the sets begin, above all else that the probe and the CPU write for it.
const SETS: u64 = 0x20_0000;

/// What stands behind `dirty-`: the capabilities to leave out.
pub(crate) fn exact(lab: &Lab, name: &str) -> Verdict {
    let config = r#"
        [machine]
        log = "debug"
        console = "all"

        [[domain]]
        name = "writer"
        memory = "16M"
        kernel = "@probe/dirty"
        cmdline = "ms=4600"
        on_reboot = "destroy"

        [[domain]]
        name = "idler"
        memory = "4M"
        kernel = "@probe/hlt-idle"
        on_reboot = "destroy"
    "#;
    let off = match name {
        "dirty-bits" => "pml",
        "dirty-protected" => "pml,ept-accessed-dirty",
        _ => "",
    };
    let mut boot = lab.boot(name, config)?.words(&format!("dirty-log=1,7 without={off}"));
    if lab.machine() == Kind::Bochs {
        boot = boot.cpu(LOGGING_CPU);
    }
    let mut run = boot.start()?;
    let line = run.expect(From::Caisson, BOOT, "^(?:VT-x|AMD-V): (.*)$")?;
    let logs = line.group(1).split(", ").any(|word| word == "pml");
    ensure!(logs == (lab.machine() == Kind::Bochs && off.is_empty()), "what is in use: {}", line.group(1));
    run.expect(From::Guest("writer"), BOOT, "^probe dirty: ok$")?;
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    check(&run, FIRST, SECOND, SETS..u64::MAX)
}

/// Two vCPUs write without ever leaving their guest by themselves, each on a CPU of its own: were they not made to when the
/// tables change, they would go on by what their CPU has cached, and their writes would leave no trace.
pub(crate) fn on_two(lab: &Lab, name: &str) -> Verdict {
    /// How far the second vCPU's sets are behind the first one's.
    const APART: u64 = 0x80_0000;
    let config = r#"
        [machine]
        log = "debug"
        console = "all"

        [[domain]]
        name = "writer"
        memory = "16M"
        vcpus = 2
        cpus = "1-3"
        kernel = "@probe/dirty"
        cmdline = "vcpus=2 ms=4600"
        on_reboot = "destroy"
    "#;
    // A CPU is left for the chores, and the first one to itself (see `smp::sixty_four`).
    let mut run = lab.boot(name, config)?.words("dirty-log=1,7").cpus(4).start()?;
    run.expect(From::Guest("writer"), BOOT, "^probe dirty: ok$")?;
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    let both = |set: &[(u64, u64)]| -> Vec<(u64, u64)> {
        [0, APART].iter().flat_map(|by| set.iter().map(move |&(gpa, kib)| (gpa + by, kib))).collect()
    };
    check(&run, &both(FIRST), &both(SECOND), SETS..u64::MAX)
}

/// A Linux of four vCPUs on two CPUs, on each of which a process writes known pages of a part of the memory that the kernel
/// leaves alone.
pub(crate) fn linux_on_two(lab: &Lab, name: &str) -> Verdict {
    const VCPUS: u64 = 4;
    /// That part, as `memmap=` names it, and each vCPU's share of it.
    const PART: u64 = 8 << 20;
    const SHARE: u64 = PART / VCPUS;
    let config = format!(
        r#"
        [machine]
        log = "debug"
        console = "all"

        [[domain]]
        name = "writer"
        memory = "256M"
        vcpus = {VCPUS}
        cpus = "1-2"
        kernel = "@linux"
        initrd = "@initrd"
        cmdline = "console=ttyS0 panic=-1 memmap=8M$8M caisson.test=writes"
        "#
    );
    // The first CPU is left to itself: see `smp::sixty_four`.
    let mut run = lab.boot(name, &config)?.words("dirty-log=1").cpus(3).start()?;
    let line =
        run.expect(From::Guest("writer"), BOOT, r"^caisson-test: writes cpus=(\d+) of=(\d+) error=(.*)$")?;
    ensure!(line.number(1) == VCPUS as f64 && line.number(2) == VCPUS as f64, "{}", line.line.text);
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    let all = |offset: u64, kib: u64| -> Vec<(u64, u64)> {
        (0..VCPUS).map(|vcpu| (PART + vcpu * SHARE + offset, kib)).collect()
    };
    check(&run, &all(0, 300), &all(1 << 20, 160), PART..2 * PART)
}

/// The harvests of what the guest `writer` has written `among` these addresses are two sets of pages, one after the other. The
/// first harvest, the one in the middle and the last may be part of something else.
fn check(run: &Run, first: &[(u64, u64)], second: &[(u64, u64)], among: Range<u64>) -> Verdict {
    let mut found = Vec::new();
    for line in run.lines(From::Caisson) {
        if let Some((_, runs)) = line.text.split_once("guest writer: wrote (KiB behind the plus)") {
            found.push(runs_among(runs, &among)?);
        }
    }
    // Nothing is written before the sets and behind them.
    while found.pop_if(|runs| runs.is_empty()).is_some() {}
    let found: Vec<_> = found.into_iter().skip_while(Vec::is_empty).collect();
    let at = |set: &[(u64, u64)]| {
        let is = |runs: &&Vec<(u64, u64)>| runs.as_slice() == set;
        (found.iter().position(|runs| is(&runs)), found.iter().filter(is).count())
    };
    let ((begin, one), (middle, two)) = (at(first), at(second));
    ensure!(one >= 2 && two >= 2 && begin < middle && one + two + 3 >= found.len(), "harvests: {found:x?}");
    Ok(())
}

/// The runs of pages in a line of the log that begin among these addresses.
fn runs_among(line: &str, among: &Range<u64>) -> Verdict<Vec<(u64, u64)>> {
    let run = |word: &str| {
        let (gpa, kib) = word.strip_prefix("0x")?.split_once('+')?;
        Some((u64::from_str_radix(gpa, 16).ok()?, kib.parse().ok()?))
    };
    let mut runs = Vec::new();
    for word in line.trim_end_matches(" and more").split_whitespace() {
        let run = run(word).ok_or_else(|| Failure::new(format!("{word:?} is no run of pages")))?;
        if among.contains(&run.0) {
            runs.push(run);
        }
    }
    Ok(runs)
}
