//! The socket at which the daemon answers questions: lines of JSON, one for each question and one for each answer.
//!
//! | question | answer |
//! |---|---|
//! | `{"ask":"devices"}` | `{"devices":[{"channel":33,"name":"web disk 1","stage":"attached","complaint":"","counters":{"requests":7,…}},…]}` |
//! | anything else | `{"error":"…"}`, in which is said what could have been asked |
//!
//! Who may connect is a matter of the socket's place and mode: root. One client at a time, each line of at most [`MAX_LINE`] bytes.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::bell::{Bell, CHANGED};
use crate::daemon::Status;

/// The longest question, in bytes.
pub const MAX_LINE: u64 = 4096;
/// How long a client may take for a line.
const PATIENCE: Duration = Duration::from_secs(5);

/// A question that waits for its answer.
pub struct Question {
    answer: Sender<String>,
}

impl Question {
    /// Answers it.
    pub fn answer(self, devices: &[Status]) {
        let counters = |status: &Status| -> Map<String, Value> {
            status.counters.iter().map(|&(name, count)| (name.to_owned(), count.into())).collect()
        };
        let device = |status: &Status| {
            json!({
                "channel": status.channel,
                "name": status.name,
                "stage": status.stage,
                "complaint": status.complaint,
                "counters": counters(status),
            })
        };
        let devices: Vec<_> = devices.iter().map(device).collect();
        // Who asked may be gone.
        let _ = self.answer.send(json!({ "devices": devices }).to_string());
    }
}

/// Where questions are put to the daemon's thread.
#[derive(Clone)]
pub struct Desk {
    questions: Sender<Question>,
    bell: Arc<Bell>,
}

impl Desk {
    /// Questions go to `questions`, and `bell` says that there are some.
    #[must_use]
    pub const fn new(questions: Sender<Question>, bell: Arc<Bell>) -> Self {
        Self { questions, bell }
    }

    /// The answer to a line.
    #[must_use]
    pub fn ask(&self, line: &str) -> String {
        let error = |text: String| json!({ "error": text }).to_string();
        match serde_json::from_str::<Value>(line) {
            Ok(value) if value["ask"] == "devices" => {
                let (sender, answer) = mpsc::channel();
                let asked = self.questions.send(Question { answer: sender });
                self.bell.ring(CHANGED);
                let answer = asked.ok().and_then(|()| answer.recv().ok());
                answer.unwrap_or_else(|| error("the daemon is about to end".into()))
            }
            Ok(value) => error(format!("{value} is no question; ask {{\"ask\":\"devices\"}}")),
            Err(why) => error(format!("not a line of JSON: {why}")),
        }
    }
}

/// Answers questions at a socket, by a thread.
///
/// # Errors
/// The kernel's, where the socket cannot be made.
pub fn listen(path: &Path, desk: Desk) -> io::Result<()> {
    // One of a daemon before this one.
    let _ = fs::remove_file(path);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let serve = move || {
        for client in listener.incoming().flatten() {
            // A client that goes is no concern of anybody's.
            let _ = serve(&client, &desk);
        }
    };
    thread::Builder::new().name("control".into()).spawn(serve)?;
    Ok(())
}

fn serve(client: &UnixStream, desk: &Desk) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(client);
    loop {
        let mut line = String::new();
        if lines.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut client = client;
        writeln!(client, "{}", desk.ask(&line))?;
        if !line.ends_with('\n') {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk() -> Desk {
        let (sender, receiver) = mpsc::channel::<Question>();
        thread::spawn(move || {
            let status = Status {
                channel: 33,
                name: "web disk 1".into(),
                stage: "attached",
                complaint: String::new(),
                counters: vec![("requests", 7)],
            };
            receiver.iter().for_each(|question| question.answer(std::slice::from_ref(&status)));
        });
        Desk::new(sender, Arc::new(Bell::new().unwrap()))
    }

    #[test]
    fn questions_are_answered_at_the_socket() {
        let folder = std::env::temp_dir().join(format!("caisson-control-{}", std::process::id()));
        let path = folder.join("socket");
        listen(&path, desk()).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"{\"ask\":\"devices\"}\n{\"ask\":1}\nnonsense\n").unwrap();
        let lines = BufReader::new(client.try_clone().unwrap()).lines().take(3);
        let answers: Vec<Value> = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        assert_eq!(answers[0]["devices"][0]["counters"]["requests"], 7);
        assert_eq!(answers[0]["devices"][0]["name"], "web disk 1");
        assert!(answers[1]["error"].as_str().unwrap().contains("is no question"));
        assert!(answers[2]["error"].as_str().unwrap().contains("not a line of JSON"));
        drop(client);
        // A line without an end does not make the daemon remember it.
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(&[b'x'; MAX_LINE as usize + 1]).unwrap();
        let mut answer = String::new();
        let _ = client.read_to_string(&mut answer);
        assert!(answer.contains("not a line of JSON"), "{answer}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(&folder).unwrap();
    }
}
