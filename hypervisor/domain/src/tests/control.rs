//! Writes to CR0, CR4 and XCR0.

use caisson_hwvirt::{Exit, VcpuState};
use caisson_x86::{Attributes, Cr0, Cr4, Efer, Gpr, SegmentRegister};

use super::{PROTECTION, UNDEFINED, with};
use crate::Outcome;
use crate::testing::{CODE, Machine};

/// MOV to CR4 from RBX, with and without the hardware's help.
fn cr4(m: &mut Machine<'_>, value: u64, decoded: bool) -> u64 {
    m.hw().set_rip(CODE);
    m.hw().set_gpr(Gpr::Rbx, value);
    if decoded {
        m.hw().ends_after(3);
        assert_eq!(m.answer(0, Exit::WriteCr4(Some(Gpr::Rbx))), Outcome::Resume);
    } else {
        m.hw().regs.next_rip = None;
        m.code(0, &[0x0f, 0x22, 0xe3]);
        assert_eq!(m.answer(0, Exit::WriteCr4(None)), Outcome::Resume);
    }
    m.hw().rip()
}

#[test]
fn cr4_takes_what_the_policy_has() {
    for decoded in [true, false] {
        with(1, |m| {
            let good = (Cr4::PAE | Cr4::PGE | Cr4::OSXSAVE | Cr4::SMEP).bits();
            assert_eq!(cr4(m, good, decoded), CODE + 3);
            assert_eq!((m.hw().cr4(), m.hw().injected), (good, None));
            for bad in [Cr4::VMXE, Cr4::LA57, Cr4::CET, Cr4::PKE].map(|bit| bit.bits()) {
                assert_eq!(cr4(m, good | bad, decoded), CODE, "{bad:#x}");
                assert_eq!((m.hw().cr4(), m.hw().injected.take()), (good, PROTECTION));
            }
        });
    }
}

#[test]
fn cr8_takes_four_bits_and_lets_interrupts_in() {
    with(1, |m| {
        for (value, want, raised) in [(9, 9, None), (0, 0, None), (16, 0, PROTECTION)] {
            m.hw().set_rip(CODE);
            m.hw().set_gpr(Gpr::Rbx, value);
            m.hw().ends_after(4);
            assert_eq!(m.answer(0, Exit::WriteCr8(Some(Gpr::Rbx))), Outcome::Resume);
            assert_eq!((m.hw().cr8, m.hw().injected.take()), (want, raised));
            assert_eq!(m.hw().rip(), if raised.is_none() { CODE + 4 } else { CODE });
        }
    });
}

#[test]
fn cr8_is_read_where_the_hardware_does_not_keep_it() {
    with(1, |m| {
        m.hw().cr8 = 11;
        m.hw().set_gpr(Gpr::R9, u64::MAX);
        m.hw().ends_after(5);
        assert_eq!(m.answer(0, Exit::ReadCr8(Gpr::R9)), Outcome::Resume);
        assert_eq!((m.hw().gpr(Gpr::R9), m.hw().rip()), (11, CODE + 5));
    });
}

#[test]
fn another_instruction_in_the_place_of_a_control_write() {
    with(1, |m| {
        m.code(0, &[0x90; 15]);
        assert_eq!(m.answer(0, Exit::WriteCr4(None)), Outcome::Resume);
        assert_eq!((m.hw().rip(), m.hw().flushes, m.hw().injected), (CODE, 1, None));
        // A MOV to another control register changes none.
        m.code(0, &[0x0f, 0x22, 0xdb]);
        m.hw().set_gpr(Gpr::Rbx, 0x55);
        assert_eq!(m.answer(0, Exit::WriteCr4(None)), Outcome::Resume);
        assert_eq!((m.hw().cr3(), m.hw().cr4()), (0, 0));
    });
}

/// MOV to CR0 from RBX.
fn cr0(m: &mut Machine<'_>, value: u64) -> u64 {
    m.hw().set_rip(CODE);
    m.hw().set_gpr(Gpr::Rbx, value);
    m.hw().ends_after(3);
    assert_eq!(m.answer(0, Exit::WriteCr0(Some(Gpr::Rbx))), Outcome::Resume);
    m.hw().rip()
}

