//! Several CPUs in the simulator: everyone gets the share of one large CPU, as far as it can run on one CPU at a time.

use std::println;
use std::vec::Vec;

use super::simulator::{ANY, Behaviour, Random, Simulator, jain};
use crate::{Cap, CapAccount, GroupId, Parameters, PolicyKind, Reservation, Settings};

const QUANTUM: u64 = 10_000;
const SETTINGS: Settings =
    Settings { quantum: QUANTUM, min_turn: QUANTUM / 10, allowance: QUANTUM / 10, reservable: 1000 };

fn cpus(count: usize, seed: u64) -> Simulator {
    Simulator::new(PolicyKind::Bvt, count, &SETTINGS, 64, 8, seed)
}

/// What each gets of a CPU that always wants one, by its weight: nobody more than one CPU.
fn ideal(weights: &[u32], cpus: usize) -> Vec<f64> {
    let mut shares = std::vec![0.0; weights.len()];
    let mut left = cpus as f64;
    let mut open: Vec<usize> = (0..weights.len()).collect();
    loop {
        let total: f64 = open.iter().map(|&i| f64::from(weights[i])).sum();
        let full: Vec<usize> =
            open.iter().copied().filter(|&i| f64::from(weights[i]) * left >= total).collect();
        if full.is_empty() || open.is_empty() {
            open.iter().for_each(|&i| shares[i] = f64::from(weights[i]) * left / total);
            return shares;
        }
        full.iter().for_each(|&i| shares[i] = 1.0);
        left -= full.len() as f64;
        open.retain(|i| !full.contains(i));
    }
}

/// Those that sleep and are alone wait in their places, as long as they are; a CPU on which one does so takes who waits.
#[test]
fn a_cpu_whose_one_waits_in_its_place_is_idle() {
    let mut simulator = cpus(2, 7);
    for _ in 0..3 {
        simulator
            .add(0, Parameters::default(), Behaviour::Sleeps { run: QUANTUM / 4, sleep: QUANTUM })
            .unwrap();
    }
    while simulator.now < 2000 * QUANTUM {
        simulator.step(2000 * QUANTUM);
        assert!(!simulator.idles_while(|_| true), "one waits for a CPU that idles");
    }
    assert!(simulator.resumed > 500, "{} went on in their places", simulator.resumed);
    assert!(simulator.tasks.iter().all(|task| task.served > 150 * QUANTUM));
}

/// The case from the literature: Xen 2.0's five took 1.55 times as long for the last as for the first.
#[test]
fn five_on_two_finish_together() {
    let work = 500 * QUANTUM;
    let mut simulator = cpus(2, 1);
    for _ in 0..5 {
        simulator.add(0, Parameters::default(), Behaviour::Finishes { work }).unwrap();
    }
    while simulator.tasks.iter().any(|task| task.finished == 0) {
        simulator.step(u64::MAX);
    }
    let ends: Vec<f64> = simulator.tasks.iter().map(|task| task.finished as f64).collect();
    let (least, most) =
        (ends.iter().copied().fold(f64::MAX, f64::min), ends.iter().copied().fold(0.0, f64::max));
    let mean = ends.iter().sum::<f64>() / 5.0;
    let moves: u64 = simulator.tasks.iter().map(|task| task.moves).sum();
    println!(
        "ends {ends:?}, spread {}, mean {} of ideal, {moves} moves",
        most / least,
        mean / (work as f64 * 2.5)
    );
    assert!(most / least <= 1.02);
    assert!((mean / (work as f64 * 2.5) - 1.0).abs() <= 0.01);
}

#[test]
fn weights_hold_on_any_number_of_cpus() {
    for weights in [&[1u32, 2, 4][..], &[1, 2, 4, 1, 2, 4], &[256; 5], &[100, 1, 1], &[3, 2, 2, 1, 1, 1]] {
        for count in 1..=4 {
            let mut simulator = cpus(count, 1);
            for &w in weights {
                simulator.add(0, Parameters::with_weight(w * 100), Behaviour::Spins).unwrap();
            }
            let end = 2000 * QUANTUM;
            simulator.run(end);
            let got: Vec<f64> = simulator.tasks.iter().map(|t| t.served as f64 / end as f64).collect();
            let moves: u64 = simulator.tasks.iter().map(|task| task.moves).sum();
            println!("{weights:?} on {count}: {got:.3?}, {moves} moves");
            for (got, ideal) in got.iter().zip(ideal(weights, count)) {
                assert!((got / ideal - 1.0).abs() <= 0.02, "{weights:?} on {count}: {got} of {ideal}");
            }
        }
    }
}

