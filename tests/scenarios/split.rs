//! Split I/O: a driver domain owns the machine's devices, and its daemon serves disks to guests that own none.

use std::fs;

use caisson_tests::{Boot, Failure, From, Lab, Run, Verdict, ensure};
use xtask::outcome::Outcome;

use crate::{
    functions, lifecycle,
    workload::{self, BOOT, STEP},
};

/// The driver domain's console.
const DRIVER: From<'static> = From::Guest("driver");

/// The driver domain, with these words for its kernel.
pub(crate) fn driver(words: &str) -> String {
    format!(
        r#"
        [machine]
        console = "all"

        [emulator]
        disks = ["@empty-disk", "@empty-disk"]
        network = true

        [[domain]]
        name = "driver"
        memory = "256M"
        devices = "all"
        privileges = ["events", "io-backend"]
        kernel = "@driver-linux"
        initrd = "@driver-initrd"
        cmdline = "console=ttyS0 quiet panic=-1 caisson.end=guests {words}"
        on_crash = "restart"
        "#
    )
}

/// The driver domain of a machine without disks and cards that it has drivers for: it serves a file in its memory.
fn without_devices(words: &str) -> String {
    format!(
        r#"
        [machine]
        console = "all"

        [[domain]]
        name = "driver"
        memory = "192M"
        devices = "all"
        privileges = ["events", "io-backend"]
        kernel = "@driver-linux"
        initrd = "@driver-initrd"
        cmdline = "console=ttyS0 quiet panic=-1 caisson.end=guests {words}"
        "#
    )
}

/// A guest with our initial RAM disk, these words for its kernel, and devices.
pub(crate) fn guest(name: &str, words: &str, devices: &str) -> String {
    format!(
        r#"
        [[domain]]
        name = "{name}"
        memory = "128M"
        kernel = "@linux"
        initrd = "@initrd"
        cmdline = "console=ttyS0 quiet panic=-1 {words}"
        {devices}
        "#
    )
}

const DISK: &str = "[[domain.disk]]\npath = \"/dev/nvme0n1\"\nserial = \"caisson-0\"";

/// A guest has made and filled a file system, and every file's hash is right.
fn filled(run: &mut Run, from: From<'_>) -> Verdict {
    let line = run.expect(from, BOOT, r"^caisson-test: files written=(\d+) good=(\d+) used=(\d+)%$")?;
    let (written, good, used) = (line.number(1), line.number(2), line.number(3));
    ensure!(written > 20.0 && used >= 90.0, "only {written} files were written, {used}% of the disk");
    ensure!((written - good).abs() < 0.5, "of {written} files {good} are what was written");
    Ok(())
}

/// The guests have ended, then the driver domain, and nothing was left of them; these guests have met no error.
pub(crate) fn ended(run: &mut Run, guests: &[&str]) -> Verdict {
    run.expect(DRIVER, STEP, "^caisson-driver: the last guest has ended$")?;
    run.end(STEP, Outcome::Clean)?;
    for guest in guests {
        run.never(From::Guest(guest), r"I/O error|EXT4-fs error|Call Trace|hung task|timed out")?;
    }
    lifecycle::all_memory_came_back(run)
}

/// The usual config: a guest whose root is on the machine's disk serves a page, and another one fetches it.
pub(crate) fn io(lab: &Lab, name: &str) -> Verdict {
    usual(lab, lab.boot_config(name, "split-io")?).map(|_| ())
}

/// The same where an IOMMU keeps the disk and the network card to what the driver domain has and what is granted to it: it lets
/// through all that they do.
pub(crate) fn io_vtd(lab: &Lab, name: &str) -> Verdict {
    translated(lab, name, "intel-iommu", "VT-d")
}

pub(crate) fn io_amdvi(lab: &Lab, name: &str) -> Verdict {
    translated(lab, name, "amd-iommu", "AMD-Vi")
}

fn translated(lab: &Lab, name: &str, device: &str, unit: &str) -> Verdict {
    let machine = lab.boot_config(name, "split-io")?.words("iommu=require").qemu("-device", device);
    let run = usual(lab, machine)?;
    let units =
        run.count(From::Caisson, &format!("^IOMMU: {unit}, 1 unit: devices reach what their guest has"))?;
    ensure!(units == 1, "no IOMMU is told of");
    run.never(From::Caisson, functions::STOPPED)
}

