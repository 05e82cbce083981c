use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::testing::{BRIDGE, DISK, Machine, NETWORK, Registers, SMALL, functions, machine};

/// Functions that reset themselves, or are reset, and take their time for it.
struct Model {
    machine: Machine,
    now: Instant,
    /// How long each takes to end what it has begun, from time 0, and to come back.
    delays: BTreeMap<Address, (u64, u64)>,
    /// Since when each is being reset, and whether its bus still is.
    away: BTreeMap<Address, (Instant, bool)>,
    /// How often each has forgotten its registers.
    resets: BTreeMap<Address, u32>,
}

impl Model {
    fn new(machine: &Machine, delays: BTreeMap<Address, (u64, u64)>) -> Self {
        let (away, resets) = (BTreeMap::new(), BTreeMap::new());
        Self { machine: machine.clone(), now: Instant::ZERO, delays, away, resets }
    }

    fn delay(&self, at: Address) -> (u64, u64) {
        self.delays.get(&at).copied().unwrap_or_default()
    }

    fn begin(&mut self, at: Address, by_bus: bool) {
        self.machine.reset(at);
        *self.resets.entry(at).or_default() += 1;
        self.away.insert(at, (self.now, by_bus));
    }

    fn behind() -> impl Iterator<Item = Address> {
        [NETWORK].into_iter()
    }
}

impl ConfigSpace for Model {
    fn read(&mut self, at: Address, offset: u16, size: u8) -> u32 {
        if let Some(&(since, by_bus)) = self.away.get(&at) {
            assert!(!by_bus, "{at} is read while its bus is in reset");
            assert!(self.now.since(since) >= SETTLE, "{at} is read too soon");
            if self.now.since(since) < self.delay(at).1 {
                return u32::MAX >> (32 - 8 * u32::from(size));
            }
            self.away.remove(&at);
        }
        let word = self.machine.read(at, offset, size);
        // The disk's transactions, whose status is in the upper half of the control register.
        let is_busy = at == DISK && offset == 0x8a && self.now < Instant::from_nanos(self.delay(at).0);
        if at == DISK && offset == 0x8a { word & !0x20 | if is_busy { 0x20 } else { 0 } } else { word }
    }

    fn write(&mut self, at: Address, offset: u16, size: u8, value: u32) {
        assert!(!self.away.contains_key(&at), "{at} is written before it has answered");
        let before = self.machine.functions[&at].clone();
        self.machine.write(at, offset, size, value);
        let bit = |registers: &Registers, at: usize, bit: u32| registers.words[at / 4] >> bit & 1;
        let after = &self.machine.functions[&at];
        if at == DISK && offset == 0x88 && value & 0x8000 != 0 {
            self.begin(at, false);
        } else if SMALL.contains(&at) && offset == 0x54 && before.words[0x15] & 3 == 3 && value & 3 == 0 {
            // It is there at once, but is not to be asked before 10 ms are over.
            self.machine.reset(at);
            *self.resets.entry(at).or_default() += 1;
        } else if at == BRIDGE && bit(&before, 0x3c, 22) == 0 && bit(after, 0x3c, 22) == 1 {
            Self::behind().for_each(|at| self.begin(at, true));
        } else if at == BRIDGE && bit(&before, 0x3c, 22) == 1 && bit(after, 0x3c, 22) == 0 {
            for at in Self::behind() {
                let (since, _) = self.away[&at];
                assert!(self.now.since(since) >= BUS, "the bus is in reset for too short a time");
                self.away.insert(at, (self.now, false));
            }
        }
    }
}

/// Resets what `owns` says, after the owner has written to everything that it could; the time that it took, and the tally.
fn run(
    model: &mut Model,
    found: &[Function],
    owns: impl Fn(&Function) -> bool,
) -> (u64, Tally, Vec<Address>) {
    let mut reset = Reset::new(&found.iter(), owns);
    for _ in 0..10_000 {
        match reset.step(model, model.now) {
            Step::Done(tally) => return (model.now.as_nanos(), tally, reset.lost().collect()),
            Step::Wait(until) => model.now = until.max(model.now),
        }
    }
    panic!("it does not end: {reset:?}");
}

/// The machine, its functions, and what they are like when their owner has played with them.
fn played() -> (Machine, Vec<Function>, Machine) {
    let mut home = machine();
    let found = functions(&mut home);
    let mut played = home.clone();
    for registers in played.functions.values_mut() {
        for (word, writable) in registers.words.iter_mut().zip(&registers.writable) {
            *word ^= writable & 0x0101_0100;
        }
    }
    (home, found, played)
}

