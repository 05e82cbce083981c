//! A vCPU's hardware as plain data, which behaves at its entries as the contract says.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use caisson_emulate::testing::FakeVcpu;
use caisson_hwvirt::{ApicPlace, Event, Exit, InterruptWindow, Vcpu, VcpuState};
use caisson_x86::{
    ApicPage, DescriptorTable, ExceptionKind, Gpr, Rflags, Segment, SegmentRegister, TopVectors, msr,
};

/// The MSRs that the hardware keeps.
const MSRS: [u32; 12] = [
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::FS_BASE,
    msr::GS_BASE,
    msr::KERNEL_GS_BASE,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::PAT,
    msr::TSC_AUX,
];

/// A vCPU that delivers what is injected, opens windows when the guest can take interrupts, and otherwise runs until a
/// physical interrupt.
pub(crate) struct FakeHw {
    pub(crate) regs: FakeVcpu,
    /// What the next entry delivers.
    pub(crate) injected: Option<Event>,
    /// The next delivery runs into this exit.
    pub(crate) obstacle: Option<Exit>,
    /// The event whose delivery an exit interrupted.
    pub(crate) interrupted: Option<Event>,
    pub(crate) window: InterruptWindow,
    pub(crate) nmi_window: bool,
    /// It tells when NMIs become possible; AMD's does so at the handler's end only.
    pub(crate) has_nmi_window: bool,
    pub(crate) nmi_blocked: bool,
    pub(crate) cr8: u8,
    pub(crate) tsc_offset: u64,
    pub(crate) xcr0: u64,
    pub(crate) msrs: BTreeMap<u32, u64>,
    /// TLB flushes.
    pub(crate) flushes: usize,
    /// Resets, `true` for INIT.
    pub(crate) resets: Vec<bool>,
    pub(crate) debug_loaded: bool,
    /// The page-directory pointers, once loaded.
    pub(crate) pointers: Option<[u64; 4]>,
    /// What has been delivered, oldest first.
    pub(crate) delivered: Vec<Event>,
    /// A virtual local APIC, out of which it delivers.
    pub(crate) virtual_apic: Option<Box<VirtualApic>>,
    /// RFLAGS of each handler's caller.
    frames: Vec<u64>,
}

/// A virtual local APIC as VT-x has it (SDM vol. 3, chapter 30).
pub(crate) struct VirtualApic {
    pub(crate) page: ApicPage,
    pub(crate) top: TopVectors,
    level: [u64; 4],
    pub(crate) place: ApicPlace,
}

/// Registers of the page: the first of ISR and IRR.
const ISR: u8 = 0x10;
const IRR: u8 = 0x20;

impl VirtualApic {
    fn new() -> Self {
        Self { page: ApicPage::new(), top: TopVectors::default(), level: [0; 4], place: ApicPlace::Software }
    }

    fn change(&mut self, first: u8, vector: u8, on: bool) {
        let (register, bit) = (first + vector / 32, 1 << (vector % 32));
        let value = self.page.get(register);
        self.page.set(register, if on { value | bit } else { value & !bit });
    }

    pub(crate) fn highest(&self, first: u8) -> u8 {
        let register = (0..8).rev().find(|n| self.page.get(first + n) != 0);
        register.map_or(0, |n| n * 32 + 31 - self.page.get(first + n).leading_zeros() as u8)
    }

    /// PPR virtualisation.
    fn ppr(&mut self) -> u8 {
        let (tpr, in_service) = (self.page.get(ApicPage::TPR) as u8, self.top.in_service);
        let ppr = if tpr >> 4 >= in_service >> 4 { tpr } else { in_service & 0xf0 };
        self.page.set(0x0a, u32::from(ppr));
        ppr
    }

