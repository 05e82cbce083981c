//! Bare-metal guests that each check one behaviour of the virtual machine (`guest-images/probes`), and one that means
//! harm.

use caisson_tests::{From, Lab, Run, Verdict, ensure};
use xtask::{emulator::Kind, outcome::Outcome};

use crate::{
    lifecycle,
    workload::{self, BOOT, STEP},
};

/// Every probe of the config passes; together they keep the CPU changing hands.
pub(crate) fn all(lab: &Lab, name: &str) -> Verdict {
    let guests = lab.guests_of("probes")?;
    let mut run = lab.boot_config(name, "probes")?.start()?;
    let mut failures = Vec::new();
    for guest in &guests {
        let line = run.expect(From::Guest(guest), BOOT, r"^probe \S+: (ok|FAIL .*)$")?;
        if line.group(1) != "ok" {
            failures.push(line.group(0).to_owned());
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)
}

/// The probes that send NMIs: on Bochs each by itself, as it has one blocking of virtual NMIs for all the guests of a CPU.
pub(crate) fn nmis(lab: &Lab, name: &str) -> Verdict {
    let all = ["apic", "task-switch", "vectors"];
    let runs: &[&[&str]] =
        if lab.machine() == Kind::Bochs { &[&["apic"], &["task-switch"]] } else { &[&all] };
    for probes in runs {
        let mut config = String::from("[machine]\nconsole = \"all\"\n");
        for probe in *probes {
            config += &format!(
                r#"
                [[domain]]
                name = "{probe}"
                memory = "4M"
                kernel = "@probe/{probe}"
                on_reboot = "destroy"
                "#
            );
        }
        let mut run = lab.boot(name, &config)?.start()?;
        for probe in *probes {
            let line = run.expect(From::Guest(probe), BOOT, r"^probe \S+: (ok|FAIL .*)$")?;
            ensure!(line.group(1) == "ok", "{probe}: {}", line.group(0));
        }
        run.end(STEP, Outcome::Clean)?;
        lifecycle::all_memory_came_back(&run)?;
    }
    Ok(())
}

/// A probe that sets breakpoints, by itself.
pub(crate) fn breakpoints(lab: &Lab, name: &str) -> Verdict {
    let config = r#"
        [[domain]]
        name = "exceptions"
        memory = "4M"
        kernel = "@probe/exceptions"
        on_reboot = "destroy"
    "#;
    let mut run = lab.boot(name, config)?.start()?;
    run.expect(From::Raw, BOOT, r"^probe exceptions: ok$")?;
    run.end(STEP, Outcome::Clean)
}

/// Beside a guest that spins with interrupts off, on exits of every kind or on none, a neighbour gets its half of the CPU.
pub(crate) fn spinning(lab: &Lab, name: &str) -> Verdict {
    let config = r#"
        [machine]
        console = "all"

        [[domain]]
        name = "spin"
        memory = "4M"
        kernel = "@probe/spin"
        cmdline = "ms=380"
        on_reboot = "destroy"

        [[domain]]
        name = "share"
        memory = "4M"
        kernel = "@probe/share"
        cmdline = "ms=320"
        on_reboot = "destroy"
    "#;
    let mut run = lab.boot(name, config)?.exact().start()?;
    let line =
        run.expect(From::Guest("share"), BOOT, r"^probe share: (\d+)% of the CPU, (\d+)% at least$")?;
    let percent = |group| line.group(group).parse::<u32>().unwrap_or(0);
    // A slice is 10 ms, and what is looked at one by one 40.
    ensure!((45..=55).contains(&percent(1)), "a half of the CPU is not {}%", percent(1));
    ensure!(percent(2) >= 35, "{}% of the CPU for a while", percent(2));
    for guest in ["share", "spin"] {
        run.expect(From::Guest(guest), BOOT, &format!("^probe {guest}: ok$"))?;
    }
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)
}

