//! virtio-fs (VIRTIO 1.2, section 5.11): a directory of the driver domain in the guest, served by an unmodified `virtiofsd`.
//!
//! | file | what |
//! |---|---|
//! | `session.rs` | a vhost-user backend for one life of the device: its process, its socket, its queues |
//! | `words.rs` | what its process says |
//!
//! The backend gets the guest's memory and the queues' places (vhost-user), and works on the rings itself. What is left here: a
//! notification of the guest's becomes a write to a queue's kick descriptor, and what the backend writes to its call descriptor
//! becomes an interrupt. Any other vhost-user backend could be served by in the same way.
//!
//! A file system's state (which file a number of the guest's stands for) is the process's. A life of the device has a process of
//! its own, and with it ends the life: a guest whose backend has died finds the device in need of a reset.

mod session;
#[cfg(test)]
mod tests;
mod words;

use std::io;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::bell::queue_bit;
use crate::claims;
use crate::device::{Description, Device, Fault, Progress};
use crate::kinds::OpenError;
use crate::parameters::Parameters;
use crate::ring::QueueSetup;
use crate::statistics::Counters;

use session::{Launcher, Session, Virtiofsd};

/// Queues: one of high priority, and one for requests; and their entries.
const QUEUES: usize = 2;
const QUEUE: u16 = 1024;
/// The bytes of a tag.
const TAG: usize = 36;
/// Features of the rings that are passed on, if the backend has them.
const RINGS: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A shared directory.
pub struct Share {
    tag: [u8; TAG],
    launcher: Box<dyn Launcher>,
    /// What the backend offers.
    features: u64,
    /// For this life, or kept ready for the next one.
    session: Option<Session>,
    /// The queues that run, a bit each.
    running: u64,
}

impl Share {
    /// The directory that the parameters describe.
    ///
    /// # Errors
    /// What is wrong with the parameters, or why it cannot be served.
    pub fn open(channel: u16, parameters: &Parameters) -> Result<Self, OpenError> {
        let directory = PathBuf::from(parameters.text("path")?);
        if !directory.is_dir() {
            return Err(format!("{}: it is not a directory", directory.display()).into());
        }
        let socket = Path::new("/run/caisson").join(format!("share-{channel}.sock"));
        let claim = claims::path_of(channel);
        Self::new(parameters.text("tag")?, Box::new(Virtiofsd { directory, socket, claim }))
    }

    fn new(tag: &str, launcher: Box<dyn Launcher>) -> Result<Self, OpenError> {
        let mut place = [0; TAG];
        if tag.is_empty() || tag.len() > place.len() {
            return Err(format!("parameter tag: {tag:?} has not 1 to {TAG} bytes").into());
        }
        place.iter_mut().zip(tag.bytes()).for_each(|(to, from)| *to = from);
        let session = launcher.launch(QUEUES)?;
        Ok(Self { tag: place, launcher, features: session.features(), session: Some(session), running: 0 })
    }

    fn session(&mut self) -> Result<&mut Session, Fault> {
        let lost = || Fault::Backend(io::Error::new(io::ErrorKind::NotConnected, "its backend is not there"));
        self.session.as_mut().ok_or_else(lost)
    }
}

impl Device for Share {
    fn description(&self) -> Description {
        let mut config = self.tag.to_vec();
        config.extend((QUEUES as u32 - 1).to_le_bytes()); // num_request_queues
        let queues = vec![QUEUE; QUEUES];
        Description { kind: VIRTIO_ID_FS, features: self.features & RINGS, queues, config }
    }

    fn start(&mut self, setup: &QueueSetup) -> Result<(), Fault> {
        if self.running == 0 {
            if self.session.is_none() {
                self.session = Some(self.launcher.launch(QUEUES).map_err(Fault::Backend)?);
            }
            self.session()?.begin(setup.features, &setup.memory).map_err(Fault::Backend)?;
        }
        self.session()?.start(setup).map_err(Fault::Backend)?;
        self.running |= queue_bit(setup.index);
        Ok(())
    }

    fn stop(&mut self, queue: u16) {
        self.running &= !queue_bit(queue);
        // The backend answers when it touches the ring no more. One that does not is ended, and with it its use of the memory.
        let stopped = self.session.as_mut().is_none_or(|session| session.stop(queue).is_ok());
        if !stopped || self.running == 0 {
            self.session = None;
        }
    }

    fn work(&mut self, told: u64, counters: &Counters) -> Result<Progress, Fault> {
        let running = self.running;
        let session = self.session()?;
        session.check().map_err(Fault::Backend)?;
        let mut any = false;
        for queue in (0..QUEUES as u16).filter(|&queue| told & running & queue_bit(queue) != 0) {
            counters.requests.add(1);
            session.kick(queue).map_err(Fault::Backend)?;
            any = true;
        }
        Ok(Progress { any, interrupt: session.called() })
    }

    fn arm(&mut self) -> Result<bool, Fault> {
        // Notifications are the backend's affair.
        Ok(false)
    }

    fn sources<'a>(&'a self, into: &mut Vec<PollFd<'a>>) {
        if let Some(session) = &self.session {
            into.extend(session.calls().map(|call| PollFd::from_borrowed_fd(call, PollFlags::IN)));
            // Readable when the backend has gone.
            into.push(PollFd::from_borrowed_fd(session.socket(), PollFlags::IN));
        }
    }
}
