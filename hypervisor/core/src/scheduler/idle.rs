//! A CPU with nothing to do: it sleeps, with nobody on it, or with a vCPU that waits in its place.

use caisson_hwvirt::Backend;
use caisson_machine::cpu;
use caisson_machine::percpu::{self, pending};
use caisson_sched::{Key, NEVER};
use caisson_smp as smp;
use caisson_stage2::Format;
use caisson_trace::Event;

use super::System;
use crate::console::{self, SERIAL_CPU};
use crate::guests::Live;
use crate::trace::{self, NOBODY, What};

impl<B: Backend, F: Format> System<B, F> {
    /// Sleeps until something happens, unless somebody waits somewhere.
    pub(super) fn idle(&self) {
        let this = self.this();
        let Some(beacon) = self.shown(this.pool).beacon(this.index) else { return };
        smp::idle(
            beacon,
            || self.pull(this, Key::NEVER),
            || {
                let deadline = this.lock().deadline();
                self.sleep(deadline.min(self.console_deadline()));
            },
        );
    }

    /// Sleeps until `deadline`, or until the CPU is interrupted, unless there is something to do.
    fn sleep(&self, deadline: u64) {
        match deadline {
            NEVER => self.clock.disarm(),
            deadline => self.clock.arm(deadline),
        }
        if percpu::current().pending().look() == 0 {
            let account = &self.this().account;
            let now = cpu::tsc();
            account.sleep(now);
            trace::record(|| Event { time: now, vcpu: NOBODY, what: What::Idle });
            cpu::wait_for_interrupt();
            let now = cpu::tsc();
            account.wake(now);
            trace::record(|| Event { time: now, vcpu: NOBODY, what: What::Awake });
        }
    }

    /// This CPU has idled and goes on: what else waits is told to another that idles. One that was told of somebody and
    /// found others would leave that one waiting, and one is told where several wait.
    pub(super) fn hand_on(&self) {
        let this = self.this();
        let shown = self.shown(this.pool);
        if shown.waiting(this.index).is_some() || shown.behind(this.index, None).is_some() {
            smp::offer(self, this.index);
        }
    }

    /// The vCPU that runs here waits until `deadline`, or until something happens: in its place, where nobody else could run here.
    /// `true` where it goes on, and nothing else is to be done first. At `until` the queue is to be asked.
    ///
    /// To others it runs: whoever leaves something for it, ends or pauses its guest, or has other work for this CPU sets a bit of the
    /// CPU's pending word and interrupts it, and [`System::sleep`] looks at that word last.
    pub(super) fn wait_in_place(&self, live: &Live<B, F>, index: usize, deadline: u64, until: u64) -> bool {
        let this = self.this();
        // One that would rather be elsewhere goes there when it wakes; input that a guest has no room for is offered again.
        if !live.entry.share.prefers(this.index) || (this.index == SERIAL_CPU && console::has_input()) {
            return false;
        }
        let Some(next) = this.lock().rest(cpu::tsc()) else { return false };
        let shown = self.shown(this.pool);
        let until = until.min(next).min(self.console_deadline());
        let due = deadline.min(until);
        let stays = || live.domain.mailbox(index).has_work() || live.is_ending() || live.pause.is_on();
        if let Some(beacon) = shown.beacon(this.index) {
            smp::idle(beacon, || stays() || self.pull(this, Key::NEVER), || self.sleep(due));
        }
        let now = cpu::tsc();
        let resumed = this.lock().resume(now);
        if shown.members().len() > 1 {
            self.hand_on();
        }
        let work = percpu::current().pending().look() & !(pending::TIMER | pending::MAIL);
        resumed && work == 0 && now < until && !live.is_ending() && !live.pause.is_on()
    }
}
