//! The operations one by one, and at random.

use proptest::prelude::*;

use crate::bvt::Bvt;
use crate::pool::Join;
use crate::{
    AddError, Cap, CapAccount, CpuQueue, Decision, EntityId, GroupId, Key, MAX_PERIOD, NEVER, ParameterError,
    Parameters, PolicyKind, Pool, Reservation, Settings,
};

const SETTINGS: Settings = Settings { quantum: 1000, min_turn: 100, allowance: 100, reservable: 1000 };

fn queue(kind: PolicyKind, capacity: usize) -> CpuQueue {
    CpuQueue::new(Pool::new(&[0]), 0, kind, &SETTINGS, capacity, 2)
}

fn bvt(capacity: usize) -> CpuQueue {
    queue(PolicyKind::Bvt, capacity)
}

fn sedf(capacity: usize) -> CpuQueue {
    queue(PolicyKind::Sedf, capacity)
}

fn reserve(period: u64, slice: u64, extra: bool) -> Parameters {
    Parameters::with_reservation(Reservation { period, slice, extra })
}

fn woken(queue: &mut CpuQueue, parameters: Parameters, now: u64) -> EntityId {
    let id = queue.add(GroupId(0), parameters, now).unwrap();
    queue.wake(id, now);
    id
}

#[test]
fn a_lone_entity_is_not_interrupted() {
    let mut queue = bvt(2);
    assert_eq!(queue.pick(0), None);
    assert_eq!(queue.next_deadline(), NEVER);
    let id = woken(&mut queue, Parameters::default(), 5);
    assert_eq!(queue.pick(5), Some(Decision { who: id, until: NEVER }));
    queue.charge(id, 1_000_000, 1_000_005);
    assert_eq!(queue.pick(1_000_005), Some(Decision { who: id, until: NEVER }));
    // One that comes late starts level with it, and gets its turn at once, for that of the other is long over.
    let late = woken(&mut queue, Parameters::default(), 1_000_005);
    assert!(queue.should_preempt(id, late, 1_000_005));
    assert_eq!(queue.pick(1_000_005).map(|d| (d.until, d.who != id)), Some((1_001_005, true)));
}

#[test]
fn a_turn_lasts_whatever_asks_meanwhile() {
    let mut queue = bvt(2);
    let a = woken(&mut queue, Parameters::default(), 0);
    let _ = woken(&mut queue, Parameters::default(), 0);
    assert_eq!(queue.pick(0), Some(Decision { who: a, until: 1000 }));
    queue.charge(a, 90, 90);
    assert_eq!(queue.pick(90), Some(Decision { who: a, until: 1000 }));
    queue.give_way(a);
    assert!(queue.pick(90).is_some_and(|d| d.who != a));
}

#[test]
fn giving_way_lets_everyone_else_go_first() {
    let mut queue = bvt(3);
    let ids = [0; 3].map(|_| woken(&mut queue, Parameters::default(), 0));
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
    let id = woken(&mut queue, Parameters::default(), 0);
    assert_eq!(queue.add(GroupId(0), Parameters::default(), 0), Err(AddError::Full));
    assert_eq!(
        queue.add(GroupId(2), Parameters::default(), 0),
        Err(AddError::Parameters(ParameterError::Unknown))
    );
    queue.remove(id);
    queue.remove(id);
    assert_eq!(queue.pick(0), None);
    assert!(queue.add(GroupId(0), Parameters::default(), 0).is_ok());
    let none = Parameters::with_weight(0);
    assert_eq!(queue.set(id, none, 0), Err(ParameterError::Weight));
}

