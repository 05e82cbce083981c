//! From registers to a typed call.

use caisson_types::{DomainId, Gpa};

use crate::batch::List;
use crate::error::CallError;
use crate::events::{MAX_PORTS, Source};
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
    let [first, second, ..] = arguments;
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
        Number::EventBindControl => EventCall::BindSource(Source::Control),
        Number::EventBindDomain => EventCall::BindSource(Source::DomainState { domain: domain(first)? }),
        Number::EventBindConsole => EventCall::BindSource(Source::Console { domain: domain(first)? }),
        Number::EventBindChannel => {
            EventCall::BindSource(Source::Channel { channel: number16(first)?, queue: number16(second)? })
        }
    };
    Ok(Call::One(Operation::Event(event)))
}

/// An argument of 16 bits.
fn number16(argument: u64) -> Result<u16, CallError> {
    u16::try_from(argument).map_err(|_| CallError::Invalid)
}

fn domain(argument: u64) -> Result<DomainId, CallError> {
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
            (hypercall::EVENT_BIND_CONTROL, EventCall::BindSource(Source::Control)),
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
