//! Instructions that exit for themselves: CPUID, hypercalls, HLT, PAUSE and the rest.

use caisson_hwvirt::{DebugAccess, Exit, VcpuState};
use caisson_x86::{Cr4, Gpr, Rflags};

use super::{PROTECTION, STEP, UNDEFINED, with};
use crate::testing::{CODE, Machine};
use crate::{Ended, KillReason, Outcome, RunState};

fn cpuid(m: &mut Machine<'_>, leaf: u64, subleaf: u64) -> [u64; 4] {
    m.hw().set_gpr(Gpr::Rax, leaf);
    m.hw().set_gpr(Gpr::Rcx, subleaf);
    m.hw().ends_after(2);
    assert_eq!(m.answer(0, Exit::Cpuid), Outcome::Resume);
    [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|register| m.hw().gpr(register))
}

#[test]
fn cpuid_answers_from_the_table_and_clears_upper_halves() {
    with(1, |m| {
        for register in [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx] {
            m.hw().set_gpr(register, u64::MAX);
        }
        assert_eq!(cpuid(m, 0xffff_ffff_0000_0000, 0), [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);
        assert_eq!(m.hw().rip(), CODE + 2);
        let signature = cpuid(m, 0x4000_0000, 0);
        assert_eq!(signature[1], u64::from(u32::from_le_bytes(*b"KVMK")));
        assert_eq!(cpuid(m, 0x4fff_ffff, 0), [0; 4]);
    });
}

#[test]
fn cpuid_mirrors_cr4_xcr0_and_apic_base() {
    with(1, |m| {
        let osxsave = 1 << 27;
        assert_eq!(cpuid(m, 1, 0)[2] & osxsave, 0);
        m.hw().set_cr4(Cr4::OSXSAVE.bits());
        assert_ne!(cpuid(m, 1, 0)[2] & osxsave, 0);
        assert_eq!(cpuid(m, 0xd, 0)[1], 576);
        m.hw().xcr0 = 7;
        assert_eq!(cpuid(m, 0xd, 0)[1], 0x340);
        let apic = 1 << 9;
        assert_ne!(cpuid(m, 1, 0)[3] & apic, 0);
        assert_eq!(m.wrmsr(0, 0x1b, 0xfee0_0000), Outcome::Resume);
        assert_eq!(cpuid(m, 1, 0)[3] & apic, 0);
        assert_eq!(m.wrmsr(0, 0x1b, 0xfee0_0800), Outcome::Resume);
        assert_ne!(cpuid(m, 1, 0)[3] & apic, 0);
    });
}

#[test]
fn lengths_are_decoded_where_the_hardware_does_not_tell() {
    let table: [(Exit, &[u8]); 9] = [
        (Exit::Cpuid, &[0x0f, 0xa2]),
        (Exit::Cpuid, &[0x66, 0x66, 0x0f, 0xa2]),
        (Exit::ReadMsr, &[0x0f, 0x32]),
        (Exit::Hypercall, &[0x0f, 0x01, 0xd9]),
        (Exit::Hypercall, &[0x0f, 0x01, 0xc1]),
        (Exit::Halt, &[0xf4]),
        (Exit::Pause, &[0xf3, 0x90]),
        (Exit::CacheFlush, &[0x0f, 0x09]),
        (Exit::CacheFlush, &[0x0f, 0x08]),
    ];
    for (exit, bytes) in table {
        with(1, |m| {
            m.code(0, bytes);
            m.hw().set_gpr(Gpr::Rcx, 0x10);
            let _ = m.answer(0, exit);
            assert_eq!(m.hw().rip(), CODE + bytes.len() as u64, "{exit:?} {bytes:x?}");
            assert_eq!((m.hw().flushes, m.hw().injected), (0, None));
        });
    }
}

#[test]
fn an_instruction_that_has_changed_is_run_again() {
    for exit in [Exit::Cpuid, Exit::Halt, Exit::Pause, Exit::Hypercall, Exit::CacheFlush] {
        with(1, |m| {
            m.code(0, &[0x90; 15]);
            assert_eq!(m.answer(0, exit), Outcome::Resume, "{exit:?}");
            assert_eq!((m.hw().rip(), m.hw().flushes), (CODE, 1));
            assert_eq!(m.vcpus[0].run_state(), RunState::Running);
        });
    }
}

#[test]
fn ending_an_instruction_ends_the_shadow_and_rf() {
    with(1, |m| {
        m.hw().set_interrupt_shadow(true);
        m.hw().set_rflags(Rflags::FIXED.bits() | Rflags::RF.bits() | Rflags::CF.bits());
        cpuid(m, 0, 0);
        assert!(!m.hw().interrupt_shadow());
        assert_eq!(m.hw().rflags(), Rflags::FIXED.bits() | Rflags::CF.bits());
    });
}

#[test]
fn hypercalls() {
    let call = |m: &mut Machine<'_>, number: u64| {
        m.hw().set_gpr(Gpr::Rax, number);
        m.hw().ends_after(3);
        assert_eq!(m.answer(0, Exit::Hypercall), Outcome::Resume);
        m.hw().gpr(Gpr::Rax)
    };
    with(1, |m| {
        assert_eq!(call(m, caisson_abi::hypercall::VERSION), -1000_i64 as u64, "from 32-bit mode");
        super::hypercalls::long(m, 0);
        assert_eq!(call(m, caisson_abi::hypercall::VERSION), caisson_abi::VERSION);
        assert_eq!(call(m, 5), -1000_i64 as u64);
        assert_eq!(call(m, u64::MAX), -1000_i64 as u64);
        for cpl in 1..4 {
            m.hw().set_cpl(cpl);
            assert_eq!(call(m, caisson_abi::hypercall::VERSION), -1_i64 as u64);
        }
        assert_eq!(m.hw().injected, None);
        assert_eq!(m.hw().rip(), CODE + 21);
    });
}

