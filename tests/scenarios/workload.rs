//! The checked workload of our Linux guest (`guest-images/linux/init`, `caisson.test=smoke`): what its lines must say.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use caisson_tests::{From, Run, Verdict, ensure};
use sha2::{Digest as _, Sha256};
use xtask::emulator::Kind;

/// Until the kernel has reached user space; with four times as many guests as this on a machine that is ten times
/// slower than today's.
pub(crate) const BOOT: u64 = 180;
/// For any one step of the workload.
pub(crate) const STEP: u64 = 120;

/// What a Linux kernel prints when something is wrong with its machine, and what busybox prints when a file is missing.
const COMPLAINTS: &str = r"\] WARNING:|BUG[: ]|unchecked MSR|Call Trace|Oops|Kernel panic|rcu.*stall|clocksource.*unstable|soft lockup|hung task|irq \d+: nobody cared|spurious|not found|unhandled";

/// How far the guest's clock may be off the host's.
const CLOCK_TOLERANCE: f64 = 0.01;

/// Follows the workload of the guest that `from` means from its start to its power-off, checking each line.
pub(crate) fn check(run: &mut Run, from: From<'_>) -> Verdict {
    check_smp(run, from, 1)
}

/// The same for a guest of `vcpus`.
pub(crate) fn check_smp(run: &mut Run, from: From<'_>, vcpus: usize) -> Verdict {
    boot(run, from, vcpus)?;
    files(run, from)?;
    interrupts(run, from)?;
    clock(run, from)?;
    if vcpus > 1 {
        parallel(run, from, vcpus)?;
    }
    end(run, from)
}

/// Only what several vCPUs do at once (`caisson.test=cpu,parallel`).
pub(crate) fn check_parallel(run: &mut Run, from: From<'_>, vcpus: usize) -> Verdict {
    boot(run, from, vcpus)?;
    parallel(run, from, vcpus)?;
    end(run, from)
}

/// User space, on the CPUs that the guest was given.
fn boot(run: &mut Run, from: From<'_>, vcpus: usize) -> Verdict {
    run.expect(from, BOOT, "caisson-guest: user space is up")?;
    let cpu = fields(run, from, "cpu")?;
    let vendor = match run.machine() {
        Kind::Qemu => "AuthenticAMD",
        Kind::Bochs => "GenuineIntel",
    };
    ensure!(cpu.get("vendor").is_some_and(|v| v == vendor), "the CPU is {cpu:?}");
    ensure!(cpu.get("hypervisor").is_some_and(|v| v == "yes"), "no sign of a hypervisor: {cpu:?}");
    ensure!(cpu.get("count") == Some(&vcpus.to_string()), "not {vcpus} CPUs: {cpu:?}");
    Ok(())
}

/// A random number device is there, with the stock driver and interrupts (`caisson.test=cpu,entropy`).
pub(crate) fn check_entropy(run: &mut Run, from: From<'_>) -> Verdict {
    boot(run, from, 1)?;
    random_numbers(run, from)?;
    end(run, from)
}

/// What `caisson.test=entropy` says of the random number device: who drives it, that it answers, and by interrupts.
pub(crate) fn random_numbers(run: &mut Run, from: From<'_>) -> Verdict {
    let entropy = fields(run, from, "entropy")?;
    let is = |name: &str, value: &str| entropy.get(name).is_some_and(|v| v == value);
    ensure!(is("rng", "virtio_rng.0") && is("driver", "virtio_rng"), "another driver: {entropy:?}");
    ensure!(is("bytes", "1024") && is("differ", "yes"), "not random: {entropy:?}");
    let interrupts = entropy.get("interrupts").and_then(|v| v.parse::<u64>().ok()).unwrap_or_default();
    ensure!(interrupts > 0, "the device does not interrupt: {entropy:?}");
    Ok(())
}

/// What goes through pipes, files and a compressor comes out again.
fn files(run: &mut Run, from: From<'_>) -> Verdict {
    let expected = hash_of_lines("all work is done in the caisson", 4 << 20);
    for file in ["data", "copy", "back"] {
        let hash = fields(run, from, "hash")?;
        ensure!(
            hash.get(file) == Some(&expected),
            "{file} is not what it should be: {hash:?}, not {expected}"
        );
    }
    Ok(())
}

/// A disk of `bytes` whose first sector says `first`: what is written to it can be read again, and it interrupts by `kind`
/// of interrupt (`caisson.test=disk`).
pub(crate) fn disk(run: &mut Run, from: From<'_>, (bytes, first): (u64, &str), kind: &str) -> Verdict {
    run.expect(from, BOOT, "caisson-guest: user space is up")?;
    let found = fields(run, from, "disk")?;
    let is = |fields: &BTreeMap<String, String>, name: &str, value: &str| {
        fields.get(name).is_some_and(|found| found == value)
    };
    ensure!(is(&found, "bytes", &bytes.to_string()) && is(&found, "first", first), "another disk: {found:?}");
    let written = fields(run, from, "disk")?;
    let expected = hash_of_lines("what is written is there", 8 << 20);
    ensure!(is(&written, "written", &expected), "not {expected}: {written:?}");
    ensure!(is(&written, "read", &expected), "what is read is not what was written: {written:?}");
    let interrupts = written.get("interrupts").and_then(|count| count.parse::<u64>().ok());
    ensure!(interrupts > Some(8), "the disk does not interrupt: {written:?}");
    ensure!(written.get("kind").is_some_and(|found| found.starts_with(kind)), "not by {kind}: {written:?}");
    Ok(())
}

