//! virtio-rng (VIRTIO 1.3, section 5.4): random numbers of this domain's kernel.
//!
//! The kernel's generator is not used up by reading from it; what a guest could use up is this domain's CPU time. So a request gets
//! 256 bytes at most, which the specification allows, and all requests together so many bytes per second; a buffer for few bytes
//! counts as one for 64. What is over that waits in the ring, and its guest with it.
//!
//! Requests are done in their order and at once, so the ring says all that the next daemon has to know.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::PollFd;
use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::device::{Description, Device, Fault, Progress};
use crate::kinds::OpenError;
use crate::parameters::{ParameterError, Parameters};
use crate::ring::{QueueSetup, Ring, RingError};
use crate::statistics::Counters;
use crate::sys::Buffers;

/// Entries of the queue. Linux has one request at a time.
const QUEUE: u16 = 8;
/// The most bytes of a request that are filled: as many as `getrandom(2)` gives whole, without being interrupted.
const FILL: usize = 256;
/// What each buffer of a request counts as at least: as many bytes as Linux asks for.
const LEAST: u64 = 64;
/// Requests at a time, so that other things have their turn.
const BATCH: usize = 64;
/// How often there are bytes again.
const PERIOD: Duration = Duration::from_millis(125);
/// Periods of a second.
const PERIODS: u64 = 8;

/// A source of random numbers.
pub struct Entropy {
    quota: Quota,
    ring: Option<Ring>,
}

impl Entropy {
    /// The source that the parameters describe. Waits until the kernel's generator has been seeded: it never makes anybody wait
    /// from then on.
    ///
    /// # Errors
    /// What is wrong with the parameters, or with the generator.
    pub fn open(parameters: &Parameters) -> Result<Self, OpenError> {
        let rate = parameters.number("rate")?.ok_or(ParameterError::Missing("rate"))?;
        if rate < PERIODS {
            return Err(format!("a rate of {rate} bytes per second is too low").into());
        }
        random(&mut [0]).map_err(|error| format!("the kernel gives no random numbers: {error}"))?;
        Ok(Self { quota: Quota::new(rate, Instant::now()), ring: None })
    }

    /// [`Device::work`], at the time `now`.
    fn serve(&mut self, now: Instant, counters: &Counters) -> Result<Progress, Fault> {
        let mut progress = Progress::default();
        let Some(ring) = &mut self.ring else { return Ok(progress) };
        for _ in 0..BATCH {
            if !self.quota.is_open(now) {
                break;
            }
            let Some(chain) = ring.pop()? else { break };
            counters.requests.add(1);
            if !chain.readable.is_empty() {
                return Err(Fault::Request("a buffer for random numbers cannot be written"));
            }
            let buffers = Buffers::guest(ring.memory(), &chain.writable).ok_or(RingError::NotRam)?;
            let mut bytes = [0; FILL];
            let count = self.quota.take(buffers.bytes().min(FILL), chain.writable.len());
            let part = bytes.get_mut(..count).unwrap_or_default();
            random(part).map_err(Fault::Backend)?;
            let written = buffers.write(0, part);
            counters.bytes_to_guest.add(written as u64);
            ring.give(chain.head, written as u32)?;
            progress.any = true;
        }
        progress.interrupt = ring.wants_interrupt()?;
        Ok(progress)
    }
}

