//! A machine with a few domains, for tests: two drivers, each with a function of its own, of which the first serves the other as well;
//! a guest that both serve; and one that has nothing to do with anybody. Who reaches which memory is kept apart from what the code
//! under test believes, and looked at after every step.
//!
//! A machine can be made with a step of the course left out or done too early ([`Fault`]): then something must be seen to be wrong.

mod course;
mod parts;

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use caisson_abi::io::{ChannelDescription, MAX_CONFIG, MAX_QUEUES};
use caisson_config::{OnExit, OnExitAction};
use caisson_served::{Attached, Device, Served};
use caisson_types::DomainId;

use crate::{Cause, End, Lives, Next, Outcome, Step};
use course::Effects;
pub(crate) use parts::{Answers, Fault, Memory};
use parts::{Block, Frames, Function, Life, Reset};

/// The domains, by what they are.
pub(crate) const DRIVER: usize = 0;
pub(crate) const SERVED_DRIVER: usize = 1;
pub(crate) const GUEST: usize = 2;
pub(crate) const ALONE: usize = 3;
const DOMAINS: usize = 4;
/// Who serves each domain's devices.
const BACKENDS: [&[usize]; DOMAINS] = [&[], &[DRIVER], &[DRIVER, SERVED_DRIVER], &[]];
/// How often a domain is restarted.
pub(crate) const RESTARTS: u32 = 2;
/// Steps within which everything is over once nobody does anything new: far more than it takes.
const LONGEST: usize = 1000;

type Ending = End<Frames, Reset, &'static str>;

#[derive(Debug)]
enum Phase {
    Living,
    Ending(Ending),
    Restart,
    Gone,
    /// Its chores run.
    Taken,
}

struct Domain {
    phase: Phase,
    lives: Lives,
    served: Served,
    life: Option<Life>,
    function: Option<Function>,
    /// What its CPUs reach of others' memory.
    granted: BTreeSet<usize>,
    is_runnable: bool,
    deadline: Option<u64>,
    /// Blocks have to be looked at so often before it is taken apart.
    held: u8,
    to_leave: u8,
    /// How often it has ended, and how often its guests were told of it.
    ends: u32,
    told: u32,
}

