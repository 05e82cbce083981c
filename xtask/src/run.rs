//! `cargo xtask run`: from the source tree to the guest's console. `cargo xtask image`: the same ISO for elsewhere.

use std::{
    fs,
    fs::File,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use caisson_config::source::{EmulatorText, Forward};

use crate::{
    accel, bochs,
    cli::{AccelArg, FirmwareArg, ImageArgs, MachineArg, MachineArgs, RunArgs},
    config::{self, Loaded},
    console::{self, Input},
    disk,
    emulator::{Kind, Running},
    error::{Context, Error, Result},
    images::Images,
    outcome::Outcome,
    paths::{Workspace, prune},
    qemu::{Accelerator, Boot, Disk, Firmware, Machine, Network},
    size::{MIB, Size},
    stamp, tools,
};

/// The limit of a headless run that sets none, on QEMU.
const HEADLESS_LIMIT: Duration = Duration::from_secs(300);

/// How many ISOs, and logs of runs, are kept for long.
const KEPT: usize = 16;

/// What the machine needs beside the guests' memory and the config blob: firmware, loader, Caisson, page tables.
const HEADROOM: u64 = 192 * MIB;

/// The memory of a machine, in MiB, for guests of `guests` bytes that start from a blob of `blob` bytes. While the
/// loader unpacks it, the blob may lie in memory twice.
#[must_use]
pub fn machine_memory_mib(guests: u64, blob: u64) -> u64 {
    let bytes = guests.saturating_add(blob.saturating_mul(2)).saturating_add(HEADROOM);
    bytes.div_ceil(64 * MIB).saturating_mul(64)
}

/// Checks that a machine of `machine` bytes has room for the guests beside Caisson, whose image ends at address
/// `image_end`, and its blob. By a little, which the firmware keeps, Caisson itself may still find it too small.
///
/// # Errors
/// When it has not, with what would do.
fn check_memory(machine: Size, config: &Loaded, image_end: u64, blob: u64) -> Result<()> {
    // The emulators take whole MiB.
    let left = caisson_frames::left_for_guests(machine.mib() * MIB, image_end, blob);
    let wanted = config.memory();
    if wanted <= left {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--machine-memory: {machine} leaves at most {} MiB for guests, and those of {} want {} MiB: give the machine {} MiB",
        left / MIB,
        config.text.file,
        wanted.div_ceil(MIB),
        machine_memory_mib(wanted, blob)
    )))
}

/// Which emulator the arguments ask for.
///
/// # Errors
/// When they ask for what only another one has.
fn kind(args: &MachineArgs) -> Result<Kind> {
    if args.machine == MachineArg::Qemu {
        return Ok(Kind::Qemu);
    }
    let only_qemu = [
        ("--accel", args.accel != AccelArg::Auto),
        ("--firmware uefi", args.firmware == FirmwareArg::Uefi),
        ("--disk", !args.disk.is_empty()),
        ("--nic", args.nic),
        ("--qemu-arg", !args.qemu_arg.is_empty()),
    ];
    match only_qemu.iter().find(|(_, given)| *given) {
        Some((option, _)) => {
            Err(Error::Usage(format!("{option} is QEMU's: leave it away, or take --machine qemu")))
        }
        None => Ok(Kind::Bochs),
    }
}

/// How large a machine is, and what else it has.
#[derive(Clone, Debug)]
struct Extent {
    cpus: u32,
    memory_mib: u64,
    disks: Vec<Disk>,
    network: Option<Network>,
}

/// The network card that the config and the command line ask for. A port of this computer that is in use is left to who uses
/// it: the next free one leads there.
fn network(config: &Loaded, args: &MachineArgs) -> Option<Network> {
    let wanted = &config.text.emulator;
    if !wanted.network && !args.nic {
        return None;
    }
    let mut forward = Vec::new();
    for &Forward { port, to } in &wanted.forward {
        let free = |port: &u16| {
            let taken = forward.iter().any(|other: &Forward| other.port == *port);
            !taken && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
        };
        match (port..=port.saturating_add(NEAR_PORTS)).find(free) {
            Some(port) => {
                eprintln!("  localhost:{port} leads to {to}");
                forward.push(Forward { port, to });
            }
            None => eprintln!("  nothing leads to {to}: the ports from {port} on are in use"),
        }
    }
    Some(Network { forward })
}

