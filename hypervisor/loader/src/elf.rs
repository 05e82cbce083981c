//! ELF executables for x86, 32 and 64 bit (System V ABI, "Object Files"), as far as loading them takes.

use caisson_types::{Gpa, GuestMemory};

use crate::bytes::{slice, u8_at, u16_at, u32_at, u64_at};
use crate::place::Placement;
use crate::{LoadError, MAX_SEGMENTS};

const TRUNCATED_SEGMENTS: LoadError = LoadError::Truncated("program header table");

// e_ident
const MAGIC: &[u8] = b"\x7FELF";
const CLASS: u64 = 4;
const DATA: u64 = 5;
const CLASS32: u8 = 1;
const CLASS64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
// e_type
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
// e_machine
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
// p_type
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
// sh_type
const SHT_NOTE: u32 = 7;
const SHT_NOBITS: u32 = 8;

/// The most notes that are looked at for the one that is wanted.
const MAX_NOTES: usize = 4096;

/// An ELF image whose file header has been checked and whose program header table lies in the image.
#[derive(Clone, Copy)]
pub(crate) struct Elf<'a> {
    image: &'a [u8],
    wide: bool,
    /// `e_entry`.
    pub(crate) entry: u64,
    program_headers: &'a [u8],
    section_headers: Option<&'a [u8]>,
    /// `e_shstrndx`.
    pub(crate) section_names: u16,
}

/// A program header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    kind: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// A section header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Section {
    kind: u32,
    /// `sh_addr`; 0 for a section that is not part of the running program.
    pub(crate) address: u64,
    offset: u64,
    /// `sh_size`.
    pub(crate) size: u64,
    /// `sh_addralign`.
    pub(crate) align: u64,
}

/// Whether an image has the marks of an ELF file.
pub(crate) fn is_elf(image: &[u8]) -> bool {
    image.starts_with(MAGIC)
}

impl<'a> Elf<'a> {
    /// Reads the file header of an executable for x86.
    pub(crate) fn parse(image: &'a [u8]) -> Result<Self, LoadError> {
        const TRUNCATED: LoadError = LoadError::Truncated("ELF header");
        let bad = |field, value: u64| Err(LoadError::BadField { field, value });
        if !is_elf(image) {
            return Err(LoadError::NotThis("ELF"));
        }
        let wide = match u8_at(image, CLASS).ok_or(TRUNCATED)? {
            CLASS32 => false,
            CLASS64 => true,
            class => return bad("ELF class", u64::from(class)),
        };
        let data = u8_at(image, DATA).ok_or(TRUNCATED)?;
        if data != LITTLE_ENDIAN {
            return bad("ELF data encoding", u64::from(data));
        }
        let kind = u16_at(image, 16).ok_or(TRUNCATED)?;
        if kind != ET_EXEC && kind != ET_DYN {
            return bad("e_type", u64::from(kind));
        }
        let machine = u16_at(image, 18).ok_or(TRUNCATED)?;
        if machine != EM_386 && machine != EM_X86_64 {
            return bad("e_machine", u64::from(machine));
        }
        let reader = Reader { bytes: image, wide };
        let (entry, phoff, shoff) = (reader.word(24, 24), reader.word(28, 32), reader.word(32, 40));
        let half =
            |narrow: u64, wide_at: u64| u16_at(image, if wide { wide_at } else { narrow }).ok_or(TRUNCATED);
        let (phentsize, phnum) = (half(42, 54)?, half(44, 56)?);
        let (shentsize, shnum, section_names) = (half(46, 58)?, half(48, 60)?, half(50, 62)?);
        if phnum != 0 && u64::from(phentsize) != reader.segment_len() {
            return bad("e_phentsize", u64::from(phentsize));
        }
        let table_len = u64::from(phnum) * reader.segment_len();
        let program_headers = slice(image, phoff.ok_or(TRUNCATED)?, table_len).ok_or(TRUNCATED_SEGMENTS)?;
        let sections_len = u64::from(shnum) * reader.section_len();
        let section_headers = if shnum != 0 && u64::from(shentsize) == reader.section_len() {
            slice(image, shoff.ok_or(TRUNCATED)?, sections_len)
        } else {
            None
        };
        let entry = entry.ok_or(TRUNCATED)?;
        Ok(Self { image, wide, entry, program_headers, section_headers, section_names })
    }

