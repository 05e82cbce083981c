//! A guest of two vCPUs: exits of every class, the delivery of its interrupts.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_domain::fuzz::drive(data));
