//! What other vCPUs and devices leave for a vCPU, without a lock.
//!
//! One word, [`Mailbox::has_work`], tells the run loop whether there is anything. Vectors are 256 request bits of their
//! own, with one bit in the word for all of them; NMI, INIT, SIPI (with its vector) and the caller's own work bits live in
//! the word itself, so that INIT and SIPI keep their order.
//!
//! # Ordering
//!
//! A sender sets the request bit and then, by a read-modify-write with release ordering, the flag in the word. The
//! receiver takes the word by a swap with acquire ordering and then the request bits. So:
//!
//! - a receiver that sees the flag sees the request (acquire of what was released);
//! - a request set after the receiver took its bits has its flag set after the receiver took the word, where it stays for
//!   the next look. A flag may be seen with its request already taken; that look finds nothing, which is harmless. What
//!   cannot happen is a request without a flag and without a receiver that has yet to look: **no lost wake-ups**.
//!
//! Posting answers whether the word was empty before: then, and only then, the receiver must be woken or kicked out of
//! its guest, since every earlier poster that found the word empty has done so, and the word has not been taken since.
//! For this to be enough the receiver must look at the word after the last point where a kick could go unnoticed, that is:
//! with host interrupts held off up to the entry (the kick's IPI then ends the guest's run at once), or, when it goes to
//! sleep, after it has announced so under the lock that the waker takes.

#[cfg(not(all(test, loom)))]
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::{DeliveryMode, InterruptMessage, TriggerMode, VectorSet};

const REQUESTS: u32 = 1 << 0;
const NMI: u32 = 1 << 1;
const INIT: u32 = 1 << 2;
const SIPI: u32 = 1 << 3;
const EXTINT: u32 = 1 << 4;
/// A second NMI.
const NMI_AGAIN: u32 = 1 << 5;
const SIPI_VECTOR_SHIFT: u32 = 8;
const SIPI_VECTOR: u32 = 0xff << SIPI_VECTOR_SHIFT;
const WORK_SHIFT: u32 = 16;

/// The letter box of one vCPU. Everyone may post; only the vCPU's own run loop takes
/// ([`LocalApic::drain`](crate::LocalApic::drain)).
#[derive(Default, Debug)]
#[repr(align(64))]
pub struct Mailbox {
    pending: AtomicU32,
    requests: [AtomicU64; VectorSet::WORDS],
    /// For each request, whether it is level-triggered; written before the request's bit.
    level: [AtomicU64; VectorSet::WORDS],
}

/// What was in the word when it was taken.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Taken {
    word: u32,
}

impl Taken {
    pub(crate) const fn requests(self) -> bool {
        self.word & REQUESTS != 0
    }
    /// How many: 0 to 2.
    pub(crate) const fn nmis(self) -> u8 {
        (self.word & NMI != 0) as u8 + (self.word & NMI_AGAIN != 0) as u8
    }
    pub(crate) const fn init(self) -> bool {
        self.word & INIT != 0
    }
    pub(crate) const fn extint(self) -> bool {
        self.word & EXTINT != 0
    }
    pub(crate) const fn sipi(self) -> Option<u8> {
        if self.word & SIPI != 0 { Some((self.word >> SIPI_VECTOR_SHIFT) as u8) } else { None }
    }
    pub(crate) const fn work(self) -> u16 {
        (self.word >> WORK_SHIFT) as u16
    }
}

