//! What a call answers when it says no: a negative `errno` of Linux's, as KVM's hypercalls do.

use core::fmt;

/// Why a call was refused. It has had no effect, but for a batch whose list went away under it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CallError {
    /// `-EPERM`: from user mode, or without the privilege.
    NotPermitted,
    /// `-ESRCH`: no such domain lives.
    NoSuchDomain,
    /// `-E2BIG`: a batch of more than [`BATCH_MAX`](crate::BATCH_MAX) entries; a blob of more than
    /// [`MAX_BLOB`](crate::control::MAX_BLOB) bytes.
    TooBig,
    /// `-EBADF`: the port is not one that the caller has allocated or bound.
    BadPort,
    /// `-ENOMEM`: Caisson has no memory left for it.
    NoMemory,
    /// `-EFAULT`: a batch's list, or what an argument points to, is not in the caller's memory.
    Fault,
    /// `-EBUSY`: the guest lives, and what was said before stays as it is; or it is just about to do what was asked before; a domain has been made of
    /// the blob.
    Busy,
    /// `-EINVAL`: an argument is out of range, or a batch within a batch.
    Invalid,
    /// `-ENOSPC`: all the caller's ports are in use.
    NoPorts,
    /// `-EPIPE`: the other side has closed, or is gone.
    PeerClosed,
    /// `-ENOTCONN`: nobody is bound to the port; the device is not attached; the console is not kept; no blob
    /// has been begun.
    NotConnected,
    /// `-ECONNREFUSED`: the remote port is not offered to the caller; the device is not one that it serves; the domain cannot be made.
    Refused,
    /// `-KVM_ENOSYS`: there is no such call.
    NoSuchCall,
}

/// What a call answers: a value below 2^63, or why not.
pub type CallResult = Result<u64, CallError>;

impl CallError {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::NotPermitted,
        Self::NoSuchDomain,
        Self::TooBig,
        Self::BadPort,
        Self::NoMemory,
        Self::Fault,
        Self::Busy,
        Self::Invalid,
        Self::NoPorts,
        Self::PeerClosed,
        Self::NotConnected,
        Self::Refused,
        Self::NoSuchCall,
    ];

    /// The `errno`, as a positive number.
    #[must_use]
    pub const fn errno(self) -> u16 {
        match self {
            Self::NotPermitted => 1,
            Self::NoSuchDomain => 3,
            Self::TooBig => 7,
            Self::BadPort => 9,
            Self::NoMemory => 12,
            Self::Fault => 14,
            Self::Busy => 16,
            Self::Invalid => 22,
            Self::NoPorts => 28,
            Self::PeerClosed => 32,
            Self::NotConnected => 107,
            Self::Refused => 111,
            Self::NoSuchCall => 1000,
        }
    }

    /// The `errno`'s name in Linux (`KVM_ENOSYS` in `<linux/kvm_para.h>`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotPermitted => "EPERM",
            Self::NoSuchDomain => "ESRCH",
            Self::TooBig => "E2BIG",
            Self::BadPort => "EBADF",
            Self::NoMemory => "ENOMEM",
            Self::Fault => "EFAULT",
            Self::Busy => "EBUSY",
            Self::Invalid => "EINVAL",
            Self::NoPorts => "ENOSPC",
            Self::PeerClosed => "EPIPE",
            Self::NotConnected => "ENOTCONN",
            Self::Refused => "ECONNREFUSED",
            Self::NoSuchCall => "KVM_ENOSYS",
        }
    }

    /// What RAX is then: the negative `errno`.
    #[must_use]
    pub const fn answer(self) -> u64 {
        -(self.errno() as i64) as u64
    }

    /// The error that an answer stands for; `None` for one that says yes.
    #[must_use]
    pub fn of_answer(answer: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|error| error.answer() == answer)
    }
}

/// What RAX is after a call.
#[inline]
#[must_use]
pub const fn answer_of(result: CallResult) -> u64 {
    match result {
        Ok(value) => value,
        Err(error) => error.answer(),
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPermitted => "the domain lacks the privilege for this call: its configuration grants it",
            Self::NoSuchDomain => "no domain with this number is alive",
            Self::TooBig => "the batch has too many entries: make several of it",
            Self::BadPort => "this port is not in use: allocate or bind it first",
            Self::NoMemory => "Caisson has no memory left for this: end a guest, or give one less",
            Self::Fault => "what an argument points to is not in the domain's memory",
            Self::Busy => "the guest lives, or is in between: end it first, or try again in a moment",
            Self::Invalid => "an argument is out of range",
            Self::NoPorts => "all ports of the domain are in use: close some",
            Self::PeerClosed => "the other side has closed the port: close it as well",
            Self::NotConnected => {
                "nobody is bound to this port, the device is not attached, or the console not kept"
            }
            Self::Refused => "the port or device is not this domain's to have",
            Self::NoSuchCall => "this Caisson has no such call",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_distinct_and_negative() {
        for (at, error) in CallError::ALL.into_iter().enumerate() {
            assert!((error.answer() as i64) < 0);
            assert_eq!(CallError::of_answer(error.answer()), Some(error));
            assert_eq!(answer_of(Err(error)), error.answer());
            assert!(CallError::ALL[..at].iter().all(|other| other.name() != error.name()));
        }
        assert_eq!((CallError::of_answer(0), CallError::of_answer(-2_i64 as u64)), (None, None));
        assert_eq!(answer_of(Ok(7)), 7);
    }
}
