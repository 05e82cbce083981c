//! A well-behaved guest of two vCPUs under random load: every interrupt that was sent arrives, none arrives twice.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use caisson_hwvirt::{Event, VcpuState};
use caisson_irqchip::{TriggerMode, VectorSet};
use caisson_types::{Gpa, GuestMemory};
use caisson_x86::{Rflags, msr};

use super::{with, with_virtual_apic};
use crate::testing::{Machine, Resumes};
use crate::{Host, Outcome, RunState};

/// PV EOI words of the vCPUs.
const WORDS: [u64; 2] = [0x8000, 0x8100];

/// The vector of vCPU 0's level-triggered pin, and the pin.
const LEVEL: u8 = 0x25;
const PIN: u8 = 18;
/// The vector of the timers.
const TIMER: u8 = 0x26;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A device sends an edge.
    Post(usize, u8),
    /// A vCPU sends an IPI to a vCPU.
    Ipi(usize, usize, u8),
    /// A vCPU sends one to itself.
    SelfIpi(usize, u8),
    Nmi(usize),
    /// The line of a device rises; its handler lowers it.
    Line,
    /// A TSC deadline that has passed already.
    Passed(usize),
    /// A TSC deadline that comes, and is noticed by the core or by the guest's look at it.
    Deadline(usize, bool),
    Cli(usize),
    Sti(usize),
    Cr8(usize, u8),
    /// The innermost handler ends.
    Finish(usize),
    Halt(usize),
    /// The next delivery runs into a physical interrupt.
    Obstacle(usize),
    /// The next delivery runs into an exception.
    Exception(usize),
    Shadow(usize, bool),
    /// An exit that has nothing to do with interrupts.
    Cpuid(usize),
    Nothing,
}

fn step() -> impl Strategy<Value = Step> {
    let vcpu = 0..2_usize;
    let vector = 0x30..=0xff_u8;
    prop_oneof![
        4 => (vcpu.clone(), vector.clone()).prop_map(|(to, vector)| Step::Post(to, vector)),
        3 => (vcpu.clone(), vcpu.clone(), vector.clone()).prop_map(|(from, to, v)| Step::Ipi(from, to, v)),
        2 => (vcpu.clone(), vector).prop_map(|(vcpu, vector)| Step::SelfIpi(vcpu, vector)),
        1 => vcpu.clone().prop_map(Step::Nmi),
        2 => Just(Step::Line),
        1 => vcpu.clone().prop_map(Step::Passed),
        1 => (vcpu.clone(), any::<bool>()).prop_map(|(vcpu, core)| Step::Deadline(vcpu, core)),
        2 => vcpu.clone().prop_map(Step::Cli),
        3 => vcpu.clone().prop_map(Step::Sti),
        2 => (vcpu.clone(), 0..16_u8).prop_map(|(vcpu, priority)| Step::Cr8(vcpu, priority)),
        4 => vcpu.clone().prop_map(Step::Finish),
        1 => vcpu.clone().prop_map(Step::Halt),
        1 => vcpu.clone().prop_map(Step::Obstacle),
        1 => vcpu.clone().prop_map(Step::Exception),
        1 => (vcpu.clone(), any::<bool>()).prop_map(|(vcpu, shadow)| Step::Shadow(vcpu, shadow)),
        1 => vcpu.clone().prop_map(Step::Cpuid),
        6 => Just(Step::Nothing),
    ]
}

/// What a vCPU's software knows.
#[derive(Default)]
struct Software {
    /// Requested and not delivered.
    expected: VectorSet,
    /// Requested again after the local APIC had handed the first request over, and before its delivery.
    again: VectorSet,
    /// The handlers that it is in, innermost last.
    handlers: Vec<Event>,
    /// An NMI was sent and none delivered since.
    nmi: bool,
}

impl Software {
    /// Notes that `vector` is requested.
    fn request(&mut self, m: &Machine<'_>, index: usize, vector: u8) {
        if m.vcpus[index].postponed == Some(vector) {
            self.again.insert(vector);
        } else {
            self.expected.insert(vector);
        }
    }

