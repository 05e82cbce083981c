//! SEDF in the simulator: every deadline is met at every load that is admitted.

use std::vec::Vec;

use super::simulator::{Behaviour, Random, Simulator, jain};
use crate::{Sedf, SedfParameters, SedfSettings};

const SETTINGS: SedfSettings = SedfSettings { reservable: 1000, quantum: 1000 };

/// Fills a CPU with random reservations up to exactly what it has.
fn booked_out(seed: u64) -> Simulator<Sedf> {
    let mut random = Random::new(seed);
    let mut simulator = Simulator::new(Sedf::new(40, SETTINGS), 40, 1, seed);
    let scale = random.within(1, 2000);
    let periods = [6, 10, 12, 15, 20, 30, 60].map(|p| p * scale);
    for _ in 0..random.within(1, 20) {
        let period = periods[random.within(0, 6) as usize];
        let slice = random.within(1, period / 2);
        let extra = random.one_in(3);
        let behaviour = match random.within(0, 3) {
            0 | 1 => Behaviour::Spins,
            2 => Behaviour::Sporadic { run: random.within(1, slice), every: period },
            _ => Behaviour::Sleeps { run: 2 * slice, sleep: 2 * period },
        };
        simulator.add(0, SedfParameters { period, slice, extra }, behaviour);
    }
    // The rest goes to one more, to the last tick of the longest period.
    for slice in (1..=60 * scale).rev() {
        let last = SedfParameters { period: 60 * scale, slice, extra: false };
        if simulator.add(0, last, Behaviour::Spins).is_some() {
            break;
        }
        if slice > 2000 && simulator.queue.policy().booked_ppm() > 990_000 {
            break;
        }
    }
    for _ in 0..random.within(0, 3) {
        let extra = SedfParameters { period: scale, slice: 0, extra: true };
        simulator.add(0, extra, Behaviour::Spins);
    }
    simulator
}

#[test]
fn deadlines_are_met_at_every_admitted_load() {
    let mut full = 0;
    for seed in 0..1000 {
        let mut simulator = booked_out(seed);
        full += u64::from(simulator.queue.policy().booked_ppm() >= 999_000);
        let parameters: Vec<SedfParameters> =
            simulator.tasks.iter().map(|task| simulator.queue.policy().parameters(task.id.index())).collect();
        let longest = parameters.iter().map(|p| p.period).max().unwrap();
        // Every period of every spinner ends at a check, for all begin at 0.
        let end = 8 * longest;
        let mut before: Vec<u64> = parameters.iter().map(|_| 0).collect();
        let mut due: Vec<u64> = parameters.iter().map(|p| p.period).collect();
        while simulator.now < end {
            let next = due.iter().copied().min().unwrap().min(end);
            while simulator.now < next {
                let (idle, extra) = (
                    simulator.idle,
                    simulator.tasks.iter().zip(&parameters).any(|(t, p)| t.runnable && p.extra),
                );
                simulator.step(next);
                assert!(simulator.idle == idle || !extra, "seed {seed}: idle while extra time was wanted");
            }
            for (i, p) in parameters.iter().enumerate() {
                if due[i] <= next {
                    due[i] += p.period;
                    let served = simulator.tasks[i].served - before[i];
                    before[i] = simulator.tasks[i].served;
                    if matches!(simulator.tasks[i].behaviour, Behaviour::Spins) {
                        assert!(served >= p.slice, "seed {seed}: {served} of {p:?} in a period");
                        assert!(p.extra || served == p.slice, "seed {seed}: {served} of {p:?}: too much");
                    }
                }
            }
        }
        for (task, p) in simulator.tasks.iter().zip(&parameters) {
            if matches!(task.behaviour, Behaviour::Sporadic { .. }) {
                assert!(task.worst_response <= p.period, "seed {seed}: {} of {p:?}", task.worst_response);
            }
        }
    }
    assert!(full >= 500, "only {full} mixes are booked out");
}

/// What reservations leave is shared out equally.
#[test]
fn extra_time_is_fair() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut simulator = Simulator::new(Sedf::new(20, SETTINGS), 20, 1, seed);
        let reserved = SedfParameters { period: 10_000, slice: random.within(1, 8000), extra: false };
        let spinner = simulator.add(0, reserved, Behaviour::Spins).unwrap();
        let takers = random.within(2, 12);
        for _ in 0..takers {
            let none = SedfParameters { period: 1000, slice: 0, extra: true };
            simulator.add(0, none, Behaviour::Spins).unwrap();
        }
        let sleeper = SedfParameters { period: 1000, slice: 0, extra: true };
        simulator.add(0, sleeper, Behaviour::Sleeps { run: 3000, sleep: 9000 }).unwrap();
        simulator.run(4_000_000);
        assert_eq!(simulator.idle, 0);
        assert_eq!(simulator.tasks[spinner].served, reserved.slice * 400);
        let extra: Vec<f64> = simulator.tasks[1..=takers as usize].iter().map(|t| t.served as f64).collect();
        assert!(jain(&extra) >= 0.999, "seed {seed}: {extra:?}");
        let (least, most) =
            (extra.iter().copied().fold(f64::MAX, f64::min), extra.iter().copied().fold(0.0, f64::max));
        assert!(most - least <= 1000.0, "seed {seed}: {extra:?}");
    }
}
