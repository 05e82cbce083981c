//! Task switches by hardware (SDM vol. 3, chapter 8; APM vol. 2, chapter 12): JMP, CALL and IRET, task gates for
//! exceptions with and without an error code, for INT n, interrupts and NMIs, tasks of 16 bits, and what is refused. VT-x
//! leaves all of it to the hypervisor.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::global_asm;

use caisson_probes::trap::vector::{DB, DF, GP, NMI, NP, TS, UD};
use caisson_probes::{apic, check, check_eq, cpu, gdt, number, probe, say, trap};

global_asm!(include_str!("../tasks.S"), options(att_syntax));

probe!("task-switch", run_probe);

unsafe extern "C" {
    fn tasks_base();
    fn tasks_end();
    fn tasks_gdt();
    fn tasks_stubs();
    fn tasks_end_first();
    fn tasks_return();
    fn tasks_jump();
    fn tasks_with_code();
    fn tasks_skip();
    fn tasks_eoi();
    fn tasks_narrow();
}

/// Where the code of `tasks.S` runs, and what lies behind it.
const LOW: usize = 0x3_0000;
const BLOCK: usize = LOW + 0xe00;
const SEEN: usize = BLOCK + 64;
const CODE: usize = LOW + 0x1000;
const IDT: usize = LOW + 0x4000;
/// Task state: the first task's, and the one that is switched to.
const FIRST: usize = LOW + 0x5000;
const SECOND: usize = LOW + 0x5080;
const SECOND_STACK: u32 = LOW as u32 + 0xb000;
/// Two directories of the same 4 MiB pages.
const DIRECTORIES: [usize; 2] = [LOW + 0xc000, LOW + 0xd000];
const PG: u32 = 1 << 31;
const NT: u32 = 1 << 14;
const CR0_TS: u32 = 1 << 3;

const FIRST_TASK: u16 = 0x40;
const SECOND_TASK: u16 = 0x48;
const GATE: u16 = 0x50;
const ABSENT: u16 = 0x28;
const NO_VECTOR: u32 = u32::MAX;
const INT: u8 = 0x50;
const DEVICE: u8 = 0x51;

/// CALL and JMP to the second task.
const CALL: [u8; 7] = [0x9a, 0, 0, 0, 0, SECOND_TASK as u8, 0];
const JMP: [u8; 7] = [0xea, 0, 0, 0, 0, SECOND_TASK as u8, 0];

/// What came of it.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code)]
struct End {
    /// An exception that came by an interrupt gate.
    vector: u32,
    error: u32,
    eip: u32,
    tr: u32,
    /// EAX of the first task.
    eax: u32,
    /// What the second task saw last.
    entries: u32,
    seen_eax: u32,
    esp: u32,
    flags: u32,
    seen_tr: u32,
    cr0: u32,
    code: u32,
    dr6: u32,
    dr7: u32,
}

/// With paging, and two directories to change between.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Paged(bool);

fn run_probe() {
    let (start, end) = (tasks_base as *const () as usize, tasks_end as *const () as usize);
    check!(end - start < 0xe00, "the code fits below the block: {:#x}", end - start);
    (0..end - start).for_each(|at| cpu::write8(LOW + at, cpu::read8(start + at)));
    for directory in DIRECTORIES {
        (0..4096).step_by(4).for_each(|at| cpu::write32(directory + at, 0));
        cpu::write32(directory, 0x87);
        cpu::write32(directory + 4 * 0x3fb, 0xfec0_0083);
    }
    apic::enable();
    for paged in [Paged(false), Paged(true)] {
        instructions(paged);
        exceptions(paged);
        interrupts(paged);
        narrow(paged);
        refused(paged);
        debug(paged);
    }
}

fn label(function: unsafe extern "C" fn()) -> u32 {
    (LOW + function as usize - tasks_base as *const () as usize) as u32
}