/// The machine.
pub(crate) struct World {
    domains: Vec<Domain>,
    blocks: Vec<Block>,
    has_iommu: bool,
    now: u64,
    pub(crate) answers: Answers,
    fault: Option<Fault>,
    /// Lines that tell of lost memory: whose, and why.
    pub(crate) lines: Vec<(usize, &'static str)>,
    /// What was seen to be wrong.
    wrong: BTreeSet<&'static str>,
    /// Which memory was whose last.
    pub(crate) last: BTreeMap<usize, usize>,
}

fn id(domain: usize) -> DomainId {
    DomainId(domain as u16 + 1)
}

fn index(id: DomainId) -> usize {
    usize::from(id.0) - 1
}

impl World {
    /// All domains live.
    pub(crate) fn new(has_iommu: bool, fault: Option<Fault>) -> Self {
        let description = ChannelDescription {
            features: 0,
            device: 2,
            queues: 1,
            config_bytes: 1,
            queue_sizes: [8; MAX_QUEUES],
            config: [0; MAX_CONFIG],
            writable: [0; MAX_CONFIG],
        };
        let domain = |number: usize| {
            let backends = BACKENDS[number];
            let devices = (0..).zip(backends).map(|(slot, backend)| Device::new(slot, 2, id(*backend)));
            let mut served = Served::new(devices.collect());
            for (slot, backend) in (0..).zip(backends) {
                assert!(served.describe(slot, id(*backend), description).is_ok());
            }
            Domain {
                phase: Phase::Restart,
                lives: Lives::new(),
                served,
                life: None,
                function: (number < 2).then(Function::default),
                granted: BTreeSet::new(),
                is_runnable: true,
                deadline: None,
                held: 0,
                to_leave: 0,
                ends: 0,
                told: 0,
            }
        };
        let mut world = Self {
            domains: (0..DOMAINS).map(domain).collect(),
            blocks: Vec::new(),
            has_iommu,
            now: 0,
            answers: Answers::default(),
            fault,
            lines: Vec::new(),
            wrong: BTreeSet::new(),
            last: BTreeMap::new(),
        };
        (0..DOMAINS).for_each(|number| world.make(number));
        world
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn see(&mut self, is_right: bool, what: &'static str) {
        if !is_right {
            self.wrong.insert(what);
        }
    }

    fn make(&mut self, number: usize) {
        let block = self.blocks.len();
        let is_lost = self.domains[number].lives.is_lost();
        self.see(!is_lost, "a domain that has lost memory lives again");
        self.blocks.push(Block { state: Memory::Used, is_scrubbed: false });
        self.last.insert(number, block);
        let is_stuck = self.has_iommu && number < 2 && !self.unit_answers(number);
        let domain = &mut self.domains[number];
        if is_stuck {
            // Nothing has been attached.
            domain.lives.could_not_be_made(false);
            domain.phase = Phase::Gone;
            self.blocks[block].state = Memory::Freed;
            return;
        }
        domain.served.making();
        domain.served.started();
        domain.lives.made(self.now + 5);
        domain.life = Some(Life(block));
        domain.phase = Phase::Living;
        if let Some(function) = &mut domain.function {
            *function = Function { is_on: true, is_busy: true, is_attached: true, ..Function::default() };
            function.defies = self.has_iommu && number == DRIVER;
            function.mapped.insert(block);
            function.told.insert(block);
        }
    }

    /// Whether the unit that a driver's function is behind does.
    fn unit_answers(&mut self, driver: usize) -> bool {
        let answers = self.answers.iommu[driver];
        let Some(function) = &mut self.domains[driver].function else { return true };
        function.is_stuck |= !answers;
        !function.is_stuck
    }

    /// Whether a driver's function reaches some memory.
    fn reaches(&self, driver: usize, block: usize) -> bool {
        let Some(function) = &self.domains[driver].function else { return false };
        let finds = match self.has_iommu {
            true => function.is_attached && function.mapped.contains(&block),
            false => function.told.contains(&block),
        };
        finds && (function.is_on || function.is_busy)
    }

    fn is_reached(&self, block: usize) -> bool {
        let by_others = |(number, domain): (usize, &Domain)| {
            domain.granted.contains(&block) || self.reaches(number, block)
        };
        self.domains.iter().enumerate().any(by_others)
    }

    /// What must never be otherwise.
    fn check(&mut self) {
        for block in 0..self.blocks.len() {
            let is_free = self.blocks[block].state == Memory::Freed;
            self.see(!(is_free && self.is_reached(block)), "free memory is reached");
        }
        for number in 0..DOMAINS {
            let domain = &self.domains[number];
            let is_over = matches!(domain.phase, Phase::Living | Phase::Restart | Phase::Gone);
            let (told, ends) = (domain.told, domain.ends);
            self.see(told <= ends && (!is_over || told == ends), "guests are told once of each end");
        }
    }

    /// What was seen to be wrong.
    pub(crate) fn wrong(&self) -> &BTreeSet<&'static str> {
        &self.wrong
    }

    pub(crate) fn is_gone(&self, number: usize) -> bool {
        matches!(self.domains[number].phase, Phase::Gone)
    }

    pub(crate) fn is_living(&self, number: usize) -> bool {
        matches!(self.domains[number].phase, Phase::Living)
    }

    pub(crate) fn is_lost(&self, number: usize) -> bool {
        self.domains[number].lives.is_lost()
    }

    pub(crate) fn restarts(&self, number: usize) -> u32 {
        self.domains[number].lives.restarts()
    }

    /// What became of the memory of a domain's last life, or of this one.
    pub(crate) fn memory(&self, number: usize) -> Memory {
        self.blocks[self.last[&number]].state
    }

    fn is_ending(&self, number: usize) -> bool {
        matches!(self.domains[number].phase, Phase::Ending(_))
    }

    /// Whether its chores wait for somebody else alone.
    pub(crate) fn waits(&self, number: usize) -> bool {
        self.is_ending(number) && !self.domains[number].is_runnable && self.domains[number].deadline.is_none()
    }

