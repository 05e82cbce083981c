//! What things cost, in ticks of the TSC: for each a line `bench: NAME MEDIAN MIN MAX`. Under QEMU's `-icount shift=0` a
//! tick is an instruction.
//!
//! - Exits, where the cost of reading the TSC twice and of setting up registers has been taken off: over 1000 times.
//! - Interrupts, from the moment that a timer is due, or an IPI is sent, to the first instruction of its handler's code.
//! - With a second vCPU, what goes between the two.
//!
//! `what=ipi` leaves out everything but what goes to a second vCPU that has a CPU of its own. `what=load` counts the CPUID
//! exits of `ms=N` milliseconds instead, from the first half second after the domain's start: `bench: load EXITS MS`.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use caisson_probes::{
    Frame, Shared, apic, argument, cpu, number, probe, smp, time, trap, virtio, write_serial,
};

probe!("bench", run);

const TIMES: usize = 1000;
/// Vectors for the timer, for IPIs, and for measuring in user mode.
const TIMER: u8 = 0x40;
const IPI: u8 = 0x41;
const USER: u8 = 0x80;

/// KVM's hypercalls (Linux `Documentation/virt/kvm/x86/hypercalls.rst`), and Caisson's own that tells its version.
const SEND_IPI: u64 = 10;
const SCHED_YIELD: u64 = 11;
const VERSION: u64 = 0x4341_4953_0000_0000;

static WOKEN: Shared<u64> = Shared::new(0);
/// Hypercalls are VMMCALL.
static VMMCALL: Shared<bool> = Shared::new(false);
/// Turns of the second vCPU, and what it does in one.
static TURNS: AtomicU64 = AtomicU64::new(0);
static WAY: AtomicU64 = AtomicU64::new(SPIN);
/// How many IPIs each has got, and when the second was in its handler last.
static ARRIVED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static HANDLED: AtomicU64 = AtomicU64::new(0);

/// Does not leave to the hypervisor.
const SPIN: u64 = 0;
/// Gives the CPU back at once.
const YIELD: u64 = 1;
/// Sleeps until the first sends an interrupt, and answers by one.
const ANSWER: u64 = 2;
/// Sleeps until the first sends an interrupt.
const SLEEP: u64 = 3;

/// Measures `code`, with RAX, RCX and RDX given; the same without it is taken off.
macro_rules! measure {
    ($name:literal, $code:literal, $rax:expr, $rcx:expr, $rdx:expr) => {{
        let mut samples = [0u64; TIMES];
        let empty = sample!("", $rax, $rcx, $rdx);
        for sample in &mut samples {
            *sample = sample!($code, $rax, $rcx, $rdx).saturating_sub(empty);
        }
        report($name, &mut samples);
    }};
}

/// Ticks between two readings of the TSC around `code`.
macro_rules! sample {
    ($code:literal, $rax:expr, $rcx:expr, $rdx:expr) => {{
        let (start, end): (u64, u64);
        let (rax, rcx, rdx): (u64, u64, u64) = ($rax, $rcx, $rdx);
        // SAFETY: the code changes RAX, RBX, RCX and RDX at most.
        unsafe {
            asm!("mov r9, rbx", "rdtsc", "shl rdx, 32", "or rax, rdx", "mov r8, rax",
                "mov eax, r10d", "mov ecx, r11d", "mov edx, r12d",
                $code,
                "rdtsc", "shl rdx, 32", "or rax, rdx", "mov rbx, r9",
                out("rax") end, out("rcx") _, out("rdx") _, out("r8") start, out("r9") _,
                in("r10") rax, in("r11") rcx, in("r12") rdx);
        }
        end - start
    }};
}

fn report(name: &str, samples: &mut [u64]) {
    samples.sort_unstable();
    let (least, median, most) = (samples[0], samples[samples.len() / 2], samples[samples.len() - 1]);
    write_serial(format_args!("bench: {name} {median} {least} {most}\n"));
}

fn run() {
    if argument("what") == Some("load") {
        return load();
    }
    let vmcall =
        caisson_probes::run(&[0x0f, 0x01, 0xd9], &mut caisson_probes::Regs { rax: !0, ..Default::default() });
    let vmmcall = vmcall.is_ok();
    let apart = argument("what") == Some("ipi");
    if !apart {
        exits(vmmcall);
        virtio_exits();
        apic::enable_x2();
        x2apic();
        user_hypercall(vmmcall);
        wake_up("wake-up", cpu::sti_hlt);
        wake_up("timer", || {
            cpu::sti();
            while WOKEN.get() == 0 {}
        });
    }
    if smp::count() > 1 {
        apic::enable_x2();
        between(vmmcall, apart);
    }
}

/// The CPUID exits of a while.
fn load() {
    let hz = time::tsc_hz();
    let milliseconds = number("ms", 1000);
    let (begin, mut exits) = (hz / 2, 0u64);
    let end = begin + hz * milliseconds / 1000;
    while cpu::tsc() < begin {}
    while cpu::tsc() < end {
        for _ in 0..100 {
            let _ = cpu::cpuid(0, 0);
        }
        exits += 100;
    }
    write_serial(format_args!("bench: load {exits} {milliseconds}\n"));
}

