//! One CPU's word to another: look at what you run ([`poke`]), or do this now ([`call_others`]).
//!
//! A bit of the receiver's pending word says what is wanted, and an interrupt that it should look. The interrupt ends a
//! guest's run or a sleep; while the receiver is in Caisson it stays pending, and the word is looked at before the next
//! guest or sleep. The bit is set first, so that whoever is interrupted sees it.

use core::sync::atomic::{AtomicU32, Ordering};

use spin::Mutex;

use crate::percpu::{self, PerCpu, pending};
use crate::{apic, trap};

/// Has `cpu` look at `bits`, [`pending::RESCHEDULE`] or [`pending::MAIL`]. One interrupt is enough for all that are set
/// before it looks.
#[inline]
pub fn poke(cpu: &PerCpu, bits: u32) {
    if !cpu.set_pending(bits) {
        apic::send_interrupt(cpu.apic_id(), trap::RESCHEDULE);
    }
}

/// A function that all CPUs are to call.
struct Call {
    function: Mutex<Option<fn()>>,
    /// CPUs that have yet to call it.
    left: AtomicU32,
    /// One call at a time.
    caller: Mutex<()>,
}

static CALL: Call = Call { function: Mutex::new(None), left: AtomicU32::new(0), caller: Mutex::new(()) };

/// Has every other CPU call `function`, and returns when all have: a shoot-down of what they have cached. While it waits,
/// this CPU answers others' calls, so that two that call each other both get done.
///
/// The function runs with interrupts off between a guest's exit and the next entry, or where the CPU idles: it must not
/// wait for a lock that a caller may hold.
pub fn call_others(function: fn()) {
    let this = percpu::current();
    let caller = loop {
        if let Some(caller) = CALL.caller.try_lock() {
            break caller;
        }
        serve(this);
        core::hint::spin_loop();
    };
    let others = || percpu::all().filter(|cpu| cpu.index() != this.index());
    *CALL.function.lock() = Some(function);
    CALL.left.store(others().count() as u32, Ordering::Release);
    for cpu in others() {
        let _ = cpu.set_pending(pending::CALL);
        apic::send_interrupt(cpu.apic_id(), trap::CALL);
    }
    while CALL.left.load(Ordering::Acquire) != 0 {
        core::hint::spin_loop();
    }
    *CALL.function.lock() = None;
    drop(caller);
}

/// Calls what another CPU asks for, if one does: when [`pending::CALL`] is set.
pub fn serve(this: &PerCpu) {
    if this.take_bits(pending::CALL) != 0 {
        let function = *CALL.function.lock();
        if let Some(function) = function {
            function();
        }
        CALL.left.fetch_sub(1, Ordering::AcqRel);
    }
}
