//! From mailbox, local APIC and 8259 pair into the guest.

use caisson_hwvirt::{ApicPlace, Event, InterruptWindow, Vcpu};
use caisson_irqchip::{APIC_DEFAULT_BASE, ApicMode};
use caisson_types::{Gpa, GuestMemory};
use caisson_x86::Rflags;

use crate::domain::{BOOT_VCPU, Domain, Host, work};
use crate::vcpu::{Ended, Readiness, RunState, VirtualCpu};

/// How long, in nanoseconds, an NMI waits for the next look where the hardware does not tell when it can be taken: time for
/// the guest to go on by some instructions.
const NMI_PATIENCE: u64 = 20_000;

/// What waits to interrupt the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waiting {
    /// A vector of the local APIC's.
    Vector(u8),
    /// The 8259 pair, which tells its vector when it is acknowledged.
    Pic,
    /// A vector that has been acknowledged before.
    Postponed(u8),
}

impl<V: Vcpu> VirtualCpu<V> {
    /// Called before each entry: puts what waits into the hardware. One load and one test when nothing waits.
    #[inline]
    pub fn prepare<M: GuestMemory>(&mut self, domain: &Domain<M>, host: &mut impl Host) -> Readiness {
        if !self.attention && !domain.mailbox(self.index()).has_work() {
            return Readiness::Enter;
        }
        self.prepare_slow(domain, host)
    }

    #[inline(never)]
    fn prepare_slow<M: GuestMemory>(&mut self, domain: &Domain<M>, host: &mut impl Host) -> Readiness {
        self.load_apic();
        let events = self.apic.drain(domain.mailbox(self.index()));
        self.settle_pv_eoi(domain);
        if events.init {
            if self.apic.is_bsp() {
                self.reset_requested = true;
            } else {
                self.init(domain);
            }
        }
        if self.reset_requested {
            self.attention = true;
            return Readiness::Ended(Ended::Reset);
        }
        if let Some(vector) = events.startup {
            self.start_up(vector);
        }
        if events.work != 0 {
            self.take_work(domain, events.work);
        }
        if self.run_state == RunState::WaitForSipi {
            // A vCPU that does not run is looked at whenever it is asked for.
            self.attention = true;
            return Readiness::Blocked;
        }
        if self.waits_for_backend {
            if domain.virtio.is_waiting() {
                self.attention = true;
                return Readiness::Blocked;
            }
            self.waits_for_backend = false;
        }
        self.attention = false;
        match self.interrupted.take() {
            Some(Event::Exception(exception)) => self.inject_exception(exception),
            Some(event) => self.hw.inject(event),
            None => {}
        }
        if self.kicked && self.run_state == RunState::Halted {
            self.end_halt();
        }
        let readiness = self.deliver(domain, host);
        if readiness == Readiness::Enter {
            self.store_apic();
        } else {
            self.attention = true;
        }
        readiness
    }

    /// What others have left for this vCPU beside interrupts.
    fn take_work<M: GuestMemory>(&mut self, domain: &Domain<M>, bits: u16) {
        self.pic_asserted |= bits & work::PIC != 0;
        self.deadline_changed |= bits & work::DEADLINE != 0;
        // Kept for the next HLT where there is none now: the guest may be on its way there.
        self.kicked |= bits & work::KICK != 0 && self.run_state != RunState::WaitForSipi;
        if bits & work::CLOCK != 0 {
            self.refresh_system_time(domain);
        }
    }

    /// The vCPU executes instructions. A kick that has come meanwhile has served its purpose.
    fn end_halt(&mut self) {
        if self.run_state == RunState::Halted {
            self.run_state = RunState::Running;
            self.kicked = false;
        }
    }

    /// Takes over what the guest may have changed of its local APIC without an exit: CR8, or all that the hardware keeps of a
    /// virtual one. To be called before the local APIC is asked for anything, or told of an interrupt.
    #[inline]
    pub(crate) fn load_apic(&mut self) {
        if let Some(page) = self.hw.apic_page() {
            return self.apic.load(page);
        }
        let priority = self.hw.cr8();
        // TPR's low half, which CR8 lacks, stays as long as the upper one does.
        if priority != self.apic.cr8() {
            self.apic.set_cr8(priority);
        }
    }

    /// Gives what has changed of the local APIC to the hardware, where that keeps a virtual one.
    #[inline]
    fn store_apic(&mut self) {
        if let Some(page) = self.hw.apic_page()
            && self.apic.is_changed()
        {
            let top = self.apic.store(page);
            self.hw.set_level_vectors(self.apic.level_vectors());
            if let Some(top) = top {
                self.hw.set_top_vectors(top);
            }
        }
    }

    /// Tells the hardware where the guest has its local APIC, and whether it is on.
    pub(crate) fn place_apic(&mut self) {
        let place = match self.apic.mode() {
            // What the hardware does by itself takes no heed of the software's switch.
            _ if !self.apic.is_software_enabled() => ApicPlace::Software,
            ApicMode::X2Apic => ApicPlace::Msrs,
            ApicMode::XApic if self.apic.mmio_base() == Some(Gpa::new(APIC_DEFAULT_BASE)) => {
                ApicPlace::Memory
            }
            _ => ApicPlace::Software,
        };
        self.hw.set_apic_place(place);
    }

