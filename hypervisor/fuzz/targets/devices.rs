//! A guest at the ports of the virtual PC.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_devices::chipset::drive(data));
