//! What the configuration promises of the CPU is what guests get, by their own progress: shares by weight, caps,
//! reservations, and what a stock kernel is told of the time that others had.

use caisson_tests::{From, Lab, Run, Verdict, ensure};
use xtask::outcome::Outcome;

use crate::workload::{BOOT, STEP};

/// A probe that measures its share for so long, with these lines in its configuration.
fn share(name: &str, milliseconds: u32, lines: &str) -> String {
    format!(
        "[[domain]]\nname = \"{name}\"\nmemory = \"4M\"\nkernel = \"@probe/share\"\n\
         cmdline = \"ms={milliseconds}\"\non_reboot = \"destroy\"\n{lines}\n"
    )
}

const SHOW_ALL: &str = "[machine]\nconsole = \"all\"\n";

/// Ten-thousandths of the CPU that a guest has had.
fn had(run: &mut Run, guest: &str) -> Verdict<u32> {
    let line = run.expect(From::Guest(guest), BOOT, r"^probe share: (\d+) of 10000 in the middle$")?;
    Ok(line.group(1).parse().unwrap_or(0))
}

/// Weights 1:2:4 give shares 1:2:4.
pub(crate) fn weights(lab: &Lab, name: &str) -> Verdict {
    let weights = [("one", 100), ("two", 200), ("four", 400)];
    let guests = weights.map(|(name, weight)| share(name, 1600, &format!("weight = {weight}")));
    let mut run = lab.boot(name, &format!("{SHOW_ALL}{}", guests.concat()))?.exact().start()?;
    for (guest, weight) in weights {
        let (had, due) = (had(&mut run, guest)?, 10_000 * weight / 700);
        ensure!(had.abs_diff(due) * 100 <= due * 2, "{guest} had {had} of 10000, not {due}");
    }
    run.end(STEP, Outcome::Clean)
}

/// Twice the weights 1:2:4 give shares 1:2:4 of two CPUs, wherever each runs. Bochs runs its CPUs in step.
pub(crate) fn weights_on_two(lab: &Lab, name: &str) -> Verdict {
    let weights =
        [("one-a", 100), ("two-a", 200), ("four-a", 400), ("one-b", 100), ("two-b", 200), ("four-b", 400)];
    let guests = weights.map(|(name, weight)| share(name, 3200, &format!("weight = {weight}")));
    let mut run = lab.boot(name, &format!("{SHOW_ALL}{}", guests.concat()))?.cpus(2).start()?;
    let mut shares = Vec::new();
    for (guest, weight) in weights {
        shares.push((guest, weight, had(&mut run, guest)?));
    }
    // What changing hands costs is taken off all of them.
    let all: u32 = shares.iter().map(|(.., had)| had).sum();
    println!("  {name}: {shares:?}, {all} of 20000 in all");
    ensure!(all >= 19_000, "all had {all} of 20000");
    for (guest, weight, had) in shares {
        let due = all * weight / 1400;
        ensure!(had.abs_diff(due) * 100 <= due * 2, "{guest} had {had}, not {due} of {all}");
    }
    run.end(STEP, Outcome::Clean)
}

/// A capped guest gets its cap and no more, also where nobody else wants the CPU, and a neighbour gets the rest.
pub(crate) fn cap(lab: &Lab, name: &str) -> Verdict {
    // The neighbour ends first: for the last part of its time the capped one is alone.
    let guests = [share("capped", 3200, "cap = 30"), share("free", 1600, "")];
    let mut run = lab.boot(name, &format!("{SHOW_ALL}{}", guests.concat()))?.exact().start()?;
    for (guest, due) in [("free", 7000), ("capped", 3000)] {
        let had = had(&mut run, guest)?;
        ensure!(had.abs_diff(due) <= 100, "{guest} had {had} of 10000, not {due}");
    }
    run.end(STEP, Outcome::Clean)
}

/// A guest with a reservation does its work in time beside three that take all they can.
pub(crate) fn reservation(lab: &Lab, name: &str) -> Verdict {
    let config = format!(
        r#"{SHOW_ALL}
        [[pool]]
        name = "default"
        policy = "sedf"

        [[domain]]
        name = "bursts"
        memory = "4M"
        kernel = "@probe/bursts"
        cmdline = "period=20000 burst=6000 times=60"
        on_reboot = "destroy"
        period = "10ms"
        slice = "4ms"
        {}"#,
        ["a", "b", "c"].map(|name| share(name, 1000, "")).concat()
    );
    let mut run = lab.boot(name, &config)?.exact().start()?;
    let line =
        run.expect(From::Guest("bursts"), BOOT, r"^probe bursts: (\d+) of 60 late, the slowest took (\d+)%")?;
    ensure!(line.group(1) == "0", "{} of 60 bursts were late", line.group(1));
    run.expect(From::Guest("bursts"), BOOT, "^probe bursts: ok$")?;
    run.end(BOOT, Outcome::Clean)
}

/// A stock kernel beside a guest that spins is told of the time that it could not have, and its clock stays right.
pub(crate) fn steal(lab: &Lab, name: &str) -> Verdict {
    const PROMPT: &str = "# $";
    let config = r#"
        [[domain]]
        name = "linux"
        memory = "256M"
        kernel = "@linux"
        initrd = "@initrd"
        cmdline = "console=ttyS0 panic=-1 quiet"

        [[domain]]
        name = "spin"
        memory = "4M"
        kernel = "@probe/spin"
        cmdline = "ms=600000"
        on_reboot = "destroy"
        console = "none"
    "#;
    let mut run = lab.boot(name, config)?.start()?;
    run.expect_prompt(From::Raw, BOOT, PROMPT)?;
    // Two seconds of work by the guest's clock, of which the other takes about a half.
    let line = "look() { read x user nice system idle iowait irq softirq steal rest < /proc/stat; }; look; a=$steal; \
                end=$(($(date +%s)+4)); while [ $(date +%s) -lt $end ]; do :; done; look; echo stolen=$((steal-a))\r";
    run.send(line)?;
    let told = run.expect(From::Raw, STEP, r"^stolen=(\d+)$")?;
    let hundredths = told.group(1).parse::<u32>().unwrap_or(0);
    ensure!(
        (100..=320).contains(&hundredths),
        "{hundredths} hundredths of three to four seconds were stolen"
    );
    Ok(())
}
