//! The screen that the loader left on: a place for Caisson's own lines, beside the serial one.
//!
//! It shows EGA text, or pixels with the `noto-sans-mono-bitmap` font. Where the last line is full it starts again at the
//! top: reading a frame buffer back to scroll it is slower than any reader.

use caisson_boot::{BOOT_MAPPED_END, Screen as Info, ScreenKind};
use caisson_locks::{Mutex, Rank};
use caisson_types::Hpa;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use crate::device::Registers;

/// Physical addresses have at most 52 bits (APM vol. 2, section 5.3).
const PHYSICAL_END: u64 = 1 << 52;
const HEIGHT: RasterHeight = RasterHeight::Size16;
const WEIGHT: FontWeight = FontWeight::Regular;

struct Screen {
    info: Info,
    /// Null until there is a mapping.
    base: *mut u8,
    columns: usize,
    rows: usize,
    column: usize,
    row: usize,
}

// SAFETY: the screen is device memory that only this structure writes.
unsafe impl Send for Screen {}

static SCREEN: Mutex<Option<Screen>> = Mutex::new(Rank::Screen, None);

/// Bytes of a frame buffer's pixel: three or four, of 8 bits a colour each.
fn pixel_bytes(info: &Info) -> usize {
    usize::from(info.bits_per_pixel / 8)
}

/// Starts to use the screen at its physical address, or with [`remap`] where the boot tables do not reach it.
///
/// # Safety
/// Once, with the boot tables active; [`remap`] must follow before they are left.
pub unsafe fn init(info: Info) {
    let (columns, rows) = match info.kind {
        ScreenKind::Text => (info.width as usize, info.height as usize),
        ScreenKind::Rgb { .. } => {
            (info.width as usize / get_raster_width(WEIGHT, HEIGHT), info.height as usize / HEIGHT.val())
        }
    };
    let bytes = u64::from(info.pitch) * u64::from(info.height);
    let depth_fits = match info.kind {
        ScreenKind::Text => info.pitch as usize >= columns * 2,
        ScreenKind::Rgb { .. } => {
            matches!(info.bits_per_pixel, 24 | 32)
                && info.pitch as usize >= info.width as usize * pixel_bytes(&info)
        }
    };
    let end = info.address.saturating_add(bytes);
    if columns == 0 || rows == 0 || !depth_fits || info.address == 0 || end > PHYSICAL_END {
        return;
    }
    let base = if end <= BOOT_MAPPED_END { info.address as *mut u8 } else { core::ptr::null_mut() };
    let mut screen = Screen { info, base, columns, rows, column: 0, row: 0 };
    screen.clear();
    *SCREEN.lock() = Some(screen);
}

/// Moves to a mapping of its own in the real page tables; gives the screen up where there is no room.
///
/// # Safety
/// Once, after the real page tables are active.
pub unsafe fn remap() {
    let Some(info) = SCREEN.lock().as_ref().map(|screen| screen.info) else { return };
    let bytes = u64::from(info.pitch) * u64::from(info.height);
    // SAFETY: the loader says that the frame buffer is there; nobody else uses it.
    let registers = unsafe { Registers::map(Hpa::new(info.address), bytes) };
    let mut slot = SCREEN.lock();
    let Some(screen) = slot.as_mut() else { return };
    match registers {
        Some(registers) => {
            let is_new = screen.base.is_null();
            screen.base = registers.as_mut_ptr();
            if is_new {
                screen.clear();
            }
        }
        None => *slot = None,
    }
}

/// Shows text.
pub fn write(bytes: &[u8]) {
    if let Some(screen) = SCREEN.lock().as_mut()
        && !screen.base.is_null()
    {
        bytes.iter().for_each(|&byte| screen.put(byte));
    }
}

/// Makes the screen usable whatever held it: for the crash record only.
///
/// # Safety
/// No other code may use the screen afterwards.
pub unsafe fn force_unlock() {
    // SAFETY: promised by the caller.
    unsafe { SCREEN.unranked().force_unlock() };
}

impl Screen {
    fn put(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                self.column = 0;
                self.row = (self.row + 1) % self.rows;
                self.clear_row(self.row);
            }
            b'\r' => self.column = 0,
            0x20..=0x7e => {
                if self.column == self.columns {
                    self.put(b'\n');
                }
                self.draw(self.column, self.row, byte);
                self.column += 1;
            }
            _ => {}
        }
    }

    fn clear(&mut self) {
        if !self.base.is_null() {
            (0..self.rows).for_each(|row| self.clear_row(row));
        }
    }

    fn clear_row(&mut self, row: usize) {
        (0..self.columns).for_each(|column| self.draw(column, row, b' '));
    }

    fn draw(&mut self, column: usize, row: usize, byte: u8) {
        match self.info.kind {
            ScreenKind::Text => {
                let at = row * self.info.pitch as usize + column * 2;
                // SAFETY: the cell is on the screen: column and row are below its size.
                unsafe { self.base.add(at).cast::<u16>().write_volatile(0x0700 | u16::from(byte)) };
            }
            ScreenKind::Rgb { red, green, blue } => {
                let Some(glyph) = get_raster(char::from(byte), WEIGHT, HEIGHT) else { return };
                let bytes = pixel_bytes(&self.info);
                for (y, line) in glyph.rows().enumerate() {
                    let start = (row * HEIGHT.val() + y) * self.info.pitch as usize;
                    for (x, &level) in line.iter().enumerate() {
                        let level = u32::from(level);
                        let pixel = level << (red & 31) | level << (green & 31) | level << (blue & 31);
                        self.set_pixel(start + (column * glyph.width() + x) * bytes, pixel);
                    }
                }
            }
        }
    }

    /// Sets the pixel at byte `at` of the screen.
    fn set_pixel(&self, at: usize, pixel: u32) {
        if self.info.bits_per_pixel == 32 {
            // SAFETY: the pixel is on the screen: its column and row are below the screen's size.
            unsafe { self.base.add(at).cast::<u32>().write_volatile(pixel) };
        } else {
            for (i, byte) in pixel.to_le_bytes().into_iter().take(3).enumerate() {
                // SAFETY: as above, one of the pixel's three bytes.
                unsafe { self.base.add(at + i).write_volatile(byte) };
            }
        }
    }
}
