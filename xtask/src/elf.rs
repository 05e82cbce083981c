//! As much of ELF (System V ABI, chapters 4 and 5) as it takes to carry a program along, the shared libraries that it names, and
//! to see what lies at an address of its. One that makes no sense names and holds nothing.

use std::ops::Range;

/// The names of the shared libraries that a 64-bit little-endian image needs (`DT_NEEDED`), in its order.
#[must_use]
pub fn needed(image: &[u8]) -> Vec<String> {
    libraries(image).unwrap_or_default()
}

/// The path of the dynamic linker that a program asks for (`PT_INTERP`).
#[must_use]
pub fn interpreter(image: &[u8]) -> Option<String> {
    let segment = segments(image)?.into_iter().find(|segment| segment.kind == INTERPRETER)?;
    text(image, segment.offset)
}

/// What an image holds, by address.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    image: Vec<u8>,
    segments: Vec<Segment>,
}

impl Loaded {
    /// Of an image.
    #[must_use]
    pub fn new(image: Vec<u8>) -> Self {
        let mut segments = segments(&image).unwrap_or_default();
        segments.retain(|segment| segment.kind == LOAD && segment.bytes > 0);
        Self { image, segments }
    }

    /// The bytes from `address` to the end of what was loaded with it.
    #[must_use]
    pub fn at(&self, address: u64) -> Option<&[u8]> {
        self.segments.iter().find_map(|segment| {
            let within = usize::try_from(address.checked_sub(segment.address)?).ok()?;
            let (from, to) =
                (segment.offset.checked_add(within)?, segment.offset.checked_add(segment.bytes)?);
            self.image.get(from..to).filter(|bytes| !bytes.is_empty())
        })
    }

    /// How many bytes a loader copies into memory.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes as u64).sum()
    }

    /// The addresses of each part.
    pub fn parts(&self) -> impl Iterator<Item = Range<u64>> {
        self.segments
            .iter()
            .map(|segment| segment.address..segment.address.saturating_add(segment.bytes as u64))
    }
}

const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
const INTERPRETER: u32 = 3;
/// Tags of the dynamic section.
const END: u64 = 0;
const NEEDED: u64 = 1;
const STRING_TABLE: u64 = 5;

#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    offset: usize,
    address: u64,
    bytes: usize,
}

fn word(image: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(image.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn half(image: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(image.get(at..at.checked_add(2)?)?.try_into().ok()?)))
}

fn text(image: &[u8], at: usize) -> Option<String> {
    let rest = image.get(at..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    String::from_utf8(rest.get(..end)?.to_vec()).ok()
}

fn segments(image: &[u8]) -> Option<Vec<Segment>> {
    // 64 bits, little-endian
    if !image.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, entry, count) = (usize::try_from(word(image, 32)?).ok()?, half(image, 54)?, half(image, 56)?);
    (0..count)
        .map(|index| {
            let at = table.checked_add(index * entry)?;
            Some(Segment {
                kind: word(image, at)? as u32,
                offset: usize::try_from(word(image, at + 8)?).ok()?,
                address: word(image, at + 16)?,
                bytes: usize::try_from(word(image, at + 32)?).ok()?,
            })
        })
        .collect()
}

fn libraries(image: &[u8]) -> Option<Vec<String>> {
    let segments = segments(image)?;
    let dynamic = segments.iter().find(|segment| segment.kind == DYNAMIC)?;
    let section = image.get(dynamic.offset..dynamic.offset.checked_add(dynamic.bytes)?)?;
    let entries: Vec<(u64, u64)> = (0..section.len() / 16)
        .filter_map(|index| Some((word(section, index * 16)?, word(section, index * 16 + 8)?)))
        .take_while(|(tag, _)| *tag != END)
        .collect();
    let strings = entries.iter().find(|(tag, _)| *tag == STRING_TABLE)?.1;
    // An address in memory; the segment that is loaded there says where it is in the file.
    let strings = segments.iter().filter(|segment| segment.kind == LOAD).find_map(|segment| {
        let within = usize::try_from(strings.checked_sub(segment.address)?).ok()?;
        (within < segment.bytes).then_some(segment.offset.checked_add(within)?)
    })?;
    let needed = entries.iter().filter(|(tag, _)| *tag == NEEDED);
    needed.map(|(_, name)| text(image, strings.checked_add(usize::try_from(*name).ok()?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This test itself: a program of the host.
    #[test]
    fn a_programs_libraries_are_found() {
        let image = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(needed(&image).iter().any(|name| name == "libc.so.6"), "{:?}", needed(&image));
        assert_eq!(interpreter(&image).as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        for bytes in [0, 7, 60, 1000] {
            assert!(needed(&image[..bytes]).is_empty());
        }
    }

    #[test]
    fn what_lies_at_an_address_is_found() {
        let image = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let loaded = Loaded::new(image.clone());
        // The first part is the file's beginning, at address 0 of a program that runs anywhere.
        assert_eq!(loaded.at(0).map(|bytes| &bytes[..4]), Some(&b"\x7fELF"[..]));
        let first = loaded.parts().next().unwrap();
        assert_eq!(loaded.at(first.end - 1).map(<[u8]>::len), Some(1));
        assert_eq!(loaded.at(u64::MAX), None);
        assert_eq!(Loaded::new(b"#!/bin/sh".to_vec()).parts().count(), 0);
        assert_eq!(Loaded::new(image[..200].to_vec()).at(0), None);
    }

    #[test]
    fn nonsense_names_no_libraries() {
        let mut image = b"\x7fELF\x02\x01".to_vec();
        image.resize(64, 0xff);
        assert!(needed(&image).is_empty());
        assert_eq!(interpreter(b"#!/bin/sh"), None);
    }
}
