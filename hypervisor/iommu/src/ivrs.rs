//! The IVRS table: where a machine's AMD IOMMUs are, which devices are behind each, and which memory the firmware has its
//! devices use (AMD I/O Virtualization Technology Specification 3.10, section 5.2).

use alloc::vec::Vec;

use crate::bytes::{self, u8_at, u16_at, u64_at};
use crate::{DeviceRange, TableError};

/// Bytes before the first block.
const START: usize = 48;
/// Types of blocks that describe a unit, by what they can say: one unit may have one of each.
const UNIT_BASIC: u8 = 0x10;
const UNIT_EXTENDED: u8 = 0x11;
const UNIT_NAMED: u8 = 0x40;
/// Types of blocks that describe memory: for all devices, for one, for a range.
const MEMORY_ALL: u8 = 0x20;
const MEMORY_ONE: u8 = 0x21;
const MEMORY_RANGE: u8 = 0x22;

/// Bytes of a unit's registers.
const REGISTERS: u64 = 16 << 10;

/// What a unit's table says of some devices, from `range.first` to `range.last`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IvhdDevices {
    /// The devices.
    pub range: DeviceRange,
    /// Their requests bear this id.
    pub alias: Option<u16>,
    /// System messages that they may send, as the firmware knows (section 5.2.2.2, "DTE Setting").
    pub settings: u8,
}

/// A unit (section 5.2.2.1, IVHD).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ivhd {
    /// The type of the block: a higher one says more.
    kind: u8,
    /// The requester id of its own PCI function.
    pub device: u16,
    /// Where in that function's configuration space its capability is.
    pub capability: u16,
    /// Host-physical address of its registers.
    pub registers: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// PCI segment group.
    pub segment: u16,
    /// How the firmware has it work: bits 0 to 3 and 5 as in the table.
    pub flags: u8,
    /// Its devices.
    pub devices: Vec<IvhdDevices>,
}

/// Memory that some devices use as the firmware has told them (section 5.2.2.3, IVMD).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ivmd {
    /// The devices.
    pub range: DeviceRange,
    /// Where it starts.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
    /// They also write it.
    pub write: bool,
}

/// What the table says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ivrs {
    /// The units.
    pub units: Vec<Ivhd>,
    /// Memory of segment 0's devices.
    pub memory: Vec<Ivmd>,
}

