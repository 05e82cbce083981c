//! The operations one by one, and at random.

use proptest::prelude::*;

use crate::{
    AddError, Bvt, BvtParameters, BvtSettings, Cap, Decision, EntityId, GroupId, MAX_PERIOD, NEVER,
    ParameterError, Policy, RunQueue, Sedf, SedfParameters, SedfSettings,
};

const BVT: BvtSettings = BvtSettings { quantum: 1000, min_turn: 100, allowance: 100 };
const SEDF: SedfSettings = SedfSettings { reservable: 1000, quantum: 1000 };

fn bvt(capacity: usize) -> RunQueue<Bvt> {
    RunQueue::new(Bvt::new(capacity, BVT), capacity, 2)
}

fn sedf(capacity: usize) -> RunQueue<Sedf> {
    RunQueue::new(Sedf::new(capacity, SEDF), capacity, 2)
}

fn woken<P: Policy>(queue: &mut RunQueue<P>, parameters: P::Parameters, now: u64) -> EntityId {
    let id = queue.add(GroupId(0), parameters, now).unwrap();
    queue.wake(id, now);
    id
}

#[test]
fn a_lone_entity_is_not_interrupted() {
    let mut queue = bvt(2);
    assert_eq!(queue.pick(0), None);
    assert_eq!(queue.next_deadline(), NEVER);
    let id = woken(&mut queue, BvtParameters::default(), 5);
    assert_eq!(queue.pick(5), Some(Decision { who: id, until: NEVER }));
    queue.charge(id, 1_000_000, 1_000_005);
    assert_eq!(queue.pick(1_000_005), Some(Decision { who: id, until: NEVER }));
    // One that comes late starts level with it, and gets its turn at once, for that of the other is long over.
    let late = woken(&mut queue, BvtParameters::default(), 1_000_005);
    assert!(!queue.should_preempt(id, late, 1_000_005));
    assert_eq!(queue.pick(1_000_005).map(|d| (d.until, d.who != id)), Some((1_001_005, true)));
}

#[test]
fn a_turn_lasts_whatever_asks_meanwhile() {
    let mut queue = bvt(2);
    let a = woken(&mut queue, BvtParameters::default(), 0);
    let _ = woken(&mut queue, BvtParameters::default(), 0);
    assert_eq!(queue.pick(0), Some(Decision { who: a, until: 1000 }));
    queue.charge(a, 90, 90);
    assert_eq!(queue.pick(90), Some(Decision { who: a, until: 1000 }));
    queue.give_way(a);
    assert!(queue.pick(90).is_some_and(|d| d.who != a));
}

#[test]
fn giving_way_lets_everyone_else_go_first() {
    let mut queue = bvt(3);
    let ids = [0; 3].map(|_| woken(&mut queue, BvtParameters::default(), 0));
    let mut order = std::vec![];
    for now in 0..6 {
        let who = queue.pick(now).unwrap().who;
        order.push(who);
        queue.give_way(who);
    }
    assert_eq!(order, [ids, ids].concat());
}

#[test]
fn a_full_queue_says_so_and_places_come_back() {
    let mut queue = bvt(1);
    let id = woken(&mut queue, BvtParameters::default(), 0);
    assert_eq!(queue.add(GroupId(0), BvtParameters::default(), 0), Err(AddError::Full));
    assert_eq!(
        queue.add(GroupId(2), BvtParameters::default(), 0),
        Err(AddError::Parameters(ParameterError::Unknown))
    );
    queue.remove(id);
    queue.remove(id);
    assert_eq!(queue.pick(0), None);
    assert!(queue.add(GroupId(0), BvtParameters::default(), 0).is_ok());
    let none = BvtParameters { weight: 0, ..BvtParameters::default() };
    assert_eq!(queue.set(id, none, 0), Err(ParameterError::Weight));
}

