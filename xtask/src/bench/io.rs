//! Disks and networks that the driver domain serves, beside the same work in the driver domain itself and on the bare machine; and
//! how often a guest leaves for it.
//!
//! Throughput is measured on two CPUs, one for the driver domain and one for its guests, in the host's time: with less than three
//! free cores, of which one plays the disk, the host is what it shows. Exits and instructions are counted on one CPU that executes an
//! instruction in a nanosecond, whatever else the host does, and exits on the two CPUs as well. They are those of a run with twice as
//! many requests, less those of a run with once as many: what starting and ending takes is in both.

use std::{collections::BTreeMap, time::Duration};

use super::{accounts::Accounts, grouped, medium, times};
use crate::{
    error::{Error, Result},
    images::Images,
    outcome::Outcome,
    qemu::{Accelerator, Boot, Disk, Machine, Network},
};

/// Bytes of the disk.
const DISK_BYTES: u64 = 256 << 20;
/// QEMU 7.2 that counts instructions may execute one access to a device for ever, once in some thousand requests to its disk: such a
/// run is made once more, and has fewer requests, by this divisor.
const COUNTED_TRIES: u32 = 4;
const COUNTED_LIMIT: Duration = Duration::from_secs(120);
const COUNTED_DIVISOR: u64 = 4;
/// Memory of the driver domain and of a guest, in MiB. The tools take much of it.
const DRIVER_MIB: u64 = 512;
const GUEST_MIB: u64 = 384;

/// A job of fio's.
struct Job {
    name: &'static str,
    title: &'static str,
    /// What the script knows it by.
    word: &'static str,
    requests: u64,
    /// For exits of the guest, in thousandths for each request.
    exits_goal: Option<u64>,
    /// How often the throughput is measured: the median counts.
    rounds: usize,
    /// Bytes that the disk does in a second at most.
    bps: Option<u64>,
}

/// One of small requests: what counts is how often the guest leaves.
const fn small(name: &'static str, title: &'static str, word: &'static str, requests: u64, goal: u64) -> Job {
    Job { name, title, word, requests, exits_goal: Some(goal), rounds: 1, bps: None }
}

/// One of large requests: what counts is the throughput.
const fn large(name: &'static str, title: &'static str, word: &'static str, bps: Option<u64>) -> Job {
    Job { name, title, word, requests: 1000, exits_goal: None, rounds: 3, bps }
}

/// What a disk does that is as fast beside these CPUs, which the emulator has execute several hundred million instructions in a second,
/// as one of 4 GB/s is beside a CPU that executes ten thousand million.
const SLOWER: u64 = 200 << 20;

const JOBS: [Job; 8] = [
    small("io-disk-read4k-1", "4 KiB at random, one at a time", "read4k-1", 2000, 2000),
    small("io-disk-write4k-1", "… writes", "write4k-1", 2000, 2000),
    small("io-disk-read4k-32", "4 KiB at random, 32 at a time", "read4k-32", 8000, 200),
    small("io-disk-write4k-32", "… writes", "write4k-32", 8000, 200),
    large("io-disk-read1m", "1 MiB in order", "read1m", None),
    large("io-disk-write1m", "… writes", "write1m", None),
    large("io-disk-slow-read1m", "1 MiB, disk of 200 MiB/s", "read1m", Some(SLOWER)),
    large("io-disk-slow-write1m", "… writes", "write1m", Some(SLOWER)),
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
fn driver(place: Place, more: &str) -> String {
    let (cmdline, cpus) = (cmdline(more), place.cpus(false));
    format!(
        "[machine]\nconsole = \"all\"\nlog = \"debug\"\n[[domain]]\nname = \"driver\"\nmemory = \"{DRIVER_MIB}M\"\ndevices = \"all\"\n\
         privileges = [\"events\", \"control\", \"io-backend\"]\nkernel = \"@driver-linux\"\n\
         initrd = [\"@driver-initrd\", \"@io-tools\"]\ncmdline = \"{cmdline}\"\n{cpus}"
    )
}

/// A guest's.
fn guest(place: Place, name: &str, more: &str, devices: &str) -> String {
    let (cmdline, cpus) = (cmdline(more), place.cpus(true));
    format!(
        "[[domain]]\nname = \"{name}\"\nmemory = \"{GUEST_MIB}M\"\nkernel = \"@linux\"\n\
         initrd = [\"@initrd\", \"@io-tools\"]\ncmdline = \"{cmdline}\"\n{cpus}{devices}\n"
    )
}

/// Words that have a job of fio's run.
fn run(disk: &str, job: &Job, requests: u64) -> String {
    format!("caisson.run=/usr/sbin/io-bench+disk+{disk}+{}+{requests}", job.word)
}

fn disk(images: &Images) -> Result<Disk> {
    let path = images.workspace().dir("images")?.join("bench-disk.img");
    let file = std::fs::File::create(&path)
        .map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
    file.set_len(DISK_BYTES).map_err(|error| Error::Failed(format!("{}: {error}", path.display())))?;
    Ok(Disk { path, keep: false })
}

/// Where something is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// One CPU for all, on which an instruction takes a nanosecond. Idle time and disks take the host's.
    Counted,
    /// Two CPUs in the host's time: one for the driver domain, one for its guests.
    Pair,
}