/// Fills `bytes`, at most [`FILL`], from the kernel's generator.
fn random(bytes: &mut [u8]) -> io::Result<()> {
    let wanted = bytes.len();
    let given = retry_on_intr(|| getrandom(&mut *bytes, GetRandomFlags::empty()))?;
    if given == wanted { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

impl Device for Entropy {
    fn description(&self) -> Description {
        let features = 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
        Description { kind: VIRTIO_ID_RNG, features, queues: vec![QUEUE], config: Vec::new() }
    }

    fn start(&mut self, setup: &QueueSetup) -> Result<(), Fault> {
        self.ring = Some(Ring::new(setup)?);
        Ok(())
    }

    fn stop(&mut self, _: u16) {
        self.ring = None;
    }

    fn work(&mut self, _: u64, counters: &Counters) -> Result<Progress, Fault> {
        self.serve(Instant::now(), counters)
    }

    fn arm(&mut self) -> Result<bool, Fault> {
        match &mut self.ring {
            // Nothing that comes before there are bytes again is worth a notification.
            Some(ring) if self.quota.opens().is_none() => Ok(ring.arm()?),
            _ => Ok(false),
        }
    }

    fn sources<'a>(&'a self, _: &mut Vec<PollFd<'a>>) {}

    fn deadline(&self) -> Option<Instant> {
        self.quota.opens()
    }
}

/// So many bytes in each period; what is left of one is not the next one's.
#[derive(Clone, Copy, Debug)]
struct Quota {
    bytes: u64,
    left: u64,
    began: Instant,
}

impl Quota {
    fn new(rate: u64, now: Instant) -> Self {
        let bytes = rate / PERIODS;
        Self { bytes, left: bytes, began: now }
    }

    /// Whether there are bytes, at the time `now`.
    fn is_open(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.began) >= PERIOD {
            (self.began, self.left) = (now, self.bytes);
        }
        self.left > 0
    }

    /// How many bytes a request for `wanted`, in so many buffers, gets of those that are left.
    fn take(&mut self, wanted: usize, buffers: usize) -> usize {
        let given = wanted.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left = self.left.saturating_sub((LEAST * buffers as u64).max(given as u64));
        given
    }

    /// When there are bytes again, if there are none.
    fn opens(&self) -> Option<Instant> {
        (self.left == 0).then(|| self.began + PERIOD)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Descriptor, Driver, INDIRECT, NEXT, WRITE, memory};

    const RAM: (u64, usize) = (0x10_0000, 1 << 20);
    const RINGS: u64 = RAM.0;
    const DATA: u64 = RAM.0 + 0x1_0000;

    struct Bench {
        entropy: Entropy,
        driver: Driver,
        counters: Counters,
        now: Instant,
    }

    impl Bench {
        fn new(rate: u64) -> Self {
            let parameters = Parameters::parse(&format!("rate={rate}\n")).unwrap();
            let mut entropy = Entropy::open(&parameters).unwrap();
            let driver = Driver::new(&memory(&[RAM]), RINGS, 16);
            entropy.start(&driver.setup(0, 0)).unwrap();
            let now = entropy.quota.began;
            Self { entropy, driver, counters: Counters::default(), now }
        }

        fn work(&mut self) -> Result<Progress, Fault> {
            self.entropy.serve(self.now, &self.counters)
        }

        /// How many bytes a request of these buffers gets.
        fn request(&mut self, buffers: &[(u64, u32, bool)]) -> u32 {
            let head = self.driver.add(buffers);
            assert_eq!(self.work().unwrap(), Progress { any: true, interrupt: true });
            let (used, written) = self.driver.used().unwrap();
            assert_eq!(used, head);
            written
        }
    }

    #[test]
    fn it_is_a_source_of_random_numbers() {
        let mut bench = Bench::new(64 << 10);
        let description = bench.entropy.description();
        assert_eq!((description.kind, description.queues), (4, vec![8]));
        assert_eq!(bench.request(&[(DATA, 64, true)]), 64);
        let first = bench.driver.bytes(DATA, 64);
        assert_eq!(bench.request(&[(DATA, 64, true)]), 64);
        let second = bench.driver.bytes(DATA, 64);
        assert!(first != second && first != [0; 64]);
        assert_eq!(bench.driver.bytes(DATA + 64, 64), [0; 64], "nothing behind it");
        // Buffers are one run of bytes, of which no more than so many are filled.
        assert_eq!(bench.request(&[(DATA + 0x1000, 8, true), (DATA + 0x2000, 4096, true)]), 256);
        assert_eq!(bench.driver.bytes(DATA + 0x2000 + 248, 64), [0; 64]);
        assert_eq!((bench.counters.requests.get(), bench.counters.bytes_to_guest.get()), (3, 384));
        assert_eq!(bench.work().unwrap(), Progress::default());
        assert!(!bench.entropy.arm().unwrap());
    }

    #[test]
    fn what_is_over_the_rate_waits() {
        // 128 bytes each eighth of a second.
        let mut bench = Bench::new(1024);
        assert_eq!(bench.request(&[(DATA, 100, true)]), 100);
        assert_eq!(bench.entropy.deadline(), None);
        assert_eq!(bench.request(&[(DATA, 100, true)]), 28);
        bench.driver.add(&[(DATA, 100, true)]);
        for _ in 0..3 {
            assert_eq!(bench.work().unwrap(), Progress::default());
            assert!(!bench.entropy.arm().unwrap(), "it sleeps, whatever is in the ring");
        }
        let opens = bench.entropy.deadline().unwrap();
        assert_eq!(opens, bench.now + PERIOD);
        bench.now = opens - Duration::from_nanos(1);
        assert!(!bench.work().unwrap().any);
        bench.now = opens;
        assert!(bench.work().unwrap().any);
        assert_eq!(bench.driver.used(), Some((2, 100)));
        assert_eq!(bench.entropy.deadline(), None);
        assert!(!bench.entropy.arm().unwrap());
        // A byte costs as much as 64, and so does each of many buffers.
        bench.now += PERIOD;
        let few = [1, 1].map(|count| bench.request(&[(DATA, count, true)]));
        assert_eq!((few, bench.entropy.quota.left), ([1, 1], 0));
        bench.now += PERIOD;
        assert_eq!(bench.request(&[(DATA, 1, true), (DATA, 1, true)]), 2);
        assert_eq!(bench.entropy.quota.left, 0);
    }

    #[test]
    fn a_life_goes_on_where_the_ring_says() {
        let mut bench = Bench::new(64 << 10);
        assert_eq!(bench.request(&[(DATA, 64, true)]), 64);
        bench.entropy.stop(0);
        assert_eq!(bench.work().unwrap(), Progress::default());
        bench.driver.add(&[(DATA, 32, true)]);
        bench.entropy.start(&bench.driver.setup(0, 0)).unwrap();
        assert!(bench.work().unwrap().any);
        assert_eq!((bench.driver.used(), bench.driver.used()), (Some((1, 32)), None));
    }

    #[test]
    fn nonsense_is_refused() {
        let nothing = RAM.0 + RAM.1 as u64;
        for buffers in [
            &[(DATA, 8, false)][..],
            &[(DATA, 8, false), (DATA, 8, true)],
            &[(DATA, 8, true), (DATA, 8, false)],
            &[(DATA, 0, true)],
            &[(nothing, 8, true)],
            &[(nothing - 4, 8, true)],
            &[(u64::MAX - 3, 8, true)],
            &[(0, u32::MAX, true)],
        ] {
            let mut bench = Bench::new(1024);
            bench.driver.add(buffers);
            assert!(bench.work().is_err(), "{buffers:?}");
            assert_eq!(bench.driver.used(), None);
        }
        let mut bench = Bench::new(1024);
        bench.driver.set_available(17);
        assert!(bench.work().is_err());
        for (parameters, error) in [
            ("", "parameter rate is missing"),
            ("rate=fast\n", "parameter rate: \"fast\" is not a number"),
            ("rate=7\n", "a rate of 7 bytes per second is too low"),
        ] {
            let refused = Entropy::open(&Parameters::parse(parameters).unwrap());
            let found = refused.err().map(|found| found.to_string()).unwrap_or_default();
            assert!(found.starts_with(error), "{found}");
        }
    }

    proptest! {
        /// Whatever is asked for and when, no span of time gives more than its periods and one have; and nobody waits for ever.
        #[test]
        fn no_time_gives_more_than_its_rate(
            rate in 8_u64..1 << 20,
            requests in proptest::collection::vec((0_u64..300, 1_usize..=FILL, 1_usize..20), 1..200),
        ) {
            let start = Instant::now();
            let (mut quota, mut now) = (Quota::new(rate, start), start);
            let mut given: Vec<(Instant, u64, u64)> = Vec::new();
            for (milliseconds, wanted, buffers) in requests {
                now += Duration::from_millis(milliseconds);
                if !quota.is_open(now) {
                    let opens = quota.opens().unwrap();
                    prop_assert!(opens > now && opens <= now + PERIOD);
                    now = opens;
                    prop_assert!(quota.is_open(now));
                }
                let count = quota.take(wanted, buffers);
                prop_assert!((1..=wanted).contains(&count));
                given.push((now, count as u64, buffers as u64));
            }
            for (first, &(from, ..)) in given.iter().enumerate() {
                let (mut bytes, mut work) = (0, 0);
                for &(to, count, buffers) in &given[first..] {
                    (bytes, work) = (bytes + count, work + buffers);
                    let periods = (to - from).as_millis() as u64 / PERIOD.as_millis() as u64 + 2;
                    prop_assert!(bytes <= periods * (rate / PERIODS));
                    // The last request of a period may be larger than what is left of it.
                    prop_assert!(work <= periods * (rate / PERIODS / LEAST + 20));
                }
            }
        }

        /// A driver that writes what it likes: nothing but its buffers is written, and what is used was offered.
        #[test]
        fn any_ring_is_served_or_refused(
            table in proptest::collection::vec((0_u64..0x1_8000, 0_u32..0x2000, any::<u16>(), 0_u16..20), 16),
            heads in proptest::collection::vec(0_u16..20, 1..16),
        ) {
            let mut bench = Bench::new(u64::MAX);
            for (index, (offset, bytes, flags, next)) in (0..).zip(table) {
                let flags = flags & (NEXT | WRITE | INDIRECT);
                let descriptor = Descriptor { address: RAM.0 + 0xf_0000 + offset, bytes, flags, next };
                bench.driver.descriptor(RINGS, index, descriptor);
            }
            let before = bench.driver.bytes(DATA, 0x1000);
            heads.iter().for_each(|&head| bench.driver.offer(head));
            let served = bench.work();
            let mut used = 0;
            while let Some((head, bytes)) = bench.driver.used() {
                prop_assert!(head == heads[used] && (1..=FILL as u32).contains(&bytes));
                used += 1;
            }
            prop_assert!(served.is_err() || used == heads.len());
            prop_assert_eq!(bench.driver.bytes(DATA, 0x1000), before);
        }
    }
}
