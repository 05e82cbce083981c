use alloc::vec;

use caisson_types::{Gpa, SliceMemory};
use proptest::prelude::*;

use super::*;
use crate::features::{INDIRECT_DESC, RING_RESET, SUPPORTED, VERSION_1};
use crate::fuzz::DEVICE;

const RAM: usize = 64 << 10;

/// A device with its guest's memory, as a driver sees it.
struct Guest<'a> {
    channel: Channel,
    memory: SliceMemory<'a>,
}

impl<'a> Guest<'a> {
    fn new(bytes: &'a mut [u8]) -> Self {
        Self {
            channel: Channel::new(&DEVICE, RegisterPage::boxed()).unwrap(),
            memory: SliceMemory::new(bytes),
        }
    }

    fn write(&self, offset: u64, value: u32) -> Effect {
        self.channel.write(offset, 4, u64::from(value), &self.memory)
    }

    fn read(&self, offset: u64) -> u32 {
        self.channel.read(offset, 4) as u32
    }

    fn status(&self) -> u32 {
        self.read(register::STATUS)
    }

    fn take(&self, features: u64) {
        for (word, value) in [features as u32, (features >> 32) as u32].into_iter().enumerate() {
            assert_eq!(self.write(register::DRIVER_FEATURES_SEL, word as u32), Effect::Nothing);
            assert_eq!(self.write(register::DRIVER_FEATURES, value), Effect::Nothing);
        }
    }

    /// Up to FEATURES_OK.
    fn agree(&self, features: u64) -> u32 {
        for status in [1, 3] {
            assert_eq!(self.write(register::STATUS, status), Effect::Nothing);
        }
        self.take(features);
        assert_eq!(self.write(register::STATUS, 11), Effect::Nothing);
        self.status()
    }

    fn place(&self, queue: u32, size: u32, areas: [u64; 3]) {
        let writes = [
            (register::QUEUE_SEL, queue),
            (register::QUEUE_NUM, size),
            (register::QUEUE_DESC_LOW, areas[0] as u32),
            (register::QUEUE_DESC_HIGH, (areas[0] >> 32) as u32),
            (register::QUEUE_DRIVER_LOW, areas[1] as u32),
            (register::QUEUE_DRIVER_HIGH, (areas[1] >> 32) as u32),
            (register::QUEUE_DEVICE_LOW, areas[2] as u32),
            (register::QUEUE_DEVICE_HIGH, (areas[2] >> 32) as u32),
        ];
        for (offset, value) in writes {
            assert_eq!(self.write(offset, value), Effect::Nothing);
        }
    }

    /// Up to DRIVER_OK, with queues 0 and 2.
    fn start(&self) {
        assert_eq!(self.agree(SUPPORTED), 11);
        for queue in [0, 2] {
            self.place(queue, 4, AREAS);
            assert_eq!(self.write(register::QUEUE_READY, 1), Effect::Nothing);
            assert_eq!(self.read(register::QUEUE_READY), 1);
        }
        assert_eq!(self.write(register::STATUS, 15), Effect::Changed(Change::DriverOk));
        assert_eq!(self.status(), 15);
    }

    fn notify(&self, queue: u32) -> Effect {
        self.write(register::QUEUE_NOTIFY, queue)
    }
}

const AREAS: [u64; 3] = [0x1000, 0x2000, 0x3000];

#[test]
fn it_says_what_it_is() {
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    let known = [(0, 0x7472_6976), (4, 2), (8, 1), (0x0c, register::VENDOR), (0x70, 0), (0x60, 0), (0xfc, 0)];
    for (offset, value) in known {
        assert_eq!(guest.read(offset), value, "{offset:#x}");
    }
    for (word, value) in [DEVICE.features as u32, 0x101, 0, 0].into_iter().enumerate() {
        let _ = guest.write(register::DEVICE_FEATURES_SEL, word as u32);
        assert_eq!(guest.read(register::DEVICE_FEATURES), value);
    }
    for (queue, most) in [8, 16, 4, 0, 0].into_iter().enumerate() {
        let _ = guest.write(register::QUEUE_SEL, queue as u32);
        assert_eq!(guest.read(register::QUEUE_NUM_MAX), most);
    }
    for region in [0, 1, u32::MAX] {
        let _ = guest.write(register::SHM_SEL, region);
        for offset in (0xb0..=0xbc).step_by(4) {
            assert_eq!(guest.read(offset), u32::MAX, "no region has a length");
        }
    }
    // What can only be written, and what is not there.
    for offset in [0x14, 0x20, 0x24, 0x30, 0x38, 0x50, 0x64, 0x80, 0xac, 0x1c, 0x28, 0xf8, 0xc4] {
        assert_eq!(guest.read(offset), 0, "{offset:#x}");
    }
}

