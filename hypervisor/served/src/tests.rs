use alloc::vec;

use caisson_abi::io::{MAX_CONFIG, MAX_QUEUES};
use proptest::prelude::*;

use super::*;

const A: DomainId = DomainId(1);
const B: DomainId = DomainId(2);

fn description(kind: u32, config: u8) -> ChannelDescription {
    ChannelDescription {
        features: 0,
        device: kind,
        queues: 1,
        config_bytes: 1,
        queue_sizes: [8; MAX_QUEUES],
        config: [config; MAX_CONFIG],
        writable: [0; MAX_CONFIG],
    }
}

/// Two devices of one backend, and one of another.
fn served() -> Served {
    Served::new(vec![Device::new(0, 2, A), Device::new(1, 1, A), Device::new(2, 2, B)])
}

fn started() -> Served {
    let mut served = served();
    assert_eq!(served.describe(0, A, description(2, 0)), Ok(Described::Waiting));
    assert_eq!(served.describe(2, B, description(2, 0)), Ok(Described::Waiting));
    assert_eq!(served.describe(1, A, description(1, 0)), Ok(Described::Complete));
    served.started();
    served
}

#[test]
fn a_guest_starts_when_all_is_described() {
    let mut served = served();
    assert_eq!(served.describe(0, B, description(2, 0)), Err(CallError::Refused), "another's");
    assert_eq!(served.describe(3, A, description(2, 0)), Err(CallError::Refused));
    assert_eq!(served.describe(0, A, description(1, 0)), Err(CallError::Invalid), "another type");
    assert_eq!(served.attach(0, A), Err(CallError::NoSuchDomain));
    assert_eq!(served.describe(0, A, description(2, 0)), Ok(Described::Waiting));
    assert_eq!(served.describe(0, A, description(2, 1)), Ok(Described::Waiting), "once more");
    assert!(!served.is_described());
    assert_eq!((served.life(), started().life()), (0, 1));
}

#[test]
fn one_that_was_gone_can_come_again() {
    let mut served = started();
    served.ended();
    assert_eq!(served.let_go(), LetGo::Free);
    served.gone();
    assert_eq!(served.record_state(&served.devices()[0]) & record::GONE, record::GONE);
    served.returns();
    assert_eq!(served.record_state(&served.devices()[0]), record::DESCRIBED);
    assert!(served.is_described(), "it can be made at once");
    served.started();
    assert_eq!(served.life(), 2);
}

#[test]
fn a_living_guests_device_stays_what_it_is() {
    let mut served = started();
    assert_eq!(served.describe(0, A, description(2, 9)), Ok(Described::Living));
    assert_eq!(served.device(0, A).unwrap().description().unwrap().config[0], 9);
    let other = ChannelDescription { queues: 2, ..description(2, 9) };
    assert_eq!(served.describe(0, A, other), Err(CallError::Busy));
    served.ended();
    assert_eq!(served.let_go(), LetGo::Free);
    assert_eq!(served.describe(0, A, other), Ok(Described::Waiting), "for its next life");
}

#[test]
fn a_device_stays_what_it_is_while_its_guest_is_being_made() {
    let mut served = started();
    served.ended();
    assert_eq!(served.let_go(), LetGo::Free);
    served.making();
    let other = ChannelDescription { queues: 2, ..description(2, 9) };
    assert_eq!(served.describe(0, A, other), Err(CallError::Busy));
    assert_eq!(served.describe(0, A, description(2, 9)), Ok(Described::Living), "to be told when it lives");
    assert_eq!(served.attach(0, A), Err(CallError::NoSuchDomain));
    assert_eq!((served.life(), served.record_state(&served.devices()[0])), (0, record::DESCRIBED));
    served.started();
    served.unmade();
    assert_eq!(served.life(), 2, "it lives");
    served.ended();
    assert_eq!(served.let_go(), LetGo::Free);
    served.making();
    served.unmade();
    assert_eq!(served.describe(0, A, other), Ok(Described::Waiting), "it could not be made");
}

