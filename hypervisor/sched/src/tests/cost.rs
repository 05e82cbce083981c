//! What a decision costs, in comparisons of keys: it grows with the logarithm of the number of entities.

use std::println;

use super::simulator::Random;
use crate::{
    Bvt, BvtParameters, BvtSettings, Cap, GroupId, Policy, RunQueue, Sedf, SedfParameters, SedfSettings,
};

/// Mean and most of comparisons, of: charge and pick; block, wake and pick.
fn cost<P: Policy>(
    queue: &mut RunQueue<P>,
    n: usize,
    add: impl Fn(&mut RunQueue<P>, u32) -> crate::EntityId,
    count: impl Fn(&RunQueue<P>) -> u64,
) -> [(f64, u64); 2] {
    let mut random = Random::new(n as u64);
    for domain in 0..n as u32 {
        queue
            .set_cap(GroupId(domain), (domain % 10 == 0).then_some(Cap { quota: 50, window: 100_000 }), 0)
            .unwrap();
        let id = add(queue, domain);
        queue.wake(id, 0);
    }
    let mut now = 0;
    let mut results = [(0, 0); 2];
    let rounds = 20_000;
    for _ in 0..rounds {
        let start = count(queue);
        let decision = queue.pick(now);
        let cost = count(queue) - start;
        let Some(decision) = decision else {
            now = queue.next_deadline();
            continue;
        };
        let ran = random.within(1, 1000).min(decision.until - now);
        now += ran;
        let start = count(queue);
        queue.charge(decision.who, ran, now);
        let cost = cost + count(queue) - start;
        results[0] = (results[0].0 + cost, results[0].1.max(cost));
        let start = count(queue);
        queue.block(decision.who);
        queue.wake(decision.who, now);
        let cost = count(queue) - start;
        results[1] = (results[1].0 + cost, results[1].1.max(cost));
    }
    results.map(|(sum, most)| (sum as f64 / f64::from(rounds), most))
}

#[test]
fn decisions_are_logarithmic() {
    for n in [10, 100, 1000, 10_000] {
        let bvt = Bvt::new(n, BvtSettings { quantum: 1000, min_turn: 10, allowance: 100 });
        let mut queue = RunQueue::new(bvt, n, n);
        let add = |q: &mut RunQueue<Bvt>, d| {
            let weight = 1 + d % 7;
            q.add(GroupId(d), BvtParameters { weight, warp: 0, warp_limit: 0, warp_period: 0 }, 0).unwrap()
        };
        let bvt = cost(&mut queue, n, add, |q| q.policy().comparisons() + q.cap_comparisons());
        let sedf = Sedf::new(n, SedfSettings { reservable: 1000, quantum: 1000 });
        let mut queue = RunQueue::new(sedf, n, n);
        let add = |q: &mut RunQueue<Sedf>, d: u32| {
            let p = SedfParameters { period: 1_000_000 + u64::from(d), slice: 50, extra: true };
            q.add(GroupId(d), p, 0).unwrap()
        };
        let sedf = cost(&mut queue, n, add, |q| q.policy().comparisons() + q.cap_comparisons());
        println!("{n:6} entities: bvt {bvt:?} sedf {sedf:?}");
        let log = f64::log2(n as f64);
        for (mean, _) in bvt.into_iter().chain(sedf) {
            assert!(mean <= 8.0 * log, "{n} entities: {mean} comparisons");
        }
    }
}
