//! The page walk: hand-made cases from the manual, and a comparison with a second, plainer description of paging.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use caisson_emulate::testing::FakeVcpu;
use caisson_emulate::{Access, AccessKind, PagingFeatures, fetch_translate, translate};
use caisson_types::{Gpa, GuestMemory, Gva, SliceMemory};
use caisson_x86::exception::page_fault as code;
use caisson_x86::{Cr0, Cr4, Efer, Exception, Rflags};
use common::FEATURES;
use proptest::prelude::*;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;

const READ: Access = Access { kind: AccessKind::Read, user: false, implicit: false };
const WRITE: Access = Access { kind: AccessKind::Write, user: false, implicit: false };
const USER_READ: Access = Access { kind: AccessKind::Read, user: true, implicit: false };

fn put64(memory: &SliceMemory<'_>, at: u64, value: u64) {
    memory.write_u64(Gpa::new(at), value).unwrap();
}

fn fault(error_code: u32, address: u64) -> Result<Gpa, Exception> {
    Err(Exception::page_fault(error_code, address))
}

#[test]
fn no_paging_is_32_bits() {
    let mut ram = [0; 8];
    let memory = SliceMemory::new(&mut ram);
    let vcpu = FakeVcpu::real();
    let linear = Gva::new(0x1_2345_6789);
    assert_eq!(translate(&vcpu, &memory, linear, WRITE, &FEATURES), Ok(Gpa::new(0x2345_6789)));
    assert_eq!(fetch_translate(&vcpu, &memory, linear), Some(Gpa::new(0x2345_6789)));
}

#[test]
fn four_levels_set_their_bits_only_when_allowed() {
    let mut ram = vec![0; 0x6000];
    let memory = SliceMemory::new(&mut ram);
    let linear = 0xffff_8000_0040_3123;
    put64(&memory, 0x1000 + 256 * 8, 0x2000 | P | W | U);
    put64(&memory, 0x2000, 0x3000 | P | W | U);
    put64(&memory, 0x3000 + 2 * 8, 0x4000 | P | W | U);
    put64(&memory, 0x4000 + 3 * 8, 0x0000_7654_3210_0000 & 0xffff_ffff_f000 | P);
    let vcpu = FakeVcpu::long(0x1000);
    let go = |access| translate(&vcpu, &memory, Gva::new(linear), access, &FEATURES);
    // Read-only, supervisor, with WP.
    assert_eq!(go(WRITE), fault(code::PRESENT | code::WRITE, linear));
    assert_eq!(go(USER_READ), fault(code::PRESENT | code::USER, linear));
    assert_eq!(memory.read_u64(Gpa::new(0x2000)), Ok(0x3000 | P | W | U));
    assert_eq!(go(READ), Ok(Gpa::new(0x7654_3210_0123)));
    assert_eq!(memory.read_u64(Gpa::new(0x2000)), Ok(0x3000 | P | W | U | A));
    assert_eq!(memory.read_u64(Gpa::new(0x4018)), Ok(0x7654_3210_0000 | P | A));
    // A write marks the page dirty, and only the page.
    put64(&memory, 0x4018, 0x5000 | P | W);
    assert_eq!(go(WRITE), Ok(Gpa::new(0x5123)));
    assert_eq!(memory.read_u64(Gpa::new(0x4018)), Ok(0x5000 | P | W | A | D));
    assert_eq!(memory.read_u64(Gpa::new(0x3010)), Ok(0x4000 | P | W | U | A));
    assert_eq!(fetch_translate(&vcpu, &memory, Gva::new(linear)), Some(Gpa::new(0x5123)));
}

#[test]
fn five_levels_and_gigabyte_pages() {
    let mut ram = vec![0; 0x4000];
    let memory = SliceMemory::new(&mut ram);
    let linear = 0x0012_3456_789a_bcde;
    put64(&memory, 0x1000 + (linear >> 48 & 511) * 8, 0x2000 | P | W);
    put64(&memory, 0x2000 + (linear >> 39 & 511) * 8, 0x3000 | P | W);
    put64(&memory, 0x3000 + (linear >> 30 & 511) * 8, 0x40_0000_0000 | PS | P | W);
    let mut vcpu = FakeVcpu::long(0x1000);
    vcpu.cr4 |= Cr4::LA57.bits();
    let expected = Gpa::new(0x40_0000_0000 | linear & 0x3fff_ffff);
    assert_eq!(translate(&vcpu, &memory, Gva::new(linear), WRITE, &FEATURES), Ok(expected));
    assert_eq!(fetch_translate(&vcpu, &memory, Gva::new(linear)), Some(expected));
    let without = PagingFeatures { gigabyte_pages: false, ..FEATURES };
    let reserved = fault(code::PRESENT | code::RESERVED, linear);
    assert_eq!(translate(&vcpu, &memory, Gva::new(linear), READ, &without), reserved);
}

