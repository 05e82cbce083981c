//! Events: injection, windows, and the blocking of NMIs (APM vol. 2, sections 15.20 and 15.21).

use caisson_hwvirt::{Event, InterruptWindow};
use caisson_x86::svm::{EventInjection, EventKind, ExitCode, Intercepts};
use caisson_x86::{Cr0, ExceptionKind, Rflags};

use crate::vcpu::{INTERCEPTED_CR, INTERCEPTED_EXCEPTIONS, SvmVcpu, V_INTR_MASKING};

/// The exit for #DB.
pub(crate) const DEBUG_EXCEPTION: ExitCode = ExitCode(ExitCode::EXCEPTION_0.0 + 1);
/// What an IRET can raise (#TS, #NP, #SS, #GP, #PF), beside #AC, which always exits.
const IRET_FAULTS: u32 = 0x1f << 10;
const ALIGNMENT_CHECK: u32 = 1 << 17;

/// Fields of the virtual-interrupt word (appendix B). A pending virtual interrupt whose intercept is set exits when the
/// guest could take it: that is the interrupt window. Without the intercept the guest takes it, before its next instruction.
const V_IRQ: u64 = 1 << 8;
const V_INTR_PRIO_SHIFT: u32 = 16;
const V_INTR_PRIO: u64 = 0xf << V_INTR_PRIO_SHIFT;
const V_IGN_TPR: u64 = 1 << 20;
const V_INTR_VECTOR_SHIFT: u32 = 32;
const V_INTR_VECTOR: u64 = 0xff << V_INTR_VECTOR_SHIFT;
/// A virtual interrupt, whatever the task priority.
const V_REQUEST: u64 = V_IRQ | V_INTR_PRIO | V_IGN_TPR;
/// Intercept of writes to CR8.
const CR8_WRITE: u32 = 1 << (16 + 8);
const DR6_SINGLE_STEP: u64 = 1 << 14;

/// What the CPU does not keep of NMIs: it delivers one that is injected, and forgets.
///
/// An injected NMI blocks further ones until the guest's IRET has completed. The intercept of IRET comes before it is
/// executed; one instruction is then stepped over, so that the next NMI does not arrive inside the handler.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct NmiState {
    /// An NMI was delivered, and its handler has not returned.
    pub(crate) blocked: bool,
    /// The core waits for the end of blocking.
    pub(crate) window: bool,
    /// RIP of the IRET that is being stepped over.
    pub(crate) returning: Option<u64>,
    /// RFLAGS.TF was set for the step, and was not the guest's.
    pub(crate) stepping: bool,
}

impl NmiState {
    /// Whether an exit may mean something for it: otherwise no IRET exits, and no #DB is one of ours.
    pub(crate) const fn is_watched(&self) -> bool {
        self.blocked || self.returning.is_some()
    }
}

impl SvmVcpu {
    pub(crate) fn cancel_events(&mut self) {
        self.vmcb.set_event_injection(EventInjection::NONE);
        self.vmcb.set_virtual_interrupt(V_INTR_MASKING);
        self.delivering = false;
        self.vmcb.set_intercept_cr(INTERCEPTED_CR);
        self.nmi = NmiState::default();
        self.vmcb.set_intercept_exceptions(INTERCEPTED_EXCEPTIONS);
        let intercepts = self.vmcb.intercepts() - Intercepts::VINTR - Intercepts::IRET;
        self.vmcb.set_intercepts(intercepts);
    }

