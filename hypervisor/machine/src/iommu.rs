//! The machine's IOMMU: found by ACPI's DMAR or IVRS, with the units' registers mapped and memory for their tables.
//!
//! What the units do is [`caisson_iommu`]'s. Only one vendor's can be there.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use alloc::boxed::Box;
use alloc::vec::Vec;
use caisson_frames::{FrameBlock, Owner};
use caisson_iommu::{
    AmdVi, Bridge, Dmar, Error, Hardware, Iommu, Iommus, Ivrs, Memory, Message, Reserved, Sender, TableError,
    Vtd, requesters,
};
use caisson_pci::{Address, ConfigSpace, Function, HeaderKind, probe};
use caisson_stage2::TableMemory;
use caisson_types::Hpa;

use crate::acpi::{Definition, IoApicInfo, Platform};
use crate::device::{self, Registers};
use crate::memory::{self, direct, frames};
use crate::pci::{self, Configuration};
use crate::{apic, clock, cpu, trap};

/// Why the machine's IOMMU cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IommuRefusal {
    /// Its ACPI table.
    Table(&'static str, TableError),
    /// No room to map its registers.
    NoWindow,
    /// A unit.
    Unit(Error),
}

impl fmt::Display for IommuRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(name, error) => write!(f, "ACPI's table {name}: {error}: update the firmware"),
            Self::NoWindow => f.write_str("its registers do not fit into Caisson's address space"),
            Self::Unit(error) => error.fmt(f),
        }
    }
}

impl From<Error> for IommuRefusal {
    fn from(error: Error) -> Self {
        Self::Unit(error)
    }
}

/// A unit's registers.
#[derive(Clone, Copy, Debug)]
pub struct UnitRegisters(Registers);

impl UnitRegisters {
    fn map(at: u64, bytes: u64) -> Result<Self, IommuRefusal> {
        // SAFETY: ACPI says that a unit's registers are there, and nobody but Caisson knows of them.
        let registers = unsafe { Registers::map(Hpa::new(at), bytes) };
        registers.map(Self).ok_or(IommuRefusal::NoWindow)
    }
}

impl Hardware for UnitRegisters {
    fn read32(&self, offset: u64) -> u32 {
        self.0.read32(offset)
    }

    fn write32(&mut self, offset: u64, value: u32) {
        self.0.write32(offset, value);
    }

    fn read64(&self, offset: u64) -> u64 {
        self.0.read64(offset)
    }

    fn write64(&mut self, offset: u64, value: u64) {
        self.0.write(offset, 8, value);
    }

    fn now(&self) -> u64 {
        let hz = u128::from(clock::get().tsc_hz.max(1));
        (u128::from(cpu::tsc()) * 1_000_000_000 / hz) as u64
    }
}

/// Frames for units' tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnitMemory {
    snooped: bool,
}

impl UnitMemory {
    fn word(table: Hpa, index: usize) -> &'static AtomicU64 {
        // SAFETY: tables are frames that `allocate` gave; their words are only ever accessed as atomics, by us and by units.
        // The index is within the page.
        unsafe { &*direct(table).cast::<AtomicU64>().add(index & 511) }
    }

    /// Has the caches write back what was written there.
    fn write_back(self, at: *const u8) {
        if !self.snooped {
            // SAFETY: the line is mapped; every CPU with 64-bit mode has CLFLUSH and MFENCE, which change no value.
            unsafe {
                core::arch::asm!("clflush [{}]", "mfence", in(reg) at, options(nostack, preserves_flags));
            }
        }
    }
}

impl TableMemory for UnitMemory {
    fn allocate(&mut self) -> Option<Hpa> {
        self.allocate_run(0)
    }

    fn free(&mut self, table: Hpa) {
        let block = frames().reclaim(table, 0, Owner::Hypervisor);
        match block {
            Ok(block) => memory::free(block),
            Err(error) => log::error!("an IOMMU's table could not be freed: {error}"),
        }
    }

    fn read(&self, table: Hpa, index: usize) -> u64 {
        Self::word(table, index).load(Ordering::Acquire)
    }

    fn write(&mut self, table: Hpa, index: usize, entry: u64) {
        let word = Self::word(table, index);
        word.store(entry, Ordering::Release);
        self.write_back(core::ptr::from_ref(word).cast());
    }
}

impl Memory for UnitMemory {
    fn allocate_run(&mut self, order: u8) -> Option<Hpa> {
        const LINE: u64 = 64;
        let block = frames().allocate(order, Owner::Hypervisor)?;
        let bytes = block.bytes();
        let start = FrameBlock::into_start(block);
        if !self.snooped {
            (0..bytes / LINE)
                .for_each(|line| self.write_back(direct(Hpa::new(start.as_u64() + line * LINE))));
        }
        Some(start)
    }

    fn set_snooped(&mut self, snooped: bool) {
        self.snooped = snooped;
    }
}

/// Interrupts are remapped: messages, but the IOMMU's own, name entries of its table, which have the vectors' numbers.
static REMAPS: AtomicBool = AtomicBool::new(false);

