//! The contract with a unit, of either vendor.

use core::fmt;

use caisson_pci::Address;
use caisson_stage2::{Format, Levels, TableMemory};
use caisson_types::{Hpa, PageSize};

/// How long a unit may take to answer, in nanoseconds. Units answer within microseconds; this is for one that never does.
pub const PATIENCE: u64 = 1_000_000_000;

/// Entries of an interrupt table.
pub const INTERRUPTS: usize = 256;

/// A unit's registers, and the time.
pub trait Hardware: Send {
    /// Reads 32 bits at `offset` bytes, a multiple of 4 within the unit's registers.
    fn read32(&self, offset: u64) -> u32;
    /// Writes them.
    fn write32(&mut self, offset: u64, value: u32);
    /// Reads 64 bits at `offset` bytes, a multiple of 8.
    fn read64(&self, offset: u64) -> u64;
    /// Writes them.
    fn write64(&mut self, offset: u64, value: u64);
    /// Nanoseconds since some moment.
    fn now(&self) -> u64;
}

/// The memory that units read: tables and queues.
pub trait Memory: TableMemory + Send {
    /// 2^`order` contiguous pages of zeros, aligned to their size, for as long as the machine runs; `None` where there are
    /// none. Each of them is then read and written as a table.
    fn allocate_run(&mut self, order: u8) -> Option<Hpa>;

    /// Whether units see writes as soon as processors do. Where not, a write has to leave the caches before it returns.
    /// Until this is called they do not.
    fn set_snooped(&mut self, snooped: bool);
}

/// The number of a DMA domain, by which units know what they have cached of it. 0 is nobody's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag(pub u16);

/// What tables a unit walks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Whether tables of 3, 4 and 5 levels.
    pub levels: [bool; 3],
    /// The largest leaf.
    pub largest_leaf: PageSize,
    /// Bits of a device's address.
    pub address_bits: u8,
    /// It sees what processors write without being told.
    pub snooped: bool,
    /// Tags are below this.
    pub tags: u32,
}

impl Shape {
    /// What both take.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            levels: [0, 1, 2].map(|index| self.levels[index] && other.levels[index]),
            largest_leaf: self.largest_leaf.min(other.largest_leaf),
            address_bits: self.address_bits.min(other.address_bits),
            snooped: self.snooped && other.snooped,
            tags: self.tags.min(other.tags),
        }
    }

    /// How deep tables are made: four levels where there is a choice, as they reach all that a guest has.
    #[must_use]
    pub fn depth(&self) -> Option<Levels> {
        match self.levels {
            [_, true, _] => Some(Levels::Four),
            [true, ..] => Some(Levels::Three),
            [.., true] => Some(Levels::Five),
            _ => None,
        }
    }
}

/// What a unit writes, and where, to interrupt a processor: a message as PCI functions write it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// The address, below 4 GiB.
    pub address: u32,
    /// What is written.
    pub data: u32,
}

/// Whose messages an entry of an interrupt table is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// Anybody's.
    Anybody,
    /// Those with this requester id.
    Device(u16),
    /// Those of the devices of these buses, first and last.
    Buses(u8, u8),
}

impl Sender {
    /// Who sends messages with any of these ids.
    #[must_use]
    pub fn of(ids: &[Address]) -> Self {
        let buses = || ids.iter().map(|id| id.bus());
        match (ids, buses().min(), buses().max()) {
            ([only], ..) => Self::Device(only.routing),
            (_, Some(first), Some(last)) => Self::Buses(first, last),
            _ => Self::Anybody,
        }
    }
}

/// What becomes of a message that names an entry of an interrupt table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interrupt {
    /// The vector that arrives.
    pub vector: u8,
    /// The local APIC's id of the processor where it does.
    pub processor: u32,
    /// By level.
    pub level: bool,
    /// Who may send it.
    pub sender: Sender,
}

/// A device was stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The id that its request bore. `None` where the unit does not know.
    pub device: Option<Address>,
    /// What it did.
    pub kind: FaultKind,
    /// Why it was stopped.
    pub reason: &'static str,
}

/// What a device was stopped at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// Reading or writing memory, at this address (of some vendors' units: of its page).
    Memory {
        /// Where.
        address: u64,
        /// It was to write.
        write: bool,
    },
    /// Interrupting.
    Interrupt,
    /// Something else.
    Other,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device {
            Some(device) => write!(f, "{device}: ")?,
            None => f.write_str("an unknown device: ")?,
        }
        match self.kind {
            FaultKind::Memory { address, write: true } => write!(f, "DMA write to {address:#x}")?,
            FaultKind::Memory { address, write: false } => write!(f, "DMA read of {address:#x}")?,
            FaultKind::Interrupt => f.write_str("interrupt")?,
            FaultKind::Other => f.write_str("request")?,
        }
        write!(f, " stopped: {}", self.reason)
    }
}

