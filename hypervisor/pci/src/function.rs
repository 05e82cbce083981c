//! What a function is.

use alloc::vec::Vec;

use arrayvec::ArrayVec;

use crate::bars::{Bar, size_bars};
use crate::capabilities::{find_capabilities, find_extended};
use crate::registers::{
    BUS_NUMBERS, CLASS, HEADER_TYPE, ID, INTERRUPT_PIN, MULTI_FUNCTION, SECONDARY_BUS, express, msix,
};
use crate::{Address, ConfigSpace};

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
    /// Its power management capability.
    pub power: Option<Power>,
    /// It can be reset by its PCI Express capability.
    pub can_reset: bool,
    /// Where its advanced features capability is, if it can be reset by that.
    pub advanced: Option<u16>,
    /// Its capabilities that no domain may use: where each begins, and what comes next.
    pub hidden: ArrayVec<(u16, u16), 8>,
    /// The first words of its configuration space, as the firmware has left them.
    pub header_words: [u32; 16],
    /// Control registers of its PCI Express capability, likewise: where each is.
    pub controls: ArrayVec<(u16, u16), 4>,
}

/// The power management capability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Power {
    /// Where it is.
    pub offset: u16,
    /// From D3hot to D0 the function forgets its registers.
    pub resets: bool,
}

impl Function {
    /// Whether it is part of the mainboard: its registers concern the whole machine, and nobody owns it. Those are bridges, the
    /// mainboard's interrupt controllers, DMA, timers, IOMMUs and what has no name of its own (class 08h but for SD hosts), and
    /// what is no device but a way into the chipset (memory controllers of no named kind, performance counters).
    #[must_use]
    pub fn is_mainboard(&self) -> bool {
        let (class, sub) = (self.class >> 16, self.class >> 8 & 0xff);
        self.header != HeaderKind::Device
            || class == 0x06
            || class == 0x08 && sub != 0x05
            || (class, sub) == (0x05, 0x80)
            || (class, sub) == (0x11, 0x01)
    }

    /// The buses behind a bridge: the first, and the last.
    #[must_use]
    pub fn buses_behind(&self) -> Option<(u8, u8)> {
        let numbers = self.header_words[usize::from(BUS_NUMBERS / 4)];
        (self.header == HeaderKind::Bridge).then_some(((numbers >> 8) as u8, (numbers >> 16) as u8))
    }

    /// The memory that it decodes: host-physical addresses and sizes.
    pub fn memory(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let placed = self.bars.iter().filter(|bar| bar.is_memory() && bar.is_placed());
        placed.map(|bar| (bar.address, bar.bytes))
    }

    /// Whether one of its base address registers decodes all of the `size` bytes of memory at `hpa`.
    #[must_use]
    pub fn decodes_memory(&self, hpa: u64, size: u8) -> bool {
        self.bars.iter().any(|bar| bar.is_memory() && bar.covers(hpa, size))
    }

    /// Whether one of them decodes all of these ports.
    #[must_use]
    pub fn decodes_ports(&self, port: u16, size: u8) -> bool {
        self.bars.iter().any(|bar| !bar.is_memory() && bar.covers(port.into(), size))
    }

    /// Host-physical address of its MSI-X table, and its size in bytes.
    #[must_use]
    pub fn msix_table(&self) -> Option<(u64, u64)> {
        let msix = self.msix?;
        let bar = self.bars.iter().find(|bar| bar.index == msix.table.0)?;
        let bytes = u64::from(msix.entries) * msix::ENTRY;
        let inside = bar.is_placed()
            && bar.is_memory()
            && msix.table.1.checked_add(bytes).is_some_and(|end| end <= bar.bytes);
        inside.then_some((bar.address + msix.table.1, bytes))
    }
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
    let mut header_words = [0; 16];
    (0..).zip(&mut header_words).for_each(|(word, place)| *place = space.read(address, 4 * word, 4));
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
        power: None,
        can_reset: false,
        advanced: None,
        hidden: ArrayVec::new(),
        header_words,
        controls: ArrayVec::new(),
    };
    // What the mainboard's registers decode is the machine's; bridges have such of their own.
    if !function.is_mainboard() || header == HeaderKind::Bridge {
        function.bars = size_bars(space, address, header);
    }
    find_capabilities(space, &mut function);
    if let Some(at) = function.express {
        function.can_reset = space.read(address, at + express::DEVICE, 4) & express::CAN_RESET != 0;
        let version = space.read(address, at + express::CAPABILITIES, 2) & express::VERSION;
        let known = if version >= 2 { 4 } else { 2 };
        let controls = express::CONTROLS.into_iter().take(known).map(|register| at + register);
        function.controls =
            controls.map(|register| (register, space.read(address, register, 2) as u16)).collect();
        find_extended(space, &mut function);
    }
    Some(function)
}
