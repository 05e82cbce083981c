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
    assert!(served.let_go());
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
    assert!(served.let_go());
    assert_eq!(served.describe(0, A, other), Ok(Described::Waiting), "for its next life");
}

#[test]
fn a_device_stays_what_it_is_while_its_guest_is_being_made() {
    let mut served = started();
    served.ended();
    assert!(served.let_go());
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
    assert!(served.let_go());
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
    assert!(!served.let_go());
    assert_eq!(served.backend_ended(B), [2]);
    assert!(served.let_go());
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
    assert!(!served.let_go());
    assert!(served.begin_revocation(A));
    served.revoked(A);
    assert!(served.let_go());
}

proptest! {
    /// Whatever is called in whatever order: a guest is let go only when what its backends have mapped of it is nothing.
    #[test]
    fn no_grant_outlives_its_guest(steps in proptest::collection::vec((0..10u8, 0..4u16, 1..4u16, any::<bool>()), 0..200)) {
        let mut served = served();
        // What is mapped, what of that is not whole, and what is being unmapped.
        let (mut mapped, mut broken, mut unmapping) = (Vec::new(), Vec::new(), Vec::new());
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
                    served.revoked(backend);
                },
                _ => {
                    // Its tables go with it.
                    let _ = served.backend_ended(backend);
                    mapped.retain(|to| *to != backend);
                    broken.retain(|to| *to != backend);
                    unmapping.retain(|to| *to != backend);
                }
            }
            for device in served.devices() {
                let attached = served.attached(device.slot, device.backend).is_ok();
                prop_assert!(!attached || mapped.contains(&device.backend) && !broken.contains(&device.backend));
                prop_assert!(!attached || served.life() != 0);
            }
            if served.life() != 0 && served.let_go() {
                prop_assert!(!living && mapped.is_empty() && unmapping.is_empty());
            }
        }
    }
}
