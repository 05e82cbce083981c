//! The tracking of what guests write (`docs/memory.md`): what a harvest says is exactly what a probe wrote, by each of the
//! ways in which CPUs tell.

use caisson_tests::{Failure, From, Lab, Verdict, ensure};
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
    let mut found = Vec::new();
    for line in run.lines(From::Caisson) {
        if let Some((_, runs)) = line.text.split_once("guest writer: wrote (KiB behind the plus)") {
            found.push(above(runs, SETS)?);
        }
    }
    let is = |set: &[(u64, u64)]| found.iter().filter(|runs| runs.as_slice() == set).count();
    // The first and the one in the middle may be in part of something else.
    let (first, second) = (is(FIRST), is(SECOND));
    ensure!(first >= 2 && second >= 2 && first + second + 3 >= found.len(), "harvests: {found:x?}");
    Ok(())
}

/// The runs of pages in a line of the log from `start` on.
fn above(line: &str, start: u64) -> Verdict<Vec<(u64, u64)>> {
    let run = |word: &str| {
        let (gpa, kib) = word.strip_prefix("0x")?.split_once('+')?;
        Some((u64::from_str_radix(gpa, 16).ok()?, kib.parse().ok()?))
    };
    let mut runs = Vec::new();
    for word in line.split_whitespace() {
        let run = run(word).ok_or_else(|| Failure::new(format!("{word:?} is no run of pages")))?;
        if run.0 >= start {
            runs.push(run);
        }
    }
    Ok(runs)
}
