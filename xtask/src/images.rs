//! What machines are started from: Caisson itself, the payloads that a config names, the bootable ISO.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use caisson_config::{Blob, LoaderKind, source::ConfigText};

use crate::{
    cargo::{self, Profile},
    dax, driver,
    error::{Context, Error, Result},
    initrd, io_tools,
    iso::{Iso, Script},
    measure, packages,
    paths::Workspace,
};

/// The provider of images; everything is made or fetched when first asked for, and not again.
#[derive(Clone, Debug)]
pub struct Images {
    workspace: Workspace,
    /// How Caisson is built; guests are built for use in any case.
    profile: Profile,
}

impl Images {
    /// Images of this workspace.
    #[must_use]
    pub fn new(workspace: Workspace) -> Self {
        Self { workspace, profile: Profile::Release }
    }

    /// The same with Caisson built in another way.
    #[must_use]
    pub fn with_profile(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }

    /// The workspace they are of.
    #[must_use]
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Caisson's ELF image, a multiboot2 kernel; built in release mode, unless told otherwise.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn caisson(&self) -> Result<PathBuf> {
        let executables = cargo::build_bare_metal(&self.workspace, cargo::CAISSON, self.profile)?;
        named(&executables, cargo::CAISSON)
    }

    /// The file behind one of the names that configs use: `@linux`, `@initrd`, `@driver-linux`,
    /// `@driver-initrd`, `@memtest`, `@probe/NAME`, or for benchmarks and tests `@initrd-stamp`, `@io-tools`, `@measure` and `@dax`.
    ///
    /// # Errors
    /// When there is no such name, or its file cannot be fetched or built.
    pub fn provide(&self, name: &str) -> Result<PathBuf> {
        match name {
            "@linux" => packages::linux(&self.workspace),
            "@initrd" => initrd::linux(&self.workspace, None),
            "@driver-linux" => packages::driver_linux(&self.workspace),
            "@driver-initrd" => driver::initrd(&self.workspace),
            "@initrd-stamp" => {
                let built = cargo::build_bare_metal(&self.workspace, cargo::STAMP, Profile::Release)?;
                let stamp = named(&built, "stamp")?;
                initrd::linux(&self.workspace, Some(&stamp))
            }
            "@io-tools" => io_tools::archive(&self.workspace),
            "@measure" => measure::archive(&self.workspace),
            "@dax" => dax::archive(&self.workspace),
            "@memtest" => packages::memtest(&self.workspace),
            _ => match name.strip_prefix("@probe/") {
                Some(probe) => self.probe(probe),
                None => Err(Error::Usage(unknown_name(name))),
            },
        }
    }

    /// RAM disks joined, as a loader joins them.
    ///
    /// # Errors
    /// As [`Images::provide`].
    pub fn joined(&self, names: &[&str]) -> Result<PathBuf> {
        let mut bytes = Vec::new();
        for name in names {
            let path = self.provide(name)?;
            bytes.extend(fs::read(&path).cannot(|| format!("read {}", path.display()))?);
            // The kernel finds the next archive on a multiple of four bytes.
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let path = self.workspace.dir("images")?.join("joined.cpio");
        fs::write(&path, bytes).cannot(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    fn probe(&self, name: &str) -> Result<PathBuf> {
        let packages = cargo::packages(&self.workspace)?;
        if !packages.iter().any(|package| package.name == cargo::PROBES) {
            return Err(Error::Usage(format!("@probe/{name}: this source tree has no probe guests")));
        }
        named(&cargo::build_bare_metal(&self.workspace, cargo::PROBES, Profile::Release)?, name)
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
        let mut read = |name: &str| {
            if name.starts_with('@') && !provided.contains_key(name) {
                return Err(unknown_name(name));
            }
            let path = provided.get(name).cloned().unwrap_or_else(|| folder.join(name));
            fs::read(&path).map_err(|error| error.to_string())
        };
        check_kernels(config, &mut read)?;
        caisson_config::build(config, read).map_err(|error| Error::Usage(error.to_string()))
    }

    /// Where in memory Caisson's image ends.
    ///
    /// # Errors
    /// What the compiler says, or that it made no such image.
    pub fn caisson_end(&self) -> Result<u64> {
        let path = self.caisson()?;
        image_end(&read(&path)?).ok_or_else(|| Error::Failed(format!("{} is no ELF image", path.display())))
    }

    /// Makes the ISO that boots Caisson with `blob` and `cmdline`.
    ///
    /// # Errors
    /// What keeps it from being made.
    pub fn iso(&self, blob: &[u8], cmdline: &str, output: PathBuf) -> Result<PathBuf> {
        let caisson = self.caisson()?;
        let name = output.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let _lock = self.workspace.lock(&name)?;
        let iso = Iso { caisson: &caisson, blob: Some(blob), cmdline, script: Script::default(), output };
        iso.make(&self.workspace)?;
        Ok(iso.output)
    }
}

/// One past the last physical address of an ELF64 image's segments.
fn image_end(image: &[u8]) -> Option<u64> {
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?)));
    let word = |at: usize| Some(u64::from_le_bytes(image.get(at..at + 8)?.try_into().ok()?));
    let (table, entry, count) = (usize::try_from(word(32)?).ok()?, half(54)?, half(56)?);
    let ends = (0..count).map(|index| {
        let at = table + index * entry;
        // p_type, p_paddr, p_memsz
        Some(if half(at)? == 1 { word(at + 24)?.checked_add(word(at + 40)?)? } else { 0 })
    });
    ends.collect::<Option<Vec<u64>>>()?.into_iter().max()
}

