//! A domain's console at one's own terminal.

use std::io::{self, IsTerminal as _, Read as _, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use caisson_protocol::{Answer, Bytes, Domain, MAX_TYPED, Output, Question};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use serde_json::json;

use crate::{Client, Error};

/// What leaves the console: Ctrl-].
pub(crate) const LEAVE: u8 = 0x1d;
/// How often it is looked for output while nothing is typed.
pub(crate) const LOOK: Duration = Duration::from_millis(25);

/// One's own terminal as it was; it is so again when this is dropped.
pub(crate) struct Terminal(Option<Termios>);

impl Terminal {
    /// Every byte goes through as it is typed, if there is a terminal.
    pub(crate) fn raw() -> Self {
        let stdin = io::stdin();
        let before = stdin.is_terminal().then(|| tcgetattr(&stdin).ok()).flatten();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            let _ = tcsetattr(&stdin, OptionalActions::Now, &raw);
        }
        Self(before)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

fn read(client: &mut Client, domain: &Domain, position: u64) -> Result<Output, Error> {
    match client.ask(&Question::Read { domain: domain.id, position })? {
        Answer::Output(output) => Ok(output),
        _ => Err(Error::Nonsense),
    }
}

/// Shows what comes, and types what is typed, until Ctrl-] or the end of the input. `dump`: shows what there is.
pub(crate) fn attach(
    client: &mut Client,
    domain: &Domain,
    dump: bool,
    as_json: bool,
    out: &mut impl Write,
) -> Result<(), Error> {
    if !domain.console {
        let name = &domain.name;
        return Err(Error::Refused(format!(
            "{name} has no console: its configuration has console = \"none\""
        )));
    }
    if dump {
        let output = read(client, domain, 0)?;
        if as_json {
            let text = String::from_utf8_lossy(&output.bytes.0);
            return crate::print(out, &json!({ "first": output.first, "end": output.end, "text": text }));
        }
        out.write_all(&output.bytes.0)?;
        return Ok(out.flush()?);
    }
    eprint!("{}: Ctrl-] leaves\r\n", domain.name);
    let _terminal = Terminal::raw();
    follow(client, domain, &typed(), out)?;
    eprint!("\r\n");
    Ok(())
}

/// What is typed, by a thread, which ends with the program.
pub(crate) fn typed() -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok(count @ 1..) = io::stdin().read(&mut bytes) {
            if sender.send(bytes.iter().take(count).copied().collect()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Until somebody leaves.
fn follow(
    client: &mut Client,
    domain: &Domain,
    typed: &Receiver<Vec<u8>>,
    out: &mut impl Write,
) -> Result<(), Error> {
    let mut position = 0;
    let mut waiting: Vec<u8> = Vec::new();
    let mut leaves = false;
    loop {
        let output = read(client, domain, position)?;
        let lost = output.first.saturating_sub(position);
        if lost != 0 && position != 0 {
            write!(out, "\r\n[{lost} bytes lost]\r\n")?;
        }
        position = output.first + output.bytes.0.len() as u64;
        out.write_all(&output.bytes.0)?;
        out.flush()?;
        let part: Vec<u8> = waiting.iter().copied().take(MAX_TYPED).collect();
        let mut taken = 0;
        if !part.is_empty() {
            match client.ask(&Question::Write { domain: domain.id, bytes: Bytes(part) })? {
                Answer::Written(count) => taken = (count as usize).min(waiting.len()),
                _ => return Err(Error::Nonsense),
            }
            drop(waiting.drain(..taken));
        }
        if leaves {
            // A guest that takes nothing does not hold who leaves.
            if waiting.is_empty() || taken == 0 {
                return Ok(());
            }
            continue;
        }
        match typed.recv_timeout(LOOK) {
            Ok(bytes) => {
                let end = bytes.iter().position(|&byte| byte == LEAVE);
                leaves = end.is_some();
                waiting.extend(bytes.iter().take(end.unwrap_or(bytes.len())));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => leaves = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A guest that echoes what is typed, and has room for three bytes at a time.
    #[test]
    fn what_is_typed_goes_through_and_what_comes_is_shown() {
        let path = std::env::temp_dir().join(format!("caisson-console-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut written = b"login: ".to_vec();
            let mut writer = stream.try_clone().unwrap();
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { return };
                let answer = match serde_json::from_str(&line).unwrap() {
                    // The first byte is lost.
                    Question::Read { position, .. } => {
                        let first = position.max(1);
                        let bytes = Bytes(written[first as usize..].to_vec());
                        Answer::Output(Output { first, end: written.len() as u64, bytes })
                    }
                    Question::Write { bytes, .. } => {
                        let room = bytes.0.len().min(3);
                        written.extend_from_slice(&bytes.0[..room]);
                        Answer::Written(room as u64)
                    }
                    other => panic!("{other:?}"),
                };
                writeln!(writer, "{}", serde_json::to_string(&answer).unwrap()).unwrap();
            }
        });
        let mut client = Client::connect(&path).unwrap();
        let (sender, receiver) = mpsc::channel();
        sender.send(b"hel".to_vec()).unwrap();
        sender.send(b"lo world\x1dnot this".to_vec()).unwrap();
        let mut out = Vec::new();
        follow(&mut client, &Domain::default(), &receiver, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!("ogin: hello world".starts_with(&text) && text.starts_with("ogin: hello wo"), "{text}");
        let _ = std::fs::remove_file(path);
    }
}