#[test]
fn memory_is_granted_while_a_device_is_attached() {
    let mut served = started();
    assert_eq!(served.attach(0, A), Ok(Attached::Grant));
    assert_eq!(served.attach(1, A), Ok(Attached::Granted));
    assert_eq!(served.attach(1, A), Ok(Attached::Granted), "anew");
    assert_eq!(served.attach(2, B), Ok(Attached::Grant));
    assert_eq!(served.detach(0, A), Ok(false));
    assert_eq!(served.detach(0, A), Err(CallError::NotConnected));
    assert!(!served.begin_revocation(A));
    assert_eq!(served.detach(1, A), Ok(true));
    assert_eq!(served.attach(1, A), Ok(Attached::Granted), "still there");
    assert_eq!(served.detach(1, A), Ok(true));
    assert!(!served.begin_revocation(B));
    assert!(served.begin_revocation(A));
    assert!(!served.begin_revocation(A));
    assert_eq!(served.attach(1, A), Err(CallError::Busy));
    served.revoked(A);
    assert_eq!(served.attach(1, A), Ok(Attached::Grant));
}

#[test]
fn a_guest_that_has_ended_waits_for_its_backends() {
    let mut served = started();
    assert_eq!(served.attach(0, A), Ok(Attached::Grant));
    assert_eq!(served.attach(2, B), Ok(Attached::Grant));
    served.ended();
    assert_eq!(served.attach(1, A), Err(CallError::NoSuchDomain));
    assert!(served.attached(0, A).is_ok(), "until it lets go");
    assert_eq!(served.detach(0, A), Ok(true));
    assert!(served.begin_revocation(A));
    served.revoked(A);
    assert_eq!(served.let_go(), LetGo::Used);
    assert_eq!(served.backend_ended(B), [2]);
    assert_eq!(served.let_go(), LetGo::Free);
    assert_eq!(served.life(), 0);
    served.started();
    assert_eq!(served.life(), 2);
}

#[test]
fn what_could_not_be_mapped_is_not_attached() {
    let mut served = started();
    assert_eq!(served.attach(0, A), Ok(Attached::Grant));
    served.cannot_grant(A);
    assert_eq!(served.detach(0, A), Err(CallError::NotConnected));
    // A part may be mapped: it is no grant for the guest's other devices, nor at a second attempt.
    assert_eq!((served.attach(0, A), served.attach(1, A)), (Err(CallError::Busy), Err(CallError::Busy)));
    assert!(served.begin_revocation(A));
    assert_eq!(served.attach(1, A), Err(CallError::Busy));
    served.revoked(A);
    assert_eq!(served.attach(1, A), Ok(Attached::Grant));
    served.cannot_grant(A);
    served.ended();
    assert_eq!(served.let_go(), LetGo::Used);
    assert!(served.begin_revocation(A));
    served.revoked(A);
    assert_eq!(served.let_go(), LetGo::Free);
}

#[test]
fn a_guest_whose_backend_is_lost_ends_without_its_memory() {
    let mut served = started();
    assert_eq!(served.attach(0, A), Ok(Attached::Grant));
    assert_eq!(served.attach(1, A), Ok(Attached::Granted));
    assert_eq!(served.attach(2, B), Ok(Attached::Grant));
    assert_eq!(served.backend_lost(A), [0, 1]);
    assert_eq!(served.attached(0, A).err(), Some(CallError::NotConnected));
    assert_eq!(served.attach(0, A), Err(CallError::Busy), "never again");
    assert!(!served.begin_revocation(A), "there is nobody to do it");
    assert_eq!(served.backend_lost(A), [0; 0], "once");
    served.ended();
    assert_eq!(served.let_go(), LetGo::Used, "the other one's devices are attached");
    assert_eq!(served.backend_ended(B), [2]);
    assert_eq!((served.let_go(), served.let_go()), (LetGo::Lost(A), LetGo::Lost(A)));
}

