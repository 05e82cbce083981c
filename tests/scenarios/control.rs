//! One guest controls others: lists, pauses, shuts down, starts, resets and destroys them, and has their consoles.

use caisson_tests::{From, Lab, Verdict, ensure};
use xtask::outcome::Outcome;

use crate::{
    lifecycle,
    workload::{BOOT, STEP},
};

/// The controlling guest is a probe, which makes hypercalls; a device of `awaited` is one that it never describes.
const CONFIG: &str = r#"
    [machine]
    console = "all"

    [[domain]]
    name = "control"
    memory = "4M"
    kernel = "@probe/control"
    devices = "none"
    privileges = ["events", "control", "io-backend"]
    on_reboot = "destroy"

    [[domain]]
    name = "ward"
    memory = "4M"
    kernel = "@probe/ward"
    on_reboot = "restart"
    max_restarts = 2

    [[domain]]
    name = "busy"
    memory = "4M"
    kernel = "@probe/busy"

    [[domain]]
    name = "awaited"
    memory = "4M"
    kernel = "@probe/idle"

    [[domain.disk]]
    backend = "control"
    path = "/nowhere"
"#;

pub(crate) fn calls(lab: &Lab, name: &str) -> Verdict {
    on(lab, name, 1)
}

pub(crate) fn calls_on_two(lab: &Lab, name: &str) -> Verdict {
    on(lab, name, 2)
}

fn on(lab: &Lab, name: &str, cpus: u32) -> Verdict {
    let mut run = lab.boot(name, CONFIG)?.cpus(cpus).start()?;
    let line = run.expect(From::Guest("control"), BOOT * 4, r"^probe control: (ok|FAIL .*)$")?;
    ensure!(line.group(1) == "ok", "{}", line.group(0));
    run.end(STEP, Outcome::Clean)?;
    // A pause of seconds is not there for who was paused.
    let skipped = run.count(From::Guest("ward"), "have been skipped")?;
    ensure!(skipped == 0, "the ward saw {skipped} pauses");
    for says in ["ward: power button", "ward: typed q"] {
        let said = run.count(From::Guest("ward"), says)?;
        ensure!(said == 1, "{says:?} was said {said} times");
    }
    lifecycle::all_memory_came_back(&run)
}

/// Domains that are made by calls alone, of a blob that came with the guest which makes them: what it may not give away, what is not
/// granted to it, in which order domains can be forgotten, and the heap, which is promised before it is used.
pub(crate) fn making(lab: &Lab, name: &str) -> Verdict {
    const MANY: usize = 32;
    let domain = |name: &str, vcpus: u32, more: &str| {
        format!(
            "[[domain]]\nname = \"{name}\"\nmemory = \"1M\"\nvcpus = {vcpus}\nkernel = \"@probe/idle\"\ncmdline = \"ms=600000\"\n\
             console = \"none\"\n{more}\n"
        )
    };
    let mut text = domain("greedy", 1, "privileges = [\"events\"]")
        + &domain("served", 1, "[[domain.disk]]\npath = \"/nowhere\"\nbackend = \"maker\"")
        + &domain("server", 1, "privileges = [\"io-backend\"]")
        + &domain("client", 1, "[[domain.disk]]\npath = \"/nowhere\"\nbackend = \"server\"");
    for index in 0..MANY {
        text += &domain(&format!("many-{index}"), 64, "");
    }
    lab.later(name, "later.blob", &text)?;
    let config = format!(
        r#"
        [machine]
        console = "all"

        [[domain]]
        name = "maker"
        memory = "8M"
        kernel = "@probe/maker"
        modules = ["later.blob"]
        cmdline = "many={MANY}"
        devices = "none"
        privileges = ["control", "io-backend"]
        "#
    );
    let mut run = lab.boot(name, &config)?.memory_mib(128).start()?;
    let line = run.expect(From::Guest("maker"), BOOT * 4, r"^probe maker: (ok|FAIL .*)$")?;
    ensure!(line.group(1) == "ok", "{}", line.group(0));
    // The client could not be started, as it should.
    run.end(STEP, Outcome::GuestFailed)?;
    lifecycle::all_memory_came_back(&run)
}

/// A person at the driver domain's console, with the tool `caisson`.
pub(crate) fn tool(lab: &Lab, name: &str) -> Verdict {
    const PROMPT: &str = r"# $";
    let config = r#"
        [machine]
        console = "driver"

        [[domain]]
        name = "driver"
        memory = "256M"
        devices = "all"
        privileges = ["events", "control", "io-backend"]
        kernel = "@driver-linux"
        initrd = "@driver-initrd"
        cmdline = "console=ttyS0 quiet panic=-1"

        [[domain]]
        name = "ward"
        memory = "8M"
        private = "2M"
        kernel = "@probe/ward"
        on_reboot = "restart"
    "#;
    let mut run = lab.boot(name, config)?.start()?;
    run.expect(From::Raw, BOOT, "the driver domain is up")?;
    // The daemon says so on the shell's console.
    run.expect(From::Raw, BOOT, "serving guests, as domain 1$")?;
    run.send("\r")?;
    run.expect_prompt(From::Raw, STEP, PROMPT)?;
    run.send("until caisson list >/dev/null 2>&1; do sleep 1; done; caisson list\r")?;
    run.expect(From::Raw, BOOT, r"^ID  NAME    STATE +VCPUS +MEMORY  RESTARTS +TIME$")?;
    run.expect(From::Raw, STEP, r"^ 1  driver  running +1  256 MiB +0 +\d+\.\d{3} s$")?;
    run.expect(From::Raw, STEP, r"^ 2  ward    blocked +1    8 MiB +0 +\d+\.\d{3} s$")?;
    for (command, answer) in [
        ("caisson list --json", r#"^\[\{"id":1,"name":"driver","state":"running".*\{"id":2,"name":"ward""#),
        ("caisson console --dump ward", "^probe ward: ready$"),
        ("caisson pause ward", "^ward: paused$"),
        ("caisson info ward | grep state", "^state +paused$"),
        ("caisson info ward | grep private", "^private memory +2 MiB$"),
        ("caisson resume ward", "^ward: resumed$"),
        // What follows the line is typed, and the end of the input leaves the console.
        ("(sleep 1; echo q; sleep 2) | caisson console ward", "^probe ward: typed q$"),
        ("caisson top -n 1 --json", r#"^\{"domains":\[.*"machine":\{"#),
        ("caisson shutdown --wait ward", "^ward: told to shut down$"),
        (
            "caisson info ward --json",
            r#"^\{"domain":.*"ended":"poweroff".*"private":2097152,.*"state":"gone""#,
        ),
        ("caisson pause ward; echo code $?", "^caisson: ward is gone: start it first$"),
        ("caisson start --wait ward", "^ward: started$"),
        ("caisson reset ward", "^ward: reset$"),
        ("caisson destroy ward", "^ward: destroyed$"),
        ("caisson destroy driver; echo code $?", "^caisson: driver is this domain itself"),
        ("caisson info nobody", "^caisson: no domain is called \"nobody\"; there are driver, ward$"),
        ("caisson list --socket /nowhere; echo code $?", "^caisson: cannot reach the daemon at /nowhere"),
    ] {
        run.expect_prompt(From::Raw, STEP, PROMPT)?;
        run.send(&format!("{command}\r"))?;
        run.expect(From::Raw, STEP, answer)?;
    }
    run.expect(From::Raw, STEP, "^code 3$")?;
    run.expect_prompt(From::Raw, STEP, PROMPT)?;
    run.send("poweroff -f\r")?;
    run.end(STEP, Outcome::Clean)
}
