//! A unit of Intel's.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Found, Translate, World};
use crate::Hardware;

/// What the unit can do, and in which state the firmware left it.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a bit of a register")]
pub struct VtdOptions {
    /// Tables of 3, 4, 5 levels.
    pub levels: [bool; 3],
    /// Leaves of 2 MiB and 1 GiB.
    pub large: bool,
    /// It has a queue.
    pub queue: bool,
    /// It sees what processors write.
    pub snoops: bool,
    /// It caches what is not there.
    pub caches_absent: bool,
    /// Its write buffers are to be flushed.
    pub flush_writes: bool,
    /// The firmware left everything on.
    pub left_on: bool,
    /// It stops answering after so many commands.
    pub answers: u32,
}

impl Default for VtdOptions {
    fn default() -> Self {
        Self {
            levels: [true, true, false],
            large: true,
            queue: true,
            snoops: true,
            caches_absent: false,
            flush_writes: false,
            left_on: false,
            answers: u32::MAX,
        }
    }
}

const FAULTS: usize = 4;
const FAULT_RECORDS: u64 = 0x220;
const TRANSLATION_COMMAND: u64 = 0x108;

#[derive(Debug, Default)]
struct State {
    status: u32,
    root: u64,
    /// The root as it was set last.
    used_root: u64,
    queue: u64,
    head: u64,
    tail: u64,
    fault_status: u32,
    fault_control: u32,
    message: (u32, u32),
    faults: [(u64, u64); FAULTS],
    next_fault: usize,
    protected: u32,
    answers: u32,
    interrupts: u64,
    /// The interrupt table's register as it was set last, and its entries as read.
    used_interrupts: u64,
    entries: BTreeMap<u8, (u64, u64)>,
    /// Context entries by device, as read.
    contexts: BTreeMap<u16, (u64, u64)>,
    /// Translations by tag and page.
    translations: BTreeMap<(u16, u64), Found>,
}

/// The unit.
#[derive(Clone, Debug)]
pub struct VtdModel {
    world: World,
    options: VtdOptions,
    state: Arc<Mutex<State>>,
}

