//! The machine's PCI functions, for the domain that owns them: what it sees of the machine, and where their interrupts go.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::dma::{Dma, InterruptSender};
use caisson_boot::{Area, AreaKind};
use caisson_firmware::{EcamRange, SourceOverride, real_memory_map};
use caisson_irqchip::InterruptMessage;
use caisson_locks::{Mutex, Rank};
use caisson_machine::acpi::Platform;
use caisson_machine::memory::{self, GuestRam};
use caisson_machine::pci::{self, Access, Configuration, Found};
use caisson_machine::{device, ioapic, iommu, trap};
use caisson_pci::{
    Address, Bus, Collision, Function, LINES, Layout, LineMode, Message, OwnerError, Owners, Reserved, Reset,
    Source, open_bridges,
};
use caisson_types::{DomainId, Gpa, Hpa, MemoryRegion, PageSize, RegionKind};

const FOUR_GIB: u64 = 4 << 30;
/// Bytes for ACPI tables beside the machine's own.
const TABLES: u64 = 64 << 10;

/// How a guest reaches the functions that it owns.
struct Way {
    /// Its number in the configuration.
    guest: usize,
    layout: Layout,
    /// None where there is no room to map what Caisson accesses for it.
    access: Option<Arc<Access>>,
}

/// The machine's functions, and what the domains that own them are told of the machine.
pub(crate) struct Devices {
    functions: Vec<Found>,
    /// Those that decode what they must not.
    pub(crate) collisions: Vec<Collision>,
    owners: Owners,
    ways: Vec<Way>,
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
    /// Finds them, for these owners.
    ///
    /// # Errors
    /// What the machine has not, or cannot give to them.
    ///
    /// # Safety
    /// As [`pci::init`].
    #[allow(unsafe_code)]
    pub(crate) unsafe fn find(
        platform: &Platform,
        areas: &[Area],
        owners: Owners,
    ) -> Result<Self, OwnerError> {
        // SAFETY: promised by the caller.
        let (functions, collisions) = unsafe { pci::init(platform, &reserved(platform, areas)) };
        owners.check(&functions.iter().map(Found::function))?;
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
        let mut devices = Self {
            functions,
            collisions,
            owners,
            ways: Vec::new(),
            areas: areas.to_vec(),
            definitions: definitions.collect(),
            ecam: ecam.collect(),
            overrides: overrides.collect(),
            soft_off: platform.soft_off.as_ref().map(|off| off.sleep_type.0),
        };
        open_bridges(&mut Configuration, &devices.all());
        let guests: Vec<_> = devices.owners.guests().collect();
        for guest in guests {
            let foreign = devices.all().filter(|function| !devices.owns(guest, function));
            let foreign: Vec<_> = foreign.flat_map(Function::memory).collect();
            let layout = Layout::new(devices.owned(guest).map(Found::function), &foreign);
            let access = Access::new(devices.owned(guest), &layout.judged).map(Arc::new);
            devices.ways.push(Way { guest, layout, access });
            // What the firmware has begun ends before anybody's memory is where it thought to have some.
            devices.bus(guest, false).quiesce(&mut Configuration);
        }
        Ok(devices)
    }

