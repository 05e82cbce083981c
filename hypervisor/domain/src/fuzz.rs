//! Entry point for fuzz targets and property tests: a guest of two vCPUs that does what the bytes say.
//!
//! Exits of every class with registers, memory and hardware details of the input's choosing; between them the guest
//! changes what it can change without an exit. After each step the invariants of [`crate::testing::Machine`] must hold:
//! one event an entry at most, none for a guest that cannot take it, and no interrupt waits without an exit to come.

use alloc::vec::Vec;

use caisson_hwvirt::{
    DebugAccess, Direction, Event, Exit, IoExit, NestedFault, TaskSwitch, TaskSwitchSource, VcpuState,
};
use caisson_irqchip::TriggerMode;
use caisson_types::{Gpa, GuestMemory};
use caisson_x86::{
    Attributes, CpuMode, DescriptorTable, Exception, ExceptionKind, Gpr, Rflags, Segment, SegmentRegister,
    msr,
};

use crate::testing::{CODE, FakeHw, Machine};
use crate::{Ended, Host, Outcome, Readiness, RunState};

/// RAM of the guest.
const RAM: usize = 128 << 10;
/// Steps of one input.
const STEPS: usize = 400;
/// Where vCPU 1 starts.
const START_PAGE: u8 = 8;

/// Ports with something behind them.
const PORTS: [u16; 16] =
    [0x20, 0x21, 0xa0, 0x40, 0x43, 0x60, 0x64, 0x70, 0x71, 0x92, 0x3f8, 0x3f9, 0x600, 0x604, 0xcf8, 0xcf9];
/// Instructions that reach devices, at the addresses that they are given in RDI, RSI and RBX.
const CODES: [&[u8]; 12] = [
    &[0x89, 0x03],
    &[0x8b, 0x03],
    &[0xf3, 0xab],
    &[0xf3, 0xa5],
    &[0x87, 0x03],
    &[0x01, 0x03],
    &[0x0f, 0xb6, 0x03],
    &[0xf3, 0x6e],
    &[0x6c],
    &[0x0f, 0x22, 0xe3],
    &[0x0f, 0x22, 0xc3],
    &[0x0f, 0xa2],
];
const MSRS: [u32; 17] = [
    msr::TSC,
    msr::APIC_BASE,
    msr::TSC_ADJUST,
    msr::TSC_DEADLINE,
    msr::PAT,
    msr::EFER,
    msr::KVM_SYSTEM_TIME_NEW,
    msr::KVM_WALL_CLOCK_NEW,
    msr::KVM_PV_EOI_EN,
    msr::KVM_STEAL_TIME,
    0x808,
    0x80b,
    0x80f,
    0x830,
    0x832,
    0x835,
    0x83f,
];