    /// The vector that is recognised.
    fn pending(&mut self) -> Option<u8> {
        let vector = self.top.requested;
        (vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    /// Takes it.
    fn take(&mut self, vector: u8) {
        self.change(ISR, vector, true);
        self.change(IRR, vector, false);
        self.top = TopVectors { requested: self.highest(IRR), in_service: vector };
        self.ppr();
    }

    /// EOI virtualisation: whether it exits, and for which vector.
    fn end(&mut self) -> Option<u8> {
        let vector = self.top.in_service;
        self.change(ISR, vector, false);
        self.top.in_service = self.highest(ISR);
        self.ppr();
        (self.level[usize::from(vector / 64)] >> (vector % 64) & 1 != 0).then_some(vector)
    }
}

impl FakeHw {
    /// Gives it a virtual local APIC.
    pub(crate) fn with_virtual_apic(self) -> Self {
        Self { virtual_apic: Some(Box::new(VirtualApic::new())), ..self }
    }

    /// The guest ends an interrupt by its local APIC's register, without an exit where the hardware can do it. `None`: that
    /// register exits.
    pub(crate) fn end_of_interrupt(&mut self) -> Option<Exit> {
        let apic = self.virtual_apic.as_deref_mut().filter(|apic| apic.place != ApicPlace::Software)?;
        Some(apic.end().map_or(Exit::ExternalInterrupt, Exit::EndOfInterrupt))
    }

    /// The guest sends an interrupt to itself; `false` where that exits.
    pub(crate) fn self_ipi(&mut self, vector: u8) -> bool {
        let apic = self.virtual_apic.as_deref_mut().filter(|apic| apic.place != ApicPlace::Software);
        let Some(apic) = apic else { return false };
        apic.change(IRR, vector, true);
        apic.top.requested = apic.top.requested.max(vector);
        true
    }

    /// The guest sets its task priority by CR8.
    pub(crate) fn move_to_cr8(&mut self, priority: u8) {
        self.cr8 = priority;
        if let Some(apic) = &mut self.virtual_apic {
            apic.page.set(ApicPage::TPR, u32::from(priority) << 4);
            apic.ppr();
        }
    }

    /// Delivers what the virtual local APIC has for the guest: an exit where that runs into one.
    fn deliver_virtual(&mut self) -> Option<Exit> {
        // Interrupt-window exiting holds virtual interrupts back.
        if !self.open() || self.window == InterruptWindow::Any {
            return None;
        }
        let apic = self.virtual_apic.as_deref_mut()?;
        let vector = apic.pending()?;
        apic.take(vector);
        if let Some(exit) = self.obstacle.take() {
            self.interrupted = Some(Event::Interrupt(vector));
            return Some(exit);
        }
        self.deliver(Event::Interrupt(vector));
        None
    }

    pub(crate) fn new(tsc_offset: u64) -> Self {
        Self {
            regs: FakeVcpu::protected(),
            injected: None,
            obstacle: None,
            interrupted: None,
            window: InterruptWindow::Closed,
            nmi_window: false,
            has_nmi_window: true,
            nmi_blocked: false,
            cr8: 0,
            tsc_offset,
            xcr0: 1,
            msrs: MSRS.iter().map(|&number| (number, 0)).collect(),
            flushes: 0,
            resets: Vec::new(),
            debug_loaded: false,
            pointers: None,
            delivered: Vec::new(),
            virtual_apic: None,
            frames: Vec::new(),
        }
    }

    /// The instruction at RIP has `length` bytes, and the hardware says so.
    pub(crate) fn ends_after(&mut self, length: u64) {
        self.regs.next_rip = Some(self.regs.rip.wrapping_add(length));
    }

    /// Whether the guest can take a maskable interrupt.
    pub(crate) fn open(&self) -> bool {
        self.regs.rflags & Rflags::IF.bits() != 0 && !self.regs.shadow
    }

    /// Through an interrupt gate.
    fn deliver(&mut self, event: Event) {
        self.delivered.push(event);
        self.frames.push(self.regs.rflags);
        self.regs.rflags &= !(Rflags::IF | Rflags::TF).bits();
        self.regs.shadow = false;
        if let Event::Exception(exception) = event
            && exception.kind == ExceptionKind::PageFault
        {
            self.regs.cr2 = exception.address;
        }
    }

    /// The guest returns from its innermost handler, if it is in any.
    pub(crate) fn iret(&mut self) {
        self.nmi_blocked = false;
        if let Some(rflags) = self.frames.pop() {
            self.regs.rflags = rflags;
        }
    }
}

impl Vcpu for FakeHw {
    const KEEPS_POINTERS: bool = true;

    type Raw = Exit;

    fn decode(&self, exit: Exit) -> Exit {
        exit
    }

    fn run(&mut self) -> Exit {
        if let Some(event) = self.injected.take() {
            if let Some(exit) = self.obstacle.take() {
                self.interrupted = Some(event);
                return exit;
            }
            self.deliver(event);
        }
        if let Some(exit) = self.deliver_virtual() {
            return exit;
        }
        let wanted = match self.window {
            InterruptWindow::Closed => false,
            InterruptWindow::Any => true,
            InterruptWindow::Above(class) => self.cr8 < class,
        };
        if self.has_nmi_window && self.nmi_window && !self.nmi_blocked && !self.regs.shadow {
            self.nmi_window = false;
            Exit::NmiWindow
        } else if wanted && self.open() {
            Exit::InterruptWindow
        } else {
            Exit::ExternalInterrupt
        }
    }

    fn inject(&mut self, event: Event) {
        assert_eq!(self.injected, None, "{event:?} takes the place of another event");
        match event {
            Event::Interrupt(_) => assert!(self.open(), "an interrupt for a guest that cannot take it"),
            Event::Nmi => self.nmi_blocked = true,
            _ => {}
        }
        self.injected = Some(event);
    }

    fn injecting(&self) -> bool {
        self.injected.is_some()
    }

    fn has_interrupted_event(&self) -> bool {
        self.interrupted.is_some()
    }

    fn take_interrupted_event(&mut self) -> Option<Event> {
        self.interrupted.take()
    }

    fn set_interrupt_window(&mut self, window: InterruptWindow) {
        self.window = window;
    }

    fn nmi_blocked(&self) -> bool {
        self.nmi_blocked
    }

    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.nmi_blocked = blocked;
    }

    fn set_nmi_window(&mut self, on: bool) -> bool {
        self.nmi_window = on;
        self.has_nmi_window || self.nmi_blocked
    }

    fn cr8(&self) -> u8 {
        match &self.virtual_apic {
            Some(apic) => apic.page.get(ApicPage::TPR) as u8 >> 4,
            None => self.cr8,
        }
    }

    fn set_cr8(&mut self, priority: u8) {
        assert!(priority < 16);
        self.move_to_cr8(priority);
    }

    fn delivers_interrupts(&self) -> bool {
        self.virtual_apic.is_some()
    }

    fn apic_page(&mut self) -> Option<&mut ApicPage> {
        self.virtual_apic.as_deref_mut().map(|apic| &mut apic.page)
    }

    fn set_top_vectors(&mut self, top: TopVectors) {
        if let Some(apic) = &mut self.virtual_apic {
            apic.top = top;
        }
    }

    fn set_level_vectors(&mut self, vectors: &[u64; 4]) {
        if let Some(apic) = &mut self.virtual_apic {
            apic.level = *vectors;
        }
    }

    fn set_apic_place(&mut self, place: ApicPlace) {
        if let Some(apic) = &mut self.virtual_apic {
            apic.place = place;
        }
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }

    fn flush_tlb(&mut self) {
        self.flushes += 1;
    }

    fn reset(&mut self, init: bool) {
        self.resets.push(init);
        self.regs = FakeVcpu::real();
        self.regs.rip = 0xfff0;
        self.injected = None;
        self.interrupted = None;
        self.window = InterruptWindow::Closed;
        self.nmi_window = false;
        self.nmi_blocked = false;
        self.cr8 = 0;
        if let Some(apic) = &mut self.virtual_apic {
            **apic = VirtualApic::new();
        }
        self.frames.clear();
    }

    fn switch_in(&mut self) {}

    fn switch_out(&mut self) {}

    fn load_debug_registers(&mut self) {
        self.debug_loaded = true;
    }

    fn hardware_msr(&self, number: u32) -> Option<u64> {
        self.msrs.get(&number).copied()
    }

    fn set_hardware_msr(&mut self, number: u32, value: u64) -> bool {
        self.msrs.get_mut(&number).map(|slot| *slot = value).is_some()
    }

    fn xcr0(&self) -> u64 {
        self.xcr0
    }

    fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
    }
}

