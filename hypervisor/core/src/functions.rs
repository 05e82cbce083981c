//! The machine's PCI functions, for the domain that owns them: what it sees of the machine, and where their interrupts go.

use alloc::boxed::Box;
use alloc::vec::Vec;

use caisson_boot::{Area, AreaKind};
use caisson_firmware::{EcamRange, SourceOverride, real_memory_map};
use caisson_irqchip::InterruptMessage;
use caisson_locks::{Mutex, Rank};
use caisson_machine::acpi::Platform;
use caisson_machine::memory::{self, GuestRam};
use caisson_machine::pci::{self, Found};
use caisson_machine::{device, ioapic, trap};
use caisson_pci::{Bus, LINES, LineMode, Message, Source, direct_memory};
use caisson_types::{DomainId, Gpa, Hpa, MemoryRegion, PageSize, RegionKind};

const FOUR_GIB: u64 = 4 << 30;
/// Bytes for ACPI tables beside the machine's own.
const TABLES: u64 = 64 << 10;

/// What the domain that owns the machine's functions is told of the machine.
pub(crate) struct Devices {
    /// The functions.
    pub(crate) functions: Vec<Found>,
    /// The machine's memory, as the firmware tells it.
    areas: Vec<Area>,
    /// DSDT and SSDTs.
    definitions: Vec<Vec<u8>>,
    /// Memory-mapped configuration space.
    pub(crate) ecam: Vec<EcamRange>,
    /// ISA interrupts that are not wired one to one.
    pub(crate) overrides: Vec<SourceOverride>,
    /// The SLP_TYP of S5 in the DSDT.
    pub(crate) soft_off: Option<u8>,
}

impl Devices {
    /// Finds them.
    ///
    /// # Safety
    /// As [`pci::init`].
    #[allow(unsafe_code)]
    pub(crate) unsafe fn find(platform: &Platform, areas: &[Area]) -> Self {
        // SAFETY: promised by the caller.
        let functions = unsafe { pci::init(platform) };
        let definitions = platform.definitions.iter().map(|table| {
            // SAFETY: the firmware's tables lie in memory that nobody writes, which is no frame of the allocator's.
            unsafe { device::bytes(table.address, table.bytes) }.unwrap_or_default()
        });
        let ecam = platform.ecam.iter().map(|ecam| EcamRange {
            address: ecam.address.as_u64(),
            segment: ecam.segment,
            buses: ecam.buses,
        });
        let overrides = platform.overrides.iter().map(|line| SourceOverride {
            irq: line.irq,
            gsi: line.gsi,
            flags: if line.active_low { 3 } else { 1 } | if line.level { 3 } else { 1 } << 2,
        });
        Self {
            functions,
            areas: areas.to_vec(),
            definitions: definitions.collect(),
            ecam: ecam.collect(),
            overrides: overrides.collect(),
            soft_off: platform.soft_off.as_ref().map(|off| off.sleep_type.0),
        }
    }

    /// Memory that its owner's kernel cannot map of others', since it maps pieces of 2 MiB, is given to nobody: the edges of RAM.
    pub(crate) fn reserve_edges(&self) {
        let piece = PageSize::Size2M.bytes();
        for area in self.areas.iter().filter(|area| area.kind == AreaKind::Usable) {
            let caisson_boot::Range { start, end } = area.range;
            let first = start.next_multiple_of(piece).min(end);
            let last = (end / piece * piece).max(first);
            memory::frames().reserve(Hpa::new(start), first - start);
            memory::frames().reserve(Hpa::new(last), end - last);
        }
    }

    /// The tables with code, the DSDT first.
    pub(crate) fn definitions(&self) -> Vec<&[u8]> {
        self.definitions.iter().map(Vec::as_slice).collect()
    }

    /// The functions as their owner sees them, with Caisson's own if it has a door.
    pub(crate) fn bus(&self, has_door: bool) -> Bus {
        let mut bus = Bus::new(self.functions.iter().map(|found| found.function().clone()).collect());
        for range in &self.ecam {
            let first = u64::from(range.buses.0) << 20;
            bus.add_window(range.address + first, range.segment, range.buses.0, range.buses.1);
        }
        if has_door {
            bus.add_own();
        }
        bus
    }

    /// Bytes that the domain's ACPI tables may take: whole pages.
    pub(crate) fn acpi_bytes(&self) -> u64 {
        let own: usize = self.definitions.iter().map(|table| table.len() + 64).sum();
        (own as u64 + TABLES).next_multiple_of(4096)
    }

    /// Where RAM ends below 4 GiB, and above.
    pub(crate) fn memory_ends(&self) -> (u64, u64) {
        let end = |below: bool| {
            let areas = self.areas.iter().filter(|area| area.kind == AreaKind::Usable);
            areas.map(|area| area.range.end).filter(|&end| (end <= FOUR_GIB) == below).max().unwrap_or(0)
        };
        (end(true).next_multiple_of(1 << 20), end(false))
    }

