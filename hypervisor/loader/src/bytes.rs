//! Little-endian integers at offsets of an image, with bounds checked.

/// `len` bytes from `offset`, if the image has them.
pub(crate) fn slice(image: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    image.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

fn array<const N: usize>(image: &[u8], offset: u64) -> Option<[u8; N]> {
    slice(image, offset, N as u64)?.try_into().ok()
}

pub(crate) fn u8_at(image: &[u8], offset: u64) -> Option<u8> {
    array(image, offset).map(u8::from_le_bytes)
}

pub(crate) fn u16_at(image: &[u8], offset: u64) -> Option<u16> {
    array(image, offset).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(image: &[u8], offset: u64) -> Option<u32> {
    array(image, offset).map(u32::from_le_bytes)
}

pub(crate) fn u64_at(image: &[u8], offset: u64) -> Option<u64> {
    array(image, offset).map(u64::from_le_bytes)
}
