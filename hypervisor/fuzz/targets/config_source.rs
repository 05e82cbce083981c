//! A config text, as `xtask` compiles it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_config::fuzz::drive_source(data));
