//! Where things lie: the source tree, and what the front door keeps under cargo's target directory.

use std::{env, fs::File, path::PathBuf};

use crate::error::{Context, Result};

/// The source tree and its target directory.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// The workspace this program was built from. `CARGO_TARGET_DIR` is respected as cargo does.
    #[must_use]
    pub fn find() -> Self {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let root = here.parent().map_or_else(|| here.clone(), PathBuf::from);
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
    pub fn root(&self) -> &std::path::Path {
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
        std::fs::create_dir_all(&dir).cannot(|| format!("make {}", dir.display()))?;
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
