//! Writes to CR0 and CR4 by every instruction, against a small model of the SDM's rules (vol. 2, "MOV: Move to/from Control
//! Registers"; vol. 3, sections 2.5, 4.4.1 and 10.8.5).

use alloc::vec;
use alloc::vec::Vec;

use caisson_hwvirt::{Exit, VcpuState};
use caisson_types::{Gpa, GuestMemory};
use caisson_x86::{Attributes, Gpr, SegmentRegister};
use proptest::prelude::*;

use super::{PROTECTION, with};
use crate::Outcome;
use crate::testing::{CODE, Machine};

/// RAM of a guest that needs code and a table.
const RAM: usize = 0x1_0000;

const PE: u64 = 1;
const ET: u64 = 1 << 4;
const NW: u64 = 1 << 29;
const CD: u64 = 1 << 30;
const PG: u64 = 1 << 31;
const PAE: u64 = 1 << 5;
const PCIDE: u64 = 1 << 17;
const LME: u64 = 1 << 8;
const LMA: u64 = 1 << 10;
/// All that CR0 has.
const CR0: u64 = 0xe005_003f;
/// PG, CD, NW.
const CR0_LOADS: u64 = 7 << 29;
/// PSE, PAE, PGE, SMEP.
const CR4_LOADS: u64 = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 20;

/// What the rules look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cpu {
    cr0: u64,
    cr4: u64,
    efer: u64,
    cr3: u64,
    long_code: bool,
    task_16: bool,
    /// The table at CR3; ones where there is no memory.
    table: [u64; 4],
    loaded: Option<[u64; 4]>,
}

#[derive(Clone, Copy, Debug)]
enum Write {
    Cr0(u64),
    Cr4(u64),
    Lmsw(u16),
    Clts,
}

impl Cpu {
    fn after(self, write: Write, allowed: u64) -> Option<Self> {
        match write {
            Write::Cr0(value) => self.cr0(value),
            // It can set PE, and not clear it.
            Write::Lmsw(word) => self.cr0(self.cr0 & !0xe | u64::from(word) & 0xf),
            Write::Clts => self.cr0(self.cr0 & !8),
            Write::Cr4(value) => self.cr4(value, allowed),
        }
    }

    fn cr0(self, value: u64) -> Option<Self> {
        let starts = value & PG != 0 && self.cr0 & PG == 0;
        let ends = value & PG == 0 && self.cr0 & PG != 0;
        let faults = [
            value >> 32 != 0,
            value & PG != 0 && value & PE == 0,
            value & NW != 0 && value & CD == 0,
            starts && self.efer & LME != 0 && (self.cr4 & PAE == 0 || self.long_code || self.task_16),
            ends && self.efer & LMA != 0 && self.long_code,
            ends && self.cr4 & PCIDE != 0,
        ];
        if faults.contains(&true) {
            return None;
        }
        let lma = if value & PG != 0 && self.efer & LME != 0 { LMA } else { 0 };
        let new = Self { cr0: value & CR0 | ET, efer: self.efer & !LMA | lma, ..self };
        new.with_pointers((self.cr0 ^ new.cr0) & CR0_LOADS != 0)
    }

    fn cr4(self, value: u64, allowed: u64) -> Option<Self> {
        let changed = self.cr4 ^ value;
        let faults = [
            value & !allowed != 0,
            self.efer & LMA != 0 && value & PAE == 0,
            changed & value & PCIDE != 0 && (self.efer & LMA == 0 || self.cr3 & 0xfff != 0),
        ];
        if faults.contains(&true) {
            return None;
        }
        Self { cr4: value, ..self }.with_pointers(changed & CR4_LOADS != 0)
    }

    fn with_pointers(self, loads: bool) -> Option<Self> {
        let pae = self.cr0 & PG != 0 && self.cr4 & PAE != 0 && self.efer & LMA == 0;
        if !loads || !pae {
            return Some(self);
        }
        // Bits 2:1, 8:5, and those above 40 physical-address bits.
        let bad = |entry: u64| entry & 1 != 0 && entry & (0x1e6 | !0 << 40) != 0;
        let any = self.table.iter().any(|&entry| bad(entry));
        (!any).then_some(Self { loaded: Some(self.table), ..self })
    }

