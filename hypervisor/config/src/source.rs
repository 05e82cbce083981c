//! The TOML text that a person writes.
//!
//! ```toml
//! [machine]                 # optional
//! console = "all"           # whose console is shown after boot: a domain's name, "all", or "caisson" for the log
//! log = "info"              # off, error, warn, info, debug or trace
//!
//! [emulator]                # optional: what an emulated machine of cargo xtask run has; the blob does not tell of it
//! disks = ["disk.img"]      # namespaces of an NVMe disk: files, or @name for what xtask provides
//! network = true            # a network card
//! forward = ["8080:10.0.2.20:80"] # a TCP port of this computer, and where it leads behind that card
//!
//! [[pool]]                  # optional: CPUs that are shared out by themselves
//! name = "batch"            # "default" for that of domains which name none
//! cpus = "2-3"              # "default" alone may leave it out: all that no other pool has
//! policy = "bvt"            # bvt or sedf; default bvt
//! quantum = "10ms"          # us, ms or s; this is the default
//!
//! [[domain]]                # one for each domain, started in this order
//! name = "linux"            # 1 to 31 of a-z 0-9 -
//! memory = "512M"           # K, M, G or T, of 1024; a multiple of 4K, at least 1M
//! private = "0M"            # the part of it that no other domain sees; a multiple of 2M, as memory is then
//! vcpus = 1                 # default 1
//! tsc_khz = 2500000         # the TSC's frequency; default: the host's
//! loader = "auto"           # auto, linux, pvh or multiboot1; default auto
//! kernel = "@linux"         # a path from this file's folder, or @name for what xtask provides
//! initrd = "@initrd"        # one file, or a list of files that are joined; or, instead of initrd,
//! # modules = [{ file = "a.bin", cmdline = "a 1" }, "b.bin"]
//! cmdline = "console=ttyS0" # default empty
//! console = "serial"        # serial or none; default serial
//! devices = "all"           # the machine's PCI functions that it owns: ["00:03.0"], all that no other names, or none
//! entropy = true            # a source of random numbers, by Caisson; default false
//! privileges = ["events", "io-backend"] # and "control"; default none
//! on_poweroff = "destroy"   # destroy or restart; this is the default
//! on_reboot = "restart"
//! on_crash = "destroy"
//! max_restarts = 3          # default: no limit
//! pool = "default"
//! weight = 256              # this is the default
//! cap = 150                 # percent of a CPU; default: no limit
//! cpus = "0-1"              # where it may run; default: the pool's
//! prefer = "0"              # where it should run; default: anywhere
//! warp = "5ms"              # how far it goes ahead when it wakes; default: not at all
//! warp_limit = "2ms"        # for how long, in every 100ms
//! # period = "20ms"         # in a pool of policy sedf: a slice of a CPU for each vCPU in every period,
//! # slice = "5ms"
//! # extra = true            # and what the reservations leave; this is the default
//!
//! [[domain.disk]]           # devices of the domain above, which another domain serves
//! path = "/dev/nvme0n1p1"   # there: a block device or a file
//! format = "raw"            # raw or qcow2; default raw
//! read_only = false         # this is the default
//! serial = "0001"           # default: none
//! backend = "driver"        # default: the only domain with the privilege io-backend
//!
//! [[domain.network]]
//! bridge = "br0"            # a bridge there
//! mac = "02:00:00:00:00:01" # default: one that follows from the domain's name
//! anti_spoofing = true      # this is the default
//! rate = "100M"             # bits per second, K, M or G; default: no limit
//! vlan = 7                  # default: none
//! queues = 1                # pairs; this is the default
//!
//! [[domain.share]]
//! tag = "files"
//! path = "/srv/files"       # a directory there
//!
//! [[domain.port]]           # a console port
//! name = "agent"
//!
//! # [[domain.entropy]]      # a source of random numbers, instead of entropy = true
//! # rate = "64K"            # bytes per second, K, M or G of 1024; this is the default
//! ```
//!
//! Unless the text says otherwise, the machine shows the console of the only domain that has one, or else all.

mod devices;
mod reader;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use caisson_abi::Privileges;

use crate::blob::DeviceBackend;
use crate::error::{BlobError, Field, Reason};
use crate::pools::{ContractValues, Contracts, DEFAULT_POOL, PoolValues, QUANTUM};
use crate::rules::{self, DomainValues, MachineLimits};
use crate::settings::{
    Console, Contract, LoaderKind, LogLevel, OnExit, PoolPolicy, Purpose, SelectedConsole,
};

pub use devices::{
    DeviceSettings, DeviceText, DiskText, EntropyText, NetworkText, PortText, ShareText, parse_rate,
    usual_mac,
};