/// How far from the port that a config asks for another may be.
const NEAR_PORTS: u16 = 20;

/// What runs the machine.
enum Emulator {
    /// QEMU, with the line that says why it is this accelerator.
    Qemu {
        accelerator: Accelerator,
        why: String,
    },
    Bochs,
}

/// As many CPUs as the guests' vCPUs can use at once and this host has. Bochs executes all of them in one thread, where more
/// than one make nothing faster. QEMU's translator gets one more than several, the first, which runs no guest: it loses what
/// the first CPU knows of a guest now and then when another restores the FPU (docs/testing.md, "What QEMU gets wrong").
fn default_cpus(config: &mut Loaded, emulator: &Emulator) -> u32 {
    let host = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    let cpus = config.vcpus().clamp(1, host);
    match emulator {
        Emulator::Bochs => 1,
        Emulator::Qemu { accelerator: Accelerator::Tcg, .. } if cpus > 1 && config.leave_first_cpu(cpus) => {
            eprintln!(
                "  CPUs: {cpus} for the guests, and QEMU's first one, which it gets wrong, without any"
            );
            cpus + 1
        }
        Emulator::Qemu { .. } => cpus,
    }
}

/// The accelerator for what the arguments ask.
///
/// # Errors
/// See [`accel::choose`].
fn accelerator(workspace: &Workspace, args: &MachineArgs) -> Result<(Accelerator, String)> {
    let choice = match args.accel {
        AccelArg::Auto => accel::Choice::Auto,
        AccelArg::Kvm => accel::Choice::Kvm,
        AccelArg::Tcg => accel::Choice::Tcg,
    };
    accel::choose(workspace, choice)
}

/// Starts the machine that the arguments describe.
///
/// # Errors
/// When the emulator cannot be started.
fn start(
    args: &MachineArgs,
    emulator: Emulator,
    size: Extent,
    iso: PathBuf,
    directory: PathBuf,
) -> Result<Running> {
    match emulator {
        Emulator::Qemu { accelerator, why } => {
            eprintln!("  accelerator: {why}");
            Ok(Running::Qemu(qemu(args, accelerator, size, iso, directory).start()?))
        }
        Emulator::Bochs => {
            let mut machine = bochs::Machine::new(size.memory_mib, iso, directory);
            machine.cpus = size.cpus;
            if let Some(cpu) = &args.cpu {
                machine.cpu.clone_from(cpu);
            }
            eprintln!("  machine: Bochs ({}), CPU model {}", machine.virtualisation(), machine.cpu);
            Ok(Running::Bochs(machine.start()?))
        }
    }
}

fn qemu(
    args: &MachineArgs,
    accelerator: Accelerator,
    size: Extent,
    iso: PathBuf,
    directory: PathBuf,
) -> Machine {
    let mut machine = Machine::new(accelerator, size.memory_mib, Boot::Iso(iso), directory);
    machine.cpus = size.cpus;
    machine.disks = size.disks;
    machine.network = size.network;
    if let Some(cpu) = &args.cpu {
        machine.cpu.clone_from(cpu);
    }
    machine.firmware = match args.firmware {
        FirmwareArg::Bios => Firmware::Bios,
        FirmwareArg::Uefi => Firmware::Uefi,
    };
    machine.extra = args.qemu_arg.iter().map(Into::into).collect();
    machine
}