#[test]
fn pse36_reaches_40_bits() {
    let mut ram = vec![0; 0x2000];
    let memory = SliceMemory::new(&mut ram);
    let mut vcpu = FakeVcpu::protected();
    vcpu.cr0 |= Cr0::PG.bits();
    vcpu.cr4 = Cr4::PSE.bits();
    vcpu.cr3 = 0x1000;
    memory.write_u32(Gpa::new(0x1000 + 3 * 4), 0x0080_0000 | 0xab << 13 | (PS | P) as u32).unwrap();
    let linear = Gva::new(3 << 22 | 0x12_3456);
    let expected = Gpa::new(0xab_0092_3456);
    assert_eq!(translate(&vcpu, &memory, linear, READ, &FEATURES), Ok(expected));
    assert_eq!(fetch_translate(&vcpu, &memory, linear), Some(expected));
    // 36 physical bits leave only the low four of the eight.
    let narrow = PagingFeatures { physical_bits: 36, ..FEATURES };
    let reserved = fault(code::PRESENT | code::RESERVED, linear.as_u64());
    assert_eq!(translate(&vcpu, &memory, linear, READ, &narrow), reserved);
    // Without PSE the bit is ignored, and the entry points to a table, which is not RAM here and reads all ones.
    vcpu.cr4 = 0;
    assert_eq!(
        translate(&vcpu, &memory, linear, READ, &FEATURES),
        Ok(Gpa::new(0xffff_f000 | linear.as_u64() & 0xfff))
    );
    assert_eq!(fetch_translate(&vcpu, &memory, linear), None);
}

#[test]
fn protection_keys() {
    let mut ram = vec![0; 0x3000];
    let memory = SliceMemory::new(&mut ram);
    put64(&memory, 0x1000, 0x2000 | P | W | U);
    put64(&memory, 0x2000, 0x8000_0000 | 5 << 59 | PS | P | W | U);
    let mut vcpu = FakeVcpu::long(0x1000);
    vcpu.cr4 |= Cr4::PKE.bits();
    let go = |vcpu: &FakeVcpu, access, pkru| {
        translate(vcpu, &memory, Gva::new(0x77), access, &PagingFeatures { pkru, ..FEATURES })
    };
    let allowed = Ok(Gpa::new(0x8000_0077));
    assert_eq!(go(&vcpu, READ, !(3 << 10)), allowed);
    assert_eq!(go(&vcpu, READ, 1 << 10), fault(code::PRESENT | code::KEY, 0x77));
    assert_eq!(go(&vcpu, WRITE, 2 << 10), fault(code::PRESENT | code::WRITE | code::KEY, 0x77));
    assert_eq!(go(&vcpu, READ, 2 << 10), allowed);
    vcpu.cr0 &= !Cr0::WP.bits();
    assert_eq!(go(&vcpu, WRITE, 2 << 10), allowed);
    vcpu.cr4 &= !Cr4::PKE.bits();
    assert_eq!(go(&vcpu, WRITE, u32::MAX), allowed);
}

/// One paging mode of the model: how many levels, bits of an index, and which level may map a page.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Legacy,
    Pae,
    Four,
    Five,
}

/// A walk as proptest draws it: a chain of entries, and the circumstances.
#[derive(Clone, Debug)]
struct Case {
    mode: Mode,
    /// Flags and, for the one that maps the page, the address; from the root.
    entries: Vec<u64>,
    linear: u64,
    wp: bool,
    pse: bool,
    smep: bool,
    smap: bool,
    nxe: bool,
    ac: bool,
    pke: bool,
    pkru: u32,
    gigabyte_pages: bool,
    physical_bits: u8,
    access: Access,
}

fn entry() -> impl Strategy<Value = u64> {
    let often = |bit: u64| prop_oneof![7 => Just(bit), 1 => Just(0)];
    let half = |bit: u64| prop_oneof![Just(bit), Just(0)];
    let seldom = |bits: BoxedStrategy<u64>| prop_oneof![12 => Just(0), 1 => bits];
    (
        (often(P), often(W), often(U), half(A), half(D), half(PS)),
        seldom(Just(NX).boxed()),
        seldom((12u32..63).prop_map(|bit| 1 << bit).boxed()),
        any::<u64>().prop_map(|bits| bits & 0x0000_000f_ffe0_0e18),
        (0u64..16).prop_map(|key| key << 59),
    )
        .prop_map(|((p, w, u, a, d, ps), nx, odd, rest, key)| p | w | u | a | d | ps | nx | odd | rest | key)
}

