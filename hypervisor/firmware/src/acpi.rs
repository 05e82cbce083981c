//! The ACPI tables: RSDP, RSDT, XSDT, FADT, FACS, DSDT and MADT.
//!
//! The machine is not hardware-reduced and has no HPET. ACPI 6.5, chapter 5.

mod dsdt;
mod madt;

use alloc::vec::Vec;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use caisson_devices::{pm, reset, rtc};

use crate::tables::checksum;
use crate::{EcamRange, GuestLayout};

const OEM_ID: [u8; 6] = *b"CAISSN";
const OEM_TABLE_ID: [u8; 8] = *b"CAISSON ";
const OEM_REVISION: u32 = 1;

/// Bytes of an ACPI 2.0 root pointer, rounded up to the alignment of what follows.
const RSDP_ROOM: u64 = 64;

/// Tables start at multiples of this, which is what the FACS needs (section 5.2.10).
const ALIGNMENT: u64 = 64;

/// IAPC_BOOT_ARCH (section 5.2.9.3): there are devices on the ISA bus (the serial port); neither a keyboard controller
/// with something behind it nor a VGA adapter. The CMOS clock is there.
mod boot_arch {
    pub(super) const LEGACY_DEVICES: u16 = 1 << 0;
    pub(super) const NO_VGA: u16 = 1 << 2;
}

/// Latencies that mean "this C-state is not there" (section 5.2.9, P_LVL2_LAT and P_LVL3_LAT).
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// A table at its address.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
}

/// All tables, the root pointer first, from `base` (below 4 GiB) on.
pub(crate) fn tables(layout: &GuestLayout<'_>, base: u64) -> Vec<Table> {
    let mut tables = Vec::new();
    let mut next = base + RSDP_ROOM;
    let mut place = |name, bytes: Vec<u8>| {
        let address = next;
        next = (address + bytes.len() as u64).next_multiple_of(ALIGNMENT);
        tables.push(Table { name, address, bytes });
        address
    };
    let facs = place("FACS", bytes_of(&FACS::new()));
    let (definitions, ecam) = layout.real.map_or((&[][..], &[][..]), |real| (real.definitions, real.ecam));
    let (own, more) = match definitions.split_first() {
        Some((dsdt, ssdts)) => (dsdt.to_vec(), ssdts),
        None => (dsdt::table(layout), &[][..]),
    };
    let dsdt = place("DSDT", own);
    let mut entries = Vec::new();
    entries.push(place("FACP", fadt(dsdt as u32, facs as u32)));
    entries.push(place("APIC", madt::table(layout)));
    entries.extend(more.iter().map(|table| place("SSDT", table.to_vec())));
    if !ecam.is_empty() {
        entries.push(place("MCFG", mcfg(ecam)));
    }
    let rsdt = place("RSDT", rsdt(&entries));
    let xsdt = place("XSDT", xsdt(&entries));
    tables.insert(0, Table { name: "RSD PTR", address: base, bytes: rsdp(rsdt as u32, xsdt) });
    tables
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Sets length and checksum of a table's header (section 5.2.6) after its bytes were changed.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    const LENGTH: usize = 4;
    const CHECKSUM: usize = 9;
    let length = (bytes.len() as u32).to_le_bytes();
    bytes[LENGTH..LENGTH + 4].copy_from_slice(&length);
    bytes[CHECKSUM] = 0;
    bytes[CHECKSUM] = checksum(&bytes);
    bytes
}

/// The root pointer (section 5.2.5.3), with an RSDT too, which kernels from before ACPI 2.0 need.
fn rsdp(rsdt: u32, xsdt: u64) -> Vec<u8> {
    const CHECKSUM: usize = 8;
    const RSDT: usize = 16;
    const FIRST_PART: usize = 20;
    const EXTENDED_CHECKSUM: usize = 32;
    let mut bytes = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    bytes[RSDT..RSDT + 4].copy_from_slice(&rsdt.to_le_bytes());
    for (place, covered) in [(CHECKSUM, FIRST_PART), (EXTENDED_CHECKSUM, bytes.len())] {
        bytes[place] = 0;
        bytes[place] = checksum(&bytes[..covered]);
    }
    bytes
}

fn rsdt(entries: &[u64]) -> Vec<u8> {
    const HEADER: u32 = 36;
    let mut table = Sdt::new(*b"RSDT", HEADER, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for &entry in entries {
        table.append_slice(&(entry as u32).to_le_bytes());
    }
    bytes_of(&table)
}

/// The table of memory-mapped configuration space (PCI Firmware Specification 3.3, section 4.1.2).
fn mcfg(ranges: &[EcamRange]) -> Vec<u8> {
    const HEADER: u32 = 36;
    let mut table = Sdt::new(*b"MCFG", HEADER, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&[0; 8]);
    for range in ranges {
        table.append_slice(&range.address.to_le_bytes());
        table.append_slice(&range.segment.to_le_bytes());
        table.append_slice(&[range.buses.0, range.buses.1, 0, 0, 0, 0]);
    }
    bytes_of(&table)
}

fn xsdt(entries: &[u64]) -> Vec<u8> {
    let mut table = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    entries.iter().for_each(|&entry| table.add_entry(entry));
    bytes_of(&table)
}

/// The fixed description table (section 5.2.9).
fn fadt(dsdt: u32, facs: u32) -> Vec<u8> {
    let io = |port: u16, bits, access| GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .gpe_info(u32::from(pm::GPE0), 0, pm::GPE0_LENGTH, 0, 0)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::from(pm::SCI_IRQ).into();
    fadt.smi_cmd = u32::from(pm::SMI_CMD).into();
    fadt.acpi_enable = pm::ACPI_ENABLE;
    fadt.acpi_disable = pm::ACPI_DISABLE;
    fadt.pm1a_evt_blk = u32::from(pm::PM1A_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = io(pm::PM1A_EVENT, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(pm::PM1A_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = io(pm::PM1A_CONTROL, 16, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(pm::TIMER).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = io(pm::TIMER, 32, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = io(pm::GPE0, pm::GPE0_LENGTH * 8, AccessSize::ByteAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = rtc::register::CENTURY;
    fadt.iapc_boot_arch = (boot_arch::LEGACY_DEVICES | boot_arch::NO_VGA).into();
    fadt.reset_reg = io(reset::CONTROL, 8, AccessSize::ByteAccess);
    fadt.reset_value = reset::CONTROL_RESET;
    bytes_of(&fadt.finalize())
}
