//! KVM's paravirtual clock, end of interrupt and stolen time, as stock Linux uses them (Linux
//! `Documentation/virt/kvm/x86/msr.rst`).

use caisson_hwvirt::Vcpu;
use caisson_irqchip::Effect;
use caisson_policy::{StealTime, pvclock};
use caisson_types::GuestMemory;

use crate::domain::Domain;
use crate::vcpu::VirtualCpu;

/// Bit 0 of the PV EOI word: the guest may clear it instead of writing the EOI register.
const EOI_PENDING: u8 = 1;
/// Bit 0 of the MSR that names the word.
const ENABLED: u64 = 1;

impl<V: Vcpu> VirtualCpu<V> {
    /// Lets the guest end the interrupt that is being delivered without an exit, where nothing waits for its end.
    #[inline]
    pub(crate) fn arm_pv_eoi<M: GuestMemory>(&mut self, domain: &Domain<M>) {
        if let Some(word) = self.pv_eoi
            && !self.pv_eoi_armed
            && self.apic.may_skip_eoi()
        {
            self.pv_eoi_armed = domain.memory.write(word, &[EOI_PENDING]).is_ok();
        }
    }

    /// Finds out whether the guest has ended an interrupt by the word alone. The offer stands as long as nothing waits for
    /// the interrupt's end, and is taken back otherwise. To be called before the local APIC is asked for what is next.
    #[inline]
    pub(crate) fn settle_pv_eoi<M: GuestMemory>(&mut self, domain: &Domain<M>) {
        if !self.pv_eoi_armed {
            return;
        }
        self.pv_eoi_armed = false;
        let Some(word) = self.pv_eoi else { return };
        let mut byte = [0];
        if domain.memory.read(word, &mut byte).is_err() {
            return;
        }
        if byte[0] & EOI_PENDING == 0 {
            // By the rule under which the bit was set there is nothing else to do at the end of this interrupt. A level-triggered
            // request of the same vector that has arrived since is not the one that ended.
            let _: Effect = self.apic.eoi_skipped();
        } else if self.apic.may_skip_eoi() {
            self.pv_eoi_armed = true;
        } else {
            let _ = domain.memory.write(word, &[byte[0] & !EOI_PENDING]);
        }
    }

    /// Takes the offer back whatever waits, because the guest uses the local APIC's own registers.
    #[inline]
    pub(crate) fn end_pv_eoi<M: GuestMemory>(&mut self, domain: &Domain<M>) {
        self.settle_pv_eoi(domain);
        if let Some(word) = self.pv_eoi
            && core::mem::take(&mut self.pv_eoi_armed)
        {
            let _ = domain.memory.write(word, &[0]);
        }
    }

    /// KVM_PV_EOI_EN as the guest reads it.
    pub(crate) fn pv_eoi_msr(&self) -> u64 {
        self.pv_eoi.map_or(0, |word| word.as_u64() | ENABLED)
    }

    /// Writes KVM_PV_EOI_EN; `None` for a value that is #GP.
    pub(crate) fn set_pv_eoi<M: GuestMemory>(&mut self, domain: &Domain<M>, value: u64) -> Option<()> {
        self.end_pv_eoi(domain);
        self.pv_eoi = pvclock::enabled_address(value).ok()?;
        Some(())
    }

    /// Writes KVM_SYSTEM_TIME_NEW; `None` for a value that is #GP.
    pub(crate) fn set_system_time<M: GuestMemory>(&mut self, domain: &Domain<M>, value: u64) -> Option<()> {
        pvclock::enabled_address(value).ok()?;
        self.system_time = value;
        self.refresh_system_time(domain);
        Some(())
    }

    /// Writes the KVM clock's page, where the guest has one. It changes only with the vCPU's TSC (virtual time is a
    /// function of the guest's TSC, and the page tells which) and with the stable bit: pages of vCPUs whose guest has moved
    /// their TSCs apart are right each for its own vCPU, and not for the others.
    pub(crate) fn refresh_system_time<M: GuestMemory>(&self, domain: &Domain<M>) {
        if let Ok(Some(at)) = pvclock::enabled_address(self.system_time) {
            let mut info = pvclock::TimeInfo::new(domain.clock.parameters(), self.tsc_adjust);
            if !domain.tscs_equal() {
                info.flags &= !pvclock::TSC_STABLE;
            }
            // A guest that names no memory gets no clock.
            let _ = info.publish(&domain.memory, at);
        }
    }

    /// Writes KVM_WALL_CLOCK_NEW, and the time of virtual time zero where it points; `None` for a value that is #GP.
    pub(crate) fn set_wall_clock<M: GuestMemory>(&mut self, domain: &Domain<M>, value: u64) -> Option<()> {
        let at = pvclock::wall_clock_address(value).ok()?;
        self.wall_clock = value;
        let _ = pvclock::WallClock::new(domain.wall_clock).publish(&domain.memory, at);
        Some(())
    }

    /// KVM_STEAL_TIME as the guest reads it.
    pub(crate) fn steal_time_msr(&self) -> u64 {
        self.steal_time.map_or(0, StealTime::msr)
    }

    /// Writes KVM_STEAL_TIME, and the record where it points; `None` for a value that is #GP.
    pub(crate) fn set_steal_time<M: GuestMemory>(&mut self, domain: &Domain<M>, value: u64) -> Option<()> {
        self.steal_time = StealTime::from_msr(value).ok()?;
        self.shown_preempted = false;
        if let Some(record) = self.steal_time {
            // A guest that names no memory gets no record.
            let _ = record.take_preempted(&domain.memory);
            let _ = record.publish(&domain.memory, self.stolen);
        }
        Some(())
    }

    /// The vCPU is about to run on a CPU after it did not. `stolen` is the time in nanoseconds, since it was made, during
    /// which it could have run and others did.
    ///
    /// To be called before [`VirtualCpu::prepare`], and paired with [`VirtualCpu::scheduled_out`]. Without the guest's MSR
    /// it is a store and a test.
    #[inline]
    pub fn scheduled_in<M: GuestMemory>(&mut self, domain: &Domain<M>, stolen: u64) {
        let before = core::mem::replace(&mut self.stolen, stolen);
        let Some(record) = self.steal_time else { return };
        // From here on others send an IPI for a flush; what they asked for before is done before the entry.
        if core::mem::take(&mut self.shown_preempted) && record.take_preempted(&domain.memory) == Ok(true) {
            self.hw.flush_tlb();
        }
        if stolen != before {
            let _ = record.publish(&domain.memory, stolen);
        }
    }

    /// The vCPU leaves its CPU. `preempted` says that it could go on: then the guest's other vCPUs learn that there is no
    /// point in spinning for it, and leave TLB flushes to the next [`VirtualCpu::scheduled_in`].
    ///
    /// To be called when the last exit has been answered: nothing that was read through the guest's page tables may be used
    /// afterwards, since a flush does not reach it.
    #[inline]
    pub fn scheduled_out<M: GuestMemory>(&mut self, domain: &Domain<M>, preempted: bool) {
        if preempted && let Some(record) = self.steal_time {
            self.shown_preempted = record.set_preempted(&domain.memory).is_ok();
        }
    }
}
