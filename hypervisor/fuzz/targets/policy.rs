//! A guest's CPUID, MSRs and control registers, on any host.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_policy::fuzz::drive(data));
