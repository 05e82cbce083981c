//! The tool against a daemon that is none: a thread that keeps two domains.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use caisson_config::source::{parse_later, parse_toml};
use caisson_config::{Blob, build};
use caisson_protocol::{Action, Answer, Bytes, Domain, Ended, Machine, Output, Question, State, Vcpu};
use caisson_tool::{Cli, Error, run};
use clap::Parser as _;
use serde_json::Value;

/// What the daemon keeps.
struct Daemon {
    domains: Vec<Domain>,
    now: u64,
    /// The blob that has come.
    blob: Vec<u8>,
}

impl Daemon {
    fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Devices => Answer::Error("not here".into()),
            Question::Machine => {
                self.now += 1_000_000_000;
                self.domains[1].guest_ns += 250_000_000;
                let machine =
                    Machine { now_ns: self.now, cpus: 2, free_memory: 64 << 20, ..Machine::default() };
                Answer::Machine(machine)
            }
            Question::Domains => Answer::Domains(self.domains.clone()),
            Question::Vcpus { .. } => {
                Answer::Vcpus(vec![Vcpu { exits: 77, activity: "running".into(), ..Vcpu::default() }])
            }
            Question::Begin { bytes } => {
                self.blob = vec![0; bytes as usize];
                Answer::Done(true)
            }
            Question::Piece { offset, bytes } => {
                let start = offset as usize;
                self.blob[start..start + bytes.0.len()].copy_from_slice(&bytes.0);
                Answer::Done(true)
            }
            Question::Create { index } => {
                let blob = Blob::parse(&self.blob).unwrap();
                let record = blob.domain(index as usize).unwrap();
                let name = record.name().to_owned();
                if self.domains.iter().any(|domain| domain.name == name) {
                    return Answer::Error(format!("name: {name:?} is the name of a domain already"));
                }
                let id = self.domains.len() as u16 + 1;
                let (state, ended) = match record.cmdline() {
                    "fails" => (State::Gone, Ended::Failed),
                    "short" => (State::Gone, Ended::Poweroff),
                    _ => (State::Running, Ended::Never),
                };
                self.domains.push(Domain { id, name, state, ended, life: 1, ..Domain::default() });
                Answer::Created(id)
            }
            Question::End => {
                self.blob.clear();
                Answer::Done(true)
            }
            Question::Act { domain: 1, .. } => Answer::Error("domain_x: out of range".into()),
            Question::Act { action, domain } => {
                let index = usize::from(domain) - 1;
                let domain = &mut self.domains[index];
                match action {
                    Action::Forget if domain.state != State::Gone => return Answer::Error("busy".into()),
                    Action::Forget => drop(self.domains.remove(index)),
                    Action::Start if domain.state != State::Gone => return Answer::Error("busy".into()),
                    Action::Start => domain.state = State::Running,
                    _ if domain.state == State::Gone => return Answer::Error("nobody".into()),
                    Action::Pause => domain.state = State::Paused,
                    Action::Resume | Action::Reset => domain.state = State::Running,
                    Action::Shutdown => (domain.state, domain.ended) = (State::Gone, Ended::Poweroff),
                    Action::Destroy => (domain.state, domain.ended) = (State::Gone, Ended::Destroyed),
                }
                Answer::Done(true)
            }
            Question::Read { position, .. } => {
                let text = b"\x1b[1mweb login: ";
                let first = position.min(text.len() as u64);
                let bytes = Bytes(text[first as usize..].to_vec());
                Answer::Output(Output { first, end: text.len() as u64, bytes })
            }
            Question::Write { bytes, .. } => Answer::Written(bytes.0.len() as u64),
        }
    }
}

fn serve(client: UnixStream, daemon: &Mutex<Daemon>) {
    // As the daemon, but sooner: it hears nothing, and closes.
    client.set_read_timeout(Some(Duration::from_millis(2500))).unwrap();
    let mut writer = client.try_clone().unwrap();
    for line in BufReader::new(client).lines() {
        let Ok(line) = line else { return };
        let answer = daemon.lock().unwrap().answer(serde_json::from_str(&line).unwrap());
        if writeln!(writer, "{}", serde_json::to_string(&answer).unwrap()).is_err() {
            return;
        }
    }
}

