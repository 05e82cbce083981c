//! `cargo xtask bench --walk`: what Caisson executes between an exit and the next entry, function by function, with the number of
//! instructions of each.
//!
//! The probe guest `walk` repeats one kind of exit until it is told to stop. Meanwhile QEMU's translator executes one instruction
//! at a time and notes where each is. Of the way that most exits of the kind have taken, line tables tell the functions, also of
//! what the compiler has put in line ([`steps`]). The image that runs is the one for use; what is read beside it is the same
//! with line tables.

mod record;
mod steps;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use record::{Exit, Recorder, Walk};
use steps::{Frame, Tree};

use super::medium;
use crate::{
    elf::Loaded,
    error::{Context, Error, Result},
    images::{self, Images},
    process,
    progress::Step,
};

/// The page that has the walks, and the lines between which they are.
const PAGE: &str = "docs/exits.md";
const BEGIN: &str = "<!-- cargo xtask bench --walk --accept: begin -->\n";
const END: &str = "<!-- end -->\n";

/// What the probe repeats: its name in the probe's lines, and the exits of one round, by their instruction and in words.
struct Round {
    name: &'static str,
    exits: &'static [(Exit, &'static str)],
}

const ARMED: (Exit, &str) = (Exit::Wrmsr, "WRMSR of the TSC deadline");
const ENDED: (Exit, &str) = (Exit::Wrmsr, "WRMSR of the end of interrupt (x2APIC)");

/// In the probe's order.
const ROUNDS: [Round; 7] = [
    Round { name: "mmio", exits: &[(Exit::Other, "read of a register in the local APIC's page")] },
    Round { name: "cpuid", exits: &[(Exit::Cpuid, "CPUID")] },
    Round { name: "hypercall", exits: &[(Exit::Vmmcall, "hypercall: Caisson's version")] },
    Round { name: "port", exits: &[(Exit::Port, "IN from the 8259")] },
    Round { name: "msr", exits: &[(Exit::Rdmsr, "RDMSR of APIC_BASE")] },
    Round { name: "wake-up", exits: &[ARMED, (Exit::Hlt, "HLT, until the guest's timer wakes it"), ENDED] },
    Round {
        name: "timer",
        exits: &[ARMED, (Exit::Other, "interrupt: the guest's timer, while it runs"), ENDED],
    },
];

/// The names of what can be walked.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ROUNDS.iter().map(|round| round.name)
}

/// Runs `cargo xtask bench --walk`; `accept` rewrites the page.
pub(super) fn command(images: &Images, wanted: &dyn Fn(&str) -> bool, accept: bool) -> Result<()> {
    let caisson = images.caisson()?;
    let image = Loaded::new(images::read(&caisson)?);
    let probe = Loaded::new(images::read(&images.provide("@probe/walk")?)?);
    let config = "[machine]\nconsole = \"bench\"\n[[domain]]\nname = \"bench\"\nmemory = \"16M\"\non_reboot = \"destroy\"\n\
                  kernel = \"@probe/walk\"\n";
    let (iso, memory) = medium(images, "walk", config)?;
    let step = Step::start("record the walks");
    let mut recorder = Recorder::start(images, iso, memory, &image, &probe)?;
    let mut walks = Vec::new();
    for round in &ROUNDS {
        step.detail(round.name);
        let recorded = recorder.round(round.name, wanted(round.name))?;
        if let Some(log) = recorded {
            let kinds: Vec<Exit> = round.exits.iter().map(|(kind, _)| *kind).collect();
            let found = record::usual(&log, &image, &probe, &kinds)
                .map_err(|why| Error::Failed(format!("the walk of {}: {why}", round.name)))?;
            walks.extend(round.exits.iter().map(|(_, title)| *title).zip(found));
        }
    }
    recorder.end();
    step.done("");

    let mut told = BTreeSet::new();
    walks.retain(|(title, _)| told.insert(*title));
    let frames = frames(images, &caisson, walks.iter().map(|(_, walk)| walk))?;
    let mut text = String::new();
    for (title, walk) in &walks {
        let tree = Tree::of(walk, &image, &frames);
        text.push_str(&tree.show(title));
        text.push('\n');
    }
    print!("{text}");
    if accept { into_page(images, &text) } else { Ok(()) }
}

/// The functions of each address in `walks`, the innermost first.
fn frames<'a>(
    images: &Images,
    caisson: &Path,
    walks: impl Iterator<Item = &'a Walk>,
) -> Result<BTreeMap<u64, Vec<Frame>>> {
    let addresses: BTreeSet<u64> = walks.flatten().copied().collect();
    let mut command = Command::new("addr2line");
    command.arg("-e").arg(caisson).args(["-a", "-i", "-f", "-C"]);
    command.args(addresses.iter().map(|address| format!("{address:#x}")));
    let told = process::run(&mut command, "asking line tables for functions", None)?;
    Ok(steps::parse_frames(&String::from_utf8_lossy(&told), images.workspace().root()))
}

fn into_page(images: &Images, text: &str) -> Result<()> {
    let path = images.workspace().source(PAGE);
    let page = fs::read_to_string(&path).cannot(|| format!("read {}", path.display()))?;
    let page = replaced(&page, &format!("```text\n{}\n```\n", text.trim_end()))
        .ok_or_else(|| Error::Failed(format!("{PAGE} has no lines {} and {}", BEGIN.trim(), END.trim())))?;
    super::write(&path, &page)
}

/// The page with other text between its two lines.
fn replaced(page: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{text}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_keeps_what_is_around() {
        let page = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(replaced(&page, "new\n"), Some(format!("a\n{BEGIN}new\n{END}b\n")));
        assert_eq!(replaced("a\n", "new\n"), None);
    }

    #[test]
    fn the_page_has_its_place() {
        let page = fs::read_to_string(crate::paths::Workspace::find().source(PAGE)).unwrap();
        assert!(replaced(&page, "").is_some());
    }
}