#[test]
fn weights_change_while_they_run() {
    let mut queue = bvt(2);
    let ids = [0; 2].map(|_| woken(&mut queue, BvtParameters::default(), 0));
    let mut now = 0;
    for (weight, share) in [(256, 500_000), (768, 750_000), (64, 200_000)] {
        queue.set(ids[0], BvtParameters { weight, ..BvtParameters::default() }, now).unwrap();
        let (start, mut used) = (now, 0u64);
        while now < start + 1_000_000 {
            let decision = queue.pick(now).unwrap();
            let ran = decision.until - now;
            now = decision.until;
            queue.charge(decision.who, ran, now);
            used += if decision.who == ids[0] { ran } else { 0 };
        }
        assert!(used.abs_diff(share) <= 2000, "{weight}: {used}");
    }
}

/// However odd the pieces and the weight are: nothing is lost, over a hundred years at 5 GHz.
#[test]
fn virtual_time_does_not_drift() {
    for weight in [1, 3, 7, 255, 1_000_003, u32::MAX] {
        let mut policy = Bvt::new(1, BVT);
        policy.add(0, BvtParameters { weight, ..BvtParameters::default() }, 0).unwrap();
        let mut total = 0u64;
        for piece in 1..20_000u64 {
            policy.charge(0, piece * 7919, 0);
            total += piece * 7919;
        }
        policy.charge(0, 15_768_000_000_000_000_000, 0);
        total += 15_768_000_000_000_000_000 - total;
        let exact = ((u128::from(total) + (1..20_000u128).map(|p| p * 7919).sum::<u128>()) << 32)
            / u128::from(weight);
        assert_eq!(policy.virtual_time(0), exact);
    }
}

#[test]
fn admission_is_exact() {
    let mut queue = sedf(20_000);
    let third = SedfParameters { period: 3, slice: 1, extra: false };
    for _ in 0..3 {
        woken(&mut queue, third, 0);
    }
    let least = SedfParameters { period: MAX_PERIOD, slice: 1, extra: false };
    assert_eq!(queue.add(GroupId(0), least, 0), Err(AddError::Parameters(ParameterError::Overbooked)));
    let mut queue = sedf(20_000);
    for _ in 0..9_973 {
        woken(&mut queue, SedfParameters { period: 9_973, slice: 1, extra: false }, 0);
    }
    assert_eq!(queue.add(GroupId(0), least, 0), Err(AddError::Parameters(ParameterError::Overbooked)));
    for (period, slice, extra, error) in [
        (0, 0, true, ParameterError::Period),
        (MAX_PERIOD + 1, 1, true, ParameterError::Period),
        (5, 6, true, ParameterError::Slice),
        (5, 0, false, ParameterError::Slice),
    ] {
        let parameters = SedfParameters { period, slice, extra };
        assert_eq!(queue.add(GroupId(0), parameters, 0), Err(AddError::Parameters(error)));
    }
    assert!(queue.add(GroupId(0), SedfParameters { period: 1, slice: 0, extra: true }, 0).is_ok());
}

/// What has been used ahead is not sold twice.
#[test]
fn a_booking_ends_with_its_period() {
    let mut queue = sedf(3);
    let half = SedfParameters { period: 1000, slice: 500, extra: false };
    let a = woken(&mut queue, half, 0);
    let _ = woken(&mut queue, half, 0);
    assert_eq!(queue.pick(0), Some(Decision { who: a, until: 500 }));
    queue.charge(a, 500, 500);
    queue.remove(a);
    let other = SedfParameters { period: 100, slice: 50, extra: false };
    let _ = queue.pick(500);
    // In the same place it may be booked again, but it starts when the period of the old one has ended.
    let again = woken(&mut queue, other, 500);
    assert_eq!(queue.add(GroupId(0), other, 500), Err(AddError::Parameters(ParameterError::Overbooked)));
    let decision = queue.pick(500).unwrap();
    assert!(decision.who != again && decision.until == 1000);
    queue.charge(decision.who, 500, 1000);
    let decision = queue.pick(1000).unwrap();
    assert_eq!((decision.who, decision.until), (again, 1050));
}