impl Mailbox {
    /// An empty one.
    #[cfg(all(test, loom))]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty one.
    #[cfg(not(all(test, loom)))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            pending: AtomicU32::new(0),
            requests: [const { AtomicU64::new(0) }; VectorSet::WORDS],
            level: [const { AtomicU64::new(0) }; VectorSet::WORDS],
        }
    }

    /// Whether anything has been posted since the last look: one load. See the module's text for where to call it.
    #[inline]
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.pending.load(Ordering::Acquire) != 0
    }

    #[inline]
    fn flag(&self, bits: u32) -> bool {
        self.pending.fetch_or(bits, Ordering::AcqRel) == 0
    }

    /// Leaves `message`, which [`ApicMap`](crate::ApicMap) has resolved to this vCPU. Answers whether the vCPU must be
    /// woken or kicked.
    #[inline]
    #[must_use = "the vCPU must be woken or kicked when this is true"]
    pub fn post(&self, message: &InterruptMessage) -> bool {
        if message.is_ignored() {
            return false;
        }
        match message.delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.post_vector(message.vector, message.trigger)
            }
            DeliveryMode::Nmi => self.post_nmi(),
            DeliveryMode::Init => self.post_init(),
            DeliveryMode::Startup => self.post_sipi(message.vector),
            DeliveryMode::ExtInt => self.flag(EXTINT),
            DeliveryMode::Smi => false,
        }
    }

    /// Requests `vector`. A vector that is requested already stays one request, as in IRR. Answers whether the vCPU
    /// must be woken or kicked.
    #[inline]
    #[must_use = "the vCPU must be woken or kicked when this is true"]
    pub fn post_vector(&self, vector: u8, trigger: TriggerMode) -> bool {
        let (word, bit) = (usize::from(vector >> 6), 1u64 << (vector & 63));
        let level = &self.level[word];
        // Relaxed is enough: the request's release publishes it.
        match trigger {
            TriggerMode::Level => {
                level.fetch_or(bit, Ordering::Relaxed);
            }
            TriggerMode::Edge if level.load(Ordering::Relaxed) & bit != 0 => {
                level.fetch_and(!bit, Ordering::Relaxed);
            }
            TriggerMode::Edge => {}
        }
        self.requests[word].fetch_or(bit, Ordering::Release);
        self.flag(REQUESTS)
    }

    /// Leaves an NMI. Two before a look count as two (a CPU would be handling the first when the second comes), more as
    /// two as well. Answers whether the vCPU must be woken or kicked.
    #[must_use = "the vCPU must be woken or kicked when this is true"]
    pub fn post_nmi(&self) -> bool {
        self.modify(|word| if word & NMI == 0 { word | NMI } else { word | NMI_AGAIN })
    }

    /// Leaves an INIT, which cancels a SIPI before it. Answers whether the vCPU must be woken or kicked.
    #[must_use = "the vCPU must be woken or kicked when this is true"]
    pub fn post_init(&self) -> bool {
        self.modify(|word| word & !(SIPI | SIPI_VECTOR) | INIT)
    }

    /// Leaves a SIPI with the number of the page to start at (0 is one). The last one before a look counts. Answers
    /// whether the vCPU must be woken or kicked.
    #[must_use = "the vCPU must be woken or kicked when this is true"]
    pub fn post_sipi(&self, vector: u8) -> bool {
        let sipi = SIPI | u32::from(vector) << SIPI_VECTOR_SHIFT;
        self.modify(|word| word & !SIPI_VECTOR | sipi)
    }

    /// Leaves work bits, whose meaning is the caller's (they come back in [`Events::work`](crate::Events)). Answers
    /// whether the vCPU must be woken or kicked.
    #[must_use = "the vCPU must be woken or kicked when this is true"]
    pub fn post_work(&self, bits: u16) -> bool {
        bits != 0 && self.flag(u32::from(bits) << WORK_SHIFT)
    }

    /// Changes the word in one step.
    fn modify(&self, step: impl Fn(u32) -> u32) -> bool {
        let step = |word| Some(step(word));
        match self.pending.fetch_update(Ordering::AcqRel, Ordering::Relaxed, step) {
            Ok(before) | Err(before) => before == 0,
        }
    }

    /// Takes the word: the receiver's first step.
    #[inline]
    pub(crate) fn take(&self) -> Taken {
        Taken { word: self.pending.swap(0, Ordering::AcqRel) }
    }

    /// Takes the requests of one word of vectors: which, and which of them are level-triggered.
    #[inline]
    pub(crate) fn take_requests(&self, word: usize) -> (u64, u64) {
        let Some((requests, level)) = self.requests.get(word).zip(self.level.get(word)) else {
            return (0, 0);
        };
        if requests.load(Ordering::Relaxed) == 0 {
            return (0, 0);
        }
        let bits = requests.swap(0, Ordering::AcqRel);
        (bits, level.load(Ordering::Relaxed) & bits)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::thread;
    use std::time::Duration;
    use std::vec::Vec;

    /// Posters wait until their vector has been taken before they post it again, so that every post counts; the receiver
    /// sleeps whenever it finds nothing. A lost request or a lost wake-up ends in the receiver's time-out.
    #[test]
    fn threads_lose_neither_requests_nor_wake_ups() {
        const ROUNDS: usize = 3000;
        let mailbox = Arc::new(Mailbox::new());
        let vectors = [0x20u8, 0x21, 0x80, 0xff];
        let free: Arc<Vec<AtomicBool>> = Arc::new(vectors.iter().map(|_| AtomicBool::new(true)).collect());
        let receiver = thread::current();
        let posters: Vec<_> = (0..vectors.len())
            .map(|n| {
                let (mailbox, free, receiver) = (mailbox.clone(), free.clone(), receiver.clone());
                thread::spawn(move || {
                    let trigger = if n % 2 == 0 { TriggerMode::Edge } else { TriggerMode::Level };
                    for _ in 0..ROUNDS {
                        while !free[n].swap(false, Ordering::AcqRel) {
                            thread::yield_now();
                        }
                        if mailbox.post_vector(vectors[n], trigger) {
                            receiver.unpark();
                        }
                    }
                })
            })
            .collect();
        let mut counts = [0; 4];
        while counts.iter().any(|&count| count < ROUNDS) {
            if !mailbox.has_work() {
                let before = std::time::Instant::now();
                thread::park_timeout(Duration::from_secs(20));
                assert!(before.elapsed() < Duration::from_secs(20), "lost: {counts:?}");
                continue;
            }
            assert!(mailbox.take().requests());
            for word in 0..VectorSet::WORDS {
                let (requests, level) = mailbox.take_requests(word);
                for (n, &vector) in vectors.iter().enumerate() {
                    let bit = 1u64 << (vector & 63);
                    if usize::from(vector >> 6) == word && requests & bit != 0 {
                        assert_eq!(level & bit != 0, n % 2 != 0);
                        counts[n] += 1;
                        free[n].store(true, Ordering::Release);
                    }
                }
            }
        }
        posters.into_iter().for_each(|poster| poster.join().unwrap());
        assert_eq!(counts, [ROUNDS; 4]);
        assert!((0..VectorSet::WORDS).all(|word| mailbox.take_requests(word).0 == 0));
    }
}

