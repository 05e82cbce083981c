//! Which pages of a domain have been written: a bit a page, set by everybody who writes or finds a trace of a write, and
//! taken by one who harvests.
//!
//! # Ordering
//!
//! Who writes a page by itself marks it afterwards, with release ordering. A harvest takes each word of marks by a swap with
//! acquire ordering. So a mark that a harvest takes was made behind its write, which whoever reads the page after the
//! harvest sees; and a mark that comes later is the next harvest's. None is lost.

use alloc::vec::Vec;
use core::ops::{Deref, Range};
use core::sync::atomic::{AtomicU64, Ordering};

use caisson_types::{Gpa, PAGE_SIZE};

/// Words of a chunk of marks: a page.
const WORDS: usize = 512;
/// Pages that a chunk has marks for.
const CHUNK_PAGES: u64 = WORDS as u64 * 64;
/// Bytes of guest-physical memory that a chunk has marks for: 128 MiB.
pub const CHUNK_BYTES: u64 = CHUNK_PAGES * PAGE_SIZE;

/// The marks of one chunk.
pub type Marks = [AtomicU64; WORDS];

/// One chunk of guest-physical memory that has memory of the guest's in it.
struct Chunk<C> {
    /// Its number: the address over [`CHUNK_BYTES`].
    number: u64,
    /// Marks since the last harvest.
    fresh: C,
    /// Marks of the last harvest.
    taken: C,
}

/// The pages of a domain that have been written. `C` is the memory of a chunk's marks.
pub struct WriteLog<C> {
    /// By ascending numbers.
    chunks: Vec<Chunk<C>>,
}

impl<C: Deref<Target = Marks>> WriteLog<C> {
    /// A log without marks for the pages of `ranges` (first address and bytes, ascending), in memory that `allocate` gives,
    /// all zero: two pages for each [`CHUNK_BYTES`]. `None` where it has none left.
    pub fn new(
        ranges: impl IntoIterator<Item = (Gpa, u64)>,
        mut allocate: impl FnMut() -> Option<C>,
    ) -> Option<Self> {
        let mut chunks: Vec<Chunk<C>> = Vec::new();
        for (gpa, len) in ranges.into_iter().filter(|(_, len)| *len != 0) {
            let last = gpa.as_u64().saturating_add(len - 1) / CHUNK_BYTES;
            let next = chunks.last().map_or(0, |chunk| chunk.number + 1);
            for number in next.max(gpa.as_u64() / CHUNK_BYTES)..=last {
                chunks.push(Chunk { number, fresh: allocate()?, taken: allocate()? });
            }
        }
        Some(Self { chunks })
    }

    /// How many chunks there are: they are harvested one by one.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The guest-physical addresses of a chunk, some of which may be no memory.
    #[must_use]
    pub fn addresses(&self, chunk: usize) -> Range<u64> {
        let start = self.chunks.get(chunk).map_or(0, |chunk| chunk.number * CHUNK_BYTES);
        start..start + CHUNK_BYTES
    }

    /// Calls `word` with each word of marks that the range has bits in, and those bits.
    fn words(&self, gpa: Gpa, len: u64, mut word: impl FnMut(&Chunk<C>, usize, u64)) {
        let Some(last) = len.checked_sub(1).map(|rest| gpa.as_u64().saturating_add(rest)) else { return };
        let (first, last) = (gpa.as_u64() / PAGE_SIZE, last / PAGE_SIZE);
        let from = self.chunks.partition_point(|chunk| chunk.number < first / CHUNK_PAGES);
        for chunk in self.chunks.iter().skip(from).take_while(|chunk| chunk.number <= last / CHUNK_PAGES) {
            let base = chunk.number * CHUNK_PAGES;
            let (start, end) = (first.max(base) - base, last.min(base + CHUNK_PAGES - 1) - base);
            for index in start / 64..=end / 64 {
                let low = start.saturating_sub(index * 64);
                let high = (end - index * 64).min(63);
                word(chunk, index as usize, u64::MAX >> (63 - high) & u64::MAX << low);
            }
        }
    }

    /// The pages that hold these bytes have been written. What is no memory of the guest's is left out.
    pub fn mark(&self, gpa: Gpa, len: u64) {
        self.words(gpa, len, |chunk, index, bits| {
            if let Some(word) = chunk.fresh.get(index) {
                word.fetch_or(bits, Ordering::Release);
            }
        });
    }

