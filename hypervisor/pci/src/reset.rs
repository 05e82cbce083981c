//! Resets between one owner of functions and the next.
//!
//! A function is reset by the first of these that it has: the reset of its PCI Express capability or of its advanced features
//! (function-level reset), the way from D3hot to D0 where that forgets its registers, the reset of the bus that it is on, where
//! all that is there has the same owner. Others keep what they know; they have been stopped ([`crate::Bus::quiesce`]), and
//! that is all.
//!
//! All functions of an owner are reset at once, in steps that wait for nothing: [`Reset::step`] does what can be done, and tells
//! when to come again. However the functions behave, that ends after [`LONGEST`].
//!
//! PCI Express Base Specification 4.0, sections 6.6 and 7.5.3; PCI Power Management Interface Specification 1.2, section 5.6.1;
//! PCI-to-PCI Bridge Architecture Specification 1.2, section 3.2.5.18.

use alloc::vec::Vec;

use caisson_types::Instant;

use crate::registers::{
    BARS, CACHE_LINE, COMMAND, ID, INTERRUPT_LINE, ROM, advanced, bridge, express, power,
};
use crate::registers::{COMMAND_IO, COMMAND_MEMORY, COMMAND_NO_INTX};
use crate::{Address, ConfigSpace, Function};

const MILLISECOND: u64 = 1_000_000;
/// How long what a function has begun may take to end.
const PENDING: u64 = 100 * MILLISECOND;
/// How often is looked.
const LOOK: u64 = 5 * MILLISECOND;
/// After a function-level reset, or that of a bus, until the function is asked for anything.
const SETTLE: u64 = 100 * MILLISECOND;
/// From one power state to the other.
const POWER: u64 = 10 * MILLISECOND;
/// How long a bus is in reset.
const BUS: u64 = 2 * MILLISECOND;
/// How long a function may then take to answer.
const ANSWER: u64 = 1000 * MILLISECOND;
/// The longest that all of it takes, where each step is done when it is due.
pub const LONGEST: u64 = POWER + PENDING + BUS + SETTLE + ANSWER;

/// How a function is reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// By its PCI Express capability.
    Express(u16),
    /// By its advanced features capability.
    Advanced(u16),
    /// By turning it off, to D3hot, and on.
    Power(u16),
    /// By the bridge to its bus.
    Bus(Address),
    /// Not at all.
    None,
}

impl Method {
    /// That of a function by itself.
    fn of(function: &Function) -> Self {
        match (function.express, function.advanced, function.power) {
            (Some(at), ..) if function.can_reset => Self::Express(at),
            (_, Some(at), _) => Self::Advanced(at),
            (_, _, Some(power)) if power.resets => Self::Power(power.offset),
            _ => Self::None,
        }
    }
}

/// What a function is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Its owner may have turned it off.
    Unknown,
    /// It has been turned on, and is left alone until then.
    Waking(Instant),
    /// It ends what it has begun, until then at most.
    Ending(Instant),
    /// It is off, or its bus is in reset, until then.
    Held(Instant),
    /// It is left alone until then.
    Settling(Instant),
    /// It does not answer yet, and must by then.
    Answering(Instant),
    /// It is as after a reset of the machine; or was not reset, and is quiet.
    Done,
    /// It has not answered.
    Lost,
}

/// One function's reset.
#[derive(Clone, Debug)]
struct Item {
    function: Function,
    method: Method,
    stage: Stage,
}

/// What the resets came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Functions that reset themselves.
    pub functions: u32,
    /// Functions that were turned off and on.
    pub power: u32,
    /// Functions whose bus was reset.
    pub bus: u32,
    /// Functions that cannot be reset, and were stopped.
    pub stopped: u32,
    /// Functions that have not answered since: they are as if they were not there.
    pub lost: u32,
}

/// What a step came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// There is nothing to do before then.
    Wait(Instant),
    /// All is done.
    Done(Tally),
}

/// The reset of an owner's functions.
#[derive(Clone, Debug)]
pub struct Reset {
    items: Vec<Item>,
    /// The bridges whose buses are to be reset, and those that are in reset.
    buses: Vec<(Address, bool)>,
}

