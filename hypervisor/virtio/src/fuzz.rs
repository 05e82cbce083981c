//! Entry point for fuzz targets and property tests: a guest, its memory and a backend that do what the bytes say.
//!
//! After each step the invariants of the transport must hold; they are those of [`check`].

use alloc::vec;

use caisson_types::{Gpa, GuestMemory, SliceMemory};

use crate::{Change, Channel, Description, Effect, Entropy, Interrupt, RegisterPage, Status, register};

/// RAM of the guest.
const RAM: usize = 16 << 10;
const CONFIG: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
const WRITABLE: [u8; 12] = [0, 0, 0, 0, 0xff, 0xff, 0x0f, 0, 0, 0, 0, 1];

/// A device with more of everything than the entropy device has.
pub(crate) const DEVICE: Description<'static> = Description {
    device: 1,
    features: crate::features::SUPPORTED | 0b101,
    queues: &[8, 16, 4],
    config: &CONFIG,
    writable: &WRITABLE,
};

/// Registers with something behind them, in the order in which a driver comes to them.
const REGISTERS: [u64; 16] = [
    register::STATUS,
    register::DRIVER_FEATURES_SEL,
    register::DRIVER_FEATURES,
    register::QUEUE_SEL,
    register::QUEUE_NUM,
    register::QUEUE_DESC_LOW,
    register::QUEUE_DRIVER_LOW,
    register::QUEUE_DEVICE_LOW,
    register::QUEUE_DESC_HIGH,
    register::QUEUE_READY,
    register::QUEUE_NOTIFY,
    register::INTERRUPT_ACK,
    register::QUEUE_RESET,
    register::CONFIG + 4,
    register::CONFIG,
    register::DEVICE_FEATURES_SEL,
];

/// Values that get a driver on.
const VALUES: [u32; 16] =
    [0, 1, 2, 3, 4, 8, 11, 15, 16, 0x100, 0x400, 0x1000, 0x3000, 0x3ff0, 128, 0x3000_0000];

/// Plays `data`, eight bytes a step, against a device: an entropy device with its backend, or one whose backend the bytes
/// are as well.
///
/// # Panics
/// Where an invariant does not hold: a bug of Caisson's.
pub fn drive(data: &[u8]) {
    let _ = play(data);
}

/// The status that the device has in the end.
fn play(data: &[u8]) -> Status {
    let mut bytes = vec![0; RAM];
    let memory = SliceMemory::new(&mut bytes);
    let own = data.first().is_some_and(|first| first & 1 == 0);
    let description = if own { Entropy::DESCRIPTION } else { DEVICE };
    let Ok(channel) = Channel::new(&description, RegisterPage::boxed()) else { return Status::empty() };
    let mut entropy = own.then(Entropy::new);
    if own {
        let _ = channel.attach();
    }
    for step in data.chunks_exact(8) {
        let &[kind, place, a, b, c, d, e, f] = step else { continue };
        let number = u32::from_le_bytes([b, c, d, e]);
        let value = VALUES.get(usize::from(a)).copied().unwrap_or(number);
        let before = Watch::of(&channel);
        let effect = match kind & 15 {
            0..=6 => {
                let offset = REGISTERS[usize::from(place & 15)];
                channel.write(offset, 4, u64::from(value), &memory)
            }
            7 => channel.write(u64::from(place) << 4 | u64::from(f), a % 9, u64::from(number), &memory),
            8 => {
                let (offset, size) = (u64::from(place) << 4 | u64::from(f), 1 << (a & 3));
                let value = channel.read(offset, size);
                assert!(size == 8 || value >> (8 * size) == 0);
                Effect::Nothing
            }
            9 | 10 => {
                let at = u64::from(place) << 6 | u64::from(f & 63);
                let _ = memory.write(Gpa::new(at), &[a, b, c, d, e][..usize::from(f >> 6) + 1]);
                Effect::Nothing
            }
            _ if own => Effect::Nothing,
            11 => channel.acknowledge(channel.snapshot().change.wrapping_sub(u32::from(f & 1))),
            12 => channel.interrupt([Interrupt::Used, Interrupt::Config][usize::from(f & 1)]),
            13 => channel.set_config(usize::from(place & 15), &[a, b]).unwrap_or(Effect::Nothing),
            14 if f & 7 == 0 => channel.fail(),
            14 => {
                let taken = channel.take_notifications();
                assert_eq!(taken & !before.live, 0, "a notification of a queue that has none");
                Effect::Nothing
            }
            _ if channel.is_attached() => channel.detach(),
            _ => {
                let snapshot = channel.attach();
                assert_eq!(snapshot.pending, before.live, "a new backend looks at every queue");
                Effect::Nothing
            }
        };
        check(&channel, &before, effect);
        if let Some(entropy) = &mut entropy {
            let mut filled = 0;
            let served = entropy.serve(&channel, &memory, &mut |bytes| {
                filled += 1;
                bytes.fill(0xa5);
                bytes.len()
            });
            assert!(filled <= 8, "{filled} chains at a time");
            assert!(!channel.is_waiting(), "Caisson's own backend has nobody wait");
            let needs_reset = u64::from(Status::DEVICE_NEEDS_RESET.bits());
            assert!(served.is_ok() || channel.read(register::STATUS, 4) & needs_reset != 0);
        }
    }
    Status::from_bits_retain(channel.snapshot().status)
}