#[test]
fn each_is_reset_by_what_it_has() {
    let (home, found, played) = played();
    let mut model = Model::new(&played, BTreeMap::new());
    let (time, tally, lost) = run(&mut model, &found, |_| true);
    assert_eq!(tally, Tally { functions: 1, power: 2, bus: 1, stopped: 0, lost: 0 });
    assert!(lost.is_empty());
    assert!((SETTLE..SETTLE + 50 * MILLISECOND).contains(&time), "{time}");
    for at in [DISK, NETWORK, SMALL[0], SMALL[1]] {
        assert_eq!(model.resets[&at], 1, "{at}");
        let (now, then) = (&model.machine.functions[&at].words, &home.functions[&at].words);
        assert_eq!(now[4..10], then[4..10], "{at}: registers are not at home");
        assert_eq!(now[1] & 0x407, then[1] & 3 | 0x400, "{at}: command");
    }
    assert_eq!(model.machine.functions[&DISK].words[0x88 / 4], 0x2020, "the size of packets");
    assert_eq!(model.machine.functions[&BRIDGE].words[0x3c / 4] >> 22 & 1, 0, "the bus is out of reset");
}

#[test]
fn a_bus_with_others_on_it_is_left_alone() {
    let (_, found, played) = played();
    let mut more = found.clone();
    let mut other = found.iter().find(|function| function.address == NETWORK).unwrap().clone();
    other.address.routing |= 1;
    more.push(other.clone());
    let mut model = Model::new(&played, BTreeMap::new());
    let (_, tally, _) = run(&mut model, &more, |function| function.address == NETWORK);
    assert_eq!(tally, Tally { stopped: 1, ..Tally::default() });
    assert!(model.resets.is_empty());
}

#[test]
fn who_does_not_come_back_is_told() {
    let (_, found, played) = played();
    let never = BTreeMap::from([(DISK, (u64::MAX, u64::MAX))]);
    let mut model = Model::new(&played, never);
    let (time, tally, lost) = run(&mut model, &found, |_| true);
    assert_eq!((tally.lost, tally.power, &lost[..]), (1, 2, &[DISK][..]));
    assert!((PENDING + SETTLE + ANSWER..=LONGEST).contains(&time), "{time}");
}

#[test]
fn nothing_is_nothing() {
    let (_, found, played) = played();
    let mut model = Model::new(&played, BTreeMap::new());
    assert_eq!(run(&mut model, &found, |_| false), (0, Tally::default(), Vec::new()));
}

proptest! {
    /// However long functions take, whatever their owner has written: it ends in time, and they are at home or lost.
    #[test]
    fn it_ends(
        delays in proptest::collection::vec((0u64..300, 0u64..2000), 4),
        owned in 0u8..16,
        noise in proptest::collection::vec((any::<u16>(), any::<u32>()), 0..60),
    ) {
        let all = [DISK, NETWORK, SMALL[0], SMALL[1]];
        let (home, found, mut played) = played();
        for (word, value) in noise {
            let at = all[usize::from(word >> 14)];
            let word = usize::from(word % 1024);
            if let Some(registers) = played.functions.get_mut(&at) {
                let mask = registers.writable[word];
                registers.words[word] = registers.words[word] & !mask | value & mask;
            }
        }
        let delays = delays.iter().map(|(end, back)| (end * MILLISECOND, back * MILLISECOND));
        let mut model = Model::new(&played, all.into_iter().zip(delays).collect());
        let is_owned = |at: Address| all.iter().position(|other| *other == at).is_some_and(|bit| owned >> bit & 1 != 0);
        let (time, tally, lost) = run(&mut model, &found, |function| is_owned(function.address));
        prop_assert!(time <= LONGEST, "{time}");
        let count = tally.functions + tally.power + tally.bus + tally.stopped + tally.lost;
        prop_assert_eq!(count, owned.count_ones());
        prop_assert_eq!(tally.stopped, 0);
        prop_assert_eq!(tally.lost as usize, lost.len());
        for at in all {
            if !is_owned(at) {
                prop_assert_eq!(model.machine.functions[&at].words, played.functions[&at].words);
            } else if !lost.contains(&at) {
                let (now, then) = (&model.machine.functions[&at].words, &home.functions[&at].words);
                prop_assert_eq!(&now[4..10], &then[4..10]);
                prop_assert_eq!(now[1] & 0x407, then[1] & 3 | 0x400);
                prop_assert!(model.resets.contains_key(&at));
            }
        }
    }
}
