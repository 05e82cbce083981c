use super::*;
use proptest::prelude::*;

fn at(ticks: u64) -> Instant {
    RATE.instant(ticks)
}

fn fresh() -> Pit {
    Pit::new(Instant::ZERO)
}

/// Programmes counter `counter` at tick `t`.
fn programme(pit: &mut Pit, counter: u16, mode: u8, count: u16, t: u64) {
    let [low, high] = count.to_le_bytes();
    pit.write(3, (counter as u8) << 6 | 0x30 | mode << 1, at(t));
    pit.write(counter, low, at(t));
    pit.write(counter, high, at(t));
}

fn latched(pit: &mut Pit, counter: u16, t: u64) -> u16 {
    pit.write(3, (counter as u8) << 6, at(t));
    u16::from_le_bytes([pit.read(counter, at(t)), pit.read(counter, at(t))])
}

fn status(pit: &mut Pit, counter: u16, t: u64) -> u8 {
    pit.write(3, 0xE0 | 2 << counter, at(t));
    pit.read(counter, at(t))
}

#[test]
fn starts_in_mode_3_at_the_slowest_rate() {
    let mut pit = fresh();
    assert_eq!(status(&mut pit, 0, 10) & 0x3F, 0x36);
    assert!(pit.output(at(10)));
    assert_eq!(pit.next_deadline(), at(0x1_0000 + 1));
    assert!(!pit.advance(at(0x1_0000), true));
    assert!(pit.advance(at(0x1_0001), true));
}

#[test]
fn mode_0_rises_once_when_the_count_is_through() {
    let mut pit = fresh();
    programme(&mut pit, 0, 0, 1000, 100);
    assert!(!pit.output(at(1100)));
    assert_eq!(latched(&mut pit, 0, 101), 1000);
    assert_eq!(latched(&mut pit, 0, 601), 500);
    assert_eq!(pit.next_deadline(), at(1101));
    assert!(pit.advance(at(1101), true) && pit.output(at(1101)));
    assert_eq!(pit.next_deadline(), Instant::NEVER);
    assert_eq!(latched(&mut pit, 0, 1102), 0xFFFF, "counts on through zero");
    pit.write(0, 5, at(1200));
    assert!(!pit.output(at(1200)), "the first byte of a new count lowers the output");
}

#[test]
fn mode_2_is_low_for_the_last_tick_and_takes_a_new_count_at_its_end() {
    let mut pit = fresh();
    programme(&mut pit, 0, 2, 1000, 0);
    let low = |pit: &Pit| (1..5000).filter(|&t| !pit.output(at(t))).collect::<alloc::vec::Vec<_>>();
    assert_eq!(low(&pit), [1000, 2000, 3000, 4000]);
    assert_eq!(latched(&mut pit, 0, 1), 1000);
    assert_eq!(latched(&mut pit, 0, 1000), 1);
    assert_eq!(latched(&mut pit, 0, 1001), 1000);
    pit.write(0, 0xF4, at(1500));
    pit.write(0, 0x01, at(1500));
    assert_eq!(status(&mut pit, 0, 1501) & 0x40, 0x40, "null count until it is taken");
    assert_eq!(low(&pit), [1000, 2000, 2500, 3000, 3500, 4000, 4500]);
    assert_eq!(status(&mut pit, 0, 2001) & 0x40, 0);
}

#[test]
fn mode_3_splits_odd_counts_and_shows_even_ones() {
    let mut pit = fresh();
    programme(&mut pit, 0, 3, 5, 0);
    let wave: alloc::vec::Vec<_> = (1..=10).map(|t| pit.output(at(t))).collect();
    assert_eq!(wave, [true, true, true, false, false, true, true, true, false, false]);
    let counts: alloc::vec::Vec<_> = (1..=5).map(|t| latched(&mut pit, 0, t)).collect();
    assert_eq!(counts, [4, 2, 0, 4, 2]);
}

#[test]
fn mode_4_strobes_low_for_one_tick() {
    let mut pit = fresh();
    programme(&mut pit, 0, 4, 100, 0);
    assert!(pit.output(at(100)) && !pit.output(at(101)) && pit.output(at(102)));
    assert_eq!(pit.next_deadline(), at(102));
}

