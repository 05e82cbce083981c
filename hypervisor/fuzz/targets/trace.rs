//! A serial log with a trace in it, as a guest may have forged it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_trace::fuzz::read(data));
