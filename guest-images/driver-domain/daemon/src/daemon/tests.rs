//! The whole daemon, with its threads, against a Caisson and guests of the tests' own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::*;
use crate::host::fake::{Fake, Guest, RAM};
use crate::testing::{Driver, file};

const BLOCK: u32 = 2;
/// A disk of domain 1.
const DISK: u16 = 33;
const RINGS: u64 = RAM.0;
const HEADER: u64 = RAM.0 + 0x4000;
const STATUS: u64 = RAM.0 + 0x4010;
const DATA: u64 = RAM.0 + 0x1_0000;
const READY: u32 = 15;
const BROKEN: u32 = READY | 64;

/// A machine with a disk and a daemon.
struct Machine {
    fake: Arc<Fake>,
    daemon: Daemon,
    disk: File,
}

/// Steps of the daemon until `done`.
fn until(daemon: &mut Daemon, mut done: impl FnMut(&Daemon) -> bool) {
    for _ in 0..20_000 {
        if done(daemon) {
            return;
        }
        daemon.step(Some(Duration::from_millis(1))).unwrap();
    }
    panic!("it does not come: {:?}", daemon.status());
}

impl Machine {
    fn new() -> Self {
        let fake = Fake::new();
        let disk = file(1 << 20);
        fake.add(DISK, BLOCK, "web", &parameters(&disk));
        let mut daemon = Daemon::new(Arc::clone(&fake) as Arc<dyn Host>, Guests::default()).unwrap();
        daemon.refresh().unwrap();
        until(&mut daemon, |_| fake.record(DISK).state == record::DESCRIBED);
        Self { fake, daemon, disk }
    }

    fn start(&mut self) -> (Guest, Driver) {
        let guest = self.fake.start(DISK);
        let driver = Driver::new(&guest.memory, RINGS, 16);
        let fake = Arc::clone(&self.fake);
        until(&mut self.daemon, |_| fake.record(DISK).state & record::ATTACHED != 0);
        guest.init(0, &[driver.state]);
        (guest, driver)
    }
}

fn parameters(disk: &File) -> String {
    format!("path=/proc/self/fd/{}\nformat=raw\nread_only=false\nserial=A1\n", disk.as_raw_fd())
}

/// Has `sector` written with `value`, without waiting.
fn write(guest: &Guest, driver: &mut Driver, sector: u64, value: u8) {
    driver.put(HEADER, 1_u32);
    driver.put(HEADER + 8, sector);
    driver.put(STATUS, 0xff_u8);
    driver.fill(DATA, &[value; 512]);
    driver.add(&[(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)]);
    guest.notify(0);
}

fn sector(disk: &File, sector: u64) -> u8 {
    let mut bytes = [0; 512];
    disk.read_exact_at(&mut bytes, sector * 512).unwrap();
    bytes[511]
}

#[test]
fn a_guest_comes_works_and_goes() {
    let mut machine = Machine::new();
    assert_eq!(machine.fake.record(DISK).state, record::DESCRIBED);
    for life in 1..3_u16 {
        let (guest, mut driver) = machine.start();
        assert_eq!(guest.status(), READY);
        for turn in 1..4 {
            write(&guest, &mut driver, turn.into(), turn as u8);
            until(&mut machine.daemon, |_| driver.used_index() == turn);
            assert_eq!(driver.get::<u8>(STATUS), 0);
            assert_eq!(sector(&machine.disk, turn.into()), turn as u8);
        }
        assert!(machine.fake.interrupts(DISK) > 0);
        assert_eq!(machine.daemon.status()[0].name, "web disk 1");
        assert_eq!(machine.daemon.status()[0].stage, "attached");
        machine.fake.end(DISK);
        let fake = Arc::clone(&machine.fake);
        until(&mut machine.daemon, |_| fake.record(DISK).state == record::DESCRIBED);
        assert_eq!(fake.open_ports(), 1, "life {life}");
    }
}

#[test]
fn a_reset_waits_for_the_device_and_begins_anew() {
    let mut machine = Machine::new();
    let (mut guest, mut driver) = machine.start();
    for round in 1..5 {
        write(&guest, &mut driver, round, 9);
        // The reset comes while the request may be under way; the guest's thread waits in it, as its vCPU would.
        let resetting = thread::spawn(move || {
            guest.reset();
            guest
        });
        until(&mut machine.daemon, |_| resetting.is_finished());
        let reset = resetting.join().unwrap();
        driver = Driver::new(&reset.memory, RINGS, 16);
        reset.init(0, &[driver.state]);
        write(&reset, &mut driver, 40 + round, 7);
        until(&mut machine.daemon, |_| driver.used_index() == 1);
        assert_eq!(sector(&machine.disk, 40 + round), 7);
        guest = reset;
    }
}