#[test]
fn the_gate_of_counter_2_is_in_port_0x61() {
    let mut pit = fresh();
    pit.write_control_b(0, at(0));
    programme(&mut pit, 2, 0, 100, 10);
    assert_eq!(latched(&mut pit, 2, 500), 100, "no gate, no count");
    pit.write_control_b(1, at(500));
    assert_eq!(pit.read_control_b(at(600)) & 0x21, 0x01);
    assert_eq!(pit.read_control_b(at(601)) & 0x21, 0x21);
    // One-shot and hardware strobe start with the gate.
    pit.write_control_b(0, at(700));
    programme(&mut pit, 2, 1, 50, 700);
    assert_eq!(pit.read_control_b(at(800)) & 0x20, 0x20);
    pit.write_control_b(1, at(1000));
    assert_eq!(pit.read_control_b(at(1050)) & 0x20, 0);
    assert_eq!(pit.read_control_b(at(1051)) & 0x20, 0x20);
    // A generator without its gate is high.
    programme(&mut pit, 2, 3, 10, 2000);
    pit.write_control_b(0x0E, at(2008));
    assert_eq!(pit.read_control_b(at(2010)) & 0x2F, 0x2E);
}

#[test]
fn the_refresh_bit_toggles_every_fifteen_microseconds() {
    let pit = fresh();
    let toggles = (0..=66_288 * 18 / 18)
        .map(|i| pit.read_control_b(at(i * 18)) & 0x10)
        .collect::<alloc::vec::Vec<_>>()
        .windows(2)
        .filter(|w| w[0] != w[1])
        .count();
    assert_eq!(toggles, 66_288);
}

#[test]
fn bcd_and_single_byte_access() {
    let mut pit = fresh();
    pit.write(3, 0x35, at(0)); // counter 0, both bytes, mode 2, BCD
    pit.write(0, 0x00, at(0));
    pit.write(0, 0x10, at(0));
    assert_eq!(latched(&mut pit, 0, 2), 0x0999);
    pit.write(3, 0x24, at(10)); // high byte only
    pit.write(0, 0x12, at(10));
    assert_eq!(pit.read(0, at(11)), 0x12);
    pit.write(3, 0x14, at(20)); // low byte only
    pit.write(0, 0x34, at(20));
    assert_eq!(pit.read(0, at(21)), 0x34);
    pit.write(3, 0x35, at(30));
    pit.write(0, 0, at(30));
    pit.write(0, 0, at(30));
    assert_eq!(latched(&mut pit, 0, 32), 0x9999, "zero means ten thousand");
}

#[test]
fn latches_hold_until_read_and_status_comes_first() {
    let mut pit = fresh();
    programme(&mut pit, 0, 2, 1000, 0);
    pit.write(3, 0xC2, at(101)); // status and count of counter 0
    pit.write(3, 0x00, at(300)); // a second latch is ignored
    assert_eq!(pit.read(0, at(400)), 0xB4);
    assert_eq!(pit.read(0, at(500)), (900u16 & 0xFF) as u8);
    assert_eq!(pit.read(0, at(600)), (900u16 >> 8) as u8);
    assert_eq!(pit.read(3, at(600)), 0xFF);
}

#[test]
fn late_ticks_are_owed_bounded_and_paced() {
    let period = 11_932; // 100 Hz
    let mut pit = fresh();
    programme(&mut pit, 0, 2, period, 0);
    let late = 1 + 10 * u64::from(period);
    let mut now = at(late);
    let mut given = 0;
    let end = at(late + 9 * u64::from(period));
    while now <= end {
        if pit.advance(now, true) {
            given += 1;
        }
        assert!(pit.next_deadline() > now);
        now = pit.next_deadline();
    }
    // Ten late ones and nine new ones.
    assert_eq!(given, 19);
    // A month asleep costs no more than the bound.
    now = now + 2_600_000_000_000_000;
    let start = now;
    let mut given = 0;
    while now < start + 5_000_000_000 {
        given += u32::from(pit.advance(now, true));
        now = pit.next_deadline();
    }
    assert!((500..=500 + MAX_OWED + 2).contains(&given), "{given}");
}

#[test]
fn the_more_is_owed_the_closer_ticks_follow() {
    let period = 11_932; // 10 ms
    let gap = |late: u64| {
        let mut pit = fresh();
        programme(&mut pit, 0, 2, period, 0);
        let now = at(1 + late * u64::from(period));
        assert!(pit.advance(now, true));
        pit.next_deadline().since(now) / 1000
    };
    // With nothing owed any more the next one comes when it is due.
    assert_eq!([1, 2, 3, 7, 8, 1000].map(gap), [10_000, 5000, 3333, 1428, 1250, 1250]);
}

proptest! {
    /// A guest that has the CPU for at least an eighth of the time, in turns, counts every tick; none come closer than they may.
    #[test]
    fn a_guest_with_an_eighth_of_a_cpu_counts_right(
        period in 1200u16..60_000, turn in 2000u64..14_000, others in 0u64..=7,
    ) {
        let mut pit = fresh();
        programme(&mut pit, 0, 2, period, 0);
        let nanos = u64::from(period) * 1_000_000_000 / u64::from(FREQUENCY);
        // From thousandths of periods: it is away for no more than can be owed.
        let turn = turn * nanos / 1000;
        let (mut given, mut last) = (0, Instant::ZERO);
        let mut end = Instant::ZERO;
        while end.as_nanos() < 1000 * nanos {
            let begin = end + turn * others;
            end = begin + turn;
            let mut now = begin;
            while now < end {
                if pit.advance(now, true) {
                    prop_assert!(given == 0 || now.since(last) >= MIN_GAP.max(nanos / HASTE));
                    (given, last) = (given + 1, now);
                }
                now = now.max(pit.next_deadline());
            }
        }
        let due = end.as_nanos().div_ceil(nanos);
        // What is still owed is at most what has come due during two absences.
        let owed = turn * others * 2 / nanos + 2;
        prop_assert!(given <= due && given + owed >= due, "{} of {}", given, due);
    }
}

