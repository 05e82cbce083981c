//! A trace of what CPUs do: who runs, what exits cost, which interrupts go where.
//!
//! Each physical CPU has a [`Ring`] and alone writes [`Event`]s into it, the newest over the oldest. A [`Dump`] takes
//! what is in the rings out of the machine, as lines of text for the serial log; [`Reader`] makes a [`Trace`] of such a
//! log again. The same crate is at both ends.
//!
//! # The dump
//!
//! A line is [`MARK`] and a *packet* in base64 (RFC 4648, with padding), alone or behind anything else. A line that is
//! damaged or lost takes only its own packet with it.
//!
//! | bytes of a packet | what |
//! |---|---|
//! | 1 | type |
//! | 2 | its number in the dump, little-endian, modulo 2^16 |
//! | … | the payload, by type |
//! | 4 | CRC-32 (ISO-HDLC) of all before, little-endian |
//!
//! | type | packet | payload |
//! |--:|---|---|
//! | 1 | start | version (2 bytes), ticks a second (8), the time of the dump (8), physical CPUs (varint) |
//! | 2 | domain | number, vCPUs (varints), name (the rest, UTF-8) |
//! | 3 | classes | the first one's index (varint); for each class of exits the length of its name (1), its name |
//! | 4 | events | CPU (varint), events lost before these (varint), the time from which the first one counts (8), events |
//! | 5 | end | packets before this one (varint) |
//!
//! Numbers of fixed size are little-endian; a *varint* has seven bits a byte, the lowest first, bit 7 where more follow.
//! An event is
//!
//! | bytes | what |
//! |---|---|
//! | 1 | bits 3:0 its kind ([`What`]), bit 4: of the same vCPU as the event before it in the packet |
//! | varint | ticks since the event before it, zigzag (2n, or -2n - 1 where it is negative) |
//! | 2 varints | domain and index of the vCPU, unless bit 4 is set; the first event's predecessor is nobody's |
//! | varint | its argument, where the kind has one; for exits 1 byte of class before it |
//!
//! # Bounds
//!
//! No input makes the reader panic, or take more memory than some tens of times the input's size. Pure: no hardware;
//! memory is taken when rings and dumps are made, never when events are recorded.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bytes;
mod dump;
mod event;
mod packet;
mod read;
mod ring;
mod sync;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
#[cfg(all(test, not(loom)))]
mod tests;

pub use caisson_hwvirt::ExitClass;
pub use dump::{Dump, LINE_BYTES, Line, MARK};
pub use event::{Event, NOBODY, TIME_BITS, What, Why};
pub use packet::{DomainName, VERSION};
pub use read::{Reader, Record, Trace, TraceError};
pub use ring::{MAX_EVENTS, NoMemory, Read, Ring};
