//! One CPU's word to another: look at what you run ([`poke`]), or leave your guest now ([`call`]). The protocols are
//! [`caisson_smp`]'s; here are the interrupts.

#[cfg(doc)]
use caisson_smp::pending;
use caisson_smp::{Callee, Calls, Pending};

use crate::percpu::{self, PerCpu};
use crate::{apic, trap};

/// Has another `cpu` look at `bits`, of [`RESCHEDULE`](pending::RESCHEDULE), [`MAIL`](pending::MAIL) and [`SERIAL`](pending::SERIAL).
#[inline]
pub fn poke(cpu: &PerCpu, bits: u32) {
    cpu.pending().poke(bits, || apic::send_interrupt(cpu.apic_id(), trap::RESCHEDULE));
}

impl Callee for &PerCpu {
    fn pending(&self) -> &Pending {
        PerCpu::pending(self)
    }

    fn interrupt(&self) {
        apic::send_interrupt(self.apic_id(), trap::CALL);
    }
}

static CALLS: Calls<()> = Calls::new();

/// Has every other CPU for whose number `wanted` is true leave its guest and settle what it holds ([`serve`]), and returns when
/// all have. `settle` does the same here, when another CPU wants it meanwhile.
///
/// The caller must hold no lock that another CPU may wait for.
pub fn call(wanted: impl Fn(u32) -> bool, mut settle: impl FnMut()) {
    let this = percpu::current();
    let others = percpu::all().filter(|cpu| cpu.index() != this.index() && wanted(cpu.index()));
    CALLS.call((), this.pending(), others, |()| settle());
}

/// Settles by `settle` what this CPU holds, if another one calls: when [`pending::CALL`] is set. In no guest, with interrupts
/// off, and between the steps of whatever takes long; `settle` must not wait for a lock that a caller may hold.
#[inline]
pub fn serve(this: &PerCpu, settle: impl FnOnce()) {
    CALLS.serve(this.pending(), |()| settle());
}
