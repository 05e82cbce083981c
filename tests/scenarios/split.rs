//! Split I/O: a driver domain owns the machine's devices, and its daemon serves disks to guests that own none.

use caisson_tests::{From, Lab, Run, Verdict, ensure};
use xtask::outcome::Outcome;

use crate::{
    lifecycle,
    workload::{BOOT, STEP},
};

/// The driver domain's console.
const DRIVER: From<'static> = From::Guest("driver");

/// The driver domain, with these words for its kernel.
fn driver(words: &str) -> String {
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

/// A guest with our initial RAM disk, these words for its kernel, and devices.
fn guest(name: &str, words: &str, devices: &str) -> String {
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
fn ended(run: &mut Run, guests: &[&str]) -> Verdict {
    run.expect(DRIVER, STEP, "^caisson-driver: the last guest has ended$")?;
    run.end(STEP, Outcome::Clean)?;
    for guest in guests {
        run.never(From::Guest(guest), r"I/O error|EXT4-fs error|Call Trace|hung task|timed out")?;
    }
    lifecycle::all_memory_came_back(run)
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
