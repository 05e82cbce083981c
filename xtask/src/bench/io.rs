//! Disks and networks that the driver domain serves, beside the same work in the driver domain itself and on the bare machine: on
//! one CPU, in the host's time, since QEMU's disks take that and not instructions; and how often a guest leaves for it.

use std::collections::BTreeMap;

use super::{accounts::exits, medium, times};
use crate::{
    error::{Error, Result},
    images::Images,
    outcome::Outcome,
    qemu::{Accelerator, Boot, Disk, Machine, Network},
};

/// Bytes of the disk.
const DISK_BYTES: u64 = 256 << 20;
/// Memory of the driver domain and of a guest, in MiB. The tools take much of it.
const DRIVER_MIB: u64 = 512;
const GUEST_MIB: u64 = 384;

/// A job of fio's: its name in the script, its title, requests, whether it is counted in bytes, and the goal for exits in
/// thousandths for each request.
struct Job {
    name: &'static str,
    title: &'static str,
    requests: u64,
    exits_goal: Option<u64>,
}

const JOBS: [Job; 4] = [
    Job { name: "read4k-1", title: "4 KiB at random, one at a time", requests: 2000, exits_goal: Some(2000) },
    Job { name: "read4k-32", title: "4 KiB at random, 32 at a time", requests: 8000, exits_goal: Some(200) },
    Job { name: "read1m", title: "1 MiB in order, reads", requests: 200, exits_goal: None },
    Job { name: "write1m", title: "1 MiB in order, writes", requests: 200, exits_goal: None },
];

/// Thousandths of the driver domain's own throughput that a guest is to have with large transfers.
const THROUGHPUT_GOAL: u64 = 900;

/// MiB that go through a network, each way.
const NETWORK_MIB: u64 = 64;

fn cmdline(more: &str) -> String {
    format!("console=ttyS0 quiet panic=-1 {more}")
}

/// The driver domain's part of a config; `more` are words for its kernel.
fn driver(more: &str) -> String {
    let cmdline = cmdline(more);
    format!(
        "[machine]\nlog = \"debug\"\n[[domain]]\nname = \"driver\"\nmemory = \"{DRIVER_MIB}M\"\ndevices = \"all\"\n\
         privileges = [\"events\", \"control\", \"io-backend\"]\nkernel = \"@driver-linux\"\n\
         initrd = [\"@driver-initrd\", \"@io-tools\"]\ncmdline = \"{cmdline}\"\n"
    )
}

/// A guest's.
fn guest(name: &str, more: &str, devices: &str) -> String {
    let cmdline = cmdline(more);
    format!(
        "[[domain]]\nname = \"{name}\"\nmemory = \"{GUEST_MIB}M\"\nkernel = \"@linux\"\n\
         initrd = [\"@initrd\", \"@io-tools\"]\ncmdline = \"{cmdline}\"\n{devices}\n"
    )
}

/// Words that have a job of fio's run.
fn run(disk: &str, job: &Job, requests: u64) -> String {
    format!("caisson.run=/usr/sbin/io-bench+disk+{disk}+{}+{requests}", job.name)
}

fn disk(images: &Images) -> Result<Disk> {
    let path = images.workspace().dir("images")?.join("bench-disk.img");
    let file = std::fs::File::create(&path)
        .map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
    file.set_len(DISK_BYTES).map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
    Ok(Disk { path, keep: false })
}

/// Runs a config that ends by itself on a machine with a disk and a card.
fn measure(images: &Images, what: &str, config: &str) -> Result<String> {
    let (iso, memory) = medium(images, what, config)?;
    let machine = machine(images, memory, Boot::Iso(iso))?;
    super::collect(what, &machine, Outcome::Clean)
}

fn machine(images: &Images, memory_mib: u64, boot: Boot) -> Result<Machine> {
    let directory = images.workspace().dir("runs")?.join(format!("bench-{}", std::process::id()));
    let machine = Machine::new(Accelerator::Tcg, memory_mib, boot, directory);
    Ok(Machine { disks: vec![disk(images)?], network: Some(Network::default()), ..machine })
}

/// What a line `bench: WHAT NAME key=value …` says of `key`.
fn figure(printed: &str, name: &str, key: &str) -> Result<u64> {
    let line = printed.lines().find_map(|line| line.split_once("bench: ")?.1.trim().strip_prefix(name));
    let value = line.and_then(|line| {
        let word = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
        word.split('.').next()?.parse().ok()
    });
    value.ok_or_else(|| Error::Tool {
        line: format!("no {key} of {name} was measured"),
        output: printed.to_owned(),
    })
}

/// What of `more` was not in `less`, in thousandths for each of `requests`: all together, and the kinds that matter.
fn added(less: &BTreeMap<String, u64>, more: &BTreeMap<String, u64>, requests: u64) -> (u64, String) {
    let of = |(name, count): (&String, &u64)| {
        let added = count.saturating_sub(less.get(name).copied().unwrap_or(0));
        (added * 1000 / requests.max(1), name.clone())
    };
    let mut kinds: Vec<_> = more.iter().map(of).filter(|(count, _)| *count >= 5).collect();
    kinds.sort_unstable_by(|a, b| b.cmp(a));
    let text: Vec<String> = kinds.iter().map(|(count, name)| format!("{name} {}", times(*count))).collect();
    (kinds.iter().map(|(count, _)| count).sum(), text.join(", "))
}

