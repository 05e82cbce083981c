//! After something was taken away in a domain's stage-2 tables, no CPU goes on with what it has cached of them:
//! [`caisson_smp::shoot_down`] over the machine's CPUs.

use caisson_hwvirt::{Backend, Vcpu};
use caisson_machine::{ipi, percpu};
use caisson_smp::shoot_down;
use caisson_stage2::Format;

use super::run::Loaded;
use crate::guests::Live;

impl<B: Backend, F: Format> Live<B, F> {
    /// Returns when no vCPU of the guest's uses a stage-2 translation that was cached before: to be called after mappings were
    /// removed or narrowed, and before that is relied on (the frames given to somebody else, the dirty bits read). What a CPU
    /// has logged of the guest's writes is in the domain's log by then.
    ///
    /// `loaded` is what this CPU has loaded: between turns, so that no vCPU's state is locked here. It holds no other lock
    /// that another CPU may wait for either: that one could not answer. Other CPUs' calls are answered meanwhile.
    pub(crate) fn flush_everywhere(&self, loaded: &Loaded<B, F>) {
        let is_held_by = |cpu| self.tasks.iter().any(|task| task.place.holder() == Some(cpu));
        shoot_down(&self.changes, is_held_by, |wanted| ipi::call(wanted, || settle(loaded)));
        settle(loaded);
    }

    /// A vCPU that is on this CPU, and not in its guest, flushes if its domain's tables have changed since it did last.
    #[inline]
    pub(super) fn catch_up(&self, index: usize) {
        if let Some(task) = self.tasks.get(index) {
            self.changes.catch_up(&task.seen, || {
                let mut vcpu = task.vcpu.lock();
                self.settle_log(&mut vcpu);
                vcpu.hw.flush_tlb();
            });
        }
    }
}

/// Settles what this CPU has loaded, which is what another one that calls waits for ([`ipi::serve`]).
pub(super) fn settle<B: Backend, F: Format>(loaded: &Loaded<B, F>) {
    if let Some((live, index)) = loaded {
        live.catch_up(*index);
    }
}

/// Stands between the steps of work that takes long, on a CPU that has nothing loaded: others that call it wait no longer than
/// a step.
#[inline]
pub(crate) fn serve_between_steps() {
    ipi::serve(percpu::current(), || {});
}
