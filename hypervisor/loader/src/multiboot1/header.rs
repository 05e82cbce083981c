//! The multiboot header inside an image (Multiboot Specification 0.6.96, section 3.1).

use crate::LoadError;
use crate::bytes::{slice, u32_at};

/// The header lies within this many bytes of the image's start.
const SEARCH_LEN: u64 = 8192;
const MAGIC: u32 = 0x1BAD_B002;
/// `flags` that a loader must understand.
const MANDATORY: u32 = 0xFFFF;
/// `flags`: modules on page boundaries, memory information, video mode information.
const KNOWN: u32 = 1 << 0 | 1 << 1 | 1 << 2;
/// `flags`: the address fields are valid and used in place of an executable's headers.
const ADDRESSES: u32 = 1 << 16;

/// What a multiboot header says about loading.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// The addresses to load at, in place of the ELF headers.
    pub(super) addresses: Option<Addresses>,
}

/// The address fields of the header, "a.out kludge", and where the header was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    found_at: u64,
    header: u64,
    load: u64,
    load_end: u64,
    bss_end: u64,
    /// Where the kernel is entered.
    pub(super) entry: u64,
}

/// What the address fields mean for an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flat<'a> {
    /// The image's bytes to load.
    pub(super) data: &'a [u8],
    /// Where they are loaded.
    pub(super) start: u64,
    /// Their length with the zeros that follow them.
    pub(super) len: u64,
}

impl Header {
    /// Finds the header of an image.
    pub(super) fn find(image: &[u8]) -> Option<(u64, u32)> {
        let searched = image.get(..SEARCH_LEN as usize).unwrap_or(image);
        (0..SEARCH_LEN).step_by(4).find_map(|at| {
            let (magic, flags, checksum) =
                (u32_at(searched, at)?, u32_at(searched, at + 4)?, u32_at(searched, at + 8)?);
            let valid = magic == MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0;
            valid.then_some((at, flags))
        })
    }

    /// Finds the header of an image and reads it.
    pub(super) fn parse(image: &[u8]) -> Result<Self, LoadError> {
        const TRUNCATED: LoadError = LoadError::Truncated("multiboot header");
        let (at, flags) = Self::find(image).ok_or(LoadError::NotThis("multiboot1"))?;
        let unknown = flags & MANDATORY & !KNOWN;
        if unknown != 0 {
            return Err(LoadError::UnknownFlags(unknown));
        }
        if flags & ADDRESSES == 0 {
            return Ok(Self { addresses: None });
        }
        let searched = image.get(..SEARCH_LEN as usize).unwrap_or(image);
        let field = |offset| u32_at(searched, at + offset).map(u64::from).ok_or(TRUNCATED);
        let addresses = Addresses {
            found_at: at,
            header: field(12)?,
            load: field(16)?,
            load_end: field(20)?,
            bss_end: field(24)?,
            entry: field(28)?,
        };
        Ok(Self { addresses: Some(addresses) })
    }
}

impl Addresses {
    /// What is loaded where: the header lies at its address, which fixes the rest of the image; without a load end,
    /// all of the image is loaded; without a bss end, nothing follows it.
    pub(super) fn resolve<'a>(&self, image: &'a [u8]) -> Result<Flat<'a>, LoadError> {
        let bad = |field, value| LoadError::BadField { field, value };
        let before_header = self.header.checked_sub(self.load).ok_or(bad("load_addr", self.load))?;
        let offset = self.found_at.checked_sub(before_header).ok_or(bad("header_addr", self.header))?;
        let rest = (image.len() as u64).saturating_sub(offset);
        let data_len = match self.load_end {
            0 => rest,
            end => end.checked_sub(self.load).ok_or(bad("load_end_addr", end))?,
        };
        let data = slice(image, offset, data_len).ok_or(LoadError::Truncated("text and data"))?;
        let len = match self.bss_end {
            0 => data_len,
            end => {
                end.checked_sub(self.load).filter(|&len| len >= data_len).ok_or(bad("bss_end_addr", end))?
            }
        };
        Ok(Flat { data, start: self.load, len })
    }
}
