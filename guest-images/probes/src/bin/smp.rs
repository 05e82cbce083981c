//! Several CPUs: they start by INIT and SIPI, count together, agree about the time, each has a timer, and interrupts of every
//! kind go from any of them to any other, in both modes of the APIC. What is sent is counted, and so is what arrives.
//!
//! `vcpus=N` tells how many there are to be; `rounds=N` how often each thing is done.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use caisson_probes::apic::{self, DEADLINE, TSC_DEADLINE, register::LDR, register::LVT_TIMER};
use caisson_probes::smp::{self, Barrier, Lock, MOST, me, wait};
use caisson_probes::trap::{self, vector::NMI};
use caisson_probes::{
    Frame, Shared, argument, check, check_eq, cpu, number, probe, random::Random, say, time,
};

probe!("smp", run_probe);

const ASSERT: u32 = 1 << 14;
const LOGICAL: u32 = 1 << 11;
const LOWEST: u32 = 1 << 8;
const NMI_MODE: u32 = 4 << 8;
const SELF: u32 = 1 << 18;
const ALL: u32 = 2 << 18;
const OTHERS: u32 = 3 << 18;

/// Vectors: the watchdog's, the sender's number behind `FROM`, and those of one purpose each.
const WATCHDOG: u8 = 0x31;
const FROM: u8 = 0x40;
const BALL: u8 = 0x90;
const OWN: u8 = 0x91;
const CAST: u8 = 0x92;
const TIMER: u8 = 0x93;

/// Seconds after which a CPU that sleeps was not woken.
const PATIENCE: u64 = 100;

/// A count for each CPU.
struct Counts([AtomicU64; MOST]);

impl Counts {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; MOST])
    }
}

static BARRIER: Barrier = Barrier::new();
static CPUS: Shared<usize> = Shared::new(0);
static ROUNDS: Shared<u64> = Shared::new(0);

/// Interrupts that arrived, by the one that sent them.
static ANSWERED: Counts = Counts::new();
/// NMIs, balls and the timer's interrupts, by the one that they arrived at.
static NMIS: Counts = Counts::new();
static BALLS: Counts = Counts::new();
static TIMES: Counts = Counts::new();
/// Interrupts to several at once that arrived, on all.
static CASTS: AtomicU64 = AtomicU64::new(0);

fn get(counts: &Counts, cpu: usize) -> u64 {
    counts.0[cpu].load(SeqCst)
}

fn add(counts: &Counts, cpu: usize) {
    counts.0[cpu].fetch_add(1, SeqCst);
}

/// A handler that does this.
macro_rules! counted {
    ($vector:expr, $work:expr) => {
        trap::handle(
            $vector,
            (|_: &mut Frame| {
                $work;
                apic::eoi();
            }) as trap::Handler,
        )
    };
}

fn run_probe() {
    let cpus = smp::count();
    check_eq!(cpus as u64, number("vcpus", cpus as u64), "CPUs");
    check!(cpus > 1, "there are several CPUs");
    CPUS.set(cpus);
    ROUNDS.set(number("rounds", 300));
    for sender in 0..MOST as u8 {
        trap::handle(
            FROM + sender,
            (|frame: &mut Frame| {
                add(&ANSWERED, frame.vector as usize - usize::from(FROM));
                apic::eoi();
            }) as trap::Handler,
        );
    }
    trap::handle(NMI, (|_: &mut Frame| add(&NMIS, me())) as trap::Handler);
    counted!(BALL, add(&BALLS, me()));
    trap::handle(OWN, apic::count_and_eoi as trap::Handler);
    counted!(CAST, _ = CASTS.fetch_add(1, SeqCst));
    counted!(TIMER, add(&TIMES, me()));
    counted!(WATCHDOG, check!(false, "CPU {} is woken", me()));
    apic::enable();
    smp::prepare(work);
    smp::own_timer();
    for cpu in 1..cpus {
        smp::start(cpu);
    }
    // Who runs does not start again.
    smp::startup(1);
    time::spin(1000);
    for cpu in 1..cpus {
        check_eq!(smp::starts(cpu), 1, "starts of CPU {}", cpu);
    }
    say!("{} CPUs have started", cpus);
    phases();
    restarts();
}

/// What the other CPUs do.
fn work() {
    apic::enable();
    smp::own_timer();
    if smp::starts(me()) > 1 {
        beat();
    }
    phases();
    beat();
}

fn phases() {
    for mode in 0..2 {
        if mode == 1 {
            apic::enable_x2();
        }
        let name = if mode == 0 { "xAPIC" } else { "x2APIC" };
        let phase = |what: &str, work: fn(u64)| {
            BARRIER.meet(what, CPUS.get());
            work(mode);
            BARRIER.meet(what, CPUS.get());
            if me() == 0 {
                say!("{}: {}", name, what);
            }
        };
        if mode == 0 {
            phase("sums", |_| sums());
            phase("one time", |_| one_time());
        }
        phase("timers", timers);
        phase("one to one", one_to_one);
        phase("wake-ups", wake_ups);
        phase("NMIs", nmis);
        phase("to itself", |_| to_itself());
        phase("to all", |_| to_all());
        phase("logical", logical);
    }
}

