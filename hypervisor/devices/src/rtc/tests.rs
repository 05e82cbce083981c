use super::*;
use proptest::prelude::*;

/// 2024-02-28 23:59:58 UTC, a Wednesday.
const BASE: u64 = 1_709_164_798;

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

fn fresh() -> Rtc {
    Rtc::new(BASE, Instant::ZERO)
}

fn read(rtc: &mut Rtc, index: u8, now: Instant) -> u8 {
    rtc.write_index(index);
    rtc.read_data(now)
}

fn write(rtc: &mut Rtc, index: u8, value: u8, now: Instant) {
    rtc.write_index(index);
    rtc.write_data(value, now);
}

fn shown(rtc: &mut Rtc, now: Instant) -> [u8; 8] {
    TIME.map(|index| read(rtc, index, now))
}

#[test]
fn shows_the_time_in_bcd_and_goes_over_a_leap_day() {
    let mut rtc = fresh();
    assert_eq!(shown(&mut rtc, at(0)), [0x58, 0x59, 0x23, 4, 0x28, 2, 0x24, 0x20]);
    assert_eq!(shown(&mut rtc, at(1_999)), [0x59, 0x59, 0x23, 4, 0x28, 2, 0x24, 0x20]);
    assert_eq!(shown(&mut rtc, at(2_000)), [0, 0, 0, 5, 0x29, 2, 0x24, 0x20]);
    assert_eq!(read(&mut rtc, register::D, at(0)), 0x80);
}

#[test]
fn formats_follow_register_b() {
    let mut rtc = fresh();
    write(&mut rtc, register::B, b::BINARY, at(0));
    assert_eq!(read(&mut rtc, register::HOURS, at(0)), 0x80 | 11);
    assert_eq!(read(&mut rtc, register::SECONDS, at(0)), 58);
}

#[test]
fn update_is_announced_244_microseconds_ahead() {
    let mut rtc = fresh();
    let ns = Instant::from_nanos;
    assert_eq!(read(&mut rtc, register::A, ns(999_755_999)) & 0x80, 0);
    assert_eq!(read(&mut rtc, register::A, ns(999_756_000)) & 0x80, 0x80);
    assert_eq!(read(&mut rtc, register::A, ns(1_000_000_000)) & 0x80, 0);
    write(&mut rtc, register::B, b::SET, ns(1_999_900_000));
    assert_eq!(read(&mut rtc, register::A, ns(1_999_900_000)) & 0x80, 0);
}

#[test]
fn linux_sets_the_time() {
    let mut rtc = fresh();
    let now = at(5_300);
    write(&mut rtc, register::B, b::HOURS_24 | b::SET, now);
    write(&mut rtc, register::A, 0x76, now);
    for (index, value) in TIME.into_iter().zip([0x30, 0x45, 0x12, 1, 0x25, 0x12, 0x99, 0x19]) {
        write(&mut rtc, index, value, now);
    }
    assert_eq!(read(&mut rtc, register::SECONDS, at(9_000)), 0x30, "it stands");
    write(&mut rtc, register::B, b::HOURS_24, at(9_000));
    assert_eq!(read(&mut rtc, register::SECONDS, at(9_900)), 0x30, "the divider is still in reset");
    write(&mut rtc, register::A, 0x26, at(10_000));
    assert_eq!(read(&mut rtc, register::SECONDS, at(10_499)), 0x30);
    assert_eq!(shown(&mut rtc, at(10_500)), [0x31, 0x45, 0x12, 1, 0x25, 0x12, 0x99, 0x19]);
}

#[test]
fn a_running_clock_takes_single_numbers_and_no_nonsense() {
    let mut rtc = fresh();
    write(&mut rtc, register::MINUTES, 0x10, at(500));
    assert_eq!(shown(&mut rtc, at(1_000)), [0x59, 0x10, 0x23, 4, 0x28, 2, 0x24, 0x20]);
    write(&mut rtc, register::MONTH, 0xFF, at(1_000));
    assert_eq!(read(&mut rtc, register::MONTH, at(1_000)), 0x01);
    write(&mut rtc, register::WEEKDAY, 6, at(1_000));
    assert_eq!(read(&mut rtc, register::WEEKDAY, at(1_000)), 6);
}

#[test]
fn update_interrupt_each_second_until_register_c_is_read() {
    let mut rtc = fresh();
    write(&mut rtc, register::B, b::HOURS_24 | b::UPDATE, at(100));
    assert_eq!(rtc.next_deadline(), at(1_000));
    rtc.advance(at(999));
    assert!(!rtc.irq());
    rtc.advance(at(1_000));
    assert!(rtc.irq());
    assert_eq!(rtc.next_deadline(), Instant::NEVER);
    assert_eq!(read(&mut rtc, register::C, at(1_200)) & 0x90, 0x90);
    assert!(!rtc.irq());
    assert_eq!(rtc.next_deadline(), at(2_000));
    // The flag is set without its interrupt, too.
    write(&mut rtc, register::B, b::HOURS_24, at(1_300));
    assert_eq!(rtc.next_deadline(), Instant::NEVER);
    assert_eq!(read(&mut rtc, register::C, at(2_200)) & (IRQF | b::UPDATE), b::UPDATE);
    // SET turns the enable off.
    write(&mut rtc, register::B, b::SET | b::UPDATE, at(2_300));
    assert_eq!(read(&mut rtc, register::B, at(2_300)), b::SET);
}

