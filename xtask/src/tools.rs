//! The programs that the front door stands on: which package has them, and how they get onto the machine.
//!
//! They are installed by `apt-get` when that can be done without a question (as root or with password-less sudo);
//! otherwise the person gets the one command to type.

use std::{path::Path, process::Command};

use crate::{
    error::{Error, Result},
    process,
    progress::Step,
};

/// How to tell that a tool is there.
#[derive(Clone, Copy, Debug)]
pub enum Sign {
    /// A program on the search path.
    Program(&'static str),
    /// Any of these files or directories.
    AnyOf(&'static [&'static str]),
}

/// Something that has to be installed.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// The Debian and Ubuntu package.
    pub package: &'static str,
    /// What tells that it is there.
    pub sign: Sign,
    /// What it is needed for.
    pub purpose: &'static str,
}

const fn program(package: &'static str, name: &'static str, purpose: &'static str) -> Tool {
    Tool { package, sign: Sign::Program(name), purpose }
}

/// The emulator.
pub static QEMU: Tool = program("qemu-system-x86", "qemu-system-x86_64", "runs the machine");
/// UEFI firmware for QEMU.
pub static OVMF: Tool =
    Tool { package: "ovmf", sign: Sign::AnyOf(OVMF_CODE), purpose: "UEFI firmware for QEMU" };
/// Code images of OVMF, the first that exists is used; its variable store is named alike, with `VARS`.
pub const OVMF_CODE: &[&str] = &["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd"];

/// Bochs, with what its machine is made of.
pub static BOCHS: &[Tool] = &[
    program("bochs", "bochs-bin", "emulates Intel VT-x"),
    Tool {
        package: "bochs-term",
        sign: Sign::AnyOf(&[
            "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so",
            "/usr/lib/bochs/plugins/libbx_term_gui.so",
            // Before 2.7: Ubuntu 20.04.
            "/usr/lib/bochs/plugins/libbx_term.so",
        ]),
        purpose: "lets Bochs run without a screen",
    },
    Tool { package: "bochsbios", sign: Sign::AnyOf(&[BOCHS_BIOS]), purpose: "BIOS for Bochs" },
    Tool { package: "vgabios", sign: Sign::AnyOf(&[BOCHS_VGA_BIOS]), purpose: "VGA BIOS for Bochs" },
];
/// Bochs's BIOS.
pub const BOCHS_BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
/// Bochs's VGA BIOS.
pub const BOCHS_VGA_BIOS: &str = "/usr/share/vgabios/vgabios.bin";

/// What makes the bootable image.
pub static IMAGE: &[Tool] = &[
    program("grub-common", "grub-mkrescue", "makes the bootable ISO"),
    Tool {
        package: "grub-pc-bin",
        sign: Sign::AnyOf(&["/usr/lib/grub/i386-pc/multiboot2.mod"]),
        purpose: "GRUB for BIOS machines",
    },
    Tool {
        package: "grub-efi-amd64-bin",
        sign: Sign::AnyOf(&["/usr/lib/grub/x86_64-efi/multiboot2.mod"]),
        purpose: "GRUB for UEFI machines",
    },
    program("xorriso", "xorriso", "writes the ISO file system"),
    program("mtools", "mformat", "writes the EFI system partition"),
    program("binutils", "strip", "takes line tables out of the image"),
];

/// What fetches and unpacks the guests' packages; a Debian or Ubuntu always has it.
pub static PACKAGES: &[Tool] = &[
    program("apt", "apt-get", "fetches the guests' kernel and busybox"),
    program("dpkg", "dpkg-deb", "unpacks the guests' packages"),
];

/// What a run on QEMU stands on; at once, so that a person who has to install by hand types one command.
pub fn for_run(uefi: bool) -> impl Iterator<Item = &'static Tool> {
    IMAGE.iter().chain([&QEMU]).chain(uefi.then_some(&OVMF))
}

/// What a run on Bochs stands on.
pub fn for_bochs() -> impl Iterator<Item = &'static Tool> {
    IMAGE.iter().chain(BOCHS)
}

/// Where `mke2fs` is: an ordinary person's search path may lack its folder.
pub const MKE2FS_PATH: &[&str] = &["/usr/sbin/mke2fs", "/sbin/mke2fs"];

/// What makes file systems in images of disks.
pub static MKE2FS: Tool =
    Tool { package: "e2fsprogs", sign: Sign::AnyOf(MKE2FS_PATH), purpose: "makes the guests' disks" };

/// What unpacks kernel modules, where the distribution packs them.
pub static DECOMPRESSORS: &[Tool] = &[
    program("zstd", "zstd", "unpacks kernel modules"),
    program("xz-utils", "xz", "unpacks kernel modules"),
    program("gzip", "gzip", "unpacks kernel modules"),
];

