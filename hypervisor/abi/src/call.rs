//! From registers to a typed call.

use caisson_types::{DomainId, Gpa};

use crate::batch::List;
use crate::control::ControlCall;
use crate::error::CallError;
use crate::events::{MAX_PORTS, Source};
use crate::io::ChannelDescription;
use crate::number::{Number, Privileges};

/// A call, decoded and permitted: its arguments are in range, and what they name is still to be looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// One operation.
    One(Operation),
    /// A list of operations, in guest memory.
    Batch(List),
}

/// One operation, by itself or of a batch: there is no batch among them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Answers [`VERSION`](crate::VERSION).
    Version,
    /// About the caller's event ports.
    Event(EventCall),
    /// Puts the caller's shared page at an address, and all its ports back.
    Connect {
        /// Where the page is: the start of a page.
        page: Gpa,
        /// The vector that vCPU 0 is interrupted with; `None` for the door's pin.
        vector: Option<u8>,
    },
    /// About devices that the caller serves.
    Channel(ChannelCall),
    /// About domains.
    Control(ControlCall),
}

/// Memory of the caller's that a call reads or writes: a multiple of 8 and its bytes, which do not go beyond the end of the
/// address space. There are no more than [`Buffer::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Buffer {
    /// Where it is.
    pub at: Gpa,
    /// Bytes.
    pub bytes: u32,
}

impl Buffer {
    /// The most bytes.
    pub const MAX: u64 = 0x1_0000;

    pub(crate) fn new(at: u64, bytes: u64) -> Result<Self, CallError> {
        if !at.is_multiple_of(8) || bytes > Self::MAX {
            return Err(CallError::Invalid);
        }
        let at = Gpa::new(at);
        at.checked_add(bytes).ok_or(CallError::Fault)?;
        Ok(Self { at, bytes: bytes as u32 })
    }
}

/// An operation on devices that the caller serves. What it reads and writes is laid out in [`io`](crate::io).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelCall {
    /// Which there are.
    List {
        /// For the records.
        into: Buffer,
    },
    /// What the configuration says of one.
    Parameters {
        /// Which.
        channel: u16,
        /// For the text.
        into: Buffer,
    },
    /// Says what it is.
    Describe {
        /// Which.
        channel: u16,
        /// The description.
        from: Buffer,
    },
    /// Takes it on.
    Attach {
        /// Which.
        channel: u16,
    },
    /// Lets go of it.
    Detach {
        /// Which.
        channel: u16,
    },
    /// Where its guest's memory is.
    Memory {
        /// Which.
        channel: u16,
        /// For the ranges.
        into: Buffer,
    },
    /// The state of its transport.
    State {
        /// Which.
        channel: u16,
        /// For the state and the queues'.
        into: Buffer,
    },
    /// Nothing that changes up to this one have ended is touched any more.
    Acknowledge {
        /// Which.
        channel: u16,
        /// The number of the change.
        change: u32,
    },
    /// Interrupts its guest.
    Interrupt {
        /// Which.
        channel: u16,
        /// Bits of [`reason`](crate::io::reason).
        reasons: u8,
    },
    /// Reads its configuration.
    Config {
        /// Which.
        channel: u16,
        /// From here on.
        offset: u16,
        /// For the bytes.
        into: Buffer,
    },
    /// Changes its configuration.
    SetConfig {
        /// Which.
        channel: u16,
        /// From here on.
        offset: u16,
        /// The bytes.
        from: Buffer,
    },
    /// It cannot go on.
    Fail {
        /// Which.
        channel: u16,
    },
}

/// An operation on the caller's event ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventCall {
    /// A port to which `remote` may bind.
    Allocate {
        /// Who may bind.
        remote: DomainId,
    },
    /// A port that is connected to one of `remote`'s.
    Bind {
        /// Whose port.
        remote: DomainId,
        /// That port.
        port: u16,
    },
    /// A port that is connected to a source of Caisson's.
    BindSource(Source),
    /// Gives the port back.
    Close {
        /// Which.
        port: u16,
    },
    /// An event to the port's peer.
    Send {
        /// Which.
        port: u16,
    },
    /// Holds the port's events back.
    Mask {
        /// Which.
        port: u16,
    },
    /// Lets the port's events through.
    Unmask {
        /// Which.
        port: u16,
    },
    /// What became of the port.
    Status {
        /// Which.
        port: u16,
    },
}