#[test]
fn alarm_by_exact_time_and_by_wildcards() {
    let mut rtc = fresh();
    let alarm = |rtc: &mut Rtc, s, m, h| {
        write(rtc, register::SECONDS_ALARM, s, at(0));
        write(rtc, register::MINUTES_ALARM, m, at(0));
        write(rtc, register::HOURS_ALARM, h, at(0));
        write(rtc, register::B, b::HOURS_24 | b::ALARM, at(0));
        rtc.next_deadline()
    };
    assert_eq!(alarm(&mut rtc, 0x30, 0x00, 0x00), at(32_000));
    assert_eq!(alarm(&mut rtc, 0x30, 0xFF, 0xC0), at(32_000));
    assert_eq!(alarm(&mut rtc, 0xFF, 0xFF, 0xFF), at(1_000));
    assert_eq!(alarm(&mut rtc, 0x58, 0x59, 0x23), at(86_400_000));
    assert_eq!(alarm(&mut rtc, 0x60, 0x00, 0x00), Instant::NEVER);
    assert_eq!(alarm(&mut rtc, 0x00, 0x00, 0x24), Instant::NEVER);
    assert_eq!(alarm(&mut rtc, 0x00, 0x10, 0xC0), at(602_000));
    rtc.advance(at(601_999));
    assert!(!rtc.irq());
    rtc.advance(at(602_000));
    assert!(rtc.irq());
    assert_eq!(read(&mut rtc, register::C, at(602_000)) & 0xA0, 0xA0);
}

#[test]
fn periodic_rates() {
    for (rate, hz) in [(1u8, 256u64), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        let mut rtc = fresh();
        write(&mut rtc, register::A, 0x20 | rate, at(0));
        write(&mut rtc, register::B, b::HOURS_24 | b::PERIODIC, at(0));
        let mut count = 0;
        while rtc.next_deadline() <= at(1_000) {
            let now = rtc.next_deadline();
            rtc.advance(now);
            assert!(rtc.irq());
            read(&mut rtc, register::C, now);
            count += 1;
        }
        assert_eq!(count, hz, "rate {rate}");
    }
    let mut rtc = fresh();
    write(&mut rtc, register::A, 0x20, at(0));
    write(&mut rtc, register::B, b::PERIODIC, at(0));
    assert_eq!(rtc.next_deadline(), Instant::NEVER);
}

#[test]
fn firmware_bytes() {
    let mut rtc = fresh();
    rtc.set_memory_size(256 << 20, 5 << 30);
    let mut byte = |index| u64::from(read(&mut rtc, index, at(0)));
    assert_eq!(byte(0x15) | byte(0x16) << 8, 640);
    assert_eq!(byte(0x17) | byte(0x18) << 8, 0xFFFF);
    assert_eq!((byte(0x34) | byte(0x35) << 8) << 16, 240 << 20);
    assert_eq!((byte(0x5B) | byte(0x5C) << 8 | byte(0x5D) << 16) << 16, 5 << 30);
    let sum: u64 = (0x10..0x2E).map(&mut byte).sum();
    assert_eq!(byte(0x2E) << 8 | byte(0x2F), sum);
    write(&mut rtc, 0x8F, 0xAB, at(0));
    assert!(rtc.nmi_masked());
    assert_eq!(read(&mut rtc, 0x0F, at(0)), 0xAB);
    assert!(!rtc.nmi_masked());
}

proptest! {
    #[test]
    fn no_register_traffic_breaks_it(
        base: u64,
        ops in proptest::collection::vec((any::<u8>(), any::<u8>(), 0u8..3, 0u64..1 << 45), 0..150),
    ) {
        let mut rtc = Rtc::new(base, Instant::ZERO);
        let mut now = Instant::ZERO;
        for (index, value, kind, step) in ops {
            now = now + (step >> (value & 31));
            // Registers 0 to 15 and the century are the interesting ones.
            let index = if index & 0x80 == 0 { index & 0x0F } else { index };
            match kind {
                0 => { read(&mut rtc, index, now); }
                1 => write(&mut rtc, index, value, now),
                _ => rtc.advance(now),
            }
            rtc.advance(now);
            prop_assert!(rtc.next_deadline() > now);
            let high = rtc.irq();
            if rtc.next_deadline() != Instant::NEVER {
                let mut later = rtc.clone();
                later.advance(rtc.next_deadline() - 1);
                prop_assert_eq!(later.irq(), high, "the deadline is not late");
                later.advance(rtc.next_deadline());
                prop_assert!(later.irq(), "the deadline is not early");
            }
        }
        rtc.advance(Instant::NEVER);
    }
}
