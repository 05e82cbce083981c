//! The exchange with hardware that keeps a virtual local APIC in a page and delivers interrupts out of it.
//!
//! Intel SDM volume 3, "APIC Virtualization and Virtual Interrupts". While the guest runs the page has the say: the
//! hardware moves vectors from IRR to ISR, ends their service, and carries out writes to TPR and, in xAPIC mode, to the
//! upper half of the ICR. While it does not run the [`LocalApic`] has it. So:
//!
//! - [`LocalApic::load`] takes over what the hardware may have changed; call it before anything else is asked of the APIC
//!   after the guest has run;
//! - [`LocalApic::store`] puts what has changed since into the page; call it before the guest runs again.
//!
//! TMR, LVT and the rest are the [`LocalApic`]'s alone; the page shows them to a guest that reads without an exit. What the
//! hardware cannot do by itself comes back by [`LocalApic::end_of`] and [`LocalApic::written`].

use caisson_types::Instant;
use caisson_x86::{ApicPage, TopVectors};

use super::registers::index;
use super::{ApicMode, Effect, LocalApic};
use crate::VectorSet;

/// The registers that a page shows beside IRR, ISR, TMR and the priorities.
const SHOWN: [u8; 16] = [
    index::ID,
    index::VERSION,
    index::LDR,
    index::DFR,
    index::SVR,
    index::ESR,
    index::ICR,
    index::ICR_HIGH,
    index::LVT,
    index::LVT + 1,
    index::LVT + 2,
    index::LVT + 3,
    index::LVT + 4,
    index::LVT_LAST,
    index::INITIAL_COUNT,
    index::DIVIDE,
];

impl LocalApic {
    /// Whether [`Self::store`] has something to do.
    #[inline]
    #[must_use]
    pub const fn is_changed(&self) -> bool {
        self.vectors_changed || self.registers_changed
    }

    /// What holds of a page with which the APIC was exchanged last.
    ///
    /// # Panics
    /// When it does not.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn assert_shown(&self, page: &ApicPage) {
        let mut all = self.clone();
        (all.vectors_changed, all.registers_changed) = (!self.vectors_changed, !self.registers_changed);
        let mut fresh = ApicPage::new();
        let _ = all.store(&mut fresh);
        let vectors = (index::ISR..=index::IRR_LAST).chain([index::TPR, index::PPR]);
        let vectors = vectors.filter(|_| !self.vectors_changed);
        for index in SHOWN.into_iter().filter(|_| !self.registers_changed).chain(vectors) {
            assert_eq!(page.get(index), fresh.get(index), "the page's register {index:#x}");
        }
    }

    /// The vectors whose end of service must come back by [`Self::end_of`].
    #[inline]
    #[must_use]
    pub const fn level_vectors(&self) -> &[u64; VectorSet::WORDS] {
        self.tmr.words()
    }

    /// Takes over what the hardware has changed in `page`. No effect as long as the APIC has changes that are not stored:
    /// the guest has not run since they were made.
    #[inline]
    pub fn load(&mut self, page: &ApicPage) {
        if self.is_changed() {
            return;
        }
        self.irr = vectors(page, index::IRR);
        self.isr = vectors(page, index::ISR);
        self.tpr = page.get(index::TPR) as u8;
        if self.mode == ApicMode::XApic {
            let high = page.get(index::ICR_HIGH) & 0xff00_0000;
            self.icr = self.icr & u64::from(u32::MAX) | u64::from(high) << 32;
        }
        self.update_ppr();
    }

    /// Puts what has changed into `page`. The answer tells the highest vectors, where they are others than before.
    pub fn store(&mut self, page: &mut ApicPage) -> Option<TopVectors> {
        if core::mem::take(&mut self.registers_changed) {
            for index in SHOWN {
                page.set(index, self.shown(index));
            }
            // In x2APIC mode the ICR is one register of 64 bits; the one beside it is not there.
            page.set_upper(index::ICR, (self.icr >> 32) as u32);
        }
        if !core::mem::take(&mut self.vectors_changed) {
            // A write that the guest made may have to be taken back.
            page.set(index::TPR, u32::from(self.tpr));
            return None;
        }
        let top = |page: &ApicPage| TopVectors {
            requested: highest(page, index::IRR),
            in_service: highest(page, index::ISR),
        };
        let before = top(page);
        for (first, set) in [(index::IRR, &self.irr), (index::ISR, &self.isr), (index::TMR, &self.tmr)] {
            for register in 0..8 {
                page.set(first + register, set.register(register));
            }
        }
        page.set(index::TPR, u32::from(self.tpr));
        page.set(index::PPR, u32::from(self.ppr));
        let after = TopVectors {
            requested: self.irr.highest().unwrap_or(0),
            in_service: self.isr.highest().unwrap_or(0),
        };
        (before != after).then_some(after)
    }

    /// The guest has written 32 bits at `offset` of `page`, and that is all that has happened. To be called after
    /// [`Self::load`]; answers as the write itself would.
    pub fn written(&mut self, offset: u16, page: &ApicPage, now: Instant) -> Effect {
        // Read-only registers, and bits that are not there, are to show again what they are.
        self.registers_changed = true;
        let Ok(register) = u8::try_from(offset >> 4) else { return Effect::None };
        match (self.mode, register) {
            (ApicMode::XApic, _) => self.mmio_write(u64::from(offset), 4, page.get(register), now),
            // The one write in x2APIC mode that the hardware leaves to software: a vector that is illegal.
            (ApicMode::X2Apic, index::SELF_IPI) => {
                self.self_ipi(page.get(register) as u8);
                Effect::None
            }
            _ => Effect::None,
        }
    }
}