/// Decodes the call with `number` in RAX and `arguments` in RBX, RCX, RDX and RSI, from ring 0 of a domain that has
/// `privileges`. Registers that the call has no argument in are not looked at.
///
/// # Errors
/// [`CallError::NoSuchCall`] for a number that no call has; then [`CallError::NotPermitted`] without the call's
/// privileges, whatever the arguments are; then [`CallError::Invalid`] (for a batch also [`CallError::TooBig`] and
/// [`CallError::Fault`]) for arguments out of range.
#[inline]
pub fn decode(number: u64, arguments: [u64; 4], privileges: Privileges) -> Result<Call, CallError> {
    let number = Number::of(number).ok_or(CallError::NoSuchCall)?;
    if !privileges.contains(number.privileges()) {
        return Err(CallError::NotPermitted);
    }
    let [first, second, third, fourth] = arguments;
    let event = match number {
        Number::Version => return Ok(Call::One(Operation::Version)),
        Number::Batch => return List::new(Gpa::new(first), second).map(Call::Batch),
        Number::EventAllocate => EventCall::Allocate { remote: domain(first)? },
        Number::EventBind => EventCall::Bind { remote: domain(first)?, port: port(second)? },
        Number::EventClose => EventCall::Close { port: port(first)? },
        Number::EventSend => EventCall::Send { port: port(first)? },
        Number::EventMask => EventCall::Mask { port: port(first)? },
        Number::EventUnmask => EventCall::Unmask { port: port(first)? },
        Number::EventStatus => EventCall::Status { port: port(first)? },
        Number::EventBindBackend => EventCall::BindSource(Source::Backend),
        Number::EventBindDomain => EventCall::BindSource(Source::DomainState { domain: domain(first)? }),
        Number::EventBindConsole => EventCall::BindSource(Source::Console { domain: domain(first)? }),
        Number::EventBindChannel => {
            EventCall::BindSource(Source::Channel { channel: number16(first)?, queue: number16(second)? })
        }
        Number::EventConnect => return connect(first, second).map(Call::One),
        Number::ChannelList => return channel(ChannelCall::List { into: Buffer::new(first, second)? }),
        number if number >= Number::MachineInfo => {
            return ControlCall::decode(number, arguments).map(|call| Call::One(Operation::Control(call)));
        }
        _ => {
            return number16(first)
                .and_then(|of| about_channel(number, of, [second, third, fourth]))
                .and_then(channel);
        }
    };
    Ok(Call::One(Operation::Event(event)))
}

fn channel(call: ChannelCall) -> Result<Call, CallError> {
    Ok(Call::One(Operation::Channel(call)))
}

/// A page and a vector that a program can use: 0 for none, or one behind the CPU's own.
fn connect(page: u64, vector: u64) -> Result<Operation, CallError> {
    const FIRST_VECTOR: u8 = 0x20;
    if !page.is_multiple_of(0x1000) {
        return Err(CallError::Invalid);
    }
    let vector = match u8::try_from(vector) {
        Ok(0) => None,
        Ok(vector @ FIRST_VECTOR..) => Some(vector),
        _ => return Err(CallError::Invalid),
    };
    Ok(Operation::Connect { page: Gpa::new(page), vector })
}

/// A call whose first argument is a channel.
fn about_channel(number: Number, channel: u16, arguments: [u64; 3]) -> Result<ChannelCall, CallError> {
    let [first, second, third] = arguments;
    Ok(match number {
        Number::ChannelParameters => ChannelCall::Parameters { channel, into: Buffer::new(first, second)? },
        Number::ChannelDescribe => {
            let bytes = size_of::<ChannelDescription>() as u64;
            ChannelCall::Describe { channel, from: Buffer::new(first, bytes)? }
        }
        Number::ChannelAttach => ChannelCall::Attach { channel },
        Number::ChannelDetach => ChannelCall::Detach { channel },
        Number::ChannelMemory => ChannelCall::Memory { channel, into: Buffer::new(first, second)? },
        Number::ChannelState => ChannelCall::State { channel, into: Buffer::new(first, second)? },
        Number::ChannelAcknowledge => {
            let change = u32::try_from(first).map_err(|_| CallError::Invalid)?;
            ChannelCall::Acknowledge { channel, change }
        }
        Number::ChannelInterrupt => match u8::try_from(first) {
            Ok(reasons @ 1..=3) => ChannelCall::Interrupt { channel, reasons },
            _ => return Err(CallError::Invalid),
        },
        Number::ChannelConfig => {
            ChannelCall::Config { channel, offset: number16(first)?, into: Buffer::new(second, third)? }
        }
        Number::ChannelSetConfig => {
            ChannelCall::SetConfig { channel, offset: number16(first)?, from: Buffer::new(second, third)? }
        }
        Number::ChannelFail => ChannelCall::Fail { channel },
        _ => return Err(CallError::NoSuchCall),
    })
}

/// An argument of 16 bits.
fn number16(argument: u64) -> Result<u16, CallError> {
    u16::try_from(argument).map_err(|_| CallError::Invalid)
}