#[test]
fn what_cannot_be_revoked_is_lost_until_the_backend_ends() {
    let mut served = started();
    assert_eq!(served.attach(0, A), Ok(Attached::Grant));
    served.cannot_revoke(A);
    assert!(served.attached(0, A).is_ok(), "nobody revokes it");
    assert_eq!(served.detach(0, A), Ok(true));
    assert!(served.begin_revocation(A));
    served.cannot_revoke(A);
    served.revoked(A);
    assert_eq!(served.attach(1, A), Err(CallError::Busy));
    assert!(!served.begin_revocation(A), "once");
    let mut other = started();
    assert_eq!(other.attach(0, A), Ok(Attached::Grant));
    assert_eq!(other.detach(0, A), Ok(true));
    assert!(other.begin_revocation(A));
    other.cannot_revoke(A);
    served.ended();
    assert_eq!(served.let_go(), LetGo::Lost(A));
    // One that ends later has its memory back.
    assert_eq!(other.backend_ended(A), [0; 0]);
    other.ended();
    assert_eq!(other.let_go(), LetGo::Free);
}

proptest! {
    /// Whatever is called in whatever order: a guest is let go only when what its backends have mapped of it is nothing, or it is
    /// told that it is lost.
    #[test]
    fn no_grant_outlives_its_guest(steps in proptest::collection::vec((0..10u8, 0..4u16, 1..4u16, any::<bool>()), 0..200)) {
        let mut served = served();
        // What is mapped, what of that is not whole, what is being unmapped, and what cannot be.
        let (mut mapped, mut broken, mut unmapping, mut lost) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut living = false;
        for (step, slot, backend, whole) in steps {
            let backend = DomainId(backend);
            match step {
                0 => {
                    let kind = if slot == 1 { 1 } else { 2 };
                    let _ = served.describe(slot, backend, description(kind, 0));
                }
                1 if !living && served.life() == 0 && served.is_described() => {
                    served.started();
                    living = true;
                }
                2 | 3 => match served.attach(slot, backend) {
                    Ok(Attached::Grant) => {
                        prop_assert!(living && !mapped.contains(&backend) && !unmapping.contains(&backend));
                        prop_assert!(!lost.contains(&backend));
                        mapped.push(backend);
                        if !whole {
                            broken.push(backend);
                            served.cannot_grant(backend);
                        }
                    }
                    Ok(Attached::Granted) => {
                        prop_assert!(living && mapped.contains(&backend) && !broken.contains(&backend));
                    }
                    Err(_) => {}
                },
                4 => {
                    let _ = served.detach(slot, backend);
                }
                5 => {
                    served.ended();
                    living = false;
                }
                6 => if served.begin_revocation(backend) {
                    mapped.retain(|to| *to != backend);
                    broken.retain(|to| *to != backend);
                    unmapping.push(backend);
                },
                8 => if whole { served.making() } else { served.unmade() },
                7 => if let Some(backend) = unmapping.pop() {
                    if whole {
                        served.revoked(backend);
                    } else {
                        served.cannot_revoke(backend);
                        lost.push(backend);
                    }
                },
                _ => {
                    // Its tables go with it.
                    let had = mapped.contains(&backend) || unmapping.contains(&backend) || lost.contains(&backend);
                    for list in [&mut mapped, &mut broken, &mut unmapping, &mut lost] {
                        list.retain(|to| *to != backend);
                    }
                    if whole {
                        let _ = served.backend_ended(backend);
                    } else {
                        let _ = served.backend_lost(backend);
                        lost.extend(had.then_some(backend));
                    }
                }
            }
            for device in served.devices() {
                let attached = served.attached(device.slot, device.backend).is_ok();
                prop_assert!(!attached || mapped.contains(&device.backend) && !broken.contains(&device.backend));
                prop_assert!(!attached || served.life() != 0);
            }
            if served.life() != 0 {
                let nobodys = !living && mapped.is_empty() && unmapping.is_empty();
                match served.let_go() {
                    LetGo::Used => {}
                    LetGo::Free => prop_assert!(nobodys && lost.is_empty()),
                    LetGo::Lost(to) => prop_assert!(nobodys && lost.contains(&to)),
                }
            }
        }
    }
}
