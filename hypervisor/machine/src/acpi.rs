//! What ACPI tells about the machine, by the `acpi` crate, copied into one structure at start.
//!
//! The tables are read while the entry code's page tables map the first 4 GiB at their own addresses; firmware keeps
//! them there, and one that does not is named in the log. Their contents are the firmware's: nothing in them is trusted
//! to be there.

use core::cell::Cell;
use core::pin::Pin;
use core::ptr::NonNull;

use acpi::address::{AddressSpace, GenericAddress};
use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::mcfg::Mcfg;
use acpi::sdt::{SdtHeader, Signature};
use acpi::{AcpiHandler, AcpiTable, AcpiTables, HpetInfo, PhysicalMapping};
use arrayvec::ArrayVec;
use caisson_boot::BOOT_MAPPED_END;
use caisson_types::Hpa;

/// Most CPUs that are listed.
pub const MAX_CPUS: usize = 512;

/// An I/O APIC of the machine.
#[derive(Clone, Copy, Debug)]
pub struct IoApicInfo {
    /// Its id.
    pub id: u8,
    /// Its registers.
    pub address: Hpa,
    /// The first global system interrupt that it serves.
    pub gsi_base: u32,
}

/// An ISA interrupt that is not wired one to one.
#[derive(Clone, Copy, Debug)]
pub struct Override {
    /// The ISA interrupt.
    pub irq: u8,
    /// Where it arrives.
    pub gsi: u32,
    /// Active low.
    pub active_low: bool,
    /// Level-triggered.
    pub level: bool,
}

/// How the machine is turned off (ACPI 6.4, section 4.8.3.2).
#[derive(Clone, Copy, Debug)]
pub struct SoftOff {
    /// PM1a control port.
    pub pm1a: u16,
    /// PM1b control port.
    pub pm1b: Option<u16>,
    /// SLP_TYPa and SLP_TYPb of the S5 state.
    pub sleep_type: (u8, u8),
    /// SMI_CMD and ACPI_ENABLE: the port and what is written to it to take the PM1 registers over from the firmware
    /// (section 4.8.3.2.1, SCI_EN). `None` where they are always the operating system's.
    pub enable: Option<(u16, u8)>,
}

/// The reset register (ACPI 6.4, section 4.8.3.6), where it is a port.
#[derive(Clone, Copy, Debug)]
pub struct ResetPort {
    /// The port.
    pub port: u16,
    /// What is written to it.
    pub value: u8,
}

/// A range of PCI buses with memory-mapped configuration space.
#[derive(Clone, Copy, Debug)]
pub struct Ecam {
    /// Bus 0's address, whether or not the range starts there.
    pub address: Hpa,
    /// PCI segment group.
    pub segment: u16,
    /// First and last bus.
    pub buses: (u8, u8),
}

/// A table that is read whole: with code (the DSDT, an SSDT), or about IOMMUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Definition {
    /// Where it starts, with its header.
    pub address: Hpa,
    /// Bytes, with the header.
    pub bytes: u64,
}

/// What ACPI tells.
#[derive(Clone, Debug, Default)]
pub struct Platform {
    /// Local APIC ids of the CPUs that are enabled or can be.
    pub cpus: ArrayVec<u32, MAX_CPUS>,
    /// The I/O APICs.
    pub io_apics: ArrayVec<IoApicInfo, 16>,
    /// The ISA interrupts that are not wired one to one.
    pub overrides: ArrayVec<Override, 16>,
    /// The HPET's registers.
    pub hpet: Option<Hpa>,
    /// The PM timer's port, and whether it has 32 bits (else 24).
    pub pm_timer: Option<(u16, bool)>,
    /// How to turn the machine off.
    pub soft_off: Option<SoftOff>,
    /// How to reset it.
    pub reset: Option<ResetPort>,
    /// PCI configuration space.
    pub ecam: ArrayVec<Ecam, 8>,
    /// The tables with code, the DSDT first.
    pub definitions: ArrayVec<Definition, 32>,
    /// The DMAR: Intel's IOMMUs.
    pub dmar: Option<Definition>,
    /// The IVRS: AMD's IOMMUs.
    pub ivrs: Option<Definition>,
}

/// A table of Intel's IOMMUs, of which the header is read.
#[repr(transparent)]
struct DmarTable(SdtHeader);

// SAFETY: every table starts with a header.
unsafe impl AcpiTable for DmarTable {
    const SIGNATURE: Signature = Signature::DMAR;
    fn header(&self) -> &SdtHeader {
        &self.0
    }
}

/// A table of AMD's IOMMUs, of which the header is read.
#[repr(transparent)]
struct IvrsTable(SdtHeader);

// SAFETY: every table starts with a header.
unsafe impl AcpiTable for IvrsTable {
    const SIGNATURE: Signature = Signature::IVRS;
    fn header(&self) -> &SdtHeader {
        &self.0
    }
}

/// The first 4 GiB, at their own addresses. What lies above reads as an empty page, and its address is kept.
#[derive(Clone, Copy)]
struct Identity<'a> {
    /// The first table that was out of reach, or 0.
    missed: &'a Cell<u64>,
}

