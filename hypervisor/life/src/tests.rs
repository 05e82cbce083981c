use std::collections::BTreeSet;
use std::vec::Vec;

use caisson_config::{OnExit, OnExitAction};
use proptest::prelude::*;

use crate::model::{ALONE, Answers, DRIVER, Fault, GUEST, Memory, RESTARTS, SERVED_DRIVER, World};
use crate::{Cause, Lives, Next, Outcome, Verdict};

/// A machine whose drivers serve whom they are to.
fn served(has_iommu: bool) -> World {
    let mut world = World::new(has_iommu, None);
    world.attach(DRIVER, GUEST);
    world.attach(DRIVER, SERVED_DRIVER);
    world.attach(SERVED_DRIVER, GUEST);
    world
}

/// The IOMMU's unit of the first driver's function does not answer any more.
const STUCK: Answers = Answers { iommu: [false, true], steps: 0 };

#[track_caller]
fn all_right(world: &World) {
    assert_eq!(world.wrong(), &BTreeSet::new());
}

/// Neither its life nor its memory has changed.
#[track_caller]
fn goes_on(world: &World, number: usize) {
    assert!(world.is_living(number) && world.memory(number) == Memory::Used, "domain {number}");
}

#[test]
fn an_end_frees_all() {
    for (number, steps) in [ALONE, GUEST, SERVED_DRIVER, DRIVER].into_iter().flat_map(|d| [(d, 0), (d, 15)]) {
        for has_iommu in [false, true] {
            let mut world = served(has_iommu);
            world.answers.steps = steps;
            world.end(number, Cause::PowerOff);
            world.settle();
            all_right(&world);
            assert!(world.is_gone(number) && world.memory(number) == Memory::Freed);
            (0..4).filter(|other| *other != number).for_each(|other| goes_on(&world, other));
            assert_eq!(world.lines, []);
        }
    }
}

#[test]
fn a_guest_waits_for_its_backends_and_nobody_else() {
    let mut world = served(true);
    world.end(GUEST, Cause::Crash);
    assert!(world.turn(GUEST) && world.waits(GUEST) && !world.turn(GUEST));
    world.detach(DRIVER, GUEST);
    assert!(!world.turn(GUEST), "before the revocation");
    assert!(world.turn(DRIVER), "which is its backend's work");
    assert!(world.turn(GUEST) && world.waits(GUEST), "and the other one has not let go");
    // That one ends, which does as well, once its own devices do nothing any more.
    world.answers.steps = 2;
    world.end(SERVED_DRIVER, Cause::PowerOff);
    world.detach(DRIVER, SERVED_DRIVER);
    assert!(world.turn(DRIVER));
    while !world.is_resetting(SERVED_DRIVER) {
        assert!(world.turn(SERVED_DRIVER));
    }
    assert!(world.turn(SERVED_DRIVER) && !world.turn(SERVED_DRIVER), "it waits for a time");
    assert!(world.waits(GUEST));
    world.settle();
    all_right(&world);
    assert!(world.is_living(GUEST) && world.restarts(GUEST) == 1 && world.is_gone(SERVED_DRIVER));
}

#[test]
fn guests_go_on_without_their_driver_and_with_its_next_life() {
    let mut world = served(true);
    world.end(DRIVER, Cause::Crash);
    world.settle();
    all_right(&world);
    assert_eq!((world.restarts(DRIVER), world.is_living(DRIVER)), (1, true));
    goes_on(&world, GUEST);
    world.attach(DRIVER, GUEST);
    world.end(GUEST, Cause::Reset);
    assert!(world.turn(GUEST) && world.waits(GUEST), "it is attached again");
    world.settle();
    all_right(&world);
    assert!(world.is_living(GUEST));
}

#[test]
fn a_reset_that_takes_long_keeps_the_memory_and_the_guests() {
    // Without an IOMMU nothing but the reset ends what the function has begun.
    let mut world = served(false);
    world.answers.steps = 3;
    world.end(DRIVER, Cause::PowerOff);
    while !world.is_resetting(DRIVER) {
        assert!(world.turn(DRIVER));
    }
    world.end(GUEST, Cause::PowerOff);
    world.detach(SERVED_DRIVER, GUEST);
    for _ in 0..3 {
        assert!(world.turn(DRIVER) && world.is_resetting(DRIVER));
        assert_eq!(world.memory(DRIVER), Memory::Used);
        while world.turn(GUEST) {}
        assert!(world.turn(SERVED_DRIVER) || world.waits(GUEST));
        assert!(world.pass_time());
    }
    assert_eq!(world.memory(GUEST), Memory::Used);
    world.settle();
    all_right(&world);
    assert_eq!([DRIVER, GUEST].map(|number| world.memory(number)), [Memory::Freed; 2]);
}