/// Every interleaving and reordering: `RUSTFLAGS="--cfg loom" cargo test -p caisson-irqchip --release --lib loom_`.
#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use loom::sync::atomic::AtomicBool;
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    /// A vCPU with nothing to do, as the core blocks and wakes it: it says so under a lock and looks at its mail once more;
    /// a sender takes the same lock where its post found the word empty. A vCPU that is not asleep has yet to look.
    #[derive(Default)]
    struct Sleeper {
        mailbox: Mailbox,
        asleep: Mutex<bool>,
        woken: Condvar,
    }

    impl Sleeper {
        fn sleep(&self) {
            let mut asleep = self.asleep.lock().unwrap();
            if self.mailbox.has_work() {
                return;
            }
            *asleep = true;
            while *asleep {
                asleep = self.woken.wait(asleep).unwrap();
            }
        }

        fn wake(&self) {
            let mut asleep = self.asleep.lock().unwrap();
            if *asleep {
                *asleep = false;
                self.woken.notify_one();
            }
        }
    }

    const KICK: u16 = 4;

    /// HLT with interrupts off, until a kick, which may have come before; answers the requests that came meanwhile.
    fn halt(vcpu: &Sleeper, kicked: &mut bool) -> u64 {
        let mut requests = 0;
        loop {
            let taken = vcpu.mailbox.take();
            *kicked |= taken.work() & KICK != 0;
            if taken.requests() {
                requests |= vcpu.mailbox.take_requests(1).0;
            }
            if core::mem::take(kicked) {
                return requests;
            }
            vcpu.sleep();
        }
    }

    /// A paravirtual spinlock: the waiter looks at it and halts, its holder frees it and kicks the waiter. A lost kick ends
    /// with everybody asleep, which loom reports. The lock's word has no ordering of its own: what the waiter finds after
    /// the kick, it finds by the kick alone.
    #[test]
    fn no_kick_is_lost_on_the_way_into_a_halt() {
        loom::model(|| {
            let waiter = Arc::new(Sleeper::default());
            let free = Arc::new(AtomicBool::new(false));
            let holder = {
                let (waiter, free) = (waiter.clone(), free.clone());
                thread::spawn(move || {
                    free.store(true, Ordering::Relaxed);
                    if waiter.mailbox.post_work(KICK) {
                        waiter.wake();
                    }
                })
            };
            let mut kicked = false;
            if !free.load(Ordering::Relaxed) {
                halt(&waiter, &mut kicked);
                assert!(free.load(Ordering::Relaxed), "one kick, one look");
            }
            holder.join().unwrap();
        });
    }

    /// An interrupt that the halted vCPU does not take comes beside the kick: whichever finds the word empty wakes, and
    /// neither takes the other's place.
    #[test]
    fn no_kick_is_lost_beside_an_interrupt() {
        loom::model(|| {
            let waiter = Arc::new(Sleeper::default());
            let senders = [false, true].map(|kicks| {
                let waiter = waiter.clone();
                thread::spawn(move || {
                    let first = if kicks {
                        waiter.mailbox.post_work(KICK)
                    } else {
                        waiter.mailbox.post_vector(0x41, TriggerMode::Edge)
                    };
                    if first {
                        waiter.wake();
                    }
                })
            });
            let mut kicked = false;
            let mut requests = halt(&waiter, &mut kicked);
            for sender in senders {
                sender.join().unwrap();
            }
            if waiter.mailbox.take().requests() {
                requests |= waiter.mailbox.take_requests(1).0;
            }
            assert_eq!(requests, 2);
        });
    }

    /// A vCPU moves the chipset's deadline nearer, and leaves a work bit for the one that keeps the chipset's time: that
    /// one does not go to sleep by the old deadline.
    #[test]
    fn no_deadline_is_slept_through() {
        loom::model(|| {
            let keeper = Arc::new(Sleeper::default());
            let deadline = Arc::new(AtomicU64::new(100));
            let other = {
                let (keeper, deadline) = (keeper.clone(), deadline.clone());
                thread::spawn(move || {
                    deadline.store(50, Ordering::Release);
                    if keeper.mailbox.post_work(2) {
                        keeper.wake();
                    }
                })
            };
            loop {
                let mail = keeper.mailbox.take().work();
                let armed = deadline.load(Ordering::Acquire);
                assert!(mail == 0 || armed == 50, "mail that says nothing new");
                if armed == 50 {
                    break;
                }
                keeper.sleep();
            }
            other.join().unwrap();
        });
    }

    /// Two posters and a receiver that looks until the word is empty for good: every request arrives, with its trigger
    /// mode, and exactly the posts that found the word empty woke.
    #[test]
    fn no_request_is_lost() {
        loom::model(|| {
            let mailbox = Arc::new(Mailbox::new());
            let posters = [(0x41, TriggerMode::Edge), (0x42, TriggerMode::Level)].map(|(vector, trigger)| {
                let mailbox = mailbox.clone();
                thread::spawn(move || usize::from(mailbox.post_vector(vector, trigger)))
            });
            let (mut seen, mut looks) = (0, 0);
            let mut look = || {
                if mailbox.has_work() {
                    looks += 1;
                    assert!(mailbox.take().requests());
                    let (requests, level) = mailbox.take_requests(1);
                    assert_eq!(level, requests & 4);
                    assert_eq!(seen & requests, 0);
                    seen |= requests;
                }
            };
            look();
            let wakes: usize = posters.into_iter().map(|poster| poster.join().unwrap()).sum();
            look();
            look();
            assert_eq!(seen, 0b110);
            assert_eq!(wakes, looks, "each look that found work was announced");
        });
    }

    /// INIT cancels an earlier SIPI and not a later one, whoever looks in between.
    #[test]
    fn init_then_sipi_keeps_its_order() {
        loom::model(|| {
            let mailbox = Arc::new(Mailbox::new());
            let sender = {
                let mailbox = mailbox.clone();
                thread::spawn(move || {
                    let _ = mailbox.post_init();
                    let _ = mailbox.post_sipi(0);
                })
            };
            let first = mailbox.take();
            sender.join().unwrap();
            let second = mailbox.take();
            assert!(first.init() != second.init());
            assert!(first.sipi().is_some() != second.sipi().is_some());
            assert!(first.init() || second.sipi() == Some(0), "never the SIPI before the INIT");
        });
    }
}