    /// All functions of the machine.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Function> + Clone {
        self.functions.iter().map(Found::function)
    }

    /// Whether a guest owns a function.
    fn owns(&self, guest: usize, function: &Function) -> bool {
        self.owners.owner(function) == Some(guest)
    }

    /// What a guest owns.
    pub(crate) fn owned(&self, guest: usize) -> impl Iterator<Item = &Found> + Clone {
        self.functions.iter().filter(move |found| self.owns(guest, found.function()))
    }

    /// The guest that the lines of the functions' pins belong to.
    pub(crate) fn line_owner(&self) -> Option<usize> {
        self.owners.line_owner()
    }

    /// What Caisson accesses of a guest's functions for it. `None` where there is no room to map it.
    pub(crate) fn access(&self, guest: usize) -> Option<Arc<Access>> {
        self.ways.iter().find(|way| way.guest == guest)?.access.clone()
    }

    /// The reset of a guest's functions, which have been stopped.
    pub(crate) fn reset(&self, guest: usize) -> Reset {
        Reset::new(&self.all(), |function| self.owns(guest, function))
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

    /// The functions as a guest that owns some sees them, with Caisson's own if it has a door.
    pub(crate) fn bus(&self, guest: usize, has_door: bool) -> Bus {
        let has_lines = self.line_owner() == Some(guest);
        let mut bus = Bus::new(&self.all(), |function| self.owns(guest, function), has_lines);
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

    /// The memory that a guest's functions decode and it reaches by itself: start and bytes.
    pub(crate) fn direct(&self, guest: usize) -> Vec<(Hpa, u64)> {
        let way = self.ways.iter().find(|way| way.guest == guest);
        let ranges = way.into_iter().flat_map(|way| &way.layout.direct);
        ranges.map(|&(start, bytes)| (Hpa::new(start), bytes)).collect()
    }
}

/// What no function may decode: RAM, interrupt controllers, IOMMUs, timers, configuration space, the ports of power management.
fn reserved(platform: &Platform, areas: &[Area]) -> Reserved {
    const PAGE: u64 = 4096;
    const MIB: u64 = 1 << 20;
    let mut reserved = Reserved::default();
    let ram = areas.iter().filter(|area| area.kind == AreaKind::Usable);
    reserved.memory.extend(ram.map(|area| (area.range.start, area.range.end)));
    let registers = platform.io_apics.iter().map(|chip| chip.address).chain(platform.hpet);
    reserved.memory.extend(registers.map(|at| (at.as_u64() & !(PAGE - 1), (at.as_u64() | (PAGE - 1)) + 1)));
    reserved.memory.extend(iommu::registers(platform));
    // The local APICs', and messages.
    reserved.memory.push((0xfee0_0000, 0xfef0_0000));
    reserved.memory.extend(platform.ecam.iter().map(|ecam| {
        let (first, last) = (u64::from(ecam.buses.0), u64::from(ecam.buses.1) + 1);
        (ecam.address.as_u64() + first * MIB, ecam.address.as_u64() + last * MIB)
    }));
    let timer = platform.pm_timer.map(|(port, _)| port);
    let reset = platform.reset.as_ref().map(|reset| reset.port);
    let off = platform.soft_off.as_ref();
    let off = off
        .into_iter()
        .flat_map(|off| [Some(off.pm1a), off.pm1b, off.enable.map(|(port, _)| port)].into_iter().flatten());
    // The blocks of power management are small, and lie together as a rule: 128 ports of the chipset's each.
    let ports = timer.into_iter().chain(reset).chain(off).map(u64::from);
    reserved.ports.extend(ports.map(|port| (port & !127, (port | 127) + 1)));
    reserved
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
    /// Whose the lines are.
    line_owner: Option<DomainId>,
    /// What sees to it that functions raise no others, where there is one, and which functions each owner sees.
    dma: Option<&'static Dma>,
    functions: Vec<(DomainId, Vec<Address>)>,
    /// How each line is routed now.
    lines: Mutex<[Option<LineMode>; LINES.end as usize]>,
}

impl Routes {
    /// None yet; `id_of` tells the owners' ids.
    pub(crate) fn new(
        devices: Option<&Devices>,
        dma: Option<&'static Dma>,
        id_of: impl Fn(usize) -> DomainId,
    ) -> Self {
        let vectors = trap::FUNCTIONS.map(|_| Mutex::new(Rank::Route, None)).collect();
        let line_owner = devices.and_then(Devices::line_owner).map(&id_of);
        let seen = |devices: &Devices, guest| {
            devices.bus(guest, false).views().iter().map(|view| view.function().address).collect()
        };
        let of = |devices: &Devices| -> Vec<_> {
            let guests = devices.owners.guests();
            guests.map(|guest| (id_of(guest), seen(devices, guest))).collect()
        };
        let functions = devices.map(of).unwrap_or_default();
        Self {
            vectors,
            line_owner,
            dma,
            functions,
            lines: Mutex::new(Rank::Lines, [None; LINES.end as usize]),
        }
    }

    /// The domain wants its function's interrupt as `message` from now on: what the function is to send, so that it arrives
    /// at this CPU. `None` where all vectors are taken.
    pub(crate) fn route(&self, domain: DomainId, source: Source, message: Message) -> Option<Message> {
        let message = InterruptMessage::from_msi(message.address, message.data);
        let vector = self.vector(Route { domain, cause: Cause::Message(source), message })?;
        if let Some(dma) = self.dma {
            let (_, functions) = self.functions.iter().find(|(owner, _)| *owner == domain)?;
            let function = functions.get(usize::from(source.function))?;
            dma.deliver(vector, InterruptSender::Function(*function))?;
        }
        pci::message_to_here(vector)
    }

    /// The domain wants a line, or no longer.
    pub(crate) fn set_line(&self, domain: DomainId, line: u8, mode: Option<LineMode>) {
        if self.line_owner != Some(domain) {
            return;
        }
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
        let sender = InterruptSender::Line(line.into(), mode.level);
        if self.dma.is_some_and(|dma| dma.deliver(vector, sender).is_none()) {
            return;
        }
        let mode = ioapic::LineMode { active_low: mode.active_low, level: mode.level };
        if !ioapic::route(line.into(), vector, mode) {
            log::debug!("line {line}: no I/O APIC serves it");
        }
    }

    /// The service of a line has ended: it may come again, if the domain still wants it.
    pub(crate) fn end_line(&self, domain: DomainId, line: u8) {
        if self.line_owner != Some(domain) {
            return;
        }
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
        for (vector, place) in trap::FUNCTIONS.zip(&self.vectors) {
            let mut place = place.lock();
            if place.is_some_and(|route| route.domain == domain) {
                *place = None;
                if let Some(dma) = self.dma {
                    dma.withhold(vector);
                }
            }
        }
    }
}
