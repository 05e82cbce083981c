//! Prints the time-stamp counter in decimal and a newline, then ends: a Linux program of two system calls.
//!
//! `cargo xtask bench` runs it as the first thing in a guest, on a machine where the counter counts instructions. It
//! stands on nothing but the kernel's interface (Linux `arch/x86/entry/entry_64.S`: number in RAX, arguments in RDI,
//! RSI and RDX; RCX and R11 are lost), so that starting it costs next to nothing and needs no libc in the guest.

#![no_std]
#![no_main]
// Its entry point and its system calls are assembly; there is nothing else in it.
#![allow(unsafe_code)]

use core::arch::{asm, global_asm, x86_64::_rdtsc};

/// `write(2)`.
const WRITE: u64 = 1;
/// `exit_group(2)`.
const EXIT_GROUP: u64 = 231;

// The kernel enters with the stack aligned to 16 bytes; the call keeps what the ABI promises a function.
global_asm!(".globl _start", "_start:", "xor %ebp, %ebp", "call {main}", "ud2", main = sym main, options(att_syntax));

extern "C" fn main() -> ! {
    // SAFETY: RDTSC reads a counter and nothing else; Linux leaves it open to programs.
    let stamp = unsafe { _rdtsc() };
    let mut text = [b'\n'; 21];
    let digits = decimal(stamp, &mut text);
    system_call(WRITE, 1, digits.as_ptr() as u64, digits.len() as u64);
    loop {
        system_call(EXIT_GROUP, 0, 0, 0);
    }
}

/// Writes `value` before the last byte of `text`, which stays as it is; gives the digits and that byte.
fn decimal(mut value: u64, text: &mut [u8; 21]) -> &[u8] {
    let mut first = text.len() - 1;
    for place in text.iter_mut().rev().skip(1) {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
        first -= 1;
        if value == 0 {
            break;
        }
    }
    text.get(first..).unwrap_or_default()
}

/// Asks the kernel for something; its answer is of no interest here.
fn system_call(number: u64, first: u64, second: u64, third: u64) {
    // SAFETY: the two calls made here read at most the bytes that they are given, and change no memory of ours.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => _,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, readonly)
        );
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        system_call(EXIT_GROUP, 1, 0, 0);
    }
}
