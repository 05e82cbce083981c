//! One CPU's word to another: look at what you run ([`poke`]), or do this now ([`call`]). The protocols are
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

static CALLS: Calls<fn()> = Calls::new();

/// Has every other CPU for whose number `wanted` is true call `function`, and returns when all have. Each has then been out
/// of its guest since.
///
/// The function runs with interrupts off between a guest's exit and the next entry, or where the CPU idles: it must not
/// wait for a lock that a caller may hold, and a caller must hold none that another CPU may wait for.
pub fn call(wanted: impl Fn(u32) -> bool, function: fn()) {
    let this = percpu::current();
    let others = percpu::all().filter(|cpu| cpu.index() != this.index() && wanted(cpu.index()));
    CALLS.call(function, this.pending(), others, |function| function());
}

/// Calls what another CPU asks for, if one does: when [`pending::CALL`] is set.
pub fn serve(this: &PerCpu) {
    CALLS.serve(this.pending(), |function| function());
}
