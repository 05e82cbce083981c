//! What charges both accounts while a CPU runs a vCPU.

use caisson_hwvirt::ExitClass;

use crate::vcpu::TURN;
use crate::{Activity, CpuAccount, VcpuAccount};

/// A CPU's turn at a vCPU: from [`Meter::start`] to [`Meter::stop`] the vCPU's time is running time, in its guest between
/// [`Meter::enter`] and [`Meter::exit`] and in the hypervisor on its behalf otherwise.
///
/// Each exit costs two additions to the CPU's account and two to the vCPU's.
#[derive(Debug)]
#[must_use = "a turn ends by `stop`"]
pub struct Meter<'a> {
    cpu: &'a CpuAccount,
    vcpu: &'a VcpuAccount,
    /// The last moment told of.
    since: u64,
    /// What the time since then is charged to while the CPU is in the hypervisor: a class's index, or [`TURN`].
    charged: usize,
}

impl<'a> Meter<'a> {
    /// The CPU takes up the vCPU. Both accounts must have this CPU for their writer.
    pub fn start(cpu: &'a CpuAccount, vcpu: &'a VcpuAccount, now: u64) -> Self {
        vcpu.change(now, Activity::Running);
        Self { cpu, vcpu, since: now, charged: TURN }
    }

    /// Just before the guest is entered.
    #[inline]
    pub fn enter(&mut self, now: u64) {
        self.vcpu.counter(self.charged).charge(now.wrapping_sub(self.since));
        self.cpu.enter_guest(now);
    }

    /// Just after an exit of `class`.
    #[inline]
    pub fn exit(&mut self, now: u64, class: ExitClass) {
        self.cpu.leave_guest(now);
        self.since = now;
        self.charged = class.index();
    }

    /// When the last exit was, or the turn began.
    #[inline]
    #[must_use]
    pub fn since(&self) -> u64 {
        self.since
    }

    /// The class of the last exit; `None` before the first one.
    #[inline]
    #[must_use]
    pub fn class(&self) -> Option<ExitClass> {
        ExitClass::at(self.charged)
    }

    /// The CPU puts the vCPU down, outside of its guest: blocked, or ready where others have their turn.
    pub fn stop(self, now: u64, to: Activity) {
        self.vcpu.counter(self.charged).charge(now.wrapping_sub(self.since));
        self.vcpu.change(now, to);
    }
}
