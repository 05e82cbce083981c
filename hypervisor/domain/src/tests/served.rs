//! Devices that another domain serves, and the door through which it does.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use caisson_abi::door::{MAGIC, register as door};
use caisson_abi::io::{ChannelDescription, MAX_CONFIG, MAX_QUEUES};
use caisson_abi::{CallError, ChannelCall, EventCall, Operation, Privileges, hypercall};
use caisson_types::{Gpa, GuestMemory};
use caisson_virtio::{Effect, Interrupt, register};

use super::{vectors, with};
use crate::VirtioDevice;
use crate::testing::{Machine, Resumes};
use crate::vcpu::Readiness;

/// The served device's page and slot.
const PAGE: u32 = 0xfeb0_0000;
const SLOT: usize = 0;
const VECTOR: u8 = 0x60;
/// Where the tests' kernels put Caisson's own function.
const DOOR: u32 = 0xd000_0000;
const AREA: u64 = 0x8_0000;

fn description() -> ChannelDescription {
    let mut given = ChannelDescription {
        features: 0,
        device: 2,
        queues: 2,
        config_bytes: 8,
        queue_sizes: [0; MAX_QUEUES],
        config: [0; MAX_CONFIG],
        writable: [0; MAX_CONFIG],
    };
    given.queue_sizes[..2].fill(8);
    given
}

fn served(vcpus: usize, test: impl FnOnce(&mut Machine<'_>)) {
    with(vcpus, |m| {
        m.domain.set_virtio(vec![VirtioDevice::Served(Box::new(description()))]);
        test(m);
    });
}

fn store(m: &mut Machine<'_>, offset: u64, value: u32) {
    m.store(0, PAGE + offset as u32, value).resumes();
}

/// A driver's way to DRIVER_OK, with queue 1 ready.
fn start(m: &mut Machine<'_>) {
    for (offset, value) in [
        (register::STATUS, 3),
        (register::DRIVER_FEATURES_SEL, 1),
        (register::DRIVER_FEATURES, 1),
        (register::STATUS, 11),
        (register::QUEUE_SEL, 1),
        (register::QUEUE_NUM, 8),
        (register::QUEUE_DESC_LOW, 0x9_0000),
        (register::QUEUE_DRIVER_LOW, 0x9_1000),
        (register::QUEUE_DEVICE_LOW, 0x9_2000),
        (register::QUEUE_READY, 1),
        (register::STATUS, 15),
    ] {
        store(m, offset, value);
    }
}

#[test]
fn a_description_is_checked() {
    let good = description();
    assert!(crate::description(&good).is_ok());
    assert!(crate::description(&ChannelDescription { queues: 0, ..good }).is_err());
    assert!(crate::description(&ChannelDescription { queues: 65, ..good }).is_err());
    assert!(crate::description(&ChannelDescription { queues: u16::MAX, ..good }).is_err());
    assert!(crate::description(&ChannelDescription { queues: 3, ..good }).is_err(), "the third has no size");
    assert!(crate::description(&ChannelDescription { config_bytes: 257, ..good }).is_err());
    assert!(crate::description(&ChannelDescription { features: 1 << 33, ..good }).is_err());
}

#[test]
fn a_notification_goes_to_an_attached_backend() {
    served(1, |m| {
        let channel = m.domain.served_channel(SLOT).unwrap();
        let _ = channel.attach();
        start(m);
        assert_eq!(m.host.told, [SLOT], "of DRIVER_OK");
        m.host.notified.clear();
        store(m, register::QUEUE_NOTIFY, 1);
        store(m, register::QUEUE_NOTIFY, 1);
        store(m, register::QUEUE_NOTIFY, 0);
        store(m, register::QUEUE_NOTIFY, 7);
        assert_eq!(m.host.notified, [(SLOT, 2), (SLOT, 2)], "queue 0 is not ready, 7 not there");
    });
}

#[test]
fn notifications_wait_for_a_backend() {
    served(1, |m| {
        start(m);
        store(m, register::QUEUE_NOTIFY, 1);
        assert_eq!(m.host.notified, []);
        let channel = m.domain.served_channel(SLOT).unwrap();
        assert_eq!(channel.attach().pending, 2);
        assert!(m.domain.served_channel(1).is_none());
    });
}

#[test]
fn the_backend_interrupts_the_guest() {
    served(1, |m| {
        m.x2apic(0);
        m.interrupts(0, true);
        m.route_pin(16, u32::from(VECTOR));
        start(m);
        let channel = m.domain.served_channel(SLOT).unwrap();
        let _ = channel.attach();
        let effect = channel.interrupt(Interrupt::Used);
        m.domain.settle_channel(SLOT, effect, &mut m.host);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [VECTOR]);
        m.domain.settle_channel(9, Effect::Interrupt, &mut m.host);
    });
}

