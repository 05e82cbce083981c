//! Building with cargo, and what the workspace holds.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    error::{Context, Error, Result},
    paths::Workspace,
    process,
    progress::Step,
    tools,
};

/// The hypervisor's own package.
pub const CAISSON: &str = "caisson";
/// The package of the bare-metal probe guests.
pub const PROBES: &str = "caisson-probes";
/// The package of the program that reads the time-stamp counter in a Linux guest.
pub const STAMP: &str = "caisson-guest-stamp";
/// The package of the daemon that serves devices in the driver domain.
pub const BACKEND: &str = "caisson-backend";
/// The package of the program that looks into soft-reserved memory.
pub const DAX: &str = "caisson-dax";
/// The package of the benchmark program.
pub const MEASURE: &str = "caisson-measure";
/// The package of the control tool.
pub const TOOL: &str = "caisson-tool";
/// The package of the whole-machine tests.
pub const MACHINE_TESTS: &str = "caisson-tests";

/// A `cargo` command in the workspace, with the toolchain that is running this program.
#[must_use]
pub fn command(workspace: &Workspace) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace.root());
    command
}

/// How a bare-metal package is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// For use.
    #[default]
    Release,
    /// As for use, but with debug assertions and checks for overflow: for tests.
    Checked,
}

impl Profile {
    /// Its name in the workspace's manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Checked => "checked",
        }
    }
}

/// Builds the executables of a bare-metal package; gives their paths.
///
/// # Errors
/// What the compiler says, or that the target cannot be had.
pub fn build_bare_metal(workspace: &Workspace, package: &str, profile: Profile) -> Result<Vec<PathBuf>> {
    build(workspace, package, profile, tools::TARGET)
}

/// Builds the programs of a package that runs inside a Linux guest; gives their paths.
///
/// # Errors
/// What the compiler says, or that the target cannot be had.
pub fn build_for_linux(workspace: &Workspace, package: &str) -> Result<Vec<PathBuf>> {
    build(workspace, package, Profile::Release, tools::LINUX_TARGET)
}

fn build(workspace: &Workspace, package: &str, profile: Profile, target: &str) -> Result<Vec<PathBuf>> {
    tools::ensure_rust_target(target)?;
    let step = Step::start(&match profile {
        Profile::Release => format!("build {package}"),
        Profile::Checked => format!("build {package}, {}", profile.name()),
    });
    let mut build = command(workspace);
    build.args(["build", "--profile", profile.name(), "--target", target, "--package", package]);
    build.arg("--message-format=json-render-diagnostics");
    // Flags for the host's programs would take the place of those that the bare-metal target is configured with.
    for flags in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"] {
        build.env_remove(flags);
    }
    let ran = process::capture(&mut build, Some(&step))?;
    if !ran.success {
        return Err(Error::Tool { line: format!("building {package} failed"), output: ran.stderr });
    }
    let executables = executables(&String::from_utf8_lossy(&ran.stdout));
    if executables.is_empty() {
        return Err(Error::Failed(format!("package {package} builds no executable")));
    }
    step.done("");
    Ok(executables)
}

/// The executables among cargo's JSON messages.
fn executables(messages: &str) -> Vec<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect()
}

/// A package of the workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its manifest.
    pub manifest: PathBuf,
    /// It can be built for the bare-metal target only, as its manifest's `[package.metadata] bare-metal = true` says.
    pub bare_metal: bool,
    /// It is one of the hypervisor's crates or depends on none of the host: `no_std`, checked for the bare-metal target
    /// as well. True for what lies under `hypervisor/` and `boot/`.
    pub hypervisor: bool,
}

/// The workspace's packages.
///
/// # Errors
/// When a manifest cannot be read.
pub fn packages(workspace: &Workspace) -> Result<Vec<Package>> {
    let mut metadata = command(workspace);
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
    let json = process::run(&mut metadata, "reading the workspace's manifests", None)?;
    let json: Value = serde_json::from_slice(&json).cannot(|| "read cargo's metadata".to_owned())?;
    Ok(parse_packages(&json, workspace.root()))
}

fn parse_packages(metadata: &Value, root: &Path) -> Vec<Package> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    packages
        .iter()
        .filter_map(|package| {
            let manifest = PathBuf::from(package["manifest_path"].as_str()?);
            let below = |directory: &str| manifest.starts_with(root.join(directory));
            Some(Package {
                name: package["name"].as_str()?.to_owned(),
                bare_metal: package["metadata"]["bare-metal"] == true,
                hypervisor: below("hypervisor") || below("boot"),
                manifest,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_picked_from_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"spin"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"caisson"},"executable":"/t/caisson"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executables(messages), [PathBuf::from("/t/caisson")]);
        assert!(executables("").is_empty());
    }

    #[test]
    fn packages_tell_where_they_belong() {
        let json = serde_json::json!({"packages": [
            {"name": "caisson", "manifest_path": "/w/hypervisor/core/Cargo.toml", "metadata": {"bare-metal": true}},
            {"name": "xtask", "manifest_path": "/w/xtask/Cargo.toml", "metadata": null},
        ]});
        let packages = parse_packages(&json, Path::new("/w"));
        assert_eq!(packages.len(), 2);
        assert!(packages[0].bare_metal && packages[0].hypervisor);
        assert!(!packages[1].bare_metal && !packages[1].hypervisor);
    }
}
