//! Waking, blocking, moving and withdrawing what runs, over one run queue for each CPU.
//!
//! # No wake-up is lost
//!
//! Who leaves mail for an entity then takes the lock of the queue that it is in. An entity that finds nothing to do is
//! blocked under that lock, and its mail looked at once more, under the same lock. So the waker finds it blocked, or the
//! entity finds the mail.
//!
//! # Whose an entity is
//!
//! One that is *current* is its CPU's: nobody else moves it or takes it out. One that waits in a queue is whose lock is
//! held. One on its way is the moving CPU's. So each is taken out exactly once, at its guest's end: by the one who ends the
//! guest, where it waits or sleeps, else by the CPU whose it is, which looks whether the guest has ended before it runs it
//! and, by the same second look as at its mail, before it lets it sleep.

use crate::pending;
use crate::place::Place;

/// What a wake-up came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Woken {
    /// The CPU must look at its queue.
    pub look: bool,
    /// Somebody waits there.
    pub waits: bool,
}

/// A CPU's run queue, which is used under its lock.
pub trait Queue {
    /// What an entity stands for.
    type Work;

    /// What is at `place`, in this queue, can run. `None` where it did not sleep.
    fn wake(&mut self, place: &Place) -> Option<Woken>;
    /// Whether the CPU runs what is at `place`.
    fn is_current(&self, place: &Place) -> bool;
    /// What runs waits until it is woken, or until `deadline`.
    fn block(&mut self, deadline: u64);
    /// Takes out what is at `place`, in whichever state, and has [`Place::leave`] told. `None` where it is not here.
    fn remove(&mut self, place: &Place) -> Option<Self::Work>;
}

/// The CPUs.
pub trait Cpus {
    /// A CPU's queue.
    type Queue: Queue;
    /// A queue, with its lock held until this is dropped.
    type Locked<'a>: core::ops::DerefMut<Target = Self::Queue>
    where
        Self: 'a;

    /// The queue of `cpu`; `None` where there is no such CPU.
    fn lock(&self, cpu: u32) -> Option<Self::Locked<'_>>;
    /// Has `cpu`, which may be the calling one, look at `bits`: [`Pending::poke`](crate::Pending::poke).
    fn kick(&self, cpu: u32, bits: u32);
    /// An idle CPU, of those that take work over from `cpu`, that is the caller's to tell
    /// ([`Beacon::claim`](crate::Beacon::claim)), looked for behind
    /// [`before_looking_for_idle`](crate::before_looking_for_idle).
    fn claim_idle(&self, cpu: u32) -> Option<u32>;

    /// Whether all idle CPUs are told of one that waits at `cpu`, because not each of them may run it.
    fn offers_to_all(&self, cpu: u32) -> bool {
        let _ = cpu;
        false
    }

    /// What is at `place`, in the queue of `cpu`, is about to wake: may be moved to a CPU that idles first, still asleep.
    /// Answers where it is then, `None` where somebody else wakes it meanwhile.
    fn relocate<'a>(
        &'a self,
        cpu: u32,
        queue: Self::Locked<'a>,
        place: &Place,
    ) -> Option<(u32, Self::Locked<'a>)> {
        let _ = place;
        Some((cpu, queue))
    }
}

/// There is something to do at `place`: it runs, if it was blocked; if it runs, it looks at its mail.
pub fn wake<C: Cpus>(cpus: &C, place: &Place) {
    let Some((cpu, queue)) = place.find(|cpu| cpus.lock(cpu)) else { return };
    let Some((cpu, mut queue)) = cpus.relocate(cpu, queue, place) else { return };
    let woken = queue.wake(place);
    let runs = queue.is_current(place);
    drop(queue);
    match woken {
        Some(woken) => {
            if woken.look {
                cpus.kick(cpu, pending::RESCHEDULE);
            }
            if woken.waits {
                offer(cpus, cpu);
            }
        }
        None if runs => cpus.kick(cpu, pending::MAIL),
        None => {}
    }
}

/// What runs on `cpu`, the calling one, and is at `place`, waits, unless `stays`: it has got mail since it looked, or its
/// guest has ended.
pub fn block<C: Cpus>(cpus: &C, cpu: u32, place: &Place, deadline: u64, stays: impl FnOnce() -> bool) {
    if let Some(mut queue) = cpus.lock(cpu) {
        queue.block(deadline);
        if stays() {
            let _ = queue.wake(place);
        }
    }
}

/// Somebody waits at `cpu`: an idle CPU, if there is one, is told to look for work.
pub fn offer<C: Cpus>(cpus: &C, cpu: u32) {
    while let Some(idle) = cpus.claim_idle(cpu) {
        cpus.kick(idle, pending::RESCHEDULE);
        if !cpus.offers_to_all(cpu) {
            break;
        }
    }
}

/// Moves an entity from the queue of `from` to that of `to`, the calling CPU: `take` takes one out that waits and that no
/// CPU holds, `leave` calls [`Place::leave`] with `to`, `put` puts it in. Whether there was one. One lock at a time: in between it is in no queue, and who wakes it
/// finds that it can run anyway.
pub fn take_over<C: Cpus, P>(
    cpus: &C,
    from: u32,
    to: u32,
    take: impl FnOnce(&mut C::Queue) -> Option<P>,
    leave: impl FnOnce(&P),
    put: impl FnOnce(&mut C::Queue, P),
) -> bool {
    let Some(mut queue) = cpus.lock(from) else { return false };
    let Some(taken) = take(&mut queue) else { return false };
    leave(&taken);
    drop(queue);
    if let Some(mut queue) = cpus.lock(to) {
        put(&mut queue, taken);
    }
    true
}

/// Takes what is at `place` out of its queue, when its guest has ended. `None` where the CPU that runs it has to do it
/// itself, which is told to look, or the one that is just taking it over, which looks anyway.
pub fn withdraw<C: Cpus>(cpus: &C, place: &Place) -> Option<<C::Queue as Queue>::Work> {
    let (cpu, mut queue) = place.find(|cpu| cpus.lock(cpu))?;
    if queue.is_current(place) {
        drop(queue);
        cpus.kick(cpu, pending::RESCHEDULE);
        return None;
    }
    let work = queue.remove(place);
    drop(queue);
    work
}

/// A CPU with nothing to run: shows that it idles, looks for work once more by `pull`, and where there is none sleeps by
/// `sleep` until it is interrupted. `sleep` looks at the pending word first, with interrupts off.
///
/// When it goes on with work, it must offer what else still waits ([`offer`]): it may have been claimed by somebody who
/// meant other work than it found, and one CPU may have been told of several who wait.
pub fn idle(beacon: &crate::Beacon, pull: impl FnOnce() -> bool, sleep: impl FnOnce()) {
    beacon.set_idle();
    if !pull() {
        sleep();
    }
    let _ = beacon.end_idle();
}