    /// Puts pages among those of the harvest that is going on.
    pub fn mark_taken(&self, gpa: Gpa, len: u64) {
        self.words(gpa, len, |chunk, index, bits| {
            if let Some(word) = chunk.taken.get(index) {
                word.fetch_or(bits, Ordering::Relaxed);
            }
        });
    }

    /// Takes a chunk's marks over into the harvest, and calls `run` with the first address and the length of every run of
    /// pages that they are for.
    pub fn take(&self, chunk: usize, mut run: impl FnMut(Gpa, u64)) {
        let Some(chunk) = self.chunks.get(chunk) else { return };
        let words = chunk.fresh.iter().zip(chunk.taken.iter()).map(|(fresh, taken)| {
            let bits = if fresh.load(Ordering::Relaxed) == 0 { 0 } else { fresh.swap(0, Ordering::AcqRel) };
            if bits != 0 {
                taken.fetch_or(bits, Ordering::Relaxed);
            }
            bits
        });
        runs(chunk.number * CHUNK_BYTES, words, &mut run);
    }

    /// Calls `run` with every run of pages of the harvest in a chunk, and forgets them.
    pub fn harvested(&self, chunk: usize, mut run: impl FnMut(Gpa, u64)) {
        let Some(chunk) = self.chunks.get(chunk) else { return };
        let words = chunk.taken.iter().map(|word| match word.load(Ordering::Relaxed) {
            0 => 0,
            _ => word.swap(0, Ordering::Relaxed),
        });
        runs(chunk.number * CHUNK_BYTES, words, &mut run);
    }

