//! Memory-type range registers (SDM vol. 3, section 13.11; APM vol. 2, section 7.7): a full set, kept and checked as
//! hardware does.
//!
//! They have no effect: under nested paging the memory type is that of stage 2 and the guest's PAT. But an operating
//! system reads them to learn what firmware meant to be memory and what devices, and switches its PAT off when they
//! are.

use caisson_x86::msr;

use crate::GeneralProtection;

/// Variable ranges.
const RANGES: usize = 8;
/// Fixed-range registers: one of 64 KiB, two of 16 KiB and eight of 4 KiB ranges.
const FIXED: usize = 11;
/// MTRRCAP: the number of variable ranges, FIX, WC.
const CAP: u64 = RANGES as u64 | 1 << 8 | 1 << 10;

const UNCACHEABLE: u64 = 0;
const WRITE_PROTECTED: u64 = 5;
const WRITE_BACK: u64 = 6;

/// MTRR_DEF_TYPE: the fixed ranges are enabled.
const FIXED_ENABLE: u64 = 1 << 10;
/// MTRR_DEF_TYPE: all ranges are enabled.
const ENABLE: u64 = 1 << 11;
/// MTRR_PHYSMASKn: the range is valid.
const VALID: u64 = 1 << 11;

const LAST_RANGE: u32 = msr::MTRR_PHYSBASE0 + 2 * RANGES as u32 - 1;
const LAST_FIXED: u32 = msr::MTRR_FIX4K_C0000 + 7;

/// A vCPU's MTRRs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mtrrs {
    default: u64,
    fixed: [u64; FIXED],
    /// Base, mask, base, mask, ...
    ranges: [u64; 2 * RANGES],
    physical_bits: u8,
}

/// Which register an MSR number stands for.
enum Register {
    Cap,
    Default,
    Fixed(usize),
    Range(usize),
}

const fn register(number: u32) -> Option<Register> {
    Some(match number {
        msr::MTRR_CAP => Register::Cap,
        msr::MTRR_PHYSBASE0..=LAST_RANGE => Register::Range((number - msr::MTRR_PHYSBASE0) as usize),
        msr::MTRR_FIX64K_00000 => Register::Fixed(0),
        msr::MTRR_FIX16K_80000 => Register::Fixed(1),
        msr::MTRR_FIX16K_A0000 => Register::Fixed(2),
        msr::MTRR_FIX4K_C0000..=LAST_FIXED => Register::Fixed(3 + (number - msr::MTRR_FIX4K_C0000) as usize),
        msr::MTRR_DEF_TYPE => Register::Default,
        _ => return None,
    })
}

/// Whether `number` is one of these registers.
pub(crate) const fn is_mtrr(number: u32) -> bool {
    register(number).is_some()
}

const fn is_type(kind: u64) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

impl Mtrrs {
    /// After power-on: everything off, which makes all memory uncacheable.
    #[must_use]
    pub const fn power_on(physical_bits: u8) -> Self {
        Self { default: 0, fixed: [0; FIXED], ranges: [0; 2 * RANGES], physical_bits }
    }

    /// As firmware leaves them: write-back, but for the video hole (uncacheable), the ROM area (write-protected) and
    /// device space from `devices`, a guest-physical address below 4 GiB, up to 4 GiB (uncacheable). 0, or 4 GiB and
    /// above, stands for no device space.
    #[must_use]
    pub fn firmware(physical_bits: u8, devices: u64) -> Self {
        const END: u64 = 1 << 32;
        let mut mtrrs = Self::power_on(physical_bits);
        mtrrs.default = ENABLE | FIXED_ENABLE | WRITE_BACK;
        for (index, register) in mtrrs.fixed.iter_mut().enumerate() {
            let kind = match index {
                0 | 1 => WRITE_BACK,
                2 => UNCACHEABLE,
                _ => WRITE_PROTECTED,
            };
            *register = kind * 0x0101_0101_0101_0101;
        }
        let mut at = devices & !0xfff;
        for pair in mtrrs.ranges.chunks_exact_mut(2) {
            if at == 0 || at >= END {
                break;
            }
            // The largest naturally aligned power of two that fits; up to 4 GiB that is the lowest bit set.
            let size = 1_u64 << at.trailing_zeros();
            if let [base, mask] = pair {
                *base = at | UNCACHEABLE;
                *mask = !(size - 1) & !reserved(physical_bits) | VALID;
            }
            at += size;
        }
        mtrrs
    }

    /// What RDMSR of `number` gives.
    ///
    /// # Errors
    /// A number that is no MTRR.
    pub fn read(&self, number: u32) -> Result<u64, GeneralProtection> {
        let value = match register(number).ok_or(GeneralProtection)? {
            Register::Cap => Some(&CAP),
            Register::Default => Some(&self.default),
            Register::Fixed(index) => self.fixed.get(index),
            Register::Range(index) => self.ranges.get(index),
        };
        value.copied().ok_or(GeneralProtection)
    }

