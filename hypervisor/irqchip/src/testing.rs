//! Random traffic over the whole of the interrupt chips, for fuzz targets and property tests.
//!
//! [`drive`] reads its input as a sequence of operations on a machine of three vCPUs, an I/O APIC and an 8259 pair, and
//! asserts after every step what must hold whatever a guest does.

use caisson_types::Instant;
use caisson_x86::ApicPage;

use crate::{
    ApicConfig, ApicMap, Effect, InterruptMessage, IoApic, LintPin, LocalApic, MSR_X2APIC_FIRST, Mailbox,
    PicPair, TriggerMode, TscClock, VcpuSet, VectorSet,
};

const VCPUS: usize = 3;
const TSC_HZ: u64 = 2_500_000_000;

/// The rest of the input; zeros after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }
}

struct Vcpu {
    apic: LocalApic,
    mailbox: Mailbox,
    /// What has been posted since the last drain.
    posted: VectorSet,
    /// What hardware would show of the APIC.
    page: ApicPage,
}

struct Machine {
    vcpus: [Vcpu; VCPUS],
    map: ApicMap,
    ioapic: IoApic,
    pic: PicPair,
    now: Instant,
}

impl Machine {
    fn new() -> Self {
        let vcpus = [0, 1, 2].map(|id| Vcpu {
            apic: LocalApic::new(ApicConfig {
                timer_hz: [1_000_000_000, 100_000_007, 1][id],
                ..ApicConfig::new(id as u32)
            }),
            mailbox: Mailbox::new(),
            posted: VectorSet::new(),
            page: ApicPage::new(),
        });
        let mut machine = Self {
            vcpus,
            map: ApicMap::new(VCPUS),
            ioapic: IoApic::new(0),
            pic: PicPair::new(),
            now: Instant::ZERO,
        };
        for index in 0..VCPUS {
            let effect = machine.vcpus[index].apic.mmio_write(0xf0, 4, 0x1ff, Instant::ZERO);
            machine.perform(index, effect);
        }
        machine
    }

    /// As firmware leaves it: the last vCPU in x2APIC mode, the 8259 pair initialised.
    fn initialise(&mut self) {
        let effect = self.vcpus[VCPUS - 1].apic.write_apic_base(0xfee0_0c00);
        self.perform(VCPUS - 1, effect.unwrap_or(Effect::None));
        for (port, base) in [(0x20, 0x30), (0xa0, 0x38)] {
            self.pic.write(port, 0x11);
            for value in [base, 0, 1, 0] {
                self.pic.write(port + 1, value);
            }
        }
    }

    fn post(&mut self, message: &InterruptMessage, receivers: VcpuSet) {
        for index in receivers {
            let vcpu = &mut self.vcpus[index];
            let had_work = vcpu.mailbox.has_work();
            let wake = vcpu.mailbox.post(message);
            assert_eq!(wake, !had_work, "the first post wakes, and no other");
            if message.delivery.is_vectored() {
                vcpu.posted.insert(message.vector);
            }
        }
    }

    fn send(&mut self, message: &InterruptMessage) {
        let receivers = self.map.resolve(message);
        self.post(message, receivers);
        if receivers.is_empty() && message.trigger == TriggerMode::Level {
            self.ioapic.rejected(message);
        }
    }

    /// Bounded: an EOI sends at most one message a pin.
    fn send_all(&mut self, pins: impl FnOnce(&mut IoApic) -> [Option<InterruptMessage>; 24]) {
        for message in pins(&mut self.ioapic).into_iter().flatten() {
            self.send(&message);
        }
    }

    fn perform(&mut self, index: usize, effect: Effect) {
        match effect {
            Effect::SendIpi(ipi) => {
                let receivers = self.map.resolve_ipi(&ipi, index);
                self.post(&ipi.message, receivers);
            }
            Effect::BroadcastEoi(vector) => self.send_all(|io| collect(io.eoi(vector))),
            Effect::RoutingChanged => {
                self.map.update(index, &self.vcpus[index].apic.routing());
                self.send_all(|io| collect(io.resend()));
            }
            Effect::None | Effect::TimerChanged | Effect::TprChanged => {}
        }
    }

    /// What was posted is requested, once, and nothing else is.
    fn drain(&mut self, index: usize) {
        let vcpu = &mut self.vcpus[index];
        let before = *vcpu.apic.irr();
        let events = vcpu.apic.drain(&vcpu.mailbox);
        if vcpu.apic.mode() != crate::ApicMode::Disabled {
            for vector in 16..=255 {
                if vcpu.apic.irr().contains(vector) {
                    // An illegal vector among the posted ones may have raised the error interrupt.
                    let error = (0..16).any(|illegal| vcpu.posted.contains(illegal));
                    assert!(before.contains(vector) || vcpu.posted.contains(vector) || error, "from nowhere");
                } else {
                    assert!(!before.contains(vector) && !vcpu.posted.contains(vector), "lost {vector}");
                }
            }
        }
        vcpu.posted = VectorSet::new();
        assert!(!vcpu.mailbox.has_work());
        if events.init {
            vcpu.apic.init_reset();
            self.map.update(index, &vcpu.apic.routing());
        }
    }

    fn acknowledge(&mut self, index: usize) {
        let apic = &mut self.vcpus[index].apic;
        if let Some(vector) = apic.pending_vector() {
            let (requests, services) = (apic.irr().len(), apic.isr().len());
            let nested = !apic.isr().contains(vector);
            apic.acknowledge(vector);
            assert!(nested, "a vector in service interrupts itself");
            assert_eq!((apic.irr().len(), apic.isr().len()), (requests - 1, services + 1));
            assert_eq!(apic.ppr() >> 4, vector >> 4);
            assert_ne!(apic.pending_vector(), Some(vector));
        }
    }