#[test]
fn a_vcpu_that_resets_a_device_waits_for_its_backend() {
    served(2, |m| {
        let channel = m.domain.served_channel(SLOT).unwrap();
        let _ = channel.attach();
        start(m);
        store(m, register::STATUS, 0);
        assert_eq!(m.enter(0), Err(Readiness::Blocked));
        // An interrupt that comes does not end that.
        m.domain.interrupt(&caisson_irqchip::InterruptMessage::fixed(0, 0x70), &mut m.host);
        assert_eq!(m.enter(0), Err(Readiness::Blocked));
        let channel = m.domain.served_channel(SLOT).unwrap();
        let change = channel.snapshot().change;
        let effect = channel.acknowledge(change.wrapping_add(1));
        assert_eq!(effect, Effect::Nothing, "of another change");
        assert_eq!(m.enter(0), Err(Readiness::Blocked));
        let channel = m.domain.served_channel(SLOT).unwrap();
        let effect = channel.acknowledge(change);
        let woken = m.host.woken[0];
        m.domain.settle_channel(SLOT, effect, &mut m.host);
        assert!(m.host.woken[0] > woken);
        assert!(m.settle(0));
        assert_eq!(m.load(0, PAGE + register::STATUS as u32), 0);
    });
}

#[test]
fn nobody_waits_for_a_backend_that_is_gone() {
    served(1, |m| {
        let channel = m.domain.served_channel(SLOT).unwrap();
        let _ = channel.attach();
        start(m);
        store(m, register::STATUS, 0);
        assert_eq!(m.enter(0), Err(Readiness::Blocked));
        let effect = m.domain.served_channel(SLOT).unwrap().detach();
        m.domain.settle_channel(SLOT, effect, &mut m.host);
        assert!(m.settle(0));
        start(m);
        store(m, register::STATUS, 0);
        assert!(m.settle(0), "without one it is done at once");
    });
}

// ---- The door

