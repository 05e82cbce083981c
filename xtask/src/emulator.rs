//! What the emulators have in common: a process that never outlives its owner, with the machine's first serial port.

use std::{
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use crate::{
    bochs::Bochs,
    error::{Context, Error, Result},
    outcome::Outcome,
    qemu::Qemu,
    qmp::Qmp,
    serial::Serial,
};

/// Whether Caisson runs guests on Intel's VT-x: then a host's nested VMX is of use to `run`, and the plain test command
/// takes Bochs in.
pub const VTX: bool = true;

/// The emulators that the plain test command tests on.
pub const TESTED: &[Kind] = if VTX { &Kind::ALL } else { &[Kind::Qemu] };

/// The environment variable that tells the whole-machine tests their emulators: names with commas in between. Without it
/// they take [`TESTED`].
pub const MACHINES_VARIABLE: &str = "CAISSON_MACHINES";

/// The emulators of these names, with commas in between; of none, [`TESTED`].
///
/// # Errors
/// With the name that is unknown.
pub fn parse_list(names: &str) -> Result<Vec<Kind>> {
    let names: Vec<&str> = names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if names.is_empty() {
        return Ok(TESTED.to_vec());
    }
    let kind = |name: &&str| {
        let unknown = || Error::Usage(format!("{MACHINES_VARIABLE}: {name} is neither qemu nor bochs"));
        Kind::ALL.into_iter().find(|kind| kind.name() == *name).ok_or_else(unknown)
    };
    names.iter().map(kind).collect()
}

/// The emulators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// QEMU: AMD-V by its own translator, or the host's CPU through KVM.
    #[default]
    Qemu,
    /// Bochs: Intel's VT-x with EPT.
    Bochs,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Qemu, Self::Bochs];

    /// The name by which a person asks for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
        }
    }

    /// A time limit on this emulator, where `limit` is right for QEMU's translator. Bochs interprets one instruction after
    /// the other and is about six times slower.
    #[must_use]
    pub fn limit(self, limit: Duration) -> Duration {
        match self {
            Self::Qemu => limit,
            Self::Bochs => limit.saturating_mul(6),
        }
    }

    /// Caisson's boot words on this emulator: by `exit` it ends the run with a result (see [`crate::outcome`]), and what the
    /// emulator gets wrong is left out; then `more`, which overrides them.
    #[must_use]
    pub fn boot_words(self, more: &str) -> String {
        let words = match self {
            Self::Qemu => crate::qemu::EXIT_WORD.to_owned(),
            Self::Bochs => format!("{} {}", crate::bochs::EXIT_WORD, crate::bochs::WITHOUT_WORD),
        };
        format!("{words} {more}").trim_end().to_owned()
    }
}

/// A running machine, whichever emulator it runs on. Dropping it ends it.
#[derive(Debug)]
pub enum Running {
    /// On QEMU.
    Qemu(Qemu),
    /// On Bochs.
    Bochs(Bochs),
}

