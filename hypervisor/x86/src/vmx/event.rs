//! Events in the VMCS, and what holds them back (SDM vol. 3, sections 25.4.2, 25.8.3, 25.9.2 and 25.9.3).

use bitflags::bitflags;

use crate::Vector;

/// The type field of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EventType {
    /// External interrupt.
    Interrupt = 0,
    /// NMI.
    Nmi = 2,
    /// Exception of the CPU's own.
    Exception = 3,
    /// INTn.
    SoftwareInterrupt = 4,
    /// INT1.
    PrivilegedSoftwareException = 5,
    /// INT3 or INTO.
    SoftwareException = 6,
}

/// Entry event, exit event or interrupted event: bits 7:0 vector, 10:8 type, 11 error code valid, 12 (of an exit) NMIs were
/// unblocked by IRET, 31 valid.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(transparent)]
pub struct EventInfo(pub u32);

impl EventInfo {
    /// No event.
    pub const NONE: Self = Self(0);

    /// An event; `error_code` tells whether one is delivered.
    #[must_use]
    pub const fn new(kind: EventType, vector: Vector, error_code: bool) -> Self {
        Self(vector as u32 | (kind as u32) << 8 | (error_code as u32) << 11 | 1 << 31)
    }
    /// Whether there is one.
    #[inline]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & 1 << 31 != 0
    }
    /// Its vector.
    #[must_use]
    pub const fn vector(self) -> Vector {
        self.0 as u8
    }
    /// Its type, or `None` for an encoding that the manual reserves.
    #[must_use]
    pub const fn kind(self) -> Option<EventType> {
        Some(match self.0 >> 8 & 7 {
            0 => EventType::Interrupt,
            2 => EventType::Nmi,
            3 => EventType::Exception,
            4 => EventType::SoftwareInterrupt,
            5 => EventType::PrivilegedSoftwareException,
            6 => EventType::SoftwareException,
            _ => return None,
        })
    }
    /// Whether it has an error code.
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        self.0 & 1 << 11 != 0
    }
    /// The IRET that exited had unblocked NMIs before it faulted.
    #[must_use]
    pub const fn unblocked_nmis(self) -> bool {
        self.0 & 1 << 12 != 0
    }
}

bitflags! {
    /// Interruptibility state (table 25-3).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Interruptibility: u32 {
        /// The last instruction was STI.
        const STI = 1 << 0;
        /// The last instruction was MOV SS or POP SS.
        const MOV_SS = 1 << 1;
        /// SMIs are blocked.
        const SMI = 1 << 2;
        /// NMIs are blocked.
        const NMI = 1 << 3;
    }

    /// Pending debug exceptions (table 25-4), and the exit qualification of #DB (table 28-1).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PendingDebug: u64 {
        /// Breakpoints 0 to 3.
        const BREAKPOINTS = 0xf;
        /// A breakpoint that DR7 enables was met (pending), or a debug register was accessed (qualification: bit 13).
        const ENABLED_BREAKPOINT = 1 << 12;
        /// A debug register was accessed while DR7.GD was set.
        const REGISTER_ACCESS = 1 << 13;
        /// Single step.
        const SINGLE_STEP = 1 << 14;
        /// Inside a transaction.
        const TRANSACTION = 1 << 16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_packed_as_the_manual_draws_them() {
        assert_eq!(EventInfo::new(EventType::Interrupt, 0x41, false).0, 0x8000_0041);
        assert_eq!(EventInfo::new(EventType::Exception, 14, true).0, 0x8000_0b0e);
        assert_eq!(EventInfo::new(EventType::Nmi, 2, false).0, 0x8000_0202);
        let event = EventInfo(0x8000_1b0e);
        assert!(event.is_valid() && event.has_error_code() && event.unblocked_nmis());
        assert_eq!((event.kind(), event.vector()), (Some(EventType::Exception), 14));
        assert_eq!(EventInfo(0x8000_0100).kind(), None);
    }
}
