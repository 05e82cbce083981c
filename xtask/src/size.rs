//! Sizes of memory as people write them: `512M`, `1G`, `1536 MiB`; a bare number is MiB.

use std::{fmt, str::FromStr};

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;

impl Size {
    /// The size in whole MiB, rounded up.
    #[must_use]
    pub fn mib(self) -> u64 {
        self.0.div_ceil(MIB)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "k" | "kb" | "kib" => 1 << 10,
            "" | "m" | "mb" | "mib" => MIB,
            "g" | "gb" | "gib" => 1 << 30,
            "t" | "tb" | "tib" => 1 << 40,
            _ => return Err(format!("`{text}` is not a size: write a number and K, M, G or T, like 512M")),
        };
        let number: u64 =
            number.parse().map_err(|_| format!("`{text}` is not a size: write it like 512M or 2G"))?;
        number
            .checked_mul(unit)
            .filter(|&bytes| bytes > 0)
            .map(Self)
            .ok_or_else(|| format!("`{text}` is out of range: a size is above zero and below 16 EiB"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("512M", 512 * MIB),
            ("512", 512 * MIB),
            ("1g", 1 << 30),
            (" 2 GiB ", 2 << 30),
            ("640K", 640 << 10),
            ("1T", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_text_in_the_message() {
        for text in ["", "M", "-1M", "1.5G", "12Q", "0", "0x10", "99999999999T"] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn shown_in_the_largest_whole_unit() {
        assert_eq!(Size(1 << 30).to_string(), "1 GiB");
        assert_eq!(Size(1536 * MIB).to_string(), "1536 MiB");
        assert_eq!(Size(4096 + 512).to_string(), "4608 bytes");
    }

    #[test]
    fn mebibytes_round_up() {
        assert_eq!(Size(MIB + 1).mib(), 2);
        assert_eq!(Size(MIB).mib(), 1);
    }
}
