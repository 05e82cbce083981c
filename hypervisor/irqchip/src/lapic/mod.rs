//! The local APIC of one vCPU: interrupt acceptance, priorities, and what the run loop asks.
//!
//! Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)": "Handling Interrupts", "Interrupt
//! Acceptance for Fixed Interrupts", "Task and Processor Priorities", "Signaling Interrupt Servicing Completion" here;
//! register accesses in `registers`, the entries of the local vector table in `lvt`, modes and resets in `base`, the timer
//! in `timer`.
//!
//! The model: an APIC of version 0x14 with six LVT entries (no CMCI) and suppression of EOI broadcasts. The APIC id is
//! read-only in both modes ("Local APIC ID": modifying it is model specific). Reserved and unsupported: the arbitration
//! priority and remote read registers, AMD's extended register space, SMIs.
//!
//! Invariants: IRR and ISR never hold a vector below 16; PPR is always what TPR and ISR say; a disabled APIC is in its
//! reset state; LVT entries are masked while the APIC is software disabled; what an [`ApicPage`](caisson_x86::ApicPage)
//! shows has not changed since the last exchange with one unless [`LocalApic::is_changed`] says so.

mod base;
mod lvt;
mod page;
mod registers;
#[cfg(test)]
mod tests;
mod timer;

use core::fmt;

use caisson_types::Instant;

pub use base::{APIC_DEFAULT_BASE, MSR_APIC_BASE};
pub use lvt::LintPin;
pub use registers::{MSR_TSC_DEADLINE, MSR_X2APIC_FIRST, MSR_X2APIC_LAST};
pub use timer::TscClock;

use crate::{InterruptMessage, Ipi, LogicalModel, Mailbox, Routing, TriggerMode, VectorSet};
use lvt::{LVT_ENTRIES, Lvt};
use timer::Timer;

/// The access is answered by #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GeneralProtection;

impl fmt::Display for GeneralProtection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the register access is not allowed in this mode: inject #GP(0) into the guest")
    }
}

impl core::error::Error for GeneralProtection {}

/// What a local APIC is built as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApicConfig {
    /// The x2APIC id; in xAPIC mode its low 8 bits are the id.
    pub id: u32,
    /// Whether this is the boot CPU.
    pub bsp: bool,
    /// Physical-address width that the guest's CPUID tells, in bits; what is above is reserved in `IA32_APIC_BASE`.
    pub physical_bits: u8,
    /// Whether CPUID announces x2APIC.
    pub x2apic: bool,
    /// Whether CPUID announces the TSC-deadline timer.
    pub tsc_deadline: bool,
    /// The timer's input clock in Hz, before the divisor. 1 GHz (a tick a nanosecond of virtual time) is fastest.
    pub timer_hz: u64,
}

impl ApicConfig {
    /// x2APIC and TSC-deadline, timer at 1 GHz, 48 physical-address bits; `bsp` for id 0.
    #[must_use]
    pub const fn new(id: u32) -> Self {
        Self {
            id,
            bsp: id == 0,
            physical_bits: 48,
            x2apic: true,
            tsc_deadline: true,
            timer_hz: 1_000_000_000,
        }
    }
}

/// The mode that `IA32_APIC_BASE` selects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ApicMode {
    /// As if there were no local APIC.
    Disabled,
    /// Registers by MMIO.
    XApic,
    /// Registers by MSR.
    X2Apic,
}

/// What an access leaves to be done outside of the local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// Resolve the IPI by [`ApicMap::resolve_ipi`](crate::ApicMap::resolve_ipi) and post it.
    SendIpi(Ipi),
    /// Tell the I/O APICs of the EOI of this level-triggered vector.
    BroadcastEoi(u8),
    /// [`LocalApic::next_deadline`] may have changed.
    TimerChanged,
    /// TPR has changed: give the hardware [`LocalApic::cr8`], look for a pending vector again.
    TprChanged,
    /// Mode, address or logical id changed, or software enabled: publish [`LocalApic::routing`], map the register page at
    /// [`LocalApic::mmio_base`]. [`LocalApic::next_deadline`] and TPR may have changed too.
    RoutingChanged,
}

/// What [`LocalApic::drain`] found that is not the local APIC's to handle.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[must_use]
pub struct Events {
    /// INIT was received: reset the vCPU ([`LocalApic::init_reset`] included). Comes before [`Self::startup`].
    pub init: bool,
    /// A SIPI was received with this page number (0 is one): start there if the vCPU waits for SIPI, else drop it.
    pub startup: Option<u8>,
    /// The caller's work bits ([`Mailbox::post_work`]).
    pub work: u16,
}

