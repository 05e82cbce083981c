//! SEDF in the simulator: every deadline is met at every load that is admitted.

use std::vec::Vec;

use super::simulator::{Behaviour, Random, Simulator, jain};
use crate::{Parameters, PolicyKind, Reservation, Settings};

const SETTINGS: Settings = Settings { quantum: 1000, min_turn: 1, allowance: 100, reservable: 1000 };

fn cpu(capacity: usize, seed: u64) -> Simulator {
    Simulator::new(PolicyKind::Sedf, 1, &SETTINGS, capacity, 1, seed)
}

fn reserve(period: u64, slice: u64, extra: bool) -> Parameters {
    Parameters::with_reservation(Reservation { period, slice, extra })
}

/// Fills a CPU with random reservations up to exactly what it has.
fn booked_out(seed: u64) -> (Simulator, Vec<Reservation>) {
    let mut reserved = Vec::new();
    let mut random = Random::new(seed);
    let mut simulator = cpu(40, seed);
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
        if simulator.add(0, reserve(period, slice, extra), behaviour).is_some() {
            reserved.push(Reservation { period, slice, extra });
        }
    }
    // The rest goes to one more, to the last tick of the longest period.
    for slice in (1..=60 * scale).rev() {
        if simulator.add(0, reserve(60 * scale, slice, false), Behaviour::Spins).is_some() {
            reserved.push(Reservation { period: 60 * scale, slice, extra: false });
            break;
        }
        if slice > 2000 && simulator.queues[0].booked_ppm() > 990_000 {
            break;
        }
    }
    for _ in 0..random.within(0, 3) {
        simulator.add(0, Parameters::default(), Behaviour::Spins);
        reserved.push(Reservation::NONE);
    }
    (simulator, reserved)
}

#[test]
fn deadlines_are_met_at_every_admitted_load() {
    let mut full = 0;
    for seed in 0..1000 {
        let (mut simulator, parameters) = booked_out(seed);
        full += u64::from(simulator.queues[0].booked_ppm() >= 999_000);
        let longest = parameters.iter().map(|p| p.period).max().unwrap();
        // Every period of every spinner ends at a check, for all begin at 0.
        let end = 8 * longest;
        let mut before: Vec<u64> = parameters.iter().map(|_| 0).collect();
        let mut due: Vec<u64> = parameters.iter().map(|p| p.period).collect();
        while simulator.now < end {
            let next = due.iter().copied().min().unwrap().min(end);
            while simulator.now < next {
                simulator.step(next);
                let extra = |task: usize| simulator.tasks[task].runnable && parameters[task].extra;
                assert!(
                    !simulator.idles_while(|_| true) || !(0..parameters.len()).any(extra),
                    "seed {seed}: idle while extra time was wanted"
                );
            }
            for (i, p) in parameters.iter().enumerate() {
                if due[i] <= next {
                    due[i] += p.period;
                    let served = simulator.served(i) - before[i];
                    before[i] += served;
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
        let mut simulator = cpu(20, seed);
        let slice = random.within(1, 8000);
        let spinner = simulator.add(0, reserve(10_000, slice, false), Behaviour::Spins).unwrap();
        let takers = random.within(2, 12);
        for _ in 0..takers {
            simulator.add(0, Parameters::default(), Behaviour::Spins).unwrap();
        }
        simulator.add(0, Parameters::default(), Behaviour::Sleeps { run: 3000, sleep: 9000 }).unwrap();
        simulator.run(4_000_000);
        assert_eq!(simulator.idle, 0);
        assert_eq!(simulator.tasks[spinner].served, slice * 400);
        let extra: Vec<f64> = simulator.tasks[1..=takers as usize].iter().map(|t| t.served as f64).collect();
        assert!(jain(&extra) >= 0.999, "seed {seed}: {extra:?}");
        let (least, most) =
            (extra.iter().copied().fold(f64::MAX, f64::min), extra.iter().copied().fold(0.0, f64::max));
        assert!(most - least <= 1000.0, "seed {seed}: {extra:?}");
    }
}
