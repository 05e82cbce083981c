//! The GDT and the TSS with its interrupt stacks, one of each for every CPU.

use alloc::boxed::Box;
use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use crate::memory::Stack;

/// IST slot of double faults.
pub const IST_DOUBLE_FAULT: u16 = 1;
/// IST slot of NMIs.
pub const IST_NMI: u16 = 2;
/// IST slot of machine checks.
pub const IST_MACHINE_CHECK: u16 = 3;

/// How many interrupt stacks a CPU has.
const STACKS_OF_CPU: usize = 3;
const STACK_BYTES: usize = 16384;

/// A stack with a page below it that the page tables leave out ([`stack_guards`]).
#[repr(C, align(4096))]
struct GuardedStack {
    guard: [u8; 4096],
    bytes: [u8; STACK_BYTES],
}

#[repr(transparent)]
struct Stacks(UnsafeCell<[GuardedStack; STACKS_OF_CPU]>);

// SAFETY: only the CPU itself writes the stacks, through the addresses in the TSS.
unsafe impl Sync for Stacks {}

// SAFETY: the section is one of the linker script's; it holds zeros at start like any static of zeros.
#[cfg_attr(target_os = "none", unsafe(link_section = ".stacks.interrupt"))]
static STACKS: Stacks = Stacks(UnsafeCell::new(
    [const { GuardedStack { guard: [0; 4096], bytes: [0; STACK_BYTES] } }; STACKS_OF_CPU],
));

struct Tables {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
}

impl Tables {
    const fn new() -> Self {
        Self { gdt: GlobalDescriptorTable::new(), tss: TaskStateSegment::new() }
    }
}

struct TableCell(UnsafeCell<Tables>);

// SAFETY: written once by `init` on the boot CPU before anything else runs, then only read by the CPU.
unsafe impl Sync for TableCell {}

static TABLES: TableCell = TableCell(UnsafeCell::new(Tables::new()));

/// Virtual addresses of the pages below the boot CPU's interrupt stacks, to be left unmapped.
#[must_use]
pub fn stack_guards() -> [u64; STACKS_OF_CPU] {
    let base = STACKS.0.get() as u64;
    core::array::from_fn(|i| base + (i * size_of::<GuardedStack>()) as u64)
}

/// Loads the boot CPU's GDT and task register. The code selector of the interrupt gates is what CS holds afterwards.
///
/// # Safety
/// Once, on the boot CPU, before interrupts are possible.
pub unsafe fn init() {
    // SAFETY: promised by the caller: nothing else uses the tables yet, and they live in a static.
    unsafe {
        let tables = &mut *TABLES.0.get();
        let tops = stack_guards().map(|guard| guard + size_of::<GuardedStack>() as u64);
        load(tables, tops);
    }
}

/// What another CPU needs before it can take an exception.
pub(crate) struct ApTables {
    tables: Box<Tables>,
    stacks: [Stack; STACKS_OF_CPU],
}

impl ApTables {
    /// Tables and interrupt stacks; `None` without memory.
    pub(crate) fn new() -> Option<Self> {
        let stack = || Stack::new(STACK_BYTES);
        Some(Self { tables: Box::new(Tables::new()), stacks: [stack()?, stack()?, stack()?] })
    }

    /// Loads them, for good.
    ///
    /// # Safety
    /// Once on each CPU but the boot CPU, before interrupts are possible there.
    pub(crate) unsafe fn load(self) {
        // SAFETY: promised by the caller; the tables are never freed.
        unsafe { load(Box::leak(self.tables), self.stacks.map(Stack::top)) };
    }
}

/// Fills the tables in and loads them.
///
/// # Safety
/// They must live for ever and be used by this CPU only; the stacks likewise.
unsafe fn load(tables: &'static mut Tables, stack_tops: [u64; STACKS_OF_CPU]) {
    for (slot, top) in stack_tops.into_iter().enumerate() {
        tables.tss.interrupt_stack_table[slot] = VirtAddr::new(top);
    }
    let code = tables.gdt.append(Descriptor::kernel_code_segment());
    let data = tables.gdt.append(Descriptor::kernel_data_segment());
    // SAFETY: the TSS lives for ever, promised by the caller.
    let tss = tables.gdt.append(unsafe { Descriptor::tss_segment_unchecked(&raw const tables.tss) });
    // SAFETY: the GDT lives for ever, and the selectors are its own. FS is unused, and GS has its base by MSR.
    unsafe {
        tables.gdt.load_unsafe();
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(SegmentSelector::NULL);
        ES::set_reg(SegmentSelector::NULL);
        load_tss(tss);
    }
}
