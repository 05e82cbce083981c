//! What is recorded is what is read at the other end, whatever happens on the way.

use std::string::{String, ToString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::vec::Vec;
use std::{format, thread, vec};

use base64::Engine as _;
use caisson_types::{DomainId, VcpuId};
use proptest::prelude::*;

use super::*;

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        Just(What::Run),
        prop_oneof![
            Just(Why::Blocked),
            Just(Why::Preempted),
            Just(Why::Yielded),
            Just(Why::HostWork),
            Just(Why::Ended)
        ]
        .prop_map(What::Stop),
        (any::<u8>(), 0..1u32 << 24).prop_map(|(class, ticks)| What::Exit { class, ticks }),
        any::<u8>().prop_map(|vector| What::Inject { vector }),
        (any::<u8>(), any::<u16>()).prop_map(|(vector, from)| What::Ipi { vector, from }),
        any::<u32>().prop_map(|late| What::Timer { late }),
        any::<u32>().prop_map(|number| What::Hypercall { number }),
        Just(What::Wake),
        Just(What::Idle),
        Just(What::Awake),
        any::<u32>().prop_map(|cpu| What::Kick { cpu }),
    ]
}

prop_compose! {
    fn event()(time in prop_oneof![0..1u64 << TIME_BITS, 0..10_000u64], domain in prop_oneof![any::<u16>(), 0..3u16], index in prop_oneof![any::<u16>(), 0..2u16], what in what()) -> Event {
        Event { time, vcpu: VcpuId { domain: DomainId(domain), index }, what }
    }
}

fn names(count: u16) -> Vec<DomainName> {
    (1..=count).map(|n| DomainName { id: DomainId(n), vcpus: n, name: format!("gäst-{n}") }).collect()
}

fn lines(dump: &mut Dump<'_>) -> Vec<String> {
    core::iter::from_fn(|| dump.next_line()).map(|line| line.to_string()).collect()
}

#[expect(clippy::unwrap_used, reason = "a test's helper")]
fn read(lines: &[String]) -> Trace {
    let mut reader = Reader::new();
    lines.iter().for_each(|line| reader.line(line));
    reader.finish().unwrap()
}

#[test]
fn a_ring_that_is_off_records_nothing() {
    let ring = Ring::none();
    ring.set_on(true);
    ring.record(|| panic!("nobody asks for the event"));
    let ring = Ring::new(4).unwrap();
    assert!(ring.set_on(false));
    ring.record(|| panic!("nobody asks for the event"));
    assert_eq!((ring.count(), ring.read(0)), (0, Read::NotYet));
    assert_eq!(Ring::new(1000).unwrap().capacity(), 1024);
}

#[test]
fn long_answers_and_long_names_are_cut() {
    let vcpu = VcpuId { domain: DomainId(1), index: 0 };
    let long = Event::exit(7, vcpu, ExitClass::Port, u64::MAX);
    assert_eq!(long.what, What::Exit { class: ExitClass::Port.index() as u8, ticks: (1 << 24) - 1 });
    let name: String = "ä".repeat(1000);
    let domains = vec![DomainName { id: DomainId(9), vcpus: 64, name: name.clone() }];
    let trace = read(&lines(&mut Dump::new(1, 0, domains, vec![])));
    assert!(trace.complete && name.starts_with(&trace.domains[0].name) && trace.domains[0].name.len() > 300);
    assert_eq!(trace.class(ExitClass::Stage2.index() as u8), "mmio");
    assert_eq!(trace.class(255), "exit");
}

#[test]
fn logs_without_a_dump_say_so() {
    let mut reader = Reader::new();
    ["", "%trace", "%trace !!!", "%trace AAAA", "[caisson] hello"].iter().for_each(|line| reader.line(line));
    assert_eq!(reader.finish(), Err(TraceError::None));
    let mut packet = packet::PacketWriter::new(1, 0);
    packet.bytes(&77u16.to_le_bytes());
    let mut reader = Reader::new();

    let line = base64::engine::general_purpose::STANDARD.encode(packet.finish());
    reader.line(&format!("%trace {line}"));
    assert_eq!(reader.finish(), Err(TraceError::Version(77)));
}

#[test]
fn of_two_dumps_the_last_counts() {
    let ring = Ring::new(8).unwrap();
    ring.record(|| Event { time: 1, vcpu: NOBODY, what: What::Idle });
    let mut all = lines(&mut Dump::new(1000, 5, names(1), vec![&ring]));
    ring.record(|| Event { time: 2, vcpu: NOBODY, what: What::Awake });
    all.extend(lines(&mut Dump::new(1000, 6, names(2), vec![&ring])));
    let trace = read(&all);
    assert_eq!((trace.now, trace.domains.len(), trace.events.len()), (6, 2, 2));
}

