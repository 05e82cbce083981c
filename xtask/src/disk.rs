//! Images of disks for the emulated machine.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use caisson_config::source::EmulatorText;

use crate::{
    error::{Context, Error, Result},
    initrd, packages,
    paths::Workspace,
    process,
    progress::Step,
    qemu::Disk,
    size::MIB,
    stamp, tools,
};

/// The disk of a web server.
pub const WEB: &str = "@web-disk";
/// A disk with nothing on it.
pub const EMPTY: &str = "@empty-disk";

/// A disk with what guests are made of while the machine runs.
pub const GUESTS: &str = "@guests-disk";

/// Bytes of [`WEB`].
const WEB_BYTES: u64 = 32 * MIB;
/// Bytes of [`EMPTY`].
const EMPTY_BYTES: u64 = 64 * MIB;
/// Bytes of [`GUESTS`], and of the disk in it that its guest gets.
const GUESTS_BYTES: u64 = 96 * MIB;
const GUEST_BYTES: u64 = 16 * MIB;

/// The image behind a name that configs use for disks.
///
/// # Errors
/// When there is no such name, or the image cannot be made.
pub fn provide(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    match name {
        WEB => web(workspace),
        GUESTS => guests(workspace),
        EMPTY => empty(workspace),
        _ => Err(Error::Usage(format!(
            "{name} is not provided as a disk; there are {WEB}, {GUESTS} and {EMPTY}"
        ))),
    }
}

/// The disks of an emulated machine: those that its config asks for, whose paths count from `folder`, and `more`.
///
/// # Errors
/// When one is not there, or cannot be made.
pub fn of(
    workspace: &Workspace,
    wanted: &EmulatorText,
    folder: &Path,
    more: &[PathBuf],
) -> Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for name in &wanted.disks {
        let keep = !name.starts_with('@');
        let path = if keep { folder.join(name) } else { provide(workspace, name)? };
        disks.push(Disk { path, keep });
    }
    disks.extend(more.iter().map(|path| Disk { path: path.clone(), keep: true }));
    match disks.iter().find(|disk| !disk.path.is_file()) {
        Some(disk) => Err(Error::Usage(format!(
            "the disk {} is not there: make it, say by `truncate -s 1G {0}`, or name another",
            disk.path.display()
        ))),
        None => Ok(disks),
    }
}

fn empty(workspace: &Workspace) -> Result<PathBuf> {
    let output = workspace.dir("images")?.join("empty-disk.img");
    // A machine may be running on it.
    if fs::metadata(&output).is_ok_and(|file| file.len() == EMPTY_BYTES) {
        return Ok(output);
    }
    let file = fs::File::create(&output).cannot(|| format!("write {}", output.display()))?;
    file.set_len(EMPTY_BYTES).cannot(|| format!("write {}", output.display()))?;
    Ok(output)
}

/// Every file below a folder of the source tree, by its path from there, in a fixed order.
fn files_below(folder: &Path, from: &str, all: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .cannot(|| format!("read {}", folder.display()))?
        .filter_map(std::result::Result::ok)
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    for path in entries {
        let name = format!("{from}{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            files_below(&path, &format!("{name}/"), all)?;
        } else {
            all.push((name, fs::read(&path).cannot(|| format!("read {}", path.display()))?));
        }
    }
    Ok(())
}

/// Makes the web server's disk when what it is made of has changed.
fn web(workspace: &Workspace) -> Result<PathBuf> {
    let busybox = packages::busybox(workspace)?;
    let program = fs::read(&busybox).cannot(|| format!("read {}", busybox.display()))?;
    let mut files = Vec::new();
    files_below(&workspace.source("guest-images/web"), "", &mut files)?;
    let ingredients = files.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes.as_slice()]);
    let key = stamp::key([b"web disk 2".as_slice(), &program].into_iter().chain(ingredients));
    let made = Made { name: "web-disk", what: "make the web server's disk", bytes: WEB_BYTES, key: &key };
    let applets = initrd::applets(&busybox)?;
    made.provide(workspace, |root| lay_out(root, &program, &applets, &files))
}

/// Makes the disk of later guests when what it is made of has changed: the kernel and the RAM disk of guests, and what is in the
/// source tree.
fn guests(workspace: &Workspace) -> Result<PathBuf> {
    let read = |path: PathBuf| fs::read(&path).cannot(|| format!("read {}", path.display()));
    let kernel = read(packages::linux(workspace)?)?;
    let initrd = read(initrd::linux(workspace, None)?)?;
    let mut files = vec![("vmlinuz".to_owned(), kernel), ("initrd.img".to_owned(), initrd)];
    files_below(&workspace.source("guest-images/later"), "", &mut files)?;
    let ingredients = files.iter().flat_map(|(name, bytes)| [name.as_bytes(), bytes.as_slice()]);
    let key = stamp::key(std::iter::once(b"guests disk 1".as_slice()).chain(ingredients));
    let made = Made { name: "guests-disk", what: "make a disk with guests", bytes: GUESTS_BYTES, key: &key };
    made.provide(workspace, |root| {
        fs::create_dir_all(root)?;
        fs::File::create(root.join("guest.img"))?.set_len(GUEST_BYTES)?;
        files.iter().try_for_each(|(name, bytes)| fs::write(root.join(name), bytes))
    })
}

