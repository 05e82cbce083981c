//! The dispatcher: what is done about each exit.

mod control;
mod hypercall;
mod io;
mod mmio;
mod msr;
mod task;

use caisson_emulate::{Opcode, instruction_end};
use caisson_hwvirt::{Exit, Vcpu};
use caisson_types::GuestMemory;
use caisson_x86::{Exception, ExceptionKind, Gpr, Rflags};

use crate::domain::{Domain, Host};
use crate::vcpu::{Ended, KillReason, Outcome, RunState, VirtualCpu};

/// DR6.BS.
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// The CPUID leaf whose sizes follow XCR0.
const XSTATE_LEAF: u32 = 0xd;

impl<V: Vcpu> VirtualCpu<V> {
    /// Answers an exit.
    #[inline(always)]
    pub fn answer<M: GuestMemory>(
        &mut self,
        domain: &Domain<M>,
        host: &mut impl Host,
        raw: V::Raw,
    ) -> Outcome {
        if self.hw.has_interrupted_event() {
            self.keep_interrupted();
        }
        let exit = self.hw.decode(raw);
        host.answering(exit.class());
        match exit {
            Exit::Cpuid => self.cpuid(domain),
            Exit::ReadMsr => self.read_msr(domain, host),
            Exit::WriteMsr => self.write_msr(domain, host),
            Exit::Io(io) => self.io(domain, host, &io),
            Exit::NestedFault(fault) => self.nested_fault(domain, host, fault),
            Exit::LogFull => Outcome::LogFull,
            Exit::Hypercall => self.hypercall(domain, host),
            Exit::ExternalInterrupt | Exit::Nmi => self.host_event(domain),
            Exit::Halt => self.halt(domain),
            Exit::InterruptWindow | Exit::NmiWindow => {
                self.attention = true;
                Outcome::Resume
            }
            Exit::Pause => self.skip(domain, Opcode::Pause, Outcome::Yield),
            Exit::WriteCr4(gpr) => self.write_cr4(domain, gpr),
            Exit::WriteCr0(gpr) => self.write_cr0(domain, gpr),
            Exit::WriteCr8(gpr) => self.write_cr8(domain, gpr),
            Exit::ReadCr8(gpr) => {
                self.hw.set_gpr(gpr, u64::from(self.hw.cr8()));
                self.skip(domain, Opcode::Control, Outcome::Resume)
            }
            Exit::EndOfInterrupt(vector) => self.end_of_interrupt(domain, host, vector),
            Exit::ApicWrite { offset } => self.apic_write(domain, host, offset),
            Exit::Debug(_) => {
                self.hw.load_debug_registers();
                Outcome::Resume
            }
            Exit::Xsetbv => self.xsetbv(domain),
            // Devices find in the caches what was written, unless their own driver has told them not to look there: flushing is no
            // more than slow, for everybody.
            Exit::CacheFlush => self.skip(domain, Opcode::CacheFlush, Outcome::Resume),
            Exit::Unsupported => self.raise(Exception::UNDEFINED),
            Exit::ReadCounter => self.raise(Exception::GENERAL_PROTECTION),
            Exit::Exception { vector, error_code, address } => self.exception(vector, error_code, address),
            Exit::X87Error => Self::x87_error(domain, host),
            Exit::TaskSwitch(switch) => self.task_switch(domain, switch),
            Exit::TripleFault => self.end(Ended::TripleFault { rip: self.hw.rip() }),
            Exit::Init => Outcome::MachineReset,
            Exit::EntryFailure { reason, qualification } => {
                self.end(Ended::Killed(KillReason::EntryFailure { reason, qualification }))
            }
            Exit::Unknown { reason, qualification } => {
                self.end(Ended::Killed(KillReason::UnknownExit { reason, qualification }))
            }
        }
    }

    /// The exit came in between an event and its handler.
    #[cold]
    fn keep_interrupted(&mut self) {
        if let Some(event) = self.hw.take_interrupted_event() {
            self.interrupted = Some(event);
            self.attention = true;
        }
    }

    /// Moves RIP behind the instruction that exited.
    ///
    /// Where its end cannot be told the guest has changed its code or its tables behind the CPU's back: its TLB entries
    /// go, and it runs the instruction again. What was done for it is done twice, which is its own affair.
    #[inline(always)]
    fn end_instruction<M: GuestMemory>(
        &mut self,
        domain: &Domain<M>,
        opcode: Opcode,
        outcome: Outcome,
    ) -> Outcome {
        match instruction_end(&self.hw, &domain.memory, opcode) {
            Ok(next) => {
                self.complete(next);
                outcome
            }
            Err(_) => {
                self.hw.flush_tlb();
                Outcome::Resume
            }
        }
    }

