//! `cargo xtask doctor`: what this host has, what is missing and how to get it.

use std::{fs, path::Path, process::Command};

use crate::{
    accel::{self, Kvm},
    emulator::VTX,
    error::Result,
    fuzz,
    paths::Workspace,
    process, qemu,
    tools::{self, Privilege, Sign, Tool},
};

/// Runs `cargo xtask doctor`: 0 when `cargo xtask run` would work, 1 when not.
///
/// # Errors
/// Never in practice; the type is that of the other commands.
pub fn command(workspace: &Workspace) -> Result<u8> {
    let privilege = Privilege::probe();
    row("host", &format!("{}, {}", system(), cpu()));
    row(
        "packages",
        match privilege {
            Privilege::Root => "installed by apt-get when needed (root)",
            Privilege::Sudo => "installed by sudo apt-get when needed (no password)",
            Privilege::None => "to be installed by hand (not root, no password-less sudo)",
        },
    );

    let installable = privilege != Privilege::None && process::on_path("apt-get");
    let mut missing: Vec<&str> = Vec::new();
    for tool in tools::for_run(true).chain([&tools::MKE2FS]).chain(tools::BOCHS).chain(tools::PACKAGES) {
        let there = tool.is_there();
        let optional = if tool.package == tools::OVMF.package {
            " (only for --firmware uefi)"
        } else if tools::BOCHS.iter().any(|bochs| bochs.package == tool.package) {
            " (only for --machine bochs)"
        } else {
            ""
        };
        let state = if there { version(tool) } else { format!("MISSING: {}{optional}", tool.purpose) };
        row(tool.package, &state);
        if !there && optional.is_empty() {
            missing.push(tool.package);
        }
    }
    row("rust", &first_line("rustc", &["--version"]));
    let target = tools::has_rust_target(tools::TARGET);
    let rustup = process::on_path("rustup");
    row(tools::TARGET, if target { "there" } else { "MISSING: what Caisson is built for" });

    let mut works = true;
    let emulator = tools::QEMU.is_there();
    if emulator {
        row("QEMU offers", &offered());
        let kvm = accel::probe_kvm(workspace);
        row(
            "KVM",
            &match &kvm {
                Kvm::Offers(feature) => format!("works, with nested {}", feature.to_uppercase()),
                Kvm::Useless(reason) => format!("of no use: {reason}"),
            },
        );
        let (amd, intel) = ways(&kvm);
        row("AMD-V", amd);
        row("Intel VT-x", intel);
        match accel::choose(workspace, accel::Choice::Auto) {
            Ok((_, why)) => row("run would take", &why),
            Err(error) => {
                row("run would take", &format!("nothing: {error}"));
                works = false;
            }
        }
    }
    row("fuzzing", &fuzz::missing(workspace).map_or("possible".to_owned(), |missing| missing.to_string()));

    println!();
    if !missing.is_empty() {
        missing.sort_unstable();
        if installable {
            println!("missing, and installed by the first run: {}", missing.join(" "));
        } else {
            println!("to install what is missing: {}", tools::install_command(&missing));
            works = false;
        }
    }
    if !target {
        println!("to add the target: rustup target add {}", tools::TARGET);
        works &= rustup;
    }
    println!("{}", if works { "cargo xtask run would work" } else { "cargo xtask run would not work yet" });
    Ok(u8::from(!works))
}

fn row(name: &str, value: &str) {
    println!("{name:<20} {value}");
}

fn first_line(program: &str, words: &[&str]) -> String {
    let Ok(ran) = process::capture(Command::new(program).args(words).env("LC_ALL", "C"), None) else {
        return "MISSING".to_owned();
    };
    let text = String::from_utf8_lossy(&ran.stdout).into_owned() + &ran.stderr;
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or("there").trim().to_owned()
}

/// A tool's version, from its package where the package manager knows it.
fn version(tool: &Tool) -> String {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Version}", tool.package]);
    let packaged =
        process::capture(&mut query, None).ok().filter(|ran| ran.success && !ran.stdout.is_empty());
    match (packaged, tool.sign) {
        (Some(ran), _) => String::from_utf8_lossy(&ran.stdout).into_owned(),
        (None, Sign::Program(name)) => first_line(name, &["--version"]),
        (None, Sign::AnyOf(_)) => "there".to_owned(),
    }
}

fn system() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "unknown system".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The CPU's name and what /proc says of its virtualisation.
fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim())
    };
    let flags: Vec<&str> = field("flags").unwrap_or_default().split(' ').collect();
    let virtualisation = match (flags.contains(&"svm"), flags.contains(&"vmx"), flags.contains(&"hypervisor"))
    {
        (true, _, _) => "AMD-V",
        (_, true, _) => "VT-x",
        (_, _, true) => "itself virtual, without virtualisation",
        _ => "without virtualisation",
    };
    let nested = ["amd", "intel"].iter().find_map(|vendor| {
        let path = format!("/sys/module/kvm_{vendor}/parameters/nested");
        let value = fs::read_to_string(Path::new(&path)).ok()?;
        Some(format!(", kvm_{vendor} nested={}", value.trim()))
    });
    format!(
        "{} ({virtualisation}{})",
        field("model name").unwrap_or("unknown CPU"),
        nested.unwrap_or_default()
    )
}

/// How AMD-V and VT-x can be had on this host.
fn ways(kvm: &Kvm) -> (&'static str, &'static str) {
    let amd = match kvm {
        Kvm::Offers("svm") => "this host's CPU, in QEMU by KVM; or emulated by QEMU (--accel tcg)",
        _ => "emulated by QEMU",
    };
    let intel = match kvm {
        Kvm::Offers("vmx") => "this host's CPU, in QEMU by KVM; or emulated by Bochs (--machine bochs)",
        _ if VTX => "emulated by Bochs (--machine bochs); on an Intel host with nested KVM, its CPU in QEMU",
        _ => "Caisson does not run guests on it yet; emulated by Bochs (--machine bochs)",
    };
    (amd, intel)
}

/// The accelerators this QEMU was built with.
fn offered() -> String {
    let ran =
        process::capture(Command::new(qemu::PROGRAM).args(["-accel", "help"]), None).unwrap_or_default();
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    text.lines().skip(1).map(str::trim).collect::<Vec<_>>().join(", ")
}