    pub(crate) fn is_resetting(&self, number: usize) -> bool {
        matches!(self.domains[number].phase, Phase::Ending(End::Resets(..)))
    }

    fn wake(&mut self, number: usize) {
        if !self.is(Fault::Wake) {
            self.domains[number].is_runnable = true;
            self.domains[number].deadline = None;
        }
    }

    // ---- What people and guests do.

    /// A life ends.
    pub(crate) fn end(&mut self, number: usize, cause: Cause) {
        let restart = OnExitAction::Restart;
        let actions = OnExit { poweroff: OnExitAction::Destroy, reboot: restart, crash: restart };
        let answers = self.answers;
        let domain = &mut self.domains[number];
        if !matches!(domain.phase, Phase::Living) {
            return;
        }
        domain.lives.ended(cause, actions, Some(RESTARTS));
        domain.served.ended();
        domain.ends += 1;
        domain.held = answers.steps % 3;
        domain.to_leave = answers.steps % 4;
        domain.phase = Phase::Ending(End::Used);
        domain.is_runnable = true;
    }

    /// Somebody wants it to be gone.
    pub(crate) fn destroy(&mut self, number: usize) {
        if self.is_gone(number) {
            return;
        }
        self.domains[number].lives.told_to_go();
        if self.is_living(number) {
            self.end(number, Cause::Destroyed);
        } else {
            self.wake(number);
        }
    }

    /// Somebody wants it to come again.
    pub(crate) fn start(&mut self, number: usize) {
        let may = self.is(Fault::Again);
        let domain = &mut self.domains[number];
        if matches!(domain.phase, Phase::Gone) && (domain.lives.begin_anew() || may) {
            domain.phase = Phase::Restart;
            domain.is_runnable = true;
        }
    }

    /// The driver's daemon takes a guest's device on.
    pub(crate) fn attach(&mut self, driver: usize, guest: usize) {
        let Some(slot) = BACKENDS[guest].iter().position(|backend| *backend == driver) else { return };
        if !self.is_living(driver) {
            return;
        }
        if self.domains[guest].served.attach(slot as u16, id(driver)) != Ok(Attached::Grant) {
            return;
        }
        let Some(block) = self.domains[guest].life.as_ref().map(|life| life.0) else { return };
        let answers = !self.has_iommu || self.unit_answers(driver);
        let Domain { function, granted, .. } = &mut self.domains[driver];
        if let Some(function) = function {
            function.mapped.insert(block);
            function.told.insert(block);
        }
        if answers {
            granted.insert(block);
        } else {
            self.domains[guest].served.cannot_grant(id(driver));
            self.wake(driver);
        }
    }

    /// It lets go of it.
    pub(crate) fn detach(&mut self, driver: usize, guest: usize) {
        let Some(slot) = BACKENDS[guest].iter().position(|backend| *backend == driver) else { return };
        if self.is_living(driver) && self.domains[guest].served.detach(slot as u16, id(driver)) == Ok(true) {
            // What was under way has ended, and what is granted no more is not told to it.
            if let Some(function) = &mut self.domains[driver].function {
                let own = self.last[&driver];
                function.told.retain(|block| *block == own);
            }
            self.wake(driver);
        }
    }

    /// The chores of a living driver: what is not used any more is taken from it.
    fn revoke(&mut self, driver: usize) {
        for guest in 0..DOMAINS {
            if !self.domains[guest].served.begin_revocation(id(driver)) {
                continue;
            }
            let Some(block) = self.domains[guest].life.as_ref().map(|life| life.0) else {
                self.see(false, "a guest is taken apart while its memory is granted");
                continue;
            };
            let answers = !self.has_iommu || self.unit_answers(driver);
            let Domain { function, granted, .. } = &mut self.domains[driver];
            granted.remove(&block);
            if answers && let Some(function) = function {
                function.mapped.remove(&block);
            }
            let served = &mut self.domains[guest].served;
            if answers || self.fault == Some(Fault::Revoked) {
                served.revoked(id(driver));
            } else {
                served.cannot_revoke(id(driver));
            }
            self.wake(guest);
        }
    }

    // ---- The chores.

