//! Events that are delivered to a guest through its IDT.

use caisson_x86::{Exception, Vector};

/// An event to deliver at the next entry, or one whose delivery an exit interrupted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A maskable interrupt.
    Interrupt(Vector),
    /// A non-maskable interrupt.
    Nmi,
    /// A hardware exception.
    Exception(Exception),
    /// An exception raised by INT3 or INTO, which the CPU delivers with the RIP behind the instruction.
    SoftwareException(Vector),
    /// INTn: delivered with the RIP behind the instruction, whose length in bytes comes along (0 where the hardware
    /// does not tell).
    SoftwareInterrupt {
        /// The instruction's operand.
        vector: Vector,
        /// Bytes of the INTn instruction.
        length: u8,
    },
}
