//! Bringing up the other processors.

use core::fmt::Write;

use arrayvec::ArrayString;
use caisson_hwvirt::Backend;
use caisson_machine::acpi::Platform;
use caisson_machine::ap;
use caisson_machine::clock::Clock;
use caisson_machine::cpu::Features;
use caisson_machine::percpu::pending;
use caisson_machine::{apic, cpu, ipi, percpu};
use caisson_stage2::Format;
use caisson_types::Hpa;
use spin::Once;

use crate::scheduler::System;

/// What another CPU needs, whatever the vendor.
trait Backing: Sync {
    fn enable_here(&self) -> Result<(), ap::Reason>;
}

impl<B: Backend> Backing for B {
    fn enable_here(&self) -> Result<(), ap::Reason> {
        Backend::enable_here(self).map_err(|error| {
            let mut reason = ArrayString::new();
            // One that is too long is cut.
            let _ = write!(reason, "{error}");
            reason
        })
    }
}

/// Where the CPUs work.
trait Crew: Sync {
    fn work(&self) -> !;
}

impl<B: Backend, F: Format + Sync + Send> Crew for System<B, F> {
    fn work(&self) -> ! {
        self.run()
    }
}

static BACKING: Once<&'static dyn Backing> = Once::new();
static CREW: Once<&'static dyn Crew> = Once::new();

fn set_up() -> Result<(), ap::Reason> {
    BACKING.get().map_or(Ok(()), |backing| backing.enable_here())
}

/// Waits for work, and does it.
fn work() -> ! {
    let this = percpu::current();
    loop {
        if let Some(crew) = CREW.get() {
            crew.work();
        }
        ipi::serve(this, || {});
        if this.pending().take(pending::RESCHEDULE) == 0 {
            cpu::wait_for_interrupt();
        }
    }
}

/// Lets the CPUs that have come up begin.
pub(crate) fn release<B: Backend, F: Format + Sync + Send>(system: &'static System<B, F>) {
    CREW.call_once(|| system);
    for cpu in percpu::all().filter(|cpu| cpu.index() != percpu::current().index()) {
        ipi::poke(cpu, pending::RESCHEDULE);
    }
}

/// Starts every CPU that the machine lists, but not more than `most` in all. One that fails is named and left out. They
/// sleep until [`release`].
///
/// # Safety
/// On the boot CPU, once, with interrupts off; `trampoline` is where the start-up code lies.
#[allow(unsafe_code)]
pub(crate) unsafe fn start<B: Backend>(
    backend: &'static B,
    platform: &Platform,
    trampoline: Option<Hpa>,
    features: &Features,
    clock: &Clock,
    most: usize,
) {
    BACKING.call_once(|| backend);
    let boot_cpu = apic::id();
    let others = platform.cpus.iter().copied().filter(|&id| id != boot_cpu);
    let Some(trampoline) = trampoline else {
        if platform.cpus.len() > 1 {
            log::warn!("no free page below 640 KiB, where other CPUs start: the boot CPU works alone");
        }
        return;
    };
    for id in others.take(most.saturating_sub(1)) {
        // SAFETY: promised by the caller; ACPI lists the CPU, and it is Caisson's.
        if let Err(error) = unsafe { ap::start(id, trampoline, features, clock, set_up, work) } {
            log::warn!("the CPU with APIC id {id} is left out: {error}");
        }
    }
    log::info!("{} of {} CPUs work", percpu::count(), platform.cpus.len().max(1));
}
