//! Debian's kernel, unmodified, with our initial RAM disk.

use std::time::Duration;

use caisson_tests::{From, Lab, Run, Verdict, ensure};
use serde_json::json;
use xtask::{emulator::Kind, outcome::Outcome, qmp::Qmp};

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

/// The stock kernel finds the virtio device that the firmware's tables tell of, and its drivers get random numbers from it.
pub(crate) fn entropy(lab: &Lab, name: &str) -> Verdict {
    let config = r#"
        [[domain]]
        name = "linux"
        memory = "256M"
        kernel = "@linux"
        initrd = "@initrd"
        entropy = true
        cmdline = "console=ttyS0 panic=-1 caisson.test=cpu,entropy"
    "#;
    let mut run = lab.boot(name, config)?.start()?;
    workload::check_entropy(&mut run, From::Raw)?;
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

/// As many CPUs as vCPUs (two of each in Bochs), or fewer: all of them work, a worker on each vCPU computes what it should,
/// and everything comes to a clean end.
fn many(lab: &Lab, name: &str, cpus: u32) -> Verdict {
    let (vcpus, tests) = if lab.machine() == Kind::Bochs { (2, "cpu,parallel") } else { (4, "smoke") };
    // QEMU's first CPU loses flags of its own where others restore an FPU: nobody runs on it there.
    let first = u32::from(lab.machine() == Kind::Qemu);
    let last = first + cpus - 1;
    let mut run = lab
        .boot(
            name,
            &format!(
                r#"
                [machine]
                console = "all"

                [[pool]]
                name = "default"
                cpus = "{first}-{last}"

                [[domain]]
                name = "smp"
                memory = "256M"
                vcpus = {vcpus}
                kernel = "@linux"
                initrd = "@initrd"
                cmdline = "console=ttyS0 panic=-1 caisson.test={tests}"
                "#
            ),
        )?
        .cpus(last + 1)
        .start()?;
    run.expect(From::Caisson, BOOT, &format!("{0} of {0} CPUs work$", last + 1))?;
    match lab.machine() {
        Kind::Qemu => workload::check_smp(&mut run, From::Guest("smp"), vcpus)?,
        Kind::Bochs => workload::check_parallel(&mut run, From::Guest("smp"), vcpus)?,
    }
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)
}

/// A vCPU for each CPU.
pub(crate) fn smp_on_all(lab: &Lab, name: &str) -> Verdict {
    many(lab, name, if lab.machine() == Kind::Bochs { 2 } else { 4 })
}

/// Two vCPUs for each CPU.
pub(crate) fn smp_on_half(lab: &Lab, name: &str) -> Verdict {
    many(lab, name, 2)
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
fn sleeps_while_idle(run: &mut Run, monitor: &mut Qmp) -> Verdict {
    const LOOKS: usize = 40;
    let mut halted = 0;
    for _ in 0..LOOKS {
        run.listen(Duration::from_millis(50))?;
        halted += usize::from(screen::is_halted(monitor)?);
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

    let mut monitor = run.monitor()?;
    sleeps_while_idle(&mut run, &mut monitor)?;

    // The machine's own NMI is no guest's business.
    monitor.execute("inject-nmi", &json!({}))?;
    run.expect(From::Caisson, STEP, "^warning: the machine raised an NMI that nobody asked for$")?;
    run.send("echo $((5*5))\r")?;
    run.expect(From::Raw, STEP, "^25$")?;
    run.expect_prompt(From::Raw, STEP, PROMPT)?;

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
    // And one of which the guest prints nothing back: what its UART has no room for waits, while the guest sleeps.
    run.expect_prompt(From::Raw, STEP, PROMPT)?;
    run.send("stty -echo; echo silence; read line; stty echo; echo ${#line}\r")?;
    run.expect(From::Raw, STEP, "^silence$")?;
    run.send(&format!("{}\r", "y".repeat(400)))?;
    run.expect(From::Raw, STEP, "^400$")?;

    run.send("exit\r")?;
    run.expect(From::Raw, STEP, "reboot: Power down")?;
    run.expect(From::Caisson, STEP, "guest linux: powered off; destroyed")?;
    run.end(STEP, Outcome::Clean)
}

/// What is typed goes to the guest whose console is shown, and to no other.
pub(crate) fn consoles(lab: &Lab, name: &str) -> Verdict {
    let guest = |name: &str| {
        format!(
            "[[domain]]\nname = \"{name}\"\nmemory = \"192M\"\nkernel = \"@linux\"\ninitrd = \"@initrd\"\n\
             cmdline = \"console=ttyS0 panic=-1 quiet\"\n"
        )
    };
    let mut run = lab.boot(name, &format!("{}{}", guest("red"), guest("blue")))?.start()?;
    for guest in ["red", "blue"] {
        run.expect(From::Guest(guest), BOOT, "leaving the shell powers it off")?;
    }
    // With all consoles shown there is nobody to speak to.
    run.send("echo lost$((1+1))\r")?;
    for (guest, sum) in [("red", 42), ("blue", 43)] {
        run.send("\x01c")?;
        run.expect(From::Caisson, STEP, &format!("showing {guest}; "))?;
        run.send(&format!("me={guest}; echo $me$((40+{}))\r", sum - 40))?;
        run.expect(From::Raw, STEP, &format!("^{guest}{sum}$"))?;
    }
    run.send("echo still $me; exit\r")?;
    run.expect(From::Raw, STEP, "^still blue$")?;
    run.expect(From::Caisson, STEP, "guest blue: powered off; destroyed")?;
    for shown in ["Caisson's log", "all consoles", "red"] {
        run.send("\x01c")?;
        run.expect(From::Caisson, STEP, &format!("showing {shown}; "))?;
    }
    run.send("echo still $me; exit\r")?;
    run.expect(From::Raw, STEP, "^still red$")?;
    run.end(STEP, Outcome::Clean)?;
    run.never(From::Anyone, "lost2")
}

/// Every pool changes its policy, to and fro, while guests run, by a key of the console.
pub(crate) fn policies(lab: &Lab, name: &str) -> Verdict {
    let guest = |name: &str| {
        format!(
            "[[domain]]\nname = \"{name}\"\nmemory = \"192M\"\nvcpus = 2\nkernel = \"@linux\"\n\
             initrd = \"@initrd\"\ncmdline = \"console=ttyS0 panic=-1 quiet\"\n"
        )
    };
    let mut run = lab.boot(name, &format!("{}{}", guest("red"), guest("blue")))?.cpus(2).start()?;
    run.expect(From::Caisson, BOOT, "guest blue: .* started")?;
    for policy in ["Sedf", "Bvt", "Sedf"] {
        run.send("\x01p")?;
        run.expect(From::Caisson, STEP, &format!("pool 0: {policy} from now on"))?;
    }
    for guest in ["red", "blue"] {
        run.expect(From::Guest(guest), BOOT, "leaving the shell powers it off")?;
    }
    for guest in ["red", "blue"] {
        run.send("\x01c")?;
        run.expect(From::Caisson, STEP, &format!("showing {guest}; "))?;
        run.send("echo cpus$((40+$(nproc))); exit\r")?;
        run.expect(From::Raw, STEP, "^cpus42$")?;
        run.expect(From::Caisson, STEP, &format!("guest {guest}: powered off; destroyed"))?;
    }
    run.end(STEP, Outcome::Clean)
}