impl Reset {
    /// Of those of the machine's `functions` that are the owner's. They have been stopped.
    #[must_use]
    pub fn new<'a>(
        functions: &(impl Iterator<Item = &'a Function> + Clone),
        owns: impl Fn(&Function) -> bool,
    ) -> Self {
        let is_own = |function: &Function| !function.is_mainboard() && owns(function);
        let mut buses: Vec<(Address, bool)> = Vec::new();
        let items = functions.clone().filter(|function| is_own(function)).map(|function| {
            let mut method = Method::of(function);
            if method == Method::None
                && let Some(bridge) = bridge_alone(functions.clone(), &is_own, function)
            {
                method = Method::Bus(bridge);
                if !buses.contains(&(bridge, false)) {
                    buses.push((bridge, false));
                }
            }
            Item { function: function.clone(), method, stage: Stage::Unknown }
        });
        let mut items: Vec<Item> = items.collect();
        // What is on a bus that is reset is reset by that.
        for item in &mut items {
            let bridge = bridge_to(functions.clone(), item.function.address);
            if let Some(bridge) = bridge.filter(|bridge| buses.contains(&(bridge.address, false))) {
                item.method = Method::Bus(bridge.address);
            }
        }
        Self { items, buses }
    }

    /// Does what is due.
    pub fn step(&mut self, space: &mut (impl ConfigSpace + ?Sized), now: Instant) -> Step {
        self.items.iter_mut().for_each(|item| item.step(space, now));
        self.step_buses(space, now);
        let next = self.items.iter().filter_map(|item| match item.stage {
            Stage::Ending(end) | Stage::Answering(end) => Some(end.min(now + LOOK)),
            Stage::Waking(until) | Stage::Held(until) | Stage::Settling(until) => Some(until),
            Stage::Unknown => Some(now),
            Stage::Done | Stage::Lost => None,
        });
        next.min().map_or_else(|| Step::Done(self.tally()), Step::Wait)
    }

    /// The functions that have not come back.
    pub fn lost(&self) -> impl Iterator<Item = Address> {
        self.items.iter().filter(|item| item.stage == Stage::Lost).map(|item| item.function.address)
    }

    /// Resets a bus when all functions on it have ended what they were at.
    fn step_buses(&mut self, space: &mut (impl ConfigSpace + ?Sized), now: Instant) {
        for (bridge, is_held) in &mut self.buses {
            let on_it = |item: &&mut Item| item.method == Method::Bus(*bridge);
            let is_at = |stage: fn(Stage) -> bool| {
                self.items
                    .iter()
                    .filter(|item| item.method == Method::Bus(*bridge))
                    .all(|item| stage(item.stage))
            };
            let control = space.read(*bridge, bridge::CONTROL, 2);
            if !*is_held && is_at(|stage| stage == Stage::Held(Instant::NEVER)) {
                space.write(*bridge, bridge::CONTROL, 2, control | bridge::RESET);
                *is_held = true;
                self.items.iter_mut().filter(on_it).for_each(|item| item.stage = Stage::Held(now + BUS));
            } else if *is_held && is_at(|stage| matches!(stage, Stage::Settling(_))) {
                space.write(*bridge, bridge::CONTROL, 2, control & !bridge::RESET);
                *is_held = false;
                // Never again: nobody on it is at that stage once more.
                self.items
                    .iter_mut()
                    .filter(on_it)
                    .for_each(|item| item.stage = Stage::Settling(now + SETTLE));
            }
        }
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for item in &self.items {
            let place = match (item.stage, item.method) {
                (Stage::Lost, _) => &mut tally.lost,
                (_, Method::Express(_) | Method::Advanced(_)) => &mut tally.functions,
                (_, Method::Power(_)) => &mut tally.power,
                (_, Method::Bus(_)) => &mut tally.bus,
                (_, Method::None) => &mut tally.stopped,
            };
            *place += 1;
        }
        tally
    }
}

impl Item {
    fn step(&mut self, space: &mut (impl ConfigSpace + ?Sized), now: Instant) {
        match self.stage {
            Stage::Unknown if self.turn_on(space) => self.stage = Stage::Waking(now + POWER),
            Stage::Unknown => self.stage = Stage::Ending(now + PENDING),
            Stage::Waking(until) if now >= until => self.stage = Stage::Ending(now + PENDING),
            _ => {}
        }
        match self.stage {
            Stage::Ending(end) if now >= end || !self.is_busy(space) => self.begin(space, now),
            Stage::Held(until) if now >= until => {
                if let Method::Power(at) = self.method {
                    self.set_power(space, at, 0);
                    self.stage = Stage::Settling(now + POWER);
                } else {
                    // Its bus is let go when all on it are here.
                    self.stage = Stage::Settling(Instant::NEVER);
                }
            }
            Stage::Settling(until) if now >= until => self.stage = Stage::Answering(now + ANSWER),
            _ => {}
        }
        if let Stage::Answering(end) = self.stage {
            /// What a function answers that is not ready yet (section 2.3.2).
            const NOT_READY: u32 = 1;
            let vendor = space.read(self.function.address, ID, 4) & 0xffff;
            if vendor == u32::from(self.function.vendor) {
                self.restore(space);
                self.stage = Stage::Done;
            } else if now >= end || vendor != NOT_READY && vendor != 0xffff {
                self.stage = Stage::Lost;
            }
        }
    }