#[test]
fn long_mode_comes_and_goes_with_paging() {
    with(1, |m| {
        let (pe, pg) = (Cr0::PE.bits(), Cr0::PG.bits());
        m.hw().set_efer(Efer::LME.bits());
        assert_eq!(cr0(m, pe | pg), CODE, "without PAE");
        assert_eq!(m.hw().injected.take(), PROTECTION);
        m.hw().set_cr4(Cr4::PAE.bits());
        assert_eq!(cr0(m, pe | pg), CODE + 3);
        assert_eq!(m.hw().efer(), (Efer::LME | Efer::LMA).bits());
        assert_eq!(m.hw().cr0(), pe | pg | Cr0::ET.bits());
        assert_eq!(cr0(m, pe), CODE + 3);
        assert_eq!(m.hw().efer(), Efer::LME.bits());
        assert_eq!(cr0(m, pg), CODE, "paging without protection");
        assert_eq!(m.hw().injected.take(), PROTECTION);
        assert_eq!(cr0(m, pe | pg), CODE + 3);
        let mut cs = m.hw().segment(SegmentRegister::Cs);
        cs.attributes = Attributes::CODE64;
        m.hw().set_segment(SegmentRegister::Cs, cs);
        assert_eq!(cr0(m, pe), CODE, "paging cannot go in 64-bit code");
        assert_eq!(m.hw().injected.take(), PROTECTION);
    });
}

#[test]
fn cr0_by_its_other_instructions() {
    with(1, |m| {
        m.hw().set_cr0((Cr0::PE | Cr0::TS | Cr0::ET).bits());
        m.code(0, &[0x0f, 0x06]);
        assert_eq!(m.answer(0, Exit::WriteCr0(None)), Outcome::Resume);
        assert_eq!((m.hw().cr0(), m.hw().rip()), ((Cr0::PE | Cr0::ET).bits(), CODE + 2));
        m.code(0, &[0x0f, 0x01, 0xf0]);
        m.hw().set_gpr(Gpr::Rax, 0xfff6);
        assert_eq!(m.answer(0, Exit::WriteCr0(None)), Outcome::Resume);
        assert_eq!(m.hw().cr0(), (Cr0::PE | Cr0::MP | Cr0::EM | Cr0::ET).bits(), "LMSW sets PE only");
    });
}

fn xsetbv(m: &mut Machine<'_>, register: u64, value: u64) {
    m.hw().set_gpr(Gpr::Rcx, register);
    m.hw().set_gpr(Gpr::Rax, value & 0xffff_ffff);
    m.hw().set_gpr(Gpr::Rdx, value >> 32);
    m.hw().ends_after(3);
    assert_eq!(m.answer(0, Exit::Xsetbv), Outcome::Resume);
}

#[test]
fn xcr0_takes_what_the_policy_has() {
    with(1, |m| {
        xsetbv(m, 0, 3);
        assert_eq!((m.hw().injected.take(), m.hw().xcr0), (UNDEFINED, 1), "OSXSAVE is off");
        m.hw().set_cr4(Cr4::OSXSAVE.bits());
        xsetbv(m, 0xffff_ffff_0000_0000, 7);
        assert_eq!((m.hw().injected, m.hw().xcr0, m.hw().rip()), (None, 7, CODE + 3));
        for (register, value) in [(1, 7), (0, 0), (0, 4), (0, 5), (0, 0x207), (0, 1 << 63 | 7)] {
            xsetbv(m, register, value);
            assert_eq!((m.hw().injected.take(), m.hw().xcr0), (PROTECTION, 7), "{register} {value:#x}");
        }
        m.hw().set_cpl(3);
        xsetbv(m, 0, 3);
        assert_eq!((m.hw().injected.take(), m.hw().rip()), (PROTECTION, CODE + 3));
    });
}
