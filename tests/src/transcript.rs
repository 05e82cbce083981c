//! The serial line, taken apart: who said which line, and when.
//!
//! Where several consoles are shown, Caisson begins each line with a coloured `[name]`; without one, a line is the raw
//! output of the selected console. Terminal control sequences are left out of the text that is matched.

use std::time::Instant;

use regex_lite::{Captures, Regex};

/// Whose lines are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From<'a> {
    /// Lines without a prefix: a selected console, the loader, the firmware, a crash record.
    Raw,
    /// Caisson's log.
    Caisson,
    /// The guest of this name, in lines with its prefix.
    Guest(&'a str),
    /// Everyone's.
    Anyone,
}

/// The name in the prefixes of Caisson's own lines.
const CAISSON: &str = "caisson";
/// Lines longer than this are cut: nobody prints so, except when something is broken.
const LONGEST: usize = 64 << 10;

/// A line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// The name in its prefix.
    pub speaker: Option<String>,
    /// What it says, without prefix and control sequences.
    pub text: String,
    /// When it was complete.
    pub at: Instant,
}

impl Line {
    fn parse(bytes: &[u8], at: Instant) -> Self {
        let raw = String::from_utf8_lossy(bytes);
        // What a carriage return alone overwrites was a line of its own to a reader of terminals, not to us.
        let (speaker, rest) = match prefix(&raw) {
            Some((name, rest)) => (Some(name.to_owned()), rest),
            None => (None, &*raw),
        };
        Self { speaker, text: plain(rest), at }
    }

    /// Whether `from` means it.
    #[must_use]
    pub fn is_from(&self, from: From<'_>) -> bool {
        match from {
            From::Raw => self.speaker.is_none(),
            From::Caisson => self.speaker.as_deref() == Some(CAISSON),
            From::Guest(name) => self.speaker.as_deref() == Some(name),
            From::Anyone => true,
        }
    }
}

/// Splits `ESC [ colour m [name] ESC [ 0 m space` off a line.
fn prefix(line: &str) -> Option<(&str, &str)> {
    let (colour, rest) = line.trim_start_matches('\r').strip_prefix("\x1b[")?.split_once("m[")?;
    let (name, rest) = rest.split_once("]\x1b[0m ")?;
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let sound = colour.chars().all(|c| c.is_ascii_digit()) && !name.is_empty() && name.chars().all(is_name);
    sound.then_some((name, rest))
}

/// Leaves out control sequences (ECMA-48: ESC, `[`, parameters, a final byte from `@` to `~`) and control characters.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                if chars.next() == Some('[') {
                    let _ = chars.find(|c| ('@'..='~').contains(c));
                }
            }
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// A line that matched, with what the pattern's groups held.
#[derive(Clone, Debug)]
pub struct Match {
    /// The line.
    pub line: Line,
    groups: Vec<String>,
}

impl Match {
    fn new(line: Line, captures: &Captures<'_>) -> Self {
        let group = |i| captures.get(i).map(|m| m.as_str().to_owned()).unwrap_or_default();
        Self { line, groups: (0..captures.len()).map(group).collect() }
    }

    /// What group `i` of the pattern held, counted from 1; empty where it took no part.
    #[must_use]
    pub fn group(&self, i: usize) -> &str {
        self.groups.get(i).map_or("", String::as_str)
    }

    /// Group `i` as a number; 0 where it is none.
    #[must_use]
    pub fn number(&self, i: usize) -> f64 {
        self.group(i).parse().unwrap_or_default()
    }
}

/// How far a speaker's lines have been looked at.
#[derive(Clone, Debug)]
struct Cursor {
    speaker: Option<String>,
    everyone: bool,
    line: usize,
    /// Byte in the line's text.
    offset: usize,
}

/// All that was read so far. Each speaker's lines are searched on from where the last match among them ended, whatever
/// others say in between.
#[derive(Clone, Debug, Default)]
pub struct Transcript {
    lines: Vec<Line>,
    partial: Vec<u8>,
    cursors: Vec<Cursor>,
}

impl Transcript {
    /// Takes in bytes of the serial line, read at `at`.
    pub fn push(&mut self, bytes: &[u8], at: Instant) {
        for &byte in bytes {
            if byte == b'\n' || self.partial.len() >= LONGEST {
                self.lines.push(Line::parse(&self.partial, at));
                self.partial.clear();
            }
            if byte != b'\n' {
                self.partial.push(byte);
            }
        }
    }

    /// The complete lines.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Those of one speaker.
    pub fn lines_from<'a>(&'a self, from: From<'a>) -> impl Iterator<Item = &'a Line> {
        self.lines.iter().filter(move |line| line.is_from(from))
    }

    /// Looks for `pattern` among the complete lines of `from` behind the last match there.
    pub fn find(&mut self, from: From<'_>, pattern: &Regex) -> Option<Match> {
        self.search(from, pattern, None)
    }

    /// Looks for `pattern` there, and in the line that is not finished yet: a prompt.
    pub fn find_unfinished(&mut self, from: From<'_>, pattern: &Regex) -> Option<Match> {
        let unfinished = Line::parse(&self.partial, Instant::now());
        self.search(from, pattern, Some(&unfinished))
    }