#[test]
fn control_registers_take_accesses_of_their_width_alone() {
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    for size in [0, 1, 2, 3, 5, 8, 255] {
        assert_eq!(guest.channel.read(0, size), 0);
        assert_eq!(guest.channel.write(register::STATUS, size, 1, &guest.memory), Effect::Nothing);
    }
    for offset in [0x6f, 0x71, 0x72, 0x73] {
        let _ = guest.write(offset, 1);
        assert_eq!(guest.read(offset), 0);
    }
    assert_eq!(guest.status(), 0);
}

/// Every write of the status from every status that a driver can get to, against section 3.1.1.
#[test]
fn each_transition_of_the_status_is_legal_or_not_taken() {
    let steps = [0, 1, 3, 11, 15];
    for (reached, &from) in steps.iter().enumerate() {
        for broken in [0, 64, 128, 192] {
            for value in 0..=255u32 {
                let mut bytes = vec![0; RAM];
                let guest = Guest::new(&mut bytes);
                guest.take(VERSION_1);
                for &step in &steps[1..=reached] {
                    let _ = guest.write(register::STATUS, step);
                }
                if broken & 64 != 0 {
                    let _ = guest.channel.fail();
                }
                if broken & 128 != 0 {
                    let _ = guest.write(register::STATUS, 128);
                }
                let start = from | broken;
                assert_eq!(guest.status(), start);
                let effect = guest.write(register::STATUS, value);
                let mut expected = start;
                for (bit, before) in [(1, 0), (2, 1), (8, 2), (4, 8)] {
                    if value & bit != 0 && expected & before == before && start & 192 == 0 {
                        expected |= bit;
                    }
                }
                expected |= value & 128;
                if value == 0 {
                    expected = 0;
                }
                assert_eq!(guest.status(), expected, "{value} on {start}");
                let change = match (value, start) {
                    (0, start) if start & 4 != 0 => Effect::Changed(Change::Reset),
                    (0, _) => Effect::Nothing,
                    _ if start & 4 == 0 && expected & 132 == 4 => Effect::Changed(Change::DriverOk),
                    (value, start) if value & 128 != 0 && start & 196 == 4 => {
                        Effect::Changed(Change::DriverFailed)
                    }
                    _ => Effect::Nothing,
                };
                assert_eq!(effect, change, "{value} on {start}");
            }
        }
    }
}

#[test]
fn features_are_agreed_upon_or_not() {
    let agree = |features: u64| {
        let mut bytes = vec![0; RAM];
        let guest = Guest::new(&mut bytes);
        (guest.agree(features), guest.channel.snapshot().features)
    };
    for good in [VERSION_1, VERSION_1 | 1, DEVICE.features, VERSION_1 | INDIRECT_DESC] {
        assert_eq!(agree(good), (11, good));
    }
    // Legacy drivers, and what was not offered: ACCESS_PLATFORM among it.
    for bad in [0, 1, INDIRECT_DESC, VERSION_1 | 2, VERSION_1 | 1 << 33, VERSION_1 | 1 << 34, u64::MAX] {
        assert_eq!(agree(bad), (3, 0));
    }
}

#[test]
fn features_of_words_that_are_not_there_are_refused_until_they_are_given_up() {
    let mut bytes = vec![0; RAM];
    for word in [2, 3, 4, u32::MAX] {
        let guest = Guest::new(&mut bytes);
        guest.take(VERSION_1);
        let _ = guest.write(register::DRIVER_FEATURES_SEL, word);
        let _ = guest.write(register::DRIVER_FEATURES, 1);
        let _ = guest.write(register::STATUS, 11);
        assert_eq!(guest.status(), 3, "word {word}");
        let _ = guest.write(register::STATUS, 0);
        assert_eq!(guest.agree(VERSION_1), 11);
        // Too late for others.
        guest.take(VERSION_1 | 1);
        assert_eq!(guest.channel.snapshot().features, VERSION_1);
    }
}