/// A configuration as the text gives it, checked as far as that is possible without its files.
///
/// The fields may be changed, for instance by options of a command line; [`ConfigText::check`] and
/// [`build`](crate::build()) check them again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigText {
    /// The file's name, for messages.
    pub file: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Settings of the whole machine.
    pub machine: MachineText,
    /// What an emulated machine has.
    pub emulator: EmulatorText,
    /// The CPU pools; one of them is the default one.
    pub pools: Vec<PoolText>,
    /// The domains, in the order of their start.
    pub domains: Vec<DomainText>,
    positions: BTreeMap<Field, Position>,
    origins: BTreeMap<Field, String>,
    /// Where in the text the only domain is, the others having been left out.
    only: Option<usize>,
}

/// The text's `[machine]` table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MachineText {
    /// `console`: a domain's name, `all` or `caisson`; `None` when not given.
    pub console: Option<String>,
    /// `log`.
    pub log_level: LogLevel,
}

/// The text's `[emulator]` table. The blob does not tell of it: a real machine has what it has.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct EmulatorText {
    /// `disks`: paths or `@name`s.
    pub disks: Vec<String>,
    /// `network`.
    pub network: bool,
    /// `forward`.
    pub forward: Vec<Forward>,
}

/// A TCP port of the computer that runs the emulator, and where it leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forward {
    /// The port of the computer.
    pub port: u16,
    /// The address of a guest.
    pub to: core::net::SocketAddrV4,
}

/// One `[[domain]]` of the text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainText {
    /// `name`.
    pub name: String,
    /// `memory`, in bytes.
    pub memory: u64,
    /// `private`, in bytes.
    pub private: u64,
    /// `vcpus`.
    pub vcpus: u32,
    /// `tsc_khz`; `None` for the host's.
    pub tsc_khz: Option<u32>,
    /// `loader`.
    pub loader: LoaderKind,
    /// `kernel`: a path or `@name`.
    pub kernel: String,
    /// `initrd` (without command lines) or `modules`.
    pub modules: Vec<ModuleText>,
    /// `cmdline`.
    pub cmdline: String,
    /// `console`.
    pub console: Console,
    /// `devices`, as the blob has it: see [`crate::Functions`].
    pub devices: String,
    /// `entropy = true`, and no `[[domain.entropy]]`.
    pub entropy: bool,
    /// `privileges`.
    pub privileges: Privileges,
    /// `disk`, `network`, `share`, `port` and `entropy`: those of a kind one after the other.
    pub virtio_devices: Vec<DeviceText>,
    /// `on_poweroff`, `on_reboot` and `on_crash`.
    pub on_exit: OnExit,
    /// `max_restarts`; `None` for no limit.
    pub max_restarts: Option<u32>,
    /// `pool`.
    pub pool: String,
    /// `cpus`, empty when not given.
    pub cpus: String,
    /// `prefer`, empty when not given.
    pub prefer: String,
    /// `weight`, `cap`, `warp`, `warp_limit`, `period`, `slice` and `extra`.
    pub contract: Contract,
}

/// One `[[pool]]` of the text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolText {
    /// `name`.
    pub name: String,
    /// `cpus`, empty when not given.
    pub cpus: String,
    /// `policy`.
    pub policy: PoolPolicy,
    /// `quantum`, in microseconds; 0 for a pool of the machine's, of which the name is all that is said.
    pub quantum: u32,
}

impl PoolText {
    /// The machine's pool of that name.
    fn machines(name: &str) -> Self {
        Self { name: name.to_string(), quantum: 0, ..Self::default() }
    }
}

impl Default for PoolText {
    /// The pool of domains that name none, as it is where the text describes no such.
    fn default() -> Self {
        let (name, cpus) = (DEFAULT_POOL.to_string(), String::new());
        Self { name, cpus, policy: PoolPolicy::Bvt, quantum: QUANTUM }
    }
}

/// One of a domain's `modules`, or one file of its `initrd`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModuleText {
    /// A path or `@name`.
    pub file: String,
    /// The module's command line.
    pub cmdline: String,
}

/// A place in the text, both counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

/// Why a text was refused. Displays as one line, `file:line:column: field: reason; what to do`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceError {
    /// The file's name, or what else the value is from.
    pub file: String,
    /// Where in the file, where that is known.
    pub position: Option<Position>,
    /// The field's path, such as `domain[1].memory`; empty where the text is not TOML.
    pub field: String,
    /// What is wrong and what to change.
    pub reason: String,
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        if !self.field.is_empty() {
            write!(f, " {}:", self.field)?;
        }
        write!(f, " {}", self.reason)
    }
}

impl core::error::Error for SourceError {}

/// Reads and checks a configuration text. `file_name` is used in messages only.
///
/// # Errors
/// The first mistake in the text.
pub fn parse_toml(text: &str, file_name: &str) -> Result<ConfigText, SourceError> {
    let config = reader::read(text, file_name, Purpose::Machine)?;
    config.check()?;
    Ok(config)
}

