//! QEMU: its command line, its process, its monitor.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use caisson_config::source::Forward;

use crate::{
    emulator::Process,
    error::{Context, Error, Result},
    qmp::Qmp,
    serial::Serial,
    tools,
};

/// The emulator's program.
pub const PROGRAM: &str = "qemu-system-x86_64";

/// Caisson's boot word that names QEMU's way to end a run: the device `isa-debug-exit`.
pub const EXIT_WORD: &str = "exit=isa-debug:0xf4";

/// The device behind the port of [`EXIT_WORD`].
const EXIT_DEVICE: &str = "isa-debug-exit,iobase=0xf4,iosize=4";

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's CPU, through KVM.
    Kvm,
    /// QEMU's own translator.
    Tcg,
}

impl Accelerator {
    /// The name QEMU knows it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// What `-accel` is given. QEMU keeps up to 1 GiB of translations, and goes through all those of a page at each store into it: of pages
    /// whose code is mapped at other places in every process they become thousands, and clearing a guest's memory takes minutes.
    fn setting(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,tb-size=256",
        }
    }

    /// The CPU model that gives Caisson virtualisation. MONITOR is hidden under TCG: its MWAIT cannot be used.
    #[must_use]
    pub fn default_cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "EPYC,-monitor",
        }
    }
}

/// What starts the loader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, which QEMU brings.
    #[default]
    Bios,
    /// OVMF.
    Uefi,
}

/// What a machine runs first.
#[derive(Clone, Debug)]
pub enum Boot {
    /// A bootable ISO, through the machine's firmware.
    Iso(PathBuf),
    /// A Linux kernel on the bare machine, for comparison: through `qboot`, the shortest way to a kernel's entry.
    Linux {
        /// The bzImage.
        kernel: PathBuf,
        /// The initial RAM disk.
        initrd: PathBuf,
        /// The kernel's command line.
        cmdline: String,
    },
    /// A multiboot kernel on the bare machine, for comparison: another hypervisor.
    Multiboot {
        /// The kernel.
        kernel: PathBuf,
        /// Its command line.
        cmdline: String,
        /// Its modules, each with a command line.
        modules: Vec<(PathBuf, String)>,
    },
}

/// A disk of the machine: a namespace of its one NVMe disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The image: raw, or qcow2 when it is called so.
    pub path: PathBuf,
    /// What is written is kept; otherwise the image stays as it is.
    pub keep: bool,
}

/// A network card and the network behind it, which QEMU plays: 10.0.2.0/24, and out through 10.0.2.2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// TCP ports of this computer, and where they lead behind the card.
    pub forward: Vec<Forward>,
}

/// A machine to start.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What executes its instructions.
    pub accelerator: Accelerator,
    /// QEMU's name of its CPU.
    pub cpu: String,
    /// How many of them.
    pub cpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// What it runs first.
    pub boot: Boot,
    /// What starts the loader.
    pub firmware: Firmware,
    /// Namespaces of an NVMe disk.
    pub disks: Vec<Disk>,
    /// An Intel 82574L, if there is one.
    pub network: Option<Network>,
    /// With a number: an instruction takes 2 to the power of that nanoseconds, and every run is the same to the byte (TCG, one
    /// CPU). Memory is touched beforehand, which keeps the host's first-touch costs out.
    pub exact: Option<u32>,
    /// More arguments for QEMU, after all others.
    pub extra: Vec<OsString>,
    /// Where this run keeps its files: QEMU's messages, UEFI's variables.
    pub directory: PathBuf,
}

impl Machine {
    /// A BIOS machine of one CPU.
    #[must_use]
    pub fn new(accelerator: Accelerator, memory_mib: u64, boot: Boot, directory: PathBuf) -> Self {
        Self {
            accelerator,
            cpu: accelerator.default_cpu().to_owned(),
            cpus: 1,
            memory_mib,
            boot,
            firmware: Firmware::Bios,
            disks: Vec::new(),
            network: None,
            exact: None,
            extra: Vec::new(),
            directory,
        }
    }

