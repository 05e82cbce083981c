//! Every optional capability turned off, one at a time and all at once: the guests do not notice.
//!
//! On Bochs. Its usual CPU has all of VT-x's but `encls` and what a later one has. QEMU's CPUs have none of AMD-V's, so that every scenario there is
//! one without; Bochs has a CPU with some.

use caisson_tests::{Failure, From, Lab, Verdict, ensure};
use xtask::outcome::Outcome;

use crate::{
    lifecycle,
    workload::{BOOT, STEP},
};

/// The optional capabilities of VT-x, by Caisson's names for them (`docs/exits.md`).
const OF_VT_X: &[&str] = &[
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
    "xsaves",
    "tsc-scaling",
    "virtual-interrupts",
    "x2apic",
    "apic-accesses",
    "apic-registers",
    "pml",
];

/// The delivery of interrupts out of a virtual local APIC, without which its other parts are not used.
const DELIVERY: &str = "virtual-interrupts";

/// Those that an NMI's way to its guest could depend on: its windows, and the faults of an IRET.
const OF_EVENTS: &[&str] = &["preemption-timer", "tpr-shadow", "ept-accessed-dirty", "pml"];

/// Those that Bochs's usual CPU lacks, and a later one of its own has.
const NEWER: &[&str] = &["xsaves", "tsc-scaling", "pml"];

/// Bochs's CPU with VT-x as of later years.
const NEWER_CPU: &str = "corei7_skylake_x";

/// Those of AMD-V that Bochs has.
const OF_AMD_V: &[&str] = &["nrip-save", "flush-by-asid", "pause-filter"];

/// Bochs's CPU with SVM.
const SVM_CPU: &str = "ryzen";

/// Probes, and what is on their command lines.
type Probes = &'static [(&'static str, &'static str)];

/// The probes that a capability could matter to and that are quick.
const QUICK: Probes = &[
    ("modes", ""),
    ("exceptions", ""),
    ("task-switch", "nmis=0"),
    ("apic", "nmis=0"),
    ("string-io", ""),
    ("mmio", ""),
    ("msr", ""),
    ("cpuid", ""),
    ("paging", ""),
    ("vectors", "seed=1"),
    ("vectors", "seed=2"),
];

/// What sends NMIs, each the only guest of its run ([`crate::probes::nmis`]).
const OF_NMIS: Probes = &[("task-switch", ""), ("apic", "")];

/// What goes through the local APIC, each the only guest of its run: Bochs delivers a virtual interrupt to a guest with
/// interrupts off when a physical one comes ([`xtask::bochs::WITHOUT_WORD`]), and for a guest that is alone few do.
const OF_APIC: Probes = &[("apic", "held-back=0"), ("apic-timer", "")];

/// The probes that can pass on Bochs's SVM, which does not load CR2 at VMRUN, panics at a guest's triple fault and at
/// virtual-8086 mode, and gives guests with interrupts off no exit for a physical one.
const ON_BOCHS_SVM: Probes = &[("msr", ""), ("cpuid", ""), ("paging", ""), ("poweroff", "")];

/// VT-x without the capability that the scenario is named after, `without-WORD`; `without-all` leaves all of them out. So
/// is the delivery of virtual interrupts, which Bochs gets wrong.
pub(crate) fn vt_x(lab: &Lab, name: &str) -> Verdict {
    let mut off = left_out(name, "without-", OF_VT_X)?;
    let all = off.len() > 1;
    let cpu = off.iter().all(|word| NEWER.contains(word)).then_some(NEWER_CPU);
    if !off.contains(&DELIVERY) {
        off.push(DELIVERY);
    }
    let used = pass(lab, name, ("VT-x", cpu), QUICK, &off)?;
    ensure!(!all || used == "none", "there are others: {used}");
    if all || OF_EVENTS.iter().any(|word| off.contains(word)) {
        for probe in OF_NMIS {
            pass(lab, name, ("VT-x", cpu), &[*probe], &off)?;
        }
    }
    Ok(())
}