pub(crate) fn domain(argument: u64) -> Result<DomainId, CallError> {
    number16(argument).map(DomainId)
}

/// A port that some domain could have.
fn port(argument: u64) -> Result<u16, CallError> {
    number16(argument).ok().filter(|&port| port < MAX_PORTS).ok_or(CallError::Invalid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hypercall;

    fn all() -> Privileges {
        Privileges::all()
    }

    fn event(number: u64, arguments: [u64; 4]) -> Result<EventCall, CallError> {
        match decode(number, arguments, all())? {
            Call::One(Operation::Event(event)) => Ok(event),
            other => panic!("{other:?} is no event's"),
        }
    }

    #[test]
    fn arguments_are_where_the_page_says() {
        let remote = DomainId(7);
        let arguments = [7, 9, u64::MAX, u64::MAX];
        for (number, expected) in [
            (hypercall::EVENT_ALLOCATE, EventCall::Allocate { remote }),
            (hypercall::EVENT_BIND, EventCall::Bind { remote, port: 9 }),
            (hypercall::EVENT_CLOSE, EventCall::Close { port: 7 }),
            (hypercall::EVENT_SEND, EventCall::Send { port: 7 }),
            (hypercall::EVENT_MASK, EventCall::Mask { port: 7 }),
            (hypercall::EVENT_UNMASK, EventCall::Unmask { port: 7 }),
            (hypercall::EVENT_STATUS, EventCall::Status { port: 7 }),
            (hypercall::EVENT_BIND_BACKEND, EventCall::BindSource(Source::Backend)),
            (hypercall::EVENT_BIND_DOMAIN, EventCall::BindSource(Source::DomainState { domain: remote })),
            (hypercall::EVENT_BIND_CONSOLE, EventCall::BindSource(Source::Console { domain: remote })),
            (hypercall::EVENT_BIND_CHANNEL, EventCall::BindSource(Source::Channel { channel: 7, queue: 9 })),
        ] {
            assert_eq!(event(number, arguments), Ok(expected), "{number:#x}");
        }
        assert_eq!(
            decode(hypercall::VERSION, [!0; 4], Privileges::empty()),
            Ok(Call::One(Operation::Version))
        );
        let list = List::new(Gpa::new(0x1000), 3).unwrap();
        assert_eq!(decode(hypercall::BATCH, [0x1000, 3, 0, 0], Privileges::empty()), Ok(Call::Batch(list)));
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for port in [4096, 0xffff, 0x1_0000, 1 << 32, u64::MAX] {
            assert_eq!(event(hypercall::EVENT_SEND, [port, 0, 0, 0]), Err(CallError::Invalid));
            assert_eq!(event(hypercall::EVENT_BIND, [1, port, 0, 0]), Err(CallError::Invalid));
        }
        for domain in [0x1_0000, 1 << 32 | 1, u64::MAX] {
            assert_eq!(event(hypercall::EVENT_ALLOCATE, [domain, 0, 0, 0]), Err(CallError::Invalid));
            assert_eq!(event(hypercall::EVENT_BIND_CONSOLE, [domain, 0, 0, 0]), Err(CallError::Invalid));
            assert_eq!(event(hypercall::EVENT_BIND_CHANNEL, [0, domain, 0, 0]), Err(CallError::Invalid));
        }
        assert_eq!(event(hypercall::EVENT_SEND, [4095, 0, 0, 0]), Ok(EventCall::Send { port: 4095 }));
    }

    fn privileges() -> impl Strategy<Value = Privileges> {
        any::<u32>().prop_map(Privileges::from_bits_truncate)
    }

    proptest! {
        /// Without the privilege the answer is the same, whatever is passed; with it, it is never that one.
        #[test]
        fn privileges_come_first(
            at in 0..Number::ALL.len(),
            arguments: [u64; 4],
            small: [u16; 4],
            privileges in privileges(),
        ) {
            let number = Number::ALL[at];
            for arguments in [arguments, small.map(u64::from), [0; 4], [u64::MAX; 4]] {
                let decoded = decode(number.value(), arguments, privileges);
                let permitted = privileges.contains(number.privileges());
                prop_assert_eq!(decoded == Err(CallError::NotPermitted), !permitted);
                if let Err(error) = decoded {
                    prop_assert!(number.errors().contains(&error), "{:?} answers {:?}", number, error);
                }
            }
        }

        #[test]
        fn unknown_numbers_are_no_calls(number: u64, low in 0..0x1000u64, arguments: [u64; 4]) {
            for number in [number, hypercall::FIRST + low, low] {
                if Number::of(number).is_none() {
                    prop_assert_eq!(decode(number, arguments, all()), Err(CallError::NoSuchCall));
                }
            }
        }
    }
}
