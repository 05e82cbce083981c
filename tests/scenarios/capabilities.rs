//! Every optional capability of VT-x turned off, one at a time and all at once: the guests do not notice.
//!
//! Bochs's usual CPU has all of them but `encls`. On AMD-V there is nothing to turn off: QEMU's CPUs have none of the
//! optional ones, so that every scenario there is one without.

use caisson_tests::{Failure, From, Lab, Verdict, ensure};
use xtask::outcome::Outcome;

use crate::{
    lifecycle,
    workload::{BOOT, STEP},
};

/// The optional capabilities, by Caisson's names for them (`docs/exits.md`).
const WORDS: &[&str] = &[
    "vpid",
    "preemption-timer",
    "tpr-shadow",
    "ept-accessed-dirty",
    "ept-1g",
    "invept-single",
    "invvpid-single",
    "msr-bitmaps",
    "rdtscp",
    "invpcid",
    "pause-loop",
    "encls",
    "string-io",
];

/// The probes that a capability could matter to and that are quick, and what is behind the kernel on their command lines.
const PROBES: &[(&str, &str)] = &[
    ("modes", ""),
    ("exceptions", ""),
    ("apic", ""),
    ("string-io", ""),
    ("mmio", ""),
    ("msr", ""),
    ("cpuid", ""),
    ("paging", ""),
    ("vectors", "seed=1"),
    ("vectors", "seed=2"),
];

/// Runs the probes without the capability that the scenario is named after, `without-WORD`; `without-all` leaves all of
/// them out.
pub(crate) fn without(lab: &Lab, name: &str) -> Verdict {
    let word = WORDS.iter().find(|word| name.starts_with(&format!("without-{word}")));
    let off = match word {
        Some(word) => (*word).to_owned(),
        None if name.starts_with("without-all") => WORDS.join(","),
        None => return Err(Failure::new(format!("{name} names no capability: add it to the list"))),
    };
    let guests: Vec<_> = (1..).zip(PROBES).map(|(i, (probe, _))| format!("{probe}-{i}")).collect();
    let mut config = String::from("[machine]\nconsole = \"all\"\n");
    for ((probe, words), guest) in PROBES.iter().zip(&guests) {
        config += &format!(
            r#"
            [[domain]]
            name = "{guest}"
            memory = "4M"
            kernel = "@probe/{probe}"
            cmdline = "{words}"
            on_reboot = "destroy"
            "#
        );
    }
    let mut run = lab.boot(name, &config)?.words(&format!("without={off}")).start()?;
    let line = run.expect(From::Caisson, BOOT, "^VT-x: (.*)$")?;
    let used: Vec<_> = line.group(1).split(", ").collect();
    ensure!(!off.split(',').any(|word| used.contains(&word)), "{off} is off, and in use: {used:?}");
    match word {
        Some(_) => ensure!(used.len() > 1, "more is off than {off}: {used:?}"),
        None => ensure!(used == ["none"], "there are others: {used:?}"),
    }
    for guest in &guests {
        let line = run.expect(From::Guest(guest), BOOT, r"^probe \S+: (ok|FAIL .*)$")?;
        ensure!(line.group(1) == "ok", "{guest}: {}", line.group(0));
    }
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)
}