    /// Notes what was delivered.
    fn take(&mut self, m: &mut Machine<'_>, index: usize) {
        for event in m.delivered(index) {
            match event {
                Event::Interrupt(vector) => {
                    assert!(self.expected.remove(vector), "{vector:#x} came twice");
                    if self.again.remove(vector) {
                        self.expected.insert(vector);
                    }
                    if vector == LEVEL {
                        line(m, false);
                    }
                }
                Event::Nmi => self.nmi = false,
                _ => {}
            }
            self.handlers.push(event);
        }
    }

    /// The innermost handler ends, by the word where it may.
    fn finish(&mut self, m: &mut Machine<'_>, index: usize) {
        let Some(event) = self.handlers.pop() else { return };
        if let Event::Interrupt(_) = event {
            let word = Gpa::new(WORDS[index]);
            let mut offered = [0];
            m.domain.memory.read(word, &mut offered).unwrap();
            if offered[0] & 1 != 0 {
                m.domain.memory.write(word, &[0]).unwrap();
            } else {
                m.eoi(index);
            }
        }
        m.vcpus[index].hw.iret();
    }
}

/// Drives the device's line.
fn line(m: &mut Machine<'_>, level: bool) {
    let mut chipset = m.domain.chipset();
    chipset.set_irq(PIN, level);
    let wake = m.domain.settle(&mut chipset);
    drop(chipset);
    m.host.wake(wake);
}

/// Both vCPUs up, in x2APIC mode, with PV EOI on the first and on the second where `paravirtual`.
fn boot(m: &mut Machine<'_>, paravirtual: bool) {
    m.x2apic(0);
    m.wrmsr(0, 0x830, 1 << 32 | 0x4500).resumes();
    assert!(!m.settle(1));
    m.wrmsr(0, 0x830, 1 << 32 | 0x4608).resumes();
    assert!(m.settle(1) && m.settle(0));
    m.x2apic(1);
    for (index, word) in WORDS.into_iter().enumerate() {
        if paravirtual || index == 0 {
            m.wrmsr(index, msr::KVM_PV_EOI_EN, word | 1).resumes();
        }
        m.wrmsr(index, 0x832, 2 << 17 | u64::from(TIMER)).resumes();
        m.interrupts(index, true);
    }
    m.store(0, 0xfec0_0000, 0x10 + 2 * u32::from(PIN)).resumes();
    m.store(0, 0xfec0_0010, 0x8000 | u32::from(LEVEL)).resumes();
    m.pass(1000);
}

fn play(m: &mut Machine<'_>, software: &mut [Software; 2], step: Step) {
    let running = |m: &Machine<'_>, index: usize| m.vcpus[index].run_state() == RunState::Running;
    match step {
        Step::Post(to, vector) => {
            software[to].request(m, to, vector);
            let _ = m.domain.mailbox(to).post_vector(vector, TriggerMode::Edge);
        }
        Step::Ipi(from, to, vector) if running(m, from) => {
            software[to].request(m, to, vector);
            m.wrmsr(from, 0x830, (to as u64) << 32 | u64::from(vector)).resumes();
        }
        Step::SelfIpi(index, vector) if running(m, index) => {
            software[index].request(m, index, vector);
            m.self_ipi(index, vector);
        }
        Step::Nmi(to) => {
            software[to].nmi = true;
            let _ = m.domain.mailbox(to).post_nmi();
        }
        Step::Line if !software[0].expected.contains(LEVEL) => {
            software[0].request(m, 0, LEVEL);
            line(m, true);
        }
        Step::Passed(index) if running(m, index) => {
            software[index].request(m, index, TIMER);
            m.wrmsr(index, msr::TSC_DEADLINE, 1).resumes();
        }
        Step::Deadline(index, core) if running(m, index) => {
            let tsc = m.rdmsr(index, msr::TSC);
            m.wrmsr(index, msr::TSC_DEADLINE, tsc + 100).resumes();
            m.pass(100);
            software[index].request(m, index, TIMER);
            if core {
                m.timers();
            } else {
                assert_eq!(m.rdmsr(index, msr::TSC_DEADLINE), 0);
            }
        }
        Step::Cli(index) if running(m, index) => m.interrupts(index, false),
        Step::Sti(index) if running(m, index) => m.interrupts(index, true),
        Step::Cr8(index, priority) if running(m, index) => m.vcpus[index].hw.move_to_cr8(priority),
        Step::Finish(index) if running(m, index) => software[index].finish(m, index),
        Step::Halt(index) if running(m, index) => {
            let _ = m.halt(index);
        }
        Step::Obstacle(index) => {
            m.vcpus[index].hw.obstacle = Some(caisson_hwvirt::Exit::ExternalInterrupt);
        }
        Step::Exception(index) => {
            let exit = caisson_hwvirt::Exit::Exception { vector: 17, error_code: 0, address: 0 };
            m.vcpus[index].hw.obstacle = Some(exit);
        }
        Step::Shadow(index, shadow) if running(m, index) => m.vcpus[index].hw.set_interrupt_shadow(shadow),
        Step::Cpuid(index) if running(m, index) => {
            m.vcpus[index].hw.ends_after(2);
            m.answer(index, caisson_hwvirt::Exit::Cpuid).resumes();
        }
        _ => {}
    }
}

