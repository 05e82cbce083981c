//! One guest controls others: lists, pauses, shuts down, starts, resets and destroys them, and has their consoles.

use caisson_tests::{From, Lab, Verdict, ensure};
use xtask::outcome::Outcome;

use crate::{
    lifecycle,
    workload::{BOOT, STEP},
};

/// The controlling guest is a probe, which makes hypercalls; a device of `awaited` is one that it never describes.
const CONFIG: &str = r#"
    [machine]
    console = "all"

    [[domain]]
    name = "control"
    memory = "4M"
    kernel = "@probe/control"
    devices = "none"
    privileges = ["events", "control", "io-backend"]
    on_reboot = "destroy"

    [[domain]]
    name = "ward"
    memory = "4M"
    kernel = "@probe/ward"
    on_reboot = "restart"
    max_restarts = 2

    [[domain]]
    name = "busy"
    memory = "4M"
    kernel = "@probe/busy"

    [[domain]]
    name = "awaited"
    memory = "4M"
    kernel = "@probe/idle"

    [[domain.disk]]
    backend = "control"
    path = "/nowhere"
"#;

pub(crate) fn calls(lab: &Lab, name: &str) -> Verdict {
    on(lab, name, 1)
}

pub(crate) fn calls_on_two(lab: &Lab, name: &str) -> Verdict {
    on(lab, name, 2)
}

fn on(lab: &Lab, name: &str, cpus: u32) -> Verdict {
    let mut run = lab.boot(name, CONFIG)?.cpus(cpus).start()?;
    let line = run.expect(From::Guest("control"), BOOT * 4, r"^probe control: (ok|FAIL .*)$")?;
    ensure!(line.group(1) == "ok", "{}", line.group(0));
    run.end(STEP, Outcome::Clean)?;
    // A pause of seconds is not there for who was paused.
    let skipped = run.count(From::Guest("ward"), "have been skipped")?;
    ensure!(skipped == 0, "the ward saw {skipped} pauses");
    for says in ["ward: power button", "ward: typed q"] {
        let said = run.count(From::Guest("ward"), says)?;
        ensure!(said == 1, "{says:?} was said {said} times");
    }
    lifecycle::all_memory_came_back(&run)
}