/// Error status bits (Intel SDM volume 3, "Error Handling").
mod esr {
    pub(super) const SEND_ILLEGAL_VECTOR: u8 = 1 << 5;
    pub(super) const RECEIVE_ILLEGAL_VECTOR: u8 = 1 << 6;
    pub(super) const ILLEGAL_REGISTER: u8 = 1 << 7;
}

/// The lowest vector that an interrupt may have.
const FIRST_LEGAL_VECTOR: u8 = 16;

/// A vCPU's local APIC. Private to the vCPU's run loop; everyone else goes through its [`Mailbox`].
#[derive(Clone, Debug)]
pub struct LocalApic {
    irr: VectorSet,
    isr: VectorSet,
    tmr: VectorSet,
    tpr: u8,
    /// Always what `tpr` and `isr` say.
    ppr: u8,
    mode: ApicMode,
    /// NMIs that wait: 0 to 2.
    nmis: u8,
    extint: bool,
    /// Whether each LINT pin is asserted. Wires, not registers: resets leave them.
    lint: [bool; 2],
    svr: u32,
    ldr: u32,
    dfr: u32,
    icr: u64,
    lvt: [u32; LVT_ENTRIES],
    /// What software reads.
    esr: u8,
    /// What has happened since software last wrote ESR.
    errors: u8,
    timer: Timer,
    base: u64,
    /// IRR, ISR, TMR or TPR are not what they were at the last exchange with a page.
    vectors_changed: bool,
    /// The same of the other registers that a page shows.
    registers_changed: bool,
    config: ApicConfig,
}

impl LocalApic {
    /// An APIC after power-up: enabled by hardware, in xAPIC mode, at [`APIC_DEFAULT_BASE`], software disabled.
    #[must_use]
    pub fn new(config: ApicConfig) -> Self {
        let mut apic = Self {
            irr: VectorSet::new(),
            isr: VectorSet::new(),
            tmr: VectorSet::new(),
            tpr: 0,
            ppr: 0,
            mode: ApicMode::XApic,
            nmis: 0,
            extint: false,
            lint: [false; 2],
            svr: 0,
            ldr: 0,
            dfr: 0,
            icr: 0,
            lvt: [0; LVT_ENTRIES],
            esr: 0,
            errors: 0,
            timer: Timer::new(config.timer_hz),
            base: 0,
            vectors_changed: true,
            registers_changed: true,
            config,
        };
        apic.power_on_reset();
        apic
    }