fn task_descriptor(base: usize, limit: u32, access: u8) -> u64 {
    gdt::descriptor(base as u32, limit, access, 0)
}

fn descriptor(selector: u16, descriptor: u64) {
    cpu::write64(label(tasks_gdt) as usize + usize::from(selector), descriptor);
}

fn access(selector: u16) -> u8 {
    (cpu::read64(label(tasks_gdt) as usize + usize::from(selector)) >> 40) as u8
}

/// Both tasks as they start, and all gates interrupt gates.
fn prepare(paged: Paged, second: unsafe extern "C" fn()) {
    for vector in 0..0x60 {
        let stub = u64::from(label(tasks_stubs)) + 16 * vector as u64;
        cpu::write64(IDT + 8 * vector, stub & 0xffff | 0x18 << 16 | 0x8e << 40 | stub >> 16 << 48);
    }
    (0..0x100).step_by(4).for_each(|at| cpu::write32(FIRST + at, 0));
    for task in [FIRST, SECOND] {
        cpu::write32(task + 0x64, 104 << 16);
        let directory = DIRECTORIES[usize::from(task == SECOND)] as u32;
        cpu::write32(task + 0x1c, if paged.0 { directory } else { 0 });
    }
    let words = [(0x20, label(second)), (0x24, 2), (0x28, 0xabcd_ef01), (0x38, SECOND_STACK), (0x4c, 0x18)];
    words.iter().for_each(|&(at, value)| cpu::write32(SECOND + at, value));
    [0x48, 0x50, 0x54, 0x58, 0x5c].iter().for_each(|at| cpu::write32(SECOND + at, 0x10));
    descriptor(FIRST_TASK, task_descriptor(FIRST, 0x67, 0x89));
    descriptor(SECOND_TASK, task_descriptor(SECOND, 0x67, 0x89));
    descriptor(GATE, u64::from(SECOND_TASK) << 16 | 0x85 << 40);
}

fn task_gate(vector: u8) {
    cpu::write64(IDT + 8 * usize::from(vector), u64::from(SECOND_TASK) << 16 | 0x85 << 40);
}

/// Runs `code` as the first task's.
fn go(paged: Paged, code: &[u8]) -> End {
    cpu::copy_to(CODE, code);
    // JMP to the end.
    let end = CODE + code.len();
    cpu::write8(end, 0xe9);
    cpu::write32(end + 1, label(tasks_end_first).wrapping_sub(end as u32 + 5));
    (0..112).step_by(4).for_each(|at| cpu::write32(BLOCK + at, 0));
    let block = [if paged.0 { DIRECTORIES[0] as u32 } else { 0 }, if paged.0 { PG } else { 0 }, CODE as u32];
    block.iter().enumerate().for_each(|(index, &word)| cpu::write32(BLOCK + 4 * index, word));
    cpu::write32(BLOCK + 16, NO_VECTOR);
    let dr7 = cpu::dr7();
    cpu::set_dr6(0xffff_0ff0);
    // L0 to L3 end with the task; no breakpoint is ever met. One guest at a time sets them on QEMU.
    cpu::set_dr0(0x20_0000);
    cpu::set_dr7(if number("armed", 1) != 0 { 0x401 } else { 0x400 });
    // SAFETY: the code keeps the registers that the calling convention names, and comes back in long mode.
    let enter: extern "C" fn() = unsafe { core::mem::transmute(LOW) };
    enter();
    cpu::set_dr7(dr7);
    gdt::reload();
    trap::load_idt();
    let read = |at: usize| cpu::read32(BLOCK + at);
    End {
        vector: read(16),
        error: read(20),
        eip: read(24),
        tr: read(28) & 0xffff,
        eax: read(40),
        entries: cpu::read32(SEEN),
        seen_eax: cpu::read32(SEEN + 4),
        esp: cpu::read32(SEEN + 8),
        flags: cpu::read32(SEEN + 12),
        seen_tr: cpu::read32(SEEN + 16) & 0xffff,
        cr0: cpu::read32(SEEN + 20),
        code: cpu::read32(SEEN + 24),
        dr6: cpu::read32(SEEN + 28),
        dr7: cpu::read32(SEEN + 32),
    }
}

