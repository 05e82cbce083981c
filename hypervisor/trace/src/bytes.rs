//! Numbers in packets.

/// Bytes of the longest varint of 64 bits.
pub(crate) const VARINT: usize = 10;

/// Reads numbers off the front of bytes; `None` where they end too early or are malformed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for i in 0..VARINT {
            let byte = self.u8()?;
            // The tenth byte has room for one bit.
            if i == VARINT - 1 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A varint that fits.
    pub(crate) fn number<T: TryFrom<u64>>(&mut self) -> Option<T> {
        T::try_from(self.varint()?).ok()
    }

    pub(crate) fn signed(&mut self) -> Option<i64> {
        let zigzag = self.varint()?;
        Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }
}

/// The bytes of a varint, and how many.
pub(crate) fn varint(mut value: u64) -> ([u8; VARINT], usize) {
    let mut bytes = [0; VARINT];
    let mut len = 0;
    for byte in &mut bytes {
        len += 1;
        *byte = value as u8 & 0x7f;
        value >>= 7;
        if value == 0 {
            break;
        }
        *byte |= 0x80;
    }
    (bytes, len)
}

/// A signed number as the varint's unsigned one.
pub(crate) const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn varints_end() {
        assert_eq!(Bytes(&[0xff; 10]).varint(), None);
        assert_eq!(Bytes(&[0x80; 9]).varint(), None);
        assert_eq!(Bytes(&[]).varint(), None);
        assert_eq!(Bytes(&[0x80, 0x02]).number::<u8>(), None);
    }

    proptest! {
        #[test]
        fn numbers_survive(value in any::<u64>(), signed in any::<i64>(), shift in 0..64u32) {
            for value in [value, value >> shift] {
                let (bytes, len) = varint(value);
                prop_assert_eq!(Bytes(&bytes[..len]).varint(), Some(value));
                prop_assert_eq!(Bytes(&bytes[..len - 1]).varint(), None);
            }
            let (bytes, len) = varint(zigzag(signed));
            prop_assert_eq!(Bytes(&bytes[..len]).signed(), Some(signed));
        }
    }
}
