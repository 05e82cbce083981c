//! What a backend's process says on its standard error: while it starts, its last words say why it did not; later they go to the
//! log, a few lines at a time, since a guest may be what they are about.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crate::log::Voice;

/// The longest line; what is longer is several.
const LONGEST: u64 = 512;
/// How long a process that has ended may still be heard.
const ECHO: Duration = Duration::from_millis(100);

/// Has a thread listen: to whom it tells, until nobody receives it; then to the log, as what the backend for this directory says.
pub(super) fn listen(from: Option<impl Read + Send + 'static>, directory: &Path) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let voice = Voice::new(format!("virtiofsd for {}", directory.display()));
    let Some(from) = from else { return receiver };
    let run = move || {
        let (mut reader, mut bytes) = (BufReader::new(from), Vec::new());
        while let Ok(1..) = (&mut reader).take(LONGEST).read_until(b'\n', &mut bytes) {
            let line = plain(&String::from_utf8_lossy(&bytes));
            bytes.clear();
            if line.is_empty() {
                continue;
            }
            if let Err(mpsc::SendError(line)) = sender.send(line) {
                voice.say(format_args!("{line}"));
            }
        }
    };
    // Without a thread for it, it is not heard.
    let _ = thread::Builder::new().name("virtiofsd".into()).spawn(run);
    receiver
}

/// The last of what was said.
pub(super) fn last(words: &Receiver<String>) -> Option<String> {
    let mut last = None;
    while let Ok(line) = words.recv_timeout(ECHO) {
        last = Some(line);
    }
    last
}

/// A line without control characters, and without what a logger puts before it: `[2026-01-01T00:00:00Z ERROR virtiofsd] `, which
/// is another one each time.
fn plain(line: &str) -> String {
    let text: String = line.chars().filter(|c| !c.is_control()).collect();
    let behind = text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(_, rest)| rest);
    behind.unwrap_or(&text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_plain() {
        let said: &[u8] = b"first\n[2026-01-01T00:00:00Z ERROR virtiofsd] no \x1b[31msuch\xff thing\r\n\n";
        let words = listen(Some(said), Path::new("/srv"));
        assert_eq!(last(&words).as_deref(), Some("no [31msuch\u{fffd} thing"));
        assert_eq!(last(&listen(None::<&[u8]>, Path::new("/srv"))), None);
    }

    #[test]
    fn a_line_without_end_becomes_several() {
        let said = std::io::repeat(b'x').take(3 * LONGEST);
        let words = listen(Some(said), Path::new("/srv"));
        assert_eq!(words.iter().map(|line| line.len() as u64).collect::<Vec<_>>(), [LONGEST; 3]);
    }
}
