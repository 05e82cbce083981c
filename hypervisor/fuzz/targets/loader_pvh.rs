//! A kernel that says it is an ELF image with a PVH entry.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_loader::fuzz::drive_pvh(data));
