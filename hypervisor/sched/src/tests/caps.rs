//! Caps in the simulator, under both policies.

use super::simulator::{Behaviour, Random, Simulator};
use crate::{Cap, CapAccount, GroupId, Parameters, PolicyKind, Reservation, Settings};

const WINDOW: u64 = 100_000;
const QUANTUM: u64 = 10_000;
const WINDOWS: u64 = 200;

/// A domain of several vCPUs that may spin with a cap, against others without.
fn capped(kind: PolicyKind, seed: u64, one: Parameters) {
    let settings = Settings { quantum: QUANTUM, min_turn: 500, allowance: 1000, reservable: 1000 };
    let mut simulator = Simulator::new(kind, 1, &settings, 16, 2, seed);
    let mut random = Random::new(seed);
    let quota = random.within(1, WINDOW - 1);
    let offset = random.within(0, WINDOW);
    simulator.late = if random.one_in(2) { WINDOW / 50 } else { 0 };
    let cap = Cap { quota, window: WINDOW };
    let vcpus = random.within(1, 6);
    let account = CapAccount::new(cap, vcpus as u32, QUANTUM, 0).unwrap();
    simulator.queues[0].set_cap(GroupId(1), Some(account), 0).unwrap();
    for _ in 0..vcpus {
        simulator.add(1, one, Behaviour::Spins).unwrap();
    }
    let alone = random.one_in(2);
    if !alone {
        for _ in 0..random.within(1, 3) {
            let behaviour = if random.one_in(2) {
                Behaviour::Spins
            } else {
                Behaviour::Sleeps { run: WINDOW, sleep: WINDOW / 2 }
            };
            simulator.add(0, one, behaviour).unwrap();
        }
    }
    let end = WINDOWS * WINDOW + offset;
    while simulator.now < end {
        simulator.step(end);
        assert!(
            !simulator.idles_while(|task| task.group == GroupId(0)),
            "seed {seed}: the CPU idled while an uncapped task waited"
        );
    }
    simulator.run(end);
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
        capped(PolicyKind::Bvt, seed, Parameters::default());
    }
}

#[test]
fn caps_hold_under_sedf() {
    for seed in 0..400 {
        let reservation = Reservation { period: 20_000, slice: 1000, extra: true };
        capped(PolicyKind::Sedf, seed, Parameters::with_reservation(reservation));
    }
}