/// Whether interrupts are remapped.
#[must_use]
pub fn remaps() -> bool {
    REMAPS.load(Ordering::Acquire)
}

/// A machine's IOMMU that is in use.
pub struct InUse {
    /// The IOMMU.
    pub iommu: Box<dyn Iommu>,
    /// Its maker's name for it.
    pub name: &'static str,
    /// How many units it has.
    pub units: usize,
    /// The functions that the machine has: each with the ids by which its requests may arrive.
    pub requesters: Vec<(Address, Vec<Address>)>,
    /// The I/O APICs: the first line of each, and the id of its messages, if ACPI tells.
    pub io_apics: Vec<(u32, Option<Address>)>,
}

impl InUse {
    /// Holds devices to the interrupts that are theirs, where the IOMMU can. Whether it can. No interrupt arrives from then on
    /// before its vector's entry is written and its sender knows.
    ///
    /// # Errors
    /// [`IommuRefusal`].
    pub fn remap(&mut self) -> Result<bool, IommuRefusal> {
        let remaps = self.iommu.remap(apic::is_x2apic())?;
        REMAPS.store(remaps, Ordering::Release);
        Ok(remaps)
    }

    /// Who sends the messages of a line.
    #[must_use]
    pub fn line_sender(&self, gsi: u32) -> Sender {
        let chip = self.io_apics.iter().filter(|(first, _)| *first <= gsi).max_by_key(|(first, _)| *first);
        chip.and_then(|(_, id)| *id).map_or(Sender::Anybody, |id| Sender::Device(id.routing))
    }
}

/// What ACPI says of the machine's IOMMU.
enum Tables {
    Intel(Dmar),
    Amd(Ivrs),
}

impl Tables {
    /// `None` where the machine has none.
    fn read(platform: &Platform) -> Result<Option<Self>, IommuRefusal> {
        let bytes = |table: Definition| {
            // SAFETY: the firmware's tables lie in memory that nobody writes, which is no frame of the allocator's.
            unsafe { device::bytes(table.address, table.bytes) }.ok_or(IommuRefusal::NoWindow)
        };
        if let Some(table) = platform.dmar {
            let dmar = Dmar::parse(&bytes(table)?).map_err(|error| IommuRefusal::Table("DMAR", error))?;
            return Ok(Some(Self::Intel(dmar)));
        }
        if let Some(table) = platform.ivrs {
            let ivrs = Ivrs::parse(&bytes(table)?).map_err(|error| IommuRefusal::Table("IVRS", error))?;
            return Ok(Some(Self::Amd(ivrs)));
        }
        Ok(None)
    }

    /// The units of Intel's.
    fn vtd(dmar: &Dmar) -> Result<Vec<Vtd<UnitRegisters>>, IommuRefusal> {
        let unit = |unit: &caisson_iommu::Drhd| {
            Ok(Vtd::new(UnitRegisters::map(unit.registers, unit.bytes)?, unit.segment)?)
        };
        dmar.units.iter().map(unit).collect()
    }

    /// The units of AMD's.
    fn amdvi(ivrs: &Ivrs) -> Result<Vec<AmdVi<UnitRegisters>>, IommuRefusal> {
        let unit = |unit: &caisson_iommu::Ivhd| {
            Ok(AmdVi::new(UnitRegisters::map(unit.registers, unit.bytes)?, unit)?)
        };
        ivrs.units.iter().map(unit).collect()
    }
}

/// Where the registers of the machine's units are: start and past-the-end address. None where its tables cannot be read, which
/// [`init`] tells.
#[must_use]
pub fn registers(platform: &Platform) -> Vec<(u64, u64)> {
    let range = |start: u64, bytes: u64| (start, start.saturating_add(bytes));
    match Tables::read(platform) {
        Ok(Some(Tables::Intel(dmar))) => {
            dmar.units.iter().map(|unit| range(unit.registers, unit.bytes)).collect()
        }
        Ok(Some(Tables::Amd(ivrs))) => {
            ivrs.units.iter().map(|unit| range(unit.registers, unit.bytes)).collect()
        }
        Ok(None) | Err(_) => Vec::new(),
    }
}