    /// The APIC id: the x2APIC id, whatever the mode.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.config.id
    }

    /// The mode.
    #[inline]
    #[must_use]
    pub const fn mode(&self) -> ApicMode {
        self.mode
    }

    /// Whether SVR enables the APIC. When it does not, fixed interrupts are not accepted and the LVT is masked.
    #[must_use]
    pub const fn is_software_enabled(&self) -> bool {
        self.svr & registers::SVR_ENABLE != 0
    }

    /// What senders must know, for [`ApicMap::update`](crate::ApicMap::update).
    #[must_use]
    pub const fn routing(&self) -> Routing {
        Routing {
            id: self.config.id,
            mode: self.mode,
            software_enabled: self.is_software_enabled(),
            logical_id: (self.ldr >> 24) as u8,
            model: if self.dfr >> 28 == 0 { LogicalModel::Cluster } else { LogicalModel::Flat },
        }
    }

    // ---- acceptance

    /// Takes in what others have posted. Call it before each entry when [`Mailbox::has_work`].
    ///
    /// What is for a disabled APIC is dropped, but for INIT, SIPI and work bits, which are the caller's. Vectors for one
    /// that was software disabled after [`ApicMap`](crate::ApicMap) resolved them are accepted: they were under way.
    pub fn drain(&mut self, mailbox: &Mailbox) -> Events {
        let taken = mailbox.take();
        if taken.requests() {
            for word in 0..VectorSet::WORDS {
                let (requests, level) = mailbox.take_requests(word);
                if requests != 0 && self.mode != ApicMode::Disabled {
                    self.accept_word(word, requests, level);
                }
            }
        }
        if self.mode != ApicMode::Disabled {
            self.nmis = (self.nmis + taken.nmis()).min(2);
            self.extint |= taken.extint();
        }
        Events { init: taken.init(), startup: taken.sipi(), work: taken.work() }
    }

    /// Accepts the vectors of one word of requests; `level` tells which are level-triggered.
    fn accept_word(&mut self, word: usize, mut requests: u64, level: u64) {
        const ILLEGAL: u64 = (1 << FIRST_LEGAL_VECTOR) - 1;
        if word == 0 && requests & ILLEGAL != 0 {
            requests &= !ILLEGAL;
            self.record_error(esr::RECEIVE_ILLEGAL_VECTOR);
        }
        self.vectors_changed = true;
        self.irr.insert_word(word, requests);
        self.tmr.assign_word(word, requests, level);
    }

    /// Accepts a vector from this APIC's own LVT or ICR, or from a sender that the caller has checked.
    fn accept(&mut self, vector: u8, trigger: TriggerMode) {
        if vector < FIRST_LEGAL_VECTOR {
            self.record_error(esr::RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        self.vectors_changed = true;
        self.irr.insert(vector);
        match trigger {
            TriggerMode::Edge => {
                self.tmr.remove(vector);
            }
            TriggerMode::Level => self.tmr.insert(vector),
        }
    }

    /// Notes an error and, when it is the first since software wrote ESR, delivers the LVT's error interrupt.
    fn record_error(&mut self, error: u8) {
        let armed = self.errors == 0;
        self.errors |= error;
        if armed {
            self.deliver_lvt(Lvt::Error);
        }
    }

    /// Hands `message` to this APIC directly, without a mailbox; for vectored modes and NMI and ExtINT. Whether it is
    /// meant for this APIC is the caller's to know.
    pub fn receive(&mut self, message: &InterruptMessage) {
        use crate::DeliveryMode as D;
        if self.mode == ApicMode::Disabled || message.is_ignored() {
            return;
        }
        match message.delivery {
            D::Fixed | D::LowestPriority if self.is_software_enabled() => {
                self.accept(message.vector, message.trigger);
            }
            D::Nmi => self.add_nmi(),
            D::ExtInt if self.is_software_enabled() => self.extint = true,
            _ => {}
        }
    }

    // ---- priorities

    fn update_ppr(&mut self) {
        let in_service = self.isr.highest().unwrap_or(0);
        self.ppr = if self.tpr >> 4 >= in_service >> 4 { self.tpr } else { in_service & 0xf0 };
    }

    /// The vector that the CPU is to be interrupted by, interrupts enabled or not: the highest requested one, if its
    /// class is above PPR's.
    #[inline]
    #[must_use]
    pub const fn pending_vector(&self) -> Option<u8> {
        match self.irr.highest() {
            Some(vector) if vector >> 4 > self.ppr >> 4 => Some(vector),
            _ => None,
        }
    }

    /// The highest requested vector, whatever PPR says: where TPR alone holds it back, lowering CR8 must exit.
    #[inline]
    #[must_use]
    pub const fn highest_request(&self) -> Option<u8> {
        self.irr.highest()
    }

    /// Whether any vector is in service.
    #[inline]
    #[must_use]
    pub const fn has_in_service(&self) -> bool {
        !self.isr.is_empty()
    }

    /// The CPU takes `vector` (what [`Self::pending_vector`] answered): from requested to in service. No effect when it
    /// is not requested.
    #[inline]
    pub fn acknowledge(&mut self, vector: u8) {
        if self.irr.remove(vector) {
            self.vectors_changed = true;
            self.isr.insert(vector);
            self.update_ppr();
        }
    }

    /// Ends the service of the highest vector in service: a write to the EOI register.
    #[inline]
    pub fn eoi(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else { return Effect::None };
        self.vectors_changed = true;
        self.isr.remove(vector);
        self.update_ppr();
        self.end_of(vector)
    }

    /// What follows the end of the service of `vector`, which has left ISR already.
    #[inline]
    pub fn end_of(&mut self, vector: u8) -> Effect {
        if !self.tmr.contains(vector) {
            return Effect::None;
        }
        self.eoi_lint(vector);
        if self.svr & registers::SVR_SUPPRESS_EOI_BROADCAST != 0 {
            return Effect::None;
        }
        Effect::BroadcastEoi(vector)
    }

    /// TPR as CR8: its bits 7:4.
    #[inline]
    #[must_use]
    pub const fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Sets TPR from CR8's bits 3:0 (Intel SDM volume 3, "Interaction of Task Priorities between CR8 and APIC").
    #[inline]
    pub fn set_cr8(&mut self, cr8: u8) {
        self.set_tpr(cr8 << 4);
    }

    /// TPR.
    #[inline]
    #[must_use]
    pub const fn tpr(&self) -> u8 {
        self.tpr
    }

    /// Sets TPR.
    #[inline]
    pub fn set_tpr(&mut self, tpr: u8) {
        if tpr != self.tpr {
            self.vectors_changed = true;
            self.tpr = tpr;
            self.update_ppr();
        }
    }

    /// PPR.
    #[inline]
    #[must_use]
    pub const fn ppr(&self) -> u8 {
        self.ppr
    }

    /// The requested vectors.
    #[must_use]
    pub const fn irr(&self) -> &VectorSet {
        &self.irr
    }

    /// The vectors in service.
    #[must_use]
    pub const fn isr(&self) -> &VectorSet {
        &self.isr
    }

    // ---- paravirtual EOI (KVM's MSR_KVM_PV_EOI_EN)

    /// Whether the guest may leave out the EOI of the vector just acknowledged, so that the paravirtual EOI bit may be set
    /// in its memory: one edge-triggered vector is in service, and no other waits for its end.
    #[inline]
    #[must_use]
    pub fn may_skip_eoi(&self) -> bool {
        let Some(vector) = self.isr.highest() else { return false };
        let mut others = self.isr;
        others.remove(vector);
        others.is_empty() && self.irr.is_empty() && !self.tmr.contains(vector)
    }

    /// The guest has cleared its paravirtual EOI bit instead of writing the EOI register. To be called before anything
    /// else is asked of this APIC. What it answers is [`Effect::None`] as long as the bit was set by the rule of
    /// [`Self::may_skip_eoi`] and taken back when that no longer held.
    #[inline]
    pub fn eoi_skipped(&mut self) -> Effect {
        self.eoi()
    }

    // ---- what else interrupts

    /// Whether an NMI waits for the CPU.
    #[inline]
    #[must_use]
    pub const fn nmi_pending(&self) -> bool {
        self.nmis != 0
    }

    /// Takes one NMI that waits, if any: call when it is being injected. Up to two wait: the one that the CPU takes now and
    /// the one that it latches meanwhile.
    #[inline]
    pub const fn take_nmi(&mut self) -> bool {
        let any = self.nmis != 0;
        self.nmis -= any as u8;
        any
    }

    /// The CPU holds NMIs back (it is handling one): of those that wait, one stays latched (Intel SDM volume 3, "Handling
    /// Multiple NMIs").
    #[inline]
    pub const fn latch_nmis(&mut self) {
        self.nmis = (self.nmis != 0) as u8;
    }

    pub(super) const fn add_nmi(&mut self) {
        self.nmis = if self.nmis == 0 { 1 } else { 2 };
    }

    /// Whether the 8259 pair's output interrupts this CPU when it is asserted: LINT0 is unmasked in ExtINT mode, or the
    /// APIC is disabled and LINT0 is the CPU's INTR pin (Intel SDM volume 3, "LINT0 and LINT1 pins"). The vector of such
    /// an interrupt comes from the 8259 pair and takes no part in IRR, ISR and PPR.
    #[inline]
    #[must_use]
    pub const fn accepts_extint(&self) -> bool {
        matches!(self.mode, ApicMode::Disabled) || self.lvt_is_extint(Lvt::Lint0)
    }

    /// Whether an ExtINT message (from an I/O APIC pin or MSI) waits for the CPU.
    #[inline]
    #[must_use]
    pub const fn extint_pending(&self) -> bool {
        self.extint
    }

    /// Takes the ExtINT message that waits, if any: call when the 8259 pair is asked for its vector.
    pub const fn take_extint(&mut self) -> bool {
        core::mem::replace(&mut self.extint, false)
    }

    // ---- time

    /// When [`Self::advance`] has something to do; [`Instant::NEVER`] when it has not. A timer that is masked needs no
    /// waking.
    #[inline]
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        if self.lvt_is_masked(Lvt::Timer) { Instant::NEVER } else { self.timer.next() }
    }

    /// Fires the timer if it is due. However late, a periodic timer fires once and keeps its phase.
    #[inline]
    pub fn advance(&mut self, now: Instant) {
        if self.timer.expire(now) {
            self.deliver_lvt(Lvt::Timer);
        }
    }

    /// What holds after every operation.
    ///
    /// # Panics
    ///
    /// When it does not.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn assert_invariants(&self) {
        assert!(
            self.irr.register(0) & 0xffff == 0 && self.isr.register(0) & 0xffff == 0,
            "illegal vector accepted"
        );
        let mut fresh = self.clone();
        fresh.update_ppr();
        assert_eq!(self.ppr, fresh.ppr, "stale PPR");
        assert!(self.ppr >= self.tpr & 0xf0, "PPR is below TPR");
        if self.mode == ApicMode::Disabled {
            assert!(self.irr.is_empty() && self.isr.is_empty() && !self.is_software_enabled());
        }
        if !self.is_software_enabled() {
            assert!(self.lvt.iter().all(|entry| entry & lvt::MASKED != 0), "unmasked while disabled");
        }
    }
}
