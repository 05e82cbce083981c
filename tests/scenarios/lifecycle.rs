//! How guests end and start again, and that nothing of them stays behind.

use caisson_tests::{From, Lab, Run, Verdict, ensure};
use xtask::outcome::Outcome;

use crate::{
    tiny::Tiny,
    workload::{self, BOOT, STEP},
};

/// PM1a control of the virtual PC, and what turns it off: sleep type 5 with the enable bit (ACPI 6.5, 4.8.3.2.1).
const PM1A_CONTROL: u16 = 0x604;
const SOFT_OFF: u16 = 5 << 10 | 1 << 13;

/// Small guests end in every way there is while a Linux guest works beside them, and is not disturbed.
pub(crate) fn ends(lab: &Lab, name: &str) -> Verdict {
    let kernels = [
        ("off", Tiny::default().print("I turn off").out16(PM1A_CONTROL, SOFT_OFF)),
        ("triple", Tiny::default().print("I fault").triple_fault()),
        ("cf9", Tiny::default().print("I write CF9").out8(0xCF9, 0x02).out8(0xCF9, 0x06)),
        ("keyboard", Tiny::default().print("I pulse the line").out8(0x64, 0xFE)),
        ("port92", Tiny::default().print("I reset fast").out8(0x92, 0x01)),
    ];
    for (file, kernel) in &kernels {
        kernel.save(lab, name, file)?;
    }
    let mut run = lab
        .boot(
            name,
            r#"
            [machine]
            console = "all"

            [[domain]]
            name = "linux"
            memory = "256M"
            kernel = "@linux"
            initrd = "@initrd"
            cmdline = "console=ttyS0 panic=-1 caisson.test=smoke"

            [[domain]]
            name = "off"
            memory = "2M"
            kernel = "off"

            [[domain]]
            name = "off-restarted"
            memory = "2M"
            kernel = "off"
            on_poweroff = "restart"
            max_restarts = 1

            [[domain]]
            name = "triple"
            memory = "2M"
            kernel = "triple"
            on_crash = "destroy"

            [[domain]]
            name = "triple-restarted"
            memory = "8M"
            kernel = "triple"
            on_crash = "restart"
            max_restarts = 3

            [[domain]]
            name = "cf9"
            memory = "2M"
            kernel = "cf9"
            on_reboot = "destroy"

            [[domain]]
            name = "keyboard"
            memory = "2M"
            kernel = "keyboard"
            on_reboot = "restart"
            max_restarts = 2

            [[domain]]
            name = "port92"
            memory = "2M"
            kernel = "port92"
            on_reboot = "destroy"
            "#,
        )?
        .start()?;
    workload::check(&mut run, From::Guest("linux"))?;
    run.end(STEP, Outcome::GuestFailed)?;
    // Guest, what it says each time, how it ends, how often it is started again, what becomes of it.
    for (guest, says, ended, restarts, fate) in [
        ("linux", "caisson-test: done", "powered off", 0, "destroyed"),
        ("off", "I turn off", "powered off", 0, "destroyed"),
        ("off-restarted", "I turn off", "powered off", 1, "not restarted again"),
        ("triple", "I fault", "triple fault at rip 0x[0-9a-f]+", 0, "destroyed"),
        ("triple-restarted", "I fault", "triple fault at rip 0x[0-9a-f]+", 3, "not restarted again"),
        ("cf9", "I write CF9", "reset", 0, "destroyed"),
        ("keyboard", "I pulse the line", "reset", 2, "not restarted again"),
        ("port92", "I reset fast", "reset", 0, "destroyed"),
    ] {
        let said = run.count(From::Guest(guest), &format!("^{says}$"))?;
        ensure!(said == restarts + 1, "{guest} ran {said} times, not {}", restarts + 1);
        let again = restarts_told(&run, guest, ended)?;
        ensure!(again == restarts, "{again} restarts of {guest} were told of, not {restarts}");
        let ends = run.count(From::Caisson, &format!("guest {guest}: {ended}; {fate}"))?;
        ensure!(ends == 1, "{guest}: {fate} was said {ends} times");
    }
    all_memory_came_back(&run)
}

/// How many restarts of a guest Caisson has told of: one by one, or several in one line when they follow closely.
fn restarts_told(run: &Run, guest: &str, ended: &str) -> Verdict<usize> {
    let singly = run.count(From::Caisson, &format!("guest {guest}: {ended}; restarting"))?;
    let summed = run.lines(From::Caisson).filter_map(|line| {
        let rest = line.text.split_once(&format!("guest {guest}: ended "))?.1;
        rest.strip_suffix(" times more since it was last heard of")?.parse::<usize>().ok()
    });
    Ok(singly + summed.sum::<usize>())
}

/// Linux restarts when it reboots, as often as it may; a kernel panic reboots it as well.
pub(crate) fn reboot(lab: &Lab, name: &str) -> Verdict {
    let mut run = lab
        .boot(
            name,
            r#"
            [machine]
            console = "all"

            [[domain]]
            name = "reboots"
            memory = "256M"
            kernel = "@linux"
            initrd = "@initrd"
            cmdline = "console=ttyS0 panic=-1 caisson.test=cpu caisson.end=reboot"
            on_reboot = "restart"
            max_restarts = 1

            [[domain]]
            name = "panics"
            memory = "256M"
            kernel = "@linux"
            initrd = "@initrd"
            cmdline = "console=ttyS0 panic=-1 quiet caisson.test=cpu caisson.end=crash"
            on_reboot = "destroy"
            "#,
        )?
        .start()?;
    for _ in 0..2 {
        run.expect(From::Guest("reboots"), BOOT, "caisson-guest: user space is up")?;
        run.expect(From::Guest("reboots"), STEP, "caisson-test: done")?;
    }
    run.end(STEP, Outcome::GuestFailed)?;
    for line in [
        "guest reboots: reset; restarting",
        "guest reboots: reset; not restarted again: its limit is reached",
        "guest panics: reset; destroyed",
    ] {
        let times = run.count(From::Caisson, line)?;
        ensure!(times == 1, "{line:?} was said {times} times");
    }
    ensure!(run.count(From::Guest("panics"), "Kernel panic.*sysrq")? == 1, "there was no panic");
    all_memory_came_back(&run)
}

/// Caisson counts the free memory before the first guest and after the last.
pub(crate) fn all_memory_came_back(run: &Run) -> Verdict {
    let line = run.lines(From::Caisson).find_map(|line| {
        let (free, before) = line.text.strip_prefix("memory free at the end: ")?.split_once(" KiB of ")?;
        Some((free.to_owned(), before.strip_suffix(" KiB")?.to_owned()))
    });
    ensure!(
        line.as_ref().is_some_and(|(free, before)| free == before),
        "guests left memory behind: {line:?}"
    );
    Ok(())
}