#[test]
fn a_queue_is_ready_only_in_ram() {
    let all = |size: u32, areas| (size, areas);
    let end = RAM as u64;
    let cases = [
        (all(0, AREAS), Refusal::Size(0)),
        (all(3, AREAS), Refusal::Size(3)),
        (all(16, AREAS), Refusal::Size(16)),
        (all(1 << 16, AREAS), Refusal::Size(1 << 16)),
        (all(u32::MAX, AREAS), Refusal::Size(u32::MAX)),
        (all(8, [0x1008, 0x2000, 0x3000]), Refusal::Unaligned(Gpa::new(0x1008))),
        (all(8, [0x1000, 0x2001, 0x3000]), Refusal::Unaligned(Gpa::new(0x2001))),
        (all(8, [0x1000, 0x2000, 0x3002]), Refusal::Unaligned(Gpa::new(0x3002))),
        (all(8, [end - 112, 0x2000, 0x3000]), Refusal::NotRam(Gpa::new(end - 112))),
        (all(8, [0x1000, end - 20, 0x3000]), Refusal::NotRam(Gpa::new(end - 20))),
        (all(8, [0x1000, 0x2000, end - 68]), Refusal::NotRam(Gpa::new(end - 68))),
        (all(8, [0x1000, 0x2000, !3]), Refusal::NotRam(Gpa::new(!3))),
    ];
    for ((size, areas), why) in cases {
        let mut bytes = vec![0; RAM];
        let guest = Guest::new(&mut bytes);
        assert_eq!(guest.agree(VERSION_1), 11);
        guest.place(0, size, areas);
        let refused = Effect::Changed(Change::Refused { queue: 0, why });
        assert_eq!(guest.write(register::QUEUE_READY, 1), refused);
        assert_eq!((guest.read(register::QUEUE_READY), guest.status()), (0, 75));
        assert!(!alloc::format!("{why}").is_empty());
        // Nothing is ready any more, nor gets DRIVER_OK, until the reset.
        guest.place(0, 8, AREAS);
        assert_eq!(guest.write(register::QUEUE_READY, 1), Effect::Nothing);
        assert_eq!(guest.write(register::STATUS, 79), Effect::Nothing);
        assert_eq!((guest.read(register::QUEUE_READY), guest.status()), (0, 75));
        assert_eq!(guest.write(register::STATUS, 0), Effect::Nothing);
        guest.start();
    }
    // The last places that are good.
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    assert_eq!(guest.agree(VERSION_1), 11);
    guest.place(0, 8, [end - 128, end - 22, end - 72]);
    assert_eq!(
        (guest.write(register::QUEUE_READY, 1), guest.read(register::QUEUE_READY)),
        (Effect::Nothing, 1)
    );
}

#[test]
fn a_queue_that_is_ready_does_not_change_and_none_is_before_features() {
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    guest.place(0, 8, AREAS);
    assert_eq!(
        (guest.write(register::QUEUE_READY, 1), guest.read(register::QUEUE_READY)),
        (Effect::Nothing, 0)
    );
    guest.start();
    let before = guest.channel.queue(0).unwrap();
    guest.place(0, 2, [0, 0, 0]);
    assert_eq!(guest.channel.queue(0), Some(before));
    assert_eq!((before.size, before.driver, before.ready), (4, 0x2000, 1));
    assert_eq!(guest.write(register::QUEUE_READY, 1), Effect::Nothing, "it is");
    // Queues that are not there.
    for queue in [3, 64, 65536, u32::MAX] {
        let _ = guest.write(register::QUEUE_SEL, queue);
        for value in [0, 1, 2] {
            assert_eq!(guest.write(register::QUEUE_READY, value), Effect::Nothing);
            assert_eq!(guest.write(register::QUEUE_RESET, value), Effect::Nothing);
        }
        assert_eq!((guest.read(register::QUEUE_READY), guest.notify(queue)), (0, Effect::Nothing));
    }
    assert_eq!(guest.channel.queue(3), None);
}

