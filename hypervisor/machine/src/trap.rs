//! Exceptions and interrupts of the host.
//!
//! An interrupt handler sets bits of the pending word and ends the interrupt, no more. An exception is a bug of
//! Caisson's and ends in a crash record; double faults, NMIs and machine checks have stacks of their own.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::structures::idt::InterruptDescriptorTable;

use crate::percpu::{self, pending};
use crate::{apic, cpu, crash, gdt};

/// Vectors of functions that guests own.
pub const FUNCTIONS: core::ops::RangeInclusive<u8> = 0x30..=0xdf;
/// Vector of the one-shot timer.
pub const TIMER: u8 = 0xf0;
/// Vector of the serial line.
pub const SERIAL: u8 = 0xf1;
/// Vector of an IPI that has a CPU look at its pending word for [`pending::RESCHEDULE`] and [`pending::MAIL`].
pub const RESCHEDULE: u8 = 0xf2;
/// Vector of an IPI that has a CPU look at its pending word for [`pending::CALL`].
pub const CALL: u8 = 0xf3;
/// Vector of an IOMMU that has stopped a device.
pub const DMA_FAULT: u8 = 0xf4;
/// Vector of the local APIC's spurious interrupt.
pub const APIC_SPURIOUS: u8 = 0xff;
/// First vector of the masked 8259 pair.
pub const PIC_SPURIOUS: u8 = 0xe0;

const NMI: u64 = 2;
const DOUBLE_FAULT: u64 = 8;
const GENERAL_PROTECTION: u64 = 13;
const MACHINE_CHECK: u64 = 18;

/// The registers at a trap, as the stubs push them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

#[cfg(target_os = "none")]
global_asm!(
    // 256 stubs of 16 bytes. Each leaves an error code (0 where the CPU pushes none) and its vector on the stack.
    ".balign 16",
    "trap_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)",
    ".else",
    "pushq $0",
    ".endif",
    "pushq $vector",
    "jmp trap_common",
    ".set vector, vector + 1",
    ".endr",
    "trap_common:",
    "pushq %rax",
    "pushq %rcx",
    "pushq %rdx",
    "pushq %rbx",
    "pushq %rbp",
    "pushq %rsi",
    "pushq %rdi",
    "pushq %r8",
    "pushq %r9",
    "pushq %r10",
    "pushq %r11",
    "pushq %r12",
    "pushq %r13",
    "pushq %r14",
    "pushq %r15",
    "cld",
    "movq %rsp, %rdi",
    "callq {handler}",
    "popq %r15",
    "popq %r14",
    "popq %r13",
    "popq %r12",
    "popq %r11",
    "popq %r10",
    "popq %r9",
    "popq %r8",
    "popq %rdi",
    "popq %rsi",
    "popq %rbp",
    "popq %rbx",
    "popq %rdx",
    "popq %rcx",
    "popq %rax",
    "addq $16, %rsp",
    "iretq",
    handler = sym trap_handler,
    options(att_syntax)
);

extern "C" fn trap_handler(frame: &mut TrapFrame) {
    match frame.vector {
        // When another CPU has crashed, its NMI stops this one.
        NMI if crash::is_crashing() => cpu::halt_forever(),
        NMI => {
            let _ = percpu::current().pending().set(pending::NMI);
        }
        GENERAL_PROTECTION if let Some(rip) = cpu::probe_recovery(frame.rip) => frame.rip = rip,
        0..32 => crash::exception(frame),
        vector if vector == u64::from(TIMER) => interrupt(pending::TIMER),
        vector if vector == u64::from(SERIAL) => interrupt(pending::SERIAL),
        vector if vector == u64::from(DMA_FAULT) => interrupt(pending::DMA_FAULT),
        0x30..=0xdf => {
            percpu::current().note_function(frame.vector as u8);
            // Whoever takes the vector ends it: a level must be masked before, or it would come again at once.
            let _ = percpu::current().pending().set(pending::FUNCTIONS);
        }
        // The sender has set the pending bit.
        vector if vector == u64::from(RESCHEDULE) || vector == u64::from(CALL) => apic::end_of_interrupt(),
        // Spurious interrupts of either controller are not in service: nothing ends them. The 8259 pair is masked.
        _ => {}
    }
}

fn interrupt(bits: u32) {
    let _ = percpu::current().pending().set(bits);
    apic::end_of_interrupt();
}

struct IdtCell(UnsafeCell<InterruptDescriptorTable>);

// SAFETY: written once by `init` on the boot CPU before anything else runs, then only read by the CPU.
unsafe impl Sync for IdtCell {}

static IDT: IdtCell = IdtCell(UnsafeCell::new(InterruptDescriptorTable::new()));

/// Loads the IDT.
///
/// # Safety
/// Once, on the boot CPU, after [`gdt::init`], with interrupts off.
#[cfg(target_os = "none")]
pub unsafe fn init() {
    unsafe extern "C" {
        static trap_stubs: [[u8; 16]; 256];
    }
    // SAFETY: promised by the caller: nothing else uses the table yet.
    let idt = unsafe { &mut *IDT.0.get() };
    for vector in 0..=255u8 {
        // SAFETY: the stub's address, not its contents.
        let stub = VirtAddr::from_ptr(unsafe { &raw const trap_stubs[usize::from(vector)] });
        let ist = match u64::from(vector) {
            DOUBLE_FAULT => Some(gdt::IST_DOUBLE_FAULT),
            NMI => Some(gdt::IST_NMI),
            MACHINE_CHECK => Some(gdt::IST_MACHINE_CHECK),
            _ => None,
        };
        // SAFETY: each stub handles its vector and returns by IRETQ; the IST slots are set up.
        unsafe { set_gate(idt, vector, stub, ist) };
    }
    // SAFETY: the table is complete.
    unsafe { load() };
}

/// Loads the IDT, which all CPUs share, on this CPU.
///
/// # Safety
/// After [`init`], and after this CPU's own GDT and stacks, with interrupts off.
#[cfg(target_os = "none")]
pub(crate) unsafe fn load() {
    // SAFETY: the table lives in a static, and nobody writes it any more.
    unsafe { (*IDT.0.get()).load_unsafe() };
}

/// Writes a present interrupt gate of ring 0 (SDM vol. 3, figure 7-8). The crate's typed entries differ by vector; the
/// raw layout is the same for all.
#[cfg(target_os = "none")]
unsafe fn set_gate(idt: &mut InterruptDescriptorTable, vector: u8, stub: VirtAddr, ist: Option<u16>) {
    use x86_64::instructions::segmentation::{CS, Segment};
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e00;
    let address = stub.as_u64();
    let low = address & 0xffff
        | u64::from(CS::get_reg().0) << 16
        | u64::from(ist.unwrap_or(0)) << 32
        | PRESENT_INTERRUPT_GATE << 32
        | (address >> 16 & 0xffff) << 48;
    let gate = core::ptr::from_mut(idt).cast::<[u64; 2]>();
    // SAFETY: the table has 256 gates of 16 bytes.
    unsafe { gate.add(usize::from(vector)).write([low, address >> 32]) };
}
