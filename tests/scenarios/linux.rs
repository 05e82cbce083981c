//! Debian's kernel, unmodified, with our initial RAM disk.

use std::time::Duration;

use caisson_tests::{From, Lab, Run, Verdict, ensure};
use xtask::{emulator::Kind, outcome::Outcome};

use crate::{
    lifecycle, screen,
    workload::{self, BOOT, STEP},
};

/// From power-on to user space, through the whole workload, to a clean end of guest and machine.
pub(crate) fn alone(lab: &Lab, name: &str) -> Verdict {
    let mut run = lab.boot_config(name, "linux")?.start()?;
    workload::check(&mut run, From::Raw)?;
    run.end(STEP, Outcome::Clean)
}

/// The same from UEFI.
pub(crate) fn uefi(lab: &Lab, name: &str) -> Verdict {
    let mut run = lab.boot_config(name, "linux")?.uefi().start()?;
    workload::check(&mut run, From::Raw)?;
    run.end(STEP, Outcome::Clean)
}

/// The same on a CPU model with other SVM features (virtual GIF; QEMU's other models have none of the optional ones, so
/// that there is nothing for the boot word `without=` to leave out), five-level paging and wider vectors.
pub(crate) fn other_cpu(lab: &Lab, name: &str) -> Verdict {
    let mut run = lab.boot_config(name, "linux")?.cpu("max,-monitor").start()?;
    workload::check(&mut run, From::Raw)?;
    run.end(STEP, Outcome::Clean)
}

/// Three vCPUs take turns on the machine's one CPU.
pub(crate) fn smp(lab: &Lab, name: &str) -> Verdict {
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
            cmdline = "console=ttyS0 panic=-1 caisson.test=smoke"
            "#,
        )?
        .start()?;
    workload::check_smp(&mut run, From::Raw, 3)?;
    run.end(STEP, Outcome::Clean)
}

/// Two at once, to the same end; every line belongs to one of them.
pub(crate) fn two_guests(lab: &Lab, name: &str) -> Verdict {
    let mut run = lab.boot_config(name, "two-guests")?.start()?;
    for guest in ["red", "blue"] {
        run.expect(From::Caisson, BOOT, &format!("guest {guest}: 256 MiB, 1 vCPU, started"))?;
    }
    for guest in ["red", "blue"] {
        workload::check(&mut run, From::Guest(guest))?;
    }
    run.end(STEP, Outcome::Clean)?;
    for guest in ["red", "blue"] {
        let ends = run.count(From::Caisson, &format!("guest {guest}: powered off; destroyed"))?;
        ensure!(ends == 1, "{guest} ended {ends} times");
        // Kernel lines are whole: each begins with its time. On Bochs the kernel is told to be quiet.
        let least = if lab.machine() == Kind::Qemu { 100 } else { 0 };
        ensure!(run.count(From::Guest(guest), r"^\[ *\d+\.\d{6}\] ")? > least, "{guest} printed little");
        run.never(From::Guest(guest), r".\[ *\d+\.\d{6}\] |\[(red|blue|caisson)\] ")?;
    }
    lifecycle::all_memory_came_back(&run)
}

/// With its only guest waiting for a key, the machine's CPU is halted nearly always when one looks.
fn sleeps_while_idle(run: &mut Run) -> Verdict {
    const LOOKS: usize = 40;
    let mut monitor = run.monitor()?;
    let mut halted = 0;
    for _ in 0..LOOKS {
        run.listen(Duration::from_millis(50))?;
        halted += usize::from(screen::is_halted(&mut monitor)?);
    }
    ensure!(halted > LOOKS / 2, "the CPU was halted in {halted} of {LOOKS} looks");
    Ok(())
}

/// A person at the serial line.
pub(crate) fn shell(lab: &Lab, name: &str) -> Verdict {
    const PROMPT: &str = r"# $";
    let mut run = lab
        .boot(
            name,
            r#"
            [[domain]]
            name = "linux"
            memory = "256M"
            kernel = "@linux"
            initrd = "@initrd"
            cmdline = "console=ttyS0 panic=-1 quiet"
            "#,
        )?
        .start()?;
    run.expect_prompt(From::Raw, BOOT, PROMPT)?;
    run.send("echo $((6*7))\r")?;
    run.expect(From::Raw, STEP, "^42$")?;
    run.expect_prompt(From::Raw, STEP, PROMPT)?;
    run.send("uname -r; cat /sys/hypervisor/type /sys/class/dmi/id/sys_vendor 2>/dev/null\r")?;
    run.expect(From::Raw, STEP, r"^\d+\.\d+\.\d+\S*$")?;
    run.expect_prompt(From::Raw, STEP, PROMPT)?;

    sleeps_while_idle(&mut run)?;

    // Around all consoles; what the guest prints while its console is not selected has its name before it.
    run.send("\x01c")?;
    run.expect(From::Caisson, STEP, "showing Caisson's log; Ctrl-A c shows the next")?;
    run.send("\x01c")?;
    run.expect(From::Caisson, STEP, "showing all consoles")?;
    run.send("echo $((7*7))\r")?;
    run.expect(From::Guest("linux"), STEP, "^49$")?;
    run.send("\x01c")?;
    run.expect(From::Caisson, STEP, "showing linux")?;
    run.send("echo $((8*8))\r")?;
    run.expect(From::Raw, STEP, "^64$")?;

    // A long line typed at once, without a loss.
    let long = "x".repeat(500);
    run.send(&format!("echo {long} | wc -c\r"))?;
    run.expect(From::Raw, STEP, "^501$")?;

    run.send("exit\r")?;
    run.expect(From::Raw, STEP, "reboot: Power down")?;
    run.expect(From::Caisson, STEP, "guest linux: powered off; destroyed")?;
    run.end(STEP, Outcome::Clean)
}
