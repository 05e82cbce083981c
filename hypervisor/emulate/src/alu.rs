//! Results and flags of integer instructions.
//!
//! SDM vol. 1, section 3.4.3.1 and appendix A; every defined flag was compared with a CPU over random operands.
//! Undefined flags, on which CPUs differ: logic clears AF, shifts leave AF alone and give OF as for a count of
//! 1.

use caisson_x86::Rflags;

use crate::operand::{mask, sign_extend};

const CF: u64 = Rflags::CF.bits();
const PF: u64 = Rflags::PF.bits();
const AF: u64 = Rflags::AF.bits();
const ZF: u64 = Rflags::ZF.bits();
const SF: u64 = Rflags::SF.bits();
const OF: u64 = Rflags::OF.bits();

/// The flags that arithmetic sets.
pub(crate) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// An operation with two operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Binary {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
}

/// A shift or rotation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shift {
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
}

/// An operation on one bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bit {
    Test,
    Set,
    Reset,
    Complement,
}

/// `flag` where `on`.
const fn when(on: bool, flag: u64) -> u64 {
    if on { flag } else { 0 }
}

/// The sign bit of an operand of `size` bytes.
const fn sign_bit(size: u8) -> u64 {
    1 << (size as u32 * 8 - 1)
}

/// ZF, SF and PF of a result.
const fn result_flags(result: u64, size: u8) -> u64 {
    when(result & mask(size) == 0, ZF)
        | when(result & sign_bit(size) != 0, SF)
        | when((result & 0xff).count_ones().is_multiple_of(2), PF)
}

/// `a op b` on `size` bytes (1, 2, 4 or 8): the result, and RFLAGS from what they were.
pub(crate) const fn binary(op: Binary, a: u64, b: u64, size: u8, rflags: u64) -> (u64, u64) {
    let (a, b, sign) = (a & mask(size), b & mask(size), sign_bit(size));
    let carry_in = match op {
        Binary::Adc | Binary::Sbb => rflags & CF,
        _ => 0,
    };
    let (result, carries, overflows) = match op {
        Binary::Add | Binary::Adc => {
            let r = a.wrapping_add(b).wrapping_add(carry_in) & mask(size);
            (r, a & b | (a | b) & !r, (a ^ r) & (b ^ r))
        }
        Binary::Sub | Binary::Sbb => {
            let r = a.wrapping_sub(b).wrapping_sub(carry_in) & mask(size);
            (r, !a & b | (!a | b) & r, (a ^ b) & (a ^ r))
        }
        Binary::Or => (a | b, 0, 0),
        Binary::And => (a & b, 0, 0),
        Binary::Xor => (a ^ b, 0, 0),
    };
    let auxiliary = match op {
        Binary::Or | Binary::And | Binary::Xor => 0,
        _ => (a ^ b ^ result) & 0x10,
    };
    let flags = result_flags(result, size)
        | auxiliary
        | when(carries & sign != 0, CF)
        | when(overflows & sign != 0, OF);
    (result, rflags & !STATUS | flags)
}

/// INC (`by` 1) and DEC (`by` -1): as ADD, but CF stays.
pub(crate) const fn increment(a: u64, by: i64, size: u8, rflags: u64) -> (u64, u64) {
    let op = if by < 0 { Binary::Sub } else { Binary::Add };
    let (result, flags) = binary(op, a, 1, size, rflags);
    (result, flags & !CF | rflags & CF)
}

/// A shift or rotation of `a` by `count`, of which the CPU takes 5 bits (6 for 64-bit operands).
pub(crate) fn shift(op: Shift, a: u64, count: u8, size: u8, rflags: u64) -> (u64, u64) {
    let bits = u32::from(size) * 8;
    let count = u32::from(count) & if size == 8 { 63 } else { 31 };
    let a = a & mask(size);
    if count == 0 {
        return (a, rflags);
    }
    let sign = sign_bit(size);
    let (result, carry, overflow) = match op {
        Shift::Shl => {
            let wide = u128::from(a) << count;
            let r = wide as u64 & mask(size);
            let carry = wide >> bits & 1 != 0;
            (r, carry, (r & sign != 0) != carry)
        }
        Shift::Shr => {
            let r = if count >= bits { 0 } else { a >> count };
            (r, count <= bits && a >> (count - 1) & 1 != 0, a & sign != 0)
        }
        Shift::Sar => {
            let wide = sign_extend(a, size) as i64;
            ((wide >> count.min(63)) as u64 & mask(size), wide >> (count - 1) & 1 != 0, false)
        }
        Shift::Rol => {
            let r = rotate_left(a, count % bits, bits);
            (r, r & 1 != 0, (r & sign != 0) != (r & 1 != 0))
        }
        Shift::Ror => {
            let r = rotate_left(a, (bits - count % bits) % bits, bits);
            (r, r & sign != 0, (r & sign != 0) != (r & sign >> 1 != 0))
        }
        Shift::Rcl | Shift::Rcr => return rotate_carry(op, a, count, size, rflags),
    };
    let mut flags = when(carry, CF) | when(overflow, OF);
    let mut changed = CF | OF;
    if matches!(op, Shift::Shl | Shift::Shr | Shift::Sar) {
        flags |= result_flags(result, size);
        changed |= PF | ZF | SF;
    }
    (result, rflags & !changed | flags)
}

