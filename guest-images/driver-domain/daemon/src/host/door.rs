//! The door: Caisson's PCI function, driven from user space by `uio_pci_generic` (`caisson_abi::door`).
//!
//! The function is found by its ids among the devices of UIO; where the driver has not been bound to it, it is told to. Its
//! registers are mapped by `resource0`, its interrupt is read from `/dev/uioN`. The function masks its pin by itself when it has
//! sent an interrupt; the write to its status register that acknowledges the interrupt lets the next one through.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use caisson_abi::door::{AREA_PAGES, CALLS_COUNT, DATA_PAGE, EVENTS_PAGE, LIST_PAGE, MAGIC, register};
use caisson_abi::events::PAGE_WORDS;
use caisson_abi::io::MemoryRange;
use caisson_abi::{BATCH_ENTRY_BYTES, BATCH_MAX, CallError, VERSION};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::dax::{self, Dax};
use super::{Call, Host, MAX_DATA};
use crate::sys::{Mapping, Memory};

/// Caisson's function: vendor and device.
const IDS: (&str, &str) = ("0xca15", "0x0001");
/// Where the driver is told of ids, as it wants them.
const NEW_ID: (&str, &str) = ("/sys/bus/pci/drivers/uio_pci_generic/new_id", "ca15 0001");
/// Where the kernel lists UIO devices.
const UIO: &str = "/sys/class/uio";
/// A page of registers, or of the area.
const PAGE: usize = 4096;
/// The command register, and of its bits: memory decoding, the interrupt pin's disabling (PCI 3.0, section 6.2.2).
const COMMAND: u64 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_NO_PIN: u16 = 1 << 10;
/// Words of an entry of a list, and of those the answer's.
const ENTRY_WORDS: usize = BATCH_ENTRY_BYTES as usize / 8;
const ANSWER_WORD: usize = 5;
/// What no call answers.
const UNANSWERED: u64 = 1 << 63;
/// An event that a thread sleeps for costs so many times of how late a timer's sleep ends: it wakes two threads, and its interrupt,
/// by the kernel's looks at the function's configuration and at the level-triggered pin, has more exits than a timer's.
const EVENT_IN_TIMERS: u32 = 2;
/// What that makes is believed between these bounds.
const LEAST_COST: Duration = Duration::from_micros(50);
const MOST_COST: Duration = Duration::from_millis(1);
/// How many times and for how long the door sleeps, to know how late a sleep ends.
const NAPS: usize = 9;
const NAP: Duration = Duration::from_millis(1);
/// What the register of the interrupt's pin reads while it has none.
const NO_PIN: u32 = 0xff;

/// Why the door does not open.
#[derive(Debug)]
pub enum DoorError {
    /// There is no such function.
    NotFound,
    /// Something else answers.
    Stranger(u32),
    /// Another version of the interface.
    Version(u32),
    /// The area is smaller than agreed.
    Area(u32),
    /// The kernel's number of the interrupt is no pin that Caisson knows.
    Pin(u32),
    /// The kernel refuses a step.
    Kernel(&'static str, io::Error),
}

impl fmt::Display for DoorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str(
                "Caisson's PCI function ca15:0001 is not among the UIO devices: load uio_pci_generic, and see that this domain \
                 has privileges = [\"events\", \"io-backend\"] and functions of the machine",
            ),
            Self::Stranger(magic) => write!(f, "the function's first register reads {magic:#x}, which is not Caisson's"),
            Self::Version(version) => {
                write!(f, "Caisson speaks version {version} of its interface, and this is built for {VERSION}: use a pair")
            }
            Self::Area(pages) => write!(f, "the door's area has {pages} pages, and {AREA_PAGES} are needed"),
            Self::Pin(irq) => write!(
                f,
                "the kernel says that the function's interrupt is {irq}, which the ACPI tables do not: do not boot the \
                 driver domain with noapic or acpi=off"
            ),
            Self::Kernel(step, error) => write!(f, "cannot {step}: {error}"),
        }
    }
}

impl std::error::Error for DoorError {}

/// The door, open.
pub struct Door {
    registers: Mapping,
    area: Mapping,
    /// Where in its mapping the area starts, and at which machine address it is.
    area_offset: usize,
    area_address: u64,
    interrupt: File,
    dax: Vec<Dax>,
    /// The list's and the data's pages are for one at a time.
    calls: Mutex<()>,
    cost_of_sleep: Duration,
}

