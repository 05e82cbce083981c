//! Names of feature bits for people: as in the code, but in lower case and with dashes.

use core::fmt::{self, Write};

fn told(c: char) -> char {
    if c == '_' { '-' } else { c.to_ascii_lowercase() }
}

/// Writes a list of names, or `none`.
pub(crate) fn write<'a>(f: &mut fmt::Formatter<'_>, names: impl Iterator<Item = &'a str>) -> fmt::Result {
    let mut names = names.peekable();
    if names.peek().is_none() {
        return f.write_str("none");
    }
    for (index, name) in names.enumerate() {
        f.write_str(if index == 0 { "" } else { ", " })?;
        for c in name.chars() {
            f.write_char(told(c))?;
        }
    }
    Ok(())
}

/// Whether `word` is how `name` is written.
pub(crate) fn is(name: &str, word: &str) -> bool {
    name.chars().map(told).eq(word.chars())
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_told_with_dashes() {
        assert!(super::is("TPR_SHADOW", "tpr-shadow"));
        assert!(!super::is("TPR_SHADOW", "tpr_shadow") && !super::is("VPID", "vpid2"));
    }
}
