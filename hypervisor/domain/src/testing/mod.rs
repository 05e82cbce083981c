//! A machine without hardware: what tests and the fuzz target run a domain on.
//!
//! [`Machine`] is a domain with its vCPUs on [`FakeHw`] and a host whose time stands still until it is moved. Every entry
//! goes through [`Machine::enter`], which checks what must hold at each of them, whatever the guest does.

// The fuzz target needs less of it than the tests.
#![cfg_attr(not(test), allow(dead_code))]

mod hardware;

use alloc::vec::Vec;
use core::cell::Cell;

use caisson_abi::{CallResult, Operation};
use caisson_hwvirt::{Event, Exit, InterruptWindow, IoExit, NestedFault, Vcpu, VcpuState};
use caisson_pci::Hardware;
use caisson_policy::{CpuidResult, CpuidSetup, CpuidTable, HostCaps, MsrSetup, Paravirt, Topology};
use caisson_types::{DomainId, Gpa, GuestMemory, Instant, SliceMemory, VcpuId};
use caisson_x86::{Gpr, Rflags, TopVectors};

use crate::domain::{Domain, DomainSetup, Host};
use crate::vcpu::{Outcome, Readiness, RunState, VirtualCpu};
use crate::{CPU_APIC_KHZ, DomainClock};
pub(crate) use hardware::FakeHw;

/// The host's TSC when the domain is made.
pub(crate) const START: u64 = 5_000;
/// Ticks a second: a tick is a nanosecond of virtual time.
pub(crate) const TSC_HZ: u64 = 1_000_000_000;
/// Seconds since 1970 at virtual time 0.
pub(crate) const WALL_CLOCK: u64 = 1_700_000_000;
/// Where the vCPUs' code is, a page each.
pub(crate) const CODE: u64 = 0x1000;

/// QEMU's `-cpu EPYC`, as far as it decides about registers: leaf, subleaf, EAX, EBX, ECX, EDX.
const EPYC: [(u32, u32, u32, u32, u32, u32); 12] = [
    (0x0, 0, 0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
    (0x1, 0, 0x0080_0f12, 0x0000_0800, 0xf6d8_320b, 0x078b_fbfd),
    (0x7, 0, 0, 0x0098_01a9 | 1 << 1, 0, 0),
    (0xb, 0, 0, 1, 0x100, 0),
    (0xb, 1, 0, 1, 0x201, 0),
    (0xd, 0, 7, 0x240, 0x340, 0),
    (0xd, 1, 5, 0x340, 0, 0),
    (0xd, 2, 0x100, 0x240, 0, 0),
    (0x8000_0000, 0, 0x8000_001e, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
    (0x8000_0001, 0, 0x0080_0f12, 0, 0x75, 0x2dd3_fbfd),
    (0x8000_0007, 0, 0, 0, 0, 0x100),
    (0x8000_0008, 0, 0x3028, 0, 0, 0),
];

fn host_cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let line = EPYC.iter().find(|l| (l.0, l.1) == (leaf, subleaf));
    line.map_or(CpuidResult::ZERO, |l| CpuidResult::new(l.2, l.3, l.4, l.5))
}

/// A host whose clock is moved by hand.
pub(crate) struct FakeHost {
    /// The TSC.
    pub(crate) tsc: Cell<u64>,
    /// What guests wrote to the console.
    pub(crate) console: Vec<u8>,
    /// Bytes that the console has room for.
    pub(crate) room: usize,
    /// How often each vCPU was to be woken.
    pub(crate) woken: Vec<usize>,
    /// The machine's real functions, where the domain owns any.
    pub(crate) functions: Option<caisson_pci::testing::Machine>,
    /// The calls that were made, each of which is answered with 7.
    pub(crate) calls: Vec<Operation>,
    /// Notifications of backends: device and queues.
    pub(crate) notified: Vec<(usize, u64)>,
    /// Devices whose backends were told of a change.
    pub(crate) told: Vec<usize>,
}

impl Host for FakeHost {
    fn tsc(&self) -> u64 {
        self.tsc.get()
    }

    fn console(&mut self, byte: u8) -> bool {
        if self.console.len() >= self.room {
            return false;
        }
        self.console.push(byte);
        true
    }

    fn random(&mut self, bytes: &mut [u8]) -> usize {
        bytes.fill(0x5a);
        bytes.len()
    }

    fn call(&mut self, operation: Operation) -> CallResult {
        self.calls.push(operation);
        Ok(7)
    }

    fn notify_backend(&mut self, slot: usize, queues: u64) {
        self.notified.push((slot, queues));
    }

    fn tell_backend(&mut self, slot: usize) {
        self.told.push(slot);
    }

    fn hardware(&mut self) -> Option<&mut dyn Hardware> {
        self.functions.as_mut().map(|functions| functions as &mut dyn Hardware)
    }

    fn wake(&mut self, vcpus: caisson_irqchip::VcpuSet) {
        for index in vcpus {
            self.woken[index] += 1;
        }
    }
}

/// A domain with its vCPUs.
pub(crate) struct Machine<'a> {
    pub(crate) domain: Domain<SliceMemory<'a>>,
    pub(crate) vcpus: Vec<VirtualCpu<FakeHw>>,
    pub(crate) host: FakeHost,
}

