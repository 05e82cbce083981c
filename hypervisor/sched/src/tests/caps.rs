//! Caps in the simulator, under both policies.

use super::simulator::{Behaviour, Random, Simulator};
use crate::{Bvt, BvtParameters, BvtSettings, Cap, GroupId, Sedf, SedfParameters, SedfSettings};

const WINDOW: u64 = 100_000;
const WINDOWS: u64 = 200;

/// A domain of several vCPUs that may spin with a cap, against others without.
fn capped<P: crate::Policy>(mut simulator: Simulator<P>, seed: u64, one: impl Fn() -> P::Parameters) {
    let mut random = Random::new(seed);
    let quota = random.within(1, WINDOW - 1);
    let offset = random.within(0, WINDOW);
    simulator.late = if random.one_in(2) { WINDOW / 50 } else { 0 };
    let cap = Cap { quota, window: WINDOW };
    simulator.queue.set_cap(GroupId(1), Some(cap), 0).unwrap();
    let vcpus = random.within(1, 6);
    for _ in 0..vcpus {
        simulator.add(1, one(), Behaviour::Spins).unwrap();
    }
    let alone = random.one_in(2);
    if !alone {
        for _ in 0..random.within(1, 3) {
            let behaviour = if random.one_in(2) {
                Behaviour::Spins
            } else {
                Behaviour::Sleeps { run: WINDOW, sleep: WINDOW / 2 }
            };
            simulator.add(0, one(), behaviour).unwrap();
        }
    }
    let end = WINDOWS * WINDOW + offset;
    while simulator.now < end {
        let idle = simulator.idle;
        let uncapped = simulator.tasks.iter().any(|t| t.group == GroupId(0) && t.runnable);
        simulator.step(end);
        assert!(
            simulator.idle == idle || !uncapped,
            "seed {seed}: the CPU idled while an uncapped task waited"
        );
    }
    let used: u64 = simulator.tasks.iter().filter(|t| t.group == GroupId(1)).map(|t| t.served).sum();
    let allowed = (WINDOWS + 1) * quota + simulator.late;
    assert!(used <= allowed, "seed {seed}: used {used} of {allowed}");
    if alone {
        let due = WINDOWS * quota;
        // What a late timer took is paid back in later windows: the last one may be missing.
        assert!(used + quota.max(simulator.late) >= due - due / 100, "seed {seed}: used {used}, due {due}");
    }
}

#[test]
fn caps_hold_under_bvt() {
    for seed in 0..400 {
        let policy = Bvt::new(16, BvtSettings { quantum: 10_000, min_turn: 500, allowance: 1000 });
        capped(Simulator::new(policy, 16, 2, seed), seed, BvtParameters::default);
    }
}

#[test]
fn caps_hold_under_sedf() {
    for seed in 0..400 {
        let policy = Sedf::new(16, SedfSettings { reservable: 1000, quantum: 10_000 });
        let one = || SedfParameters { period: 20_000, slice: 1000, extra: true };
        capped(Simulator::new(policy, 16, 2, seed), seed, one);
    }
}
