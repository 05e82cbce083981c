//! Events: injection, windows, and the blocking of NMIs (SDM vol. 3, sections 25.8.3, 26.3 and 27.6).

use caisson_hwvirt::vmx::{decode_interrupted, encode_event};
use caisson_hwvirt::{Event, InterruptWindow};
use caisson_x86::vmx::{
    EventInfo, EventType, ExitReason, Interruptibility, PendingDebug, ProcessorControls, field,
};
use caisson_x86::{ApicPage, Cr0, Exception, ExceptionKind, Rflags};

use crate::vcpu::VmxVcpu;
use crate::vmcs::Register;

/// DR7.GD: an access to a debug register raises #DB.
const DR7_GENERAL_DETECT: u64 = 1 << 13;
/// Of the qualification of an EPT violation or a full log: an IRET had unblocked NMIs (table 28-7, section 28.2.1).
const UNBLOCKED_NMIS: u64 = 1 << 12;
/// Bits of DR6 that a #DB sets: breakpoints, register access, single step.
const DR6_CAUSES: u64 = 0x600f;
const DR6_BREAKPOINTS: u64 = 0xf;

impl VmxVcpu {
    pub(crate) fn interruptibility(&self) -> Interruptibility {
        Interruptibility::from_bits_retain(self.vmcs.get(Register::Interruptibility) as u32)
    }

    pub(crate) fn set_interruptibility(&mut self, state: Interruptibility) {
        self.vmcs.set(Register::Interruptibility, u64::from(state.bits()));
    }

    pub(crate) fn cancel_events(&mut self) {
        self.injection = None;
        self.nmi_window = false;
        self.window = InterruptWindow::Closed;
        self.vmcs.set(Register::ProcessorControls, u64::from(self.shared.controls.processor));
        if self.virtual_apic.is_some() {
            self.vmcs.set(Register::TprThreshold, 0);
        }
    }

    pub(crate) fn inject_event(&mut self, event: Event) {
        let mut protected = true;
        if let Event::Exception(exception) = event {
            protected = self.vmcs.get(Register::Cr0) & Cr0::PE.bits() != 0;
            match exception.kind {
                ExceptionKind::PageFault => self.context.set_cr2(exception.address),
                ExceptionKind::Debug => {
                    let dr7 = self.vmcs.get(Register::Dr7);
                    self.vmcs.set(Register::Dr7, dr7 & !DR7_GENERAL_DETECT);
                }
                _ => {}
            }
        }
        self.injection = Some(encode_event(event, protected));
    }

    /// What the CPU says of the delivery that the last exit has interrupted, after such a kind of exit.
    #[inline]
    pub(crate) fn interrupted_info(&self) -> EventInfo {
        EventInfo(self.vmcs.get(Register::InterruptedEvent) as u32)
    }

    /// The event whose delivery the last exit interrupted.
    pub(crate) fn interrupted_event(&mut self) -> Option<Event> {
        let info = self.interrupted_info();
        let code = if info.has_error_code() { self.vmcs.read(field::INTERRUPTED_ERROR_CODE) } else { 0 };
        let event = decode_interrupted(info, code, self.context.cr2());
        if event == Some(Event::Nmi) {
            // Its delivery has blocked NMIs, and it is to be delivered again.
            self.set_interruptibility(self.interruptibility() - Interruptibility::NMI);
        }
        event
    }

    /// An IRET that exits for a fault of its own has unblocked NMIs by then, although it will be executed again
    /// (section 28.2.3).
    pub(crate) fn block_nmis_again(&mut self) {
        if self.interrupted_info().is_valid() {
            return;
        }
        let unblocked = if matches!(self.reason.basic(), ExitReason::EPT_VIOLATION | ExitReason::LOG_FULL) {
            self.vmcs.get(Register::Qualification) & UNBLOCKED_NMIS != 0
        } else {
            let event = self.exit_event();
            event.unblocked_nmis()
                && event.kind() != Some(EventType::Nmi)
                && event.vector() != ExceptionKind::DoubleFault as u8
        };
        if unblocked {
            self.set_interruptibility(self.interruptibility() | Interruptibility::NMI);
        }
    }

    /// #DB: the CPU leaves DR6 to software, which will deliver the exception.
    pub(crate) fn debug_exception(&mut self) {
        let event = self.exit_event();
        if event.kind() == Some(EventType::PrivilegedSoftwareException) {
            // INT1 is delivered with the RIP behind it.
            self.vmcs.set(Register::Rip, self.instruction_end());
            return;
        }
        let causes = self.vmcs.get(Register::Qualification) & DR6_CAUSES;
        let dr6 = self.context.dr6();
        self.context.set_dr6(dr6 & !DR6_BREAKPOINTS | causes);
        self.agree_on_single_step();
    }

