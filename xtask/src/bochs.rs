//! Bochs, the one emulator of Intel's VT-x with EPT: its configuration, its process, and what its end means.
//!
//! - *Configuration*: a file in the run's directory, which is Bochs's current directory, so that no path needs quoting in
//!   Bochs's language. The machine is an i440FX with a CD; the serial port is a connection that Bochs makes to a port of
//!   ours, the one of its modes that carries both directions without losing bytes.
//! - *Start*: the distribution's Bochs has its debugger in, which stops before the first instruction; a command file has it
//!   go on, and quit when it stops again, which it does when the machine is reset.
//! - *End*: Caisson gives its result to the debug port, which Bochs shows on its standard output, and ends Bochs by its
//!   shutdown port (boot word `exit=bochs`). Bochs's own exit code is 1 whatever happened.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::{fs::symlink, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use caisson_config::source::ConfigText;

use crate::{
    emulator::Process,
    error::{Context, Error, Result},
    outcome::Outcome,
    serial::Serial,
    tools,
};

/// The emulator's program; the wrapper `bochs` of the same package is for people.
pub const PROGRAM: &str = "bochs-bin";

/// Caisson's boot word that names Bochs's way to end a run.
pub const EXIT_WORD: &str = "exit=bochs";

/// Caisson's boot word that leaves out what Bochs has and gets wrong: up to version 3.0 at least it delivers a virtual
/// interrupt to a guest that has interrupts off when a physical one comes. The last `without=` counts, so that another one
/// overrides it.
pub const WITHOUT_WORD: &str = "without=virtual-interrupts";

/// The CPU model that has EPT, VPID, unrestricted guests and virtual-interrupt delivery, and whose CPUID does not claim a
/// TSC frequency that its TSC does not keep, as later models do.
pub const DEFAULT_CPU: &str = "corei7_haswell_4770";

/// Bochs's CPU models by what they have of virtualisation.
const MODELS: &[(&str, &[&str])] = &[
    (
        "emulated Intel VT-x",
        &[
            "corei5_arrandale_m520",
            "corei7_sandy_bridge_2600k",
            "corei7_ivy_bridge_3770k",
            "corei7_haswell_4770",
            "broadwell_ult",
            "corei7_skylake_x",
            "corei3_cnl",
            "corei7_icelake_u",
            "tigerlake",
        ],
    ),
    ("emulated AMD-V", &["phenom_8650_toliman", "zambezi", "trinity_apu", "ryzen"]),
    (
        "emulated, without the virtualisation that Caisson needs",
        &[
            "pentium",
            "pentium_mmx",
            "amd_k6_2_chomper",
            "p2_klamath",
            "p3_katmai",
            "p4_willamette",
            "core_duo_t2400_yonah",
            "atom_n270",
            "p4_prescott_celeron_336",
            "athlon64_clawhammer",
            "athlon64_venice",
            "turion64_tyler",
            "core2_penryn_t9600",
            "corei5_lynnfield_750",
        ],
    ),
];

/// Bochs's BIOS finds no room for its tables in less.
const LEAST_MEMORY_MIB: u64 = 256;

/// What keeps Linux from work that costs an interpreter many seconds and says nothing about Caisson: mitigations, timer
/// and TSC checks against each other, self-tests of the cryptography, security modules, auditing, and messages.
const LINUX_WORDS: &[&str] =
    &["mitigations=off", "no_timer_check", "tsc=reliable", "cryptomgr.notests", "lsm=", "audit=0", "quiet"];

/// File names in a run's directory.
mod file {
    pub(super) const CONFIG: &str = "bochsrc";
    pub(super) const COMMANDS: &str = "bochs.commands";
    pub(super) const MEDIUM: &str = "bochs.iso";
    pub(super) const OUTPUT: &str = "bochs.out";
    pub(super) const LOG: &str = "bochs.log";
}

/// What a line of the standard output begins with that tells Caisson's result.
const RESULT: &str = "caisson-result: 0x";

/// Instructions that each CPU executes in a second of the machine's time; a tick of its TSC each.
pub const INSTRUCTIONS_PER_SECOND: u64 = 50_000_000;

/// How long Bochs may take to connect its serial port, which it does before the machine starts.
const CONNECT: Duration = Duration::from_secs(60);

