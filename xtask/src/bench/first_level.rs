//! The first levels that other hypervisors need: a Linux with KVM and QEMU, and Xen with a Linux as its first domain. All of it
//! is the distribution's, but for the first process; the measured guest lies in a folder of the RAM disk.

use std::{fs, path::PathBuf, process::Command};

use super::{GUEST_MIB, guest};
use crate::{
    cpio::Archive,
    error::{Context, Error, Result},
    images::{self, Images},
    initrd, measure, modules, packages, process,
    programs::Programs,
    qemu::Boot,
};

/// Memory of a first level and its guest, in MiB.
pub(super) const MEMORY_MIB: u64 = 2048;
/// What of it Xen's first domain has.
const DOM0_MIB: u64 = 1024;

/// What QEMU starts the guest with.
const FIRMWARE: [&str; 1] = ["qboot.rom"];
/// Xen's programs; they call each other by their place in the package.
const XEN_PROGRAMS: [&str; 5] = ["xl", "xenstored", "xenconsoled", "xenconsole", "xen-init-dom0"];
/// Modules of its first domain.
const XEN_MODULES: [&str; 5] = ["xen-evtchn", "xen-privcmd", "xen-gntdev", "xen-gntalloc", "xenfs"];

/// A RAM disk of a first level, as it is being made.
struct Level<'a> {
    images: &'a Images,
    archive: Archive,
}

impl<'a> Level<'a> {
    /// The usual folders, busybox, the benchmark program, the first process, and the guest, whose console is `console`.
    fn new(images: &'a Images, init: &str, console: &str, rows: &str) -> Result<Self> {
        let workspace = images.workspace();
        let busybox = packages::busybox(workspace)?;
        let mut archive = initrd::skeleton(&images::read(&busybox)?, &initrd::applets(&busybox)?);
        for folder in ["usr", "usr/sbin", "usr/share", "usr/share/qemu", "usr/lib", "var", "mnt", "guest"] {
            archive.directory(folder, 0o755);
        }
        archive.file("usr/sbin/measure", 0o755, &measure::program(workspace)?);
        let init = workspace.source("guest-images/bench").join(init);
        archive.file("init", 0o755, &images::read(&init)?);
        let (kernel, ramdisk) = guest::parts(images)?;
        archive.file("guest/kernel", 0o644, &images::read(&kernel)?);
        archive.file("guest/initrd", 0o644, &images::read(&ramdisk)?);
        archive.file("guest/cmdline", 0o644, guest::cmdline(console, rows).as_bytes());
        archive.file("guest/memory", 0o644, GUEST_MIB.to_string().as_bytes());
        Ok(Self { images, archive })
    }

    fn modules(&mut self, tree: &modules::Tree, wanted: &[&str]) -> Result<()> {
        tree.pack(&tree.read(wanted)?, &mut self.archive);
        Ok(())
    }

    fn programs(&mut self, programs: &[(&str, &str)]) -> Result<()> {
        Programs::fetch(self.images.workspace(), programs)?.pack(&mut self.archive);
        Ok(())
    }

    fn write(self, name: &str) -> Result<PathBuf> {
        let path = self.images.workspace().dir("images")?.join(name);
        fs::write(&path, self.archive.finish()).cannot(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// A Linux with KVM.
pub(super) fn kvm(images: &Images, rows: &str) -> Result<Boot> {
    let workspace = images.workspace();
    let kernel = images.provide(guest::KERNEL)?;
    let mut level = Level::new(images, "kvm-init", "ttyS0", rows)?;
    level.modules(&packages::modules(workspace, &kernel)?, &["kvm-amd"])?;
    level.programs(&[("qemu-system-x86", "qemu-system-x86_64")])?;
    let data = packages::cached(workspace, "qemu-system-data", "fetch QEMU's firmware", || {
        Ok("qemu-system-data".to_owned())
    })?;
    for name in FIRMWARE {
        let image = images::read(&data.join("usr/share/qemu").join(name))?;
        level.archive.file(&format!("usr/share/qemu/{name}"), 0o644, &image);
    }
    let initrd = level.write("first-level-kvm.cpio")?;
    Ok(Boot::Linux { kernel, initrd, cmdline: "console=ttyS0 quiet nokaslr panic=-1".to_owned() })
}

/// Xen and its first domain.
///
/// What its command line has to go round is QEMU's: with SMAP for Xen itself, its emulated CPU faults the IRET of a
/// paravirtual kernel.
pub(super) fn xen(images: &Images, rows: &str) -> Result<Boot> {
    let workspace = images.workspace();
    let (packed, version) = packages::xen(workspace)?;
    let unpacked = process::run(Command::new("gzip").arg("-dc").arg(&packed), "unpacking Xen", None)?;
    let kernel = workspace.dir("images")?.join("xen");
    fs::write(&kernel, unpacked).cannot(|| format!("write {}", kernel.display()))?;

    let dom0 = packages::driver_linux(workspace)?;
    let mut level = Level::new(images, "xen-init", "hvc0", rows)?;
    level.modules(&packages::modules(workspace, &dom0)?, &XEN_MODULES)?;
    let package = format!("xen-utils-{version}");
    level.programs(&XEN_PROGRAMS.map(|name| (package.as_str(), name)))?;
    let mut folder = "usr/lib".to_owned();
    for part in [format!("xen-{version}"), "bin".to_owned()] {
        folder = format!("{folder}/{part}");
        level.archive.directory(&folder, 0o755);
    }
    for name in XEN_PROGRAMS {
        level.archive.link(&format!("{folder}/{name}"), &format!("/usr/sbin/{name}"));
    }
    let initrd = level.write("first-level-xen.cpio")?;
    let cmdline = format!("console=com1 com1=115200 dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M noreboot smap=hvm");
    let modules = vec![(dom0, "console=hvc0 quiet nokaslr panic=-1".to_owned()), (initrd, String::new())];
    Ok(Boot::Multiboot { kernel, cmdline, modules })
}

/// What a first level said instead of running the guest.
pub(super) fn check(printed: &str) -> Result<()> {
    match printed.lines().find_map(|line| line.split_once("bench: relay: ")) {
        Some((_, why)) => {
            Err(Error::Tool { line: format!("the first level: {}", why.trim()), output: printed.to_owned() })
        }
        None => Ok(()),
    }
}
