//! The thread of a device that is attached to: it follows the transport's state, lets the device work, and sleeps.
//!
//! Each device has a thread of its own. So the kernel's scheduler shares the driver domain's CPUs among guests and accounts for
//! them, a device that is slow or busy holds up no other, and a device's code is plain: it may wait for a file.
//!
//! # Sleep
//!
//! While there is work, notifications are off: the rings are looked at again and again. When there is none, the thread looks a
//! while longer, before it asks for notifications, looks once more, and sleeps. How long is learnt ([`Pace`]), apart for the two
//! things that there are to wait for: the end of what is under way, as long as a disk takes, and the guest's next request. Where much
//! is under way the thread sleeps at once, and finds more at a time.
//!
//! Looking saves the guest exits as well. It need not notify who looks by itself. And where it shares its CPU with this domain, it
//! does not run, and so does not execute HLT, while the thread waits for a disk that answers soon.
//!
//! # Changes
//!
//! A guest that resets its device, or stops a queue, waits until the device has let go of the queue and this thread has
//! acknowledged the change; the state is read with the acknowledgement's number, so that a later change is another one. When the
//! guest has ended, all queues stop and the thread ends; whoever started it detaches then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use caisson_abi::CallError;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use crate::bell::{Bell, CHANGED};
use crate::device::{Awaits, Device, Fault};
use crate::host::{Caisson, Refusal, State};
use crate::log::Voice;
use crate::pace::Pace;
use crate::ring::QueueSetup;
use crate::statistics::Counters;
use crate::sys::Memory;

/// Bits of the device status (VIRTIO 1.2, section 2.1).
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

/// Why a device's thread has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The guest has ended.
    Guest,
    /// The device is not this backend's any more.
    Lost(Refusal),
}

/// A device that is attached to.
pub struct Service {
    /// Calls.
    pub caisson: Caisson,
    /// Its channel.
    pub channel: u16,
    /// By which it is spoken of in the log.
    pub voice: Arc<Voice>,
    /// Where its events come.
    pub bell: Arc<Bell>,
    /// Its guest's memory.
    pub memory: Arc<Memory>,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// The device.
    pub device: Box<dyn Device>,
}

/// What the thread remembers.
struct Running {
    /// How many queues the device has.
    queues: usize,
    /// The queues that have started, a bit each.
    started: u64,
    /// For the guest, and for what is under way.
    paces: [Pace; 2],
}

impl Running {
    /// That of what is awaited.
    fn pace(&mut self, awaited: Awaits) -> Option<&mut Pace> {
        let [for_guest, for_end] = &mut self.paces;
        match awaited {
            Awaits::Guest => Some(for_guest),
            Awaits::End => Some(for_end),
            Awaits::Ends => None,
        }
    }
}

impl Service {
    /// Serves the device until its guest has ended; gives it back.
    pub fn run(mut self) -> (Box<dyn Device>, End) {
        let mut running = Running {
            queues: self.device.description().queues.len(),
            started: 0,
            paces: [Pace::new(self.caisson.host().cost_of_sleep()); 2],
        };
        let end = self.serve(&mut running);
        self.stop_all(&mut running);
        (self.device, end)
    }

    fn serve(&mut self, running: &mut Running) -> End {
        let mut told = 0;
        let mut idle_since = None;
        loop {
            let bits = self.bell.take();
            if bits != 0 {
                self.counters.events.add(1);
                told |= bits & !CHANGED;
            }
            if bits & CHANGED != 0 {
                match self.follow(running) {
                    Ok(pending) => told |= pending,
                    Err(end) => return end,
                }
            }
            if running.started == 0 {
                // What the device waits for beside the guest is of no use before it works, and stays there until then.
                self.sleep(false, None);
                continue;
            }
            match self.step(running, &mut told, &mut idle_since) {
                Ok(()) => {}
                Err(fault) => self.fail(running, &fault),
            }
        }
    }

    /// Works, or sleeps if there is nothing to do.
    fn step(
        &mut self,
        running: &mut Running,
        told: &mut u64,
        idle_since: &mut Option<(Instant, Awaits)>,
    ) -> Result<(), Fault> {
        let progress = self.device.work(std::mem::take(told), &self.counters)?;
        if progress.interrupt {
            self.counters.interrupts.add(1);
            self.caisson.host().interrupt(self.channel);
        }
        if progress.any {
            // Which wait that was is known by what there was to wait for when it began.
            if let Some((_, awaited)) = idle_since.take()
                && let Some(pace) = running.pace(awaited)
            {
                pace.found();
            }
            return Ok(());
        }
        let now = Instant::now();
        let (since, awaited) = *idle_since.get_or_insert_with(|| (now, self.device.awaits()));
        let pace = running.pace(awaited);
        if now.duration_since(since) < pace.map_or(Duration::ZERO, |pace| pace.spin()) {
            // Others of this domain's may have to do what is waited for.
            std::thread::yield_now();
            return Ok(());
        }
        if self.device.arm()? {
            return Ok(());
        }
        let deadline = self.device.deadline();
        self.sleep(true, deadline);
        *idle_since = None;
        if let Some(pace) = running.pace(awaited) {
            pace.woke(since.elapsed());
        }
        Ok(())
    }

