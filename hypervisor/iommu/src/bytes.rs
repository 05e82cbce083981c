//! Numbers out of a table's bytes, little-endian. What is not there reads as nothing.

/// An array of the bytes from `at` on.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

pub(crate) fn u8_at(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// Bytes of an ACPI table's header (ACPI 6.4, section 5.2.6).
const HEADER: usize = 36;

/// The table that starts `bytes`, as long as it says, if it has this signature, at least `least` bytes, and the right sum.
pub(crate) fn table<'a>(
    bytes: &'a [u8],
    signature: &[u8; 4],
    least: usize,
) -> Result<&'a [u8], super::TableError> {
    use super::TableError;
    if bytes.get(..4) != Some(signature) {
        return Err(TableError::Signature);
    }
    let length = u32_at(bytes, 4).ok_or(TableError::Truncated)? as usize;
    let table = bytes.get(..length).filter(|_| length >= least.max(HEADER)).ok_or(TableError::Truncated)?;
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if sum == 0 { Ok(table) } else { Err(TableError::Checksum) }
}