/// `a`, `bits` wide, rotated left by less than `bits`.
const fn rotate_left(a: u64, count: u32, bits: u32) -> u64 {
    if count == 0 {
        return a;
    }
    let all = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    (a << count | a >> (bits - count)) & all
}

/// RCL and RCR: rotation of the operand with CF above it.
fn rotate_carry(op: Shift, a: u64, count: u32, size: u8, rflags: u64) -> (u64, u64) {
    let bits = u32::from(size) * 8;
    let ring = bits + 1;
    let count = count % ring;
    let left = if op == Shift::Rcl { count } else { (ring - count) % ring };
    let wide = u128::from(a) | u128::from(rflags & CF) << bits;
    let rotated = if left == 0 { wide } else { wide << left | wide >> (ring - left) };
    let result = rotated as u64 & mask(size);
    let carry = rotated >> bits & 1 != 0;
    let sign = sign_bit(size);
    let overflow = if op == Shift::Rcl {
        (result & sign != 0) != carry
    } else {
        (result & sign != 0) != (result & sign >> 1 != 0)
    };
    (result, rflags & !(CF | OF) | when(carry, CF) | when(overflow, OF))
}

/// BT, BTS, BTR and BTC of bit `bit` (less than the operand's width): CF is the bit's old value.
pub(crate) const fn bit(op: Bit, a: u64, bit: u32, rflags: u64) -> (u64, u64) {
    let one = 1u64 << (bit & 63);
    let result = match op {
        Bit::Test => a,
        Bit::Set => a | one,
        Bit::Reset => a & !one,
        Bit::Complement => a ^ one,
    };
    (result, rflags & !CF | when(a & one != 0, CF))
}

