//! What takes several CPUs, or many guests.

use std::{
    collections::BTreeSet,
    io::Read as _,
    thread,
    time::{Duration, Instant},
};

use super::{BETWEEN, collect, collect_running, exact, measurements, medium, medium_for};
use crate::{
    bochs,
    emulator::{Kind, Running},
    error::{Context, Error, Result},
    images::Images,
    outcome::Outcome,
    progress::Step,
    qemu::{Accelerator, Boot, Machine},
    tools,
};

/// Probe guests at once.
const PROBES: usize = 100;
/// How long they sleep, in ms of their time.
const ASLEEP: u64 = 60_000;

/// Memory of all small Linux guests together, and of each, in MiB.
const ALL_LINUX_MIB: u64 = 8192;
const LINUX_MIB: u64 = 96;
/// How long they may take to come up, all together.
const LINUX_LIMIT: Duration = Duration::from_secs(240);

/// Milliseconds for which each guest counts its exits.
const COUNTED: u64 = 2000;

/// A machine of several CPUs, in the host's time.
fn machine(images: &Images, what: &str, config: &str, cpus: u32) -> Result<Machine> {
    let (iso, memory) = medium(images, what, config)?;
    let directory = images.workspace().dir("runs")?.join(format!("bench-{}", std::process::id()));
    Ok(Machine { cpus, ..Machine::new(Accelerator::Tcg, memory, Boot::Iso(iso), directory) })
}

fn host_cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// A domain of the config; `more` are its lines.
fn domain(name: &str, mib: u64, more: &str) -> String {
    format!("[[domain]]\nname = \"{name}\"\nmemory = \"{mib}M\"\non_reboot = \"destroy\"\n{more}\n")
}

/// From one vCPU to another, each on a CPU of its own.
pub(super) fn between(images: &Images) -> Result<()> {
    let config = domain("bench", 16, "vcpus = 2\nkernel = \"@probe/bench\"\ncmdline = \"what=ipi\"");
    let printed = collect("IPIs", &machine(images, "ipi", &config, 2)?, Outcome::Clean)?;
    let measured = measurements(&printed);
    println!(
        "{:<32} {:>8} {:>8} {:>8}   2 CPUs, ns, {} host cores",
        "between",
        "median",
        "least",
        "most",
        host_cores()
    );
    let khz = tsc_khz(&printed).filter(|&khz| khz > 0);
    for (name, title) in BETWEEN {
        let (Some(ticks), Some(khz)) = (measured.get(name), khz) else {
            return Err(Error::Tool { line: format!("the probe did not measure {name}"), output: printed });
        };
        let [median, least, most] = ticks.map(|ticks| u128::from(ticks) * 1_000_000 / u128::from(khz));
        println!("{title:<32} {median:>8} {least:>8} {most:>8}");
    }
    Ok(())
}

/// The rate of the guest's TSC, as the probe's line `bench: tsc N kHz` tells.
fn tsc_khz(printed: &str) -> Option<u64> {
    printed.split_once("bench: tsc ")?.1.split_once(" kHz")?.0.parse().ok()
}

/// Independent guests, as many as CPUs, leave as often as they can: on Bochs, whose CPUs execute instructions in step, so that
/// what one CPU waits for another counts, and nothing else; and on QEMU, in the host's time.
pub(super) fn throughput(images: &Images) -> Result<()> {
    tools::ensure(tools::BOCHS)?;
    println!("{:<24} {:>12} {:>8}   Bochs, in step", "CPUs", "exits/s", "ratio");
    throughput_on(images, Kind::Bochs)?;
    println!("{:<24} {:>12} {:>8}   QEMU, {} host cores", "CPUs", "exits/s", "ratio", host_cores());
    throughput_on(images, Kind::Qemu)
}

fn throughput_on(images: &Images, kind: Kind) -> Result<()> {
    let mut alone = None;
    for cpus in [1u32, 2, 4] {
        let config: String = (0..cpus)
            .map(|i| {
                let more = format!("kernel = \"@probe/bench\"\ncmdline = \"what=load ms={COUNTED}\"");
                domain(&format!("load-{i}"), 16, &more)
            })
            .collect();
        let what = format!("throughput on {cpus}");
        let printed = match kind {
            Kind::Qemu => collect(&what, &machine(images, &what, &config, cpus)?, Outcome::Clean)?,
            Kind::Bochs => in_step(images, &what, &config, cpus)?,
        };
        let (guests, exits) = exits_counted(&printed);
        if guests != cpus as usize {
            return Err(Error::Tool { line: format!("{guests} of {cpus} guests counted"), output: printed });
        }
        let rate = exits * 1000 / COUNTED;
        let one = *alone.get_or_insert(rate.max(1));
        println!("{cpus:<24} {rate:>12} {:>8}", super::times(rate * 1000 / one));
    }
    Ok(())
}

/// How many guests counted their exits, and the sum.
fn exits_counted(printed: &str) -> (usize, u64) {
    let counts = printed
        .lines()
        .filter_map(|line| line.split_once("bench: load ")?.1.split_whitespace().next()?.parse::<u64>().ok());
    counts.fold((0, 0), |(guests, sum), exits| (guests + 1, sum + exits))
}

