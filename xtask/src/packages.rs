//! Debian and Ubuntu packages whose files the guests are made of: fetched with `apt-get download`, unpacked under
//! `target/caisson/packages`, never installed. What is there is used again; deleting the directory fetches anew.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::{Context, Error, Result},
    modules,
    paths::Workspace,
    process,
    progress::Step,
    tools::{self, Privilege},
};

/// Packages that depend on the distribution's current kernel for virtual machines, smallest first: Debian's, Ubuntu's.
/// Ubuntu's `linux-image-kvm`, which since 24.04 is another name for `linux-image-virtual`, is not asked for.
const KERNEL_METAPACKAGES: &[&str] =
    &["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-generic", "linux-image-amd64"];

/// The same for real machines: the driver domain's.
const DRIVER_METAPACKAGES: &[&str] = &["linux-image-amd64", "linux-image-generic"];

/// Images of memtest86+ that Caisson can load, the best first: version 6 and on as a 64-bit bzImage (Debian 12, Ubuntu
/// 24.04), version 5 as a multiboot1 kernel (Ubuntu 20.04 and 22.04; its `.bin` is for real mode, its `.elf` has no entry
/// that is announced).
const MEMTEST_IMAGES: &[&str] = &["memtest86+x64.bin", "memtest86+_multiboot.bin"];

/// What Xen's packages are called; the first depends on the current one of the others.
const XEN_METAPACKAGE: &str = "xen-system-amd64";
const XEN_PREFIX: &str = "xen-hypervisor-4";

/// What packages with a kernel are called.
const KERNEL_PREFIX: &str = "linux-image-";

/// The distribution's Linux kernel, as a bzImage.
///
/// # Errors
/// When the package cannot be fetched or holds no kernel.
pub fn linux(workspace: &Workspace) -> Result<PathBuf> {
    let directory = cached(workspace, "linux", "fetch the guest's Linux kernel", || {
        kernel_of(KERNEL_METAPACKAGES, control)
            .ok_or_else(|| format!("no kernel package among {}", KERNEL_METAPACKAGES.join(", ")))
    })?;
    only_file(&directory.join("boot"), |name| name.starts_with("vmlinuz-"))
}

/// The distribution's Linux kernel with drivers for real machines, as a bzImage.
///
/// # Errors
/// When the package cannot be fetched or holds no kernel.
pub fn driver_linux(workspace: &Workspace) -> Result<PathBuf> {
    let directory = cached(workspace, "linux-driver", "fetch the driver domain's Linux kernel", || {
        kernel_of(DRIVER_METAPACKAGES, control)
            .ok_or_else(|| format!("no kernel package among {}", DRIVER_METAPACKAGES.join(", ")))
    })?;
    only_file(&directory.join("boot"), |name| name.starts_with("vmlinuz-"))
}

/// The modules of a kernel that [`linux`] or [`driver_linux`] gave. Some distributions have them in packages of their own.
///
/// # Errors
/// When those cannot be fetched.
pub fn modules(workspace: &Workspace, kernel: &Path) -> Result<modules::Tree> {
    let name = kernel.file_name().unwrap_or_default().to_string_lossy();
    let release = name.strip_prefix("vmlinuz-").unwrap_or(&name);
    let root = kernel.parent().and_then(Path::parent).unwrap_or(kernel);
    let mut packages = vec![root.to_owned()];
    if !["lib/modules", "usr/lib/modules"].iter().any(|lib| root.join(lib).join(release).is_dir()) {
        for prefix in ["linux-modules", "linux-modules-extra"] {
            let package = format!("{prefix}-{release}");
            if first_known(workspace, std::slice::from_ref(&package)).is_some() {
                packages.push(cached(workspace, &package, "fetch kernel modules", || Ok(package.clone()))?);
            }
        }
    }
    Ok(modules::Tree::new(release, &packages))
}

/// The first of `packages` that is here already, or that the package lists know.
#[must_use]
pub fn first_known(workspace: &Workspace, packages: &[String]) -> Option<String> {
    let here = |package: &&String| workspace.dir("packages").is_ok_and(|dir| dir.join(package).is_dir());
    packages.iter().find(here).or_else(|| packages.iter().find(|package| control(package).is_some())).cloned()
}

