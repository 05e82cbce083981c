//! Instructions.

use core::arch::asm;

use crate::{Regs, Trap, run};

macro_rules! port {
    ($in:ident, $out:ident, $type:ty, $register:tt) => {
        /// Reads a port.
        pub fn $in(port: u16) -> $type {
            let value: $type;
            // SAFETY: a port read does not touch memory.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), out($register) value, in("dx") port, options(nomem, nostack))
            };
            value
        }

        /// Writes a port.
        pub fn $out(port: u16, value: $type) {
            // SAFETY: no device of the machine writes memory.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nostack))
            };
        }
    };
}
port!(inb, outb, u8, "al");
port!(inw, outw, u16, "ax");
port!(inl, outl, u32, "eax");

macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        $($(#[$doc])*
        pub fn $name() {
            // SAFETY: see the crate's rule; handlers keep all registers.
            unsafe { asm!($code, options(nostack)) };
        })*
    };
}
plain! {
    /// Interrupts off.
    cli = "cli";
    /// Interrupts on.
    sti = "sti";
    /// Interrupts on and wait for one.
    sti_hlt = "sti; hlt";
    /// Waits for an interrupt.
    hlt = "hlt";
    /// A window of a few instructions for interrupts, which are off before and after.
    take_interrupts = "sti; nop; nop; cli";
    /// PAUSE.
    pause = "pause";
}

/// The time-stamp counter, after all earlier instructions.
#[must_use]
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: no memory is touched.
    unsafe { asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// CPUID: EAX, EBX, ECX, EDX.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u64, u32, u32);
    // SAFETY: no memory is touched; RBX, which the compiler keeps for itself, is put back.
    unsafe {
        asm!("mov {b}, rbx", "cpuid", "xchg {b}, rbx", b = out(reg) b, inout("eax") leaf => a,
            inout("ecx") subleaf => c, out("edx") d, options(nostack));
    }
    [a, b as u32, c, d]
}

/// Reads an MSR that is there.
#[must_use]
pub fn rdmsr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: an MSR that is not there raises #GP, which ends the probe.
    unsafe { asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR that takes the value.
pub fn wrmsr(number: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: see the crate's rule.
    unsafe { asm!("wrmsr", in("ecx") number, in("eax") low, in("edx") high, options(nostack)) };
}

/// Reads an MSR, or gives the exception that this raises.
pub fn try_rdmsr(number: u32) -> Result<u64, Trap> {
    let mut regs = Regs { rcx: number.into(), rax: !0, rdx: !0, ..Regs::default() };
    run(&[0x0f, 0x32], &mut regs)?;
    Ok(regs.rdx << 32 | regs.rax & 0xffff_ffff)
}

/// Writes an MSR, or gives the exception that this raises.
pub fn try_wrmsr(number: u32, value: u64) -> Result<(), Trap> {
    let mut regs = Regs { rcx: number.into(), rax: value & 0xffff_ffff, rdx: value >> 32, ..Regs::default() };
    run(&[0x0f, 0x30], &mut regs)
}

macro_rules! control {
    ($($register:literal, $read:ident, $write:ident, $try_write:ident, $opcode:expr;)*) => {
        $(
        #[doc = concat!("Reads ", $register, ".")]
        #[must_use]
        pub fn $read() -> u64 {
            let value: u64;
            // SAFETY: no memory is touched.
            unsafe { asm!(concat!("mov {}, ", $register), out(reg) value, options(nostack)) };
            value
        }

        #[doc = concat!("Writes ", $register, ".")]
        pub fn $write(value: u64) {
            // SAFETY: see the crate's rule.
            unsafe { asm!(concat!("mov ", $register, ", {}"), in(reg) value, options(nostack)) };
        }

        #[doc = concat!("Writes ", $register, ", or gives the exception that this raises.")]
        pub fn $try_write(value: u64) -> Result<(), Trap> {
            // MOV from RAX.
            run(&$opcode, &mut Regs { rax: value, ..Regs::default() })
        }
        )*
    };
}
control! {
    "cr0", cr0, set_cr0, try_set_cr0, [0x0f, 0x22, 0xc0];
    "cr2", cr2, set_cr2, try_set_cr2, [0x0f, 0x22, 0xd0];
    "cr3", cr3, set_cr3, try_set_cr3, [0x0f, 0x22, 0xd8];
    "cr4", cr4, set_cr4, try_set_cr4, [0x0f, 0x22, 0xe0];
    "cr8", cr8, set_cr8, try_set_cr8, [0x44, 0x0f, 0x22, 0xc0];
    "dr0", dr0, set_dr0, try_set_dr0, [0x0f, 0x23, 0xc0];
    "dr1", dr1, set_dr1, try_set_dr1, [0x0f, 0x23, 0xc8];
    "dr2", dr2, set_dr2, try_set_dr2, [0x0f, 0x23, 0xd0];
    "dr3", dr3, set_dr3, try_set_dr3, [0x0f, 0x23, 0xd8];
    "dr6", dr6, set_dr6, try_set_dr6, [0x0f, 0x23, 0xf0];
    "dr7", dr7, set_dr7, try_set_dr7, [0x0f, 0x23, 0xf8];
}

macro_rules! memory {
    ($($read:ident, $write:ident, $type:ty;)*) => {
        $(
        /// Reads what is at an address, with one access of this size.
        #[must_use]
        pub fn $read(address: usize) -> $type {
            // SAFETY: see the crate's rule; the access may raise an exception, which a handler takes.
            unsafe { (address as *const $type).read_volatile() }
        }

        /// Writes what is at an address, with one access of this size.
        pub fn $write(address: usize, value: $type) {
            // SAFETY: see the crate's rule; the access may raise an exception, which a handler takes.
            unsafe { (address as *mut $type).write_volatile(value) };
        }
        )*
    };
}
memory! {
    read8, write8, u8;
    read16, write16, u16;
    read32, write32, u32;
    read64, write64, u64;
}

/// Copies bytes to an address.
pub fn copy_to(address: usize, bytes: &[u8]) {
    for (index, &byte) in bytes.iter().enumerate() {
        write8(address + index, byte);
    }
}

/// INVLPG.
pub fn invlpg(address: usize) {
    // SAFETY: translations are looked up again.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}

/// Loads the IDTR.
pub fn lidt(base: usize, limit: u16) {
    let operand = table_operand(base, limit);
    // SAFETY: see the crate's rule.
    unsafe { asm!("lidt [{}]", in(reg) &raw const operand, options(nostack, readonly)) };
}

/// Loads the GDTR.
pub fn lgdt(base: usize, limit: u16) {
    let operand = table_operand(base, limit);
    // SAFETY: see the crate's rule.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const operand, options(nostack, readonly)) };
}

fn table_operand(base: usize, limit: u16) -> [u8; 10] {
    let mut operand = [0; 10];
    operand[..2].copy_from_slice(&limit.to_le_bytes());
    operand[2..].copy_from_slice(&base.to_le_bytes());
    operand
}

/// Loads the task register.
pub fn ltr(selector: u16) {
    // SAFETY: see the crate's rule.
    unsafe { asm!("ltr {:x}", in(reg) selector, options(nostack)) };
}

/// RFLAGS.
#[must_use]
pub fn rflags() -> u64 {
    let flags: u64;
    // SAFETY: the stack is in order.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags
}
