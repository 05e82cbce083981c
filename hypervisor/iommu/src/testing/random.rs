//! Random owners of devices.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use caisson_pci::{Address, ConfigSpace};
use caisson_types::{Gpa, Hpa, PAGE_SIZE};

use super::vtd::every_kind;
use super::{AmdViModel, Translate, VtdModel, World};
use crate::{
    AmdVi, Coverage, DeviceRange, Dmar, Error, Iommu, Iommus, Ivhd, Ivrs, Reserved, Tag, Unit, Vtd,
    requesters,
};

/// Devices that exist: on three buses, behind two units.
pub const DEVICES: [u16; 5] = [0x0010, 0x00f8, 0x0100, 0x0101, 0x8008];
/// What the firmware has reserved for the second one: pages.
const RESERVED: (u64, u64) = (0x7_0000, 0x20);
/// Pages of 4 KiB in 2 MiB.
const LARGE: u64 = 512;

/// What is mapped in a domain, by page: the page behind it, and whether it may be written.
type Pages = BTreeMap<u64, (u64, bool)>;

/// What should be so.
#[derive(Default)]
struct Expected {
    domains: BTreeMap<Tag, Pages>,
    attached: BTreeMap<u16, Tag>,
}

impl Expected {
    fn look(&self, device: u16, page: u64) -> Option<(u64, bool)> {
        match self.attached.get(&device) {
            Some(tag) => self.domains.get(tag)?.get(&page).copied(),
            None => (device == DEVICES[1] && is_reserved(page)).then_some((page, true)),
        }
    }
}

fn is_reserved(page: u64) -> bool {
    page.wrapping_sub(RESERVED.0) < RESERVED.1
}

/// What is behind the two units: one has the devices of bus 1, the other all the rest.
#[must_use]
pub fn coverages() -> [Coverage; 2] {
    let bus = DeviceRange { first: 0x100, last: 0x1ff };
    [
        Coverage { segment: 0, ranges: Vec::new(), rest: true },
        Coverage { segment: 0, ranges: [bus].into(), rest: false },
    ]
}

/// The memory that is reserved for one of [`DEVICES`].
#[must_use]
pub fn reserved() -> Vec<Reserved> {
    let range = DeviceRange { first: DEVICES[1], last: DEVICES[1] };
    let (start, bytes) = (RESERVED.0 * PAGE_SIZE, RESERVED.1 * PAGE_SIZE);
    [Reserved { segment: 0, range, start, bytes, write: true }].into()
}

/// The device's address.
#[must_use]
pub fn address(device: u16) -> Address {
    Address { segment: 0, routing: device }
}

/// An AMD unit's description, with nothing special about its devices.
///
/// # Panics
/// Never: the table is right.
#[must_use]
pub fn ivhd() -> Ivhd {
    let mut block = [0_u8; 28];
    (block[0], block[1], block[2], block[4]) = (0x10, 0x21, 28, 2);
    block[10..12].copy_from_slice(&[0xd8, 0xfe]);
    block[24] = 1;
    let table = super::acpi_table(b"IVRS", &[&[0; 12], &block[..]].concat());
    let unit = Ivrs::parse(&table).ok().and_then(|ivrs| ivrs.units.into_iter().next());
    let Some(unit) = unit else { unreachable!("the table is right") };
    unit
}

/// Runs what `data` spells on units of the kind that its first byte says.
///
/// # Panics
/// Where a device reaches what it should not, or does not reach what it should: that is what fuzzing looks for.
pub fn drive(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    let world = World::default();
    if kind & 0x80 == 0 {
        let options = every_kind()[usize::from(kind & 127)];
        let models = [0, 1].map(|_| VtdModel::new(&world, options));
        let units = models.clone().map(|model| Vtd::new(model, 0));
        run(&world, units, models, data);
    } else {
        let models = [0, 1].map(|_| AmdViModel::new(&world, true, kind & 2 != 0, u32::MAX));
        let units = models.clone().map(|model| AmdVi::new(model, &ivhd()));
        run(&world, units, models, data);
    }
}

fn run<U: Unit>(world: &World, units: [Result<U, Error>; 2], mut models: [impl Translate; 2], data: &[u8]) {
    let units = coverages().into_iter().zip(units).map(|(coverage, unit)| match unit {
        Ok(unit) => (coverage, unit),
        Err(error) => unreachable!("{error}"),
    });
    let iommus = Iommus::enable(units.collect(), world.clone(), reserved(), &DEVICES.map(address));
    let mut iommus = match iommus {
        Ok(iommus) => iommus,
        Err(error) => unreachable!("{error}"),
    };
    let mut expected = Expected::default();
    let pages = world.pages();
    let mut probes = [RESERVED.0, RESERVED.0 + RESERVED.1, 0, LARGE, 1 << 27].to_vec();
    check(&mut models, &expected, &probes);
    for step in data.chunks_exact(5).take(64) {
        let &[op, which, at, to, length] = step else { continue };
        let device = DEVICES[usize::from(which >> 4) % DEVICES.len()];
        let tags: Vec<Tag> = expected.domains.keys().copied().collect();
        let tag = tags.get(usize::from(which & 15) % tags.len().max(1)).copied().unwrap_or(Tag(99));
        let (at, to) = (place(at), place(to));
        let length = u64::from(length & 7) * if length & 8 == 0 { 1 } else { LARGE } + u64::from(length >> 7);
        act(&mut iommus, &mut expected, op, (tag, device), (at, to, length));
        for edge in [at, at + length] {
            probes.extend([edge.saturating_sub(1), edge, edge + 1]);
        }
        if probes.len() > 40 {
            probes.drain(5..20);
        }
        check(&mut models, &expected, &probes);
    }
    for tag in expected.domains.keys() {
        assert_eq!(iommus.destroy(*tag), Ok(()));
    }
    expected = Expected::default();
    check(&mut models, &expected, &probes);
    assert_eq!(world.pages(), pages, "tables are left behind");
}