/// A machine to start.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Bochs's name of its CPU model; options of Bochs's `cpu` line may follow, as in `corei7_skylake_x,count=2`.
    pub cpu: String,
    /// How many of them; the distribution's Bochs has to be built for more than one.
    pub cpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Its BIOS: a file of the machine's directory, or one of Bochs's own.
    pub bios: String,
    /// The bootable ISO.
    pub iso: PathBuf,
    /// Where this run keeps its files.
    pub directory: PathBuf,
}

impl Machine {
    /// A machine of one CPU.
    #[must_use]
    pub fn new(memory_mib: u64, iso: PathBuf, directory: PathBuf) -> Self {
        Self {
            cpu: DEFAULT_CPU.to_owned(),
            cpus: 1,
            memory_mib,
            bios: tools::BOCHS_BIOS.to_owned(),
            iso,
            directory,
        }
    }

    /// What the CPU model is said to have, for people.
    #[must_use]
    pub fn virtualisation(&self) -> &'static str {
        let model = self.cpu.split(',').next().unwrap_or_default();
        match MODELS.iter().find(|(_, models)| models.contains(&model)) {
            Some((what, _)) => what,
            None => "of a CPU model that Bochs may know",
        }
    }

    /// The configuration; `port` is where the serial port finds us.
    fn configuration(&self, port: u16) -> Result<String> {
        if !self.cpu.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_,=".contains(&byte)) {
            return Err(Error::Usage(format!(
                "--cpu {}: Bochs's models are words like {DEFAULT_CPU}; `bochs-bin -help cpu` lists them",
                self.cpu
            )));
        }
        let (cpu, memory) = (&self.cpu, self.memory_mib.max(LEAST_MEMORY_MIB));
        let count = if self.cpus > 1 { format!(", count={}", self.cpus) } else { String::new() };
        Ok(format!(
            "# Written by cargo xtask for one run.
config_interface: textconfig
display_library: term
romimage: file={bios}
vgaromimage: file={vga}
# Asked for a frame buffer, GRUB overwrites its own heap with what this VGA BIOS answers to VESA calls.
vga: extension=none
megs: {memory}
# A reset ends the run. Reading an unknown MSR is an error, as on a real CPU.
cpu: model={cpu}{count}, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, ignore_bad_msrs=0
# Time is counted in instructions, and an idle machine skips it.
clock: sync=none, time0=utc
ata0: enabled=1
ata0-master: type=cdrom, path={medium}, status=inserted
boot: cdrom
com1: enabled=1, mode=socket-client, dev=127.0.0.1:{port}
# Bochs aborts on a host without a sound card when it opens one.
plugin_ctrl: speaker=0
port_e9_hack: enabled=1
magic_break: enabled=0
log: {log}
panic: action=fatal
# Tells why a VM entry failed.
error: action=report
info: action=ignore
debug: action=ignore
",
            bios = self.bios,
            vga = tools::BOCHS_VGA_BIOS,
            medium = file::MEDIUM,
            log = file::LOG,
        ))
    }

    /// Starts it, with the first serial port on the returned handle.
    ///
    /// # Errors
    /// When Bochs is missing, cannot be started, or does not like its configuration.
    pub fn start(&self) -> Result<Bochs> {
        tools::ensure(tools::BOCHS)?;
        fs::create_dir_all(&self.directory).cannot(|| format!("make {}", self.directory.display()))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        let listener = listener.cannot(|| "listen for Bochs's serial port".to_owned())?;
        let port = listener.local_addr().cannot(|| "find our own port".to_owned())?.port();
        self.fill_directory(&self.configuration(port)?)
            .cannot(|| format!("fill {}", self.directory.display()))?;
        let output = self.directory.join(file::OUTPUT);
        let output = File::create(&output).cannot(|| format!("write {}", output.display()))?;
        let errors = output.try_clone().cannot(|| "duplicate a file".to_owned())?;
        let mut command = Command::new(PROGRAM);
        command
            .args(["-q", "-f", file::CONFIG, "-rc", file::COMMANDS])
            .current_dir(&self.directory)
            // The display goes to a terminal of Bochs's own making, of this kind.
            .env("TERM", "vt100")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let mut process = Process::start(command, None, "Bochs")?;
        match connection(&listener, &mut process)? {
            Some(serial) => {
                Ok(Bochs { process, serial: Serial::Connection(serial), directory: self.directory.clone() })
            }
            None => {
                process.kill();
                Err(Error::Tool {
                    line: format!(
                        "Bochs does not start: see {}",
                        self.directory.join(file::OUTPUT).display()
                    ),
                    output: complaints(&self.directory),
                })
            }
        }
    }

    fn fill_directory(&self, configuration: &str) -> io::Result<()> {
        let path = |name| self.directory.join(name);
        fs::write(path(file::CONFIG), configuration)?;
        fs::write(path(file::COMMANDS), "continue\nquit\n")?;
        let medium = path(file::MEDIUM);
        if medium.is_symlink() {
            fs::remove_file(&medium)?;
        }
        symlink(std::path::absolute(&self.iso)?, medium)
    }
}

