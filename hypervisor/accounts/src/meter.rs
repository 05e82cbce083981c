//! What charges both accounts while a CPU runs a vCPU.

use caisson_hwvirt::ExitClass;

use crate::vcpu::TURN;
use crate::{Activity, CpuAccount, VcpuAccount};

/// What time in the hypervisor on a vCPU's behalf is charged to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Charge(u8);

impl Charge {
    /// The beginning of a turn, before its first exit.
    pub const TURN: Self = Self(TURN as u8);

    /// The answer to an exit.
    #[inline]
    #[must_use]
    pub const fn exit(class: ExitClass) -> Self {
        Self(class as u8)
    }

    /// The class of the exit; `None` for [`Charge::TURN`].
    #[must_use]
    pub const fn class(self) -> Option<ExitClass> {
        ExitClass::at(self.0 as usize)
    }

    #[inline]
    pub(crate) const fn index(self) -> u8 {
        self.0
    }
}

/// A CPU's turn at a vCPU: from [`Meter::start`] to [`Meter::stop`] the vCPU's time is running time, in its guest between
/// an entry and its exit, and in the hypervisor on its behalf otherwise.
///
/// When and of which class the last exit was is told by the caller: the turn's beginning, and [`Charge::TURN`], before the
/// first one. At an exit itself nothing is charged. The next entry charges the time in between, by one addition to the
/// CPU's account and two to the vCPU's.
#[derive(Debug)]
#[must_use = "a turn ends by `stop`"]
pub struct Meter<'a> {
    cpu: &'a CpuAccount,
    vcpu: &'a VcpuAccount,
}

impl<'a> Meter<'a> {
    /// The CPU takes up the vCPU. Both accounts must have this CPU for their writer.
    pub fn start(cpu: &'a CpuAccount, vcpu: &'a VcpuAccount, now: u64) -> Self {
        vcpu.change(now, Activity::Running);
        cpu.take_up(now);
        Self { cpu, vcpu }
    }

    /// Just before the guest is entered; the last exit was at `exited`.
    #[inline]
    pub fn enter(&self, charge: Charge, exited: u64, now: u64) {
        let ticks = now.wrapping_sub(exited);
        self.vcpu.charge(charge, ticks);
        self.cpu.take_back(ticks);
    }

    /// The CPU puts the vCPU down, outside of its guest: blocked, or ready where others have their turn. The last exit was
    /// at `exited`.
    pub fn stop(self, charge: Charge, exited: u64, now: u64, to: Activity) {
        self.vcpu.charge(charge, now.wrapping_sub(exited));
        self.cpu.put_down(exited);
        self.vcpu.change(now, to);
    }
}
