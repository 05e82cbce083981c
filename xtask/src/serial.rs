//! The first serial port of a running machine, as a stream in both directions.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

/// The machine's end of the wire is an emulator's; which kind of socket it is depends on what that emulator can do. Both
/// kinds behave alike. At the machine's end reading gives zero bytes, or [`io::ErrorKind::ConnectionReset`] when keys were
/// on their way.
#[derive(Debug)]
pub enum Serial {
    /// A pair of sockets, one of them inherited by the emulator.
    Pair(UnixStream),
    /// A connection that the emulator made to a port of this host.
    Connection(TcpStream),
}

impl Serial {
    /// One more handle of the same stream.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Pair(stream) => stream.try_clone().map(Self::Pair),
            Self::Connection(stream) => stream.try_clone().map(Self::Connection),
        }
    }

    /// Whether reading and writing fail with [`io::ErrorKind::WouldBlock`] instead of waiting; for all handles.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Self::Pair(stream) => stream.set_nonblocking(nonblocking),
            Self::Connection(stream) => stream.set_nonblocking(nonblocking),
        }
    }

    /// How long reading waits before it fails with [`io::ErrorKind::WouldBlock`]; for all handles.
    ///
    /// # Errors
    /// When the time is zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Pair(stream) => stream.set_read_timeout(timeout),
            Self::Connection(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// How many bytes can be read without waiting.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn waiting(&self) -> io::Result<u64> {
        Ok(rustix::io::ioctl_fionread(self)?)
    }
}

impl Read for &Serial {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Serial::Pair(stream) => (&*stream).read(buffer),
            Serial::Connection(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for &Serial {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Serial::Pair(stream) => (&*stream).write(bytes),
            Serial::Connection(stream) => (&*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Serial {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pair(stream) => stream.as_fd(),
            Self::Connection(stream) => stream.as_fd(),
        }
    }
}
