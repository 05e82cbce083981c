//! The socket at which the daemon answers questions: lines of JSON, one for each question and one for each answer.
//!
//! | question | answer |
//! |---|---|
//! | `{"ask":"devices"}` | `{"devices":[{"channel":33,"name":"web disk 1","stage":"attached","complaint":"","counters":{"requests":7,…}},…]}` |
//! | [`Question`](caisson_protocol::Question)s about domains, and those with which new ones are made (`uploads.rs`) | [`Answer`](caisson_protocol::Answer)s |
//! | anything else | `{"error":"…"}`, in which is said what could have been asked |
//!
//! Who may connect is a matter of the socket's place and mode: root. A thread serves each client, [`MAX_CLIENTS`] at a
//! time; each line has at most [`MAX_LINE`] bytes.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use caisson_protocol::MAX_LINE;
use serde_json::{Map, Value, json};

use crate::bell::{Bell, CHANGED};
use crate::daemon::Status;
use crate::host::Caisson;
use crate::uploads::{Upload, Uploads};

/// Clients that are served at a time; others wait.
pub const MAX_CLIENTS: usize = 16;
/// How long a client may take for a line.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before it is looked again whether a client can be served.
const PAUSE: Duration = Duration::from_millis(20);

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
    caisson: Caisson,
    uploads: Arc<Uploads>,
}

impl Desk {
    /// Questions about devices go to `questions`, and `bell` says that there are some; those about domains to Caisson.
    #[must_use]
    pub fn new(questions: Sender<Question>, bell: Arc<Bell>, caisson: Caisson) -> Self {
        let uploads = Arc::new(Uploads::new(caisson.clone()));
        Self { questions, bell, caisson, uploads }
    }

    /// The answer to a line of the client that may have that upload.
    #[must_use]
    pub fn ask(&self, upload: &mut Upload, line: &str) -> String {
        let error = |text: String| json!({ "error": text }).to_string();
        match serde_json::from_str::<Value>(line) {
            Ok(value) if value["ask"] == "devices" => {
                let (sender, answer) = mpsc::channel();
                let asked = self.questions.send(Question { answer: sender });
                self.bell.ring(CHANGED);
                let answer = asked.ok().and_then(|()| answer.recv().ok());
                answer.unwrap_or_else(|| error("the daemon is about to end".into()))
            }
            Ok(value) => match serde_json::from_value::<caisson_protocol::Question>(value) {
                Ok(question) => {
                    let answer = upload.answer(&question).unwrap_or_else(|| self.caisson.answer(&question));
                    serde_json::to_string(&answer).unwrap_or_else(|why| error(why.to_string()))
                }
                Err(why) => error(format!("that is no question: {why}")),
            },
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
        // Counts the threads: each has one, and this one as well.
        let clients = Arc::new(());
        for client in listener.incoming() {
            let Ok(client) = client else {
                // For want of descriptors or memory, which may last.
                thread::sleep(PAUSE);
                continue;
            };
            while Arc::strong_count(&clients) > MAX_CLIENTS {
                thread::sleep(PAUSE);
            }
            let (desk, counted) = (desk.clone(), Arc::clone(&clients));
            let serve = move || {
                // A client that goes is no concern of anybody's.
                let _ = serve(&client, &desk);
                drop(counted);
            };
            // Where there is no room for a thread, the client finds its connection closed.
            let _ = thread::Builder::new().name("client".into()).spawn(serve);
        }
    };
    thread::Builder::new().name("control".into()).spawn(serve)?;
    Ok(())
}

fn serve(client: &UnixStream, desk: &Desk) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(client);
    let mut upload = Uploads::client(&desk.uploads);
    loop {
        let mut line = String::new();
        if lines.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut client = client;
        writeln!(client, "{}", desk.ask(&mut upload, &line))?;
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
        let caisson = Caisson::new(crate::host::fake::Fake::new());
        Desk::new(sender, Arc::new(Bell::new().unwrap()), caisson)
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
        // Several clients at once; questions about domains are Caisson's.
        let mut others: Vec<_> = (0..4).map(|_| UnixStream::connect(&path).unwrap()).collect();
        for other in &mut others {
            other.write_all(b"{\"ask\":\"domains\"}\n{\"ask\":\"nothing\"}\n").unwrap();
            let mut lines = BufReader::new(other).lines();
            assert_eq!(lines.next().unwrap().unwrap(), r#"{"domains":[]}"#);
            assert!(lines.next().unwrap().unwrap().contains("unknown variant `nothing`"));
        }
        drop(others);
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