/// What a machine prints in Bochs, whose CPUs run in step.
pub(super) fn in_step(images: &Images, what: &str, config: &str, cpus: u32) -> Result<String> {
    let (iso, memory) = medium_for(images, Kind::Bochs, what, config)?;
    let directory = images.workspace().dir("runs")?.join(format!("bench-{}", std::process::id()));
    let machine = bochs::Machine { cpus, ..bochs::Machine::new(memory, iso, directory.clone()) };
    let step = Step::start(&format!("measure {what}, on Bochs"));
    let printed = collect_running(what, Running::Bochs(machine.start()?), &directory, Outcome::Clean)?;
    step.done("");
    Ok(printed)
}

/// A hundred probe guests sleep for a minute.
pub(super) fn probes(images: &Images) -> Result<()> {
    let guests: String = (0..PROBES)
        .map(|i| {
            domain(&format!("idle-{i}"), 1, &format!("kernel = \"@probe/idle\"\ncmdline = \"ms={ASLEEP}\""))
        })
        .collect();
    let config = format!("[machine]\nconsole = \"all\"\n{guests}");
    let what = format!("{PROBES} guests");
    let (iso, memory) = medium(images, "guests", &config)?;
    let printed = exact(images, &what, memory, Boot::Iso(iso), Outcome::Clean)?;
    let starts: Vec<u64> = printed
        .lines()
        .filter_map(|line| line.split_once(" us after its start")?.0.rsplit(' ').next()?.parse().ok())
        .collect();
    let (PROBES, Some(first), Some(last)) = (starts.len(), starts.first(), starts.last()) else {
        let line = format!("{} of {PROBES} guests told when they started", starts.len());
        return Err(Error::Tool { line, output: printed });
    };
    // The first one's time began when it was made, and it ran when all had been; the last one ran when all others had.
    let each = (first + last) / PROBES as u64;
    println!("{PROBES} guests came to life within {} us of 1000 instructions, {each} us each", first + last);
    for said in ["beside their RAM", "the CPUs' time"] {
        let line = printed.lines().find(|line| line.contains(said)).unwrap_or("");
        println!("{}", line.trim());
    }
    Ok(())
}

/// Small Linux guests come up, all at once, on two CPUs.
pub(super) fn linux(images: &Images) -> Result<()> {
    let count = ALL_LINUX_MIB / LINUX_MIB;
    let guests: String = (0..count)
        .map(|i| {
            let more = "kernel = \"@linux\"\ninitrd = \"@initrd\"\ncmdline = \"console=ttyS0 quiet panic=-1 caisson.end=shell\"";
            domain(&format!("linux-{i}"), LINUX_MIB, more)
        })
        .collect();
    let config = format!("[machine]\nconsole = \"all\"\n{guests}");
    let machine = machine(images, "linux guests", &config, 2)?;
    let step = Step::start(&format!("start {count} Linux guests of {LINUX_MIB} MiB"));
    let begun = Instant::now();
    let qemu = machine.start()?;
    let mut up = BTreeSet::new();
    let (mut printed, mut buffer) = (String::new(), [0; 4096]);
    while (up.len() as u64) < count {
        let Some(left) = LINUX_LIMIT.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else {
            break;
        };
        let mut serial = qemu.serial();
        serial.set_read_timeout(Some(left)).cannot(|| "set up the serial line".to_owned())?;
        match serial.read(&mut buffer) {
            Ok(0) => {
                let line = "the machine of the Linux guests ended early".to_owned();
                return Err(Error::Tool { line, output: printed });
            }
            Ok(length) => {
                printed.push_str(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()));
                if let Some(end) = printed.rfind('\n') {
                    up.extend(printed.get(..end).unwrap_or_default().lines().filter_map(guest_up));
                    printed.drain(..end);
                }
            }
            Err(_) => {}
        }
    }
    drop(qemu);
    let _ = std::fs::remove_dir_all(&machine.directory);
    step.done("");
    println!(
        "{} of {count} Linux guests of {LINUX_MIB} MiB were up together after {} s, on 2 CPUs, {} host cores",
        up.len(),
        begun.elapsed().as_secs(),
        host_cores()
    );
    Ok(())
}

/// The guest whose user space is up, as a line of the machine's tells.
fn guest_up(line: &str) -> Option<String> {
    let (who, _) = line.split_once("caisson-guest: user space is up")?;
    let (_, name) = who.rsplit_once("linux-")?;
    Some(name.chars().take_while(char::is_ascii_digit).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_of_all_guests_add_up() {
        let printed = "[load-0] bench: load 1200 2000\r\n[load-1] bench: load 800 2000\r\nbench: load x\r\n";
        assert_eq!(exits_counted(printed), (2, 2000));
    }

    #[test]
    fn the_rate_of_the_tsc_is_found() {
        assert_eq!(tsc_khz("x 7 kHz\r\nbench: tsc 2500000 kHz\r\n"), Some(2_500_000));
        assert_eq!(tsc_khz("bench: tsc "), None);
    }

    #[test]
    fn a_guest_is_up_once() {
        assert_eq!(guest_up("[linux-12] caisson-guest: user space is up\r").as_deref(), Some("12"));
        assert_eq!(guest_up("[linux-12] Linux version"), None);
    }
}
