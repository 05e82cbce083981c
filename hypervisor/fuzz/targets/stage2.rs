//! Mapping operations on nested page tables, against a model of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_stage2::drive(data));
