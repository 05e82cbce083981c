//! Ports: registers and merging, strings, what ends the machine, the console.

use caisson_hwvirt::{Direction, Exit, IoExit, VcpuState};
use caisson_types::{Gpa, GuestMemory};
use caisson_x86::{Gpr, Rflags, SegmentRegister};

use super::{STEP, with};
use crate::testing::{CODE, Machine, Resumes, port};
use crate::{Ended, Outcome};

#[test]
fn sizes_merge_as_registers_do() {
    with(1, |m| {
        let full = 0x1122_3344_5566_7788;
        // Nothing is behind port 0x1000.
        for (size, expected) in [(1, 0x1122_3344_5566_77ff), (2, 0x1122_3344_5566_ffff), (4, 0xffff_ffff)] {
            m.hw().set_gpr(Gpr::Rax, full);
            m.answer(0, Exit::Io(port(0x1000, size, Direction::In, CODE + 2))).resumes();
            assert_eq!((m.hw().gpr(Gpr::Rax), m.hw().rip()), (expected, CODE + 2));
            m.hw().set_gpr(Gpr::Rax, full);
            m.answer(0, Exit::Io(port(0x1000, size, Direction::Out, CODE + 2))).resumes();
            assert_eq!(m.hw().gpr(Gpr::Rax), full);
        }
        // The scratch register of the UART, with registers that are wider than the access.
        m.out(0x3ff, 1, 0xffff_ff5a).resumes();
        assert_eq!(m.inp(0x3ff, 1), 0x5a);
    });
}

#[test]
fn the_end_is_decoded_where_the_hardware_does_not_tell() {
    let codes: [(&[u8], u8, Direction); 4] = [
        (&[0xe4, 0x80], 1, Direction::In),
        (&[0xec], 1, Direction::In),
        (&[0x66, 0xef], 2, Direction::Out),
        (&[0xe7, 0x80], 4, Direction::Out),
    ];
    for (code, size, direction) in codes {
        with(1, |m| {
            m.code(0, code);
            let io = IoExit { next_rip: None, ..port(0x80, size, direction, 0) };
            m.answer(0, Exit::Io(io)).resumes();
            assert_eq!(m.hw().rip(), CODE + code.len() as u64);
        });
    }
}

#[test]
fn a_stepped_port_access_traps() {
    with(1, |m| {
        m.hw().set_rflags((Rflags::FIXED | Rflags::TF).bits());
        m.out(0x80, 1, 0).resumes();
        assert_eq!((m.hw().injected, m.hw().dr6() & 1 << 14), (STEP, 1 << 14));
    });
}

/// Port, size, value.
type Write = (u16, u8, u32);

#[test]
fn power_off_and_every_reset() {
    let ends: [(&[Write], Ended); 5] = [
        (&[(0x604, 2, 5 << 10 | 1 << 13)], Ended::PowerOff),
        (&[(0xcf9, 1, 2), (0xcf9, 1, 6)], Ended::Reset),
        (&[(0x64, 1, 0xfe)], Ended::Reset),
        (&[(0x92, 1, 1)], Ended::Reset),
        (&[(0x64, 1, 0xd1), (0x60, 1, 0)], Ended::Reset),
    ];
    for (writes, end) in ends {
        with(1, |m| {
            let (last, before) = writes.split_last().unwrap();
            for &(port, size, value) in before {
                m.out(port, size, value).resumes();
            }
            assert_eq!(m.out(last.0, last.1, last.2), Outcome::Ended, "{writes:x?}");
            assert_eq!(m.vcpus[0].ended(), Some(end), "{writes:x?}");
        });
    }
}

#[test]
fn a_full_console_holds_the_guest_back() {
    with(1, |m| {
        m.host.room = 1;
        m.out(0x3f8, 1, u32::from(b'a')).resumes();
        let rip = m.hw().rip();
        for _ in 0..3 {
            assert_eq!(m.out(0x3f8, 1, u32::from(b'b')), Outcome::Yield);
            assert_eq!(m.hw().rip(), rip, "the instruction is tried again");
        }
        m.host.room = 2;
        m.out(0x3f8, 1, u32::from(b'b')).resumes();
        assert_eq!(m.hw().rip(), rip + 1);
        assert_eq!(m.host.console, b"ab");
    });
}

#[test]
fn console_input_reaches_the_guest() {
    with(1, |m| {
        let Machine { domain, host, .. } = m;
        assert!(domain.console_input(b'x', host));
        assert!(!domain.console_input(b'y', host), "without its FIFO it holds one byte");
        assert_eq!(m.inp(0x3fd, 1) & 1, 1);
        assert_eq!(m.inp(0x3f8, 1), u32::from(b'x'));
    });
}

/// INS or OUTS of vCPU 0, told whole by the hardware or not at all.
fn string(at: u16, size: u8, direction: Direction, repeat: bool, told: bool) -> Exit {
    let io = IoExit { string: true, repeat, ..port(at, size, direction, CODE + 2) };
    Exit::Io(if told {
        IoExit { address_bits: 32, segment: Some(SegmentRegister::Ds), ..io }
    } else {
        IoExit { next_rip: None, ..io }
    })
}

