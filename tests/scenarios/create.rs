//! Domains that the driver domain makes while the machine runs, of a text and its files, by the tool `caisson`.

use caisson_tests::{From, Lab, Run, Verdict, ensure};
use xtask::outcome::Outcome;

use crate::workload::{BOOT, STEP};

/// The shell of the driver domain waits.
const PROMPT: &str = r"# $";

/// The driver domain with these disks, and these words for its kernel.
fn driver(disks: &str, words: &str) -> String {
    format!(
        r#"
        [machine]
        console = "driver"

        [emulator]
        disks = [{disks}]

        [[domain]]
        name = "driver"
        memory = "256M"
        devices = "all"
        privileges = ["events", "control", "io-backend"]
        kernel = "@driver-linux"
        initrd = "@driver-initrd"
        cmdline = "console=ttyS0 quiet panic=-1 {words}"
        on_crash = "restart"
        "#
    )
}

/// Types a command when the shell waits for one, and waits for what it is to say.
fn command(run: &mut Run, seconds: u64, line: &str, answers: &[&str]) -> Verdict {
    run.expect_prompt(From::Raw, STEP, PROMPT)?;
    run.send(&format!("{line}\r"))?;
    answers.iter().try_for_each(|answer| run.expect(From::Raw, seconds, answer).map(drop))
}

/// The guest has ended by itself, and what it wrote to its disk so often was all there.
fn over(run: &mut Run, times: usize) -> Verdict {
    let wait = "until caisson info guest | grep -q 'state *gone'; do sleep 1; done; echo over";
    command(run, BOOT * 2, wait, &["^over$"])?;
    command(run, STEP, "caisson console --dump guest | grep caisson-test:", &[])?;
    for _ in 0..times {
        let line =
            run.expect(From::Raw, STEP, r"^caisson-test: files written=(\d+) good=(\d+) used=(\d+)%$")?;
        let (written, good) = (line.number(1), line.number(2));
        ensure!(
            written > 5.0 && (written - good).abs() < 0.5,
            "of {written} files {good} are what was written"
        );
    }
    Ok(())
}

/// The daemon of the driver domain answers.
fn up(run: &mut Run) -> Verdict {
    run.expect(From::Raw, BOOT, "the driver domain is up")?;
    run.expect(From::Raw, BOOT, "serving guests, as domain 1$")?;
    run.send("\r")?;
    command(run, STEP, "until caisson list >/dev/null 2>&1; do sleep 1; done; echo here", &["^here$"])
}

fn end(mut run: Run) -> Verdict {
    run.expect_prompt(From::Raw, STEP, PROMPT)?;
    run.send("poweroff -f\r")?;
    run.end(STEP, Outcome::Clean)?;
    // What is left behind is a warning, which is shown whatever console is; that all came back is not.
    run.never(From::Caisson, "guests left some behind|^warning: |^error: ")
}

