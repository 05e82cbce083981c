//! The Linux guest's initial RAM disk: busybox, the links to its applets, the kernel's modules for virtio devices and private memory, and
//! `guest-images/linux/init`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cpio::Archive,
    error::{Context, Result},
    packages,
    paths::Workspace,
    process, stamp,
};

/// The modules for virtio devices, and for private memory.
const MODULES: [&str; 8] = [
    "virtio_mmio",
    "virtio-rng",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtiofs",
    "device_dax",
    "dax_hmem",
];

/// Builds the RAM disk when its ingredients have changed; gives its path. `stamp` is one more program, for the boot
/// benchmark.
///
/// # Errors
/// When busybox cannot be fetched, or a file cannot be read or written.
pub fn linux(workspace: &Workspace, stamp: Option<&Path>) -> Result<PathBuf> {
    let busybox_path = packages::busybox(workspace)?;
    let init_path = workspace.source("guest-images/linux/init");
    let busybox = fs::read(&busybox_path).cannot(|| format!("read {}", busybox_path.display()))?;
    let init = fs::read(&init_path).cannot(|| format!("read {}", init_path.display()))?;
    let name = if stamp.is_some() { "linux-initrd-stamp.cpio" } else { "linux-initrd.cpio" };
    let kernel = packages::linux(workspace)?;
    let tree = packages::modules(workspace, &kernel)?;
    // The boot benchmark measures what it always has.
    let modules = if stamp.is_some() { Vec::new() } else { tree.read(&MODULES)? };
    let stamp = match stamp {
        Some(path) => fs::read(path).cannot(|| format!("read {}", path.display()))?,
        None => Vec::new(),
    };
    let output = workspace.dir("images")?.join(name);
    let release = kernel.as_os_str().as_encoded_bytes();
    let ingredients = [b"initrd 4".as_slice(), release, &busybox, &init, &stamp];
    let key = stamp::key(ingredients.into_iter().chain(modules.iter().map(|module| module.bytes.as_slice())));
    let _lock = workspace.lock("initrd")?;
    if stamp::is_fresh(&output, &key) {
        return Ok(output);
    }
    let mut archive = skeleton(&busybox, &applets(&busybox_path)?);
    if !stamp.is_empty() {
        archive.file("bin/stamp", 0o755, &stamp);
    }
    if !modules.is_empty() {
        tree.pack(&modules, &mut archive);
    }
    archive.file("init", 0o755, &init);
    fs::write(&output, archive.finish()).cannot(|| format!("write {}", output.display()))?;
    stamp::set(&output, &key)?;
    Ok(output)
}

/// The names of busybox's applets.
///
/// # Errors
/// When it cannot be run.
pub fn applets(busybox: &Path) -> Result<Vec<String>> {
    let list = process::run(Command::new(busybox).arg("--list"), "listing busybox's applets", None)?;
    let names = String::from_utf8_lossy(&list);
    Ok(names.lines().filter(|applet| *applet != "busybox").map(str::to_owned).collect())
}

/// What every RAM disk of ours has: the usual folders, the console's node, busybox and the links to its applets.
#[must_use]
pub fn skeleton(busybox: &[u8], applets: &[String]) -> Archive {
    let mut archive = Archive::new();
    for (name, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("lib", 0o755),
        ("lib/modules", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
    ] {
        archive.directory(name, mode);
    }
    // The kernel opens it for init before any file system is mounted.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("bin/busybox", 0o755, busybox);
    for applet in applets {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_busybox_and_its_links() {
        let bytes = skeleton(b"ELF", &["ls".to_owned(), "sh".to_owned()]).finish();
        let text = String::from_utf8_lossy(&bytes);
        for name in ["dev/console\0", "bin/busybox\0", "bin/ls\0", "bin/sh\0", "TRAILER!!!\0"] {
            assert_eq!(text.matches(name).count(), 1, "{name}");
        }
    }
}
