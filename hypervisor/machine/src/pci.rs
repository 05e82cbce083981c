//! PCI functions of the machine: their configuration spaces, the memory that a domain does not reach by itself, their ports.
//!
//! Configuration space is reached through memory (ECAM, PCI Firmware Specification 3.3, section 4.1) where ACPI tells of it,
//! else by configuration mechanism #1, whose two ports are used one access at a time.

use alloc::boxed::Box;
use alloc::vec::Vec;

use caisson_locks::{Mutex, Rank};
use caisson_pci::{Address, Collision, ConfigSpace, Function, Message, Reserved, scan, settle};
use caisson_types::Hpa;
use spin::Once;

use crate::acpi::{Ecam, Platform};
use crate::apic;
use crate::cpu::{inb, inl, inw, outb, outl, outw};
use crate::device::Registers;
use crate::iommu;

/// Bytes of configuration space of a bus.
const BUS_BYTES: u64 = 1 << 20;
const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Where each bus's configuration space is mapped, once somebody has asked for it; `None` where there was no room.
type Buses = Box<[Once<Option<Registers>>]>;

/// The ways to configuration space.
struct Ways {
    /// Where ACPI says that it is in memory.
    ecam: Box<[(Ecam, Buses)]>,
    /// One access by the ports at a time.
    ports: Mutex<()>,
}

static WAYS: Once<Ways> = Once::new();

/// Makes configuration space reachable. It may be called again.
pub fn prepare(platform: &Platform) {
    let buses = |ecam: &Ecam| (ecam.buses.0..=ecam.buses.1).map(|_| Once::new()).collect();
    WAYS.call_once(|| Ways {
        ecam: platform.ecam.iter().map(|ecam| (*ecam, buses(ecam))).collect(),
        ports: Mutex::new(Rank::PciPorts, ()),
    });
}

/// Finds every function of the machine, and the registers that decode what is not theirs: RAM, what is `reserved`, or what
/// others decode. Nobody is given that.
///
/// # Safety
/// Once, at start, before anything uses a function but by ports and memory that it decodes already: registers are not
/// decoded for a moment each. `reserved` has all RAM, and all that Caisson uses or keeps.
#[must_use]
pub unsafe fn init(platform: &Platform, reserved: &Reserved) -> (Vec<Found>, Vec<Collision>) {
    prepare(platform);
    let mut functions = Vec::new();
    if platform.ecam.is_empty() {
        functions = scan(&mut Configuration, 0, 0, u8::MAX);
    }
    for ecam in &platform.ecam {
        functions.extend(scan(&mut Configuration, ecam.segment, ecam.buses.0, ecam.buses.1));
    }
    let collisions = settle(&mut functions, reserved);
    (functions.into_iter().map(Found).collect(), collisions)
}

/// The configuration spaces of the machine, after [`init`].
#[derive(Clone, Copy, Debug)]
pub struct Configuration;

impl Configuration {
    /// A function's registers in memory, and where among them they begin.
    fn memory(at: Address) -> Option<(Registers, u64)> {
        let ways = WAYS.get()?;
        let (ecam, buses) = ways.ecam.iter().find(|(ecam, _)| {
            ecam.segment == at.segment && (ecam.buses.0..=ecam.buses.1).contains(&at.bus())
        })?;
        let place = buses.get(usize::from(at.bus() - ecam.buses.0))?;
        let start = Hpa::new(ecam.address.as_u64() + u64::from(at.bus()) * BUS_BYTES);
        // SAFETY: ACPI says that a bus's configuration space is there, and Caisson decides who writes it.
        let registers = *place.call_once(|| unsafe { Registers::map(start, BUS_BYTES) });
        Some((registers?, u64::from(at.routing & 0xff) * u64::from(SPACE)))
    }
}

/// Bytes of a function's configuration space in memory, and of what the ports reach of it.
const SPACE: u16 = 4096;
const PORT_SPACE: u16 = 256;

impl ConfigSpace for Configuration {
    fn read(&mut self, at: Address, offset: u16, size: u8) -> u32 {
        if let Some((registers, base)) = Self::memory(at) {
            return registers.read(base + u64::from(offset % SPACE), size) as u32;
        }
        let missing = u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)));
        let Some(ways) = WAYS.get().filter(|_| at.segment == 0 && offset < PORT_SPACE) else {
            return missing;
        };
        let _one_at_a_time = ways.ports.lock();
        let data = DATA_PORT + (offset & 3);
        // SAFETY: the ports are Caisson's, and the lock keeps others away; what a read of configuration space does is the
        // function's owner's to want.
        unsafe {
            outl(ADDRESS_PORT, ENABLE | u32::from(at.routing) << 8 | u32::from(offset & 0xfc));
            match size {
                1 => inb(data).into(),
                2 => inw(data).into(),
                _ => inl(data),
            }
        }
    }

    fn write(&mut self, at: Address, offset: u16, size: u8, value: u32) {
        if let Some((registers, base)) = Self::memory(at) {
            registers.write(base + u64::from(offset % SPACE), size, value.into());
            return;
        }
        let Some(ways) = WAYS.get().filter(|_| at.segment == 0 && offset < PORT_SPACE) else { return };
        let _one_at_a_time = ways.ports.lock();
        let data = DATA_PORT + (offset & 3);
        // SAFETY: as above; `caisson_pci` has judged what a domain writes.
        unsafe {
            outl(ADDRESS_PORT, ENABLE | u32::from(at.routing) << 8 | u32::from(offset & 0xfc));
            match size {
                1 => outb(data, value as u8),
                2 => outw(data, value as u16),
                _ => outl(data, value),
            }
        }
    }
}