/// A machine with the driver domain and `web`: where its daemon listens.
struct Fake(PathBuf, Arc<Mutex<Daemon>>);

impl Fake {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("caisson-tool-{}-{number}", std::process::id()));
        let domain = |id, name: &str| Domain {
            id,
            name: name.into(),
            state: State::Running,
            own: id == 1,
            console: id == 2,
            life: 1,
            memory: 512 << 20,
            private: if id == 2 { 64 << 20 } else { 0 },
            vcpus: 1,
            ..Domain::default()
        };
        let daemon =
            Daemon { domains: vec![domain(1, "driver"), domain(2, "web")], now: 0, blob: Vec::new() };
        let daemon = Arc::new(Mutex::new(daemon));
        let listener = UnixListener::bind(&path).unwrap();
        let shared = Arc::clone(&daemon);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(client, &shared));
            }
        });
        Self(path, daemon)
    }

    fn run(&self, line: &str) -> Result<String, Error> {
        let socket = self.0.to_str().unwrap();
        let words = ["caisson", "--socket", socket].into_iter().chain(line.split(' '));
        let mut out = Vec::new();
        run(&Cli::try_parse_from(words).unwrap(), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.run(&format!("--json {line}")).unwrap()).unwrap()
    }

    fn error(&self, line: &str) -> String {
        self.run(line).unwrap_err().to_string()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn domains_are_listed() {
    let fake = Fake::new();
    let text = fake.run("list").unwrap();
    assert!(text.starts_with("ID  NAME"), "{text}");
    assert_eq!(text.lines().count(), 3);
    let list = fake.json("list");
    assert_eq!((&list[1]["name"], &list[1]["state"]), (&"web".into(), &"running".into()));
    let info = fake.json("info web");
    assert_eq!((&info["domain"]["id"], &info["vcpus"][0]["exits"]), (&2.into(), &77.into()));
    assert_eq!(info["domain"]["private"], 64 << 20);
    let text = fake.run("info 2").unwrap();
    assert!(text.contains("state              running") && text.contains("EXITS"), "{text}");
    assert!(text.contains("\nprivate memory     64 MiB\n"), "{text}");
    let text = fake.run("info driver").unwrap();
    assert!(text.contains("\nprivate memory     none\n"), "{text}");
}

#[test]
fn a_domain_goes_through_its_life() {
    let fake = Fake::new();
    assert_eq!(fake.run("pause web").unwrap(), "web: paused\n");
    assert_eq!(fake.json("list")[1]["state"], "paused");
    assert_eq!(fake.run("unpause web").unwrap(), "web: resumed\n");
    assert_eq!(fake.run("reset web").unwrap(), "web: reset\n");
    assert_eq!(fake.run("shutdown --wait web").unwrap(), "web: told to shut down\n");
    assert_eq!(fake.json("start --wait web")["domain"]["state"], "running");
    assert_eq!(fake.run("destroy web").unwrap(), "web: destroyed\n");
    assert_eq!(fake.json("info web")["domain"]["ended"], "destroyed");
}

#[test]
fn refusals_say_why() {
    let fake = Fake::new();
    assert!(fake.error("destroy driver").contains("driver is this domain itself"));
    assert!(fake.error("start web").contains("web is not gone, but running"));
    fake.run("destroy web").unwrap();
    assert_eq!(fake.error("pause web"), "web is gone: start it first");
    assert_eq!(fake.error("info wbe"), "no domain is called \"wbe\"; there are driver, web");
    assert!(fake.error("console driver").contains("driver has no console"));
    let nobody = Cli::try_parse_from(["caisson", "--socket", "/nowhere/socket", "list"]).unwrap();
    let error = run(&nobody, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().starts_with("cannot reach the daemon at /nowhere/socket"));
    assert!(matches!(error, Error::Unreachable(..)));
    assert!(Cli::try_parse_from(["caisson", "explode", "web"]).is_err());
    // It does not come about.
    fake.1.lock().unwrap().domains[1].state = State::Ending;
    fake.1.lock().unwrap().domains[1].name = "slow".into();
    assert!(matches!(fake.run("--patience 0 start --wait slow"), Err(Error::Refused(_))));
}

#[test]
fn the_time_and_the_consoles_are_shown() {
    let fake = Fake::new();
    let text = fake.run("top -n 1 -d 0.1").unwrap();
    assert!(text.starts_with("2 CPUs: guests 0.0%") && text.contains("64 MiB free"), "{text}");
    assert!(text.lines().any(|line| line.contains("web") && line.contains("25.0%")), "{text}");
    let line = fake.json("top -n 1 -d 0.1");
    assert_eq!(line["domains"][1]["guest_permille"], 250);
    assert_eq!(fake.run("console --dump web").unwrap(), "\x1b[1mweb login: ");
    assert_eq!(fake.json("console --dump web")["end"], 15);
}

#[test]
fn long_pauses_outlive_the_connection() {
    let fake = Fake::new();
    let text = fake.run("top -n 1 -d 3").unwrap();
    assert!(text.contains("25.0%"), "{text}");
}

#[test]
fn events_are_followed() {
    let fake = Fake::new();
    let daemon = Arc::clone(&fake.1);
    let follower = thread::spawn({
        let socket = fake.0.to_str().unwrap().to_owned();
        move || {
            let cli = Cli::try_parse_from(["caisson", "--socket", &socket, "--json", "events", "-n", "2"]);
            let mut out = Vec::new();
            run(&cli.unwrap(), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        }
    });
    // It pauses and goes on until both have been seen.
    while !follower.is_finished() {
        for state in [State::Paused, State::Running] {
            daemon.lock().unwrap().domains[1].state = state;
            thread::sleep(Duration::from_millis(350));
        }
    }
    let text = follower.join().unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 2);
    assert!(events.iter().all(|event| event["name"] == "web" && event["time_ns"].as_u64() > Some(0)));
    assert!(events.iter().any(|event| event["event"] == "paused"), "{text}");
}

/// A folder with files, which goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("caisson-tool-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let folder = Self(path);
        folder.put("kernel", &kernel());
        folder
    }

    fn put(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The smallest multiboot1 kernel (Multiboot 0.6.96, section 3.1): its header says where it is loaded.
fn kernel() -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const ADDRESSES: u32 = 1 << 16;
    let checksum = 0_u32.wrapping_sub(MAGIC).wrapping_sub(ADDRESSES);
    let header = [MAGIC, ADDRESSES, checksum, 0x10_0000, 0x10_0000, 0, 0, 0x10_0020];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.resize(64, 0xf4);
    image
}