impl Place {
    /// The CPUs of the driver domain, or of its guests, as a line of the config.
    fn cpus(self, guests: bool) -> String {
        match self {
            Self::Counted => String::new(),
            Self::Pair => format!("cpus = \"{}\"\n", u8::from(guests)),
        }
    }

    /// Requests of a job's first run; the second one has twice as many.
    fn requests(self, job: &Job) -> u64 {
        match self {
            Self::Counted => job.requests / COUNTED_DIVISOR,
            Self::Pair => job.requests,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Counted => "one CPU, counted",
            Self::Pair => "two CPUs",
        }
    }

    fn machine(self, images: &Images, memory_mib: u64, boot: Boot) -> Result<Machine> {
        let directory = images.workspace().dir("runs")?.join(format!("bench-{}", std::process::id()));
        let machine = Machine::new(Accelerator::Tcg, memory_mib, boot, directory);
        let (cpus, extra) = match self {
            Self::Counted => (1, vec!["-icount".into(), "shift=0".into()]),
            Self::Pair => (2, Vec::new()),
        };
        Ok(Machine { cpus, extra, disks: vec![disk(images)?], network: Some(Network::default()), ..machine })
    }
}

/// Runs a config that ends by itself on a machine with a disk and a card. `bps` is the most that the disk does in a second.
fn measure(images: &Images, place: Place, what: &str, config: &str, bps: Option<u64>) -> Result<String> {
    let (iso, memory) = medium(images, what, config)?;
    let mut machine = place.machine(images, memory, Boot::Iso(iso))?;
    slow_down(&mut machine, bps);
    let what = format!("{what}, {}", place.title());
    if place == Place::Pair {
        return super::collect(&what, &machine, Outcome::Clean);
    }
    for _ in 1..COUNTED_TRIES {
        if let Ok(printed) = super::collect_within(COUNTED_LIMIT, &what, &machine, Outcome::Clean) {
            return Ok(printed);
        }
        println!("    once more: the emulator stood still");
    }
    super::collect_within(COUNTED_LIMIT, &what, &machine, Outcome::Clean)
}

/// The same on the bare machine, of whose CPUs one is used.
fn measure_bare(images: &Images, what: &str, words: &str, bps: Option<u64>) -> Result<String> {
    let boot = Boot::Linux {
        kernel: images.provide("@driver-linux")?,
        initrd: images.joined(&["@driver-initrd", "@io-tools"])?,
        cmdline: cmdline(&format!("nr_cpus=1 {words} caisson.end=poweroff")),
    };
    let mut machine = Place::Pair.machine(images, DRIVER_MIB, boot)?;
    slow_down(&mut machine, bps);
    super::collect(&format!("{what} on the bare machine"), &machine, Outcome::NoResult)
}