macro_rules! registers {
    ($($get:ident $set:ident $type:ty;)*) => {
        impl VcpuState for FakeHw {
            fn gpr(&self, register: Gpr) -> u64 {
                self.regs.gpr(register)
            }
            fn set_gpr(&mut self, register: Gpr, value: u64) {
                self.regs.set_gpr(register, value);
            }
            fn segment(&self, register: SegmentRegister) -> Segment {
                self.regs.segment(register)
            }
            fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
                self.regs.set_segment(register, segment);
            }
            fn set_page_directory_pointers(&mut self, pointers: [u64; 4]) {
                self.pointers = Some(pointers);
            }
            fn next_rip(&self) -> Option<u64> {
                self.regs.next_rip()
            }
            fn fetched_bytes(&self) -> &[u8] {
                self.regs.fetched_bytes()
            }
            $(
                fn $get(&self) -> $type {
                    self.regs.$get()
                }
                fn $set(&mut self, value: $type) {
                    self.regs.$set(value);
                }
            )*
        }
    };
}

registers! {
    rip set_rip u64;
    rflags set_rflags u64;
    cr0 set_cr0 u64;
    cr2 set_cr2 u64;
    cr3 set_cr3 u64;
    cr4 set_cr4 u64;
    efer set_efer u64;
    cpl set_cpl u8;
    gdtr set_gdtr DescriptorTable;
    idtr set_idtr DescriptorTable;
    dr7 set_dr7 u64;
    dr6 set_dr6 u64;
    interrupt_shadow set_interrupt_shadow bool;
}
