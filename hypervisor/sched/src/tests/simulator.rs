//! One CPU, and what runs on it: virtual time goes from event to event, the scheduler is the real one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::vec::Vec;

use crate::{EntityId, GroupId, Policy, RunQueue};

/// A small generator (xorshift64*), so that a mix is named by its seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number from `low` up to and with `high`.
    pub(super) fn within(&mut self, low: u64, high: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        low + (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % (high - low + 1)
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.within(1, n) == 1
    }
}

/// What a guest does with the CPU.
#[derive(Clone, Copy, Debug)]
pub(super) enum Behaviour {
    /// Wants it always.
    Spins,
    /// Runs for up to `run` ticks, then sleeps for up to `sleep`, again and again.
    Sleeps { run: u64, sleep: u64 },
    /// Runs for exactly `run` ticks from every wake, and wakes `every` ticks or up to twice that after the last wake.
    Sporadic { run: u64, every: u64 },
    /// Wants it always, and reboots after up to `every` ticks of running, which takes up to `down`.
    Reboots { every: u64, down: u64 },
}

pub(super) struct Task {
    pub(super) id: EntityId,
    pub(super) group: GroupId,
    pub(super) behaviour: Behaviour,
    /// Ticks to run until it blocks.
    burst: u64,
    pub(super) runnable: bool,
    pub(super) served: u64,
    /// When it woke last.
    pub(super) woke: u64,
    /// The longest from a wake to its end of running.
    pub(super) worst_response: u64,
    /// When it ran last, or woke.
    since: u64,
    /// The longest it was runnable and did not run.
    pub(super) longest_wait: u64,
}

pub(super) struct Simulator<P> {
    pub(super) queue: RunQueue<P>,
    pub(super) tasks: Vec<Task>,
    pub(super) random: Random,
    pub(super) now: u64,
    pub(super) idle: u64,
    pub(super) decisions: u64,
    /// By up to how many ticks a timer comes late.
    pub(super) late: u64,
    wakes: BinaryHeap<Reverse<(u64, usize)>>,
    by_entity: Vec<usize>,
}

impl<P: Policy> Simulator<P> {
    pub(super) fn new(policy: P, capacity: usize, groups: usize, seed: u64) -> Self {
        Self {
            queue: RunQueue::new(policy, capacity, groups),
            tasks: Vec::new(),
            random: Random::new(seed),
            now: 0,
            idle: 0,
            decisions: 0,
            late: 0,
            wakes: BinaryHeap::new(),
            by_entity: std::vec![usize::MAX; capacity],
        }
    }

    /// Adds a task that wakes now; `None` where the policy turns it down.
    pub(super) fn add(
        &mut self,
        group: u32,
        parameters: P::Parameters,
        behaviour: Behaviour,
    ) -> Option<usize> {
        let group = GroupId(group);
        let id = self.queue.add(group, parameters, self.now).ok()?;
        let index = self.tasks.len();
        self.by_entity[id.index()] = index;
        self.tasks.push(Task {
            id,
            group,
            behaviour,
            burst: 0,
            runnable: false,
            served: 0,
            woke: 0,
            worst_response: 0,
            since: 0,
            longest_wait: 0,
        });
        self.wakes.push(Reverse((self.now, index)));
        Some(index)
    }

    fn wake(&mut self, index: usize) {
        let burst = match self.tasks[index].behaviour {
            Behaviour::Spins => u64::MAX,
            Behaviour::Sleeps { run, .. } => self.random.within(1, run),
            Behaviour::Sporadic { run, .. } => run,
            Behaviour::Reboots { every, .. } => self.random.within(1, every),
        };
        let task = &mut self.tasks[index];
        (task.burst, task.runnable, task.woke, task.since) = (burst, true, self.now, self.now);
        self.queue.wake(task.id, self.now);
    }

    /// A task's burst has ended.
    fn block(&mut self, index: usize) {
        let (id, woke) = (self.tasks[index].id, self.tasks[index].woke);
        self.queue.block(id);
        self.tasks[index].runnable = false;
        self.tasks[index].worst_response = self.tasks[index].worst_response.max(self.now - woke);
        let next = match self.tasks[index].behaviour {
            Behaviour::Spins => return,
            Behaviour::Sleeps { sleep, .. } => self.now + self.random.within(1, sleep),
            Behaviour::Sporadic { every, .. } => self.now.max(woke + self.random.within(every, 2 * every)),
            Behaviour::Reboots { down, .. } => {
                self.queue.restart(id, self.now);
                self.now + self.random.within(1, down)
            }
        };
        self.wakes.push(Reverse((next, index)));
    }

    /// One decision and what follows from it, up to `end`; `check` sees the state after each.
    pub(super) fn step(&mut self, end: u64) {
        while let Some(&Reverse((at, index))) = self.wakes.peek()
            && at <= self.now
        {
            self.wakes.pop();
            self.wake(index);
        }
        let event = self.wakes.peek().map_or(u64::MAX, |w| w.0.0).min(end);
        self.decisions += 1;
        let Some(decision) = self.queue.pick(self.now) else {
            let next = event.min(self.queue.next_deadline());
            assert!(next > self.now, "an idle CPU waits for what is due");
            self.idle += next - self.now;
            self.now = next;
            return;
        };
        assert!(decision.until > self.now);
        let index = self.by_entity[decision.who.index()];
        let late = if self.late == 0 { 0 } else { self.random.within(0, self.late) };
        let task = &mut self.tasks[index];
        assert!(task.runnable, "a blocked task was picked");
        let stop = decision.until.saturating_add(late).min(event).min(self.now.saturating_add(task.burst));
        let ran = stop - self.now;
        task.longest_wait = task.longest_wait.max(self.now - task.since);
        task.since = stop;
        task.served += ran;
        if task.burst != u64::MAX {
            task.burst -= ran;
        }
        self.now = stop;
        self.queue.charge(decision.who, ran, stop);
        if self.tasks[index].burst == 0 {
            self.block(index);
        }
    }

    pub(super) fn run(&mut self, end: u64) {
        while self.now < end {
            self.step(end);
        }
    }

    /// Whether a task waits that no cap keeps from running, while the CPU idles: asked before a step.
    pub(super) fn anyone_runnable(&self) -> bool {
        self.tasks.iter().any(|task| task.runnable)
            || self.wakes.peek().is_some_and(|&Reverse((at, _))| at <= self.now)
    }
}

/// Jain's index of fairness: 1 where all are equal, 1/n where one has everything.
pub(super) fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|x| x * x).sum();
    sum * sum / (shares.len() as f64 * squares)
}
