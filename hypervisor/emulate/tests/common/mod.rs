//! Tables and devices for tests.
#![allow(dead_code, clippy::unwrap_used)]

use caisson_emulate::{IoBus, MmioBus, PagingFeatures};
use caisson_hwvirt::NestedFault;
use caisson_types::{Gpa, GuestMemory, SliceMemory};

pub(crate) const FEATURES: PagingFeatures =
    PagingFeatures { physical_bits: 48, gigabyte_pages: true, pkru: 0 };

/// Guest-physical start of the device, beyond all RAM of the tests.
pub(crate) const DEVICE: u64 = 0xfee0_0000;

/// What happened at the bus, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    Read(u64, u8),
    Write(u64, u8, u64),
    In(u16, u8),
    Out(u16, u8, u32),
}

/// A device of 4 KiB that remembers; outside of it all ones.
pub(crate) struct Bus {
    pub(crate) registers: [u8; 4096],
    pub(crate) seen: Vec<Seen>,
    pub(crate) port: u32,
    /// How many elements ports take.
    pub(crate) room: usize,
}

impl Bus {
    pub(crate) fn new() -> Self {
        Self { registers: [0; 4096], seen: Vec::new(), port: 0, room: usize::MAX }
    }

    pub(crate) fn put(&mut self, offset: u64, size: u8, value: u64) {
        for i in 0..u64::from(size) {
            self.registers[(offset + i) as usize % 4096] = (value >> (8 * i)) as u8;
        }
    }

    pub(crate) fn get(&self, offset: u64, size: u8) -> u64 {
        (0..u64::from(size)).map(|i| u64::from(self.registers[(offset + i) as usize % 4096]) << (8 * i)).sum()
    }
}

impl MmioBus for Bus {
    fn read(&mut self, gpa: Gpa, size: u8) -> u64 {
        assert!(matches!(size, 1 | 2 | 4 | 8) && gpa.page_offset() + u64::from(size) <= 4096);
        self.seen.push(Seen::Read(gpa.as_u64(), size));
        if gpa.as_u64() & !0xfff == DEVICE { self.get(gpa.as_u64() & 0xfff, size) } else { u64::MAX }
    }
    fn write(&mut self, gpa: Gpa, size: u8, value: u64) {
        assert!(matches!(size, 1 | 2 | 4 | 8) && gpa.page_offset() + u64::from(size) <= 4096);
        self.seen.push(Seen::Write(gpa.as_u64(), size, value));
        if gpa.as_u64() & !0xfff == DEVICE {
            self.put(gpa.as_u64() & 0xfff, size, value);
        }
    }
}

impl IoBus for Bus {
    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        self.seen.push(Seen::In(port, size));
        self.port = self.port.wrapping_add(1);
        self.port
    }
    fn port_write(&mut self, port: u16, size: u8, value: u32) -> bool {
        let taken = self.room > 0;
        if taken {
            self.room -= 1;
            self.seen.push(Seen::Out(port, size, value));
        }
        taken
    }
}

/// The fault that an access to `gpa` brings about.
pub(crate) fn fault(gpa: u64, write: bool) -> NestedFault {
    NestedFault { gpa: Gpa::new(gpa), write, fetch: false, present: false, page_walk: false }
}

/// Root of the 4-level tables that [`identity`] makes.
pub(crate) const CR3: u64 = 0x1_0000;

/// Tables at [`CR3`] that map the low 4 GiB to themselves by 2 MiB pages, all rights, with all but `hole` (a 2
/// MiB page number).
pub(crate) fn identity(memory: &SliceMemory<'_>, hole: Option<u64>) {
    let rights = 7;
    memory.write_u64(Gpa::new(CR3), (CR3 + 0x1000) | rights).unwrap();
    for gib in 0..4 {
        let directory = CR3 + 0x2000 + gib * 0x1000;
        memory.write_u64(Gpa::new(CR3 + 0x1000 + gib * 8), directory | rights).unwrap();
        for page in 0..512 {
            let number = gib * 512 + page;
            let entry = if hole == Some(number) { 0 } else { number << 21 | 0x80 | rights };
            memory.write_u64(Gpa::new(directory + page * 8), entry).unwrap();
        }
    }
}