    /// WRMSR of `value` to `number`.
    ///
    /// # Errors
    /// A number that is no MTRR or is read-only; reserved bits; a memory type that there is not.
    pub fn write(&mut self, number: u32, value: u64) -> Result<(), GeneralProtection> {
        let (place, valid) = match register(number).ok_or(GeneralProtection)? {
            Register::Cap => return Err(GeneralProtection),
            Register::Default => {
                let known = 0xff | FIXED_ENABLE | ENABLE;
                (Some(&mut self.default), value & !known == 0 && is_type(value & 0xff))
            }
            Register::Fixed(index) => {
                let types = value.to_le_bytes().iter().all(|&kind| is_type(u64::from(kind)));
                (self.fixed.get_mut(index), types)
            }
            Register::Range(index) => {
                let low = if index % 2 == 0 {
                    value & 0xf00 == 0 && is_type(value & 0xff)
                } else {
                    value & 0x7ff == 0
                };
                (self.ranges.get_mut(index), low && value & reserved(self.physical_bits) == 0)
            }
        };
        match place {
            Some(place) if valid => {
                *place = value;
                Ok(())
            }
            _ => Err(GeneralProtection),
        }
    }
}

/// Bits of a physical address that are reserved.
const fn reserved(physical_bits: u8) -> u64 {
    u64::MAX.unbounded_shl(physical_bits as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn firmware_leaves_them_as_linux_expects() {
        let m = Mtrrs::firmware(40, 0xc000_0000);
        assert_eq!(m.read(0xfe), Ok(0x508));
        assert_eq!(m.read(0x2ff), Ok(0xc06));
        assert_eq!(m.read(0x200), Ok(0xc000_0000));
        assert_eq!(m.read(0x201), Ok(0xff_c000_0800));
        assert_eq!(m.read(0x203), Ok(0));
        assert_eq!(m.read(0x250), Ok(0x0606_0606_0606_0606));
        assert_eq!(m.read(0x259), Ok(0));
        assert_eq!(m.read(0x26f), Ok(0x0505_0505_0505_0505));
        let m = Mtrrs::firmware(40, 0xb000_0000);
        assert_eq!([m.read(0x200), m.read(0x202)], [Ok(0xb000_0000), Ok(0xc000_0000)]);
        assert_eq!([m.read(0x201), m.read(0x203)], [Ok(0xff_f000_0800), Ok(0xff_c000_0800)]);
        assert_eq!(Mtrrs::firmware(40, 0).read(0x201), Ok(0));
        assert_eq!(Mtrrs::power_on(40).read(0x2ff), Ok(0));
    }

    #[test]
    fn bad_values_are_refused() {
        let mut m = Mtrrs::power_on(40);
        let bad = [
            (0xfe, 0x508),
            (0x200, 2),
            (0x200, 0x100),
            (0x200, 1 << 40),
            (0x201, 0x400),
            (0x201, 1 << 40 | 0x800),
            (0x210, 0),
            (0x251, 0),
            (0x25a, 0),
            (0x270, 0),
            (0x250, 0x0700_0000_0000_0000),
            (0x2ff, 0x1000),
            (0x2ff, 7),
        ];
        for (number, value) in bad {
            assert_eq!(m.write(number, value), Err(GeneralProtection), "{number:#x} {value:#x}");
        }
        assert_eq!(m, Mtrrs::power_on(40));
        assert_eq!(m.write(0x20f, 0xff_0000_0800), Ok(()));
        assert_eq!(m.read(0x20f), Ok(0xff_0000_0800));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_read_back(number in 0xfe_u32..0x300, value: u64, bits in 32_u8..=52) {
            let mut m = Mtrrs::firmware(bits, value);
            let before = m.read(number);
            match m.write(number, value) {
                Ok(()) => prop_assert_eq!(m.read(number), Ok(value)),
                Err(GeneralProtection) => prop_assert_eq!(m.read(number), before),
            }
        }

        #[test]
        fn firmware_ranges_meet_4_gib(devices in 0x10_u64..0x1000) {
            // A multiple of 1 MiB has at most 12 bits below 4 GiB; those that need at most 8 ranges are covered.
            let m = Mtrrs::firmware(40, devices << 20);
            let mut at = devices << 20;
            for n in (0..16).step_by(2) {
                let mask = m.read(0x201 + n).unwrap();
                if mask & VALID != 0 {
                    prop_assert_eq!(m.read(0x200 + n), Ok(at));
                    at += (!(mask & !0xfff) & 0xff_ffff_ffff) + 1;
                }
            }
            prop_assert!(at == 1 << 32 || m.read(0x20f).unwrap() & VALID != 0);
        }
    }
}
