//! Work on files in memory, by the programs of busybox.

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::sample::Samples;

/// In which every hypervisor's guest has memory that it has not used yet.
const FOLDER: &str = "/tmp";
/// Bytes that are hashed, and bytes that are compressed.
const HASHED: usize = 16 << 20;
const COMPRESSED: usize = 6 << 20;
/// What is written to fresh memory: 62.5 MiB.
const BLOCKS: u32 = 1000;
const BLOCK: &str = "64k";

/// Runs a program whose output nobody wants.
fn run(words: &[&str]) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("no program")?;
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{}: {status}", words.join(" "))),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// A file of so many bytes: busybox, again and again.
fn file(bytes: usize) -> Result<String, String> {
    let path = format!("{FOLDER}/measured");
    let program = fs::read("/bin/busybox").map_err(|error| format!("/bin/busybox: {error}"))?;
    let content: Vec<u8> = program.iter().copied().cycle().take(bytes).collect();
    fs::write(&path, content).map_err(|error| format!("{path}: {error}"))?;
    Ok(path)
}

fn on_file(bytes: usize, words: &[&str]) -> Result<Samples, String> {
    let path = file(bytes)?;
    let samples = Samples::once(|| run(&[words, &[&path]].concat()));
    let _ = fs::remove_file(&path);
    samples
}

/// A hash: computing, and nothing else.
pub(crate) fn sha256(_: u64) -> Result<Samples, String> {
    on_file(HASHED, &["busybox", "sha256sum"])
}

/// A compressor: computing, and some memory.
pub(crate) fn gzip(_: u64) -> Result<Samples, String> {
    on_file(COMPRESSED, &["busybox", "gzip", "-c"])
}

/// Zeros into memory that the guest has not used before.
pub(crate) fn fresh_memory(_: u64) -> Result<Samples, String> {
    let path = format!("{FOLDER}/fresh");
    let (to, blocks, size) = (format!("of={path}"), format!("count={BLOCKS}"), format!("bs={BLOCK}"));
    let samples = Samples::once(|| run(&["busybox", "dd", "if=/dev/zero", &to, &blocks, &size]));
    let _ = fs::remove_file(&path);
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_fail_are_told() {
        assert_eq!(run(&["true"]), Ok(()));
        assert!(run(&["false"]).unwrap_err().starts_with("false: "));
        assert!(run(&["/no/such/program"]).unwrap_err().starts_with("/no/such/program: "));
    }
}
