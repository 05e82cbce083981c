//! The DMAR table: where a machine's VT-d units are, which devices are behind each, and which memory the firmware has its
//! devices use (VT-d specification 4.1, chapter 8).

use alloc::vec::Vec;

use caisson_pci::{Address, ConfigSpace};

use crate::bytes::{self, u8_at, u16_at, u64_at};
use crate::{DeviceRange, TableError};

/// Bytes before the first structure.
const START: usize = 48;
/// Types of structures. Others say nothing that Caisson uses.
const DRHD: u16 = 0;
const RMRR: u16 = 1;
/// Types of device scopes.
const ENDPOINT: u8 = 1;
const HIERARCHY: u8 = 2;
const IO_APIC: u8 = 3;
/// Where a bridge's configuration space has the buses behind it, first and last (PCI-to-PCI Bridge Architecture
/// Specification 1.2, section 3.2.5).
const SECONDARY_BUS: u16 = 0x19;
const SUBORDINATE_BUS: u16 = 0x1a;

/// A device, by the way to it: bus numbers may change, devices and functions do not (section 8.3.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceScope {
    /// It is a bridge and stands for everything behind it as well.
    pub hierarchy: bool,
    /// Where the way starts.
    pub bus: u8,
    /// Device and function of each bridge on the way, and of the device.
    pub path: Vec<(u8, u8)>,
}

impl DeviceScope {
    /// The requester ids that it stands for, in the segment; `None` where the way leads nowhere. Those of a bridge are what is
    /// behind it, beside [its own](Self::bridge).
    #[must_use]
    pub fn resolve(&self, space: &mut impl ConfigSpace, segment: u16) -> Option<DeviceRange> {
        let address = self.device(space, segment)?;
        if !self.hierarchy {
            return Some(DeviceRange { first: address.routing, last: address.routing });
        }
        let (first, last) = behind(space, address)?;
        Some(DeviceRange { first: u16::from(first) << 8, last: u16::from(last) << 8 | 0xff })
    }

    /// The bridge's own requester id, where it stands for one and all that is behind it (section 8.3.1, type 2).
    #[must_use]
    pub fn bridge(&self, space: &mut impl ConfigSpace, segment: u16) -> Option<DeviceRange> {
        let own = self.device(space, segment).filter(|_| self.hierarchy)?.routing;
        Some(DeviceRange { first: own, last: own })
    }

    /// The device that the way leads to.
    fn device(&self, space: &mut impl ConfigSpace, segment: u16) -> Option<Address> {
        let (&(device, function), bridges) = self.path.split_last()?;
        let mut bus = self.bus;
        for &(device, function) in bridges {
            bus = behind(space, Address::new(segment, bus, device, function))?.0;
        }
        Some(Address::new(segment, bus, device, function))
    }
}

/// The buses behind a bridge, first and last.
fn behind(space: &mut impl ConfigSpace, bridge: Address) -> Option<(u8, u8)> {
    let first = space.read(bridge, SECONDARY_BUS, 1) as u8;
    let last = space.read(bridge, SUBORDINATE_BUS, 1) as u8;
    (bridge.bus() < first && first <= last && first != 0xff).then_some((first, last))
}

/// A unit (section 8.3, DRHD).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drhd {
    /// Host-physical address of its registers.
    pub registers: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// PCI segment group.
    pub segment: u16,
    /// It has all devices of the segment that no other unit has.
    pub all: bool,
    /// Its devices.
    pub scopes: Vec<DeviceScope>,
    /// I/O APICs behind it, by their ids, and how they are known.
    pub io_apics: Vec<(u8, DeviceScope)>,
}

/// Memory that some devices use as the firmware has told them, beside the operating system (section 8.4, RMRR).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReservedRegion {
    /// Where it starts.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
    /// PCI segment group of the devices.
    pub segment: u16,
    /// The devices.
    pub scopes: Vec<DeviceScope>,
}

/// What the table says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dmar {
    /// The machine can remap interrupts.
    pub interrupts: bool,
    /// The units.
    pub units: Vec<Drhd>,
    /// Reserved memory.
    pub reserved: Vec<ReservedRegion>,
}

