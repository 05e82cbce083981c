//! Guests' clocks and timers over a minute in which others have most of the CPU, against the machine's own time.

use caisson_tests::{From, Lab, Run, Verdict, ensure};
use xtask::{emulator::Kind, outcome::Outcome};

use crate::workload::{BOOT, STEP};

/// What a clock may be off by, in parts of a million.
const PPM: f64 = 100.0;
/// Nanoseconds that each of the machine's instructions takes, as a power of two: it is as slow as an emulated minute is to
/// be short.
const SLOWNESS: u32 = 4;
/// Others beside the guest that measures.
const SPINNERS: usize = 3;

/// How far `got` is from `due`, in parts of a million.
fn off(got: f64, due: f64) -> f64 {
    ((got - due) / due * 1e6).abs()
}

/// A guest that has a quarter of a CPU for a minute. What its clocks count is the machine's time, on a machine whose time is
/// the number of its instructions; none of its timers is lost, and none comes in a storm.
pub(crate) fn drift(lab: &Lab, name: &str) -> Verdict {
    // Bochs takes about as long for a second of its machine.
    let seconds = if lab.machine() == Kind::Qemu { 60 } else { 30 };
    let mut config = format!(
        "[machine]\nconsole = \"all\"\n[[domain]]\nname = \"clock\"\nmemory = \"4M\"\nkernel = \"@probe/clock\"\n\
         cmdline = \"ms={}\"\non_reboot = \"destroy\"\n",
        seconds * 1000
    );
    for i in 0..SPINNERS {
        config += &format!(
            "[[domain]]\nname = \"spin-{i}\"\nmemory = \"4M\"\nkernel = \"@probe/share\"\n\
             cmdline = \"ms={}\"\non_reboot = \"destroy\"\n",
            seconds * 1000 + 1500
        );
    }
    let mut run = lab.boot(name, &config)?.slow(SLOWNESS).start()?;
    let measured = run.expect(From::Caisson, BOOT, r"TSC (\d+) kHz measured against")?.number(1) * 1000.0;
    let mut told =
        |pattern: &str| run.expect(From::Guest("clock"), BOOT, &format!("^probe clock: {pattern}$"));

    // The emulators' TSC counts the machine's time: nanoseconds in QEMU, instructions in Bochs.
    let tsc = told(r"TSC: (\d+) ticks, of (\d+) in a second")?;
    let hz = if lab.machine() == Kind::Qemu { 1e9 } else { 50e6 };
    let elapsed = tsc.number(1) / hz;
    ensure!(elapsed >= f64::from(seconds), "{elapsed} s were measured");
    let kvm = told(r"KVM clock: (\d+) ns")?.number(1);
    let pm = told(r"PM timer: (\d+) ticks")?.number(1);
    let rtc = told(r"RTC: (\d+) s, (\d+) interrupts")?;
    let pit = told(r"8254: (\d+) of (\d+) ticks, ten in (\d+) us")?;
    let deadlines = told(r"deadlines: (\d+), (\d+) too many, ten in (\d+) us")?;
    let periods = told(r"periods: (\d+) of (\d+), ten in (\d+) us")?;
    told("ok")?;

    let clocks = [
        ("the TSC's frequency, as Caisson measures it", measured, hz),
        ("the TSC's frequency, as the guest is told", tsc.number(2), hz),
        ("the KVM clock", kvm, elapsed * 1e9),
        ("the PM timer", pm, elapsed * 3_579_545.0),
    ];
    for (clock, got, due) in clocks {
        println!("  {name}: {clock}: {:.2} ppm off", off(got, due));
        ensure!(off(got, due) <= PPM, "{clock}: {got} in place of {due}: {:.0} ppm", off(got, due));
    }
    // What counts whole periods is right to one of them.
    for (clock, got, due) in [
        ("the RTC's time", rtc.number(1), elapsed),
        ("the RTC's interrupts", rtc.number(2), elapsed),
        ("the 8254's ticks", pit.number(1), pit.number(2)),
    ] {
        ensure!(got + 2.0 >= due && got <= due + 1.0, "{clock}: {got} of {due:.1}");
    }
    ensure!(deadlines.number(2) == 0.0, "{} interrupts too many of deadlines", deadlines.number(2));
    ensure!(periods.number(1) <= periods.number(2), "more periods than there are");
    // In the first half of the time, but for a round of turns before it. That none was lost since the guest has checked.
    ensure!(
        deadlines.number(1) + 10.0 >= f64::from(seconds) / 2.0 * 250.0,
        "{} deadlines",
        deadlines.number(1)
    );
    println!(
        "  {name}: 8254 {} ticks, ten in {} us at least; periods {} of {}, {} us; deadlines {}, {} us",
        pit.number(1),
        pit.number(3),
        periods.number(1),
        periods.number(2),
        periods.number(3),
        deadlines.number(1),
        deadlines.number(3)
    );
    // What is late follows by an eighth of 10 ms, or 20 us, and one that was held up may be close to the next: no storm.
    ensure!(pit.number(3) >= 10_000.0, "ten ticks of the 8254 came within {} us", pit.number(3));
    ensure!(periods.number(3) >= 160.0, "ten periods came within {} us", periods.number(3));
    shared_out(&mut run)?;
    run.end(STEP, Outcome::Clean)
}

/// All of the others had their quarter.
fn shared_out(run: &mut Run) -> Verdict {
    for i in 0..SPINNERS {
        let line = r"^probe share: (\d+) of 10000 in the middle$";
        let had = run.expect(From::Guest(&format!("spin-{i}")), BOOT, line)?.number(1);
        ensure!((had - 2500.0).abs() <= 100.0, "spin-{i} had {had} of 10000");
    }
    Ok(())
}
