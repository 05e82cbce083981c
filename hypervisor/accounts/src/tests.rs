//! The sums, against a model that charges every tick by itself; and readers in other threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const VCPUS: usize = 3;

/// What happens next on the one CPU, if it can.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Time goes on.
    Pass(u32),
    /// The CPU takes up a vCPU that is ready.
    Take(usize),
    Enter,
    Exit(usize),
    /// The CPU puts its vCPU down.
    Put(bool),
    Wake(usize),
    Sleep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => any::<u32>().prop_map(Step::Pass),
        1 => (0..VCPUS).prop_map(Step::Take),
        3 => Just(Step::Enter),
        3 => (0..ExitClass::COUNT).prop_map(Step::Exit),
        1 => any::<bool>().prop_map(Step::Put),
        1 => (0..VCPUS).prop_map(Step::Wake),
        1 => Just(Step::Sleep),
    ];
    proptest::collection::vec(step, 0..200)
}

/// Ticks by what they were spent on.
#[derive(Default, Debug)]
struct Model {
    cpu: CpuTimes,
    /// Blocked, ready, running, in the guest.
    vcpus: [[u64; 4]; VCPUS],
    counts: Vec<[Count; VCPUS]>,
}

proptest! {
    #[test]
    fn every_tick_is_in_exactly_one_account(begin in 0..u64::MAX / 4, steps in steps()) {
        let cpu = CpuAccount::new();
        cpu.begin(begin);
        let vcpus: [_; VCPUS] = core::array::from_fn(|_| VcpuAccount::new(begin, Activity::Ready));
        let mut model = Model { counts: vec![[Count::default(); VCPUS]; ExitClass::COUNT + 1], ..Model::default() };
        let (mut now, mut asleep, mut in_guest, mut exited) = (begin, false, false, begin);
        let mut charge = Charge::TURN;
        let index = |charge: Charge| charge.class().map_or(ExitClass::COUNT, ExitClass::index);
        let mut turn: Option<(usize, Meter<'_>)> = None;
        for step in steps {
            match step {
                Step::Pass(ticks) => {
                    let ticks = u64::from(ticks);
                    now += ticks;
                    *if in_guest {
                        &mut model.cpu.guests
                    } else if asleep {
                        &mut model.cpu.idle
                    } else {
                        &mut model.cpu.hypervisor
                    } += ticks;
                    for (i, vcpu) in vcpus.iter().enumerate() {
                        model.vcpus[i][vcpu.activity() as usize] += ticks;
                    }
                    if let Some((i, _)) = &turn {
                        if in_guest {
                            model.vcpus[*i][3] += ticks;
                        } else {
                            model.counts[index(charge)][*i].ticks += ticks;
                        }
                    }
                }
                Step::Take(i) if turn.is_none() && vcpus[i].activity() == Activity::Ready => {
                    cpu.wake(now);
                    asleep = false;
                    turn = Some((i, Meter::start(&cpu, &vcpus[i], now)));
                    (exited, charge) = (now, Charge::TURN);
                }
                Step::Enter if !in_guest => {
                    if let Some((i, meter)) = &turn {
                        model.counts[index(charge)][*i].count += 1;
                        meter.enter(charge, exited, now);
                        in_guest = true;
                    }
                }
                Step::Exit(class) if in_guest => {
                    (exited, charge) = (now, Charge::exit(ExitClass::ALL[class]));
                    in_guest = false;
                }
                Step::Put(blocks) if !in_guest => {
                    if let Some((i, meter)) = turn.take() {
                        model.counts[index(charge)][i].count += 1;
                        meter.stop(charge, exited, now, if blocks { Activity::Blocked } else { Activity::Ready });
                    }
                }
                Step::Wake(i) if vcpus[i].activity() == Activity::Blocked => vcpus[i].change(now, Activity::Ready),
                Step::Sleep if turn.is_none() => {
                    cpu.sleep(now);
                    asleep = true;
                }
                _ => {}
            }
            let times = cpu.times(now);
            if turn.is_none() || in_guest {
                prop_assert_eq!(times, model.cpu);
            } else {
                // The answer to an exit is not complete.
                let since = now - exited;
                prop_assert_eq!((times.guests, times.idle), (model.cpu.guests + since, model.cpu.idle));
            }
            prop_assert_eq!(times.elapsed(), now - begin);
            prop_assert_eq!(model.cpu.elapsed(), now - begin);
            for (vcpu, [blocked, ready, running, _]) in vcpus.iter().zip(&model.vcpus) {
                let times = vcpu.times().unwrap().at(now);
                prop_assert_eq!((times.blocked, times.ready, times.running), (*blocked, *ready, *running));
                prop_assert_eq!(times.stolen(), *ready);
                prop_assert_eq!(times.elapsed(), now - begin);
            }
        }
        // Whatever goes on ends, so that all is charged.
        if let Some((i, meter)) = turn.take() {
            if in_guest {
                (exited, charge) = (now, Charge::exit(ExitClass::Halt));
            }
            model.counts[index(charge)][i].count += 1;
            meter.stop(charge, exited, now, Activity::Blocked);
        }
        for (i, vcpu) in vcpus.iter().enumerate() {
            for class in ExitClass::ALL {
                prop_assert_eq!(vcpu.exits(class), model.counts[class.index()][i]);
            }
            prop_assert_eq!(vcpu.turns(), model.counts[ExitClass::COUNT][i]);
            let running = vcpu.times().unwrap().running;
            let guest = model.vcpus[i][3];
            prop_assert_eq!(guest + vcpu.turns().ticks + vcpu.all_exits().ticks, running);
        }
    }

    /// Another CPU's clock may be a little behind: nothing is lost, nothing is charged twice.
    #[test]
    fn skew_between_cpus_keeps_the_sums(moments in proptest::collection::vec((0..1000u64, 0..3u32), 1..50)) {
        let vcpu = VcpuAccount::new(500, Activity::Ready);
        let mut latest = 500;
        for (now, to) in moments {
            vcpu.change(now, match to { 0 => Activity::Blocked, 1 => Activity::Ready, _ => Activity::Running });
            latest = latest.max(now);
            let times = vcpu.times().unwrap();
            prop_assert_eq!((times.since, times.elapsed()), (latest, latest - 500));
            prop_assert_eq!(times.at(0), times);
        }
    }
}

#[test]
fn a_cpu_that_is_read_early_shows_nothing_yet() {
    let cpu = CpuAccount::new();
    cpu.begin(1000);
    assert_eq!(cpu.times(999), CpuTimes::default());
    cpu.take_up(1010);
    assert_eq!(cpu.times(1005), CpuTimes { guests: 0, hypervisor: 5, idle: 0 });
    cpu.put_down(1030);
    cpu.sleep(1030);
    cpu.sleep(1035);
    let times = cpu.times(1040);
    assert_eq!(times, CpuTimes { guests: 20, hypervisor: 10, idle: 10 });
    cpu.wake(1050);
    cpu.wake(1060);
    assert_eq!(cpu.times(1070).since(&times), CpuTimes { guests: 0, hypervisor: 20, idle: 10 });
}

/// A CPU at work and a reader in another thread: every snapshot's sums fit.
#[test]
fn readers_in_another_thread_see_sums_that_fit() {
    let done = Arc::new(AtomicBool::new(false));
    let cpu = Arc::new(CpuAccount::new());
    let vcpu = Arc::new(VcpuAccount::new(0, Activity::Ready));
    let writer = {
        let (done, cpu, vcpu) = (done.clone(), cpu.clone(), vcpu.clone());
        thread::spawn(move || {
            let mut now = 0;
            for round in 0..200_000u64 {
                let meter = Meter::start(&cpu, &vcpu, now);
                meter.enter(Charge::TURN, now, now + 1);
                let to = if round & 1 == 0 { Activity::Blocked } else { Activity::Ready };
                meter.stop(Charge::exit(ExitClass::Port), now + 4, now + 6, to);
                cpu.sleep(now + 7);
                cpu.wake(now + 10);
                vcpu.change(now + 10, Activity::Ready);
                now += 10;
            }
            done.store(true, Ordering::Release);
        })
    };
    let mut reads = 0u64;
    let mut last = 0;
    while !done.load(Ordering::Acquire) {
        let Some(times) = vcpu.times() else { continue };
        assert_eq!(times.elapsed(), times.since);
        assert!(times.since >= last);
        last = times.since;
        // Guest and idle time grow by 3 in each round of 10, in turn; the hypervisor's first tick is taken back.
        let times = cpu.times(u64::MAX / 8);
        if times.guests < u64::MAX / 16 && times.idle < u64::MAX / 16 {
            assert!(times.guests == times.idle || times.guests == times.idle + 3, "{times:?}");
        }
        reads += 1;
    }
    writer.join().unwrap();
    assert!(reads > 0);
    assert_eq!(vcpu.exits(ExitClass::Port), Count { count: 200_000, ticks: 400_000 });
}
