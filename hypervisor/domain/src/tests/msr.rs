//! RDMSR and WRMSR: every class, and everything that is #GP.

use caisson_hwvirt::{Exit, VcpuState};
use caisson_policy::{MsrClass, msr::TABLE};
use caisson_x86::{Efer, Gpr, msr};

use super::{PROTECTION, with};
use crate::Outcome;
use crate::testing::{CODE, Machine, Resumes};

/// RDMSR that raises #GP and changes nothing.
fn read_faults(m: &mut Machine<'_>, number: u32) {
    m.hw().set_rip(CODE);
    m.hw().set_gpr(Gpr::Rcx, u64::from(number));
    m.hw().set_gpr(Gpr::Rax, 0x55);
    m.hw().ends_after(2);
    m.answer(0, Exit::ReadMsr).resumes();
    let state = (m.hw().injected.take(), m.hw().rip(), m.hw().gpr(Gpr::Rax));
    assert_eq!(state, (PROTECTION, CODE, 0x55), "{number:#x}");
}

/// WRMSR that raises #GP.
fn write_faults(m: &mut Machine<'_>, number: u32, value: u64) {
    m.hw().set_rip(CODE);
    m.wrmsr(0, number, value).resumes();
    let state = (m.hw().injected.take(), m.hw().rip());
    assert_eq!(state, (PROTECTION, CODE), "{number:#x} <- {value:#x}");
}

fn writes(m: &mut Machine<'_>, number: u32, value: u64) {
    m.hw().set_rip(CODE);
    m.wrmsr(0, number, value).resumes();
    assert_eq!((m.hw().injected, m.hw().rip()), (None, CODE + 2), "{number:#x} <- {value:#x}");
}

#[test]
fn unknown_registers_fault() {
    with(1, |m| {
        for number in [0x2, 0x1a, 0x9b, 0x400, 0x8ff, 0xda0, 0x1000_0000, 0xc000_0104, 0xc001_0117, u32::MAX]
        {
            read_faults(m, number);
            write_faults(m, number, 0);
        }
    });
}

/// Every row of the policy's table is answered: read or #GP, by its class.
#[test]
fn every_row_of_the_table() {
    with(1, |m| {
        for number in TABLE.iter().flat_map(|row| row.first..=row.last) {
            let class = m.vcpus[0].msrs.classify(number);
            m.hw().set_gpr(Gpr::Rcx, u64::from(number));
            m.hw().ends_after(2);
            m.answer(0, Exit::ReadMsr).resumes();
            let faulted = m.hw().injected.take().is_some();
            match class {
                MsrClass::Unknown => assert!(faulted, "{number:#x}"),
                // xAPIC mode.
                MsrClass::X2Apic => assert!(faulted, "{number:#x}"),
                _ => assert!(!faulted, "{number:#x} {class:?}"),
            }
        }
    });
}

#[test]
fn registers_of_the_hardware() {
    with(1, |m| {
        for number in [msr::STAR, msr::LSTAR, msr::FS_BASE, msr::SYSENTER_CS, msr::TSC_AUX] {
            writes(m, number, 0x1234_5678);
            assert_eq!((m.hw().msrs[&number], m.rdmsr(0, number)), (0x1234_5678, 0x1234_5678));
        }
        writes(m, msr::GS_BASE, 0xffff_8000_0000_0000);
        assert_eq!(m.rdmsr(0, msr::GS_BASE), 0xffff_8000_0000_0000);
        for (number, value) in [
            (msr::LSTAR, 1 << 63),
            (msr::FS_BASE, 1 << 47),
            (msr::PAT, 2),
            (msr::SFMASK, 1 << 32),
            (msr::TSC_AUX, 1 << 32),
        ] {
            write_faults(m, number, value);
        }
    });
}