    /// Forgets all marks.
    pub fn clear(&self) {
        for chunk in &self.chunks {
            chunk.fresh.iter().chain(chunk.taken.iter()).for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }
}

/// Calls `run` for every run of ones in `words`, whose first bit is for the page at `base`.
fn runs(base: u64, words: impl Iterator<Item = u64>, run: &mut impl FnMut(Gpa, u64)) {
    // First page and length of the run that reaches up to the next bit.
    let mut open: Option<(u64, u64)> = None;
    for (index, word) in (0u64..).zip(words) {
        let mut bit = 0;
        while bit < 64 {
            let rest = word >> bit;
            let zeros = u64::from(rest.trailing_zeros()).min(64 - bit);
            if zeros != 0 {
                if let Some((first, pages)) = open.take() {
                    run(Gpa::new(base + first * PAGE_SIZE), pages * PAGE_SIZE);
                }
                bit += zeros;
                continue;
            }
            let ones = u64::from(rest.trailing_ones());
            let (first, pages) = open.unwrap_or((index * 64 + bit, 0));
            open = Some((first, pages + ones));
            bit += ones;
        }
    }
    if let Some((first, pages)) = open {
        run(Gpa::new(base + first * PAGE_SIZE), pages * PAGE_SIZE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::collections::BTreeSet;
    use alloc::sync::Arc;
    use core::sync::atomic::AtomicBool;
    use proptest::prelude::*;
    use std::thread;

    type Log = WriteLog<Box<Marks>>;

    fn page() -> Option<Box<Marks>> {
        Some(Box::new([const { AtomicU64::new(0) }; WORDS]))
    }

    const fn pages(n: u64) -> u64 {
        n * PAGE_SIZE
    }

    /// Two pieces of memory, with a hole between them.
    fn log() -> Log {
        let high = 5 * CHUNK_BYTES;
        let ranges = [(Gpa::new(0), CHUNK_BYTES + pages(3)), (Gpa::new(high), pages(70))];
        WriteLog::new(ranges, page).unwrap()
    }

    fn take_all(log: &Log) -> Vec<(u64, u64)> {
        let (mut taken, mut harvested) = (Vec::new(), Vec::new());
        for chunk in 0..log.chunks() {
            log.take(chunk, |gpa, len| taken.push((gpa.as_u64(), len)));
            log.harvested(chunk, |gpa, len| harvested.push((gpa.as_u64(), len)));
        }
        assert_eq!(taken, harvested);
        taken
    }

    #[test]
    fn marks_are_harvested_once_as_runs() {
        let log = log();
        assert_eq!(log.chunks(), 3);
        assert_eq!(log.addresses(2), 5 * CHUNK_BYTES..6 * CHUNK_BYTES);
        log.mark(Gpa::new(0), 0);
        log.mark(Gpa::new(pages(2) - 1), 2);
        log.mark(Gpa::new(pages(60)), pages(70));
        // Over the border of two chunks, and into the hole.
        log.mark(Gpa::new(CHUNK_BYTES - pages(1)), pages(2));
        log.mark(Gpa::new(3 * CHUNK_BYTES), pages(1));
        log.mark(Gpa::new(u64::MAX), u64::MAX);
        let expected = [
            (pages(1), pages(2)),
            (pages(60), pages(70)),
            (CHUNK_BYTES - pages(1), pages(1)),
            (CHUNK_BYTES, pages(1)),
        ];
        assert_eq!(take_all(&log), expected);
        assert_eq!(take_all(&log), []);
    }

    #[test]
    fn a_harvest_also_takes_what_was_found_elsewhere() {
        let log = log();
        log.mark(Gpa::new(pages(4)), 1);
        log.mark_taken(Gpa::new(pages(5)), pages(2));
        let (mut taken, mut all) = (0, Vec::new());
        log.take(0, |_, len| taken += len);
        log.harvested(0, |gpa, len| all.push((gpa.as_u64(), len)));
        assert_eq!((taken, all), (PAGE_SIZE, alloc::vec![(pages(4), pages(3))]));
        log.mark(Gpa::new(0), 1);
        log.mark_taken(Gpa::new(0), 1);
        log.clear();
        assert_eq!(take_all(&log), []);
    }

    #[test]
    fn without_memory_there_is_no_log() {
        let mut left = 5;
        let allocate = || {
            left -= 1;
            if left == 0 { None } else { page() }
        };
        assert!(WriteLog::new([(Gpa::new(0), 3 * CHUNK_BYTES)], allocate).is_none());
        assert_eq!(left, 0);
    }

    /// Threads write words and mark them; a harvester reads what it takes. In the end it has read every last value.
    #[test]
    fn no_write_is_lost_between_harvests() {
        const PAGES: usize = 200;
        let log = Arc::new(log());
        let memory: Arc<Vec<AtomicU64>> = Arc::new((0..PAGES).map(|_| AtomicU64::new(0)).collect());
        let done = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..3u64)
            .map(|seed| {
                let (log, memory) = (log.clone(), memory.clone());
                thread::spawn(move || {
                    let mut at = seed;
                    for _ in 0..20_000 {
                        at = at
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let index = (at >> 33) as usize % PAGES;
                        memory[index].fetch_add(1, Ordering::Relaxed);
                        log.mark(Gpa::new(pages(index as u64)), 8);
                    }
                })
            })
            .collect();
        let harvester = {
            let (log, memory, done) = (log.clone(), memory.clone(), done.clone());
            thread::spawn(move || {
                let mut copy = alloc::vec![0; PAGES];
                loop {
                    let last = done.load(Ordering::Acquire);
                    for (gpa, len) in take_all(&log) {
                        let first = (gpa / PAGE_SIZE) as usize;
                        for index in first..first + (len / PAGE_SIZE) as usize {
                            copy[index] = memory[index].load(Ordering::Relaxed);
                        }
                    }
                    if last {
                        return copy;
                    }
                }
            })
        };
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Release);
        let copy = harvester.join().unwrap();
        assert_eq!(copy, memory.iter().map(|word| word.load(Ordering::Relaxed)).collect::<Vec<_>>());
        assert_eq!(copy.iter().sum::<u64>(), 60_000);
    }

    proptest! {
        #[test]
        fn a_harvest_is_the_set_of_marked_pages(
            marks in prop::collection::vec((0u64..40_000, 1u64..300, any::<bool>()), 0..40)
        ) {
            let log = log();
            let mut expected = BTreeSet::new();
            for (first, count, taken) in marks {
                let (gpa, len) = (Gpa::new(pages(first)), pages(count));
                if taken { log.mark_taken(gpa, len) } else { log.mark(gpa, len) }
                // The log has room for whole chunks.
                expected.extend((first..first + count).filter(|page| page / CHUNK_PAGES < 2));
            }
            let mut found = BTreeSet::new();
            let mut end = 0;
            for chunk in 0..log.chunks() {
                log.take(chunk, |_, _| {});
                log.harvested(chunk, |gpa, len| {
                    let first = gpa.as_u64() / PAGE_SIZE;
                    assert!(first >= end && len != 0);
                    end = first + len / PAGE_SIZE;
                    found.extend(first..end);
                });
            }
            prop_assert_eq!(found, expected);
        }
    }
}
