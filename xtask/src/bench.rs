//! `cargo xtask bench`: what Caisson costs. Most of it is counted in instructions, on a machine of one CPU where one
//! instruction is one nanosecond and one tick of the TSC ([`Machine::exact`](crate::qemu::Machine::exact)), so that every
//! figure repeats to the last digit. What takes several CPUs is measured in time, and depends on the host and on what
//! else that does.
//!
//! - *Exits* and *interrupts*: the probe guest `bench` measures each kind and prints lines `bench: NAME MEDIAN LEAST MOST`.
//! - *Memory*: what Caisson takes of it, itself and for each guest; and how long it takes until guests can run.
//! - *Throughput*: guests of one vCPU count their exits of one second, as many of them as there are CPUs.
//! - *Guests*: a hundred probe guests sleep in one MiB each; apart, as many small Linux guests as 8 GiB have room for.
//! - *I/O*: fio on a disk that the driver domain serves, iperf3 over its bridge, in the host's time; with exits for each request.
//! - *Peers*: the same guest without a hypervisor, under KVM, under Xen and under Caisson.
//! - *Exits by reason*: what a boot of Linux, and rows of the benchmark program, have Caisson execute.
//! - *Walks*: what Caisson executes from an exit to the next entry, by function.
//! - *Counts*: what is committed of it, so that a test sees a rise ([`counts`]).
//! - *Boot*: the first step of a Linux guest's init reads the TSC, which started at zero with its domain. The same kernel
//!   and RAM disk do the same on the bare machine, where the TSC starts at power-on. Time asleep counts as if it were
//!   spent executing, on both sides; so does the bare kernel's calibration of its TSC, which a guest is spared.

mod accounts;
mod chart;
pub mod counts;
mod first_level;
mod guest;
mod io;
mod memory;
mod peers;
mod reasons;
mod rows;
mod scale;
mod walk;

