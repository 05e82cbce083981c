//! The GDT and the TSS with its interrupt stacks.

use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

/// IST slot of double faults.
pub const IST_DOUBLE_FAULT: u16 = 1;
/// IST slot of NMIs.
pub const IST_NMI: u16 = 2;
/// IST slot of machine checks.
pub const IST_MACHINE_CHECK: u16 = 3;

const STACK_BYTES: usize = 16384;

/// A stack with a page below it that the page tables leave out ([`stack_guards`]).
#[repr(C, align(4096))]
struct GuardedStack {
    guard: [u8; 4096],
    bytes: [u8; STACK_BYTES],
}

#[repr(transparent)]
struct Stacks(UnsafeCell<[GuardedStack; 3]>);

// SAFETY: only the CPU itself writes the stacks, through the addresses in the TSS.
unsafe impl Sync for Stacks {}

// SAFETY: the section is one of the linker script's; it holds zeros at start like any static of zeros.
#[cfg_attr(target_os = "none", unsafe(link_section = ".stacks.interrupt"))]
static STACKS: Stacks =
    Stacks(UnsafeCell::new([const { GuardedStack { guard: [0; 4096], bytes: [0; STACK_BYTES] } }; 3]));

struct Tables {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
}

struct TableCell(UnsafeCell<Tables>);

// SAFETY: written once by `init` on the boot CPU before anything else runs, then only read by the CPU.
unsafe impl Sync for TableCell {}

static TABLES: TableCell =
    TableCell(UnsafeCell::new(Tables { gdt: GlobalDescriptorTable::new(), tss: TaskStateSegment::new() }));

/// Virtual addresses of the pages below the interrupt stacks, to be left unmapped.
#[must_use]
pub fn stack_guards() -> [u64; 3] {
    let base = STACKS.0.get() as u64;
    [0, 1, 2].map(|i| base + i * size_of::<GuardedStack>() as u64)
}

/// Loads the GDT and the task register. The code selector of the interrupt gates is what CS holds afterwards.
///
/// # Safety
/// Once, on the boot CPU, before interrupts are possible.
pub unsafe fn init() {
    // SAFETY: promised by the caller: nothing else uses the tables yet.
    let tables = unsafe { &mut *TABLES.0.get() };
    for (slot, guard) in stack_guards().into_iter().enumerate() {
        let top = guard + size_of::<GuardedStack>() as u64;
        tables.tss.interrupt_stack_table[slot] = VirtAddr::new(top);
    }
    let code = tables.gdt.append(Descriptor::kernel_code_segment());
    let data = tables.gdt.append(Descriptor::kernel_data_segment());
    // SAFETY: the TSS lives in a static.
    let tss = tables.gdt.append(unsafe { Descriptor::tss_segment_unchecked(&raw const tables.tss) });
    // SAFETY: the GDT lives in a static, and the selectors are its own. FS and GS are unused.
    unsafe {
        tables.gdt.load_unsafe();
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(SegmentSelector::NULL);
        ES::set_reg(SegmentSelector::NULL);
        load_tss(tss);
    }
}

/// The interrupt stack's slot that is used when an IST number of 1 to 3 is set: a gate counts from 0.
#[must_use]
pub const fn ist_index(slot: u16) -> u16 {
    slot - 1
}
