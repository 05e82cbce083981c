//! Interrupt messages that wait for the caller.

use caisson_irqchip::{IOAPIC_PINS, InterruptMessage};

/// Room for one message of each pin and for one more per line that a single call can raise again.
const CAPACITY: usize = 32;
const _: () = assert!(CAPACITY > IOAPIC_PINS);

/// A first-in first-out queue without doubles: two equal messages that nobody has delivered yet are one at the local
/// APIC, too. So it holds at most one message of each pin, unless a pin's entry was changed before the queue was
/// emptied; a message too many is then dropped, which the owner prevents by emptying the queue after each call.
#[derive(Clone, Debug)]
pub(super) struct Outbox {
    messages: [Option<InterruptMessage>; CAPACITY],
    first: usize,
    len: usize,
}

impl Outbox {
    pub(super) const fn new() -> Self {
        Self { messages: [None; CAPACITY], first: 0, len: 0 }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, message: InterruptMessage) {
        let waiting = (0..self.len).map(|i| self.messages[(self.first + i) % CAPACITY]);
        if self.len == CAPACITY || waiting.into_iter().any(|other| other == Some(message)) {
            return;
        }
        self.messages[(self.first + self.len) % CAPACITY] = Some(message);
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<InterruptMessage> {
        if self.len == 0 {
            return None;
        }
        let message = self.messages[self.first % CAPACITY].take();
        self.first = (self.first + 1) % CAPACITY;
        self.len -= 1;
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_merges_doubles_and_is_bounded() {
        let mut outbox = Outbox::new();
        for round in 0..3u32 {
            for i in 0..40 {
                outbox.push(InterruptMessage::fixed(round, i));
                outbox.push(InterruptMessage::fixed(round, i));
            }
            for i in 0..CAPACITY as u8 {
                assert_eq!(outbox.pop(), Some(InterruptMessage::fixed(round, i)));
            }
            assert_eq!(outbox.pop(), None);
            assert!(outbox.is_empty());
        }
    }
}