fn usual(lab: &Lab, machine: Boot<'_>) -> Verdict<Run> {
    let page = lab.workspace().source("guest-images/web/www/index.html");
    let page = fs::read(&page).map_err(|error| Failure::new(format!("{}: {error}", page.display())))?;
    let mut run = machine.start()?;
    run.expect(From::Guest("web"), BOOT, "^caisson-web: serving /www on port 80, from /dev/vda$")?;
    let (bytes, hash) = (page.len(), workload::sha256(&page));
    let fetched = format!("^caisson-test: fetch url=http://10.0.2.20/ bytes={bytes} hash={hash}$");
    run.expect(From::Guest("client"), BOOT, &fetched)?;
    ended(&mut run, &["web", "client"])?;
    Ok(run)
}

/// The same on the least that a machine can have: a disk that is a file in the driver domain, and a bridge without a card.
pub(crate) fn least(lab: &Lab, name: &str) -> Verdict {
    let words = "caisson.address=br0:10.1.0.9/24 caisson.run=dd+if=/dev/zero+of=/run/disk+bs=1M+count=8";
    let devices = "[[domain.disk]]\npath = \"/run/disk\"\n[[domain.network]]\nbridge = \"br0\"";
    let guest =
        guest("guest", "caisson.ip=10.1.0.1/24 caisson.peer=10.1.0.9 caisson.test=ping,files", devices);
    let mut run = lab.boot(name, &(without_devices(words) + &guest))?.start()?;
    run.expect(DRIVER, BOOT, "the driver domain is up")?;
    run.expect(From::Guest("guest"), BOOT, "^caisson-test: ping peer=10.1.0.9 replies=[1-9]")?;
    let line = run.expect(
        From::Guest("guest"),
        BOOT,
        r"^caisson-test: files written=(\d+) good=(\d+) used=(\d+)%$",
    )?;
    let (written, good) = (line.number(1), line.number(2));
    ensure!(written > 5.0 && (written - good).abs() < 0.5, "of {written} files {good} are what was written");
    ended(&mut run, &["guest"])
}

/// A file system on a guest's disk.
pub(crate) fn files(lab: &Lab, name: &str) -> Verdict {
    let mut run = lab.boot(name, &(driver("") + &guest("disk", "caisson.test=files", DISK)))?.start()?;
    run.expect(From::Caisson, BOOT, "guest disk: waits for the domain that serves its devices$")?;
    filled(&mut run, From::Guest("disk"))?;
    ended(&mut run, &["disk"])
}

/// The daemon is killed fifty times while a guest fills file systems.
pub(crate) fn kill(lab: &Lab, name: &str) -> Verdict {
    const KILLS: u64 = 50;
    let words = "caisson.test=files,files,files,files";
    let config = driver(&format!("caisson.test=kill:{KILLS}")) + &guest("disk", words, DISK);
    let mut run = lab.boot(name, &config)?.start()?;
    run.expect(DRIVER, BOOT, "the driver domain is up")?;
    for _ in 0..4 {
        filled(&mut run, From::Guest("disk"))?;
    }
    ended(&mut run, &["disk"])?;
    let line = run.count(DRIVER, "^caisson-driver: the backend was killed 50 times$")?;
    ensure!(line == 1, "the backend was not killed fifty times while the guest worked");
    Ok(())
}

/// The whole driver domain crashes five times while a guest fills file systems.
pub(crate) fn crash(lab: &Lab, name: &str) -> Verdict {
    let words = "caisson.test=files,files,files,files";
    let config = driver("caisson.test=crash:5:/dev/nvme0n2") + &guest("disk", words, DISK);
    let mut run = lab.boot(name, &config)?.start()?;
    for crash in 1..=5 {
        run.expect(DRIVER, BOOT, &format!("^caisson-driver: crash {crash}$"))?;
    }
    for _ in 0..4 {
        filled(&mut run, From::Guest("disk"))?;
    }
    ended(&mut run, &["disk"])
}