/// A queue that grows with each entity decides as one that had the room from the start, whoever runs, is capped or has a
/// reservation meanwhile.
#[test]
fn a_queue_that_grows_is_like_one_that_was_made_so() {
    for kind in [PolicyKind::Bvt, PolicyKind::Sedf] {
        let new = |capacity, groups| CpuQueue::new(Pool::new(&[0]), 0, kind, &SETTINGS, capacity, groups);
        let (mut large, mut growing) = (new(40, 40), new(0, 0));
        assert_eq!(
            growing.add(GroupId(0), Parameters::default(), 0),
            Err(AddError::Parameters(ParameterError::Unknown))
        );
        let mut now = 0;
        // The same entity may have another number.
        let mut ids = [std::vec![], std::vec![]];
        for index in 0..40u32 {
            let place = index as usize + 1;
            growing.grow(place, place);
            // To less it does not change.
            growing.grow(place / 2, place / 2);
            let group = GroupId(index);
            let parameters = match index % 3 {
                0 => reserve(1000, 20, true),
                part => Parameters::with_weight(256 * part),
            };
            for (queue, ids) in [&mut large, &mut growing].into_iter().zip(&mut ids) {
                let id = queue.add(group, parameters, now).unwrap();
                if index % 4 == 1 {
                    let account = CapAccount::new(Cap { quota: 300, window: 2000 }, 1, 1000, 0).unwrap();
                    queue.set_cap(group, Some(account), now).unwrap();
                }
                queue.wake(id, now);
                if index % 7 == 6 {
                    queue.remove(id);
                }
                ids.push(id);
            }
            for _ in 0..20 {
                let [left, right] = [&mut large, &mut growing].map(|queue| queue.pick(now));
                assert_eq!(left.map(|d| d.until), right.map(|d| d.until), "{kind:?}, {index}, {now}");
                let (Some(left), Some(right)) = (left, right) else { break };
                let last = |ids: &[EntityId], who| ids.iter().rposition(|id| *id == who);
                assert_eq!(last(&ids[0], left.who), last(&ids[1], right.who), "{kind:?}, {index}, {now}");
                let ran = (left.until - now).min(777);
                now += ran;
                large.charge(left.who, ran, now);
                growing.charge(right.who, ran, now);
            }
        }
    }
}

#[test]
fn weights_change_while_they_run() {
    let mut queue = bvt(2);
    let ids = [0; 2].map(|_| woken(&mut queue, Parameters::default(), 0));
    let mut now = 0;
    for (weight, share) in [(256, 500_000), (768, 750_000), (64, 200_000)] {
        queue.set(ids[0], Parameters::with_weight(weight), now).unwrap();
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
        let mut policy = Bvt::new(1, &SETTINGS);
        let pool = Pool::new(&[0]);
        policy.add(0, &Parameters::with_weight(weight), Join { pool: &pool, cpu: 0 });
        let mut total = 0u64;
        for piece in 1..20_000u64 {
            policy.charge(0, piece * 7919, piece * 7919);
            total += piece * 7919;
        }
        policy.charge(0, 15_768_000_000_000_000_000, 15_768_000_000_000_000_000);
        total += 15_768_000_000_000_000_000 - total;
        let exact = ((u128::from(total) + (1..20_000u128).map(|p| p * 7919).sum::<u128>()) << 32)
            / u128::from(weight);
        assert_eq!(policy.virtual_time(0), exact);
    }
}

#[test]
fn admission_is_exact() {
    let mut queue = sedf(20_000);
    let third = reserve(3, 1, false);
    for _ in 0..3 {
        woken(&mut queue, third, 0);
    }
    let least = reserve(MAX_PERIOD, 1, false);
    assert_eq!(queue.add(GroupId(0), least, 0), Err(AddError::Parameters(ParameterError::Overbooked)));
    let mut queue = sedf(20_000);
    for _ in 0..9_973 {
        woken(&mut queue, reserve(9_973, 1, false), 0);
    }
    assert_eq!(queue.add(GroupId(0), least, 0), Err(AddError::Parameters(ParameterError::Overbooked)));
    for (period, slice, extra, error) in [
        (0, 0, true, ParameterError::Period),
        (MAX_PERIOD + 1, 1, true, ParameterError::Period),
        (5, 6, true, ParameterError::Slice),
        (5, 0, false, ParameterError::Slice),
    ] {
        let parameters = reserve(period, slice, extra);
        assert_eq!(queue.add(GroupId(0), parameters, 0), Err(AddError::Parameters(error)));
    }
    assert!(queue.add(GroupId(0), reserve(1, 0, true), 0).is_ok());
}