/// How this process may install packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// It is root.
    Root,
    /// `sudo` works without a password.
    Sudo,
    /// Neither.
    None,
}

impl Privilege {
    /// Finds out, without ever asking for a password.
    #[must_use]
    pub fn probe() -> Self {
        if rustix::process::geteuid().is_root() {
            return Self::Root;
        }
        let sudo = process::on_path("sudo")
            && process::capture(Command::new("sudo").args(["-n", "true"]), None).is_ok_and(|ran| ran.success);
        if sudo { Self::Sudo } else { Self::None }
    }

    /// `apt-get` with these rights, set up to ask nothing.
    #[must_use]
    pub fn apt_get(self) -> Command {
        let mut command = match self {
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
                command
            }
            Self::Root | Self::None => Command::new("apt-get"),
        };
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        command.args(["-o", "DPkg::Lock::Timeout=300"]);
        command
    }
}

impl Tool {
    /// Whether it is on this machine.
    #[must_use]
    pub fn is_there(&self) -> bool {
        match self.sign {
            Sign::Program(name) => process::on_path(name),
            Sign::AnyOf(paths) => paths.iter().any(|path| Path::new(path).exists()),
        }
    }
}

/// The command a person types to install `packages`.
#[must_use]
pub fn install_command(packages: &[&str]) -> String {
    let sudo = if Privilege::probe() == Privilege::Root { "" } else { "sudo " };
    format!("{sudo}apt-get update && {sudo}apt-get install --no-install-recommends -y {}", packages.join(" "))
}

/// Makes sure that all of `tools` are there, installing what is missing where that needs no question.
///
/// # Errors
/// [`Error::Missing`] with the command to type, when they cannot be installed from here.
pub fn ensure<'a>(tools: impl IntoIterator<Item = &'a Tool>) -> Result<()> {
    let mut packages: Vec<&str> =
        tools.into_iter().filter(|tool| !tool.is_there()).map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    if !process::on_path("apt-get") {
        return Err(Error::Missing {
            what: format!("this machine has no apt-get to install {names} with"),
            command: format!("your distribution's way to install what Debian calls {names}"),
        });
    }
    let missing = |what: String| Error::Missing { what, command: install_command(&packages) };
    let privilege = Privilege::probe();
    if privilege == Privilege::None {
        return Err(missing(format!("needed and not installed: {names}")));
    }
    let step = Step::start(&format!("install {names}"));
    let install = |step: &Step| {
        let mut command = privilege.apt_get();
        command.args(["install", "--no-install-recommends", "-y"]).args(&packages);
        process::capture(&mut command, Some(step))
    };
    // A machine that was set up long ago, or just now, has no package lists that are any good.
    if !install(&step)?.success {
        // Where it fails for one source, the others may still have what is missing.
        let update = process::capture(privilege.apt_get().arg("update"), Some(&step))?;
        let second = install(&step)?;
        if !second.success {
            return Err(Error::Tool {
                line: missing(format!("apt-get could not install {names}")).to_string(),
                output: update.stderr + &second.stderr,
            });
        }
    }
    step.done("");
    Ok(())
}

/// The bare-metal target that Caisson is built for.
pub const TARGET: &str = "x86_64-unknown-none";

/// The target of programs that run inside Linux guests: statically linked.
pub const LINUX_TARGET: &str = "x86_64-unknown-linux-musl";

/// Whether the toolchain has a target's core library.
#[must_use]
pub fn has_rust_target(target: &str) -> bool {
    let mut command = Command::new("rustc");
    command.args(["--print", "target-libdir", "--target", target]);
    process::capture(&mut command, None)
        .is_ok_and(|ran| ran.success && Path::new(String::from_utf8_lossy(&ran.stdout).trim()).is_dir())
}

/// Adds a target to the toolchain when it is missing.
///
/// # Errors
/// [`Error::Missing`] without rustup, or what rustup says.
pub fn ensure_rust_target(target: &str) -> Result<()> {
    if has_rust_target(target) {
        return Ok(());
    }
    let add = format!("rustup target add {target}");
    if !process::on_path("rustup") {
        return Err(Error::Missing {
            what: format!("the Rust toolchain lacks the target {target}, and rustup is not here to add it"),
            command: add,
        });
    }
    let step = Step::start(&format!("add the Rust target {target}"));
    process::run(
        Command::new("rustup").args(["target", "add", target]),
        "adding the Rust target",
        Some(&step),
    )?;
    step.done("");
    Ok(())
}
