//! Caisson's own calls: number, name, arguments, privilege, errors. `docs/abi.md` has the same table in words.

use bitflags::bitflags;

use crate::error::CallError;
use crate::hypercall;

bitflags! {
    /// What a domain may do beyond running: named, given by its configuration, and checked at each call. No domain has
    /// one for its number's sake.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Privileges: u32 {
        /// Has event ports, to which other domains with this privilege can be connected.
        const EVENTS = 1 << 0;
        /// Makes, watches and ends domains.
        const CONTROL = 1 << 1;
        /// Serves other domains' devices.
        const IO_BACKEND = 1 << 2;
    }
}

/// A call of Caisson's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Number {
    /// Answers [`VERSION`](crate::VERSION).
    Version,
    /// Makes the calls of a list: [`List`](crate::List).
    Batch,
    /// Makes a port to which a domain may bind; answers its number.
    EventAllocate,
    /// Connects a new port to one that another domain has allocated for the caller; answers the new port's number.
    EventBind,
    /// Gives a port back; its peer is told.
    EventClose,
    /// Sends an event to the peer of a port.
    EventSend,
    /// Holds the events of a port back.
    EventMask,
    /// Lets the events of a port through again, those that came meanwhile as well.
    EventUnmask,
    /// What became of a port: [`PortStatus`](crate::events::PortStatus).
    EventStatus,
    /// Puts the caller's shared page in its place, and all its ports back.
    EventConnect,
    /// Makes a port for [`Source::Backend`](crate::events::Source::Backend).
    EventBindBackend,
    /// Makes a port for [`Source::DomainState`](crate::events::Source::DomainState).
    EventBindDomain,
    /// Makes a port for [`Source::Console`](crate::events::Source::Console).
    EventBindConsole,
    /// Makes a port for [`Source::Channel`](crate::events::Source::Channel).
    EventBindChannel,
    /// Writes what the caller serves: [`ChannelRecord`](crate::io::ChannelRecord)s; answers how many there are.
    ChannelList,
    /// Writes what the configuration says of a device for its backend; answers how many bytes that has.
    ChannelParameters,
    /// Says what the device is: [`ChannelDescription`](crate::io::ChannelDescription).
    ChannelDescribe,
    /// Takes the device on, and with it the guest's memory; answers the number of the guest's life.
    ChannelAttach,
    /// Lets go of the device, and with its last one of the guest's memory.
    ChannelDetach,
    /// Writes where the guest's memory is: [`MemoryRange`](crate::io::MemoryRange)s; answers how many there are.
    ChannelMemory,
    /// Writes the transport's state: [`DeviceState`](crate::io::DeviceState), [`QueueState`](crate::io::QueueState)s; answers its bytes.
    ChannelState,
    /// Says that the backend touches nothing any more that changes up to this one have ended.
    ChannelAcknowledge,
    /// Interrupts the guest.
    ChannelInterrupt,
    /// Writes the device's configuration, as the guest may have written it; answers how many bytes there were.
    ChannelConfig,
    /// Changes the device's configuration and tells the guest.
    ChannelSetConfig,
    /// Says that the device cannot go on before the guest resets it.
    ChannelFail,
    /// Writes what the machine as a whole is and does: [`MachineRecord`](crate::control::MachineRecord); answers its bytes.
    MachineInfo,
    /// Writes all domains: [`DomainRecord`](crate::control::DomainRecord)s; answers how many there are.
    DomainList,
    /// Writes the vCPUs of a domain: [`VcpuRecord`](crate::control::VcpuRecord)s; answers how many there are.
    VcpuList,
    /// Makes a domain that is gone again.
    DomainStart,
    /// Presses a domain's power button.
    DomainShutdown,
    /// Presses a domain's reset button.
    DomainReset,
    /// Ends a domain for good.
    DomainDestroy,
    /// Has a domain stand still.
    DomainPause,
    /// Has it go on.
    DomainResume,
    /// Writes what a domain has written to its console: [`ConsoleHeader`](crate::control::ConsoleHeader) and bytes; answers how many bytes.
    ConsoleRead,
    /// Types on a domain's console; answers how many bytes there was room for.
    ConsoleWrite,
    /// Has Caisson take memory for a configuration blob; what it had of the caller's before goes.
    BlobBegin,
    /// Puts a piece of the blob there.
    BlobWrite,
    /// The caller makes no more domains of its blob.
    BlobEnd,
    /// Makes a domain of the blob, and starts it; answers its number, or writes why not.
    DomainCreate,
    /// Forgets a domain that is gone: its number may be another's later.
    DomainForget,
}

