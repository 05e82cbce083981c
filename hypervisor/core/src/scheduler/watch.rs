//! Who watches a vCPU's turn on a CPU: its accounts, and the trace.

use caisson_accounts::{Activity, CpuAccount, ExitClass, Meter, VcpuAccount};
use caisson_hwvirt::Exit;
use caisson_machine::cpu;
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
        trace::record(|| Event { time: now, vcpu, what: What::Run });
        Self { meter: Meter::start(cpu, account, now), vcpu }
    }

    /// Just before the guest is entered.
    #[inline]
    pub(super) fn enter(&mut self) {
        let now = cpu::tsc();
        self.answered(now);
        self.meter.enter(now);
    }

    /// Just after it was left. `number` tells which hypercall it is, if it is one.
    #[inline]
    pub(super) fn exit(&mut self, exit: &Exit, number: impl FnOnce() -> u64) {
        let class = exit.class();
        let now = cpu::tsc();
        self.meter.exit(now, class);
        if class == ExitClass::Hypercall {
            trace::record(|| Event {
                time: now,
                vcpu: self.vcpu,
                what: What::Hypercall { number: number() as u32 },
            });
        }
    }

    /// The last exit, if there was one in this turn, has been answered.
    #[inline]
    fn answered(&self, now: u64) {
        trace::record_if(|| {
            let class = self.meter.class()?;
            Some(Event::exit(now, self.vcpu, class, now.wrapping_sub(self.meter.since())))
        });
    }

    /// The CPU puts the vCPU down.
    pub(super) fn stop(self, why: Why) {
        let now = cpu::tsc();
        self.answered(now);
        trace::record(|| Event { time: now, vcpu: self.vcpu, what: What::Stop(why) });
        let activity = match why {
            Why::Blocked | Why::Ended => Activity::Blocked,
            Why::Preempted | Why::Yielded | Why::HostWork => Activity::Ready,
        };
        self.meter.stop(now, activity);
    }
}