/// Xen, packed by gzip, and the version in the names of its packages.
///
/// # Errors
/// When the package cannot be fetched or holds no hypervisor.
pub fn xen(workspace: &Workspace) -> Result<(PathBuf, String)> {
    let directory = cached(workspace, "xen-hypervisor", "fetch Xen", || {
        let control = control(XEN_METAPACKAGE).ok_or_else(|| format!("no package {XEN_METAPACKAGE}"))?;
        let package = depends(&control, XEN_PREFIX);
        package.ok_or_else(|| format!("{XEN_METAPACKAGE} needs no {XEN_PREFIX}"))
    })?;
    let image = only_file(&directory.join("boot"), |name| name.starts_with("xen-") && name.ends_with(".gz"))?;
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let version = name.strip_prefix("xen-").and_then(|rest| rest.split('-').next());
    let version = version.unwrap_or_default().to_owned();
    Ok((image, version))
}

/// A statically linked busybox.
///
/// # Errors
/// When the package cannot be fetched.
pub fn busybox(workspace: &Workspace) -> Result<PathBuf> {
    let directory = cached(workspace, "busybox-static", "fetch busybox", || Ok("busybox-static".to_owned()))?;
    // Newer distributions have merged /bin into /usr/bin.
    ["bin", "usr/bin"]
        .map(|bin| directory.join(bin).join("busybox"))
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| Error::Failed("the package busybox-static holds no busybox".to_owned()))
}

/// The memory tester, as a kernel that Caisson can load.
///
/// # Errors
/// When the package cannot be fetched or holds no such image.
pub fn memtest(workspace: &Workspace) -> Result<PathBuf> {
    let directory = cached(workspace, "memtest86+", "fetch memtest86+", || Ok("memtest86+".to_owned()))?;
    let boot = directory.join("boot");
    MEMTEST_IMAGES.iter().map(|name| boot.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        Error::Failed(format!("the package memtest86+ holds none of {}", MEMTEST_IMAGES.join(", ")))
    })
}

/// The unpacked package's directory; `resolve` names the package to fetch when it is not there yet.
///
/// # Errors
/// When it cannot be fetched.
pub fn cached(
    workspace: &Workspace,
    name: &str,
    what: &str,
    resolve: impl Fn() -> std::result::Result<String, String>,
) -> Result<PathBuf> {
    let directory = workspace.dir("packages")?.join(name);
    if directory.is_dir() {
        return Ok(directory);
    }
    let _lock = workspace.lock("packages")?;
    if directory.is_dir() {
        return Ok(directory);
    }
    tools::ensure(tools::PACKAGES)?;
    let step = Step::start(what);
    let scratch = directory.with_extension("part");
    let fetched = resolve().and_then(|package| fetch(&package, &scratch, &step));
    if let Err(first) = fetched {
        // No package lists yet, or lists so old that the mirror has dropped what they name.
        let privilege = Privilege::probe();
        if privilege == Privilege::None {
            return Err(Error::Missing {
                what: format!("cannot {what}: {first}"),
                command: "sudo apt-get update".to_owned(),
            });
        }
        let update = process::capture(privilege.apt_get().arg("update"), Some(&step))?;
        resolve().and_then(|package| fetch(&package, &scratch, &step)).map_err(|error| Error::Tool {
            line: format!("cannot {what}: {error}"),
            output: update.stderr,
        })?;
    }
    // Only a whole package ever gets the final name.
    fs::rename(&scratch, &directory).cannot(|| format!("make {}", directory.display()))?;
    step.done("");
    Ok(directory)
}

/// Downloads and unpacks `package` into `into`.
fn fetch(package: &str, into: &Path, step: &Step) -> std::result::Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    if into.exists() {
        fs::remove_dir_all(into).map_err(|error| text(&error))?;
    }
    fs::create_dir_all(into).map_err(|error| text(&error))?;
    let mut download = Command::new("apt-get");
    // Apt's own user need not be able to reach a directory of ours.
    download
        .args(["-o", "APT::Sandbox::User=root", "download", package])
        .current_dir(into)
        .env("LC_ALL", "C");
    let ran = process::capture(&mut download, Some(step)).map_err(|error| text(&error))?;
    if !ran.success {
        return Err(last_line(&ran.stderr));
    }
    let archive = only_file(into, |name| name.ends_with(".deb")).map_err(|error| text(&error))?;
    step.detail("unpacking");
    let ran = process::capture(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(into), Some(step))
        .map_err(|error| text(&error))?;
    if !ran.success {
        return Err(last_line(&ran.stderr));
    }
    fs::remove_file(&archive).map_err(|error| text(&error))
}

