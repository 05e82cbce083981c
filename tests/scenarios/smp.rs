//! Guests of several vCPUs on several CPUs, by probe guests: what goes between them, how they end, and who gets how much.

use std::time::Duration;

use caisson_tests::{Boot, From, Lab, Run, Verdict, ensure};
use xtask::{
    emulator::Kind,
    outcome::Outcome,
    trace::timeline::{Span, Timeline, Work},
};

use crate::{
    accounts, lifecycle, screen,
    workload::{self, BOOT, STEP},
};

/// Starts it, on so many CPUs, all of which come up.
fn start(boot: Boot<'_>, cpus: u32) -> Verdict<Run> {
    let mut run = boot.cpus(cpus).start()?;
    if cpus > 1 {
        run.expect(From::Caisson, BOOT, &format!("{cpus} of {cpus} CPUs work$"))?;
    }
    Ok(run)
}

/// Interrupts of every kind between vCPUs, on so many CPUs, counted on both sides. `first` is the first CPU that they run on.
fn probe(lab: &Lab, name: &str, first: u32, cpus: u32, vcpus: u32) -> Verdict {
    let rounds = match lab.machine() {
        _ if vcpus > 4 => 20,
        Kind::Qemu => 300,
        Kind::Bochs => 100,
    };
    let config = format!(
        r#"
        [machine]
        console = "all"

        [[domain]]
        name = "smp"
        memory = "4M"
        vcpus = {vcpus}
        cpus = "{first}-{}"
        kernel = "@probe/smp"
        cmdline = "vcpus={vcpus} rounds={rounds}"
        on_reboot = "destroy"
        "#,
        first + cpus - 1
    );
    let mut run = start(lab.boot(name, &config)?, first + cpus)?;
    for mode in ["xAPIC", "x2APIC"] {
        run.expect(From::Guest("smp"), BOOT, &format!("^probe smp: {mode}: logical$"))?;
    }
    let sums = r"^probe smp: (\d+) one to one, (\d+) NMIs, (\d+) wake-ups, (\d+) to several, (\d+) restarts$";
    let sums = run.expect(From::Guest("smp"), STEP, sums)?;
    let all = f64::from(2 * rounds * vcpus);
    let pairs = f64::from(vcpus / 2);
    ensure!(sums.number(1) >= all, "{} interrupts from one to one, not {all}", sums.number(1));
    ensure!(sums.number(2) >= f64::from(2 * rounds) * pairs, "{} NMIs", sums.number(2));
    ensure!(sums.number(3) >= f64::from(2 * rounds) * pairs, "{} wake-ups", sums.number(3));
    ensure!(sums.number(4) >= f64::from(rounds * vcpus), "{} interrupts to several", sums.number(4));
    run.expect(From::Guest("smp"), STEP, "^probe smp: ok$")?;
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)
}

/// A CPU that no pool has runs no guest, whether it is the one that serves the serial line or another.
pub(crate) fn in_no_pool(lab: &Lab, name: &str) -> Verdict {
    for cpu in ["0", "1"] {
        let config = format!(
            r#"
            [machine]
            console = "all"

            [[pool]]
            name = "default"
            cpus = "{cpu}"

            [[domain]]
            name = "smp"
            memory = "4M"
            vcpus = 2
            kernel = "@probe/smp"
            cmdline = "vcpus=2 rounds=20"
            on_reboot = "destroy"
            "#
        );
        let mut run = start(lab.boot(&format!("{name}-{cpu}"), &config)?, 2)?;
        run.expect(From::Guest("smp"), BOOT, "^probe smp: ok$")?;
        run.end(STEP, Outcome::Clean)?;
        lifecycle::all_memory_came_back(&run)?;
    }
    Ok(())
}

/// Four vCPUs take turns on one CPU.
pub(crate) fn on_one(lab: &Lab, name: &str) -> Verdict {
    probe(lab, name, 0, 1, 4)
}

/// Two vCPUs for each of two CPUs.
pub(crate) fn on_two(lab: &Lab, name: &str) -> Verdict {
    probe(lab, name, 0, 2, 4)
}

