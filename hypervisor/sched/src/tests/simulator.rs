//! The CPUs of a pool, and what runs on them: virtual time goes from event to event, the scheduler is the real one, and
//! this does what the hypervisor does around it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::vec::Vec;

use crate::{CpuQueue, EntityId, GroupId, Key, NEVER, Parameters, PolicyKind, Pool, Settings, should_pull};

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
    /// Wants it until it has had so much.
    Finishes { work: u64 },
    /// Runs for up to `run` ticks, then sleeps for up to `sleep`, again and again.
    Sleeps { run: u64, sleep: u64 },
    /// Runs for exactly `run` ticks from every wake, and wakes `every` ticks or up to twice that after the last wake.
    Sporadic { run: u64, every: u64 },
    /// Wants it always, and reboots after up to `every` ticks of running, which takes up to `down`.
    Reboots { every: u64, down: u64 },
}

/// All CPUs.
pub(super) const ANY: u64 = u64::MAX;

pub(super) struct Task {
    pub(super) id: EntityId,
    /// The CPU in whose queue it is.
    pub(super) home: usize,
    pub(super) group: GroupId,
    pub(super) behaviour: Behaviour,
    /// The CPUs that it may run on, and those where it should, as bits.
    pub(super) allowed: u64,
    pub(super) preferred: u64,
    /// Ticks to run until it blocks.
    burst: u64,
    pub(super) runnable: bool,
    pub(super) served: u64,
    /// Ticks of that on preferred CPUs.
    pub(super) served_preferred: u64,
    /// When it woke last.
    pub(super) woke: u64,
    /// The longest from a wake to its end of running.
    pub(super) worst_response: u64,
    /// When it had all that it wanted.
    pub(super) finished: u64,
    /// When it ran last, or woke.
    since: u64,
    /// The longest it was runnable and did not run.
    pub(super) longest_wait: u64,
    pub(super) moves: u64,
}

#[derive(Clone, Copy)]
struct Running {
    task: usize,
    /// Up to when it has been charged.
    from: u64,
    until: u64,
}

#[derive(Clone, Copy, Default)]
struct Cpu {
    running: Option<Running>,
    /// The task that waits here in its place.
    rests: Option<usize>,
    /// When it picks again while nothing runs.
    looks: u64,
    /// Something happened that it must look at.
    kicked: bool,
}

pub(super) struct Simulator {
    pub(super) pool: Arc<Pool>,
    pub(super) queues: Vec<CpuQueue>,
    cpus: Vec<Cpu>,
    pub(super) tasks: Vec<Task>,
    pub(super) random: Random,
    pub(super) now: u64,
    /// Ticks of all CPUs in which nothing ran.
    pub(super) idle: u64,
    pub(super) decisions: u64,
    /// How often one that waited in its place went on there.
    pub(super) resumed: u64,
    /// By up to how many ticks a timer comes late.
    pub(super) late: u64,
    allowance: u64,
    wakes: BinaryHeap<Reverse<(u64, usize)>>,
    by_entity: Vec<Vec<usize>>,
}

impl Simulator {
    pub(super) fn new(
        kind: PolicyKind,
        cpus: usize,
        settings: &Settings,
        capacity: usize,
        groups: usize,
        seed: u64,
    ) -> Self {
        let members: Vec<u32> = (0..cpus as u32).collect();
        let pool = Pool::new(&members);
        let queue = |&cpu: &u32| CpuQueue::new(pool.clone(), cpu, kind, settings, capacity, groups);
        Self {
            queues: members.iter().map(queue).collect(),
            pool,
            cpus: std::vec![Cpu { running: None, rests: None, looks: 0, kicked: true }; cpus],
            tasks: Vec::new(),
            random: Random::new(seed),
            now: 0,
            idle: 0,
            decisions: 0,
            resumed: 0,
            late: 0,
            allowance: settings.allowance,
            wakes: BinaryHeap::new(),
            by_entity: std::vec![std::vec![usize::MAX; capacity]; cpus],
        }
    }

    /// Adds a task that wakes now; `None` where the policy turns it down.
    pub(super) fn add(&mut self, group: u32, parameters: Parameters, behaviour: Behaviour) -> Option<usize> {
        self.add_on(group, parameters, behaviour, ANY, ANY)
    }

