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

/// A job of fio's: its name, its title, requests, and the goal for exits in thousandths for each request.
struct Job {
    name: &'static str,
    title: &'static str,
    requests: u64,
    exits_goal: Option<u64>,
}

impl Job {
    /// What the script knows it by.
    fn word(&self) -> &'static str {
        self.name.strip_prefix("io-disk-").unwrap_or(self.name)
    }
}

const fn job(name: &'static str, title: &'static str, requests: u64, exits_goal: Option<u64>) -> Job {
    Job { name, title, requests, exits_goal }
}

const JOBS: [Job; 6] = [
    job("io-disk-read4k-1", "4 KiB at random, one at a time", 2000, Some(2000)),
    job("io-disk-write4k-1", "… writes", 2000, Some(2000)),
    job("io-disk-read4k-32", "4 KiB at random, 32 at a time", 8000, Some(200)),
    job("io-disk-write4k-32", "… writes", 8000, Some(200)),
    job("io-disk-read1m", "1 MiB in order", 1000, None),
    job("io-disk-write1m", "… writes", 1000, None),
];

/// Networks: a name, and a title.
const TO_DRIVER: (&str, &str) = ("io-network-driver", "guest and driver domain");
const BETWEEN: (&str, &str) = ("io-network-guests", "two guests");

/// The names of all that is measured here.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    JOBS.iter().map(|job| job.name).chain([TO_DRIVER.0, BETWEEN.0])
}

/// The kind of the exits that accesses to a device's registers are.
const DEVICE: &str = "mmio";

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
    format!("caisson.run=/usr/sbin/io-bench+disk+{disk}+{}+{requests}", job.word())
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

