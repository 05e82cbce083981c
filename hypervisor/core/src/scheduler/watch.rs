//! Who watches a vCPU's turn on a CPU: its accounts, and the trace.

use caisson_accounts::{Activity, Charge, CpuAccount, Meter, VcpuAccount};
use caisson_machine::{cpu, percpu};
use caisson_trace::Event;
use caisson_types::VcpuId;

use crate::trace::{self, What, Why};

/// A turn that is being watched, from its beginning to [`Watch::stop`].
pub(super) struct Watch<'a> {
    meter: Meter<'a>,
    vcpu: VcpuId,
}

impl<'a> Watch<'a> {
    /// This CPU, whose account is `cpu`, takes up `vcpu`.
    pub(super) fn start(cpu: &'a CpuAccount, account: &'a VcpuAccount, vcpu: VcpuId) -> Self {
        let now = cpu::tsc();
        percpu::current().set_exited(now);
        trace::record(|| Event { time: now, vcpu, what: What::Run });
        Self { meter: Meter::start(cpu, account, now), vcpu }
    }

    /// Just before the guest is entered; what the time since the last exit goes to is `charge`.
    #[inline]
    pub(super) fn enter(&self, charge: Charge) {
        let now = cpu::tsc();
        let exited = percpu::current().exited();
        if trace::is_on() {
            self.answered(charge, exited, now);
        }
        self.meter.enter(charge, exited, now);
    }

    /// The last exit, if there was one in this turn, has been answered.
    #[cold]
    fn answered(&self, charge: Charge, exited: u64, now: u64) {
        if let Some(class) = charge.class() {
            trace::record(|| Event::exit(now, self.vcpu, class, now.wrapping_sub(exited)));
        }
    }

    /// The CPU puts the vCPU down.
    pub(super) fn stop(self, charge: Charge, why: Why) {
        let now = cpu::tsc();
        let exited = percpu::current().exited();
        self.answered(charge, exited, now);
        trace::record(|| Event { time: now, vcpu: self.vcpu, what: What::Stop(why) });
        let activity = match why {
            Why::Blocked | Why::Ended => Activity::Blocked,
            Why::Preempted | Why::Yielded | Why::HostWork => Activity::Ready,
        };
        self.meter.stop(charge, exited, now, activity);
    }
}
