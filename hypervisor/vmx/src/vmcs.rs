//! A VMCS: typed VMREAD and VMWRITE, which one is current, and the registers that are kept between an exit and the next
//! entry (SDM vol. 3, section 25.11).
//!
//! Residency: a VMCS that has been loaded on a CPU may be cached there. [`Cpu`] knows which one is current; every access
//! makes its own one current first, and [`Vmcs::leave`] writes a VMCS back to memory before it goes to another CPU or
//! its frames go back. Where it goes then, [`Vmcs::arrive`] is told: until it leaves again, it is accessed there alone.
//!
//! [`Register`]s are read when they are first asked for after an exit, and written before the next entry if they have
//! changed. Everything else is read and written where it stands.

use alloc::boxed::Box;
use core::arch::asm;
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use caisson_frames::Owner;
use caisson_machine::memory::PageBox;
use caisson_x86::vmx::{Access, Field, REGION_BYTES, ReadWrite, Width, field};

use crate::enable::HostState;
use crate::vpid::Vpids;

/// No VMCS is current.
const NONE: u64 = u64::MAX;

/// What belongs to one CPU in VMX operation, for as long as Caisson runs.
pub(crate) struct Cpu {
    /// Address of the current VMCS.
    current: AtomicU64,
    pub(crate) vpids: Vpids,
    /// What every exit loads there.
    pub(crate) host: HostState,
    _vmxon: PageBox<[u8; REGION_BYTES]>,
}

impl Cpu {
    pub(crate) const fn new(host: HostState, vmxon: PageBox<[u8; REGION_BYTES]>) -> Self {
        Self { current: AtomicU64::new(NONE), vpids: Vpids::new(), host, _vmxon: vmxon }
    }
}

/// A field that is kept between an exit and the next entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Register {
    Rip,
    Rsp,
    Rflags,
    Cr0,
    Cr3,
    Cr4,
    Efer,
    Interruptibility,
    CsRights,
    SsRights,
    Dr7,
    // Read-only.
    Qualification,
    InterruptedEvent,
    InstructionLength,
    // What only software changes: an exit leaves it as it is.
    ProcessorControls,
    Cr0Shadow,
    Cr4Shadow,
    TprThreshold,
    Exceptions,
    SecondaryControls,
    MsrBitmap,
    EptPointer,
}

const REGISTERS: usize = 22;
/// The first register that only software changes.
const KEPT: u32 = !0 << Register::ProcessorControls as u8;
const READ_ONLY: u32 = 1 << Register::Qualification as u8
    | 1 << Register::InterruptedEvent as u8
    | 1 << Register::InstructionLength as u8;

/// The fields of the registers, in their order.
const FIELDS: [u32; REGISTERS] = [
    field::GUEST_RIP.encoding(),
    field::GUEST_RSP.encoding(),
    field::GUEST_RFLAGS.encoding(),
    field::GUEST_CR0.encoding(),
    field::GUEST_CR3.encoding(),
    field::GUEST_CR4.encoding(),
    field::GUEST_EFER.encoding(),
    field::GUEST_INTERRUPTIBILITY.encoding(),
    field::GUEST_CS_RIGHTS.encoding(),
    field::GUEST_SS_RIGHTS.encoding(),
    field::GUEST_DR7.encoding(),
    field::EXIT_QUALIFICATION.encoding(),
    field::INTERRUPTED_EVENT.encoding(),
    field::INSTRUCTION_LENGTH.encoding(),
    field::PROCESSOR_CONTROLS.encoding(),
    field::CR0_SHADOW.encoding(),
    field::CR4_SHADOW.encoding(),
    field::TPR_THRESHOLD.encoding(),
    field::EXCEPTION_BITMAP.encoding(),
    field::SECONDARY_CONTROLS.encoding(),
    field::MSR_BITMAP.encoding(),
    field::EPTP.encoding(),
];

const _: () = assert!(Register::EptPointer as usize + 1 == REGISTERS);

/// Basic exit reasons that are told apart in the counts.
pub(crate) const COUNTED: usize = 72;

/// Exits of one reason, and what the next entry had cost since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    pub(crate) exits: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
}

impl Count {
    const NONE: Self = Self { exits: 0, reads: 0, writes: 0 };
}

/// A vCPU's VMCS.
pub(crate) struct Vmcs {
    /// Held for the CPU, which alone knows its layout.
    _region: PageBox<[u8; REGION_BYTES]>,
    address: u64,
    /// The CPU that it is on, or was on last.
    cpu: Cell<&'static Cpu>,
    launched: Cell<bool>,
    values: [Cell<u64>; REGISTERS],
    valid: Cell<u32>,
    dirty: Cell<u32>,
    reads: Cell<u32>,
    writes: Cell<u32>,
    counts: Box<[Cell<Count>; COUNTED]>,
}

impl Vmcs {
    /// A clear VMCS of the CPU's `revision`; `None` without memory.
    pub(crate) fn new(cpu: &'static Cpu, revision: u32, owner: Owner) -> Option<Self> {
        let mut region = PageBox::<[u8; REGION_BYTES]>::zeroed(owner)?;
        region[..4].copy_from_slice(&revision.to_le_bytes());
        let vmcs = Self {
            address: region.hpa().as_u64(),
            _region: region,
            cpu: Cell::new(cpu),
            launched: Cell::new(false),
            values: [const { Cell::new(0) }; REGISTERS],
            valid: Cell::new(0),
            dirty: Cell::new(0),
            reads: Cell::new(0),
            writes: Cell::new(0),
            counts: Box::new([const { Cell::new(Count::NONE) }; COUNTED]),
        };
        vmcs.clear();
        Some(vmcs)
    }