    fn interrupt_from_pic(&mut self) {
        let output = self.pic.output();
        let before = self.pic.clone();
        let vector = self.pic.acknowledge();
        if !output {
            assert_eq!(vector & 7, 7, "spurious");
            assert_eq!(self.pic, before, "without a trace");
        }
    }

    fn access(&mut self, index: usize, input: &mut Input<'_>) {
        let now = self.now;
        let kind = input.byte();
        let apic = &mut self.vcpus[index].apic;
        let register = u64::from(input.byte());
        let effect = match kind % 6 {
            0 => {
                let _ = apic.mmio_read(register << 4 | u64::from(kind >> 4), input.byte(), now);
                Effect::None
            }
            1 => apic.mmio_write(register << 4, 4, input.number(4) as u32, now),
            2 => {
                let _ = apic.read_x2apic(MSR_X2APIC_FIRST + register as u32, now);
                Effect::None
            }
            3 => {
                let value = input.number(if kind & 0x80 != 0 { 8 } else { 3 });
                apic.write_x2apic(MSR_X2APIC_FIRST + register as u32, value, now).unwrap_or(Effect::None)
            }
            4 => apic.write_apic_base(0xfee0_0000 | register << 4 & 0xf00).unwrap_or(Effect::None),
            _ => {
                let tsc = now.as_nanos().wrapping_mul(5) / 2;
                let deadline = tsc.wrapping_add(input.number(4) << (register & 0x1f));
                let clock = TscClock { now, tsc, hz: TSC_HZ };
                apic.write_tsc_deadline(deadline, &clock).unwrap_or(Effect::None)
            }
        };
        self.perform(index, effect);
    }

    /// Answers which vCPU was asked something.
    fn step(&mut self, input: &mut Input<'_>) -> usize {
        let op = input.byte();
        let index = usize::from(op >> 4) % VCPUS;
        if op & 0x80 != 0 {
            let vcpu = &mut self.vcpus[index];
            let _ = vcpu.apic.store(&mut vcpu.page);
            assert!(!vcpu.apic.is_changed());
            let before = (*vcpu.apic.irr(), *vcpu.apic.isr(), vcpu.apic.ppr());
            vcpu.apic.load(&vcpu.page);
            assert_eq!(before, (*vcpu.apic.irr(), *vcpu.apic.isr(), vcpu.apic.ppr()), "a page loses nothing");
        }
        match op & 0xf {
            0..=3 => self.access(index, input),
            4 => {
                let (pin, level) = (usize::from(input.byte() & 0x1f), op & 0x10 != 0);
                if let Some(message) = self.ioapic.set_irq(pin, level) {
                    self.send(&message);
                }
            }
            5 => {
                let offset = [0, 0x10, 0x10, 0x40][usize::from(op >> 6)];
                let value = input.number(if offset == 0x10 { 4 } else { 1 }) as u32;
                self.send_all(|io| collect(io.mmio_write(offset, value)));
                let _ = self.ioapic.mmio_read(u64::from(input.byte()), 4);
            }
            6 => self.pic.set_irq(input.byte() & 0x1f, op & 0x10 != 0),
            7 => {
                let port = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1][usize::from(input.byte() % 6)];
                self.pic.write(port, input.byte());
                let _ = self.pic.read(port);
            }
            8 => self.interrupt_from_pic(),
            9 => {
                let (address, data) = (0xfee0_0000 | input.number(3) & 0xf_ffff, input.number(2) as u32);
                if let Some(message) = InterruptMessage::from_msi(address, data) {
                    self.send(&message);
                }
            }
            10 => self.drain(index),
            11 => self.acknowledge(index),
            12 => {
                let effect = self.vcpus[index].apic.eoi();
                self.perform(index, effect);
            }
            13 => {
                self.now = self.now + (input.number(2) << (op >> 4));
                let apic = &mut self.vcpus[index].apic;
                apic.advance(self.now);
                assert!(apic.next_deadline() > self.now, "what is due has fired");
            }
            14 => {
                let pin = if op & 0x10 == 0 { LintPin::Lint0 } else { LintPin::Lint1 };
                self.vcpus[index].apic.set_lint(pin, op & 0x20 != 0);
            }
            _ => {
                let apic = &mut self.vcpus[index].apic;
                apic.set_cr8(input.byte());
                if apic.may_skip_eoi() {
                    assert_eq!(apic.eoi_skipped(), Effect::None);
                }
                let _ = (apic.take_nmi(), apic.take_extint(), apic.accepts_extint());
            }
        }
        index
    }
}

fn collect(messages: impl Iterator<Item = InterruptMessage>) -> [Option<InterruptMessage>; 24] {
    let mut all = [None; 24];
    for (slot, message) in all.iter_mut().zip(messages) {
        *slot = Some(message);
    }
    all
}

/// Runs the operations that `data` encodes. Any input is fine.
///
/// # Panics
///
/// When an invariant is broken: a bug in this crate.
pub fn drive(data: &[u8]) {
    let mut input = Input(data);
    let mut machine = Machine::new();
    if input.byte() & 1 != 0 {
        machine.initialise();
    }
    while !input.0.is_empty() {
        let asked = machine.step(&mut input);
        machine.vcpus[asked].apic.assert_shown(&machine.vcpus[asked].page);
        for (index, vcpu) in machine.vcpus.iter().enumerate() {
            vcpu.apic.assert_invariants();
            assert_eq!(vcpu.apic.id() as usize, index);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn any_traffic_keeps_the_invariants(data in proptest::collection::vec(any::<u8>(), 0..4000)) {
            super::drive(&data);
        }
    }
}
