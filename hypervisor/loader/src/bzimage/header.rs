//! The setup header of a bzImage ("The Real-Mode Kernel Header").

use crate::LoadError;
use crate::bytes::{slice, u8_at, u16_at, u32_at, u64_at};

/// Where the header starts, in the image and in the zero page.
pub(super) const START: u64 = 0x1F1;
/// The first byte after the room that the zero page has for the header.
const MAX_END: u64 = 0x290;

// Offsets of fields.
const SETUP_SECTS: u64 = 0x1F1;
const SYSSIZE: u64 = 0x1F4;
const BOOT_FLAG: u64 = 0x1FE;
const JUMP_LEN: u64 = 0x201;
const MAGIC: u64 = 0x202;
const VERSION: u64 = 0x206;
pub(super) const TYPE_OF_LOADER: u64 = 0x210;
pub(super) const LOADFLAGS: u64 = 0x211;
pub(super) const CODE32_START: u64 = 0x214;
pub(super) const RAMDISK_IMAGE: u64 = 0x218;
pub(super) const RAMDISK_SIZE: u64 = 0x21C;
pub(super) const EXT_LOADER_VER: u64 = 0x226;
pub(super) const CMD_LINE_PTR: u64 = 0x228;
const INITRD_ADDR_MAX: u64 = 0x22C;
const KERNEL_ALIGNMENT: u64 = 0x230;
const RELOCATABLE_KERNEL: u64 = 0x234;
const XLOADFLAGS: u64 = 0x236;
const CMDLINE_SIZE: u64 = 0x238;
pub(super) const HARDWARE_SUBARCH: u64 = 0x23C;
pub(super) const SETUP_DATA: u64 = 0x250;
const PREF_ADDRESS: u64 = 0x258;
const INIT_SIZE: u64 = 0x260;

/// `loadflags`: the protected-mode code belongs at 1 MiB and not at 64 KiB.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: the kernel has the 64-bit entry at offset 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `xloadflags`: kernel, zero page, command line and RAM disk may be above 4 GiB.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;

/// What the header says, with the defaults of the versions that lack a field.
#[derive(Clone, Copy, Debug)]
pub(super) struct SetupHeader<'a> {
    /// The header itself, from [`START`].
    pub(super) raw: &'a [u8],
    /// The protected-mode kernel.
    pub(super) kernel: &'a [u8],
    /// The protocol's version, major in the upper byte.
    pub(super) version: u16,
    /// Where the protected-mode kernel is loaded unless it may be elsewhere.
    pub(super) default_address: u64,
    /// The alignment of a load address other than the preferred one; `None` when there is no other.
    pub(super) alignment: Option<u64>,
    /// Where the kernel wants to be loaded and runs once it has unpacked itself (2.10).
    pub(super) pref_address: Option<u64>,
    /// Bytes that the kernel needs from its runtime address before it looks at the memory map; 0 when not known.
    pub(super) init_size: u64,
    /// The first address above what the RAM disk may occupy.
    pub(super) initrd_end: u64,
    /// The longest command line, without the terminating zero.
    pub(super) cmdline_size: u64,
    /// Whether there is a 64-bit entry.
    pub(super) entry64: bool,
    /// Whether the RAM disk may be above 4 GiB.
    pub(super) above_4g: bool,
}

/// Whether an image has the marks of a setup header of protocol 2.00 or later.
pub(super) fn is_present(image: &[u8]) -> bool {
    u16_at(image, BOOT_FLAG) == Some(0xAA55) && slice(image, MAGIC, 4) == Some(b"HdrS")
}

