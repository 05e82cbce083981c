//! How threads of the daemon tell each other to look.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Bits that others set, and a descriptor that becomes readable with the first. Setting bits that are set costs no system call.
#[derive(Debug)]
pub struct Bell {
    bits: AtomicU64,
    fd: OwnedFd,
}

/// The bit for what is no queue's: a change, an end.
pub const CHANGED: u64 = 1 << 63;

/// The bit of a queue.
#[must_use]
pub const fn queue_bit(queue: u16) -> u64 {
    if queue < 62 { 1 << queue } else { 1 << 62 }
}

impl Bell {
    /// With no bit set.
    ///
    /// # Errors
    /// The kernel's, where it has no room.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { bits: AtomicU64::new(0), fd })
    }

    /// Sets bits, and wakes who waits.
    pub fn ring(&self, bits: u64) {
        if self.bits.fetch_or(bits, Ordering::SeqCst) == 0 {
            // It fails only if its count is full, and then it is readable.
            let _ = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
        }
    }

    /// Takes the bits.
    pub fn take(&self) -> u64 {
        if self.bits.load(Ordering::SeqCst) == 0 { 0 } else { self.bits.swap(0, Ordering::SeqCst) }
    }

    /// Makes the descriptor unreadable. To be called after a sleep and before [`Bell::take`]: who rings between the two has its
    /// bits taken, and who rings behind them makes it readable again.
    pub fn drain(&self) {
        // It fails only if it is not readable.
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
    }

    /// What is readable when there are bits. It may be readable when there are none.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    #[test]
    fn queues_have_their_bits() {
        assert_eq!(
            (queue_bit(0), queue_bit(61), queue_bit(62), queue_bit(u16::MAX)),
            (1, 1 << 61, 1 << 62, 1 << 62)
        );
        assert_eq!(queue_bit(u16::MAX) & CHANGED, 0);
    }

    #[test]
    fn no_ring_is_lost() {
        const ROUNDS: u64 = 20_000;
        let bell = Arc::new(Bell::new().unwrap());
        let answer = Arc::new(Bell::new().unwrap());
        let wait = |bell: &Bell| {
            loop {
                let bits = bell.take();
                if bits != 0 {
                    return bits;
                }
                poll(&mut [PollFd::from_borrowed_fd(bell.fd(), PollFlags::IN)], None).unwrap();
                bell.drain();
            }
        };
        let (here, there) = (Arc::clone(&bell), Arc::clone(&answer));
        let ringer = std::thread::spawn(move || {
            for round in 0..ROUNDS {
                here.ring(1 << (round % 63));
                wait(&there);
            }
        });
        for round in 0..ROUNDS {
            assert_eq!(wait(&bell), 1 << (round % 63));
            answer.ring(1);
        }
        ringer.join().unwrap();
    }
}
