//! Where things lie: the source tree, and what the front door keeps under cargo's target directory.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::error::{Context, Result};

/// The source tree and its target directory.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// The workspace that cargo runs a program of, or else the one around the current directory.
    /// `CARGO_TARGET_DIR` is respected as cargo does.
    #[must_use]
    pub fn find() -> Self {
        // Asked for at run time: a source tree that was moved keeps its target directory, and this program in it.
        let cargo = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let root = [cargo, env::current_dir().ok()]
            .iter()
            .flatten()
            .find_map(|place| place.ancestors().find(|above| above.join("xtask/Cargo.toml").is_file()))
            .map_or_else(|| PathBuf::from("."), PathBuf::from);
        let target = match env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()) {
            // A relative one counts from where cargo was started.
            Some(dir) => std::path::absolute(&dir).unwrap_or_else(|_| dir.into()),
            None => root.join("target"),
        };
        Self { root, target }
    }

    /// A path below the source tree.
    #[must_use]
    pub fn source(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The root of the source tree.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below cargo's target directory.
    #[must_use]
    pub fn target(&self, path: &str) -> PathBuf {
        self.target.join(path)
    }

    /// A directory below `target/caisson`, made when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.target.join("caisson").join(name);
        fs::create_dir_all(&dir).cannot(|| format!("make {}", dir.display()))?;
        Ok(dir)
    }

    /// Takes the named lock between processes; it is held until the file is dropped. Two runs at once then share one
    /// download instead of spoiling it.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn lock(&self, name: &str) -> Result<File> {
        let path = self.dir("locks")?.join(name);
        let file = File::create(&path).cannot(|| format!("make {}", path.display()))?;
        file.lock().cannot(|| format!("lock {}", path.display()))?;
        Ok(file)
    }
}

/// What is younger than this may be in use.
const SETTLED: Duration = Duration::from_secs(3600);

/// Removes the oldest entries of `directory` beyond `keep`, as far as nobody can be using them any more. Tidying up is
/// no reason for a command to fail: what cannot be removed stays.
pub fn prune(directory: &Path, keep: usize) {
    let modified = |entry: &fs::DirEntry| entry.metadata().and_then(|data| data.modified()).ok();
    let mut entries: Vec<(SystemTime, PathBuf)> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().and_then(|entry| Some((modified(&entry)?, entry.path()))))
        .collect();
    entries.sort();
    let surplus = entries.len().saturating_sub(keep);
    for (time, path) in entries.into_iter().take(surplus) {
        if time.elapsed().is_ok_and(|age| age > SETTLED) {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_oldest_and_settled_are_pruned() {
        let directory = env::temp_dir().join(format!("caisson-prune-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        for (name, hours) in [("a", 5), ("b", 4), ("c", 3), ("young", 0)] {
            let file = File::create(directory.join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(3600 * hours)).unwrap();
        }
        let left = |keep| {
            prune(&directory, keep);
            let mut names: Vec<_> = fs::read_dir(&directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(left(4), ["a", "b", "c", "young"]);
        assert_eq!(left(2), ["c", "young"]);
        assert_eq!(left(0), ["young"]);
        fs::remove_dir_all(&directory).unwrap();
    }
}