/// What every second task has to see.
fn check_seen(what: &str, end: &End, entries: u32, nested: bool) {
    check_eq!(end.vector, NO_VECTOR, "{}: {:x?}", what, end);
    check_eq!(end.entries, entries, "{}: entries of the second task", what);
    check_eq!(end.seen_tr, u32::from(SECOND_TASK), "{}: its TR", what);
    check_eq!(end.flags & NT != 0, nested, "{}: its NT", what);
    check_eq!(end.cr0 & CR0_TS, CR0_TS, "{}: its CR0.TS", what);
    check_eq!(end.dr7 & 0x55, 0, "{}: its DR7", what);
    check_eq!(access(FIRST_TASK), 0x8b, "{}: the first task is busy at the end", what);
    check_eq!(access(SECOND_TASK), 0x89, "{}: the second task is not", what);
}

fn instructions(paged: Paged) {
    prepare(paged, tasks_jump);
    let end = go(paged, &[JMP, JMP].concat_14());
    check_seen("JMP", &end, 2, false);
    check_eq!(end.eax, 0x1111_1111, "EAX of the first task after JMP");
    check_eq!(end.esp, SECOND_STACK, "ESP of the second task");
    check_eq!(cpu::read32(SECOND) & 0xffff, 0, "JMP leaves no link");
    check_eq!(cpu::read32(FIRST + 0x20), CODE as u32 + 14, "EIP of the first task after the second JMP");
    let saved = [0x28, 0x2c, 0x30, 0x34, 0x3c, 0x40, 0x44].map(|at| cpu::read32(FIRST + at));
    check_eq!(saved, [1, 2, 3, 4, 5, 6, 7].map(|n| n * 0x1111_1111), "what JMP saved");
    let selectors = [0x48, 0x4c, 0x50, 0x54].map(|at| cpu::read32(FIRST + at) & 0xffff);
    check_eq!(selectors, [0x10, 0x18, 0x10, 0x10], "what selectors JMP saved");

    prepare(paged, tasks_return);
    let end = go(paged, &CALL);
    check_seen("CALL", &end, 1, true);
    check_eq!(end.seen_eax, 0xabcd_ef01, "EAX of the task that was called");
    check_eq!(cpu::read32(SECOND) & 0xffff, u32::from(FIRST_TASK), "the link");
    check_eq!(cpu::read32(SECOND + 0x24) & NT, 0, "NT as IRET saves it");
    check_eq!(end.eax, 0x1111_1111, "EAX of the first task after CALL");

    // A task gate in the GDT; twice, so that the task goes on behind its IRET.
    prepare(paged, tasks_return);
    let mut through_gate = CALL;
    through_gate[5] = GATE as u8;
    let end = go(paged, &[through_gate, through_gate].concat_14());
    check_seen("CALL of a task gate", &end, 2, true);
}

