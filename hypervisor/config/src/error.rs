//! Refusals: which field, and why, in one line.

use core::fmt;

use crate::cpus::MAX_CPU;
use crate::functions::{MAX_FUNCTIONS, PciAddress};
use crate::private::PrivateReason;
use crate::settings::DeviceKind;
use crate::virtio::DeviceReason;
use crate::{pools, rules};

/// Why a configuration was refused. Displays as one line, `field: reason; what to do`, for a payload with its file's name
/// before the field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlobError<'a> {
    /// The field that is at fault.
    pub field: Field,
    /// What is wrong with it.
    pub reason: Reason<'a>,
    /// For a field of a payload: the file that the payload is, where the blob tells that.
    pub file: Option<NamedFile<'a>>,
}

impl<'a> BlobError<'a> {
    pub(crate) const fn new(field: Field, reason: Reason<'a>) -> Self {
        Self { field, reason, file: None }
    }
}

/// A file by the words of who wrote the configuration. Displays as `kernel "@linux" of domain "web"`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NamedFile<'a> {
    /// What the text called it: a path, or `@name`.
    pub name: &'a str,
    /// It is a kernel of the domain, and not one of its modules.
    pub is_kernel: bool,
    /// The name of the first domain that uses it, if there is one.
    pub domain: Option<&'a str>,
}

impl fmt::Display for NamedFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", if self.is_kernel { "kernel" } else { "file" }, self.name)?;
        self.domain.map_or(Ok(()), |domain| write!(f, " of domain {domain:?}"))
    }
}

impl fmt::Display for BlobError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{file} ({}): {}", self.field, self.reason),
            None => write!(f, "{}: {}", self.field, self.reason),
        }
    }
}

impl core::error::Error for BlobError<'_> {}

