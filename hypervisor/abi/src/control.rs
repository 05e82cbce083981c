//! Making, watching and ending domains: what a domain with [`Privileges::CONTROL`](crate::Privileges::CONTROL) asks for, and what
//! it is told.
//!
//! A domain is named by its number, which it keeps for as long as the machine runs; each of its lives has a number too. All
//! numbers are little-endian; records keep their layout, and what is added goes behind. Times are nanoseconds, from accounts
//! that are exact.
//!
//! A domain does none of this to itself but reading: it has its own ways to power off, and one that pauses itself by mistake
//! would be helped by nobody.

use caisson_types::DomainId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::call::{Buffer, domain};
use crate::error::CallError;
use crate::number::Number;

/// A call about domains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlCall {
    /// The machine as a whole: [`MachineRecord`].
    Machine {
        /// For the record.
        into: Buffer,
    },
    /// All domains: [`DomainRecord`]s.
    List {
        /// For the records.
        into: Buffer,
    },
    /// The vCPUs of one: [`VcpuRecord`]s.
    Vcpus {
        /// Whose.
        domain: DomainId,
        /// For the records.
        into: Buffer,
    },
    /// Does something to a domain.
    Do {
        /// What.
        action: Action,
        /// To which.
        domain: DomainId,
    },
    /// What it has written to its console, from a position on: a [`ConsoleHeader`], and bytes.
    Read {
        /// Whose console.
        domain: DomainId,
        /// The number of the first byte that is wanted, counted from the first that was ever written.
        position: u64,
        /// For header and bytes.
        into: Buffer,
    },
    /// Types on its console.
    Write {
        /// Whose console.
        domain: DomainId,
        /// What.
        from: Buffer,
    },
    /// Takes memory for a configuration blob.
    BlobBegin {
        /// Its bytes: 1 to [`MAX_BLOB`].
        size: u64,
    },
    /// Puts a piece of the blob there.
    BlobWrite {
        /// Where in the blob.
        offset: u64,
        /// The piece.
        from: Buffer,
    },
    /// The caller makes no more domains of its blob.
    BlobEnd,
    /// Makes a domain of the blob.
    Create {
        /// Its number in the blob.
        index: u32,
        /// For one line of text that says why it cannot be made, with a zero behind it where there is room.
        into: Buffer,
    },
}

/// The most bytes of a configuration blob that domains are made of at run time.
pub const MAX_BLOB: u64 = 1 << 30;

/// What can be done to a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// One that is gone is made again, from its record in the configuration.
    Start,
    /// Its power button is pressed: an operating system shuts down.
    Shutdown,
    /// Its reset button: what happens then is its configuration's.
    Reset,
    /// It is ended for good.
    Destroy,
    /// It stands still, and its clock with it.
    Pause,
    /// It goes on.
    Resume,
    /// One that is gone is forgotten.
    Forget,
}

impl ControlCall {
    /// Decodes the arguments of `number`, which is permitted.
    pub(crate) fn decode(number: Number, arguments: [u64; 4]) -> Result<Self, CallError> {
        let [first, second, third, fourth] = arguments;
        let action = match number {
            Number::MachineInfo => return Ok(Self::Machine { into: Buffer::new(first, second)? }),
            Number::DomainList => return Ok(Self::List { into: Buffer::new(first, second)? }),
            Number::VcpuList => {
                return Ok(Self::Vcpus { domain: domain(first)?, into: Buffer::new(second, third)? });
            }
            Number::ConsoleRead => {
                let (domain, into) = (domain(first)?, Buffer::new(third, fourth)?);
                if (into.bytes as usize) < size_of::<ConsoleHeader>() {
                    return Err(CallError::Invalid);
                }
                return Ok(Self::Read { domain, position: second, into });
            }
            Number::ConsoleWrite => {
                return Ok(Self::Write { domain: domain(first)?, from: Buffer::new(second, third)? });
            }
            Number::BlobBegin => {
                return match first {
                    0 => Err(CallError::Invalid),
                    1..=MAX_BLOB => Ok(Self::BlobBegin { size: first }),
                    _ => Err(CallError::TooBig),
                };
            }
            Number::BlobWrite => {
                return Ok(Self::BlobWrite { offset: first, from: Buffer::new(second, third)? });
            }
            Number::BlobEnd => return Ok(Self::BlobEnd),
            Number::DomainCreate => {
                let index = u32::try_from(first).map_err(|_| CallError::Invalid)?;
                return Ok(Self::Create { index, into: Buffer::new(second, third)? });
            }
            Number::DomainStart => Action::Start,
            Number::DomainShutdown => Action::Shutdown,
            Number::DomainReset => Action::Reset,
            Number::DomainDestroy => Action::Destroy,
            Number::DomainPause => Action::Pause,
            Number::DomainResume => Action::Resume,
            Number::DomainForget => Action::Forget,
            _ => return Err(CallError::NoSuchCall),
        };
        Ok(Self::Do { action, domain: domain(first)? })
    }
}