    /// The same, with hard and soft affinity.
    pub(super) fn add_on(
        &mut self,
        group: u32,
        parameters: Parameters,
        behaviour: Behaviour,
        allowed: u64,
        preferred: u64,
    ) -> Option<usize> {
        let group = GroupId(group);
        let count = |cpu: &usize| self.tasks.iter().filter(|task| task.home == *cpu).count();
        let fits = (0..self.cpus.len()).filter(|&cpu| allowed >> cpu & 1 != 0);
        let mut homes: Vec<usize> = fits.collect();
        homes.sort_by_key(|cpu| (preferred >> cpu & 1 == 0, count(cpu)));
        let now = self.now;
        let (home, id) = homes
            .into_iter()
            .find_map(|home| Some((home, self.queues[home].add(group, parameters, now).ok()?)))?;
        let index = self.tasks.len();
        self.by_entity[home][id.index()] = index;
        self.tasks.push(Task {
            id,
            home,
            group,
            behaviour,
            allowed,
            preferred,
            burst: 0,
            runnable: false,
            served: 0,
            served_preferred: 0,
            woke: 0,
            worst_response: 0,
            finished: 0,
            since: 0,
            longest_wait: 0,
            moves: 0,
        });
        self.wakes.push(Reverse((self.now, index)));
        Some(index)
    }

    /// What a task has had up to now.
    pub(super) fn served(&self, task: usize) -> u64 {
        let task_ref = &self.tasks[task];
        let running = self.cpus[task_ref.home].running.filter(|running| running.task == task);
        task_ref.served + running.map_or(0, |running| self.now - running.from)
    }

    pub(super) fn is_running(&self, task: usize) -> bool {
        self.cpus.iter().any(|cpu| cpu.running.is_some_and(|running| running.task == task))
    }

    fn wake(&mut self, index: usize) {
        let burst = match self.tasks[index].behaviour {
            Behaviour::Spins => u64::MAX,
            Behaviour::Finishes { work } => work,
            Behaviour::Sleeps { run, .. } => self.random.within(1, run),
            Behaviour::Sporadic { run, .. } => run,
            Behaviour::Reboots { every, .. } => self.random.within(1, every),
        };
        let now = self.now;
        let task = &mut self.tasks[index];
        (task.burst, task.runnable, task.woke, task.since) = (burst, true, now, now);
        if self.resume(index) {
            return;
        }
        let task = &self.tasks[index];
        let (allowed, preferred, home) = (task.allowed, task.preferred, task.home);
        let idles = |cpu: u32| self.pool.is_idle(cpu);
        let may = |cpu: u32| allowed >> cpu & 1 != 0;
        let likes = |cpu: u32| preferred >> cpu & 1 != 0;
        if !(idles(home as u32) && likes(home as u32))
            && let Some(cpu) = self.pool.find_idle(may, likes)
            && (likes(cpu) || !idles(home as u32))
            && let Some(parcel) = self.queues[home].take(self.tasks[index].id, now)
        {
            // A reservation stays where it was admitted, unless there is room.
            let put = self.queues[cpu as usize].put(parcel, now);
            match put {
                Ok(id) => self.moved(index, cpu as usize, id),
                Err(_) => {
                    let id = self.queues[home].put(parcel, now).unwrap();
                    self.moved(index, home, id);
                }
            }
        }
        let (home, id) = (self.tasks[index].home, self.tasks[index].id);
        self.queues[home].wake(id, now);
        match self.cpus[home].running {
            None => self.cpus[home].kicked = true,
            Some(running) => {
                let current = self.tasks[running.task].id;
                self.cpus[home].kicked |= self.queues[home].should_preempt(current, id, now);
            }
        }
        self.kick_idle(home);
    }

    fn set_idle(&self, cpu: usize, idle: bool) {
        let beacon = self.pool.beacon(cpu as u32).unwrap();
        if idle {
            beacon.set_idle();
        } else {
            let _ = beacon.end_idle();
        }
    }

    fn moved(&mut self, task: usize, to: usize, id: EntityId) {
        self.by_entity[to][id.index()] = task;
        let task = &mut self.tasks[task];
        task.moves += u64::from(task.home != to);
        (task.home, task.id) = (to, id);
    }

    /// Somebody waits at `cpu`: those that idle look.
    fn kick_idle(&mut self, cpu: usize) {
        if self.queues[cpu].waiting().is_some() {
            for other in 0..self.cpus.len() {
                self.cpus[other].kicked |= self.pool.is_idle(other as u32);
            }
        }
    }