/// Bytes to draw from; zeros once they are used up.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn u8(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.u8()))
    }

    /// A value of a length of its own, so that small ones are frequent.
    fn value(&mut self) -> u64 {
        let bytes = usize::from(self.u8() % 9);
        self.number(bytes)
    }

    /// An address: RAM, a device, nothing.
    fn address(&mut self) -> u64 {
        let offset = self.number(2);
        match self.u8() % 10 {
            0..=2 => 0xfee0_0000 | offset & 0xff0,
            3 | 4 => 0xfec0_0000 | offset & 0x50,
            5 => 0xfee0_0ffc + (offset & 7),
            6 => offset,
            7 | 8 => 0xfeb0_0000 | offset & 0x80fc,
            _ => self.value(),
        }
    }

    fn event(&mut self) -> Event {
        let vector = self.u8();
        match self.u8() % 5 {
            0 => Event::Interrupt(vector | 0x20),
            1 => Event::Nmi,
            2 => Event::SoftwareException(3 + (vector & 1)),
            3 => Event::SoftwareInterrupt { vector, length: 2 },
            _ => Event::Exception(self.exception()),
        }
    }

    fn exception(&mut self) -> Exception {
        let kind = ExceptionKind::from_vector(self.u8() % 22).unwrap_or(ExceptionKind::PageFault);
        Exception { kind, error_code: self.number(1) as u32, address: self.value() }
    }

    fn io(&mut self, rip: u64) -> IoExit {
        let port = match self.u8() {
            n @ 0..=0xdf => PORTS[usize::from(n & 15)].wrapping_add(u16::from(n >> 6)),
            _ => self.number(2) as u16,
        };
        let shape = self.u8();
        let told = shape & 8 != 0;
        IoExit {
            port,
            size: [1, 2, 4, 1][usize::from(shape & 3)],
            direction: if shape & 4 != 0 { Direction::In } else { Direction::Out },
            string: shape & 0x70 == 0x70,
            repeat: shape & 0x80 != 0,
            address_bits: if told { [16, 32, 64, 32][usize::from(shape >> 1 & 3)] } else { 0 },
            segment: told.then_some(SegmentRegister::Ds),
            next_rip: told.then(|| rip.wrapping_add(2)),
        }
    }

    /// An exit, with what the hardware tells of it.
    fn exit(&mut self, rip: u64) -> Exit {
        let gpr = |byte: u8| (byte & 1 != 0).then(|| Gpr::from_encoding(byte >> 1));
        match self.u8() % 29 {
            0 => Exit::Cpuid,
            1 | 2 => Exit::ReadMsr,
            3..=5 => Exit::WriteMsr,
            6..=8 => Exit::Io(self.io(rip)),
            9 => Exit::Hypercall,
            10 => Exit::Halt,
            11 => Exit::Pause,
            12..=15 => {
                let shape = self.u8();
                Exit::NestedFault(NestedFault {
                    gpa: Gpa::new(self.address()),
                    write: shape & 1 != 0,
                    fetch: shape & 0x1e == 0x1e,
                    present: shape & 0xe0 == 0xe0,
                    page_walk: shape & 0x70 == 0x70,
                })
            }
            16 => Exit::WriteCr4(gpr(self.u8())),
            17 => Exit::WriteCr0(gpr(self.u8())),
            18 => Exit::Debug(DebugAccess { register: self.u8() & 15, write: true, gpr: None }),
            19 => Exit::Xsetbv,
            20 => Exit::CacheFlush,
            21 => Exit::Unsupported,
            22 => Exit::ReadCounter,
            23 => Exit::WriteCr8(gpr(self.u8())),
            24 => Exit::ReadCr8(Gpr::from_encoding(self.u8())),
            25 => Exit::TaskSwitch(TaskSwitch {
                selector: self.number(2) as u16 & 0x1f,
                source: [TaskSwitchSource::Call, TaskSwitchSource::Jump, TaskSwitchSource::Return]
                    [usize::from(self.u8() % 3)],
                next_rip: self.flag().then(|| rip.wrapping_add(7)),
            }),
            26 => Exit::EndOfInterrupt(self.u8()),
            27 => Exit::ApicWrite { offset: self.number(2) as u16 & 0xfff },
            _ => Exit::Exception { vector: [1, 17][usize::from(self.u8() & 1)], error_code: 0, address: 0 },
        }
    }
}

/// Plays `data` against a domain of two vCPUs.
///
/// # Panics
/// Where an invariant does not hold: a bug of Caisson's.
pub fn drive(data: &[u8]) {
    let mut memory = alloc::vec![0; RAM];
    let mut source = Source(data);
    let shape = source.u8();
    let fit = |hw: FakeHw| if shape & 2 != 0 { hw.with_virtual_apic() } else { hw };
    let mut machine = Machine::on(&mut memory, 2, fit);
    if shape & 1 != 0 {
        let Machine { domain, vcpus, .. } = &mut machine;
        vcpus[0].set_virtual_wire(domain);
    }
    let _ = machine.domain.mailbox(1).post_sipi(START_PAGE);
    for _ in 0..STEPS {
        if source.0.is_empty() {
            break;
        }
        let index = usize::from(source.flag());
        outside(&mut machine, &mut source);
        match machine.enter(index) {
            Ok(exit) => {
                let outcome = match exit {
                    Exit::ExternalInterrupt if machine.vcpus[index].hw.interrupted.is_none() => {
                        guest(&mut machine, &mut source, index);
                        let exit = ending(&mut machine, &mut source, index);
                        machine.answer(index, exit)
                    }
                    other => machine.answer(index, other),
                };
                // A guest that has ended is as good as any: what it leaves behind must be as sound.
                if outcome == Outcome::Ended && machine.vcpus[index].ended() == Some(Ended::PowerOff) {
                    break;
                }
            }
            Err(Readiness::Ended(_)) => break,
            Err(_) => {}
        }
    }
}