fn exceptions(paged: Paged) {
    prepare(paged, tasks_skip);
    task_gate(UD);
    let end = go(paged, &[0x90, 0x0f, 0x0b, 0x40]);
    check_seen("#UD", &end, 1, true);
    check_eq!(end.eax, 0x1111_1112, "the first task goes on behind UD2");
    check_eq!(end.esp, SECOND_STACK, "#UD has no error code");

    // MOV DS, AX with a selector beyond the GDT.
    let bad = [0x66, 0xb8, 0xf8, 0, 0x8e, 0xd8];
    prepare(paged, tasks_with_code);
    task_gate(GP);
    let end = go(paged, &bad);
    check_seen("#GP", &end, 1, true);
    check_eq!((end.code, end.esp, end.eax), (0xf8, SECOND_STACK - 4, 0x600d), "#GP's error code and stack");

    // The gate of #GP is absent: #NP on the way, and #DF by its task.
    prepare(paged, tasks_with_code);
    cpu::write64(IDT + 8 * usize::from(GP), 0);
    task_gate(DF);
    let end = go(paged, &bad);
    check_seen("#DF", &end, 1, true);
    check_eq!((end.code, end.esp, end.eax), (0, SECOND_STACK - 4, 0x600d), "#DF's error code and stack");

    prepare(paged, tasks_return);
    task_gate(INT);
    let end = go(paged, &[0xcd, INT, 0x40]);
    check_seen("INT n", &end, 1, true);
    check_eq!(end.eax, 0x1111_1112, "the first task goes on behind INT n");
    prepare(paged, tasks_return);
    task_gate(3);
    let end = go(paged, &[0xcc, 0x40]);
    check_seen("INT3", &end, 1, true);
    check_eq!(end.eax, 0x1111_1112, "the first task goes on behind INT3");
}

/// Interrupts and NMIs that the vCPU sends to itself, by MOV [ICR], imm32.
fn interrupts(paged: Paged) {
    let [a, b, c, d] = 0xfee0_0300u32.to_le_bytes();
    prepare(paged, tasks_eoi);
    task_gate(DEVICE);
    let send = [0xc7, 0x05, a, b, c, d, DEVICE, 0x40, 4, 0, 0xfb, 0x90, 0x90, 0xfa];
    let end = go(paged, &send);
    check_seen("an interrupt", &end, 1, true);
    check!(!apic::in_service(DEVICE), "the interrupt's task has ended it");
    if number("nmis", 1) == 0 {
        return;
    }

    // The task's IRET lets the next NMI in.
    prepare(paged, tasks_return);
    task_gate(NMI);
    let send = [0xc7, 0x05, a, b, c, d, 0, 0x44, 4, 0, 0x90, 0x90];
    let mut twice = [0; 24];
    twice[..12].copy_from_slice(&send);
    twice[12..].copy_from_slice(&send);
    let end = go(paged, &twice);
    check_seen("NMIs", &end, 2, true);
}

fn narrow(paged: Paged) {
    prepare(paged, tasks_return);
    descriptor(SECOND_TASK, task_descriptor(SECOND, 0x2b, 0x81));
    (0..0x2c).step_by(2).for_each(|at| cpu::write16(SECOND + at, 0));
    let words = [
        (0x0e, (label(tasks_narrow) - LOW as u32) as u16),
        (0x10, 2),
        (0x12, 0x4321),
        (0x1a, 0xb000),
        (0x22, 0x10),
        (0x24, 0x20),
        (0x26, 0x30),
        (0x28, 0x30),
    ];
    words.iter().for_each(|&(at, value)| cpu::write16(SECOND + at, value));
    descriptor(0x30, gdt::descriptor(LOW as u32, 0xffff, 0x93, 0));
    let end = go(paged, &CALL);
    check_eq!(end.vector, NO_VECTOR, "a task of 16 bits: {:x?}", end);
    check_eq!((end.entries, end.seen_tr), (1, SECOND_TASK.into()), "a task of 16 bits: entries and TR");
    check_eq!((end.seen_eax, end.esp, end.flags & NT), (0x4321, 0xb000, NT), "a task of 16 bits: AX, SP, NT");
    check_eq!((access(FIRST_TASK), access(SECOND_TASK)), (0x8b, 0x81), "a task of 16 bits: who is busy");
    check_eq!(end.eax, 0x1111_1111, "EAX of the first task");
    check_eq!(cpu::read32(SECOND + 0x10) & NT, 0, "NT as IRET saves it with 16 bits");
    check_eq!(cpu::read32(SECOND + 0x10) >> 16, u32::from(SECOND_TASK), "AX as IRET saves it");
}