/// A CPU for each of four vCPUs.
pub(crate) fn on_four(lab: &Lab, name: &str) -> Verdict {
    probe(lab, name, 0, 4, 4)
}

/// As many vCPUs as a guest can have, on two CPUs. The first CPU runs none of them: in QEMU whatever restores the FPU on another
/// one can undo its #VMEXIT (`docs/testing.md`), and here the CPUs do that all the time.
pub(crate) fn sixty_four(lab: &Lab, name: &str) -> Verdict {
    probe(lab, name, 1, 2, 64)
}

/// Five guests of one vCPU each, that do nothing but compute, on two CPUs: each gets two fifths of a CPU, and all are done at
/// the same time. Bochs runs its CPUs in step, and its time is theirs.
pub(crate) fn five_on_two(lab: &Lab, name: &str) -> Verdict {
    const GUESTS: usize = 5;
    let mut config = "[machine]\nconsole = \"all\"\n".to_owned();
    for i in 0..GUESTS {
        config += &format!(
            "[[domain]]\nname = \"race-{i}\"\nmemory = \"4M\"\nkernel = \"@probe/race\"\non_reboot = \"destroy\"\n\
             cmdline = \"batches=8000\"\n"
        );
    }
    // The order of locks is checked by the other image, which is too slow for the figures.
    start(lab.boot(name, &config)?, 2)?.end(BOOT, Outcome::Clean)?;
    let mut run = start(lab.boot(name, &config)?.as_used()?, 2)?;
    let mut took = Vec::new();
    let mut slowdown = 0.0;
    for i in 0..GUESTS {
        let line = r"^probe race: (\d+) us for (\d+) us of work$";
        let line = run.expect(From::Guest(&format!("race-{i}")), BOOT, line)?;
        took.push(line.number(1));
        slowdown += line.number(1) / line.number(2) / GUESTS as f64;
    }
    run.end(STEP, Outcome::Clean)?;
    let (least, most) = took.iter().fold((f64::MAX, 0f64), |(least, most), &t| (least.min(t), most.max(t)));
    let (apart, ideal) = (most / least, slowdown / (GUESTS as f64 / 2.0));
    println!("  {name}: slowest/fastest {apart:.4}, mean/ideal {ideal:.4}: {took:?} us");
    ensure!(apart <= 1.02, "the slowest took {apart:.4} times as long as the fastest: {took:?} us");
    ensure!((ideal - 1.0).abs() <= 0.01, "they took {ideal:.4} times as long as with 2/5 of a CPU each");
    lifecycle::all_memory_came_back(&run)
}

/// Beside a guest that starts again and again, the work of another one goes on.
pub(crate) fn reboots(lab: &Lab, name: &str) -> Verdict {
    let config = r#"
        [machine]
        console = "all"

        [[domain]]
        name = "share"
        memory = "4M"
        kernel = "@probe/share"
        cmdline = "ms=400"
        on_reboot = "destroy"

        [[domain]]
        name = "again"
        memory = "64M"
        vcpus = 4
        kernel = "@probe/reset"
        on_reboot = "restart"
        max_restarts = 8
    "#;
    let mut run = lab.boot(name, config)?.exact().start()?;
    let line =
        run.expect(From::Guest("share"), BOOT, r"^probe share: (\d+)% of the CPU, (\d+)% at least$")?;
    let (all, least) = (line.number(1), line.number(2));
    ensure!(all >= 45.0 && least >= 35.0, "{all}% of the CPU, {least}% at least");
    ensure!(
        run.count(From::Guest("again"), "^probe reset: by cf9$")? >= 3,
        "the other started less than three times meanwhile"
    );
    run.expect(From::Caisson, STEP, "guest again: reset; not restarted again: its limit is reached")?;
    run.end(STEP, Outcome::GuestFailed)?;
    lifecycle::all_memory_came_back(&run)
}