impl Ivrs {
    /// Reads a table with its header.
    ///
    /// # Errors
    /// [`TableError`], where it contradicts itself: then nothing of it is to be trusted.
    pub fn parse(table: &[u8]) -> Result<Self, TableError> {
        let table = bytes::table(table, b"IVRS", START)?;
        let mut ivrs = Self::default();
        let mut rest = table.get(START..).unwrap_or_default();
        while !rest.is_empty() {
            let length = usize::from(u16_at(rest, 2).ok_or(TableError::Truncated)?);
            let block = rest.get(..length).filter(|_| length >= 4).ok_or(TableError::Length)?;
            match block[0] {
                UNIT_BASIC | UNIT_EXTENDED | UNIT_NAMED => ivrs.add(unit(block)?),
                MEMORY_ALL | MEMORY_ONE | MEMORY_RANGE => ivrs.memory.extend(memory(block)?),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
        if ivrs.units.is_empty() { Err(TableError::NoUnit) } else { Ok(ivrs) }
    }

    /// Adds a unit, or what more is said of it.
    fn add(&mut self, unit: Ivhd) {
        let same = |known: &&mut Ivhd| (known.segment, known.device) == (unit.segment, unit.device);
        match self.units.iter_mut().find(same) {
            Some(known) if known.kind < unit.kind => *known = unit,
            Some(_) => {}
            None => self.units.push(unit),
        }
    }
}

fn unit(block: &[u8]) -> Result<Ivhd, TableError> {
    let registers = u64_at(block, 8).ok_or(TableError::Length)?;
    if registers == 0 || !registers.is_multiple_of(REGISTERS) || registers.checked_add(REGISTERS).is_none() {
        return Err(TableError::Address);
    }
    let head = if block[0] == UNIT_BASIC { 24 } else { 40 };
    let entries = block.get(head..).ok_or(TableError::Length)?;
    Ok(Ivhd {
        kind: block[0],
        flags: block[1],
        device: u16_at(block, 4).ok_or(TableError::Length)?,
        capability: u16_at(block, 6).ok_or(TableError::Length)?,
        registers,
        bytes: REGISTERS,
        segment: u16_at(block, 16).ok_or(TableError::Length)?,
        devices: devices(entries)?,
    })
}

/// The entries of a unit's devices.
fn devices(mut rest: &[u8]) -> Result<Vec<IvhdDevices>, TableError> {
    // Of a device that ACPI names: the last byte of the fixed part is the length of the rest.
    const NAMED: u8 = 0xf0;
    const NAMED_BYTES: usize = 22;
    let mut found = Vec::new();
    let mut open: Option<IvhdDevices> = None;
    while let Some(&kind) = rest.first() {
        let bytes = match kind >> 6 {
            0 => 4,
            1 => 8,
            2 => 16,
            _ if kind == NAMED => {
                NAMED_BYTES + usize::from(u8_at(rest, NAMED_BYTES - 1).ok_or(TableError::Length)?)
            }
            _ => 32,
        };
        let entry = rest.get(..bytes).ok_or(TableError::Length)?;
        let id = u16_at(entry, 1).unwrap_or(0);
        let settings = entry[3];
        let one = |id, alias| IvhdDevices { range: DeviceRange { first: id, last: id }, alias, settings };
        match kind {
            1 => found.push(IvhdDevices { range: DeviceRange { first: 0, last: u16::MAX }, ..one(0, None) }),
            2 | 0x46 => found.push(one(id, None)),
            0x42 => found.push(one(id, u16_at(entry, 5))),
            // Of an I/O APIC or an HPET: their messages bear the id.
            0x48 => found.extend(u16_at(entry, 5).map(|id| one(id, None))),
            3 | 0x47 => open = Some(one(id, None)),
            0x43 => open = Some(one(id, u16_at(entry, 5))),
            4 => {
                let range = open.take().ok_or(TableError::Range)?;
                if id < range.range.first {
                    return Err(TableError::Range);
                }
                found.push(IvhdDevices { range: DeviceRange { last: id, ..range.range }, ..range });
            }
            NAMED => found.push(one(id, None)),
            _ => {}
        }
        rest = rest.get(bytes..).unwrap_or_default();
    }
    if open.is_some() { Err(TableError::Range) } else { Ok(found) }
}

/// `None` where the devices may reach it only if they ask.
fn memory(block: &[u8]) -> Result<Option<Ivmd>, TableError> {
    const UNITY: u8 = 1 << 0;
    const WRITE: u8 = 1 << 2;
    const EXCLUSION: u8 = 1 << 3;
    let flags = u8_at(block, 1).ok_or(TableError::Length)?;
    let first = u16_at(block, 4).ok_or(TableError::Length)?;
    let last = u16_at(block, 6).ok_or(TableError::Length)?;
    let start = u64_at(block, 16).ok_or(TableError::Length)?;
    let bytes = u64_at(block, 24).ok_or(TableError::Length)?;
    if !(start | bytes).is_multiple_of(4096) || bytes == 0 || start.checked_add(bytes).is_none() {
        return Err(TableError::Address);
    }
    let range = match block[0] {
        MEMORY_ALL => DeviceRange { first: 0, last: u16::MAX },
        MEMORY_ONE => DeviceRange { first, last: first },
        _ if last < first => return Err(TableError::Range),
        _ => DeviceRange { first, last },
    };
    let write = flags & (WRITE | EXCLUSION) != 0;
    Ok((flags & (UNITY | EXCLUSION) != 0).then_some(Ivmd { range, start, bytes, write }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::acpi_table;
    use alloc::vec;

    fn ivhd(kind: u8, device: u16, registers: u64, entries: &[u8]) -> Vec<u8> {
        let head = if kind == UNIT_BASIC { 24 } else { 40 };
        let mut block = vec![0; head];
        block[0] = kind;
        block[1] = 0x2f;
        block[2..4].copy_from_slice(&((head + entries.len()) as u16).to_le_bytes());
        block[4..6].copy_from_slice(&device.to_le_bytes());
        block[6] = 0x40;
        block[8..16].copy_from_slice(&registers.to_le_bytes());
        block.extend(entries);
        block
    }

    fn ivmd(kind: u8, flags: u8, ids: (u16, u16), start: u64, bytes: u64) -> Vec<u8> {
        let mut block = vec![kind, flags, 32, 0];
        block.extend(ids.0.to_le_bytes());
        block.extend(ids.1.to_le_bytes());
        block.extend([0; 8]);
        block.extend(start.to_le_bytes());
        block.extend(bytes.to_le_bytes());
        block
    }

    fn ivrs(blocks: &[Vec<u8>]) -> Vec<u8> {
        acpi_table(b"IVRS", &[vec![0; 12], blocks.concat()].concat())
    }

    const BASE: u64 = 0xfed8_0000;

    fn ids(devices: &[IvhdDevices]) -> Vec<(u16, u16, Option<u16>)> {
        devices.iter().map(|entry| (entry.range.first, entry.range.last, entry.alias)).collect()
    }

    #[test]
    fn units_devices_and_memory_are_read() {
        let entries = [
            &[2, 0x08, 0, 0xd7][..],
            &[0, 0, 0, 0],
            &[3, 0x10, 0, 0, 4, 0x1f, 0, 0],
            &[0x42, 0x20, 1, 0, 0, 0, 1, 0],
            &[0x43, 0x30, 1, 0, 0, 8, 1, 0, 4, 0x3f, 1, 0],
            &[0x48, 0, 0, 0xd7, 1, 0xa0, 0, 1],
        ]
        .concat();
        let named = [[0xf0, 0x98, 0, 0].as_slice(), &[0; 17], &[2, 7, 7]].concat();
        let table = ivrs(&[
            ivhd(UNIT_BASIC, 2, BASE, &entries),
            ivmd(MEMORY_ONE, 0b111, (0x98, 0), 0x7000_0000, 0x4000),
            ivmd(MEMORY_RANGE, 0b011, (0x10, 0x1f), 0x7100_0000, 0x1000),
            ivmd(MEMORY_ALL, 0b1000, (0, 0), 0x7200_0000, 0x1000),
            ivmd(MEMORY_ALL, 0, (0, 0), 0x7300_0000, 0x1000),
        ]);
        let found = Ivrs::parse(&table).unwrap();
        let [unit] = &found.units[..] else { panic!("one unit") };
        assert_eq!((unit.device, unit.capability, unit.registers, unit.flags), (2, 0x40, BASE, 0x2f));
        let expected = [
            (8, 8, None),
            (0x10, 0x1f, None),
            (0x120, 0x120, Some(0x100)),
            (0x130, 0x13f, Some(0x108)),
            (0xa0, 0xa0, None),
        ];
        assert_eq!(ids(&unit.devices), expected);
        assert_eq!(unit.devices[0].settings, 0xd7);
        let memory: Vec<_> =
            found.memory.iter().map(|m| (m.range.first, m.range.last, m.start, m.write)).collect();
        let expected = [
            (0x98, 0x98, 0x7000_0000, true),
            (0x10, 0x1f, 0x7100_0000, false),
            (0, u16::MAX, 0x7200_0000, true),
        ];
        assert_eq!(memory, expected);
        // Of several blocks for a unit the one that says most counts, wherever it stands.
        let table = ivrs(&[
            ivhd(UNIT_NAMED, 2, BASE, &named),
            ivhd(UNIT_BASIC, 2, BASE, &[1, 0, 0, 0]),
            ivhd(UNIT_EXTENDED, 2, BASE, &[]),
            ivhd(UNIT_EXTENDED, 3, BASE, &[1, 0, 0, 0]),
        ]);
        let found = Ivrs::parse(&table).unwrap();
        assert_eq!(found.units.len(), 2);
        assert_eq!(ids(&found.units[0].devices), [(0x98, 0x98, None)]);
        assert_eq!(ids(&found.units[1].devices), [(0, u16::MAX, None)]);
    }

    #[test]
    fn wrong_tables_are_refused() {
        let good = ivhd(UNIT_BASIC, 2, BASE, &[1, 0, 0, 0]);
        assert!(Ivrs::parse(&ivrs(core::slice::from_ref(&good))).is_ok());
        for (blocks, error) in [
            (vec![], TableError::NoUnit),
            (vec![vec![0x10, 0, 2, 0]], TableError::Length),
            (vec![vec![0x10, 0, 60, 0]], TableError::Length),
            (vec![ivhd(UNIT_BASIC, 2, BASE + 4096, &[])], TableError::Address),
            (vec![ivhd(UNIT_BASIC, 2, BASE, &[2, 0])], TableError::Length),
            (vec![ivhd(UNIT_BASIC, 2, BASE, &[0xf0; 21])], TableError::Length),
            (vec![ivhd(UNIT_BASIC, 2, BASE, &[3, 8, 0, 0])], TableError::Range),
            (vec![ivhd(UNIT_BASIC, 2, BASE, &[4, 8, 0, 0])], TableError::Range),
            (vec![ivhd(UNIT_BASIC, 2, BASE, &[3, 8, 0, 0, 4, 7, 0, 0])], TableError::Range),
            (vec![good.clone(), ivmd(MEMORY_ONE, 1, (0, 0), 1, 4096)], TableError::Address),
            (vec![good.clone(), ivmd(MEMORY_ONE, 1, (0, 0), 4096, 0)], TableError::Address),
            (vec![good.clone(), ivmd(MEMORY_RANGE, 1, (5, 4), 4096, 4096)], TableError::Range),
        ] {
            assert_eq!(Ivrs::parse(&ivrs(&blocks)), Err(error), "{blocks:x?}");
        }
        assert_eq!(Ivrs::parse(&ivrs(&[good])[..50]), Err(TableError::Truncated));
    }
}
