//! What the control tool and the daemon of the driver domain say to each other: lines of JSON at a socket, a [`Question`] and an
//! [`Answer`] for each. The daemon has the one way to Caisson that the domain has (`caisson_abi::door`), and makes the calls.
//!
//! ```text
//! {"ask":"domains"}                                  {"domains":[{"id":2,"name":"web","state":"running",…},…]}
//! {"ask":"act","action":"pause","domain":2}          {"done":true}
//! {"ask":"act","action":"pause","domain":9}          {"error":"domain_pause: no domain with this number is alive"}
//! {"ask":"read","domain":2,"position":0}             {"output":{"first":0,"end":12,"bytes":"aGVsbG8gd29ybGQh"}}
//! ```
//!
//! New domains are made of a configuration blob, which goes to Caisson piece by piece. One connection at a time has a blob under
//! way; it is let go of with `end`, and when the connection closes:
//!
//! ```text
//! {"ask":"begin","bytes":8192}                       {"done":true}
//! {"ask":"piece","offset":0,"bytes":"Q0FJU1NPTho…"}  {"done":true}
//! {"ask":"create","index":0}                         {"created":3}
//! {"ask":"end"}                                      {"done":true}
//! ```
//!
//! Names of fields are stable: programs read them, from the tool's `--json` as well. Times are nanoseconds, sizes bytes.

#![forbid(unsafe_code)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use caisson_abi::control::{self as abi, ConsoleHeader, DomainRecord, MachineRecord, VcpuRecord};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where the daemon listens.
pub const SOCKET: &str = "/run/caisson/backend.sock";
/// Where the sockets of guests' console ports are: `GUEST/NAME`.
pub const PORTS: &str = "/run/caisson/console";
/// The longest line of either side, in bytes.
pub const MAX_LINE: u64 = 256 << 10;
/// The most bytes that are typed by one question.
pub const MAX_TYPED: usize = 2048;
/// The most bytes of a blob in one question: as Base64 they are a third more.
pub const MAX_PIECE: usize = 128 << 10;

/// A question.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum Question {
    /// The devices that the daemon serves.
    Devices,
    /// The machine as a whole.
    Machine,
    /// All domains.
    Domains,
    /// A domain's vCPUs.
    Vcpus {
        /// Whose.
        domain: u16,
    },
    /// Something is to be done to a domain.
    Act {
        /// What.
        action: Action,
        /// To which.
        domain: u16,
    },
    /// What a domain has written to its console.
    Read {
        /// Which.
        domain: u16,
        /// From this byte on.
        position: u64,
    },
    /// To be typed on a domain's console.
    Write {
        /// Which.
        domain: u16,
        /// What: at most [`MAX_TYPED`].
        bytes: Bytes,
    },
    /// A blob is to come.
    Begin {
        /// How many bytes it has.
        bytes: u64,
    },
    /// A piece of the blob.
    Piece {
        /// Where in the blob.
        offset: u64,
        /// What: at most [`MAX_PIECE`].
        bytes: Bytes,
    },
    /// A domain is to be made of the blob, which has come whole.
    Create {
        /// Its number in the blob, from 0.
        index: u32,
    },
    /// No more domains are made of the blob.
    End,
}

/// What can be done to a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "as caisson_abi::control::Action")]
pub enum Action {
    Start,
    Shutdown,
    Reset,
    Destroy,
    Pause,
    Resume,
    Forget,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// To [`Question::Machine`].
    Machine(Machine),
    /// To [`Question::Domains`].
    Domains(Vec<Domain>),
    /// To [`Question::Vcpus`].
    Vcpus(Vec<Vcpu>),
    /// To [`Question::Act`], [`Question::Begin`], [`Question::Piece`] and [`Question::End`].
    Done(bool),
    /// To [`Question::Read`].
    Output(Output),
    /// To [`Question::Write`]: how many bytes there was room for.
    Written(u64),
    /// To [`Question::Create`]: the domain's number.
    Created(u16),
    /// Why there is no other answer.
    Error(String),
}

/// Bytes, in JSON by Base64.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// The machine as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as caisson_abi::control::MachineRecord")]
pub struct Machine {
    pub now_ns: u64,
    pub free_memory: u64,
    pub guest_ns: u64,
    pub hypervisor_ns: u64,
    pub idle_ns: u64,
    pub tsc_khz: u64,
    pub cpus: u32,
    pub domains: u32,
    /// The driver domain's own number.
    pub caller: u32,
}

