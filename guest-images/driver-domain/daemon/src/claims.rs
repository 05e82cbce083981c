//! Claims: a file for each device whose work may outlive the daemon for a moment, locked for as long as something of it is left.
//!
//! A lock (`flock(2)`) belongs to the open file, and goes when the last who has it is gone: the kernel with work under way
//! ([`Uring::keep`](crate::sys::Uring::keep)), or a process that was started with it. So a daemon that follows one that was killed finds
//! the device busy until nothing of the one before touches the guest's memory any more.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Where the files are.
const FOLDER: &str = "/run/caisson/claims";

/// Where the file of a channel's device is.
#[must_use]
pub fn path_of(channel: u16) -> PathBuf {
    Path::new(FOLDER).join(channel.to_string())
}

/// Makes the file, and claims it.
///
/// # Errors
/// The kernel's; `ResourceBusy` while somebody has it.
pub fn take(path: &Path) -> io::Result<OwnedFd> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let take = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        lock(file.as_fd(), FlockOperation::NonBlockingLockExclusive)?;
        Ok(file.into())
    };
    take().map_err(named)
}

/// Locks an open file.
///
/// # Errors
/// `ResourceBusy` while somebody else has it locked.
pub fn lock(file: BorrowedFd<'_>, kind: FlockOperation) -> io::Result<()> {
    flock(file, kind).map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "somebody else uses it"))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_claim_lasts_as_long_as_a_process_that_has_it() {
        let path = std::env::temp_dir().join(format!("caisson-claim-{}/33", std::process::id()));
        let claim = take(&path).unwrap();
        let is_busy = || take(&path).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy);
        assert!(is_busy());
        // As its input, which it does not read.
        let mut process = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::from(claim))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        assert!(is_busy());
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(!is_busy());
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
