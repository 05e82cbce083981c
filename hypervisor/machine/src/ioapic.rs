//! The I/O APICs' lines (82093AA data sheet; ACPI 6.4, section 5.2.12.3).

use alloc::vec::Vec;

use caisson_locks::{Mutex, Rank};
use spin::Once;

use crate::acpi::Platform;
use crate::device::Registers;
use crate::{apic, iommu};

/// Registers, by the index that is written to the first one.
mod register {
    pub(super) const VERSION: u32 = 1;
    pub(super) const TABLE: u32 = 0x10;
}
const ACTIVE_LOW: u32 = 1 << 13;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
/// An entry has room for 8 bits of id, of which 255 is everybody.
const LAST_ID: u32 = 254;

/// An I/O APIC.
struct Chip {
    registers: Registers,
    first: u32,
    pins: u32,
}

impl Chip {
    fn read(&self, index: u32) -> u32 {
        self.registers.write32(0, index);
        self.registers.read32(0x10)
    }

    fn write(&self, index: u32, value: u32) {
        self.registers.write32(0, index);
        self.registers.write32(0x10, value);
    }
}

/// The chips. The lock is for the two accesses that reach a register.
static CHIPS: Once<Mutex<Vec<Chip>>> = Once::new();

/// How a line signals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LineMode {
    /// A low level is an interrupt.
    pub active_low: bool,
    /// The level is the interrupt, not its change.
    pub level: bool,
}

/// Takes the I/O APICs over, every line masked.
///
/// # Safety
/// Once, at start, after the heap: the I/O APICs must be Caisson's.
pub unsafe fn init(platform: &Platform) {
    let chips = platform.io_apics.iter().filter_map(|info| {
        // SAFETY: promised by the caller.
        let registers = unsafe { Registers::map(info.address, 0x20)? };
        let mut chip = Chip { registers, first: info.gsi_base, pins: 0 };
        chip.pins = (chip.read(register::VERSION) >> 16 & 0xff) + 1;
        (0..chip.pins).for_each(|pin| chip.write(register::TABLE + 2 * pin, MASKED));
        Some(chip)
    });
    CHIPS.call_once(|| Mutex::new(Rank::IoApic, chips.collect()));
}

/// Sends the global system interrupt `gsi` to this CPU as `vector`, or, where interrupts are remapped, to where the IOMMU's table
/// says of `vector`. `false` where no I/O APIC serves it, or this CPU's id does not fit into an entry: that would need
/// interrupt remapping.
#[must_use]
pub fn route(gsi: u32, vector: u8, mode: LineMode) -> bool {
    // An entry that names one of the IOMMU's table (VT-d specification 4.1, section 5.1.5.1).
    const REMAPPED: u32 = 1 << 16;
    const INDEX_SHIFT: u32 = 17;
    let (id, remaps) = (apic::id(), iommu::remaps());
    (remaps || id <= LAST_ID)
        && with(gsi, |chip, pin| {
            let to = if remaps { REMAPPED | u32::from(vector) << INDEX_SHIFT } else { id << 24 };
            let polarity = if mode.active_low { ACTIVE_LOW } else { 0 };
            let trigger = if mode.level { LEVEL } else { 0 };
            chip.write(register::TABLE + 2 * pin, MASKED);
            chip.write(register::TABLE + 2 * pin + 1, to);
            chip.write(register::TABLE + 2 * pin, u32::from(vector) | polarity | trigger);
        })
}

/// Masks a line, or opens it again.
pub fn mask(gsi: u32, masked: bool) {
    with(gsi, |chip, pin| {
        let entry = chip.read(register::TABLE + 2 * pin) & !MASKED;
        chip.write(register::TABLE + 2 * pin, entry | if masked { MASKED } else { 0 });
    });
}

fn with(gsi: u32, work: impl FnOnce(&Chip, u32)) -> bool {
    let Some(chips) = CHIPS.get() else { return false };
    let chips = chips.lock();
    let chip = chips.iter().find(|chip| gsi.checked_sub(chip.first).is_some_and(|pin| pin < chip.pins));
    if let Some(chip) = chip {
        work(chip, gsi - chip.first);
    }
    chip.is_some()
}

/// Where the ISA interrupt `irq` arrives, and how it signals.
#[must_use]
pub fn isa_line(platform: &Platform, irq: u8) -> (u32, LineMode) {
    let line = platform.overrides.iter().find(|line| line.irq == irq);
    line.map_or((u32::from(irq), LineMode { active_low: false, level: false }), |line| {
        (line.gsi, LineMode { active_low: line.active_low, level: line.level })
    })
}

/// Sends the ISA interrupt `irq` to this CPU as `vector`. `false` as for [`route`].
#[must_use]
pub fn route_isa(platform: &Platform, irq: u8, vector: u8) -> bool {
    let (line, mode) = isa_line(platform, irq);
    route(line, vector, mode)
}
