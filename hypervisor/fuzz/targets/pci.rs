//! A domain that owns functions does as it likes with their configuration spaces, MSI-X tables and ports.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| caisson_pci::testing::drive(input));
