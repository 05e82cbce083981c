//! What machines are started from: Caisson itself, the payloads that a config names, the bootable ISO.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use caisson_config::source::ConfigText;

use crate::{
    cargo,
    error::{Context, Error, Result},
    initrd,
    iso::Iso,
    packages,
    paths::Workspace,
};

/// The provider of images; everything is made or fetched when first asked for, and not again.
#[derive(Clone, Debug)]
pub struct Images {
    workspace: Workspace,
}

impl Images {
    /// Images of this workspace.
    #[must_use]
    pub fn new(workspace: Workspace) -> Self {
        Self { workspace }
    }

    /// The workspace they are of.
    #[must_use]
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Caisson's ELF image, a multiboot2 kernel; built in release mode.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn caisson(&self) -> Result<PathBuf> {
        let executables = cargo::build_bare_metal(&self.workspace, cargo::CAISSON)?;
        named(&executables, cargo::CAISSON)
    }

    /// The file behind one of the names that configs use: `@linux`, `@initrd`, `@initrd-stamp` (for the
    /// boot benchmark), `@memtest` or `@probe/NAME`.
    ///
    /// # Errors
    /// When there is no such name, or its file cannot be fetched or built.
    pub fn provide(&self, name: &str) -> Result<PathBuf> {
        match name {
            "@linux" => packages::linux(&self.workspace),
            "@initrd" => initrd::linux(&self.workspace, None),
            "@initrd-stamp" => {
                let stamp = named(&cargo::build_bare_metal(&self.workspace, cargo::STAMP)?, "stamp")?;
                initrd::linux(&self.workspace, Some(&stamp))
            }
            "@memtest" => packages::memtest(&self.workspace),
            _ => match name.strip_prefix("@probe/") {
                Some(probe) => self.probe(probe),
                None => Err(Error::Usage(unknown_name(name))),
            },
        }
    }

    fn probe(&self, name: &str) -> Result<PathBuf> {
        let packages = cargo::packages(&self.workspace)?;
        if !packages.iter().any(|package| package.name == cargo::PROBES) {
            return Err(Error::Usage(format!("@probe/{name}: this source tree has no probe guests")));
        }
        named(&cargo::build_bare_metal(&self.workspace, cargo::PROBES)?, name)
    }

    /// Compiles `config`; paths in it count from `folder`.
    ///
    /// # Errors
    /// The field that is at fault, or what keeps one of the provided images from being made.
    pub fn blob(&self, config: &ConfigText, folder: &Path) -> Result<Vec<u8>> {
        // What has to be fetched or built comes first: its failures have more to say than a field's name.
        let mut provided = BTreeMap::new();
        for name in references(config).filter(|name| name.starts_with('@')) {
            if !provided.contains_key(name) && is_known(name) {
                provided.insert(name.to_owned(), self.provide(name)?);
            }
        }
        caisson_config::build(config, |name| {
            if name.starts_with('@') && !provided.contains_key(name) {
                return Err(unknown_name(name));
            }
            let path = provided.get(name).cloned().unwrap_or_else(|| folder.join(name));
            fs::read(&path).map_err(|error| error.to_string())
        })
        .map_err(|error| Error::Usage(error.to_string()))
    }

    /// Makes the ISO that boots Caisson with `blob` and `cmdline`.
    ///
    /// # Errors
    /// What keeps it from being made.
    pub fn iso(&self, blob: &[u8], cmdline: &str, output: PathBuf) -> Result<PathBuf> {
        let caisson = self.caisson()?;
        let name = output.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let _lock = self.workspace.lock(&name)?;
        let iso = Iso { caisson: &caisson, blob: Some(blob), cmdline, output };
        iso.make(&self.workspace)?;
        Ok(iso.output)
    }
}

/// Every file that a config names.
pub fn references(config: &ConfigText) -> impl Iterator<Item = &str> {
    config.domains.iter().flat_map(|domain| {
        std::iter::once(domain.kernel.as_str())
            .chain(domain.modules.iter().map(|module| module.file.as_str()))
    })
}

/// Whether `name` is one that [`Images::provide`] knows, as far as that can be told without building anything.
#[must_use]
pub fn is_known(name: &str) -> bool {
    matches!(name, "@linux" | "@initrd" | "@initrd-stamp" | "@memtest") || name.starts_with("@probe/")
}

/// What to say of a name that is not known.
#[must_use]
pub fn unknown_name(name: &str) -> String {
    format!("{name} is not provided; there are @linux, @initrd, @memtest and @probe/NAME")
}

fn named(executables: &[PathBuf], name: &str) -> Result<PathBuf> {
    executables.iter().find(|path| path.file_name().is_some_and(|file| file == name)).cloned().ok_or_else(
        || {
            let names: Vec<_> = executables
                .iter()
                .filter_map(|path| path.file_name())
                .map(|file| file.to_string_lossy())
                .collect();
            Error::Usage(format!("no executable is called {name}; there are {}", names.join(", ")))
        },
    )
}

/// Reads a file for a person who named it on the command line.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).cannot(|| format!("read {}", path.display()))
}