    fn put(&self, m: &mut Machine<'_>) {
        if self.cr3 < RAM as u64 {
            let at = Gpa::new(self.cr3 & !0x1f);
            let bytes: Vec<u8> = self.table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            assert!(m.domain.memory.write(at, &bytes).is_ok());
        }
        let hw = m.hw();
        hw.set_cr0(self.cr0);
        hw.set_cr3(self.cr3);
        hw.set_cr4(self.cr4);
        hw.set_efer(self.efer);
        let mut segment = hw.segment(SegmentRegister::Cs);
        segment.attributes = if self.long_code { Attributes::CODE64 } else { Attributes::CODE32 };
        hw.set_segment(SegmentRegister::Cs, segment);
        // A busy 16-bit TSS is of type 3.
        let busy = Attributes::TSS_BUSY;
        segment.attributes = if self.task_16 { Attributes(busy.0 & !8) } else { busy };
        hw.set_segment(SegmentRegister::Tr, segment);
    }

    fn of(&self, m: &mut Machine<'_>) -> Self {
        let hw = m.hw();
        Self { cr0: hw.cr0(), cr4: hw.cr4(), efer: hw.efer(), cr3: hw.cr3(), loaded: hw.pointers, ..*self }
    }
}

/// Executes the instruction as an exit; `true` where it raised #GP.
fn execute(m: &mut Machine<'_>, write: Write) -> bool {
    m.hw().set_rip(CODE);
    let (code, value): (&[u8], u64) = match write {
        Write::Cr0(value) => (&[0x0f, 0x22, 0xc3], value),
        Write::Cr4(value) => (&[0x0f, 0x22, 0xe3], value),
        Write::Lmsw(word) => (&[0x0f, 0x01, 0xf3], u64::from(word) | 0xdead_0000),
        Write::Clts => (&[0x0f, 0x06], 0),
    };
    m.hw().set_gpr(Gpr::Rbx, value);
    m.code(0, code);
    let exit = match write {
        Write::Cr0(_) => Exit::WriteCr0(Some(Gpr::Rbx)),
        Write::Cr4(_) => Exit::WriteCr4(Some(Gpr::Rbx)),
        Write::Lmsw(_) | Write::Clts => Exit::WriteCr0(None),
    };
    m.hw().ends_after(code.len() as u64);
    assert_eq!(m.answer(0, exit), Outcome::Resume);
    let raised = m.hw().injected.take();
    assert!(raised.is_none() || raised == PROTECTION, "{raised:?}");
    let end = if raised.is_some() { CODE } else { CODE + code.len() as u64 };
    assert_eq!(m.hw().rip(), end);
    raised.is_some()
}

/// An entry of the pointer table: mostly good.
fn pointer() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u64..1 << 28).prop_map(|frame| frame << 12 | 0xe19),
        1 => any::<u64>().prop_map(|word| word & !1),
        1 => (1u32..64).prop_map(|bit| 0x1001 | 1 << bit),
    ]
}

/// A state that a guest can be in, with some of `cr4` set.
fn cpu() -> impl Strategy<Value = (Cpu, u64)> {
    let bits = (any::<u64>(), any::<u64>(), any::<[bool; 4]>());
    (0u8..6, bits, prop::array::uniform4(pointer()), 0u64..0x1000).prop_map(|(mode, bits, table, low)| {
        let (cr0, cr4, [code, task_16, lme, outside]) = bits;
        // Real and protected mode; 32-bit, PAE, compatibility and 64-bit paging.
        let (fixed, pae, long) = match mode {
            0 => (0, None, None),
            1 => (PE, None, None),
            2 => (PE | PG, Some(false), Some(false)),
            3 => (PE | PG, Some(true), Some(false)),
            _ => (PE | PG, Some(true), Some(true)),
        };
        let long_code = match mode {
            0..4 => code && mode < 2,
            4 => false,
            _ => true,
        };
        let mut cr0 = cr0 & CR0 & !(PE | PG) | fixed | ET;
        if cr0 & CD == 0 {
            cr0 &= !NW;
        }
        let mut cr4 = pae.map_or(cr4, |pae| if pae { cr4 | PAE } else { cr4 & !PAE });
        if long != Some(true) {
            cr4 &= !PCIDE;
        }
        let efer = if long.unwrap_or(lme) { LME } else { 0 } | if long == Some(true) { LMA } else { 0 };
        let cr3 = if outside { 0xd000_0000 | low } else { 0x8000 | low };
        let table = if outside { [u64::MAX; 4] } else { table };
        (Cpu { cr0, cr4: 0, efer, cr3, long_code, task_16, table, loaded: None }, cr4)
    })
}