    pub(crate) fn inject_event(&mut self, event: Event) {
        let injection = match event {
            Event::Interrupt(vector) if self.shared.repeats_interrupts && self.is_open() => {
                return self.inject_virtual_interrupt(vector);
            }
            Event::Interrupt(vector) => EventInjection::new(EventKind::Interrupt, vector, None),
            Event::Nmi => {
                self.nmi.blocked = true;
                self.watched = true;
                let intercepts = self.vmcb.intercepts() | Intercepts::IRET;
                self.vmcb.set_intercepts(intercepts);
                EventInjection::new(EventKind::Nmi, 2, None)
            }
            Event::Exception(exception) => {
                if exception.kind == ExceptionKind::PageFault {
                    self.vmcb.set_cr2(exception.address);
                }
                // Real mode pushes no error codes.
                let pushes = exception.kind.has_error_code() && self.vmcb.cr0() & Cr0::PE.bits() != 0;
                let code = pushes.then_some(exception.error_code);
                EventInjection::new(EventKind::Exception, exception.kind as u8, code)
            }
            Event::SoftwareException(vector) => EventInjection::new(EventKind::Exception, vector, None),
            Event::SoftwareInterrupt { vector, .. } => {
                EventInjection::new(EventKind::SoftwareInterrupt, vector, None)
            }
        };
        self.vmcb.set_event_injection(injection);
    }

    /// Whether the guest takes an interrupt before its next instruction.
    fn is_open(&self) -> bool {
        self.vmcb.rflags() & Rflags::IF.bits() != 0 && self.vmcb.interrupt_shadow() & 1 == 0
    }

    /// An interrupt by way of V_IRQ (section 15.21.4) and not of EVENTINJ, on a CPU that repeats what comes by the latter.
    fn inject_virtual_interrupt(&mut self, vector: u8) {
        let intercepts = self.vmcb.intercepts();
        if intercepts.contains(Intercepts::VINTR) {
            self.vmcb.set_intercepts(intercepts - Intercepts::VINTR);
        }
        let word = self.vmcb.virtual_interrupt() & !V_INTR_VECTOR;
        self.vmcb.set_virtual_interrupt(word | V_REQUEST | u64::from(vector) << V_INTR_VECTOR_SHIFT);
        self.delivering = true;
        self.watched = true;
    }

    /// After the exit that followed [`SvmVcpu::inject_virtual_interrupt`]: what the guest has not taken, because an event of the
    /// machine's came first, shows as an interrupted event, as one of EVENTINJ's does.
    pub(crate) fn end_delivery(&mut self) {
        let word = self.vmcb.virtual_interrupt();
        if let Some(vector) = not_taken(word, self.is_open()) {
            self.vmcb.set_exit_int_info(EventInjection::new(EventKind::Interrupt, vector, None));
        }
        self.vmcb.set_virtual_interrupt(word & !(V_REQUEST | V_INTR_VECTOR));
        self.delivering = false;
    }

    /// Asks for the exit at which the guest can take an interrupt: that of a virtual interrupt, or that of a write to
    /// CR8 where the task priority holds it back.
    ///
    /// The CPU could compare priorities itself, but not every one does as section 15.21.4 says: QEMU's emulated one takes
    /// an interrupt of the same priority, and aborts when a guest writes CR8 while a virtual interrupt is pending.
    pub(crate) fn set_window(&mut self, window: InterruptWindow) {
        let request = match window {
            InterruptWindow::Closed | InterruptWindow::Above(_) => 0,
            InterruptWindow::Any => V_REQUEST,
        };
        let cr = INTERCEPTED_CR | if window == InterruptWindow::Closed { 0 } else { CR8_WRITE };
        if self.vmcb.intercept_cr() != cr {
            self.vmcb.set_intercept_cr(cr);
        }
        let intercepts = self.vmcb.intercepts();
        if request == 0 && !intercepts.contains(Intercepts::VINTR) {
            return;
        }
        if self.delivering {
            // There is one virtual interrupt, and the window is to be that.
            let vector = (self.vmcb.virtual_interrupt() >> V_INTR_VECTOR_SHIFT) as u8;
            self.vmcb.set_event_injection(EventInjection::new(EventKind::Interrupt, vector, None));
            self.delivering = false;
        }
        let word = self.vmcb.virtual_interrupt() & !(V_REQUEST | V_INTR_VECTOR);
        self.vmcb.set_virtual_interrupt(word | request);
        let kept = intercepts - Intercepts::VINTR;
        self.vmcb.set_intercepts(if request == 0 { kept } else { kept | Intercepts::VINTR });
    }

    pub(crate) fn block_nmis(&mut self, blocked: bool) {
        self.nmi.blocked = blocked;
        self.watched = true;
        let intercepts = self.vmcb.intercepts() - Intercepts::IRET;
        self.vmcb.set_intercepts(if blocked { intercepts | Intercepts::IRET } else { intercepts });
    }

