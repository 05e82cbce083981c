//! Guests of a few bytes, for what takes no operating system: multiboot1 kernels in 32-bit code, assembled here.
//!
//! Multiboot Specification 0.6.96, section 3.1 (header with the address fields: no ELF) and 3.2 (machine state).

use std::fs;

use caisson_tests::{Failure, Lab, Verdict};

/// Where they are loaded.
const BASE: u32 = 0x10_0000;
/// Bytes of the header.
const HEADER: u32 = 32;
/// The header's fields that are zero: eight bytes that also make an empty IDT.
const ZEROS: u32 = BASE + 20;

const MAGIC: u32 = 0x1BAD_B002;
/// The header has address fields.
const HAS_ADDRESSES: u32 = 1 << 16;

const COM1: u16 = 0x3F8;

/// A kernel under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tiny(Vec<u8>);

impl Tiny {
    /// Prints a line on the first serial port.
    pub(crate) fn print(mut self, line: &str) -> Self {
        let [status, data] = [COM1 + 5, COM1].map(u16::to_le_bytes);
        for byte in line.bytes().chain(*b"\r\n") {
            // mov dx, COM1+5; wait: in al, dx; test al, 0x20; jz wait
            self.0.extend([0x66, 0xBA, status[0], status[1], 0xEC, 0xA8, 0x20, 0x74, 0xFB]);
            // mov dx, COM1; mov al, byte; out dx, al
            self.0.extend([0x66, 0xBA, data[0], data[1], 0xB0, byte, 0xEE]);
        }
        self
    }

    /// Writes a byte to a port.
    pub(crate) fn out8(mut self, port: u16, value: u8) -> Self {
        let port = port.to_le_bytes();
        self.0.extend([0x66, 0xBA, port[0], port[1], 0xB0, value, 0xEE]);
        self
    }

    /// Writes 16 bits to a port.
    pub(crate) fn out16(mut self, port: u16, value: u16) -> Self {
        let (port, value) = (port.to_le_bytes(), value.to_le_bytes());
        self.0.extend([0x66, 0xBA, port[0], port[1], 0x66, 0xB8, value[0], value[1], 0x66, 0xEF]);
        self
    }

    /// Takes its interrupt table away and breaks: a triple fault.
    pub(crate) fn triple_fault(mut self) -> Self {
        // lidt [ZEROS]; int3
        self.0.extend([0x0F, 0x01, 0x1D]);
        self.0.extend(ZEROS.to_le_bytes());
        self.0.push(0xCC);
        self
    }

    /// The kernel; behind its last instruction it stops for good.
    fn bytes(&self) -> Vec<u8> {
        let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(HAS_ADDRESSES);
        // Header address, load address, load end (all of the file), BSS end (none), entry.
        let fields = [MAGIC, HAS_ADDRESSES, checksum, BASE, BASE, 0, 0, BASE + HEADER];
        let mut kernel: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
        kernel.extend(&self.0);
        // stop: cli; hlt; jmp stop
        kernel.extend([0xFA, 0xF4, 0xEB, 0xFC]);
        kernel
    }

    /// Leaves it in the scenario's directory under this name, where the scenario's config finds it.
    pub(crate) fn save(&self, lab: &Lab, scenario: &str, name: &str) -> Verdict {
        let path = lab.directory(scenario)?.join(name);
        fs::write(&path, self.bytes()).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    }
}