/// Against the fluid ideal, after every decision.
#[test]
fn spinners_lag_by_at_most_a_quantum_on_any_number_of_cpus() {
    let mut worst = 0.0f64;
    for seed in 0..600 {
        let mut random = Random::new(seed);
        let count = random.within(1, 8) as usize;
        let equal = random.one_in(2);
        let heaviest = random.within(1, 1000);
        let weights: Vec<u32> = (0..random.within(1, 24))
            .map(|_| if equal { heaviest } else { random.within(heaviest.div_ceil(8), heaviest) } as u32)
            .collect();
        let mut simulator = cpus(count, seed);
        for &w in &weights {
            simulator.add(0, Parameters::with_weight(w), Behaviour::Spins).unwrap();
        }
        let shares = ideal(&weights, count);
        for _ in 0..600 {
            if simulator.now >= 1000 * QUANTUM {
                break;
            }
            simulator.step(1000 * QUANTUM);
            for (task, share) in shares.iter().enumerate() {
                let lag = (simulator.now as f64 * share - simulator.served(task) as f64) / QUANTUM as f64;
                worst = worst.max(lag.abs());
            }
        }
        assert!(!simulator.idles_while(|_| true));
    }
    // Within a quantum, and a tick here and there.
    assert!(worst <= 1.01, "{worst}");
}

#[test]
fn mixes_are_fair_on_many_cpus() {
    for seed in 0..1000 {
        let mut random = Random::new(seed);
        let count = random.within(1, 8) as usize;
        let mut simulator = cpus(count, seed);
        let spinners = random.within(1, 20) as usize;
        for _ in 0..spinners {
            simulator.add(0, Parameters::default(), Behaviour::Spins).unwrap();
        }
        for _ in 0..random.within(0, 16) {
            let behaviour = match random.within(0, 3) {
                0 => Behaviour::Sleeps {
                    run: random.within(1, 5 * QUANTUM),
                    sleep: random.within(1, 5 * QUANTUM),
                },
                1 => Behaviour::Sleeps {
                    run: random.within(100, 1000),
                    sleep: random.within(1000, 2 * QUANTUM),
                },
                2 => Behaviour::Sporadic {
                    run: random.within(1, QUANTUM),
                    every: random.within(QUANTUM, 10 * QUANTUM),
                },
                _ => Behaviour::Reboots {
                    every: random.within(1, 3 * QUANTUM),
                    down: random.within(1, QUANTUM),
                },
            };
            simulator.add(0, Parameters::default(), behaviour).unwrap();
        }
        let end = 400 * QUANTUM;
        while simulator.now < end {
            simulator.step(end);
            assert!(!simulator.idles_while(|_| true), "seed {seed}: a CPU idled while a task waited");
        }
        simulator.run(end);
        let shares: Vec<f64> = simulator.tasks[..spinners].iter().map(|t| t.served as f64).collect();
        let fair = jain(&shares);
        let (least, most) =
            (shares.iter().copied().fold(f64::MAX, f64::min), shares.iter().copied().fold(0.0, f64::max));
        let apart = (most - least) / QUANTUM as f64;
        let ahead = simulator.tasks.iter().map(|task| task.served as f64).fold(0.0, f64::max) - least;
        // Where all CPUs are wanted all the time, spinners stay together. Where there are no more spinners than CPUs, only
        // those whose CPU a sleeper took have to be made up for, when their turn comes.
        let bound = if spinners > count { 1.5 } else { 8.0 };
        assert!(apart <= bound, "seed {seed}: {count} CPUs, {spinners} spinners {apart} quanta apart");
        assert!(ahead / QUANTUM as f64 <= bound, "seed {seed}: one is {ahead} ahead of a spinner");
        assert!(fair >= 0.999, "seed {seed}: {shares:?}");
        for task in &simulator.tasks {
            let rounds = 2 * simulator.tasks.len() as u64 * QUANTUM;
            assert!(
                task.longest_wait <= rounds,
                "seed {seed}: {:?} waited {}",
                task.behaviour,
                task.longest_wait
            );
        }
    }
}