use std::{
    collections::BTreeMap,
    fs,
    io::{self as stream, Read as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use caisson_config::source::parse_toml;

use crate::{
    cargo,
    cli::{BenchArgs, MachineArg},
    emulator::{Kind, Running},
    error::{Context, Error, Result},
    images::Images,
    outcome::Outcome,
    paths::Workspace,
    progress::Step,
    qemu::{Accelerator, Boot, Machine},
    run,
    serial::Serial,
    tools,
};

/// No measurement takes longer, on the slowest host.
const LIMIT: Duration = Duration::from_secs(300);

/// Memory of the measured guests in MiB.
const GUEST_MIB: u64 = 256;

/// Command line of the measured Linux, with Caisson and without.
const LINUX_CMDLINE: &str = "console=ttyS0 quiet nokaslr panic=-1 caisson.test=boot";

/// A kind of exit: its name in the probe's lines, what it is, and the goal.
struct Exit {
    name: &'static str,
    title: &'static str,
    goal: Option<u64>,
}

const EXITS: &[Exit] = &[
    Exit { name: "cpuid", title: "CPUID", goal: Some(400) },
    Exit { name: "hypercall", title: "hypercall", goal: Some(400) },
    Exit { name: "hypercall-none", title: "… unknown", goal: None },
    Exit { name: "port", title: "port read", goal: Some(500) },
    Exit { name: "msr", title: "MSR read", goal: None },
    Exit { name: "mmio", title: "MMIO read", goal: None },
    Exit { name: "virtio-notify", title: "virtio notification", goal: None },
    Exit { name: "virtio-notify-none", title: "… to nobody", goal: None },
    Exit { name: "virtio-interrupt", title: "virtio interrupt status", goal: None },
];

/// What the probe measures beside exits, by its name in the probe's lines.
const INTERRUPTS: &[(&str, &str)] = &[
    ("wake-up", "timer to handler, out of HLT"),
    ("timer", "timer to handler, running"),
    ("ipi-icr", "IPI by the ICR"),
    ("ipi-pv", "IPI by hypercall"),
    ("ipi-nobody", "IPI by hypercall, to nobody"),
    ("switch-yield", "vCPU switch, by a yield"),
    ("switch-ipi", "vCPU switch, by IPI and HLT"),
];

/// What goes between two vCPUs on two CPUs.
const BETWEEN: &[(&str, &str)] =
    &[("ipi-running", "IPI to a running vCPU"), ("ipi-asleep", "IPI to one asleep")];

/// How much more than on the bare machine a boot may cost, in thousandths.
const BOOT_GOAL: u64 = 1030;

/// The names of all measurements.
fn measured() -> impl Iterator<Item = &'static str> {
    let interrupts = INTERRUPTS.iter().chain(BETWEEN).map(|(name, _)| *name);
    let others = ["memory", "power-on", "throughput", "guests-probes", "guests-linux", "boot"];
    EXITS.iter().map(|exit| exit.name).chain(interrupts).chain(others).chain(io::names())
}

/// Runs `cargo xtask bench`.
///
/// # Errors
/// When a measurement cannot be made.
pub fn command(workspace: &Workspace, args: &BenchArgs) -> Result<()> {
    let wanted = |name: &str| args.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let names: Vec<&str> = if args.walk { walk::names().collect() } else { measured().collect() };
    if !names.iter().any(|name| wanted(name)) {
        let filter = args.filter.as_deref().unwrap_or_default();
        return Err(Error::Usage(format!(
            "no measurement has {filter} in its name; there are {}",
            names.join(", ")
        )));
    }
    tools::ensure(tools::for_run(false))?;
    let images = Images::new(workspace.clone());
    if args.exits {
        return match args.machine {
            MachineArg::Qemu => reasons::command(&images, args.accept),
            MachineArg::Bochs => reasons::on_bochs(&images),
        };
    }
    if args.walk {
        return walk::command(&images, &wanted, args.accept);
    }
    if args.peers {
        return peers::command(&images, args.accept);
    }
    if args.accept {
        return counts::command(&images);
    }
    let exact = EXITS.iter().map(|exit| exit.name).chain(INTERRUPTS.iter().map(|(name, _)| *name));
    if exact.into_iter().any(wanted) {
        exits(&images, &wanted)?;
    }
    if BETWEEN.iter().any(|(name, _)| wanted(name)) {
        scale::between(&images)?;
    }
    if wanted("memory") {
        memory::measure(&images)?;
    }
    if wanted("power-on") {
        memory::start(&images)?;
    }
    if wanted("throughput") {
        scale::throughput(&images)?;
    }
    if wanted("guests-probes") {
        scale::probes(&images)?;
    }
    // 8 GiB of memory: only for who asks for it.
    if args.filter.is_some() && wanted("guests-linux") {
        scale::linux(&images)?;
    }
    if wanted("boot") {
        boot(&images)?;
    }
    // Minutes, and fio with all that it is linked with: only for who asks for it.
    let any =
        |what: &str| args.filter.is_some() && io::names().any(|name| name.starts_with(what) && wanted(name));
    if any("io-disk") {
        io::disks(&images, &wanted)?;
    }
    if any("io-network") {
        io::networks(&images, &wanted)?;
    }
    Ok(())
}

/// What the probe guest prints.
fn probe(images: &Images) -> Result<String> {
    if !cargo::packages(images.workspace())?.iter().any(|package| package.name == cargo::PROBES) {
        let what = format!("exits need the probe guest bench, and there is no package {}", cargo::PROBES);
        return Err(Error::Failed(what));
    }
    under_caisson(images, "exits", "vcpus = 2\nentropy = true\nkernel = \"@probe/bench\"")
}

fn exits(images: &Images, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    let printed = probe(images)?;
    let measured = measurements(&printed);
    let figures = |name: &str| {
        measured.get(name).ok_or_else(|| Error::Tool {
            line: format!("the probe did not measure {name}"),
            output: printed.clone(),
        })
    };
    println!("{:<32} {:>8} {:>8}", "exit, instructions", "median", "goal");
    for exit in EXITS.iter().filter(|exit| wanted(exit.name)) {
        let [ticks, ..] = figures(exit.name)?;
        let goal = exit.goal.map_or_else(|| "–".to_owned(), |goal| format!("< {goal}"));
        println!("{:<32} {ticks:>8} {goal:>8}", exit.title);
    }
    println!("{:<32} {:>8} {:>8} {:>8}", "between, instructions", "median", "least", "most");
    for (name, title) in INTERRUPTS.iter().filter(|(name, _)| wanted(name)) {
        let [median, least, most] = figures(name)?;
        println!("{title:<32} {median:>8} {least:>8} {most:>8}");
    }
    Ok(())
}

/// Median, least and most of the `bench: NAME …` lines.
fn measurements(printed: &str) -> BTreeMap<&str, [u64; 3]> {
    let figures = |words: &str| -> Option<[u64; 3]> {
        let numbers: Vec<u64> = words.split_whitespace().map_while(|word| word.parse().ok()).collect();
        numbers.try_into().ok()
    };
    printed
        .lines()
        .filter_map(|line| line.split_once("bench: ")?.1.trim().split_once(' '))
        .filter_map(|(name, words)| Some((name, figures(words)?)))
        .collect()
}

fn boot(images: &Images) -> Result<()> {
    let kernel = images.provide("@linux")?;
    let initrd = images.provide("@initrd-stamp")?;
    let bare = Boot::Linux { kernel, initrd, cmdline: LINUX_CMDLINE.to_owned() };
    let bare = exact(images, "boot without Caisson", GUEST_MIB, bare, Outcome::NoResult)?;
    let bare = boot_stamp(bare)?;
    let guest = format!("kernel = \"@linux\"\ninitrd = \"@initrd-stamp\"\ncmdline = \"{LINUX_CMDLINE}\"");
    let caisson = boot_stamp(under_caisson(images, "boot with Caisson", &guest)?)?;
    let bare = bare.max(1);
    let ratio = (caisson.saturating_mul(1000) + bare / 2) / bare;
    println!(
        "start to init: {caisson} instructions, {bare} without a hypervisor: {} times, goal at most {}",
        times(ratio),
        times(BOOT_GOAL)
    );
    Ok(())
}

/// Thousandths as a decimal number.
fn times(thousandths: u64) -> String {
    format!("{}.{:03}", thousandths / 1000, thousandths % 1000)
}

/// A number with commas between its thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let from_end = |(index, digit): (usize, char)| {
        let comma = index > 0 && (digits.len() - index).is_multiple_of(3);
        [comma.then_some(','), Some(digit)].into_iter().flatten().collect::<Vec<_>>()
    };
    digits.chars().enumerate().flat_map(from_end).collect()
}