/// A hypercall.
fn hypercall(vmmcall: bool, number: u64, arguments: [u64; 4]) -> u64 {
    let [a, b, c, d] = arguments;
    let answer;
    // SAFETY: none of those that are called here writes memory; RBX, which the compiler keeps for itself, is put back.
    unsafe {
        if vmmcall {
            asm!("xchg {a}, rbx", "vmmcall", "xchg {a}, rbx", a = inout(reg) a => _, inout("rax") number => answer,
                in("rcx") b, in("rdx") c, in("rsi") d, options(nostack));
        } else {
            asm!("xchg {a}, rbx", "vmcall", "xchg {a}, rbx", a = inout(reg) a => _, inout("rax") number => answer,
                in("rcx") b, in("rdx") c, in("rsi") d, options(nostack));
        }
    }
    answer
}

/// What the second vCPU does, for ever.
fn second() {
    apic::enable_x2();
    let vmmcall = VMMCALL.get();
    let mut seen = 0;
    cpu::sti();
    loop {
        TURNS.fetch_add(1, SeqCst);
        match WAY.load(SeqCst) {
            YIELD => _ = hypercall(vmmcall, SCHED_YIELD, [0; 4]),
            SPIN => {}
            way => {
                cpu::cli();
                while ARRIVED[1].load(SeqCst) == seen {
                    cpu::sti_hlt();
                    cpu::cli();
                }
                seen = ARRIVED[1].load(SeqCst);
                if way == ANSWER {
                    apic::send(0, u32::from(IPI));
                }
                cpu::sti();
            }
        }
    }
}

/// What goes between two vCPUs. With a CPU for each, only what takes no turns.
fn between(vmmcall: bool, apart: bool) {
    VMMCALL.set(vmmcall);
    let handler = |_: &mut Frame| {
        let me = smp::me();
        if me == 1 {
            HANDLED.store(cpu::tsc(), SeqCst);
        }
        ARRIVED[me].fetch_add(1, SeqCst);
        apic::eoi();
    };
    trap::handle(IPI, handler as trap::Handler);
    smp::own_timer();
    smp::prepare(second);
    smp::start(1);
    if apart {
        write_serial(format_args!("bench: tsc {} kHz\n", time::tsc_hz() / 1000));
        ipi("ipi-running");
        WAY.store(SLEEP, SeqCst);
        // It comes to where it sleeps by one that it gets while it runs.
        apic::send(1, u32::from(IPI));
        ipi("ipi-asleep");
        return;
    }
    WAY.store(YIELD, SeqCst);
    yields(vmmcall);
    // The other is ready and waits for its turn, which it gets between any two.
    let turn = || _ = hypercall(vmmcall, SCHED_YIELD, [1, 0, 0, 0]);
    measure("ipi-icr", turn, || apic::send(1, u32::from(IPI)));
    measure("ipi-pv", turn, || _ = hypercall(vmmcall, SEND_IPI, [2, 0, 0, u64::from(IPI)]));
    measure("ipi-nobody", turn, || _ = hypercall(vmmcall, SEND_IPI, [0; 4]));
    hand_over();
}

/// What `work` takes, but for reading the TSC.
fn measure(name: &str, before: impl Fn(), work: impl Fn()) {
    let mut samples = [0; TIMES];
    for sample in &mut samples {
        before();
        let start = cpu::tsc();
        let empty = cpu::tsc() - start;
        let start = cpu::tsc();
        work();
        *sample = (cpu::tsc() - start).saturating_sub(empty);
    }
    report(name, &mut samples);
}

/// Each gives its CPU to the other, by a hypercall: half of what it takes until the first has it again.
fn yields(vmmcall: bool) {
    let mut samples = [0; TIMES];
    let mut taken = 0;
    for _ in 0..4 * TIMES {
        let turns = TURNS.load(SeqCst);
        let start = cpu::tsc();
        hypercall(vmmcall, SCHED_YIELD, [1, 0, 0, 0]);
        let took = cpu::tsc() - start;
        if TURNS.load(SeqCst) == turns + 1 && taken < TIMES {
            samples[taken] = took / 2;
            taken += 1;
        }
    }
    if taken > 0 {
        report("switch-yield", &mut samples[..taken]);
    }
}

/// Each sends the other an interrupt and sleeps until it gets one: half of what there and back take.
fn hand_over() {
    WAY.store(ANSWER, SeqCst);
    let mut samples = [0; TIMES];
    for sample in &mut samples {
        let before = ARRIVED[0].load(SeqCst);
        let start = cpu::tsc();
        apic::send(1, u32::from(IPI));
        while ARRIVED[0].load(SeqCst) == before {
            cpu::sti_hlt();
            cpu::cli();
        }
        *sample = (cpu::tsc() - start) / 2;
    }
    report("switch-ipi", &mut samples);
}

