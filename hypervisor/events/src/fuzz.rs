//! Entry point for fuzz target and property test: domains that make, use and close ports as the bytes say, and scribble
//! over their shared pages, between the operations and in the middle of them.
//!
//! Each step is done by a [`Registry`] and by the plain [`Model`], which must agree: on the answer, on who is interrupted,
//! on each port's status, and, but for what was scribbled in the middle, on every word of every page.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use caisson_abi::events::{ANY, MASK, PAGE_WORDS, PENDING, PortStatus, Source};
use caisson_abi::{CallError, CallResult, EventCall, Number};
use caisson_types::DomainId;

use crate::model::{Model, Place};
use crate::{Error, JoinError, Left, Name, Page, Registry, Word, consumer};

/// How many domains there is room for.
const DOMAINS: u16 = 4;
/// Ports of each: few, so that they run out, and some across words.
const PORTS: [u16; DOMAINS as usize] = [2, 3, 4, 70];
/// Steps of one input.
const STEPS: usize = 500;

/// A domain's page, which the domain may change at each access of Caisson's.
struct Paper {
    domain: u16,
    words: RefCell<[u64; PAGE_WORDS]>,
    /// What is written at the next accesses.
    scribbles: RefCell<VecDeque<(usize, u64)>>,
    /// Whether it has been touched since somebody looked.
    touched: Cell<bool>,
}

impl Paper {
    fn new(domain: u16, words: [u64; PAGE_WORDS]) -> Self {
        Self { domain, words: RefCell::new(words), scribbles: RefCell::default(), touched: Cell::new(false) }
    }

    fn access<R>(&self, word: Word, step: impl FnOnce(&mut u64) -> R) -> R {
        self.touched.set(true);
        let mut words = self.words.borrow_mut();
        if let Some((word, value)) = self.scribbles.borrow_mut().pop_front() {
            words[word] = value;
        }
        step(&mut words[word.index()])
    }
}

impl Page for Rc<Paper> {
    fn load(&self, word: Word) -> u64 {
        self.access(word, |word| *word)
    }
    fn set(&self, word: Word, bit: u32) -> bool {
        self.access(word, |word| {
            let was = *word >> (bit % 64) & 1 != 0;
            *word |= 1 << (bit % 64);
            was
        })
    }
    fn clear(&self, word: Word, bit: u32) -> bool {
        self.access(word, |word| {
            let was = *word >> (bit % 64) & 1 != 0;
            *word &= !(1 << (bit % 64));
            was
        })
    }
    fn take(&self, word: Word) -> u64 {
        self.access(word, core::mem::take)
    }
}

/// What is done, as the input has it.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u8(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn domain(&mut self) -> u16 {
        match self.u8() {
            0xff => u16::MAX,
            n => u16::from(n) % (DOMAINS + 1),
        }
    }

    fn port(&mut self) -> u16 {
        match self.u8() {
            0xff => u16::MAX,
            0xfe => 69,
            0xfd => 64,
            n => u16::from(n) % 5,
        }
    }

    /// A word that matters, or any other, and a value for it.
    fn scribble(&mut self) -> (usize, u64) {
        let word = match self.u8() {
            n @ 0..=0x3f => PENDING + usize::from(n & 1),
            n @ 0x40..=0x7f => MASK + usize::from(n & 1),
            0x80..=0xbf => ANY,
            n => (usize::from(n & 0x3f) << 8 | usize::from(self.u8())) % PAGE_WORDS,
        };
        let value = match self.u8() {
            0 => u64::MAX,
            n => u64::from(n) - 1,
        };
        (word, value)
    }

    fn source(&mut self) -> Source {
        Source::from_bits(u64::from(self.u8()) << 16 | u64::from(self.u8() & 3)).unwrap_or(Source::Backend)
    }
}

/// Registry and model, side by side.
struct Both {
    registry: Registry<Rc<Paper>>,
    model: Model,
    papers: Vec<Option<Rc<Paper>>>,
    /// Names of ports for sources, and where they are; those whose port was closed meanwhile are still here.
    names: Vec<(Name, Place, bool)>,
    /// Pages are compared.
    exact: bool,
}

/// Does what `data` says.
///
/// # Panics
/// Where the registry and the model part, or a promise is broken: a bug of Caisson's.
pub fn drive(data: &[u8]) {
    let mut input = Input(data);
    let mut both = Both {
        registry: Registry::new(usize::from(DOMAINS)),
        model: Model::default(),
        papers: (0..DOMAINS).map(|_| None).collect(),
        names: Vec::new(),
        exact: true,
    };
    let live = input.u8();
    for domain in (0..DOMAINS).filter(|domain| live >> domain & 1 == 0) {
        both.join(domain, &mut input);
    }
    // Whether pages change in the middle of operations.
    let wild = input.u8() & 1 != 0;
    both.exact = !wild;
    for _ in 0..STEPS {
        if input.0.is_empty() {
            break;
        }
        if wild {
            both.prepare(&mut input);
        }
        both.step(&mut input);
        both.compare();
    }
}

