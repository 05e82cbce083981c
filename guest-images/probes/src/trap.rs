//! The IDT: handlers by vector, and exceptions that are expected.
//!
//! Each vector may have a handler. An exception without one ends the snippet that [`crate::run()`] executes, and is its
//! result; outside of a snippet it fails the probe.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{Regs, Shared, cpu, fail, gdt};

/// What the CPU and the stub have pushed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Frame {
    /// Registers in the order of their encodings; the fifth is not RSP.
    pub registers: [u64; 16],
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// An exception as the handler saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Trap {
    pub vector: u8,
    pub error: u64,
    pub rip: u64,
    pub cs: u16,
    pub rflags: u64,
    pub rsp: u64,
    pub cr2: u64,
}

/// What is called on a vector.
pub type Handler = fn(&mut Frame);

/// Exception vectors (SDM vol. 3, table 7-1).
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

/// Present interrupt gate; DPL 0.
pub const GATE: u8 = 0x8e;
/// Present interrupt gate; DPL 3.
pub const GATE_USER: u8 = 0xee;
/// Present trap gate; DPL 0.
pub const GATE_TRAP: u8 = 0x8f;

#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Idt([[u64; 2]; 256]);

static IDT: Shared<Idt> = Shared::new(Idt([[0; 2]; 256]));
static HANDLERS: [Shared<Option<Handler>>; 256] = [const { Shared::new(None) }; 256];
static COUNTS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
/// A snippet runs.
static CATCHING: Shared<bool> = Shared::new(false);
static CAUGHT: Shared<Option<(Trap, Regs)>> = Shared::new(None);

unsafe extern "C" {
    fn probe_trap_stubs();
    fn probe_run_caught();
    static probe_run_sp: u64;
}

/// The address of the IDT: 256 gates of 16 bytes.
#[must_use]
pub fn idt() -> usize {
    IDT.address()
}

/// The address that a vector's gate leads to.
#[must_use]
pub fn stub(vector: u8) -> usize {
    probe_trap_stubs as *const () as usize + 16 * usize::from(vector)
}

/// Sets a gate: `kind` is its byte 5, `ist` the interrupt stack or 0.
pub fn set_gate(vector: u8, address: usize, selector: u16, kind: u8, ist: u8) {
    let address = address as u64;
    let low = address & 0xffff
        | u64::from(selector) << 16
        | u64::from(ist) << 32
        | u64::from(kind) << 40
        | (address >> 16 & 0xffff) << 48;
    let at = idt() + 16 * usize::from(vector);
    cpu::write64(at, low);
    cpu::write64(at + 8, address >> 32);
}

/// The gate of a vector as it is after the start, but for its kind and stack.
pub fn set_kind(vector: u8, kind: u8, ist: u8) {
    set_gate(vector, stub(vector), gdt::CODE64, kind, ist);
}

/// Sets or removes a vector's handler.
pub fn handle(vector: u8, handler: impl Into<Option<Handler>>) {
    HANDLERS[usize::from(vector)].set(handler.into());
}

/// How often a vector's gate was taken, on all CPUs.
#[must_use]
pub fn count(vector: u8) -> u64 {
    COUNTS[usize::from(vector)].load(Ordering::Relaxed)
}

/// Loads the IDTR with the table of all gates.
pub fn load_idt() {
    cpu::lidt(idt(), 256 * 16 - 1);
}

pub(crate) fn start() {
    for vector in 0..=255 {
        set_kind(vector, GATE, 0);
    }
    set_kind(vector::DF, GATE, 1);
    load_idt();
}

/// Whether a snippet runs, which [`Frame::end_snippet`] would end.
#[must_use]
pub fn is_catching() -> bool {
    CATCHING.get()
}

/// Runs a snippet; `Some` with the exception that ended it, as `body` tells by `true`.
pub(crate) fn catch(body: impl FnOnce() -> bool) -> Option<(Trap, Regs)> {
    CAUGHT.set(None);
    CATCHING.set(true);
    let caught = body();
    CATCHING.set(false);
    if caught { CAUGHT.get() } else { None }
}

impl Frame {
    /// What is kept of it as the result of a snippet.
    #[must_use]
    pub fn trap(&self) -> Trap {
        Trap {
            vector: self.vector as u8,
            error: self.error,
            rip: self.rip,
            cs: self.cs as u16,
            rflags: self.rflags,
            rsp: self.rsp,
            cr2: cpu::cr2(),
        }
    }

    /// Ends the running snippet with this exception.
    pub fn end_snippet(&mut self) {
        let [rax, rcx, rdx, rbx, _, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = self.registers;
        let (rsp, rflags) = (self.rsp, self.rflags);
        let regs =
            Regs { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rflags };
        CAUGHT.set(Some((self.trap(), regs)));
        CATCHING.set(false);
        self.rip = probe_run_caught as *const () as u64;
        self.cs = gdt::CODE64.into();
        self.ss = gdt::DATA.into();
        self.rflags = 2;
        // SAFETY: the trampoline has written it before it ran the snippet.
        self.rsp = unsafe { (&raw const probe_run_sp).read_volatile() };
    }
}

/// Called by the stubs.
// SAFETY: no other function of that name exists.
#[unsafe(no_mangle)]
extern "C" fn probe_trap(frame: &mut Frame) {
    let vector = frame.vector as usize & 0xff;
    COUNTS[vector].fetch_add(1, Ordering::Relaxed);
    if let Some(handler) = HANDLERS[vector].get() {
        handler(frame);
    } else if CATCHING.get() && vector < 32 {
        frame.end_snippet();
    } else {
        let trap = frame.trap();
        fail(file!(), line!(), format_args!("expected no interrupt or exception, got {trap:x?}"));
    }
}