/// What has been used ahead is not sold twice.
#[test]
fn a_booking_ends_with_its_period() {
    let mut queue = sedf(3);
    let half = reserve(1000, 500, false);
    let a = woken(&mut queue, half, 0);
    let _ = woken(&mut queue, half, 0);
    assert_eq!(queue.pick(0), Some(Decision { who: a, until: 500 }));
    queue.charge(a, 500, 500);
    queue.remove(a);
    let other = reserve(100, 50, false);
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

/// Two guests reboot within their periods and come back in the other order, each into the other's place.
#[test]
fn who_comes_back_is_not_turned_down_for_what_it_left() {
    let mut queue = sedf(2);
    let (small, large) = (reserve(1000, 300, false), reserve(1000, 600, false));
    let ids = [woken(&mut queue, small, 0), woken(&mut queue, large, 0)];
    for (id, from, to) in [(ids[0], 0, 300), (ids[1], 300, 900)] {
        assert_eq!(queue.pick(from), Some(Decision { who: id, until: to }));
        queue.charge(id, to - from, to);
    }
    ids.into_iter().for_each(|id| queue.remove(id));
    let [small_again, large_again] = [small, large].map(|parameters| woken(&mut queue, parameters, 910));
    assert_eq!([small_again, large_again], [ids[1], ids[0]]);
    // Both have had what this period has for them.
    assert_eq!(queue.pick(910), None);
    assert_eq!(queue.next_deadline(), 1000);
    assert_eq!(queue.pick(1000), Some(Decision { who: small_again, until: 1300 }));
    queue.charge(small_again, 300, 1300);
    assert_eq!(queue.pick(1300), Some(Decision { who: large_again, until: 1900 }));
    // One that sleeps keeps nothing from the other beyond its period: here is room at once.
    queue.charge(large_again, 600, 1900);
    queue.block(small_again);
    queue.remove(large_again);
    let large_again = woken(&mut queue, large, 2500);
    assert_eq!(queue.pick(2500), Some(Decision { who: large_again, until: 3100 }));
}

/// What a place keeps of one that has left does not follow the one that sleeps in it.
#[test]
fn a_sleeper_in_another_s_place_keeps_nobody_out() {
    let mut queue = sedf(2);
    let (small, large) = (reserve(1000, 300, false), reserve(1000, 600, false));
    let ids = [woken(&mut queue, small, 0), woken(&mut queue, large, 0)];
    ids.into_iter().for_each(|id| queue.remove(id));
    let sleeper = woken(&mut queue, small, 10);
    assert_eq!((sleeper, queue.pick(10)), (ids[1], None));
    queue.block(sleeper);
    let waits = woken(&mut queue, large, 20);
    assert_eq!((waits, queue.pick(20), queue.next_deadline()), (ids[0], None, 1000));
    queue.remove(waits);
    let runs = woken(&mut queue, large, 1500);
    assert_eq!(queue.pick(1500), Some(Decision { who: runs, until: 2100 }));
}

/// A policy with reservations may come into force while one that has one is on its way.
#[test]
fn one_that_finds_no_room_for_its_reservation_arrives_without() {
    let pool = Pool::new(&[0, 1]);
    let queue = |cpu| CpuQueue::new(pool.clone(), cpu, PolicyKind::Bvt, &SETTINGS, 2, 2);
    let (mut from, mut to) = (queue(0), queue(1));
    let large = reserve(1000, 600, false);
    let moves = woken(&mut from, large, 0);
    let stays = woken(&mut to, large, 0);
    let parcel = from.take(moves, 0).unwrap();
    for queue in [&mut from, &mut to] {
        queue.switch_policy(PolicyKind::Sedf, 0).unwrap();
    }
    assert_eq!(to.put(parcel, 0), Err(AddError::Parameters(ParameterError::Overbooked)));
    let moved = to.put(parcel.without_reservation(), 0).unwrap();
    assert_eq!(to.pick(0), Some(Decision { who: stays, until: 600 }));
    to.charge(stays, 600, 600);
    assert_eq!(to.pick(600), Some(Decision { who: moved, until: 1000 }), "it has what is left");
}

/// One that runs without an end is told of others no more often than every so many ticks, whoever asks and however often.
#[test]
fn a_lone_cpu_is_told_now_and_then() {
    let pool = Pool::new(&[0, 1, 2]);
    let mut lone = CpuQueue::new(pool.clone(), 1, PolicyKind::Bvt, &SETTINGS, 1, 1);
    assert_eq!(pool.tell_lone(0, 100, 5), None, "nobody runs");
    let id = woken(&mut lone, Parameters::default(), 5);
    assert_eq!(lone.pick(5), Some(Decision { who: id, until: NEVER }));
    let told = |me, now| pool.tell_lone(me, 100, now);
    assert_eq!((told(0, 500), told(0, 501), told(2, 599)), (Some(1), None, None));
    assert_eq!((told(1, 600), told(2, 600), told(0, 699)), (None, Some(1), None));
    // One CPU's clock may be a little behind another's.
    assert_eq!((told(0, 599), told(0, 700)), (None, Some(1)));
}

#[test]
fn parked_entities_can_block_and_leave() {
    let mut queue = bvt(5);
    let cap = Cap { quota: 10, window: 100 };
    let account = CapAccount::new(cap, 4, 1000, 0).unwrap();
    queue.set_cap(GroupId(1), Some(account), 0).unwrap();
    let ids = [0; 4].map(|_| {
        let id = queue.add(GroupId(1), Parameters::default(), 0).unwrap();
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
    let none = CapAccount::new(Cap { quota: 0, window: 5 }, 1, 1, 0);
    assert_eq!(none.map(|_| ()), Err(ParameterError::Cap));
    assert_eq!(queue.set_cap(GroupId(9), None, 0), Err(ParameterError::Unknown));
}

#[test]
fn one_that_is_alone_waits_in_its_place() {
    let pool = Pool::new(&[0, 1]);
    let mut queues = [0, 1].map(|cpu| CpuQueue::new(pool.clone(), cpu, PolicyKind::Bvt, &SETTINGS, 6, 2));
    let [here, there] = &mut queues;
    let id = woken(here, Parameters::default(), 0);
    assert!(!here.rest(), "it has not been picked");
    assert_eq!(here.pick(0), Some(Decision { who: id, until: NEVER }));
    here.charge(id, 50, 50);
    assert!(here.rest());
    assert_eq!((here.current(), here.waiting(), pool.tell_lone(1, 100, 1000)), (Some(id), None, None));
    // Nobody is told that it runs, and whoever comes looks at the CPU.
    let late = woken(here, Parameters::default(), 5000);
    assert!(here.should_preempt(id, late, 5500));
    here.remove(late);
    assert!(!here.resume(6000), "somebody waited meanwhile");
    here.block(id);
    here.wake(id, 6000);
    assert_eq!(here.pick(6000), Some(Decision { who: id, until: NEVER }));
    assert!(here.rest() && here.resume(9000) && !here.resume(9000));
    assert_eq!(pool.tell_lone(1, 100, 9000), Some(0), "it is shown as one that runs");
    // What it waited is not what it used: one that comes gets no more than a turn more.
    let other = woken(here, Parameters::default(), 9000);
    here.charge(id, 0, 9000);
    assert_eq!(here.pick(9000).map(|d| d.until), Some(10_000));
    here.remove(other);
    assert_eq!(here.pick(9000), Some(Decision { who: id, until: NEVER }));
    // Where somebody waits elsewhere, or has waited, it counts who is first.
    let [a, _] = [0; 2].map(|_| woken(there, Parameters::default(), 9000));
    assert!(there.pick(9000).is_some() && !here.rest());
    there.block(a);
    assert!(there.pick(9000).is_some() && here.rest());
    there.wake(a, 9100);
    there.block(a);
    assert!(here.resume(9200), "no time has passed in which somebody waited");
    assert!(here.pick(9200).is_some() && here.rest());
    there.wake(a, 9300);
    let _ = there.pick(9400);
    there.charge(a, 100, 9400);
    there.block(a);
    assert!(!here.resume(9500));
}

/// Nobody else would find out when its window ends.
#[test]
fn one_whose_group_is_spent_is_looked_at_beside_one_without_an_end() {
    for rests in [false, true] {
        let mut queue = bvt(2);
        let account = CapAccount::new(Cap { quota: 10, window: 100 }, 1, 1, 0).unwrap();
        queue.set_cap(GroupId(1), Some(account), 0).unwrap();
        let limited = queue.add(GroupId(1), Parameters::default(), 0).unwrap();
        let id = woken(&mut queue, Parameters::default(), 0);
        assert_eq!(queue.pick(0), Some(Decision { who: id, until: NEVER }));
        queue.charge(limited, 50, 50);
        assert!(!rests || queue.rest());
        queue.wake(limited, 60);
        assert!(queue.should_preempt(id, limited, 60));
        assert!(!rests || !queue.resume(60));
        queue.block(id);
        assert_eq!((queue.pick(60), queue.next_deadline()), (None, 500));
    }
}

#[test]
fn what_has_a_limit_or_a_reservation_does_not_wait_in_its_place() {
    let mut capped = bvt(1);
    let account = CapAccount::new(Cap { quota: 10, window: 100 }, 1, 1, 0).unwrap();
    capped.set_cap(GroupId(0), Some(account), 0).unwrap();
    let id = woken(&mut capped, Parameters::default(), 0);
    assert!(capped.pick(0).is_some() && !capped.rest());
    capped.set_cap(GroupId(0), None, 0).unwrap();
    assert!(capped.pick(0).is_some() && capped.rest());
    capped.remove(id);
    assert!(!capped.resume(1), "it is gone");
    let mut reserved = sedf(1);
    let _ = woken(&mut reserved, reserve(100, 10, true), 0);
    assert!(reserved.pick(0).is_some() && !reserved.rest());
}

/// One operation: which, on whom, and a number for it.
type Step = (u8, usize, u64);

fn anything(mut queue: CpuQueue, steps: &[Step], parameters: impl Fn(u64) -> Parameters) {
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
                let account = CapAccount::new(cap, who as u32, number >> 3, now).ok();
                let _ = queue.set_cap(GroupId(number as u32 % 3), account, now);
            }
            (9, Some(id)) => drop(running.map(|r| queue.should_preempt(r, id, now))),
            (10, _) if queue.rest() => {
                assert!(running.is_some() && queue.waiting().is_none());
                now = now.saturating_add(number);
                assert!(queue.resume(now), "nothing has happened");
            }
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

/// The same with two queues of a pool, between which entities move.
fn anywhere(kind: PolicyKind, steps: &[Step], parameters: impl Fn(u64) -> Parameters) {
    let pool = Pool::new(&[0, 1]);
    let mut queues = [0, 1].map(|cpu| CpuQueue::new(pool.clone(), cpu, kind, &SETTINGS, 6, 2));
    let mut ids: [std::vec::Vec<EntityId>; 2] = Default::default();
    let mut now = 0u64;
    for &(what, who, number) in steps {
        let (here, there) = (who % 2, 1 - who % 2);
        let id = ids[here].get(who / 2 % ids[here].len().max(1)).copied();
        match (what, id) {
            (0 | 1, _) => {
                if let Ok(id) = queues[here].add(GroupId(number as u32 % 3), parameters(number), now) {
                    queues[here].wake(id, now);
                    ids[here].push(id);
                }
            }
            (2, Some(id)) => queues[here].block(id),
            (3, Some(id)) => queues[here].wake(id, now),
            (4, Some(id)) => queues[here].charge(id, number, now),
            (5, Some(id)) => {
                if let Some(parcel) = queues[here].take(id, now) {
                    ids[here].retain(|other| *other != id);
                    let blocked = parcel.is_blocked();
                    let (to, id) = match queues[there].put(parcel, now) {
                        Ok(id) => (there, Some(id)),
                        Err(_) => (here, queues[here].put(parcel, now).ok()),
                    };
                    if let Some(id) = id {
                        assert_eq!(queues[to].is_blocked(id), blocked);
                        ids[to].push(id);
                    }
                }
            }
            (6 | 7, _) => {
                let before = if what == 6 { Key::NEVER } else { queues[there].next_key().earlier(number) };
                let current = queues[here].current();
                if let Some((id, parcel)) = queues[here].steal(before, |id| id.index() != who, now) {
                    assert!(Some(id) != current && id.index() != who);
                    ids[here].retain(|other| *other != id);
                    ids[there].extend(queues[there].put(parcel, now).ok());
                }
            }
            (8, _) => {
                let kind = if number % 2 == 0 { PolicyKind::Bvt } else { PolicyKind::Sedf };
                let _ = queues[here].switch_policy(kind, now);
            }
            (9, Some(id)) => {
                queues[here].remove(id);
                ids[here].retain(|other| *other != id);
            }
            (10, _) => {
                let account =
                    CapAccount::new(Cap { quota: number % 5000, window: number % 7000 }, 2, 10, now);
                let _ = queues[here].set_cap(GroupId(0), account.ok(), now);
            }
            (11, _) => {
                let _ = queues[here].rest();
            }
            (12, _) => {
                let _ = queues[here].resume(now);
            }
            _ => now = now.saturating_add(number),
        }
        let decision = queues[here].pick(now);
        assert_eq!(decision.map(|decision| decision.who), queues[here].current());
        assert_eq!(pool.waiting(here as u32), queues[here].waiting());
        assert_eq!(pool.is_contended(), queues.iter().any(|queue| queue.waiting().is_some()));
        if now < NEVER {
            assert!(decision.is_none_or(|decision| decision.until > now));
        }
    }
}

proptest! {
    #[test]
    fn entities_move_between_queues(steps in proptest::collection::vec((0u8..15, 0usize..12, number()), 1..200)) {
        for kind in [PolicyKind::Bvt, PolicyKind::Sedf] {
            anywhere(kind, &steps, |n| Parameters {
                weight: (n as u32).max(1),
                warp: n.rotate_left(7),
                warp_limit: n.rotate_left(13),
                warp_period: n >> 3,
                reservation: Reservation { period: (n % 50_000) + 1, slice: (n % 9_000) * (n % 2), extra: true },
            });
        }
    }

    #[test]
    fn nothing_panics(steps in proptest::collection::vec((0u8..12, 0usize..8, number()), 1..200)) {
        let parameters = |n: u64| Parameters {
            weight: n as u32,
            warp: n.rotate_left(7),
            warp_limit: n.rotate_left(13),
            warp_period: n >> 3,
            reservation: Reservation {
                period: (n % 50_000) | (n & MAX_PERIOD),
                slice: n % 9_000,
                extra: n.is_multiple_of(2),
            },
        };
        anything(bvt(6), &steps, parameters);
        anything(sedf(6), &steps, parameters);
    }
}