/// The set of vectors in the eight registers from `first`.
#[inline]
fn vectors(page: &ApicPage, first: u8) -> VectorSet {
    let word = |n: u8| u64::from(page.get(first + 2 * n)) | u64::from(page.get(first + 2 * n + 1)) << 32;
    VectorSet::from_words([word(0), word(1), word(2), word(3)])
}

fn highest(page: &ApicPage, first: u8) -> u8 {
    vectors(page, first).highest().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ApicConfig, MSR_X2APIC_FIRST};
    use std::boxed::Box;

    const NOW: Instant = Instant::ZERO;

    fn ready(x2apic: bool) -> (LocalApic, Box<ApicPage>) {
        let mut apic = LocalApic::new(ApicConfig::new(3));
        if x2apic {
            let _ = apic.write_apic_base(0xfee0_0c00).unwrap();
            let _ = apic.write_x2apic(0x80f, 0x1ff, NOW).unwrap();
        } else {
            let _ = apic.mmio_write(0xf0, 4, 0x1ff, NOW);
        }
        let mut page = Box::new(ApicPage::new());
        assert_eq!(apic.store(&mut page), None);
        assert!(!apic.is_changed());
        (apic, page)
    }

    /// A register of the page shows what reading it would give.
    fn check_shown(apic: &mut LocalApic, page: &ApicPage) {
        let vectors = (index::ISR..=index::IRR_LAST).chain([index::TPR, index::PPR]);
        for index in SHOWN.into_iter().chain(vectors) {
            let read = match apic.mode() {
                ApicMode::X2Apic => apic.read_x2apic(MSR_X2APIC_FIRST + u32::from(index), NOW).ok(),
                _ => Some(u64::from(apic.mmio_read(u64::from(index) << 4, 4, NOW))),
            };
            let upper = if index == index::ICR && apic.mode() == ApicMode::X2Apic {
                u64::from(page.upper(index)) << 32
            } else {
                0
            };
            if let Some(value) = read {
                assert_eq!(u64::from(page.get(index)) | upper, value, "register {index:#x}");
            }
        }
    }

    #[test]
    fn a_page_shows_the_registers() {
        for x2apic in [false, true] {
            let (mut apic, mut page) = ready(x2apic);
            check_shown(&mut apic, &page);
            assert_eq!(page.get(index::ID), if x2apic { 3 } else { 3 << 24 });
            for (index, value) in [(0x32, 0x45), (0x35, 0x1_0700), (0x38, 1000), (0x3e, 0xb), (0x08, 0x23)] {
                let _ = match x2apic {
                    true => apic.write_x2apic(MSR_X2APIC_FIRST + index, value, NOW).unwrap(),
                    false => apic.mmio_write(u64::from(index) << 4, 4, value as u32, NOW),
                };
            }
            let _ = apic.write_icr(5 << 56 | 0x4_0061);
            assert_eq!(apic.store(&mut page), Some(TopVectors { requested: 0x61, in_service: 0 }));
            check_shown(&mut apic, &page);
        }
    }

    #[test]
    fn the_hardware_s_changes_are_taken_over() {
        let (mut apic, mut page) = ready(false);
        // Delivered 0x61, requested 0x31 by itself, TPR and ICR_HI written.
        page.set(index::ISR + 3, 1 << 1);
        page.set(index::IRR + 1, 1 << 17);
        page.set(index::TPR, 0x45);
        page.set(index::ICR_HIGH, 0x0700_0000);
        apic.load(&page);
        assert_eq!((apic.isr().highest(), apic.irr().highest()), (Some(0x61), Some(0x31)));
        assert_eq!((apic.tpr(), apic.ppr()), (0x45, 0x60));
        assert_eq!(apic.mmio_read(0x310, 4, NOW), 0x0700_0000);
        assert!(!apic.is_changed());
        apic.assert_invariants();
        // Changes of the APIC's own go before what the page says.
        let _ = apic.mmio_write(0x80, 4, 0x10, NOW);
        apic.load(&page);
        assert_eq!(apic.tpr(), 0x10);
        assert_eq!(apic.store(&mut page), None, "the highest vectors are what they were");
        assert_eq!((page.get(index::TPR), page.get(index::PPR)), (0x10, 0x60));
        assert_eq!(apic.eoi(), Effect::None);
        let top = TopVectors { requested: 0x31, in_service: 0 };
        assert_eq!((apic.store(&mut page), page.get(index::ISR + 3)), (Some(top), 0));
    }

    #[test]
    fn writes_that_the_hardware_has_stored() {
        let (mut apic, mut page) = ready(false);
        page.set(index::LVT, 0x0002_1045);
        apic.load(&page);
        assert_eq!(apic.written(0x320, &page, NOW), Effect::TimerChanged);
        page.set(index::ID, 0x7700_0000);
        assert_eq!(apic.written(0x20, &page, NOW), Effect::None);
        page.set(index::ICR_HIGH, 0x0200_0000);
        apic.store(&mut page);
        page.set(index::ICR_HIGH, 0x0200_0000);
        page.set(index::ICR, 0x4051);
        apic.load(&page);
        let Effect::SendIpi(ipi) = apic.written(0x300, &page, NOW) else { panic!("no IPI") };
        assert_eq!((ipi.message.vector, ipi.message.destination), (0x51, 2));
        // Beside a register's first byte nothing is written, and nothing is shown.
        page.set(index::SVR, 0xff);
        assert_eq!(apic.written(0xf1, &page, NOW), Effect::None);
        assert_eq!(apic.written(0xffff, &page, NOW), Effect::None);
        apic.store(&mut page);
        check_shown(&mut apic, &page);
        assert_eq!((page.get(index::ID), page.get(index::LVT)), (3 << 24, 0x0002_0045));
        assert!(apic.is_software_enabled());
    }

    #[test]
    fn an_illegal_self_ipi_is_an_error() {
        let (mut apic, mut page) = ready(true);
        page.set(index::SELF_IPI, 5);
        assert_eq!(apic.written(0x3f0, &page, NOW), Effect::None);
        let _ = apic.write_x2apic(0x828, 0, NOW).unwrap();
        assert_eq!(apic.read_x2apic(0x828, NOW), Ok(0x60));
        assert_eq!(apic.written(0x320, &page, NOW), Effect::None, "no such exit in x2APIC mode");
        assert_eq!(apic.store(&mut page), None);
    }

    #[test]
    fn the_end_of_a_level() {
        let (mut apic, mut page) = ready(true);
        apic.receive(&crate::InterruptMessage {
            trigger: crate::TriggerMode::Level,
            ..crate::InterruptMessage::fixed(3, 0x52)
        });
        assert_eq!(apic.level_vectors()[1], 1 << 0x12);
        assert!(apic.store(&mut page).is_some());
        // The hardware has delivered it, and the guest has ended it.
        page.set(index::IRR + 2, 0);
        apic.load(&page);
        assert_eq!(apic.end_of(0x52), Effect::BroadcastEoi(0x52));
        assert_eq!(apic.end_of(0x53), Effect::None);
    }
}
