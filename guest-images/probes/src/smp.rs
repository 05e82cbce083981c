//! Several CPUs: starting them, telling them apart, and meeting.
//!
//! Each has its number, which is its APIC id, and a stack; tables and handlers are common to all. Only the boot CPU has a
//! task state, so that a double fault on another ends the machine.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use crate::apic;
use crate::{Shared, cpu, fail, time, trap};

global_asm!(include_str!("ap.S"), options(att_syntax));

/// The most CPUs.
pub const MOST: usize = 64;

/// The page that other CPUs start at, which nobody uses.
const PAGE: usize = 0x8000;
const GS_BASE: u32 = 0xc000_0101;

const ASSERT: u32 = 1 << 14;
const INIT: u32 = 5 << 8;
const STARTUP: u32 = 6 << 8;

/// Of each CPU: what GS points at is its number.
static NUMBERS: [Shared<u64>; MOST] = [const { Shared::new(0) }; MOST];
/// How often each CPU has started.
static STARTS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
/// What the other CPUs do.
static WORK: Shared<Option<fn()>> = Shared::new(None);

unsafe extern "C" {
    fn probe_ap_start();
    fn probe_ap_end();
}

/// How many CPUs there are, as CPUID tells (leaf 0xB, the level of the package).
#[must_use]
pub fn count() -> usize {
    (0..8)
        .map(|level| cpu::cpuid(0xb, level))
        .take_while(|r| r[2] >> 8 & 0xff != 0)
        .map(|r| r[1] & 0xffff)
        .max()
        .unwrap_or(1) as usize
}

/// The number of the CPU that asks.
#[must_use]
pub fn me() -> usize {
    let number: u64;
    // SAFETY: GS points at the number, from `name_me` on.
    unsafe { asm!("mov {}, gs:[0]", out(reg) number, options(nostack, readonly)) };
    number as usize
}

fn name_me(number: usize) {
    NUMBERS[number].set(number as u64);
    cpu::wrmsr(GS_BASE, NUMBERS[number].address() as u64);
}

/// How often the CPU of this number has started.
#[must_use]
pub fn starts(number: usize) -> u64 {
    STARTS[number].load(SeqCst)
}

/// Has the other CPUs do `work` when they start; whoever calls is CPU 0 from now on.
pub fn prepare(work: fn()) {
    name_me(0);
    WORK.set(Some(work));
    let start = probe_ap_start as *const () as usize;
    let end = probe_ap_end as *const () as usize;
    for offset in 0..end - start {
        cpu::write8(PAGE + offset, cpu::read8(start + offset));
    }
}

/// Sends INIT: the CPU stops, wherever it is.
pub fn init(number: usize) {
    apic::send(number as u32, INIT | ASSERT);
}

/// Sends the start-up IPI: a CPU that waits for it starts.
pub fn startup(number: usize) {
    apic::send(number as u32, STARTUP | ASSERT | (PAGE >> 12) as u32);
}

/// Starts a CPU, and waits until it has.
pub fn start(number: usize) {
    let before = starts(number);
    init(number);
    time::spin(1000);
    startup(number);
    wait("a CPU starts", || starts(number) == before + 1);
}

// SAFETY: no other function of that name exists.
#[unsafe(no_mangle)]
extern "C" fn probe_ap_main(number: usize) -> ! {
    name_me(number);
    trap::load_idt();
    STARTS[number].fetch_add(1, SeqCst);
    if let Some(work) = WORK.get() {
        work();
    }
    loop {
        cpu::cli();
        cpu::hlt();
    }
}

/// The vector of the timer that ends a short sleep.
const WAKE: u8 = 0x30;
/// Seconds after which what is waited for is lost.
const PATIENCE: u64 = 100;

/// Sets the timer's vector up on the CPU that calls.
pub fn own_timer() {
    trap::handle(WAKE, apic::count_and_eoi as trap::Handler);
    apic::write(apic::register::LVT_TIMER, apic::DEADLINE | u32::from(WAKE));
}

/// Waits for a condition, with interrupts on meanwhile and off afterwards: spinning for a while, then asleep for moments, so
/// that another can have the CPU.
pub fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = cpu::tsc() + time::tsc_hz() * PATIENCE;
    let nap = time::tsc_hz() / 5000;
    loop {
        for _ in 0..50 {
            if condition() {
                return;
            }
            cpu::take_interrupts();
        }
        let now = cpu::tsc();
        if now > limit {
            fail(
                file!(),
                line!(),
                format_args!("CPU {}: {what}: expected within {PATIENCE} s, got nothing", me()),
            );
        }
        cpu::wrmsr(apic::TSC_DEADLINE, now + nap);
        cpu::sti_hlt();
        cpu::cli();
    }
}

/// Where all CPUs meet.
#[derive(Debug)]
pub struct Barrier {
    here: AtomicUsize,
    turn: AtomicUsize,
}

impl Barrier {
    /// Where nobody has come yet.
    #[allow(clippy::new_without_default)]
    #[must_use]
    pub const fn new() -> Self {
        Self { here: AtomicUsize::new(0), turn: AtomicUsize::new(0) }
    }

    /// Waits until `all` have come.
    pub fn meet(&self, what: &str, all: usize) {
        let turn = self.turn.load(SeqCst);
        if self.here.fetch_add(1, SeqCst) + 1 == all {
            self.here.store(0, SeqCst);
            self.turn.store(turn + 1, SeqCst);
        } else {
            wait(what, || self.turn.load(SeqCst) != turn);
        }
    }
}

/// A lock that is only ever held for moments, with interrupts off.
#[derive(Debug)]
pub struct Lock(AtomicBool);

impl Lock {
    /// Free.
    #[allow(clippy::new_without_default)]
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Does `work` while it is held.
    pub fn with<T>(&self, work: impl FnOnce() -> T) -> T {
        wait("a lock", || !self.0.swap(true, SeqCst));
        let answer = work();
        self.0.store(false, SeqCst);
        answer
    }
}