/// The guest that works beside hostile ones: Linux, or on Bochs, where that would take minutes, a probe that watches its
/// registers.
fn worker(machine: Kind) -> &'static str {
    match machine {
        Kind::Qemu => {
            r#"
            [[domain]]
            name = "worker"
            memory = "256M"
            kernel = "@linux"
            initrd = "@initrd"
            cmdline = "console=ttyS0 panic=-1 caisson.test=smoke"
            "#
        }
        Kind::Bochs => {
            r#"
            [[domain]]
            name = "worker"
            memory = "4M"
            kernel = "@probe/vectors"
            cmdline = "seed=9"
            on_reboot = "destroy"
            "#
        }
    }
}

/// Its work is done as it should be.
fn works(run: &mut Run) -> Verdict {
    if run.machine() == Kind::Qemu {
        return workload::check(run, From::Guest("worker"));
    }
    run.expect(From::Guest("worker"), BOOT, "^probe vectors: ok$").map(drop)
}

/// A guest that works, and hostile ones beside it with these words on their command lines.
fn beside_a_worker(machine: Kind, words: &[&str], vcpus: u32) -> String {
    let mut config = format!("[machine]\nconsole = \"all\"\n{}", worker(machine));
    for (i, words) in words.iter().enumerate() {
        config += &format!(
            r#"
            [[domain]]
            name = "hostile-{i}"
            memory = "16M"
            vcpus = {vcpus}
            kernel = "@probe/hostile"
            cmdline = "{words}"
            on_reboot = "restart"
            on_crash = "restart"
            max_restarts = 20
            "#
        );
    }
    config
}

/// Guests that do whatever may hurt, but live through it, beside one that works: the work is not disturbed, every attempt
/// is answered as the hardware would, and nothing stays behind.
pub(crate) fn hostile(lab: &Lab, name: &str) -> Verdict {
    hostile_on(lab, name, 1)
}

/// The same on two CPUs, with vCPUs more that nobody has started.
pub(crate) fn hostile_on_two(lab: &Lab, name: &str) -> Verdict {
    hostile_on(lab, name, 2)
}

/// Starts the guests on one CPU, or on two that are not the machine's first: QEMU forgets now and then what that one's guest had,
/// where another CPU restores the FPU (docs/testing.md), and these do little else.
fn on(lab: &Lab, name: &str, config: &str, cpus: u32) -> Verdict<Run> {
    if cpus == 1 {
        return lab.boot(name, config)?.start();
    }
    let pool = format!("[[pool]]\nname = \"default\"\ncpus = \"1-{cpus}\"\n");
    lab.boot(name, &format!("{config}\n{pool}"))?.cpus(cpus + 1).start()
}

fn hostile_on(lab: &Lab, name: &str, cpus: u32) -> Verdict {
    let config = beside_a_worker(lab.machine(), &["seed=1", "seed=2"], cpus);
    let mut run = on(lab, name, &config, cpus)?;
    works(&mut run)?;
    for guest in ["hostile-0", "hostile-1"] {
        let line = run.expect(From::Guest(guest), BOOT, r"^probe hostile: (ok|FAIL .*)$")?;
        ensure!(line.group(1) == "ok", "{}", line.group(0));
    }
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)
}

/// Hostile guests without any care: they end, hang or start again as it comes, and only they.
pub(crate) fn wild(lab: &Lab, name: &str) -> Verdict {
    wild_on(lab, name, 1)
}

/// The same on two CPUs.
pub(crate) fn wild_on_two(lab: &Lab, name: &str) -> Verdict {
    wild_on(lab, name, 2)
}

fn wild_on(lab: &Lab, name: &str, cpus: u32) -> Verdict {
    let words = ["wild=1 seed=3", "wild=1 seed=4", "wild=1 seed=5"];
    let mut run = on(lab, name, &beside_a_worker(lab.machine(), &words, cpus), cpus)?;
    works(&mut run)?;
    run.expect(From::Caisson, STEP, "guest worker: powered off; destroyed")?;
    run.never(From::Anyone, "Caisson crashed")
}
