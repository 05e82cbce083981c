//! Hypercalls: those of KVM's that stock Linux uses between vCPUs, and Caisson's own ([`caisson_abi`]).

use caisson_abi::{Call, CallResult, Operation, answer, answer_of, decode, kvm};
use caisson_emulate::Opcode;
use caisson_hwvirt::Vcpu;
use caisson_irqchip::{DeliveryMode, InterruptMessage};
use caisson_policy::Paravirt;
use caisson_types::GuestMemory;
use caisson_x86::{Efer, Gpr, SegmentRegister};

use crate::domain::{Domain, Host, work};
use crate::vcpu::{Outcome, VirtualCpu};

/// Bits of an ICR (SDM vol. 3, figure 11-12).
mod icr {
    pub(super) const LOGICAL: u32 = 1 << 11;
    pub(super) const ASSERT: u32 = 1 << 14;
    pub(super) const LEVEL: u32 = 1 << 15;
    pub(super) const SHORTHAND: u32 = 3 << 18;
}

/// The arguments, as wide as the caller's mode has them.
struct Arguments {
    values: [u64; 4],
    /// From 64-bit mode.
    long: bool,
}

impl<V: Vcpu> VirtualCpu<V> {
    #[inline]
    pub(super) fn hypercall<M: GuestMemory>(&mut self, domain: &Domain<M>, host: &mut impl Host) -> Outcome {
        let answer = match (self.hw.cpl(), self.hw.gpr(Gpr::Rax)) {
            (0, number @ caisson_abi::hypercall::FIRST..) if self.is_long() => {
                self.own_hypercall(domain, host, number)
            }
            (0, number) => return self.kvm_hypercall(domain, host, number),
            _ => answer::NOT_PERMITTED,
        };
        self.hw.set_gpr(Gpr::Rax, answer);
        self.end_instruction(domain, Opcode::Hypercall, Outcome::Resume)
    }

    /// Whether it is in 64-bit mode.
    fn is_long(&self) -> bool {
        self.hw.efer() & Efer::LMA.bits() != 0 && self.hw.segment(SegmentRegister::Cs).attributes.long()
    }

    /// One of Caisson's own, which only 64-bit mode can number.
    fn own_hypercall<M: GuestMemory>(
        &mut self,
        domain: &Domain<M>,
        host: &mut impl Host,
        number: u64,
    ) -> u64 {
        host.hypercall(number);
        let arguments = [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].map(|register| self.hw.gpr(register));
        answer_of(decode(number, arguments, domain.privileges).and_then(|call| domain.perform(host, call)))
    }

    #[inline(never)]
    fn kvm_hypercall<M: GuestMemory>(
        &mut self,
        domain: &Domain<M>,
        host: &mut impl Host,
        number: u64,
    ) -> Outcome {
        host.hypercall(number);
        let long = self.is_long();
        // Registers have garbage above 32 bits outside of 64-bit mode.
        let mask = if long { u64::MAX } else { u64::from(u32::MAX) };
        let values = [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].map(|register| self.hw.gpr(register) & mask);
        let arguments = Arguments { values, long };
        let mut outcome = Outcome::Resume;
        let announced = |feature| domain.msrs.paravirt.contains(feature);
        let answer = match number & mask {
            kvm::KICK_CPU if announced(Paravirt::PV_UNHALT) => {
                let [_, apic_id, ..] = arguments.values;
                if let Some(index) = domain.apics.index_of(apic_id as u32) {
                    host.wake(domain.post_work(index, work::KICK));
                }
                0
            }
            kvm::SEND_IPI if announced(Paravirt::PV_SEND_IPI) => send_ipi(domain, host, &arguments),
            kvm::SCHED_YIELD if announced(Paravirt::PV_SCHED_YIELD) => {
                let [apic_id, ..] = arguments.values;
                if let Some(index) = domain.apics.index_of(apic_id as u32).filter(|&to| to != self.index()) {
                    outcome = Outcome::YieldTo(index);
                }
                0
            }
            _ => answer::NO_SUCH_CALL,
        };
        self.hw.set_gpr(Gpr::Rax, answer);
        self.end_instruction(domain, Opcode::Hypercall, outcome)
    }
}

impl<M: GuestMemory> Domain<M> {
    /// Makes a call that has been decoded, and so is permitted.
    pub(crate) fn perform(&self, host: &mut impl Host, call: Call) -> CallResult {
        let mut one = |operation| match operation {
            Operation::Version => Ok(caisson_abi::VERSION),
            other => host.call(other),
        };
        match call {
            Call::One(operation) => one(operation),
            Call::Batch(list) => list.read(&self.memory, self.privileges)?.perform(&self.memory, one),
        }
    }
}

/// One IPI to many. As by an ICR it is edge-triggered, whatever its trigger bit says, and each receiver finds an illegal
/// vector by itself.
fn send_ipi<M>(domain: &Domain<M>, host: &mut impl Host, arguments: &Arguments) -> u64 {
    let [low, high, lowest, command] = arguments.values;
    let command = command as u32;
    if command & (icr::LOGICAL | icr::SHORTHAND) != 0 {
        return answer::INVALID;
    }
    let delivery = match DeliveryMode::from_bits(command >> 8) {
        None | Some(DeliveryMode::ExtInt | DeliveryMode::Smi) => return answer::INVALID,
        Some(DeliveryMode::Init) if command & (icr::LEVEL | icr::ASSERT) == icr::LEVEL => return 0,
        Some(delivery) => delivery,
    };
    let width = if arguments.long { 64 } else { 32 };
    let bitmap = u128::from(low) | u128::from(high) << width;
    let receivers = domain.apics.resolve_bitmap(bitmap, lowest as u32, delivery);
    let message = InterruptMessage { delivery, ..InterruptMessage::fixed(0, command as u8) };
    host.ipi(receivers, message.vector);
    host.wake(domain.post_to(receivers, &message));
    receivers.len() as u64
}