/// How long a dump is: what docs/tracing.md says of it.
#[test]
fn an_exit_takes_nine_bytes_on_the_line() {
    let ring = Ring::new(4096).unwrap();
    let vcpu = VcpuId { domain: DomainId(1), index: 0 };
    for n in 0..4095u64 {
        ring.record(|| Event::exit(n * 50_000, vcpu, ExitClass::Port, 2_000 + n % 500));
    }
    let bytes: usize =
        lines(&mut Dump::new(1, 0, names(2), vec![&ring])).iter().map(|line| line.len() + 2).sum();
    assert!((9 * 4095..11 * 4095).contains(&bytes), "{bytes}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_recorded_is_read(
        events in proptest::collection::vec((0..3usize, event()), 0..600),
        hz in 1..u64::MAX,
        now in any::<u64>(),
    ) {
        let rings: Vec<Ring> = (0..3).map(|_| Ring::new(256).unwrap()).collect();
        let mut recorded = vec![Vec::new(); 3];
        for (cpu, event) in &events {
            rings[*cpu].record(|| *event);
            recorded[*cpu].push(*event);
        }
        let mut dump = Dump::new(hz, now, names(3), rings.iter().collect());
        prop_assert!(rings.iter().all(|ring| !ring.is_on()));
        let mut lines = lines(&mut dump);
        drop(dump);
        prop_assert!(rings.iter().all(Ring::is_on));
        prop_assert!(lines.iter().all(|line| line.len() <= LINE_BYTES));
        // As it looks among others.
        lines.iter_mut().for_each(|line| *line = format!("[x] {line}\r"));
        let trace = read(&lines);
        prop_assert_eq!((trace.tsc_hz, trace.now, trace.cpus), (hz, now, 3));
        prop_assert_eq!((trace.complete, trace.missing), (true, 0));
        prop_assert_eq!(&trace.domains, &names(3));
        prop_assert!(ExitClass::ALL.iter().all(|class| trace.class(class.index() as u8) == class.name()));
        for (cpu, recorded) in recorded.iter().enumerate() {
            let read: Vec<Event> = trace.events.iter().filter(|r| r.cpu == cpu).map(|r| r.event).collect();
            let kept = recorded.len().min(255);
            prop_assert_eq!(&read[..], &recorded[recorded.len() - kept..]);
            let lost = if kept == 0 { 0 } else { recorded.len() - kept };
            prop_assert_eq!(trace.lost[cpu], lost as u64);
        }
    }

    /// A lost or damaged line takes its own events and no others.
    #[test]
    fn damage_stays_where_it_is(
        events in proptest::collection::vec(event(), 300..600),
        hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<Option<u8>>()), 1..4),
    ) {
        let ring = Ring::new(1024).unwrap();
        events.iter().for_each(|event| ring.record(|| *event));
        let whole = lines(&mut Dump::new(1, 0, names(1), vec![&ring]));
        let mut damaged = whole.clone();
        for (line, place, change) in hits {
            // The first line stays, or there is no trace at all.
            let line = &mut damaged[1 + line.index(whole.len() - 1)];
            match change {
                Some(byte) if !line.is_empty() => {
                    let at = place.index(line.len());
                    line.replace_range(at..=at, &char::from(byte & 0x7f).to_string());
                }
                _ => line.clear(),
            }
        }
        let trace = read(&damaged);
        let gone = whole.iter().zip(&damaged).filter(|(a, b)| a != b).count() as u64;
        // A changed end of the line may not matter.
        prop_assert!(trace.missing <= gone);
        let mut at = events.iter();
        for record in &trace.events {
            prop_assert!(at.any(|event| *event == record.event), "in their order, and only these");
        }
        if gone == 0 {
            prop_assert_eq!(trace.events.len(), events.len());
        }
    }

    #[test]
    fn hostile_bytes_are_harmless(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz::read(&data);
    }

    #[test]
    fn hostile_packets_are_harmless(packets in proptest::collection::vec((0..7u8, any::<u16>(), proptest::collection::vec(any::<u8>(), 0..60)), 0..20)) {
        let mut data = Vec::new();
        // One that is right in front, so that the others count.
        let mut start = vec![1, 0, 0, 1, 0];
        start.extend([9; 16]);
        start.push(3);
        data.push(start.len() as u8);
        data.extend(start);
        for (kind, number, payload) in packets {
            data.push(payload.len() as u8 + 3);
            data.push(kind);
            data.extend(number.to_le_bytes());
            data.extend(payload);
        }
        fuzz::read(&data);
    }
}

/// A CPU that records and a reader in another thread: no event is read that was not recorded as it is.
#[test]
fn a_reader_in_another_thread_sees_whole_events() {
    let ring = Arc::new(Ring::new(64).unwrap());
    let done = Arc::new(AtomicBool::new(false));
    let event = |n: u64| Event {
        time: n,
        vcpu: VcpuId { domain: DomainId(n as u16), index: (n >> 16) as u16 },
        what: What::Timer { late: n as u32 },
    };
    let writer = {
        let (ring, done) = (ring.clone(), done.clone());
        thread::spawn(move || {
            (0..200_000).for_each(|n| ring.record(|| event(n)));
            done.store(true, Ordering::Release);
        })
    };
    let mut read = 0;
    while !done.load(Ordering::Acquire) {
        for n in ring.oldest()..ring.count() {
            if let Read::Event(got) = ring.read(n) {
                assert_eq!(got, event(n));
                read += 1;
            }
        }
    }
    writer.join().unwrap();
    assert!(read > 0 || ring.read(ring.oldest()) == Read::Event(event(ring.oldest())));
}