/// A domain of `vcpus` vCPUs.
pub(crate) fn setup<M>(memory: M, vcpus: usize) -> DomainSetup<M> {
    let cpuid = CpuidSetup {
        caps: HostCaps {
            physical_bits: 40,
            xcr0: u64::MAX,
            spec_ctrl: false,
            tsc_aux: true,
            arch_capabilities: false,
            xsaves: true,
        },
        topology: Topology::cores(vcpus as u16),
        paravirt: Paravirt::of(vcpus),
        tsc_khz: (TSC_HZ / 1000) as u32,
        apic_khz: CPU_APIC_KHZ,
    };
    DomainSetup {
        functions: None,
        id: DomainId(1),
        memory,
        cpuid: CpuidTable::build(&cpuid, host_cpuid),
        msrs: MsrSetup { paravirt: Paravirt::of(vcpus), microcode: 0x0800_126e, ..MsrSetup::default() },
        clock: DomainClock::starting_at(START, TSC_HZ),
        wall_clock: WALL_CLOCK,
        vcpus,
        gigabyte_pages: true,
        // Two on one pin: the first and the ninth.
        virtio: (0..9)
            .map(|_| (crate::VirtioDevice::Entropy, caisson_virtio::RegisterPage::boxed()))
            .collect(),
        privileges: caisson_abi::Privileges::empty(),
        door: None,
    }
}

impl<'a> Machine<'a> {
    /// A domain of `vcpus` vCPUs, all in flat 32-bit mode with interrupts off; the first runs. `memory` is its RAM.
    pub(crate) fn new(memory: &'a mut [u8], vcpus: usize) -> Self {
        Self::on(memory, vcpus, |hw| hw)
    }

    /// The same on hardware that `fit` has changed.
    pub(crate) fn on(memory: &'a mut [u8], vcpus: usize, fit: impl Fn(FakeHw) -> FakeHw) -> Self {
        let domain = Domain::new(setup(SliceMemory::new(memory), vcpus));
        let vcpus: Vec<_> = (0..vcpus)
            .map(|index| {
                let mut hw = fit(FakeHw::new(domain.clock.tsc_offset()));
                hw.set_rip(CODE * (index as u64 + 1));
                VirtualCpu::new(hw, VcpuId { domain: DomainId(1), index: index as u16 }, &domain)
            })
            .collect();
        let host = FakeHost {
            tsc: Cell::new(START),
            console: Vec::new(),
            room: usize::MAX,
            woken: vcpus.iter().map(|_| 0).collect(),
            functions: None,
            calls: Vec::new(),
            notified: Vec::new(),
            told: Vec::new(),
        };
        Self { domain, vcpus, host }
    }