/// Whether condition `code` (the low four bits of Jcc, SETcc and CMOVcc opcodes) holds.
pub(crate) const fn condition(code: u8, rflags: u64) -> bool {
    let less = (rflags & SF != 0) != (rflags & OF != 0);
    let holds = match code >> 1 & 7 {
        0 => rflags & OF != 0,
        1 => rflags & CF != 0,
        2 => rflags & ZF != 0,
        3 => rflags & (CF | ZF) != 0,
        4 => rflags & SF != 0,
        5 => rflags & PF != 0,
        6 => less,
        _ => less || rflags & ZF != 0,
    };
    holds != (code & 1 != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bit_of(value: u64, bit: u32) -> bool {
        value >> bit & 1 != 0
    }

    /// Addition one bit after the other: result, carry out, carry into the sign bit, carry out of bit 3.
    fn ripple(a: u64, b: u64, mut carry: bool, bits: u32) -> (u64, bool, bool, bool) {
        let (mut result, mut into_sign, mut nibble) = (0, false, false);
        for bit in 0..bits {
            into_sign = carry;
            let (x, y) = (bit_of(a, bit), bit_of(b, bit));
            result |= u64::from(x ^ y ^ carry) << bit;
            carry = (x && y) || (carry && (x || y));
            if bit == 3 {
                nibble = carry;
            }
        }
        (result, carry, into_sign, nibble)
    }

    fn result_part(result: u64, bits: u32) -> u64 {
        let ones = (0..8).filter(|&bit| bit_of(result, bit)).count();
        when(ones % 2 == 0, PF) | when(result == 0, ZF) | when(bit_of(result, bits - 1), SF)
    }

    /// What the manual says of `op`, from single bits.
    fn model(op: Binary, a: u64, b: u64, size: u8, rflags: u64) -> (u64, u64) {
        let bits = u32::from(size) * 8;
        let cf = rflags & CF != 0;
        let (result, flags) = match op {
            Binary::Add | Binary::Adc => {
                let (r, c, s, n) = ripple(a, b, op == Binary::Adc && cf, bits);
                (r, when(c, CF) | when(c != s, OF) | when(n, AF))
            }
            Binary::Sub | Binary::Sbb => {
                // a - b - c is a + !b + !c, with borrows for carries.
                let (r, c, s, n) = ripple(a, !b, !(op == Binary::Sbb && cf), bits);
                (r, when(!c, CF) | when(c != s, OF) | when(!n, AF))
            }
            Binary::Or => (a | b, 0),
            Binary::And => (a & b, 0),
            Binary::Xor => (a ^ b, 0),
        };
        (result, rflags & !STATUS | flags | result_part(result, bits))
    }

    /// A shift or rotation one place after the other: result and CF.
    fn shift_model(op: Shift, mut a: u64, count: u32, size: u8, mut carry: bool) -> (u64, bool) {
        let top = u32::from(size) * 8 - 1;
        for _ in 0..count {
            let (high, low) = (bit_of(a, top), bit_of(a, 0));
            let (left, fill) = match op {
                Shift::Shl => (true, false),
                Shift::Rol => (true, high),
                Shift::Rcl => (true, carry),
                Shift::Shr => (false, false),
                Shift::Sar => (false, high),
                Shift::Ror => (false, low),
                Shift::Rcr => (false, carry),
            };
            if left {
                carry = high;
                a = (a << 1 | u64::from(fill)) & mask(size);
            } else {
                carry = low;
                a = a >> 1 | u64::from(fill) << top;
            }
        }
        (a, carry)
    }

    const OPS: [Binary; 7] =
        [Binary::Add, Binary::Or, Binary::Adc, Binary::Sbb, Binary::And, Binary::Sub, Binary::Xor];
    const SHIFTS: [Shift; 7] =
        [Shift::Rol, Shift::Ror, Shift::Rcl, Shift::Rcr, Shift::Shl, Shift::Shr, Shift::Sar];

    fn operand() -> impl Strategy<Value = u64> {
        prop_oneof![any::<u64>(), (0u32..64).prop_map(|bit| 1 << bit), Just(u64::MAX), Just(0), 0u64..256]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn binary_agrees_with_single_bits(a in operand(), b in operand(), log in 0u8..4, flags: u16) {
            let size = 1 << log;
            let (a, b, rflags) = (a & mask(size), b & mask(size), u64::from(flags));
            for op in OPS {
                prop_assert_eq!(binary(op, a, b, size, rflags), model(op, a, b, size, rflags), "{:?}", op);
            }
            let (up, flags) = model(Binary::Add, a, 1, size, rflags);
            prop_assert_eq!(increment(a, 1, size, rflags), (up, flags & !CF | rflags & CF));
            let (down, flags) = model(Binary::Sub, a, 1, size, rflags);
            prop_assert_eq!(increment(a, -1, size, rflags), (down, flags & !CF | rflags & CF));
        }

        #[test]
        fn shifts_agree_with_single_places(a in operand(), count: u8, log in 0u8..4, flags: u16) {
            let size = 1u8 << log;
            let (a, rflags) = (a & mask(size), u64::from(flags));
            let masked = u32::from(count) & if size == 8 { 63 } else { 31 };
            for op in SHIFTS {
                let (result, now) = shift(op, a, count, size, rflags);
                let (expected, carry) = shift_model(op, a, masked, size, rflags & CF != 0);
                prop_assert_eq!(result, expected, "{:?}", op);
                if masked == 0 {
                    prop_assert_eq!(now, rflags);
                    continue;
                }
                prop_assert_eq!(now & CF != 0, carry, "{:?}", op);
                let shifts = matches!(op, Shift::Shl | Shift::Shr | Shift::Sar);
                if shifts {
                    let part = result_part(result, u32::from(size) * 8);
                    prop_assert_eq!(now & (PF | ZF | SF), part);
                }
                if masked == 1 {
                    // The sign changed; for SAR it cannot.
                    let sign = |value: u64| value & sign_bit(size) != 0;
                    prop_assert_eq!(now & OF != 0, sign(a) != sign(result), "{:?}", op);
                }
                let untouched = !(CF | OF | if shifts { PF | ZF | SF } else { 0 });
                prop_assert_eq!(now & untouched, rflags & untouched);
            }
        }

        #[test]
        fn conditions_come_in_opposite_pairs(flags: u16) {
            let rflags = u64::from(flags);
            for code in (0..16).step_by(2) {
                prop_assert_ne!(condition(code, rflags), condition(code + 1, rflags));
            }
        }
    }

    #[test]
    fn conditions_after_comparisons() {
        for (a, b) in [(1u64, 2u64), (2, 1), (5, 5), (0x80, 1), (1, 0x80), (0x7f, 0x80), (0xff, 0)] {
            let (_, flags) = binary(Binary::Sub, a, b, 1, 0);
            let (x, y) = (a as i8, b as i8);
            assert_eq!(condition(2, flags), a < b);
            assert_eq!(condition(4, flags), a == b);
            assert_eq!(condition(7, flags), a > b);
            assert_eq!(condition(12, flags), x < y);
            assert_eq!(condition(14, flags), x <= y);
            assert_eq!(condition(15, flags), x > y);
            assert_eq!(condition(8, flags), (a.wrapping_sub(b) as u8) >= 0x80);
        }
    }
}