/// What all add to one word is its sum.
fn sums() {
    static SUM: AtomicU64 = AtomicU64::new(0);
    const EACH: u64 = 20_000;
    for _ in 0..EACH {
        SUM.fetch_add(1, SeqCst);
    }
    BARRIER.meet("the sum", CPUS.get());
    check_eq!(SUM.load(SeqCst), EACH * CPUS.get() as u64, "the sum of all CPUs");
}

/// Whoever reads the time-stamp counter later reads no less.
fn one_time() {
    static LOCK: Lock = Lock::new();
    static LAST: AtomicU64 = AtomicU64::new(0);
    for _ in 0..ROUNDS.get() {
        LOCK.with(|| {
            let (before, now) = (LAST.load(SeqCst), cpu::tsc());
            check!(now >= before, "CPU {}'s TSC {} is not before another's {}", me(), now, before);
            LAST.store(now, SeqCst);
        });
    }
}

/// Each CPU's own timer.
fn timers(_: u64) {
    let mut random = Random::new(me() as u64);
    cpu::wrmsr(TSC_DEADLINE, 0);
    apic::write(LVT_TIMER, DEADLINE | u32::from(TIMER));
    let start = get(&TIMES, me());
    for round in 1..=ROUNDS.get() / 10 {
        let due = cpu::tsc() + random.below(time::tsc_hz() / 1000);
        cpu::wrmsr(TSC_DEADLINE, due);
        while get(&TIMES, me()) < start + round {
            cpu::sti_hlt();
            cpu::cli();
        }
        check!(cpu::tsc() >= due, "the timer of CPU {} waits", me());
        check_eq!(get(&TIMES, me()), start + round, "interrupts of CPU {}'s timer", me());
    }
    smp::own_timer();
}

/// Each to anyone, again as soon as the last one has arrived: as many arrive as are sent.
fn one_to_one(mode: u64) {
    let mut random = Random::new(1 + me() as u64 + mode * 100);
    let start = get(&ANSWERED, me());
    for round in 1..=ROUNDS.get() {
        let to = (me() as u64 + 1 + random.below(CPUS.get() as u64 - 1)) % CPUS.get() as u64;
        for _ in 0..random.below(50) {
            cpu::pause();
        }
        apic::send(to as u32, ASSERT | (u32::from(FROM) + me() as u32));
        wait("an interrupt arrives", || get(&ANSWERED, me()) >= start + round);
        check_eq!(get(&ANSWERED, me()), start + round, "interrupts sent by CPU {}, arrived", me());
    }
}

/// Two throw a ball to each other. Who has not got it sleeps, with nothing but the other's interrupt to wake him.
fn wake_ups(mode: u64) {
    static AT: Counts = Counts::new();
    let (pair, other) = (me() / 2, me() ^ 1);
    if other >= CPUS.get() {
        return;
    }
    let mut random = Random::new(2 + me() as u64 + mode * 100);
    let rounds = ROUNDS.get() & !1;
    // The first one may come while this CPU still waits for the others.
    let mut caught = mode * rounds / 2;
    // No earlier deadline comes by the watchdog's vector.
    cpu::wrmsr(TSC_DEADLINE, 0);
    apic::write(LVT_TIMER, DEADLINE | u32::from(WATCHDOG));
    cpu::wrmsr(TSC_DEADLINE, cpu::tsc() + time::tsc_hz() * PATIENCE);
    for round in mode * rounds..(mode + 1) * rounds {
        if round as usize & 1 == me() & 1 {
            for _ in 0..random.below(300) {
                cpu::pause();
            }
            AT.0[pair].store(round + 1, SeqCst);
            apic::send(other as u32, ASSERT | u32::from(BALL));
            continue;
        }
        while get(&AT, pair) <= round {
            for _ in 0..random.below(30) {
                cpu::pause();
            }
            cpu::sti_hlt();
            cpu::cli();
        }
        // The ball may have been seen before its interrupt.
        caught += 1;
        while get(&BALLS, me()) < caught {
            cpu::take_interrupts();
        }
        check_eq!(get(&BALLS, me()), caught, "balls that CPU {} caught", me());
    }
    cpu::wrmsr(TSC_DEADLINE, 0);
    smp::own_timer();
}