#[test]
fn a_driver_that_breaks_its_ring_loses_its_device_until_it_resets_it() {
    let mut machine = Machine::new();
    let (guest, mut driver) = machine.start();
    driver.set_available(1000);
    guest.notify(0);
    until(&mut machine.daemon, |_| guest.status() == BROKEN);
    assert_eq!(guest.transport.read(0x60, 4) & 2, 2, "it is told by an interrupt");
    let resetting = thread::spawn(move || {
        guest.reset();
        guest
    });
    until(&mut machine.daemon, |_| resetting.is_finished());
    let guest = resetting.join().unwrap();
    let mut driver = Driver::new(&guest.memory, RINGS, 16);
    guest.init(0, &[driver.state]);
    write(&guest, &mut driver, 3, 3);
    until(&mut machine.daemon, |_| driver.used_index() == 1);
    assert_eq!(sector(&machine.disk, 3), 3);
}

#[test]
fn the_next_daemon_goes_on_where_the_rings_are() {
    let mut machine = Machine::new();
    let (guest, mut driver) = machine.start();
    write(&guest, &mut driver, 1, 1);
    until(&mut machine.daemon, |_| driver.used_index() == 1);
    // It dies: its thread sleeps from now on, for nobody tells it anything. What it would have claimed is another file.
    let Machine { fake, daemon, .. } = machine;
    fake.forget_ports();
    std::mem::forget(daemon);
    write(&guest, &mut driver, 2, 2);
    let other = file(1 << 20);
    fake.set_parameters(DISK, &parameters(&other));
    let mut daemon = Daemon::new(Arc::clone(&fake) as Arc<dyn Host>, Guests::default()).unwrap();
    daemon.refresh().unwrap();
    until(&mut daemon, |_| driver.used_index() == 2);
    assert_eq!((sector(&other, 1), sector(&other, 2)), (0, 2), "what was done is not done again");
    assert_eq!(guest.status(), READY);
}

#[test]
fn a_guest_that_has_ended_is_let_go_of_without_its_file() {
    let mut machine = Machine::new();
    let (_guest, _driver) = machine.start();
    let Machine { fake, daemon, .. } = machine;
    // The daemon dies, then its guest ends; the file is not there for the next one.
    fake.forget_ports();
    std::mem::forget(daemon);
    fake.end(DISK);
    fake.set_parameters(DISK, "path=/nowhere/disk.img\n");
    assert_ne!(fake.record(DISK).state & record::ATTACHED, 0);
    let mut daemon = Daemon::new(Arc::clone(&fake) as Arc<dyn Host>, Guests::default()).unwrap();
    daemon.refresh().unwrap();
    until(&mut daemon, |_| fake.record(DISK).state & (record::ATTACHED | record::ENDED) == 0);
}

#[test]
fn devices_that_are_too_many_are_told() {
    let fake = Fake::new();
    let caisson = Caisson::new(Arc::clone(&fake) as Arc<dyn Host>);
    for channel in 0..1030 {
        fake.add(channel, 77, "web", "");
        let (records, more) = caisson.list().unwrap();
        let all = usize::from(channel) + 1;
        assert_eq!((records.len(), more as usize), (all.min(1024), all.saturating_sub(1024)));
    }
}

#[test]
fn a_file_that_is_missing_is_waited_for() {
    let fake = Fake::new();
    fake.add(DISK, BLOCK, "web", "path=/nowhere/disk.img\n");
    let mut daemon = Daemon::new(Arc::clone(&fake) as Arc<dyn Host>, Guests::default()).unwrap();
    daemon.refresh().unwrap();
    until(&mut daemon, |daemon| daemon.status()[0].stage == "listed");
    let complaint = &daemon.status()[0].complaint;
    assert!(complaint.contains("/nowhere/disk.img"), "{complaint}");
    assert_eq!(fake.record(DISK).state, 0);
    let disk = file(1 << 20);
    fake.set_parameters(DISK, &parameters(&disk));
    until(&mut daemon, |_| fake.record(DISK).state == record::DESCRIBED);
    assert_eq!((daemon.status()[0].stage, daemon.status()[0].complaint.as_str()), ("open", ""));
}

#[test]
fn what_nobody_serves_is_said() {
    let fake = Fake::new();
    fake.add(40, 77, "web", "");
    let mut daemon = Daemon::new(Arc::clone(&fake) as Arc<dyn Host>, Guests::default()).unwrap();
    daemon.refresh().unwrap();
    until(&mut daemon, |daemon| daemon.status()[0].complaint.contains("type 77"));
}

#[test]
fn a_file_that_is_busy_is_waited_for_a_moment() {
    let fake = Fake::new();
    let disk = file(1 << 20);
    let other = File::open(format!("/proc/self/fd/{}", disk.as_raw_fd())).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    fake.add(DISK, BLOCK, "web", &parameters(&disk));
    let mut daemon = Daemon::new(Arc::clone(&fake) as Arc<dyn Host>, Guests::default()).unwrap();
    daemon.refresh().unwrap();
    assert_eq!(daemon.status()[0].stage, "opening");
    drop(other);
    until(&mut daemon, |daemon| daemon.status()[0].stage == "open");
    assert_eq!(daemon.status()[0].complaint, "");
}

