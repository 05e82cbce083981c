//! What a domain's vCPUs share.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use caisson_abi::{CallError, CallResult, Operation, Privileges};
use caisson_devices::Chipset;
use caisson_emulate::PagingFeatures;
use caisson_hwvirt::ExitClass;
use caisson_irqchip::{ApicMap, InterruptMessage, Mailbox, Routing, TriggerMode, VcpuSet};
use caisson_locks::{Mutex, MutexGuard, Rank};
use caisson_pci::{Bus, Hardware, LineMode};
use caisson_policy::{CpuidTable, MsrSetup};
use caisson_types::{DomainId, Gpa, Instant};
use caisson_virtio::PageRef;

use crate::clock::DomainClock;
use crate::door::Door;
use crate::virtio::{VirtioDevice, VirtioDevices};

/// The virtual local APIC's timer clock, in kHz: a tick is a nanosecond.
pub const CPU_APIC_KHZ: u32 = 1_000_000;
/// The I/O APIC's id.
pub(crate) const IOAPIC_ID: u8 = 0;
/// The vCPU that keeps the chipset's time and takes the 8259 pair's interrupts.
pub(crate) const BOOT_VCPU: usize = 0;
/// Work bits of a mailbox.
pub(crate) mod work {
    /// The 8259 pair's output has changed.
    pub(crate) const PIC: u16 = 1 << 0;
    /// The chipset's deadline has come nearer.
    pub(crate) const DEADLINE: u16 = 1 << 1;
    /// Another vCPU ends this one's HLT, or its next one.
    pub(crate) const KICK: u16 = 1 << 2;
    /// Whether the vCPUs' TSCs are equal has changed, which the KVM clock's page tells.
    pub(crate) const CLOCK: u16 = 1 << 3;
    /// A backend has done what a vCPU may wait for.
    pub(crate) const CHANNEL: u16 = 1 << 4;
}

/// What a domain needs of the machine while its vCPUs run.
pub trait Host {
    /// The host's TSC.
    fn tsc(&self) -> u64;
    /// A byte that the guest wrote to its serial line. `false` where there is no room: the guest tries again.
    fn console(&mut self, byte: u8) -> bool;
    /// These vCPUs have something in their mailboxes and may have to be woken.
    fn wake(&mut self, vcpus: VcpuSet);
    /// Fills `bytes` from their start with random ones, as many as the machine has at once; answers how many that is. Never
    /// asked for more than 64.
    fn random(&mut self, bytes: &mut [u8]) -> usize;
    /// Does what the domain asks for by a hypercall, which it is permitted to.
    ///
    /// # Errors
    /// What is then its answer.
    fn call(&mut self, operation: Operation) -> CallResult {
        let _ = operation;
        Err(CallError::NoSuchCall)
    }
    /// The guest has notified these queues, a bit each, of the device `slot` that another domain serves.
    fn notify_backend(&mut self, slot: usize, queues: u64) {
        let _ = (slot, queues);
    }
    /// The state of the device `slot` that another domain serves has changed.
    fn tell_backend(&mut self, slot: usize) {
        let _ = slot;
    }
    /// The real functions that the domain owns, where it owns any.
    fn hardware(&mut self) -> Option<&mut dyn Hardware> {
        None
    }
    /// The running vCPU's exit is of `class`, and is being answered: for whoever keeps accounts.
    #[inline]
    fn answering(&mut self, class: ExitClass) {
        let _ = class;
    }
    /// Interrupt `vector` goes into the running vCPU's guest with the next entry: for whoever keeps a record of it.
    #[inline]
    fn injected(&mut self, vector: u8) {
        let _ = vector;
    }
    /// The running vCPU makes hypercall `number`, likewise.
    #[inline]
    fn hypercall(&mut self, number: u64) {
        let _ = number;
    }
    /// The running vCPU sends interrupt `vector` to these, likewise.
    #[inline]
    fn ipi(&mut self, receivers: VcpuSet, vector: u8) {
        let _ = (receivers, vector);
    }
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
    /// The real functions that it owns.
    pub functions: Option<Bus>,
    /// Host supports 1 GiB pages, which the guest's own tables may use as well.
    pub gigabyte_pages: bool,
    /// Its virtio devices, at most [`caisson_firmware::MAX_VIRTIO`], in the order of the firmware's description, each with the
    /// page that has its registers.
    pub virtio: Vec<(VirtioDevice, PageRef)>,
    /// What it may ask for beyond running.
    pub privileges: Privileges,
    /// Where the pages of its door are: only for a domain that owns functions, Caisson's own among them.
    pub door: Option<Gpa>,
}