/// What happens while the guest does not run: time passes, devices and other vCPUs act.
fn outside(machine: &mut Machine<'_>, source: &mut Source<'_>) {
    match source.u8() % 16 {
        0 => machine.pass(source.number(3)),
        1 => machine.timers(),
        2 => {
            let (vector, level) = (source.u8(), source.flag());
            let trigger = if level { TriggerMode::Level } else { TriggerMode::Edge };
            let _ = machine.domain.mailbox(usize::from(vector & 1)).post_vector(vector, trigger);
        }
        3 => {
            let _ = machine.domain.mailbox(usize::from(source.flag())).post_nmi();
        }
        4 => {
            let (line, level) = (source.u8() & 31, source.flag());
            let Machine { domain, host, .. } = machine;
            let mut chipset = domain.chipset();
            chipset.set_irq(line, level);
            let wake = domain.settle(&mut chipset);
            drop(chipset);
            host.wake(wake);
        }
        5 => {
            let byte = source.u8();
            let Machine { domain, host, .. } = machine;
            let _ = domain.console_input(byte, host);
        }
        6 => machine.host.room = usize::from(source.u8()),
        7 => {
            // The next delivery runs into a physical interrupt.
            machine.vcpus[usize::from(source.flag())].hw.obstacle = Some(Exit::ExternalInterrupt);
        }
        8 if machine.vcpus[1].run_state() == RunState::WaitForSipi => {
            let _ = machine.domain.mailbox(1).post_sipi(START_PAGE);
        }
        9 if source.u8() & 7 == 0 => {
            let _ = machine.domain.mailbox(1).post_init();
        }
        10 => {
            let (index, preempted) = (usize::from(source.flag()), source.flag());
            let stolen = source.value();
            let Machine { domain, vcpus, .. } = machine;
            vcpus[index].scheduled_out(domain, preempted);
            vcpus[index].scheduled_in(domain, stolen);
        }
        _ => {}
    }
}

/// What the guest does before its next exit.
fn guest(machine: &mut Machine<'_>, source: &mut Source<'_>, index: usize) {
    let vcpu = &mut machine.vcpus[index];
    let hw = &mut vcpu.hw;
    let ops = source.u8();
    if ops & 1 != 0 {
        hw.regs.rflags ^= Rflags::IF.bits();
    }
    if ops & 2 != 0 {
        hw.move_to_cr8(source.u8() & 15);
    }
    if ops & 4 != 0 {
        hw.iret();
    }
    hw.regs.shadow = ops & 0x18 == 0x18;
    if ops & 0xe0 == 0xe0 {
        hw.regs.rflags ^= Rflags::TF.bits();
    }
    // It ends an interrupt by its PV EOI word, whether that was offered or not.
    if ops & 0x60 == 0x20
        && let Some(word) = vcpu.pv_eoi
    {
        let _ = machine.domain.memory.write(word, &[0]);
    }
    // Registers, the mode, and the instruction at RIP.
    let hw = &mut vcpu.hw;
    for register in [Gpr::Rbx, Gpr::Rsi, Gpr::Rdi] {
        hw.set_gpr(register, source.address());
    }
    let rax = source.value();
    hw.set_gpr(Gpr::Rax, if rax & 0xf0 == 0x50 { rax & 0xf } else { rax });
    hw.set_gpr(Gpr::Rdx, source.value());
    let rcx = match source.u8() {
        n @ 0..=0x7f => u64::from(MSRS[usize::from(n) % MSRS.len()]),
        n @ 0x80..=0xbf => 0x800 + u64::from(n & 0x3f),
        _ => source.value(),
    };
    hw.set_gpr(Gpr::Rcx, rcx);
    mode(hw, source.u8());
    if source.u8() & 7 == 0 {
        tasks(machine, source, index);
    }
    let hw = &mut machine.vcpus[index].hw;
    let rip = if source.u8() == 0xff { source.value() } else { CODE * (index as u64 + 1) };
    hw.set_rip(rip);
    hw.regs.next_rip = source.flag().then(|| rip.wrapping_add(2));
    let choice = source.u8();
    let code: Vec<u8> = match CODES.get(usize::from(choice % 16)) {
        Some(code) => code.to_vec(),
        None => (0..15).map(|_| source.u8()).collect(),
    };
    let _ = machine.domain.memory.write(Gpa::new(rip), &code);
}

