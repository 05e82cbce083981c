//! The protocols under every interleaving and reordering: `RUSTFLAGS="--cfg loom" cargo test -p caisson-events --release
//! --lib loom_`. A wake-up that is lost ends with everybody asleep, which loom reports.
//!
//! Models have counterparts with a step left out or in the wrong order, which loom must refute: so the models would notice.

mod loom_models {
    // Not loom's: that one panics again where a model that must fail is taken apart.
    use std::sync::Arc;

    use caisson_abi::events::PortState;
    use caisson_types::DomainId;
    use loom::sync::{Condvar, Mutex};
    use loom::thread::{self, JoinHandle};

    use crate::page::deliver;
    use crate::port::Kind;
    use crate::sync::{AtomicU64, Ordering};
    use crate::table::Table;
    use crate::*;

    const A: DomainId = DomainId(0);
    const B: DomainId = DomainId(1);
    const C: DomainId = DomainId(2);

    /// The words of a page that one group of ports needs, and its domain's interrupt.
    struct Sheet {
        any: AtomicU64,
        pending: AtomicU64,
        mask: AtomicU64,
        /// Changes are barriers, as they are to be.
        barriers: bool,
        /// Its domain is gone, and the page somebody else's.
        gone: AtomicU64,
        interrupt: Mutex<bool>,
        sleeps: Condvar,
    }

    impl Sheet {
        fn new(barriers: bool) -> Arc<Self> {
            Arc::new(Self {
                any: AtomicU64::new(0),
                pending: AtomicU64::new(0),
                mask: AtomicU64::new(0),
                barriers,
                gone: AtomicU64::new(0),
                interrupt: Mutex::new(false),
                sleeps: Condvar::new(),
            })
        }

        fn word(&self, word: Word) -> &AtomicU64 {
            assert!(self.gone.load(Ordering::Relaxed) == 0, "the page of a domain that is gone is touched");
            match word {
                Word::ANY => &self.any,
                word if word == Word::pending(0) => &self.pending,
                _ => &self.mask,
            }
        }

        fn barrier(&self) {
            if self.barriers {
                loom::sync::atomic::fence(Ordering::SeqCst);
            }
        }

        /// Sleeps until the next interrupt.
        fn sleep(&self) {
            let mut interrupt = self.interrupt.lock().unwrap();
            while !*interrupt {
                interrupt = self.sleeps.wait(interrupt).unwrap();
            }
            *interrupt = false;
        }

        fn pending(&self) -> u64 {
            self.pending.load(Ordering::Acquire)
        }
    }

    type Endpoint = Arc<Sheet>;

    fn interrupt(sheet: &Endpoint) {
        *sheet.interrupt.lock().unwrap() = true;
        sheet.sleeps.notify_one();
    }

    impl Page for Endpoint {
        fn load(&self, word: Word) -> u64 {
            self.word(word).load(Ordering::Acquire)
        }
        fn set(&self, word: Word, bit: u32) -> bool {
            let was = self.word(word).fetch_or(1 << bit, Ordering::AcqRel) >> bit & 1 != 0;
            self.barrier();
            was
        }
        fn clear(&self, word: Word, bit: u32) -> bool {
            let was = self.word(word).fetch_and(!(1 << bit), Ordering::AcqRel) >> bit & 1 != 0;
            self.barrier();
            was
        }
        fn take(&self, word: Word) -> u64 {
            let was = self.word(word).swap(0, Ordering::AcqRel);
            self.barrier();
            was
        }
    }

    fn model(check: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(4);
        builder.max_branches = 20_000;
        builder.check(check);
    }

    type Events = Arc<Registry<Endpoint>>;

    /// `N` domains with as many ports as there are domains.
    fn domains<const N: usize>(ports: u16) -> (Events, [Endpoint; N]) {
        let registry = Registry::new(N);
        let mut next = 0;
        let sheets = [(); N].map(|()| {
            let sheet = Sheet::new(true);
            registry.join(DomainId(next), ports, sheet.clone()).unwrap();
            next += 1;
            sheet
        });
        (Arc::new(registry), sheets)
    }

    /// Port 0 of A is bound to port 0 of B.
    fn connect(events: &Events) {
        assert_eq!((events.allocate(A, B), events.bind(B, A, 0)), (Ok(0), Ok(0)));
    }

