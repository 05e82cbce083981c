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

use crate::Beacon;
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
    /// The first idle CPU, of those that take work over from `cpu`, by their numbers and after `last` where that is given,
    /// that is the caller's to tell ([`Beacon::claim`]), looked for behind
    /// [`before_looking_for_idle`](crate::before_looking_for_idle).
    fn claim_idle(&self, cpu: u32, last: Option<u32>) -> Option<u32>;

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

/// Somebody waits at `cpu`: an idle CPU, if there is one, is told to look for work. Where all are, each is told once: one that
/// has looked in vain idles again at once, and has seen what it would be told.
pub fn offer<C: Cpus>(cpus: &C, cpu: u32) {
    let mut last = None;
    while let Some(idle) = cpus.claim_idle(cpu, last) {
        cpus.kick(idle, pending::RESCHEDULE);
        if !cpus.offers_to_all(cpu) {
            break;
        }
        last = Some(idle);
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

/// Puts what [`Cpus::relocate`] has taken out of another queue into that of `to`, which idles by its `beacon`; `put` does
/// that. Answers what `relocate` is to answer.
///
/// The CPU is claimed for it, and told of it by the wake-up that follows there. Where none follows, because the entity has
/// been withdrawn or moved on meanwhile, it is told all the same: one that is claimed and never told would sleep on beside
/// others who wait.
pub fn put_to_wake<'a, C: Cpus>(
    cpus: &'a C,
    to: u32,
    beacon: &Beacon,
    place: &Place,
    put: impl FnOnce(&mut C::Queue),
) -> Option<(u32, C::Locked<'a>)> {
    // Where another has claimed it, that one tells it.
    let claimed = beacon.claim();
    if let Some(mut queue) = cpus.lock(to) {
        put(&mut queue);
    }
    let found = place.find(|cpu| cpus.lock(cpu));
    if claimed && found.as_ref().is_none_or(|(cpu, _)| *cpu != to) {
        cpus.kick(to, pending::RESCHEDULE);
    }
    found
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

/// What is at `place` is not to run on, for now: the CPU that runs it, if one does, looks at its queue. That it does not run
/// again, who picks it sees to: by what is said before this is called.
pub fn interrupt<C: Cpus>(cpus: &C, place: &Place) {
    let Some((cpu, queue)) = place.find(|cpu| cpus.lock(cpu)) else { return };
    let runs = queue.is_current(place);
    drop(queue);
    if runs {
        cpus.kick(cpu, pending::RESCHEDULE);
    }
}

/// A CPU with nothing to run: shows that it idles, looks for work once more by `pull`, and where there is none sleeps by
/// `sleep` until it is interrupted. `sleep` looks at the pending word first, with interrupts off.
///
/// When it goes on with work, it must offer what else still waits ([`offer`]): it may have been claimed by somebody who
/// meant other work than it found, and one CPU may have been told of several who wait.
pub fn idle(beacon: &Beacon, pull: impl FnOnce() -> bool, sleep: impl FnOnce()) {
    beacon.set_idle();
    if !pull() {
        sleep();
    }
    let _ = beacon.end_idle();
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::{Cell, RefCell, RefMut};
    use std::vec::Vec;

    use super::*;

    /// A queue with at most one entity, which runs as soon as it is awake.
    struct Toy {
        cpu: u32,
        blocked: bool,
        current: bool,
    }

    impl Toy {
        fn put(&mut self, place: &Place) {
            place.set(self.cpu, 0);
            self.blocked = true;
        }

        fn take(&mut self, place: &Place, next: u32) {
            self.blocked = false;
            place.leave(next);
        }
    }

    impl Queue for Toy {
        type Work = ();

        fn wake(&mut self, _: &Place) -> Option<Woken> {
            core::mem::take(&mut self.blocked).then_some(Woken { look: true, waits: false })
        }

        fn is_current(&self, _: &Place) -> bool {
            self.current
        }

        fn block(&mut self, _: u64) {}

        fn remove(&mut self, place: &Place) -> Option<()> {
            place.entity()?;
            self.take(place, self.cpu);
            Some(())
        }
    }

    /// Three CPUs, of which CPU 1 idles and is where what wakes goes. `meanwhile` happens right after it was put there.
    struct Machine {
        queues: [RefCell<Toy>; 3],
        idles: Beacon,
        place: Place,
        kicked: RefCell<Vec<u32>>,
        has_moved: Cell<bool>,
        meanwhile: fn(&Machine),
    }

    impl Cpus for Machine {
        type Queue = Toy;
        type Locked<'a> = RefMut<'a, Toy>;

        fn lock(&self, cpu: u32) -> Option<RefMut<'_, Toy>> {
            if self.has_moved.take() {
                (self.meanwhile)(self);
            }
            Some(self.queues[cpu as usize].borrow_mut())
        }

        fn kick(&self, cpu: u32, bits: u32) {
            assert_eq!(bits, pending::RESCHEDULE);
            self.kicked.borrow_mut().push(cpu);
        }

        fn claim_idle(&self, _: u32, _: Option<u32>) -> Option<u32> {
            None
        }

        fn relocate<'a>(
            &'a self,
            _: u32,
            mut queue: RefMut<'a, Toy>,
            place: &Place,
        ) -> Option<(u32, RefMut<'a, Toy>)> {
            queue.take(place, 1);
            drop(queue);
            put_to_wake(self, 1, &self.idles, place, |queue| {
                queue.put(place);
                self.has_moved.set(true);
            })
        }
    }

    /// Who is told to look when CPU 0's entity is woken.
    fn told(meanwhile: fn(&Machine)) -> Vec<u32> {
        let machine = Machine {
            queues: [0, 1, 2].map(|cpu| RefCell::new(Toy { cpu, blocked: false, current: false })),
            idles: Beacon::new(),
            place: Place::new(0),
            kicked: RefCell::new(Vec::new()),
            has_moved: Cell::new(false),
            meanwhile,
        };
        machine.queues[0].borrow_mut().put(&machine.place);
        machine.idles.set_idle();
        wake(&machine, &machine.place);
        machine.kicked.into_inner()
    }

    #[test]
    fn one_that_wakes_on_an_idle_cpu_tells_it_once() {
        assert_eq!(told(|_| {}), [1]);
    }

    #[test]
    fn only_what_runs_is_interrupted() {
        let machine = Machine {
            queues: [0, 1, 2].map(|cpu| RefCell::new(Toy { cpu, blocked: false, current: false })),
            idles: Beacon::new(),
            place: Place::new(0),
            kicked: RefCell::new(Vec::new()),
            has_moved: Cell::new(false),
            meanwhile: |_| {},
        };
        interrupt(&machine, &machine.place);
        machine.queues[2].borrow_mut().put(&machine.place);
        interrupt(&machine, &machine.place);
        assert_eq!(machine.kicked.take(), []);
        machine.queues[2].borrow_mut().current = true;
        interrupt(&machine, &machine.place);
        assert_eq!(machine.kicked.take(), [2]);
    }

    /// Nobody else may claim CPU 1 until it has woken up.
    #[test]
    fn a_cpu_that_was_claimed_is_told_though_nobody_wakes_there() {
        let ended = told(|machine| assert_eq!(withdraw(machine, &machine.place), Some(())));
        assert_eq!(ended, [1]);
        let moved_on = told(|machine| {
            machine.queues[1].borrow_mut().take(&machine.place, 2);
            machine.queues[2].borrow_mut().put(&machine.place);
        });
        assert_eq!(moved_on, [1, 2]);
    }

    /// CPUs that all idle, find nothing when they are told to look, and idle again before the next one is told.
    struct InVain {
        idle: [Beacon; 5],
        told: RefCell<Vec<u32>>,
        all: bool,
    }

    impl Cpus for InVain {
        type Queue = Toy;
        type Locked<'a> = RefMut<'a, Toy>;

        fn lock(&self, _: u32) -> Option<RefMut<'_, Toy>> {
            None
        }

        fn kick(&self, cpu: u32, _: u32) {
            self.told.borrow_mut().push(cpu);
            assert!(self.told.borrow().len() <= self.idle.len(), "no end: {:?}", self.told);
            self.idle[cpu as usize].set_idle();
        }

        fn claim_idle(&self, _: u32, last: Option<u32>) -> Option<u32> {
            let from = last.map_or(0, |last| last + 1);
            (from..5).find(|&cpu| self.idle[cpu as usize].claim())
        }

        fn offers_to_all(&self, _: u32) -> bool {
            self.all
        }
    }

    #[test]
    fn an_offer_ends_though_all_look_in_vain() {
        for (all, expected) in [(false, &[0][..]), (true, &[0, 1, 2, 3, 4])] {
            let cpus = InVain { idle: [(); 5].map(|()| Beacon::new()), told: RefCell::default(), all };
            cpus.idle.iter().for_each(Beacon::set_idle);
            offer(&cpus, 7);
            assert_eq!(*cpus.told.borrow(), expected);
        }
    }
}
