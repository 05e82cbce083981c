//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::size::Size;

/// The one front door of Caisson.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set everything up, build, boot in an emulator, and give the guest's console
    Run(RunArgs),
    /// Run all tests: host tests, then whole-machine tests
    Test(TestArgs),
    /// Make a bootable ISO for a real machine or another VMM
    Image(ImageArgs),
    /// Build, check or show a config
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Measure what exits cost, in instructions
    Bench(BenchArgs),
    /// Record what CPUs and guests do, as a file for ui.perfetto.dev
    Trace(TraceArgs),
    /// Run the fuzz targets (needs a nightly toolchain and cargo-fuzz)
    Fuzz(FuzzArgs),
    /// Report what this host has and what is missing
    Doctor,
}

/// Which guests run, and what the command line changes in the first of them.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Config: a TOML file, or a name in guest-images/configs [default: split-io for run on QEMU, unless the first guest is
    /// changed by another option; otherwise linux]
    #[arg(long, value_name = "FILE|NAME")]
    pub config: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub guest: GuestArgs,
    /// Caisson's own boot words, added to those that xtask gives
    #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true)]
    pub hv_cmdline: String,
}

/// What the command line changes in the config's first domain.
#[derive(Debug, Default, Args)]
pub struct GuestArgs {
    /// Kernel of the first domain
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk of the first domain, in place of all its modules
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Command line of the first domain's kernel
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Memory of the first domain, like 512M or 2G
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
}

/// `cargo xtask run`
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub machine: MachineArgs,
    /// No console: print what the machine prints, and exit with the guests' result
    #[arg(long)]
    pub headless: bool,
    /// Time limit, like 90, 90s or 5m [default: 300s with --headless, 1800s on Bochs; otherwise none]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub timeout: Option<Duration>,
    /// Leave the run's logs under target/caisson/runs, also when it succeeds
    #[arg(long)]
    pub keep: bool,
}

/// Most CPUs of an emulated machine.
const MAX_CPUS: i64 = 64;

/// The emulated machine.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// Emulator: QEMU (AMD-V, or the host's CPU by KVM) or Bochs (Intel VT-x)
    #[arg(long, value_enum, default_value_t)]
    pub machine: MachineArg,
    /// QEMU's accelerator; auto takes KVM where it works and offers nested virtualisation
    #[arg(long, value_enum, default_value_t)]
    pub accel: AccelArg,
    /// The emulator's CPU model [default: host on KVM, EPYC,-monitor on TCG, corei7_haswell_4770 on Bochs]
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<String>,
    /// CPUs of the machine [default: as many as the guests' vCPUs can use and this host has; where that is several, QEMU's
    /// translator gets one more, without guests]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_CPUS))]
    pub cpus: Option<u32>,
    /// Memory of the machine [default: what the guests and Caisson need]
    #[arg(long, value_name = "SIZE")]
    pub machine_memory: Option<Size>,
    /// What starts the loader; Bochs has only BIOS
    #[arg(long, value_enum, default_value_t)]
    pub firmware: FirmwareArg,
    /// One more namespace of QEMU's NVMe disk, raw or *.qcow2, beside those of the config; may be given again
    #[arg(long, value_name = "FILE")]
    pub disk: Vec<PathBuf>,
    /// A network card in QEMU's machine, with QEMU's network behind it
    #[arg(long)]
    pub nic: bool,
    /// One more argument for QEMU; may be given again
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub qemu_arg: Vec<String>,
}

/// Emulators by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum MachineArg {
    /// QEMU
    #[default]
    Qemu,
    /// Bochs
    Bochs,
}

/// Emulators whose tests are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TestMachineArg {
    /// QEMU
    Qemu,
    /// Bochs
    Bochs,
    /// Both
    All,
}

/// Accelerators by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AccelArg {
    /// The best that this host offers
    #[default]
    Auto,
    /// The host's CPU
    Kvm,
    /// QEMU's translator
    Tcg,
}

/// Firmware by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FirmwareArg {
    /// SeaBIOS
    #[default]
    Bios,
    /// OVMF
    Uefi,
}

/// `cargo xtask test`
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only what needs no emulator
    #[arg(long, conflicts_with = "machine_only")]
    pub host_only: bool,
    /// Only the whole-machine tests
    #[arg(long)]
    pub machine_only: bool,
    /// Emulators of the whole-machine tests [default: all that Caisson runs guests on]
    #[arg(long, value_enum)]
    pub machine: Option<TestMachineArg>,
    /// Only tests whose name contains this
    pub filter: Option<String>,
}