    fn search(&mut self, from: From<'_>, pattern: &Regex, unfinished: Option<&Line>) -> Option<Match> {
        let at = self.cursor(from);
        let (first, offset) = self.cursors.get(at).map_or((0, 0), |c| (c.line, c.offset));
        let found = self.lines.iter().chain(unfinished).enumerate().skip(first).find_map(|(i, line)| {
            let skip = if i == first { offset } else { 0 };
            let text = line.text.get(skip..).filter(|_| line.is_from(from))?;
            let captures = pattern.captures(text)?;
            let end = captures.get(0).map_or(0, |whole| whole.end());
            Some((i, skip + end, Match::new(line.clone(), &captures)))
        });
        // Nothing before the unfinished line needs another look.
        let (line, offset) = match &found {
            Some((line, end, _)) => (*line, *end),
            None if first < self.lines.len() => (self.lines.len(), 0),
            None => (first, offset),
        };
        if let Some(cursor) = self.cursors.get_mut(at) {
            (cursor.line, cursor.offset) = (line, offset);
        }
        found.map(|(_, _, m)| m)
    }

    fn cursor(&mut self, from: From<'_>) -> usize {
        let speaker = match from {
            From::Guest(name) => Some(name.to_owned()),
            From::Caisson => Some(CAISSON.to_owned()),
            From::Raw | From::Anyone => None,
        };
        let everyone = from == From::Anyone;
        if let Some(at) = self.cursors.iter().position(|c| c.speaker == speaker && c.everyone == everyone) {
            return at;
        }
        self.cursors.push(Cursor { speaker, everyone, line: 0, offset: 0 });
        self.cursors.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(text: &str) -> Transcript {
        let mut transcript = Transcript::default();
        transcript.push(text.as_bytes(), Instant::now());
        transcript
    }

    fn find(transcript: &mut Transcript, from: From<'_>, pattern: &str) -> Option<String> {
        transcript.find(from, &Regex::new(pattern).unwrap()).map(|m| m.group(0).to_owned())
    }

    fn prompt(transcript: &mut Transcript, pattern: &str) -> bool {
        transcript.find_unfinished(From::Raw, &Regex::new(pattern).unwrap()).is_some()
    }

    #[test]
    fn lines_are_told_apart_by_their_prefix() {
        let mut t = transcript(
            "\x1b[01m[caisson]\x1b[0m guest red: started\r\n\
             \x1b[36m[red]\x1b[0m [    0.000000] Linux\r\n[    0.1] raw\r\n\x1b[32m[blue]\x1b[0m hello\r\n",
        );
        let speakers: Vec<_> = t.lines().iter().map(|l| l.speaker.clone().unwrap_or_default()).collect();
        assert_eq!(speakers, ["caisson", "red", "", "blue"]);
        assert_eq!(t.lines()[1].text, "[    0.000000] Linux");
        assert_eq!(t.lines()[2].text, "[    0.1] raw");
        assert_eq!(find(&mut t, From::Guest("blue"), "h.*"), Some("hello".into()));
        assert_eq!(find(&mut t, From::Guest("red"), "hello"), None);
        assert_eq!(find(&mut t, From::Caisson, "started$"), Some("started".into()));
        assert_eq!(find(&mut t, From::Anyone, "raw"), Some("raw".into()));
    }

    #[test]
    fn each_speaker_is_read_on_from_its_last_match() {
        let mut t = transcript("one one\ntwo\n");
        assert!(find(&mut t, From::Raw, "one").is_some());
        assert!(find(&mut t, From::Raw, "one").is_some());
        assert!(find(&mut t, From::Raw, "one").is_none());
        assert!(find(&mut t, From::Raw, "two").is_none(), "a failed search uses lines up");
        assert!(find(&mut t, From::Anyone, "one").is_some(), "another cursor");
    }

    #[test]
    fn a_prompt_without_a_newline_matches_once() {
        let mut t = transcript("banner\n~ # ");
        assert!(prompt(&mut t, "~ # $"));
        assert!(!prompt(&mut t, "# "));
        t.push(b"echo\r\nanswer\r\n~ # ", Instant::now());
        assert!(find(&mut t, From::Raw, "^answer$").is_some());
        assert!(prompt(&mut t, "~ # "));
    }

    #[test]
    fn what_comes_in_pieces_is_found_when_it_is_whole() {
        let mut t = transcript("value=");
        assert!(find(&mut t, From::Raw, "value=(.*)").is_none());
        t.push(b"12\n~ ", Instant::now());
        assert_eq!(find(&mut t, From::Raw, "value=(.*)"), Some("value=12".into()));
        assert!(!prompt(&mut t, "~ # "));
        t.push(b"# ", Instant::now());
        assert!(prompt(&mut t, "~ # "));
    }

    #[test]
    fn control_sequences_are_no_text() {
        assert_eq!(plain("\x1b[2J\x1b[01;01Ha\x1b[0mb\rc\x07\td"), "abc d");
        assert_eq!(plain("\x1b"), "");
        assert_eq!(plain("\x1b[12"), "");
    }

    #[test]
    fn a_prefix_has_a_name_as_configs_allow_them() {
        assert_eq!(prefix("\x1b[36m[a-1]\x1b[0m x"), Some(("a-1", "x")));
        assert_eq!(prefix("\x1b[36m[A]\x1b[0m x"), None);
        assert_eq!(prefix("\x1b[36m[]\x1b[0m x"), None);
        assert_eq!(prefix("[a] x"), None);
    }

    #[test]
    fn endless_lines_are_cut() {
        let mut t = Transcript::default();
        t.push(&vec![b'x'; 3 * LONGEST], Instant::now());
        assert_eq!(t.lines().len(), 2);
    }
}