#[test]
fn upper_halves_of_the_operands_are_ignored_and_cleared() {
    with(1, |m| {
        m.hw().set_gpr(Gpr::Rcx, 0xffff_ffff_0000_0000 | u64::from(msr::KERNEL_GS_BASE));
        m.hw().set_gpr(Gpr::Rax, 0xffff_ffff_8765_4321);
        m.hw().set_gpr(Gpr::Rdx, 0xffff_ffff_0000_0001);
        m.hw().ends_after(2);
        m.answer(0, Exit::WriteMsr).resumes();
        assert_eq!(m.hw().msrs[&msr::KERNEL_GS_BASE], 0x1_8765_4321);
        m.hw().ends_after(2);
        m.answer(0, Exit::ReadMsr).resumes();
        assert_eq!((m.hw().gpr(Gpr::Rax), m.hw().gpr(Gpr::Rdx)), (0x8765_4321, 1));
    });
}

#[test]
fn efer() {
    with(1, |m| {
        writes(m, msr::EFER, (Efer::LME | Efer::NXE | Efer::SCE).bits());
        assert_eq!(m.rdmsr(0, msr::EFER), (Efer::LME | Efer::NXE | Efer::SCE).bits());
        write_faults(m, msr::EFER, Efer::SVME.bits());
        write_faults(m, msr::EFER, 1 << 40);
    });
}

#[test]
fn apic_base() {
    with(2, |m| {
        assert_eq!((m.rdmsr(0, 0x1b), m.rdmsr(1, 0x1b)), (0xfee0_0900, 0xfee0_0800));
        for bad in [1 << 40 | 0xfee0_0900, 0xfee0_0901, 0xfee0_0500] {
            write_faults(m, 0x1b, bad);
        }
        writes(m, 0x1b, 0xfee0_0d00);
        write_faults(m, 0x1b, 0xfee0_0900);
        writes(m, 0x1b, 0xfee0_0100);
        write_faults(m, 0x1b, 0xfee0_0d00);
    });
}

#[test]
fn x2apic_registers() {
    with(1, |m| {
        read_faults(m, 0x802);
        write_faults(m, 0x80b, 0);
        m.x2apic(0);
        assert_eq!(m.rdmsr(0, 0x802), 0);
        assert_eq!(m.rdmsr(0, 0x80d), 1, "logical id");
        for number in [0x80b, 0x83f, 0x831, 0x80e, 0x8ff] {
            read_faults(m, number);
        }
        for (number, value) in
            [(0x802, 0), (0x80b, 1), (0x808, 0x100), (0x828, 1), (0x80f, 1 << 40), (0x83f, 0x100)]
        {
            write_faults(m, number, value);
        }
        writes(m, 0x828, 0);
    });
}

#[test]
fn kvms_registers() {
    with(1, |m| {
        write_faults(m, msr::KVM_SYSTEM_TIME_NEW, 0x8002);
        write_faults(m, msr::KVM_WALL_CLOCK_NEW, 0x8001);
        write_faults(m, msr::KVM_PV_EOI_EN, 0x8003);
        write_faults(m, msr::KVM_STEAL_TIME, 0x8021);
        read_faults(m, 0x11);
        read_faults(m, 0x12);
    });
}

#[test]
fn stored_registers() {
    with(1, |m| {
        assert_eq!(m.rdmsr(0, msr::BIOS_SIGN_ID), 0x0800_126e);
        write_faults(m, msr::BIOS_SIGN_ID, 0);
        writes(m, msr::MTRR_DEF_TYPE, 0xc06);
        assert_eq!(m.rdmsr(0, msr::MTRR_DEF_TYPE), 0xc06);
        write_faults(m, msr::MTRR_DEF_TYPE, 2);
        write_faults(m, msr::MTRR_CAP, 0);
        writes(m, msr::DEBUGCTL, 0);
        write_faults(m, msr::DEBUGCTL, 1);
    });
}

#[test]
fn a_register_access_that_has_changed_is_run_again() {
    with(1, |m| {
        m.code(0, &[0x90; 15]);
        m.hw().set_gpr(Gpr::Rcx, u64::from(msr::STAR));
        assert_eq!(m.answer(0, Exit::WriteMsr), Outcome::Resume);
        assert_eq!((m.hw().rip(), m.hw().flushes, m.hw().injected), (CODE, 1, None));
    });
}
