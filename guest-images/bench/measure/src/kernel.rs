//! What a hypervisor shows in only by interrupts, timers, memory and the exits of starting programs.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    process::exit,
    ptr,
    thread::sleep as wait,
    time::{Duration, Instant},
};

use crate::sample::{Samples, tsc};

const SLEEPS: usize = 200;
const ROUNDS: usize = 1000;
const PROGRAMS: usize = 500;

/// What each of the programs is: one that ends at once, with a C library that starts as those of distributions do.
const PROGRAM: [&str; 2] = ["/bin/busybox", "true"];

/// How much later than due a sleep of a millisecond ends. How many ticks a millisecond has is told by the kernel's clock over
/// all sleeps together.
pub(crate) fn sleep(_: u64) -> Result<Samples, String> {
    const SHORT: Duration = Duration::from_millis(1);
    // SAFETY: it changes how exact this thread's timers are: to the nanosecond.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    let mut ticks = Vec::with_capacity(SLEEPS);
    let (begun, first) = (Instant::now(), tsc());
    for _ in 0..SLEEPS {
        let start = tsc();
        wait(SHORT);
        ticks.push(tsc() - start);
    }
    let (elapsed, span) = (begun.elapsed().as_nanos().max(1), u128::from(tsc() - first));
    let due = u64::try_from(span * SHORT.as_nanos() / elapsed).unwrap_or(u64::MAX);
    Ok(Samples::from(ticks.into_iter().map(|ticks| ticks.saturating_sub(due)).collect()))
}

/// So many seconds of nothing.
pub(crate) fn idle(seconds: u64) -> Result<Samples, String> {
    Samples::once(|| {
        wait(Duration::from_secs(seconds));
        Ok(())
    })
}

fn failed(what: &str) -> String {
    format!("{what}: {}", io::Error::last_os_error())
}

/// Makes a process of `child`, with a copy of this one's memory.
pub(crate) fn fork(child: impl FnOnce()) -> Result<libc::pid_t, String> {
    // SAFETY: this process has one thread, so that the child may do whatever this one may.
    match unsafe { libc::fork() } {
        -1 => Err(failed("fork")),
        0 => {
            child();
            exit(1)
        }
        process => Ok(process),
    }
}

/// Waits for a process; its exit code, unless a signal has ended it.
pub(crate) fn reap(process: libc::pid_t) -> Result<Option<i32>, String> {
    let mut status = 0;
    // SAFETY: the status is a word of ours.
    if unsafe { libc::waitpid(process, &raw mut status, 0) } != process {
        return Err(failed("waitpid"));
    }
    Ok(libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)))
}

/// A byte to another process and back.
fn round(there: &mut PipeWriter, back: &mut PipeReader) {
    let mut byte = [GO_ON];
    // Where the other process is gone, its exit code tells.
    let _ = there.write_all(&byte);
    let _ = back.read_exact(&mut byte);
}

/// Bytes on the way to the other process.
const GO_ON: u8 = 0;
const END: u8 = 1;

/// Round trips through two pipes.
pub(crate) fn pipe(_: u64) -> Result<Samples, String> {
    let make = || io::pipe().map_err(|error| format!("pipe: {error}"));
    let ((mut here, mut there), (mut back, mut answer)) = (make()?, make()?);
    let child = fork(|| {
        let mut byte = [GO_ON];
        while here.read_exact(&mut byte).is_ok() && byte == [GO_ON] && answer.write_all(&byte).is_ok() {}
        exit(0)
    })?;
    let samples = Samples::of(ROUNDS, || round(&mut there, &mut back));
    let told = there.write_all(&[END]);
    match reap(child)? {
        Some(0) if told.is_ok() => Ok(samples),
        code => Err(format!("the other process ended with {code:?}")),
    }
}

/// Processes that become programs and end, one after the other.
pub(crate) fn fork_exec(_: u64) -> Result<Samples, String> {
    let words = PROGRAM.map(|word| CString::new(word).unwrap_or_default());
    let arguments = [words[0].as_ptr(), words[1].as_ptr(), ptr::null()];
    Samples::once(|| {
        for _ in 0..PROGRAMS {
            let child = fork(|| {
                // SAFETY: path and arguments are strings that end in a zero, and the list of those ends in a null pointer.
                unsafe { libc::execv(arguments[0], arguments.as_ptr()) };
            })?;
            if reap(child)? != Some(0) {
                return Err(format!("{} failed", PROGRAM.join(" ")));
            }
        }
        Ok(())
    })
}
