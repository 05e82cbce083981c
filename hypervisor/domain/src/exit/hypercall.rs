//! Hypercalls: KVM's numbers and conventions, of which none is offered yet, and Caisson's own.

use caisson_emulate::Opcode;
use caisson_hwvirt::Vcpu;
use caisson_types::GuestMemory;
use caisson_x86::Gpr;

use crate::domain::Domain;
use crate::vcpu::{Outcome, VirtualCpu};

/// KVM's answer to a call from user mode: -EPERM.
const NOT_PERMITTED: u64 = -1i64 as u64;
/// KVM's answer to a call that it does not have: -KVM_ENOSYS.
const NO_SUCH_CALL: u64 = -1000i64 as u64;

impl<V: Vcpu> VirtualCpu<V> {
    #[inline]
    pub(super) fn hypercall<M: GuestMemory>(&mut self, domain: &Domain<M>) -> Outcome {
        let answer = if self.hw.cpl() != 0 { NOT_PERMITTED } else { self.call(self.hw.gpr(Gpr::Rax)) };
        self.hw.set_gpr(Gpr::Rax, answer);
        self.end_instruction(domain, Opcode::Hypercall, Outcome::Resume)
    }

    #[inline]
    fn call(&self, number: u64) -> u64 {
        match number {
            caisson_abi::hypercall::VERSION => caisson_abi::VERSION,
            _ => NO_SUCH_CALL,
        }
    }
}