#[test]
fn a_notification_is_told_once() {
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    assert_eq!(guest.channel.attach().pending, 0);
    assert_eq!(guest.notify(0), Effect::Nothing, "before DRIVER_OK");
    guest.start();
    assert_eq!(guest.channel.take_notifications(), 0b101, "DRIVER_OK is one for every queue");
    assert_eq!(guest.notify(2), Effect::Notify { queue: 2 });
    assert_eq!((guest.notify(2), guest.notify(2)), (Effect::Nothing, Effect::Nothing));
    assert_eq!(guest.notify(0), Effect::Notify { queue: 0 });
    assert_eq!(guest.notify(1), Effect::Nothing, "it is not ready");
    assert_eq!((guest.channel.take_notifications(), guest.channel.take_notifications()), (0b101, 0));
    assert_eq!(guest.notify(2), Effect::Notify { queue: 2 });
}

#[test]
fn the_guest_waits_for_the_next_backend() {
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    guest.start();
    assert_eq!(guest.notify(0), Effect::Nothing, "nobody is there");
    let told = guest.channel.attach();
    assert_eq!((told.pending, told.status, told.queues, told.device), (0b101, 15, 3, 1));
    assert_eq!(guest.channel.take_notifications(), 0b101);
    assert_eq!(guest.channel.detach(), Effect::Nothing);
    assert!(!guest.channel.is_attached());
    assert_eq!(guest.notify(2), Effect::Nothing);
    // The one before may have left something undone in queue 0.
    assert_eq!(guest.channel.attach().pending, 0b101);
    assert_eq!(guest.status(), 15);
}

#[test]
fn the_line_is_the_interrupt_status() {
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    let (used, config) = (Interrupt::Used, Interrupt::Config);
    assert_eq!(guest.channel.interrupt(used), Effect::Nothing, "it does not run yet");
    guest.start();
    assert_eq!(guest.channel.interrupt(used), Effect::Interrupt);
    assert_eq!((guest.channel.has_interrupt(), guest.read(register::INTERRUPT_STATUS)), (true, 1));
    assert_eq!(guest.channel.interrupt(used), Effect::Nothing, "one for many");
    assert_eq!(guest.channel.interrupt(config), Effect::Interrupt, "another reason is an edge of its own");
    assert_eq!(guest.write(register::INTERRUPT_ACK, 1), Effect::Nothing, "the other is still there");
    assert!(guest.channel.has_interrupt());
    assert_eq!(guest.write(register::INTERRUPT_ACK, 0xffff_fffc), Effect::Nothing);
    assert_eq!(guest.write(register::INTERRUPT_ACK, 2), Effect::Nothing);
    assert!(!guest.channel.has_interrupt());
    assert_eq!(guest.write(register::INTERRUPT_ACK, 3), Effect::Nothing);
}

#[test]
fn a_reset_waits_for_the_backend() {
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    let _ = guest.channel.attach();
    guest.start();
    let _ = guest.channel.interrupt(Interrupt::Used);
    assert_eq!(guest.write(register::STATUS, 0), Effect::Changed(Change::Reset));
    assert!(guest.channel.is_waiting());
    assert_eq!(guest.status(), 15, "not done yet");
    assert_eq!(guest.notify(0), Effect::Nothing);
    assert_eq!(guest.channel.interrupt(Interrupt::Config), Effect::Nothing);
    assert_eq!(guest.channel.queue(0).unwrap().ready, 0);
    for (offset, value) in [(register::STATUS, 0), (register::STATUS, 1), (register::QUEUE_READY, 0)] {
        assert_eq!(guest.write(offset, value), Effect::Nothing);
    }
    let change = guest.channel.snapshot().change;
    assert_eq!(guest.channel.acknowledge(change.wrapping_sub(1)), Effect::Nothing, "of an earlier one");
    assert!(guest.channel.is_waiting());
    assert_eq!(guest.channel.acknowledge(change), Effect::Released);
    assert_eq!(
        (guest.status(), guest.channel.has_interrupt(), guest.channel.take_notifications()),
        (0, false, 0)
    );
    assert_eq!(guest.channel.queue(0).unwrap().size, 8, "as after power-on");
    assert_eq!(guest.channel.acknowledge(change), Effect::Nothing);
    guest.start();
    // A backend that is gone holds nothing up.
    assert_eq!(guest.write(register::STATUS, 0), Effect::Changed(Change::Reset));
    assert_eq!(guest.channel.detach(), Effect::Released);
    assert_eq!(guest.status(), 0);
    guest.start();
    assert_eq!(guest.write(register::STATUS, 0), Effect::Changed(Change::Reset));
    assert_eq!((guest.status(), guest.channel.is_waiting()), (0, false));
}