/// Runs vCPU `index` until it just runs or waits.
fn run(m: &mut Machine<'_>, software: &mut Software, index: usize) {
    for _ in 0..100 {
        match m.enter(index) {
            Ok(exit) => {
                let settled = exit == caisson_hwvirt::Exit::ExternalInterrupt
                    && m.vcpus[index].hw.interrupted.is_none();
                let outcome = m.answer(index, exit);
                assert!(matches!(outcome, Outcome::Resume | Outcome::HostEvent), "{outcome:?}");
                software.take(m, index);
                if settled {
                    return;
                }
            }
            Err(_) => return,
        }
    }
    unreachable!("the guest makes no progress");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_interrupt_arrives_once(
        steps in proptest::collection::vec(step(), 0..200),
        paravirtual: bool,
        virtual_apic: bool,
    ) {
        let test = |m: &mut Machine<'_>| {
            boot(m, paravirtual);
            let mut software = [Software::default(), Software::default()];
            for step in steps {
                // An exit must have been entered for: the guest runs in between.
                for (index, software) in software.iter_mut().enumerate() {
                    run(m, software, index);
                }
                play(m, &mut software, step);
            }
            // The load ends; the guests finish what they are in, open everything, and must then be served by windows and
            // mail alone.
            for (index, software) in software.iter_mut().enumerate() {
                m.vcpus[index].hw.set_interrupt_shadow(false);
                for _ in 0..1000 {
                    run(m, software, index);
                    if m.vcpus[index].run_state() == RunState::Halted {
                        // HLT with interrupts off: an NMI gets it out.
                        let _ = m.domain.mailbox(index).post_nmi();
                        if m.vcpus[index].hw.nmi_blocked {
                            // In its NMI handler for good.
                            return;
                        }
                        continue;
                    }
                    m.vcpus[index].hw.move_to_cr8(0);
                    if software.handlers.is_empty() {
                        m.interrupts(index, true);
                    } else {
                        software.finish(m, index);
                    }
                }
                assert!(software.expected.is_empty(), "vCPU {index} lost {:?}", software.expected);
                assert!(!software.nmi, "vCPU {index} lost an NMI");
                let hw = &m.vcpus[index].hw;
                assert!(hw.rflags() & Rflags::IF.bits() != 0 && hw.injected.is_none());
                m.vcpus[index].load_apic();
                let apic = &m.vcpus[index].apic;
                assert!(apic.irr().is_empty() && (apic.isr().is_empty() || m.vcpus[index].pv_eoi_armed));
            }
        };
        if virtual_apic { with_virtual_apic(2, test) } else { with(2, test) }
    }
}
