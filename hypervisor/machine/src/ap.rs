//! Starting the other processors: INIT, start-up IPI, once more if it does not answer (SDM vol. 3, section 11.4.4.1), one
//! after the other. One that fails is left out, for good: its stack and tables stay its own, whenever it wakes up.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arrayvec::ArrayString;
use caisson_boot::ApStart;
use caisson_locks::{Mutex, Rank};
use caisson_types::Hpa;

use crate::clock::Clock;
use crate::cpu::{self, Features};
use crate::gdt::ApTables;
use crate::memory::Stack;
use crate::percpu::{self, PerCpu};
use crate::{apic, paging};

/// Bytes of a CPU's stack.
const STACK_BYTES: usize = 64 << 10;
/// Milliseconds between INIT and the start-up IPI.
const INIT_MS: u64 = 10;
/// Milliseconds after which a start-up IPI is sent once more, and then given up.
const START_MS: [u64; 2] = [10, 1000];
/// Readings that the two TSCs are compared by.
const TSC_ROUNDS: u32 = 64;
/// A TSC may be ahead of or behind the boot CPU's by one part in so many of a second: what two readings cannot tell.
const TSC_TOLERANCE: u64 = 1_000_000;

/// Why a CPU could not be set up as the boot CPU is.
pub type Reason = ArrayString<120>;

/// Why a CPU is left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApError {
    /// The local APICs' mode cannot name it.
    NoX2Apic,
    /// No memory for its stacks.
    OutOfMemory,
    /// It did not come up.
    NoAnswer,
    /// It came up, but its TSC is so many ticks from the boot CPU's.
    Tsc(i64),
    /// It came up, but could not be set up as the boot CPU is.
    Refused(Reason),
}

impl fmt::Display for ApError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoX2Apic => f.write_str("its id needs x2APIC mode: turn that on in the firmware's setup"),
            Self::OutOfMemory => f.write_str("no memory for its stacks"),
            Self::NoAnswer => f.write_str("it does not start"),
            Self::Tsc(ticks) => {
                write!(f, "its TSC is {ticks} ticks from the boot CPU's: update the firmware")
            }
            Self::Refused(why) => f.write_str(why),
        }
    }
}

/// What a starting CPU tells: in this order.
mod stage {
    pub(super) const STARTING: u32 = 0;
    pub(super) const HERE: u32 = 1;
    pub(super) const READY: u32 = 2;
    pub(super) const REFUSED: u32 = 3;
}

/// How far the CPU is that is being started, which also says whose it is.
struct Start {
    cpu: &'static PerCpu,
    tables: Mutex<Option<ApTables>>,
    stage: AtomicU32,
    why: Mutex<Reason>,
    /// The question of [`compare_tsc`], and the answer.
    asked: AtomicU32,
    answered: AtomicU32,
    answer: AtomicU64,
    features: Features,
    /// Turns virtualisation on there.
    set_up: fn() -> Result<(), Reason>,
    /// Where it goes from there.
    main: fn() -> !,
}

