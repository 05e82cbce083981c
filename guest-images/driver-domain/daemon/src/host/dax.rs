//! Machine addresses by the kernel's DAX devices: ranges that the memory map calls soft-reserved become `/dev/daxX.Y`, which a
//! program maps (`Documentation/driver-api/dax.rst`, `ABI/testing/sysfs-bus-dax`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use caisson_abi::io::MemoryRange;

use crate::sys::{Mapping, Memory, Piece};

/// Where the kernel lists them.
const DEVICES: &str = "/sys/bus/dax/devices";

/// A DAX device.
#[derive(Debug)]
pub(super) struct Dax {
    file: File,
    start: u64,
    bytes: u64,
    align: u64,
}

impl Dax {
    /// All that there are.
    pub(super) fn all() -> Vec<Self> {
        let entries = fs::read_dir(DEVICES).into_iter().flatten().flatten();
        entries.filter_map(|entry| Self::open(&entry.path()).ok()).collect()
    }

    fn open(sysfs: &Path) -> io::Result<Self> {
        let number = |name: &str| -> io::Result<u64> {
            let text = fs::read_to_string(sysfs.join(name))?;
            parse(&text)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{name}: {text:?}")))
        };
        let device = Path::new("/dev").join(sysfs.file_name().map(PathBuf::from).unwrap_or_default());
        let file = OpenOptions::new().read(true).write(true).open(device)?;
        let align = number("align").unwrap_or(2 << 20).max(4096);
        Ok(Self { file, start: number("resource")?, bytes: number("size")?, align })
    }

    /// Where in the file a range is to be mapped, so that it covers `bytes` at `address`: offset, length, and the range's place
    /// in that. `None` where the range is not the device's.
    fn place(&self, address: u64, bytes: u64) -> Option<(u64, usize, usize)> {
        let from = address.checked_sub(self.start)?;
        let end = from.checked_add(bytes).filter(|&end| end <= self.bytes && bytes > 0)?;
        let first = from - from % self.align;
        let last = end.checked_next_multiple_of(self.align)?.min(self.bytes);
        let length = usize::try_from(last.checked_sub(first)?).ok()?;
        Some((first, length, usize::try_from(from - first).ok()?))
    }
}

/// Decimal, or hexadecimal behind `0x`.
fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Maps `bytes` at a machine address: the mapping, and where in it they are.
pub(super) fn map(devices: &[Dax], address: u64, bytes: u64) -> io::Result<(Mapping, usize)> {
    let found = devices.iter().find_map(|dax| Some((dax, dax.place(address, bytes)?)));
    let Some((dax, (offset, length, place))) = found else {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "no DAX device has the {bytes:#x} bytes at {address:#x}: load the modules device_dax and dax_hmem, and look \
                 at {DEVICES}"
            ),
        ));
    };
    Ok((Mapping::new(&dax.file, offset, length)?, place))
}

/// Maps a guest's memory. Ranges that are neighbours become one.
pub(super) fn map_memory(devices: &[Dax], ranges: &[MemoryRange]) -> io::Result<Memory> {
    let mut whole: Vec<MemoryRange> = Vec::new();
    for &range in ranges {
        match whole.last_mut() {
            Some(last)
                if last.guest.wrapping_add(last.bytes) == range.guest
                    && last.address.wrapping_add(last.bytes) == range.address =>
            {
                last.bytes = last.bytes.saturating_add(range.bytes);
            }
            _ => whole.push(range),
        }
    }
    let mut pieces = Vec::with_capacity(whole.len());
    for range in whole {
        let (mapping, offset) = map(devices, range.address, range.bytes)?;
        let bytes = usize::try_from(range.bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        pieces.push(Piece { guest: range.guest, mapping, offset, bytes });
    }
    Memory::new(pieces).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn dax(start: u64, bytes: u64) -> Dax {
        Dax { file: File::open("/dev/null").unwrap(), start, bytes, align: 2 * MIB }
    }

    #[test]
    fn ranges_are_mapped_by_whole_granules() {
        let device = dax(0x1_0000_0000, 64 * MIB);
        let at = device.start;
        assert_eq!(device.place(at, 8 * MIB), Some((0, 8 << 20, 0)));
        assert_eq!(device.place(at + 2 * MIB + 0x3000, 0x8000), Some((2 * MIB, 2 << 20, 0x3000)));
        assert_eq!(device.place(at + 3 * MIB, 2 * MIB), Some((2 * MIB, 4 << 20, 1 << 20)));
        assert_eq!(device.place(at + 62 * MIB, 2 * MIB), Some((62 * MIB, 2 << 20, 0)));
        for (address, bytes) in [(at - 1, 2), (at, 65 * MIB), (at + 64 * MIB, 1), (u64::MAX, 2), (at, 0)] {
            assert_eq!(device.place(address, bytes), None);
        }
    }

    #[test]
    fn what_nobody_has_is_an_error_that_tells_what_to_do() {
        let error = map(&[dax(0, MIB)], 16 * MIB, 4096).unwrap_err().to_string();
        assert!(error.contains("0x1000000") && error.contains("dax_hmem"), "{error}");
    }

    #[test]
    fn numbers_of_sysfs() {
        assert_eq!(
            (parse("0x140000000\n"), parse("2097152\n"), parse("x")),
            (Some(0x1_4000_0000), Some(2 << 20), None)
        );
    }
}