    /// QEMU's arguments but for the connections. `firmware` are OVMF's code and this run's variable store.
    fn arguments(&self, firmware: Option<(&Path, &Path)>) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        let memory = self.memory_mib.to_string();
        add(&["-machine", "q35", "-accel", self.accelerator.setting(), "-cpu", &self.cpu, "-m", &memory]);
        if self.cpus > 1 {
            add(&["-smp", &self.cpus.to_string()]);
        }
        add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        add(&["-device", EXIT_DEVICE]);
        if let Some(shift) = self.exact {
            add(&[
                "-icount",
                &format!("shift={shift},sleep=off"),
                "-seed",
                "1",
                "-rtc",
                "base=2026-01-01,clock=vm",
            ]);
            add(&["-object", &format!("memory-backend-ram,id=ram,size={memory}M,prealloc=on")]);
            add(&["-machine", "memory-backend=ram"]);
        }
        if let Some((code, variables)) = firmware {
            for (unit, rights, path) in [(0, "readonly=on,", code), (1, "", variables)] {
                let mut drive = OsString::from(format!("if=pflash,unit={unit},format=raw,{rights}file="));
                drive.push(escape_commas(path));
                arguments.extend(["-drive".into(), drive]);
            }
        }
        match &self.boot {
            Boot::Iso(iso) => {
                let mut cdrom = OsString::from("if=ide,media=cdrom,format=raw,readonly=on,file=");
                cdrom.push(escape_commas(iso));
                arguments.extend(["-drive".into(), cdrom]);
            }
            Boot::Linux { kernel, initrd, cmdline } => {
                arguments.extend(["-bios".into(), "qboot.rom".into(), "-kernel".into(), kernel.into()]);
                arguments.extend(["-initrd".into(), initrd.into(), "-append".into(), cmdline.into()]);
            }
            Boot::Multiboot { kernel, cmdline, modules } => {
                let module = |(path, words): &(PathBuf, String)| {
                    let mut module = escape_commas(path);
                    module.push(format!(" {}", words.replace(',', ",,")).trim_end());
                    module
                };
                let modules: Vec<OsString> = modules.iter().map(module).collect();
                arguments.extend(["-kernel".into(), kernel.into(), "-append".into(), cmdline.into()]);
                arguments.extend(["-initrd".into(), modules.join(",".as_ref())]);
            }
        }
        self.add_devices(&mut arguments);
        arguments.extend(self.extra.iter().cloned());
        arguments
    }

    fn add_devices(&self, arguments: &mut Vec<OsString>) {
        if !self.disks.is_empty() {
            arguments.extend(["-device".into(), "nvme,id=nvme,serial=caisson".into()]);
        }
        for (number, disk) in (1..).zip(&self.disks) {
            let format =
                if disk.path.extension().is_some_and(|end| end == "qcow2") { "qcow2" } else { "raw" };
            let snapshot = if disk.keep { "" } else { "snapshot=on," };
            let mut drive =
                OsString::from(format!("if=none,id=disk{number},format={format},{snapshot}file="));
            drive.push(escape_commas(&disk.path));
            let device = format!("nvme-ns,bus=nvme,drive=disk{number},nsid={number}");
            arguments.extend(["-drive".into(), drive, "-device".into(), device.into()]);
        }
        if let Some(network) = &self.network {
            let mut user = "user,id=network".to_owned();
            for Forward { port, to } in &network.forward {
                user.push_str(&format!(",hostfwd=tcp:127.0.0.1:{port}-{}:{}", to.ip(), to.port()));
            }
            // It is not started from.
            let card = "e1000e,netdev=network,romfile=";
            arguments.extend(["-netdev".into(), user.into(), "-device".into(), card.into()]);
        }
    }

    /// Starts it, with the first serial port on the returned handle.
    ///
    /// # Errors
    /// When QEMU or its firmware is missing, or cannot be started.
    pub fn start(&self) -> Result<Qemu> {
        tools::ensure([&tools::QEMU])?;
        fs::create_dir_all(&self.directory).cannot(|| format!("make {}", self.directory.display()))?;
        let firmware = match self.firmware {
            Firmware::Bios => None,
            Firmware::Uefi => Some(uefi_files(&self.directory)?),
        };
        let arguments =
            self.arguments(firmware.as_ref().map(|(code, vars)| (code.as_path(), vars.as_path())));
        Qemu::spawn(arguments, &self.directory)
    }
}