/// What the package lists say about `package`.
fn control(package: &str) -> Option<String> {
    let mut command = Command::new("apt-cache");
    command.args(["show", "--no-all-versions", package]).env("LC_ALL", "C");
    let ran = process::capture(&mut command, None).ok()?;
    ran.success.then(|| String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// The kernel image behind the first of `metapackages` that the package lists know and that leads to one; a metapackage
/// may depend on another.
fn kernel_of(metapackages: &[&str], control: impl Fn(&str) -> Option<String>) -> Option<String> {
    const MOST_STEPS: usize = 3;
    metapackages.iter().find_map(|first| {
        let mut name = (*first).to_owned();
        for _ in 0..MOST_STEPS {
            name = depends(&control(&name)?, KERNEL_PREFIX)?;
            // The kernel itself is called by its version.
            if name
                .strip_prefix(KERNEL_PREFIX)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            {
                return Some(name);
            }
        }
        None
    })
}

/// The first package of a name that starts so, among those that a package depends on.
fn depends(control: &str, prefix: &str) -> Option<String> {
    control
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?
        .split(',')
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
}

fn only_file(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)
        .cannot(|| format!("read {}", directory.display()))?
        .filter_map(std::result::Result::ok)
        .filter(|entry| wanted(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
        .pop()
        .ok_or_else(|| Error::Failed(format!("the package holds no such file under {}", directory.display())))
}

fn last_line(text: &str) -> String {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_kernel_is_found_behind_its_metapackage() {
        let control = "Package: linux-image-cloud-amd64\nProvides: wireguard-modules (= 1.0.0)\n\
                       Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nSection: kernel\n";
        assert_eq!(depends(control, KERNEL_PREFIX).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn ubuntus_kernel_is_found_among_other_dependencies() {
        let control = "Package: linux-image-generic\n\
                       Depends: linux-modules-6.8.0-31-generic, linux-image-6.8.0-31-generic, linux-firmware\n";
        assert_eq!(depends(control, KERNEL_PREFIX).as_deref(), Some("linux-image-6.8.0-31-generic"));
        assert_eq!(depends("Package: x\nDepends: libc6\n", KERNEL_PREFIX), None);
        assert_eq!(depends("Package: x\n", KERNEL_PREFIX), None);
    }

    /// What `apt-cache show --no-all-versions` says, as far as it matters: Debian 12, Ubuntu 22.04 and 24.04.
    fn lists<'a>(known: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| {
            let (name, depends) = known.iter().find(|(known, _)| *known == name)?;
            Some(format!("Package: {name}\nArchitecture: amd64\nDepends: {depends}\nSection: kernel\n"))
        }
    }

    #[test]
    fn each_distributions_kernel_for_virtual_machines_is_found() {
        let bookworm = [
            ("linux-image-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)"),
            ("linux-image-amd64", "linux-image-6.1.0-56-amd64 (= 6.1.192-2)"),
        ];
        let jammy = [
            ("linux-image-kvm", "linux-image-5.15.0-1112-kvm"),
            ("linux-image-virtual", "linux-image-5.15.0-203-generic"),
            (
                "linux-image-generic",
                "linux-image-5.15.0-203-generic, linux-modules-extra-5.15.0-203-generic, linux-firmware, intel-microcode",
            ),
        ];
        let noble = [
            ("linux-image-kvm", "linux-image-virtual"),
            ("linux-image-virtual", "linux-image-6.8.0-149-generic"),
        ];
        let found = |known: &[(&str, &str)]| kernel_of(KERNEL_METAPACKAGES, lists(known));
        assert_eq!(found(&bookworm).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(found(&bookworm[1..]).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(found(&jammy).as_deref(), Some("linux-image-5.15.0-203-generic"));
        assert_eq!(found(&jammy[2..]).as_deref(), Some("linux-image-5.15.0-203-generic"));
        assert_eq!(found(&noble).as_deref(), Some("linux-image-6.8.0-149-generic"));
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn a_metapackage_of_a_metapackage_is_followed_but_not_for_ever() {
        let noble = [
            ("linux-image-kvm", "linux-image-virtual"),
            ("linux-image-virtual", "linux-image-6.8.0-149-generic"),
        ];
        let kernel = kernel_of(&["linux-image-kvm"], lists(&noble));
        assert_eq!(kernel.as_deref(), Some("linux-image-6.8.0-149-generic"));
        let circle = [("linux-image-a", "linux-image-b"), ("linux-image-b", "linux-image-a")];
        assert_eq!(kernel_of(&["linux-image-a"], lists(&circle)), None);
    }

    #[test]
    fn the_reason_is_the_last_line_that_says_anything() {
        assert_eq!(last_line("W: old\nE: Unable to locate package x\n\n"), "E: Unable to locate package x");
        assert_eq!(last_line(""), "no reason given");
    }
}