impl Door {
    /// Finds and opens it.
    ///
    /// # Errors
    /// Why it does not open.
    pub fn open() -> Result<Self, DoorError> {
        let (name, device) = find()?;
        let step = |step| move |error| DoorError::Kernel(step, error);
        let mut both = OpenOptions::new();
        both.read(true).write(true);
        let config = both.open(device.join("config")).map_err(step("open the function's configuration"))?;
        let mut command = [0; 2];
        config.read_exact_at(&mut command, COMMAND).map_err(step("read the command register"))?;
        let command = (u16::from_le_bytes(command) | COMMAND_MEMORY) & !COMMAND_NO_PIN;
        let interrupt = both.open(Path::new("/dev").join(name)).map_err(step("open the UIO device"))?;
        config.write_all_at(&command.to_le_bytes(), COMMAND).map_err(step("write the command register"))?;
        let registers = both.open(device.join("resource0")).map_err(step("open the function's registers"))?;
        let registers = Mapping::new(&registers, 0, PAGE).map_err(step("map the function's registers"))?;

        let half = |at: u16| registers.half(at.into()).map_or(0, |word| word.load(Ordering::Acquire));
        match (half(register::MAGIC), half(register::VERSION), half(register::AREA_PAGES)) {
            (magic, ..) if magic != MAGIC => return Err(DoorError::Stranger(magic)),
            (_, version, _) if u64::from(version) != VERSION => return Err(DoorError::Version(version)),
            (.., pages) if pages < AREA_PAGES => return Err(DoorError::Area(pages)),
            _ => {}
        }
        let area = registers.words(register::AREA.into(), 1).and_then(<[_]>::first);
        let area_address = area.map_or(0, |word| word.load(Ordering::Acquire));
        let dax = Dax::all();
        let bytes = u64::from(AREA_PAGES) * PAGE as u64;
        let (area, area_offset) = dax::map(&dax, area_address, bytes).map_err(step("map the door's area"))?;
        let door = Self {
            registers,
            area,
            area_offset,
            area_address,
            interrupt,
            dax,
            calls: Mutex::new(()),
            cost_of_sleep: cost_of_sleep().map_err(step("sleep by a timer"))?,
        };
        // Linux's numbers of interrupts are the I/O APIC's pins, where that is the first one.
        let irq = fs::read_to_string(device.join("irq")).map_err(step("read the function's interrupt"))?;
        let irq = irq.trim().parse().unwrap_or(0);
        door.set(register::PIN, irq);
        if door.half(register::PIN).is_none_or(|pin| pin.load(Ordering::Acquire) == NO_PIN) {
            return Err(DoorError::Pin(irq));
        }
        // So that no later access can fail.
        match (door.words(0, AREA_PAGES as usize * PAGE / 8), door.events_page()) {
            (Some(_), Some(_)) => Ok(door),
            _ => Err(DoorError::Kernel("map the door's area", io::ErrorKind::InvalidData.into())),
        }
    }