#[test]
fn the_end_of_a_queue_waits_for_the_backend() {
    for (by_reset, size) in [(false, 4), (true, 8)] {
        let mut bytes = vec![0; RAM];
        let guest = Guest::new(&mut bytes);
        let _ = guest.channel.attach();
        guest.start();
        let _ = guest.write(register::QUEUE_SEL, 0);
        let (offset, value) = if by_reset { (register::QUEUE_RESET, 1) } else { (register::QUEUE_READY, 0) };
        assert_eq!(guest.write(offset, value), Effect::Changed(Change::QueueStopped(0)));
        assert_eq!(guest.write(offset, value), Effect::Nothing, "once");
        assert_eq!(guest.read(register::QUEUE_READY), 1);
        assert_eq!(guest.read(register::QUEUE_RESET), u32::from(by_reset));
        assert_eq!((guest.notify(0), guest.channel.take_notifications()), (Effect::Nothing, 0b100));
        assert_eq!(guest.channel.queue(0).unwrap().ready, 0);
        assert_eq!(guest.notify(2), Effect::Notify { queue: 2 }, "the others go on");
        assert_eq!(guest.channel.acknowledge(guest.channel.snapshot().change), Effect::Released);
        assert_eq!((guest.read(register::QUEUE_READY), guest.read(register::QUEUE_RESET)), (0, 0));
        assert_eq!(guest.channel.queue(0).unwrap().size, size);
        guest.place(0, 4, AREAS);
        let ready = Effect::Changed(Change::QueueReady(0));
        assert_eq!((guest.write(register::QUEUE_READY, 1), guest.notify(0)), (ready, Effect::Nothing));
        assert_eq!(guest.channel.take_notifications(), 0b101, "a queue that starts is looked at");
    }
    // Before DRIVER_OK nobody has to be asked; and without the feature no queue is reset.
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    let _ = guest.channel.attach();
    assert_eq!(guest.agree(SUPPORTED & !RING_RESET), 11);
    guest.place(1, 16, AREAS);
    assert_eq!(
        (guest.write(register::QUEUE_READY, 1), guest.read(register::QUEUE_READY)),
        (Effect::Nothing, 1)
    );
    assert_eq!(
        (guest.write(register::QUEUE_RESET, 1), guest.read(register::QUEUE_READY)),
        (Effect::Nothing, 1)
    );
    assert_eq!(
        (guest.write(register::QUEUE_READY, 0), guest.read(register::QUEUE_READY)),
        (Effect::Nothing, 0)
    );
}

/// A vCPU waits for the end of a queue, the backend lets go, and another vCPU resets the device meanwhile: whoever comes first, the
/// first vCPU is told to go on.
#[test]
fn who_waits_for_a_backend_that_goes_is_released() {
    extern crate std;
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    for round in 0..2000 {
        let _ = guest.channel.attach();
        guest.start();
        let _ = guest.write(register::QUEUE_SEL, 0);
        assert_eq!(guest.write(register::QUEUE_READY, 0), Effect::Changed(Change::QueueStopped(0)));
        let channel = &guest.channel;
        let released = std::thread::scope(|scope| {
            let backend = scope.spawn(|| channel.detach());
            let _ = guest.write(register::STATUS, 0);
            backend.join().unwrap()
        });
        assert_eq!((released, channel.is_waiting(), guest.status()), (Effect::Released, false, 0), "{round}");
    }
}

