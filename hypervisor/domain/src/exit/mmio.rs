//! Accesses to guest-physical addresses without RAM: the local APIC's page, the I/O APIC's, those of virtio devices, and
//! nothing.

use caisson_emulate::{Done, MmioBus, StepError, step};
use caisson_firmware::IOAPIC_ADDRESS;
use caisson_hwvirt::{NestedFault, Vcpu};
use caisson_irqchip::{Effect, LocalApic};
use caisson_pci::Hardware;
use caisson_types::{Gpa, GuestMemory, Instant, PAGE_SIZE};
use caisson_x86::Exception;

use crate::domain::{BOOT_VCPU, Domain, Host};
use crate::door::Writes;
use crate::vcpu::{Ended, KillReason, Outcome, VirtualCpu};
use crate::virtio::Touched;

/// The most effects that one instruction leaves: an access that straddles registers is split into a few.
const MAX_EFFECTS: usize = 4;

impl<V: Vcpu> VirtualCpu<V> {
    #[inline(never)]
    pub(super) fn nested_fault<M: GuestMemory>(
        &mut self,
        domain: &Domain<M>,
        host: &mut impl Host,
        fault: NestedFault,
    ) -> Outcome {
        if domain.memory.read_u64(Gpa::new(fault.gpa.as_u64() & !7)).is_ok() {
            if fault.write && fault.present {
                return Outcome::Protected(fault.gpa);
            }
            return self.end(Ended::Killed(KillReason::LostMemory { gpa: fault.gpa }));
        }
        // What the CPU was delivering reached for its tables or its stack here: no instruction is to be executed for it.
        if self.interrupted.is_some() {
            return self.end(Ended::Killed(KillReason::LostDelivery { gpa: fault.gpa }));
        }
        self.end_pv_eoi(domain);
        self.load_apic();
        let now = domain.clock.at(host.tsc());
        let mut effects = [Effect::None; MAX_EFFECTS];
        let mut bus = Devices {
            apic_page: self.apic.mmio_base(),
            apic: &mut self.apic,
            domain,
            now,
            effects: &mut effects,
            used: 0,
            chipset_touched: false,
            virtio_touched: Touched::default(),
            door_writes: Writes::new(),
            hardware: if domain.has_functions() { host.hardware() } else { None },
        };
        let done = step(&mut self.hw, &domain.memory, &mut bus, fault, &domain.paging);
        let Devices { used, chipset_touched, virtio_touched, door_writes, .. } = bus;
        self.notice_request();
        for effect in effects.iter().take(used) {
            self.apic_effect(domain, host, *effect);
        }
        if chipset_touched {
            let mut chipset = domain.chipset();
            let wake = self.settle(domain, &mut chipset);
            if domain.has_functions() {
                domain.tend_lines(&mut chipset, host, true);
            }
            drop(chipset);
            host.wake(wake);
        }
        if !virtio_touched.is_empty() && domain.serve_virtio(host, virtio_touched) {
            self.waits_for_backend = true;
            self.attention = true;
        }
        domain.serve_door(host, &door_writes);
        match done {
            Ok(Done::Completed) => {
                self.trap_if_stepping();
                Outcome::Resume
            }
            Ok(Done::Partial) => Outcome::Resume,
            Ok(Done::Retry) => {
                self.hw.flush_tlb();
                Outcome::Resume
            }
            Err(StepError::Exception(exception)) => self.raise(exception),
            // Instructions that lie outside RAM read as all ones, which is none.
            Err(StepError::Unhandleable(_)) if fault.fetch => self.raise(Exception::UNDEFINED),
            Err(StepError::Unhandleable(bytes)) => {
                let mut first = [0; 8];
                first.iter_mut().zip(bytes.as_slice()).for_each(|(to, from)| *to = *from);
                let reason =
                    KillReason::UnknownInstruction { rip: self.hw.rip(), gpa: fault.gpa, bytes: first };
                self.end(Ended::Killed(reason))
            }
        }
    }

    /// Carries out what an access to the local APIC leaves to be done.
    pub(super) fn apic_effect<M>(&mut self, domain: &Domain<M>, host: &mut impl Host, effect: Effect) {
        match effect {
            Effect::None => return self.notice_request(),
            Effect::SendIpi(ipi) => {
                let receivers = domain.apics.resolve_ipi(&ipi, self.index());
                host.ipi(receivers, ipi.message.vector);
                host.wake(domain.post_to(receivers, &ipi.message));
            }
            Effect::BroadcastEoi(vector) => {
                let mut chipset = domain.chipset();
                chipset.eoi(vector);
                let wake = domain.settle(&mut chipset);
                if domain.has_functions() {
                    domain.tend_lines(&mut chipset, host, false);
                }
                drop(chipset);
                host.wake(wake);
            }
            Effect::TimerChanged => {
                self.deadline_changed = true;
                return self.notice_request();
            }
            Effect::TprChanged => self.hw.set_cr8(self.apic.cr8()),
            Effect::RoutingChanged => {
                let wake = domain.route(self.index(), &self.apic.routing());
                host.wake(wake);
                self.place_apic();
                self.hw.set_cr8(self.apic.cr8());
                self.mirrored.apic_enabled = self.apic.mode() != caisson_irqchip::ApicMode::Disabled;
                // LINT0 of the boot vCPU is the only one that is wired.
                self.pic_asserted |= self.index() == BOOT_VCPU;
                self.deadline_changed = true;
            }
        }
        self.attention = true;
    }

