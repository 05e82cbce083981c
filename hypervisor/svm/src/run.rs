//! The world switch (APM vol. 2, sections 15.5 and 15.6).

use core::arch::asm;

use caisson_hwvirt::svm::{RawExit, decode, decode_interrupted};
use caisson_hwvirt::{Event, Exit, InterruptWindow, Refusal, Vcpu};
use caisson_machine::cpu::write_msr;
use caisson_machine::percpu;
use caisson_x86::msr;
use caisson_x86::svm::{ExitCode, TlbControl};

use crate::event::DEBUG_EXCEPTION;
use crate::vcpu::{INTERCEPTED_DR, SvmVcpu, V_INTR_MASKING};

/// PRED_CMD.IBPB.
const PREDICTION_BARRIER: u64 = 1;
/// V_TPR of the virtual-interrupt word.
const V_TPR: u64 = 0xff;

/// Whether a CPU has left the guest twice for one entry, by the virtual-interrupt word of its VMCB: the second time it has
/// stored its own state in the place of the guest's. V_INTR_MASKING is set when the VMCB is made, and no correct CPU changes it.
fn own_state(virtual_interrupt: u64) -> Option<Refusal> {
    (virtual_interrupt & V_INTR_MASKING == 0).then_some(Refusal {
        check: "V_INTR_MASKING is always set: the CPU has put its own state in the place of the guest's, as QEMU's first CPU may",
        value: virtual_interrupt,
    })
}

impl SvmVcpu {
    /// Gives the vCPU an id of the generation in force, if it has none.
    #[inline]
    fn refresh_asid(&mut self) {
        if self.asid.generation != self.cpu.asids.generation() {
            let (asid, wrapped) = self.cpu.asids.allocate();
            self.asid = asid;
            self.vmcb.set_asid(asid.id);
            if wrapped {
                self.vmcb.set_tlb_control(TlbControl::FlushAll);
            }
        }
    }

    /// Enters the guest and comes back at its exit.
    #[inline]
    fn world_switch(&mut self) {
        let guest = self.vmcb.hpa().as_u64();
        let host = self.cpu.host.hpa().as_u64();
        let gprs = &raw mut self.gprs;
        // SAFETY: SVM is on. The VMCB is this vCPU's and its guest owns all memory that its tables map; every host
        // register that the guest changes is restored, saved on the stack, or declared as changed. GIF is clear from
        // CLGI to STGI, so that neither interrupt nor NMI arrives while the guest's TR and GS are loaded; STI only
        // tells VMRUN to let physical interrupts end the guest's run.
        unsafe {
            asm!(
                "push rbx",
                "push rbp",
                "push rdx",         // host VMCB
                "push rdi",         // guest registers
                "mov rcx, [rdi + 1*8]",
                "mov rdx, [rdi + 2*8]",
                "mov rbx, [rdi + 3*8]",
                "mov rbp, [rdi + 5*8]",
                "mov rsi, [rdi + 6*8]",
                "mov r8, [rdi + 8*8]",
                "mov r9, [rdi + 9*8]",
                "mov r10, [rdi + 10*8]",
                "mov r11, [rdi + 11*8]",
                "mov r12, [rdi + 12*8]",
                "mov r13, [rdi + 13*8]",
                "mov r14, [rdi + 14*8]",
                "mov r15, [rdi + 15*8]",
                "mov rdi, [rdi + 7*8]",
                "clgi",
                "sti",
                "vmload rax",
                "vmrun rax",
                "vmsave rax",
                "mov rax, [rsp + 8]",
                "vmload rax",
                "cli",
                "stgi",
                "pop rax",
                "mov [rax + 1*8], rcx",
                "mov [rax + 2*8], rdx",
                "mov [rax + 3*8], rbx",
                "mov [rax + 5*8], rbp",
                "mov [rax + 6*8], rsi",
                "mov [rax + 7*8], rdi",
                "mov [rax + 8*8], r8",
                "mov [rax + 9*8], r9",
                "mov [rax + 10*8], r10",
                "mov [rax + 11*8], r11",
                "mov [rax + 12*8], r12",
                "mov [rax + 13*8], r13",
                "mov [rax + 14*8], r14",
                "mov [rax + 15*8], r15",
                "pop rdx",
                "pop rbp",
                "pop rbx",
                inout("rax") guest => _,
                inout("rdi") gprs => _,
                inout("rdx") host => _,
                out("rcx") _, out("rsi") _,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            );
        }
    }

    /// Enters the guest once.
    #[inline]
    fn enter(&mut self) -> RawExit {
        self.refresh_asid();
        self.world_switch();
        let vmcb = &mut *self.vmcb;
        vmcb.set_clean(self.clean);
        vmcb.set_tlb_control(TlbControl::None);
        let raw = RawExit { code: vmcb.exit_code(), info_1: vmcb.exit_info_1(), info_2: vmcb.exit_info_2() };
        percpu::current().record_exit(self.id, raw.code.0, vmcb.rip());
        raw
    }

