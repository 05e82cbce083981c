//! Modules of a distribution's kernel: found with those that they need, and laid out as busybox's `modprobe` looks for them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cpio::Archive,
    error::{Context, Error, Result},
    process, tools,
};

/// A kernel's modules.
#[derive(Debug)]
pub struct Tree {
    /// The kernel's release, `uname -r`.
    release: String,
    /// Where each is, by its name without `-` and ending.
    files: BTreeMap<String, PathBuf>,
}

/// A module that has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with `_` for `-`.
    pub name: String,
    /// The modules that it needs by itself.
    pub needs: Vec<String>,
    /// The devices, and other names, that it is loaded for: patterns.
    pub aliases: Vec<String>,
    /// The file, uncompressed.
    pub bytes: Vec<u8>,
}

/// What module files end with, and what makes them readable.
const ENDINGS: [(&str, &str); 4] = [(".ko", ""), (".ko.zst", "zstd"), (".ko.xz", "xz"), (".ko.gz", "gzip")];

impl Tree {
    /// The modules of the kernel of `release`, in unpacked packages.
    #[must_use]
    pub fn new(release: &str, packages: &[PathBuf]) -> Self {
        let mut files = BTreeMap::new();
        for package in packages {
            for lib in ["lib/modules", "usr/lib/modules"] {
                gather(&package.join(lib).join(release), &mut files);
            }
        }
        Self { release: release.to_owned(), files }
    }

    /// The modules `wanted` and all that they need, each behind those. What the kernel has no module for is left out: it has it
    /// built in, or not at all.
    ///
    /// # Errors
    /// When a file cannot be read, or modules need each other.
    pub fn read(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut all = Vec::new();
        for name in wanted {
            self.add(&plain(name), &mut Vec::new(), &mut all)?;
        }
        Ok(all)
    }

    fn add(&self, name: &str, asking: &mut Vec<String>, all: &mut Vec<Module>) -> Result<()> {
        if all.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else { return Ok(()) };
        if asking.iter().any(|other| other == name) {
            return Err(Error::Failed(format!("the kernel module {name} needs itself")));
        }
        let module = parse(name, read(path)?);
        asking.push(name.to_owned());
        for needed in &module.needs {
            self.add(needed, asking, all)?;
        }
        asking.pop();
        all.push(module);
        Ok(())
    }

    /// Puts modules where `modprobe` finds them, with the lists that it reads.
    pub fn pack(&self, modules: &[Module], archive: &mut Archive) {
        let directory = format!("lib/modules/{}", self.release);
        archive.directory(&directory, 0o755);
        let (mut needs, mut aliases) = (String::new(), String::new());
        for module in modules {
            archive.file(&format!("{directory}/{}.ko", module.name), 0o644, &module.bytes);
            let mut line = Vec::new();
            needed_by(module, modules, &mut line);
            needs.push_str(&format!("{}.ko:", module.name));
            line.iter().for_each(|name| needs.push_str(&format!(" {name}.ko")));
            needs.push('\n');
            for alias in &module.aliases {
                aliases.push_str(&format!("alias {alias} {}\n", module.name));
            }
        }
        archive.file(&format!("{directory}/modules.dep"), 0o644, needs.as_bytes());
        archive.file(&format!("{directory}/modules.alias"), 0o644, aliases.as_bytes());
    }
}

/// All that a module needs, each before what it needs itself: `modprobe` loads them from the end.
fn needed_by(module: &Module, modules: &[Module], line: &mut Vec<String>) {
    for name in &module.needs {
        if let Some(needed) = modules.iter().find(|other| other.name == *name) {
            line.retain(|earlier| earlier != name);
            line.push(name.clone());
            needed_by(needed, modules, line);
        }
    }
}

/// `-` and `_` are the same in names of modules.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn gather(directory: &Path, files: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().filter_map(std::result::Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        // A symbolic link is neither: `build` leads out of the package.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => gather(&entry.path(), files),
            Ok(kind) if kind.is_file() => {
                if let Some(stem) = ENDINGS.iter().find_map(|(ending, _)| name.strip_suffix(ending)) {
                    files.insert(plain(stem), entry.path());
                }
            }
            _ => {}
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let name = path.to_string_lossy();
    match ENDINGS.iter().find(|(ending, _)| name.ends_with(ending)) {
        Some((_, program)) if !program.is_empty() => {
            tools::ensure(tools::DECOMPRESSORS.iter().filter(|tool| tool.package.starts_with(program)))?;
            process::run(Command::new(program).arg("-dcq").arg(path), "unpacking a kernel module", None)
        }
        _ => fs::read(path).cannot(|| format!("read {}", path.display())),
    }
}

/// What a module's file says of itself: strings `key=value` that end with a zero each (the section `.modinfo`).
fn parse(name: &str, bytes: Vec<u8>) -> Module {
    let values = |key: &[u8]| -> Vec<String> {
        bytes
            .split(|&byte| byte == 0)
            .filter_map(|text| text.strip_prefix(key))
            .filter_map(|value| String::from_utf8(value.to_vec()).ok())
            .collect()
    };
    let needs = values(b"depends=");
    let needs =
        needs.iter().flat_map(|list| list.split(',')).filter(|name| !name.is_empty()).map(plain).collect();
    let aliases =
        values(b"alias=").into_iter().filter(|alias| !alias.contains(char::is_whitespace)).collect();
    Module { name: name.to_owned(), needs, aliases, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(name: &str, modules: &[(&str, &str)]) -> (Tree, PathBuf) {
        let package = std::env::temp_dir().join(format!("caisson-modules-{}-{name}", std::process::id()));
        let folder = package.join("lib/modules/6.1/kernel/drivers");
        fs::create_dir_all(&folder).unwrap();
        for (file, needs) in modules {
            let text = format!("\x7fELF\0license=GPL\0alias=pci:{file}*\0depends={needs}\0name=x\0");
            fs::write(folder.join(file), text).unwrap();
        }
        (Tree::new("6.1", std::slice::from_ref(&package)), package)
    }

    #[test]
    fn what_a_module_needs_comes_before_it() {
        let (tree, package) =
            tree("order", &[("a-b.ko", "c,d-e,built_in"), ("c.ko", "d_e"), ("d-e.ko", ""), ("other.ko", "")]);
        let modules = tree.read(&["a_b", "d-e", "none"]).unwrap();
        let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["d_e", "c", "a_b"]);
        assert_eq!(modules[2].aliases, ["pci:a-b.ko*"]);
        let mut archive = Archive::new();
        tree.pack(&modules, &mut archive);
        let text = String::from_utf8_lossy(&archive.finish()).into_owned();
        assert!(text.contains("d_e.ko:\nc.ko: d_e.ko\na_b.ko: c.ko d_e.ko\n"), "{text}");
        assert!(text.contains("lib/modules/6.1/a_b.ko\0") && text.contains("alias pci:c.ko* c\n"));
        fs::remove_dir_all(package).unwrap();
    }

    #[test]
    fn modules_that_need_each_other_are_told() {
        let (tree, package) = tree("circle", &[("a.ko", "b"), ("b.ko", "a")]);
        assert!(tree.read(&["a"]).unwrap_err().to_string().contains("needs itself"));
        fs::remove_dir_all(package).unwrap();
    }
}
