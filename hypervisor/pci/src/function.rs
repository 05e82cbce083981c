//! What a function is.

use alloc::vec::Vec;

use arrayvec::ArrayVec;

use crate::registers::{
    BAR_64, BAR_IO, BAR_PREFETCHABLE, BAR_TYPE, BARS, CAPABILITIES, CLASS, COMMAND, COMMAND_IO,
    COMMAND_MEMORY, EXTENDED, HEADER_END, HEADER_TYPE, ID, INTERRUPT_PIN, MULTI_FUNCTION, SECONDARY_BUS,
    SPACE, STATUS, STATUS_CAPABILITIES, capability, msi, msix,
};
use crate::{Address, ConfigSpace};

/// The bits of an address below a page's.
const PAGE_MASK: u64 = 0xfff;

/// What the header describes (header type, bits 6:0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderKind {
    /// A device.
    Device,
    /// A bridge to another bus.
    Bridge,
    /// CardBus, or unknown.
    Other,
}

/// What a base address register decodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// Ports.
    Ports,
    /// Memory.
    Memory {
        /// The address has 64 bits, and the next register holds the upper half.
        wide: bool,
        /// Reads have no effects.
        prefetchable: bool,
    },
}

/// A base address register that is there (PCI Local Bus Specification 3.0, section 6.2.5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// Which of the six.
    pub index: u8,
    /// Where the firmware has put it; 0 where it has not.
    pub address: u64,
    /// Bytes that it decodes, a power of two.
    pub bytes: u64,
    /// Of what.
    pub kind: BarKind,
}

/// The MSI capability (section 6.8.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msi {
    /// Where it is.
    pub offset: u16,
    /// The address has 64 bits.
    pub wide: bool,
    /// Messages can be masked.
    pub maskable: bool,
}

/// The MSI-X capability (section 6.8.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msix {
    /// Where it is.
    pub offset: u16,
    /// How many messages.
    pub entries: u16,
    /// In which base address register's memory the table is, and where there.
    pub table: (u8, u64),
}

/// A function, as its configuration space describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Function {
    /// Where it is.
    pub address: Address,
    /// Vendor.
    pub vendor: u16,
    /// Device id, the vendor's own numbering.
    pub device: u16,
    /// Base class, sub-class and programming interface, in bits 23:16, 15:8, 7:0.
    pub class: u32,
    /// What its header describes.
    pub header: HeaderKind,
    /// Its base address registers, in ascending order.
    pub bars: ArrayVec<Bar, 6>,
    /// Its interrupt pin: 1 to 4 for INTA to INTD, 0 for none.
    pub pin: u8,
    /// Its MSI capability.
    pub msi: Option<Msi>,
    /// Its MSI-X capability.
    pub msix: Option<Msix>,
    /// Where its PCI Express capability is.
    pub express: Option<u16>,
    /// Its extended capabilities that no domain may see: where each is.
    pub hidden: ArrayVec<u16, 8>,
}

impl Function {
    /// Whether it is part of the chipset (bridges other than those to PCI buses): its registers concern the whole machine.
    #[must_use]
    pub fn is_chipset(&self) -> bool {
        self.class >> 16 == 0x06 && self.header != HeaderKind::Bridge
    }

    /// The memory that it decodes: host-physical addresses and sizes.
    pub fn memory(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.bars
            .iter()
            .filter(|bar| matches!(bar.kind, BarKind::Memory { .. }) && bar.address != 0)
            .map(|bar| (bar.address, bar.bytes))
    }

    /// Host-physical address of its MSI-X table, and its size in bytes.
    #[must_use]
    pub fn msix_table(&self) -> Option<(u64, u64)> {
        let msix = self.msix?;
        let bar = self.bars.iter().find(|bar| bar.index == msix.table.0)?;
        let bytes = u64::from(msix.entries) * msix::ENTRY;
        let inside = bar.address != 0
            && matches!(bar.kind, BarKind::Memory { .. })
            && msix.table.1.checked_add(bytes).is_some_and(|end| end <= bar.bytes);
        inside.then_some((bar.address + msix.table.1, bytes))
    }
}