    /// What an exit means for an event that was on its way to its handler, or is in it. `None`: the guest is entered again.
    #[inline(never)]
    fn exit_amid_event(&mut self, raw: RawExit) -> Option<RawExit> {
        if self.delivering {
            self.end_delivery();
        }
        let raw = if self.nmi.is_watched() { self.exit_in_handler(raw) } else { Some(raw) };
        self.watched = self.delivering || self.nmi.is_watched();
        raw
    }

    /// What an exit means for a guest in its NMI handler, or on its way out of it.
    fn exit_in_handler(&mut self, raw: RawExit) -> Option<RawExit> {
        let returned = self.nmi.returning.is_some() && self.nmi_return_ended(raw.code);
        match raw.code {
            ExitCode::IRET => self.nmi_return_begins(),
            DEBUG_EXCEPTION if self.swallow_step() => {
                if returned {
                    return Some(RawExit { code: ExitCode::IRET, info_1: 0, info_2: 0 });
                }
            }
            _ => return Some(raw),
        }
        // What was being delivered is delivered now.
        if let Some(event) = self.take_interrupted_event() {
            self.inject_event(event);
        }
        None
    }
}

impl Vcpu for SvmVcpu {
    // With nested paging they are read as other entries are (section 15.25.10).
    const KEEPS_POINTERS: bool = false;

    type Raw = RawExit;

    #[inline]
    fn run(&mut self) -> RawExit {
        loop {
            let raw = self.enter();
            if !self.watched {
                return raw;
            }
            if let Some(raw) = self.exit_amid_event(raw) {
                return raw;
            }
        }
    }

    #[inline(always)]
    fn decode(&self, raw: RawExit) -> Exit {
        decode(raw, self.features)
    }

    fn inject(&mut self, event: Event) {
        self.inject_event(event);
    }

    #[inline]
    fn injecting(&self) -> bool {
        self.delivering || self.vmcb.event_injection().is_valid()
    }

    #[inline]
    fn has_interrupted_event(&self) -> bool {
        self.vmcb.exit_int_info().is_valid()
    }

    fn take_interrupted_event(&mut self) -> Option<Event> {
        decode_interrupted(self.vmcb.exit_int_info(), self.vmcb.cr2())
    }

    fn set_interrupt_window(&mut self, window: InterruptWindow) {
        self.set_window(window);
    }

    fn nmi_blocked(&self) -> bool {
        self.nmi.blocked
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.block_nmis(blocked);
    }

    fn set_nmi_window(&mut self, on: bool) -> bool {
        self.nmi.window = on;
        self.nmi.blocked
    }

    #[inline]
    fn cr8(&self) -> u8 {
        self.vmcb.virtual_interrupt() as u8 & 15
    }

    fn set_cr8(&mut self, priority: u8) {
        let word = self.vmcb.virtual_interrupt() & !V_TPR;
        self.vmcb.set_virtual_interrupt(word | u64::from(priority & 15));
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcb.set_tsc_offset(offset);
    }

    fn flush_tlb(&mut self) {
        self.flush_guest_tlb();
    }

    fn reset(&mut self, init: bool) {
        self.reset_registers(init);
    }

    fn switch_in(&mut self) {
        let cpu = percpu::current();
        let moved = self.last_cpu.replace(cpu.index()) != Some(cpu.index());
        if moved {
            // What this CPU has cached of a VMCB at this address, and under this vCPU's id, is of another time.
            self.vmcb.mark_dirty();
            self.drop_asid();
            self.cpu = self.shared.this_cpu();
        }
        // A vCPU that is new here may belong to a domain that has taken over another's id.
        let other_guest = cpu.begin_domain(self.id.domain) || moved;
        if other_guest && self.shared.prediction_barrier {
            // SAFETY: the CPU has the command; another guest's branches must not steer this one's.
            unsafe { write_msr(msr::PRED_CMD, PREDICTION_BARRIER) };
        }
        self.context.load();
    }

    fn switch_out(&mut self) {
        self.context.store();
        // A guest that has stopped using breakpoints gives the registers up.
        if self.context.debug_loaded() && self.vmcb.dr7() & 0xff == 0 {
            self.context.release_debug();
            self.vmcb.set_intercept_dr(INTERCEPTED_DR);
        }
    }

    fn load_debug_registers(&mut self) {
        self.context.load_debug();
        self.vmcb.set_intercept_dr(0);
    }

    fn hardware_msr(&self, msr: u32) -> Option<u64> {
        self.carried_msr(msr)
    }

    fn set_hardware_msr(&mut self, msr: u32, value: u64) -> bool {
        self.set_carried_msr(msr, value)
    }

    fn refusal(&self) -> Option<Refusal> {
        own_state(self.vmcb.virtual_interrupt())
    }

    fn xcr0(&self) -> u64 {
        self.context.xcr0()
    }

    fn set_xcr0(&mut self, value: u64) {
        self.context.set_xcr0(value);
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn the_state_of_a_cpu_is_told_from_a_guests() {
        assert_eq!(own_state(V_INTR_MASKING | 0x0f), None);
        assert!(own_state(0).unwrap().to_string().ends_with("(value 0x0)"));
    }
}
