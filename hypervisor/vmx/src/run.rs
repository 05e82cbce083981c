//! The world switch (SDM vol. 3, chapters 27 and 28).

use core::arch::{asm, naked_asm};
use core::cell::Cell;

use caisson_hwvirt::vmx::{EntryState, ExitFields, SegmentState, check_entry, decode};
use caisson_hwvirt::{ApicPlace, Event, Exit, InterruptWindow, Refusal, Vcpu};
use caisson_machine::cpu::{take_interrupts, write_msr};
use caisson_machine::percpu;
use caisson_types::Gpa;
use caisson_x86::vmx::field::{self, Field};
use caisson_x86::vmx::{
    AccessRights, EntryControls, EventInfo, EventType, ExitReason, ReadWrite, VmxFeatures, instruction_error,
};
use caisson_x86::{ApicPage, Efer, ExceptionKind, Gprs, TopVectors, msr};

use crate::vcpu::{Stale, VmxVcpu};
use crate::vmcs::Register;
use crate::vpid;

/// PRED_CMD.IBPB.
const PREDICTION_BARRIER: u64 = 1;
const DEBUG: u8 = ExceptionKind::Debug as u8;
/// After this many exits the host takes its interrupts although none of them has ended the guest's run. A CPU ends it at
/// once, but for Bochs's while the guest was entered with interrupts off; and the preemption timer, which counts the guest's
/// time alone, is slow to end the run of a guest that hardly runs between its exits.
const EXITS_WITHOUT_INTERRUPTS: u8 = 32;
/// The page-directory pointers, which the CPU loads from here at an entry with PAE paging.
pub(crate) const POINTERS: [Field<u64, ReadWrite>; 4] =
    [field::GUEST_PDPTE_0, field::GUEST_PDPTE_1, field::GUEST_PDPTE_2, field::GUEST_PDPTE_3];

/// Enters the guest with its registers out of `gprs`, and comes back at its exit with them stored there. 0 after an exit;
/// 1 where the instruction itself failed.
///
/// # Safety
/// The current VMCS must be complete, with [`exit_guest`] as the host's RIP and `host_rsp` what it holds as the host's RSP;
/// `launched` says which instruction it takes. Interrupts are off.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter_guest(gprs: *mut Gprs, host_rsp: *const Cell<u64>, launched: u64) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        // The host's RSP is written only when it has changed.
        "cmp [rsi], rsp",
        "je 2f",
        "mov [rsi], rsp",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "2:",
        "test edx, edx",
        // Moves leave the flags alone.
        "mov rax, [rdi]",
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
        "jnz 3f",
        "vmlaunch",
        "jmp 4f",
        "3:",
        "vmresume",
        // Only a failed entry goes on here, with the guest's registers as they were loaded.
        "4:",
        "mov eax, 1",
        "pop rdi",
        "jmp {restore}",
        host_rsp = const field::HOST_RSP.encoding(),
        restore = sym restore_host,
    )
}

/// Where every exit arrives: RSP is as [`enter_guest`] left it, the other registers are the guest's.
#[unsafe(naked)]
unsafe extern "sysv64" fn exit_guest() {
    naked_asm!(
        "push rdi",
        "mov rdi, [rsp + 8]",
        "mov [rdi], rax",
        "mov [rdi + 1*8], rcx",
        "mov [rdi + 2*8], rdx",
        "mov [rdi + 3*8], rbx",
        "mov [rdi + 5*8], rbp",
        "mov [rdi + 6*8], rsi",
        "mov [rdi + 8*8], r8",
        "mov [rdi + 9*8], r9",
        "mov [rdi + 10*8], r10",
        "mov [rdi + 11*8], r11",
        "mov [rdi + 12*8], r12",
        "mov [rdi + 13*8], r13",
        "mov [rdi + 14*8], r14",
        "mov [rdi + 15*8], r15",
        "pop rax",
        "mov [rdi + 7*8], rax",
        "add rsp, 8",
        "xor eax, eax",
        "jmp {restore}",
        restore = sym restore_host,
    )
}

/// The end of [`enter_guest`].
#[unsafe(naked)]
unsafe extern "sysv64" fn restore_host() {
    naked_asm!("pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp", "ret")
}

/// The host's RIP after an exit.
pub(crate) fn exit_address() -> u64 {
    exit_guest as *const () as u64
}

impl VmxVcpu {
    /// Gives the vCPU an id of the generation in force, if it has none, and drops what must not be used any more.
    #[inline]
    fn refresh_translations(&mut self) {
        if self.shared.features.contains(VmxFeatures::VPID)
            && self.vpid.generation != self.vmcs.cpu().vpids.generation()
        {
            self.new_vpid();
        }
        if !self.stale.is_empty() {
            self.drop_translations();
        }
    }