/// A write that changes a few bits, or anything.
fn write() -> impl Strategy<Value = (Write, bool)> {
    let few = prop::collection::vec(0u32..64, 0..4)
        .prop_map(|bits| bits.into_iter().fold(0, |word, bit| word ^ 1u64 << bit));
    let known =
        prop::sample::subsequence(vec![PE, 1 << 5, 1 << 16, NW, CD, PG, PG | PE, PAE, 1 << 7, 1 << 6], 0..4)
            .prop_map(|bits| bits.into_iter().fold(0, |word, bit| word ^ bit));
    let value = prop_oneof![known, few, any::<u64>()];
    (value, 0u8..8, any::<bool>()).prop_map(|(value, kind, near)| {
        let write = match kind {
            0 => Write::Lmsw(value as u16),
            1 => Write::Clts,
            2..5 => Write::Cr4(value),
            _ => Write::Cr0(value),
        };
        (write, near)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn writes_do_what_the_manual_says((cpu, cr4) in cpu(), (write, near) in write()) {
        let mut memory = vec![0; RAM];
        let m = &mut Machine::new(&mut memory, 1);
        let allowed = m.domain.cpuid.limits().cr4;
        let cpu = Cpu { cr4: cr4 & allowed, ..cpu };
        let write = match write {
            Write::Cr0(value) if near => Write::Cr0(cpu.cr0 ^ value),
            Write::Cr4(value) if near => Write::Cr4(cpu.cr4 ^ value),
            // These are read out of memory, and the test's guests have no page tables.
            Write::Lmsw(_) | Write::Clts if cpu.cr0 & PG != 0 => Write::Cr0(cpu.cr0 ^ CD),
            other => other,
        };
        cpu.put(m);
        // Outside of 64-bit code the operand has 32 bits.
        let narrow = cpu.efer & LMA == 0 || !cpu.long_code;
        let seen = match write {
            Write::Cr0(value) if narrow => Write::Cr0(value & 0xffff_ffff),
            Write::Cr4(value) if narrow => Write::Cr4(value & 0xffff_ffff),
            other => other,
        };
        let expected = cpu.after(seen, allowed);
        let faulted = execute(m, write);
        prop_assert_eq!(faulted, expected.is_none(), "{:x?} {:x?}", cpu, write);
        prop_assert_eq!(cpu.of(m), expected.unwrap_or(cpu), "{:x?} {:x?}", cpu, write);
    }
}

/// A guest with PAE paging, its caches off.
const PAE_PAGING: Cpu = Cpu {
    cr0: PG | PE | CD | ET,
    cr4: PAE,
    efer: 0,
    cr3: 0x8018,
    long_code: false,
    task_16: true,
    table: [0x1001, 0, 0x2e19, 0xfff_ffff_fff0],
    loaded: None,
};

#[test]
fn caches_and_global_pages_load_the_pointers_and_write_protection_does_not() {
    let loads = [(Write::Cr0(PG | PE), true), (Write::Cr0(PG | PE | CD | 1 << 16), false)];
    let loads =
        loads.into_iter().chain([(Write::Cr4(PAE | 1 << 7), true), (Write::Cr4(PAE | 1 << 9), false)]);
    for (write, loads) in loads {
        with(1, |m| {
            PAE_PAGING.put(m);
            assert!(!execute(m, write), "{write:x?}");
            assert_eq!(m.hw().pointers, loads.then_some(PAE_PAGING.table), "{write:x?}");
        });
    }
}

#[test]
fn a_bad_pointer_leaves_everything_as_it_was() {
    for entry in [0x1003, 0x1021, 0x1101, 1 << 40 | 1, 1 << 63 | 1] {
        let cpu = Cpu { table: [0x1001, 0x2001, entry, 0], ..PAE_PAGING };
        for write in [Write::Cr0(PG | PE), Write::Cr4(PAE | 1 << 7)] {
            with(1, |m| {
                cpu.put(m);
                assert!(execute(m, write), "{entry:#x} {write:x?}");
                assert_eq!(cpu.of(m), cpu, "{entry:#x} {write:x?}");
            });
        }
    }
}

#[test]
fn long_mode_wants_a_task_of_32_bits() {
    let cpu = Cpu { cr0: PE | CD | ET, efer: LME, ..PAE_PAGING };
    for (task_16, faults) in [(true, true), (false, false)] {
        with(1, |m| {
            Cpu { task_16, ..cpu }.put(m);
            assert_eq!(execute(m, Write::Cr0(PE | PG)), faults);
            assert_eq!(m.hw().efer(), if faults { LME } else { LME | LMA });
            assert_eq!(m.hw().pointers, None);
        });
    }
}
