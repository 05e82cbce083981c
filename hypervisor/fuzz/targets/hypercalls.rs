//! A guest's hypercalls with any registers, and batches of them in its memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_abi::fuzz::drive(data));
