//! Domains that make, use and close event ports, and scribble over their shared pages.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_events::fuzz::drive(data));