/// Why something could not be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// No unit answers at the address that ACPI tells.
    Absent,
    /// The machine's units have no shape of tables in common that Caisson makes.
    NoShape,
    /// A unit does not answer: waiting for this.
    Stuck(&'static str),
    /// No memory for a unit's tables.
    OutOfMemory,
    /// As many domains as the units can tell apart exist.
    TooManyDomains,
    /// The device is behind no unit.
    NoUnit(Address),
    /// The unit does not remap interrupts.
    NoRemapping,
    /// There is no such domain.
    NoDomain(Tag),
    /// The tables refuse a mapping.
    Tables(caisson_stage2::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => {
                f.write_str("no unit answers where ACPI says that one is: turn it on in the firmware's setup")
            }
            Self::NoShape => f.write_str("its units walk no tables of a common depth"),
            Self::Stuck(what) => write!(f, "a unit does not answer ({what}): the machine is broken"),
            Self::OutOfMemory => f.write_str("no memory left for its tables"),
            Self::TooManyDomains => f.write_str("it cannot tell more domains apart"),
            Self::NoUnit(device) => write!(f, "{device} is behind no unit"),
            Self::NoRemapping => f.write_str("a unit does not remap interrupts"),
            Self::NoDomain(tag) => write!(f, "there is no DMA domain {}", tag.0),
            Self::Tables(error) => error.fmt(f),
        }
    }
}

/// A unit.
///
/// Whatever fails with [`Error::Stuck`] may have happened in part; what it was to take away may still be in use.
pub trait Unit: Send {
    /// The format of its tables.
    type Pages: Format + Send;

    /// What tables it walks.
    fn shape(&self) -> Shape;

    /// Takes the unit over from the firmware, whatever state that left it in, with all devices blocked but those that were
    /// attached before; from then on it restricts them.
    ///
    /// # Errors
    /// [`Error`]; the unit's state is unknown then.
    fn enable(&mut self, memory: &mut impl Memory) -> Result<(), Error>;

    /// Makes room for a device in the unit's tables, so that [`attach`](Self::attach) needs none.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn prepare(&mut self, memory: &mut impl Memory, device: u16) -> Result<(), Error>;

    /// Has a prepared device use the tables at `root`, `levels` deep, in place of what it used.
    ///
    /// # Errors
    /// [`Error::Stuck`], or [`Error::OutOfMemory`] for a device that is not prepared.
    fn attach(
        &mut self,
        memory: &mut impl Memory,
        device: u16,
        tag: Tag,
        root: Hpa,
        levels: Levels,
    ) -> Result<(), Error>;

    /// Blocks a device. When it returns, none of the device's requests are under way, and nothing is cached of its domain.
    ///
    /// # Errors
    /// [`Error::Stuck`].
    fn block(&mut self, memory: &mut impl Memory, device: u16) -> Result<(), Error>;

    /// The tables of `tag` have entries where there were none. Units that cache what is not there forget it.
    ///
    /// # Errors
    /// [`Error::Stuck`].
    fn mapped(&mut self, memory: &mut impl Memory, tag: Tag) -> Result<(), Error>;

    /// Forgets all that it has cached of the tables of `tag`, and waits for requests that still use it.
    ///
    /// # Errors
    /// [`Error::Stuck`].
    fn forget(&mut self, memory: &mut impl Memory, tag: Tag) -> Result<(), Error>;

    /// Has the unit write this when devices are stopped, `None` for nothing. Units that interrupt by a PCI capability leave
    /// the message to whoever reaches it.
    fn interrupt(&mut self, message: Option<Message>);

    /// Whether it can hold devices to the interrupts that are theirs; `wide` where processors' ids may have more than 8 bits.
    fn can_remap(&self, wide: bool) -> bool;

    /// From now on a message arrives as what it names in a table of [`INTERRUPTS`] entries, which is empty, or not at all.
    ///
    /// # Errors
    /// [`Error::Stuck`], [`Error::OutOfMemory`], or [`Error::NoRemapping`] where it cannot.
    fn remap(&mut self, memory: &mut impl Memory, wide: bool) -> Result<(), Error>;

    /// Writes an entry, below [`INTERRUPTS`], and waits until no message arrives as before.
    ///
    /// # Errors
    /// [`Error::Stuck`], or [`Error::NoRemapping`] where it does not remap.
    fn set_interrupt(
        &mut self,
        memory: &mut impl Memory,
        index: u8,
        interrupt: Option<Interrupt>,
    ) -> Result<(), Error>;

    /// A device that was stopped, in no certain order; `None` when there are no more. Who does not ask for them loses some.
    /// The next one interrupts again once there were no more.
    fn take_fault(&mut self, memory: &mut impl Memory) -> Option<Fault>;
}

/// Waits until `done`, which waits for what `what` says, but no longer than [`PATIENCE`].
pub(crate) fn wait<H: Hardware>(
    hardware: &H,
    what: &'static str,
    mut done: impl FnMut(&H) -> bool,
) -> Result<(), Error> {
    let start = hardware.now();
    loop {
        // The time is looked at first: who was away for long in between looks once more.
        let waited = hardware.now().wrapping_sub(start);
        if done(hardware) {
            return Ok(());
        }
        if waited > PATIENCE {
            return Err(Error::Stuck(what));
        }
        core::hint::spin_loop();
    }
}