fn domain(name: &str, more: &str) -> String {
    format!("[[domain]]\nname = \"{name}\"\nmemory = \"4M\"\nkernel = \"kernel\"\n{more}\n")
}

#[test]
fn domains_are_made_in_their_order() {
    let (fake, folder) = (Fake::new(), Folder::new("made"));
    // More than one piece, and later ones are served by earlier ones.
    folder.put("data", &vec![7; 300_000]);
    let store = domain("store", "modules = [\"data\"]\nprivileges = [\"io-backend\"]");
    let user = domain("user", "cmdline = \"short\"\n[[domain.disk]]\npath = \"/a\"");
    let file = folder.put("two.toml", (store + &user).as_bytes());
    assert_eq!(fake.run(&format!("create {file} --wait")).unwrap(), "store: created\nuser: created\n");
    assert_eq!(fake.json("info user")["domain"]["ended"], "poweroff");
    assert!(fake.1.lock().unwrap().blob.is_empty(), "it has been let go of");
    let again = fake.error(&format!("create {file}"));
    let expected = "two.toml:2:8: domain[0].name: \"store\" is the name of a domain already";
    assert!(again.ends_with(expected), "{again}");
    // The other way: forgotten, and made alone.
    assert_eq!(fake.error("forget store"), "store is not gone, but running: end it first");
    assert_eq!(fake.run("undefine user").unwrap(), "user: forgotten\n");
    assert_eq!(fake.error("info user"), "no domain is called \"user\"; there are driver, web, store");
    assert_eq!(fake.json(&format!("create {file} --only user"))["domain"]["name"], "user");
    let again = fake.error(&format!("create {file} --only user"));
    assert!(again.contains(":8: domain[1].name: \"user\" is the name"), "{again}");
    assert_eq!(fake.json("forget user")["domain"]["id"], 4);
}

