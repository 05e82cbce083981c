//! One rule each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::vec::Vec;

use caisson_abi::events::{ANY, MASK, PAGE_WORDS, PENDING, PortState, Source};
use caisson_types::DomainId;

use crate::*;

type Words = [core::sync::atomic::AtomicU64; PAGE_WORDS];

const A: DomainId = DomainId(1);
const B: DomainId = DomainId(2);
const C: DomainId = DomainId(3);

/// A page, and how often its domain was interrupted.
#[derive(Clone)]
struct Endpoint(Arc<(Words, AtomicUsize)>);

impl Endpoint {
    fn new() -> Self {
        Self(Arc::new(([const { core::sync::atomic::AtomicU64::new(0) }; PAGE_WORDS], AtomicUsize::new(0))))
    }

    fn words(&self) -> &Words {
        &self.0.0
    }

    fn interrupts(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }

    fn take(&self) -> Vec<u16> {
        let mut ports = Vec::new();
        consumer::take(self, 4096, |port| ports.push(port));
        ports
    }
}

impl Page for Endpoint {
    fn load(&self, word: Word) -> u64 {
        self.words().load(word)
    }
    fn set(&self, word: Word, bit: u32) -> bool {
        self.words().set(word, bit)
    }
    fn clear(&self, word: Word, bit: u32) -> bool {
        self.words().clear(word, bit)
    }
    fn take(&self, word: Word) -> u64 {
        self.words().take(word)
    }
}

fn interrupt(endpoint: &Endpoint) {
    endpoint.0.1.fetch_add(1, Ordering::SeqCst);
}

/// Three domains with `ports` ports each.
fn three(ports: u16) -> (Registry<Endpoint>, [Endpoint; 3]) {
    let registry = Registry::new(8);
    let endpoints = [A, B, C].map(|domain| {
        let endpoint = Endpoint::new();
        registry.join(domain, ports, endpoint.clone()).unwrap();
        endpoint
    });
    (registry, endpoints)
}

/// A port of A bound to one of B.
fn pair(registry: &Registry<Endpoint>) -> (u16, u16) {
    let a = registry.allocate(A, B).unwrap();
    (a, registry.bind(B, A, a).unwrap())
}

fn state(registry: &Registry<Endpoint>, domain: DomainId, port: u16) -> PortState {
    registry.status(domain, port).unwrap().state
}

#[test]
fn many_events_are_one_interrupt_until_somebody_looks() {
    let (registry, [a, b, _]) = three(130);
    let pairs: Vec<_> = (0..130).map(|_| pair(&registry)).collect();
    for &(port, _) in &pairs {
        for _ in 0..3 {
            registry.send(A, port, interrupt).unwrap();
        }
    }
    assert_eq!((a.interrupts(), b.interrupts()), (0, 1));
    assert_eq!(b.words()[ANY].load(Ordering::SeqCst), 1);
    assert_eq!(b.words()[PENDING + 2].load(Ordering::SeqCst), 3);
    assert_eq!(b.take(), (0..130).collect::<Vec<_>>());
    assert_eq!(b.take(), []);
    assert_eq!(registry.send(A, 7, interrupt), Ok(true));
    assert_eq!((b.interrupts(), b.take()), (2, [7].into()));
    // The way back.
    assert_eq!(registry.send(B, 129, interrupt), Ok(true));
    assert_eq!((a.interrupts(), a.take()), (1, [129].into()));
}

#[test]
fn a_masked_port_interrupts_nobody_until_it_is_unmasked() {
    let (registry, [_, b, _]) = three(70);
    let pairs: Vec<_> = (0..70).map(|_| pair(&registry)).collect();
    let (from, to) = pairs[66];
    registry.mask(B, to).unwrap();
    assert_eq!(registry.send(A, from, interrupt), Ok(false));
    assert_eq!(b.take(), []);
    let status = registry.status(B, to).unwrap();
    assert!(status.pending && status.masked);
    assert_eq!(registry.unmask(B, to, interrupt), Ok(true));
    assert_eq!((b.interrupts(), b.take()), (1, [66].into()));
    assert_eq!(registry.unmask(B, to, interrupt), Ok(false), "nothing has come");
    // By itself, in its page.
    consumer::mask(&b, to);
    assert_eq!(registry.send(A, from, interrupt), Ok(false));
    assert!(consumer::unmask(&b, to) && !consumer::is_pending(&b));
    assert_eq!((b.interrupts(), b.take()), (1, [66].into()));
    assert!(!consumer::unmask(&b, to));
}

