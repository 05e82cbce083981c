//! The physical 8259 pair: masked for good, because the I/O APIC does its work.

use crate::cpu::outb;

/// Moves the pair's vectors away from the exceptions and masks every line; a spurious interrupt then arrives at
/// [`crate::trap::PIC_SPURIOUS`] and is ignored.
pub fn disable() {
    let base = crate::trap::PIC_SPURIOUS;
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, base),
        (0xa1, base),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xff),
        (0xa1, 0xff),
    ] {
        // SAFETY: the physical 8259 pair is Caisson's; both ports exist or ignore the write.
        unsafe { outb(port, value) };
    }
}
