//! The page that a domain shares with Caisson: both sides' steps on it.
//!
//! The page is the domain's to write, at any time and with anything. Caisson reads three bits of it (whether a port is
//! pending, whether it is masked, whether anything is pending) and acts on them only by interrupting that same domain or
//! not: a domain that scribbles over its page gets interrupts of its own for nothing, at most one for each event sent to it,
//! or misses some. Nothing else is decided by the page.
//!
//! # Protocol
//!
//! ```text
//! Caisson, for an event at a port          the domain, when it is interrupted or looks by itself
//! 1  set pending[port]; was set: done      a  clear any
//! 2  look at mask[port]; set: done         b  for each port that is pending and not masked:
//! 3  set any; was set: done                c      clear pending[port]
//! 4  interrupt the domain                  d      handle the port's event
//! ```
//!
//! **One interrupt for many.** From 3 of the first to a, nobody else gets to 4.
//!
//! **No event is lost.** Let an event's step 1 come before the c that clears it: that c is followed by a d. It does come,
//! since pending stays set until somebody looks: who set it goes on to 3, unless the port is masked; an a behind that 3 is
//! followed by a look at pending, which finds it (3 and a are on one word, so that who sees the one sees what came before
//! it). If no a is under way, any was clear, and 4 is done; if any was set, the interrupt for it is on its way.
//!
//! **Unmasking loses none.** Who unmasks clears the mask and then looks at pending; a sender sets pending and then looks at
//! the mask. Every step that changes a word is a full barrier, so one of them sees the other's.

use caisson_abi::events::{ANY, MASK, PENDING};

/// The shared page's words, by atomic operations that always succeed: whoever makes a `Page` has made sure of its memory,
/// and what is written there by others changes results and nothing else.
///
/// Every method is sequentially consistent: `set`, `clear` and `take` are full barriers, as x86's locked instructions are.
/// They should be single instructions (`lock bts`, `lock btr`, `xchg`) and not loops, which a domain that writes without
/// end could keep from ending.
pub trait Page {
    /// A word's value.
    fn load(&self, word: Word) -> u64;
    /// Sets bit `bit % 64`; whether it was set.
    fn set(&self, word: Word, bit: u32) -> bool;
    /// Clears bit `bit % 64`; whether it was set.
    fn clear(&self, word: Word, bit: u32) -> bool;
    /// Puts 0 in; what was there.
    fn take(&self, word: Word) -> u64;
}

/// The number of a word in the page: always below [`PAGE_WORDS`](caisson_abi::events::PAGE_WORDS).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word(u16);

impl Word {
    /// Whether anything is pending.
    pub const ANY: Self = Self(ANY as u16);

    /// The pending bits of ports from `64 * group % 4096` on.
    #[must_use]
    pub const fn pending(group: u16) -> Self {
        Self(PENDING as u16 + group % 64)
    }

    /// The mask bits of the same ports.
    #[must_use]
    pub const fn mask(group: u16) -> Self {
        Self(MASK as u16 + group % 64)
    }

    /// Which of the page's words it is.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The bit of [`Word::ANY`] that is used.
const ANY_BIT: u32 = 0;

/// An event comes to `port`. Whether the domain is to be interrupted.
#[inline]
pub(crate) fn deliver(page: &impl Page, port: u16) -> bool {
    let (group, bit) = (port / 64, u32::from(port % 64));
    if page.set(Word::pending(group), bit) {
        return false;
    }
    if page.load(Word::mask(group)) >> bit & 1 != 0 {
        return false;
    }
    !page.set(Word::ANY, ANY_BIT)
}

/// Unmasks `port` for the domain. Whether it is to be interrupted, for what has come meanwhile.
pub(crate) fn unmask(page: &impl Page, port: u16) -> bool {
    consumer::unmask(page, port) && !page.set(Word::ANY, ANY_BIT)
}

/// Forgets what is pending at `port`, and its mask.
pub(crate) fn forget(page: &impl Page, port: u16) {
    let (group, bit) = (port / 64, u32::from(port % 64));
    page.clear(Word::pending(group), bit);
    page.clear(Word::mask(group), bit);
}

/// Zeroes what the ports below `ports` use.
pub(crate) fn reset(page: &impl Page, ports: u16) {
    page.take(Word::ANY);
    for group in 0..ports.div_ceil(64) {
        page.take(Word::pending(group));
        page.take(Word::mask(group));
    }
}

/// Whether a port's bits are set: pending, masked.
pub(crate) fn look(page: &impl Page, port: u16) -> (bool, bool) {
    let (group, bit) = (port / 64, u32::from(port % 64));
    let set = |word| page.load(word) >> bit & 1 != 0;
    (set(Word::pending(group)), set(Word::mask(group)))
}

/// The domain's side of the protocol, for programs that run in one.
pub mod consumer {
    use super::{ANY_BIT, Page, Word};

    /// Takes what is pending among the ports below `ports`: each that is not masked is cleared and given to `handle`.
    /// How many there were. To be called at each interrupt; an event that comes later brings another one.
    pub fn take(page: &impl Page, ports: u16, mut handle: impl FnMut(u16)) -> usize {
        page.take(Word::ANY);
        let mut taken = 0;
        for group in 0..ports.div_ceil(64) {
            let mut bits = page.load(Word::pending(group)) & !page.load(Word::mask(group));
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                let port = group * 64 + bit as u16;
                if port < ports && page.clear(Word::pending(group), bit) {
                    handle(port);
                    taken += 1;
                }
            }
        }
        taken
    }

    /// Whether anything has come since the last [`take`].
    #[must_use]
    pub fn is_pending(page: &impl Page) -> bool {
        page.load(Word::ANY) >> ANY_BIT & 1 != 0
    }

    /// No more interrupts for `port`. An event may still be on its way.
    pub fn mask(page: &impl Page, port: u16) {
        page.set(Word::mask(port / 64), u32::from(port % 64));
    }

    /// Interrupts for `port` again. Whether something has come meanwhile, for which there was none: [`take`] has it.
    #[must_use]
    pub fn unmask(page: &impl Page, port: u16) -> bool {
        let (group, bit) = (port / 64, u32::from(port % 64));
        page.clear(Word::mask(group), bit);
        page.load(Word::pending(group)) >> bit & 1 != 0
    }
}

/// For who makes sure that the words are the page's: tests, a program in a domain that has mapped it.
#[cfg(not(all(test, loom)))]
impl Page for [core::sync::atomic::AtomicU64; caisson_abi::events::PAGE_WORDS] {
    #[inline]
    fn load(&self, word: Word) -> u64 {
        self[word.index()].load(core::sync::atomic::Ordering::SeqCst)
    }

    #[inline]
    fn set(&self, word: Word, bit: u32) -> bool {
        let bit = 1 << (bit % 64);
        self[word.index()].fetch_or(bit, core::sync::atomic::Ordering::SeqCst) & bit != 0
    }

    #[inline]
    fn clear(&self, word: Word, bit: u32) -> bool {
        let bit = 1 << (bit % 64);
        self[word.index()].fetch_and(!bit, core::sync::atomic::Ordering::SeqCst) & bit != 0
    }

    #[inline]
    fn take(&self, word: Word) -> u64 {
        self[word.index()].swap(0, core::sync::atomic::Ordering::SeqCst)
    }
}