/// Disks.
pub(super) fn disks(images: &Images) -> Result<()> {
    println!(
        "{:<34} {:>9} {:>9} {:>9} {:>7} {:>6} {:>8} {:>6}",
        "disk, KiB/s", "bare", "driver", "guest", "ratio", "goal", "exits", "goal"
    );
    for job in &JOBS {
        let name = format!("io {}", job.name);
        let end = "caisson.end=poweroff";
        let bare = Boot::Linux {
            kernel: images.provide("@driver-linux")?,
            initrd: images.joined(&["@driver-initrd", "@io-tools"])?,
            cmdline: cmdline(&format!("{} {end}", run("/dev/nvme0n1", job, job.requests))),
        };
        let bare = machine(images, DRIVER_MIB, bare)?;
        let bare = super::collect(&format!("{} on the bare machine", job.name), &bare, Outcome::NoResult)?;
        let alone = driver(&format!("{} {end}", run("/dev/nvme0n1", job, job.requests)));
        let alone = measure(images, &format!("{} in the driver domain", job.name), &alone)?;
        let served = |times: u64| {
            let words = format!("{} caisson.end=poweroff", run("/dev/vda", job, job.requests * times));
            let config = driver("caisson.end=guests")
                + &guest("guest", &words, "[[domain.disk]]\npath = \"/dev/nvme0n1\"");
            measure(images, &format!("{} in a guest, {times} of 2", job.name), &config)
        };
        let (once, twice) = (served(1)?, served(2)?);
        let [bare, alone, guest] = [&bare, &alone, &once]
            .map(|printed| figure(printed, &name, "kib_s"))
            .into_iter()
            .collect::<Result<Vec<_>>>()?[..]
        else {
            return Ok(());
        };
        // What starting and ending takes is in both.
        let (more, kinds) = added(&exits(&once, "guest")?, &exits(&twice, "guest")?, job.requests);
        println!(
            "{:<34} {bare:>9} {alone:>9} {guest:>9} {:>7} {:>6} {:>8} {:>6}",
            job.title,
            times(guest * 1000 / alone.max(1)),
            times(THROUGHPUT_GOAL),
            times(more),
            job.exits_goal.map_or_else(|| "–".to_owned(), times)
        );
        println!("{:<34} exits for each request: {kinds}", "");
    }
    Ok(())
}

/// Networks: between a guest and the driver domain, and between two guests.
pub(super) fn networks(images: &Images) -> Result<()> {
    println!("{:<34} {:>12} {:>12}", "network, Mbit/s", "to", "from");
    let bridge = "[[domain.network]]\nbridge = \"br0\"";
    let address = "caisson.address=br0:10.0.3.1/24";
    let to_driver = driver(&format!("{address} caisson.run=/usr/sbin/io-bench+serve caisson.end=guests"))
        + &guest(
            "guest",
            &format!(
                "caisson.ip=10.0.3.2/24 caisson.run=/usr/sbin/io-bench+net+10.0.3.1+{NETWORK_MIB} caisson.end=poweroff"
            ),
            bridge,
        );
    let between = driver(&format!("{address} caisson.end=guests"))
        + &guest(
            "server",
            "caisson.ip=10.0.3.3/24 caisson.run=/usr/sbin/io-bench+serve+2 caisson.end=poweroff",
            bridge,
        )
        + &guest(
            "guest",
            &format!(
                "caisson.ip=10.0.3.2/24 caisson.run=/usr/sbin/io-bench+net+10.0.3.3+{NETWORK_MIB} caisson.end=poweroff"
            ),
            bridge,
        );
    for (title, config) in [("guest and driver domain", to_driver), ("two guests", between)] {
        let printed = measure(images, title, &config)?;
        let [to, from] = ["net to", "net from"].map(|way| figure(&printed, way, "kbit_s"));
        println!("{title:<34} {:>12} {:>12}", to? / 1000, from? / 1000);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_told_by_kind() {
        let first = "[caisson] guest guest: 30 exits, mmio 20, hlt 10\r\n";
        let second = "[caisson] guest guest: 70 exits, mmio 40, hlt 10, wrmsr 20\r\n[caisson] guest driver: 1 exits, cr 1";
        let (first, second) = (exits(first, "guest").unwrap(), exits(second, "guest").unwrap());
        assert_eq!(added(&first, &second, 10), (4000, "wrmsr 2.000, mmio 2.000".to_owned()));
    }

    #[test]
    fn figures_are_found() {
        let printed =
            "[guest] bench: io read4k-1 kib=8000 kib_s=754 iops=188.5\r\nbench: net to kbit_s=81234.5\n";
        assert_eq!(figure(printed, "io read4k-1", "kib_s").unwrap(), 754);
        assert_eq!(figure(printed, "net to", "kbit_s").unwrap(), 81234);
        assert!(figure(printed, "net from", "kbit_s").is_err());
    }
}