use CallError::{
    BadPort, Busy, Fault, Invalid, NoMemory, NoPorts, NoSuchDomain, NotConnected, NotPermitted, PeerClosed,
    Refused, TooBig,
};

impl Number {
    /// All of them, by number.
    pub const ALL: [Self; 42] = [
        Self::Version,
        Self::Batch,
        Self::EventAllocate,
        Self::EventBind,
        Self::EventClose,
        Self::EventSend,
        Self::EventMask,
        Self::EventUnmask,
        Self::EventStatus,
        Self::EventConnect,
        Self::EventBindBackend,
        Self::EventBindDomain,
        Self::EventBindConsole,
        Self::EventBindChannel,
        Self::ChannelList,
        Self::ChannelParameters,
        Self::ChannelDescribe,
        Self::ChannelAttach,
        Self::ChannelDetach,
        Self::ChannelMemory,
        Self::ChannelState,
        Self::ChannelAcknowledge,
        Self::ChannelInterrupt,
        Self::ChannelConfig,
        Self::ChannelSetConfig,
        Self::ChannelFail,
        Self::MachineInfo,
        Self::DomainList,
        Self::VcpuList,
        Self::DomainStart,
        Self::DomainShutdown,
        Self::DomainReset,
        Self::DomainDestroy,
        Self::DomainPause,
        Self::DomainResume,
        Self::ConsoleRead,
        Self::ConsoleWrite,
        Self::BlobBegin,
        Self::BlobWrite,
        Self::BlobEnd,
        Self::DomainCreate,
        Self::DomainForget,
    ];

    /// The call with this number.
    #[inline]
    #[must_use]
    pub const fn of(value: u64) -> Option<Self> {
        Some(match value {
            hypercall::VERSION => Self::Version,
            hypercall::BATCH => Self::Batch,
            hypercall::EVENT_ALLOCATE => Self::EventAllocate,
            hypercall::EVENT_BIND => Self::EventBind,
            hypercall::EVENT_CLOSE => Self::EventClose,
            hypercall::EVENT_SEND => Self::EventSend,
            hypercall::EVENT_MASK => Self::EventMask,
            hypercall::EVENT_UNMASK => Self::EventUnmask,
            hypercall::EVENT_STATUS => Self::EventStatus,
            hypercall::EVENT_CONNECT => Self::EventConnect,
            hypercall::EVENT_BIND_BACKEND => Self::EventBindBackend,
            hypercall::EVENT_BIND_DOMAIN => Self::EventBindDomain,
            hypercall::EVENT_BIND_CONSOLE => Self::EventBindConsole,
            hypercall::EVENT_BIND_CHANNEL => Self::EventBindChannel,
            hypercall::CHANNEL_LIST => Self::ChannelList,
            hypercall::CHANNEL_PARAMETERS => Self::ChannelParameters,
            hypercall::CHANNEL_DESCRIBE => Self::ChannelDescribe,
            hypercall::CHANNEL_ATTACH => Self::ChannelAttach,
            hypercall::CHANNEL_DETACH => Self::ChannelDetach,
            hypercall::CHANNEL_MEMORY => Self::ChannelMemory,
            hypercall::CHANNEL_STATE => Self::ChannelState,
            hypercall::CHANNEL_ACKNOWLEDGE => Self::ChannelAcknowledge,
            hypercall::CHANNEL_INTERRUPT => Self::ChannelInterrupt,
            hypercall::CHANNEL_CONFIG => Self::ChannelConfig,
            hypercall::CHANNEL_SET_CONFIG => Self::ChannelSetConfig,
            hypercall::CHANNEL_FAIL => Self::ChannelFail,
            hypercall::MACHINE_INFO => Self::MachineInfo,
            hypercall::DOMAIN_LIST => Self::DomainList,
            hypercall::VCPU_LIST => Self::VcpuList,
            hypercall::DOMAIN_START => Self::DomainStart,
            hypercall::DOMAIN_SHUTDOWN => Self::DomainShutdown,
            hypercall::DOMAIN_RESET => Self::DomainReset,
            hypercall::DOMAIN_DESTROY => Self::DomainDestroy,
            hypercall::DOMAIN_PAUSE => Self::DomainPause,
            hypercall::DOMAIN_RESUME => Self::DomainResume,
            hypercall::CONSOLE_READ => Self::ConsoleRead,
            hypercall::CONSOLE_WRITE => Self::ConsoleWrite,
            hypercall::BLOB_BEGIN => Self::BlobBegin,
            hypercall::BLOB_WRITE => Self::BlobWrite,
            hypercall::BLOB_END => Self::BlobEnd,
            hypercall::DOMAIN_CREATE => Self::DomainCreate,
            hypercall::DOMAIN_FORGET => Self::DomainForget,
            _ => return None,
        })
    }