/// Beside a guest of four vCPUs that starts again and again, two that work keep their shares of two CPUs.
pub(crate) fn reboots_on_two(lab: &Lab, name: &str) -> Verdict {
    let mut config = r#"
        [machine]
        console = "all"

        [[domain]]
        name = "again"
        memory = "64M"
        vcpus = 4
        kernel = "@probe/reset"
        on_reboot = "restart"
        max_restarts = 8
    "#
    .to_owned();
    for i in 0..2 {
        config += &format!(
            "[[domain]]\nname = \"share-{i}\"\nmemory = \"4M\"\nkernel = \"@probe/share\"\non_reboot = \"destroy\"\n\
             cmdline = \"ms=800\"\n"
        );
    }
    let mut run = start(lab.boot(name, &config)?, 2)?;
    for i in 0..2 {
        let line = r"^probe share: (\d+)% of the CPU, (\d+)% at least$";
        let line = run.expect(From::Guest(&format!("share-{i}")), BOOT, line)?;
        let (all, least) = (line.number(1), line.number(2));
        println!("  {name}: share-{i} {all}%, {least}% at least");
        // Two thirds of a CPU each, while the third one is there.
        ensure!(all >= 62.0 && least >= 55.0, "share-{i}: {all}% of a CPU, {least}% at least");
    }
    run.expect(From::Caisson, STEP, "guest again: reset; not restarted again: its limit is reached")?;
    ensure!(
        run.count(From::Guest("again"), "^probe reset: by cf9$")? == 9,
        "the other did not start as often as it may"
    );
    run.end(STEP, Outcome::GuestFailed)?;
    lifecycle::all_memory_came_back(&run)
}

/// Guests whose other vCPUs spin and sleep on all CPUs end by one of them, in every way, again and again, beside one that
/// works.
pub(crate) fn ends(lab: &Lab, name: &str) -> Verdict {
    let mut config = "[machine]\nconsole = \"all\"\n".to_owned();
    // QEMU's first CPU loses flags of its own where others restore an FPU: nobody runs on it there.
    let cpus = if lab.machine() == Kind::Qemu { 3 } else { 2 };
    if lab.machine() == Kind::Qemu {
        config += r#"
            [[pool]]
            name = "default"
            cpus = "1-2"

            [[domain]]
            name = "worker"
            memory = "256M"
            vcpus = 2
            kernel = "@linux"
            initrd = "@initrd"
            cmdline = "console=ttyS0 panic=-1 caisson.test=smoke"
        "#;
    }
    const RESTARTS: usize = 5;
    for (by, ended) in
        [("off", "on_poweroff"), ("reset", "on_reboot"), ("triple", "on_crash"), ("init", "on_poweroff")]
    {
        config += &format!(
            "[[domain]]\nname = \"{by}\"\nmemory = \"4M\"\nvcpus = 5\nkernel = \"@probe/smp-end\"\n\
             cmdline = \"vcpus=5 by={by}\"\nmax_restarts = {RESTARTS}\n{ended} = \"restart\"\n"
        );
    }
    let mut run = start(lab.boot(name, &config)?, cpus)?;
    if lab.machine() == Kind::Qemu {
        workload::check_smp(&mut run, From::Guest("worker"), 2)?;
    }
    run.end(STEP, Outcome::GuestFailed)?;
    for (by, ended) in [
        ("off", "powered off"),
        ("reset", "reset"),
        ("triple", "triple fault at rip 0x[0-9a-f]+"),
        ("init", "powered off"),
    ] {
        let starts = run.count(From::Guest(by), &format!("^probe smp-end: by={by}$"))?;
        ensure!(starts == RESTARTS + 1, "{by} started {starts} times");
        let ends = run.count(From::Caisson, &format!("guest {by}: {ended}; not restarted again"))?;
        ensure!(ends == 1, "the end of {by} was told {ends} times");
    }
    run.never(From::Anyone, "FAIL")?;
    lifecycle::all_memory_came_back(&run)
}

/// A hundred guests in one MiB each.
fn hundred(milliseconds: u32) -> String {
    (0..100).fold("[machine]\nconsole = \"all\"\n".to_owned(), |config, i| {
        config
            + &format!(
                "[[domain]]\nname = \"idle-{i}\"\nmemory = \"1M\"\nkernel = \"@probe/idle\"\n\
                 cmdline = \"ms={milliseconds}\"\non_reboot = \"destroy\"\n"
            )
    })
}

