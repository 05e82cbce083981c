//! The benchmark program, to be joined to a RAM disk: itself, and the module by which the kernel lets programs read MSRs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cargo,
    cpio::Archive,
    error::{Context, Error, Result},
    packages,
    paths::Workspace,
    process, stamp,
};

/// Modules of the guest's kernel.
const MODULES: [&str; 1] = ["msr"];

/// The program without symbols, which a guest would only have to unpack.
///
/// # Errors
/// What the compiler says.
pub fn program(workspace: &Workspace) -> Result<Vec<u8>> {
    let built = cargo::build_for_linux(workspace, cargo::MEASURE)?;
    let built = built.first().ok_or_else(|| Error::Failed(format!("{} builds nothing", cargo::MEASURE)))?;
    let stripped = workspace.dir("images")?.join("measure");
    let _lock = workspace.lock("measure")?;
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&stripped).arg(built);
    process::run(&mut strip, "taking symbols out of the benchmark program", None)?;
    fs::read(&stripped).cannot(|| format!("read {}", stripped.display()))
}

/// Packs it when it has changed; gives the archive's path.
///
/// # Errors
/// When the program cannot be built, or a file cannot be read or written.
pub fn archive(workspace: &Workspace) -> Result<PathBuf> {
    let program = program(workspace)?;
    let kernel = packages::linux(workspace)?;
    let tree = packages::modules(workspace, &kernel)?;
    let modules = tree.read(&MODULES)?;
    let output = workspace.dir("images")?.join("measure.cpio");
    let release = kernel.as_os_str().as_encoded_bytes();
    let key = stamp::key(
        [b"measure 1".as_slice(), release, &program]
            .into_iter()
            .chain(modules.iter().map(|module| module.bytes.as_slice())),
    );
    let _lock = workspace.lock("measure")?;
    if stamp::is_fresh(&output, &key) {
        return Ok(output);
    }
    let mut archive = Archive::new();
    for folder in ["usr", "usr/sbin"] {
        archive.directory(folder, 0o755);
    }
    tree.pack(&modules, &mut archive);
    archive.file("usr/sbin/measure", 0o755, &program);
    write(&output, &archive.finish())?;
    stamp::set(&output, &key)?;
    Ok(output)
}

fn write(output: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(output, bytes).cannot(|| format!("write {}", output.display()))
}