/// Starts the CPU whose local APIC has this id, and waits until `set_up` has succeeded there; `main` is where it goes then.
///
/// # Errors
/// [`ApError`]: the CPU is left out.
///
/// # Safety
/// On the boot CPU, with interrupts off, one at a time. `trampoline` is the page of
/// `memory::place_trampoline`, and the CPU is nobody else's.
pub unsafe fn start(
    apic_id: u32,
    trampoline: Hpa,
    features: &Features,
    clock: &Clock,
    set_up: fn() -> Result<(), Reason>,
    main: fn() -> !,
) -> Result<(), ApError> {
    if !apic::reaches(apic_id) {
        return Err(ApError::NoX2Apic);
    }
    let stack = Stack::new(STACK_BYTES).ok_or(ApError::OutOfMemory)?;
    let tables = ApTables::new().ok_or(ApError::OutOfMemory)?;
    let start: &'static Start = alloc::boxed::Box::leak(alloc::boxed::Box::new(Start {
        cpu: percpu::create(apic_id),
        tables: Mutex::new(Rank::Start, Some(tables)),
        stage: AtomicU32::new(stage::STARTING),
        why: Mutex::new(Rank::Start, Reason::new()),
        asked: AtomicU32::new(0),
        answered: AtomicU32::new(0),
        answer: AtomicU64::new(0),
        features: *features,
        set_up,
        main,
    }));
    ApStart {
        root: paging::root(),
        stack_top: stack.top(),
        argument: core::ptr::from_ref(start) as u64,
        entry: enter,
    }
    .publish();
    let milliseconds = |ms: u64| clock.tsc_hz / 1000 * ms;
    let stage = || start.stage.load(Ordering::Acquire);
    apic::send_init(apic_id);
    let _ = cpu::wait_until(milliseconds(INIT_MS), || false);
    let came = START_MS.iter().any(|&ms| {
        apic::send_start_up(apic_id, (trampoline.as_u64() >> 12) as u8);
        cpu::wait_until(milliseconds(ms), || stage() != stage::STARTING)
    });
    if !came {
        // It must not take another one's stack when it wakes up after all.
        apic::send_init(apic_id);
        return Err(ApError::NoAnswer);
    }
    let skew = compare_tsc(start);
    if skew.unsigned_abs() > clock.tsc_hz / TSC_TOLERANCE {
        apic::send_init(apic_id);
        return Err(ApError::Tsc(skew));
    }
    // The last question lets it go on.
    start.asked.store(TSC_ROUNDS + 1, Ordering::Release);
    match cpu::wait_until(cpu::PATIENCE, || matches!(stage(), stage::READY | stage::REFUSED)) {
        true if stage() == stage::READY => Ok(()),
        true => Err(ApError::Refused(*start.why.lock())),
        false => Err(ApError::NoAnswer),
    }
}

/// How far the other CPU's TSC is certainly ahead of (or behind) this one's: 0 where its readings always fall between two
/// of this CPU's.
fn compare_tsc(start: &Start) -> i64 {
    // The other's reading minus this one's is at least `low` and at most `high`.
    let (mut low, mut high) = (i64::MIN, i64::MAX);
    for round in 1..=TSC_ROUNDS {
        let before = cpu::tsc();
        start.asked.store(round, Ordering::Release);
        if !cpu::wait_until(cpu::PATIENCE, || start.answered.load(Ordering::Acquire) == round) {
            return i64::MAX;
        }
        let after = cpu::tsc();
        let answer = start.answer.load(Ordering::Acquire);
        low = low.max(answer.wrapping_sub(after) as i64);
        high = high.min(answer.wrapping_sub(before) as i64);
    }
    if low > 0 {
        low
    } else if high < 0 {
        high
    } else {
        0
    }
}

/// The first Rust code on another CPU, on its stack, with the real page tables.
extern "C" fn enter(argument: u64) -> ! {
    // SAFETY: `start` put a reference there that lives for ever.
    let start: &'static Start = unsafe { &*(argument as *const Start) };
    // SAFETY: on the CPU itself, in the order that each part asks for, once. The tables were made for it.
    unsafe {
        percpu::load(start.cpu);
        if let Some(tables) = start.tables.lock().take() {
            tables.load();
        }
        #[cfg(target_os = "none")]
        crate::trap::load();
        paging::protect();
        if apic::init(&start.features).is_none() {
            refuse(start, Reason::from("its local APIC cannot be reached").unwrap_or_default());
        }
    }
    start.stage.store(stage::HERE, Ordering::Release);
    answer_tsc(start);
    if let Err(why) = (start.set_up)() {
        refuse(start, why);
    }
    percpu::publish(start.cpu);
    start.stage.store(stage::READY, Ordering::Release);
    (start.main)()
}

/// Answers [`compare_tsc`], until it has no more questions.
fn answer_tsc(start: &Start) {
    let mut last = 0;
    loop {
        let asked = start.asked.load(Ordering::Acquire);
        if asked != last {
            if asked > TSC_ROUNDS {
                return;
            }
            start.answer.store(cpu::tsc(), Ordering::Release);
            start.answered.store(asked, Ordering::Release);
            last = asked;
        }
        core::hint::spin_loop();
    }
}

fn refuse(start: &Start, why: Reason) -> ! {
    *start.why.lock() = why;
    start.stage.store(stage::REFUSED, Ordering::Release);
    cpu::halt_forever()
}
