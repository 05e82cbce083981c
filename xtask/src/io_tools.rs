//! What measures disks and networks, to be joined to a RAM disk: fio and iperf3 of the distribution, and the script that calls them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cpio::Archive,
    error::{Context, Result},
    paths::Workspace,
    programs::Programs,
    stamp,
};

/// Packages, and the programs in them.
const PROGRAMS: [(&str, &str); 2] = [("fio", "fio"), ("iperf3", "iperf3")];
/// The script in the source tree.
const SCRIPT: &str = "guest-images/bench/io";

/// Packs them when they have changed; gives the archive's path.
///
/// # Errors
/// When a package cannot be fetched, or a file cannot be read or written.
pub fn archive(workspace: &Workspace) -> Result<PathBuf> {
    let script = workspace.source(SCRIPT);
    let script = fs::read(&script).cannot(|| format!("read {}", script.display()))?;
    let programs = Programs::fetch(workspace, &PROGRAMS)?;
    let output = workspace.dir("images")?.join("io-tools.cpio");
    let key = stamp::key([b"io tools 1".as_slice(), &script].into_iter().chain(programs.contents()));
    let _lock = workspace.lock("io-tools")?;
    if !stamp::is_fresh(&output, &key) {
        write(&output, &script, &programs)?;
        stamp::set(&output, &key)?;
    }
    Ok(output)
}

fn write(output: &Path, script: &[u8], programs: &Programs) -> Result<()> {
    let mut archive = Archive::new();
    for folder in ["usr", "usr/sbin", "lib"] {
        archive.directory(folder, 0o755);
    }
    programs.pack(&mut archive);
    archive.file("usr/sbin/io-bench", 0o755, script);
    fs::write(output, archive.finish()).cannot(|| format!("write {}", output.display()))
}
