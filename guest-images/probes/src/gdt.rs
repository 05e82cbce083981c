//! Segments and the task state.

use crate::{Shared, cpu};

/// Code, 64 bits.
pub const CODE64: u16 = 0x08;
/// Data, flat.
pub const DATA: u16 = 0x10;
/// Code, 32 bits, flat.
pub const CODE32: u16 = 0x18;
/// The task state.
pub const TASK: u16 = 0x20;
/// User code, 32 bits.
pub const USER_CODE32: u16 = 0x33;
/// User data.
pub const USER_DATA: u16 = 0x3b;
/// User code, 64 bits.
pub const USER_CODE64: u16 = 0x43;
/// The first of the selectors that a probe may use for itself, up to 0xf8.
pub const FREE: u16 = 0x48;

/// The 64-bit task state segment (SDM vol. 3, figure 9-11), as 32-bit words, with room for an I/O bitmap of all ports.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Task {
    words: [u32; 26],
    io: [u8; 8192 + 1],
}

const TASK_LIMIT: u64 = 26 * 4 + 8192;

static TASK_STATE: Shared<Task> = Shared::new(Task { words: [0; 26], io: [0xff; 8193] });

/// Stacks for rings and gates.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Stack([u8; 8192]);

static STACKS: [Shared<Stack>; 3] = [const { Shared::new(Stack([0; 8192])) }; 3];

unsafe extern "C" {
    static mut probe_gdt: [u64; 32];
}

/// The address of the GDT.
#[must_use]
pub fn base() -> usize {
    (&raw const probe_gdt) as usize
}

/// Sets the descriptor of `selector`.
pub fn set(selector: u16, descriptor: u64) {
    cpu::write64(base() + usize::from(selector & !7), descriptor);
}

/// A segment descriptor: `access` is its byte 5, `flags` the upper half of byte 6 (G, D/B, L, AVL).
#[must_use]
pub const fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (access as u64) << 40
        | (limit >> 16 & 0xf) << 48
        | (flags as u64 & 0xf) << 52
        | (base >> 24) << 56
}

/// The stack of interrupt-stack-table entry 1 (2), as set up at the start: its top.
#[must_use]
pub fn stack_top(index: usize) -> usize {
    STACKS[index].address() + 8192
}

/// Sets RSP0 (index 0) or an interrupt-stack-table entry (1 to 7).
pub fn set_stack(index: usize, top: u64) {
    let offset = if index == 0 { 4 } else { 36 + (index - 1) * 8 };
    cpu::write32(TASK_STATE.address() + offset, top as u32);
    cpu::write32(TASK_STATE.address() + offset + 4, (top >> 32) as u32);
}

/// The address of the I/O permission bitmap: a set bit forbids the port.
#[must_use]
pub fn io_bitmap() -> usize {
    TASK_STATE.address() + 26 * 4
}

/// Loads GDTR and TR anew, after code that has changed them.
pub fn reload() {
    let task = cpu::read64(base() + usize::from(TASK));
    // LTR takes a task that is not busy.
    set(TASK, task & !(2 << 40));
    cpu::lgdt(base(), 32 * 8 - 1);
    cpu::ltr(TASK);
}

pub(crate) fn start() {
    for index in 0..3 {
        set_stack(index, stack_top(index) as u64);
    }
    cpu::write32(TASK_STATE.address() + 100, (26 * 4) << 16);
    set(TASK, descriptor(TASK_STATE.address() as u32, TASK_LIMIT as u32, 0x89, 0));
    set(TASK + 8, 0);
    reload();
}