/// A guest that drives its disk by hand reaches nothing beyond it, and breaks nothing but its own device: another one, whose disk
/// is behind the same daemon, notices nothing. Nor does it of a guest that does so with its source of random numbers.
pub(crate) fn hostile(lab: &Lab, name: &str) -> Verdict {
    let probe = r#"
        [[domain]]
        name = "hostile"
        memory = "8M"
        private = "2M"
        kernel = "@probe/disk"
        [[domain.disk]]
        path = "/dev/nvme0n2"

        [[domain]]
        name = "greedy"
        memory = "4M"
        kernel = "@probe/virtio"
        cmdline = "served=1"
        on_reboot = "destroy"
        [[domain.entropy]]
        "#;
    let config = [driver(""), guest("disk", "caisson.test=files", DISK), probe.to_owned()];
    let mut run = lab.boot(name, &config.concat())?.start()?;
    run.expect(From::Guest("hostile"), 2 * BOOT, "^probe disk: ok$")?;
    run.expect(From::Guest("greedy"), BOOT, "^probe virtio: ok$")?;
    filled(&mut run, From::Guest("disk"))?;
    ended(&mut run, &["disk"])?;
    // Of so many lines the first few are written.
    let why = "stopped until the guest resets it: .*: a (ring|buffer) is not in the memory that it grants$";
    let told = run.count(DRIVER, &format!("^caisson-backend: hostile disk 0: {why}"))?;
    ensure!(told != 0, "nobody told of rings and buffers in private memory");
    let why = "stopped until the guest resets it: the guest's driver has broken its ring: ";
    let told = run.count(DRIVER, &format!("^caisson-backend: greedy entropy 0: {why}"))?;
    ensure!(told != 0, "nobody told of a ring for random numbers that is broken");
    Ok(())
}

/// What a guest keeps private the driver domain cannot read, unlike the rest, nor can a device of its; disk and network do not need
/// it.
pub(crate) fn private(lab: &Lab, name: &str) -> Verdict {
    // So much that one of some places all over the memory that nobody has granted is in it.
    const PRIVATE: u64 = 64 << 20;
    let config = driver("caisson.address=br0:10.1.0.9/24 caisson.run=httpd+-p+80+-h+/srv/look");
    let config = config.replace("\"@driver-initrd\"", "[\"@driver-initrd\", \"@dax\"]");
    let words = "caisson.ip=10.1.0.1/24 caisson.peer=10.1.0.9 caisson.test=ping,private,files,private";
    let devices = format!("{DISK}\n[[domain.network]]\nbridge = \"br0\"");
    let guest = guest("keeper", words, &devices).replace("\"@initrd\"", "[\"@initrd\", \"@dax\"]");
    let guest = guest.replace("memory = \"128M\"", "memory = \"176M\"\nprivate = \"64M\"");
    let config = config.replace("console = \"all\"", "console = \"all\"\nlog = \"debug\"") + &guest;
    let machine = lab.boot(name, &config)?.words("iommu=require").qemu("-device", "intel-iommu");
    // Its addresses have 28 bits if nobody says otherwise.
    let mut run = machine.qemu("-device", "edu,dma_mask=0xffffffff").start()?;
    let keeper = From::Guest("keeper");
    let at = run.expect(
        From::Caisson,
        BOOT,
        "^guest keeper: 67108864 bytes of its private memory are at 0x([0-9a-f]+)$",
    )?;
    let private = hexadecimal(at.group(1))?..hexadecimal(at.group(1))? + PRIVATE;
    run.expect(keeper, BOOT, "^caisson-test: ping peer=10.1.0.9 replies=[1-9]")?;
    for turn in 0..2 {
        run.expect(keeper, STEP, &format!("^caisson-test: private filled dax0.0: {PRIVATE} bytes$"))?;
        // One place of each four pages of what is granted.
        let there = run.expect(
            keeper,
            BOOT,
            r"^caisson-test: private there of \d+ places: PRIVATE!=(\d+) GRANTED!=(\d+)$",
        )?;
        ensure!(there.number(1) < 0.5, "the driver domain reads {} places of private memory", there.group(1));
        let granted = there.number(2);
        ensure!(granted > 100.0, "the driver domain finds {granted} places of memory that is granted to it");
        let places = PRIVATE / (16 << 10);
        let here =
            format!("^caisson-test: private here of {places} places: PRIVATE!={places} granted=131072$");
        run.expect(keeper, STEP, &here)?;
        if turn == 0 {
            let dma = run.expect(DRIVER, BOOT, "^dma: granted (.*), hidden ([0-9]+) of [0-9]+: (.*)$")?;
            ensure!(dma.group(1) == "found" && dma.group(2) == "0", "a device reaches {}", dma.group(0));
            let places = dma.group(3).split(' ').map(|place| hexadecimal(place.trim_start_matches("0x")));
            let hit = places.collect::<Verdict<Vec<_>>>()?.iter().any(|place| private.contains(place));
            ensure!(hit, "none of {} is in the private memory at {private:#x?}", dma.group(3));
            filled(&mut run, keeper)?;
        }
    }
    ended(&mut run, &["keeper"])?;
    // Of several in a second the first.
    let stopped =
        "guest driver: 0000:00:[0-9a-f]+.0: DMA read of 0x[0-9a-f]+ stopped: its domain has nothing there$";
    let told = run.count(From::Caisson, stopped)?;
    ensure!(
        told != 0 && told == run.count(From::Caisson, " stopped: ")?,
        "{told} reads by a device were told of"
    );
    Ok(())
}