/// Hard affinity is kept and nobody starves by it; soft affinity is followed where that costs nobody.
#[test]
fn affinity_binds_hard_and_soft() {
    let (mut liked, mut had) = (0, 0);
    for seed in 0..500 {
        let mut random = Random::new(seed);
        let count = random.within(2, 8) as usize;
        let mut simulator = cpus(count, seed);
        for _ in 0..random.within(1, 20) {
            let some = |random: &mut Random| random.within(1, (1 << count) - 1);
            let allowed = if random.one_in(2) { some(&mut random) } else { ANY };
            let preferred = match some(&mut random) & allowed {
                0 => ANY,
                _ if random.one_in(2) => ANY,
                preferred => preferred,
            };
            let behaviour = if random.one_in(2) {
                Behaviour::Spins
            } else {
                Behaviour::Sleeps {
                    run: random.within(100, 3 * QUANTUM),
                    sleep: random.within(100, 3 * QUANTUM),
                }
            };
            let parameters = Parameters::with_weight(random.within(64, 512) as u32);
            simulator.add_on(0, parameters, behaviour, allowed, preferred).unwrap();
        }
        let end = 300 * QUANTUM;
        while simulator.now < end {
            simulator.step(end);
            assert!(!simulator.idles_while(|_| true), "seed {seed}: a CPU idled while a task waited");
            for task in &simulator.tasks {
                assert!(task.allowed >> task.home & 1 != 0, "seed {seed}: a task is where it may not be");
            }
        }
        simulator.run(end);
        for (index, task) in simulator.tasks.iter().enumerate() {
            // The weights differ by up to 8, and a pinned one shares its CPU with all others at worst.
            let rounds = 20 * simulator.tasks.len() as u64 * QUANTUM;
            assert!(task.longest_wait <= rounds, "seed {seed}: {index} waited {}", task.longest_wait);
            if task.preferred != ANY {
                had += task.served;
                liked += task.served_preferred;
            }
        }
    }
    println!("{}% of the time on preferred CPUs", liked * 100 / had);
    assert!(liked * 100 / had >= 70);
}

/// Two that like the same CPU of two that are free: the one on the other moves when it can.
#[test]
fn a_preferred_cpu_is_gone_back_to() {
    let mut simulator = cpus(2, 3);
    for _ in 0..2 {
        let sleeps = Behaviour::Sleeps { run: QUANTUM, sleep: 3 * QUANTUM };
        simulator.add_on(0, Parameters::default(), sleeps, ANY, 1).unwrap();
    }
    simulator.run(4000 * QUANTUM);
    for task in &simulator.tasks {
        assert!(
            task.served_preferred * 100 >= task.served * 75,
            "{} of {}",
            task.served_preferred,
            task.served
        );
    }
}

/// A domain of several vCPUs on several CPUs has one cap, and gets it.
#[test]
fn caps_hold_over_all_cpus() {
    const WINDOW: u64 = 100_000;
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let count = random.within(1, 6) as usize;
        let kind = if random.one_in(2) { PolicyKind::Bvt } else { PolicyKind::Sedf };
        let mut simulator = Simulator::new(kind, count, &SETTINGS, 64, 8, seed);
        simulator.late = if random.one_in(2) { QUANTUM / 50 } else { 0 };
        let vcpus = random.within(1, 8);
        let most = vcpus.min(count as u64) * WINDOW;
        let quota = random.within(WINDOW / 20, most);
        let account = CapAccount::new(Cap { quota, window: WINDOW }, vcpus as u32, QUANTUM, 0).unwrap();
        for queue in &mut simulator.queues {
            queue.set_cap(GroupId(1), Some(account.clone()), 0).unwrap();
        }
        for _ in 0..vcpus {
            simulator.add(1, Parameters::default(), Behaviour::Spins).unwrap();
        }
        let alone = random.one_in(2);
        for _ in 0..if alone { 0 } else { random.within(1, 6) } {
            let sleeps = Behaviour::Sleeps { run: 2 * QUANTUM, sleep: 2 * QUANTUM };
            let behaviour = if random.one_in(2) { Behaviour::Spins } else { sleeps };
            simulator.add(0, Parameters::default(), behaviour).unwrap();
        }
        const WINDOWS: u64 = 100;
        let end = WINDOWS * WINDOW;
        while simulator.now < end {
            simulator.step(end);
            let waits = simulator.idles_while(|task| task.group == GroupId(0));
            assert!(!waits, "seed {seed}: a CPU idled while an uncapped task waited");
            let used: u64 = (0..vcpus as usize).map(|task| simulator.served(task)).sum();
            // The claims of all CPUs together never exceed the windows begun; each timer may be late.
            let begun = simulator.now / WINDOW + 1;
            let late = count as u64 * simulator.late;
            assert!(used <= begun * quota + late, "seed {seed}: {used} of {begun} windows of {quota}");
        }
        simulator.run(end);
        if alone {
            let used: u64 = simulator.tasks.iter().map(|task| task.served).sum();
            let due = WINDOWS * quota;
            assert!(
                used * 100 >= due * 99 - quota * 100,
                "seed {seed}: {used} of {due} used, {vcpus} on {count}"
            );
        }
    }
}