/// A function that is there: what [`init`] has found.
#[derive(Clone, Debug)]
pub struct Found(Function);

impl Found {
    /// What it is.
    #[must_use]
    pub fn function(&self) -> &Function {
        &self.0
    }
}

/// What of functions' memory and ports Caisson accesses for the domain that owns them.
pub struct Access {
    /// Pages that the domain does not reach by itself: host-physical address, bytes, where they are mapped.
    pages: Vec<(u64, u64, Registers)>,
    /// Ports: the first, and how many.
    ports: Vec<(u64, u64)>,
}

impl Access {
    /// To these functions, and to those of the pages of `judged` (start and bytes) in which they have a part. `None` without room
    /// to map them. Mappings live for ever: once for each owner.
    #[must_use]
    pub fn new<'a>(
        functions: impl Iterator<Item = &'a Found> + Clone,
        judged: &[(u64, u64)],
    ) -> Option<Self> {
        let mut access = Self { pages: Vec::new(), ports: Vec::new() };
        for &(start, bytes) in judged {
            let mut memory = functions.clone().flat_map(|Found(function)| function.memory());
            if !memory.any(|(from, bytes_of_it)| from < start + bytes && start < from + bytes_of_it) {
                continue;
            }
            // SAFETY: a register of the function, which the firmware has placed, decodes of the pages what is accessed here; they
            // are no RAM, as `init` has seen to.
            let registers = unsafe { Registers::map(Hpa::new(start), bytes)? };
            access.pages.push((start, bytes, registers));
        }
        for Found(function) in functions {
            let ports = function.bars.iter().filter(|bar| !bar.is_memory() && bar.is_placed());
            access.ports.extend(ports.map(|bar| (bar.address, bar.bytes)));
        }
        Some(access)
    }

    /// Reads `size` bytes (1, 2, 4 or 8), naturally aligned; all ones where it is none of those pages.
    #[must_use]
    pub fn read_memory(&self, hpa: u64, size: u8) -> u64 {
        match self.find(hpa) {
            Some((registers, offset)) => registers.read(offset, size),
            None => u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8))),
        }
    }

    /// Writes them.
    pub fn write_memory(&self, hpa: u64, size: u8, value: u64) {
        if let Some((registers, offset)) = self.find(hpa) {
            registers.write(offset, size, value);
        }
    }

    /// Reads `size` bytes (1, 2 or 4) at one of the ports; all ones elsewhere.
    #[must_use]
    pub fn read_port(&self, port: u16, size: u8) -> u32 {
        if !self.has_port(port, size) {
            return u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)));
        }
        // SAFETY: a register of the function, which the firmware has placed, decodes the ports.
        unsafe {
            match size {
                1 => inb(port).into(),
                2 => inw(port).into(),
                _ => inl(port),
            }
        }
    }

    /// Writes them.
    pub fn write_port(&self, port: u16, size: u8, value: u32) {
        if !self.has_port(port, size) {
            return;
        }
        // SAFETY: as above.
        unsafe {
            match size {
                1 => outb(port, value as u8),
                2 => outw(port, value as u16),
                _ => outl(port, value),
            }
        }
    }

    fn has_port(&self, port: u16, size: u8) -> bool {
        let (start, end) = (u64::from(port), u64::from(port) + u64::from(size));
        self.ports.iter().any(|&(first, count)| first <= start && end <= first + count)
    }

    fn find(&self, hpa: u64) -> Option<(&Registers, u64)> {
        let page = self.pages.iter().find(|(start, bytes, _)| hpa.wrapping_sub(*start) < *bytes);
        page.map(|(start, _, registers)| (registers, hpa - start))
    }
}

/// What a function writes for the interrupt with `vector` to arrive at this CPU (SDM vol. 3, section 12.11), or, where
/// interrupts are remapped, where the IOMMU's table says of `vector` (VT-d specification 4.1, section 5.1.2.2); `None` where
/// this CPU's local APIC's id does not fit: that would need interrupt remapping.
#[must_use]
pub fn message_to_here(vector: u8) -> Option<Message> {
    const WINDOW: u64 = 0xfee0_0000;
    const REMAPPED: u64 = 1 << 4;
    if iommu::remaps() {
        return Some(Message { address: WINDOW | REMAPPED | u64::from(vector) << 5, data: 0 });
    }
    let id = apic::id();
    (id <= 254).then(|| Message { address: WINDOW | u64::from(id) << 12, data: vector.into() })
}
