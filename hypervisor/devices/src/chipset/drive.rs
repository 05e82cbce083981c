//! The entry of fuzz targets: a guest that does what the bytes say.

use caisson_types::Instant;

use super::{COM1, Chipset, Effect};

/// The ports with something behind them, so that few inputs are wasted on empty ones.
const PORTS: [u16; 16] =
    [0x20, 0x40, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xA0, 0xB2, COM1, 0x600, 0x608, 0x620, 0xCF8];

/// Plays `data`, six bytes a step, against a chipset, and checks what must hold at every moment: the deadline lies
/// ahead, no more work comes of a step than the lines can account for, and time goes on.
///
/// # Panics
/// Where one of these does not hold; never for another reason.
pub fn drive(data: &[u8]) {
    let mut now = Instant::from_nanos(u64::from(data.first().copied().unwrap_or(0)) << 24);
    let mut chipset = Chipset::new(1_700_000_000, 0, now);
    let mut timer = chipset.port_read(0x608, 4, now);
    for step in data.chunks_exact(6) {
        let &[kind, place, a, b, c, d] = step else { continue };
        now = now + (u64::from(u16::from_le_bytes([c, d])) << (kind >> 3));
        let port = PORTS[usize::from(place & 15)].wrapping_add(u16::from(place >> 4));
        let size = [1, 2, 4, 1][usize::from(a & 3)];
        let value = u32::from_le_bytes([b, a, d, c]);
        match kind & 7 {
            0 | 1 => assert!(size == 4 || chipset.port_read(port, size, now) >> (8 * u32::from(size)) == 0),
            2 | 3 => match chipset.port_write(port, size, value, now) {
                Effect::Reset => chipset.reset(now),
                Effect::None | Effect::Console(_) | Effect::PowerOff => {}
            },
            4 => chipset.ioapic_mmio_write(u64::from(place & 0x70), value, now),
            5 => chipset.eoi(b),
            6 if a & 1 == 0 => chipset.set_irq(b, a & 2 != 0),
            6 => {
                let ready = chipset.console_ready();
                assert_eq!(chipset.console_input(b), ready);
            }
            _ => {
                chipset.pic_acknowledge();
                chipset.press_power_button();
            }
        }
        for turn in 0.. {
            if chipset.next_deadline() > now {
                break;
            }
            assert!(turn < 4, "a storm: time does not go on");
            chipset.advance(now);
        }
        let mut messages = 0;
        while chipset.has_messages() {
            assert!(chipset.pop_message().is_some());
            messages += 1;
        }
        assert!(messages <= 32, "{messages} messages of one step");
        let later = chipset.port_read(0x608, 4, now);
        assert!(later.wrapping_sub(timer) < 1 << 31 || c == 0xFF || u32::from(kind >> 3) > 16);
        timer = later;
    }
}