/// What a domain's vCPUs share.
pub struct Domain<M> {
    /// Its id.
    pub id: DomainId,
    pub(crate) cpuid: CpuidTable,
    pub(crate) msrs: MsrSetup,
    /// Its clock.
    pub clock: DomainClock,
    pub(crate) wall_clock: u64,
    pub(crate) paging: PagingFeatures,
    chipset: Mutex<Chipset>,
    /// The real functions that it owns.
    functions: Option<Mutex<Bus>>,
    /// [`Chipset::next_deadline`] in nanoseconds, as of the last [`Domain::settle`]: written under the chipset's lock, so
    /// that the boot vCPU can ask for it without.
    chipset_deadline: AtomicU64,
    /// What each vCPU's guest has added to its TSC; written under the chipset's lock.
    tsc_adjusts: Box<[AtomicU64]>,
    /// Whether all of these are equal.
    tscs_equal: AtomicBool,
    pub(crate) apics: ApicMap,
    pub(crate) virtio: VirtioDevices,
    pub(crate) privileges: Privileges,
    pub(crate) door: Option<Door>,
    mailboxes: Box<[Mailbox]>,
    /// Its RAM. The last to be dropped: with it goes all that is the domain's, such as the devices' pages above.
    pub memory: M,
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
        let chipset = Chipset::new(setup.wall_clock, IOAPIC_ID, Instant::ZERO);
        Self {
            id: setup.id,
            memory: setup.memory,
            cpuid: setup.cpuid,
            msrs: setup.msrs,
            clock: setup.clock,
            wall_clock: setup.wall_clock,
            paging,
            chipset_deadline: AtomicU64::new(chipset.next_deadline().as_nanos()),
            chipset: Mutex::new(Rank::Chipset, chipset),
            functions: setup.functions.map(|bus| Mutex::new(Rank::Functions, bus)),
            tsc_adjusts: (0..setup.vcpus).map(|_| AtomicU64::new(0)).collect(),
            tscs_equal: AtomicBool::new(true),
            apics: ApicMap::new(setup.vcpus),
            virtio: VirtioDevices::new(setup.virtio),
            privileges: setup.privileges,
            door: setup.door.map(Door::new),
            mailboxes: (0..setup.vcpus).map(|_| Mailbox::new()).collect(),
        }
    }

    /// The chipset, for as long as one operation on it takes: [`Domain::settle`] ends it.
    #[inline]
    #[cfg_attr(debug_assertions, track_caller)]
    pub fn chipset(&self) -> MutexGuard<'_, Chipset> {
        self.chipset.lock()
    }

    /// The real functions that it owns, if any.
    #[inline]
    pub fn functions(&self) -> Option<MutexGuard<'_, Bus>> {
        self.functions.as_ref().map(Mutex::lock)
    }

    /// Its virtio devices are these.
    #[cfg(test)]
    pub(crate) fn set_virtio(&mut self, devices: Vec<VirtioDevice>) {
        let paged = |device| (device, caisson_virtio::RegisterPage::boxed());
        self.virtio = VirtioDevices::new(devices.into_iter().map(paged).collect());
    }

    /// It has a door from now on, with Caisson's own function.
    #[cfg(test)]
    pub(crate) fn open_door(&mut self, area: Gpa, privileges: Privileges) {
        if self.door.is_none() {
            self.door = Some(Door::new(area));
            if let Some(mut bus) = self.functions() {
                bus.add_own();
            }
        }
        self.privileges = privileges;
    }

    /// It owns these from now on.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn set_functions(&mut self, bus: Bus) {
        self.functions = Some(Mutex::new(Rank::Functions, bus));
    }

    /// Whether it has a door.
    #[must_use]
    pub const fn has_door(&self) -> bool {
        self.door.is_some()
    }

    /// Whether it owns real functions.
    #[inline]
    pub(crate) fn has_functions(&self) -> bool {
        self.functions.is_some()
    }

    /// A function that it owns sends `message`.
    pub fn interrupt(&self, message: &InterruptMessage, host: &mut impl Host) {
        host.wake(self.post_to(self.apics.resolve(message), message));
    }

    /// A real device has raised a line of the domain's ([`caisson_pci::LINES`]), which is masked there until its service ends.
    pub fn raise_line(&self, line: u8, host: &mut impl Host) {
        let mut chipset = self.chipset();
        chipset.hold_line(line);
        let wake = self.settle(&mut chipset);
        drop(chipset);
        host.wake(wake);
    }

    /// Tells the machine which lines' service has ended, and, after `changed` entries of the I/O APIC, which lines the domain
    /// wants.
    pub(crate) fn tend_lines(&self, chipset: &mut Chipset, host: &mut impl Host, changed: bool) {
        let Some(hardware) = host.hardware() else { return };
        let mut ended = chipset.take_ended_lines();
        while ended != 0 {
            hardware.end_line(ended.trailing_zeros() as u8);
            ended &= ended - 1;
        }
        if changed {
            for line in caisson_pci::LINES {
                let mode = chipset.wants_line(line);
                hardware.set_line(line, mode.map(|(active_low, level)| LineMode { active_low, level }));
            }
        }
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

    /// Leaves `message` in the mailboxes of `receivers`, and answers who must be woken.
    pub(crate) fn post_to(&self, receivers: VcpuSet, message: &InterruptMessage) -> VcpuSet {
        let woken = |&index: &usize| self.mailboxes.get(index).is_some_and(|mailbox| mailbox.post(message));
        receivers.into_iter().filter(woken).collect()
    }

    /// Leaves work bits for vCPU `index`, and answers who must be woken. For a vCPU that the domain has not: nobody.
    pub(crate) fn post_work(&self, index: usize, bits: u16) -> VcpuSet {
        match self.mailboxes.get(index) {
            Some(mailbox) if mailbox.post_work(bits) => VcpuSet::single(index),
            _ => VcpuSet::EMPTY,
        }
    }

    /// Delivers what a call to the chipset has left behind, and answers which vCPUs must be woken: messages of the
    /// I/O APIC; and for the boot vCPU the output of the 8259 pair, and a deadline that is nearer than it knows.
    pub fn settle(&self, chipset: &mut Chipset) -> VcpuSet {
        let mut deadline_changed = false;
        let mut wake = self.settle_for(chipset, &mut deadline_changed);
        if deadline_changed {
            wake.extend(self.post_work(BOOT_VCPU, work::DEADLINE));
        }
        wake
    }

    /// [`Domain::settle`], which leaves it to the caller to tell the boot vCPU of `deadline_changed`.
    pub(crate) fn settle_for(&self, chipset: &mut Chipset, deadline_changed: &mut bool) -> VcpuSet {
        let mut wake = self.deliver_messages(chipset);
        if chipset.pic_output() {
            wake.extend(self.post_work(BOOT_VCPU, work::PIC));
        }
        let deadline = chipset.next_deadline().as_nanos();
        // Nobody writes it but under the lock that the caller holds.
        let before = self.chipset_deadline.load(Ordering::Relaxed);
        if deadline != before {
            self.chipset_deadline.store(deadline, Ordering::Release);
            // Later than it knows: it looks once in vain.
            *deadline_changed |= deadline < before;
        }
        wake
    }

    /// Whether [`Domain::settle`] has anything to do.
    #[inline]
    pub(crate) fn is_unsettled(&self, chipset: &Chipset) -> bool {
        chipset.has_messages()
            || chipset.pic_output()
            || chipset.next_deadline().as_nanos() != self.chipset_deadline.load(Ordering::Relaxed)
    }

    /// When the chipset must be advanced, as of the last [`Domain::settle`].
    #[inline]
    pub(crate) fn chipset_deadline(&self) -> Instant {
        Instant::from_nanos(self.chipset_deadline.load(Ordering::Acquire))
    }

    /// Whether the TSCs of all vCPUs read the same, so that their KVM clocks' pages describe one clock.
    pub(crate) fn tscs_equal(&self) -> bool {
        self.tscs_equal.load(Ordering::Acquire)
    }

    /// Notes what the guest has added to vCPU `index`'s TSC, and answers which vCPUs must be woken to write their clock's
    /// page anew.
    pub(crate) fn note_tsc_adjust(&self, index: usize, adjust: u64) -> VcpuSet {
        // One after the other, so that the last one sees them all.
        let _one_at_a_time = self.chipset();
        let Some(own) = self.tsc_adjusts.get(index) else { return VcpuSet::EMPTY };
        own.store(adjust, Ordering::Relaxed);
        let equal = self.tsc_adjusts.iter().all(|other| other.load(Ordering::Relaxed) == adjust);
        if self.tscs_equal.swap(equal, Ordering::AcqRel) == equal {
            return VcpuSet::EMPTY;
        }
        let mut wake = VcpuSet::EMPTY;
        for other in (0..self.vcpus()).filter(|&other| other != index) {
            wake.extend(self.post_work(other, work::CLOCK));
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
            wake.extend(self.post_to(receivers, &message));
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

    /// Presses the power button of the guest's machine.
    pub fn press_power_button(&self, host: &mut impl Host) {
        let mut chipset = self.chipset();
        chipset.press_power_button();
        let wake = self.settle(&mut chipset);
        drop(chipset);
        host.wake(wake);
    }
}
