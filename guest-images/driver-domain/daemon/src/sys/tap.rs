//! TAP interfaces: what is written to the file comes in at the interface, and what goes out there is read
//! (`Documentation/networking/tuntap.rst`). Each frame has a `virtio_net_hdr` before it, as the virtqueues have.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of the header before a frame: `struct virtio_net_hdr_v1`.
const HEADER: libc::c_int = 12;

/// What the reader of a TAP interface can do by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// It computes checksums.
    pub checksum: bool,
    /// It takes segments of TCP over IPv4 that are still one.
    pub tso4: bool,
    /// The same over IPv6.
    pub tso6: bool,
    /// The same with congestion notifications.
    pub ecn: bool,
}

/// `struct ifreq`, as far as the requests here use it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// A queue of a TAP interface, or what looks like one.
#[derive(Debug)]
pub struct Tap {
    file: OwnedFd,
    /// It is a real one.
    real: bool,
}

impl Tap {
    /// Makes the interface, with so many queues: each is a `Tap`, and the first one is in use. The interface goes with the last one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(name: &str, queues: usize) -> io::Result<Vec<Self>> {
        let mut taps = Vec::with_capacity(queues);
        let multi = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        for _ in 0..queues {
            let file: File = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")?;
            let tap = Self { file: file.into(), real: true };
            tap.request(name, libc::TUNSETIFF, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi)?;
            let size = HEADER;
            // SAFETY: the request reads an `int`, which is there.
            check(unsafe { libc::ioctl(tap.file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })?;
            if !taps.is_empty() {
                tap.set_used(false)?;
            }
            taps.push(tap);
        }
        Ok(taps)
    }

    /// Something else that gives and takes a frame at a time, such as a socket.
    #[must_use]
    pub fn like(file: OwnedFd) -> Self {
        Self { file, real: false }
    }

    fn request(&self, name: &str, request: libc::Ioctl, flags: libc::c_int) -> io::Result<()> {
        let mut argument =
            Request { name: [0; libc::IFNAMSIZ], flags: flags as libc::c_short, rest: [0; 22] };
        if name.len() >= argument.name.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the interface's name is too long"));
        }
        argument.name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        // SAFETY: the requests read and write a `struct ifreq`, which has as many bytes.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), request, &raw mut argument) })
    }

    /// Whether frames come to this queue.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_used(&self, used: bool) -> io::Result<()> {
        if !self.real {
            return Ok(());
        }
        let flags = if used { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        match self.request("", libc::TUNSETQUEUE, flags) {
            // It is so already.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }

    /// What the reader can do by itself from now on, of all queues.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        if !self.real {
            return Ok(());
        }
        let Offloads { checksum, tso4, tso6, ecn } = offloads;
        let bits = [
            (checksum, libc::TUN_F_CSUM),
            (checksum && tso4, libc::TUN_F_TSO4),
            (checksum && tso6, libc::TUN_F_TSO6),
            (checksum && ecn && (tso4 || tso6), libc::TUN_F_TSO_ECN),
        ];
        let bits = bits.iter().filter(|(on, _)| *on).fold(0, |bits, (_, bit)| bits | bit);
        // SAFETY: the request has a number as its argument.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());