impl Function {
    /// The whole pages of its memory that hold its MSI-X table: where they start, and how many bytes they are. Accesses there
    /// are not the function's alone.
    #[must_use]
    pub fn msix_pages(&self) -> Option<(u64, u64)> {
        let (start, bytes) = self.msix_table()?;
        let page = start & !PAGE_MASK;
        Some((page, (start + bytes).next_multiple_of(PAGE_MASK + 1) - page))
    }
}

/// The memory that functions decode and their owner may reach by itself: start and bytes of whole pages, in ascending order
/// without overlap. Pages with MSI-X tables are left out.
pub fn direct_memory<'a>(functions: impl Iterator<Item = &'a Function> + Clone) -> Vec<(u64, u64)> {
    let whole =
        |(start, bytes): (u64, u64)| (start & !PAGE_MASK, (start + bytes).next_multiple_of(PAGE_MASK + 1));
    let mut ranges: Vec<_> = functions.clone().flat_map(Function::memory).map(whole).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (from, to) in ranges {
        match merged.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    for (start, bytes) in functions.filter_map(Function::msix_pages) {
        let cut = |(from, to): (u64, u64)| [(from, to.min(start)), (from.max(start + bytes), to)];
        merged = merged.into_iter().flat_map(cut).filter(|(from, to)| from < to).collect();
    }
    merged.into_iter().map(|(from, to)| (from, to - from)).collect()
}

/// Finds all functions of a segment's buses from `first` on: those of that bus, and of buses behind bridges, as the firmware
/// has numbered them, up to `last`.
#[must_use]
pub fn scan(space: &mut impl ConfigSpace, segment: u16, first: u8, last: u8) -> Vec<Function> {
    let mut found = Vec::new();
    // A bus is visited once, whatever the bridges' registers say.
    let mut visited = [false; 256];
    let mut buses = ArrayVec::<u8, 256>::new();
    buses.push(first);
    while let Some(bus) = buses.pop() {
        if core::mem::replace(&mut visited[usize::from(bus)], true) {
            continue;
        }
        for device in 0..32 {
            for number in 0..8 {
                let address = Address::new(segment, bus, device, number);
                let Some(function) = probe(space, address) else {
                    if number == 0 {
                        break;
                    }
                    continue;
                };
                if function.header == HeaderKind::Bridge {
                    let behind = space.read(address, SECONDARY_BUS, 1) as u8;
                    if behind > bus && behind <= last {
                        let _ = buses.try_push(behind);
                    }
                }
                found.push(function);
                if number == 0 && space.read(address, HEADER_TYPE, 1) & MULTI_FUNCTION == 0 {
                    break;
                }
            }
        }
    }
    found.sort_unstable_by_key(|function| function.address);
    found
}

/// What the function at `address` is; `None` where there is none. Its registers are not decoded while its base address
/// registers are sized: nobody must use it meanwhile.
#[must_use]
pub fn probe(space: &mut impl ConfigSpace, address: Address) -> Option<Function> {
    const NOBODY: [u16; 2] = [0xffff, 0];
    let id = space.read(address, ID, 4);
    let (vendor, device) = (id as u16, (id >> 16) as u16);
    if NOBODY.contains(&vendor) {
        return None;
    }
    let header = match space.read(address, HEADER_TYPE, 1) & !MULTI_FUNCTION {
        0 => HeaderKind::Device,
        1 => HeaderKind::Bridge,
        _ => HeaderKind::Other,
    };
    let mut function = Function {
        address,
        vendor,
        device,
        class: space.read(address, CLASS, 4) >> 8,
        header,
        bars: ArrayVec::new(),
        pin: space.read(address, INTERRUPT_PIN, 1) as u8,
        msi: None,
        msix: None,
        express: None,
        hidden: ArrayVec::new(),
    };
    // What a chipset's registers decode is the machine's.
    if !function.is_chipset() {
        function.bars = size_bars(space, address, header);
    }
    find_capabilities(space, &mut function);
    if function.express.is_some() {
        find_extended(space, &mut function);
    }
    Some(function)
}

/// Sizes the base address registers (section 6.2.5.1): what is written as ones and reads as zeros is decoded.
fn size_bars(space: &mut impl ConfigSpace, address: Address, header: HeaderKind) -> ArrayVec<Bar, 6> {
    let mut bars = ArrayVec::new();
    let count = match header {
        HeaderKind::Device => 6,
        HeaderKind::Bridge => 2,
        HeaderKind::Other => 0,
    };
    let command = space.read(address, COMMAND, 2);
    space.write(address, COMMAND, 2, command & !(COMMAND_IO | COMMAND_MEMORY));
    let mut index = 0;
    while index < count {
        let at = BARS + 4 * u16::from(index);
        let low = space.read(address, at, 4);
        let wide = low & BAR_IO == 0 && low & BAR_TYPE == BAR_64 && index + 1 < count;
        let high = if wide { space.read(address, at + 4, 4) } else { 0 };
        let mask = {
            let mut size = |at, value| {
                space.write(address, at, 4, u32::MAX);
                let mask = space.read(address, at, 4);
                space.write(address, at, 4, value);
                mask
            };
            let mask = size(at, low);
            u64::from(mask) | u64::from(if wide { size(at + 4, high) } else { u32::MAX }) << 32
        };
        if let Some(bar) = bar(index, u64::from(low) | u64::from(high) << 32, mask, wide) {
            let _ = bars.try_push(bar);
        }
        index += if wide { 2 } else { 1 };
    }
    space.write(address, COMMAND, 2, command);
    bars
}

/// The register with this value, which reads as `mask` with ones written.
fn bar(index: u8, value: u64, mask: u64, wide: bool) -> Option<Bar> {
    let ports = value & u64::from(BAR_IO) != 0;
    // Of ports the upper half need not be decoded.
    let flags = if ports { 3 } else { 15 };
    let decoded = if ports { mask & 0xfffc | !0xffff } else { mask & !flags };
    if mask as u32 == 0 || mask as u32 == u32::MAX && !wide || decoded as u32 == 0 && !wide {
        return None;
    }
    let bytes = decoded.wrapping_neg();
    if !bytes.is_power_of_two() {
        return None;
    }
    let kind = if ports {
        BarKind::Ports
    } else {
        BarKind::Memory { wide, prefetchable: value & u64::from(BAR_PREFETCHABLE) != 0 }
    };
    // An address that is not a multiple of the size is none that the function decodes.
    let address = value & !flags & !(bytes - 1);
    Some(Bar { index, address, bytes, kind })
}

/// Walks the list of capabilities (section 6.7), which has at most 48 entries.
fn find_capabilities(space: &mut impl ConfigSpace, function: &mut Function) {
    const MOST: usize = 48;
    let at = function.address;
    if function.header == HeaderKind::Other || space.read(at, STATUS, 2) & STATUS_CAPABILITIES == 0 {
        return;
    }
    let mut offset = space.read(at, CAPABILITIES, 1) as u16 & !3;
    for _ in 0..MOST {
        if offset < HEADER_END {
            return;
        }
        let head = space.read(at, offset, 4);
        let control = (head >> 16) as u16;
        match head as u8 {
            capability::MSI if function.msi.is_none() && offset <= 0xe8 => {
                let (wide, maskable) = (control & msi::WIDE != 0, control & msi::MASKABLE != 0);
                function.msi = Some(Msi { offset, wide, maskable });
            }
            capability::MSIX if function.msix.is_none() && offset <= 0xf4 => {
                let table = space.read(at, offset + 4, 4);
                let entries = (control & msix::SIZE) + 1;
                let table = ((table & msix::BAR) as u8, u64::from(table & !msix::BAR));
                function.msix = Some(Msix { offset, entries, table });
            }
            capability::EXPRESS => function.express = Some(offset),
            _ => {}
        }
        offset = (head >> 8) as u16 & 0xfc;
    }
}

/// Walks the list of extended capabilities (PCI Express Base Specification 4.0, section 7.6) for those to hide.
fn find_extended(space: &mut impl ConfigSpace, function: &mut Function) {
    const MOST: u16 = (SPACE - EXTENDED) / 8;
    let mut offset = EXTENDED;
    for _ in 0..MOST {
        let head = space.read(function.address, offset, 4);
        if head == 0 || head == u32::MAX {
            return;
        }
        if capability::HIDDEN.contains(&(head as u16)) {
            let _ = function.hidden.try_push(offset);
        }
        offset = (head >> 20) as u16 & 0xffc;
        if offset < EXTENDED {
            return;
        }
    }
}
