//! DMA domains come and go, of units of either vendor, against a model of what each device should reach.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_iommu::testing::drive(data));