#[test]
fn single_steps_trap_after_instructions_done_for_the_guest() {
    let exits = [
        Exit::Cpuid,
        Exit::Hypercall,
        Exit::CacheFlush,
        Exit::Pause,
        Exit::Halt,
        Exit::ReadMsr,
        Exit::WriteMsr,
        Exit::WriteCr0(Some(Gpr::Rbx)),
        Exit::WriteCr4(Some(Gpr::Rbx)),
        Exit::WriteCr8(Some(Gpr::Rbx)),
        Exit::Xsetbv,
    ];
    for exit in exits {
        with(1, |m| {
            m.hw().set_rflags((Rflags::FIXED | Rflags::TF).bits());
            m.hw().set_gpr(Gpr::Rcx, if exit == Exit::Xsetbv { 0 } else { 0xc000_0082 });
            m.hw().set_gpr(Gpr::Rax, 7);
            if exit == Exit::Xsetbv {
                m.hw().set_cr4(Cr4::OSXSAVE.bits());
            }
            m.hw().ends_after(2);
            let _ = m.answer(0, exit);
            assert_eq!(m.hw().rip(), CODE + 2);
            assert_eq!((m.hw().injected, m.hw().dr6() & 1 << 14), (STEP, 1 << 14), "{exit:?}");
            assert!(m.settle(0), "{exit:?}: the handler runs");
            assert_eq!(m.delivered(0).len(), 1);
            assert!(m.settle(0));
        });
    }
}

#[test]
fn halt_waits_for_an_interrupt() {
    with(1, |m| {
        m.interrupts(0, true);
        m.hw().set_interrupt_shadow(true);
        assert_eq!(m.halt(0), Outcome::Halted);
        assert_eq!((m.hw().rip(), m.vcpus[0].run_state()), (CODE + 1, RunState::Halted));
        assert!(!m.settle(0));
        m.x2apic(0);
        assert_eq!(m.wrmsr(0, 0x83f, 0x40), Outcome::Resume);
        assert!(m.settle(0));
        assert_eq!(m.delivered(0), [caisson_hwvirt::Event::Interrupt(0x40)]);
    });
}

#[test]
fn halt_with_interrupts_off_sleeps_through_them() {
    with(1, |m| {
        m.x2apic(0);
        assert_eq!(m.wrmsr(0, 0x83f, 0x40), Outcome::Resume);
        assert_eq!(m.halt(0), Outcome::Halted);
        assert!(!m.settle(0));
        assert!(m.domain.mailbox(0).post_nmi());
        assert!(m.settle(0), "an NMI wakes");
        assert_eq!(m.delivered(0), [caisson_hwvirt::Event::Nmi]);
    });
}

#[test]
fn what_this_machine_does_not_have() {
    with(1, |m| {
        assert_eq!(m.answer(0, Exit::Unsupported), Outcome::Resume);
        assert_eq!((m.hw().injected.take(), m.hw().rip()), (UNDEFINED, CODE));
        assert_eq!(m.answer(0, Exit::ReadCounter), Outcome::Resume);
        assert_eq!((m.hw().injected.take(), m.hw().rip()), (PROTECTION, CODE));
    });
}

#[test]
fn debug_registers_are_loaded_at_their_first_use() {
    with(1, |m| {
        let access = DebugAccess { register: 7, write: true, gpr: None };
        assert_eq!(m.answer(0, Exit::Debug(access)), Outcome::Resume);
        assert!(m.hw().debug_loaded);
        assert_eq!((m.hw().rip(), m.hw().injected), (CODE, None));
    });
}

#[test]
fn what_is_the_hosts_and_what_ends_a_guest() {
    with(1, |m| {
        for exit in [Exit::ExternalInterrupt, Exit::Nmi] {
            assert_eq!(m.answer(0, exit), Outcome::HostEvent);
        }
        m.hw().ends_after(2);
        assert_eq!(m.answer(0, Exit::Pause), Outcome::Yield);
        let rip = CODE + 2;
        assert_eq!(m.end_by(0, Exit::TripleFault), Ended::TripleFault { rip });
        let (reason, qualification) = (7, 9);
        assert_eq!(
            m.end_by(0, Exit::EntryFailure { reason, qualification }),
            Ended::Killed(KillReason::EntryFailure { reason, qualification })
        );
        assert_eq!(
            m.end_by(0, Exit::Unknown { reason, qualification }),
            Ended::Killed(KillReason::UnknownExit { reason, qualification })
        );
    });
}

#[test]
fn a_physical_init_is_the_machines() {
    with(1, |m| assert_eq!(m.answer(0, Exit::Init), Outcome::MachineReset));
}