/// A Linux with a disk and a network card, from its making to its end.
pub(crate) fn guest(lab: &Lab, name: &str) -> Verdict {
    const WORK: &str = "caisson.peer=10.0.2.15 caisson.test=ping,files";
    let words = "caisson.address=br0:10.0.2.15/24 caisson.mount=/dev/nvme0n1:/srv";
    let mut run = lab.boot(name, &driver("\"@guests-disk\"", words))?.memory_mib(768).start()?;
    up(&mut run)?;
    let text = format!("sed '/^cmdline/s#\"$# {WORK}\"#' /srv/guest.toml >/srv/work.toml; echo made");
    command(&mut run, STEP, &text, &["^made$"])?;
    command(&mut run, BOOT, "caisson create --wait /srv/work.toml", &["^guest: created$"])?;
    command(
        &mut run,
        STEP,
        "caisson create /srv/work.toml; echo code $?",
        &[r#"^caisson: /srv/work\.toml:5:8: domain\[0\]\.name: "guest" is .* already"#, "^code 1$"],
    )?;
    for life in 0..2 {
        // It works, and turns itself off.
        over(&mut run, 1)?;
        let ping = "caisson console --dump guest | grep ping";
        command(&mut run, STEP, ping, &[r"^caisson-test: ping peer=10\.0\.2\.15 replies=[1-9]"])?;
        command(&mut run, STEP, "caisson list | grep guest", &[r"^ 2  guest   gone +1 +96 MiB"])?;
        if life == 0 {
            command(&mut run, BOOT, "caisson start --wait guest", &["^guest: started$"])?;
            let early = "caisson forget guest; echo code $?";
            command(
                &mut run,
                STEP,
                early,
                &["^caisson: guest is not gone, but [a-z]*: end it first$", "^code 1$"],
            )?;
        }
    }
    command(&mut run, STEP, "caisson forget guest", &["^guest: forgotten$"])?;
    let nobody = "^caisson: no domain is called \"guest\"; there are driver$";
    command(&mut run, STEP, "caisson start guest", &[nobody])?;
    // Another one has the disk now; it is ended from outside.
    let text = "sed 's/\"guest\"/\"other\"/' /srv/guest.toml >/srv/other.toml; caisson create --wait /srv/other.toml";
    command(&mut run, BOOT, text, &["^other: created$"])?;
    command(&mut run, STEP, "caisson list --json", &[r#"\{"id":\d+,"name":"other""#])?;
    command(
        &mut run,
        BOOT,
        "until caisson console --dump other | grep 'user space is up'; do sleep 1; done",
        &["user space is up$"],
    )?;
    command(&mut run, STEP, "caisson devices", &["other disk .* attached", "other network .* attached"])?;
    command(
        &mut run,
        STEP,
        "caisson destroy other; caisson undefine other",
        &["^other: destroyed$", "^other: forgotten$"],
    )?;
    end(run)
}

/// The driver domain crashes while a guest that it has made works on its disk. Both go on.
pub(crate) fn crash(lab: &Lab, name: &str) -> Verdict {
    let words = "caisson.address=br0:10.0.2.15/24 caisson.mount=/dev/nvme0n1:/srv";
    let config = driver("\"@guests-disk\", \"@empty-disk\"", words);
    let mut run = lab.boot(name, &config)?.memory_mib(768).start()?;
    up(&mut run)?;
    let text = "sed '/^cmdline/s#\"$# caisson.test=files,files\"#; s#/srv/guest.img#/dev/nvme0n2#' /srv/guest.toml >/tmp/guest.toml";
    command(
        &mut run,
        STEP,
        &format!("{text}; cd /tmp; ln -s /srv/vmlinuz /srv/initrd.img .; echo made"),
        &["^made$"],
    )?;
    command(&mut run, BOOT, "caisson create --wait guest.toml", &["^guest: created$"])?;
    let busy =
        "until caisson devices --json | grep '\"requests\":[0-9][0-9][0-9]'; do sleep 0.2; done; echo busy";
    command(&mut run, BOOT, busy, &["^busy$"])?;
    run.expect_prompt(From::Raw, STEP, PROMPT)?;
    run.send("echo c >/proc/sysrq-trigger\r")?;
    up(&mut run)?;
    let alive = r#"\{"id":2,"name":"guest","state":"(running|blocked)".*"restarts":0,"life":1,"#;
    command(&mut run, STEP, "caisson list --json", &[alive])?;
    over(&mut run, 2)?;
    // It can be made again, without the text: Caisson has kept what it is made of.
    command(&mut run, BOOT, "caisson start --wait guest", &["^guest: started$"])?;
    let away = "caisson destroy guest; caisson forget guest";
    command(&mut run, STEP, away, &["^guest: destroyed$", "^guest: forgotten$"])?;
    end(run)
}

/// What cannot be made is told in one line; what can be, leaves nothing behind when it is forgotten.
pub(crate) fn refusals(lab: &Lab, name: &str) -> Verdict {
    const ROUNDS: u32 = 20;
    let mut run = lab.boot(name, &driver("", ""))?.memory_mib(512).start()?;
    up(&mut run)?;
    // A multiboot1 kernel of a header and `1: hlt; jmp 1b`.
    let header = [0x1bad_b002_u32, 1 << 16, 0xe451_4ffe, 0x10_0000, 0x10_0000, 0, 0, 0x10_0020];
    let bytes = header.iter().flat_map(|word| word.to_le_bytes()).chain([0xf4, 0xeb, 0xfd]);
    let kernel: String = bytes.map(|byte| format!("\\{byte:03o}")).collect();
    command(&mut run, STEP, &format!("printf '{kernel}' >tiny; wc -c tiny"), &["^35 tiny$"])?;
    let function = r#"t() { printf '[[domain]]\nname = "tiny"\nmemory = "%s"\nkernel = "tiny"\n%s\n' "$@" >t.toml; caisson create --wait t.toml; echo code $?; }"#;
    command(&mut run, STEP, function, &[])?;
    for (text, error) in [
        ("12Q ''", r#"t\.toml:3:10: domain\[0\]\.memory: "12Q" is not a size; write e\.g\. "512M"$"#),
        ("64G ''", r"t\.toml:3:10: domain\[0\]\.memory: 65536 MiB is more than the \d+ MiB that are free"),
        (r#"4M 'pool = "fast"'"#, r#"t\.toml:5:8: domain\[0\]\.pool: "fast" is no pool's name;"#),
        (r#"4M 'cpus = "700"'"#, r"t\.toml:5:8: domain\[0\]\.cpus: CPU 700 is not in the pool "),
        (
            r#"4M "$(printf 'period = "20ms"\nslice = "5ms"')""#,
            r"t\.toml:6:9: domain\[0\]\.slice: the pool .default. reserves nothing",
        ),
        (r#"4M 'devices = "all"'"#, r"t\.toml:5:11: domain\[0\]\.devices: PCI functions belong to"),
        (
            r#"4M 'disk = [{ path = "/a", backend = "x" }]'"#,
            r#"t\.toml: domain\[0\]: backend: no domain called "x" serves devices"#,
        ),
        (r#"4M 'name = "twice"'"#, r"t\.toml:5:1: not TOML"),
        (r#"4M 'initrd = "none"'"#, r#"t\.toml:5:10: domain\[0\]\.modules\[0\]\.file: "none": No such file"#),
    ] {
        command(&mut run, STEP, &format!("t {text}"), &[&format!("^caisson: {error}"), "^code 1$"])?;
    }
    let text = "caisson create none.toml; echo code $?";
    command(&mut run, STEP, text, &[r"^caisson: cannot read none\.toml: No such file", "^code 1$"])?;
    command(
        &mut run,
        STEP,
        "t 4M '' && caisson list | grep tiny",
        &["^tiny: created$", "^code 0$", "tiny +blocked"],
    )?;
    command(
        &mut run,
        STEP,
        "t 4M ''",
        &[r#"^caisson: t\.toml:2:8: domain\[0\]\.name: "tiny" is .* already"#, "^code 1$"],
    )?;
    // What one life of a domain takes has been taken now.
    let away = "away() { caisson destroy tiny && caisson forget tiny; }; away";
    command(&mut run, STEP, away, &["^tiny: destroyed$", "^tiny: forgotten$"])?;
    let free =
        r#"free() { caisson top -n 1 -d 0.1 --json | sed 's/.*"free_memory":\([0-9]*\).*/\1/'; }; free"#;
    command(&mut run, STEP, free, &[r"^\d+$"])?;
    let rounds = format!(
        "a=$(free); n=0; while [ $n -lt {ROUNDS} ]; do t 4M '' && away || break; n=$((n+1)); done >rounds; echo n=$n free=$a,$(free)"
    );
    run.expect_prompt(From::Raw, STEP, PROMPT)?;
    run.send(&format!("{rounds}\r"))?;
    let line = run.expect(From::Raw, BOOT * 2, r"^n=(\d+) free=(\d+),(\d+)$")?;
    ensure!(line.group(1) == ROUNDS.to_string(), "only {} of {ROUNDS} rounds", line.group(1));
    ensure!(line.group(2) == line.group(3), "free memory went from {} to {}", line.group(2), line.group(3));
    end(run)
}
