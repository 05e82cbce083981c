//! A guest's instruction, tables and exit in the decoder, the walker and the emulator.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_emulate::fuzz::drive(data));