/// A domain with a door, whose kernel has placed it and told of its pin.
fn backend(test: impl FnOnce(&mut Machine<'_>)) {
    with(1, |m| {
        m.own_functions();
        m.domain.open_door(Gpa::new(AREA), Privileges::all());
        let own = 1 << 31 | 30 << 11;
        for (register, size, value) in [(0x10, 4, DOOR), (4, 2, 2)] {
            m.out(0xcf8, 4, own | register).resumes();
            m.out(0xcfc, size, value).resumes();
        }
        m.x2apic(0);
        m.interrupts(0, true);
        m.route_pin(20, 0x8000 | u32::from(VECTOR));
        m.store(0, DOOR + u32::from(door::PIN), 20).resumes();
        test(m);
    });
}

fn read(m: &mut Machine<'_>, offset: u16) -> u32 {
    m.load(0, DOOR + u32::from(offset))
}

fn write(m: &mut Machine<'_>, offset: u16, value: u32) {
    m.store(0, DOOR + u32::from(offset), value).resumes();
}

#[test]
fn the_door_says_what_it_is() {
    backend(|m| {
        assert_eq!(read(m, door::MAGIC), MAGIC);
        assert_eq!(u64::from(read(m, door::VERSION)), caisson_abi::VERSION);
        assert_eq!((read(m, door::AREA), read(m, door::AREA + 4)), (AREA as u32, 0));
        assert_eq!(read(m, door::AREA_PAGES), 512);
        assert_eq!(read(m, door::DOMAIN), 1);
        assert_eq!(read(m, door::PIN), 20);
        assert_eq!(read(m, 0x800), 0);
    });
    // Who has none finds nothing there.
    with(1, |m| {
        m.own_functions();
        assert_eq!(read(m, door::MAGIC), u32::MAX);
    });
}

#[test]
fn a_list_of_calls_is_made_by_one_write() {
    backend(|m| {
        let calls = [[hypercall::VERSION, 0], [hypercall::EVENT_SEND, 5], [hypercall::CHANNEL_ATTACH, 33]];
        for (index, [number, argument]) in (0..).zip(calls) {
            m.domain.memory.write_u64(Gpa::new(AREA + index * 48), number).unwrap();
            m.domain.memory.write_u64(Gpa::new(AREA + index * 48 + 8), argument).unwrap();
        }
        write(m, door::CALLS, AREA as u32 | 3);
        assert_eq!(m.host.calls, [], "the high half is to come");
        write(m, door::CALLS + 4, 0);
        let expected = [
            Operation::Event(EventCall::Send { port: 5 }),
            Operation::Channel(ChannelCall::Attach { channel: 33 }),
        ];
        assert_eq!(m.host.calls, expected);
        let answers: Vec<_> =
            (0..3).map(|index| m.domain.memory.read_u64(Gpa::new(AREA + index * 48 + 40)).unwrap()).collect();
        assert_eq!(answers, [caisson_abi::VERSION, 7, 7]);
        assert_eq!((read(m, door::ANSWER), read(m, door::ANSWER + 4)), (3, 0));
        // A list that is nowhere.
        write(m, door::CALLS, 0x4000_0001);
        write(m, door::CALLS + 4, 0);
        let answer = u64::from(read(m, door::ANSWER)) | u64::from(read(m, door::ANSWER + 4)) << 32;
        assert_eq!(CallError::of_answer(answer), Some(CallError::Fault));
    });
}

#[test]
fn two_registers_make_a_call_each() {
    backend(|m| {
        write(m, door::SEND, 9);
        write(m, door::SEND, 5000);
        write(m, door::INTERRUPT, 64);
        write(m, door::INTERRUPT, 0x1_0000);
        let expected = [
            Operation::Event(EventCall::Send { port: 9 }),
            Operation::Channel(ChannelCall::Interrupt { channel: 64, reasons: 1 }),
        ];
        assert_eq!(m.host.calls, expected);
    });
}

#[test]
fn without_the_privilege_the_door_does_nothing() {
    backend(|m| {
        m.domain.open_door(Gpa::new(AREA), Privileges::empty());
        write(m, door::SEND, 9);
        write(m, door::INTERRUPT, 64);
        assert_eq!(m.host.calls, []);
    });
}

/// The function's command and status registers.
fn command(m: &mut Machine<'_>) -> u32 {
    m.out(0xcf8, 4, 1 << 31 | 30 << 11 | 4).resumes();
    m.inp(0xcfc, 4)
}

/// The end of an interrupt, and what comes then.
fn next(m: &mut Machine<'_>) -> Vec<u8> {
    m.eoi(0);
    m.interrupts(0, true);
    assert!(m.settle(0));
    vectors(&m.delivered(0))
}

#[test]
fn its_interrupt_is_sent_once_and_masked_until_it_is_acknowledged() {
    backend(|m| {
        assert_eq!(command(m), 2);
        m.domain.ring(&mut m.host);
        assert_eq!(read(m, door::STATUS), 1);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [VECTOR]);
        // The kernel's part: it finds the function asserted, and masked already.
        assert_eq!(command(m), 1 << 19 | 0x402);
        m.domain.ring(&mut m.host);
        assert_eq!(next(m), [], "one interrupt until somebody has looked");
        write(m, door::STATUS, 0);
        assert_eq!((read(m, door::STATUS), command(m)), (0, 2));
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), []);
        m.domain.ring(&mut m.host);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [VECTOR]);
    });
}

#[test]
fn an_interrupt_while_one_is_under_way_comes_after_it() {
    backend(|m| {
        m.domain.ring(&mut m.host);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [VECTOR]);
        // Acknowledged on another CPU before this one has ended it; what comes now its handler may not have seen.
        write(m, door::STATUS, 0);
        m.domain.ring(&mut m.host);
        assert_eq!(command(m), 1 << 19 | 2, "not masked: nobody has taken it yet");
        assert_eq!(next(m), [VECTOR]);
        // A kernel masks it then, and user space's acknowledgement ends that as well.
        m.out(0xcfc, 2, 0x402).resumes();
        assert_eq!(next(m), []);
        write(m, door::STATUS, 0);
        assert_eq!(command(m), 2);
    });
}

#[test]
fn an_interrupt_of_a_masked_pin_waits() {
    backend(|m| {
        m.route_pin(20, 0x1_8000 | u32::from(VECTOR));
        m.domain.ring(&mut m.host);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), []);
        assert_eq!(command(m), 1 << 19 | 2);
        m.route_pin(20, 0x8000 | u32::from(VECTOR));
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [VECTOR]);
    });
}

#[test]
fn its_pin_can_be_any_that_pci_has() {
    backend(|m| {
        for pin in [0, 4, 9, 15, 24, 0xff, 0x114] {
            write(m, door::PIN, pin);
            assert_eq!(read(m, door::PIN), 0xff, "{pin}");
            m.domain.ring(&mut m.host);
        }
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), []);
        write(m, door::PIN, 20);
        assert!(m.settle(0));
        assert_eq!(vectors(&m.delivered(0)), [VECTOR], "what waits is there when the pin is known");
    });
}