    /// The number of the domain that this is.
    #[must_use]
    pub fn domain(&self) -> u32 {
        self.half(register::DOMAIN).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn half(&self, at: u16) -> Option<&AtomicU32> {
        self.registers.half(at.into())
    }

    fn word(&self, at: u16) -> Option<&AtomicU64> {
        self.registers.words(at.into(), 1)?.first()
    }

    fn set(&self, at: u16, value: u32) {
        if let Some(register) = self.half(at) {
            // A plain store: Caisson carries out what the compiler makes of it.
            register.store(value, Ordering::Release);
        }
    }

    fn words(&self, offset: usize, count: usize) -> Option<&[AtomicU64]> {
        self.area.words(self.area_offset + offset, count)
    }

    fn events_page(&self) -> Option<&[AtomicU64; PAGE_WORDS]> {
        self.words(EVENTS_PAGE as usize * PAGE, PAGE_WORDS)?.try_into().ok()
    }

    /// Makes the calls of one list, which fit.
    fn make(&self, calls: &mut [Call]) -> Option<()> {
        let list = self.words(LIST_PAGE as usize * PAGE, calls.len() * ENTRY_WORDS)?;
        let data = self.words(DATA_PAGE as usize * PAGE, MAX_DATA / 8)?;
        let data_address = self.area_address + u64::from(DATA_PAGE) * PAGE as u64;
        let mut used = 0;
        for (call, entry) in calls.iter_mut().zip(list.chunks_exact(ENTRY_WORDS)) {
            if let Some(argument) = call.address.and_then(|at| call.arguments.get_mut(at)) {
                *argument = data_address + used as u64 * 8;
                let there = data.get(used..used + call.data.len().div_ceil(8))?;
                for (word, bytes) in there.iter().zip(call.data.chunks(8)) {
                    let mut value = [0; 8];
                    value.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                    word.store(u64::from_le_bytes(value), Ordering::Relaxed);
                }
                used += there.len();
            }
            let words = std::iter::once(call.number.value()).chain(call.arguments).chain([UNANSWERED]);
            entry.iter().zip(words).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        }
        let address = self.area_address + u64::from(LIST_PAGE) * PAGE as u64;
        // The count has its place below the address, which is a multiple of a page.
        self.word(register::CALLS)?.store(address | (calls.len() as u64 & CALLS_COUNT), Ordering::Release);
        let unmade = list.chunks_exact(ENTRY_WORDS).any(|entry| {
            entry.get(ANSWER_WORD).is_none_or(|answer| answer.load(Ordering::Acquire) == UNANSWERED)
        });
        // Asked only where it says something: a register costs an exit.
        let answer = if unmade { self.word(register::ANSWER)?.load(Ordering::Acquire) } else { 0 };
        let failed = CallError::of_answer(answer);
        let mut used = 0;
        for (call, entry) in calls.iter_mut().zip(list.chunks_exact(ENTRY_WORDS)) {
            let answer = entry.get(ANSWER_WORD)?.load(Ordering::Acquire);
            call.answer = match (failed, CallError::of_answer(answer)) {
                (_, Some(error)) => Err(error),
                (_, None) if answer < UNANSWERED => Ok(answer),
                (error, None) => Err(error.unwrap_or(CallError::Fault)),
            };
            if call.address.is_some() {
                let there = data.get(used..used + call.data.len().div_ceil(8))?;
                for (word, bytes) in there.iter().zip(call.data.chunks_mut(8)) {
                    let value = word.load(Ordering::Relaxed).to_le_bytes();
                    bytes.iter_mut().zip(value).for_each(|(to, from)| *to = from);
                }
                used += there.len();
            }
        }
        Some(())
    }
}

/// What it costs to sleep for an event, on this machine as it is: by how late sleeps end that a timer does, the middle one of them. Its
/// CPU's HLT, the timer's setting, the interrupt and the thread's turn are in that.
fn cost_of_sleep() -> io::Result<Duration> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let once = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec::try_from(NAP).unwrap_or_default(),
    };
    let mut late = [Duration::ZERO; NAPS];
    for late in &mut late {
        let start = Instant::now();
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
        rustix::io::read(&timer, &mut [0; 8])?;
        *late = start.elapsed().saturating_sub(NAP);
    }
    late.sort_unstable();
    let middle = late.get(NAPS / 2).copied().unwrap_or_default();
    Ok((middle * EVENT_IN_TIMERS).clamp(LEAST_COST, MOST_COST))
}

/// Looks for the function among the UIO devices, and tells the driver of it where it is not: its UIO name, and its directory.
fn find() -> Result<(PathBuf, PathBuf), DoorError> {
    for attempt in 0..50 {
        for entry in fs::read_dir(UIO).into_iter().flatten().flatten() {
            let device = entry.path().join("device");
            let is = |name: &str, id: &str| {
                fs::read_to_string(device.join(name)).is_ok_and(|text| text.trim() == id)
            };
            if is("vendor", IDS.0) && is("device", IDS.1) {
                return Ok((entry.file_name().into(), device));
            }
        }
        if attempt == 0 {
            // Refused where it knows the ids already; the function appears a moment later, if at all.
            let _ = fs::write(NEW_ID.0, NEW_ID.1);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(DoorError::NotFound)
}

impl Host for Door {
    fn calls(&self, calls: &mut [Call]) {
        let _one = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: usize = calls.iter().map(|call| call.data.len().next_multiple_of(8)).sum();
        if calls.len() > BATCH_MAX || bytes > MAX_DATA {
            return calls.iter_mut().for_each(|call| call.answer = Err(CallError::TooBig));
        }
        if self.make(calls).is_none() {
            calls.iter_mut().for_each(|call| call.answer = Err(CallError::Fault));
        }
    }

    fn interrupt(&self, channel: u16) {
        self.set(register::INTERRUPT, channel.into());
    }

    fn events(&self) -> &[AtomicU64; PAGE_WORDS] {
        static NONE: [AtomicU64; PAGE_WORDS] = [const { AtomicU64::new(0) }; PAGE_WORDS];
        // Seen to be there when the door was opened.
        self.events_page().unwrap_or(&NONE)
    }

    fn events_address(&self) -> u64 {
        self.area_address + u64::from(EVENTS_PAGE) * PAGE as u64
    }

    fn interrupt_fd(&self) -> BorrowedFd<'_> {
        self.interrupt.as_fd()
    }

    fn take_interrupt(&self) -> io::Result<()> {
        // How many there were, as 32 bits: of no interest.
        (&self.interrupt).read_exact(&mut [0; 4])?;
        self.set(register::STATUS, 1);
        Ok(())
    }

    fn cost_of_sleep(&self) -> Duration {
        self.cost_of_sleep
    }

    fn map(&self, ranges: &[MemoryRange]) -> io::Result<Memory> {
        dax::map_memory(&self.dax, ranges)
    }
}
