//! What tests share: files, memory, a driver of a split virtqueue that does what it is told, also wrong things.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use caisson_abi::io::QueueState;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use crate::ring::QueueSetup;
use crate::sys::{Mapping, Memory, Piece};

/// A file of zeroes without a name.
pub(crate) fn file(bytes: u64) -> File {
    let file = memfd_create("caisson-test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, bytes).unwrap();
    File::from(file)
}

/// Memory of a guest: each range with its address and length. The file is all of it, one range behind the other.
pub(crate) fn memory(ranges: &[(u64, usize)]) -> Arc<Memory> {
    let file = file(ranges.iter().map(|&(_, bytes)| bytes as u64).sum());
    let mut offset = 0;
    let pieces = ranges.iter().map(|&(guest, bytes)| {
        let mapping = Mapping::new(&file, offset, bytes).unwrap();
        offset += bytes as u64;
        Piece { guest, mapping, offset: 0, bytes }
    });
    Arc::new(Memory::new(pieces.collect()).unwrap())
}

/// Flags of a descriptor (VIRTIO 1.2, section 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) bytes: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A queue as its driver has it. Descriptors are used one after the other, around the table.
pub(crate) struct Driver {
    pub(crate) memory: Arc<Memory>,
    pub(crate) state: QueueState,
    next: u16,
    pub(crate) available: u16,
    seen: u16,
}

impl Driver {
    /// A queue of `size` entries in the three pages from `at` on, all zero.
    pub(crate) fn new(memory: &Arc<Memory>, at: u64, size: u16) -> Self {
        let state = QueueState {
            descriptors: at,
            driver: at + 0x1000,
            device: at + 0x2000,
            size,
            ready: 1,
            reserved: 0,
        };
        memory.regions().write_slice(&[0; 0x3000], GuestAddress(at)).unwrap();
        Self { memory: Arc::clone(memory), state, next: 0, available: 0, seen: 0 }
    }

    /// For a device that is driven without Caisson.
    pub(crate) fn setup(&self, index: u16, features: u64) -> QueueSetup {
        QueueSetup { index, state: self.state, features, memory: Arc::clone(&self.memory) }
    }

    pub(crate) fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.regions().write_obj(value, GuestAddress(at)).unwrap();
    }

    pub(crate) fn get<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.memory.regions().read_obj(GuestAddress(at)).unwrap()
    }

    pub(crate) fn fill(&self, at: u64, bytes: &[u8]) {
        self.memory.regions().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(crate) fn bytes(&self, at: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.memory.regions().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Writes a descriptor into the table at `table`.
    pub(crate) fn descriptor(&self, table: u64, index: u16, descriptor: Descriptor) {
        let at = table + u64::from(index) * 16;
        self.put(at, descriptor.address);
        self.put(at + 8, descriptor.bytes);
        self.put(at + 12, descriptor.flags);
        self.put(at + 14, descriptor.next);
    }

    /// Makes a chain of buffers, each with whether the device writes it, available: its head.
    pub(crate) fn add(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let size = self.state.size;
        let head = self.next;
        for (index, &(address, bytes, write)) in buffers.iter().enumerate() {
            let last = index + 1 == buffers.len();
            let next = (self.next + 1) % size;
            let flags = if write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(self.state.descriptors, self.next, Descriptor { address, bytes, flags, next });
            self.next = next;
        }
        self.offer(head);
        head
    }

    /// Makes the chain at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        self.put(self.state.driver + 4 + u64::from(self.available % self.state.size) * 2, head);
        self.set_available(self.available.wrapping_add(1));
    }

    /// Sets the available index.
    pub(crate) fn set_available(&mut self, index: u16) {
        self.available = index;
        let at = GuestAddress(self.state.driver + 2);
        self.memory.regions().store(self.available, at, Ordering::Release).unwrap();
    }

    /// How many chains have been given back in all.
    pub(crate) fn used_index(&self) -> u16 {
        self.memory.regions().load(GuestAddress(self.state.device + 2), Ordering::Acquire).unwrap()
    }

    /// The next chain that has been given back: its head, and how many bytes were written.
    pub(crate) fn used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.seen {
            return None;
        }
        let at = self.state.device + 4 + u64::from(self.seen % self.state.size) * 8;
        self.seen = self.seen.wrapping_add(1);
        Some((self.get::<u32>(at) as u16, self.get(at + 4)))
    }

    /// Says at which used index an interrupt is wanted (`used_event`).
    pub(crate) fn want_interrupt(&self, index: u16) {
        self.put(self.state.driver + 4 + u64::from(self.state.size) * 2, index);
    }

    /// The flags of the used ring, and its `avail_event`.
    pub(crate) fn notification_words(&self) -> (u16, u16) {
        (self.get(self.state.device), self.get(self.state.device + 4 + u64::from(self.state.size) * 8))
    }
}