    /// Looks for what an access to the local APIC has made deliverable beside its effect: an EOI uncovers a request, an IPI
    /// goes to its sender, a timer is found to have expired, LINT0 is unmasked. A request that its priority holds back
    /// counts as well: it may need another window.
    #[inline]
    pub(super) fn notice_request(&mut self) {
        self.attention |= self.pic_asserted
            || if self.hw.delivers_interrupts() {
                self.apic.is_changed()
            } else {
                self.apic.highest_request().is_some()
            };
    }

    /// The hardware has ended the service of a level-triggered vector.
    pub(super) fn end_of_interrupt<M>(
        &mut self,
        domain: &Domain<M>,
        host: &mut impl Host,
        vector: u8,
    ) -> Outcome {
        self.load_apic();
        let effect = self.apic.end_of(vector);
        self.apic_effect(domain, host, effect);
        Outcome::Resume
    }

    /// The hardware has stored a write to the local APIC's page, whose effects are left to be done.
    pub(super) fn apic_write<M>(&mut self, domain: &Domain<M>, host: &mut impl Host, offset: u16) -> Outcome {
        self.load_apic();
        let now = domain.clock.at(host.tsc());
        let effect = match self.hw.apic_page() {
            Some(page) => self.apic.written(offset, page, now),
            None => Effect::None,
        };
        self.apic_effect(domain, host, effect);
        // The page shows what was written, which need not be what the register has become.
        self.attention = true;
        Outcome::Resume
    }
}

/// What answers at guest-physical addresses without RAM.
struct Devices<'a, M> {
    apic_page: Option<Gpa>,
    apic: &'a mut LocalApic,
    domain: &'a Domain<M>,
    now: Instant,
    effects: &'a mut [Effect; MAX_EFFECTS],
    used: usize,
    chipset_touched: bool,
    /// What is left to do for virtio devices.
    virtio_touched: Touched,
    /// What was written to the door's registers.
    door_writes: Writes,
    /// The real functions, where the domain owns any.
    hardware: Option<&'a mut dyn Hardware>,
}

impl<M> Devices<'_, M> {
    fn apic_offset(&self, gpa: Gpa) -> Option<u64> {
        let offset = gpa.as_u64().wrapping_sub(self.apic_page?.as_u64());
        (offset < PAGE_SIZE).then_some(offset)
    }

    fn ioapic_offset(gpa: Gpa) -> Option<u64> {
        let offset = gpa.as_u64().wrapping_sub(u64::from(IOAPIC_ADDRESS));
        (offset < PAGE_SIZE).then_some(offset)
    }

    fn keep(&mut self, effect: Effect) {
        if effect == Effect::None {
            return;
        }
        // The effects of one instruction are few; where it is split into more, the last counts.
        let slot = self.used.min(MAX_EFFECTS - 1);
        self.effects[slot] = effect;
        self.used = slot + 1;
    }
}

impl<M: GuestMemory> MmioBus for Devices<'_, M> {
    fn read(&mut self, gpa: Gpa, size: u8) -> u64 {
        if let Some(offset) = self.apic_offset(gpa) {
            return u64::from(self.apic.mmio_read(offset, size, self.now));
        }
        if let Some(offset) = Self::ioapic_offset(gpa) {
            return u64::from(self.domain.chipset().ioapic_mmio_read(offset, size));
        }
        if let Some(value) = self.domain.virtio.read(gpa, size) {
            return value;
        }
        if let Some(offset) = self.domain.door_register(gpa) {
            return self.domain.read_door(offset, size);
        }
        if let (Some(hardware), Some(mut bus)) = (self.hardware.as_deref_mut(), self.domain.functions()) {
            return bus.read_memory(hardware, gpa.as_u64(), size);
        }
        u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
    }

    fn write(&mut self, gpa: Gpa, size: u8, value: u64) {
        if let Some(offset) = self.apic_offset(gpa) {
            let effect = self.apic.mmio_write(offset, size, value as u32, self.now);
            self.keep(effect);
        } else if let Some(offset) = Self::ioapic_offset(gpa) {
            self.domain.chipset().ioapic_mmio_write(offset, value as u32, self.now);
            self.chipset_touched = true;
        } else if let Some(offset) = self.domain.door_register(gpa) {
            self.door_writes.push(offset, size, value);
        } else if let (Some(hardware), Some(mut bus)) =
            (self.hardware.as_deref_mut(), self.domain.functions())
        {
            bus.write_memory(hardware, gpa.as_u64(), size, value);
            drop(bus);
            self.door_writes.note();
        } else {
            self.virtio_touched.add(self.domain.virtio.write(gpa, size, value, &self.domain.memory));
        }
    }
}