    /// The domain owns real functions from now on: those of the machine that `caisson_pci` is tested with.
    pub(crate) fn own_functions(&mut self) {
        let mut functions = caisson_pci::testing::machine();
        self.domain.set_functions(caisson_pci::testing::bus(&mut functions));
        self.host.functions = Some(functions);
    }

    /// Routes a pin of the I/O APIC to vCPU 0 by the low half of its entry.
    pub(crate) fn route_pin(&mut self, pin: u32, entry: u32) {
        for (register, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, entry)] {
            self.store(0, 0xfec0_0000, register).resumes();
            self.store(0, 0xfec0_0010, value).resumes();
        }
    }

    /// The hardware of vCPU 0.
    pub(crate) fn hw(&mut self) -> &mut FakeHw {
        &mut self.vcpus[0].hw
    }

    /// The virtual time.
    pub(crate) fn now(&self) -> Instant {
        self.domain.clock.at(self.host.tsc())
    }

    /// Lets `ns` nanoseconds pass on the host's clock, and nobody notice.
    pub(crate) fn pass(&mut self, ns: u64) {
        self.host.tsc.set(self.host.tsc.get().wrapping_add(ns));
    }

    /// What the core does when something is due: brings each vCPU whose deadline has come up to date.
    pub(crate) fn timers(&mut self) {
        let now = self.now();
        for vcpu in &mut self.vcpus {
            let _ = vcpu.take_deadline_changed();
            if vcpu.next_deadline(&self.domain) <= now {
                vcpu.advance(&self.domain, &mut self.host, now);
            }
        }
    }

    /// Enters the guest on vCPU `index`, once; `None` where it is not to be entered.
    ///
    /// # Panics
    /// Where an invariant does not hold.
    pub(crate) fn enter(&mut self, index: usize) -> Result<Exit, Readiness> {
        let readiness = self.vcpus[index].prepare(&self.domain, &mut self.host);
        match readiness {
            Readiness::Enter => {
                self.check_entry(index);
                Ok(self.vcpus[index].hw.run())
            }
            Readiness::Blocked => {
                self.check_blocked(index);
                let again = self.vcpus[index].prepare(&self.domain, &mut self.host);
                assert_eq!(again, Readiness::Blocked, "blocked once, and not when asked again");
                Err(readiness)
            }
            Readiness::Ended(_) => {
                let again = self.vcpus[index].prepare(&self.domain, &mut self.host);
                assert_eq!(again, readiness, "ended, and alive when asked again");
                Err(readiness)
            }
        }
    }

    /// Answers an exit of vCPU `index`.
    pub(crate) fn answer(&mut self, index: usize, exit: Exit) -> Outcome {
        let outcome = self.vcpus[index].answer(&self.domain, &mut self.host, exit);
        let vcpu = &self.vcpus[index];
        vcpu.apic.assert_invariants();
        outcome
    }

    /// Answers an exit of vCPU `index`, which ends the guest: how.
    pub(crate) fn end_by(&mut self, index: usize, exit: Exit) -> crate::Ended {
        assert_eq!(self.answer(index, exit), Outcome::Ended, "{exit:?}");
        let Some(how) = self.vcpus[index].ended() else { unreachable!("it ended without telling how") };
        how
    }

    /// Enters vCPU `index` until its guest just runs, or waits. The answer is `true` where it runs.
    pub(crate) fn settle(&mut self, index: usize) -> bool {
        for _ in 0..64 {
            match self.enter(index) {
                Ok(Exit::ExternalInterrupt) => return true,
                Ok(exit) => {
                    let outcome = self.answer(index, exit);
                    assert!(
                        matches!(outcome, Outcome::Resume | Outcome::Halted),
                        "{outcome:?} after {exit:?}"
                    );
                }
                Err(_) => return false,
            }
        }
        unreachable!("the guest makes no progress");
    }

    /// Nothing that the guest could take waits unannounced.
    fn check_entry(&self, index: usize) {
        let vcpu = &self.vcpus[index];
        let hw = &vcpu.hw;
        assert_eq!(vcpu.run_state(), RunState::Running, "entered although it does not run");
        assert!(!self.domain.mailbox(index).has_work(), "entered with mail");
        let mut apic = vcpu.apic.clone();
        assert!(hw.virtual_apic.is_none() || !apic.is_changed(), "a change of the local APIC is forgotten");
        match &hw.virtual_apic {
            Some(virtual_apic) => apic.load(&virtual_apic.page),
            None => apic.set_cr8(hw.cr8()),
        }
        if apic.nmi_pending() {
            assert!(hw.nmi_window, "an NMI waits, and nobody looks for it");
            let in_shadow = hw.window == InterruptWindow::Any && hw.injected.is_none();
            let told = hw.has_nmi_window || hw.nmi_blocked || in_shadow;
            assert!(told || vcpu.look_again != Instant::NEVER, "an NMI waits for the next exit");
        }
        if let Some(virtual_apic) = &hw.virtual_apic {
            apic.assert_shown(&virtual_apic.page);
            let top =
                TopVectors { requested: virtual_apic.highest(0x20), in_service: virtual_apic.highest(0x10) };
            assert_eq!(virtual_apic.top, top, "the status is not the page's");
            let others = vcpu.postponed.is_some() || apic.extint_pending() || self.pic_waits(index);
            assert!(hw.window == InterruptWindow::Any || !others, "an injected interrupt waits unannounced");
            assert!(!matches!(hw.window, InterruptWindow::Above(_)), "the hardware looks after priorities");
            let pending = apic.pending_vector().is_some();
            let needed = others || apic.nmi_pending();
            assert!(hw.window == InterruptWindow::Closed || !pending || needed, "held back by a window");
            assert!(vcpu.interrupted.is_none(), "an interrupted delivery is forgotten");
            return;
        }
        let class = apic.pending_vector().map(|vector| vector >> 4);
        if vcpu.postponed.is_some() || class.is_some() || apic.extint_pending() || self.pic_waits(index) {
            let wide = match hw.window {
                InterruptWindow::Closed => false,
                InterruptWindow::Any => true,
                // CR8 has fallen since the window was set: it opens with IF, as the other does.
                InterruptWindow::Above(class) => hw.cr8() < class,
            };
            assert!(wide, "an interrupt waits for IF or the next exit, {:?}", hw.window);
        } else if let Some(vector) = apic.highest_request()
            && apic.isr().highest().is_none_or(|serviced| serviced >> 4 < vector >> 4)
        {
            let wide = hw.window == InterruptWindow::Any || hw.window == InterruptWindow::Above(vector >> 4);
            assert!(wide, "{vector:#x} waits for a lower task priority, {:?}", hw.window);
        }
        assert!(vcpu.interrupted.is_none(), "an interrupted delivery is forgotten");
    }

    fn check_blocked(&self, index: usize) {
        let vcpu = &self.vcpus[index];
        assert!(!self.domain.mailbox(index).has_work(), "blocked with mail");
        if vcpu.waits_for_backend {
            // What is to be delivered waits with it.
            assert!(self.domain.virtio.is_waiting(), "blocked for nobody");
            return;
        }
        assert!(vcpu.hw.injected.is_none() && vcpu.interrupted.is_none(), "blocked with an event to deliver");
        match vcpu.run_state() {
            RunState::Running => unreachable!("blocked although it runs"),
            RunState::WaitForSipi => {}
            RunState::Halted => {
                assert!(!vcpu.apic.nmi_pending() || vcpu.hw.nmi_blocked, "asleep with an NMI");
                let open = vcpu.hw.rflags() & Rflags::IF.bits() != 0;
                let waits = vcpu.apic.pending_vector().is_some() || self.pic_waits(index);
                assert!(!open || !waits, "asleep with an interrupt");
                assert!(!vcpu.kicked, "asleep although kicked");
            }
        }
    }

    /// Whether the 8259 pair wants to interrupt this vCPU, and may.
    fn pic_waits(&self, index: usize) -> bool {
        index == 0 && self.vcpus[0].apic.accepts_extint() && self.domain.chipset().pic_output()
    }
}