    /// Sleeps until something comes; also to the device, if it works.
    fn sleep(&self, works: bool, deadline: Option<Instant>) {
        let mut sources = vec![PollFd::from_borrowed_fd(self.bell.fd(), PollFlags::IN)];
        if works {
            self.device.sources(&mut sources);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        self.counters.sleeps.add(1);
        // Interrupted, or for want of memory for a moment: then it is as if something had come.
        let _ = poll(&mut sources, timeout.as_ref());
        if sources.first().is_some_and(|bell| !bell.revents().is_empty()) {
            self.bell.drain();
        }
    }

    /// Reads the state and lets the device follow it: the queues to look at.
    fn follow(&mut self, running: &mut Running) -> Result<u64, End> {
        let state = match self.caisson.state(self.channel, running.queues) {
            Ok(state) => state,
            Err(Refusal { error: CallError::PeerClosed, .. }) => return Err(End::Guest),
            Err(error) => return Err(End::Lost(error)),
        };
        let status = state.device.status;
        let serve = status & DRIVER_OK != 0 && status & (NEEDS_RESET | FAILED) == 0;
        let mut fault = None;
        for (index, queue) in (0_u16..).zip(&state.queues) {
            let bit = 1_u64 << (index & 63);
            let wanted = serve && queue.ready != 0;
            if !wanted && running.started & bit != 0 {
                self.device.stop(index);
                running.started &= !bit;
            } else if wanted && running.started & bit == 0 && fault.is_none() {
                match self.start(index, &state) {
                    Ok(()) => running.started |= bit,
                    Err(error) => fault = Some(error),
                }
            }
        }
        if let Some(fault) = fault {
            self.fail(running, &fault);
        }
        if state.device.waiting != 0 {
            match self.caisson.acknowledge(self.channel, state.device.change) {
                Ok(()) => {}
                Err(Refusal { error: CallError::PeerClosed, .. }) => return Err(End::Guest),
                Err(error) => return Err(End::Lost(error)),
            }
        }
        Ok(state.device.pending)
    }

    fn start(&mut self, index: u16, state: &State) -> Result<(), Fault> {
        let Some(&queue) = state.queues.get(usize::from(index)) else { return Ok(()) };
        let features = state.device.features;
        self.device.start(&QueueSetup { index, state: queue, features, memory: Arc::clone(&self.memory) })?;
        // A backend that died may have given buffers back without a word.
        self.caisson.host().interrupt(self.channel);
        Ok(())
    }

    fn stop_all(&mut self, running: &mut Running) {
        for queue in 0..running.queues as u16 {
            if running.started >> (queue & 63) & 1 != 0 {
                self.device.stop(queue);
            }
        }
        running.started = 0;
    }

    /// The device needs a reset.
    fn fail(&mut self, running: &mut Running, fault: &Fault) {
        self.stop_all(running);
        self.counters.errors.add(1);
        self.voice.say(format_args!("stopped until the guest resets it: {fault}"));
        // Where the guest has ended meanwhile, the next look at the state says so.
        let _ = self.caisson.fail(self.channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Description, Progress};
    use crate::host::fake::Fake;

    /// A device for whom something is always there, as for a console with a client whom it has not taken.
    struct Wanted(Bell);

    impl Device for Wanted {
        fn description(&self) -> Description {
            Description { kind: 3, features: 0, queues: vec![16], config: Vec::new() }
        }

        fn start(&mut self, _: &QueueSetup) -> Result<(), Fault> {
            Ok(())
        }

        fn stop(&mut self, _: u16) {}

        fn work(&mut self, _: u64, _: &Counters) -> Result<Progress, Fault> {
            Ok(Progress::default())
        }

        fn arm(&mut self) -> Result<bool, Fault> {
            Ok(false)
        }

        fn sources<'a>(&'a self, into: &mut Vec<PollFd<'a>>) {
            into.push(PollFd::from_borrowed_fd(self.0.fd(), PollFlags::IN));
        }
    }

    #[test]
    fn a_device_that_does_not_work_is_woken_by_its_guest_alone() {
        const CHANNEL: u16 = 33;
        let fake = Fake::new();
        fake.add(CHANNEL, 3, "web", "");
        let caisson = Caisson::new(Arc::clone(&fake) as Arc<dyn crate::host::Host>);
        let device = Wanted(Bell::new().unwrap());
        device.0.ring(1);
        caisson.describe(CHANNEL, &device.description().record()).unwrap();
        let guest = fake.start(CHANNEL);
        caisson.attach(CHANNEL).unwrap();
        let (bell, counters) = (Arc::new(Bell::new().unwrap()), Arc::new(Counters::default()));
        let service = Service {
            caisson,
            channel: CHANNEL,
            voice: Arc::new(Voice::new("web port 1".into())),
            bell: Arc::clone(&bell),
            memory: Arc::clone(&guest.memory),
            counters: Arc::clone(&counters),
            device: Box::new(device),
        };
        let thread = std::thread::spawn(move || service.run().1);
        for round in 1..=20 {
            bell.ring(CHANGED);
            while counters.events.get() < round {
                std::thread::yield_now();
            }
        }
        fake.end(CHANNEL);
        bell.ring(CHANGED);
        assert_eq!(thread.join().unwrap(), End::Guest);
        // One for each time that it was told of something, and at first; a wake-up may come twice.
        let (sleeps, events) = (counters.sleeps.get(), counters.events.get());
        assert!(sleeps <= 2 * events + 1, "{sleeps} sleeps for {events} events");
    }
}
