//! For a first level that starts a guest: what it prints is passed on, and when it printed its first line is told by the clock
//! of the first level.

use std::{
    io::{BufRead as _, BufReader, Write as _, stdout},
    process::{Command, ExitCode, Stdio},
};

use crate::sample::tsc;

/// The line by which the guest tells its own clock.
const GUEST: &[u8] = b"bench: now ";

/// Runs a command. When the guest's line comes, prints `bench: relay TICKS` in front of it: since just before the command.
pub(crate) fn run(command: &[String]) -> ExitCode {
    match relay(command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("bench: relay: {}: {error}", command.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn relay(command: &[String]) -> std::io::Result<bool> {
    let Some((program, arguments)) = command.split_first() else { return Ok(false) };
    let start = tsc();
    let mut child = Command::new(program).args(arguments).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        let now = tsc();
        if line.windows(GUEST.len()).any(|part| part == GUEST) {
            writeln!(stdout(), "bench: relay {}", now.wrapping_sub(start))?;
        }
        stdout().write_all(&line)?;
        stdout().flush()?;
        line.clear();
    }
    Ok(child.wait()?.success())
}