#[repr(align(4096))]
struct Nothing([u8; 4096]);
static NOTHING: Nothing = Nothing([0; 4096]);

impl AcpiHandler for Identity<'_> {
    unsafe fn map_physical_region<T>(&self, physical: usize, size: usize) -> PhysicalMapping<Self, T> {
        let end = (physical as u64).saturating_add(size as u64);
        let mapped = physical != 0 && end <= BOOT_MAPPED_END;
        if !mapped && self.missed.get() == 0 {
            self.missed.set(physical as u64);
        }
        let at = if mapped { physical as *mut T } else { NOTHING.0.as_ptr().cast_mut().cast() };
        // SAFETY: the boot tables map the region, or it is the empty page.
        unsafe { PhysicalMapping::new(physical, NonNull::new_unchecked(at), size, size, *self) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

/// Reads the tables behind the root pointer at host-physical address `rsdp`; `None` where they cannot be read. A table
/// out of reach is worth one line in the log.
///
/// # Safety
/// The boot tables must be active, and the root pointer must be the loader's.
#[must_use]
pub unsafe fn read(rsdp: u64) -> Option<Platform> {
    let missed = Cell::new(0);
    let mut absent = ArrayVec::<&str, 8>::new();
    // SAFETY: promised by the caller.
    let platform = unsafe { read_tables(rsdp, Identity { missed: &missed }, &mut absent) };
    if missed.get() != 0 {
        log::warn!(
            "ACPI: the table at {:#x} is left out, because it is not in the first 4 GiB; not found: {absent:?}",
            missed.get()
        );
    }
    platform
}

/// The same, with the names of what is not found left in `absent`.
///
/// # Safety
/// As [`read`].
unsafe fn read_tables(
    rsdp: u64,
    memory: Identity<'_>,
    absent: &mut ArrayVec<&'static str, 8>,
) -> Option<Platform> {
    // SAFETY: promised by the caller.
    let tables = unsafe { AcpiTables::from_rsdp(memory, rsdp as usize) };
    let tables = tables.inspect_err(|_| absent.push("RSDT")).ok()?;
    let mut platform = Platform::default();
    match tables.find_table::<Madt>() {
        Ok(madt) => read_madt(madt.get(), &mut platform),
        Err(_) => absent.push("MADT"),
    }
    match tables.find_table::<Fadt>() {
        Ok(fadt) => {
            if read_fadt(&fadt, &tables, &mut platform).is_none() {
                absent.push("DSDT");
            }
        }
        Err(_) => absent.push("FADT"),
    }
    match HpetInfo::new(&tables) {
        Ok(hpet) => {
            platform.hpet = Some(Hpa::new(hpet.base_address as u64)).filter(|at| at.as_u64() != 0);
        }
        Err(_) => absent.push("HPET"),
    }
    let mcfg = tables.find_table::<Mcfg>();
    if mcfg.is_err() {
        absent.push("MCFG");
    }
    if let Ok(mcfg) = mcfg {
        for entry in mcfg.entries().iter().take(platform.ecam.capacity()) {
            platform.ecam.push(Ecam {
                address: Hpa::new(entry.base_address),
                segment: entry.pci_segment_group,
                buses: (entry.bus_number_start, entry.bus_number_end),
            });
        }
    }
    platform.dmar = whole::<DmarTable>(&tables);
    platform.ivrs = whole::<IvrsTable>(&tables);
    Some(platform)
}

/// Where a table is, if there is one: few machines have those that this is for.
fn whole<T: AcpiTable>(tables: &AcpiTables<Identity<'_>>) -> Option<Definition> {
    let table = tables.find_table::<T>().ok()?;
    let address = Hpa::new(table.physical_start() as u64);
    Some(Definition { address, bytes: table.get().header().length.into() })
}

fn read_madt(madt: Pin<&Madt>, platform: &mut Platform) {
    // Flags bit 0: enabled; bit 1: can be enabled (ACPI 6.4, table 5.22).
    const USABLE: u32 = 3;
    for entry in madt.entries() {
        match entry {
            MadtEntry::LocalApic(cpu) if cpu.flags & USABLE != 0 => {
                let _ = platform.cpus.try_push(u32::from(cpu.apic_id));
            }
            MadtEntry::LocalX2Apic(cpu) if cpu.flags & USABLE != 0 => {
                let _ = platform.cpus.try_push(cpu.x2apic_id);
            }
            MadtEntry::IoApic(chip) => {
                let _ = platform.io_apics.try_push(IoApicInfo {
                    id: chip.io_apic_id,
                    address: Hpa::new(u64::from(chip.io_apic_address)),
                    gsi_base: chip.global_system_interrupt_base,
                });
            }
            MadtEntry::InterruptSourceOverride(line) => {
                let flags = line.flags;
                let _ = platform.overrides.try_push(Override {
                    irq: line.irq,
                    gsi: line.global_system_interrupt,
                    active_low: flags & 3 == 3,
                    level: flags >> 2 & 3 == 3,
                });
            }
            _ => {}
        }
    }
}

fn port(address: &GenericAddress) -> Option<u16> {
    (address.address_space == AddressSpace::SystemIo).then(|| u16::try_from(address.address).ok())?
}

/// The whole table whose code this is: the header has 36 bytes (ACPI 6.4, section 5.2.6).
fn definition(code: &acpi::AmlTable) -> Definition {
    const HEADER: u64 = 36;
    Definition { address: Hpa::new(code.address as u64 - HEADER), bytes: u64::from(code.length) + HEADER }
}

/// `None` where the DSDT, on which turning the machine off depends, is out of reach.
fn read_fadt(fadt: &Fadt, tables: &AcpiTables<Identity<'_>>, platform: &mut Platform) -> Option<()> {
    let flags = fadt.flags;
    if let Ok(Some(timer)) = fadt.pm_timer_block() {
        platform.pm_timer = port(&timer).map(|port| (port, flags.pm_timer_is_32_bit()));
    }
    if flags.supports_system_reset_via_fadt()
        && let Ok(register) = fadt.reset_register()
    {
        platform.reset = port(&register).map(|port| ResetPort { port, value: fadt.reset_value });
    }
    let dsdt = tables.dsdt().ok()?;
    let end = dsdt.address as u64 + u64::from(dsdt.length);
    if dsdt.address == 0 || end > BOOT_MAPPED_END {
        return None;
    }
    platform.definitions.push(definition(&dsdt));
    platform.definitions.extend(tables.ssdts().take(31).map(|table| definition(&table)));
    // SAFETY: the boot tables map the DSDT's code, which nothing writes.
    let code = unsafe { core::slice::from_raw_parts(dsdt.address as *const u8, dsdt.length as usize) };
    let pm1a = fadt.pm1a_control_block().ok().as_ref().and_then(port);
    let pm1b = fadt.pm1b_control_block().ok().flatten().as_ref().and_then(port);
    // Where there is no SMI_CMD or no ACPI_ENABLE, the machine is in ACPI mode for good.
    let smi_command = u16::try_from(fadt.smi_cmd_port).ok();
    let enable =
        smi_command.map(|port| (port, fadt.acpi_enable)).filter(|&(port, value)| port != 0 && value != 0);
    if let (Some(pm1a), Some(sleep_type)) = (pm1a, s5_sleep_type(code)) {
        platform.soft_off = Some(SoftOff { pm1a, pm1b, sleep_type, enable });
    }
    Some(())
}

/// Finds `Name (_S5, Package () { SLP_TYPa, SLP_TYPb, ... })` in AML code, and its two values. The object is static
/// on every machine that can be turned off, so that no interpreter is needed (ACPI 6.4, sections 7.4.2 and 20.2.5).
fn s5_sleep_type(aml: &[u8]) -> Option<(u8, u8)> {
    const NAME: &[u8; 4] = b"_S5_";
    // The name also stands where the object is only referred to.
    let places = aml.windows(NAME.len()).enumerate().filter(|(_, window)| window == NAME);
    places.filter_map(|(at, _)| s5_package(aml.get(at + NAME.len()..)?)).next()
}

/// The two values of the package that starts `aml`.
fn s5_package(aml: &[u8]) -> Option<(u8, u8)> {
    const PACKAGE: u8 = 0x12;
    let (&PACKAGE, rest) = aml.split_first()? else { return None };
    // PkgLength: the top two bits of the first byte tell how many bytes follow; then the number of elements.
    let length_bytes = 1 + usize::from(rest.first()? >> 6);
    let mut elements = rest.get(length_bytes + 1..)?;
    let mut next = || -> Option<u8> {
        let (&first, after) = elements.split_first()?;
        let (value, used) = match first {
            0 | 1 => (first, 0),          // ZeroOp, OneOp
            0x0a => (*after.first()?, 1), // BytePrefix
            _ => return None,
        };
        elements = after.get(used..)?;
        Some(value)
    };
    let a = next()?;
    Some((a, next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s5_is_found_in_aml() {
        let code = b"..\x08_S5_\x12\x06\x04\x0a\x05\x00\x00\x00";
        assert_eq!(s5_sleep_type(code), Some((5, 0)));
        assert_eq!(s5_sleep_type(b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00"), Some((0, 0)));
        assert_eq!(s5_sleep_type(b"\x08_S5_\x12"), None);
        assert_eq!(s5_sleep_type(b"\x08_S5_\x14\x06"), None);
        assert_eq!(s5_sleep_type(b""), None);
    }

    #[test]
    fn s5_is_found_behind_references_to_it() {
        let code = b"External _S5_\x08 If (_S5_\x70_S5_\x08_S5_\x12\x06\x04\x0a\x07\x0a\x06\x00\x00";
        assert_eq!(s5_sleep_type(code), Some((7, 6)));
        assert_eq!(s5_sleep_type(b"_S5__S5_\x12\x06\x04\x01"), Some((1, 0)));
        assert_eq!(s5_sleep_type(b"\x14_S5__S5__S5_"), None);
    }
}
