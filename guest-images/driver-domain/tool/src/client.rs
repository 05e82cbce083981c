//! Questions and answers at the daemon's socket.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use caisson_protocol::{Answer, Domain, MAX_LINE, Machine, Question};
use serde_json::Value;

/// How long the daemon may take for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a connection is kept without a question: the daemon closes one that it hears nothing of for some seconds.
const IDLE: Duration = Duration::from_secs(2);

/// Why something could not be done.
#[derive(Debug)]
pub enum Error {
    /// The daemon is not there.
    Unreachable(PathBuf, io::Error),
    /// It was there, and is not any more.
    Lost(io::Error),
    /// It says no.
    Refused(String),
    /// What it says is no answer.
    Nonsense,
    /// No domain is called so; these are there.
    NoSuchDomain(String, Vec<String>),
    /// It has not come about: of which domain, after how many seconds.
    Patience(String, u64),
    /// One's own terminal or file.
    Own(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(path, error) => write!(
                f,
                "cannot reach the daemon at {}: {error}; run this as root in the driver domain, where caisson-backend runs",
                path.display()
            ),
            Self::Lost(error) => write!(f, "the daemon has gone: {error}; try again"),
            Self::Refused(why) => f.write_str(why),
            Self::Nonsense => f.write_str(
                "the daemon answers something else: caisson and caisson-backend are of different versions",
            ),
            Self::NoSuchDomain(name, there) => {
                write!(f, "no domain is called {name:?}; there are {}", there.join(", "))
            }
            Self::Patience(name, seconds) => {
                write!(f, "{name}: not done after {seconds} s; it may still come about (--patience)")
            }
            Self::Own(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Own(error)
    }
}

impl Error {
    fn no_such(name: &str, there: Vec<Domain>) -> Self {
        Self::NoSuchDomain(name.to_owned(), there.into_iter().map(|domain| domain.name).collect())
    }

    /// What the program ends with.
    #[must_use]
    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Unreachable(..) | Self::Lost(_) => 3,
            _ => 1,
        })
    }
}

/// A connection to the daemon, made anew after a pause.
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    /// When the last answer came.
    answered: Instant,
    keeps: bool,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub fn connect(path: &Path) -> Result<Self, Error> {
        Ok(Self { path: path.to_owned(), stream: Self::open(path)?, answered: Instant::now(), keeps: false })
    }

    fn open(path: &Path) -> Result<BufReader<UnixStream>, Error> {
        let connect = || {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        connect().map(BufReader::new).map_err(|error| Error::Unreachable(path.to_owned(), error))
    }

    /// Has what follows asked by this very connection: what the daemon has begun for it goes with it.
    pub fn keep(&mut self) {
        self.keeps = true;
    }

    /// Asks, and reads a line of JSON.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::Nonsense`], [`Error::Refused`]; [`Error::Unreachable`] after a pause.
    pub fn ask_value(&mut self, question: &Question) -> Result<Value, Error> {
        let mut line = serde_json::to_string(question).map_err(|_| Error::Nonsense)?;
        line.push('\n');
        if !self.keeps && self.answered.elapsed() > IDLE {
            self.stream = Self::open(&self.path)?;
        }
        self.stream.get_mut().write_all(line.as_bytes()).map_err(Error::Lost)?;
        line.clear();
        let read = self.stream.by_ref().take(MAX_LINE).read_line(&mut line).map_err(Error::Lost)?;
        if read == 0 {
            return Err(Error::Lost(io::ErrorKind::UnexpectedEof.into()));
        }
        self.answered = Instant::now();
        let value: Value = serde_json::from_str(&line).map_err(|_| Error::Nonsense)?;
        match value.get("error").and_then(Value::as_str) {
            Some(error) => Err(Error::Refused(error.to_owned())),
            None => Ok(value),
        }
    }

    /// Asks.
    ///
    /// # Errors
    /// As [`Client::ask_value`].
    pub fn ask(&mut self, question: &Question) -> Result<Answer, Error> {
        serde_json::from_value(self.ask_value(question)?).map_err(|_| Error::Nonsense)
    }

    /// All domains.
    ///
    /// # Errors
    /// As [`Client::ask_value`].
    pub fn domains(&mut self) -> Result<Vec<Domain>, Error> {
        match self.ask(&Question::Domains)? {
            Answer::Domains(domains) => Ok(domains),
            _ => Err(Error::Nonsense),
        }
    }

    /// The machine.
    ///
    /// # Errors
    /// As [`Client::ask_value`].
    pub fn machine(&mut self) -> Result<Machine, Error> {
        match self.ask(&Question::Machine)? {
            Answer::Machine(machine) => Ok(machine),
            _ => Err(Error::Nonsense),
        }
    }

    /// The domain with this number.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`], or as [`Client::ask_value`].
    pub fn numbered(&mut self, id: u16) -> Result<Domain, Error> {
        let mut domains = self.domains()?;
        match domains.iter().position(|domain| domain.id == id) {
            Some(index) => Ok(domains.swap_remove(index)),
            None => Err(Error::no_such(&id.to_string(), domains)),
        }
    }

    /// The domain with this name, or else this number.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`], or as [`Client::ask_value`].
    pub fn find(&mut self, name: &str) -> Result<Domain, Error> {
        let mut domains = self.domains()?;
        let by_name = domains.iter().position(|domain| domain.name == name);
        let number = name.parse().ok();
        match by_name.or_else(|| domains.iter().position(|domain| Some(domain.id) == number)) {
            Some(index) => Ok(domains.swap_remove(index)),
            None => Err(Error::no_such(name, domains)),
        }
    }
}