    fn segments(&self) -> impl Iterator<Item = Segment> + use<'a> {
        let wide = self.wide;
        let len = Reader { bytes: &[], wide }.segment_len() as usize;
        self.program_headers.chunks_exact(len).filter_map(move |bytes| Reader { bytes, wide }.segment())
    }

    /// The segments to load that take any memory.
    fn loadable(&self) -> impl Iterator<Item = Segment> + use<'a> {
        self.segments().filter(|segment| segment.kind == PT_LOAD && segment.memory_size != 0)
    }

    /// Checks that all segments lie in the image, and that there are some, and not too many.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        let mut count = 0;
        for segment in self.loadable() {
            count += 1;
            if count > MAX_SEGMENTS {
                return Err(LoadError::TooManySegments);
            }
            if segment.file_size > segment.memory_size {
                return Err(LoadError::BadField { field: "p_filesz", value: segment.file_size });
            }
            self.data(&segment)?;
        }
        if count == 0 { Err(LoadError::NoSegments) } else { Ok(()) }
    }

    /// Takes the RAM of all segments at their physical addresses.
    pub(crate) fn claim(&self, placement: &mut Placement<'_>) -> Result<(), LoadError> {
        self.check()?;
        self.loadable()
            .try_for_each(|segment| placement.claim("segment", segment.physical_address, segment.memory_size))
    }

    /// Copies all segments, which have been claimed, and clears what the file does not hold of them.
    pub(crate) fn write(&self, memory: &impl GuestMemory) -> Result<(), LoadError> {
        for segment in self.loadable() {
            memory.write(Gpa::new(segment.physical_address), self.data(&segment)?)?;
            let file_end = segment.physical_address.wrapping_add(segment.file_size);
            memory.fill_zero(Gpa::new(file_end), segment.memory_size.saturating_sub(segment.file_size))?;
        }
        Ok(())
    }

    fn data(&self, segment: &Segment) -> Result<&'a [u8], LoadError> {
        slice(self.image, segment.offset, segment.file_size).ok_or(LoadError::Truncated("segment"))
    }

    /// The first address after all segments that end by `below`.
    pub(crate) fn end(&self, below: u64) -> u64 {
        let ends =
            self.loadable().map(|segment| segment.physical_address.saturating_add(segment.memory_size));
        ends.filter(|&end| end <= below).max().unwrap_or(0)
    }

    /// Whether a physical address lies in a segment.
    pub(crate) fn holds(&self, address: u64) -> bool {
        self.loadable().any(|segment| {
            address.checked_sub(segment.physical_address).is_some_and(|offset| offset < segment.memory_size)
        })
    }

    /// The physical address of a virtual one that lies in a segment.
    pub(crate) fn physical(&self, address: u64) -> Option<u64> {
        self.loadable().find_map(|segment| {
            let offset = address.checked_sub(segment.virtual_address)?;
            if offset >= segment.memory_size {
                return None;
            }
            segment.physical_address.checked_add(offset)
        })
    }

    /// The content of the first note with the given owner and type: in segments of notes first, then in sections of
    /// notes, which some linkers do not put into a segment.
    pub(crate) fn note(&self, owner: &[u8], kind: u32) -> Option<&'a [u8]> {
        let in_segments = self
            .segments()
            .filter(|segment| segment.kind == PT_NOTE)
            .map(|segment| (segment.offset, segment.file_size, segment.align));
        let in_sections = self
            .sections()
            .filter(|section| section.kind == SHT_NOTE)
            .map(|section| (section.offset, section.size, section.align));
        let mut left = MAX_NOTES;
        for (offset, len, align) in in_segments.chain(in_sections) {
            // Some linkers put notes aligned to 4 into a segment that is aligned to 8.
            let aligns: &[u64] = if align == 8 { &[8, 4] } else { &[4] };
            for &align in aligns {
                let mut notes = slice(self.image, offset, len).unwrap_or_default();
                while let Some(note) = Note::split(&mut notes, align) {
                    if note.owner == owner && note.kind == kind {
                        return Some(note.content);
                    }
                    left = left.checked_sub(1)?;
                }
            }
        }
        None
    }

    /// The section header table, if the image has a whole one.
    pub(crate) fn section_table(&self) -> Option<SectionTable<'a>> {
        let bytes = self.section_headers?;
        Some(SectionTable { bytes, entry_len: Reader { bytes, wide: self.wide }.section_len() as usize })
    }

    /// The sections, in the order of their headers.
    pub(crate) fn sections(&self) -> impl Iterator<Item = Section> + use<'a> {
        let wide = self.wide;
        let len = Reader { bytes: &[], wide }.section_len() as usize;
        let table = self.section_headers.unwrap_or_default();
        table.chunks_exact(len).filter_map(move |bytes| Reader { bytes, wide }.section())
    }

    /// The bytes of a section that is not part of a segment: it has content in the file but no address.
    pub(crate) fn unplaced(&self, section: &Section) -> Option<&'a [u8]> {
        if section.address != 0 || section.size == 0 || section.kind == SHT_NOBITS || section.kind == 0 {
            return None;
        }
        slice(self.image, section.offset, section.size)
    }

    /// The bytes of a section header's address field, and where in the header it is.
    pub(crate) fn section_address_field(&self, address: u64) -> (u64, [u8; 8], usize) {
        if self.wide { (16, address.to_le_bytes(), 8) } else { (12, address.to_le_bytes(), 4) }
    }
}

