//! A config blob, as the hypervisor reads it at its start.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_config::fuzz::drive(data));
