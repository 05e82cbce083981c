//! Interrupts that a function sends by writing to memory.

/// A message: what is written where (PCI Local Bus Specification 3.0, section 6.8).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Message {
    /// The address.
    pub address: u64,
    /// The data.
    pub data: u32,
}

/// One of a domain's interrupts: of which of its functions, and which of that one's messages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Source {
    /// The function's place in the domain's [`crate::Bus`].
    pub function: u16,
    /// The message's number: 0 for MSI.
    pub entry: u16,
}