/// The connection that Bochs makes for its serial port; `None` when it ends or takes too long.
fn connection(listener: &TcpListener, process: &mut Process) -> Result<Option<TcpStream>> {
    let deadline = Instant::now() + CONNECT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let ready = stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true));
                return ready.map(|()| Some(stream)).cannot(|| "set up the serial line".to_owned());
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).cannot(|| "connect the serial line".to_owned()),
        }
        if process.try_wait()?.is_some() || Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A running Bochs. Dropping it kills the process; so does the end, of whatever kind, of the thread that started it.
#[derive(Debug)]
pub struct Bochs {
    process: Process,
    serial: Serial,
    directory: PathBuf,
}

impl Bochs {
    /// The first serial port.
    #[must_use]
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// How it ended, once its serial port is closed. One that lingers is killed.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn end(&mut self) -> Result<Outcome> {
        let status = self.process.wait_closing()?;
        let (output, log) = (read(&self.directory, file::OUTPUT), read(&self.directory, file::LOG));
        Ok(outcome(status, &output, &log))
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// What Bochs itself complained about.
    #[must_use]
    pub fn messages(&self) -> String {
        complaints(&self.directory)
    }
}

fn read(directory: &Path, name: &str) -> String {
    fs::read(directory.join(name))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// What the end of Bochs with `status` means, by its standard output and its log.
fn outcome(status: ExitStatus, output: &str, log: &str) -> Outcome {
    let result = output.lines().rev().find_map(|line| line.trim().strip_prefix(RESULT));
    if let Some(outcome) = result.and_then(|digits| Outcome::of_result(u8::from_str_radix(digits, 16).ok()?))
    {
        return outcome;
    }
    // The debugger quits by itself after a reset; the machine was turned off by ACPI; a triple fault.
    let ended = ["soft power off", "exception with no resolution"].iter().any(|end| log.contains(end));
    match (status.code(), status.signal()) {
        (Some(0), _) => Outcome::NoResult,
        (Some(_), _) if ended => Outcome::NoResult,
        (Some(code), _) => Outcome::Emulator(code),
        (None, signal) => Outcome::Signal(signal.unwrap_or_default()),
    }
}

/// How many of Bochs's complaints are shown.
const SHOWN: usize = 10;

/// The last of Bochs's complaints that can matter: what ended it, and failures of VM entries and VMX instructions.
fn complaints(directory: &Path) -> String {
    let log = read(directory, file::LOG) + &read(directory, file::OUTPUT);
    let matters = |line: &&str| {
        (line.contains(">>PANIC<<") && !line.contains("shutdown requested"))
            || ["VMFAIL", "VMENTER FAIL", "VMABORT"].iter().any(|word| line.contains(word))
    };
    let lines: Vec<&str> = log.lines().filter(matters).collect();
    lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default().join("\n")
}

/// Adds to the command lines of the guests with our initial RAM disk what makes Linux boot in bearable time, but for
/// settings that are there already; gives the names of those guests.
pub fn hurry(config: &mut ConfigText) -> Vec<String> {
    let ours = |file: &str| file == "@initrd" || file == "@driver-initrd";
    let mut changed = Vec::new();
    for domain in &mut config.domains {
        if !domain.modules.iter().any(|module| ours(&module.file)) {
            continue;
        }
        let key = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
        let there: Vec<String> = domain.cmdline.split_whitespace().map(key).collect();
        for word in LINUX_WORDS.iter().filter(|word| !there.contains(&key(word))) {
            domain.cmdline = format!("{} {word}", domain.cmdline).trim_start().to_owned();
        }
        changed.push(domain.name.clone());
    }
    changed
}

/// The line that tells a person what [`hurry`] did to the guests of these names.
#[must_use]
pub fn hurry_remark(names: &[String]) -> String {
    format!("Bochs is slow: {} gets {}", names.join(", "), LINUX_WORDS.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_config::source::parse_toml;

    fn machine() -> Machine {
        Machine::new(128, "/t/a.iso".into(), "/t/run".into())
    }

    fn exited(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[test]
    fn the_configuration_describes_the_machine() {
        let text = machine().configuration(4711).unwrap();
        for line in [
            "megs: 256",
            "cpu: model=corei7_haswell_4770, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=0",
            "ata0-master: type=cdrom, path=bochs.iso, status=inserted",
            "com1: enabled=1, mode=socket-client, dev=127.0.0.1:4711",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
        let large = Machine { memory_mib: 704, cpu: "corei7_skylake_x,count=2".into(), ..machine() };
        let text = large.configuration(1).unwrap();
        assert!(
            text.contains("megs: 704\n") && text.contains("model=corei7_skylake_x,count=2, ips="),
            "{text}"
        );
    }

    #[test]
    fn each_model_is_told_by_what_it_has() {
        let told = |cpu: &str| Machine { cpu: cpu.into(), ..machine() }.virtualisation();
        assert_eq!(told(DEFAULT_CPU), "emulated Intel VT-x");
        assert_eq!(told("corei7_skylake_x,count=2"), "emulated Intel VT-x");
        assert_eq!(told("ryzen"), "emulated AMD-V");
        for cpu in ["pentium", "core2_penryn_t9600", "turion64_tyler"] {
            assert!(told(cpu).contains("without"), "{cpu}");
        }
        assert!(told("bx_generic").contains("may"));
    }

    #[test]
    fn a_model_cannot_break_out_of_its_line() {
        for cpu in ["x\nlog: /etc/passwd", "x y", "$HOME", "EPYC,-monitor"] {
            let bad = Machine { cpu: cpu.into(), ..machine() };
            assert_eq!(bad.configuration(1).unwrap_err().exit_code(), 2, "{cpu:?}");
        }
    }

    #[test]
    fn results_come_through_the_debug_port() {
        for (code, expected) in [
            ("0x10", Outcome::Clean),
            ("0x11", Outcome::GuestFailed),
            ("0x12", Outcome::Refused),
            ("0x13", Outcome::Panicked),
        ] {
            let output =
                format!("Next at t=0\n(0) [0x0] jmpf\n\ncaisson-result: {code}\n====\nBochs is exiting\n");
            assert_eq!(outcome(exited(1), &output, ""), expected);
        }
    }

    #[test]
    fn an_end_without_a_result_is_a_failure() {
        let off = "0p[ACPI  ] >>PANIC<< ACPI control: soft power off\n";
        let fault = "0p[CPU0  ] >>PANIC<< exception(): 3rd (13) exception with no resolution\n";
        for (status, output, log, expected) in [
            (exited(0), "(0).[1] reset\n", "", Outcome::NoResult),
            (exited(1), "", off, Outcome::NoResult),
            (exited(1), "", fault, Outcome::NoResult),
            (exited(1), "caisson-result: 0x99\n", "", Outcome::Emulator(1)),
            (exited(1), "", "0p[      ] >>PANIC<< bochsrc:6: bad\n", Outcome::Emulator(1)),
            (ExitStatus::from_raw(9), "", "", Outcome::Signal(9)),
        ] {
            assert_eq!(outcome(status, output, log), expected, "{output}{log}");
        }
    }

    #[test]
    fn only_our_own_linux_guests_are_hurried() {
        let text = "[[domain]]\nname = \"a\"\nmemory = \"64M\"\nkernel = \"@linux\"\ninitrd = \"@initrd\"\n\
                    cmdline = \"console=ttyS0 tsc=unstable\"\n\
                    [[domain]]\nname = \"b\"\nmemory = \"64M\"\nkernel = \"@memtest\"\n";
        let mut config = parse_toml(text, "t.toml").unwrap();
        assert_eq!(hurry(&mut config), ["a"]);
        let words = &config.domains[0].cmdline;
        assert!(words.starts_with("console=ttyS0 tsc=unstable mitigations=off "), "{words}");
        assert!(!words.contains("tsc=reliable") && words.ends_with(" quiet"), "{words}");
        assert_eq!(config.domains[1].cmdline, "");
        let before = config.clone();
        hurry(&mut config);
        assert_eq!(config, before);
    }
}