impl Running {
    /// Which emulator it runs on.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Qemu(_) => Kind::Qemu,
            Self::Bochs(_) => Kind::Bochs,
        }
    }

    /// The first serial port.
    #[must_use]
    pub fn serial(&self) -> &Serial {
        match self {
            Self::Qemu(qemu) => qemu.serial(),
            Self::Bochs(bochs) => bochs.serial(),
        }
    }

    /// QEMU's monitor connection; it can be taken once.
    ///
    /// # Errors
    /// When it was taken before, QEMU has ended, or this is not QEMU.
    pub fn monitor(&mut self) -> Result<Qmp> {
        match self {
            Self::Qemu(qemu) => qemu.monitor(),
            Self::Bochs(_) => Err(Error::Failed("Bochs has no monitor".to_owned())),
        }
    }

    /// How it ended, once its serial port is closed. One that lingers is killed.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn end(&mut self) -> Result<Outcome> {
        match self {
            Self::Qemu(qemu) => Ok(Outcome::of(qemu.wait_closing()?)),
            Self::Bochs(bochs) => bochs.end(),
        }
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        match self {
            Self::Qemu(qemu) => qemu.kill(),
            Self::Bochs(bochs) => bochs.kill(),
        }
    }

    /// What the emulator itself complained about.
    #[must_use]
    pub fn messages(&self) -> String {
        match self {
            Self::Qemu(qemu) => qemu.messages(),
            Self::Bochs(bochs) => bochs.messages(),
        }
    }

    /// Reads all that the machine prints until it ends, and how it ended. At the limit it is killed.
    ///
    /// # Errors
    /// When the system fails us.
    pub fn collect(mut self, limit: Duration) -> Result<(String, Outcome)> {
        let deadline = Instant::now() + limit;
        let (mut printed, mut buffer) = (Vec::new(), [0; 4096]);
        let outcome = loop {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            else {
                break Outcome::TimedOut(limit);
            };
            let mut serial = self.serial();
            serial.set_read_timeout(Some(left)).cannot(|| "set up the serial line".to_owned())?;
            match serial.read(&mut buffer) {
                Ok(0) => break self.end()?,
                Ok(length) => printed.extend_from_slice(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break self.end()?,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).cannot(|| "read the serial line".to_owned()),
            }
        };
        Ok((String::from_utf8_lossy(&printed).into_owned(), outcome))
    }
}

/// An emulator's process. Dropping it kills the process; so does the end, of whatever kind, of the thread that started it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: &'static str,
}

impl Process {
    /// Starts `command`, which inherits `keep`; `name` is what people call it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(mut command: Command, keep: Option<OwnedFd>, name: &'static str) -> Result<Self> {
        // A Ctrl-C at the terminal is for us: we end the emulator in an orderly way.
        command.process_group(0);
        bind_to_parent(&mut command, keep);
        let child =
            command.spawn().cannot(|| format!("start {}", command.get_program().to_string_lossy()))?;
        Ok(Self { child, name })
    }

    /// How it ended, when it has.
    ///
    /// # Errors
    /// When the system does not tell.
    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().cannot(|| format!("wait for {}", self.name))
    }

    /// Waits for its end, which is near. One that lingers is killed.
    ///
    /// # Errors
    /// When the system does not tell.
    pub(crate) fn wait_closing(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        self.child.wait().cannot(|| format!("wait for {}", self.name))
    }

    /// Ends it now.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has the child killed when its parent ends without a chance to clean up, and lets it inherit `keep`.
fn bind_to_parent(command: &mut Command, keep: Option<OwnedFd>) {
    let parent = rustix::process::getpid();
    let prepare = move || -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have ended just before.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        if let Some(keep) = &keep {
            rustix::io::fcntl_setfd(keep, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe code may run. The closure makes three system calls, and on
    // failure an `io::Error` that needs no allocation; it takes no lock.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(prepare);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_device_is_always_among_the_boot_words() {
        assert_eq!(Kind::Qemu.boot_words(""), "exit=isa-debug:0xf4");
        assert_eq!(Kind::Qemu.boot_words("log=debug"), "exit=isa-debug:0xf4 log=debug");
        assert_eq!(Kind::Bochs.boot_words("log=debug"), "exit=bochs without=virtual-interrupts log=debug");
    }

    #[test]
    fn lists_of_emulators() {
        assert_eq!(parse_list("").unwrap(), TESTED);
        assert_eq!(parse_list("bochs").unwrap(), [Kind::Bochs]);
        assert_eq!(parse_list("qemu, bochs").unwrap(), Kind::ALL);
        assert!(parse_list("xen").unwrap_err().to_string().contains("xen"));
    }

    #[test]
    fn limits_grow_with_the_emulators_slowness() {
        let limit = Duration::from_secs(10);
        assert_eq!(Kind::Qemu.limit(limit), limit);
        assert!(Kind::Bochs.limit(limit) > limit);
    }
}
