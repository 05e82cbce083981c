//! A unit of AMD's.

use alloc::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Found, Translate, World};
use crate::Hardware;

#[derive(Debug, Default)]
struct State {
    table: u64,
    commands: u64,
    events: u64,
    control: u64,
    status: u64,
    commands_head: u64,
    commands_tail: u64,
    events_head: u64,
    events_tail: u64,
    answers: u32,
    /// Entries of the device table, as read: the first two words.
    entries: BTreeMap<u16, (u64, u64)>,
    /// Translations by tag and page.
    translations: BTreeMap<(u16, u64), (u64, bool)>,
}

/// The unit.
#[derive(Clone, Debug)]
pub struct AmdViModel {
    world: World,
    forgets_all: bool,
    state: Arc<Mutex<State>>,
}

impl AmdViModel {
    /// A unit that the firmware has left on, or off, and that stops answering after so many commands.
    #[must_use]
    pub fn new(world: &World, forgets_all: bool, left_on: bool, answers: u32) -> Self {
        let mut state = State { answers, ..State::default() };
        if left_on {
            state.control = 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 14;
            state.status = 3 << 3;
            // A device that is let through, cached.
            state.entries.insert(0x10, (0, 0));
        }
        Self { world: world.clone(), forgets_all, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_commands(&self) {
        let mut state = self.state();
        if state.status & 1 << 4 == 0 {
            return;
        }
        while state.commands_head != state.commands_tail && state.answers > 0 {
            state.answers -= 1;
            let at = (state.commands & 0x000f_ffff_ffff_f000) + state.commands_head;
            let low = self.world.word(at).unwrap_or(0);
            let high = self.world.word(at + 8).unwrap_or(0);
            match low >> 60 {
                1 => {
                    assert_eq!(low & 7, 5, "stored, and flushed before");
                    let _there = self.world.set_word(low & 0x000f_ffff_ffff_fff8, high);
                }
                2 => {
                    state.entries.remove(&(low as u16));
                }
                3 => {
                    assert_eq!(high, 0x7fff_ffff_ffff_f003, "all pages, and pointers");
                    let tag = (low >> 32) as u16;
                    state.translations.retain(|(of, _), _| *of != tag);
                }
                8 if self.forgets_all => {
                    state.entries.clear();
                    state.translations.clear();
                }
                other => unreachable!("command {other}"),
            }
            state.commands_head = (state.commands_head + 16) % 4096;
        }
    }

    /// Walks the tables.
    fn walk(&self, first: u64, address: u64) -> Found {
        let (mut entry, mut write) = (first, true);
        let mut level = first >> 9 & 7;
        if level == 0 {
            // Whoever is not translated is let through as the entry says.
            assert_eq!(first >> 61, 0, "an entry that lets its device through");
            return None;
        }
        if address >> (12 + 9 * level) != 0 {
            return None;
        }
        loop {
            let shift = 12 + 9 * (level - 1);
            let table = entry & 0x000f_ffff_ffff_f000;
            let read = self.world.word(table + (address >> shift & 511) * 8);
            assert!(read.is_some(), "tables lead to {table:#x}, where there is none");
            entry = read.unwrap_or(0);
            if entry & 1 == 0 {
                return None;
            }
            assert_ne!(entry & 1 << 61, 0, "what is there can be read");
            write &= entry & 1 << 62 != 0;
            let next = entry >> 9 & 7;
            if next == 0 {
                let page = entry & 0x000f_ffff_ffff_f000;
                assert_eq!(page & ((1 << shift) - 1), 0, "an unaligned leaf");
                return Some((page | address & ((1 << shift) - 1), write));
            }
            assert_eq!(next, level - 1, "levels are not gone over");
            level = next;
        }
    }

    fn find(&self, state: &mut State, device: u16, address: u64) -> Found {
        if state.control & 1 == 0 {
            return Some((address, true));
        }
        let (table, world) = (state.table, &self.world);
        let pages = (table & 0x1ff) + 1;
        assert!(u64::from(device) * 32 < pages << 12, "the device is behind the table's end");
        let read = |word: u64| {
            let at = (table & 0x000f_ffff_ffff_f000) + u64::from(device) * 32 + word * 8;
            world.word(at).unwrap_or(0)
        };
        let entry = *state.entries.entry(device).or_insert_with(|| (read(0), read(1)));
        if entry.0 & 1 == 0 {
            return Some((address, true));
        }
        assert_eq!(entry.0 & 0x7f, 3, "the entry says nothing of memory");
        let key = (entry.1 as u16, address >> 12);
        if let Some(&(page, write)) = state.translations.get(&key) {
            return Some((page | address & 0xfff, write));
        }
        let found = self.walk(entry.0, address)?;
        assert_ne!(entry.1 as u16, 0, "a tag that is nobody's");
        state.translations.insert(key, (found.0 & !0xfff, found.1));
        Some(found)
    }
}

impl Translate for AmdViModel {
    fn look(&mut self, device: u16, address: u64) -> Found {
        let mut state = self.state();
        self.find(&mut state, device, address)
    }

    fn access(&mut self, device: u16, address: u64, write: bool) -> bool {
        let mut state = self.state();
        let found = self.find(&mut state, device, address);
        if found.is_some_and(|(_, may_write)| may_write || !write) {
            return true;
        }
        let next = (state.events_tail + 16) % 4096;
        if state.status & 1 << 3 == 0 || state.control & 1 << 2 == 0 {
            return false;
        }
        if next == state.events_head {
            state.status = state.status & !(1 << 3) | 1;
            return false;
        }
        let at = (state.events & 0x000f_ffff_ffff_f000) + state.events_tail;
        let bits = u64::from(found.is_some()) << 52 | u64::from(write) << 53;
        let _there = self.world.set_word(at, 2 << 60 | bits | u64::from(device));
        let _there = self.world.set_word(at + 8, address);
        state.events_tail = next;
        state.status |= 1 << 1;
        false
    }
}

impl Hardware for AmdViModel {
    fn read32(&self, offset: u64) -> u32 {
        unreachable!("read of {offset:#x}")
    }

    fn write32(&mut self, offset: u64, _: u32) {
        unreachable!("write of {offset:#x}")
    }

    fn read64(&self, offset: u64) -> u64 {
        let state = self.state();
        match offset {
            0x18 => state.control,
            0x30 => u64::from(self.forgets_all) << 6,
            0x2018 => state.events_tail,
            0x2020 => state.status,
            _ => unreachable!("read of {offset:#x}"),
        }
    }

    fn write64(&mut self, offset: u64, value: u64) {
        let mut state = self.state();
        match offset {
            0x00 => state.table = value,
            0x08 => {
                assert_eq!(state.status & 1 << 4, 0, "the commands run");
                assert_eq!(value >> 56, 8, "256 of them");
                state.commands = value;
            }
            0x10 => {
                assert_eq!(state.status & 1 << 3, 0, "the events run");
                assert_eq!(value >> 56, 8, "256 of them");
                state.events = value;
            }
            0x18 => {
                state.control = value;
                let runs = |bit: u32| if value & 1 << bit != 0 { 1 } else { 0 };
                state.status = state.status & !(3 << 3) | runs(12) << 4;
                if state.status & 1 == 0 {
                    state.status |= runs(2) << 3;
                }
            }
            0x20 => assert_eq!(value, 0),
            0x2000 => state.commands_head = value,
            0x2008 => {
                state.commands_tail = value;
                drop(state);
                self.run_commands();
            }
            0x2010 => state.events_head = value,
            0x2018 => state.events_tail = value,
            0x2020 => state.status &= !(value & 3),
            _ => unreachable!("write of {offset:#x}"),
        }
    }

    fn now(&self) -> u64 {
        self.world.now()
    }
}