// ---- what a guest does

/// A port access without a string, whose end the hardware tells.
pub(crate) fn port(port: u16, size: u8, direction: caisson_hwvirt::Direction, next_rip: u64) -> IoExit {
    IoExit {
        port,
        size,
        direction,
        string: false,
        repeat: false,
        address_bits: 0,
        segment: None,
        next_rip: Some(next_rip),
    }
}

/// An access to `gpa`, where there is no RAM.
pub(crate) fn fault(gpa: u64, write: bool) -> Exit {
    Exit::NestedFault(NestedFault {
        gpa: Gpa::new(gpa),
        write,
        fetch: false,
        present: false,
        page_walk: false,
    })
}

impl Machine<'_> {
    /// Puts code at RIP of vCPU `index`.
    pub(crate) fn code(&mut self, index: usize, bytes: &[u8]) {
        let at = Gpa::new(self.vcpus[index].hw.rip());
        assert!(self.domain.memory.write(at, bytes).is_ok());
    }

    /// WRMSR on vCPU `index`.
    pub(crate) fn wrmsr(&mut self, index: usize, msr: u32, value: u64) -> Outcome {
        let hw = &mut self.vcpus[index].hw;
        hw.set_gpr(Gpr::Rcx, u64::from(msr));
        hw.set_gpr(Gpr::Rax, value & 0xffff_ffff);
        hw.set_gpr(Gpr::Rdx, value >> 32);
        hw.ends_after(2);
        self.answer(index, Exit::WriteMsr)
    }

    /// RDMSR on vCPU `index`.
    pub(crate) fn rdmsr(&mut self, index: usize, msr: u32) -> u64 {
        let hw = &mut self.vcpus[index].hw;
        hw.set_gpr(Gpr::Rcx, u64::from(msr));
        hw.ends_after(2);
        assert_eq!(self.answer(index, Exit::ReadMsr), Outcome::Resume);
        let hw = &self.vcpus[index].hw;
        hw.gpr(Gpr::Rax) & 0xffff_ffff | hw.gpr(Gpr::Rdx) << 32
    }

    /// OUT on vCPU 0.
    pub(crate) fn out(&mut self, at: u16, size: u8, value: u32) -> Outcome {
        self.out_on(0, at, size, value)
    }

    /// OUT on vCPU `index`.
    pub(crate) fn out_on(&mut self, index: usize, at: u16, size: u8, value: u32) -> Outcome {
        let hw = &mut self.vcpus[index].hw;
        let next = hw.rip() + 1;
        hw.set_gpr(Gpr::Rax, u64::from(value));
        self.answer(index, Exit::Io(port(at, size, caisson_hwvirt::Direction::Out, next)))
    }

    /// A hypercall on vCPU `index`: its outcome and its answer.
    pub(crate) fn hypercall(&mut self, index: usize, number: u64, arguments: [u64; 4]) -> (Outcome, u64) {
        let hw = &mut self.vcpus[index].hw;
        hw.set_gpr(Gpr::Rax, number);
        for (register, value) in [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].into_iter().zip(arguments) {
            hw.set_gpr(register, value);
        }
        hw.ends_after(3);
        let outcome = self.answer(index, Exit::Hypercall);
        (outcome, self.vcpus[index].hw.gpr(Gpr::Rax))
    }

    /// IN on vCPU 0.
    pub(crate) fn inp(&mut self, at: u16, size: u8) -> u32 {
        let next = self.hw().rip() + 1;
        let exit = Exit::Io(port(at, size, caisson_hwvirt::Direction::In, next));
        assert_eq!(self.answer(0, exit), Outcome::Resume);
        let mask = u32::MAX >> (32 - 8 * u32::from(size));
        self.hw().gpr(Gpr::Rax) as u32 & mask
    }

    /// `mov [address], eax` on vCPU `index`, which faults in stage 2.
    pub(crate) fn store(&mut self, index: usize, address: u32, value: u32) -> Outcome {
        self.access(index, 0xa3, address, value)
    }

    /// `mov eax, [address]` on vCPU `index`, which faults in stage 2.
    pub(crate) fn load(&mut self, index: usize, address: u32) -> u32 {
        assert_eq!(self.access(index, 0xa1, address, 0), Outcome::Resume);
        self.vcpus[index].hw.gpr(Gpr::Rax) as u32
    }

    fn access(&mut self, index: usize, opcode: u8, address: u32, value: u32) -> Outcome {
        let [a, b, c, d] = address.to_le_bytes();
        let rip = CODE * (index as u64 + 1);
        self.vcpus[index].hw.set_rip(rip);
        self.code(index, &[opcode, a, b, c, d]);
        self.vcpus[index].hw.set_gpr(Gpr::Rax, u64::from(value));
        self.vcpus[index].hw.regs.next_rip = None;
        self.answer(index, fault(u64::from(address), opcode == 0xa3))
    }

    /// HLT on vCPU `index`.
    pub(crate) fn halt(&mut self, index: usize) -> Outcome {
        self.vcpus[index].hw.ends_after(1);
        self.answer(index, Exit::Halt)
    }

    /// EOI in x2APIC mode on vCPU `index`.
    pub(crate) fn eoi(&mut self, index: usize) {
        match self.vcpus[index].hw.end_of_interrupt() {
            Some(Exit::ExternalInterrupt) => {}
            Some(exit) => assert_eq!(self.answer(index, exit), Outcome::Resume),
            None => assert_eq!(self.wrmsr(index, 0x80b, 0), Outcome::Resume),
        }
    }

    /// A write to SELF IPI on vCPU `index`.
    pub(crate) fn self_ipi(&mut self, index: usize, vector: u8) {
        if !self.vcpus[index].hw.self_ipi(vector) {
            assert_eq!(self.wrmsr(index, 0x83f, u64::from(vector)), Outcome::Resume);
        }
    }

    /// Opens or closes interrupts on vCPU `index`, as STI (without its shadow) and CLI do.
    pub(crate) fn interrupts(&mut self, index: usize, on: bool) {
        let hw = &mut self.vcpus[index].hw;
        let rflags = hw.rflags() & !Rflags::IF.bits();
        hw.set_rflags(if on { rflags | Rflags::IF.bits() } else { rflags });
    }

    /// Turns vCPU `index`'s local APIC on in x2APIC mode.
    pub(crate) fn x2apic(&mut self, index: usize) {
        let base = self.rdmsr(index, 0x1b);
        assert_eq!(self.wrmsr(index, 0x1b, base | 1 << 10), Outcome::Resume);
        assert_eq!(self.wrmsr(index, 0x80f, 0x1ff), Outcome::Resume);
    }

    /// What was delivered to vCPU `index` since this was last asked.
    pub(crate) fn delivered(&mut self, index: usize) -> Vec<Event> {
        core::mem::take(&mut self.vcpus[index].hw.delivered)
    }
}

/// An outcome that must be [`Outcome::Resume`].
pub(crate) trait Resumes {
    /// Asserts it.
    fn resumes(self);
}

impl Resumes for Outcome {
    fn resumes(self) {
        assert_eq!(self, Self::Resume);
    }
}