    /// A turn of a domain's chores, if they can run. Whether they could.
    pub(crate) fn turn(&mut self, number: usize) -> bool {
        if !self.domains[number].is_runnable {
            return false;
        }
        match core::mem::replace(&mut self.domains[number].phase, Phase::Taken) {
            Phase::Living => {
                self.domains[number].phase = Phase::Living;
                self.domains[number].is_runnable = false;
                self.revoke(number);
            }
            Phase::Ending(end) => self.step(number, end),
            Phase::Restart if self.domains[number].lives.is_unwanted() => self.gone(number),
            Phase::Restart => self.make(number),
            Phase::Gone | Phase::Taken => self.gone(number),
        }
        self.check();
        true
    }

    fn gone(&mut self, number: usize) {
        self.domains[number].phase = Phase::Gone;
        self.domains[number].is_runnable = false;
    }

    fn step(&mut self, number: usize, end: Ending) {
        let next = match end.step(&mut Effects { world: self, number }) {
            Step::More(end) => end,
            Step::Wait(end, until) => {
                self.domains[number].is_runnable = false;
                self.domains[number].deadline = Some(until);
                end
            }
            Step::Asked | Step::Later => End::Used,
            Step::Over(outcome) => {
                self.over(number, outcome);
                return;
            }
        };
        self.domains[number].phase = Phase::Ending(next);
    }

    fn over(&mut self, number: usize, outcome: Outcome) {
        let state = self.memory(number);
        let as_told = match outcome {
            Outcome::Freed => state == Memory::Freed,
            Outcome::Lost => state == Memory::Kept,
        };
        self.see(as_told, "an end is over before its memory is free or kept");
        match self.domains[number].lives.over(outcome) {
            Next::Restart(at) => {
                self.now = self.now.max(at);
                self.domains[number].phase = Phase::Restart;
            }
            Next::Gone(_) => self.gone(number),
        }
    }

    /// The next deadline comes.
    pub(crate) fn pass_time(&mut self) -> bool {
        let Some(next) = self.domains.iter().filter_map(|domain| domain.deadline).min() else { return false };
        self.now = self.now.max(next);
        for domain in self.domains.iter_mut().filter(|domain| domain.deadline.is_some_and(|at| at <= next)) {
            domain.deadline = None;
            domain.is_runnable = true;
        }
        true
    }

    /// Everybody goes on until nobody has anything to do, with daemons that let go of guests that have ended.
    pub(crate) fn settle(&mut self) {
        for _ in 0..LONGEST {
            let mut acted = false;
            for number in 0..DOMAINS {
                acted |= self.turn(number);
            }
            acted |= self.pass_time();
            for guest in (0..DOMAINS).filter(|guest| self.is_ending(*guest)).collect::<Vec<_>>() {
                BACKENDS[guest].iter().for_each(|driver| self.detach(*driver, guest));
            }
            if !acted && !(0..DOMAINS).any(|number| self.domains[number].is_runnable) {
                let stays = (0..DOMAINS).any(|number| !self.is_gone(number) && !self.is_living(number));
                self.see(!stays, "an end waits for nobody");
                return;
            }
        }
        self.see(false, "an end does not end");
    }

    /// A step that bytes spell.
    pub(crate) fn act(&mut self, byte: u8) {
        let number = usize::from(byte >> 4) % DOMAINS;
        let other = usize::from(byte >> 6) % DOMAINS;
        match byte & 15 {
            0 => self.end(number, Cause::Crash),
            1 => self.end(number, Cause::Reset),
            2 => self.end(number, Cause::PowerOff),
            3 if other == 1 => self.destroy(number),
            3 | 4 => self.start(number),
            5 | 6 => self.attach(number % 2, if other < 2 { GUEST } else { SERVED_DRIVER }),
            7 => self.detach(number % 2, if other < 2 { GUEST } else { SERVED_DRIVER }),
            8 => self.answers.steps = byte >> 4,
            9 if other == 3 => self.answers.iommu[number % 2] = false,
            9 | 10 => {
                let _ = self.pass_time();
            }
            _ => {
                let _ = self.turn(number);
            }
        }
    }
}
