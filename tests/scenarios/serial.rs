//! The serial line when nobody is in a hurry to read it.

use std::{io::Write as _, os::unix::net::UnixStream, thread, time::Duration};

use caisson_config::MAX_REFERENCE;
use caisson_tests::{Failure, Lab, Run, Verdict, ensure};
use xtask::outcome::Outcome;

use crate::{
    tiny::Tiny,
    workload::{BOOT, STEP},
};

/// How long nobody reads when Caisson has said its last: far longer than a UART takes to send what it keeps, and shorter
/// than the second or more for which Caisson waits for a line.
const PAUSE: Duration = Duration::from_millis(500);

/// A machine whose config has suffered, so that Caisson says why it cannot start, and ends. What it says is the same each
/// time, but for the name of a file that is so long.
fn start(lab: &Lab, name: &str, length: usize) -> Verdict<Run> {
    let kernel = "k".repeat(length);
    Tiny::default().save(lab, name, &kernel)?;
    let config = format!("[[domain]]\nname = \"one\"\nmemory = \"2M\"\nkernel = \"{kernel}\"\n");
    let flip = |blob: &mut Vec<u8>| {
        if let Some(last) = blob.last_mut() {
            *last ^= 1;
        }
    };
    lab.boot(name, &config)?.spoil(flip).start()
}

/// Caisson ends while its last byte has not left the UART, as its reader comes late. It is not lost.
pub(crate) fn slow_reader(lab: &Lab, name: &str) -> Verdict {
    let line = room()?;
    // Once the line is full, QEMU goes on when more than three quarters of it have been read. After that much, and then
    // the line full again, one byte is to be left for the UART.
    let first = line * 7 / 8;
    let whole = first + line + 1;

    let some = 100;
    let mut run = start(lab, name, some)?;
    run.end(BOOT, Outcome::Refused)?;
    let length = (some + whole).saturating_sub(run.bytes_read());
    ensure!(
        (1..=MAX_REFERENCE).contains(&length),
        "Caisson says {} bytes, and the line takes {line}: have it say more or less",
        run.bytes_read()
    );

    let mut run = start(lab, name, length)?;
    run.leave_unread(first, BOOT)?;
    run.read_up_to(first, STEP)?;
    run.leave_unread(line, STEP)?;
    thread::sleep(PAUSE);
    run.end(STEP, Outcome::Refused)?;
    ensure!(run.bytes_read() == whole, "{} of {whole} bytes have arrived", run.bytes_read());
    Ok(())
}

/// How many bytes a line takes that nobody reads, when they come one by one, as a UART sends them.
fn room() -> Verdict<usize> {
    let failure = |error| Failure::new(format!("cannot make a socket: {error}"));
    let (mut writer, _reader) = UnixStream::pair().map_err(failure)?;
    writer.set_nonblocking(true).map_err(failure)?;
    let mut taken = 0;
    while writer.write(&[0]).is_ok() {
        taken += 1;
    }
    Ok(taken)
}
