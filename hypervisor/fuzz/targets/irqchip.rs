//! Guests' traffic over local APICs, I/O APIC and 8259 pair.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_irqchip::testing::drive(data));