/// Every other CPU sleeps or spins with interrupts off, and gets NMIs.
fn nmis(mode: u64) {
    static DONE: Counts = Counts::new();
    static LEFT: Counts = Counts::new();
    let mut random = Random::new(3 + me() as u64 + mode * 100);
    if me() & 1 == 1 {
        while get(&DONE, me()) <= mode {
            for _ in 0..random.below(200) {
                cpu::pause();
            }
            if random.below(2) == 0 {
                cpu::hlt();
            }
        }
        LEFT.0[me()].store(mode + 1, SeqCst);
        return;
    }
    let to = me() + 1;
    if to >= CPUS.get() {
        return;
    }
    let send = || apic::send(to as u32, ASSERT | NMI_MODE);
    let start = get(&NMIS, to);
    for round in 1..=ROUNDS.get() {
        for _ in 0..random.below(50) {
            cpu::pause();
        }
        send();
        wait("an NMI arrives", || get(&NMIS, to) >= start + round);
        check_eq!(get(&NMIS, to), start + round, "NMIs of CPU {}", to);
    }
    DONE.0[to].store(mode + 1, SeqCst);
    wait("the other wakes", || {
        send();
        get(&LEFT, to) > mode
    });
}

fn to_itself() {
    for _ in 0..ROUNDS.get() / 10 {
        apic::send(0, SELF | ASSERT | u32::from(OWN));
        check!(apic::requested(OWN), "CPU {}'s interrupt to itself", me());
        cpu::take_interrupts();
        check!(!apic::requested(OWN), "CPU {}'s interrupt to itself is taken", me());
    }
}

/// Sends what arrives at so many, and waits until it has.
fn cast(destination: u32, command: u32, receivers: u64) {
    let expected = CASTS.load(SeqCst) + receivers;
    apic::send(destination, command | ASSERT | u32::from(CAST));
    wait("an interrupt to several arrives", || CASTS.load(SeqCst) >= expected);
    check_eq!(CASTS.load(SeqCst), expected, "arrivals of {:#x} to {:#x}", command, destination);
}

/// Each in turn, or eight of many, to all others, and to all.
fn to_all() {
    let all = CPUS.get();
    for sender in (0..all).step_by(all.div_ceil(8)) {
        BARRIER.meet("the next sender", all);
        if sender == me() {
            for _ in 0..(ROUNDS.get() / all as u64).max(1) {
                cast(0, OTHERS, all as u64 - 1);
                cast(0, ALL, all as u64);
                cast(if apic::is_x2() { !0 } else { 0xff }, 0, all as u64);
            }
        }
    }
}

/// To sets of CPUs, and to one of a set. The flat model has room for eight, a cluster of x2APIC's for 16.
fn logical(mode: u64) {
    let all = CPUS.get() as u64;
    let mut random = Random::new(mode);
    if mode == 0 {
        apic::write(LDR, if me() < 8 { 1 << (24 + me()) } else { 0 });
    }
    BARRIER.meet("logical ids", CPUS.get());
    if me() != 0 {
        return;
    }
    let width = if mode == 0 { 8 } else { 16 };
    for _ in 0..ROUNDS.get() / 10 {
        let cluster = if mode == 0 { 0 } else { random.below(all.div_ceil(width)) };
        let members = (all - cluster * width).min(width);
        let set = 1 + random.below((1 << members) - 1);
        let destination = (cluster << 16 | set) as u32;
        cast(destination, LOGICAL, u64::from(set.count_ones()));
        cast(destination, LOGICAL | LOWEST, 1);
    }
}

static BEATS: AtomicU64 = AtomicU64::new(0);

/// Goes on until INIT: without leaving to the hypervisor, leaving all the time, or asleep for moments.
fn beat() -> ! {
    let way = smp::starts(me()) % 3;
    loop {
        BEATS.fetch_add(1, SeqCst);
        match way {
            0 => cpu::pause(),
            1 => _ = cpu::cpuid(0, 0),
            _ => {
                cpu::wrmsr(TSC_DEADLINE, cpu::tsc() + 10_000);
                cpu::sti_hlt();
                cpu::cli();
            }
        }
    }
}

/// INIT stops a CPU whatever it does, and a start-up IPI starts it anew.
fn restarts() {
    let all = CPUS.get();
    let times = if argument("rounds").is_some() { ROUNDS.get() / 10 } else { 12 };
    for round in 0..times {
        let beats = BEATS.load(SeqCst);
        wait("beats", || BEATS.load(SeqCst) > beats);
        for cpu in 1..all {
            smp::init(cpu);
        }
        wait("INIT stops all", || {
            let beats = BEATS.load(SeqCst);
            time::spin(200);
            beats == BEATS.load(SeqCst)
        });
        for cpu in 1..all {
            check_eq!(smp::starts(cpu), round + 1, "starts of CPU {} before its start-up IPI", cpu);
            smp::startup(cpu);
        }
        wait("all start again", || (1..all).all(|cpu| smp::starts(cpu) == round + 2));
    }
    let sent: u64 = (0..all).map(|cpu| get(&ANSWERED, cpu)).sum();
    let nmis: u64 = (0..all).map(|cpu| get(&NMIS, cpu)).sum();
    let balls: u64 = (0..all).map(|cpu| get(&BALLS, cpu)).sum();
    let casts = CASTS.load(SeqCst);
    say!("{} one to one, {} NMIs, {} wake-ups, {} to several, {} restarts", sent, nmis, balls, casts, times);
}