    /// One that waits in its place wakes. Whether it goes on there; otherwise it is blocked now.
    fn resume(&mut self, index: usize) -> bool {
        let home = self.tasks[index].home;
        if self.cpus[home].rests.take_if(|task| *task == index).is_none() {
            return false;
        }
        self.set_idle(home, false);
        if self.queues[home].resume(self.now) && !self.cpus[home].kicked {
            self.cpus[home].running = Some(Running { task: index, from: self.now, until: NEVER });
            self.resumed += 1;
            return true;
        }
        self.queues[home].block(self.tasks[index].id);
        self.cpus[home].kicked = true;
        false
    }

    /// A CPU on which somebody waits in its place is asked for.
    fn leave_place(&mut self, cpu: usize) {
        let Some(index) = self.cpus[cpu].rests.take() else { return };
        self.set_idle(cpu, false);
        let _ = self.queues[cpu].resume(self.now);
        self.queues[cpu].block(self.tasks[index].id);
    }

    /// A task's burst has ended.
    fn block(&mut self, index: usize) {
        let (id, woke, home) = (self.tasks[index].id, self.tasks[index].woke, self.tasks[index].home);
        let reboots = matches!(self.tasks[index].behaviour, Behaviour::Reboots { .. });
        // Where it would rather be elsewhere, its wake is the time to go.
        let at_home = self.tasks[index].preferred >> home & 1 != 0;
        if !reboots && at_home && self.queues[home].rest() {
            (self.cpus[home].rests, self.cpus[home].looks) = (Some(index), NEVER);
            self.set_idle(home, true);
        } else {
            self.queues[home].block(id);
        }
        let task = &mut self.tasks[index];
        task.runnable = false;
        task.worst_response = task.worst_response.max(self.now - woke);
        task.finished = self.now;
        let next = match task.behaviour {
            Behaviour::Spins | Behaviour::Finishes { .. } => return,
            Behaviour::Sleeps { sleep, .. } => self.now + self.random.within(1, sleep),
            Behaviour::Sporadic { every, .. } => self.now.max(woke + self.random.within(every, 2 * every)),
            Behaviour::Reboots { down, .. } => {
                self.queues[home].restart(id, self.now);
                self.now + self.random.within(1, down)
            }
        };
        self.wakes.push(Reverse((next, index)));
    }

    /// Charges what runs on a CPU up to now.
    fn charge(&mut self, cpu: usize) {
        let Some(running) = self.cpus[cpu].running.as_mut() else { return };
        let ran = self.now - running.from;
        running.from = self.now;
        let index = running.task;
        let task = &mut self.tasks[index];
        task.served += ran;
        task.served_preferred += if task.preferred >> cpu & 1 != 0 { ran } else { 0 };
        task.since = self.now;
        if task.burst != u64::MAX {
            task.burst -= ran;
        }
        self.queues[cpu].charge(task.id, ran, self.now);
        if task.burst == 0 {
            self.cpus[cpu].running = None;
            self.block(index);
        }
    }

    /// Takes one from another queue that is further behind than what this CPU would run next.
    fn pull(&mut self, cpu: usize) {
        let own = self.queues[cpu].next_key();
        let margin = self.pool.margin();
        let mut last = None;
        while let Some(victim) = self.pool.behind(cpu as u32, last)
            && should_pull(own, victim.0, margin)
        {
            last = Some(victim);
            let from = victim.1 as usize;
            // Those that like it here first; the others where it matters more.
            for (liked, before) in [(true, own.earlier(margin)), (false, own.earlier(2 * margin))] {
                let allowed = |id: EntityId| {
                    let task = &self.tasks[self.by_entity[from][id.index()]];
                    task.allowed >> cpu & 1 != 0 && (!liked || task.preferred >> cpu & 1 != 0)
                };
                if let Some((id, parcel)) = self.queues[from].steal(before, allowed, self.now) {
                    let task = self.by_entity[from][id.index()];
                    let id = self.queues[cpu].put(parcel, self.now).unwrap();
                    self.moved(task, cpu, id);
                    return;
                }
            }
        }
    }

