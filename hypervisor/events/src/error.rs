//! Why an operation on ports was refused.

use core::fmt;

use caisson_abi::CallError;

/// An operation was refused, and has had no effect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Error {
    /// The port is not in use, or beyond the domain's last.
    BadPort,
    /// All ports of the domain are in use.
    NoPorts,
    /// No such domain takes part in events.
    NoSuchDomain,
    /// The remote port is not offered to this domain.
    Refused,
    /// The port has no peer.
    NotConnected,
    /// The port's peer has closed, or is gone.
    PeerClosed,
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        match error {
            Error::BadPort => Self::BadPort,
            Error::NoPorts => Self::NoPorts,
            Error::NoSuchDomain => Self::NoSuchDomain,
            Error::Refused => Self::Refused,
            Error::NotConnected => Self::NotConnected,
            Error::PeerClosed => Self::PeerClosed,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        CallError::from(*self).fmt(f)
    }
}

/// A domain could not be taken in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JoinError {
    /// Its number is beyond those that there is room for.
    NoRoom,
    /// A domain of this number is in already.
    Exists,
    /// It is to have no port, or more than there can be.
    Ports,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoom => "there is no room for event ports of so many domains",
            Self::Exists => "a domain of this number has event ports already: it must end first",
            Self::Ports => "a domain can have from 1 to 4096 event ports",
        })
    }
}