#[test]
fn parked_entities_can_block_and_leave() {
    let mut queue = bvt(5);
    let cap = Cap { quota: 10, window: 100 };
    queue.set_cap(GroupId(1), Some(cap), 0).unwrap();
    let ids = [0; 4].map(|_| {
        let id = queue.add(GroupId(1), BvtParameters::default(), 0).unwrap();
        queue.wake(id, 0);
        id
    });
    let decision = queue.pick(0).unwrap();
    assert_eq!(decision.until, 10);
    queue.charge(decision.who, 10, 10);
    assert_eq!(queue.pick(10), None);
    assert_eq!(queue.next_deadline(), 100);
    queue.block(ids[1]);
    queue.remove(ids[0]);
    queue.block(ids[3]);
    assert_eq!(queue.pick(100).map(|d| d.who), Some(ids[2]));
    queue.charge(ids[2], 10, 110);
    assert_eq!(queue.pick(110), None);
    queue.set_cap(GroupId(1), None, 120).unwrap();
    assert_eq!(queue.pick(120), Some(Decision { who: ids[2], until: NEVER }));
    assert_eq!(queue.set_cap(GroupId(1), Some(Cap { quota: 0, window: 5 }), 0), Err(ParameterError::Cap));
    assert_eq!(queue.set_cap(GroupId(9), None, 0), Err(ParameterError::Unknown));
}

/// One operation: which, on whom, and a number for it.
type Step = (u8, usize, u64);

fn anything<P: Policy>(mut queue: RunQueue<P>, steps: &[Step], parameters: impl Fn(u64) -> P::Parameters) {
    let mut ids: std::vec::Vec<EntityId> = std::vec![];
    let mut now = 0u64;
    let mut running: Option<EntityId> = None;
    for &(what, who, number) in steps {
        let id = ids.get(who % ids.len().max(1)).copied();
        match (what, id) {
            (0, _) => ids.extend(queue.add(GroupId(number as u32 % 3), parameters(number), now).ok()),
            (1, Some(id)) => queue.wake(id, now),
            (2, Some(id)) => queue.block(id),
            (3, Some(id)) => queue.charge(id, number, now),
            (4, Some(id)) => queue.remove(id),
            (5, Some(id)) => queue.give_way(id),
            (6, Some(id)) => queue.restart(id, now),
            (7, Some(id)) => drop(queue.set(id, parameters(number), now)),
            (8, _) => {
                let cap = Cap { quota: number % 5000, window: number % 70_000 };
                let _ = queue.set_cap(GroupId(number as u32 % 3), (number % 3 != 0).then_some(cap), now);
            }
            (9, Some(id)) => drop(running.map(|r| queue.should_preempt(r, id, now))),
            _ => now = now.saturating_add(number),
        }
        let decision = queue.pick(now);
        if now < NEVER {
            assert!(decision.is_none_or(|d| d.until > now));
            assert!(queue.next_deadline() > now);
        }
        running = decision.map(|d| d.who);
    }
}

/// Small numbers, and the largest.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..100, 0u64..100_000, any::<u64>(), Just(u64::MAX), Just(i64::MAX as u64)]
}

proptest! {
    #[test]
    fn nothing_panics(steps in proptest::collection::vec((0u8..12, 0usize..8, number()), 1..200)) {
        anything(bvt(6), &steps, |n| BvtParameters {
            weight: n as u32,
            warp: n.rotate_left(7),
            warp_limit: n.rotate_left(13),
            warp_period: n >> 3,
        });
        anything(sedf(6), &steps, |n| SedfParameters {
            period: (n % 50_000) | (n & MAX_PERIOD),
            slice: n % 9_000,
            extra: n % 2 == 0,
        });
    }
}
