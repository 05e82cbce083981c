//! What a domain's vCPUs share.

use alloc::boxed::Box;

use caisson_devices::Chipset;
use caisson_emulate::PagingFeatures;
use caisson_irqchip::{ApicMap, InterruptMessage, Ipi, Mailbox, Routing, TriggerMode, VcpuSet};
use caisson_policy::{CpuidTable, MsrSetup};
use caisson_types::{DomainId, Instant};
use spin::{Mutex, MutexGuard};

use crate::clock::DomainClock;

/// The virtual local APIC's timer clock, in kHz: a tick is a nanosecond.
pub const CPU_APIC_KHZ: u32 = 1_000_000;
/// The I/O APIC's id.
pub(crate) const IOAPIC_ID: u8 = 0;
/// Work bit of a mailbox: the 8259 pair's output has changed.
pub(crate) const WORK_PIC: u16 = 1 << 0;

/// What a domain needs of the machine while its vCPUs run.
pub trait Host {
    /// The host's TSC.
    fn tsc(&self) -> u64;
    /// A byte that the guest wrote to its serial line. `false` where there is no room: the guest tries again.
    fn console(&mut self, byte: u8) -> bool;
    /// These vCPUs have something in their mailboxes and may have to be woken.
    fn wake(&mut self, vcpus: VcpuSet);
}

/// What a domain is made of.
pub struct DomainSetup<M> {
    /// Its id.
    pub id: DomainId,
    /// Its RAM.
    pub memory: M,
    /// What CPUID says in it.
    pub cpuid: CpuidTable,
    /// What its MSRs start with.
    pub msrs: MsrSetup,
    /// Its clock.
    pub clock: DomainClock,
    /// Seconds since 1970 at its virtual time zero.
    pub wall_clock: u64,
    /// How many vCPUs it has, from 1 to [`caisson_irqchip::MAX_VCPUS`].
    pub vcpus: usize,
    /// Host supports 1 GiB pages, which the guest's own tables may use as well.
    pub gigabyte_pages: bool,
}

/// What a domain's vCPUs share.
pub struct Domain<M> {
    /// Its id.
    pub id: DomainId,
    /// Its RAM.
    pub memory: M,
    pub(crate) cpuid: CpuidTable,
    pub(crate) msrs: MsrSetup,
    /// Its clock.
    pub clock: DomainClock,
    pub(crate) wall_clock: u64,
    pub(crate) paging: PagingFeatures,
    chipset: Mutex<Chipset>,
    pub(crate) apics: ApicMap,
    mailboxes: Box<[Mailbox]>,
}

impl<M> Domain<M> {
    /// A domain at its virtual time zero, with devices after power-on.
    #[must_use]
    pub fn new(setup: DomainSetup<M>) -> Self {
        let paging = PagingFeatures {
            physical_bits: setup.cpuid.limits().physical_bits,
            gigabyte_pages: setup.gigabyte_pages,
            pkru: 0,
        };
        Self {
            id: setup.id,
            memory: setup.memory,
            cpuid: setup.cpuid,
            msrs: setup.msrs,
            clock: setup.clock,
            wall_clock: setup.wall_clock,
            paging,
            chipset: Mutex::new(Chipset::new(setup.wall_clock, IOAPIC_ID, Instant::ZERO)),
            apics: ApicMap::new(setup.vcpus),
            mailboxes: (0..setup.vcpus).map(|_| Mailbox::new()).collect(),
        }
    }

    /// The chipset, for as long as one operation on it takes.
    #[inline]
    pub fn chipset(&self) -> MutexGuard<'_, Chipset> {
        self.chipset.lock()
    }

    /// How many vCPUs it has.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.mailboxes.len()
    }

    /// A vCPU's mailbox.
    ///
    /// # Panics
    /// For a vCPU that the domain does not have: a bug of Caisson's.
    #[inline]
    #[must_use]
    pub fn mailbox(&self, index: usize) -> &Mailbox {
        &self.mailboxes[index]
    }

    /// Leaves an IPI of vCPU `sender`'s.
    pub(crate) fn post_ipi(&self, ipi: &Ipi, sender: usize) -> VcpuSet {
        self.post_to(self.apics.resolve_ipi(ipi, sender), &ipi.message)
    }

    fn post_to(&self, receivers: VcpuSet, message: &InterruptMessage) -> VcpuSet {
        receivers
            .into_iter()
            .filter(|&index| self.mailboxes.get(index).is_some_and(|mailbox| mailbox.post(message)))
            .collect()
    }

    /// Delivers what a call to the chipset has left behind, and answers which vCPUs must be woken: messages of the
    /// I/O APIC, and the output of the 8259 pair, which goes to the boot vCPU.
    pub fn settle(&self, chipset: &mut Chipset) -> VcpuSet {
        let mut wake = self.deliver_messages(chipset);
        if chipset.pic_output() && self.mailboxes[0].post_work(WORK_PIC) {
            wake.insert(0);
        }
        wake
    }

    /// Tells senders how to reach vCPU `index`'s local APIC from now on, sends again what no local APIC has accepted so far,
    /// and answers which vCPUs must be woken.
    pub(crate) fn route(&self, index: usize, routing: &Routing) -> VcpuSet {
        self.apics.update(index, routing);
        let mut chipset = self.chipset();
        chipset.resend();
        self.deliver_messages(&mut chipset)
    }

    /// Delivers the messages of the I/O APIC, and answers which vCPUs must be woken.
    pub(crate) fn deliver_messages(&self, chipset: &mut Chipset) -> VcpuSet {
        let mut wake = VcpuSet::EMPTY;
        while let Some(message) = chipset.pop_message() {
            let receivers = self.apics.resolve(&message);
            if receivers.is_empty() && message.trigger == TriggerMode::Level {
                chipset.rejected(&message);
            }
            for index in self.post_to(receivers, &message) {
                wake.insert(index);
            }
        }
        wake
    }

    /// Offers a byte of console input to the guest's serial line. `false` where its buffer is full: keep the byte.
    #[must_use]
    pub fn console_input(&self, byte: u8, host: &mut impl Host) -> bool {
        let mut chipset = self.chipset();
        let taken = chipset.console_input(byte);
        let wake = self.settle(&mut chipset);
        drop(chipset);
        host.wake(wake);
        taken
    }
}