/// A field of the configuration, by its path. Indices count from 0. Fields are spelt as in the TOML text where it has
/// them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Field {
    /// The blob as a whole.
    Blob,
    /// A field of the header.
    Header(&'static str),
    /// A setting of the machine.
    Machine(&'static str),
    /// A setting of an emulated machine.
    Emulator(&'static str),
    /// The list of CPU pools.
    Pools,
    /// A pool as a whole.
    WholePool(usize),
    /// A field of a pool.
    Pool(usize, &'static str),
    /// The list of domains.
    Domains,
    /// A domain as a whole.
    WholeDomain(usize),
    /// A field of a domain.
    Domain(usize, &'static str),
    /// A field of a domain's module: domain, module, field.
    Module(usize, usize, &'static str),
    /// A field of a device that another domain serves: domain, its kind (none where the blob counts all kinds together), its number among
    /// the domain's of that kind, field.
    Device(usize, Option<DeviceKind>, usize, &'static str),
    /// A field of a payload.
    Payload(usize, &'static str),
}

#[cfg(feature = "build")]
impl Field {
    /// The same field of another domain, where it is a domain's.
    pub(crate) fn of_domain(self, index: usize) -> Self {
        match self {
            Self::WholeDomain(_) => Self::WholeDomain(index),
            Self::Domain(_, name) => Self::Domain(index, name),
            Self::Module(_, module, name) => Self::Module(index, module, name),
            Self::Device(_, kind, device, name) => Self::Device(index, kind, device, name),
            other => other,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob => f.write_str("blob"),
            Self::Header(name) => write!(f, "header.{name}"),
            Self::Machine(name) => write!(f, "machine.{name}"),
            Self::Emulator(name) => write!(f, "emulator.{name}"),
            Self::Pools => f.write_str("pool"),
            Self::WholePool(pool) => write!(f, "pool[{pool}]"),
            Self::Pool(pool, name) => write!(f, "pool[{pool}].{name}"),
            Self::Domains => f.write_str("domain"),
            Self::WholeDomain(domain) => write!(f, "domain[{domain}]"),
            Self::Domain(domain, name) => write!(f, "domain[{domain}].{name}"),
            Self::Module(domain, module, name) => write!(f, "domain[{domain}].modules[{module}].{name}"),
            Self::Device(domain, kind, device, name) => {
                let word = kind.map_or("device", DeviceKind::word);
                write!(f, "domain[{domain}].{word}[{device}].{name}")
            }
            Self::Payload(payload, name) => write!(f, "payload[{payload}].{name}"),
        }
    }
}

/// What is wrong with a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason<'a> {
    /// There are fewer bytes than there must be.
    Truncated {
        /// Bytes that there are.
        have: u64,
        /// Bytes that there must be.
        need: u64,
    },
    /// There are more bytes than there must be.
    Overlong {
        /// Bytes that there are.
        have: u64,
        /// Bytes that there must be.
        need: u64,
    },
    /// The blob does not start with [`MAGIC`](crate::MAGIC).
    NotABlob,
    /// A version of the format that this code does not know.
    UnknownVersion(u32),
    /// A SHA-256 does not match the bytes that it stands for.
    Damaged,
    /// Bytes that must be zero are not.
    NotZero,
    /// A length that contradicts other lengths of the blob.
    BadLength(u64),
    /// There are none, but there must be one.
    Empty,
    /// There are too many.
    TooMany {
        /// How many there are.
        count: u64,
        /// How many there may be.
        max: u64,
    },
    /// An offset that is not a multiple of [`PAYLOAD_ALIGN`](crate::PAYLOAD_ALIGN).
    Misaligned(u64),
    /// An offset inside what comes before.
    Overlap {
        /// The offset.
        offset: u64,
        /// The first offset that is free.
        free: u64,
    },
    /// An offset that leaves bytes out.
    Gap {
        /// The offset.
        offset: u64,
        /// The offset that it must be.
        expected: u64,
    },
    /// Something reaches past the end of the section that holds it.
    OutOfBounds,
    /// Text that is not UTF-8.
    NotText,
    /// Text with a control character in it.
    ControlCharacter,
    /// Text longer than allowed.
    TextTooLong {
        /// Its length in bytes.
        len: u64,
        /// The longest allowed.
        max: u64,
    },
    /// A name that is not 1 to 31 of `a-z0-9-`.
    BadName(&'a str),
    /// A name that stands for something else.
    ReservedName(&'a str),
    /// A name that an earlier domain has already.
    DuplicateName {
        /// The name.
        name: &'a str,
        /// The index of the first domain that has it.
        first: usize,
    },
    /// What the domain owns of the machine's PCI functions is no such text.
    BadFunctions(&'a str),
    /// The rest of the machine's devices has another owner: the domain with this index.
    SecondOwner(usize),
    /// A PCI function has another owner.
    SameFunction(PciAddress, usize),
    /// An amount of memory that is not a whole number of pages.
    MemoryNotPages(u64),
    /// Less memory than a guest needs.
    MemoryTooSmall(u64),
    /// More memory than any machine can address.
    MemoryTooLarge(u64),
    /// Of memory that nobody else sees.
    Private(PrivateReason),
    /// A number of vCPUs that is out of range.
    BadVcpus(u32),
    /// A TSC frequency that is out of range, in kHz.
    BadTsc(u32),
    /// A number that is not from 1 to a limit.
    OutOfRange {
        /// The number.
        value: u32,
        /// The limit.
        max: u32,
    },
    /// A time, in microseconds, that is too short or too long.
    BadTime(u32),
    /// A setting that makes sense only beside the named one.
    Needs(&'static str),
    /// More time than the period has, both in microseconds.
    SliceTooLong {
        /// The slice.
        slice: u32,
        /// The period.
        period: u32,
    },
    /// Text that is not a list of CPUs.
    BadCpuList(&'a str),
    /// A pool that names no CPUs.
    NoCpus,
    /// A name that an earlier pool has already.
    DuplicatePool {
        /// The name.
        name: &'a str,
        /// The index of the first pool that has it.
        first: usize,
    },
    /// A CPU that an earlier pool has already.
    CpuInTwoPools {
        /// The CPU.
        cpu: u32,
        /// The index of the first pool that has it.
        first: usize,
    },
    /// A name that is no pool's.
    NoSuchPool(&'a str),
    /// A CPU of a domain that its pool has not.
    CpuNotInPool {
        /// The CPU.
        cpu: u32,
        /// The pool's name.
        pool: &'a str,
    },
    /// A CPU where a domain should run, and may not.
    CpuNotAllowed(u32),
    /// A reservation in a pool, given by its name, whose policy knows none.
    NoReservations(&'a str),
    /// A reservation that finds no room.
    Overbooked {
        /// The slice in microseconds.
        slice: u32,
        /// The period in microseconds.
        period: u32,
        /// The first of the domain's vCPUs that finds none.
        vcpu: u32,
        /// The pool's name.
        pool: &'a str,
    },
    /// A CPU that the machine has not.
    CpuBeyondMachine {
        /// The CPU.
        cpu: u32,
        /// How many the machine has.
        have: u32,
    },
    /// A pool in use that has no CPU on this machine.
    PoolEmpty {
        /// The pool's name.
        pool: &'a str,
        /// How many CPUs the machine has.
        have: u32,
    },
    /// Of devices that other domains serve.
    Device(DeviceReason<'a>),
    /// A code that stands for no choice.
    UnknownCode(u8),
    /// A reference to something that does not exist.
    NoSuch {
        /// What is referred to: "payload", "module", "domain", "pool", "device" or "virtio device type".
        what: &'static str,
        /// Its number.
        index: u32,
    },
    /// Too many bytes before the payloads of a blob that domains are made of at run time.
    TablesTooLong {
        /// How many there are.
        len: u64,
        /// How many there may be.
        max: u64,
    },
    /// A blob of domains that are made later, where a machine's is needed.
    ForLater,
    /// A domain that is made later owns PCI functions.
    OwnsFunctions,
    /// The domain whose console is to be shown has none.
    NoConsole(usize),
    /// All domains together want more memory than the machine has for them.
    MemoryOvercommitted {
        /// What this domain wants.
        want: u64,
        /// What is left after the domains before it.
        left: u64,
        /// What the machine has for all.
        have: u64,
    },
    /// More memory than the machine's CPU lets a guest address.
    MemoryBeyondAddressBits {
        /// What the domain wants.
        want: u64,
        /// The CPU's guest-physical address bits.
        bits: u8,
    },
    /// More vCPUs than this machine can carry.
    VcpusBeyondMachine {
        /// What the domain wants.
        want: u32,
        /// What the machine carries in one domain.
        max: u32,
    },
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const REBUILD: &str = "build it again with `cargo xtask config build`";
        match *self {
            Self::Truncated { have, need } => {
                write!(f, "truncated, {have} of {need} bytes are there; {REBUILD}")
            }
            Self::Overlong { have, need } => {
                write!(f, "{have} bytes where {need} belong, so something was appended; {REBUILD}")
            }
            Self::NotABlob => write!(f, "not a Caisson config blob; {REBUILD}"),
            Self::UnknownVersion(version) => {
                write!(
                    f,
                    "format version {version} is unknown, version {} is read here; {REBUILD}",
                    crate::VERSION
                )
            }
            Self::Damaged => write!(f, "the SHA-256 does not match, so bytes have changed; {REBUILD}"),
            Self::NotZero => write!(f, "bytes that must be zero are not; {REBUILD}"),
            Self::BadLength(len) => write!(f, "{len} bytes contradict the rest of the blob; {REBUILD}"),
            Self::Misaligned(at) => write!(f, "{at} is not a multiple of 4096; {REBUILD}"),
            Self::Overlap { offset, free } => {
                write!(f, "{offset} overlaps what ends at {free}; {REBUILD}")
            }
            Self::Gap { offset, expected } => {
                write!(f, "{offset} leaves a gap, {expected} is next; {REBUILD}")
            }
            Self::OutOfBounds => write!(f, "reaches past the end of its section; {REBUILD}"),
            Self::UnknownCode(code) => {
                write!(f, "{code} stands for nothing in version {}; {REBUILD}", crate::VERSION)
            }
            Self::NoSuch { what, index } => write!(f, "there is no {what} {index}; {REBUILD}"),
            Self::ForLater => f.write_str(
                "made for `caisson create`, not for a machine's start; build it again without --later",
            ),
            Self::NotText => write!(f, "not UTF-8 text; write it in UTF-8"),
            _ => self.fmt_value(f),
        }
    }
}

impl Reason<'_> {
    /// The reasons that a person's TOML text can cause.
    fn fmt_value(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => write!(f, "empty; there must be at least one"),
            Self::TooMany { count, max } => write!(f, "{count} are too many; have at most {max}"),
            Self::ControlCharacter => {
                write!(f, "has a control character in it; write it in one line of printable text")
            }
            Self::TextTooLong { len, max } => write!(f, "{len} bytes are too long; shorten it to {max}"),
            Self::BadName(name) => {
                write!(f, "{name:?} is not a name; use 1 to {} of the characters a-z 0-9 -", rules::MAX_NAME)
            }
            Self::ReservedName(name) => {
                write!(f, "{name:?} stands for something else on the console; choose another name")
            }
            Self::DuplicateName { name, first } => {
                write!(f, "{name:?} is the name of domain[{first}] already; choose another name")
            }
            Self::SecondOwner(first) => {
                write!(
                    f,
                    "domain[{first}] owns the machine's devices already; leave the line out of one of the two, or name functions"
                )
            }
            Self::TablesTooLong { len, max } => write!(
                f,
                "{len} bytes of names and settings are too many, {max} have room; make fewer domains at a time"
            ),
            Self::OwnsFunctions => f.write_str(
                "PCI functions belong to domains that there are from the start; leave the line out, or write \"none\"",
            ),
            Self::BadFunctions(text) => {
                write!(
                    f,
                    "{text:?} is no list of PCI functions; write e.g. [\"0000:00:03.0\"], at most {MAX_FUNCTIONS}"
                )
            }
            Self::SameFunction(address, first) => {
                write!(f, "domain[{first}] owns {address} already; name it in one of the two")
            }
            Self::MemoryNotPages(bytes) => {
                write!(f, "{} is not a whole number of 4K pages; write e.g. \"512M\"", Size(bytes))
            }
            Self::MemoryTooSmall(bytes) => {
                write!(f, "{} is too little; give it at least {}", Size(bytes), Size(rules::MIN_MEMORY))
            }
            Self::MemoryTooLarge(bytes) => {
                write!(f, "{} is too much; give it at most {}", Size(bytes), Size(rules::MAX_MEMORY))
            }
            Self::Private(reason) => write!(f, "{reason}"),
            Self::BadVcpus(vcpus) => {
                write!(f, "{vcpus} is out of range; write a number from 1 to {}", rules::MAX_VCPUS)
            }
            Self::BadTsc(khz) => write!(
                f,
                "{khz} is out of range; write a number of kHz from {} to {}",
                rules::MIN_TSC_KHZ,
                rules::MAX_TSC_KHZ
            ),
            Self::NoConsole(domain) => {
                write!(f, "domain[{domain}] has no console to show; give it console = \"serial\"")
            }
            Self::MemoryOvercommitted { want, left, have } => write!(
                f,
                "{} is more than the {} left of this machine's {} for guests; lower it or use a bigger machine",
                Size(want),
                Size(left),
                Size(have)
            ),
            Self::MemoryBeyondAddressBits { want, bits } => {
                write!(f, "{} is more than this CPU's {bits} guest address bits reach; lower it", Size(want))
            }
            Self::VcpusBeyondMachine { want, max } => {
                write!(f, "{want} is more than this machine can carry; lower it to {max}")
            }
            _ => self.fmt_share(f),
        }
    }

    /// Those of pools and contracts.
    fn fmt_share(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OutOfRange { value, max } => {
                write!(f, "{value} is out of range; write a number from 1 to {max}")
            }
            Self::BadTime(micros) => write!(
                f,
                "{} is out of range; write a time from {} to {}",
                Time(micros),
                Time(pools::MIN_TIME),
                Time(pools::MAX_TIME)
            ),
            Self::Needs(other) => write!(f, "has no effect without {other}; give both or neither"),
            Self::SliceTooLong { slice, period } => write!(
                f,
                "{} is longer than the period of {}; shorten it, or lengthen the period",
                Time(slice),
                Time(period)
            ),
            Self::BadCpuList(text) => write!(
                f,
                "{text:?} is not a list of CPUs; write numbers up to {MAX_CPU} in rising order, e.g. \"0-3,6\""
            ),
            Self::NoCpus => {
                write!(f, "missing; write e.g. cpus = \"0-3\" (only the pool default takes the rest)")
            }
            Self::DuplicatePool { name, first } => {
                write!(f, "{name:?} is the name of pool[{first}] already; choose another name")
            }
            Self::CpuInTwoPools { cpu, first } => {
                write!(f, "CPU {cpu} is in pool[{first}] already; name it in one of them")
            }
            Self::NoSuchPool(name) => {
                write!(
                    f,
                    "{name:?} is no pool's name; describe it under a line [[pool]], or correct the name"
                )
            }
            Self::CpuNotInPool { cpu, pool } => {
                write!(f, "CPU {cpu} is not in the pool {pool:?}; name CPUs of that pool, or another pool")
            }
            Self::CpuNotAllowed(cpu) => {
                write!(f, "CPU {cpu} is not among this domain's cpus; add it there, or do not prefer it")
            }
            Self::NoReservations(pool) => write!(
                f,
                "the pool {pool:?} reserves nothing; give it policy = \"sedf\", or use weight instead"
            ),
            Self::Overbooked { slice, period, vcpu, pool } => write!(
                f,
                "{} in every {} finds no room for vCPU {vcpu} in the pool {pool:?}, of whose CPUs {}.{}% each can be \
                 reserved; shorten a slice, or give the pool more CPUs",
                Time(slice),
                Time(period),
                pools::RESERVABLE / 10,
                pools::RESERVABLE % 10
            ),
            Self::CpuBeyondMachine { cpu, have } => {
                write!(f, "this machine has no CPU {cpu}, only {have}, from 0; name others")
            }
            Self::PoolEmpty { pool, have } => write!(
                f,
                "the pool {pool:?} has none of this machine's {have} CPUs; leave it one, or use another pool"
            ),
            Self::Device(reason) => write!(f, "{reason}"),
            _ => f.write_str("refused"),
        }
    }
}

/// A number of microseconds, shown in the largest unit that loses nothing: `2s`, `10ms`, `1500us`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Time(
    /// Microseconds.
    pub u32,
);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0us"),
            micros if micros.is_multiple_of(1_000_000) => write!(f, "{}s", micros / 1_000_000),
            micros if micros.is_multiple_of(1000) => write!(f, "{}ms", micros / 1000),
            micros => write!(f, "{micros}us"),
        }
    }
}

/// A number of bytes, shown in the largest unit that loses nothing: `512M`, `1536K`, `1000` (bytes).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(
    /// Bytes.
    pub u64,
);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u32, &str); 5] = [(50, "P"), (40, "T"), (30, "G"), (20, "M"), (10, "K")];
        for (shift, unit) in UNITS {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}