    /// Its number, for RAX.
    #[must_use]
    pub const fn value(self) -> u64 {
        match self {
            Self::Version => hypercall::VERSION,
            Self::Batch => hypercall::BATCH,
            Self::EventAllocate => hypercall::EVENT_ALLOCATE,
            Self::EventBind => hypercall::EVENT_BIND,
            Self::EventClose => hypercall::EVENT_CLOSE,
            Self::EventSend => hypercall::EVENT_SEND,
            Self::EventMask => hypercall::EVENT_MASK,
            Self::EventUnmask => hypercall::EVENT_UNMASK,
            Self::EventStatus => hypercall::EVENT_STATUS,
            Self::EventConnect => hypercall::EVENT_CONNECT,
            Self::EventBindBackend => hypercall::EVENT_BIND_BACKEND,
            Self::EventBindDomain => hypercall::EVENT_BIND_DOMAIN,
            Self::EventBindConsole => hypercall::EVENT_BIND_CONSOLE,
            Self::EventBindChannel => hypercall::EVENT_BIND_CHANNEL,
            Self::ChannelList => hypercall::CHANNEL_LIST,
            Self::ChannelParameters => hypercall::CHANNEL_PARAMETERS,
            Self::ChannelDescribe => hypercall::CHANNEL_DESCRIBE,
            Self::ChannelAttach => hypercall::CHANNEL_ATTACH,
            Self::ChannelDetach => hypercall::CHANNEL_DETACH,
            Self::ChannelMemory => hypercall::CHANNEL_MEMORY,
            Self::ChannelState => hypercall::CHANNEL_STATE,
            Self::ChannelAcknowledge => hypercall::CHANNEL_ACKNOWLEDGE,
            Self::ChannelInterrupt => hypercall::CHANNEL_INTERRUPT,
            Self::ChannelConfig => hypercall::CHANNEL_CONFIG,
            Self::ChannelSetConfig => hypercall::CHANNEL_SET_CONFIG,
            Self::ChannelFail => hypercall::CHANNEL_FAIL,
            Self::MachineInfo => hypercall::MACHINE_INFO,
            Self::DomainList => hypercall::DOMAIN_LIST,
            Self::VcpuList => hypercall::VCPU_LIST,
            Self::DomainStart => hypercall::DOMAIN_START,
            Self::DomainShutdown => hypercall::DOMAIN_SHUTDOWN,
            Self::DomainReset => hypercall::DOMAIN_RESET,
            Self::DomainDestroy => hypercall::DOMAIN_DESTROY,
            Self::DomainPause => hypercall::DOMAIN_PAUSE,
            Self::DomainResume => hypercall::DOMAIN_RESUME,
            Self::ConsoleRead => hypercall::CONSOLE_READ,
            Self::ConsoleWrite => hypercall::CONSOLE_WRITE,
            Self::BlobBegin => hypercall::BLOB_BEGIN,
            Self::BlobWrite => hypercall::BLOB_WRITE,
            Self::BlobEnd => hypercall::BLOB_END,
            Self::DomainCreate => hypercall::DOMAIN_CREATE,
            Self::DomainForget => hypercall::DOMAIN_FORGET,
        }
    }