/// How a kernel is to be loaded, in the loader's terms.
fn kind(loader: LoaderKind) -> Option<caisson_loader::Kind> {
    match loader {
        LoaderKind::Auto => None,
        LoaderKind::Linux => Some(caisson_loader::Kind::Linux),
        LoaderKind::Pvh => Some(caisson_loader::Kind::Pvh),
        LoaderKind::Multiboot1 => Some(caisson_loader::Kind::Multiboot1),
    }
}

/// Checks that each domain's kernel is one that Caisson can load, by its headers. Files that cannot be read, or are
/// empty, are the compiler's to refuse.
///
/// # Errors
/// The first kernel that is none.
pub fn check_kernels(
    config: &ConfigText,
    mut read: impl FnMut(&str) -> std::result::Result<Vec<u8>, String>,
) -> Result<()> {
    for (index, domain) in config.domains.iter().enumerate() {
        let Ok(image) = read(&domain.kernel) else { continue };
        if image.is_empty() {
            continue;
        }
        caisson_loader::check(kind(domain.loader), &image)
            .map_err(|error| Error::Usage(config.kernel_error(index, &error.to_string()).to_string()))?;
    }
    Ok(())
}

/// Checks the kernels of a blob.
///
/// # Errors
/// The first kernel that is none, told by domain and file.
pub fn check_blob_kernels(blob: &Blob<'_>) -> std::result::Result<(), String> {
    for (index, domain) in blob.domains().enumerate() {
        let kernel = domain.kernel();
        caisson_loader::check(kind(domain.loader()), kernel.data()).map_err(|error| {
            format!("domain[{index}] ({}): kernel {:?}: {error}", domain.name(), kernel.name())
        })?;
    }
    Ok(())
}

/// Every file that a config names.
pub fn references(config: &ConfigText) -> impl Iterator<Item = &str> {
    config.domains.iter().flat_map(|domain| {
        std::iter::once(domain.kernel.as_str())
            .chain(domain.modules.iter().map(|module| module.file.as_str()))
    })
}

/// The names that [`Images::provide`] knows, without those of probes.
const KNOWN: [&str; 9] = [
    "@linux",
    "@initrd",
    "@driver-linux",
    "@driver-initrd",
    "@memtest",
    "@initrd-stamp",
    "@io-tools",
    "@measure",
    "@dax",
];
/// Those of them that are for benchmarks and tests.
const FOR_US: [&str; 4] = ["@initrd-stamp", "@io-tools", "@measure", "@dax"];

/// Whether `name` is one that [`Images::provide`] knows, as far as that can be told without building anything.
#[must_use]
pub fn is_known(name: &str) -> bool {
    KNOWN.contains(&name) || name.starts_with("@probe/")
}

/// What to say of a name that is not known.
#[must_use]
pub fn unknown_name(name: &str) -> String {
    let known = KNOWN.iter().filter(|known| !FOR_US.contains(known));
    let known: Vec<_> = known.copied().collect();
    format!("{name} is not provided; there are {} and @probe/NAME", known.join(", "))
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