    fn spawn<R: 'static>(events: &Events, run: impl FnOnce(&Events) -> R + 'static) -> JoinHandle<R> {
        let events = events.clone();
        thread::spawn(move || run(&events))
    }

    fn state(events: &Events, domain: DomainId) -> PortState {
        events.status(domain, 0).unwrap().state
    }

    // ---- the page

    /// What the domain does at an interrupt: [`consumer::take`], or its steps in a wrong order.
    fn take(sheet: &Endpoint, right: bool) -> u64 {
        let mut taken = 0;
        if right {
            consumer::take(sheet, 2, |port| taken |= 1 << port);
        } else {
            taken = sheet.take(Word::pending(0));
            sheet.take(Word::ANY);
        }
        taken
    }

    /// Two events come while the domain takes what there is, and sleeps when there is nothing.
    fn sends_against_take(right_take: bool, right_send: bool) {
        model(move || {
            let sheet = Sheet::new(true);
            let senders = [0, 1].map(|port| {
                let sheet = sheet.clone();
                thread::spawn(move || {
                    if right_send {
                        if deliver(&sheet, port) {
                            interrupt(&sheet);
                        }
                    } else {
                        if !sheet.set(Word::ANY, 0) {
                            interrupt(&sheet);
                        }
                        sheet.set(Word::pending(0), port.into());
                    }
                })
            });
            let mut taken = 0;
            while taken != 3 {
                taken |= take(&sheet, right_take);
                if taken != 3 {
                    sheet.sleep();
                }
            }
            for sender in senders {
                sender.join().unwrap();
            }
        });
    }

    #[test]
    fn loom_no_event_is_lost_against_a_take() {
        sends_against_take(true, true);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_a_take_that_clears_any_last_loses_one() {
        sends_against_take(false, true);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_a_send_that_sets_any_first_loses_one() {
        sends_against_take(true, false);
    }

    /// Two events at one port: what the second sender wrote before is seen by who takes the last one.
    #[test]
    fn loom_an_event_that_finds_its_port_pending_is_seen_with_it() {
        model(|| {
            let (sheet, written) = (Sheet::new(true), Arc::new(AtomicU64::new(0)));
            let senders = [1, 2].map(|mark| {
                let (sheet, written) = (sheet.clone(), written.clone());
                thread::spawn(move || {
                    written.fetch_or(mark, Ordering::Relaxed);
                    if deliver(&sheet, 0) {
                        interrupt(&sheet);
                    }
                })
            });
            let mut seen = 0;
            while seen != 3 {
                if take(&sheet, true) == 0 {
                    sheet.sleep();
                } else {
                    seen = written.load(Ordering::Relaxed);
                }
            }
            for sender in senders {
                sender.join().unwrap();
            }
        });
    }

    /// How many interrupts there are for two events that come before the domain looks.
    #[test]
    fn loom_two_events_before_a_look_are_one_interrupt() {
        model(|| {
            let sheet = Sheet::new(true);
            let other = {
                let sheet = sheet.clone();
                thread::spawn(move || usize::from(deliver(&sheet, 0)))
            };
            let interrupts = usize::from(deliver(&sheet, 1)) + other.join().unwrap();
            assert_eq!((interrupts, take(&sheet, true)), (1, 3));
        });
    }

    /// How the domain unmasks.
    #[derive(Clone, Copy)]
    enum Unmask {
        /// In its page.
        Itself,
        /// By Caisson.
        Call,
        /// In its page, without a look at what has come.
        Blindly,
    }

    /// An event comes while its port is unmasked.
    fn send_against_unmask(how: Unmask, barriers: bool) {
        model(move || {
            let events = Arc::new(Registry::new(2));
            let sheet = Sheet::new(barriers);
            events.join(A, 1, Sheet::new(barriers)).unwrap();
            events.join(B, 1, sheet.clone()).unwrap();
            connect(&events);
            events.mask(B, 0).unwrap();
            let sender = spawn(&events, |events| events.send(A, 0, interrupt).map(|_| ()));
            let found = match how {
                Unmask::Itself => consumer::unmask(&sheet, 0),
                Unmask::Call => events.unmask(B, 0, interrupt).is_err(),
                Unmask::Blindly => {
                    sheet.clear(Word::mask(0), 0);
                    false
                }
            };
            if !found {
                sheet.sleep();
            }
            while take(&sheet, true) == 0 {
                sheet.sleep();
            }
            assert_eq!(sender.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn loom_no_event_is_lost_against_an_unmask() {
        send_against_unmask(Unmask::Itself, true);
    }

    #[test]
    fn loom_no_event_is_lost_against_an_unmask_by_call() {
        send_against_unmask(Unmask::Call, true);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_an_unmask_that_does_not_look_loses_one() {
        send_against_unmask(Unmask::Blindly, true);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_without_barriers_an_unmask_loses_one() {
        send_against_unmask(Unmask::Call, false);
    }

    // ---- ports that close and are had again

    /// How a port is closed, and how an event finds its way.
    #[derive(Clone, Copy, PartialEq)]
    enum Close {
        Right,
        /// Without waiting for sends that are under way.
        Undrained,
        /// The sender takes the port that it finds for the one that it knew.
        Nameless,
    }

    /// A sends to B, which closes its port, and connects the same port to C.
    fn send_against_rebind(how: Close) {
        model(move || {
            let (events, [a, b, c]) = domains(1);
            connect(&events);
            let sender = {
                let b = b.clone();
                spawn(&events, move |events| {
                    if how == Close::Nameless {
                        let known = events.look(A, |table| table.connection(0)).unwrap();
                        let is_bound =
                            |table: &Table<Endpoint>| table.port(0).unwrap().state().kind() == Kind::Bound;
                        if known.is_ok() && events.look(B, is_bound).unwrap() {
                            deliver(&b, 0);
                        }
                    } else {
                        let sent = events.send(A, 0, interrupt);
                        assert!(sent.is_ok() || sent == Err(Error::PeerClosed));
                    }
                })
            };
            if how == Close::Undrained {
                events.look(B, |own| {
                    let port = own.port(0).unwrap();
                    assert!(port.begin_close().is_some());
                    assert!(
                        events
                            .look(A, |table| table.lose_peer(Name::from_bits(port.other()), interrupt))
                            .unwrap()
                    );
                    own.release(0, port);
                });
            } else {
                assert_eq!(events.close(B, 0, interrupt), Ok(true));
            }
            assert_eq!((events.allocate(B, C), events.bind(C, B, 0)), (Ok(0), Ok(0)));
            sender.join().unwrap();
            assert_eq!(
                (b.pending(), c.pending()),
                (0, 0),
                "an event of the old connection is in the new one"
            );
            assert_eq!((a.pending(), state(&events, A)), (1, PortState::PeerClosed));
        });
    }

    #[test]
    fn loom_an_event_does_not_reach_the_next_life_of_its_port() {
        send_against_rebind(Close::Right);
    }

    #[test]
    #[should_panic(expected = "in the new one")]
    fn loom_a_close_that_does_not_wait_lets_an_event_into_the_next_life() {
        send_against_rebind(Close::Undrained);
    }

    #[test]
    #[should_panic(expected = "in the new one")]
    fn loom_without_names_an_event_reaches_the_next_life() {
        send_against_rebind(Close::Nameless);
    }

    /// A vCPU of A sends, while another one closes the port and connects it to C: the event reaches C only if the send was
    /// answered well, and then not B as well.
    #[test]
    fn loom_a_send_reaches_whom_its_port_is_bound_to() {
        model(|| {
            let (events, [_, b, c]) = domains(1);
            connect(&events);
            assert_eq!(events.allocate(C, A), Ok(0));
            let sender = spawn(&events, |events| events.send(A, 0, |_| ()));
            assert_eq!(events.close(A, 0, interrupt), Ok(true));
            assert_eq!(take(&b, true), 1, "B is told");
            assert_eq!(events.bind(A, C, 0), Ok(0));
            match sender.join().unwrap() {
                Ok(_) => assert!(b.pending() + c.pending() <= 1),
                Err(_) => assert_eq!((b.pending(), c.pending()), (0, 0)),
            }
        });
    }

    /// A sends on a port as soon as B is bound to it.
    fn send_against_bind(right: bool) {
        model(move || {
            let (events, [_, b]) = domains(1);
            assert_eq!(events.allocate(A, B), Ok(0));
            let sender = spawn(&events, |events| events.send(A, 0, interrupt));
            if right {
                assert_eq!(events.bind(B, A, 0), Ok(0));
            } else {
                // The other side is connected before there is something to send to.
                let name = Name::new(B, 0, events.serial());
                events.look(A, |theirs| {
                    let port = theirs.port(0).unwrap();
                    let to = Name::new(A, 0, port.state().serial());
                    assert!(port.claim(to.serial(), name));
                    events.look(B, |own| own.port(0).unwrap().open(Kind::Bound, name.serial(), to.to_bits()));
                });
            }
            match sender.join().unwrap() {
                Ok(_) => assert_eq!(b.pending(), 1, "an event is lost"),
                Err(error) => {
                    assert_eq!((error, b.pending()), (Error::NotConnected, 0), "connected and not");
                }
            }
        });
    }

    #[test]
    fn loom_a_port_that_is_bound_can_be_sent_to() {
        send_against_bind(true);
    }

    #[test]
    #[should_panic(expected = "connected and not")]
    fn loom_a_bind_that_connects_the_other_side_first_refuses_events() {
        send_against_bind(false);
    }

    #[test]
    fn loom_an_offer_is_taken_once() {
        model(|| {
            let (events, [_, _]) = domains(2);
            assert_eq!(events.allocate(A, B), Ok(0));
            let other = spawn(&events, |events| events.bind(B, A, 0));
            let results = [events.bind(B, A, 0), other.join().unwrap()];
            let port = results.iter().find_map(|result| result.ok()).unwrap();
            assert!(results.contains(&Err(Error::Refused)));
            assert_eq!(state(&events, A), PortState::Bound { remote: B, port });
            assert_eq!(events.status(B, 1 - port).unwrap().state, PortState::Free);
            assert_eq!(events.allocate(B, A), Ok(1 - port), "the other port can be had again");
        });
    }

    /// An offer is withdrawn while it is taken.
    #[test]
    fn loom_a_bind_against_a_close_is_one_or_the_other() {
        model(|| {
            let (events, [_, b]) = domains(1);
            assert_eq!(events.allocate(A, B), Ok(0));
            let binder = spawn(&events, |events| events.bind(B, A, 0));
            let told = events.close(A, 0, interrupt).unwrap();
            assert_eq!(events.allocate(A, A), Ok(0));
            let bound = binder.join().unwrap();
            assert_eq!(bound, if told { Ok(0) } else { Err(Error::Refused) });
            let expected = if told { (PortState::PeerClosed, 1) } else { (PortState::Free, 0) };
            assert_eq!((state(&events, B), b.pending()), expected);
            assert_eq!(state(&events, A), PortState::Unbound { remote: A }, "the next offer is untouched");
        });
    }

    // ---- domains that go

    /// A goes, while another CPU closes its port for it; B listens.
    fn end_against_close(right: bool) {
        model(move || {
            let (events, [_, b]) = domains(1);
            connect(&events);
            let lose = |events: &Events, b: &Endpoint| {
                let lose = |table: &Table<Endpoint>| {
                    let port = table.port(0).unwrap();
                    let told = port.state().kind() == Kind::Bound;
                    port.turn(port.state().serial(), Kind::Bound, Kind::PeerClosed);
                    if told {
                        deliver(b, 0);
                    }
                    told
                };
                events.look(B, lose).unwrap()
            };
            let closer = {
                let b = b.clone();
                spawn(&events, move |events| {
                    if right { events.close(A, 0, interrupt) == Ok(true) } else { lose(events, &b) }
                })
            };
            let told =
                if right { events.leave(A, interrupt).unwrap().told } else { lose(&events, &b).into() };
            let mut taken = take(&b, true);
            let told = told + usize::from(closer.join().unwrap());
            assert_eq!(told, 1, "told exactly once");
            taken += take(&b, true);
            assert_eq!((taken, state(&events, B)), (1, PortState::PeerClosed));
        });
    }

    #[test]
    fn loom_a_survivor_is_told_once() {
        end_against_close(true);
    }

    #[test]
    #[should_panic(expected = "told exactly once")]
    fn loom_without_one_step_a_survivor_is_told_twice() {
        end_against_close(false);
    }

    /// Both sides of a connection go at once, or one goes while the other closes.
    #[test]
    fn loom_both_sides_may_go_at_once() {
        model(|| {
            let (events, [_, _]) = domains(1);
            connect(&events);
            let other = spawn(&events, |events| events.leave(B, interrupt).unwrap().told);
            let told = events.leave(A, interrupt).unwrap().told;
            assert!(told + other.join().unwrap() <= 1);
        });
    }

    #[test]
    fn loom_a_close_against_the_peers_end() {
        model(|| {
            let (events, [_, b]) = domains(1);
            connect(&events);
            let closer = spawn(&events, |events| events.close(B, 0, interrupt).unwrap());
            let told = events.leave(A, interrupt).unwrap().told;
            assert!(told + usize::from(closer.join().unwrap()) <= 1);
            assert_eq!((state(&events, B), b.pending()), (PortState::Free, 0));
            assert_eq!(events.allocate(B, B), Ok(0));
        });
    }

    /// A domain goes while it binds.
    #[test]
    fn loom_a_bind_against_the_binders_end() {
        model(|| {
            let (events, [a, _]) = domains(1);
            assert_eq!(events.allocate(A, B), Ok(0));
            let binder = spawn(&events, |events| events.bind(B, A, 0));
            let told = events.leave(B, interrupt).unwrap().told;
            let bound = binder.join().unwrap();
            assert_eq!(bound, if told == 1 { Ok(0) } else { Err(Error::NoPorts) });
            // Bound and told, or not bound: then the offer is to nobody.
            assert_eq!((state(&events, A), a.pending()), (PortState::PeerClosed, told as u64));
        });
    }

    /// A domain goes while another one binds to its offer.
    #[test]
    fn loom_a_bind_against_the_other_sides_end() {
        model(|| {
            let (events, [_, b]) = domains(1);
            assert_eq!(events.allocate(A, B), Ok(0));
            let binder = spawn(&events, |events| events.bind(B, A, 0));
            let told = events.leave(A, interrupt).unwrap().told;
            let bound = binder.join().unwrap();
            if told == 1 {
                assert_eq!((bound, state(&events, B), b.pending()), (Ok(0), PortState::PeerClosed, 1));
            } else {
                assert_eq!((bound, state(&events, B)), (Err(Error::NoSuchDomain), PortState::Free));
            }
        });
    }

    /// A domain goes while it is sent to: its page is then somebody else's.
    fn send_against_end(looks: bool) {
        model(move || {
            let (events, [_, b]) = domains(1);
            connect(&events);
            let sender = {
                let b = b.clone();
                spawn(&events, move |events| {
                    if looks {
                        let _ = events.send(A, 0, interrupt);
                    } else if events.look(B, |_| ()).is_some() {
                        deliver(&b, 0);
                    }
                })
            };
            let left = events.leave(B, interrupt).unwrap();
            left.endpoint.gone.store(1, Ordering::Relaxed);
            sender.join().unwrap();
            assert_eq!(state(&events, A), PortState::PeerClosed);
        });
    }

    #[test]
    fn loom_the_page_of_a_domain_that_is_gone_is_left_alone() {
        send_against_end(true);
    }

    #[test]
    #[should_panic(expected = "is touched")]
    fn loom_a_look_that_ends_early_touches_the_page_of_a_domain_that_is_gone() {
        send_against_end(false);
    }

    /// A source has an event for a port that is closed and had again for another source.
    #[test]
    fn loom_a_source_does_not_reach_the_next_life_of_its_port() {
        model(|| {
            let (events, [a]) = domains(1);
            let source = caisson_abi::events::Source::Backend;
            let name = events.bind_source(A, source).unwrap();
            let sender = spawn(&events, move |events| events.notify(name, interrupt).is_ok());
            assert_eq!(events.close(A, 0, interrupt), Ok(false));
            assert!(events.bind_source(A, source).is_ok_and(|next| next.port() == 0 && next != name));
            sender.join().unwrap();
            assert_eq!(a.pending(), 0, "an event of the old connection is in the new one");
        });
    }
}