/// The TSC that a guest's init printed.
fn boot_stamp(printed: String) -> Result<u64> {
    let stamp =
        printed.lines().find_map(|line| line.split_once("caisson-test: boot tsc=")?.1.trim().parse().ok());
    stamp.ok_or_else(|| Error::Tool { line: "init did not print its time stamp".to_owned(), output: printed })
}

/// What one guest prints under Caisson; `guest` are the lines of its config.
fn under_caisson(images: &Images, what: &str, guest: &str) -> Result<String> {
    let text = format!(
        "[[domain]]\nname = \"bench\"\nmemory = \"{GUEST_MIB}M\"\non_reboot = \"destroy\"\n{guest}\n"
    );
    let (iso, memory) = medium(images, what, &text)?;
    exact(images, what, memory, Boot::Iso(iso), Outcome::Clean)
}

/// The ISO of a config, and the memory in MiB of a machine for it.
fn medium(images: &Images, what: &str, text: &str) -> Result<(PathBuf, u64)> {
    medium_for(images, Kind::Qemu, what, text)
}

/// The same for an emulator.
fn medium_for(images: &Images, machine: Kind, what: &str, text: &str) -> Result<(PathBuf, u64)> {
    let config = parse_toml(text, "bench").map_err(|error| Error::Failed(error.to_string()))?;
    let blob = images.blob(&config, images.workspace().root())?;
    let slot = format!("bench-{}.iso", what.replace(' ', "-"));
    let iso = images.iso(&blob, &machine.boot_words(""), images.workspace().dir("isos")?.join(slot))?;
    let memory =
        run::machine_memory_mib(config.domains.iter().map(|domain| domain.memory).sum(), blob.len() as u64);
    Ok((iso, memory))
}

/// Leaves a file under `target/caisson/bench`, and says so.
fn leave(images: &Images, name: &str, content: &str) -> Result<()> {
    write(&images.workspace().dir("bench")?.join(name), content)
}