/// The virtual local APIC with all its parts, or without the one that the scenario is named after.
pub(crate) fn virtual_apic(lab: &Lab, name: &str) -> Verdict {
    let off = if name.starts_with("without-") { left_out(name, "without-", OF_VT_X)? } else { Vec::new() };
    for probe in OF_APIC {
        let used = pass(lab, name, ("VT-x", None), &[*probe], &off)?;
        for word in [DELIVERY, "x2apic", "apic-accesses", "apic-registers"] {
            let expected = !off.contains(&word);
            ensure!(used.split(", ").any(|other| other == word) == expected, "{word} in {used}: {expected}");
        }
    }
    Ok(())
}

/// VT-x with what only the later CPU has.
pub(crate) fn newer(lab: &Lab, name: &str) -> Verdict {
    let used = pass(lab, name, ("VT-x", Some(NEWER_CPU)), QUICK, &[DELIVERY])?;
    for word in NEWER {
        ensure!(used.split(", ").any(|other| other == *word), "{word} is not in use: {used}");
    }
    Ok(())
}

/// Guests with a slower and a faster TSC than the host's beside one with the host's; without the capability they are
/// refused.
pub(crate) fn tsc_scaling(lab: &Lab, name: &str) -> Verdict {
    let mut config = String::from("[machine]\nconsole = \"all\"\n");
    for (guest, khz) in [("slow", "tsc_khz = 12345"), ("fast", "tsc_khz = 2900000"), ("same", "")] {
        config += &format!(
            r#"
            [[domain]]
            name = "{guest}"
            memory = "4M"
            kernel = "@probe/apic-timer"
            {khz}
            cmdline = "{}"
            on_reboot = "destroy"
            "#,
            khz.replace(" = ", "=")
        );
    }
    let mut run = lab.boot(name, &config)?.cpu(NEWER_CPU).start()?;
    for guest in ["slow", "fast", "same"] {
        let line = run.expect(From::Guest(guest), BOOT, r"^probe \S+: (ok|FAIL .*)$")?;
        ensure!(line.group(1) == "ok", "{guest}: {}", line.group(0));
    }
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    let mut run = lab.boot(name, &config)?.cpu(NEWER_CPU).words("without=tsc-scaling").start()?;
    run.expect(
        From::Caisson,
        BOOT,
        r"\(slow\): tsc_khz: this CPU cannot scale its TSC of [0-9]+ kHz to 12345",
    )?;
    run.end(STEP, Outcome::Refused)
}

/// The same of AMD-V: `svm-without-WORD`.
pub(crate) fn amd_v(lab: &Lab, name: &str) -> Verdict {
    let off = left_out(name, "svm-without-", OF_AMD_V)?;
    pass(lab, name, ("AMD-V", Some(SVM_CPU)), ON_BOCHS_SVM, &off).map(drop)
}

/// The capabilities that a scenario's name leaves out.
fn left_out<'a>(name: &str, prefix: &str, all: &'a [&'a str]) -> Verdict<Vec<&'a str>> {
    let word = name.strip_prefix(prefix).unwrap_or(name);
    if word.starts_with("all") {
        return Ok(all.to_vec());
    }
    let found = all.iter().find(|known| word.starts_with(**known));
    found.map(|word| vec![*word]).ok_or_else(|| Failure::new(format!("{word} is no capability's name")))
}

/// Runs the probes, which pass, and gives the capabilities that were in use: none of those that are `off`.
fn pass(
    lab: &Lab,
    name: &str,
    (vendor, cpu): (&str, Option<&str>),
    probes: &[(&str, &str)],
    off: &[&str],
) -> Verdict<String> {
    let guests: Vec<_> = (1..).zip(probes).map(|(i, (probe, _))| format!("{probe}-{i}")).collect();
    let mut config = String::from("[machine]\nconsole = \"all\"\n");
    for ((probe, words), guest) in probes.iter().zip(&guests) {
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
    let mut boot = lab.boot(name, &config)?.words(&format!("without={}", off.join(",")));
    if let Some(cpu) = cpu {
        boot = boot.cpu(cpu);
    }
    let mut run = boot.start()?;
    let line = run.expect(From::Caisson, BOOT, &format!("^{vendor}: (.*)$"))?;
    let used = line.group(1).to_owned();
    ensure!(!used.split(", ").any(|word| off.contains(&word)), "{off:?} are off, and in use: {used}");
    for guest in &guests {
        let line = run.expect(From::Guest(guest), BOOT, r"^probe \S+: (ok|FAIL .*)$")?;
        ensure!(line.group(1) == "ok", "{guest}: {}", line.group(0));
    }
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    Ok(used)
}