/// Descriptors and a task of its own for a vCPU, as they come.
fn tasks(machine: &mut Machine<'_>, source: &mut Source<'_>, index: usize) {
    const TABLE: u64 = 0x5000;
    const OLD: u64 = 0x5100;
    let hw = &mut machine.vcpus[index].hw;
    hw.set_gdtr(DescriptorTable { base: TABLE, limit: 0x3f });
    let attributes = Attributes([0x8b, 0x83][usize::from(source.flag())]);
    hw.set_segment(SegmentRegister::Tr, Segment { selector: 8, attributes, limit: 0x67, base: OLD });
    // A data and a code segment, flat, and tasks that are busy or not.
    let tasks = [0x8b_0000, 0x89_0000, 0x83_0000, 0x81_0000].map(|kind| {
        let base = 0x5200 + u64::from(source.u8()) * 0x10;
        0x67 | base << 16 | kind << 24
    });
    let flat = [0x00cf_9300_0000_ffff, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    for (slot, descriptor) in (1..).zip(tasks.into_iter().chain(flat)) {
        let _ = machine.domain.memory.write_u64(Gpa::new(TABLE + 8 * slot), descriptor);
    }
    for selector in 0x5200 / 2..0x6400 / 2 {
        let value = u32::from(source.u8() & 0x3f);
        let _ = machine.domain.memory.write(Gpa::new(selector * 2), &value.to_le_bytes()[..2]);
        if value == 0x3f {
            break;
        }
    }
}

/// The exit that ends the guest's run. Exits that no instruction asks for can come in the middle of a delivery.
fn ending(machine: &mut Machine<'_>, source: &mut Source<'_>, index: usize) -> Exit {
    let hw = &mut machine.vcpus[index].hw;
    let exit = source.exit(hw.rip());
    if matches!(exit, Exit::Exception { .. } | Exit::NestedFault(_) | Exit::TaskSwitch(_))
        && source.u8() & 3 == 0
    {
        let event = source.event();
        if !matches!(event, Event::Interrupt(_)) || hw.open() {
            hw.interrupted = Some(event);
        }
    }
    exit
}

/// Sometimes another mode of the CPU.
fn mode(hw: &mut FakeHw, choice: u8) {
    let (code, limit) = match choice {
        0..=0x0f => (Attributes::CODE16, 0xffff),
        0x10..=0x1f => (Attributes::CODE64, u32::MAX),
        0x20..=0xef => (Attributes::CODE32, u32::MAX),
        _ => return,
    };
    if choice & 0xf == 0xf {
        hw.set_cpl(choice >> 4 & 3);
    }
    hw.set_segment(SegmentRegister::Cs, Segment { selector: 8, attributes: code, limit, base: 0 });
    if hw.mode() == CpuMode::Real {
        hw.set_cr0(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_that_a_guest_does_panics(data in proptest::collection::vec(any::<u8>(), 0..6000)) {
            super::drive(&data);
        }
    }
}
