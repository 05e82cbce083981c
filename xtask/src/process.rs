//! Running other programs: output captured, the last line shown as progress, failures as one line plus the tool's words.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    thread,
};

use crate::{
    error::{Context, Error, Result},
    progress::Step,
};

/// What a program printed.
#[derive(Debug, Default)]
pub struct Captured {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    /// Whether it ended with exit code 0.
    pub success: bool,
    /// How it ended, in words.
    pub ending: String,
}

/// The program's name as a person would type it.
#[must_use]
pub fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Runs `command` to its end without a terminal; lines of its standard error are shown in `step`.
///
/// # Errors
/// When it cannot be started. A failing exit code is not an error here: see [`run`].
pub fn capture(command: &mut Command, step: Option<&Step>) -> Result<Captured> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .cannot(|| format!("start {}", command.get_program().to_string_lossy()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stdout) = stdout {
            // What was read before an error is kept; the exit code tells the rest.
            let _ = stdout.read_to_end(&mut bytes);
        }
        bytes
    });
    let mut text = String::new();
    if let Some(stderr) = stderr {
        for line in BufReader::new(stderr).split(b'\n').map_while(std::result::Result::ok) {
            let line = String::from_utf8_lossy(&line);
            if let Some(step) = step {
                step.detail(&line);
            }
            text.push_str(&line);
            text.push('\n');
        }
    }
    let status = child.wait().cannot(|| format!("wait for {}", shown(command)))?;
    let stdout = reader.join().unwrap_or_default();
    Ok(Captured { stdout, stderr: text, success: status.success(), ending: status.to_string() })
}

/// Runs `command` and takes anything but exit code 0 as a failure of `what`.
///
/// # Errors
/// When it cannot be started or fails; then with all that it printed.
pub fn run(command: &mut Command, what: &str, step: Option<&Step>) -> Result<Vec<u8>> {
    let captured = capture(command, step)?;
    if captured.success {
        return Ok(captured.stdout);
    }
    Err(Error::Tool {
        line: format!("{what} failed ({}): {}", captured.ending, shown(command)),
        output: captured.stderr,
    })
}

/// Whether `name` is a program on the search path.
#[must_use]
pub fn on_path(name: &str) -> bool {
    // Debian keeps some administrator's programs out of an ordinary person's path.
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|dir| dir.join(name).is_file())
}
