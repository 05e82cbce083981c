//! What exits cost, in ticks of the TSC: for each kind, a line `bench: NAME MEDIAN MIN MAX` over 1000 times, where the
//! cost of reading the TSC twice and of setting up registers has been taken off. Under QEMU's `-icount shift=0` a tick
//! is an instruction.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;

use caisson_probes::{Frame, Shared, apic, cpu, probe, time, trap, write_serial};

probe!("bench", run);

const TIMES: usize = 1000;
/// A vector for the timer, and one for measuring in user mode.
const TIMER: u8 = 0x40;
const USER: u8 = 0x80;

static WOKEN: Shared<u64> = Shared::new(0);

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
    let vmcall =
        caisson_probes::run(&[0x0f, 0x01, 0xd9], &mut caisson_probes::Regs { rax: !0, ..Default::default() });
    exits(vmcall.is_ok());
    x2apic();
    user_hypercall(vmcall.is_ok());
    wake_up();
}

fn exits(vmmcall: bool) {
    measure!("empty", "", 0, 0, 0);
    measure!("cpuid", "cpuid", 0, 0, 0);
    measure!("cpuid1", "cpuid", 1, 0, 0);
    measure!("cpuid-hv", "cpuid", 0x4000_0000, 0, 0);
    // A number that nobody has.
    if vmmcall {
        measure!("hypercall", "vmmcall", 0x7fff_ffff, 0, 0);
    } else {
        measure!("hypercall", "vmcall", 0x7fff_ffff, 0, 0);
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

fn x2apic() {
    apic::enable_x2();
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

/// From the moment that a timer is due to the first instruction of its handler, out of HLT.
fn wake_up() {
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
            cpu::sti_hlt();
            cpu::cli();
        }
        *sample = WOKEN.get().saturating_sub(due);
    }
    report("wake-up", &mut samples);
}
