//! What a person in front of the machine sees: the screen, by QEMU's monitor.

use std::{fs, ops::Range, path::Path, time::Duration};

use caisson_tests::{Failure, Lab, Run, Verdict};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use serde_json::json;
use xtask::qmp::Qmp;

use crate::workload::STEP;

/// EGA text: 80 by 25 cells of two bytes each, the character first.
const TEXT_AT: u64 = 0xb_8000;
const TEXT_BYTES: usize = 80 * 25 * 2;
/// The font that Caisson draws with.
const WEIGHT: FontWeight = FontWeight::Regular;
const HEIGHT: RasterHeight = RasterHeight::Size16;

/// Waits until `line` is on the text screen and the CPU halted. The monitor must be free.
pub(crate) fn text(run: &mut Run, lab: &Lab, name: &str, line: &str) -> Verdict {
    let dump = lab.directory(name)?.join("screen.bin");
    wait(run, line, |monitor| {
        monitor
            .execute("pmemsave", &json!({"val": TEXT_AT, "size": TEXT_BYTES, "filename": dump}))
            .map_err(Failure::from)?;
        // Lines that are longer than the screen is wide go on in the next one.
        let text: String = read(&dump)?.iter().step_by(2).map(|&byte| char::from(byte)).collect();
        Ok(text.contains(line))
    })
}

/// Waits until `line` is drawn on the frame buffer and the CPU halted. The monitor must be free.
pub(crate) fn pixels(run: &mut Run, lab: &Lab, name: &str, line: &str) -> Verdict {
    let dump = lab.directory(name)?.join("screen.ppm");
    wait(run, line, |monitor| {
        monitor.execute("screendump", &json!({"filename": dump})).map_err(Failure::from)?;
        let picture = Picture::parse(&read(&dump)?)?;
        Ok((0..picture.height / HEIGHT.val()).any(|row| picture.shows(row, line)))
    })
}

fn read(path: &Path) -> Verdict<Vec<u8>> {
    fs::read(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// Looks once a second: the serial line is ahead of the screen, and of the halt.
fn wait(run: &mut Run, line: &str, mut is_there: impl FnMut(&mut Qmp) -> Verdict<bool>) -> Verdict {
    let mut monitor = run.monitor()?;
    let (mut there, mut halted) = (false, false);
    for _ in 0..STEP {
        there = is_there(&mut monitor)?;
        halted = is_halted(&mut monitor)?;
        if there && halted {
            return Ok(());
        }
        run.listen(Duration::from_secs(1))?;
    }
    Err(Failure::new(format!("on the screen: {there}, CPU halted: {halted}; expected {line:?} and a halt")))
}

/// Whether the CPU executes HLT at this moment.
pub(crate) fn is_halted(monitor: &mut Qmp) -> Verdict<bool> {
    let registers = monitor.execute("human-monitor-command", &json!({"command-line": "info registers"}))?;
    Ok(registers.as_str().is_some_and(|text| text.contains("HLT=1")))
}

/// A screen dump: a portable pixmap in its binary form (Netpbm, `ppm(5)`), 8 bits a colour.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    fn parse(file: &[u8]) -> Verdict<Self> {
        let header: Vec<&[u8]> = file.splitn(4, |&byte| byte == b'\n').collect();
        let [b"P6", size, b"255", pixels] = header[..] else {
            return Err(Failure::new("the screen dump is no 8-bit P6"));
        };
        let size = String::from_utf8_lossy(size);
        let mut numbers = size.split(' ').filter_map(|number| number.parse().ok());
        match (numbers.next(), numbers.next()) {
            (Some(width), Some(height)) if pixels.len() == width * height * 3 => {
                Ok(Self { width, height, pixels: pixels.to_vec() })
            }
            _ => Err(Failure::new(format!("the screen dump's size {size} is not that of its pixels"))),
        }
    }

    /// Whether text row `row` begins with `line`, in grey, pixel by pixel; as much of it as the row holds.
    fn shows(&self, row: usize, line: &str) -> bool {
        let columns = self.width / get_raster_width(WEIGHT, HEIGHT);
        line.chars().take(columns).enumerate().all(|(column, c)| self.shows_char(row, column, c))
    }

    fn shows_char(&self, row: usize, column: usize, c: char) -> bool {
        let Some(glyph) = get_raster(c, WEIGHT, HEIGHT) else { return false };
        glyph.rows().enumerate().all(|(y, levels)| {
            let start = (row * HEIGHT.val() + y) * self.width + column * glyph.width();
            let place: Range<usize> = start * 3..(start + glyph.width()) * 3;
            self.pixels.get(place).is_some_and(|pixels| {
                pixels.chunks(3).zip(levels).all(|(pixel, level)| pixel.iter().all(|c| c == level))
            })
        })
    }
}
