//! A guest at the registers and rings of a virtio device.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_virtio::fuzz::drive(data));
