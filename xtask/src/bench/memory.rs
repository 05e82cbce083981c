//! What Caisson takes of the machine's memory, and how long it takes until guests can run, as it says itself at the log level
//! debug.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{LIMIT, await_line, grouped, medium};
use crate::{
    elf::Loaded,
    emulator::Running,
    error::{Error, Result},
    images::{self, Images},
    outcome::Outcome,
    progress::Step,
    qemu::{Accelerator, Boot, Machine},
};

/// A guest: its memory in MiB, its vCPUs, whether it has a virtio device, and what it is.
struct Guest {
    mib: u64,
    vcpus: u64,
    entropy: bool,
    title: &'static str,
}

const fn guest(mib: u64, vcpus: u64, entropy: bool, title: &'static str) -> Guest {
    Guest { mib, vcpus, entropy, title }
}

/// The first one pays for what grows once, and is not shown.
const GUESTS: [Guest; 7] = [
    guest(1, 1, false, ""),
    guest(1, 1, false, "a guest of 1 MiB, one vCPU"),
    guest(64, 1, false, "… of 64 MiB"),
    guest(256, 1, false, "… of 256 MiB"),
    guest(1024, 1, false, "… of 1 GiB"),
    guest(1, 2, false, "… of 1 MiB, two vCPUs"),
    guest(1, 1, true, "… of 1 MiB, with a virtio device of Caisson's"),
];

/// What Caisson says when all is ready.
const READY: &str = "now that guests can run";

/// The config of those guests, or only of the first.
fn config(guests: &[Guest]) -> String {
    let head = "[machine]\nconsole = \"all\"\nlog = \"debug\"\n".to_owned();
    guests.iter().enumerate().fold(head, |config, (index, guest)| {
        let Guest { mib, vcpus, entropy, .. } = guest;
        format!(
            "{config}[[domain]]\nname = \"g{index}\"\nmemory = \"{mib}M\"\nvcpus = {vcpus}\nentropy = {entropy}\n\
             on_reboot = \"destroy\"\nkernel = \"@probe/idle\"\ncmdline = \"ms=1\"\n"
        )
    })
}

/// The numbers of a line of Caisson's, by the words before them: those of `parts`, each with what follows it.
fn numbers<'a>(line: &str, parts: &[&'a str]) -> Option<BTreeMap<&'a str, u64>> {
    let number = |part: &&'a str| {
        let digits = line.split_once(*part)?.1.trim_start();
        let end = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
        Some((*part, digits.get(..end)?.parse().ok()?))
    };
    parts.iter().map(number).collect()
}

/// The line of what was printed that has `mark` in it.
fn line<'a>(printed: &'a str, mark: &str) -> Result<&'a str> {
    let untold = || Error::Tool { line: format!("Caisson did not say {mark:?}"), output: printed.to_owned() };
    printed.lines().find(|line| line.contains(mark)).ok_or_else(untold)
}

const IMAGE: &str = "image ";
const TABLES: &str = "page tables ";
const RECORDS: &str = "records of frames ";
const FRAMES: &str = ", frames ";
const HEAP: &str = "heap ";
const USED: &str = "of which used ";

/// What Caisson says of its own memory, in the table's order, each with what it is.
const OWN: [(&str, &str); 6] = [
    (IMAGE, "the image in memory, with variables and boot stacks"),
    (TABLES, "page tables of all RAM"),
    (RECORDS, "the frame allocator's records, 8 bytes for each 4 KiB"),
    (FRAMES, "frames: stacks, per-CPU data, hardware's areas"),
    (HEAP, "heap"),
    (USED, "… of which is in use"),
];

/// Bytes of frames and of heap that a guest took beside its RAM.
fn taken(printed: &str, index: usize) -> Result<[u64; 2]> {
    let mark = format!("guest g{index}: ");
    let said = printed.lines().filter_map(|line| line.split_once(&mark)).map(|(_, rest)| rest);
    let both = said.filter_map(|rest| {
        let (frames, rest) = rest.split_once(" bytes of frames and ")?;
        let (heap, _) = rest.split_once(" of the heap beside its RAM")?;
        Some([frames.parse().ok()?, heap.parse().ok()?])
    });
    let untold = || Error::Tool {
        line: format!("Caisson did not say what g{index} takes"),
        output: printed.to_owned(),
    };
    both.into_iter().next().ok_or_else(untold)
}

fn row(title: &str, figure: u64) {
    println!("{title:<56} {:>16}", grouped(figure));
}

