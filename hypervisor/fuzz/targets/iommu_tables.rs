//! ACPI tables about IOMMUs, DMAR and IVRS, as no firmware should write them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| caisson_iommu::testing::parse(data));
