//! Nothing is made twice: an output carries a stamp, the hash of all it was made from.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::error::{Context, Result};

/// The hash of `inputs`; where one ends and the next begins counts as well.
#[must_use]
pub fn key<'a>(inputs: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update((input.len() as u64).to_le_bytes());
        hash.update(input);
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn path(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".stamp");
    name.into()
}

/// Whether `output` exists and was made from what `key` stands for.
#[must_use]
pub fn is_fresh(output: &Path, key: &str) -> bool {
    output.exists() && fs::read_to_string(path(output)).is_ok_and(|stamp| stamp == key)
}

/// Records that `output` was made from what `key` stands for.
///
/// # Errors
/// When the stamp cannot be written.
pub fn set(output: &Path, key: &str) -> Result<()> {
    let path = path(output);
    fs::write(&path, key).cannot(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_content_and_boundaries() {
        let one = key([b"ab".as_slice(), b"c"]);
        assert_eq!(one, key([b"ab".as_slice(), b"c"]));
        assert_ne!(one, key([b"a".as_slice(), b"bc"]));
        assert_ne!(one, key([b"abc".as_slice()]));
        assert_eq!(one.len(), 64);
    }
}