/// OVMF's code, and a fresh copy of its empty variable store.
fn uefi_files(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    tools::ensure([&tools::OVMF])?;
    let code = tools::OVMF_CODE
        .iter()
        .find(|path| Path::new(path).exists())
        .ok_or_else(|| Error::Failed("the package ovmf holds no OVMF_CODE file".to_owned()))?;
    let template = code.replace("_CODE", "_VARS");
    let variables = directory.join("uefi-variables.fd");
    let content = fs::read(&template).cannot(|| format!("read {template}"))?;
    fs::write(&variables, content).cannot(|| format!("write {}", variables.display()))?;
    Ok((PathBuf::from(code), variables))
}

/// In QEMU's options a comma ends a value; two stand for one.
fn escape_commas(path: &Path) -> OsString {
    path.to_string_lossy().replace(',', ",,").into()
}

/// A running QEMU. Dropping it kills the process; so does the end, of whatever kind, of the thread that started it.
#[derive(Debug)]
pub struct Qemu {
    process: Process,
    serial: Serial,
    monitor: Option<UnixStream>,
    messages: PathBuf,
}

impl Qemu {
    /// Starts QEMU with `arguments`, adding the serial port, the monitor connection and a file for its messages.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn(arguments: Vec<OsString>, directory: &Path) -> Result<Self> {
        let pair = || UnixStream::pair().cannot(|| "make a socket".to_owned());
        let (serial, serial_end) = pair()?;
        let (monitor, monitor_end) = pair()?;
        let duplicate = serial_end.try_clone().cannot(|| "duplicate a socket".to_owned())?;
        let messages = directory.join("qemu.log");
        let log = File::create(&messages).cannot(|| format!("write {}", messages.display()))?;
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .args(["-chardev", "stdio,id=com1,signal=off", "-serial", "chardev:com1"])
            .arg("-chardev")
            .arg(format!("socket,id=monitor,fd={}", monitor_end.as_raw_fd()))
            .args(["-mon", "chardev=monitor,mode=control"])
            .stdin(Stdio::from(OwnedFd::from(serial_end)))
            .stdout(Stdio::from(OwnedFd::from(duplicate)))
            .stderr(log);
        let process = Process::start(command, Some(monitor_end.into()), "QEMU")?;
        Ok(Self { process, serial: Serial::Pair(serial), monitor: Some(monitor), messages })
    }

    /// The first serial port.
    #[must_use]
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// The monitor connection; it can be taken once.
    ///
    /// # Errors
    /// When it was taken before, or QEMU has ended.
    pub fn monitor(&mut self) -> Result<Qmp> {
        let stream =
            self.monitor.take().ok_or_else(|| Error::Failed("QEMU's monitor is in use".to_owned()))?;
        Qmp::greet(stream, Duration::from_secs(10))
    }

    /// Waits for its end, which is near: the serial port is closed already. One that lingers is killed.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn wait_closing(&mut self) -> Result<ExitStatus> {
        self.process.wait_closing()
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// What QEMU itself complained about, without its remarks on CPU features that TCG leaves out.
    #[must_use]
    pub fn messages(&self) -> String {
        let text = fs::read_to_string(&self.messages).unwrap_or_default();
        let lines: Vec<&str> =
            text.lines().filter(|line| !line.contains("TCG doesn't support requested feature")).collect();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine::new(Accelerator::Tcg, 512, Boot::Iso("/t/a,b.iso".into()), "/t/run".into())
    }

    fn line(machine: &Machine, firmware: Option<(&Path, &Path)>) -> String {
        let words: Vec<String> =
            machine.arguments(firmware).iter().map(|word| word.to_string_lossy().into_owned()).collect();
        words.join(" ")
    }

    #[test]
    fn the_usual_machine() {
        let line = line(&machine(), None);
        for part in [
            "-machine q35 -accel tcg,tb-size=256 -cpu EPYC,-monitor -m 512",
            "-nodefaults",
            "-no-reboot",
            "-device isa-debug-exit,iobase=0xf4,iosize=4",
            "file=/t/a,,b.iso",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(!line.contains("-icount") && !line.contains("pflash"));
    }

    #[test]
    fn the_exact_machine_counts_instructions() {
        let line = line(&Machine { exact: Some(0), ..machine() }, None);
        for part in [
            "-icount shift=0,sleep=off",
            "-seed 1",
            "-rtc base=2026-01-01,clock=vm",
            "memory-backend-ram,id=ram,size=512M,prealloc=on -machine memory-backend=ram",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn uefi_code_is_read_only_and_variables_are_the_runs_own() {
        let line = line(&machine(), Some((Path::new("/o/CODE.fd"), Path::new("/t/run/vars.fd"))));
        assert!(line.contains("-drive if=pflash,unit=0,format=raw,readonly=on,file=/o/CODE.fd"), "{line}");
        assert!(line.contains("-drive if=pflash,unit=1,format=raw,file=/t/run/vars.fd"), "{line}");
    }

    #[test]
    fn a_bare_linux_goes_without_an_iso() {
        let boot = Boot::Linux { kernel: "/k".into(), initrd: "/i".into(), cmdline: "quiet x=1".into() };
        let line = line(&Machine { boot, ..machine() }, None);
        assert!(line.ends_with("-bios qboot.rom -kernel /k -initrd /i -append quiet x=1"), "{line}");
        assert!(!line.contains("cdrom"));
    }

    #[test]
    fn modules_of_a_multiboot_kernel_have_command_lines() {
        let modules = vec![("/m".into(), "console=a,b".to_owned()), ("/n,o".into(), String::new())];
        let boot = Boot::Multiboot { kernel: "/k".into(), cmdline: "x,y".into(), modules };
        let line = line(&Machine { boot, ..machine() }, None);
        assert!(line.ends_with("-kernel /k -append x,y -initrd /m console=a,,b,/n,,o"), "{line}");
    }

    #[test]
    fn disks_are_namespaces_of_one_and_the_card_has_a_network() {
        let disks = [("/t/a,b.img", false), ("/t/c.qcow2", true)];
        let disks = disks.map(|(path, keep)| Disk { path: path.into(), keep }).to_vec();
        let forward = vec![Forward { port: 8080, to: "10.0.2.20:80".parse().unwrap() }];
        let line = line(&Machine { disks, network: Some(Network { forward }), ..machine() }, None);
        for part in [
            "-device nvme,id=nvme,serial=caisson ",
            "-drive if=none,id=disk1,format=raw,snapshot=on,file=/t/a,,b.img -device nvme-ns,bus=nvme,drive=disk1,nsid=1 ",
            "-drive if=none,id=disk2,format=qcow2,file=/t/c.qcow2 -device nvme-ns,bus=nvme,drive=disk2,nsid=2 ",
            "-netdev user,id=network,hostfwd=tcp:127.0.0.1:8080-10.0.2.20:80 -device e1000e,netdev=network,romfile=",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        let plain = self::line(&machine(), None);
        assert!(!plain.contains("nvme") && !plain.contains("-netdev"));
    }

    #[test]
    fn extra_arguments_come_last() {
        let line = line(&Machine { extra: vec!["-smp".into(), "4".into()], ..machine() }, None);
        assert!(line.ends_with(" -smp 4"), "{line}");
        assert!(!self::line(&machine(), None).contains("-smp"));
        assert!(self::line(&Machine { cpus: 3, ..machine() }, None).contains(" -smp 3 "));
    }
}