fn case() -> impl Strategy<Value = Case> {
    let mode = prop_oneof![Just(Mode::Legacy), Just(Mode::Pae), Just(Mode::Four), Just(Mode::Five)];
    let kind = prop_oneof![Just(AccessKind::Read), Just(AccessKind::Write), Just(AccessKind::Fetch)];
    (
        (mode, prop::collection::vec(entry(), 5), any::<u64>(), any::<u32>(), 32u8..=52),
        any::<[bool; 10]>(),
        kind,
    )
        .prop_map(|((mode, mut entries, linear, pkru, physical_bits), b, kind)| {
            entries.truncate(match mode {
                Mode::Legacy => 2,
                Mode::Pae => 3,
                Mode::Four => 4,
                Mode::Five => 5,
            });
            let linear = match mode {
                Mode::Legacy | Mode::Pae => linear & 0xffff_ffff,
                Mode::Four => ((linear << 16) as i64 >> 16) as u64,
                Mode::Five => ((linear << 7) as i64 >> 7) as u64,
            };
            Case {
                mode,
                entries,
                linear,
                wp: b[0],
                pse: b[1],
                smep: b[2],
                smap: b[3],
                nxe: b[4],
                ac: b[5],
                pke: b[6],
                pkru,
                gigabyte_pages: b[7],
                physical_bits,
                access: Access { kind, user: b[8], implicit: b[9] && !b[8] },
            }
        })
}