/// Runs `cargo xtask run`.
///
/// # Errors
/// What keeps the machine from being started; how it ended is the outcome.
pub fn command(workspace: &Workspace, args: &RunArgs) -> Result<Outcome> {
    let images = Images::new(workspace.clone());
    let kind = kind(&args.machine)?;
    let usual = match kind {
        Kind::Qemu if args.config.guest.is_empty() => config::DEFAULT,
        _ => config::ONE_GUEST,
    };
    let mut config = config::load(workspace, args.config.config.as_deref().unwrap_or(usual))?;
    config.apply(&args.config.guest)?;
    if kind == Kind::Bochs && config.text.emulator != EmulatorText::default() {
        return Err(Error::Usage(format!(
            "{}: emulator: the disks and the network card are QEMU's: take --machine qemu, or another config",
            config.text.file
        )));
    }
    let machine_memory = args.machine.machine_memory;
    if let Some(size) = machine_memory {
        // What no machine can hold needs no building to be told.
        check_memory(size, &config, 0, 0)?;
    }
    let emulator = match kind {
        Kind::Qemu => {
            tools::ensure(tools::for_run(args.machine.firmware == FirmwareArg::Uefi))?;
            // On a host that has nothing of use, before anything is built.
            let (accelerator, why) = accelerator(workspace, &args.machine)?;
            Emulator::Qemu { accelerator, why }
        }
        Kind::Bochs => {
            tools::ensure(tools::for_bochs())?;
            Emulator::Bochs
        }
    };
    if args.headless {
        config::without_a_person(&mut config.text);
    }
    if kind == Kind::Bochs {
        let hurried = bochs::hurry(&mut config.text);
        if !hurried.is_empty() {
            eprintln!("  {}", bochs::hurry_remark(&hurried));
        }
    }
    let cpus = match args.machine.cpus {
        Some(cpus) => cpus,
        None => default_cpus(&mut config, &emulator),
    };
    let blob = config.blob(&images)?;
    if let Some(size) = machine_memory {
        check_memory(size, &config, images.caisson_end()?, blob.len() as u64)?;
    }
    let cmdline = kind.boot_words(&args.config.hv_cmdline);
    let run = format!("{:?} {:?} {}", args.config, args.machine.machine, args.headless);
    let iso = images.iso(&blob, &cmdline, iso_path(workspace, &run)?)?;

    let size = Extent {
        cpus,
        memory_mib: match machine_memory {
            Some(size) => size.mib(),
            None => machine_memory_mib(config.memory(), blob.len() as u64),
        },
        disks: disk::of(workspace, &config.text.emulator, &config.folder, &args.machine.disk)?,
        network: network(&config, &args.machine),
    };
    let runs = workspace.dir("runs")?;
    prune(&runs, KEPT);
    let directory = runs.join(std::process::id().to_string());
    if !args.headless {
        eprintln!("  Ctrl-A x quits, Ctrl-A c switches consoles, Ctrl-A a sends Ctrl-A");
    }
    let mut machine = start(&args.machine, emulator, size, iso, directory.clone())?;
    let log_path = directory.join("serial.log");
    let log = File::create(&log_path).cannot(|| format!("write {}", log_path.display()))?;
    let input = if args.headless { Input::None } else { Input::Keyboard };
    let limit = args.timeout.or(args.headless.then_some(kind.limit(HEADLESS_LIMIT)));
    let outcome = console::attach(&mut machine, input, limit, log)
        .inspect_err(|_| eprintln!("  logs: {}", directory.display()))?;
    let messages = machine.messages();
    if !outcome.is_success() && !messages.is_empty() {
        eprintln!("{messages}");
    }
    finish(outcome, args.keep, &directory)?;
    Ok(outcome)
}

/// Where this process's last run left its serial log, if it was to be kept.
///
/// # Errors
/// When the folder of logs cannot be made.
pub fn log_path(workspace: &Workspace) -> Result<PathBuf> {
    Ok(workspace.dir("runs")?.join(std::process::id().to_string()).join("serial.log"))
}

/// Where the ISO of `what` is kept: making different things at once does not disturb either, and the same thing again
/// finds its ISO made.
fn iso_path(workspace: &Workspace, what: &str) -> Result<PathBuf> {
    let directory = workspace.dir("isos")?;
    // An ISO and its stamp each.
    prune(&directory, 2 * KEPT);
    let slot = stamp::key([what.as_bytes()]);
    Ok(directory.join(format!("{}.iso", slot.get(..12).unwrap_or(&slot))))
}

/// Says how it ended, and leaves the logs where they are wanted.
fn finish(outcome: Outcome, keep: bool, directory: &Path) -> Result<()> {
    if outcome.is_success() {
        eprintln!("  {outcome}");
    }
    if keep || !outcome.is_success() {
        eprintln!("  logs: {}", directory.display());
        return Ok(());
    }
    fs::remove_dir_all(directory).cannot(|| format!("remove {}", directory.display()))
}