impl VtdModel {
    /// A unit after the firmware has had it.
    #[must_use]
    pub fn new(world: &World, options: VtdOptions) -> Self {
        let mut state = State { answers: options.answers, ..State::default() };
        if options.left_on {
            // Translation in another mode, queue, interrupt remapping; protected memory; a fault.
            state.status = 1 << 31 | 1 << 30 | 1 << 26 | 1 << 25 | 1 << 24;
            state.root = 0x7000 | 1 << 10;
            state.protected = 1 << 31 | 1;
            state.faults[1] = (0x5000, 1 << 63 | 2 << 32);
            state.fault_status = 1 << 1 | 1 << 8;
        }
        Self { world: world.clone(), options, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The message that it interrupts with: address and data.
    #[must_use]
    pub fn message(&self) -> Option<(u32, u32)> {
        let state = self.state();
        (state.fault_control >> 31 == 0).then_some(state.message)
    }

    /// Whether it translates, and nothing else of the firmware's is left.
    #[must_use]
    pub fn is_on(&self) -> bool {
        let state = self.state();
        state.status >> 31 == 1 && state.status & 1 << 25 == 0 && state.protected == 0
    }

    /// What becomes of a message of a device's: vector, processor, by level.
    ///
    /// # Panics
    /// Where an entry is none that there can be.
    pub fn message_from(&mut self, device: u16, address: u32, data: u32) -> Option<(u8, u32, bool)> {
        let mut state = self.state();
        if state.status & 1 << 25 == 0 {
            return Some((data as u8, address >> 12 & 0xff, data & 1 << 15 != 0));
        }
        if address & 1 << 4 == 0 {
            return (state.status & 1 << 23 != 0).then_some((data as u8, address >> 12 & 0xff, false));
        }
        let index = address >> 5 & 0x7fff;
        let table = state.used_interrupts;
        assert_eq!(table & 0xfff, 7, "256 entries, narrow ids");
        let index = u8::try_from(index).ok()?;
        let at = (table & !0xfff) + u64::from(index) * 16;
        let read = |at| self.world.word(at).unwrap_or(0);
        let (low, high) = *state.entries.entry(index).or_insert_with(|| (read(at), read(at + 8)));
        if low & 1 == 0 {
            state.entries.remove(&index);
            return None;
        }
        assert_eq!(low & 0xffff_00ff_ff00_ffee, 0, "fixed, to one processor: {low:#x}");
        let is_senders = match high >> 18 & 3 {
            0 => true,
            1 => high as u16 == device,
            _ => (high as u16 >> 8..=high as u16 & 0xff).contains(&(device >> 8)),
        };
        is_senders.then_some(((low >> 16) as u8, (low >> 40) as u32 & 0xff, low & 1 << 4 != 0))
    }

    fn command(&self, value: u32) {
        let mut state = self.state();
        if state.answers == 0 {
            return;
        }
        state.answers -= 1;
        let changed = (value ^ state.status) & (1 << 31 | 1 << 26 | 1 << 25);
        assert!(changed.count_ones() <= 1, "one command at a time: {value:#x}");
        if value & 1 << 30 != 0 {
            let mode_changes = (state.root ^ state.used_root) & 3 << 10 != 0;
            assert!(!mode_changes || state.status >> 31 == 0 || state.used_root == 0, "the mode changes");
            state.used_root = state.root;
            state.status |= 1 << 30;
        }
        if changed & 1 << 26 != 0 {
            state.head = 0;
        }
        if value & 1 << 24 != 0 {
            state.used_interrupts = state.interrupts;
            state.status |= 1 << 24;
        }
        state.status ^= changed;
    }

    fn run_queue(&self) {
        let mut state = self.state();
        if state.status & 1 << 26 == 0 || state.answers == 0 {
            return;
        }
        state.answers -= 1;
        let ring = state.queue & !0xfff;
        while state.head != state.tail {
            let at = ring + state.head;
            let low = self.world.word(at).unwrap_or(0);
            let high = self.world.word(at + 8).unwrap_or(0);
            let granularity = low >> 4 & 3;
            match low & 15 {
                1 if granularity == 1 => state.contexts.clear(),
                2 if granularity == 1 => state.translations.clear(),
                2 if granularity == 2 => {
                    let tag = (low >> 16) as u16;
                    state.translations.retain(|(of, _), _| *of != tag);
                }
                4 if granularity == 0 => state.entries.clear(),
                4 if granularity == 1 => {
                    state.entries.remove(&((low >> 32) as u8));
                }
                5 => {
                    let old = self.world.word(high).unwrap_or(0);
                    let _there = self.world.set_word(high & !7, old & !0xffff_ffff | low >> 32);
                }
                _ => {
                    state.fault_status |= 1 << 4;
                    return;
                }
            }
            state.head = (state.head + 16) % 4096;
        }
    }

    /// The context entry of a device, and what it is that is wrong where there is none.
    fn context(&self, state: &mut State, device: u16) -> Result<(u64, u64), u8> {
        if let Some(&found) = state.contexts.get(&device) {
            return if found.0 & 1 != 0 { Ok(found) } else { Err(2) };
        }
        let root = self.world.word((state.used_root & !0xfff) + u64::from(device >> 8) * 16).unwrap_or(0);
        if root & 1 == 0 {
            return Err(1);
        }
        assert_eq!(root & 0xffe, 0, "reserved bits of a root entry");
        let at = (root & !0xfff) + u64::from(device & 0xff) * 16;
        let read = |at| self.world.word(at).unwrap_or(0);
        let found = (read(at), read(at + 8));
        if found.0 & 1 == 0 {
            if self.options.caches_absent {
                state.contexts.insert(device, found);
            }
            return Err(2);
        }
        assert_eq!(found.0 & 0xffe, 0, "reserved bits of a context entry");
        state.contexts.insert(device, found);
        Ok(found)
    }

    /// Walks the tables.
    fn walk(&self, root: u64, levels: u64, address: u64) -> Found {
        let mut table = root;
        let mut write = true;
        for level in (1..=levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let entry = self.world.word(table + (address >> shift & 511) * 8);
            assert!(entry.is_some(), "tables lead to {table:#x}, where there is none");
            let entry = entry.unwrap_or(0);
            if entry & 3 == 0 {
                return None;
            }
            assert_eq!(entry & 0xf7c, 0, "reserved bits of an entry");
            assert_eq!(entry & 1, 1, "what can be written can be read");
            write &= entry & 2 != 0;
            table = entry & 0x000f_ffff_ffff_f000;
            if level == 1 || entry & 0x80 != 0 {
                assert!(level == 1 || level <= 3 && self.options.large, "a leaf at level {level}");
                let offset = address & ((1 << shift) - 1);
                assert_eq!(table & ((1 << shift) - 1), 0, "an unaligned leaf");
                return Some((table | offset, write));
            }
        }
        None
    }

    fn find(&self, state: &mut State, device: u16, address: u64) -> Result<Found, u8> {
        if state.status >> 31 == 0 {
            return Ok(Some((address, true)));
        }
        let (low, high) = self.context(state, device)?;
        let levels = (high & 7) + 2;
        assert!((3..=5).contains(&levels) && self.options.levels[levels as usize - 3], "{levels} levels");
        if address >> (12 + 9 * levels) != 0 {
            return Err(4);
        }
        let tag = (high >> 8) as u16;
        assert_ne!(tag, 0, "a tag that is nobody's");
        if let Some(found) = state.translations.get(&(tag, address >> 12)) {
            return Ok(found.map(|(page, write)| (page | address & 0xfff, write)));
        }
        let found = self.walk(low & !0xfff, levels, address);
        if found.is_some() || self.options.caches_absent {
            let page = found.map(|(page, write)| (page & !0xfff, write));
            state.translations.insert((tag, address >> 12), page);
        }
        Ok(found)
    }
}

impl Translate for VtdModel {
    fn look(&mut self, device: u16, address: u64) -> Found {
        let mut state = self.state();
        self.find(&mut state, device, address).unwrap_or(None)
    }

    fn access(&mut self, device: u16, address: u64, write: bool) -> bool {
        let mut state = self.state();
        let reason = match self.find(&mut state, device, address) {
            Ok(Some((_, may_write))) if may_write || !write => return true,
            Ok(_) if write => 5,
            Ok(_) => 6,
            Err(reason) => reason,
        };
        let next = state.next_fault;
        if state.faults[next].1 >> 63 != 0 {
            state.fault_status |= 1;
            return false;
        }
        if state.fault_status & 2 == 0 {
            state.fault_status = state.fault_status & !0xff00 | 2 | (next as u32) << 8;
        }
        let read = if write { 0 } else { 1 << 62 };
        state.faults[next] = (address & !0xfff, 1 << 63 | read | u64::from(reason) << 32 | u64::from(device));
        state.next_fault = (next + 1) % FAULTS;
        false
    }
}

impl Hardware for VtdModel {
    fn read32(&self, offset: u64) -> u32 {
        let state = self.state();
        match offset {
            0x1c => state.status,
            0x34 => state.fault_status,
            0x64 => state.protected,
            _ => unreachable!("read of {offset:#x}"),
        }
    }

    fn write32(&mut self, offset: u64, value: u32) {
        if offset == 0x18 {
            return self.command(value);
        }
        let mut state = self.state();
        match offset {
            0x34 => state.fault_status &= !(value & 1),
            0x38 => state.fault_control = value,
            0x3c => state.message.1 = value,
            0x40 => state.message.0 = value,
            0x44 => assert_eq!(value, 0),
            0x64 if value >> 31 == 0 => state.protected = 0,
            _ => {
                let index = (offset - FAULT_RECORDS) as usize;
                assert!(index % 16 == 12 && index / 16 < FAULTS && value == 1 << 31, "{offset:#x}");
                state.faults[index / 16].1 &= !(1 << 63);
                if state.faults.iter().all(|fault| fault.1 >> 63 == 0) {
                    state.fault_status &= !2;
                }
            }
        }
    }

    fn read64(&self, offset: u64) -> u64 {
        let options = &self.options;
        let bit = |set: bool, bit: u32| u64::from(set) << bit;
        let state = self.state();
        match offset {
            0x08 => {
                let levels: u64 = (1..).zip(options.levels).map(|(at, there)| bit(there, at)).sum();
                2 | bit(options.flush_writes, 4)
                    | 3 << 5
                    | bit(options.caches_absent, 7)
                    | levels << 8
                    | 47 << 16
                    | (FAULT_RECORDS / 16) << 24
                    | if options.large { 3 << 34 } else { 0 }
                    | (FAULTS as u64 - 1) << 40
                    | 3 << 54
            }
            0x10 => {
                bit(options.snoops, 0)
                    | bit(options.queue, 1)
                    | 1 << 3
                    | ((TRANSLATION_COMMAND - 8) / 16) << 8
            }
            0x20 => state.root,
            0x28 | TRANSLATION_COMMAND => bit(state.answers == 0, 63),
            0x80 => state.head,
            0x88 => state.tail,
            _ => {
                let index = (offset - FAULT_RECORDS) as usize;
                let fault = state.faults[index / 16];
                if index.is_multiple_of(16) { fault.0 } else { fault.1 }
            }
        }
    }

    fn write64(&mut self, offset: u64, value: u64) {
        let mut state = self.state();
        match offset {
            0x20 => state.root = value,
            0xb8 => state.interrupts = value,
            0x28 => {
                assert_eq!(value, 1 << 63 | 1 << 61, "all contexts");
                if state.answers > 0 {
                    state.contexts.clear();
                }
            }
            0x88 => {
                state.tail = value;
                drop(state);
                self.run_queue();
            }
            0x90 => {
                assert_eq!(state.status & 1 << 26, 0, "the queue is on");
                state.queue = value;
            }
            TRANSLATION_COMMAND => {
                assert_eq!(value >> 48 & 3, 3, "requests are to be drained");
                let tag = (value >> 32) as u16;
                match value >> 60 & 3 {
                    _ if state.answers == 0 => {}
                    1 => state.translations.clear(),
                    2 => state.translations.retain(|(of, _), _| *of != tag),
                    other => unreachable!("granularity {other}"),
                }
            }
            _ => unreachable!("write of {offset:#x}"),
        }
    }

    fn now(&self) -> u64 {
        self.world.now()
    }
}

/// All combinations of what units differ in.
pub(super) fn every_kind() -> Vec<VtdOptions> {
    let kinds = (0..128_u32).map(|bits| {
        let bit = |at: u32| bits >> at & 1 != 0;
        VtdOptions {
            levels: [true, bit(0), false],
            large: bit(1),
            queue: bit(2),
            snoops: bit(3),
            caches_absent: bit(4),
            flush_writes: bit(6),
            left_on: bit(5),
            answers: u32::MAX,
        }
    });
    kinds.collect()
}