    #[cold]
    fn new_vpid(&mut self) {
        let (vpid, wrapped) = self.vmcs.cpu().vpids.allocate();
        self.vpid = vpid;
        self.vmcs.write(field::VPID, vpid.id);
        if wrapped {
            // SAFETY: VMX is on; VPIDs are used only where there is INVVPID.
            unsafe { vpid::invalidate_all_vpids() };
        }
    }

    fn drop_translations(&mut self) {
        let stale = core::mem::replace(&mut self.stale, Stale::empty());
        let features = self.shared.features;
        if stale.contains(Stale::GUEST_PHYSICAL) {
            for eptp in [Some(self.eptp), self.apic_eptp].into_iter().flatten() {
                // SAFETY: VMX is on, and EPT is used only where there is INVEPT.
                unsafe { vpid::invalidate_ept(eptp, features) };
            }
        }
        // Without VPIDs entries and exits drop linear mappings by themselves.
        if stale.contains(Stale::LINEAR) && features.contains(VmxFeatures::VPID) {
            // SAFETY: VMX is on; VPIDs are used only where there is INVVPID.
            unsafe { vpid::invalidate_vpid(self.vpid.id, features) };
        }
    }

    /// Puts the registers that have changed since the exit into the VMCS, with what must agree with them.
    #[inline]
    fn write_registers(&mut self) {
        if self.vmcs.is_dirty(Register::Efer) {
            let long = self.vmcs.get(Register::Efer) & Efer::LMA.bits() != 0;
            let mode = if long { EntryControls::LONG_MODE_GUEST.bits() } else { 0 };
            self.vmcs.write(field::ENTRY_CONTROLS, self.shared.controls.entry | mode);
        }
        if self.vmcs.is_dirty(Register::Interruptibility) {
            self.agree_on_single_step();
        }
        self.vmcs.write_back();
    }

    /// Puts into the VMCS what has changed since the exit.
    #[inline]
    fn write_changes(&mut self) {
        self.write_registers();
        if let Some(top) = self.top_vectors.take() {
            self.write_top_vectors(top);
        }
        if let Some(injection) = self.injection.take() {
            self.vmcs.write(field::ENTRY_EVENT, injection.info.0);
            if injection.info.has_error_code() {
                self.vmcs.write(field::ENTRY_ERROR_CODE, injection.error_code);
            }
            if injection.length != 0 {
                self.vmcs.write(field::ENTRY_INSTRUCTION_LENGTH, injection.length);
            }
        }
    }

    /// Enters the guest once.
    #[inline]
    fn enter(&mut self) {
        self.vmcs.make_current();
        self.refresh_translations();
        self.write_changes();
        self.vmcs.book(self.reason.basic());
        let launched = u64::from(self.vmcs.is_launched());
        // SAFETY: this vCPU's VMCS is current and complete, and its guest owns all memory that its tables map; the exit
        // comes back by `exit_guest`, which restores what the ABI asks for. Interrupts are off.
        let failed = unsafe { enter_guest(&raw mut self.gprs, &raw const self.host_rsp, launched) };
        self.vmcs.exited();
        self.next_rip.set(None);
        if failed != 0 {
            self.instruction_failed();
            return;
        }
        self.vmcs.set_launched();
        self.reason = ExitReason(self.vmcs.read(field::EXIT_REASON));
        self.exit_rip = self.vmcs.get(Register::Rip);
        percpu::current().record_exit(self.id, u64::from(self.reason.0), self.exit_rip);
    }

    /// The vCPU is on this CPU from now on. Whether it was on another one, or on none, before: then the host's state in the
    /// VMCS is the other's, and what this CPU has cached of the vCPU is of another time.
    fn arrive(&mut self) -> bool {
        let this = self.shared.this_cpu();
        let moved = !core::ptr::eq(self.vmcs.cpu(), this) || self.vpid == vpid::Vpid::NONE;
        if !core::ptr::eq(self.vmcs.cpu(), this) {
            self.vmcs.arrive(this);
            self.write_host_state();
            self.host_rsp.set(0);
            self.vpid = vpid::Vpid::NONE;
            self.stale = Stale::all();
        }
        moved
    }

    #[cold]
    fn instruction_failed(&mut self) {
        self.instruction_error = Some(self.vmcs.read(field::INSTRUCTION_ERROR));
        self.reason = ExitReason(1 << 31 | u32::from(ExitReason::ENTRY_GUEST_STATE));
        self.exit_rip = self.vmcs.get(Register::Rip);
        percpu::current().record_exit(self.id, u64::from(self.reason.0), self.exit_rip);
    }

    pub(crate) fn exit_event(&self) -> EventInfo {
        EventInfo(self.vmcs.read(field::EXIT_EVENT))
    }