/// Runs `cargo xtask image`.
///
/// # Errors
/// What keeps the ISO from being made.
pub fn image(workspace: &Workspace, args: &ImageArgs) -> Result<()> {
    let images = Images::new(workspace.clone());
    let mut config = config::load(workspace, args.config.config.as_deref().unwrap_or(config::ONE_GUEST))?;
    config.apply(&args.config.guest)?;
    tools::ensure(tools::IMAGE)?;
    let blob = config.blob(&images)?;
    let output = args.output.clone().unwrap_or_else(|| workspace.target("caisson.iso"));
    let kept = iso_path(workspace, &format!("image {:?}", args.config))?;
    let iso = images.iso(&blob, args.config.hv_cmdline.trim(), kept)?;
    // A copy: whatever becomes of it, what is kept is what was made.
    let size = fs::copy(&iso, &output).cannot(|| format!("write {}", output.display()))?;
    println!(
        "{} ({} MiB): boots by BIOS and UEFI from CD, USB stick or disk",
        output.display(),
        size.div_ceil(MIB)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_holds_guests_blob_and_caisson() {
        assert_eq!(machine_memory_mib(256 * MIB, 16 * MIB), 512);
        assert_eq!(machine_memory_mib(256 * MIB + 1, 16 * MIB) % 64, 0);
        assert!(machine_memory_mib(u64::MAX, u64::MAX) > 0);
    }

    #[test]
    fn a_machine_without_room_for_its_guests_is_refused() {
        let toml = "[[domain]]\nname = \"a\"\nmemory = \"200M\"\nkernel = \"k\"\n";
        let text = caisson_config::source::parse_toml(toml, "a.toml").unwrap();
        let config = Loaded { text, folder: PathBuf::new() };
        let check = |mib: u64| check_memory(Size(mib * MIB), &config, 4 * MIB, 8 * MIB);
        check(machine_memory_mib(200 * MIB, 8 * MIB)).unwrap();
        check(218).unwrap();
        for mib in [1, 128, 200, 215] {
            let error = check(mib).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let line = error.to_string();
            assert!(line.starts_with(&format!("--machine-memory: {mib} MiB leaves at most ")), "{line}");
            assert!(line.ends_with("those of a.toml want 200 MiB: give the machine 448 MiB"), "{line}");
        }
    }

    fn machine_args(words: &[&str]) -> MachineArgs {
        use clap::Parser as _;
        let words = ["xtask", "run"].iter().chain(words);
        match crate::cli::Cli::parse_from(words).command {
            crate::cli::Command::Run(args) => args.machine,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_port_in_use_is_left_alone() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let domain = "[[domain]]\nname = \"a\"\nmemory = \"1M\"\nkernel = \"k\"\n";
        let toml = format!("[emulator]\nnetwork = true\nforward = [\"{port}:10.0.2.20:80\"]\n{domain}");
        let text = caisson_config::source::parse_toml(&toml, "a.toml").unwrap();
        let config = Loaded { text, folder: PathBuf::new() };
        let network = network(&config, &machine_args(&[])).unwrap();
        assert!(network.forward.iter().all(|forward| forward.port != port));
        let text = caisson_config::source::parse_toml(domain, "a.toml").unwrap();
        let config = Loaded { text, folder: PathBuf::new() };
        assert_eq!(self::network(&config, &machine_args(&[])), None);
        assert_eq!(self::network(&config, &machine_args(&["--nic"])), Some(Network::default()));
    }

    #[test]
    fn what_only_qemu_has_is_refused_for_bochs() {
        assert_eq!(kind(&machine_args(&[])).unwrap(), Kind::Qemu);
        assert_eq!(kind(&machine_args(&["--machine", "bochs", "--cpu", "tigerlake"])).unwrap(), Kind::Bochs);
        for words in [["--accel", "tcg"], ["--firmware", "uefi"], ["--qemu-arg", "-S"], ["--disk", "d"]] {
            assert_eq!(kind(&machine_args(&words)).unwrap(), Kind::Qemu);
            let words = [["--machine", "bochs"], words].concat();
            assert_eq!(kind(&machine_args(&words)).unwrap_err().exit_code(), 2);
        }
    }
}