#[test]
fn where_the_iommu_does_not_answer_the_memory_is_lost_and_nobody_elses() {
    let mut world = World::new(true, None);
    world.answers = STUCK;
    // Though it was to be restarted.
    world.end(DRIVER, Cause::Crash);
    world.settle();
    all_right(&world);
    assert!(world.is_gone(DRIVER) && world.is_lost(DRIVER));
    assert_eq!(world.memory(DRIVER), Memory::Kept);
    assert_eq!(world.lines, [(DRIVER, "its own devices")]);
    [SERVED_DRIVER, GUEST, ALONE].into_iter().for_each(|other| goes_on(&world, other));
    world.start(DRIVER);
    world.settle();
    assert!(world.is_gone(DRIVER), "nor does it come again");
    // Who was not served when that happened loses nothing.
    world.end(GUEST, Cause::Reset);
    world.settle();
    all_right(&world);
    assert!(world.is_living(GUEST) && world.lines.len() == 1);
}

#[test]
fn guests_of_a_lost_driver_go_on_and_lose_their_memory_when_they_end() {
    let mut world = served(true);
    world.answers = STUCK;
    world.end(DRIVER, Cause::PowerOff);
    world.settle();
    all_right(&world);
    goes_on(&world, GUEST);
    goes_on(&world, SERVED_DRIVER);
    world.end(GUEST, Cause::Reset);
    world.end(ALONE, Cause::Reset);
    world.settle();
    all_right(&world);
    assert!(world.is_gone(GUEST) && world.memory(GUEST) == Memory::Kept && world.is_living(ALONE));
    // A driver that is such a guest as well stops its own function first, and tells its own guests.
    world.end(SERVED_DRIVER, Cause::PowerOff);
    world.settle();
    all_right(&world);
    let lost = "devices of the driver";
    assert_eq!(world.lines, [(DRIVER, "its own devices"), (GUEST, lost), (SERVED_DRIVER, lost)]);
}

#[test]
fn a_guest_that_waits_for_a_driver_goes_on_when_that_is_lost() {
    let mut world = served(true);
    world.answers = STUCK;
    world.end(GUEST, Cause::PowerOff);
    world.detach(SERVED_DRIVER, GUEST);
    assert!(world.turn(GUEST) && world.turn(SERVED_DRIVER) && world.turn(GUEST) && world.waits(GUEST));
    world.end(DRIVER, Cause::Crash);
    while !world.is_gone(DRIVER) {
        assert!(world.turn(DRIVER));
    }
    assert!(!world.waits(GUEST));
    world.settle();
    all_right(&world);
    assert!(world.is_gone(GUEST) && world.memory(GUEST) == Memory::Kept);
}

#[test]
fn what_cannot_be_revoked_is_lost_with_the_guest() {
    let mut world = served(true);
    world.answers = STUCK;
    world.detach(DRIVER, GUEST);
    world.settle();
    all_right(&world);
    goes_on(&world, GUEST);
    world.end(GUEST, Cause::PowerOff);
    world.settle();
    all_right(&world);
    assert!(world.is_gone(GUEST) && world.memory(GUEST) == Memory::Kept);
    goes_on(&world, DRIVER);
}

#[test]
fn an_end_during_an_end_is_the_same_end() {
    let mut world = served(true);
    world.answers.steps = 3;
    world.end(DRIVER, Cause::Crash);
    while !world.is_resetting(DRIVER) {
        assert!(world.turn(DRIVER));
    }
    world.end(DRIVER, Cause::Crash);
    assert_eq!(world.restarts(DRIVER), 1);
    // But somebody does not want it any more.
    world.destroy(DRIVER);
    world.settle();
    all_right(&world);
    assert!(world.is_gone(DRIVER) && world.memory(DRIVER) == Memory::Freed);
    world.start(DRIVER);
    world.settle();
    assert!(world.is_living(DRIVER));
}

#[test]
fn a_domain_is_restarted_as_often_as_it_may() {
    let mut world = World::new(false, None);
    for _ in 0..RESTARTS {
        world.end(ALONE, Cause::Crash);
        world.settle();
        assert!(world.is_living(ALONE));
    }
    world.end(ALONE, Cause::Reset);
    world.settle();
    assert!(world.is_gone(ALONE));
    world.start(ALONE);
    world.settle();
    assert_eq!((world.is_living(ALONE), world.restarts(ALONE)), (true, 0));
    all_right(&world);
}