    /// What an exit needs before it is told to the core.
    #[inline]
    fn absorb(&mut self) {
        match self.reason.0 as u16 {
            ExitReason::EXCEPTION_OR_NMI => {
                self.block_nmis_again();
                let event = self.exit_event();
                if event.kind() == Some(EventType::Nmi) {
                    // SAFETY: the exit has taken the NMI from the CPU and blocks further ones until an IRET: that of the
                    // handler, whose gate is set up and which only sets a pending bit.
                    unsafe { asm!("int 2") };
                } else if event.vector() == DEBUG {
                    self.debug_exception();
                }
            }
            ExitReason::EPT_VIOLATION | ExitReason::LOG_FULL => self.block_nmis_again(),
            ExitReason::APIC_WRITE | ExitReason::VIRTUALIZED_EOI | ExitReason::TPR_BELOW_THRESHOLD => {
                self.take_pending_trap();
            }
            ExitReason::NMI_WINDOW => self.want_nmi_window(false),
            ExitReason::PREEMPTION_TIMER => {
                self.vmcs.write(field::PREEMPTION_TIMER, self.backstop);
            }
            _ => {}
        }
    }

    /// Everything that an entry checks, for [`check_entry`].
    fn entry_state(&self) -> EntryState {
        let vmcs = &self.vmcs;
        let segments = field::SEGMENTS.map(|fields| SegmentState {
            selector: vmcs.read(fields.selector),
            base: vmcs.read(fields.base),
            limit: vmcs.read(fields.limit),
            rights: AccessRights(vmcs.read(fields.rights)),
        });
        let entry = vmcs.read(field::ENTRY_CONTROLS);
        EntryState {
            cr0: vmcs.get(Register::Cr0),
            cr0_fixed: self.shared.caps.cr0,
            cr3: vmcs.get(Register::Cr3),
            cr4: vmcs.get(Register::Cr4),
            cr4_fixed: self.shared.caps.cr4,
            long_mode: entry & EntryControls::LONG_MODE_GUEST.bits() != 0,
            efer: vmcs.get(Register::Efer),
            pat: vmcs.read(field::GUEST_PAT),
            debugctl: vmcs.read(field::GUEST_DEBUGCTL),
            dr7: vmcs.get(Register::Dr7),
            sysenter_esp: vmcs.read(field::GUEST_SYSENTER_ESP),
            sysenter_eip: vmcs.read(field::GUEST_SYSENTER_EIP),
            segments,
            gdtr: self.table(field::GUEST_GDTR_BASE, field::GUEST_GDTR_LIMIT),
            idtr: self.table(field::GUEST_IDTR_BASE, field::GUEST_IDTR_LIMIT),
            rip: vmcs.get(Register::Rip),
            rflags: vmcs.get(Register::Rflags),
            activity: vmcs.read(field::GUEST_ACTIVITY),
            interruptibility: self.interruptibility(),
            pending_debug: vmcs.read(field::GUEST_PENDING_DEBUG),
            event: EventInfo(vmcs.read(field::ENTRY_EVENT)),
            virtual_nmis: true,
            link_pointer: vmcs.read(field::LINK_POINTER),
            pdptes: POINTERS.map(|entry| vmcs.read(entry)),
            physical_bits: self.shared.physical_bits,
        }
    }
}

impl ExitFields for VmxVcpu {
    #[inline]
    fn reason(&self) -> ExitReason {
        self.reason
    }
    #[inline]
    fn qualification(&self) -> u64 {
        self.vmcs.get(Register::Qualification)
    }
    #[inline]
    fn guest_physical(&self) -> u64 {
        self.vmcs.read(field::GUEST_PHYSICAL_ADDRESS)
    }
    fn event(&self) -> EventInfo {
        self.exit_event()
    }
    fn error_code(&self) -> u32 {
        self.vmcs.read(field::EXIT_ERROR_CODE)
    }
    fn string_io(&self) -> Option<u32> {
        self.shared
            .features
            .contains(VmxFeatures::STRING_IO)
            .then(|| self.vmcs.read(field::INSTRUCTION_INFORMATION))
    }
    #[inline]
    fn next_rip(&self) -> u64 {
        self.instruction_end()
    }
}

impl Vcpu for VmxVcpu {
    const KEEPS_POINTERS: bool = true;

    // All of it is in the VMCS.
    type Raw = ();

    #[inline]
    fn run(&mut self) {
        self.enter();
        self.absorb();
        self.exits = self.exits.wrapping_add(1);
        if self.exits.is_multiple_of(EXITS_WITHOUT_INTERRUPTS) {
            take_interrupts();
        }
    }

    #[inline(always)]
    fn decode(&self, (): ()) -> Exit {
        decode(self)
    }

    fn inject(&mut self, event: Event) {
        self.inject_event(event);
    }

