//! BVT in the simulator: fair by weight at every moment, whatever the others do.

use std::vec::Vec;

use super::simulator::{Behaviour, Simulator, jain};
use crate::{Parameters, PolicyKind, Settings};

const QUANTUM: u64 = 10_000;

const SETTINGS: Settings =
    Settings { quantum: QUANTUM, min_turn: 1, allowance: QUANTUM / 10, reservable: 1000 };

fn cpu(capacity: usize, seed: u64) -> Simulator {
    Simulator::new(PolicyKind::Bvt, 1, &SETTINGS, capacity, 1, seed)
}

/// A CPU of spinners of given weights.
fn spinners(weights: &[u32], seed: u64) -> Simulator {
    let mut simulator = cpu(weights.len(), seed);
    for &w in weights {
        simulator.add(0, Parameters::with_weight(w), Behaviour::Spins).unwrap();
    }
    simulator
}

/// Weights of one mix: all equal in half of the mixes.
fn some_weights(simulator: &mut super::simulator::Random, most: u64) -> Vec<u32> {
    let count = simulator.within(2, most);
    let equal = simulator.one_in(2);
    let heaviest = simulator.within(1, 1000);
    (0..count).map(|_| if equal { heaviest } else { simulator.within(1, heaviest) } as u32).collect()
}

/// Against the fluid ideal, in which everyone always has exactly the share of its weight.
#[test]
fn spinners_lag_by_at_most_a_quantum() {
    for seed in 0..2000 {
        let mut random = super::simulator::Random::new(seed);
        let weights = some_weights(&mut random, 24);
        let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
        let mut simulator = spinners(&weights, seed);
        for _ in 0..200 {
            simulator.step(u64::MAX);
            for (task, &w) in weights.iter().enumerate() {
                // Lag times the total weight, exactly; a tick more for turns that are cut to whole ticks.
                let ideal = i128::from(simulator.now) * i128::from(w);
                let lag = ideal - i128::from(simulator.served(task)) * i128::from(total);
                let bound = i128::from(QUANTUM + weights.len() as u64) * i128::from(total);
                assert!(lag.abs() <= bound, "seed {seed}: {weights:?}: lag {lag} of {bound}");
            }
        }
        assert_eq!(simulator.idle, 0);
    }
}

#[test]
fn shares_follow_the_weights() {
    for seed in 0..200 {
        let mut random = super::simulator::Random::new(seed);
        let weights = some_weights(&mut random, 12);
        let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
        let heaviest = u64::from(*weights.iter().max().unwrap());
        let mut simulator = spinners(&weights, seed);
        simulator.run(QUANTUM * total / heaviest * 100);
        let shares: Vec<f64> =
            simulator.tasks.iter().zip(&weights).map(|(t, &w)| t.served as f64 / f64::from(w)).collect();
        assert!(jain(&shares) >= 0.999, "seed {seed}: {weights:?}: {shares:?}");
    }
}

/// One mix of everything. `warps`: sleepers may warp.
fn mix(seed: u64, warps: bool) {
    let mut random = super::simulator::Random::new(seed);
    let weights = some_weights(&mut random, 16);
    let heaviest = u64::from(*weights.iter().max().unwrap());
    let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
    let mut simulator = cpu(weights.len(), seed);
    let mut longest_warp = 0;
    for (i, &w) in weights.iter().enumerate() {
        // At least one spins, by which the others are measured.
        let behaviour = match if i == 0 { 0 } else { random.within(0, 4) } {
            0 | 1 => Behaviour::Spins,
            2 => {
                Behaviour::Sleeps { run: random.within(1, 5 * QUANTUM), sleep: random.within(1, 5 * QUANTUM) }
            }
            3 => Behaviour::Sleeps { run: random.within(100, 1000), sleep: random.within(1000, 2 * QUANTUM) },
            _ => Behaviour::Reboots { every: random.within(1, 3 * QUANTUM), down: random.within(1, QUANTUM) },
        };
        let mut parameters = Parameters::with_weight(w);
        if warps && random.one_in(2) {
            parameters.warp = random.within(0, 5 * QUANTUM * 256 / heaviest);
            parameters.warp_limit = random.within(0, 2 * QUANTUM);
            parameters.warp_period = random.within(0, 20 * QUANTUM);
            longest_warp = longest_warp.max(parameters.warp);
        }
        simulator.add(0, parameters, behaviour).unwrap();
    }
    let rounds = if warps { 150 } else { 60 };
    let end = rounds * QUANTUM * total / heaviest;
    while simulator.now < end {
        simulator.step(end);
        assert!(!simulator.idles_while(|_| true), "seed {seed}: the CPU idled while a task waited");
    }
    simulator.run(end);
    // A turn in virtual time, and what can be borrowed; two ticks of the lightest for the cut to whole ticks.
    let one = |ticks: u64| u128::from(ticks) << 32;
    let lightest = u128::from(*weights.iter().min().unwrap());
    let warp = one(longest_warp) / 256;
    let turn = one(QUANTUM) / u128::from(heaviest) + one(2) / lightest;
    let normal = |t: usize| one(simulator.tasks[t].served) / u128::from(weights[t]);
    let least = (0..weights.len())
        .filter(|&t| matches!(simulator.tasks[t].behaviour, Behaviour::Spins))
        .map(normal)
        .min()
        .unwrap();
    let mut shares = Vec::new();
    for (t, task) in simulator.tasks.iter().enumerate() {
        // Nobody got more, by weight, than the spinner that got least, but for a turn and the warp.
        assert!(
            normal(t) <= least + turn + warp,
            "seed {seed}: {:?} of weight {} is ahead by {} of a turn",
            task.behaviour,
            weights[t],
            (normal(t) - least) as f64 / turn as f64
        );
        // Nobody waits for longer than it takes the others to get past it, from behind and from ahead.
        let wait = (2 * turn + 2 * warp) * u128::from(total);
        assert!(
            one(task.longest_wait) <= wait,
            "seed {seed}: {:?} of weight {} among {weights:?} waited {} of {}",
            task.behaviour,
            weights[t],
            task.longest_wait,
            wait >> 32
        );
        if matches!(task.behaviour, Behaviour::Spins) {
            shares.push(normal(t) as f64);
        }
    }
    assert!(jain(&shares) >= 0.999, "seed {seed}: {shares:?}");
}

#[test]
fn mixes_are_fair() {
    for seed in 0..1500 {
        mix(seed, false);
    }
}

#[test]
fn warps_borrow_and_do_not_gain() {
    for seed in 10_000..10_500 {
        mix(seed, true);
    }
}

/// A warped task that wakes gets the CPU at once from one that is ahead by less than the warp.
#[test]
fn warp_shortens_the_wait() {
    let wait = |warp: u64| {
        let mut simulator = cpu(9, 7);
        for _ in 0..8 {
            simulator.add(0, Parameters::default(), Behaviour::Spins).unwrap();
        }
        let parameters =
            Parameters { warp, warp_limit: QUANTUM, warp_period: QUANTUM, ..Parameters::default() };
        let sleeper = simulator.add(0, parameters, Behaviour::Sporadic { run: 500, every: 100_000 }).unwrap();
        simulator.run(3000 * QUANTUM);
        simulator.tasks[sleeper].longest_wait
    };
    assert!(wait(0) > QUANTUM / 2, "{}", wait(0));
    assert!(wait(3 * QUANTUM) <= 1, "{}", wait(3 * QUANTUM));
}