/// Leaves a picture there; where it is accepted, among those of the documentation as well.
fn picture(images: &Images, name: &str, content: &str, accept: bool) -> Result<()> {
    leave(images, name, content)?;
    if accept { write(&images.workspace().source("docs/images").join(name), content) } else { Ok(()) }
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).cannot(|| format!("write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// Reads what a machine prints into `printed` until there is `wanted` in it.
fn await_line(mut serial: &Serial, printed: &mut Vec<u8>, wanted: &str, deadline: Instant) -> Result<()> {
    let missing = |why: &str, printed: &[u8]| Error::Tool {
        line: format!("{why} before there was {wanted:?}"),
        output: String::from_utf8_lossy(printed).into_owned(),
    };
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(printed).contains(wanted) {
        let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        else {
            return Err(missing("time was up", printed));
        };
        serial.set_read_timeout(Some(left)).cannot(|| "set up the serial line".to_owned())?;
        match serial.read(&mut buffer) {
            Ok(0) => return Err(missing("the machine ended", printed)),
            Ok(length) => printed.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(error)
                if matches!(error.kind(), stream::ErrorKind::WouldBlock | stream::ErrorKind::Interrupted) => {
            }
            Err(error) => return Err(error).cannot(|| "read the serial line".to_owned()),
        }
    }
    Ok(())
}

/// Runs an exact machine that has to end with `expected`; gives what it printed.
fn exact(images: &Images, what: &str, memory_mib: u64, boot: Boot, expected: Outcome) -> Result<String> {
    let directory = images.workspace().dir("runs")?.join(format!("bench-{}", std::process::id()));
    let machine = Machine { exact: Some(0), ..Machine::new(Accelerator::Tcg, memory_mib, boot, directory) };
    collect(what, &machine, expected)
}

/// Runs a machine that has to end with `expected`; gives what it printed.
fn collect(what: &str, machine: &Machine, expected: Outcome) -> Result<String> {
    collect_within(LIMIT, what, machine, expected)
}

/// The same within another time.
fn collect_within(limit: Duration, what: &str, machine: &Machine, expected: Outcome) -> Result<String> {
    let step = Step::start(&format!("measure {what}"));
    let running = Running::Qemu(machine.start()?);
    let printed = collect_running_within(limit, what, running, &machine.directory, expected)?;
    step.done("");
    Ok(printed)
}

/// The same of one that runs already, whose files are in `directory`.
fn collect_running(what: &str, running: Running, directory: &Path, expected: Outcome) -> Result<String> {
    let limit = running.kind().limit(LIMIT);
    collect_running_within(limit, what, running, directory, expected)
}

fn collect_running_within(
    limit: Duration,
    what: &str,
    running: Running,
    directory: &Path,
    expected: Outcome,
) -> Result<String> {
    let (printed, outcome) = running.collect(limit)?;
    // Nothing of it is wanted any more, and nothing depends on its going.
    let _ = fs::remove_dir_all(directory);
    if outcome != expected {
        return Err(Error::Tool { line: format!("measuring {what} failed: {outcome}"), output: printed });
    }
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_are_found_among_other_lines() {
        let printed = "GRUB\r\nbench: cpuid 371 370 2380\r\n[bench] bench: port 402 400 500\r\nbench: broken 1 x\r\nbench: done\r\n";
        let found = measurements(printed);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("cpuid", [371, 370, 2380]), ("port", [402, 400, 500])]
        );
    }

    #[test]
    fn a_name_that_fits_nothing_is_refused() {
        let args = BenchArgs {
            filter: Some("cpuidd".to_owned()),
            exits: false,
            peers: false,
            walk: false,
            machine: MachineArg::Qemu,
            accept: false,
        };
        let error = command(&Workspace::find(), &args).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(
            error.to_string().contains("cpuidd") && error.to_string().ends_with(", io-network-guests"),
            "{error}"
        );
    }

    #[test]
    fn the_boot_stamp_is_inits() {
        assert_eq!(boot_stamp("x\r\ncaisson-test: boot tsc=1418000123\r\n".into()).unwrap(), 1_418_000_123);
        assert!(boot_stamp("caisson-test: boot tsc=\r\n".into()).is_err());
    }

    #[test]
    fn ratios_have_three_places() {
        assert_eq!(times(1030), "1.030");
        assert_eq!(times(998), "0.998");
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