    /// The domain's memory map from 1 MiB on: `memory` is RAM, and from `acpi` on its piece holds tables. What the machine has
    /// beside it is soft-reserved, the pages of its door too.
    pub(crate) fn regions(&self, memory: &GuestRam, acpi: Gpa, door: Option<Gpa>) -> Vec<MemoryRegion> {
        let own = memory.extents().iter();
        let own = own.filter(|extent| extent.gpa.as_u64() == extent.hpa.as_u64() && Some(extent.gpa) != door);
        let own: Vec<_> =
            own.map(|extent| (extent.gpa.as_u64(), extent.gpa.as_u64() + extent.bytes)).collect();
        let areas = self.areas.iter().map(|area| {
            let kind = if area.kind == AreaKind::Usable { RegionKind::Ram } else { RegionKind::Reserved };
            MemoryRegion::new(Gpa::new(area.range.start), area.range.end - area.range.start, kind)
        });
        real_memory_map(&areas.collect::<Vec<_>>(), &own, acpi)
    }

    /// The memory that the functions decode and their owner reaches by itself: start and bytes.
    pub(crate) fn direct(&self) -> Vec<(Hpa, u64)> {
        let ranges = direct_memory(self.functions.iter().map(Found::function));
        ranges.into_iter().map(|(start, bytes)| (Hpa::new(start), bytes)).collect()
    }
}

/// What a vector is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// A message of a function.
    Message(Source),
    /// A line of the domain's.
    Line(u8),
}

/// An interrupt of a function, on its way to the function's owner.
#[derive(Clone, Copy)]
struct Route {
    domain: DomainId,
    cause: Cause,
    /// What the owner asked for.
    message: Option<InterruptMessage>,
}

/// What a vector brings its domain.
pub(crate) enum Arrival {
    /// A message.
    Message(InterruptMessage),
    /// A line is raised.
    Line(u8),
}

/// Where functions' interrupts go: for each of [`trap::FUNCTIONS`] the domain, and the message that it asked for.
pub(crate) struct Routes {
    vectors: Box<[Mutex<Option<Route>>]>,
    /// How each line is routed now. One domain owns all lines.
    lines: Mutex<[Option<LineMode>; LINES.end as usize]>,
}

impl Routes {
    pub(crate) fn new() -> Self {
        let vectors = trap::FUNCTIONS.map(|_| Mutex::new(Rank::Route, None)).collect();
        Self { vectors, lines: Mutex::new(Rank::Lines, [None; LINES.end as usize]) }
    }

    /// The domain wants its function's interrupt as `message` from now on: what the function is to send, so that it arrives
    /// at this CPU. `None` where all vectors are taken.
    pub(crate) fn route(&self, domain: DomainId, source: Source, message: Message) -> Option<Message> {
        let message = InterruptMessage::from_msi(message.address, message.data);
        pci::message_to_here(self.vector(Route { domain, cause: Cause::Message(source), message })?)
    }

    /// The domain wants a line, or no longer.
    pub(crate) fn set_line(&self, domain: DomainId, line: u8, mode: Option<LineMode>) {
        let mut lines = self.lines.lock();
        let Some(place) = lines.get_mut(usize::from(line)).filter(|place| **place != mode) else { return };
        *place = mode;
        let Some(mode) = mode else {
            ioapic::mask(line.into(), true);
            return;
        };
        let Some(vector) = self.vector(Route { domain, cause: Cause::Line(line), message: None }) else {
            return;
        };
        let mode = ioapic::LineMode { active_low: mode.active_low, level: mode.level };
        if !ioapic::route(line.into(), vector, mode) {
            log::debug!("line {line}: no I/O APIC serves it");
        }
    }

    /// The service of a line has ended: it may come again, if the domain still wants it.
    pub(crate) fn end_line(&self, line: u8) {
        let lines = self.lines.lock();
        if lines.get(usize::from(line)).is_some_and(Option::is_some) {
            ioapic::mask(line.into(), false);
        }
    }

    /// The vector that a route has, or gets. `None` where all are taken.
    fn vector(&self, route: Route) -> Option<u8> {
        let is_it = |other: &Option<Route>| {
            other.is_some_and(|other| (other.domain, other.cause) == (route.domain, route.cause))
        };
        let known = self.vectors.iter().position(|place| is_it(&place.lock()));
        let index = match known {
            Some(index) => {
                *self.vectors[index].lock() = Some(route);
                index
            }
            None => self.vectors.iter().position(|place| {
                let mut place = place.lock();
                let free = place.is_none();
                if free {
                    *place = Some(route);
                }
                free
            })?,
        };
        Some(trap::FUNCTIONS.start() + index as u8)
    }

    /// An interrupt has arrived with `vector`: whose it is, and what to deliver. A line is masked from here on.
    pub(crate) fn arrive(&self, vector: u8) -> Option<(DomainId, Arrival)> {
        let index = usize::from(vector.checked_sub(*trap::FUNCTIONS.start())?);
        let route = (*self.vectors.get(index)?.lock())?;
        let arrival = match route.cause {
            Cause::Message(_) => Arrival::Message(route.message?),
            Cause::Line(line) => {
                ioapic::mask(line.into(), true);
                Arrival::Line(line)
            }
        };
        Some((route.domain, arrival))
    }

    /// The domain has ended: its vectors are free again.
    pub(crate) fn release(&self, domain: DomainId) {
        for line in LINES {
            self.set_line(domain, line, None);
        }
        for place in &self.vectors {
            let mut place = place.lock();
            if place.is_some_and(|route| route.domain == domain) {
                *place = None;
            }
        }
    }
}