#[test]
fn what_the_guest_cannot_see_is_not_owed() {
    let mut pit = fresh();
    programme(&mut pit, 0, 2, 11_932, 0);
    assert!(pit.advance(at(11_932 * 50), false));
    assert!(!pit.advance(at(11_932 * 50 + 1), true));
    // Nor what it programmed away.
    assert!(pit.advance(at(11_932 * 90), true));
    programme(&mut pit, 0, 4, 1000, 11_932 * 90 + 1);
    assert_eq!(pit.next_deadline(), at(11_932 * 90 + 1003));
}

#[test]
fn a_mad_rate_is_thinned_out() {
    for count in [1u16, 2, 3] {
        for mode in [2, 3] {
            let mut pit = fresh();
            programme(&mut pit, 0, mode, count, 0);
            let mut given = 0;
            let mut now = Instant::ZERO;
            while now < Instant::from_nanos(10_000_000) {
                given += u64::from(pit.advance(now, true));
                now = pit.next_deadline();
            }
            assert!(given <= 10_000_000 / MIN_GAP + 2);
        }
    }
}

proptest! {
    /// What is computed from times is what stepping through every tick shows.
    #[test]
    fn edges_are_those_of_the_output(
        mode in 0u8..6, bcd: bool, first in 0u16..60, second in proptest::option::of((0u64..150, 0u16..60)),
        gates in proptest::collection::vec((0u64..150, any::<bool>()), 0..3), from in 150u64..400, len in 0u64..300,
    ) {
        let control = 0x10 | mode << 1 | u8::from(bcd);
        let base = EPOCH;
        let mut counter = Counter::started(control, first as u8, true, base);
        let mut events: alloc::vec::Vec<(u64, Option<u8>, bool)> =
            gates.iter().map(|&(t, gate)| (t, None, gate)).collect();
        events.extend(second.map(|(t, count)| (t, Some(count as u8), false)));
        events.sort_by_key(|e| e.0);
        for (t, count, gate) in events {
            match count {
                Some(count) => counter.write(count, base + t),
                None => counter.set_gate(gate, base + t),
            }
        }
        let (from, to) = (base + from, base + from + len);
        let rises: alloc::vec::Vec<u64> =
            (from + 1..=to).filter(|&t| !counter.output(t - 1) && counter.output(t)).collect();
        if let Some(&first) = rises.first() {
            prop_assert_eq!(counter.next_rise(from), Some(first));
        } else if let Some(next) = counter.next_rise(from) {
            prop_assert!(next > to);
        }
        prop_assert_eq!(counter.rises(from, to), rises.len() as u64);
    }

    /// As above, with the look taken while a new count is still pending.
    #[test]
    fn a_pending_count_is_foreseen(mode in 2u8..4, first in 2u16..60, t in 1u64..200, second in 2u16..60) {
        let mut counter = Counter::started(0x10 | mode << 1, first as u8, true, EPOCH);
        let now = EPOCH + t;
        counter.write(second as u8, now);
        let rises: alloc::vec::Vec<u64> =
            (now + 1..now + 200).filter(|&t| !counter.output(t - 1) && counter.output(t)).collect();
        prop_assert_eq!(counter.next_rise(now), rises.first().copied());
        prop_assert_eq!(counter.rises(now, now + 199), rises.len() as u64);
    }

    #[test]
    fn no_port_traffic_breaks_it(ops in proptest::collection::vec((0u16..5, any::<u8>(), any::<bool>(), 0u64..1 << 40), 0..200)) {
        let mut pit = fresh();
        let mut now = Instant::ZERO;
        for (port, value, write, step) in ops {
            now = now + (step >> (value & 31));
            pit.advance(now, value & 1 != 0);
            match (port, write) {
                (4, true) => pit.write_control_b(value, now),
                (4, false) => { let _ = pit.read_control_b(now); }
                (_, true) => pit.write(port, value, now),
                (_, false) => { pit.read(port, now); }
            }
            let mut given = 0;
            while pit.next_deadline() <= now {
                pit.advance(now, true);
                given += 1;
                prop_assert!(given < 3, "a storm");
            }
        }
    }
}