    /// The guest is about to execute the IRET of its NMI handler: steps over it where the core waits for its end.
    ///
    /// The flag for that is the guest's RFLAGS.TF, which must show nowhere else: whatever of the guest's could save it (an
    /// exception of the IRET's own) exits instead, and [`SvmVcpu::nmi_return_ended`] takes it back at the next exit.
    pub(crate) fn nmi_return_begins(&mut self) {
        let intercepts = self.vmcb.intercepts() - Intercepts::IRET;
        self.vmcb.set_intercepts(intercepts);
        self.nmi.returning = Some(self.vmcb.rip());
        if self.nmi.window && self.vmcb.rflags() & Rflags::TF.bits() == 0 {
            let rflags = self.vmcb.rflags() | Rflags::TF.bits();
            self.vmcb.set_rflags(rflags);
            self.vmcb.set_intercept_exceptions(INTERCEPTED_EXCEPTIONS | IRET_FAULTS);
            self.nmi.stepping = true;
        }
    }

    /// Called at the exit, of code `code`, after [`SvmVcpu::nmi_return_begins`]. `true` when NMIs have just become possible
    /// and the core waits for that. An IRET that has not been executed yet is intercepted once more.
    pub(crate) fn nmi_return_ended(&mut self, code: ExitCode) -> bool {
        let stepping = self.nmi.stepping;
        let stepped = stepping && code == DEBUG_EXCEPTION && self.vmcb.dr6() & DR6_SINGLE_STEP != 0;
        let there = self.nmi.returning.take() == Some(self.vmcb.rip()) && !stepped;
        if stepping {
            // A #DB is still to be told from the guest's own.
            self.nmi.stepping = code == DEBUG_EXCEPTION;
            self.vmcb.set_intercept_exceptions(INTERCEPTED_EXCEPTIONS);
            if there {
                let rflags = self.vmcb.rflags() & !Rflags::TF.bits();
                self.vmcb.set_rflags(rflags);
            }
        }
        if there && !is_iret_fault(code) {
            let intercepts = self.vmcb.intercepts() | Intercepts::IRET;
            self.vmcb.set_intercepts(intercepts);
            return false;
        }
        // An IRET that faults has ended the blocking all the same (SDM vol. 3, section 7.7.1).
        self.nmi.blocked = false;
        core::mem::take(&mut self.nmi.window)
    }

    /// A #DB exit: `true` when it is only the step over an IRET, which the guest must not see.
    pub(crate) fn swallow_step(&mut self) -> bool {
        if !core::mem::take(&mut self.nmi.stepping) {
            return false;
        }
        let dr6 = self.vmcb.dr6();
        self.vmcb.set_dr6(dr6 & !DR6_SINGLE_STEP);
        // Anything beside the step (a breakpoint of the guest's) is the guest's.
        dr6 & DR6_SINGLE_STEP != 0 && dr6 & 0xf == 0
    }
}

/// Whether the exit is for a fault that an IRET can raise.
fn is_iret_fault(code: ExitCode) -> bool {
    let vector = code.0.wrapping_sub(ExitCode::EXCEPTION_0.0);
    vector < 32 && (IRET_FAULTS | ALIGNMENT_CHECK) & 1 << vector != 0
}

/// The virtual interrupt that a guest has not taken, by the virtual-interrupt word after the exit. One that cannot take it any more has:
/// it was able to at its entry. QEMU's translator leaves V_IRQ set where the delivery itself has raised an exception.
fn not_taken(word: u64, open: bool) -> Option<u8> {
    (word & V_IRQ != 0 && open).then_some((word >> V_INTR_VECTOR_SHIFT) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_taken_unless_the_guest_could_still_take_it() {
        let word = V_INTR_MASKING | V_REQUEST | 0xec << V_INTR_VECTOR_SHIFT | 7;
        assert_eq!(not_taken(word, true), Some(0xec));
        assert_eq!(not_taken(word, false), None);
        assert_eq!(not_taken(word & !V_IRQ, true), None);
    }
}