/// From sending an IPI until the handler runs on the other vCPU.
fn ipi(name: &str) {
    let mut samples = [0; TIMES];
    for sample in &mut samples {
        time::spin(100);
        HANDLED.store(0, SeqCst);
        let start = cpu::tsc();
        apic::send(1, u32::from(IPI));
        while HANDLED.load(SeqCst) == 0 {}
        *sample = HANDLED.load(SeqCst).saturating_sub(start);
    }
    report(name, &mut samples);
}

fn exits(vmmcall: bool) {
    measure!("empty", "", 0, 0, 0);
    measure!("cpuid", "cpuid", 0, 0, 0);
    measure!("cpuid1", "cpuid", 1, 0, 0);
    measure!("cpuid-hv", "cpuid", 0x4000_0000, 0, 0);
    // Caisson's version, and a number that nobody has.
    if vmmcall {
        measure!("hypercall", "shl rax, 32; vmmcall", VERSION >> 32, 0, 0);
        measure!("hypercall-none", "vmmcall", 0x7fff_ffff, 0, 0);
    } else {
        measure!("hypercall", "shl rax, 32; vmcall", VERSION >> 32, 0, 0);
        measure!("hypercall-none", "vmcall", 0x7fff_ffff, 0, 0);
    }
    measure!("port", "in al, dx", 0, 0, 0x3fd);
    measure!("port-pic", "in al, 0x21", 0, 0, 0);
    measure!("port-out", "out 0x80, al", 0, 0, 0);
    measure!("msr", "rdmsr", 0, apic::BASE_MSR.into(), 0);
    // The local APIC's version, and its end-of-interrupt register with nothing in service.
    measure!("mmio", "mov eax, [ecx + 0x30]", 0, apic::PAGE as u64, 0);
    measure!("mmio-write", "mov [ecx + 0xb0], eax", 0, apic::PAGE as u64, 0);
    measure!("mmio-none", "mov eax, [ecx]", 0, 0xd000_0000, 0);
}

/// A notification of a queue with nothing in it, to a backend in Caisson, and what an interrupt handler asks for.
fn virtio_exits() {
    virtio::start();
    let page = virtio::PAGE as u64;
    measure!("virtio-notify", "mov [ecx + 0x50], eax", 0, page, 0);
    measure!("virtio-notify-none", "mov [ecx + 0x50], eax", 1, page, 0);
    measure!("virtio-interrupt", "mov eax, [ecx + 0x60]", 0, page, 0);
    virtio::write(virtio::register::STATUS, 0);
}

fn x2apic() {
    measure!("msr-eoi", "wrmsr", 0, 0x80b, 0);
    // The timer is masked, in deadline mode, and due far away.
    apic::write(apic::register::LVT_TIMER, apic::MASKED | apic::DEADLINE | u32::from(TIMER));
    measure!("msr-deadline", "wrmsr", 0, apic::TSC_DEADLINE.into(), 0x7fff_ffff);
    cpu::wrmsr(apic::TSC_DEADLINE, 0);
}

/// A hypercall from user mode, which is refused; measured in user mode as a whole.
fn user_hypercall(vmmcall: bool) {
    trap::set_kind(USER, trap::GATE_USER, 0);
    trap::handle(USER, Frame::end_snippet as trap::Handler);
    let call = if vmmcall { 0xd9 } else { 0xc1 };
    let mut samples = [0; TIMES];
    for sample in &mut samples {
        let mut pair = [0; 2];
        for (measured, ticks) in pair.iter_mut().enumerate() {
            // RDTSC; MOV R8D,EAX; [call]; RDTSC; SUB EAX,R8D; INT 80H
            let with =
                [0x0f, 0x31, 0x41, 0x89, 0xc0, 0x0f, 0x01, call, 0x0f, 0x31, 0x44, 0x29, 0xc0, 0xcd, USER];
            let without = [0x0f, 0x31, 0x41, 0x89, 0xc0, 0x0f, 0x31, 0x44, 0x29, 0xc0, 0xcd, USER];
            let code: &[u8] = if measured == 1 { &with } else { &without };
            *ticks = caisson_probes::run::run_user(code).rax & 0xffff_ffff;
        }
        *sample = pair[1].saturating_sub(pair[0]);
    }
    report("hypercall-user", &mut samples);
}

/// From the moment that a timer is due to the first instruction of its handler, out of what `wait` does with interrupts on.
fn wake_up(name: &str, wait: fn()) {
    trap::handle(
        TIMER,
        (|_| {
            WOKEN.set(cpu::tsc());
            apic::eoi();
        }) as trap::Handler,
    );
    apic::write(apic::register::LVT_TIMER, apic::DEADLINE | u32::from(TIMER));
    let delay = time::tsc_hz() / 10_000;
    let mut samples = [0; 100];
    for sample in &mut samples {
        let due = cpu::tsc() + delay;
        WOKEN.set(0);
        cpu::wrmsr(apic::TSC_DEADLINE, due);
        while WOKEN.get() == 0 {
            wait();
            cpu::cli();
        }
        *sample = WOKEN.get().saturating_sub(due);
    }
    report(name, &mut samples);
}