/// Reservations of many CPUs, placed by the admission test: each period of each has its slice, whatever the others do.
#[test]
fn deadlines_are_met_on_many_cpus() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let count = random.within(1, 8) as usize;
        let mut simulator = Simulator::new(PolicyKind::Sedf, count, &SETTINGS, 128, 8, seed);
        let mut reserved = Vec::new();
        for _ in 0..random.within(1, 40) {
            let period = QUANTUM * [1, 2, 3, 4, 6, 12][random.within(0, 5) as usize];
            let slice = random.within(1, period * 3 / 4);
            let extra = random.one_in(2);
            let parameters = Parameters::with_reservation(Reservation { period, slice, extra });
            if simulator.add(0, parameters, Behaviour::Spins).is_some() {
                reserved.push((period, slice));
            }
        }
        for _ in 0..random.within(0, 10) {
            let sleeps = Behaviour::Sleeps { run: 2 * QUANTUM, sleep: QUANTUM };
            let behaviour = if random.one_in(2) { Behaviour::Spins } else { sleeps };
            simulator.add(1, Parameters::default(), behaviour).unwrap();
        }
        let mut before = std::vec![0; reserved.len()];
        for tick in 1..=48 {
            let now = tick * QUANTUM;
            while simulator.now < now {
                simulator.step(now);
                let waits = simulator.idles_while(|task| task.group == GroupId(1));
                assert!(!waits, "seed {seed}: a CPU idled while extra time was wanted");
            }
            for (task, &(period, slice)) in reserved.iter().enumerate() {
                if now.is_multiple_of(period) {
                    let served = simulator.served(task);
                    assert!(
                        served - before[task] >= slice,
                        "seed {seed}: {} of {slice} in {period}",
                        served - before[task]
                    );
                    before[task] = served;
                    assert_eq!(simulator.tasks[task].moves, 0);
                }
            }
        }
    }
}

/// The policy changes again and again: nobody gains by it.
#[test]
fn policies_switch_while_everyone_runs() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let count = random.within(1, 4) as usize;
        let mut simulator = cpus(count, seed);
        let spinners = count + random.within(1, 6) as usize;
        for _ in 0..spinners {
            simulator.add(0, Parameters::default(), Behaviour::Spins).unwrap();
        }
        for _ in 0..40 {
            let kind = if random.one_in(2) { PolicyKind::Bvt } else { PolicyKind::Sedf };
            for queue in &mut simulator.queues {
                queue.switch_policy(kind, simulator.now).unwrap();
                assert_eq!(queue.policy(), kind);
            }
            let end = simulator.now + random.within(1, 20 * QUANTUM);
            while simulator.now < end {
                simulator.step(end);
                assert!(!simulator.idles_while(|_| true));
            }
        }
        let end = simulator.now + 1;
        simulator.run(end);
        let shares: Vec<u64> = simulator.tasks.iter().map(|task| task.served).collect();
        let apart = shares.iter().max().unwrap() - shares.iter().min().unwrap();
        assert!(apart <= 2 * QUANTUM, "seed {seed}: {shares:?}");
    }
}