/// Reads and checks the text of domains that are made while the machine runs ([`Purpose::Later`]). What it says of machine and
/// emulator changes nothing, and of its pools no more than the names count.
///
/// # Errors
/// The first mistake in the text.
pub fn parse_later(text: &str, file_name: &str) -> Result<ConfigText, SourceError> {
    let config = reader::read(text, file_name, Purpose::Later)?;
    config.check()?;
    Ok(config)
}

impl ConfigText {
    /// Checks everything that can be checked without the files.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn check(&self) -> Result<(), SourceError> {
        self.try_check().map_err(|error| self.error(&error))?;
        self.selected_console().map(|_| ())
    }

    /// Has messages about a field blame `origin` (such as an option of a command line) in place of the text, which does
    /// not hold its value any more.
    pub fn set_origin(&mut self, field: Field, origin: &str) {
        self.origins.insert(field, origin.to_string());
    }

    /// Leaves out all domains but the one of that name; its devices are served by those that would have served them. `false`, and
    /// nothing is changed, where there is none of that name. Only for [`Purpose::Later`].
    pub fn keep_only(&mut self, name: &str) -> bool {
        let Some(index) = self.domains.iter().position(|domain| domain.name == name) else { return false };
        let Some(mut domain) = self.domains.get(index).cloned() else { return false };
        let backends: Vec<_> = domain
            .virtio_devices
            .iter()
            .map(|device| match self.backend_of(index, device) {
                Ok(DeviceBackend::Domain(backend)) => {
                    self.domains.get(backend).map(|backend| backend.name.clone())
                }
                Ok(DeviceBackend::Named(name)) => Some(name.to_string()),
                Err(_) => device.backend.clone(),
            })
            .collect();
        for (device, backend) in domain.virtio_devices.iter_mut().zip(backends) {
            device.backend = backend;
        }
        self.domains = alloc::vec![domain];
        self.only = Some(index);
        true
    }

    /// The refusal of a kernel, which is known only where it can be read: the domain's index, and what is wrong.
    #[must_use]
    pub fn kernel_error(&self, domain: usize, reason: &str) -> SourceError {
        let name = self.domains.get(domain).map_or("", |domain| &domain.kernel);
        self.key_error(domain, "kernel", &format!("{name:?}: {reason}"))
    }

    /// The refusal of a key's value, by who knows more than the text: the domain's index, and what is wrong.
    #[must_use]
    pub fn key_error(&self, domain: usize, key: &'static str, reason: &str) -> SourceError {
        self.error_at(Field::Domain(domain, key), reason.to_string())
    }

    /// Checks that a machine can carry all domains at once.
    ///
    /// # Errors
    /// The first domain that is too much.
    pub fn check_machine(&self, limits: &MachineLimits) -> Result<(), SourceError> {
        limits
            .check(self.domains.iter().map(|domain| (domain.memory, domain.vcpus)))
            .map_err(|error| self.error(&error))
    }

    fn try_check(&self) -> Result<(), BlobError<'_>> {
        rules::check_count(self.domains.len(), 1, rules::MAX_DOMAINS)
            .map_err(|reason| BlobError::new(Field::Domains, reason))?;
        let mut modules = 0;
        for (index, domain) in self.domains.iter().enumerate() {
            let values = DomainValues {
                name: &domain.name,
                memory: domain.memory,
                private: domain.private,
                functions: &domain.devices,
                vcpus: domain.vcpus,
                cmdline: &domain.cmdline,
                tsc_khz: domain.tsc_khz,
            };
            rules::check_domain(index, &values)?;
            rules::check_reference(&domain.kernel)
                .map_err(|reason| BlobError::new(Field::Domain(index, "kernel"), reason))?;
            modules += domain.modules.len();
            rules::check_count(modules, 0, rules::MAX_MODULES)
                .map_err(|reason| BlobError::new(Field::Domain(index, "modules"), reason))?;
            for (number, module) in domain.modules.iter().enumerate() {
                rules::check_reference(&module.file)
                    .map_err(|reason| BlobError::new(Field::Module(index, number, "file"), reason))?;
                rules::check_text(&module.cmdline, rules::MAX_CMDLINE)
                    .map_err(|reason| BlobError::new(Field::Module(index, number, "cmdline"), reason))?;
            }
        }
        rules::check_unique(&self.domains.iter().map(|domain| domain.name.as_str()))?;
        if self.purpose == Purpose::Later {
            for (index, domain) in self.domains.iter().enumerate() {
                let at = |name, reason| BlobError::new(Field::Domain(index, name), reason);
                rules::check_name(&domain.pool).map_err(|reason| at("pool", reason))?;
                if !domain.devices.is_empty() {
                    return Err(at("devices", Reason::OwnsFunctions));
                }
            }
        }
        rules::check_owners(&self.domains.iter().map(|domain| domain.devices.as_str()))?;
        self.check_virtio_devices()?;
        self.contracts().check(None)
    }

    /// Checks that a machine with so many CPUs has those that the pools need, and room for all reservations.
    ///
    /// # Errors
    /// The first field that asks for more.
    pub fn check_cpus(&self, cpus: u32) -> Result<(), SourceError> {
        self.contracts().check(Some(cpus)).map_err(|error| self.error(&error))
    }

    /// The number of a domain's pool, where there is one of that name.
    pub(crate) fn pool_of(&self, domain: &DomainText) -> Option<usize> {
        self.pools.iter().position(|pool| pool.name == domain.pool)
    }

    fn contracts(
        &self,
    ) -> Contracts<
        impl Iterator<Item = PoolValues<'_>> + Clone,
        impl Iterator<Item = ContractValues<'_>> + Clone,
    > {
        let pools = self.pools.iter().map(|pool| PoolValues {
            name: &pool.name,
            cpus: &pool.cpus,
            policy: pool.policy,
            quantum: pool.quantum,
        });
        let domains = self.domains.iter().map(|domain| ContractValues {
            pool: self.pool_of(domain),
            pool_name: &domain.pool,
            cpus: &domain.cpus,
            prefer: &domain.prefer,
            vcpus: domain.vcpus,
            contract: domain.contract,
        });
        Contracts { pools, domains }
    }

    /// Whose console the machine shows after boot.
    pub(crate) fn selected_console(&self) -> Result<SelectedConsole, SourceError> {
        let field = Field::Machine("console");
        let serial = |domain: &DomainText| domain.console == Console::Serial;
        if self.purpose == Purpose::Later {
            return Ok(SelectedConsole::All);
        }
        let Some(word) = self.machine.console.as_deref() else {
            let mut with_console = self.domains.iter().enumerate().filter(|(_, domain)| serial(domain));
            return Ok(match (with_console.next(), with_console.next()) {
                (Some((index, _)), None) => SelectedConsole::Domain(index),
                _ => SelectedConsole::All,
            });
        };
        match word {
            SelectedConsole::ALL_WORD => return Ok(SelectedConsole::All),
            SelectedConsole::LOG_WORD => return Ok(SelectedConsole::Log),
            _ => {}
        }
        match self.domains.iter().position(|domain| domain.name == word) {
            Some(index) if self.domains.get(index).is_some_and(serial) => Ok(SelectedConsole::Domain(index)),
            Some(index) => Err(self.error(&BlobError::new(field, Reason::NoConsole(index)))),
            None => Err(self.error_at(
                field,
                format!("{word:?} is no domain's name; write one, or \"all\", or \"caisson\" for the log"),
            )),
        }
    }

    /// Gives an error of the common rules its place in the text.
    pub(crate) fn error(&self, error: &BlobError<'_>) -> SourceError {
        self.error_at(error.field, error.reason.to_string())
    }

    pub(crate) fn error_at(&self, field: Field, reason: String) -> SourceError {
        let field = self.only.map_or(field, |index| field.of_domain(index));
        if let Some(origin) = self.origins.get(&field) {
            let (file, field) = (origin.clone(), String::new());
            return SourceError { file, position: None, field, reason };
        }
        SourceError {
            file: self.file.clone(),
            position: self.positions.get(&field).copied(),
            field: field.to_string(),
            reason,
        }
    }
}

