//! Instructions that leave a guest for its hypervisor.
#![allow(unsafe_code)]

use std::{
    arch::{
        asm,
        x86_64::{__cpuid, CpuidResult},
    },
    fs::File,
    hint::black_box,
    os::unix::fs::FileExt as _,
    process::{Command, exit},
};

use crate::{
    kernel::{fork, reap},
    sample::Samples,
};

const COUNT: usize = 1000;

/// The interrupt mask of the first 8259: a device that is in the hypervisor where there is one.
const PORT: u16 = 0x21;
/// IA32_APIC_BASE: no hypervisor lets a guest have the CPU's own.
const APIC_BASE: u64 = 0x1b;
/// IA32_FS_BASE: every hypervisor does.
const FS_BASE: u64 = 0xc000_0100;

/// Nothing at all.
pub(crate) fn empty(_: u64) -> Result<Samples, String> {
    Ok(Samples::of(COUNT, || ()))
}

#[inline(always)]
fn leaf(number: u32) -> CpuidResult {
    __cpuid(number)
}

/// CPUID, leaf 0.
pub(crate) fn cpuid(_: u64) -> Result<Samples, String> {
    Ok(Samples::of(COUNT, || {
        // SAFETY: CPUID changes four registers and no memory; RBX is the compiler's, and is put back.
        unsafe {
            asm!("xchg {rbx}, rbx", "cpuid", "xchg {rbx}, rbx", rbx = out(reg) _, inlateout("eax") 0 => _,
                inlateout("ecx") 0 => _, lateout("edx") _, options(nostack, nomem, preserves_flags));
        }
    }))
}

/// Executes a call that no hypervisor has, nor takes from a program.
#[inline(always)]
fn call(amd: bool) {
    // SAFETY: RAX is the answer, and nothing else changes. Where there is nobody to call, it is an invalid opcode.
    unsafe {
        if amd {
            asm!("vmmcall", inlateout("rax") u64::MAX => _, options(nostack));
        } else {
            asm!("vmcall", inlateout("rax") u64::MAX => _, options(nostack));
        }
    }
}

/// A hypercall of a program's, which every hypervisor refuses.
pub(crate) fn hypercall(_: u64) -> Result<Samples, String> {
    let amd = leaf(0).ecx == u32::from_le_bytes(*b"cAMD");
    // CPUID does not tell: emulators announce a hypervisor as well. Another process finds out.
    let child = fork(|| {
        call(amd);
        exit(0)
    })?;
    if reap(child)? != Some(0) {
        return Err("there is no hypervisor".to_owned());
    }
    Ok(Samples::of(COUNT, || call(amd)))
}

/// IN from the interrupt controller.
pub(crate) fn port(_: u64) -> Result<Samples, String> {
    if !let_ports(true) {
        return Err("the kernel does not let programs have ports".to_owned());
    }
    let samples = Samples::of(COUNT, || {
        // SAFETY: the kernel has allowed it, and reading the mask changes nothing.
        unsafe { asm!("in al, dx", out("al") _, in("dx") PORT, options(nostack, nomem)) };
    });
    // Whoever has ports is switched more slowly.
    let_ports(false);
    Ok(samples)
}

/// Asks the kernel for all ports, or gives them back.
fn let_ports(have: bool) -> bool {
    // SAFETY: what it allows is used for one port alone, whose reading changes nothing.
    unsafe { libc::syscall(libc::SYS_iopl, if have { 3 } else { 0 }) == 0 }
}

/// RDMSR of IA32_APIC_BASE, by the kernel's file.
pub(crate) fn msr(_: u64) -> Result<Samples, String> {
    read_msr(APIC_BASE)
}

/// RDMSR of IA32_FS_BASE by the same file: the system call alone.
pub(crate) fn msr_passed(_: u64) -> Result<Samples, String> {
    read_msr(FS_BASE)
}

fn read_msr(number: u64) -> Result<Samples, String> {
    const FILE: &str = "/dev/cpu/0/msr";
    // Where it is there already, or built in, this does nothing.
    let _ = Command::new("modprobe").arg("msr").status();
    let file = File::open(FILE).map_err(|error| format!("{FILE}: {error}"))?;
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, number).map_err(|error| format!("MSR {number:#x}: {error}"))?;
    Ok(Samples::of(COUNT, || {
        let _ = black_box(file.read_at(&mut bytes, number));
    }))
}
