//! Which unit a device is behind, and by which ids its requests are known.

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use caisson_pci::{Address, ConfigSpace};

use crate::{Dmar, Ivhd, Ivrs};

/// Requester ids of a segment, from `first` to `last`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl DeviceRange {
    /// Whether the id is in it.
    #[must_use]
    pub const fn contains(self, id: u16) -> bool {
        self.first <= id && id <= self.last
    }
}

/// The devices behind a unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coverage {
    /// Their PCI segment group.
    pub segment: u16,
    /// Those that are named.
    pub ranges: Vec<DeviceRange>,
    /// All of the segment that no other unit has.
    pub rest: bool,
}

impl Coverage {
    /// Whether it is named.
    #[must_use]
    pub fn names(&self, device: Address) -> bool {
        self.segment == device.segment && self.ranges.iter().any(|range| range.contains(device.routing))
    }

    /// Whether the unit has it if no other does.
    #[must_use]
    pub fn has_rest(&self, device: Address) -> bool {
        self.rest && self.segment == device.segment
    }
}

/// Memory that the firmware has some devices use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reserved {
    /// The devices' PCI segment group.
    pub segment: u16,
    /// The devices.
    pub range: DeviceRange,
    /// Host-physical address of the first byte, a multiple of 4 KiB.
    pub start: u64,
    /// Bytes, a multiple of 4 KiB.
    pub bytes: u64,
    /// They also write it.
    pub write: bool,
}

impl Reserved {
    /// Whether it is for this device.
    #[must_use]
    pub fn is_for(&self, device: Address) -> bool {
        self.segment == device.segment && self.range.contains(device.routing)
    }
}

impl Dmar {
    /// What is behind each unit, in their order. Devices whose way leads nowhere are left out.
    pub fn coverage(&self, space: &mut impl ConfigSpace) -> Vec<Coverage> {
        let coverage = self.units.iter().map(|unit| {
            let mut ranges = Vec::new();
            for scope in &unit.scopes {
                ranges.extend(scope.resolve(space, unit.segment));
                ranges.extend(scope.bridge(space, unit.segment));
            }
            Coverage { segment: unit.segment, ranges, rest: unit.all }
        });
        coverage.collect()
    }

    /// The reserved memory, by device.
    pub fn reserved(&self, space: &mut impl ConfigSpace) -> Vec<Reserved> {
        let mut found = Vec::new();
        for region in &self.reserved {
            let (segment, start, bytes) = (region.segment, region.start, region.bytes);
            let ranges = region.scopes.iter().filter_map(|scope| scope.resolve(space, segment));
            found.extend(ranges.map(|range| Reserved { segment, range, start, bytes, write: true }));
        }
        found
    }
}

impl Dmar {
    /// How the messages of an I/O APIC are known, by its id.
    pub fn io_apic(&self, space: &mut impl ConfigSpace, id: u8) -> Option<Address> {
        let mut known =
            self.units.iter().flat_map(|unit| unit.io_apics.iter().map(move |of| (unit.segment, of)));
        let (segment, (_, scope)) = known.find(|(_, (of, _))| *of == id)?;
        scope.resolve(space, segment).map(|range| Address { segment, routing: range.first })
    }
}

impl Ivhd {
    /// What is behind the unit: the devices, and the ids that their requests bear.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        let own = self.devices.iter().map(|entry| entry.range);
        let aliases = self.devices.iter().filter_map(|entry| entry.alias);
        let aliases = aliases.map(|id| DeviceRange { first: id, last: id });
        Coverage { segment: self.segment, ranges: own.chain(aliases).collect(), rest: false }
    }
}

impl Ivrs {
    /// The reserved memory, by device.
    pub fn reserved(&self) -> impl Iterator<Item = Reserved> + '_ {
        self.memory.iter().map(|memory| Reserved {
            segment: 0,
            range: memory.range,
            start: memory.start,
            bytes: memory.bytes,
            write: memory.write,
        })
    }

    /// The id that the device's requests bear, as the firmware knows.
    #[must_use]
    pub fn alias(&self, device: Address) -> Option<Address> {
        let units = self.units.iter().filter(|unit| unit.segment == device.segment);
        let mut entries = units.flat_map(|unit| &unit.devices);
        let alias = entries.find_map(|entry| entry.alias.filter(|_| entry.range.contains(device.routing)))?;
        Some(Address { routing: alias, ..device })
    }
}