#[test]
fn a_device_that_is_lost_is_not_fought_for() {
    let mut machine = Machine::new();
    let (guest, _driver) = machine.start();
    machine.fake.lose(DISK);
    // A change makes the thread ask for the state.
    let resetting = thread::spawn(move || guest.reset());
    until(&mut machine.daemon, |daemon| daemon.status()[0].stage != "attached");
    assert_eq!(machine.daemon.status()[0].stage, "listed");
    resetting.join().unwrap();
}

#[test]
fn a_guest_has_its_file_while_daemons_come_and_go() {
    let folder = std::env::temp_dir().join(format!("caisson-daemon-guests-{}", std::process::id()));
    let path = folder.join(DISK.to_string());
    let fake = Fake::new();
    let disk = file(1 << 20);
    fake.add(DISK, BLOCK, "web", &parameters(&disk));
    let new = || Daemon::new(Arc::clone(&fake) as Arc<dyn Host>, Guests::in_folder(&folder)).unwrap();
    let mut daemon = new();
    daemon.refresh().unwrap();
    until(&mut daemon, |_| fake.record(DISK).state == record::DESCRIBED);
    assert!(!path.exists());
    let _guest = fake.start(DISK);
    until(&mut daemon, |_| path.exists());
    until(&mut daemon, |_| fake.record(DISK).state & record::ATTACHED != 0);
    // The next one has opened nothing yet.
    std::mem::forget(daemon);
    let other = file(1 << 20);
    fake.set_parameters(DISK, &parameters(&other));
    let mut daemon = new();
    daemon.refresh().unwrap();
    assert!(path.exists());
    until(&mut daemon, |daemon| daemon.status()[0].stage == "attached");
    // Between two lives it stays; at the end it goes.
    fake.end(DISK);
    until(&mut daemon, |_| fake.record(DISK).life == 0);
    daemon.refresh().unwrap();
    assert!(path.exists());
    fake.gone(DISK);
    until(&mut daemon, |_| !path.exists());
    std::fs::remove_dir(&folder).unwrap();
}

/// The domain with a disk is forgotten, and another one gets its number before the daemon looks again.
#[test]
fn a_number_that_is_anothers_has_anothers_device() {
    let mut machine = Machine::new();
    let other = file(2 << 20);
    let fake = Arc::clone(&machine.fake);
    fake.add(DISK, BLOCK, "next", &parameters(&other));
    until(&mut machine.daemon, |_| fake.record(DISK).state & record::DESCRIBED != 0);
    assert_eq!(machine.daemon.status()[0].name, "next disk 1");
    let (guest, mut driver) = machine.start();
    write(&guest, &mut driver, 1, 5);
    until(&mut machine.daemon, |_| driver.used_index() == 1);
    assert_eq!((sector(&other, 1), sector(&machine.disk, 1)), (5, 0));
}

/// What is over a source's rate is done later, though nobody tells its thread again; and it sleeps until then.
#[test]
fn what_waits_for_its_time_is_done_in_its_time() {
    const ENTROPY: u16 = 34;
    const REQUESTS: u16 = 8;
    let fake = Fake::new();
    fake.add(ENTROPY, 4, "web", "rate=1024\n");
    let mut daemon = Daemon::new(Arc::clone(&fake) as Arc<dyn Host>, Guests::default()).unwrap();
    daemon.refresh().unwrap();
    until(&mut daemon, |_| fake.record(ENTROPY).state == record::DESCRIBED);
    let guest = fake.start(ENTROPY);
    let mut driver = Driver::new(&guest.memory, RINGS, REQUESTS);
    until(&mut daemon, |_| fake.record(ENTROPY).state & record::ATTACHED != 0);
    assert_eq!(daemon.status()[0].name, "web entropy 2");
    guest.init(0, &[driver.state]);
    for _ in 0..REQUESTS {
        driver.add(&[(DATA, 64, true)]);
    }
    guest.notify(0);
    until(&mut daemon, |_| driver.used_index() == REQUESTS);
    for head in 0..REQUESTS {
        assert_eq!(driver.used(), Some((head, 64)));
    }
    let counters = daemon.status()[0].counters.clone();
    let counter = |name| counters.iter().find(|counter| counter.0 == name).map(|counter| counter.1);
    assert_eq!((counter("requests"), counter("bytes_to_guest")), (Some(8), Some(512)));
    // Two requests in each eighth of a second: three sleeps between them, and a few at the beginning and at the end.
    assert!(counter("sleeps").is_some_and(|sleeps| (3..20).contains(&sleeps)), "{counters:?}");
}