impl From<MachineRecord> for Machine {
    fn from(record: MachineRecord) -> Self {
        Self {
            now_ns: record.now,
            free_memory: record.free_memory,
            guest_ns: record.guest_time,
            hypervisor_ns: record.hypervisor_time,
            idle_ns: record.idle_time,
            tsc_khz: record.tsc_khz,
            cpus: record.cpus,
            domains: record.domains,
            caller: record.caller,
        }
    }
}

/// What a domain is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "as caisson_abi::control::state")]
pub enum State {
    Waiting,
    Running,
    Blocked,
    Paused,
    Ending,
    #[default]
    Gone,
    /// One that this program does not know.
    #[serde(other)]
    Unknown,
}

impl State {
    /// As it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Blocked => "blocked",
            Self::Paused => "paused",
            Self::Ending => "ending",
            Self::Gone => "gone",
            Self::Unknown => "unknown",
        }
    }

    const fn of(value: u32) -> Self {
        match value {
            abi::state::WAITING => Self::Waiting,
            abi::state::RUNNING => Self::Running,
            abi::state::BLOCKED => Self::Blocked,
            abi::state::PAUSED => Self::Paused,
            abi::state::ENDING => Self::Ending,
            abi::state::GONE => Self::Gone,
            _ => Self::Unknown,
        }
    }
}

/// How a domain ended last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "as caisson_abi::control::ended")]
pub enum Ended {
    #[default]
    Never,
    Poweroff,
    Reset,
    Crash,
    Killed,
    Destroyed,
    Failed,
    /// In a way that this program does not know.
    #[serde(other)]
    Unknown,
}

impl Ended {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Poweroff => "powered off",
            Self::Reset => "reset",
            Self::Crash => "crashed",
            Self::Killed => "ended by Caisson",
            Self::Destroyed => "destroyed",
            Self::Failed => "could not be made",
            Self::Unknown => "unknown",
        }
    }

    const fn of(value: u32) -> Self {
        match value {
            abi::ended::NEVER => Self::Never,
            abi::ended::POWEROFF => Self::Poweroff,
            abi::ended::RESET => Self::Reset,
            abi::ended::CRASH => Self::Crash,
            abi::ended::KILLED => Self::Killed,
            abi::ended::DESTROYED => Self::Destroyed,
            abi::ended::FAILED => Self::Failed,
            _ => Self::Unknown,
        }
    }
}

/// A domain.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as caisson_abi::control::DomainRecord")]
pub struct Domain {
    pub id: u16,
    pub name: String,
    pub state: State,
    /// How it ended last.
    pub ended: Ended,
    pub vcpus: u32,
    pub memory: u64,
    /// The bytes of that which no other domain sees.
    #[serde(default)]
    pub private: u64,
    pub restarts: u32,
    pub life: u32,
    pub guest_ns: u64,
    pub hypervisor_ns: u64,
    pub stolen_ns: u64,
    pub elapsed_ns: u64,
    /// It is the driver domain itself.
    pub own: bool,
    /// Its console can be read.
    pub console: bool,
    /// It owns real devices.
    pub devices: bool,
    /// By the names of the configuration.
    pub privileges: Vec<String>,
}

impl From<DomainRecord> for Domain {
    fn from(record: DomainRecord) -> Self {
        let name = record.name.split(|&byte| byte == 0).next().unwrap_or_default();
        let has = |flag| record.flags & flag != 0;
        let privileges = caisson_abi::Privileges::from_bits_truncate(record.privileges);
        Self {
            id: record.id,
            name: String::from_utf8_lossy(name).into_owned(),
            state: State::of(record.state),
            ended: Ended::of(record.ended),
            vcpus: record.vcpus,
            memory: record.memory,
            private: u64::from(record.private_mib) << 20,
            restarts: record.restarts,
            life: record.life,
            guest_ns: record.guest_time,
            hypervisor_ns: record.hypervisor_time,
            stolen_ns: record.stolen_time,
            elapsed_ns: record.elapsed,
            own: has(abi::flag::CALLER),
            console: has(abi::flag::CONSOLE),
            devices: has(abi::flag::DEVICES),
            privileges: privileges
                .iter_names()
                .map(|(name, _)| name.to_lowercase().replace('_', "-"))
                .collect(),
        }
    }
}

/// A vCPU.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as caisson_abi::control::VcpuRecord")]
pub struct Vcpu {
    pub index: u16,
    /// `blocked`, `ready` or `running`.
    pub activity: String,
    pub cpu: u32,
    pub exits: u64,
    pub guest_ns: u64,
    pub hypervisor_ns: u64,
    pub stolen_ns: u64,
    pub blocked_ns: u64,
}