#[test]
fn an_offer_is_for_one_domain_and_for_one_port() {
    let (registry, _) = three(4);
    let port = registry.allocate(A, B).unwrap();
    assert_eq!(state(&registry, A, port), PortState::Unbound { remote: B });
    assert_eq!(registry.send(A, port, interrupt), Err(Error::NotConnected));
    assert_eq!(registry.bind(C, A, port), Err(Error::Refused));
    assert_eq!(registry.bind(A, A, port), Err(Error::Refused));
    assert_eq!(registry.bind(B, A, 3), Err(Error::Refused));
    assert_eq!(registry.bind(B, A, 4), Err(Error::Refused));
    assert_eq!(registry.bind(B, DomainId(4), port), Err(Error::NoSuchDomain));
    assert_eq!(registry.bind(B, DomainId(u16::MAX), port), Err(Error::NoSuchDomain));
    let bound = registry.bind(B, A, port).unwrap();
    assert_eq!(registry.bind(B, A, port), Err(Error::Refused), "it is taken");
    assert_eq!(state(&registry, A, port), PortState::Bound { remote: B, port: bound });
    assert_eq!(state(&registry, B, bound), PortState::Bound { remote: A, port });
    assert_eq!(registry.allocate(A, DomainId(7)), Err(Error::NoSuchDomain));
    assert_eq!(registry.allocate(DomainId(7), A), Err(Error::NoPorts));
}

#[test]
fn a_domain_may_connect_two_ports_of_its_own() {
    let (registry, [a, ..]) = three(2);
    let one = registry.allocate(A, A).unwrap();
    let other = registry.bind(A, A, one).unwrap();
    assert_eq!(registry.send(A, one, interrupt), Ok(true));
    assert_eq!(a.take(), [other]);
    assert_eq!(registry.close(A, other, interrupt), Ok(true));
    assert_eq!((a.take(), state(&registry, A, one)), ([one].into(), PortState::PeerClosed));
    assert_eq!(registry.leave(A, interrupt).unwrap().told, 0);
}

#[test]
fn ports_run_out_and_come_back() {
    let (registry, _) = three(3);
    for port in 0..3 {
        assert_eq!(registry.allocate(A, B), Ok(port));
    }
    assert_eq!(registry.allocate(A, B), Err(Error::NoPorts));
    assert_eq!(registry.bind_source(A, Source::Backend), Err(Error::NoPorts));
    let port = registry.allocate(B, A).unwrap();
    assert_eq!(registry.bind(A, B, port), Err(Error::NoPorts));
    assert_eq!(state(&registry, B, port), PortState::Unbound { remote: A }, "the offer stands");
    assert_eq!(registry.close(A, 1, interrupt), Ok(false));
    assert_eq!(registry.close(A, 1, interrupt), Err(Error::BadPort));
    assert_eq!(registry.bind(A, B, port), Ok(1));
}

#[test]
fn a_port_that_closes_is_forgotten_and_its_peer_told_once() {
    let (registry, [a, b, _]) = three(1);
    let (from, to) = pair(&registry);
    registry.send(A, from, interrupt).unwrap();
    registry.mask(B, to).unwrap();
    assert_eq!(registry.close(B, to, interrupt), Ok(true));
    assert_eq!(b.words()[PENDING].load(Ordering::SeqCst), 0);
    assert_eq!(b.words()[MASK].load(Ordering::SeqCst), 0);
    assert_eq!((a.interrupts(), a.take()), (1, [from].into()));
    assert_eq!(state(&registry, A, from), PortState::PeerClosed);
    assert_eq!(registry.send(A, from, interrupt), Err(Error::PeerClosed));
    // The next life of B's port hears nothing of A's old one.
    assert_eq!(registry.allocate(B, C), Ok(to));
    assert_eq!(registry.bind(C, B, to), Ok(0));
    assert_eq!(registry.send(A, from, interrupt), Err(Error::PeerClosed));
    assert_eq!(registry.close(A, from, interrupt), Ok(false));
    assert_eq!(b.words()[PENDING].load(Ordering::SeqCst), 0);
    assert_eq!((state(&registry, B, to), a.interrupts()), (PortState::Bound { remote: C, port: 0 }, 1));
}

#[test]
fn a_domain_that_leaves_is_missed_once_and_not_mixed_up_with_its_successor() {
    let (registry, [a, b, c]) = three(8);
    let (first, _) = pair(&registry);
    let (second, _) = pair(&registry);
    let offered = registry.allocate(A, B).unwrap();
    let own = registry.allocate(B, C).unwrap();
    let name = registry.bind_source(B, Source::Channel { channel: 3, queue: 1 }).unwrap();
    let left = registry.leave(B, interrupt).unwrap();
    assert!(Arc::ptr_eq(&left.endpoint.0, &b.0));
    assert_eq!((left.told, a.interrupts(), c.interrupts()), (2, 1, 0));
    assert_eq!(a.take(), [first, second]);
    for port in [first, second, offered] {
        assert_eq!(state(&registry, A, port), PortState::PeerClosed);
    }
    assert_eq!(registry.send(A, first, interrupt), Err(Error::PeerClosed));
    assert!(registry.leave(B, interrupt).is_none());
    assert_eq!(registry.notify(name, interrupt), Err(Error::PeerClosed));

    let again = Endpoint::new();
    again.words()[PENDING].store(u64::MAX, Ordering::SeqCst);
    registry.join(B, 8, again.clone()).unwrap();
    assert_eq!(again.take(), [], "its page begins empty");
    assert_eq!(registry.join(B, 8, again.clone()), Err(JoinError::Exists));
    assert_eq!(registry.bind(B, A, offered), Err(Error::Refused), "it was its predecessor's");
    assert_eq!(state(&registry, A, offered), PortState::PeerClosed);
    for _ in 0..8 {
        registry.bind_source(B, Source::Backend).unwrap();
    }
    assert_eq!(registry.send(A, first, interrupt), Err(Error::PeerClosed));
    assert_eq!(registry.notify(name, interrupt), Err(Error::PeerClosed));
    assert_eq!(registry.bind(C, B, own), Err(Error::Refused));
    assert_eq!((again.take(), again.interrupts()), ([].into(), 0));
}

