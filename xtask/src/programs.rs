//! Programs of the distribution, to be carried into a RAM disk with the shared libraries that they need.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cpio::Archive,
    elf,
    error::{Context, Error, Result},
    packages,
    paths::Workspace,
};

/// Where libraries lie in the RAM disk; the dynamic linker looks there without being told.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// Files by their names in the RAM disk.
#[derive(Debug, Default)]
pub struct Programs(BTreeMap<String, Vec<u8>>);

impl Programs {
    /// `programs`, each a package and a program in it, and their libraries.
    ///
    /// # Errors
    /// When a package cannot be fetched, or lacks what it should hold.
    pub fn fetch(workspace: &Workspace, programs: &[(&str, &str)]) -> Result<Self> {
        let mut files = Self::default();
        for (package, name) in programs {
            let directory = packages::cached(workspace, package, &format!("fetch {package}"), || {
                Ok((*package).to_owned())
            })?;
            let image = read_in(&directory, package, name)?;
            files.add_needs(workspace, &image)?;
            files.0.insert(format!("usr/sbin/{name}"), image);
        }
        Ok(files)
    }

    fn add_needs(&mut self, workspace: &Workspace, image: &[u8]) -> Result<()> {
        let linker = elf::interpreter(image);
        // Some libraries name the dynamic linker, which is where programs look for it.
        for name in elf::needed(image).into_iter().filter(|name| !name.starts_with("ld-")) {
            let path = format!("{LIBRARIES}/{name}");
            if let Entry::Vacant(entry) = self.0.entry(path) {
                let library = library(workspace, &name)?;
                entry.insert(library.clone());
                self.add_needs(workspace, &library)?;
            }
        }
        if let Some(linker) = linker {
            let path = linker.trim_start_matches('/').to_owned();
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            if let Entry::Vacant(entry) = self.0.entry(path) {
                entry.insert(library(workspace, &name)?);
            }
        }
        Ok(())
    }

    /// Their contents, for a stamp.
    pub fn contents(&self) -> impl Iterator<Item = &[u8]> {
        self.0.values().map(Vec::as_slice)
    }

    /// Puts them into an archive that has `lib` and `usr/sbin`.
    pub fn pack(&self, archive: &mut Archive) {
        let folders: BTreeSet<_> = self.0.keys().filter_map(|path| Some(path.rsplit_once('/')?.0)).collect();
        for folder in folders.into_iter().filter(|folder| *folder != "usr/sbin") {
            archive.directory(folder, 0o755);
        }
        for (path, bytes) in &self.0 {
            archive.file(path, 0o755, bytes);
        }
    }
}

/// The packages that may hold a library, by Debian's naming (Debian Policy, section 8.1): its name and version; since the
/// change to 64-bit times with `t64` behind them.
fn packages_of(library: &str) -> Vec<String> {
    const C_LIBRARY: [&str; 7] =
        ["libresolv.so", "libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "ld-linux-"];
    if C_LIBRARY.iter().any(|start| library.starts_with(start)) {
        return vec!["libc6".to_owned()];
    }
    // Those that bear no library's name.
    const OTHERS: [(&str, &str); 11] = [
        ("libicuuc.so.72", "libicu72"),
        ("libicudata.so.72", "libicu72"),
        ("libz.so.1", "zlib1g"),
        ("libceph-common.so.2", "librados2"),
        ("libcrypto.so.3", "libssl3"),
        ("libssl.so.3", "libssl3"),
        ("libglib-2.0.so.0", "libglib2.0-0"),
        ("libgmodule-2.0.so.0", "libglib2.0-0"),
        ("libgobject-2.0.so.0", "libglib2.0-0"),
        ("libgio-2.0.so.0", "libglib2.0-0"),
        ("libjpeg.so.62", "libjpeg62-turbo"),
    ];
    if let Some((_, package)) = OTHERS.iter().find(|(name, _)| *name == library) {
        return vec![format!("{package}t64"), (*package).to_owned()];
    }
    let (name, version) = library.split_once(".so.").unwrap_or((library, ""));
    // Those of Xen's libraries that change with each version.
    if ["libxenctrl", "libxenguest", "libxenlight", "libxlutil", "libxenutil"].contains(&name) {
        return vec![format!("libxenmisc{version}t64"), format!("libxenmisc{version}")];
    }
    let hyphen = if name.ends_with(|c: char| c.is_ascii_digit()) { "-" } else { "" };
    let package = format!("{name}{hyphen}{version}").to_lowercase().replace('_', "-");
    vec![format!("{package}t64"), package, name.to_lowercase().replace('_', "-")]
}

fn library(workspace: &Workspace, name: &str) -> Result<Vec<u8>> {
    let candidates = packages_of(name);
    let package = packages::first_known(workspace, &candidates).ok_or_else(|| {
        Error::Failed(format!("no package holds {name}: there is none of {}", candidates.join(", ")))
    })?;
    let directory =
        packages::cached(workspace, &package, &format!("fetch {package}"), || Ok(package.clone()))?;
    read_in(&directory, &package, name)
}

/// A file of an unpacked package, by its name.
fn read_in(directory: &Path, package: &str, name: &str) -> Result<Vec<u8>> {
    let path = ["lib", "lib64", "usr/lib", "usr/lib64", "bin", "sbin", "usr/bin", "usr/sbin"]
        .iter()
        .find_map(|folder| find(&directory.join(folder), name))
        .ok_or_else(|| Error::Failed(format!("the package {package} holds no {name}")))?;
    fs::read(&path).cannot(|| format!("read {}", path.display()))
}

/// A file, or a link to one, in a directory or below it. Links to directories are not followed.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let mut below = Vec::new();
    for entry in fs::read_dir(directory).ok()?.filter_map(std::result::Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below.push(entry.path());
        } else if entry.file_name() == name && entry.path().is_file() {
            return Some(entry.path());
        }
    }
    below.iter().find_map(|directory| find(directory, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_in_packages_of_their_names() {
        for (library, package) in [
            ("libmnl.so.0", "libmnl0"),
            ("libnftables.so.1", "libnftables1"),
            ("libdb-5.3.so", "libdb-5.3.so"),
            ("libx264.so.164", "libx264-164"),
            ("libc.so.6", "libc6"),
            ("ld-linux-x86-64.so.2", "libc6"),
            ("libz.so.1", "zlib1g"),
            ("libxenlight.so.4.17", "libxenmisc4.17"),
            ("libxencall.so.1", "libxencall1"),
        ] {
            assert!(packages_of(library).iter().any(|candidate| candidate == package), "{library}");
        }
        assert_eq!(packages_of("libelf.so.1"), ["libelf1t64", "libelf1", "libelf"]);
    }

    #[test]
    fn files_get_their_folders() {
        let files = [("lib64/ld.so", "L"), ("usr/sbin/x", "X"), ("lib/x86_64-linux-gnu/liba.so.1", "A")];
        let programs =
            Programs(files.map(|(path, bytes)| (path.to_owned(), bytes.into())).into_iter().collect());
        let mut archive = Archive::new();
        programs.pack(&mut archive);
        let text = String::from_utf8_lossy(&archive.finish()).into_owned();
        for name in ["lib64\0", "lib64/ld.so\0", "lib/x86_64-linux-gnu\0", "usr/sbin/x\0"] {
            assert_eq!(text.matches(name).count(), 1, "{name}");
        }
    }
}