impl From<VcpuRecord> for Vcpu {
    fn from(record: VcpuRecord) -> Self {
        let activity = match record.activity {
            0 => "blocked",
            1 => "ready",
            2 => "running",
            _ => "unknown",
        };
        Self {
            index: record.index,
            activity: activity.to_owned(),
            cpu: record.cpu,
            exits: record.exits,
            guest_ns: record.guest_time,
            hypervisor_ns: record.hypervisor_time,
            stolen_ns: record.stolen_time,
            blocked_ns: record.blocked_time,
        }
    }
}

/// A piece of a console's output.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Output {
    /// The number of its first byte. Above the position that was asked for where bytes have been lost.
    pub first: u64,
    /// How many bytes have been written so far.
    pub end: u64,
    /// The bytes.
    pub bytes: Bytes,
}

impl Output {
    /// From what Caisson has written.
    #[must_use]
    pub fn new(header: ConsoleHeader, bytes: Vec<u8>) -> Self {
        Self { first: header.first, end: header.end, bytes: Bytes(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_the_page_says() {
        for (question, line) in [
            (Question::Domains, r#"{"ask":"domains"}"#),
            (
                Question::Act { action: Action::Pause, domain: 2 },
                r#"{"ask":"act","action":"pause","domain":2}"#,
            ),
            (Question::Read { domain: 2, position: 7 }, r#"{"ask":"read","domain":2,"position":7}"#),
            (
                Question::Write { domain: 2, bytes: Bytes(b"hello".to_vec()) },
                r#"{"ask":"write","domain":2,"bytes":"aGVsbG8="}"#,
            ),
            (Question::Begin { bytes: 8192 }, r#"{"ask":"begin","bytes":8192}"#),
            (
                Question::Piece { offset: 3, bytes: Bytes(b"hello".to_vec()) },
                r#"{"ask":"piece","offset":3,"bytes":"aGVsbG8="}"#,
            ),
            (Question::Create { index: 1 }, r#"{"ask":"create","index":1}"#),
            (Question::End, r#"{"ask":"end"}"#),
        ] {
            assert_eq!(serde_json::to_string(&question).unwrap(), line);
            assert_eq!(serde_json::from_str::<Question>(line).unwrap(), question);
        }
        for (answer, line) in [
            (Answer::Done(true), r#"{"done":true}"#),
            (Answer::Created(3), r#"{"created":3}"#),
            (Answer::Error("no".into()), r#"{"error":"no"}"#),
            (
                Answer::Output(Output { first: 0, end: 3, bytes: Bytes(vec![0xff, 0, 1]) }),
                r#"{"output":{"first":0,"end":3,"bytes":"/wAB"}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&answer).unwrap(), line);
            assert_eq!(serde_json::from_str::<Answer>(line).unwrap(), answer);
        }
        assert!(
            serde_json::from_str::<Question>(r#"{"ask":"write","domain":2,"bytes":"nonsense!"}"#).is_err()
        );
        assert!(
            serde_json::from_str::<Question>(r#"{"ask":"act","action":"pause","domain":65536}"#).is_err()
        );
    }

    #[test]
    fn a_piece_fits_a_line() {
        let piece = Question::Piece { offset: u64::MAX, bytes: Bytes(vec![0xff; MAX_PIECE]) };
        assert!((serde_json::to_string(&piece).unwrap().len() as u64) < MAX_LINE);
    }

    #[test]
    fn records_become_what_people_read() {
        let mut record = DomainRecord {
            id: 2,
            flags: abi::flag::CALLER | abi::flag::CONSOLE,
            state: abi::state::PAUSED,
            ended: abi::ended::RESET,
            privileges: 0b101,
            memory: 1 << 50,
            private_mib: u32::MAX,
            ..DomainRecord::default()
        };
        record.name[..3].copy_from_slice(b"web");
        let domain = Domain::from(record);
        assert_eq!((domain.name.as_str(), domain.state, domain.ended), ("web", State::Paused, Ended::Reset));
        assert_eq!((domain.own, domain.console, domain.devices), (true, true, false));
        assert_eq!(domain.privileges, ["events", "io-backend"]);
        assert_eq!((domain.memory, domain.private), (1 << 50, (1 << 52) - (1 << 20)));
        assert_eq!(State::of(99), State::Unknown);
        let text = serde_json::to_string(&domain).unwrap();
        assert!(text.contains(r#""state":"paused""#), "{text}");
        assert!(text.contains(r#""private":4503599626321920"#), "{text}");
        assert_eq!(serde_json::from_str::<Domain>(&text).unwrap(), domain);
        // A newer daemon may know more.
        assert_eq!(serde_json::from_str::<State>(r#""asleep""#).unwrap(), State::Unknown);
    }
}