#[test]
fn a_blob_makes_domains_as_its_text_does() {
    let (fake, folder) = (Fake::new(), Folder::new("blob"));
    let read = |name: &str| fs::read(folder.0.join(name)).map_err(|error| error.to_string());
    let later = parse_later(&(domain("a", "") + &domain("b", "pool = \"rt\"")), "t").unwrap();
    let file = folder.put("later.blob", &build(&later, read).unwrap());
    assert_eq!(fake.run(&format!("create {file} --only b")).unwrap(), "b: created\n");
    assert_eq!(fake.run(&format!("create {file} --only a")).unwrap(), "a: created\n");
    // A machine's, but not what only a machine has from its start.
    let machine =
        domain("first", "privileges = [\"io-backend\"]") + &domain("guest", "disk = [{ path = \"/a\" }]");
    let blob = build(&parse_toml(&machine, "t").unwrap(), read).unwrap();
    let file = folder.put("machine.blob", &blob);
    assert_eq!(fake.run(&format!("create {file} --only guest")).unwrap(), "guest: created\n");
    let error = fake.error(&format!("create {file} --only guest"));
    let expected = "machine.blob: domain[1].name: \"guest\" is the name of a domain already";
    assert!(error.ends_with(expected), "{error}");
    let error = fake.error(&format!("create {file}"));
    assert!(error.contains("machine.blob: domain[0].devices: PCI functions belong to domains"), "{error}");
    let mut damaged = blob;
    let at = damaged.len() - 4096 + 40;
    damaged[at] ^= 1;
    let file = folder.put("damaged.blob", &damaged);
    let error = fake.error(&format!("create {file} --only guest"));
    assert!(
        error.contains("kernel \"kernel\" of domain \"first\" (payload[0].sha256): the SHA-256 does not"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_made_is_told_before_anything_is_sent() {
    let (fake, folder) = (Fake::new(), Folder::new("wrong"));
    folder.put("text", b"this is no kernel");
    let error = |name: &str, text: &str| {
        let file = folder.put(name, text.as_bytes());
        let error = fake.error(&format!("create {file}"));
        assert!(!error.contains('\n') && error.starts_with(&file), "{error}");
        error[file.len()..].to_owned()
    };
    let good = domain("new", "");
    for (text, expected) in [
        (good.replace("4M", "12Q"), ":3:10: domain[0].memory: \"12Q\" is not a size; write e.g. \"512M\""),
        (
            good.replace("\"kernel\"", "\"missing\""),
            ":4:10: domain[0].kernel: \"missing\": No such file or directory",
        ),
        (
            good.replace("\"kernel\"", "\"@linux\""),
            ":4:10: domain[0].kernel: \"@linux\": images of cargo xtask are not here;",
        ),
        (
            good.replace("\"kernel\"", "\"text\""),
            ":4:10: domain[0].kernel: \"text\": no Linux bzImage, PVH ELF or multiboot1",
        ),
        (good.replace("\"kernel\"", "\".\""), ":4:10: domain[0].kernel: \".\": Is a directory"),
        (domain("new", "devices = \"all\""), ":5:11: domain[0].devices: PCI functions belong to domains"),
        ("memory".to_owned(), ":1:7: not TOML: "),
        (String::new(), ": domain: there is none;"),
    ] {
        let found = error("wrong.toml", &text);
        assert!(found.starts_with(expected), "{found}");
    }
    let file = folder.put("latin.toml", b"\xe4");
    assert!(fake.error(&format!("create {file}")).ends_with(": neither UTF-8 text nor a config blob"));
    let file = folder.put("good.toml", good.as_bytes());
    let nobody = fake.error(&format!("create {file} --only nobody"));
    assert!(nobody.ends_with("good.toml: it describes no domain \"nobody\"; there are new"), "{nobody}");
    assert!(fake.error("create /nowhere.toml").starts_with("cannot read /nowhere.toml: No such file"));
    assert!(fake.1.lock().unwrap().blob.is_empty(), "nothing has been sent");
    // It can be tried only.
    let file = folder.put("fails.toml", domain("new", "cmdline = \"fails\"").as_bytes());
    let failed = fake.error(&format!("create {file} --wait"));
    assert_eq!(failed, "new could not be made: Caisson's log says why");
}