/// Has QEMU's disk do so many bytes a second at most.
fn slow_down(machine: &mut Machine, bps: Option<u64>) {
    if let Some(bps) = bps {
        machine.extra.extend(["-set".into(), format!("drive.disk1.throttling.bps-total={bps}").into()]);
    }
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

/// What the second half of a run with twice the work took, for each of so many pieces of work.
struct Cost {
    guest: Kinds,
    driver: Kinds,
    daemon: Kinds,
    /// Instructions in guests and in Caisson.
    instructions: u64,
}

/// Thousandths for each request: all together, and each kind, the most first.
type Kinds = (u64, Vec<(u64, String)>);

impl Cost {
    /// Of what runs printed that did the work once and twice; `guest` is whose exits are of interest.
    fn of([once, twice]: [&str; 2], guest: &str, pieces: u64) -> Result<Self> {
        let of = |domain| {
            let (less, more) = (Accounts::read(once, domain)?, Accounts::read(twice, domain)?);
            Ok::<_, Error>((added(&less.exits, &more.exits, pieces), more.since(&less)))
        };
        let ((guest, more), (driver, _)) = (of(guest)?, of("driver")?);
        let [guests, hypervisor, _] = more.cpus;
        let daemon = added(&counts(once), &counts(twice), pieces);
        Ok(Self { guest, driver, daemon, instructions: (guests + hypervisor) / pieces.max(1) })
    }

    /// Exits of one kind.
    fn kind(&self, kind: &str) -> u64 {
        self.guest.1.iter().find(|(_, name)| name == kind).map_or(0, |(count, _)| *count)
    }

    fn print(&self, place: Place) {
        let (place, (all, kinds)) = (place.title(), &self.guest);
        println!("    {place}: exits of the guest {}: {}", times(*all), list(kinds));
        println!("        of the driver domain {}: {}", times(self.driver.0), list(&self.driver.1));
        println!("        the daemon: {}", list(&self.daemon.1));
    }
}

/// The one in the middle.
fn median(mut figures: Vec<u64>) -> u64 {
    figures.sort_unstable();
    figures.get(figures.len() / 2).copied().unwrap_or(0)
}

/// Disks: the jobs whose names are wanted.
pub(super) fn disks(images: &Images, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    println!(
        "{:<32} {:>9} {:>9} {:>9} {:>7} {:>6}",
        "disk, KiB/s", "bare", "driver", "guest", "ratio", "goal"
    );
    for job in JOBS.iter().filter(|job| wanted(job.name)) {
        one_disk(images, job)?;
    }
    Ok(())
}

fn one_disk(images: &Images, job: &Job) -> Result<()> {
    let (word, name) = (job.word, format!("io {}", job.word));
    let alone = |place: Place, times: u64| {
        let requests = place.requests(job) * times;
        let words = format!("{} caisson.end=poweroff", run("/dev/nvme0n1", job, requests));
        measure(images, place, &format!("{word} in the driver domain"), &driver(place, &words), job.bps)
    };
    let served = |place: Place, times: u64| {
        let requests = place.requests(job) * times;
        let words = format!("{} caisson.end=poweroff", run("/dev/vda", job, requests));
        let config = driver(place, "caisson.end=guests")
            + &guest(place, "guest", &words, "[[domain.disk]]\npath = \"/dev/nvme0n1\"");
        measure(images, place, &format!("{word} in a guest"), &config, job.bps)
    };
    let (mut bare, mut own, mut guests) = (Vec::new(), Vec::new(), Vec::new());
    let mut twice = String::new();
    for _ in 0..job.rounds {
        let words = run("/dev/nvme0n1", job, job.requests * 2);
        bare.push(figure(&measure_bare(images, word, &words, job.bps)?, &name, "kib_s")?);
        own.push(figure(&alone(Place::Pair, 2)?, &name, "kib_s")?);
        twice = served(Place::Pair, 2)?;
        guests.push(figure(&twice, &name, "kib_s")?);
    }
    let ratios = own.iter().zip(&guests).map(|(own, guest)| guest * 1000 / own.max(&1)).collect();
    let ratio = times(median(ratios));
    let (bare, own, guest) = (median(bare), median(own), median(guests));
    println!("{:<32} {bare:>9} {own:>9} {guest:>9} {ratio:>7} {:>6}", job.title, times(THROUGHPUT_GOAL));
    if job.bps.is_some() {
        return Ok(());
    }
    let once = served(Place::Pair, 1)?;
    let counted = [served(Place::Counted, 1)?, served(Place::Counted, 2)?];
    for (place, [once, twice]) in
        [(Place::Pair, [&once, &twice]), (Place::Counted, [&counted[0], &counted[1]])]
    {
        let requests = place.requests(job);
        let cost = Cost::of([once, twice], "guest", requests)?;
        cost.print(place);
        let ticks = figure(twice, &name, "ticks")? * 1000 / (requests * 2);
        println!(
            "        exits of the device {}, goal for all {}; timer interrupts of the guest {}",
            times(cost.kind(DEVICE)),
            job.exits_goal.map_or_else(|| "–".to_owned(), times),
            times(ticks)
        );
        if place == Place::Counted {
            let own = [alone(place, 1)?, alone(place, 2)?];
            let own = Cost::of([&own[0], &own[1]], "driver", requests)?.instructions;
            println!(
                "        instructions: {} in the driver domain alone, {} with a guest",
                grouped(own),
                grouped(cost.instructions)
            );
        }
    }
    Ok(())
}

/// Networks whose names are wanted: between a guest and the driver domain, and between two guests; beside a program of the driver
/// domain's, and of the bare machine's, that talks to another one there.
pub(super) fn networks(images: &Images, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    println!("{:<32} {:>12} {:>12}", "network, two CPUs", "to, Mbit/s", "from, Mbit/s");
    let local = format!(
        "caisson.run=/usr/sbin/io-bench+serve caisson.run=/usr/sbin/io-bench+net+127.0.0.1+{}",
        NETWORK_MIB * 2
    );
    let row = |title: &str, printed: &str| -> Result<()> {
        let (to, from) = (figure(printed, "net to", "kbit_s")?, figure(printed, "net from", "kbit_s")?);
        println!("{title:<32} {:>12} {:>12}", to / 1000, from / 1000);
        Ok(())
    };
    row("inside the bare machine", &measure_bare(images, "a local network", &local, None)?)?;
    let inside = driver(Place::Pair, &format!("{local} caisson.end=poweroff"));
    row(
        "inside the driver domain",
        &measure(images, Place::Pair, "a local network in the driver domain", &inside, None)?,
    )?;

    let bridge = "[[domain.network]]\nbridge = \"br0\"";
    let address = "caisson.address=br0:10.0.3.1/24";
    let client = |place, server: &str, mib: u64| {
        let run = format!("caisson.run=/usr/sbin/io-bench+net+{server}+{mib}");
        guest(place, "guest", &format!("caisson.ip=10.0.3.2/24 {run} caisson.end=poweroff"), bridge)
    };
    let server = "caisson.ip=10.0.3.3/24 caisson.run=/usr/sbin/io-bench+serve+2 caisson.end=poweroff";
    let to_driver = |place, mib| {
        driver(place, &format!("{address} caisson.run=/usr/sbin/io-bench+serve caisson.end=guests"))
            + &client(place, "10.0.3.1", mib)
    };
    let between = |place, mib| {
        driver(place, &format!("{address} caisson.end=guests"))
            + &guest(place, "server", server, bridge)
            + &client(place, "10.0.3.3", mib)
    };
    let configs: [(_, &dyn Fn(Place, u64) -> String); 2] = [(TO_DRIVER, &to_driver), (BETWEEN, &between)];
    for ((name, title), config) in configs.into_iter().filter(|((name, _), _)| wanted(name)) {
        let run = |place, times: u64| measure(images, place, name, &config(place, NETWORK_MIB * times), None);
        row(title, &run(Place::Pair, 2)?)?;
        let (once, twice) = (run(Place::Counted, 1)?, run(Place::Counted, 2)?);
        // Each way has so much more.
        let cost = Cost::of([&once, &twice], "guest", NETWORK_MIB * 2)?;
        println!("    for each MiB:");
        cost.print(Place::Counted);
        println!(
            "        exits of the device {}; instructions {}",
            times(cost.kind(DEVICE)),
            grouped(cost.instructions)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::accounts::exits;

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

    #[test]
    fn costs_are_those_of_the_second_half() {
        let printed = |exits: u64, ticks: u64| {
            format!(
                "[caisson] guest guest: {exits} exits, mmio {exits}\r\n\
                 [caisson] guest guest: 900 ticks, mmio 900\r\n\
                 [caisson] guest driver: 7 exits, hlt 7\r\n[caisson] guest driver: 90 ticks, hlt 90\r\n\
                 [caisson] the CPUs' ticks: guests {ticks}, hypervisor 10, idle 7\r\n"
            )
        };
        let cost = Cost::of([&printed(50, 10_000), &printed(80, 70_000)], "guest", 10).unwrap();
        assert_eq!((cost.guest.0, cost.kind(DEVICE), cost.kind("hlt")), (3000, 3000, 0));
        assert_eq!((cost.driver.0, cost.instructions), (0, 6000));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!([vec![], vec![5], vec![9, 1, 4]].map(median), [0, 5, 4]);
    }

    #[test]
    fn places_give_each_its_cpus() {
        let (driver, guest) = (driver(Place::Pair, "x"), guest(Place::Pair, "g", "y", ""));
        assert!(driver.contains("cpus = \"0\"\n") && guest.contains("cpus = \"1\"\n"));
        assert!(!self::driver(Place::Counted, "x").contains("cpus"));
        let text = driver + &guest;
        assert!(caisson_config::source::parse_toml(&text, "bench").is_ok(), "{text}");
    }
}
