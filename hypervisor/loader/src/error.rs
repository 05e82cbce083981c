//! Why a kernel could not be loaded.

use core::fmt;

use caisson_types::{Gpa, MemoryError};

/// Why a kernel could not be loaded. Displays as one line that says what to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadError {
    /// The image is none that a loader here knows.
    UnknownImage,
    /// The image is an ELF file that no loader here has an entry to.
    PlainElf,
    /// The image is not of the format that was asked for.
    NotThis(&'static str),
    /// The image ends inside the named part.
    Truncated(&'static str),
    /// The named field of the image's headers contradicts the specification or the image.
    BadField {
        /// The field, as its specification names it.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The multiboot header demands features that do not exist; the bits of its flags that are not known.
    UnknownFlags(u32),
    /// The image has no segment to load.
    NoSegments,
    /// The image has more segments to load than [`MAX_SEGMENTS`](crate::MAX_SEGMENTS).
    TooManySegments,
    /// The entry point is not inside what was loaded, or not below 4 GiB.
    BadEntry(u64),
    /// The guest's memory map is not sorted, overlaps itself, or is longer than the protocol can tell.
    BadMemoryMap,
    /// There are too many reserved ranges.
    TooManyReserved,
    /// A part of the kernel belongs where the guest has no RAM.
    OutsideRam {
        /// The part.
        what: &'static str,
        /// Its first byte.
        start: Gpa,
        /// Its length in bytes.
        len: u64,
    },
    /// A part of the kernel belongs where another part, or something of the firmware's, is already.
    Overlap {
        /// The part.
        what: &'static str,
        /// Its first byte.
        start: Gpa,
        /// Its length in bytes.
        len: u64,
    },
    /// No free RAM is left for a part where the protocol allows it.
    NoRoom {
        /// The part.
        what: &'static str,
        /// Its length in bytes.
        len: u64,
    },
    /// The command line is longer than the kernel takes.
    CommandLineTooLong {
        /// Its length in bytes.
        len: u64,
        /// The longest that the kernel takes.
        max: u64,
    },
    /// A command line has a zero byte in it.
    CommandLineHasZero,
    /// Guest memory could not be written although the memory map has RAM there.
    Memory(MemoryError),
}

impl From<MemoryError> for LoadError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnknownImage => f.write_str(
                "no Linux bzImage, PVH ELF or multiboot1 kernel; give an image of one of these kinds",
            ),
            Self::PlainElf => f.write_str(
                "an ELF file with neither a PVH note nor a multiboot1 header; build it with one of them (Linux: \
                 CONFIG_PVH), or give a bzImage",
            ),
            Self::NotThis(kind) => {
                write!(f, "not a {kind} image; correct the loader setting or leave it out")
            }
            Self::Truncated(part) => write!(f, "the image ends inside its {part}; copy or build it again"),
            Self::BadField { field, value } => {
                write!(f, "the image's {field} is {value:#x}, where {} is accepted; build it again", accepted(field))
            }
            Self::UnknownFlags(bits) => {
                write!(f, "the multiboot header demands unknown features {bits:#x}; build without them")
            }
            Self::NoSegments => f.write_str("the image has nothing to load; build it as an executable"),
            Self::TooManySegments => {
                write!(f, "the image has more than {} segments; link it into fewer", crate::MAX_SEGMENTS)
            }
            Self::BadEntry(entry) => {
                write!(
                    f,
                    "the entry point {entry:#x} is not inside the loaded image below 4 GiB; link it anew"
                )
            }
            Self::BadMemoryMap => f.write_str("the guest's memory map cannot be told to the kernel"),
            Self::TooManyReserved => f.write_str("the guest's firmware reserves too many ranges"),
            Self::OutsideRam { what, start, len } => {
                write!(
                    f,
                    "the {what} needs {len:#x} bytes at {start}, where the guest has no RAM; give it more memory"
                )
            }
            Self::Overlap { what, start, len } => {
                write!(f, "the {what} needs {len:#x} bytes at {start}, which are taken; link it elsewhere")
            }
            Self::NoRoom { what, len } => {
                write!(f, "no RAM is left for the {len:#x} bytes of the {what}; give the guest more memory")
            }
            Self::CommandLineTooLong { len, max } => {
                write!(f, "the command line has {len} bytes, the kernel takes {max}; shorten it")
            }
            Self::CommandLineHasZero => f.write_str("a command line has a zero byte in it; remove it"),
            Self::Memory(error) => write!(f, "{error}"),
        }
    }
}

/// What a header's field may be, for people.
fn accepted(field: &str) -> &'static str {
    match field {
        "ELF class" => "1 (32-bit) or 2 (64-bit)",
        "ELF data encoding" => "1 (little-endian)",
        "e_type" => "2 (executable) or 3 (shared object)",
        "e_machine" => "0x3 (80386) or 0x3e (x86-64)",
        "e_phentsize" => "0x20 (ELF32) or 0x38 (ELF64)",
        "p_filesz" => "at most p_memsz",
        "boot protocol version" => "0x200 to 0x2ff",
        "kernel_alignment" => "a power of two",
        "pref_address" => "what ends with the kernel below 4 GiB",
        "load_addr" => "at most header_addr",
        "header_addr" => "what lies in the image",
        "load_end_addr" => "0 or at least load_addr",
        "bss_end_addr" => "0 or at least load_end_addr",
        _ => "something else",
    }
}

impl core::error::Error for LoadError {}