    /// The exit came behind an instruction, before the debug trap that the instruction has made pending. An entry that delivers
    /// something else would drop it (section 27.7.3), and it goes first: so it is what the next entry delivers.
    #[inline]
    pub(crate) fn take_pending_trap(&mut self) {
        let stepped = self.vmcs.get(Register::Rflags) & Rflags::TF.bits() != 0;
        if stepped || self.context.debug_loaded() {
            self.deliver_pending_trap();
        }
    }

    #[cold]
    fn deliver_pending_trap(&mut self) {
        let pending = self.vmcs.read(field::GUEST_PENDING_DEBUG);
        let traps = PendingDebug::SINGLE_STEP | PendingDebug::ENABLED_BREAKPOINT;
        if pending & traps.bits() != 0 {
            self.vmcs.write(field::GUEST_PENDING_DEBUG, 0);
            let dr6 = self.context.dr6();
            self.context.set_dr6(dr6 & !DR6_BREAKPOINTS | pending & DR6_CAUSES);
            self.inject_event(Event::Exception(Exception::plain(ExceptionKind::Debug)));
        }
    }

    /// In the shadow of STI or MOV SS an entry wants a pending single step just where RFLAGS.TF is set (section
    /// 27.3.1.5).
    pub(crate) fn agree_on_single_step(&mut self) {
        if self.interruptibility().intersects(Interruptibility::STI | Interruptibility::MOV_SS) {
            let step = PendingDebug::SINGLE_STEP.bits();
            let pending = self.vmcs.read(field::GUEST_PENDING_DEBUG) & !step;
            let steps = self.vmcs.get(Register::Rflags) & Rflags::TF.bits() != 0;
            self.vmcs.write(field::GUEST_PENDING_DEBUG, if steps { pending | step } else { pending });
        }
    }

    /// The shadow has ended with the instruction that Caisson executed for the guest; so has the step that it put off.
    #[cold]
    pub(crate) fn end_shadow(&mut self) {
        let shadow = Interruptibility::STI | Interruptibility::MOV_SS;
        self.set_interruptibility(self.interruptibility() - shadow);
        if self.vmcs.get(Register::Rflags) & Rflags::TF.bits() != 0 {
            let pending = self.vmcs.read(field::GUEST_PENDING_DEBUG);
            self.vmcs.write(field::GUEST_PENDING_DEBUG, pending & !PendingDebug::SINGLE_STEP.bits());
        }
    }

    pub(crate) fn set_window(&mut self, window: InterruptWindow) {
        self.window = window;
        self.place_windows();
    }

    pub(crate) fn nmis_blocked(&self) -> bool {
        self.interruptibility().contains(Interruptibility::NMI)
    }

    pub(crate) fn block_nmis(&mut self, blocked: bool) {
        let state = self.interruptibility() - Interruptibility::NMI;
        self.set_interruptibility(if blocked { state | Interruptibility::NMI } else { state });
    }

    pub(crate) fn want_nmi_window(&mut self, on: bool) {
        // Which of the two windows it is may have changed.
        if on || self.nmi_window {
            self.nmi_window = on;
            self.place_windows();
        }
    }

    /// Puts both windows into the VMCS.
    fn place_windows(&mut self) {
        let mut controls = ProcessorControls::from_bits_retain(self.shared.controls.processor);
        if self.context.debug_loaded() {
            controls -= ProcessorControls::MOV_DR;
        }
        if self.window == InterruptWindow::Any {
            controls |= ProcessorControls::INTERRUPT_WINDOW;
        }
        if self.nmi_window {
            // Some CPUs open the NMI window in the shadow of STI, where an NMI must not be injected (section 26.2), and would
            // exit again and again. Interrupts are on there, and their window opens behind the shadow.
            controls |= if self.interruptibility().contains(Interruptibility::STI) {
                ProcessorControls::INTERRUPT_WINDOW
            } else {
                ProcessorControls::NMI_WINDOW
            };
        }
        self.vmcs.set(Register::ProcessorControls, u64::from(controls.bits()));
        self.place_threshold();
    }

    /// The task priority below which the guest's CR8 exits. An entry refuses one above the guest's own (section 27.2.1.1).
    pub(crate) fn place_threshold(&mut self) {
        if let Some(page) = &self.virtual_apic {
            let class = match self.window {
                InterruptWindow::Above(class) => class.min(page.get(ApicPage::TPR) as u8 >> 4),
                InterruptWindow::Closed | InterruptWindow::Any => 0,
            };
            self.vmcs.set(Register::TprThreshold, u64::from(class));
        }
    }

    /// Debug registers exit, or no longer.
    pub(crate) fn place_debug_exits(&mut self) {
        self.place_windows();
    }
}