impl Case {
    fn shifts(&self) -> &'static [u32] {
        match self.mode {
            Mode::Legacy => &[22, 12],
            Mode::Pae => &[30, 21, 12],
            Mode::Four => &[39, 30, 21, 12],
            Mode::Five => &[48, 39, 30, 21, 12],
        }
    }

    fn long(&self) -> bool {
        matches!(self.mode, Mode::Four | Mode::Five)
    }

    /// Whether the entry of `level` maps a page, as far as this CPU has such pages.
    fn maps(&self, level: usize) -> bool {
        let large = self.entries[level] & PS != 0;
        match self.shifts()[level] {
            12 => true,
            21 => large,
            22 => large && self.pse,
            30 => large && self.long() && self.gigabyte_pages,
            _ => false,
        }
    }

    /// Levels that a walk would use if all were present.
    fn used(&self) -> usize {
        (0..self.entries.len()).find(|&level| self.maps(level)).unwrap() + 1
    }

    /// The entry as it stands in memory: what does not map a page points to the next table.
    fn value(&self, level: usize) -> u64 {
        let value = self.entries[level];
        let next = 0x1000 * (level as u64 + 2);
        match (self.mode, self.maps(level)) {
            (Mode::Legacy, true) => value & 0xffff_ffff,
            (Mode::Legacy, false) => value & 0xfff | next,
            (Mode::Pae, false) if level == 0 => {
                // Mostly a good pointer: it has no rights.
                let flags = if value & D != 0 { P } else { value & (P | W | U | A) };
                value & 0xfff0_0000_0000_0000 & !NX & !(0xf << 59) | flags | next
            }
            (_, true) => value,
            // Address bits beyond the physical ones stay: they are reserved.
            (_, false) => value & (0xfff0_0000_0000_0fff | !((1 << self.physical_bits) - 1)) | next,
        }
    }

    fn slot(&self, level: usize) -> u64 {
        let table = 0x1000 * (level as u64 + 1);
        let shift = self.shifts()[level];
        match self.mode {
            Mode::Legacy => table + (self.linear >> shift & 0x3ff) * 4,
            Mode::Pae if level == 0 => table + (self.linear >> 30 & 3) * 8,
            _ => table + (self.linear >> shift & 0x1ff) * 8,
        }
    }

    /// Whether some bit that must be 0 is not, written down bit by bit.
    fn reserved(&self, level: usize) -> bool {
        let value = self.value(level);
        let shift = self.shifts()[level];
        let set = |bit: u32| value >> bit & 1 != 0;
        let any = |mut bits: core::ops::Range<u32>| bits.any(set);
        let physical = u32::from(self.physical_bits);
        match self.mode {
            Mode::Legacy => {
                self.maps(level) && shift == 22 && (set(21) || any(13 + physical.min(40) - 32..21))
            }
            Mode::Pae if level == 0 => any(1..3) || any(5..9) || any(physical..64),
            _ => {
                let high = any(physical..52) || (set(63) && !self.nxe);
                let pae = self.mode == Mode::Pae && any(52..63);
                let page = self.maps(level) && shift > 12 && any(13..shift);
                let size = set(7) && shift >= 30 && !self.maps(level);
                high || pae || page || size
            }
        }
    }

    /// What the manual says of this access.
    fn expected(&self) -> Result<u64, u32> {
        let nx_on = self.nxe && self.mode != Mode::Legacy;
        let write = self.access.kind == AccessKind::Write;
        let fetch = self.access.kind == AccessKind::Fetch;
        let mut base = 0;
        if write {
            base |= code::WRITE;
        }
        if self.access.user {
            base |= code::USER;
        }
        if fetch && (nx_on || self.smep) {
            base |= code::FETCH;
        }
        let used = self.used();
        for level in 0..used {
            if self.value(level) & P == 0 {
                return Err(base);
            }
            if self.reserved(level) {
                return Err(base | code::PRESENT | code::RESERVED);
            }
        }
        let first = usize::from(self.mode == Mode::Pae);
        let all = |bit: u64| (first..used).all(|level| self.value(level) & bit != 0);
        let user_page = all(U);
        let leaf = self.value(used - 1);
        let nx = nx_on && (first..used).any(|level| self.value(level) & NX != 0);
        let mut ok = if self.access.user {
            user_page && (!write || all(W)) && !(fetch && nx)
        } else if fetch {
            !(nx || (user_page && self.smep))
        } else {
            let smap_ok = !user_page || !self.smap || (self.ac && !self.access.implicit);
            smap_ok && (!write || !self.wp || all(W))
        };
        let mut cause = code::PRESENT;
        if self.long() && self.pke && user_page && !fetch {
            let key = leaf >> 59 & 15;
            let ad = self.pkru >> (2 * key) & 1 != 0;
            let wd = self.pkru >> (2 * key + 1) & 1 != 0;
            if ad || (wd && write && (self.wp || self.access.user)) {
                ok = false;
                cause |= code::KEY;
            }
        }
        if !ok {
            return Err(base | cause);
        }
        let shift = self.shifts()[used - 1];
        let low = (1u64 << shift) - 1;
        let mut page = leaf & 0x000f_ffff_ffff_f000 & !low;
        if shift == 22 {
            page = leaf & 0xffc0_0000 | (leaf >> 13 & 0xff) << 32;
        }
        Ok(page | self.linear & low)
    }

    fn vcpu(&self) -> FakeVcpu {
        let mut vcpu = if self.long() { FakeVcpu::long(0x1000) } else { FakeVcpu::protected() };
        let on = |on: bool, bits: u64| if on { bits } else { 0 };
        vcpu.cr3 = 0x1000;
        vcpu.cr0 = (Cr0::PE | Cr0::PG).bits() | on(self.wp, Cr0::WP.bits());
        vcpu.cr4 = on(self.mode != Mode::Legacy, Cr4::PAE.bits())
            | on(self.mode == Mode::Five, Cr4::LA57.bits())
            | on(self.pse, Cr4::PSE.bits())
            | on(self.smep, Cr4::SMEP.bits())
            | on(self.smap, Cr4::SMAP.bits())
            | on(self.pke, Cr4::PKE.bits());
        vcpu.efer = on(self.long(), (Efer::LMA | Efer::LME).bits()) | on(self.nxe, Efer::NXE.bits());
        vcpu.rflags = 2 | on(self.ac, Rflags::AC.bits());
        vcpu
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(case in case()) {
        let mut ram = vec![0; 0x7000];
        let memory = SliceMemory::new(&mut ram);
        for level in 0..case.entries.len() {
            let slot = Gpa::new(case.slot(level));
            if case.mode == Mode::Legacy {
                memory.write_u32(slot, case.value(level) as u32).unwrap();
            } else {
                memory.write_u64(slot, case.value(level)).unwrap();
            }
        }
        let vcpu = case.vcpu();
        let features = PagingFeatures {
            physical_bits: case.physical_bits,
            gigabyte_pages: case.gigabyte_pages,
            pkru: case.pkru,
        };
        let fast = fetch_translate(&vcpu, &memory, Gva::new(case.linear));
        let result = translate(&vcpu, &memory, Gva::new(case.linear), case.access, &features);
        match case.expected() {
            Ok(gpa) => {
                prop_assert_eq!(result, Ok(Gpa::new(gpa)));
                prop_assert_eq!(fast, Some(Gpa::new(gpa)));
            }
            Err(code) => prop_assert_eq!(result, fault(code, case.linear)),
        }
        // The marks: accessed in every entry used, dirty in the last after a write, and nothing after a fault.
        for level in 0..case.entries.len() {
            let slot = Gpa::new(case.slot(level));
            let pointer = case.mode == Mode::Pae && level == 0;
            let mut marked = case.value(level);
            if result.is_ok() && level < case.used() && !pointer {
                marked |= A;
                if level + 1 == case.used() && case.access.kind == AccessKind::Write {
                    marked |= D;
                }
            }
            let now = if case.mode == Mode::Legacy {
                u64::from(memory.read_u32(slot).unwrap())
            } else {
                memory.read_u64(slot).unwrap()
            };
            prop_assert_eq!(now, marked);
        }
    }
}