#[test]
fn a_device_that_fails_tells_its_driver_and_stops() {
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    let _ = guest.channel.attach();
    guest.start();
    assert_eq!(guest.channel.fail(), Effect::Interrupt);
    assert_eq!((guest.status(), guest.read(register::INTERRUPT_STATUS)), (79, 2));
    assert_eq!(guest.channel.fail(), Effect::Nothing);
    assert_eq!(
        (guest.notify(0), guest.channel.interrupt(Interrupt::Used)),
        (Effect::Nothing, Effect::Nothing)
    );
    // A reset ends it, and it too waits for the backend, which may be at the rings still.
    assert_eq!(guest.write(register::STATUS, 0), Effect::Changed(Change::Reset));
    let _ = guest.channel.acknowledge(guest.channel.snapshot().change);
    guest.start();
    assert_eq!(guest.write(register::STATUS, 128), Effect::Changed(Change::DriverFailed));
    assert_eq!((guest.status(), guest.notify(0)), (143, Effect::Nothing));
}

#[test]
fn the_configuration_is_read_in_any_width_and_written_through_its_mask() {
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    let read = |at: u64, size| guest.channel.read(register::CONFIG + at, size);
    assert_eq!(
        (read(0, 1), read(1, 2), read(4, 4), read(0, 8)),
        (1, 0x302, 0x0807_0605, 0x0807_0605_0403_0201)
    );
    assert_eq!((read(10, 4), read(12, 4), read(0xeff, 8)), (0x0c0b, 0, 0));
    let write = |at: u64, size, value| guest.channel.write(register::CONFIG + at, size, value, &guest.memory);
    let changed = Effect::Changed(Change::Config { offset: 4, length: 4 });
    assert_eq!((write(4, 4, 0xffff_ffff), read(4, 4)), (changed, 0x080f_ffff));
    assert_eq!((write(0, 4, 0), read(0, 4)), (Effect::Nothing, 0x0403_0201));
    assert_eq!(write(12, 4, 0), Effect::Nothing);
    assert_eq!(write(0xef0, 8, u64::MAX), Effect::Nothing);
    let mut copy = [0; 16];
    assert_eq!(guest.channel.config(2, &mut copy), 10);
    assert_eq!(copy[..4], [3, 4, 0xff, 0xff]);
    assert_eq!(guest.channel.config(13, &mut copy), 0);
    // A reset leaves it.
    let _ = guest.write(register::STATUS, 0);
    assert_eq!(read(4, 4), 0x080f_ffff);
}

#[test]
fn a_new_configuration_has_a_new_generation_and_an_interrupt() {
    let mut bytes = vec![0; RAM];
    let guest = Guest::new(&mut bytes);
    assert_eq!(guest.channel.set_config(0, &[9]), Some(Effect::Nothing), "nobody is there to hear");
    assert_eq!(guest.read(register::CONFIG_GENERATION), 2, "one while it changed, one behind it");
    guest.start();
    assert_eq!(guest.channel.set_config(10, &[7, 7]), Some(Effect::Interrupt));
    assert_eq!((guest.read(register::CONFIG_GENERATION), guest.read(register::INTERRUPT_STATUS)), (4, 2));
    assert_eq!(guest.channel.set_config(11, &[1, 2]), None);
    assert_eq!(guest.channel.set_config(usize::MAX, &[1, 2]), None);
    assert_eq!((guest.read(register::CONFIG_GENERATION), guest.channel.read(0x10a, 2)), (4, 0x0707));
}

proptest! {
    /// Notifications against a set: one is told if it is new in it, and none is lost whenever the backend looks, dies or
    /// comes back.
    #[test]
    fn notifications_are_a_set(steps in proptest::collection::vec((0u8..5, 0u32..4), 0..100)) {
        let mut bytes = vec![0; RAM];
        let guest = Guest::new(&mut bytes);
        guest.start();
        let (mut set, mut attached) = (0b101u64, false);
        for (kind, queue) in steps {
            match kind {
                0 | 1 => {
                    let bit = 1u64 << queue & 0b101;
                    let new = bit & !set != 0 && attached;
                    set |= bit;
                    let effect = guest.notify(queue);
                    prop_assert_eq!(effect != Effect::Nothing, new);
                }
                2 if attached => {
                    prop_assert_eq!(guest.channel.take_notifications(), set);
                    set = 0;
                }
                3 => {
                    let _ = guest.channel.detach();
                    attached = false;
                }
                _ => {
                    prop_assert_eq!(guest.channel.attach().pending, 0b101);
                    (set, attached) = (0b101, true);
                }
            }
        }
    }
}
