//! A console port that this domain serves, at one's own terminal: the daemon's socket, bytes both ways.

use std::io::{self, Read as _, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;
use crate::console::{LEAVE, LOOK, Terminal, typed};

/// How long who leaves waits for the guest to take what was typed.
const PARTING: Duration = Duration::from_secs(1);

/// Shows what comes, and types what is typed, until Ctrl-] or the end of the input. `folder` has the sockets.
pub(crate) fn attach(folder: &Path, guest: &str, port: &str, out: &mut impl Write) -> Result<(), Error> {
    let stream = UnixStream::connect(folder.join(guest).join(port)).map_err(|error| {
        let there = names(&folder.join(guest));
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        Error::Refused(format!(
            "{guest} has no port {port:?} that this domain serves ({error}); ports of {guest}: {there}"
        ))
    })?;
    stream.set_nonblocking(true)?;
    eprint!("{guest}, port {port}: Ctrl-] leaves\r\n");
    let _terminal = Terminal::raw();
    follow(&stream, &typed(), out)?;
    eprint!("\r\n");
    Ok(())
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Until somebody leaves, or the other end is gone.
fn follow(mut stream: &UnixStream, typed: &Receiver<Vec<u8>>, out: &mut impl Write) -> Result<(), Error> {
    let mut waiting: Vec<u8> = Vec::new();
    // Set when nothing more will be typed.
    let mut leaves: Option<Instant> = None;
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) if leaves.is_some() => return Ok(()),
            Ok(0) => return Err(Error::Lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                out.write_all(bytes.get(..count).unwrap_or_default())?;
                out.flush()?;
                continue;
            }
            Err(error) if is_later(&error) => {}
            Err(error) => return Err(Error::Lost(error)),
        }
        if !waiting.is_empty() {
            match stream.write(&waiting) {
                Ok(count) => drop(waiting.drain(..count)),
                Err(error) if is_later(&error) => {}
                Err(error) => return Err(Error::Lost(error)),
            }
        }
        if let Some(since) = leaves {
            if waiting.is_empty() {
                // The other end has all of it when it has read to the end, and ends then.
                let _ = stream.shutdown(Shutdown::Write);
            }
            if since.elapsed() > PARTING {
                return Ok(());
            }
            thread::sleep(LOOK);
            continue;
        }
        match typed.recv_timeout(LOOK) {
            Ok(more) => {
                let end = more.iter().position(|&byte| byte == LEAVE);
                leaves = end.map(|_| Instant::now());
                waiting.extend(more.iter().take(end.unwrap_or(more.len())));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => leaves = Some(Instant::now()),
        }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn ends() -> (UnixStream, UnixStream) {
        let (own, other) = UnixStream::pair().unwrap();
        own.set_nonblocking(true).unwrap();
        (own, other)
    }

    #[test]
    fn bytes_go_both_ways_until_somebody_leaves() {
        let (own, mut other) = ends();
        let (sender, receiver) = mpsc::channel();
        let guest = thread::spawn(move || {
            other.write_all(b"login: ").unwrap();
            let mut all = Vec::new();
            other.read_to_end(&mut all).unwrap();
            all
        });
        sender.send(b"hel".to_vec()).unwrap();
        sender.send(b"lo\x1dnot this".to_vec()).unwrap();
        let mut out = Vec::new();
        follow(&own, &receiver, &mut out).unwrap();
        assert_eq!(guest.join().unwrap(), b"hello");
        assert_eq!(out, b"login: ");
    }

    #[test]
    fn an_end_that_goes_is_told_of() {
        let (own, other) = ends();
        let (_sender, receiver) = mpsc::channel();
        drop(other);
        assert!(matches!(follow(&own, &receiver, &mut Vec::new()), Err(Error::Lost(_))));
    }

    #[test]
    fn a_guest_that_takes_nothing_does_not_hold_who_leaves() {
        let (own, _other) = ends();
        let (sender, receiver) = mpsc::channel();
        sender.send(vec![b'x'; 4 << 20]).unwrap();
        drop(sender);
        assert!(follow(&own, &receiver, &mut Vec::new()).is_ok());
    }

    #[test]
    fn a_port_that_is_not_there_is_told_of_with_those_that_are() {
        let folder = std::env::temp_dir().join(format!("caisson-ports-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("web")).unwrap();
        std::fs::write(folder.join("web/shell"), "").unwrap();
        let say = |guest, port| attach(&folder, guest, port, &mut Vec::new()).unwrap_err().to_string();
        assert!(say("web", "other").ends_with("ports of web: shell"), "{}", say("web", "other"));
        assert!(say("mail", "shell").ends_with("ports of mail: none"));
        let _ = std::fs::remove_dir_all(folder);
    }
}
