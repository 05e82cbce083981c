//! What the configuration promises of the CPU is what guests get, by their own progress: shares by weight, caps,
//! reservations, and what a stock kernel is told of the time that others had.

use caisson_tests::{Failure, From, Lab, Run, Verdict, ensure};
use caisson_trace::Trace;
use caisson_types::VcpuId;
use xtask::{
    outcome::Outcome,
    trace::timeline::{State, Timeline},
};

use crate::{
    accounts, lifecycle,
    workload::{BOOT, STEP},
};

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

/// How many ns of the trace a guest's only vCPU has run on each of two CPUs.
fn places(trace: &Trace, timeline: &Timeline, guest: &str) -> Verdict<[u64; 2]> {
    let domain = trace.domains.iter().find(|domain| domain.name == guest);
    let Some(id) = domain.map(|domain| VcpuId { domain: domain.id, index: 0 }) else {
        return Err(Failure::new(format!("the trace does not know {guest}")));
    };
    let mut places = [0; 2];
    for (span, state) in timeline.vcpus.get(&id).map(|track| &*track.states).unwrap_or_default() {
        if let State::Running(cpu) = state
            && let Some(time) = places.get_mut(*cpu)
        {
            *time += span.len();
        }
    }
    println!("  {guest}: {} us on CPU 0, {} us on CPU 1", places[0] / 1000, places[1] / 1000);
    Ok(places)
}

/// Guests that may run on one CPU never run on the other, also where that idles; those that prefer one leave it only for others
/// that want the same.
pub(crate) fn affinity(lab: &Lab, name: &str) -> Verdict {
    let traced = |guests: &[String]| -> Verdict<(Trace, Timeline)> {
        let mut run = lab
            .boot(name, &format!("{SHOW_ALL}{}", guests.concat()))?
            .cpus(2)
            .words("trace=32768")
            .start()?;
        run.end(BOOT, Outcome::Clean)?;
        let trace = accounts::traced(&run)?;
        let timeline = Timeline::of(&trace);
        Ok((trace, timeline))
    };
    // Two are bound to CPU 1, and CPU 0 has nobody for the last part of the time.
    let (trace, timeline) = traced(&[
        share("bound-a", 400, "cpus = \"1\""),
        share("bound-b", 400, "cpus = \"1\""),
        share("free", 100, ""),
    ])?;
    for guest in ["bound-a", "bound-b"] {
        let [elsewhere, home] = places(&trace, &timeline, guest)?;
        ensure!(elsewhere == 0 && home > 0, "{guest} ran {elsewhere} ns on CPU 0, {home} ns on CPU 1");
    }
    // Each stays where it would rather be.
    let (trace, timeline) =
        traced(&[share("left", 300, "prefer = \"0\""), share("right", 300, "prefer = \"1\"")])?;
    for (guest, home) in [("left", 0), ("right", 1)] {
        let places = places(&trace, &timeline, guest)?;
        let all: u64 = places.iter().sum();
        let there = places.get(home).copied().unwrap_or(0);
        ensure!(there * 100 >= all * 95, "{guest} ran {there} ns of {all} on CPU {home}");
    }
    // Both would rather be on CPU 1: one of them takes the other.
    let (trace, timeline) =
        traced(&[share("one", 300, "prefer = \"1\""), share("two", 300, "prefer = \"1\"")])?;
    let (one, two) = (places(&trace, &timeline, "one")?, places(&trace, &timeline, "two")?);
    let (left, right) = (one[0] + two[0], one[1] + two[1]);
    ensure!(left * 4 >= right, "nobody left the CPU that both prefer: {left} ns and {right} ns");
    Ok(())
}

/// Twice the weights 1:2:4 give shares 1:2:4 of two CPUs, wherever each runs. Bochs runs its CPUs in step.
pub(crate) fn weights_on_two(lab: &Lab, name: &str) -> Verdict {
    let weights =
        [("one-a", 100), ("two-a", 200), ("four-a", 400), ("one-b", 100), ("two-b", 200), ("four-b", 400)];
    let guests = weights.map(|(name, weight)| share(name, 3200, &format!("weight = {weight}")));
    let config = format!("{SHOW_ALL}{}", guests.concat());
    // The order of locks is checked by the other image, which is too slow for the figures: who has few turns pays for more
    // changes of hands in each.
    lab.boot(name, &config)?.cpus(2).start()?.end(BOOT, Outcome::Clean)?;
    let mut run = lab.boot(name, &config)?.cpus(2).as_used()?.start()?;
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

/// Guests with reservations that reboot at once, again and again within one period, get them back each time: also where
/// one comes back while the CPU is still booked for what the other has left.
pub(crate) fn reboots(lab: &Lab, name: &str) -> Verdict {
    let guest = |name: &str, slice: &str| {
        format!(
            "[[domain]]\nname = \"{name}\"\nmemory = \"4M\"\nkernel = \"@probe/reset\"\non_reboot = \"restart\"\n\
             max_restarts = 4\nperiod = \"10s\"\nslice = \"{slice}\"\n"
        )
    };
    let pool = "[[pool]]\nname = \"default\"\npolicy = \"sedf\"\n";
    let config = format!("{SHOW_ALL}{pool}{}{}", guest("small", "3s"), guest("large", "6s"));
    let mut run = lab.boot(name, &config)?.exact().start()?;
    run.end(BOOT, Outcome::GuestFailed)?;
    for guest in ["small", "large"] {
        let ran = run.count(From::Guest(guest), "^probe reset: by cf9$")?;
        ensure!(ran == 5, "{guest} ran {ran} times, not 5");
    }
    lifecycle::all_memory_came_back(&run)
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