/// The number of bytes that a size such as `512M` stands for: digits and one of `K`, `M`, `G`, `T` (powers of 1024,
/// either case, `iB` may follow).
///
/// ```
/// # use caisson_config::source::parse_size;
/// assert_eq!(parse_size("512M"), Some(512 << 20));
/// assert_eq!(parse_size("2GiB"), Some(2 << 30));
/// assert_eq!(parse_size("512"), None);
/// ```
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.strip_suffix("iB").unwrap_or(text);
    let unit = text.chars().last()?;
    let shift = match unit.to_ascii_uppercase() {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => return None,
    };
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The number of microseconds that a time such as `10ms` stands for: digits and one of `us`, `ms`, `s`.
///
/// ```
/// # use caisson_config::source::parse_time;
/// assert_eq!(parse_time("1500us"), Some(1500));
/// assert_eq!(parse_time("10ms"), Some(10_000));
/// assert_eq!(parse_time("2s"), Some(2_000_000));
/// assert_eq!(parse_time("10"), None);
/// ```
#[must_use]
pub fn parse_time(text: &str) -> Option<u32> {
    let units = [("us", 1), ("ms", 1000), ("s", 1_000_000)];
    let (digits, unit) = units.into_iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u32>().ok()?.checked_mul(unit)
}