/// An image that is made of files.
struct Made<'a> {
    name: &'a str,
    what: &'a str,
    bytes: u64,
    /// Of all that it is made of.
    key: &'a str,
}

impl Made<'_> {
    /// The image, made where it is not fresh of what `fill` puts into a folder.
    fn provide(
        &self,
        workspace: &Workspace,
        fill: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<PathBuf> {
        let Self { name, what, bytes, key } = *self;
        let images = workspace.dir("images")?;
        let output = images.join(format!("{name}.img"));
        let _lock = workspace.lock(name)?;
        if stamp::is_fresh(&output, key) {
            return Ok(output);
        }
        tools::ensure([&tools::MKE2FS])?;
        let step = Step::start(what);
        let root = images.join(format!("{name}.root"));
        if root.exists() {
            fs::remove_dir_all(&root).cannot(|| format!("remove {}", root.display()))?;
        }
        fill(&root).cannot(|| format!("write below {}", root.display()))?;
        let scratch = images.join(format!("{name}.part"));
        file_system(&root, &scratch, bytes, &step)?;
        fs::rename(&scratch, &output).cannot(|| format!("write {}", output.display()))?;
        fs::remove_dir_all(&root).cannot(|| format!("remove {}", root.display()))?;
        stamp::set(&output, key)?;
        step.done("");
        Ok(output)
    }
}

fn lay_out(
    root: &Path,
    busybox: &[u8],
    applets: &[String],
    files: &[(String, Vec<u8>)],
) -> std::io::Result<()> {
    let write = |name: &str, mode: u32, bytes: &[u8]| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
    };
    for folder in ["bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "www"] {
        fs::create_dir_all(root.join(folder))?;
    }
    write("bin/busybox", 0o755, busybox)?;
    for applet in applets {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    for (name, bytes) in files {
        let is_program = bytes.starts_with(b"#!");
        let place = if name == "init" { "sbin/init" } else { name.as_str() };
        write(place, if is_program { 0o755 } else { 0o644 }, bytes)?;
    }
    Ok(())
}

/// Makes an image of `bytes` with an ext4 file system of what is below `root`. Names of owners, times and identifiers are fixed.
fn file_system(root: &Path, output: &Path, bytes: u64, step: &Step) -> Result<()> {
    let file = fs::File::create(output).cannot(|| format!("write {}", output.display()))?;
    file.set_len(bytes).cannot(|| format!("write {}", output.display()))?;
    let mut command =
        Command::new(tools::MKE2FS_PATH.iter().find(|path| Path::new(path).is_file()).unwrap_or(&"mke2fs"));
    let identity = "cafe1550-0000-4000-8000-000000000001";
    command
        .args(["-q", "-t", "ext4", "-F", "-L", "caisson", "-U", identity])
        .args(["-E", &format!("hash_seed={identity},root_owner=0:0"), "-d"])
        .arg(root)
        .arg(output)
        .env("E2FSPROGS_FAKE_TIME", "1767225600");
    process::run(&mut command, "making a file system", Some(step))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_executable_and_init_is_where_the_kernel_looks() {
        let root = std::env::temp_dir().join(format!("caisson-disk-{}", std::process::id()));
        let files = [("init".to_owned(), b"#!/bin/sh".to_vec()), ("www/a.html".to_owned(), b"<p>".to_vec())];
        lay_out(&root, b"ELF", &["sh".to_owned()], &files).unwrap();
        let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("sbin/init"), mode("www/a.html"), mode("bin/sh")), (0o755, 0o644, 0o755));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn disks_are_the_configs_and_the_command_lines() {
        let folder = std::env::temp_dir().join(format!("caisson-disks-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for name in ["one.img", "two.img"] {
            fs::write(folder.join(name), "x").unwrap();
        }
        let workspace = Workspace::find();
        let wanted = EmulatorText { disks: vec!["one.img".to_owned()], ..EmulatorText::default() };
        let two = folder.join("two.img");
        let expected = [folder.join("one.img"), two.clone()].map(|path| Disk { path, keep: true });
        assert_eq!(of(&workspace, &wanted, &folder, &[two]).unwrap(), expected);
        let error = of(&workspace, &wanted, &folder, &["none.img".into()]).unwrap_err().to_string();
        let start = "the disk none.img is not there: make it, say by `truncate -s 1G none.img`";
        assert!(error.starts_with(start), "{error}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn only_the_disks_that_there_are_are_provided() {
        let error = provide(&Workspace::find(), "@dsik").unwrap_err().to_string();
        assert_eq!(
            error,
            "@dsik is not provided as a disk; there are @web-disk, @guests-disk and @empty-disk"
        );
    }
}