    /// Delivers an NMI or an interrupt, or asks for the moment at which the guest can take it.
    fn deliver<M: GuestMemory>(&mut self, domain: &Domain<M>, host: &mut impl Host) -> Readiness {
        let open = self.hw.rflags() & Rflags::IF.bits() != 0;
        let mut nmi_in_shadow = false;
        if self.apic.nmi_pending() {
            // A HLT inside the NMI handler is not ended by the NMI that the handler blocks.
            if !self.hw.nmi_blocked() {
                self.end_halt();
            }
            if self.hw.injecting() || self.hw.nmi_blocked() || self.hw.interrupt_shadow() {
                if self.hw.nmi_blocked() {
                    self.apic.latch_nmis();
                }
                let announced = self.hw.set_nmi_window(true);
                self.attention = true;
                // The window of interrupts opens at the end of a shadow as well, where they are on.
                nmi_in_shadow = open && self.hw.interrupt_shadow();
                if !announced && (self.hw.injecting() || !nmi_in_shadow) {
                    self.look_again = domain.clock.at(host.tsc()) + NMI_PATIENCE;
                    self.deadline_changed = true;
                }
            } else {
                let _ = self.apic.take_nmi();
                self.hw.inject(Event::Nmi);
                // A second one waits for the handler's end.
                let _ = self.hw.set_nmi_window(self.apic.nmi_pending());
            }
        }
        let Some(waiting) = self.waiting(domain) else {
            let window = if nmi_in_shadow { InterruptWindow::Any } else { self.blocked_by_task_priority() };
            self.hw.set_interrupt_window(window);
            if open && self.hw.delivers_interrupts() && self.apic.pending_vector().is_some() {
                // The hardware does the rest.
                self.end_halt();
            }
            return self.readiness();
        };
        if self.run_state == RunState::Halted && !open && !self.hw.injecting() {
            // HLT with interrupts off: only an NMI, INIT or reset ends it.
            return Readiness::Blocked;
        }
        self.end_halt();
        if !open || self.hw.injecting() || self.hw.interrupt_shadow() {
            self.hw.set_interrupt_window(InterruptWindow::Any);
            return Readiness::Enter;
        }
        let vector = self.acknowledge(domain, host, waiting);
        self.hw.inject(Event::Interrupt(vector));
        host.injected(vector);
        let more = self.waiting(domain).is_some();
        let window = if more { InterruptWindow::Any } else { self.blocked_by_task_priority() };
        self.hw.set_interrupt_window(window);
        if !more && !self.hw.delivers_interrupts() {
            self.arm_pv_eoi(domain);
        }
        Readiness::Enter
    }

    fn readiness(&mut self) -> Readiness {
        if self.run_state == RunState::Running || self.hw.injecting() {
            // An event on its way (the trap of a stepped HLT) ends a halt.
            self.end_halt();
            Readiness::Enter
        } else {
            Readiness::Blocked
        }
    }

    fn waiting<M>(&mut self, domain: &Domain<M>) -> Option<Waiting> {
        if let Some(vector) = self.postponed {
            return Some(Waiting::Postponed(vector));
        }
        // What the hardware delivers by itself waits for the 8259 pair, whose window would hold it back.
        if !self.hw.delivers_interrupts()
            && let Some(vector) = self.apic.pending_vector()
        {
            return Some(Waiting::Vector(vector));
        }
        if self.apic.extint_pending() {
            return Some(Waiting::Pic);
        }
        if self.pic_asserted {
            self.pic_asserted = domain.chipset().pic_output();
            if self.pic_asserted && self.apic.accepts_extint() {
                return Some(Waiting::Pic);
            }
        }
        None
    }

    fn acknowledge<M>(&mut self, domain: &Domain<M>, host: &mut impl Host, waiting: Waiting) -> u8 {
        match waiting {
            Waiting::Postponed(vector) => {
                self.postponed = None;
                vector
            }
            Waiting::Vector(vector) => {
                self.apic.acknowledge(vector);
                vector
            }
            Waiting::Pic => {
                let _ = self.apic.take_extint();
                let mut chipset = domain.chipset();
                let vector = chipset.pic_acknowledge();
                // What the pair asks for next is looked at right away, not mailed to itself.
                let own = self.index() == BOOT_VCPU;
                let wake =
                    if own { domain.deliver_messages(&mut chipset) } else { domain.settle(&mut chipset) };
                drop(chipset);
                host.wake(wake);
                vector
            }
        }
    }

    /// A request that only the task priority holds back needs an exit when the guest lowers it by CR8.
    fn blocked_by_task_priority(&self) -> InterruptWindow {
        if self.hw.delivers_interrupts() {
            return InterruptWindow::Closed;
        }
        match self.apic.highest_request() {
            Some(vector) if self.apic.tpr() >> 4 != 0 && vector >> 4 <= self.apic.tpr() >> 4 => {
                InterruptWindow::Above(vector >> 4)
            }
            _ => InterruptWindow::Closed,
        }
    }
}