/// What of a device is looked at before and after a step.
#[derive(Debug)]
struct Watch {
    reasons: u64,
    status: Status,
    live: u64,
    attached: bool,
}

impl Watch {
    fn of(channel: &Channel) -> Self {
        let snapshot = channel.snapshot();
        let status = Status::from_bits_retain(snapshot.status);
        let serving = status.contains(Status::DRIVER_OK)
            && !status.intersects(Status::FAILED | Status::DEVICE_NEEDS_RESET);
        let ready = |&index: &u32| channel.queue(index as u16).is_some_and(|queue| queue.ready != 0);
        let live = (0..snapshot.queues).filter(ready).fold(0, |live, index| live | 1 << index);
        Self {
            reasons: channel.read(register::INTERRUPT_STATUS, 4),
            status,
            live: if serving { live } else { 0 },
            attached: channel.is_attached(),
        }
    }
}

/// What must hold after every step.
fn check(channel: &Channel, before: &Watch, effect: Effect) {
    let after = Watch::of(channel);
    let snapshot = channel.snapshot();
    // A new reason to interrupt is told.
    assert_eq!(after.reasons, channel.read(register::INTERRUPT_STATUS, 4));
    let told = matches!(effect, Effect::Interrupt | Effect::Changed(_));
    assert!(after.reasons & !before.reasons == 0 || told, "{before:?} {after:?} {effect:?}");
    assert!(effect != Effect::Interrupt || channel.has_interrupt());
    assert!(effect != Effect::Released || snapshot.waiting == 0);
    assert!(after.reasons == 0 || after.status.contains(Status::DRIVER_OK), "an interrupt before DRIVER_OK");
    // The status follows its order, and loses a bit by a reset alone.
    assert!(after.status.contains(before.status) || after.status.is_empty());
    let order = [Status::ACKNOWLEDGE, Status::DRIVER, Status::FEATURES_OK, Status::DRIVER_OK];
    assert!(order.is_sorted_by_key(|&step| !after.status.contains(step)), "{:?}", after.status);
    // What was agreed upon was offered.
    let own = snapshot.device == Entropy::DESCRIPTION.device;
    let offered = if own { Entropy::DESCRIPTION.features } else { DEVICE.features };
    let offered = offered | crate::features::VERSION_1;
    assert_eq!(snapshot.features & !offered, 0);
    assert_eq!(snapshot.features != 0, after.status.contains(Status::FEATURES_OK));
    // Nobody waits for a backend that is not there, and only queues that work have notifications.
    assert!(after.attached || snapshot.waiting == 0);
    assert_eq!(snapshot.pending & !after.live, 0);
    for index in 0..snapshot.queues as u16 {
        let Some(queue) = channel.queue(index) else { continue };
        assert!(queue.ready == 0 || queue.size.is_power_of_two());
    }
    match effect {
        Effect::Notify { queue } => {
            assert!(after.attached && after.live >> queue & 1 != 0 && snapshot.pending >> queue & 1 != 0);
        }
        Effect::Changed(Change::DriverOk) => assert_eq!(snapshot.pending, after.live),
        Effect::Changed(Change::Reset) => assert_eq!(after.live, 0),
        Effect::Changed(_) | Effect::Interrupt | Effect::Released | Effect::Nothing => {}
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    /// A driver's way to DRIVER_OK with queue 0 at fixed places, as steps of [`super::drive`], and whether each is taken.
    fn beginning(own: bool) -> Vec<u8> {
        let write = |register: u8, value: u32| {
            let [b, c, d, e] = value.to_le_bytes();
            [u8::from(!own), register, 0xff, b, c, d, e, 0]
        };
        let steps = [
            write(0, 1),
            write(0, 3),
            write(1, 1),
            write(2, 1),
            write(0, 11),
            write(5, 0x1000),
            write(6, 0x2000),
            write(7, 0x3000),
            write(9, 1),
            write(0, 15),
        ];
        steps.concat()
    }

    #[test]
    fn the_beginning_ends_with_a_device_that_runs() {
        for own in [true, false] {
            assert_eq!(super::play(&beginning(own)).bits(), 15);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn nothing_that_a_guest_does_breaks_a_promise(
            own: bool,
            begun: bool,
            more in proptest::collection::vec(any::<u8>(), 0..2400),
        ) {
            let mut data = if begun { beginning(own) } else { Vec::new() };
            data.extend(more);
            super::drive(&data);
        }
    }
}