fn hexadecimal(digits: &str) -> Verdict<u64> {
    u64::from_str_radix(digits, 16).map_err(|error| Failure::new(format!("{digits}: {error}")))
}

/// A directory of the driver domain's, which an unmodified virtiofsd serves. It comes late: that is told once, and so is that it
/// came.
pub(crate) fn share(lab: &Lab, name: &str) -> Verdict {
    let made = "caisson.run=mkdir+/srv/files;echo+welcome>/srv/files/hello;cd+/usr/sbin;\
                mv+virtiofsd+late;(sleep+6;mv+late+virtiofsd)&";
    let shared = "[[domain.share]]\ntag = \"files\"\npath = \"/srv/files\"";
    let config = driver(made) + &guest("reader", "caisson.test=share", shared);
    let mut run = lab.boot(name, &config)?.start()?;
    let hash = workload::hash_of_lines("what is shared is there", 8 << 20);
    let line = format!("^caisson-test: share hello=welcome bytes=8388608 hash={hash}$");
    run.expect(From::Guest("reader"), 2 * BOOT, &line)?;
    ended(&mut run, &["reader"])?;
    for told in ["there is no virtiofsd in this driver domain; trying again", "works now"] {
        let times = run.count(DRIVER, &format!("^caisson-backend: reader share 0: {told}$"))?;
        ensure!(times == 1, "{told:?} is told {times} times");
    }
    Ok(())
}

/// A console port: bytes both ways between the guest and a client in the driver domain, before and after the daemon is killed. And a
/// source of random numbers, which the stock driver reads from with the first daemon and with the last.
pub(crate) fn port(lab: &Lab, name: &str) -> Verdict {
    const ROUNDS: usize = 3;
    let devices = "[[domain.port]]\nname = \"talk\"\n[[domain.entropy]]\nrate = \"16K\"";
    let config = driver(&format!("caisson.test=port:talker/talk:{ROUNDS}"))
        + &guest("talker", "caisson.test=entropy,port,entropy", devices);
    let mut run = lab.boot(name, &config)?.start()?;
    run.expect(From::Guest("talker"), BOOT, "^caisson-guest: user space is up$")?;
    workload::random_numbers(&mut run, From::Guest("talker"))?;
    run.expect(From::Guest("talker"), STEP, "^caisson-test: port ready$")?;
    let given = workload::hash_of_lines("what is given", 4096);
    for round in 1..=ROUNDS {
        let line = format!(
            "^caisson-driver: port round {round}: sent=([0-9a-f]{{64}}) taken=([0-9a-f]{{64}}) given=(.*)$"
        );
        let line = run.expect(DRIVER, BOOT, &line)?;
        ensure!(line.group(1) == line.group(2), "the guest read something else than what was typed");
        ensure!(line.group(3) == given, "the client read {}, not {given}", line.group(3));
    }
    let kills = run.count(DRIVER, "^caisson-driver: the backend has ended with 137 and is started again$")?;
    ensure!(kills == ROUNDS - 1, "the daemon was killed {kills} times");
    workload::random_numbers(&mut run, From::Guest("talker"))?;
    run.expect(From::Guest("talker"), STEP, "^caisson-test: done$")?;
    ended(&mut run, &["talker"])
}