/// Measures, and prints.
pub(super) fn measure(images: &Images) -> Result<()> {
    let (iso, memory) = medium(images, "memory", &config(&GUESTS))?;
    let printed = super::exact(images, "memory", memory, Boot::Iso(iso), Outcome::Clean)?;
    let parts = OWN.map(|(part, _)| part);
    let own = numbers(line(&printed, "Caisson's memory in bytes")?, &parts).unwrap_or_default();
    println!("{:<56} {:>16}   one CPU, {memory} MiB of memory", "memory, before the first guest", "bytes");
    let loaded: u64 = Loaded::new(images::read(&images.caisson()?)?).bytes();
    row("the image, as it is loaded", loaded);
    for (part, title) in OWN {
        row(title, own.get(part).copied().unwrap_or_default());
    }
    println!("{:<56} {:>16} {:>10}", "beside a guest's RAM, in bytes", "frames", "heap");
    for (index, guest) in GUESTS.iter().enumerate().skip(1) {
        let [frames, heap] = taken(&printed, index)?;
        println!("{:<56} {:>16} {:>10}", guest.title, grouped(frames), grouped(heap));
    }
    Ok(())
}

/// From power-on until guests can run: in instructions, and in the host's time.
pub(super) fn start(images: &Images) -> Result<()> {
    let (iso, memory) = medium(images, "first guest", &config(GUESTS.get(..1).unwrap_or_default()))?;
    let printed = super::exact(images, "power-on", memory, Boot::Iso(iso.clone()), Outcome::Clean)?;
    let ready = line(&printed, READY)?;
    let said = numbers(ready, &["power-on: ", "Caisson began, "]).unwrap_or_default();
    let of = |part| said.get(part).copied().unwrap_or_default();
    let (began, now) = (of("power-on: "), of("Caisson began, "));
    println!("{:<56} {:>16}", "from power-on until guests can run", "instructions");
    row("firmware and loader", began);
    row(&format!("Caisson on {memory} MiB of memory, with a guest of 1 MiB"), now.saturating_sub(began));

    let step = Step::start("measure power-on in the host's time");
    let directory = images.workspace().dir("runs")?.join(format!("bench-{}", std::process::id()));
    let machine = Machine::new(Accelerator::Tcg, memory, Boot::Iso(iso), directory.clone());
    let begun = Instant::now();
    let running = Running::Qemu(machine.start()?);
    let (mut printed, deadline) = (Vec::new(), begun + LIMIT);
    let mut at = |mark: &str| -> Result<Duration> {
        await_line(running.serial(), &mut printed, mark, deadline)?;
        Ok(begun.elapsed())
    };
    let (first, ready) = (at("MiB of memory free")?, at(READY)?);
    drop(running);
    // Nothing of it is wanted any more, and nothing depends on its going.
    let _ = std::fs::remove_dir_all(&directory);
    step.done("");
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    println!("{:<56} {:>16}   QEMU's process and all, of the host's time", "from power-on", "ms");
    row("until Caisson's first line", ms(first));
    row("until guests can run", ms(ready));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
[caisson] Caisson's memory in bytes: image 10, page tables 20, records of frames 30, frames 40, heap 50, of which used 6\r
[caisson] guest g0: 4096 bytes of frames and 17 of the heap beside its RAM\r
[caisson] guest g1: 8192 bytes of frames and 18 of the heap beside its RAM\r
[caisson] ticks since power-on: 1000 when Caisson began, 2500 now that guests can run\r
";

    #[test]
    fn what_caisson_says_is_read() {
        let own = numbers(line(PRINTED, "in bytes").unwrap(), &OWN.map(|(part, _)| part)).unwrap();
        assert_eq!(OWN.map(|(part, _)| own[part]), [10, 20, 30, 40, 50, 6]);
        let ready = numbers(line(PRINTED, READY).unwrap(), &["power-on: ", "Caisson began, "]).unwrap();
        assert_eq!((ready["power-on: "], ready["Caisson began, "]), (1000, 2500));
        assert_eq!(taken(PRINTED, 1).unwrap(), [8192, 18]);
        assert!(taken(PRINTED, 2).is_err() && line(PRINTED, "nothing").is_err());
    }

    #[test]
    fn the_guests_are_a_config() {
        let config = caisson_config::source::parse_toml(&config(&GUESTS), "memory").unwrap();
        assert_eq!(config.domains.len(), GUESTS.len());
    }
}
