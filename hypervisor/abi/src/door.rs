//! The door: how a program in user space of a domain reaches Caisson.
//!
//! Caisson is a PCI function on the bus of a domain that owns real ones (`caisson_pci::OWN_ID`). Its base address register 0
//! decodes one page of registers, which exit; its interrupt pin says that events are pending. Beside the registers there
//! are a few pages of RAM, the *area*, at an address that the registers tell: the domain's, of the ordinary memory type, and
//! described to its kernel as soft-reserved, so that nobody else uses it and a program can map it.
//!
//! | offset | bytes | | what |
//! |---|--:|---|---|
//! | 0x00 | 4 | read | [`MAGIC`] |
//! | 0x04 | 4 | read | [`VERSION`](crate::VERSION) |
//! | 0x08 | 8 | read | where the area is |
//! | 0x10 | 4 | read | how many pages it has |
//! | 0x14 | 4 | read | the domain's number |
//! | 0x18 | 8 | write | makes the calls of a list: its address, a multiple of 64, and in bits 0 to 5 the number of its entries. When the write is done, so are they |
//! | 0x20 | 8 | read | what the last list answered, as the hypercall `batch` does |
//! | 0x28 | 4 | write | sends an event from this port |
//! | 0x2c | 4 | write | tells the guest of this channel that buffers have been used |
//! | 0x30 | 4 | both | bit 0: the interrupt is asserted; any write ends that, and lets the next one through. To be done before the shared page is looked at |
//! | 0x34 | 4 | both | the pin of the I/O APIC (5, 7, 10, 11, 16 to 23) that the interrupt leads to, as the domain's kernel knows it from ACPI; 0xff for none |
//!
//! The function masks its interrupt pin (bit 10 of its command register) by itself when its interrupt has been sent, so that the
//! handler of `uio_pci_generic` finds that done; the write that ends the interrupt ends the mask. User space need not touch
//! configuration space.
//!
//! Registers of 8 bytes may be accessed as two of 4; a write takes effect with its high half. Other accesses read 0 and
//! write nothing. A call that fails by the two registers without an answer is as if it had not been made.

/// What the first register reads: `CAIS`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"CAIS");
/// Pages of the area.
pub const AREA_PAGES: u32 = 512;
/// The area's page for events ([`events`](crate::events)).
pub const EVENTS_PAGE: u32 = 0;
/// The area's page for lists of calls, by convention.
pub const LIST_PAGE: u32 = 1;
/// The first of the area's pages for what calls read and write, by convention. All of the area is the program's.
pub const DATA_PAGE: u32 = 2;

/// The registers' offsets.
pub mod register {
    /// [`MAGIC`](super::MAGIC).
    pub const MAGIC: u16 = 0x00;
    /// The version of the interface.
    pub const VERSION: u16 = 0x04;
    /// Where the area is.
    pub const AREA: u16 = 0x08;
    /// How many pages it has.
    pub const AREA_PAGES: u16 = 0x10;
    /// The domain's number.
    pub const DOMAIN: u16 = 0x14;
    /// Makes the calls of a list.
    pub const CALLS: u16 = 0x18;
    /// What that answered.
    pub const ANSWER: u16 = 0x20;
    /// Sends an event.
    pub const SEND: u16 = 0x28;
    /// Interrupts a guest.
    pub const INTERRUPT: u16 = 0x2c;
    /// Whether the interrupt is asserted.
    pub const STATUS: u16 = 0x30;
    /// Where the interrupt leads to.
    pub const PIN: u16 = 0x34;
}

/// The bits of [`register::CALLS`] that are the number of entries.
pub const CALLS_COUNT: u64 = 0x3f;
