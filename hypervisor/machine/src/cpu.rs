//! Instructions that Rust has no word for, as safe functions where any use is safe.

use core::arch::x86_64::__cpuid_count;
use core::arch::{asm, naked_asm};

use x86_64::instructions::interrupts;

/// What CPUID answers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Cpuid {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// Executes CPUID. Slow, and an exit where Caisson is itself a guest: for start-up only.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    let r = __cpuid_count(leaf, subleaf);
    Cpuid { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
}

/// The time-stamp counter. Not ordered against other instructions.
#[inline]
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and CR4.TSD does not matter in ring 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A wait that takes longer than this many ticks of the TSC is given up: a second or more on every CPU there is.
pub(crate) const PATIENCE: u64 = 1 << 32;

/// Waits until `done`, but for no more than about `ticks` of the TSC; whether it came. It is asked once at least.
pub(crate) fn wait_until(ticks: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = tsc();
    loop {
        if done() {
            return true;
        }
        if tsc().wrapping_sub(start) > ticks {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Reads an MSR.
///
/// # Safety
/// The CPU must have the MSR, and reading it must have no side effect that matters.
#[inline]
#[must_use]
pub unsafe fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: promised by the caller.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Reads an MSR that the CPU may lack: `None` where RDMSR raises #GP. For start-up only, once traps are set up.
///
/// # Safety
/// Reading the MSR must have no side effect that matters.
#[must_use]
pub unsafe fn probe_msr(msr: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: promised by the caller; the fault is caught.
    let there = unsafe { probe(msr, &raw mut value) };
    (there != 0).then_some(value)
}

/// RDMSR into `value`; 1 where the CPU has it.
#[unsafe(naked)]
unsafe extern "sysv64" fn probe(msr: u32, value: *mut u64) -> u64 {
    naked_asm!("mov ecx, edi", "jmp {}", sym probe_access)
}

/// The RDMSR of [`probe`], its first instruction.
#[unsafe(naked)]
unsafe extern "sysv64" fn probe_access() {
    naked_asm!("rdmsr", "shl rdx, 32", "or rax, rdx", "mov [rsi], rax", "mov eax, 1", "ret")
}

/// Where [`probe`] ends after a fault.
#[unsafe(naked)]
unsafe extern "sysv64" fn probe_failed() {
    naked_asm!("xor eax, eax", "ret")
}

/// For a #GP at `rip`: where to go on, when it is that of [`probe_msr`].
pub(crate) fn probe_recovery(rip: u64) -> Option<u64> {
    (rip == probe_access as *const () as u64).then_some(probe_failed as *const () as u64)
}

/// Writes an MSR.
///
/// # Safety
/// The CPU must have the MSR and accept the value, and what the write changes must be the caller's to change.
#[inline]
pub unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: promised by the caller.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

/// Reads a port.
///
/// # Safety
/// The port must be the caller's, and reading it must have no side effect that matters to others.
#[inline]
#[must_use]
pub unsafe fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: promised by the caller.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) };
    value
}

/// Writes a port.
///
/// # Safety
/// The port must be the caller's.
#[inline]
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: promised by the caller.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// Reads a 16-bit port.
///
/// # Safety
/// As [`inb`].
#[inline]
#[must_use]
pub unsafe fn inw(port: u16) -> u16 {
    let value;
    // SAFETY: promised by the caller.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nostack, preserves_flags)) };
    value
}

/// Writes a 16-bit port.
///
/// # Safety
/// As [`outb`].
#[inline]
pub unsafe fn outw(port: u16, value: u16) {
    // SAFETY: promised by the caller.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) };
}

/// Reads a 32-bit port.
///
/// # Safety
/// As [`inb`].
#[inline]
#[must_use]
pub unsafe fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: promised by the caller.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags)) };
    value
}

/// Writes a 32-bit port.
///
/// # Safety
/// As [`outb`].
#[inline]
pub unsafe fn outl(port: u16, value: u32) {
    // SAFETY: promised by the caller.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}

/// Takes the interrupts that are pending, and leaves interrupts off again.
#[inline]
pub fn take_interrupts() {
    // SAFETY: the traps are set up before any code that calls this; handlers only set pending bits. The NOP ends the
    // shadow of STI, so that pending interrupts are taken there.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) };
}

/// Sleeps until an interrupt arrives, takes it, and leaves interrupts off again. Call it with interrupts off, after a
/// look at the pending word: one that arrives in between is not slept through, because STI holds interrupts off until
/// HLT has begun.
pub fn wait_for_interrupt() {
    interrupts::enable_and_hlt();
    interrupts::disable();
}

/// Stops this CPU for good.
pub fn halt_forever() -> ! {
    loop {
        interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// The host's CPU vendor and what of its features Caisson itself needs to know; asked once.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Highest basic CPUID leaf.
    pub max_leaf: u32,
    /// Highest extended CPUID leaf.
    pub max_extended: u32,
    /// XSAVE is there.
    pub xsave: bool,
    /// x2APIC mode is there.
    pub x2apic: bool,
    /// The APIC timer has a TSC-deadline mode.
    pub tsc_deadline: bool,
    /// 1 GiB pages.
    pub gigabyte_pages: bool,
    /// AMD-V.
    pub svm: bool,
    /// VT-x.
    pub vmx: bool,
    /// RDTSCP, and with it TSC_AUX.
    pub rdtscp: bool,
    /// The TSC runs at one rate in every power state.
    pub invariant_tsc: bool,
    /// RDRAND.
    pub rdrand: bool,
    /// RDSEED.
    pub rdseed: bool,
    /// Physical-address bits.
    pub physical_bits: u8,
}

impl Features {
    /// Asks CPUID.
    #[must_use]
    pub fn detect() -> Self {
        let max_leaf = cpuid(0, 0).eax;
        let max_extended = cpuid(0x8000_0000, 0).eax;
        let basic = cpuid(1, 0);
        let extended = |leaf| if max_extended >= leaf { cpuid(leaf, 0) } else { Cpuid::default() };
        let structured = if max_leaf >= 7 { cpuid(7, 0) } else { Cpuid::default() };
        let extended_1 = extended(0x8000_0001);
        let bits = extended(0x8000_0008).eax as u8;
        Self {
            max_leaf,
            max_extended,
            xsave: basic.ecx & 1 << 26 != 0,
            x2apic: basic.ecx & 1 << 21 != 0,
            tsc_deadline: basic.ecx & 1 << 24 != 0,
            gigabyte_pages: extended_1.edx & 1 << 26 != 0,
            svm: extended_1.ecx & 1 << 2 != 0,
            vmx: basic.ecx & 1 << 5 != 0,
            rdtscp: extended_1.edx & 1 << 27 != 0,
            invariant_tsc: extended(0x8000_0007).edx & 1 << 8 != 0,
            rdrand: basic.ecx & 1 << 30 != 0,
            rdseed: structured.ebx & 1 << 18 != 0,
            physical_bits: if bits == 0 { 36 } else { bits },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends() {
        assert!(wait_until(0, || true));
        assert!(!wait_until(1000, || false));
        let mut asked = 0;
        assert!(wait_until(PATIENCE, || {
            asked += 1;
            asked == 3
        }));
    }
}
