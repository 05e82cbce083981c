//! A kernel that says it is a Linux bzImage.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_loader::fuzz::drive_bzimage(data));