/// Faults of the old task, and of the new one.
fn refused(paged: Paged) {
    let at_once = |what: &str, code: &[u8], vector: u8, error: u16| {
        let end = go(paged, code);
        let got = (end.vector, end.error, end.eip, end.tr, end.entries);
        check_eq!(got, (vector.into(), error.into(), CODE as u32, FIRST_TASK.into(), 0), "{}", what);
    };
    prepare(paged, tasks_return);
    descriptor(SECOND_TASK, task_descriptor(SECOND, 0x67, 0x8b));
    at_once("JMP to a busy task", &JMP, GP, SECOND_TASK);
    prepare(paged, tasks_return);
    descriptor(SECOND_TASK, task_descriptor(SECOND, 0x67, 0x09));
    at_once("CALL of a task that is not present", &CALL, NP, SECOND_TASK);
    prepare(paged, tasks_return);
    descriptor(SECOND_TASK, task_descriptor(SECOND, 0x66, 0x89));
    at_once("CALL of a task that is too short", &CALL, TS, SECOND_TASK);

    // PUSHFD; OR dword [ESP], 4000H; POPFD; IRETD, with a link to a task that is not busy.
    prepare(paged, tasks_return);
    cpu::write32(FIRST, SECOND_TASK.into());
    let end = go(paged, &[0x9c, 0x81, 0x0c, 0x24, 0, 0x40, 0, 0, 0x9d, 0xcf]);
    check_eq!((end.vector, end.error, end.tr), (TS.into(), SECOND_TASK.into(), FIRST_TASK.into()), "IRET");
    check_eq!(end.eip, CODE as u32 + 9, "IRET to a task that is not busy: EIP");

    // DS of the new task: not present, beyond the GDT. The fault is at its first instruction, in its TR.
    for (selector, vector) in [(ABSENT, NP), (0xf8, TS)] {
        prepare(paged, tasks_return);
        cpu::write32(SECOND + 0x54, selector.into());
        let end = go(paged, &CALL);
        let got = (end.vector, end.error, end.tr);
        check_eq!(
            got,
            (vector.into(), selector.into(), SECOND_TASK.into()),
            "DS {:#x} of a new task",
            selector
        );
        if end.eip != label(tasks_return) {
            check!(!intel(), "DS {:#x} of a new task: EIP {:#x}", selector, end.eip);
            say!("skipped: this CPU pushes another EIP for a fault of a new task");
        }
        check_eq!(cpu::read32(FIRST + 0x20), CODE as u32 + 7, "the old task was saved");
    }
}

/// Whether the CPU says that it is Intel's, where the hypervisor is the one that switches tasks: nothing is skipped.
fn intel() -> bool {
    cpu::cpuid(0, 0)[1] == u32::from_le_bytes(*b"Genu")
}

/// The T flag of a TSS.
fn debug(paged: Paged) {
    prepare(paged, tasks_return);
    cpu::write32(SECOND + 0x64, 104 << 16 | 1);
    let end = go(paged, &CALL);
    if end.vector == NO_VECTOR {
        check!(!intel(), "a debug trap");
        check_eq!(end.entries, 1, "a task with its T flag set");
        say!("skipped: this CPU has no debug trap on task switches");
        return;
    }
    check_eq!((end.vector, end.tr), (DB.into(), SECOND_TASK.into()), "the T flag");
    check_eq!(end.eip, label(tasks_return), "the T flag: EIP");
    check_eq!(cpu::dr6() & 0xe00f, 1 << 15, "the T flag: DR6");
}

/// Two instructions of 7 bytes behind each other.
trait Pair {
    fn concat_14(self) -> [u8; 14];
}

impl Pair for [[u8; 7]; 2] {
    fn concat_14(self) -> [u8; 14] {
        let mut both = [0; 14];
        both.iter_mut().zip(self.as_flattened()).for_each(|(to, from)| *to = *from);
        both
    }
}
