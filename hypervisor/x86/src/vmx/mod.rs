//! Intel VT-x: VMCS fields, exit reasons, controls, capability MSRs and events (SDM vol. 3, chapters 24 to 28, appendices
//! A to C; chapter numbers are those of the edition of December 2023).

mod capability;
mod control;
mod event;
mod exit_reason;
mod feature;
pub mod field;
mod instruction_error;
mod rights;

pub use capability::{Allowed, Basic, Capabilities, EptVpid, Misc, MissingControl, capability_msr};
pub use control::{EntryControls, ExitControls, PinControls, ProcessorControls, SecondaryControls};
pub use event::{EventInfo, EventType, Interruptibility, PendingDebug};
pub use exit_reason::ExitReason;
pub use feature::VmxFeatures;
pub use field::{Access, Field, ReadOnly, ReadWrite, Width};
pub use instruction_error::instruction_error;
pub use rights::AccessRights;

/// Bytes of a VMCS or VMXON region, of an MSR bitmap and of a virtual-APIC page: IA32_VMX_BASIC may ask for less.
pub const REGION_BYTES: usize = 4096;

/// The place of `msr` in the MSR bitmap (SDM vol. 3, section 25.6.9): the bit for reads and the bit for writes, or `None`
/// where the map does not reach (an access there always exits).
#[must_use]
pub const fn msr_bitmap_bits(msr: u32) -> Option<(usize, usize)> {
    const WRITES: usize = 2048 * 8;
    let bit = match msr {
        0x0000_0000..=0x0000_1fff => msr as usize,
        0xc000_0000..=0xc000_1fff => 1024 * 8 + (msr - 0xc000_0000) as usize,
        _ => return None,
    };
    Some((bit, bit + WRITES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_msr_bitmap_has_four_kilobyte_quarters() {
        assert_eq!(msr_bitmap_bits(0x174), Some((0x174, 0x4000 + 0x174)));
        assert_eq!(msr_bitmap_bits(0xc000_0102), Some((0x2102, 0x6102)));
        assert_eq!(msr_bitmap_bits(0xc001_0015), None);
        assert_eq!(msr_bitmap_bits(0x4b56_4d00), None);
    }
}