    /// What belongs to the CPU that it is on, or was on last.
    #[inline]
    pub(crate) fn cpu(&self) -> &'static Cpu {
        self.cpu.get()
    }

    /// It is on `cpu`, which is this one, from now on, having left the last one.
    pub(crate) fn arrive(&self, cpu: &'static Cpu) {
        self.cpu.set(cpu);
    }

    /// Makes this VMCS the current one of this CPU.
    #[inline]
    pub(crate) fn make_current(&self) {
        if self.cpu().current.load(Ordering::Relaxed) != self.address {
            self.load();
        }
    }

    #[cold]
    fn load(&self) {
        // SAFETY: the region is this VMCS's own and holds the CPU's revision; it is on no other CPU.
        unsafe { asm!("vmptrld [{}]", in(reg) &self.address, options(nostack)) };
        self.cpu().current.store(self.address, Ordering::Relaxed);
    }

    /// Writes the VMCS back to its region and makes it clear: not launched, and on no CPU.
    fn clear(&self) {
        // SAFETY: the region is this VMCS's own. Where it is current the CPU has none afterwards.
        unsafe { asm!("vmclear [{}]", in(reg) &self.address, options(nostack)) };
        if self.cpu().current.load(Ordering::Relaxed) == self.address {
            self.cpu().current.store(NONE, Ordering::Relaxed);
        }
        self.launched.set(false);
    }

    /// Takes the VMCS off this CPU, with all that is kept of it.
    /// What has changed must have been written back.
    pub(crate) fn leave(&self) {
        debug_assert!(self.dirty.get() == 0, "a change would be lost");
        self.valid.set(self.valid.get() & KEPT);
        self.clear();
    }

    /// Whether VMRESUME enters it, and not VMLAUNCH.
    #[inline]
    pub(crate) fn is_launched(&self) -> bool {
        self.launched.get()
    }

    /// It has been entered.
    #[inline]
    pub(crate) fn set_launched(&self) {
        self.launched.set(true);
    }

    #[inline]
    fn read_raw(&self, encoding: u32) -> u64 {
        self.make_current();
        self.reads.set(self.reads.get().wrapping_add(1));
        let value: u64;
        // SAFETY: a VMCS is current. A field that the CPU lacks leaves the register as it was.
        unsafe {
            asm!("vmread {}, {}", inout(reg) 0u64 => value, in(reg) u64::from(encoding), options(nomem, nostack));
        }
        value
    }

    #[inline]
    fn write_raw(&self, encoding: u32, value: u64) {
        self.make_current();
        self.writes.set(self.writes.get().wrapping_add(1));
        // SAFETY: a VMCS is current, and it is this vCPU's own: what the value does is done to its guest. Host fields are
        // written with the state of the CPU that it is on, when it is made and when it comes to another one; addresses are
        // those of pages that live as long as it.
        unsafe {
            asm!("vmwrite {}, {}", in(reg) u64::from(encoding), in(reg) value, options(nomem, nostack));
        }
    }

    /// Reads a field that is not kept.
    #[inline]
    pub(crate) fn read<W: Width, A: Access>(&self, field: Field<W, A>) -> W::Value {
        W::from_raw(self.read_raw(field.encoding()))
    }

    /// Writes a field that is not kept.
    #[inline]
    pub(crate) fn write<W: Width>(&self, field: Field<W, ReadWrite>, value: W::Value) {
        self.write_raw(field.encoding(), W::into_raw(value));
    }

    /// A kept register.
    #[inline]
    pub(crate) fn get(&self, register: Register) -> u64 {
        let (index, bit) = (register as usize, 1 << register as u32);
        if self.valid.get() & bit == 0 {
            self.values[index].set(self.read_raw(FIELDS[index]));
            self.valid.set(self.valid.get() | bit);
        }
        self.values[index].get()
    }

    /// Sets a kept register for the next entry.
    #[inline]
    pub(crate) fn set(&self, register: Register, value: u64) {
        let (index, bit) = (register as usize, 1u32 << register as u32);
        debug_assert!(bit & READ_ONLY == 0, "the exit's information is the CPU's to write");
        if self.valid.get() & bit == 0 || self.values[index].get() != value {
            self.values[index].set(value);
            self.valid.set(self.valid.get() | bit);
            self.dirty.set(self.dirty.get() | bit);
        }
    }

    /// Whether a kept register will be written before the next entry.
    #[inline]
    pub(crate) fn is_dirty(&self, register: Register) -> bool {
        self.dirty.get() & 1 << register as u32 != 0
    }

    /// Writes the kept registers that have changed.
    #[inline]
    pub(crate) fn write_back(&self) {
        let mut dirty = self.dirty.replace(0);
        while dirty != 0 {
            let index = dirty.trailing_zeros() as usize;
            dirty &= dirty - 1;
            self.write_raw(FIELDS[index], self.values[index].get());
        }
    }

    /// The guest has run: what it can change is asked for anew.
    #[inline]
    pub(crate) fn exited(&self) {
        self.valid.set(self.valid.get() & KEPT);
    }

    /// Books the accesses since the last call on the exit that they followed.
    #[inline]
    pub(crate) fn book(&self, reason: u16) {
        let (reads, writes) = (self.reads.replace(0), self.writes.replace(0));
        if let Some(cell) = self.counts.get(usize::from(reason)) {
            let count = cell.get();
            cell.set(Count {
                exits: count.exits + 1,
                reads: count.reads + u64::from(reads),
                writes: count.writes + u64::from(writes),
            });
        }
    }

    /// The accesses by basic exit reason.
    pub(crate) fn counts(&self) -> impl Iterator<Item = Count> {
        self.counts.iter().map(Cell::get)
    }
}

impl Drop for Vmcs {
    fn drop(&mut self) {
        // The CPU must not write to frames that have gone back.
        self.clear();
    }
}