    /// Turns it on, if it is off.
    fn turn_on(&self, space: &mut (impl ConfigSpace + ?Sized)) -> bool {
        let Some(power) = self.function.power else { return false };
        let control = space.read(self.function.address, power.offset + power::CONTROL, 2);
        let is_off = control & power::STATE != 0;
        if is_off {
            self.set_power(space, power.offset, 0);
        }
        is_off
    }

    /// Whether it has begun what has not ended.
    fn is_busy(&self, space: &mut (impl ConfigSpace + ?Sized)) -> bool {
        let at = self.function.address;
        match (self.method, self.function.express) {
            (Method::Advanced(offset), _) => {
                space.read(at, offset + advanced::STATUS, 1) & advanced::PENDING != 0
            }
            (_, Some(offset)) => space.read(at, offset + express::STATUS, 2) & express::PENDING != 0,
            _ => false,
        }
    }

    /// Has it reset itself, or be reset.
    fn begin(&mut self, space: &mut (impl ConfigSpace + ?Sized), now: Instant) {
        let at = self.function.address;
        self.stage = match self.method {
            Method::Express(offset) => {
                let control = space.read(at, offset + express::CONTROL, 2);
                space.write(at, offset + express::CONTROL, 2, control | express::RESET);
                Stage::Settling(now + SETTLE)
            }
            Method::Advanced(offset) => {
                space.write(at, offset + advanced::CONTROL, 1, advanced::RESET);
                Stage::Settling(now + SETTLE)
            }
            Method::Power(offset) => {
                self.set_power(space, offset, power::STATE);
                Stage::Held(now + POWER)
            }
            Method::Bus(_) => Stage::Held(Instant::NEVER),
            Method::None => {
                self.restore(space);
                Stage::Done
            }
        };
    }

    fn set_power(&self, space: &mut (impl ConfigSpace + ?Sized), offset: u16, state: u32) {
        let at = self.function.address;
        let control = space.read(at, offset + power::CONTROL, 2) & !power::STATE;
        space.write(at, offset + power::CONTROL, 2, control | state);
    }

    /// What the firmware has set, as it has set it, but for the bus mastering.
    fn restore(&self, space: &mut (impl ConfigSpace + ?Sized)) {
        let at = self.function.address;
        let home = |register: u16| self.function.header_words[usize::from(register / 4)];
        for &(register, value) in &self.function.controls {
            space.write(
                at,
                register,
                2,
                u32::from(value) & !if self.is_control(register) { express::RESET } else { 0 },
            );
        }
        // Cache line size and latency; the rest of the word is the function's.
        space.write(at, CACHE_LINE, 2, home(CACHE_LINE) & 0xffff);
        for register in (BARS..BARS + 24).step_by(4).chain([ROM]) {
            space.write(at, register, 4, home(register));
        }
        space.write(at, INTERRUPT_LINE, 1, home(INTERRUPT_LINE) & 0xff);
        let command = home(COMMAND) & (COMMAND_IO | COMMAND_MEMORY);
        space.write(at, COMMAND, 2, command | COMMAND_NO_INTX);
    }

    /// Whether this register is the one by which a function is reset.
    fn is_control(&self, register: u16) -> bool {
        self.function.express.is_some_and(|at| register == at + express::CONTROL)
    }
}

/// The bridge to a function's bus.
fn bridge_to<'a>(mut functions: impl Iterator<Item = &'a Function>, at: Address) -> Option<&'a Function> {
    functions.find(|bridge| {
        let leads = bridge.buses_behind().is_some_and(|(first, _)| first == at.bus() && first != 0);
        leads && bridge.address.segment == at.segment
    })
}

/// The bridge to a function's bus, where nothing is behind it but functions of the same owner.
fn bridge_alone<'a>(
    functions: impl Iterator<Item = &'a Function> + Clone,
    is_own: &impl Fn(&Function) -> bool,
    function: &Function,
) -> Option<Address> {
    let bridge = bridge_to(functions.clone(), function.address)?;
    let (first, last) = bridge.buses_behind()?;
    let mut behind = functions.filter(|other| {
        let at = other.address;
        at.segment == bridge.address.segment && (first..=last.max(first)).contains(&at.bus())
    });
    behind.all(is_own).then_some(bridge.address)
}

#[cfg(test)]
mod tests;
