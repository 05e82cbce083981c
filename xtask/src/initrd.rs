//! The Linux guest's initial RAM disk: busybox, the links to its applets, the kernel's modules for virtio devices, and
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

/// The modules for virtio devices, each behind those that it needs.
const MODULES: [&str; 4] = ["virtio_ring.ko", "virtio.ko", "virtio_mmio.ko", "virtio-rng.ko"];

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
    // The boot benchmark measures what it always has.
    let modules = if stamp.is_some() { Vec::new() } else { packages::modules(workspace, &MODULES)? };
    let stamp = match stamp {
        Some(path) => fs::read(path).cannot(|| format!("read {}", path.display()))?,
        None => Vec::new(),
    };
    let output = workspace.dir("images")?.join(name);
    let ingredients = [b"initrd 3".as_slice(), &busybox, &init, &stamp];
    let key = stamp::key(ingredients.into_iter().chain(modules.iter().map(|(_, bytes)| bytes.as_slice())));
    let _lock = workspace.lock("initrd")?;
    if stamp::is_fresh(&output, &key) {
        return Ok(output);
    }
    let list = process::run(Command::new(&busybox_path).arg("--list"), "listing busybox's applets", None)?;
    let applets = String::from_utf8_lossy(&list);
    fs::write(&output, pack(&busybox, &init, &stamp, &modules, applets.lines()))
        .cannot(|| format!("write {}", output.display()))?;
    stamp::set(&output, &key)?;
    Ok(output)
}

fn pack<'a>(
    busybox: &[u8],
    init: &[u8],
    stamp: &[u8],
    modules: &[(String, Vec<u8>)],
    applets: impl Iterator<Item = &'a str>,
) -> Vec<u8> {
    let mut archive = Archive::new();
    for (name, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("lib", 0o755),
        ("lib/modules", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("sys", 0o555),
        ("tmp", 0o1777),
    ] {
        archive.directory(name, mode);
    }
    // The kernel opens it for init before any file system is mounted.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("bin/busybox", 0o755, busybox);
    for applet in applets.filter(|applet| *applet != "busybox") {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    if !stamp.is_empty() {
        archive.file("bin/stamp", 0o755, stamp);
    }
    for (name, bytes) in modules {
        archive.file(&format!("lib/modules/{name}"), 0o644, bytes);
    }
    archive.file("init", 0o755, init);
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_init_busybox_and_its_links() {
        let bytes = pack(
            b"ELF",
            b"#!",
            &[],
            &[("virtio.ko".to_owned(), b"MOD".to_vec())],
            ["busybox", "ls", "sh"].into_iter(),
        );
        let text = String::from_utf8_lossy(&bytes);
        let names = ["dev/console\0", "bin/busybox\0", "bin/ls\0", "bin/sh\0", "lib/modules/virtio.ko\0"];
        for name in names.into_iter().chain(["init\0", "TRAILER!!!\0"]) {
            assert_eq!(text.matches(name).count(), 1, "{name}");
        }
    }
}