/// The machine as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MachineRecord {
    /// Nanoseconds since Caisson started to count: never goes back, and does not stand still.
    pub now: u64,
    /// Bytes of memory that nobody owns.
    pub free_memory: u64,
    /// What its CPUs have spent in guests.
    pub guest_time: u64,
    /// What they have spent in Caisson, on guests' behalf and its own.
    pub hypervisor_time: u64,
    /// What they have slept.
    pub idle_time: u64,
    /// The TSC's frequency in kHz.
    pub tsc_khz: u64,
    /// CPUs.
    pub cpus: u32,
    /// Domains that there are, gone ones as well.
    pub domains: u32,
    /// The caller's number.
    pub caller: u32,
    /// Always 0.
    pub reserved: u32,
}

/// A domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DomainRecord {
    /// Its number.
    pub id: u16,
    /// Bits of [`flag`].
    pub flags: u16,
    /// One of [`state`].
    pub state: u32,
    /// How it ended last: one of [`ended`].
    pub ended: u32,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Its RAM in bytes.
    pub memory: u64,
    /// How often it has been started again by itself.
    pub restarts: u32,
    /// The number of its life, or of its last one; 0 before the first.
    pub life: u32,
    /// What its vCPUs have run in this life, in the guest.
    pub guest_time: u64,
    /// What Caisson has worked for them.
    pub hypervisor_time: u64,
    /// How long they could have run while others did.
    pub stolen_time: u64,
    /// How long this life has been.
    pub elapsed: u64,
    /// Its privileges ([`Privileges`](crate::Privileges)).
    pub privileges: u32,
    /// How much of its RAM no other domain sees, in MiB.
    pub private_mib: u32,
    /// Its name, in zeroes.
    pub name: [u8; 32],
}

/// Values of [`DomainRecord::state`].
pub mod state {
    /// It has not been made: it waits for who serves its devices, or for its restart's turn.
    pub const WAITING: u32 = 0;
    /// A vCPU runs, or could.
    pub const RUNNING: u32 = 1;
    /// All vCPUs wait for interrupts.
    pub const BLOCKED: u32 = 2;
    /// It stands still, as it was told to.
    pub const PAUSED: u32 = 3;
    /// It has ended, and is being taken apart.
    pub const ENDING: u32 = 4;
    /// It is gone until somebody starts it.
    pub const GONE: u32 = 5;
}

/// Bits of [`DomainRecord::flags`].
pub mod flag {
    /// It is the caller.
    pub const CALLER: u16 = 1 << 0;
    /// What it writes to its console can be read.
    pub const CONSOLE: u16 = 1 << 1;
    /// It owns real devices.
    pub const DEVICES: u16 = 1 << 2;
}

/// Values of [`DomainRecord::ended`].
pub mod ended {
    /// It has not.
    pub const NEVER: u32 = 0;
    /// It turned itself off.
    pub const POWEROFF: u32 = 1;
    /// It was reset.
    pub const RESET: u32 = 2;
    /// A triple fault.
    pub const CRASH: u32 = 3;
    /// Caisson could not go on with it.
    pub const KILLED: u32 = 4;
    /// It was destroyed.
    pub const DESTROYED: u32 = 5;
    /// It could not be made.
    pub const FAILED: u32 = 6;
}

/// A vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuRecord {
    /// Its number.
    pub index: u16,
    /// 0 blocked, 1 ready, 2 running.
    pub activity: u16,
    /// The CPU in whose queue it is.
    pub cpu: u32,
    /// Exits.
    pub exits: u64,
    /// What it has run, in the guest.
    pub guest_time: u64,
    /// What Caisson has worked for it.
    pub hypervisor_time: u64,
    /// How long it could have run while others did.
    pub stolen_time: u64,
    /// How long it has waited for interrupts, or been paused.
    pub blocked_time: u64,
}