/// A hundred guests sleep, and with them the machine; then they end.
pub(crate) fn hundred_asleep(lab: &Lab, name: &str) -> Verdict {
    let mut run = start(lab.boot(name, &hundred(25_000))?, 2)?;
    for i in 0..100 {
        run.expect(From::Guest(&format!("idle-{i}")), BOOT, r"^probe idle: \d+ us after its start$")?;
    }
    let mut monitor = run.monitor()?;
    const LOOKS: usize = 40;
    let mut halted = 0;
    for _ in 0..LOOKS {
        run.listen(Duration::from_millis(50))?;
        halted += usize::from(screen::is_halted(&mut monitor)?);
    }
    ensure!(run.count(From::Anyone, "^probe idle: ok$")? == 0, "they woke too early");
    ensure!(halted * 100 > LOOKS * 95, "the CPU was halted in {halted} of {LOOKS} looks");
    for i in 0..100 {
        run.expect(From::Guest(&format!("idle-{i}")), STEP, "^probe idle: ok$")?;
    }
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)
}

/// While a hundred guests sleep the CPU takes no ticks, and no guest exits: it halts for as long as its timer can count, and any
/// interrupt would end that.
pub(crate) fn hundred_idle(lab: &Lab, name: &str) -> Verdict {
    const SECONDS: u64 = 20;
    /// What the local APIC's timer of QEMU can count, in ns.
    const LONGEST: u64 = 1 << 32;
    let mut run = lab.boot(name, &hundred(SECONDS as u32 * 1000))?.exact().words("trace=32768").start()?;
    run.end(BOOT, Outcome::Clean)?;
    let trace = accounts::traced(&run)?;
    ensure!(trace.complete && trace.missing == 0, "lines of the trace are missing: {}", trace.missing);
    let timeline = Timeline::of(&trace);
    // All were made, and asleep, within the first second.
    let asleep = Span { from: 1_000_000_000, to: (SECONDS - 1) * 1_000_000_000 };
    let work = timeline.cpus.iter().flat_map(|cpu| &cpu.work);
    let halts: Vec<Span> =
        work.filter(|(_, work)| *work == Work::Idle).filter_map(|(span, _)| span.cut(asleep)).collect();
    let halted: u64 = halts.iter().map(|span| span.len()).sum();
    println!("  {name}: halted for {halted} of {} ns, in {} pieces", asleep.len(), halts.len());
    ensure!(halts.len() as u64 <= asleep.len() / LONGEST + 1, "it woke {} times", halts.len());
    ensure!(asleep.len() - halted <= asleep.len() / 100_000, "it was awake for {} ns", asleep.len() - halted);
    let exits = timeline.vcpus.values().flat_map(|vcpu| &vcpu.exits);
    let meanwhile = exits.filter(|exit| exit.span.cut(asleep).is_some()).count();
    ensure!(timeline.vcpus.len() == 100 && meanwhile == 0, "{meanwhile} exits meanwhile");
    lifecycle::all_memory_came_back(&run)
}

/// What it takes to start a hundred guests: microseconds, which here are thousands of instructions, and memory.
pub(crate) fn hundred_started(lab: &Lab, name: &str) -> Verdict {
    /// The goal, in KiB.
    const BESIDE: f64 = 256.0;
    let mut run = lab.boot(name, &hundred(2000))?.exact().start()?;
    let beside = run.expect(
        From::Caisson,
        BOOT,
        r"^the guests take \d+ KiB beside their RAM, (\d+) KiB each of 100$",
    )?;
    let mut after = Vec::new();
    for i in 0..100 {
        let line =
            run.expect(From::Guest(&format!("idle-{i}")), BOOT, r"^probe idle: (\d+) us after its start$")?;
        after.push(line.number(1));
    }
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    // All are made before the first one runs, and each counts from when it is made.
    let made = after.windows(2).filter_map(|pair| pair.first().zip(pair.last())).map(|(a, b)| a - b);
    let most = made.clone().fold(0.0, f64::max);
    let mean = made.sum::<f64>() / 99.0;
    println!(
        "  {name}: {mean:.0} us to make one, {most:.0} at most; {} KiB beside each one's RAM",
        beside.number(1)
    );
    ensure!(beside.number(1) <= BESIDE, "{} KiB beside each guest's RAM", beside.number(1));
    Ok(())
}