impl<'a> SetupHeader<'a> {
    pub(super) fn parse(image: &'a [u8]) -> Result<Self, LoadError> {
        const TRUNCATED: LoadError = LoadError::Truncated("setup header");
        if !is_present(image) {
            return Err(LoadError::NotThis("Linux bzImage"));
        }
        let version = u16_at(image, VERSION).ok_or(TRUNCATED)?;
        if version >> 8 != 2 {
            return Err(LoadError::BadField { field: "boot protocol version", value: u64::from(version) });
        }
        let end = MAGIC + u64::from(u8_at(image, JUMP_LEN).ok_or(TRUNCATED)?);
        let raw = slice(image, START, end.min(MAX_END) - START).ok_or(TRUNCATED)?;
        let fields = Fields { image, version, end };
        let loaded_high = u8_at(image, LOADFLAGS).ok_or(TRUNCATED)? & LOADED_HIGH != 0;
        let xloadflags = fields.u16(XLOADFLAGS, 0x20C).unwrap_or(0);
        let entry64 = xloadflags & XLF_KERNEL_64 != 0;
        let relocatable = fields.u8(RELOCATABLE_KERNEL, 0x205).unwrap_or(0) != 0;
        let alignment = u64::from(fields.u32(KERNEL_ALIGNMENT, 0x205).unwrap_or(0));
        if relocatable && !alignment.is_power_of_two() {
            return Err(LoadError::BadField { field: "kernel_alignment", value: alignment });
        }
        Ok(Self {
            raw,
            kernel: protected_mode_kernel(&fields)?,
            version,
            default_address: if loaded_high { 0x10_0000 } else { 0x1000 },
            alignment: relocatable.then_some(alignment),
            pref_address: fields.u64(PREF_ADDRESS, 0x20A),
            init_size: u64::from(fields.u32(INIT_SIZE, 0x20A).unwrap_or(0)),
            initrd_end: u64::from(fields.u32(INITRD_ADDR_MAX, 0x203).unwrap_or(0x37FF_FFFF)) + 1,
            cmdline_size: u64::from(fields.u32(CMDLINE_SIZE, 0x206).unwrap_or(255)),
            entry64,
            above_4g: entry64 && xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
        })
    }
}

/// The image after its real-mode part. `syssize` counts in 16 bytes, rounded up; what follows it (a signature) stays.
fn protected_mode_kernel<'a>(fields: &Fields<'a>) -> Result<&'a [u8], LoadError> {
    const TRUNCATED: LoadError = LoadError::Truncated("protected-mode kernel");
    let sectors = match u8_at(fields.image, SETUP_SECTS).ok_or(TRUNCATED)? {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let start = (sectors + 1) * 512;
    let len = (fields.image.len() as u64).checked_sub(start).ok_or(TRUNCATED)?;
    let paragraphs = match fields.u32(SYSSIZE, 0x204) {
        Some(paragraphs) => paragraphs,
        None => u32::from(u16_at(fields.image, SYSSIZE).ok_or(TRUNCATED)?),
    };
    let kernel = slice(fields.image, start, len).ok_or(TRUNCATED)?;
    if kernel.is_empty() || u64::from(paragraphs) * 16 >= len + 16 {
        // Before 2.04 the field has 16 bits of what may be more, so that it cannot be too large for a whole image.
        return Err(TRUNCATED);
    }
    Ok(kernel)
}

/// Access to fields that exist since some version and lie inside the header.
struct Fields<'a> {
    image: &'a [u8],
    version: u16,
    end: u64,
}

impl Fields<'_> {
    fn has(&self, offset: u64, len: u64, since: u16) -> bool {
        self.version >= since && offset + len <= self.end
    }
    fn u8(&self, offset: u64, since: u16) -> Option<u8> {
        self.has(offset, 1, since).then(|| u8_at(self.image, offset))?
    }
    fn u16(&self, offset: u64, since: u16) -> Option<u16> {
        self.has(offset, 2, since).then(|| u16_at(self.image, offset))?
    }
    fn u32(&self, offset: u64, since: u16) -> Option<u32> {
        self.has(offset, 4, since).then(|| u32_at(self.image, offset))?
    }
    fn u64(&self, offset: u64, since: u16) -> Option<u64> {
        self.has(offset, 8, since).then(|| u64_at(self.image, offset))?
    }
}
