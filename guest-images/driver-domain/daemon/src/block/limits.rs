//! What a file or block device takes: the multiples of its transfers, and the most that one of them moves.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::str::FromStr;

use rustix::fs::{ioctl_blksszget, major, minor};

use super::SECTOR;

/// The most bytes of a transfer in any case: Linux makes one `bio` of it, which has 256 pages, wherever in a page it begins.
const MOST_BYTES: usize = 512 << 10;

/// The most that a transfer moves without being split by the driver of the medium.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    /// Bytes, a multiple of the block's size where there is a limit.
    pub(super) bytes: usize,
    /// Pieces of memory that do not adjoin.
    pub(super) pieces: usize,
}

impl Limits {
    /// Where nobody splits anything.
    pub(super) const NONE: Self = Self { bytes: usize::MAX, pieces: usize::MAX };

    /// Those of a file, or of a block device.
    ///
    /// # Errors
    /// The kernel's, when it is asked what the file is.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let device = device_of(file)?;
        Ok(Self::new(queue(device, "max_sectors_kb"), queue(device, "max_segments")))
    }

    /// By what the medium's driver takes, where that is known.
    fn new(kib: Option<usize>, segments: Option<usize>) -> Self {
        // Of 4 KiB, the largest block.
        let bytes = kib.map_or(MOST_BYTES, |kib| kib.saturating_mul(1024) & !0xfff);
        Self { bytes: bytes.clamp(4096, MOST_BYTES), pieces: segments.unwrap_or(usize::MAX).max(1) }
    }
}

/// Transfers that are done in parts.
#[derive(Debug, Default)]
pub(super) struct Parts(HashMap<u64, Part>);

/// Parts that have not ended, and what has become of those that have.
#[derive(Debug)]
struct Part {
    left: usize,
    result: io::Result<()>,
}

impl Parts {
    /// So many parts of a transfer begin. One that is not done in parts needs no word of it.
    pub(super) fn add(&mut self, token: u64, count: usize) {
        self.0.entry(token).or_insert(Part { left: 0, result: Ok(()) }).left += count;
    }

    /// A part, or a whole transfer, has ended: what has become of the transfer, if it has ended with that.
    pub(super) fn end(&mut self, token: u64, result: io::Result<()>) -> Option<io::Result<()>> {
        let Some(part) = self.0.get_mut(&token) else { return Some(result) };
        part.left = part.left.saturating_sub(1);
        if part.result.is_ok() {
            part.result = result;
        }
        if part.left > 0 { None } else { self.0.remove(&token).map(|part| part.result) }
    }
}

/// What transfers of the file have to be multiples of.
///
/// # Errors
/// The kernel's.
pub(super) fn block_size(file: &File) -> io::Result<u32> {
    let size = if file.metadata()?.file_type().is_block_device() {
        ioctl_blksszget(file)?
    } else {
        queue(device_of(file)?, "logical_block_size").unwrap_or(SECTOR as u32)
    };
    Ok(size.clamp(512, 4096).next_power_of_two())
}

/// The number of the block device that a file is, or that its file system lies on.
fn device_of(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    Ok(if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() })
}

/// What is said of the queue of a block device, if it is one.
fn queue<T: FromStr>(device: u64, what: &str) -> Option<T> {
    let (major, minor) = (major(device), minor(device));
    // A partition's queue is its disk's.
    ["queue", "../queue"].iter().find_map(|queue| {
        let path = format!("/sys/dev/block/{major}:{minor}/{queue}/{what}");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_whole_blocks_and_within_a_bio() {
        let limits = |kib, segments| {
            let Limits { bytes, pieces } = Limits::new(kib, segments);
            (bytes, pieces)
        };
        assert_eq!(limits(Some(512), Some(127)), (512 << 10, 127));
        assert_eq!(limits(Some(130), Some(1)), (128 << 10, 1));
        assert_eq!(limits(Some(1280), None), (MOST_BYTES, usize::MAX));
        assert_eq!(limits(Some(0), Some(0)), (4096, 1));
        assert_eq!(limits(None, None), (MOST_BYTES, usize::MAX));
        assert_eq!(limits(Some(usize::MAX), None), (MOST_BYTES, usize::MAX));
    }

    #[test]
    fn a_transfer_ends_with_its_last_part_and_fails_with_any() {
        let mut parts = Parts::default();
        assert!(parts.end(1, Ok(())).unwrap().is_ok(), "a whole one");
        parts.add(2, 2);
        parts.add(2, 1);
        assert!(parts.end(2, Ok(())).is_none());
        assert!(parts.end(3, Err(io::ErrorKind::Interrupted.into())).unwrap().is_err(), "another one");
        assert!(parts.end(2, Err(io::ErrorKind::UnexpectedEof.into())).is_none());
        let error = parts.end(2, Ok(())).unwrap().unwrap_err();
        assert_eq!((error.kind(), parts.0.len()), (io::ErrorKind::UnexpectedEof, 0));
    }
}
