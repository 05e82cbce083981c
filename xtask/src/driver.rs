//! The driver domain's initial RAM disk: busybox, the programs that configure networks, drivers, the daemon that serves devices,
//! and what is in `guest-images/driver-domain`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cargo,
    error::{Context, Result},
    initrd, packages,
    paths::Workspace,
    programs::Programs,
    stamp,
};

/// Where its scripts are in the source tree.
const SOURCE: &str = "guest-images/driver-domain";

/// What it is made of that is not in the source tree: a package and a program in it.
const PROGRAMS: [(&str, &str); 4] =
    [("iproute2", "ip"), ("iproute2", "bridge"), ("iproute2", "tc"), ("nftables", "nft")];

/// Scripts, and where they go.
const SCRIPTS: [(&str, &str); 2] = [("init", "init"), ("network", "usr/sbin/caisson-network")];

/// Packages that may have virtiofsd, which serves directories: its own, and before that QEMU's.
const VIRTIOFSD: [&str; 2] = ["virtiofsd", "qemu-system-common"];

/// Our own packages: the daemon, and the tool that controls domains.
const OURS: [&str; 2] = [cargo::BACKEND, cargo::TOOL];

/// Kernel modules, by what they are for. What real machines have most is there; others need a RAM disk of one's own.
const MODULES: &[&str] = &[
    // Caisson's own function, and the memory that guests grant.
    "uio_pci_generic",
    "device_dax",
    "dax_hmem",
    // Disks, and a file system for images on them.
    "nvme",
    "ahci",
    "sd_mod",
    "ext4",
    "crc32c_generic",
    // Network cards.
    "e1000",
    "e1000e",
    "igb",
    "igc",
    "ixgbe",
    "r8169",
    "tg3",
    // Guests' networks: bridges, VLANs, limits of rates, filters.
    "tun",
    "bridge",
    "8021q",
    "sch_tbf",
    "sch_ingress",
    "cls_matchall",
    "act_police",
    "nf_tables",
    "nft_meta_bridge",
];

/// Builds the RAM disk when its ingredients have changed; gives its path.
///
/// # Errors
/// When a package cannot be fetched, a program cannot be built, or a file cannot be read or written.
pub fn initrd(workspace: &Workspace) -> Result<PathBuf> {
    let read = |path: &Path| fs::read(path).cannot(|| format!("read {}", path.display()));
    let busybox_path = packages::busybox(workspace)?;
    let busybox = read(&busybox_path)?;
    let kernel = packages::driver_linux(workspace)?;
    let tree = packages::modules(workspace, &kernel)?;
    let modules = tree.read(MODULES)?;
    let virtiofsd = packages::first_known(workspace, &VIRTIOFSD.map(str::to_owned));
    let mut wanted = PROGRAMS.to_vec();
    wanted.extend(virtiofsd.as_deref().map(|package| (package, "virtiofsd")));
    let programs = Programs::fetch(workspace, &wanted)?;
    let mut files = Vec::new();
    for (name, place) in SCRIPTS {
        files.push((place.to_owned(), read(&workspace.source(SOURCE).join(name))?));
    }
    for package in OURS {
        for path in cargo::build_for_linux(workspace, package)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            files.push((format!("usr/sbin/{name}"), read(&path)?));
        }
    }
    let output = workspace.dir("images")?.join("driver-initrd.cpio");
    let first = [b"driver initrd 1".as_slice(), kernel.as_os_str().as_encoded_bytes(), &busybox];
    let key = stamp::key(
        first
            .into_iter()
            .chain(files.iter().flat_map(|(place, bytes)| [place.as_bytes(), bytes.as_slice()]))
            .chain(modules.iter().map(|module| module.bytes.as_slice()))
            .chain(programs.contents()),
    );
    let _lock = workspace.lock("driver-initrd")?;
    if stamp::is_fresh(&output, &key) {
        return Ok(output);
    }
    let mut archive = initrd::skeleton(&busybox, &initrd::applets(&busybox_path)?);
    for folder in ["usr", "usr/sbin", "srv"] {
        archive.directory(folder, 0o755);
    }
    tree.pack(&modules, &mut archive);
    programs.pack(&mut archive);
    for (place, bytes) in &files {
        archive.file(place, 0o755, bytes);
    }
    fs::write(&output, archive.finish()).cannot(|| format!("write {}", output.display()))?;
    stamp::set(&output, &key)?;
    Ok(output)
}
