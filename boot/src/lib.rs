//! From the loader to Rust.
//!
//! GRUB (or any multiboot2 loader) loads the image by the addresses that `linker.ld` gives, and enters `entry.S` in
//! 32-bit protected mode. That builds page tables for the first 4 GiB, enters 64-bit mode at [`KERNEL_BASE`], and
//! calls `boot_main`, which gathers the loader's information into one [`BootInfo`] and calls the function named by
//! [`entry_point!`]. The other processors start by `ap.S` ([`ApStart`]).

#![no_std]
#![allow(unsafe_code)]

#[cfg(target_os = "none")]
use core::arch::global_asm;

mod ap;
mod info;
mod parse;

#[cfg(target_os = "none")]
pub use ap::trampoline;
pub use ap::{ApStart, TRAMPOLINE_END};
pub use info::{Area, AreaKind, BootInfo, Module, Range, Screen, ScreenKind, Symbols};

/// Where the image is linked; its physical address is this much lower.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// The first physical address that the entry code's tables do not map.
pub const BOOT_MAPPED_END: u64 = 4 << 30;

#[cfg(target_os = "none")]
global_asm!(include_str!("entry.S"));
#[cfg(target_os = "none")]
global_asm!(include_str!("ap.S"), options(att_syntax));

mod image {
    unsafe extern "C" {
        static text_start: u8;
        static text_end: u8;
        static rodata_start: u8;
        static rodata_end: u8;
        static data_start: u8;
        static data_end: u8;
        static image_end: u8;
        static boot_stack_guard: u8;
    }

    /// Virtual addresses of the image's parts, each page-aligned.
    #[derive(Clone, Copy, Debug)]
    pub struct Image {
        /// Code: start and end.
        pub text: (u64, u64),
        /// Constants: start and end.
        pub rodata: (u64, u64),
        /// Variables and stacks: start and end.
        pub data: (u64, u64),
        /// End of everything.
        pub end: u64,
        /// The page below the boot CPU's stack.
        pub stack_guard: u64,
    }

    impl Image {
        /// The image that is running.
        #[must_use]
        pub fn current() -> Self {
            let at = |symbol: *const u8| symbol as u64;
            Self {
                text: (at(&raw const text_start), at(&raw const text_end)),
                rodata: (at(&raw const rodata_start), at(&raw const rodata_end)),
                data: (at(&raw const data_start), at(&raw const data_end)),
                end: at(&raw const image_end),
                stack_guard: at(&raw const boot_stack_guard),
            }
        }
    }
}

pub use image::Image;

/// Names the function that Caisson starts with: `fn(BootInfo) -> !`.
#[macro_export]
macro_rules! entry_point {
    ($main:path) => {
        #[doc(hidden)]
        #[allow(unsafe_code)]
        // SAFETY: no other symbol has this name; boot_main declares it with this signature.
        #[unsafe(no_mangle)]
        extern "Rust" fn caisson_main(info: $crate::BootInfo) -> ! {
            let main: fn($crate::BootInfo) -> ! = $main;
            main(info)
        }
    };
}

/// The first Rust code: called by `entry.S` on the boot stack, with the boot tables.
#[cfg(target_os = "none")]
// SAFETY: no other symbol has this name; entry.S calls it with this signature.
#[unsafe(no_mangle)]
extern "C" fn boot_main(structure: u64) -> ! {
    unsafe extern "Rust" {
        fn caisson_main(info: BootInfo) -> !;
    }
    // SAFETY: the loader's structure lies below 4 GiB, which entry.S mapped at its own address, and nothing writes it.
    let info = unsafe { parse::boot_info(structure) };
    // SAFETY: `entry_point!` defines the function with this signature.
    unsafe { caisson_main(info) }
}
