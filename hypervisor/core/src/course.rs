//! What the steps of a guest's end do to the machine. In which order they come is [`caisson_life`]'s.

use alloc::string::ToString;
use alloc::sync::Arc;
use core::fmt;

use caisson_hwvirt::Backend;
use caisson_iommu::Error;
use caisson_life::{Course, Hold, Reach};
use caisson_machine::memory::GuestRam;
use caisson_machine::pci::Configuration;
use caisson_machine::{cpu, percpu};
use caisson_pci::{Reset, Step, Tally};
use caisson_served::LetGo;
use caisson_stage2::Format;
use caisson_types::Instant;

use crate::dma::DmaDomain;
use crate::domains::Entry;
use crate::guests::Live;
use crate::scheduler::{System, serve_between_steps};

/// Why nobody gets a guest's memory.
pub(crate) enum Loss {
    /// The IOMMU does not keep the guest's own devices out of it.
    Own(Error),
    /// Nor those of a domain that served it, which has that name.
    Backend(Arc<str>),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(error) => write!(f, "its devices cannot be kept out of it: IOMMU: {error}"),
            Self::Backend(name) => write!(f, "the devices of guest {name} cannot be kept out of it"),
        }
    }
}

/// The end of a guest, in a turn of its chores until the TSC is at `until`.
pub(crate) struct Ending<'a, B: Backend, F: Format> {
    pub(crate) system: &'a System<B, F>,
    pub(crate) entry: &'a Arc<Entry<B, F>>,
    pub(crate) until: u64,
}

impl<B: Backend, F: Format> Ending<'_, B, F> {
    /// The time since the TSC was 0, as resets count it.
    fn host_time(&self) -> Instant {
        let ns = u128::from(cpu::tsc()) * 1_000_000_000 / u128::from(self.system.clock.tsc_hz);
        Instant::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

impl<B: Backend, F: Format> Course for Ending<'_, B, F> {
    type Life = Live<B, F>;
    type Memory = GuestRam;
    type Reset = Reset;
    type Time = Instant;
    type Loss = Loss;

    fn leave(&mut self) -> bool {
        let (system, entry) = (self.system, self.entry);
        let live = entry.guest.lock().live.clone();
        system.io.disconnect(system, entry.id);
        if let Some(live) = live {
            system.give_up_blob(&live);
        }
        system.scrub_blobs(self.until)
    }

    fn let_go(&mut self) -> Hold<Loss> {
        match self.entry.io.let_go(|| self.system.block_chore(u64::MAX)) {
            LetGo::Used => Hold::Used,
            LetGo::Free => Hold::Free,
            LetGo::Lost(backend) => {
                let entry = self.system.domains.get(backend);
                let name = entry.map_or_else(|| backend.to_string().into(), |entry| entry.name().into());
                Hold::Lost(Loss::Backend(name))
            }
        }
    }

    fn take(&mut self) -> Option<Live<B, F>> {
        let mut guest = self.entry.guest.lock();
        match Arc::try_unwrap(guest.live.take()?) {
            Ok(live) => Some(live),
            Err(live) => {
                guest.live = Some(live);
                None
            }
        }
    }

    fn stop(&mut self, live: &mut Live<B, F>) -> Option<Reset> {
        self.system.say_exits(live, self.entry.name());
        self.system.quiesce(live)
    }

    fn block(&mut self, live: &mut Live<B, F>) -> Result<(), Loss> {
        live.dma.as_mut().map_or(Ok(()), DmaDomain::end).map_err(Loss::Own)
    }

    fn take_apart(&mut self, live: Live<B, F>) -> GuestRam {
        live.into_memory()
    }

    fn reset(&mut self, reset: &mut Reset) -> Option<Instant> {
        match reset.step(&mut Configuration, self.host_time()) {
            Step::Wait(until) => Some(until),
            Step::Done(tally) => {
                tell_resets(self.entry.name(), reset, tally);
                None
            }
        }
    }

    fn tell_guests(&mut self, reach: Reach) {
        self.system.io.backend_ended(self.system, self.entry.id, reach);
    }

    fn scrub(&mut self, memory: &mut GuestRam) -> bool {
        let mut done = memory.scrub_step();
        while !done {
            serve_between_steps();
            if cpu::tsc() >= self.until || percpu::current().pending().look() != 0 {
                return false;
            }
            done = memory.scrub_step();
        }
        self.system.scrub_blobs(self.until)
    }

    fn free(&mut self, memory: GuestRam) {
        drop(memory);
    }

    fn keep(&mut self, memory: GuestRam, why: Loss) {
        log::error!("guest {}: its memory is lost until the machine restarts: {why}", self.entry.name());
        core::mem::forget(memory);
    }
}

/// Says what the resets of a guest's functions came to.
fn tell_resets(guest: &str, reset: &Reset, tally: Tally) {
    let Tally { functions, power, bus, stopped, lost } = tally;
    log::debug!(
        "guest {guest}: its PCI functions: {functions} reset, {power} by power, {bus} by bus, {stopped} only stopped, {lost} lost"
    );
    for address in reset.lost() {
        log::error!(
            "guest {guest}: PCI function {address} has not answered since its reset: reset the machine to get it back"
        );
    }
}