    /// What a CPU does when its run ended or something asks for it.
    fn look(&mut self, cpu: usize) {
        self.cpus[cpu].kicked = false;
        self.leave_place(cpu);
        self.charge(cpu);
        if self.cpus[cpu].rests.is_some() {
            return;
        }
        let over = self.queues[cpu].turn_is_over();
        if over {
            self.pull(cpu);
        }
        self.decisions += 1;
        let mut decision = self.queues[cpu].pick(self.now);
        if decision.is_none() {
            self.set_idle(cpu, true);
            self.pull(cpu);
            decision = self.queues[cpu].pick(self.now);
        }
        self.set_idle(cpu, decision.is_none());
        let before = self.cpus[cpu].running.map(|running| running.task);
        let Some(decision) = decision else {
            self.cpus[cpu].running = None;
            self.cpus[cpu].looks = self.queues[cpu].next_deadline();
            assert!(self.cpus[cpu].looks > self.now, "an idle CPU waits for what is due");
            return;
        };
        assert!(decision.until > self.now);
        let task = self.by_entity[cpu][decision.who.index()];
        assert!(self.tasks[task].runnable, "a blocked task was picked");
        assert_eq!(self.tasks[task].home, cpu);
        if before != Some(task) {
            let waited = self.now - self.tasks[task].since;
            self.tasks[task].longest_wait = self.tasks[task].longest_wait.max(waited);
        }
        let late = if self.late == 0 { 0 } else { self.random.within(0, self.late) };
        let until = decision.until.saturating_add(late);
        self.cpus[cpu].running = Some(Running { task, from: self.now, until });
        self.kick_idle(cpu);
        if over
            && self.queues[cpu].waiting().is_some()
            && let Some(lone) = self.pool.tell_lone(cpu as u32, self.allowance, self.now)
        {
            self.cpus[lone as usize].kicked = true;
        }
    }

    /// When something happens on a CPU by itself.
    fn next_on(&self, cpu: &Cpu) -> u64 {
        cpu.running.map_or(cpu.looks, |running| {
            running.until.min(running.from.saturating_add(self.tasks[running.task].burst))
        })
    }

    /// Goes to the next event, up to `end`, and does all that follows from it.
    pub(super) fn step(&mut self, end: u64) {
        let wake = self.wakes.peek().map_or(u64::MAX, |w| w.0.0);
        let own = self.cpus.iter().map(|cpu| self.next_on(cpu)).min().unwrap_or(NEVER);
        let kicked = self.cpus.iter().any(|cpu| cpu.kicked);
        let next = if kicked { self.now } else { wake.min(own).min(end).max(self.now) };
        let idle = self.cpus.iter().filter(|cpu| cpu.running.is_none()).count() as u64;
        self.idle += idle * (next - self.now);
        self.now = next;
        // Bursts that end now end before others wake.
        for cpu in 0..self.cpus.len() {
            let task = self.cpus[cpu].running.map(|running| running.task);
            let ends = task
                .is_some_and(|task| self.served(task) - self.tasks[task].served >= self.tasks[task].burst);
            if ends {
                self.charge(cpu);
                self.cpus[cpu].kicked |= self.cpus[cpu].rests.is_none();
            }
        }
        while let Some(&Reverse((at, index))) = self.wakes.peek()
            && at <= self.now
        {
            self.wakes.pop();
            self.wake(index);
        }
        for cpu in 0..self.cpus.len() {
            self.cpus[cpu].kicked |= self.next_on(&self.cpus[cpu]) <= self.now;
        }
        // What a look changes may make others look.
        for round in 0.. {
            assert!(round < 100, "the CPUs kick each other without end");
            let Some(cpu) = (0..self.cpus.len()).find(|&cpu| self.cpus[cpu].kicked) else { break };
            self.look(cpu);
        }
    }

    pub(super) fn run(&mut self, end: u64) {
        while self.now < end {
            self.step(end);
        }
        for cpu in 0..self.cpus.len() {
            self.charge(cpu);
        }
    }

    /// Whether a CPU idles that a task waits for which `counts`: asked after a step.
    pub(super) fn idles_while(&self, counts: impl Fn(&Task) -> bool) -> bool {
        let idle = |cpu: &usize| self.cpus[*cpu].running.is_none();
        (0..self.cpus.len()).filter(idle).any(|cpu| {
            self.tasks.iter().enumerate().any(|(index, task)| {
                task.runnable && task.allowed >> cpu & 1 != 0 && !self.is_running(index) && counts(task)
            })
        })
    }
}

/// Jain's index of fairness: 1 where all are equal, 1/n where one has everything.
pub(super) fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|x| x * x).sum();
    sum * sum / (shares.len() as f64 * squares)
}

const _: () = assert!(Key::NEVER.0 == u64::MAX);
