//! A kernel that says it is a multiboot1 image.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_loader::fuzz::drive_multiboot1(data));