/// A page from a byte, so that ranges meet and miss, and large leaves are used.
fn place(byte: u8) -> u64 {
    let byte = u64::from(byte);
    (byte & 7) * LARGE + (byte >> 3 & 3) + if byte & 0x80 != 0 { 0x7_0000 } else { 0 }
}

fn act(
    iommus: &mut impl Iommu,
    expected: &mut Expected,
    op: u8,
    (tag, device): (Tag, u16),
    (at, to, length): (u64, u64, u64),
) {
    let (gpa, hpa) = (Gpa::new(at * PAGE_SIZE), Hpa::new(to * PAGE_SIZE));
    let write = op & 0x80 != 0;
    match op % 8 {
        0 if expected.domains.len() < 4 => {
            let Ok(tag) = iommus.create() else { unreachable!("there are tags") };
            assert!(expected.domains.insert(tag, Pages::new()).is_none(), "a tag twice");
        }
        0..=2 => {
            let result = iommus.map(tag, gpa, hpa, length * PAGE_SIZE, write);
            let Some(pages) = expected.domains.get_mut(&tag) else {
                assert_eq!(result, Err(Error::NoDomain(tag)));
                return;
            };
            let overlap = pages.range(at..at + length).next().is_some();
            assert_eq!(result.is_err(), overlap, "{result:?}");
            if result.is_ok() {
                pages.extend((0..length).map(|page| (at + page, (to + page, write))));
            }
        }
        3 | 4 => {
            let result = iommus.unmap(tag, gpa, length * PAGE_SIZE);
            if let Some(pages) = expected.domains.get_mut(&tag) {
                assert_eq!(result, Ok(()));
                pages.retain(|page, _| !(at..at + length).contains(page));
            }
        }
        5 => {
            let result = iommus.attach(tag, address(device));
            let Some(pages) = expected.domains.get_mut(&tag) else { return };
            assert_eq!(result, Ok(()));
            expected.attached.insert(device, tag);
            let own = RESERVED.0..RESERVED.0 + RESERVED.1;
            if device == DEVICES[1] && pages.range(own.clone()).next().is_none() {
                pages.extend(own.map(|page| (page, (page, true))));
            }
        }
        6 => {
            assert_eq!(iommus.detach(address(device)), Ok(()));
            expected.attached.remove(&device);
        }
        _ => {
            let result = iommus.destroy(tag);
            if expected.domains.remove(&tag).is_some() {
                assert_eq!(result, Ok(()));
                expected.attached.retain(|_, of| *of != tag);
            }
        }
    }
}

/// Every device finds at every place what it should.
fn check(models: &mut [impl Translate; 2], expected: &Expected, probes: &[u64]) {
    for device in DEVICES {
        let model = &mut models[usize::from(device >> 8 == 1)];
        for &page in probes {
            let found = model.look(device, page * PAGE_SIZE).map(|(at, write)| (at / PAGE_SIZE, write));
            assert_eq!(found, expected.look(device, page), "device {device:#x}, page {page:#x}");
        }
    }
}

/// Configuration space where every bridge leads on by one bus.
struct Chain;

impl ConfigSpace for Chain {
    fn read(&mut self, at: Address, _: u16, _: u8) -> u32 {
        u32::from(at.bus()) + 1
    }
    fn write(&mut self, _: Address, _: u16, _: u8, _: u32) {}
}

/// Reads `data` as the two tables, with the right sums, and uses what they say.
pub fn parse(data: &[u8]) {
    for signature in [b"DMAR", b"IVRS"] {
        let table = super::acpi_table(signature, data);
        if let Ok(dmar) = Dmar::parse(&table) {
            let coverage = dmar.coverage(&mut Chain);
            assert_eq!(coverage.len(), dmar.units.len());
            for reserved in dmar.reserved(&mut Chain) {
                assert!(reserved.start.checked_add(reserved.bytes).is_some() || reserved.bytes != 0);
            }
        }
        if let Ok(ivrs) = Ivrs::parse(&table) {
            for unit in &ivrs.units {
                assert!(unit.coverage().ranges.iter().all(|range| range.first <= range.last));
            }
            for reserved in ivrs.reserved() {
                assert!(reserved.start.checked_add(reserved.bytes).is_some());
            }
            let _ = ivrs.alias(address(8));
        }
    }
    let _ = Dmar::parse(data);
    let _ = Ivrs::parse(data);
    let _ = requesters(address(1), &[]);
}
