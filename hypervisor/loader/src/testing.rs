//! What the loaders' tests share: a guest's memory that finds stray writes.

use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use caisson_types::{Gpa, GuestMemory, MemoryError, MemoryRegion, RegionKind};

use crate::{LoadRequest, Module};

pub(crate) const MIB: u64 = 1 << 20;

/// A guest of 64 MiB with the usual hole below 1 MiB and ACPI tables at the end.
pub(crate) const MAP: [MemoryRegion; 4] = [
    MemoryRegion::new(Gpa::new(0), 0x9_FC00, RegionKind::Ram),
    MemoryRegion::new(Gpa::new(0xF_0000), 0x1_0000, RegionKind::Reserved),
    MemoryRegion::new(Gpa::new(MIB), 62 * MIB, RegionKind::Ram),
    MemoryRegion::new(Gpa::new(63 * MIB), MIB, RegionKind::AcpiReclaim),
];

/// What the firmware keeps in RAM.
pub(crate) const RESERVED: [(Gpa, u64); 1] = [(Gpa::new(0), 0x1000)];

pub(crate) fn request<'a>(cmdline: &'a str, modules: &'a [Module<'a>]) -> LoadRequest<'a> {
    LoadRequest { modules, cmdline, memory_map: &MAP, reserved: &RESERVED, rsdp: Some(Gpa::new(0xF_0000)) }
}

/// Guest memory that panics where a write is outside the free RAM of a map, or where two writes meet.
pub(crate) struct StrictMemory {
    map: Vec<MemoryRegion>,
    reserved: Vec<(Gpa, u64)>,
    inner: RefCell<Inner>,
}

struct Inner {
    bytes: Vec<u8>,
    written: Vec<(u64, u64)>,
}

impl StrictMemory {
    /// The memory of the request's map, filled with a byte; zeros cost no time.
    pub(crate) fn new(request: &LoadRequest<'_>, fill: u8) -> Self {
        let len = request.memory_map.last().map_or(0, |region| region.end().as_u64());
        Self {
            map: request.memory_map.to_vec(),
            reserved: request.reserved.to_vec(),
            inner: RefCell::new(Inner { bytes: vec![fill; len as usize], written: Vec::new() }),
        }
    }

    pub(crate) fn bytes(&self, start: u64, len: usize) -> Vec<u8> {
        self.inner.borrow().bytes[start as usize..start as usize + len].to_vec()
    }

    pub(crate) fn text(&self, start: u64) -> Vec<u8> {
        let inner = self.inner.borrow();
        inner.bytes[start as usize..].iter().copied().take_while(|&byte| byte != 0).collect()
    }

    /// Whether a byte was written since the start, as data or as zeros.
    pub(crate) fn was_written(&self, at: u64) -> bool {
        self.inner.borrow().written.iter().any(|&(start, end)| start <= at && at < end)
    }

    fn note(&self, start: u64, len: u64) {
        let end = start.checked_add(len).expect("a write past the end of the address space");
        let in_ram = |at| {
            let ram = |region: &&MemoryRegion| region.kind == RegionKind::Ram;
            self.map.iter().filter(ram).any(|region| region.contains(Gpa::new(at), 1))
        };
        if len == 0 {
            return;
        }
        assert!(in_ram(start) && in_ram(end - 1), "{start:#x}..{end:#x} is written but no RAM");
        for &(at, len) in &self.reserved {
            assert!(at.as_u64() >= end || at.as_u64() + len <= start, "{start:#x}..{end:#x} is reserved");
        }
        self.inner.borrow_mut().written.push((start, end));
    }

    /// Panics where two of the ranges have a byte in common.
    pub(crate) fn assert_apart(ranges: &[(&str, u64, u64)]) {
        for (index, a) in ranges.iter().enumerate() {
            for b in &ranges[..index] {
                assert!(a.1 + a.2 <= b.1 || b.1 + b.2 <= a.1, "{a:x?} overlaps {b:x?}");
            }
        }
    }
}