impl Both {
    fn paper(&self, domain: u16) -> Option<&Rc<Paper>> {
        self.papers.get(usize::from(domain))?.as_ref()
    }

    fn join(&mut self, domain: u16, input: &mut Input<'_>) {
        let (word, value) = input.scribble();
        let mut page = [0; PAGE_WORDS];
        page[word] = value;
        let paper = Rc::new(Paper::new(domain, page));
        let ports = PORTS.get(usize::from(domain)).copied().unwrap_or(1);
        let joined = self.registry.join(DomainId(domain), ports, paper.clone());
        let expected = if domain >= DOMAINS {
            Err(JoinError::NoRoom)
        } else if self.model.domains.contains_key(&domain) {
            Err(JoinError::Exists)
        } else {
            self.papers[usize::from(domain)] = Some(paper);
            self.model.join(domain, ports, page);
            Ok(())
        };
        assert_eq!(joined, expected);
        for ports in [0, 4097, u16::MAX] {
            let refused = self.registry.join(DomainId(domain), ports, Rc::new(Paper::new(domain, page)));
            assert_eq!(refused, Err(JoinError::Ports));
        }
    }

    fn leave(&mut self, domain: u16) {
        let mut interrupted = Vec::new();
        let left = self.registry.leave(DomainId(domain), |paper| interrupted.push(paper.domain));
        let told = self.model.leave(domain);
        assert_eq!(left.as_ref().map(|left| left.told), told);
        if let Some(Left { endpoint, .. }) = left {
            assert_eq!(endpoint.domain, domain);
            self.papers[usize::from(domain)] = None;
            assert_eq!(Rc::strong_count(&endpoint), 1, "somebody still has the page");
        }
        self.names.iter_mut().filter(|(_, place, _)| place.0 == domain).for_each(|name| name.2 = false);
        self.interrupts(&interrupted);
    }

