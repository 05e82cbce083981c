//! What fills and searches memory that the memory map calls soft-reserved, to be joined to a RAM disk: for tests.

use std::{fs, path::PathBuf};

use crate::{
    cargo,
    cpio::Archive,
    error::{Context, Error, Result},
    paths::Workspace,
    stamp,
};

/// What a driver domain answers with, in the source tree.
const SCRIPT: &str = "guest-images/linux/dax/look";

/// Packs it when it has changed; gives the archive's path.
///
/// # Errors
/// When the program cannot be built, or a file cannot be read or written.
pub fn archive(workspace: &Workspace) -> Result<PathBuf> {
    let read = |path: PathBuf| fs::read(&path).cannot(|| format!("read {}", path.display()));
    let built = cargo::build_for_linux(workspace, cargo::DAX)?;
    let built = built.first().ok_or_else(|| Error::Failed(format!("{} builds nothing", cargo::DAX)))?;
    let (program, script) = (read(built.clone())?, read(workspace.source(SCRIPT))?);
    let output = workspace.dir("images")?.join("dax.cpio");
    let key = stamp::key([b"dax 1".as_slice(), &program, &script]);
    let _lock = workspace.lock("dax")?;
    if stamp::is_fresh(&output, &key) {
        return Ok(output);
    }
    let mut archive = Archive::new();
    for folder in ["srv", "srv/look", "srv/look/cgi-bin"] {
        archive.directory(folder, 0o755);
    }
    archive.file("bin/dax", 0o755, &program);
    archive.file("srv/look/cgi-bin/look", 0o755, &script);
    fs::write(&output, archive.finish()).cannot(|| format!("write {}", output.display()))?;
    stamp::set(&output, &key)?;
    Ok(output)
}