impl GuestMemory for StrictMemory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        buf.copy_from_slice(&self.bytes(gpa.as_u64(), buf.len()));
        Ok(())
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemoryError> {
        self.note(gpa.as_u64(), data.len() as u64);
        let start = gpa.as_u64() as usize;
        self.inner.borrow_mut().bytes[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn is_ram(&self, gpa: Gpa, len: u64) -> bool {
        gpa.as_u64().checked_add(len).is_some_and(|end| end <= self.inner.borrow().bytes.len() as u64)
    }

    fn fill_zero(&self, gpa: Gpa, len: u64) -> Result<(), MemoryError> {
        self.note(gpa.as_u64(), len);
        let start = gpa.as_u64() as usize;
        self.inner.borrow_mut().bytes[start..start + len as usize].fill(0);
        Ok(())
    }

    fn compare_exchange_u32(&self, gpa: Gpa, _: u32, _: u32) -> Result<bool, MemoryError> {
        Err(MemoryError { gpa })
    }

    fn compare_exchange_u64(&self, gpa: Gpa, _: u64, _: u64) -> Result<bool, MemoryError> {
        Err(MemoryError { gpa })
    }

    fn swap_u8(&self, gpa: Gpa, _: u8) -> Result<u8, MemoryError> {
        Err(MemoryError { gpa })
    }
}

/// An image under construction: bytes at offsets.
pub(crate) struct Image(pub(crate) Vec<u8>);

impl Image {
    pub(crate) fn new(len: usize) -> Self {
        Self((0..len).map(|at| (at * 7 + at / 256) as u8).collect())
    }

    pub(crate) fn put(&mut self, at: usize, data: &[u8]) -> &mut Self {
        if self.0.len() < at + data.len() {
            self.0.resize(at + data.len(), 0);
        }
        self.0[at..at + data.len()].copy_from_slice(data);
        self
    }

    pub(crate) fn u16(&mut self, at: usize, value: u16) -> &mut Self {
        self.put(at, &value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.put(at, &value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, at: usize, value: u64) -> &mut Self {
        self.put(at, &value.to_le_bytes())
    }
}

/// An ELF segment for [`elf`]: type, virtual and physical address, content, size in memory.
pub(crate) struct TestSegment {
    pub(crate) kind: u32,
    pub(crate) virtual_address: u64,
    pub(crate) physical_address: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) memory_size: u64,
}

impl TestSegment {
    /// A segment to load, at one virtual and physical address.
    pub(crate) fn load(address: u64, data: &[u8], memory_size: u64) -> Self {
        let (virtual_address, physical_address) = (address, address);
        Self { kind: 1, virtual_address, physical_address, data: data.to_vec(), memory_size }
    }

    /// A segment of notes with the given note, after one that is none of ours.
    pub(crate) fn note(owner: &[u8], kind: u32, content: &[u8]) -> Self {
        let mut data = Vec::new();
        for (owner, kind, content) in [(b"GNU\0".as_slice(), 3, [1, 2, 3].as_slice()), (owner, kind, content)]
        {
            data.extend((owner.len() as u32).to_le_bytes());
            data.extend((content.len() as u32).to_le_bytes());
            data.extend(kind.to_le_bytes());
            data.extend(owner);
            data.resize(data.len().next_multiple_of(4), 0);
            data.extend(content);
            data.resize(data.len().next_multiple_of(4), 0);
        }
        Self { kind: 4, virtual_address: 0, physical_address: 0, memory_size: 0, data }
    }
}

/// Where the content of the first segment is in [`elf`]'s file.
pub(crate) const ELF_DATA: usize = 0x1000;

/// An ELF executable of the given class; the segments' content starts at [`ELF_DATA`].
pub(crate) fn elf(wide: bool, entry: u64, segments: &[TestSegment]) -> Image {
    let mut image = Image(vec![0; ELF_DATA]);
    image.put(0, b"\x7FELF").put(4, &[if wide { 2 } else { 1 }, 1, 1]).u16(16, 2).u32(20, 1);
    image.u16(18, if wide { 62 } else { 3 });
    let count = segments.len() as u16;
    if wide {
        image.u64(24, entry).u64(32, 64).u16(52, 64).u16(54, 56).u16(56, count);
    } else {
        image.u32(24, entry as u32).u32(28, 52).u16(40, 52).u16(42, 32).u16(44, count);
    }
    for (index, segment) in segments.iter().enumerate() {
        let offset = image.0.len();
        image.put(offset, &segment.data);
        let fields = [
            offset as u64,
            segment.virtual_address,
            segment.physical_address,
            segment.data.len() as u64,
            segment.memory_size,
        ];
        if wide {
            let at = 64 + 56 * index;
            image.u32(at, segment.kind);
            for (field, value) in fields.into_iter().enumerate() {
                image.u64(at + 8 + 8 * field, value);
            }
            image.u64(at + 48, 4);
        } else {
            let at = 52 + 32 * index;
            image.u32(at, segment.kind);
            for (field, value) in fields.into_iter().enumerate() {
                image.u32(at + 4 + 4 * field, value as u32);
            }
            image.u32(at + 28, 4);
        }
    }
    image
}

/// A section for [`add_sections`]: type, address, content, size.
pub(crate) type TestSection<'a> = (u32, u64, &'a [u8], u64);

/// Adds a section header table, with an empty first section, to an image of [`elf`].
pub(crate) fn add_sections(image: &mut Image, sections: &[TestSection<'_>]) {
    let wide = image.0[4] == 2;
    let mut placed = vec![(0, 0, 0, 0)];
    for &(kind, address, data, size) in sections {
        placed.push((kind, address, image.0.len() as u64, size));
        let end = image.0.len();
        image.put(end, data);
    }
    let table = image.0.len().next_multiple_of(8);
    let count = placed.len() as u16;
    for (index, (kind, address, offset, size)) in placed.into_iter().enumerate() {
        if wide {
            let at = table + 64 * index;
            image
                .put(at, &[0; 64])
                .u32(at + 4, kind)
                .u64(at + 16, address)
                .u64(at + 24, offset)
                .u64(at + 32, size);
            image.u64(at + 48, 4);
        } else {
            let at = table + 40 * index;
            let narrow = |value: u64| value as u32;
            image.put(at, &[0; 40]).u32(at + 4, kind).u32(at + 12, narrow(address));
            image.u32(at + 16, narrow(offset)).u32(at + 20, narrow(size)).u32(at + 32, 4);
        }
    }
    if wide {
        image.u64(40, table as u64).u16(58, 64).u16(60, count).u16(62, count - 1);
    } else {
        image.u32(32, table as u32).u16(46, 40).u16(48, count).u16(50, count - 1);
    }
}