    /// The next accesses to some pages find something else there.
    fn prepare(&self, input: &mut Input<'_>) {
        for paper in self.papers.iter().flatten() {
            let scribbles = (0..input.u8() & 3).map(|_| input.scribble()).collect();
            *paper.scribbles.borrow_mut() = scribbles;
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.u8() % 16;
        let (domain, port) = (input.domain(), input.port());
        for paper in self.papers.iter().flatten() {
            paper.touched.set(false);
        }
        match kind {
            0 => {
                if input.u8() & 3 == 0 {
                    self.leave(domain);
                }
            }
            1 => self.join(domain, input),
            2 => {
                let source = input.source();
                let bound = self.registry.bind_source(DomainId(domain), source);
                assert_eq!(bound.map(Name::port), self.model.bind_source(domain, source));
                self.names.extend(bound.map(|name| (name, (domain, name.port()), true)));
            }
            3 | 4 => self.notify(usize::from(input.u8())),
            5 => self.scribble(domain, input.scribble()),
            6 => self.consume(domain),
            _ => self.call(kind, domain, port, input),
        }
    }

    /// A source whose port was bound sometime has an event.
    fn notify(&mut self, at: usize) {
        let Some(&(name, place, current)) = self.names.get(at % self.names.len().max(1)) else { return };
        let mut interrupted = Vec::new();
        let notified = self.registry.notify(name, |paper| interrupted.push(paper.domain));
        assert_eq!(notified.is_ok(), current);
        if current {
            let expected = self.model.notify(place);
            assert!(!self.exact || notified == Ok(expected));
        } else {
            assert_eq!(notified, Err(Error::PeerClosed));
        }
        let reached = [place.0];
        self.touched(if current { &reached } else { &[] });
        self.interrupts(&interrupted);
    }

    /// The domain writes to its page.
    fn scribble(&mut self, domain: u16, (word, value): (usize, u64)) {
        if let Some(paper) = self.paper(domain) {
            paper.words.borrow_mut()[word] = value;
        }
        if let Some(domain) = self.model.domains.get_mut(&domain) {
            domain.page[word] = value;
        }
    }

    /// The domain takes its events.
    fn consume(&mut self, domain: u16) {
        let Some(paper) = self.paper(domain) else { return };
        paper.scribbles.borrow_mut().clear();
        let before = *paper.words.borrow();
        let mut taken = Vec::new();
        let ports = PORTS.get(usize::from(domain)).copied().unwrap_or(0);
        consumer::take(paper, ports, |port| taken.push(port));
        assert!(!consumer::is_pending(paper));
        let bit = |first: usize, port: u16| before[first + usize::from(port / 64)] >> (port % 64) & 1 != 0;
        let expected: Vec<_> = (0..ports).filter(|&port| bit(PENDING, port) && !bit(MASK, port)).collect();
        assert_eq!(taken, expected);
        let after = *paper.words.borrow();
        if let Some(domain) = self.model.domains.get_mut(&domain) {
            domain.page = after;
        }
    }

    /// A call of the domain's.
    fn call(&mut self, kind: u8, domain: u16, port: u16, input: &mut Input<'_>) {
        let remote = input.domain();
        let (call, number) = match kind {
            7 | 8 => (EventCall::Allocate { remote: DomainId(remote) }, Number::EventAllocate),
            9 | 10 => (EventCall::Bind { remote: DomainId(remote), port }, Number::EventBind),
            11 => (EventCall::Close { port }, Number::EventClose),
            12 | 13 => (EventCall::Send { port }, Number::EventSend),
            14 => (EventCall::Mask { port }, Number::EventMask),
            _ => (EventCall::Unmask { port }, Number::EventUnmask),
        };
        let peer = self.peer(domain, port);
        let mut interrupted = Vec::new();
        let done = self.registry.perform(
            DomainId(domain),
            call,
            |paper| interrupted.push(paper.domain),
            |_| Err(CallError::NoSuchCall),
        );
        if let Err(error) = done {
            assert!(number.errors().contains(&error), "{call:?} answers {error:?}");
        }
        let expected = self.expected(domain, call);
        assert_eq!(done, expected, "{call:?} of {domain}");
        match call {
            EventCall::Send { .. } => {
                self.touched(&peer.filter(|_| done.is_ok()).into_iter().collect::<Vec<_>>());
            }
            EventCall::Close { .. } if done.is_ok() => {
                self.names.iter_mut().filter(|name| name.1 == (domain, port)).for_each(|name| name.2 = false);
                self.touched(&peer.into_iter().chain([domain]).collect::<Vec<_>>());
            }
            EventCall::Mask { .. } | EventCall::Unmask { .. } if done.is_ok() => self.touched(&[domain]),
            _ => self.touched(&[]),
        }
        self.interrupts(&interrupted);
    }

    /// The domain at the other end of a port.
    fn peer(&self, domain: u16, port: u16) -> Option<u16> {
        match self.model.status(domain, port).ok()?.state {
            caisson_abi::events::PortState::Bound { remote, .. } => Some(remote.0),
            _ => None,
        }
    }

    fn expected(&mut self, domain: u16, call: EventCall) -> CallResult {
        let model = &mut self.model;
        let result = match call {
            EventCall::Allocate { remote } => model.allocate(domain, remote.0).map(u64::from),
            EventCall::Bind { remote, port } => model.bind(domain, remote.0, port).map(u64::from),
            EventCall::Close { port } => model.close(domain, port).map(|_| 0),
            EventCall::Send { port } => model.send(domain, port).map(|_| 0),
            EventCall::Mask { port } => model.mask(domain, port).map(|()| 0),
            EventCall::Unmask { port } => model.unmask(domain, port).map(|_| 0),
            EventCall::Status { port } => model.status(domain, port).map(PortStatus::to_bits),
            EventCall::BindSource(_) => Err(Error::BadPort),
        };
        result.map_err(CallError::from)
    }

    /// No other pages than those of `domains` were touched.
    fn touched(&self, domains: &[u16]) {
        for paper in self.papers.iter().flatten() {
            assert!(
                !paper.touched.get() || domains.contains(&paper.domain),
                "the page of {} was touched",
                paper.domain
            );
        }
    }

    /// Who was interrupted is who had to be.
    fn interrupts(&mut self, interrupted: &[u16]) {
        let expected = core::mem::take(&mut self.model.interrupted);
        if self.exact {
            assert_eq!(interrupted, expected);
        }
    }

    /// The ports are what the model says, and the pages.
    fn compare(&mut self) {
        for domain in 0..=DOMAINS {
            if let Some(paper) = self.paper(domain) {
                paper.scribbles.borrow_mut().clear();
            }
            for port in [0, 1, 2, 3, 4, 63, 64, 69, 70, 4095, u16::MAX] {
                let status = self.registry.status(DomainId(domain), port);
                let expected = self.model.status(domain, port);
                if self.exact {
                    assert_eq!(status, expected, "port {port} of {domain}");
                } else {
                    let state = |status: Result<PortStatus, Error>| status.map(|status| status.state);
                    assert_eq!(state(status), state(expected), "port {port} of {domain}");
                }
            }
            let Some(words) = self.paper(domain).map(|paper| *paper.words.borrow()) else { continue };
            let Some(model) = self.model.domains.get_mut(&domain) else { continue };
            if self.exact {
                assert!(words == model.page, "the page of {domain}");
            } else {
                model.page = words;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

        #[test]
        fn the_registry_does_what_the_model_does(data in proptest::collection::vec(any::<u8>(), 0..3000)) {
            super::drive(&data);
        }
    }
}