    /// Its name in documents and tools.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Batch => "batch",
            Self::EventAllocate => "event_allocate",
            Self::EventBind => "event_bind",
            Self::EventClose => "event_close",
            Self::EventSend => "event_send",
            Self::EventMask => "event_mask",
            Self::EventUnmask => "event_unmask",
            Self::EventStatus => "event_status",
            Self::EventConnect => "event_connect",
            Self::EventBindBackend => "event_bind_backend",
            Self::EventBindDomain => "event_bind_domain",
            Self::EventBindConsole => "event_bind_console",
            Self::EventBindChannel => "event_bind_channel",
            Self::ChannelList => "channel_list",
            Self::ChannelParameters => "channel_parameters",
            Self::ChannelDescribe => "channel_describe",
            Self::ChannelAttach => "channel_attach",
            Self::ChannelDetach => "channel_detach",
            Self::ChannelMemory => "channel_memory",
            Self::ChannelState => "channel_state",
            Self::ChannelAcknowledge => "channel_acknowledge",
            Self::ChannelInterrupt => "channel_interrupt",
            Self::ChannelConfig => "channel_config",
            Self::ChannelSetConfig => "channel_set_config",
            Self::ChannelFail => "channel_fail",
            Self::MachineInfo => "machine_info",
            Self::DomainList => "domain_list",
            Self::VcpuList => "vcpu_list",
            Self::DomainStart => "domain_start",
            Self::DomainShutdown => "domain_shutdown",
            Self::DomainReset => "domain_reset",
            Self::DomainDestroy => "domain_destroy",
            Self::DomainPause => "domain_pause",
            Self::DomainResume => "domain_resume",
            Self::ConsoleRead => "console_read",
            Self::ConsoleWrite => "console_write",
            Self::BlobBegin => "blob_begin",
            Self::BlobWrite => "blob_write",
            Self::BlobEnd => "blob_end",
            Self::DomainCreate => "domain_create",
            Self::DomainForget => "domain_forget",
        }
    }

    /// What its arguments are called, in the order of the registers. Further registers are not looked at.
    #[must_use]
    pub const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Version | Self::EventBindBackend | Self::BlobEnd => &[],
            Self::Batch => &["list", "count"],
            Self::EventAllocate
            | Self::EventBindDomain
            | Self::EventBindConsole
            | Self::DomainStart
            | Self::DomainShutdown
            | Self::DomainReset
            | Self::DomainDestroy
            | Self::DomainPause
            | Self::DomainResume
            | Self::DomainForget => &["domain"],
            Self::EventBind => &["domain", "port"],
            Self::EventClose | Self::EventSend | Self::EventMask | Self::EventUnmask | Self::EventStatus => {
                &["port"]
            }
            Self::EventBindChannel => &["channel", "queue"],
            Self::EventConnect => &["page", "vector"],
            Self::ChannelList | Self::MachineInfo | Self::DomainList => &["into", "bytes"],
            Self::VcpuList => &["domain", "into", "bytes"],
            Self::ConsoleRead => &["domain", "position", "into", "bytes"],
            Self::ConsoleWrite => &["domain", "from", "bytes"],
            Self::BlobBegin => &["size"],
            Self::BlobWrite => &["offset", "from", "bytes"],
            Self::DomainCreate => &["index", "into", "bytes"],
            Self::ChannelParameters | Self::ChannelMemory | Self::ChannelState => {
                &["channel", "into", "bytes"]
            }
            Self::ChannelDescribe => &["channel", "from"],
            Self::ChannelAttach | Self::ChannelDetach | Self::ChannelFail => &["channel"],
            Self::ChannelAcknowledge => &["channel", "change"],
            Self::ChannelInterrupt => &["channel", "reasons"],
            Self::ChannelConfig => &["channel", "offset", "into", "bytes"],
            Self::ChannelSetConfig => &["channel", "offset", "from", "bytes"],
        }
    }

    /// What the caller must have.
    #[inline]
    #[must_use]
    pub const fn privileges(self) -> Privileges {
        match self {
            Self::Version | Self::Batch => Privileges::empty(),
            Self::EventAllocate
            | Self::EventBind
            | Self::EventClose
            | Self::EventSend
            | Self::EventMask
            | Self::EventUnmask
            | Self::EventStatus
            | Self::EventConnect => Privileges::EVENTS,
            Self::EventBindDomain | Self::EventBindConsole => Privileges::EVENTS.union(Privileges::CONTROL),
            Self::EventBindBackend | Self::EventBindChannel => {
                Privileges::EVENTS.union(Privileges::IO_BACKEND)
            }
            Self::ChannelList
            | Self::ChannelParameters
            | Self::ChannelDescribe
            | Self::ChannelAttach
            | Self::ChannelDetach
            | Self::ChannelMemory
            | Self::ChannelState
            | Self::ChannelAcknowledge
            | Self::ChannelInterrupt
            | Self::ChannelConfig
            | Self::ChannelSetConfig
            | Self::ChannelFail => Privileges::IO_BACKEND,
            Self::MachineInfo
            | Self::DomainList
            | Self::VcpuList
            | Self::DomainStart
            | Self::DomainShutdown
            | Self::DomainReset
            | Self::DomainDestroy
            | Self::DomainPause
            | Self::DomainResume
            | Self::ConsoleRead
            | Self::ConsoleWrite
            | Self::BlobBegin
            | Self::BlobWrite
            | Self::BlobEnd
            | Self::DomainCreate
            | Self::DomainForget => Privileges::CONTROL,
        }
    }

    /// The errors that it can answer.
    #[must_use]
    pub const fn errors(self) -> &'static [CallError] {
        match self {
            Self::Version => &[],
            Self::Batch => &[Invalid, TooBig, Fault],
            Self::EventAllocate | Self::EventBindDomain | Self::EventBindConsole => {
                &[NotPermitted, Invalid, NoSuchDomain, NoPorts]
            }
            Self::EventBind => &[NotPermitted, Invalid, NoSuchDomain, Refused, NoPorts],
            Self::EventClose | Self::EventMask | Self::EventUnmask | Self::EventStatus => {
                &[NotPermitted, Invalid, BadPort]
            }
            Self::EventSend => &[NotPermitted, Invalid, BadPort, NotConnected, PeerClosed],
            Self::EventBindBackend => &[NotPermitted, NoPorts],
            Self::EventBindChannel => &[NotPermitted, Invalid, Refused, NoPorts],
            Self::EventConnect => &[NotPermitted, Invalid, Fault],
            Self::ChannelList | Self::MachineInfo | Self::DomainList => &[NotPermitted, Invalid, Fault],
            Self::VcpuList => &[NotPermitted, Invalid, Fault, NoSuchDomain],
            Self::DomainStart | Self::DomainResume | Self::DomainForget => {
                &[NotPermitted, Invalid, NoSuchDomain, Busy]
            }
            Self::BlobBegin => &[NotPermitted, Invalid, TooBig, NoMemory],
            Self::BlobWrite => &[NotPermitted, Invalid, Fault, Busy, NotConnected],
            Self::BlobEnd => &[NotPermitted, NotConnected],
            Self::DomainCreate => &[NotPermitted, Invalid, Fault, NotConnected, Refused],
            Self::DomainShutdown | Self::DomainReset | Self::DomainDestroy | Self::DomainPause => {
                &[NotPermitted, Invalid, NoSuchDomain]
            }
            Self::ConsoleRead | Self::ConsoleWrite => {
                &[NotPermitted, Invalid, Fault, NoSuchDomain, NotConnected]
            }
            Self::ChannelParameters => &[NotPermitted, Invalid, Fault, Refused],
            Self::ChannelDescribe => &[NotPermitted, Invalid, Fault, Refused, Busy],
            Self::ChannelAttach => &[NotPermitted, Invalid, Refused, NoSuchDomain, NoMemory, Busy],
            Self::ChannelDetach | Self::ChannelAcknowledge | Self::ChannelInterrupt | Self::ChannelFail => {
                &[NotPermitted, Invalid, Refused, NotConnected]
            }
            Self::ChannelMemory | Self::ChannelConfig | Self::ChannelSetConfig => {
                &[NotPermitted, Invalid, Fault, Refused, NotConnected]
            }
            Self::ChannelState => &[NotPermitted, Invalid, Fault, Refused, NotConnected, PeerClosed],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_to_their_calls_and_nothing_else_does() {
        for number in Number::ALL {
            assert_eq!(Number::of(number.value()), Some(number));
            assert!(number.value() >= hypercall::FIRST && number.value() < hypercall::FIRST + 0x100);
            assert!(number.arguments().len() <= 4);
        }
        assert!(Number::ALL.is_sorted_by(|one, next| one.value() < next.value()));
        let known = (0..0x200).filter(|low| Number::of(hypercall::FIRST + low).is_some()).count();
        assert_eq!(known, Number::ALL.len());
        for value in [0, 5, 0x10, hypercall::FIRST - 1, u64::MAX, hypercall::FIRST | 1 << 63] {
            assert_eq!(Number::of(value), None);
        }
    }
}