#[test]
fn a_source_reaches_its_port_and_a_guest_cannot_send_there() {
    let (registry, [a, ..]) = three(4);
    let source = Source::Channel { channel: 9, queue: 2 };
    let name = registry.bind_source(A, source).unwrap();
    assert_eq!(state(&registry, A, name.port()), PortState::Source(source));
    assert_eq!(registry.notify(name, interrupt), Ok(true));
    assert_eq!(registry.notify(name, interrupt), Ok(false));
    assert_eq!((a.interrupts(), a.take()), (1, [name.port()].into()));
    assert_eq!(registry.send(A, name.port(), interrupt), Err(Error::NotConnected));
    assert_eq!(registry.bind(B, A, name.port()), Err(Error::Refused));
    assert_eq!(registry.close(A, name.port(), interrupt), Ok(false));
    assert_eq!(registry.notify(name, interrupt), Err(Error::PeerClosed));
    let next = registry.bind_source(A, source).unwrap();
    assert_eq!((next.port(), next == name), (name.port(), false));
    assert_eq!(registry.notify(name, interrupt), Err(Error::PeerClosed));
    assert_eq!(registry.notify(Name::from_bits(u64::MAX), interrupt), Err(Error::PeerClosed));
    assert_eq!(registry.notify(Name::from_bits(0), interrupt), Err(Error::PeerClosed));
}

#[test]
fn errors_say_what_to_do() {
    for error in [
        Error::BadPort,
        Error::NoPorts,
        Error::NoSuchDomain,
        Error::Refused,
        Error::NotConnected,
        Error::PeerClosed,
    ] {
        let line = std::format!("{error}");
        assert!(line.len() > 10 && !line.contains('\n'));
    }
    assert_eq!(Registry::<Endpoint>::new(0).join(A, 1, Endpoint::new()), Err(JoinError::NoRoom));
}

/// Senders on several threads, one that takes the events, and one that opens and closes ports beside them: what is sent
/// last is seen, each port's other end stays what it was, and no interrupt is lost.
#[test]
fn threads_lose_nothing() {
    const ROUNDS: usize = 20_000;
    let (registry, [_, b, _]) = three(64);
    let pairs: Vec<_> = (0..4).map(|_| pair(&registry)).collect();
    let received: Vec<_> = pairs.iter().map(|_| AtomicUsize::new(0)).collect();
    let sent: Vec<_> = pairs.iter().map(|_| AtomicUsize::new(0)).collect();
    let over = AtomicBool::new(false);
    let consumer = thread::current();
    thread::scope(|scope| {
        let senders: Vec<_> = (0..pairs.len())
            .map(|n| {
                let (registry, sent, consumer) = (&registry, &sent[n], consumer.clone());
                let port = pairs[n].0;
                scope.spawn(move || {
                    for round in 1..=ROUNDS {
                        sent.store(round, Ordering::Release);
                        registry.send(A, port, |_| consumer.unpark()).unwrap();
                    }
                })
            })
            .collect();
        let churn = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                let port = registry.allocate(C, A).unwrap();
                if let Ok(other) = registry.bind(A, C, port) {
                    registry.send(A, other, |_| ()).unwrap();
                    assert_eq!(registry.close(C, port, |_| ()), Ok(true));
                    assert_eq!(registry.close(A, other, |_| ()), Ok(false));
                }
            }
        });
        while received.iter().any(|received| received.load(Ordering::Acquire) < ROUNDS) {
            if !consumer::is_pending(&b) {
                thread::park();
            }
            consumer::take(&b, 64, |port| {
                let n = pairs.iter().position(|pair| pair.1 == port).unwrap();
                received[n].store(sent[n].load(Ordering::Acquire), Ordering::Release);
            });
        }
        for sender in senders {
            sender.join().unwrap();
        }
        over.store(true, Ordering::Release);
        churn.join().unwrap();
    });
}