/// Takes the machine's IOMMU over, if it has one: devices reach nothing from then on, but what the firmware has reserved for
/// them where `is_ram` does not hold of its first byte and its bytes. `functions` are those that may be attached.
///
/// # Errors
/// [`IommuRefusal`]. Where a unit failed, devices may reach everything or nothing.
///
/// # Safety
/// Once, at start, after the heap and the clocks. The tables of ACPI must be the machine's.
pub unsafe fn init<'a, I: Iterator<Item = &'a Function>>(
    platform: &Platform,
    functions: impl Fn() -> I,
    is_ram: impl Fn(u64, u64) -> bool,
) -> Result<Option<InUse>, IommuRefusal> {
    let Some(tables) = Tables::read(platform)? else { return Ok(None) };
    pci::prepare(platform);
    let mut reserved: Vec<Reserved> = match &tables {
        Tables::Intel(dmar) => dmar.reserved(&mut Configuration),
        Tables::Amd(ivrs) => ivrs.reserved().collect(),
    };
    reserved.retain(|reserved| {
        let (start, bytes) = (reserved.start, reserved.bytes);
        let wrong = is_ram(start, bytes);
        if wrong {
            log::warn!(
                "IOMMU: the firmware reserves {start:#x}, {bytes:#x} bytes, for a device and calls it free: it is not the \
                 device's"
            );
        }
        !wrong
    });
    let requesters = of_functions(&functions, &tables);
    let all = all_requesters(&requesters, &reserved);
    let (iommu, name, units): (Box<dyn Iommu>, _, _) = match &tables {
        Tables::Intel(dmar) => {
            let units = dmar.coverage(&mut Configuration).into_iter().zip(Tables::vtd(dmar)?);
            let iommus = Iommus::enable(units.collect(), UnitMemory::default(), reserved, &all)?;
            (Box::new(iommus), "VT-d", dmar.units.len())
        }
        Tables::Amd(ivrs) => {
            let units = ivrs.units.iter().map(caisson_iommu::Ivhd::coverage).zip(Tables::amdvi(ivrs)?);
            let iommus = Iommus::enable(units.collect(), UnitMemory::default(), reserved, &all)?;
            (Box::new(iommus), "AMD-Vi", ivrs.units.len())
        }
    };
    let io_apic = |chip: &IoApicInfo| match &tables {
        Tables::Intel(dmar) => (chip.gsi_base, dmar.io_apic(&mut Configuration, chip.id)),
        Tables::Amd(_) => (chip.gsi_base, None),
    };
    let io_apics = platform.io_apics.iter().map(io_apic).collect();
    let mut used = InUse { iommu, name, units, requesters, io_apics };
    interrupt_here(&mut *used.iommu, &tables);
    Ok(Some(used))
}

/// Turns off what the firmware may have left on: the machine's IOMMU is not to be used.
///
/// # Errors
/// [`IommuRefusal`].
///
/// # Safety
/// As [`init`], in its place.
pub unsafe fn turn_off(platform: &Platform) -> Result<(), IommuRefusal> {
    match Tables::read(platform)? {
        None => Ok(()),
        Some(Tables::Intel(dmar)) => Tables::vtd(&dmar)?.iter_mut().try_for_each(|unit| Ok(unit.turn_off()?)),
        Some(Tables::Amd(ivrs)) => Tables::amdvi(&ivrs)?.iter_mut().try_for_each(|unit| Ok(unit.turn_off()?)),
    }
}

/// The ids by which each function's requests may arrive.
fn of_functions<'a, I: Iterator<Item = &'a Function>>(
    functions: &impl Fn() -> I,
    tables: &Tables,
) -> Vec<(Address, Vec<Address>)> {
    let bridges = functions().filter(|function| function.header == HeaderKind::Bridge);
    let bridges: Vec<Bridge> = bridges
        .map(|function| Bridge::read(&mut Configuration, function.address, function.express))
        .collect();
    let of = |device: Address| {
        let mut ids: Vec<Address> = requesters(device, &bridges).into_iter().collect();
        if let Tables::Amd(ivrs) = tables {
            ids.extend(ivrs.alias(device));
        }
        (device, ids)
    };
    functions().map(|function| of(function.address)).collect()
}

/// Those, and the devices that the firmware has reserved something for.
fn all_requesters(requesters: &[(Address, Vec<Address>)], reserved: &[Reserved]) -> Vec<Address> {
    let mut all: Vec<Address> = requesters.iter().flat_map(|(_, ids)| ids).copied().collect();
    for reserved in reserved {
        for routing in reserved.range.first..=reserved.range.last {
            let device = Address { segment: reserved.segment, routing };
            if Configuration.read(device, 0, 4) != u32::MAX {
                all.push(device);
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Has the units tell this CPU by [`trap::DMA_FAULT`] when they stop a device.
fn interrupt_here(iommu: &mut dyn Iommu, tables: &Tables) {
    let Some(message) = pci::message_to_here(trap::DMA_FAULT) else { return };
    if let Tables::Amd(ivrs) = tables {
        for unit in &ivrs.units {
            interrupt_by_function(Address { segment: unit.segment, routing: unit.device }, message);
        }
    }
    iommu.interrupt(Some(Message { address: message.address as u32, data: message.data }));
}

/// AMD's units have a PCI function, which interrupts by MSI (PCI Local Bus Specification 3.0, section 6.8.1).
fn interrupt_by_function(at: Address, message: caisson_pci::Message) {
    const ENABLE: u32 = 1;
    const MULTIPLE: u32 = 0x70;
    let mut space = Configuration;
    let Some(msi) = probe(&mut space, at).and_then(|function| function.msi) else { return };
    let data = if msi.wide {
        space.write(at, msi.offset + 8, 4, (message.address >> 32) as u32);
        msi.offset + 12
    } else {
        msi.offset + 8
    };
    space.write(at, msi.offset + 4, 4, message.address as u32);
    space.write(at, data, 2, message.data);
    let control = space.read(at, msi.offset + 2, 2);
    space.write(at, msi.offset + 2, 2, control & !MULTIPLE | ENABLE);
}