    /// [`Self::end_instruction`] where it need not be fast.
    #[inline(never)]
    fn skip<M: GuestMemory>(&mut self, domain: &Domain<M>, opcode: Opcode, outcome: Outcome) -> Outcome {
        self.end_instruction(domain, opcode, outcome)
    }

    /// Ends an instruction that was executed for the guest; a guest that steps gets its trap (SDM vol. 3, section
    /// 19.3.1.4).
    #[inline]
    fn complete(&mut self, next: u64) {
        self.hw.advance_to(next);
        self.trap_if_stepping();
    }

    #[inline]
    fn trap_if_stepping(&mut self) {
        if self.hw.rflags() & Rflags::TF.bits() != 0 {
            self.step_trap();
        }
    }

    /// #DB for a single step, unless an exception is on its way already.
    #[cold]
    fn step_trap(&mut self) {
        if !self.hw.injecting() {
            self.hw.set_dr6(self.hw.dr6() | DR6_SINGLE_STEP);
            let _ = self.raise(Exception::plain(ExceptionKind::Debug));
        }
    }

    #[inline(always)]
    fn cpuid<M: GuestMemory>(&mut self, domain: &Domain<M>) -> Outcome {
        self.mirrored.cr4 = self.hw.cr4();
        let (leaf, subleaf) = (self.hw.gpr(Gpr::Rax) as u32, self.hw.gpr(Gpr::Rcx) as u32);
        if leaf == XSTATE_LEAF {
            self.mirrored.xcr0 = self.hw.xcr0();
        }
        let result = domain.cpuid.lookup(leaf, subleaf, &self.mirrored);
        self.hw.set_gpr(Gpr::Rax, u64::from(result.eax));
        self.hw.set_gpr(Gpr::Rbx, u64::from(result.ebx));
        self.hw.set_gpr(Gpr::Rcx, u64::from(result.ecx));
        self.hw.set_gpr(Gpr::Rdx, u64::from(result.edx));
        self.end_instruction(domain, Opcode::Cpuid, Outcome::Resume)
    }

    fn halt<M: GuestMemory>(&mut self, domain: &Domain<M>) -> Outcome {
        let outcome = self.skip(domain, Opcode::Hlt, Outcome::Halted);
        if outcome == Outcome::Halted {
            self.run_state = RunState::Halted;
            self.attention = true;
        }
        outcome
    }

    /// An event of the host's has interrupted the guest.
    ///
    /// Between STI and HLT the HLT is executed here: QEMU's emulated SVM forgets the interrupt shadow at VMRUN, and an
    /// interrupt of the guest's that came in between would find it asleep ever after.
    fn host_event<M: GuestMemory>(&mut self, domain: &Domain<M>) -> Outcome {
        if self.hw.interrupt_shadow() && self.hw.cpl() == 0 {
            self.halt_in_shadow(domain);
        }
        Outcome::HostEvent
    }

    #[cold]
    fn halt_in_shadow<M: GuestMemory>(&mut self, domain: &Domain<M>) {
        if let Ok(next) = instruction_end(&self.hw, &domain.memory, Opcode::Hlt) {
            self.hw.advance_to(next);
            self.run_state = RunState::Halted;
            self.attention = true;
        }
    }

    /// An x87 error of a guest that takes it as a PC does, by the interrupt controllers: its FPU instruction waits until
    /// the interrupt has been served, and exits again for as long as the guest holds interrupts off.
    #[cold]
    fn x87_error<M>(domain: &Domain<M>, host: &mut impl Host) -> Outcome {
        let mut chipset = domain.chipset();
        chipset.coprocessor_error();
        let wake = domain.settle(&mut chipset);
        drop(chipset);
        host.wake(wake);
        Outcome::Yield
    }

    /// An exception that is intercepted for the host's sake only: the guest gets it.
    fn exception(&mut self, vector: u8, error_code: u32, address: u64) -> Outcome {
        match ExceptionKind::from_vector(vector) {
            Some(ExceptionKind::MachineCheck) => Outcome::MachineCheck,
            Some(kind) => self.raise(Exception {
                kind,
                error_code: if kind.has_error_code() { error_code } else { 0 },
                address: if kind == ExceptionKind::PageFault { address } else { 0 },
            }),
            None => self.end(Ended::Killed(KillReason::UnknownExit {
                reason: u64::from(vector),
                qualification: u64::from(error_code),
            })),
        }
    }
}