    #[inline]
    fn injecting(&self) -> bool {
        self.injection.is_some()
    }

    #[inline]
    fn has_interrupted_event(&self) -> bool {
        self.reason.may_interrupt_delivery() && self.interrupted_info().is_valid()
    }

    fn take_interrupted_event(&mut self) -> Option<Event> {
        self.interrupted_event()
    }

    fn set_interrupt_window(&mut self, window: InterruptWindow) {
        if self.window != window || matches!(window, InterruptWindow::Above(_)) {
            self.set_window(window);
        }
    }

    fn nmi_blocked(&self) -> bool {
        self.nmis_blocked()
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.block_nmis(blocked);
    }

    fn set_nmi_window(&mut self, on: bool) -> bool {
        self.want_nmi_window(on);
        true
    }

    #[inline]
    fn cr8(&self) -> u8 {
        match &self.virtual_apic {
            Some(page) => page.get(ApicPage::TPR) as u8 >> 4,
            None => self.cr8,
        }
    }

    fn set_cr8(&mut self, priority: u8) {
        self.cr8 = priority & 15;
        if let Some(page) = &mut self.virtual_apic {
            page.set(ApicPage::TPR, u32::from(self.cr8) << 4);
            self.place_threshold();
        }
    }

    #[inline]
    fn delivers_interrupts(&self) -> bool {
        self.shared.features.contains(VmxFeatures::VIRTUAL_INTERRUPTS)
    }

    #[inline]
    fn apic_page(&mut self) -> Option<&mut ApicPage> {
        if self.shared.features.contains(VmxFeatures::VIRTUAL_INTERRUPTS) {
            self.virtual_apic.as_deref_mut()
        } else {
            None
        }
    }

    fn set_top_vectors(&mut self, top: TopVectors) {
        self.top_vectors = Some(top);
    }

    #[inline]
    fn set_level_vectors(&mut self, vectors: &[u64; 4]) {
        if self.level_vectors != *vectors {
            self.write_level_vectors(vectors);
        }
    }

    fn set_apic_place(&mut self, place: ApicPlace) {
        self.place_apic(place);
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.vmcs.write(field::TSC_OFFSET, offset);
    }

    fn flush_tlb(&mut self) {
        self.stale = Stale::all();
    }

    fn set_write_log(&mut self, on: bool) {
        self.turn_log(on);
    }

    fn take_written(&mut self, page: impl FnMut(Gpa)) {
        self.empty_log(page);
    }

    fn reset(&mut self, init: bool) {
        self.reset_registers(init);
    }

    fn switch_in(&mut self) {
        let moved = self.arrive();
        // A vCPU that is new here may belong to a domain that has taken over another's id.
        let other_guest = percpu::current().begin_domain(self.id.domain) || moved;
        if other_guest && self.shared.prediction_barrier {
            // SAFETY: the CPU has the command; another guest's branches must not steer this one's.
            unsafe { write_msr(msr::PRED_CMD, PREDICTION_BARRIER) };
        }
        self.context.load();
    }

    fn switch_out(&mut self) {
        self.context.store();
        // A guest that has stopped using breakpoints gives the registers up.
        if self.context.debug_loaded() && self.vmcs.get(Register::Dr7) & 0xff == 0 {
            self.context.release_debug();
            self.place_debug_exits();
        }
    }

    fn begin_turn(&mut self, ticks: u64) {
        if self.shared.features.contains(VmxFeatures::PREEMPTION_TIMER) {
            // What is left is saved at each exit where the CPU can do that; otherwise each entry starts anew.
            let (first, again) = self.shared.backstop.of_turn(ticks);
            self.vmcs.make_current();
            self.vmcs.write(field::PREEMPTION_TIMER, first);
            self.backstop = again;
        }
    }

    fn load_debug_registers(&mut self) {
        self.context.load_debug();
        self.place_debug_exits();
    }

    fn hardware_msr(&self, msr: u32) -> Option<u64> {
        self.carried_msr(msr)
    }

    fn set_hardware_msr(&mut self, msr: u32, value: u64) -> bool {
        self.set_carried_msr(msr, value)
    }

    fn xcr0(&self) -> u64 {
        self.context.xcr0()
    }

    fn set_xcr0(&mut self, value: u64) {
        self.context.set_xcr0(value);
    }

    fn refusal(&self) -> Option<Refusal> {
        if let Some(error) = self.instruction_error {
            return Some(Refusal { check: instruction_error(error), value: u64::from(error) });
        }
        if self.reason.entry_failed() && self.reason.basic() == ExitReason::ENTRY_GUEST_STATE {
            return check_entry(&self.entry_state());
        }
        None
    }

    fn leave_cpu(&mut self) {
        self.write_registers();
        self.vmcs.leave();
    }
}