/// A section header table as it lies in the image.
#[derive(Clone, Copy)]
pub(crate) struct SectionTable<'a> {
    /// The table.
    pub(crate) bytes: &'a [u8],
    /// Bytes of one header.
    pub(crate) entry_len: usize,
}

/// A note of a note segment or section.
struct Note<'a> {
    owner: &'a [u8],
    kind: u32,
    content: &'a [u8],
}

impl<'a> Note<'a> {
    /// Cuts the first note off `notes`; `None` at their end, or where they make no sense.
    fn split(notes: &mut &'a [u8], align: u64) -> Option<Self> {
        let owner_len = u64::from(u32_at(notes, 0)?);
        let content_len = u64::from(u32_at(notes, 4)?);
        let kind = u32_at(notes, 8)?;
        let owner = slice(notes, 12, owner_len)?;
        let content_at = (12 + owner_len).next_multiple_of(align);
        let content = slice(notes, content_at, content_len)?;
        let next = (content_at + content_len).next_multiple_of(align);
        *notes = notes.get(usize::try_from(next).ok()?..).unwrap_or_default();
        Some(Self { owner, kind, content })
    }
}

/// Reads headers of either class.
struct Reader<'a> {
    bytes: &'a [u8],
    wide: bool,
}

impl Reader<'_> {
    /// An address-sized field, at its offset in the narrow and in the wide class.
    fn word(&self, narrow: u64, wide: u64) -> Option<u64> {
        if self.wide { u64_at(self.bytes, wide) } else { u32_at(self.bytes, narrow).map(u64::from) }
    }

    fn segment_len(&self) -> u64 {
        if self.wide { 56 } else { 32 }
    }

    fn section_len(&self) -> u64 {
        if self.wide { 64 } else { 40 }
    }

    fn segment(&self) -> Option<Segment> {
        Some(Segment {
            kind: u32_at(self.bytes, 0)?,
            offset: self.word(4, 8)?,
            virtual_address: self.word(8, 16)?,
            physical_address: self.word(12, 24)?,
            file_size: self.word(16, 32)?,
            memory_size: self.word(20, 40)?,
            align: self.word(28, 48)?,
        })
    }

    fn section(&self) -> Option<Section> {
        Some(Section {
            kind: u32_at(self.bytes, 4)?,
            address: self.word(12, 16)?,
            offset: self.word(16, 24)?,
            size: self.word(20, 32)?,
            align: self.word(32, 48)?,
        })
    }
}
