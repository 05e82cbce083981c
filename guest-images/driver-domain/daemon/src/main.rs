//! The program: opens the door and serves until it is killed. `caisson-backend --help` says what it wants.

use std::process::ExitCode;
use std::sync::Arc;

use caisson_backend::control;
use caisson_backend::daemon::Daemon;
use caisson_backend::guests::Guests;
use caisson_backend::host::Door;
use caisson_backend::kinds::OpenError;
use caisson_backend::log;

/// Where a file stands for each device that has a guest: the driver domain's first process looks there.
const GUESTS: &str = "/run/caisson/guests";

/// Where questions are answered.
const SOCKET: &str = "/run/caisson/backend.sock";

const HELP: &str = "\
caisson-backend: serves the virtio devices of other Caisson guests from this one

It takes no arguments: which devices there are, Caisson tells. It stays in the foreground, writes to the standard error,
and may be killed and started again at any time; guests wait meanwhile. It needs root, the modules uio_pci_generic,
device_dax and dax_hmem, and a domain with privileges = [\"events\", \"io-backend\"].";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--help" | "-h") => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(other) => {
            log::line(format_args!("error: argument {other:?} is unknown; it takes none"));
            return ExitCode::from(2);
        }
    }
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::line(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), OpenError> {
    let door = Door::open()?;
    log::line(format_args!("serving guests, as domain {}", door.domain()));
    let mut daemon = Daemon::new(Arc::new(door), Guests::in_folder(GUESTS))?;
    if let Err(error) = control::listen(SOCKET.as_ref(), daemon.desk()) {
        log::line(format_args!("{SOCKET}: {error}; no questions are answered there"));
    }
    daemon.run()
}