#[test]
fn what_follows_on_an_end_is_the_configurations_wish() {
    let [no, again] = [OnExitAction::Destroy, OnExitAction::Restart];
    let actions = OnExit { poweroff: no, reboot: again, crash: again };
    for (cause, verdict, next) in [
        (Cause::PowerOff, Verdict::Destroy, Next::Gone(true)),
        (Cause::Destroyed, Verdict::Destroy, Next::Gone(true)),
        (Cause::Reset, Verdict::Restart, Next::Restart(7)),
        (Cause::Crash, Verdict::Restart, Next::Restart(7)),
    ] {
        let lives = |limit| {
            let mut lives = Lives::new();
            lives.made(7);
            (lives.ended(cause, actions, limit), lives)
        };
        let (said, mut lived) = lives(None);
        assert_eq!((said, lived.over(Outcome::Freed)), (verdict, next), "{cause:?}");
        // Where there was to be another life and is none, it has failed.
        let (said, mut lived) = lives(Some(0));
        let (limited, gone) = match verdict {
            Verdict::Restart => (Verdict::Limit, Next::Gone(false)),
            _ => (verdict, next),
        };
        assert_eq!((said, lived.over(Outcome::Freed)), (limited, gone), "{cause:?}");
        let (_, mut lived) = lives(None);
        lived.told_to_go();
        assert_eq!(lived.over(Outcome::Freed), Next::Gone(true), "{cause:?}: as somebody has said");
        let (_, mut lived) = lives(None);
        assert_eq!(lived.over(Outcome::Lost), Next::Gone(false), "{cause:?}");
        assert!(lived.is_lost() && !lived.begin_anew());
    }
    let actions = OnExit { poweroff: again, reboot: no, crash: no };
    let mut lives = Lives::new();
    assert_eq!(lives.ended(Cause::PowerOff, actions, None), Verdict::Restart);
    assert_eq!(lives.over(Outcome::Freed), Next::Restart(0));
    assert_eq!(lives.ended(Cause::Crash, actions, None), Verdict::Destroy);
    assert_eq!(lives.over(Outcome::Freed), Next::Gone(false));
}

#[test]
fn one_that_could_not_be_made_can_be_tried_again_unless_it_has_lost_memory() {
    let mut lives = Lives::new();
    lives.could_not_be_made(false);
    lives.told_to_go();
    assert!(lives.is_unmade() && lives.is_unwanted() && lives.begin_anew());
    assert!(!lives.is_unmade() && !lives.is_unwanted());
    lives.could_not_be_made(true);
    assert!(lives.is_unmade() && lives.is_lost() && !lives.begin_anew() && lives.is_unmade());
}

/// What is seen to be wrong of a machine in which such steps are done.
fn play(has_iommu: bool, fault: Option<Fault>, steps: &[u8]) -> BTreeSet<&'static str> {
    let mut world = World::new(has_iommu, fault);
    steps.iter().for_each(|step| world.act(*step));
    world.settle();
    // And all that lives can end.
    (0..4).for_each(|number| world.end(number, Cause::PowerOff));
    world.settle();
    world.wrong().clone()
}

/// Steps of a machine from a number: the same each time.
fn steps(seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        // Marsaglia, Xorshift RNGs (2003).
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 11) as u8
    };
    (0..120).map(|_| next()).collect()
}

/// What machines with a fault are seen to do wrong.
fn seen(fault: Fault) -> BTreeSet<&'static str> {
    let machines = (0..400).flat_map(|seed| [(seed, false), (seed, true)]);
    machines.flat_map(|(seed, has_iommu)| play(has_iommu, Some(fault), &steps(seed))).collect()
}

#[test]
fn a_course_with_a_step_left_out_is_found_out() {
    const REACHED: &str = "free memory is reached";
    const TOLD: &str = "guests are told something else than what their backend's devices can do";
    const FOR_EVER: &str = "an end waits for nobody";
    const ONCE: &str = "guests are told once of each end";
    for (fault, what) in [
        (Fault::Leave, "a domain is taken apart with what is others'"),
        (Fault::LetGo, REACHED),
        (Fault::Stop, REACHED),
        (Fault::Block, REACHED),
        (Fault::Stuck, REACHED),
        (Fault::Reset, REACHED),
        (Fault::Tell, ONCE),
        (Fault::Tell, FOR_EVER),
        (Fault::TellEarly, TOLD),
        (Fault::TellWrong, REACHED),
        (Fault::TellTwice, ONCE),
        (Fault::Scrub, "memory is freed as its guest left it"),
        (Fault::Keep, REACHED),
        (Fault::Revoked, REACHED),
        (Fault::Wake, FOR_EVER),
        (Fault::Again, "a domain that has lost memory lives again"),
    ] {
        let seen = seen(fault);
        assert!(seen.contains(&what), "{fault:?}: {seen:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever ends, in whatever order, and whatever the machine's parts answer meanwhile.
    #[test]
    fn whatever_happens_no_memory_is_freed_that_is_reached(
        steps in proptest::collection::vec(any::<u8>(), 0..200),
        has_iommu in any::<bool>(),
    ) {
        prop_assert_eq!(play(has_iommu, None, &steps), BTreeSet::new());
    }
}