/// `cargo xtask image`
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigArgs,
    /// Where to leave the ISO [default: target/caisson.iso]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `cargo xtask config …`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Compile a config into a blob
    Build {
        /// A TOML file, or a name in guest-images/configs
        config: String,
        /// Where to leave the blob [default: target/caisson/configs/NAME.blob]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// For `caisson create` in a driver domain: of domains that are made later, while the machine runs
        #[arg(long)]
        later: bool,
    },
    /// Check a config or a blob
    Check {
        /// A TOML file or a blob, or a name in guest-images/configs
        config: String,
        /// Memory that all domains together must fit into, like 8G
        #[arg(long, value_name = "SIZE")]
        machine_memory: Option<Size>,
        /// CPUs that pools and reservations must fit
        #[arg(long, value_name = "N")]
        machine_cpus: Option<u32>,
        /// As one of domains that are made later, while the machine runs
        #[arg(long)]
        later: bool,
    },
    /// Show what a blob holds, or what a config compiles to
    Show {
        /// A TOML file or a blob, or a name in guest-images/configs
        config: String,
    },
}

/// `cargo xtask bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Only measurements whose name contains this
    #[arg(conflicts_with_all = ["exits", "peers", "accept"])]
    pub filter: Option<String>,
    /// Exits by reason and what they cost, for a boot of Linux and for each row of the benchmark program
    #[arg(long)]
    pub exits: bool,
    /// The same guest without a hypervisor, under KVM, Xen and Caisson
    #[arg(long, conflicts_with = "exits")]
    pub peers: bool,
    /// What Caisson executes from an exit to the next entry: each function's instructions
    #[arg(long, conflicts_with_all = ["exits", "peers"])]
    pub walk: bool,
    /// The emulator of --exits: QEMU (AMD-V), or for a boot of Linux alone Bochs (VT-x)
    #[arg(long, value_enum, default_value_t, requires = "exits")]
    pub machine: MachineArg,
    /// Rewrite what is committed: with --exits or --peers the pictures in docs/images, with --walk its part of docs/exits.md, alone the
    /// table of exact counts
    #[arg(long)]
    pub accept: bool,
}

/// `cargo xtask trace`
#[derive(Debug, Args)]
pub struct TraceArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub machine: MachineArgs,
    /// Time limit, like 90, 90s or 5m [default: 300s, 1800s on Bochs]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub timeout: Option<Duration>,
    /// Events that each CPU keeps: the last ones
    #[arg(long, value_name = "NUMBER", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    pub events: u32,
    /// Run nothing: take the trace from the log of a serial line
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Where to leave the trace [default: target/trace.json, unless there is --svg]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Where to leave a picture of it
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Where the picture begins, counted from the trace's beginning, like 20ms or 1.5s
    #[arg(long, value_name = "TIME", value_parser = parse_short_time, requires = "svg")]
    pub from: Option<Duration>,
    /// How much of the trace the picture shows, like 20ms
    #[arg(long, value_name = "TIME", value_parser = parse_short_time, requires = "svg")]
    pub span: Option<Duration>,
}

/// `cargo xtask fuzz`
#[derive(Debug, Args)]
pub struct FuzzArgs {
    /// Time for each target, in seconds or like 5m
    #[arg(long, visible_alias = "seconds", value_name = "TIME", default_value = "60s", value_parser = parse_time)]
    pub time: Duration,
    /// Only targets whose name contains this
    pub filter: Option<String>,
}

/// A time as people write it: seconds, or a number and `s`, `m` or `h`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ => (text, 1),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("`{text}` is not a time: write it like 90s or 5m"))?;
    let seconds = number.checked_mul(unit).filter(|seconds| (1..=86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| format!("`{text}` is out of range: 1 second to 24 hours"))
}

/// A time in the machine: a number with `us`, `ms` or `s`.
fn parse_short_time(text: &str) -> Result<Duration, String> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let parsed = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)));
    let seconds = parsed.and_then(|(number, unit)| Some(number.parse::<f64>().ok()? * unit));
    seconds
        .filter(|seconds| (0.0..1e6).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("`{text}` is not a time: write it like 20ms, 500us or 1.5s"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn short_times_have_a_unit() {
        assert_eq!(parse_short_time("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(parse_short_time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_short_time("500us"), Ok(Duration::from_micros(500)));
        for text in ["", "20", "-1s", "NaNs", "infs", "1e9s", "ms", "5m"] {
            assert!(parse_short_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_as_people_write_them() {
        assert_eq!(parse_time("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_time("1h"), Ok(Duration::from_secs(3600)));
        for text in ["", "s", "0", "-1", "1.5m", "5d", "25h", "ä"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hyphens_reach_qemu_and_the_kernel() {
        let cli =
            Cli::try_parse_from(["x", "run", "--qemu-arg", "-smp", "--qemu-arg=4", "--cmdline", "-x quiet"]);
        let Ok(Cli { command: Command::Run(run) }) = cli else { panic!("{cli:?}") };
        assert_eq!(run.machine.qemu_arg, ["-smp", "4"]);
        assert_eq!(run.config.guest.cmdline.as_deref(), Some("-x quiet"));
    }
}