impl Dmar {
    /// Reads a table with its header.
    ///
    /// # Errors
    /// [`TableError`], where it contradicts itself: then nothing of it is to be trusted.
    pub fn parse(table: &[u8]) -> Result<Self, TableError> {
        let table = bytes::table(table, b"DMAR", START)?;
        let flags = u8_at(table, 37).ok_or(TableError::Truncated)?;
        let mut dmar = Self { interrupts: flags & 1 != 0, ..Self::default() };
        let mut rest = table.get(START..).unwrap_or_default();
        while !rest.is_empty() {
            let length = usize::from(u16_at(rest, 2).ok_or(TableError::Truncated)?);
            let entry = rest.get(..length).filter(|_| length >= 4).ok_or(TableError::Length)?;
            match u16_at(entry, 0) {
                Some(DRHD) => dmar.units.push(unit(entry)?),
                Some(RMRR) => dmar.reserved.push(reserved(entry)?),
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
        if dmar.units.is_empty() { Err(TableError::NoUnit) } else { Ok(dmar) }
    }
}

fn unit(entry: &[u8]) -> Result<Drhd, TableError> {
    let flags = u8_at(entry, 4).ok_or(TableError::Length)?;
    let size = u8_at(entry, 5).ok_or(TableError::Length)? & 15;
    let segment = u16_at(entry, 6).ok_or(TableError::Length)?;
    let registers = u64_at(entry, 8).ok_or(TableError::Length)?;
    let bytes = 4096_u64 << size;
    if registers == 0 || registers % 4096 != 0 || registers.checked_add(bytes).is_none() {
        return Err(TableError::Address);
    }
    let all = flags & 1 != 0;
    let scopes = scopes(entry.get(16..).unwrap_or_default())?;
    Ok(Drhd { registers, bytes, segment, all, scopes: scopes.devices, io_apics: scopes.io_apics })
}

fn reserved(entry: &[u8]) -> Result<ReservedRegion, TableError> {
    let segment = u16_at(entry, 6).ok_or(TableError::Length)?;
    let start = u64_at(entry, 8).ok_or(TableError::Length)?;
    let limit = u64_at(entry, 16).ok_or(TableError::Length)?;
    let bytes = limit.wrapping_sub(start).wrapping_add(1);
    if start % 4096 != 0 || bytes % 4096 != 0 || limit <= start {
        return Err(TableError::Address);
    }
    let scopes = scopes(entry.get(24..).unwrap_or_default())?.devices;
    Ok(ReservedRegion { start, bytes, segment, scopes })
}

/// The devices of a structure.
#[derive(Default)]
struct Scopes {
    devices: Vec<DeviceScope>,
    io_apics: Vec<(u8, DeviceScope)>,
}

/// The devices of a structure. HPETs and what is no PCI device do nothing that Caisson restricts or uses.
fn scopes(mut rest: &[u8]) -> Result<Scopes, TableError> {
    const HEAD: usize = 6;
    let mut found = Scopes::default();
    while !rest.is_empty() {
        let kind = u8_at(rest, 0).ok_or(TableError::Length)?;
        let length = usize::from(u8_at(rest, 1).ok_or(TableError::Length)?);
        let bus = u8_at(rest, 5).ok_or(TableError::Length)?;
        let path = rest.get(HEAD..length).ok_or(TableError::Length)?;
        if path.is_empty() || path.len() % 2 != 0 {
            return Err(TableError::Length);
        }
        let path = path.chunks_exact(2).map(|step| (step[0], step[1])).collect();
        let scope = DeviceScope { hierarchy: kind == HIERARCHY, bus, path };
        match kind {
            ENDPOINT | HIERARCHY => found.devices.push(scope),
            IO_APIC => found.io_apics.push((u8_at(rest, 4).ok_or(TableError::Length)?, scope)),
            _ => {}
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::acpi_table;
    use alloc::vec;

    fn structure(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = 4 + body.len() as u16;
        [&kind.to_le_bytes(), &length.to_le_bytes(), body].concat()
    }

    fn drhd(flags: u8, segment: u16, base: u64, scopes: &[u8]) -> Vec<u8> {
        structure(DRHD, &[&[flags, 0], &segment.to_le_bytes()[..], &base.to_le_bytes(), scopes].concat())
    }

    fn dmar(structures: &[Vec<u8>]) -> Vec<u8> {
        let head = [38, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        acpi_table(b"DMAR", &[&head[..], &structures.concat()].concat())
    }

    #[test]
    fn units_and_reserved_regions_are_read() {
        let scope = [1, 8, 0, 0, 0, 2, 0x1d, 0];
        let deep = [2, 10, 0, 0, 0, 0, 0x1c, 1, 0, 0];
        let other = [3, 8, 0, 0, 7, 0, 0x1f, 0];
        let region = [
            &[0, 0, 0, 0][..],
            &0xdead_0000_u64.to_le_bytes(),
            &0xdead_1fff_u64.to_le_bytes(),
            &scope,
            &deep,
        ];
        let table = dmar(&[
            drhd(0, 1, 0xfed9_1000, &[&scope[..], &other].concat()),
            structure(4, &[1, 2, 3, 4]),
            structure(RMRR, &region.concat()),
            drhd(1, 0, 0xfed9_0000, &[]),
        ]);
        let found = Dmar::parse(&table).unwrap();
        assert!(found.interrupts);
        let usb = DeviceScope { hierarchy: false, bus: 2, path: vec![(0x1d, 0)] };
        let bridge = DeviceScope { hierarchy: true, bus: 0, path: vec![(0x1c, 1), (0, 0)] };
        let one = Drhd {
            registers: 0xfed9_1000,
            bytes: 4096,
            segment: 1,
            all: false,
            scopes: vec![usb.clone()],
            io_apics: vec![(7, DeviceScope { hierarchy: false, bus: 0, path: vec![(0x1f, 0)] })],
        };
        let all = Drhd {
            registers: 0xfed9_0000,
            bytes: 4096,
            segment: 0,
            all: true,
            scopes: vec![],
            io_apics: vec![],
        };
        assert_eq!(found.units, [one, all]);
        let region =
            ReservedRegion { start: 0xdead_0000, bytes: 0x2000, segment: 0, scopes: vec![usb, bridge] };
        assert_eq!(found.reserved, [region]);
    }

    #[test]
    fn wrong_tables_are_refused() {
        let good = drhd(1, 0, 0xfed9_0000, &[]);
        assert!(Dmar::parse(&dmar(core::slice::from_ref(&good))).is_ok());
        for (structures, error) in [
            (vec![], TableError::NoUnit),
            (vec![vec![0, 0, 3, 0]], TableError::Length),
            (vec![vec![0, 0, 200, 0]], TableError::Length),
            (vec![vec![0, 0]], TableError::Truncated),
            (vec![drhd(1, 0, 0xfed9_0010, &[])], TableError::Address),
            (vec![drhd(1, 0, 0, &[])], TableError::Address),
            (vec![drhd(1, 0, !0xfff, &[])], TableError::Address),
            (vec![drhd(0, 0, 0xfed9_0000, &[1, 0, 0, 0, 0, 0])], TableError::Length),
            (vec![drhd(0, 0, 0xfed9_0000, &[1, 6, 0, 0, 0, 0])], TableError::Length),
            (vec![drhd(0, 0, 0xfed9_0000, &[1, 9, 0, 0, 0, 0, 1, 2, 3])], TableError::Length),
            (vec![good.clone(), structure(RMRR, &[0; 12])], TableError::Length),
            (vec![good.clone(), structure(RMRR, &[0; 20])], TableError::Address),
        ] {
            assert_eq!(Dmar::parse(&dmar(&structures)), Err(error), "{structures:x?}");
        }
        let mut table = dmar(&[good]);
        assert_eq!(Dmar::parse(&table[..60]), Err(TableError::Truncated));
        table[50] ^= 1;
        assert_eq!(Dmar::parse(&table), Err(TableError::Checksum));
        table[0] = b'X';
        assert_eq!(Dmar::parse(&table), Err(TableError::Signature));
        assert_eq!(Dmar::parse(&[]), Err(TableError::Signature));
    }

    /// Bridges by (bus, device): the buses behind them.
    struct Bridges(&'static [(u8, u8, u8, u8)]);

    impl ConfigSpace for Bridges {
        fn read(&mut self, at: Address, offset: u16, _: u8) -> u32 {
            let bridge = self.0.iter().find(|bridge| (bridge.0, bridge.1) == (at.bus(), at.device()));
            bridge.map_or(0xff, |bridge| if offset == SECONDARY_BUS { bridge.2 } else { bridge.3 }.into())
        }
        fn write(&mut self, _: Address, _: u16, _: u8, _: u32) {}
    }

    #[test]
    fn ways_are_followed() {
        let mut space = Bridges(&[(0, 1, 3, 5), (3, 2, 4, 4), (3, 9, 3, 3)]);
        let mut resolve = |hierarchy, path: &[(u8, u8)]| {
            let scope = DeviceScope { hierarchy, bus: 0, path: path.to_vec() };
            scope.resolve(&mut space, 0).map(|range| (range.first, range.last))
        };
        assert_eq!(resolve(false, &[(0x1d, 2)]), Some((0xea, 0xea)));
        assert_eq!(resolve(false, &[(1, 0), (2, 0), (7, 1)]), Some((0x439, 0x439)));
        assert_eq!(resolve(true, &[(1, 0)]), Some((0x300, 0x5ff)));
        // A bridge that is not there, or that leads back, leads nowhere.
        assert_eq!(resolve(false, &[(5, 0), (1, 0)]), None);
        assert_eq!(resolve(false, &[(1, 0), (9, 0), (1, 0)]), None);
        assert_eq!(resolve(true, &[(6, 0)]), None);
        assert_eq!(resolve(true, &[]), None);
    }

    #[test]
    fn a_bridge_is_with_what_is_behind_it() {
        let scope = |hierarchy| DeviceScope { hierarchy, bus: 0, path: vec![(1, 0)] };
        let mut dmar = Dmar::parse(&dmar(&[drhd(0, 0, 0xfed9_0000, &[])])).unwrap();
        let unit = |scopes| Drhd { scopes, ..dmar.units[0].clone() };
        dmar.units = vec![unit(vec![scope(true)]), unit(vec![scope(false)])];
        let covered = dmar.coverage(&mut Bridges(&[(0, 1, 3, 5)]));
        let names = |of: usize, bus, device| covered[of].names(Address::new(0, bus, device, 0));
        assert!(names(0, 0, 1) && names(0, 3, 0) && names(0, 5, 31) && !names(0, 0, 2) && !names(0, 6, 0));
        assert!(names(1, 0, 1) && !names(1, 3, 0));
    }
}
