//! Real functions that a domain owns, as its vCPUs reach them.

use caisson_irqchip::InterruptMessage;
use caisson_pci::testing::{DISK, DISK_MEMORY, ECAM, HOST, NETWORK};
use caisson_pci::{LineMode, Message, Source};

use super::{vectors, with};
use crate::testing::{Machine, Resumes};

const TABLE: u32 = DISK_MEMORY as u32 + 0x2000;

fn owner(test: impl FnOnce(&mut Machine<'_>)) {
    with(1, |m| {
        m.own_functions();
        test(m);
    });
}

fn config(at: caisson_pci::Address, offset: u32) -> u32 {
    ECAM as u32 + u32::from(at.routing) * 4096 + offset
}

/// Routes I/O APIC pin 20 to vCPU 0 as vector 0x60, level-triggered and active low.
fn route(m: &mut Machine<'_>) {
    m.x2apic(0);
    m.interrupts(0, true);
    for (register, value) in [(0x39, 0), (0x38, 0xa060)] {
        m.store(0, 0xfec0_0000, register).resumes();
        m.store(0, 0xfec0_0010, value).resumes();
    }
}

#[test]
fn configuration_space_is_reached_by_ports_and_by_memory() {
    owner(|m| {
        assert_eq!(m.load(0, config(DISK, 0)), 0x0010_1b36);
        m.out(0xcf8, 4, 1 << 31 | u32::from(DISK.routing) << 8).resumes();
        assert_eq!(m.inp(0xcf8, 4), 1 << 31 | u32::from(DISK.routing) << 8);
        assert_eq!(m.inp(0xcfe, 2) & 0xffff, 0x0010);
        m.out(0xcf8, 4, 1 << 31 | u32::from(DISK.routing) << 8 | 4).resumes();
        m.out(0xcfc, 2, 0x0406).resumes();
        let functions = m.host.functions.as_ref().unwrap();
        assert_eq!(functions.functions[&DISK].words[1] & 0xffff, 0x0406);
    });
}

#[test]
fn a_functions_ports_are_the_machines_and_the_chipsets_its_own() {
    owner(|m| {
        m.out(0xc010, 4, 0x1234).resumes();
        assert_eq!(m.host.functions.as_ref().unwrap().ports, [(0xc010, 0x1234)]);
        assert_eq!(m.inp(0xc010, 4), 0xc010);
        // The reset register between those of configuration space.
        m.out(0xcf9, 1, 2).resumes();
        assert_eq!(m.inp(0xcf9, 1) & 0xff, 2);
    });
}

#[test]
fn who_owns_nothing_finds_an_empty_bus() {
    with(1, |m| {
        m.host.functions = Some(caisson_pci::testing::machine());
        m.out(0xcf8, 4, 1 << 31 | u32::from(DISK.routing) << 8).resumes();
        assert_eq!(m.inp(0xcfc, 4), u32::MAX);
        assert_eq!(m.load(0, config(DISK, 0)), u32::MAX);
        m.store(0, TABLE, 1).resumes();
        let functions = m.host.functions.as_ref().unwrap();
        assert!(functions.memory.is_empty() && functions.ports.is_empty());
    });
}

#[test]
fn a_message_goes_where_the_domain_has_said() {
    owner(|m| {
        m.x2apic(0);
        m.interrupts(0, true);
        for (offset, value) in [(0, 0xfee0_0000), (4, 0), (8, 0x61), (12, 0)] {
            m.store(0, TABLE + offset, value).resumes();
        }
        let functions = m.host.functions.as_ref().unwrap();
        let message = Message { address: 0xfee0_0000, data: 0x61 };
        assert_eq!(functions.routes[&Source { function: 2, entry: 0 }], message);
        assert_eq!(functions.memory[&(DISK_MEMORY + 0x2008)], HOST.data, "and the disk sends the host's");
        let message = InterruptMessage::from_msi(message.address, message.data).unwrap();
        m.domain.interrupt(&message, &mut m.host);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x61]);
    });
}

#[test]
fn a_line_is_opened_raised_and_ended() {
    owner(|m| {
        route(m);
        let mode = Some(LineMode { active_low: true, level: true });
        let line = |m: &Machine<'_>| m.host.functions.as_ref().unwrap().lines[&20];
        assert_eq!(line(m), (mode, 0));
        m.domain.raise_line(20, &mut m.host);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x60]);
        assert_eq!(line(m), (mode, 0), "in service");
        m.eoi(0);
        m.interrupts(0, true);
        assert_eq!(line(m), (mode, 1));
        assert!(m.settle(0) && m.delivered(0).is_empty(), "once");
        // The device has not been served: it comes again.
        m.domain.raise_line(20, &mut m.host);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [0x60]);
        // Masked: the machine's line is closed as well.
        m.store(0, 0xfec0_0000, 0x38).resumes();
        m.store(0, 0xfec0_0010, 0x1_a060).resumes();
        assert_eq!(line(m).0, None);
    });
}

#[test]
fn msi_of_several_messages_is_one() {
    owner(|m| {
        for (offset, value) in [(0xd4, 0xfee0_0000), (0xd8, 0), (0xdc, 0x62), (0xd0, 0x0071_0000)] {
            m.store(0, config(NETWORK, offset), value).resumes();
        }
        assert_eq!(m.load(0, config(NETWORK, 0xd0)) >> 16 & !0xe, 0x81);
        let functions = m.host.functions.as_ref().unwrap();
        assert_eq!(functions.functions[&NETWORK].words[0xdc / 4] & 0xffff, HOST.data);
    });
}
