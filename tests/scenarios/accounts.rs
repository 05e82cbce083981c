//! Where the time goes: the table on the console, and the trace.

use caisson_tests::{Failure, From, Lab, Run, Verdict, ensure};
use caisson_trace::{Reader, Trace};
use xtask::{
    outcome::Outcome,
    trace::timeline::{State, Timeline},
};

use crate::workload::{BOOT, STEP};

/// A Linux with three vCPUs on two CPUs: a person looks at the table, has the trace written while the guest runs, and the
/// machine writes it again at the end.
pub(crate) fn table_and_trace(lab: &Lab, name: &str) -> Verdict {
    const PROMPT: &str = r"# $";
    let mut run = lab
        .boot(
            name,
            r#"
            [[domain]]
            name = "linux"
            memory = "256M"
            vcpus = 3
            kernel = "@linux"
            initrd = "@initrd"
            cmdline = "console=ttyS0 panic=-1 quiet"
            "#,
        )?
        .cpus(2)
        .words("trace=2048")
        .start()?;
    run.expect_prompt(From::Raw, BOOT, PROMPT)?;
    run.send("\x01?")?;
    run.expect(From::Caisson, STEP, "^Ctrl-A t  where the time goes")?;
    table(&mut run)?;

    run.send("\x01d")?;
    run.expect(From::Raw, STEP, "^%trace ")?;
    run.send("echo $((6*7))\r")?;
    run.expect(From::Raw, STEP, "^42$")?;
    let during = traced(&run)?;
    ensure!(during.cpus == 2, "a trace of {} CPUs", during.cpus);

    run.send("exit\r")?;
    run.end(STEP, Outcome::Clean)?;
    let trace = traced(&run)?;
    ensure!(trace.complete && trace.missing == 0, "lines of the trace are missing: {}", trace.missing);
    ensure!(trace.now > during.now, "the last trace is not the one of the end");
    ensure!(trace.domains.iter().any(|domain| domain.name == "linux" && domain.vcpus == 3), "no such guest");
    let timeline = Timeline::of(&trace);
    ensure!(timeline.cpus.iter().all(|track| !track.work.is_empty()), "a CPU has done nothing");
    ensure!(timeline.vcpus.len() == 3, "{} vCPUs", timeline.vcpus.len());
    for (vcpu, track) in &timeline.vcpus {
        let runs = track.states.iter().any(|(_, state)| matches!(state, State::Running(_)));
        ensure!(runs && !track.exits.is_empty(), "{vcpu} has not run, or without an exit");
    }
    Ok(())
}

/// The table comes, and comes again; its percentages of each CPU add up; the guest's console comes back.
fn table(run: &mut Run) -> Verdict {
    run.send("\x01t")?;
    for _ in 0..2 {
        let cpus = run.expect(
            From::Raw,
            STEP,
            r"^ +0 +(\d+\.\d)% +(\d+\.\d)% +(\d+\.\d)% +1 +(\d+\.\d)% +(\d+\.\d)% +(\d+\.\d)%$",
        )?;
        for cpu in [1, 4] {
            let sum: f64 = (cpu..cpu + 3).map(|group| cpus.number(group)).sum();
            // Each figure is rounded down to a tenth.
            ensure!((99.6..=100.01).contains(&sum), "a CPU's time adds up to {sum}%");
        }
        for vcpu in 0..3 {
            run.expect(
                From::Raw,
                STEP,
                &format!(r"^linux/{vcpu} +(running|ready|blocked) +\d+\.\d% +\d+\.\d%"),
            )?;
        }
    }
    run.send("q")?;
    run.expect(From::Raw, STEP, "showing linux; |showing all consoles; ")?;
    Ok(())
}

/// The last trace that was written so far.
pub(crate) fn traced(run: &Run) -> Verdict<Trace> {
    let mut reader = Reader::new();
    run.lines(From::Raw).for_each(|line| reader.line(&line.text));
    reader.finish().map_err(|error| Failure::new(error.to_string()))
}