/// What was counted of a domain's device, as the daemon tells it when the guest has ended.
fn counts(printed: &str) -> BTreeMap<String, u64> {
    let told =
        printed.lines().find_map(|line| line.split_once("its guest has ended, after ")).map(|(_, told)| told);
    let count = |words: &str| {
        let (count, name) = words.trim().split_once(' ')?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    told.map(|told| told.split(',').filter_map(count).collect()).unwrap_or_default()
}

/// What of `more` was not in `less`, in thousandths for each of `requests`: all together, and each, the most first.
fn added(
    less: &BTreeMap<String, u64>,
    more: &BTreeMap<String, u64>,
    requests: u64,
) -> (u64, Vec<(u64, String)>) {
    let of = |(name, count): (&String, &u64)| {
        let added = count.saturating_sub(less.get(name).copied().unwrap_or(0));
        (added * 1000 / requests.max(1), name.clone())
    };
    let mut kinds: Vec<_> = more.iter().map(of).collect();
    kinds.sort_unstable_by(|a, b| b.cmp(a));
    (kinds.iter().map(|(count, _)| count).sum(), kinds)
}

/// Those that are not next to nothing.
fn list(kinds: &[(u64, String)]) -> String {
    let text: Vec<String> = kinds
        .iter()
        .filter(|(count, _)| *count >= 5)
        .map(|(count, name)| format!("{name} {}", times(*count)))
        .collect();
    text.join(", ")
}

/// Disks: the jobs whose names are wanted.
pub(super) fn disks(images: &Images, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    println!(
        "{:<34} {:>9} {:>9} {:>9} {:>7} {:>6} {:>8} {:>8} {:>6}",
        "disk, KiB/s", "bare", "driver", "guest", "ratio", "goal", "exits", "device's", "goal"
    );
    for job in JOBS.iter().filter(|job| wanted(job.name)) {
        one_disk(images, job)?;
    }
    Ok(())
}

fn one_disk(images: &Images, job: &Job) -> Result<()> {
    let word = job.word();
    let name = format!("io {word}");
    let end = "caisson.end=poweroff";
    let bare = Boot::Linux {
        kernel: images.provide("@driver-linux")?,
        initrd: images.joined(&["@driver-initrd", "@io-tools"])?,
        cmdline: cmdline(&format!("{} {end}", run("/dev/nvme0n1", job, job.requests))),
    };
    let bare = machine(images, DRIVER_MIB, bare)?;
    let bare = super::collect(&format!("{word} on the bare machine"), &bare, Outcome::NoResult)?;
    let alone = driver(&format!("{} {end}", run("/dev/nvme0n1", job, job.requests)));
    let alone = measure(images, &format!("{word} in the driver domain"), &alone)?;
    let served = |times: u64| {
        let words = format!("{} caisson.end=poweroff", run("/dev/vda", job, job.requests * times));
        let config = driver("caisson.end=guests")
            + &guest("guest", &words, "[[domain.disk]]\npath = \"/dev/nvme0n1\"");
        measure(images, &format!("{word} in a guest, {times} of 2"), &config)
    };
    let (once, twice) = (served(1)?, served(2)?);
    let bare = figure(&bare, &name, "kib_s")?;
    let alone = figure(&alone, &name, "kib_s")?;
    let guest = figure(&twice, &name, "kib_s")?;
    // What starting and ending takes is in both.
    let exits = |domain| Ok::<_, Error>(added(&exits(&once, domain)?, &exits(&twice, domain)?, job.requests));
    let (all, kinds) = exits("guest")?;
    // Notifications and acknowledgements; all others are the guest's CPU's, which goes to sleep and is woken.
    let device = kinds.iter().find(|(_, name)| name == DEVICE).map_or(0, |(count, _)| *count);
    println!(
        "{:<34} {bare:>9} {alone:>9} {guest:>9} {:>7} {:>6} {:>8} {:>8} {:>6}",
        job.title,
        times(guest * 1000 / alone.max(1)),
        times(THROUGHPUT_GOAL),
        times(all),
        times(device),
        job.exits_goal.map_or_else(|| "–".to_owned(), times)
    );
    let (driver_all, driver_kinds) = exits("driver")?;
    let (_, daemon) = added(&counts(&once), &counts(&twice), job.requests);
    println!("    exits of the guest for each request: {}", list(&kinds));
    println!("    of the driver domain: {}: {}", times(driver_all), list(&driver_kinds));
    println!("    the daemon: {}", list(&daemon));
    Ok(())
}

/// Networks whose names are wanted: between a guest and the driver domain, and between two guests.
pub(super) fn networks(images: &Images, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    println!(
        "{:<34} {:>12} {:>12} {:>16} {:>16}",
        "network", "to, Mbit/s", "from, Mbit/s", "exits a MiB", "device's a MiB"
    );
    let bridge = "[[domain.network]]\nbridge = \"br0\"";
    let address = "caisson.address=br0:10.0.3.1/24";
    let client = |server: &str, mib: u64| {
        let run = format!("caisson.run=/usr/sbin/io-bench+net+{server}+{mib}");
        guest("guest", &format!("caisson.ip=10.0.3.2/24 {run} caisson.end=poweroff"), bridge)
    };
    let server = "caisson.ip=10.0.3.3/24 caisson.run=/usr/sbin/io-bench+serve+2 caisson.end=poweroff";
    let to_driver = |mib| {
        driver(&format!("{address} caisson.run=/usr/sbin/io-bench+serve caisson.end=guests"))
            + &client("10.0.3.1", mib)
    };
    let between = |mib| {
        driver(&format!("{address} caisson.end=guests"))
            + &guest("server", server, bridge)
            + &client("10.0.3.3", mib)
    };
    let configs: [(_, &dyn Fn(u64) -> String); 2] = [(TO_DRIVER, &to_driver), (BETWEEN, &between)];
    for ((name, title), config) in configs.into_iter().filter(|((name, _), _)| wanted(name)) {
        let run =
            |times: u64| measure(images, &format!("{name}, {times} of 2"), &config(NETWORK_MIB * times));
        let (once, twice) = (run(1)?, run(2)?);
        let [to, from] = ["net to", "net from"].map(|way| figure(&twice, way, "kbit_s"));
        // Each way has so much more.
        let more =
            |domain| Ok::<_, Error>(added(&exits(&once, domain)?, &exits(&twice, domain)?, NETWORK_MIB * 2));
        let (all, kinds) = more("guest")?;
        let device = kinds.iter().find(|(_, name)| name == DEVICE).map_or(0, |(count, _)| *count);
        println!(
            "{title:<34} {:>12} {:>12} {:>16} {:>16}",
            to? / 1000,
            from? / 1000,
            times(all),
            times(device)
        );
        let (driver_all, driver_kinds) = more("driver")?;
        let (_, daemon) = added(&counts(&once), &counts(&twice), NETWORK_MIB * 2);
        println!("    exits of the guest for each MiB: {}", list(&kinds));
        println!("    of the driver domain: {}: {}", times(driver_all), list(&driver_kinds));
        println!("    the daemon: {}", list(&daemon));
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
        let (all, kinds) = added(&first, &second, 10);
        assert_eq!((all, list(&kinds).as_str()), (4000, "wrmsr 2.000, mmio 2.000"));
    }

    #[test]
    fn what_the_daemon_counts_is_found() {
        let printed =
            "[driver] caisson-backend: guest disk 0: its guest has ended, after 90 requests, 8 events\r\n";
        let expected = [("events".to_owned(), 8), ("requests".to_owned(), 90)];
        assert_eq!(counts(printed).into_iter().collect::<Vec<_>>(), expected);
        assert_eq!(counts("nothing of it"), BTreeMap::new());
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