#[test]
fn strings_out() {
    for told in [true, false] {
        with(1, |m| {
            m.code(0, &[0xf3, 0x6e]);
            m.domain.memory.write(Gpa::new(0x8000), b"hello").unwrap();
            m.hw().set_gpr(Gpr::Rsi, 0x8000);
            m.hw().set_gpr(Gpr::Rcx, 5);
            m.hw().set_gpr(Gpr::Rdx, 0x3f8);
            m.answer(0, string(0x3f8, 1, Direction::Out, true, told)).resumes();
            assert_eq!(m.host.console, b"hello");
            let registers = [Gpr::Rsi, Gpr::Rcx].map(|register| m.hw().gpr(register));
            assert_eq!((registers, m.hw().rip()), ([0x8005, 0], CODE + 2));
        });
    }
}

#[test]
fn a_full_console_holds_a_string_back() {
    for told in [true, false] {
        with(1, |m| {
            m.code(0, &[0xf3, 0x6e]);
            m.domain.memory.write(Gpa::new(0x8000), b"hello").unwrap();
            m.hw().set_gpr(Gpr::Rsi, 0x8000);
            m.hw().set_gpr(Gpr::Rcx, 5);
            m.hw().set_gpr(Gpr::Rdx, 0x3f8);
            m.host.room = 0;
            for room in [0, 0, 1, 4, 4] {
                m.host.room = room;
                let outcome = m.answer(0, string(0x3f8, 1, Direction::Out, true, told));
                assert_eq!(outcome, Outcome::Yield, "{room}");
                let registers = [Gpr::Rsi, Gpr::Rcx].map(|register| m.hw().gpr(register));
                let room = room as u64;
                assert_eq!((registers, m.hw().rip()), ([0x8000 + room, 5 - room], CODE));
            }
            m.host.room = usize::MAX;
            m.answer(0, string(0x3f8, 1, Direction::Out, true, told)).resumes();
            assert_eq!(m.host.console, b"hello");
            assert_eq!(m.hw().rip(), CODE + 2);
            // Without a repetition, the one element waits.
            m.code(0, &[0x6e]);
            m.hw().set_rip(CODE);
            m.host.room = 5;
            let exit = string(0x3f8, 1, Direction::Out, false, told);
            assert_eq!(m.answer(0, exit), Outcome::Yield);
            assert_eq!((m.hw().rip(), m.hw().gpr(Gpr::Rsi)), (CODE, 0x8005));
        });
    }
}

#[test]
fn strings_in_go_down_with_the_direction_flag() {
    with(1, |m| {
        m.hw().set_rflags((Rflags::FIXED | Rflags::DF).bits());
        m.hw().set_gpr(Gpr::Rdi, 0x8006);
        m.hw().set_gpr(Gpr::Rcx, 2);
        m.answer(0, string(0x1000, 2, Direction::In, true, true)).resumes();
        assert_eq!(m.domain.memory.read_u64(Gpa::new(0x8000)), Ok(0xffff_ffff_0000_0000));
        assert_eq!(m.hw().gpr(Gpr::Rdi), 0x8002);
    });
}

#[test]
fn a_long_string_is_done_in_parts() {
    with(1, |m| {
        m.hw().set_gpr(Gpr::Rdi, 0x8000);
        m.hw().set_gpr(Gpr::Rcx, 1000);
        let exit = string(0x1000, 1, Direction::In, true, true);
        let mut parts = 0;
        while m.hw().rip() == CODE {
            m.answer(0, exit).resumes();
            assert!(m.settle(0), "interrupts have their chance");
            parts += 1;
        }
        assert_eq!((m.hw().gpr(Gpr::Rcx), m.hw().gpr(Gpr::Rdi)), (0, 0x8000 + 1000));
        assert!(parts > 10);
    });
}

#[test]
fn a_string_faults_where_its_memory_does() {
    with(1, |m| {
        let mut es = m.hw().segment(SegmentRegister::Es);
        es.limit = 0x8001;
        m.hw().set_segment(SegmentRegister::Es, es);
        m.hw().set_gpr(Gpr::Rdi, 0x8000);
        m.hw().set_gpr(Gpr::Rcx, 5);
        m.answer(0, string(0x1000, 1, Direction::In, true, true)).resumes();
        assert_eq!((m.hw().injected, m.hw().rip()), (super::PROTECTION, CODE));
        assert_eq!((m.hw().gpr(Gpr::Rcx), m.hw().gpr(Gpr::Rdi)), (3, 0x8002), "what was done is done");
    });
}

#[test]
fn a_string_can_end_the_machine() {
    with(1, |m| {
        m.domain.memory.write(Gpa::new(0x8000), &[2, 6]).unwrap();
        m.hw().set_gpr(Gpr::Rsi, 0x8000);
        m.hw().set_gpr(Gpr::Rcx, 2);
        assert_eq!(m.end_by(0, string(0xcf9, 1, Direction::Out, true, true)), Ended::Reset);
        assert_eq!(m.hw().rip(), CODE);
    });
}

#[test]
fn a_string_instruction_that_has_changed() {
    with(1, |m| {
        m.code(0, &[0x90; 15]);
        m.answer(0, string(0x80, 1, Direction::Out, true, false)).resumes();
        assert_eq!((m.hw().rip(), m.hw().flushes, m.hw().injected), (CODE, 1, None));
    });
}

#[test]
fn a_string_between_a_port_and_a_device() {
    with(1, |m| {
        m.hw().set_gpr(Gpr::Rsi, 0xfee0_0030);
        m.answer(0, string(0x3ff, 1, Direction::Out, false, true)).resumes();
        assert_eq!(m.inp(0x3ff, 1), 0xff, "nothing answers");
    });
}
