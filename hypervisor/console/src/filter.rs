//! What of a guest's output may stand in a line among those of others: text and colours.
//!
//! Control characters and sequences are those of ECMA-48; terminals take the 8-bit ones from UTF-8 as well (U+0080 to
//! U+009F), so these go too.

/// Where the filter is in a sequence.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum State {
    /// In text.
    #[default]
    Text,
    /// Behind ESC.
    Escape,
    /// Behind ESC `[`: so many bytes of the sequence are kept.
    Sequence(u8),
    /// In a string that ESC `]`, `P`, `X`, `^` or `_` began: to BEL or ESC.
    String,
    /// Behind the first byte of a UTF-8 sequence that may be an 8-bit control.
    Latin,
}

/// Longest colour sequence that is passed on, in bytes behind ESC `[`.
const LONGEST: usize = 16;

/// A filter for one guest's output.
#[derive(Clone, Copy, Default, Debug)]
pub struct Filter {
    state: State,
    kept: [u8; LONGEST],
}

impl Filter {
    /// A filter in text.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: State::Text, kept: [0; LONGEST] }
    }

    /// Passes a byte through: `pass` is called with what may be shown, if anything. Line ends are the caller's.
    pub fn feed(&mut self, byte: u8, mut pass: impl FnMut(&[u8])) {
        match self.state {
            State::Text => match byte {
                0x1b => self.state = State::Escape,
                0xc2 => self.state = State::Latin,
                b'\t' | 0x20..=0x7e | 0x80..=0xff => pass(&[byte]),
                _ => {}
            },
            State::Escape => {
                self.state = match byte {
                    b'[' => State::Sequence(0),
                    b']' | b'P' | b'X' | b'^' | b'_' => State::String,
                    0x1b => State::Escape,
                    // A sequence of two bytes, or of three with an intermediate one, whose last byte shows as text.
                    _ => State::Text,
                };
            }
            State::Sequence(used) => self.sequence(used, byte, pass),
            State::String => match byte {
                0x07 => self.state = State::Text,
                0x1b => self.state = State::Escape,
                _ => {}
            },
            State::Latin => {
                self.state = State::Text;
                if !(0x80..=0x9f).contains(&byte) {
                    pass(&[0xc2]);
                    self.feed(byte, pass);
                }
            }
        }
    }

    /// A byte of a control sequence: parameters are kept, and passed on with an `m` behind them, which is a colour.
    fn sequence(&mut self, used: u8, byte: u8, mut pass: impl FnMut(&[u8])) {
        let at = usize::from(used);
        match byte {
            b'0'..=b'9' | b';' | b':' => {
                if let Some(place) = self.kept.get_mut(at) {
                    *place = byte;
                }
                // Beyond the longest the count stands, and the sequence is dropped at its end.
                self.state = State::Sequence(used.saturating_add(1));
            }
            b'm' => {
                self.state = State::Text;
                if let Some(parameters) = self.kept.get(..at) {
                    pass(b"\x1b[");
                    pass(parameters);
                    pass(b"m");
                }
            }
            0x1b => self.state = State::Escape,
            // Another final byte, or none that belongs here.
            0x40..=0x7e => self.state = State::Text,
            // Intermediate and private bytes: whatever follows is no colour.
            _ => self.state = State::Sequence(u8::MAX),
        }
    }

    /// Whether the next byte stands outside of any sequence.
    #[must_use]
    pub fn is_in_text(&self) -> bool {
        self.state == State::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn filtered(input: &[u8]) -> Vec<u8> {
        let mut filter = Filter::new();
        let mut out = Vec::new();
        for &byte in input {
            filter.feed(byte, |bytes| out.extend_from_slice(bytes));
        }
        out
    }

    #[test]
    fn text_and_colours_pass() {
        assert_eq!(filtered(b"a\tb \x1b[1;32mgreen\x1b[0m\x1b[mz"), b"a\tb \x1b[1;32mgreen\x1b[0m\x1b[mz");
        assert_eq!(filtered("Grüße, 世界, ¡".as_bytes()), "Grüße, 世界, ¡".as_bytes());
    }

    #[test]
    fn movements_strings_and_controls_go() {
        assert_eq!(filtered(b"a\x1b[2J\x1b[1;1Hb\x1b[?25lc\x1b[6nd"), b"abcd");
        assert_eq!(filtered(b"a\x1b]0;title\x07b\x1bP payload\x1b\\c\x1b7d\x08\x0b\x00e"), b"abcde");
        assert_eq!(filtered(b"a\xc2\x9b2Jb\xc2\x85c"), b"a2Jbc");
        assert_eq!(filtered(b"\x1b[\x1b[31mred"), b"\x1b[31mred");
        assert_eq!(filtered(b"\x1b[1111111111111111111mlong"), b"long");
        assert_eq!(filtered(b"\x1b[>4;2mprivate"), b"private");
    }

    proptest! {
        #[test]
        fn nothing_but_colours_follows_escape(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            let out = filtered(&input);
            let mut rest = &out[..];
            while let Some(at) = rest.iter().position(|&b| b == 0x1b) {
                rest = &rest[at + 1..];
                prop_assert_eq!(rest.first(), Some(&b'['));
                let end = rest[1..].iter().position(|b| !b"0123456789;:".contains(b));
                prop_assert_eq!(end.map(|end| rest[1 + end]), Some(b'm'));
            }
            prop_assert!(out.iter().all(|&b| b == 0x1b || b == b'\t' || b >= 0x20 && b != 0x7f));
        }
    }
}
