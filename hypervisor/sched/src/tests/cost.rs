//! What a decision costs, in comparisons of keys: it grows with the logarithm of the number of entities.

use std::println;

use super::simulator::Random;
use crate::{Cap, CapAccount, CpuQueue, GroupId, Key, Parameters, PolicyKind, Pool, Reservation, Settings};

/// Mean and most of comparisons, of: charge and pick; block, wake and pick; a steal and the way back.
fn cost(kind: PolicyKind, n: usize, parameters: impl Fn(u32) -> Parameters) -> [(f64, u64); 3] {
    let settings = Settings { quantum: 1000, min_turn: 10, allowance: 100, reservable: 1000 };
    let pool = Pool::new(&[0, 1]);
    let queue = &mut CpuQueue::new(pool.clone(), 0, kind, &settings, n, n);
    let mut other = CpuQueue::new(pool, 1, kind, &settings, n, n);
    let count = CpuQueue::comparisons;
    let mut random = Random::new(n as u64);
    for domain in 0..n as u32 {
        let cap = Cap { quota: 50, window: 100_000 };
        let account = (domain % 10 == 0).then(|| CapAccount::new(cap, 1, 1000, 0).unwrap());
        queue.set_cap(GroupId(domain), account, 0).unwrap();
        let id = queue.add(GroupId(domain), parameters(domain), 0).unwrap();
        queue.wake(id, 0);
    }
    let mut now = 0;
    let mut results = [(0, 0); 3];
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
        let start = count(queue) + count(&other);
        if let Some((_, parcel)) = queue.steal(Key::NEVER, |_| true, now) {
            let id = other.put(parcel, now).unwrap();
            let parcel = other.take(id, now).unwrap();
            let _ = queue.put(parcel, now).unwrap();
        }
        let cost = count(queue) + count(&other) - start;
        results[2] = (results[2].0 + cost, results[2].1.max(cost));
    }
    results.map(|(sum, most)| (sum as f64 / f64::from(rounds), most))
}

#[test]
fn decisions_are_logarithmic() {
    for n in [10, 100, 1000, 10_000] {
        let bvt = cost(PolicyKind::Bvt, n, |domain| Parameters::with_weight(1 + domain % 7));
        let sedf = cost(PolicyKind::Sedf, n, |domain| {
            let period = 1_000_000 + u64::from(domain);
            // Every other one can be stolen.
            let slice = if domain % 2 == 0 { 50 } else { 0 };
            Parameters::with_reservation(Reservation { period, slice, extra: true })
        });
        let cells = bvt.iter().chain(&sedf).map(|(mean, most)| std::format!(" {mean:.1} ({most}) |"));
        println!("| {n} |{}", cells.collect::<std::string::String>());
        let log = f64::log2(n as f64);
        for (at, (mean, _)) in bvt.into_iter().chain(sedf).enumerate() {
            // A steal may pass over up to 32 that cannot be taken: reservations that wait for extra time.
            let passed = if at == 5 { 512.0 } else { 0.0 };
            assert!(mean <= 8.0 * log + passed, "{n} entities: {mean} comparisons");
        }
    }
}
