//! The machine as the guests' vCPUs see it: what an exit asks of the rest of Caisson, and of the devices that a guest owns.

use caisson_abi::{CallResult, Operation};
use caisson_accounts::Charge;
use caisson_domain::Host;
use caisson_hwvirt::{Backend, ExitClass};
use caisson_irqchip::VcpuSet;
use caisson_machine::cpu;
use caisson_machine::pci::Configuration;
use caisson_machine::random::Random;
use caisson_pci::{Address, ConfigSpace, Hardware, LineMode, Message, Source};
use caisson_stage2::Format;

use super::System;
use crate::console;
use crate::guests::Live;
use crate::trace::{self, What};

/// The machine as a vCPU sees it while it runs.
pub(crate) struct Machine<'a, B: Backend, F: Format> {
    pub(super) system: &'a System<B, F>,
    pub(super) live: &'a Live<B, F>,
    /// The vCPU that is running; none for what the machine itself does to the guest.
    pub(super) index: usize,
    /// What the time since the last exit goes to.
    pub(super) charge: Charge,
}

impl<'a, B: Backend, F: Format> Machine<'a, B, F> {
    /// For what the machine does to a guest from outside of its vCPUs.
    pub(crate) const fn outside(system: &'a System<B, F>, live: &'a Live<B, F>) -> Self {
        Self { system, live, index: usize::MAX, charge: Charge::TURN }
    }
}

impl<B: Backend, F: Format> Host for Machine<'_, B, F> {
    #[inline]
    fn tsc(&self) -> u64 {
        cpu::tsc()
    }

    fn hardware(&mut self) -> Option<&mut dyn Hardware> {
        if self.live.access.is_some() { Some(self) } else { None }
    }

    fn call(&mut self, operation: Operation) -> CallResult {
        self.system.io.call(self.system, self.live, operation)
    }

    fn notify_backend(&mut self, slot: usize, queues: u64) {
        self.system.io.notified(self.system, self.live, slot, queues);
    }

    fn tell_backend(&mut self, slot: usize) {
        self.system.io.changed(self.system, self.live, slot);
    }

    fn console(&mut self, byte: u8) -> bool {
        self.live.console.as_ref().is_none_or(|ring| console::guest_output(ring, byte))
    }

    fn random(&mut self, bytes: &mut [u8]) -> usize {
        Random::of(&self.system.maker.features).map_or(0, |source| source.fill(bytes))
    }

    #[inline]
    fn wake(&mut self, vcpus: VcpuSet) {
        if vcpus.is_empty() {
            return;
        }
        // The running one looks at its own mail anyway.
        for index in vcpus.into_iter().filter(|&index| index != self.index) {
            self.system.wake_vcpu(self.live, index);
        }
    }

    #[inline]
    fn answering(&mut self, class: ExitClass) {
        self.charge = Charge::exit(class);
    }

    #[inline]
    fn injected(&mut self, vector: u8) {
        trace::note(self.live.vcpu_id(self.index), What::Inject { vector });
    }

    #[inline]
    fn hypercall(&mut self, number: u64) {
        trace::note(self.live.vcpu_id(self.index), What::Hypercall { number: number as u32 });
    }

    #[inline]
    fn ipi(&mut self, receivers: VcpuSet, vector: u8) {
        if trace::is_on() {
            let from = self.index as u16;
            receivers
                .into_iter()
                .for_each(|to| trace::note(self.live.vcpu_id(to), What::Ipi { vector, from }));
        }
    }
}

impl<B: Backend, F: Format> ConfigSpace for Machine<'_, B, F> {
    fn read(&mut self, at: Address, offset: u16, size: u8) -> u32 {
        Configuration.read(at, offset, size)
    }

    fn write(&mut self, at: Address, offset: u16, size: u8, value: u32) {
        Configuration.write(at, offset, size, value);
    }
}

/// What a guest's functions need, where it owns any.
impl<B: Backend, F: Format> Hardware for Machine<'_, B, F> {
    fn route(&mut self, source: Source, message: Message) -> Option<Message> {
        self.system.routes.route(self.live.domain.id, source, message)
    }

    fn set_line(&mut self, line: u8, mode: Option<LineMode>) {
        self.system.routes.set_line(self.live.domain.id, line, mode);
    }

    fn end_line(&mut self, line: u8) {
        self.system.routes.end_line(self.live.domain.id, line);
    }

    fn read_port(&mut self, port: u16, size: u8) -> u32 {
        self.live.access.as_ref().map_or(u32::MAX, |access| access.read_port(port, size))
    }

    fn write_port(&mut self, port: u16, size: u8, value: u32) {
        if let Some(access) = &self.live.access {
            access.write_port(port, size, value);
        }
    }

    fn read_memory(&mut self, hpa: u64, size: u8) -> u64 {
        self.live.access.as_ref().map_or(u64::MAX, |access| access.read_memory(hpa, size))
    }

    fn write_memory(&mut self, hpa: u64, size: u8, value: u64) {
        if let Some(access) = &self.live.access {
            access.write_memory(hpa, size, value);
        }
    }
}