/// How a bridge passes requests on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BridgeKind {
    /// As they are: both sides are PCI Express.
    Express,
    /// From a conventional bus to PCI Express: as its own, by the id of the first device of the bus behind it.
    ToConventional,
    /// Between conventional buses: as its own.
    Conventional,
}

/// A bridge between PCI buses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bridge {
    /// The function that it is.
    pub address: Address,
    /// The buses behind it, first and last.
    pub buses: (u8, u8),
    /// What it does to requests.
    pub kind: BridgeKind,
}

impl Bridge {
    /// The bridge at `address`, which is one, with its PCI Express capability at `express`.
    #[must_use]
    pub fn read(space: &mut impl ConfigSpace, address: Address, express: Option<u16>) -> Self {
        // The port's type is in bits 7:4 of the capability's register (PCI Express Base Specification 4.0, section 7.5.3.2).
        const TO_CONVENTIONAL: u32 = 7;
        let buses = [0x19, 0x1a].map(|offset| space.read(address, offset, 1) as u8);
        let port = express.map(|offset| space.read(address, offset + 2, 2) >> 4 & 15);
        let kind = match port {
            None => BridgeKind::Conventional,
            Some(TO_CONVENTIONAL) => BridgeKind::ToConventional,
            Some(_) => BridgeKind::Express,
        };
        Self { address, buses: (buses[0], buses[1]), kind }
    }
}

/// Most ids of one device.
const MOST: usize = 16;

/// The ids by which requests of `device` may arrive: its own, and those that bridges on the way put in its place
/// (PCI Express to PCI/PCI-X Bridge Specification 1.0, section 2.3). Whoever owns the device owns them all.
#[must_use]
pub fn requesters(device: Address, bridges: &[Bridge]) -> ArrayVec<Address, MOST> {
    let mut found = ArrayVec::new();
    found.push(device);
    let above = bridges.iter().filter(|bridge| {
        let (first, last) = bridge.buses;
        bridge.address.segment == device.segment
            && bridge.address.bus() < first
            && (first..=last).contains(&device.bus())
    });
    for bridge in above.filter(|bridge| bridge.kind != BridgeKind::Express) {
        let first = Address::new(device.segment, bridge.buses.0, 0, 0);
        for id in [bridge.address, first] {
            if !found.contains(&id) {
                // Deeper than eight bridges no machine is; what does not fit stays blocked.
                let _ = found.try_push(id);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_bear_the_bridges_ids() {
        let at = |bus, device| Address::new(0, bus, device, 0);
        let bridges = [
            Bridge { address: at(0, 1), buses: (1, 4), kind: BridgeKind::Express },
            Bridge { address: at(1, 0), buses: (2, 3), kind: BridgeKind::ToConventional },
            Bridge { address: at(2, 5), buses: (3, 3), kind: BridgeKind::Conventional },
            // One that firmware has not set up.
            Bridge { address: at(0, 9), buses: (0, 255), kind: BridgeKind::Conventional },
        ];
        assert_eq!(requesters(at(0, 3), &bridges)[..], [at(0, 3)]);
        assert_eq!(requesters(at(4, 3), &bridges)[..], [at(4, 3)]);
        assert_eq!(requesters(at(2, 3), &bridges)[..], [at(2, 3), at(1, 0), at(2, 0)]);
        let deepest = [at(3, 1), at(1, 0), at(2, 0), at(2, 5), at(3, 0)];
        assert_eq!(requesters(at(3, 1), &bridges)[..], deepest);
        let elsewhere = Address { segment: 1, ..at(3, 1) };
        assert_eq!(requesters(elsewhere, &bridges)[..], [elsewhere]);
    }
}