/// All is done, and nothing was found wrong.
pub(crate) fn end(run: &mut Run, from: From<'_>) -> Verdict {
    run.expect(from, STEP, "caisson-test: done")?;
    run.expect(from, STEP, "reboot: Power down")?;
    run.never(from, COMPLAINTS)
}

/// The fields `name=value` of the next line about `subject`.
fn fields(run: &mut Run, from: From<'_>, subject: &str) -> Verdict<BTreeMap<String, String>> {
    let line = run.expect(from, STEP, &format!("caisson-test: {subject} (.*)"))?;
    let pairs = line.group(1).split_whitespace().filter_map(|word| word.split_once('='));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// The SHA-256 of the bytes that the workload makes: so many of one line over and over.
pub(crate) fn hash_of_lines(line: &str, length: usize) -> String {
    let bytes: Vec<u8> = line.bytes().chain(*b"\n").cycle().take(length).collect();
    sha256(&bytes)
}

/// The SHA-256 of some bytes, as `sha256sum` writes it.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn interrupts(run: &mut Run, from: From<'_>) -> Verdict {
    let counts = fields(run, from, "interrupts")?;
    let count = |name: &str| counts.get(name).and_then(|v| v.parse::<u64>().ok()).unwrap_or_default();
    let (before, after) = (count("timer_before"), count("timer_after"));
    ensure!(before > 0 && after > before, "the timer does not interrupt: {counts:?}");
    ensure!(count("serial") > 0, "the serial port does not interrupt: {counts:?}");
    Ok(())
}

/// A worker on each vCPU computes what it should, there and nowhere else, at the same time as the others; every vCPU has
/// been interrupted by its timer, and by others.
fn parallel(run: &mut Run, from: From<'_>, vcpus: usize) -> Verdict {
    let online = fields(run, from, "parallel")?;
    let all = format!("0-{}", vcpus - 1);
    ensure!(online.get("online") == Some(&all), "not {all}: {online:?}");
    for cpu in 0..vcpus {
        let worker = fields(run, from, "parallel")?;
        let is = |name: &str, value: &str| worker.get(name).is_some_and(|v| v == value);
        ensure!(
            is("cpu", &cpu.to_string()) && is("ran_on", &cpu.to_string()),
            "not on CPU {cpu}: {worker:?}"
        );
        let expected = hash_of_lines(&format!("CPU {cpu} works in the caisson"), 1 << 20);
        ensure!(is("hash", &expected), "a worker's sum is not {expected}: {worker:?}");
        let count = |name: &str| worker.get(name).and_then(|v| v.parse::<u64>().ok()).unwrap_or_default();
        ensure!(count("timer") > 0, "no timer interrupts on CPU {cpu}: {worker:?}");
        ensure!(count("reschedule") + count("call") > 0, "nobody interrupts CPU {cpu}: {worker:?}");
    }
    Ok(())
}

/// The guest tells its time again and again. How long a line takes to get here varies, but it is never negative: the
/// fastest of the early lines and the fastest of the late ones are compared.
fn clock(run: &mut Run, from: From<'_>) -> Verdict {
    let start = fields(run, from, "clock")?;
    // The kernel is told that it may rely on the TSC.
    ensure!(start.get("source").is_some_and(|source| source == "tsc"), "the clock source is {start:?}");
    let mut ticks = Vec::new();
    loop {
        let line = run.expect(from, STEP, r"caisson-test: clock (tick|end) uptime=([0-9.]+)")?;
        if line.group(1) == "end" {
            break;
        }
        ticks.push((Duration::from_secs_f64(line.number(2)), line.line.at));
    }
    ensure!(ticks.len() >= 9, "only {} ticks", ticks.len());
    if run.machine() == Kind::Bochs {
        // Its time is the number of instructions executed, which has nothing to do with the host's.
        let forward = ticks.windows(2).all(|pair| matches!(pair, [(a, _), (b, _)] if a < b));
        ensure!(forward, "the clock does not go forward: {ticks:?}");
        return Ok(());
    }
    let Some(&(guest_zero, host_zero)) = ticks.first() else { return Ok(()) };
    // Guest's time and how much later than that the line came, in seconds since the first.
    let delays: Vec<(f64, f64)> = ticks
        .iter()
        .map(|(guest, host)| {
            let guest = guest.saturating_sub(guest_zero).as_secs_f64();
            (guest, host.duration_since(host_zero).as_secs_f64() - guest)
        })
        .collect();
    // Far enough apart that a millisecond's delay is no percent of what lies between.
    let quarter = delays.len() / 4;
    let fastest = |lines: &[(f64, f64)]| lines.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
    let early = delays.get(..quarter).and_then(fastest).unwrap_or_default();
    let late = delays.get(delays.len() - quarter..).and_then(fastest).unwrap_or_default();
    let elapsed = late.0 - early.0;
    let drift = (late.1 - early.1) / elapsed;
    ensure!(elapsed >= 2.0, "the ticks span only {elapsed} s");
    ensure!(drift.abs() < CLOCK_TOLERANCE, "the clock is off by {:.2}% over {elapsed:.1} s", drift * 100.0);
    Ok(())
}