/// What stands before the bytes of a console. Where `first` is above the position that was asked for, the bytes between them are
/// lost: newer ones have taken their place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConsoleHeader {
    /// The number of the first byte behind the header.
    pub first: u64,
    /// How many bytes have been written to the console so far.
    pub end: u64,
}

const _: () = assert!(size_of::<MachineRecord>() == 64 && size_of::<DomainRecord>() == 104);
const _: () = assert!(size_of::<VcpuRecord>() == 48 && size_of::<ConsoleHeader>() == 16);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Call, Operation, Privileges, decode};

    fn control(number: Number, arguments: [u64; 4]) -> Result<ControlCall, CallError> {
        match decode(number.value(), arguments, Privileges::CONTROL)? {
            Call::One(Operation::Control(call)) => Ok(call),
            other => panic!("{other:?} is not about domains"),
        }
    }

    #[test]
    fn arguments_are_where_the_page_says() {
        let (domain, at) = (DomainId(3), caisson_types::Gpa::new(0x1000));
        let buffer = Buffer { at, bytes: 64 };
        for (number, arguments, expected) in [
            (Number::MachineInfo, [0x1000, 64, !0, !0], ControlCall::Machine { into: buffer }),
            (Number::DomainList, [0x1000, 64, !0, !0], ControlCall::List { into: buffer }),
            (Number::VcpuList, [3, 0x1000, 64, !0], ControlCall::Vcpus { domain, into: buffer }),
            (
                Number::ConsoleRead,
                [3, 9, 0x1000, 64],
                ControlCall::Read { domain, position: 9, into: buffer },
            ),
            (Number::ConsoleWrite, [3, 0x1000, 64, !0], ControlCall::Write { domain, from: buffer }),
            (Number::BlobBegin, [MAX_BLOB, !0, !0, !0], ControlCall::BlobBegin { size: MAX_BLOB }),
            (Number::BlobWrite, [9, 0x1000, 64, !0], ControlCall::BlobWrite { offset: 9, from: buffer }),
            (Number::BlobEnd, [!0; 4], ControlCall::BlobEnd),
            (Number::DomainCreate, [7, 0x1000, 64, !0], ControlCall::Create { index: 7, into: buffer }),
        ] {
            assert_eq!(control(number, arguments), Ok(expected));
        }
        for (number, action) in [
            (Number::DomainStart, Action::Start),
            (Number::DomainShutdown, Action::Shutdown),
            (Number::DomainReset, Action::Reset),
            (Number::DomainDestroy, Action::Destroy),
            (Number::DomainPause, Action::Pause),
            (Number::DomainResume, Action::Resume),
            (Number::DomainForget, Action::Forget),
        ] {
            assert_eq!(control(number, [3, !0, !0, !0]), Ok(ControlCall::Do { action, domain }));
            assert_eq!(control(number, [0x1_0000, 0, 0, 0]), Err(CallError::Invalid));
        }
    }

    #[test]
    fn a_blob_has_bytes_and_not_too_many() {
        assert_eq!(control(Number::BlobBegin, [0; 4]), Err(CallError::Invalid));
        assert_eq!(control(Number::BlobBegin, [MAX_BLOB + 1, 0, 0, 0]), Err(CallError::TooBig));
        assert_eq!(control(Number::BlobWrite, [0, 0x1001, 8, 0]), Err(CallError::Invalid));
        assert_eq!(control(Number::DomainCreate, [1 << 32, 0, 8, 0]), Err(CallError::Invalid));
    }

    #[test]
    fn a_console_is_read_with_room_for_the_header() {
        assert_eq!(control(Number::ConsoleRead, [3, 0, 0x1000, 15]), Err(CallError::Invalid));
        assert!(control(Number::ConsoleRead, [3, u64::MAX, 0x1000, 16]).is_ok());
        assert_eq!(control(Number::ConsoleRead, [3, 0, 0x1001, 64]), Err(CallError::Invalid));
        assert_eq!(control(Number::ConsoleWrite, [3, u64::MAX - 7, 64, 0]), Err(CallError::Fault));
    }
}
