//! A function as its domain sees it.

use alloc::vec::Vec;
use core::ops::Range;

use crate::function::{BarKind, HeaderKind};
use crate::registers::{
    BAR_64, BAR_IO, BAR_PREFETCHABLE, BARS, BRIDGE_NUMBERS, BRIDGE_WINDOWS_END, COMMAND, EXTENDED,
    HEADER_END, INTERRUPT_LINE, ROM, msi, msix,
};
use crate::{ConfigSpace, Function, Message, Source};

/// How a line signals.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LineMode {
    /// A low level is an interrupt.
    pub active_low: bool,
    /// The level is the interrupt, not its change.
    pub level: bool,
}

/// The lines that functions' pins lead to, in the domain's I/O APIC as in the machine's: those above the ISA bus's.
pub const LINES: Range<u8> = 16..24;

/// What a view needs of the machine: the functions, the memory of their MSI-X tables, and somebody to take interrupts.
pub trait Hardware: ConfigSpace {
    /// From now on the domain wants interrupt `source` as `message`: what the function is to send for it. `None` where no
    /// interrupt of the machine is left: it stays masked.
    fn route(&mut self, source: Source, message: Message) -> Option<Message>;
    /// The domain wants line `line` of its I/O APIC, signalled so, or no longer.
    fn set_line(&mut self, line: u8, mode: Option<LineMode>);
    /// The service of a line's interrupt has ended.
    fn end_line(&mut self, line: u8);
    /// Reads `size` bytes (1, 2 or 4) at a port that a function decodes.
    fn read_port(&mut self, port: u16, size: u8) -> u32;
    /// Writes them.
    fn write_port(&mut self, port: u16, size: u8, value: u32);
    /// Reads `size` bytes (1, 2, 4 or 8), naturally aligned, of a function's memory.
    fn read_memory(&mut self, hpa: u64, size: u8) -> u64;
    /// Writes them.
    fn write_memory(&mut self, hpa: u64, size: u8, value: u64);
}

/// An entry of an MSI-X table, as the domain wrote it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    message: Message,
    masked: bool,
}

/// A function as its domain sees it.
#[derive(Clone, Debug)]
pub struct View {
    function: Function,
    /// Its number in the domain.
    index: u16,
    /// Base address registers, as they read.
    bars: [u32; 6],
    /// The interrupt line register, which is memory for software.
    line: u8,
    /// What the domain wrote into the MSI capability: message and control word.
    msi: (Message, u16),
    msix: Vec<Entry>,
}

impl View {
    /// The view of a function that is `index` in its domain.
    #[must_use]
    pub fn new(function: Function, index: u16) -> Self {
        let mut bars = [0; 6];
        for bar in &function.bars {
            let (low, high) = raw(bar.kind, bar.address);
            let at = usize::from(bar.index);
            bars[at] = low;
            if let (BarKind::Memory { wide: true, .. }, Some(place)) = (bar.kind, bars.get_mut(at + 1)) {
                *place = high;
            }
        }
        let entries = function.msix_table().map_or(0, |(_, bytes)| bytes / msix::ENTRY);
        let masked = Entry { message: Message::default(), masked: true };
        let msix = (0..entries).map(|_| masked).collect();
        Self { function, index, bars, line: 0, msi: (Message::default(), 0), msix }
    }

    /// The function.
    #[must_use]
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Reads `size` bytes (1, 2 or 4) at `offset`, naturally aligned, from the configuration space.
    pub fn read(&self, space: &mut (impl ConfigSpace + ?Sized), offset: u16, size: u8) -> u32 {
        let register = offset & !3;
        let word = self.overlaid(register).unwrap_or_else(|| space.read(self.function.address, register, 4));
        let word = self.disguise(register, word);
        narrow(word >> (8 * (offset & 3)), size)
    }

    /// Writes the low `size` bytes of `value` there.
    pub fn write(&mut self, hardware: &mut (impl Hardware + ?Sized), offset: u16, size: u8, value: u32) {
        let register = offset & !3;
        let shift = 8 * u32::from(offset & 3);
        let mask = (narrow(u32::MAX, size)) << shift;
        let bits = value << shift & mask;
        if (BARS..BARS + 4 * self.bar_count()).contains(&register) {
            self.write_bar(register, bits, mask);
        } else if register == INTERRUPT_LINE && !self.is_bridge() {
            if mask & 0xff != 0 {
                self.line = bits as u8;
            }
        } else if self.msi_register(register).is_some() {
            self.write_msi(hardware, register, bits, mask);
        } else if self.may_write(register) {
            hardware.write(self.function.address, offset, size, value);
        }
    }

    /// Reads memory in [`Function::msix_pages`].
    pub fn read_memory(&self, hardware: &mut (impl Hardware + ?Sized), hpa: u64, size: u8) -> u64 {
        let Some((entry, word)) = self.table_word(hpa) else {
            return hardware.read_memory(hpa, size);
        };
        let word_at =
            |word: u64| u64::from(self.msix.get(entry).map_or(u32::MAX, |entry| entry_word(entry, word)));
        match size {
            8 => word_at(word) | word_at(word + 1) << 32,
            4 => word_at(word),
            _ => u64::from(narrow(word_at(word) as u32 >> (8 * (hpa & 3)), size)),
        }
    }

    /// Writes memory there. Of the table itself only words can be written (section 6.8.2).
    pub fn write_memory(&mut self, hardware: &mut (impl Hardware + ?Sized), hpa: u64, size: u8, value: u64) {
        let Some((index, word)) = self.table_word(hpa) else {
            hardware.write_memory(hpa, size, value);
            return;
        };
        let Some(entry) = self.msix.get_mut(index) else { return };
        match size {
            4 => set_entry_word(entry, word, value as u32),
            8 => {
                set_entry_word(entry, word, value as u32);
                set_entry_word(entry, word + 1, (value >> 32) as u32);
            }
            _ => return,
        }
        self.program_entry(hardware, index);
    }

    /// The function has forgotten what was written to it, or is to: everything masked and off, as after a reset.
    pub fn quiesce(&mut self, hardware: &mut (impl Hardware + ?Sized)) {
        let address = self.function.address;
        if let Some(capability) = self.function.msi {
            hardware.write(address, capability.offset + 2, 2, 0);
        }
        if let Some(capability) = self.function.msix {
            hardware.write(address, capability.offset + 2, 2, 0);
        }
        if !self.function.is_chipset() && !self.is_bridge() {
            hardware.write(address, COMMAND, 2, 0);
        }
        *self = Self::new(self.function.clone(), self.index);
    }

    fn is_bridge(&self) -> bool {
        self.function.header == HeaderKind::Bridge
    }

    fn bar_count(&self) -> u16 {
        match self.function.header {
            HeaderKind::Device => 6,
            HeaderKind::Bridge => 2,
            HeaderKind::Other => 0,
        }
    }

    /// A register whose value is not the function's.
    fn overlaid(&self, register: u16) -> Option<u32> {
        if self.function.is_chipset() {
            return None;
        }
        if (BARS..BARS + 4 * self.bar_count()).contains(&register) {
            return self.bars.get(usize::from((register - BARS) / 4)).copied();
        }
        // What an expansion ROM's register decodes would be memory of its own.
        if register == ROM && self.function.header == HeaderKind::Device {
            return Some(0);
        }
        match self.msi_register(register)? {
            MsiRegister::Address => Some(self.msi.0.address as u32),
            MsiRegister::Upper => Some((self.msi.0.address >> 32) as u32),
            MsiRegister::Data => Some(self.msi.0.data & 0xffff),
            MsiRegister::Control => None,
        }
    }

    /// The value of a register that is the function's, but for a part of it.
    fn disguise(&self, register: u16, word: u32) -> u32 {
        if register == INTERRUPT_LINE && !self.is_bridge() {
            return word & !0xff | u32::from(self.line);
        }
        if self.msi_register(register) == Some(MsiRegister::Control) {
            let control = (word >> 16) as u16 & !(msi::MULTIPLE | msi::ENABLE) | self.msi.1 & msi::ENABLE;
            return word & 0xffff | u32::from(control) << 16;
        }
        // The link to the next one stays: id 0 is no capability's (PCI Express Base Specification 4.0, section 7.9.28).
        if register >= EXTENDED && self.function.hidden.contains(&register) {
            return word & 0xfff0_0000;
        }
        word
    }

    /// Whether the domain may write this register of the function itself.
    fn may_write(&self, register: u16) -> bool {
        if self.function.is_chipset() {
            return false;
        }
        match register {
            COMMAND => true,
            // Cache line size, latency; built-in self-test.
            0x0c => true,
            BRIDGE_NUMBERS..BRIDGE_WINDOWS_END if self.is_bridge() => false,
            // Bridge control.
            INTERRUPT_LINE => self.is_bridge(),
            0..HEADER_END => false,
            HEADER_END..EXTENDED => true,
            _ => !self.function.hidden.iter().any(|&at| (at..at + HIDDEN_BYTES).contains(&register)),
        }
    }

    fn write_bar(&mut self, register: u16, bits: u32, mask: u32) {
        let index = usize::from((register - BARS) / 4);
        let found = self.function.bars.iter().find(|bar| {
            let wide = matches!(bar.kind, BarKind::Memory { wide: true, .. });
            let first = usize::from(bar.index);
            index == first || wide && index == first + 1
        });
        // What is not there reads as zero.
        let (Some(bar), Some(value)) = (found, self.bars.get_mut(index)) else { return };
        let upper = index > usize::from(bar.index);
        let home = raw(bar.kind, bar.address);
        let size = raw(bar.kind, !(bar.bytes - 1));
        let pick = |(low, high): (u32, u32)| if upper { high } else { low };
        // Sizing reads back the size. Every other value reads back as where the registers are.
        let written = *value & !mask | bits;
        *value = if matches!(written, u32::MAX | 0xffff_fffc) { pick(size) } else { pick(home) };
    }

    fn msi_register(&self, register: u16) -> Option<MsiRegister> {
        let capability = self.function.msi?;
        let place = register.checked_sub(capability.offset)?;
        match (place, capability.wide) {
            (0, _) => Some(MsiRegister::Control),
            (4, _) => Some(MsiRegister::Address),
            (8, true) => Some(MsiRegister::Upper),
            (8, false) | (12, true) => Some(MsiRegister::Data),
            _ => None,
        }
    }

    fn write_msi(&mut self, hardware: &mut (impl Hardware + ?Sized), register: u16, bits: u32, mask: u32) {
        let merge = |old: u32| old & !mask | bits;
        let message = &mut self.msi.0;
        let (low, high) = (message.address as u32, (message.address >> 32) as u32);
        match self.function.msi.and_then(|_| self.msi_register(register)) {
            Some(MsiRegister::Address) => {
                self.msi.0.address = u64::from(high) << 32 | u64::from(merge(low) & !3);
            }
            Some(MsiRegister::Upper) => self.msi.0.address = u64::from(merge(high)) << 32 | u64::from(low),
            Some(MsiRegister::Data) => self.msi.0.data = merge(self.msi.0.data) & 0xffff,
            Some(MsiRegister::Control) => {
                self.msi.1 = (merge(u32::from(self.msi.1) << 16) >> 16) as u16 & msi::ENABLE;
            }
            None => return,
        }
        self.program_msi(hardware);
    }

    /// Puts the host's message into the function, if the domain has turned the capability on.
    fn program_msi(&self, hardware: &mut (impl Hardware + ?Sized)) {
        let Some(capability) = self.function.msi else { return };
        let (address, offset) = (self.function.address, capability.offset);
        let control = hardware.read(address, offset + 2, 2) & !u32::from(msi::MULTIPLE | msi::ENABLE);
        let source = Source { function: self.index, entry: 0 };
        let message = if self.msi.1 & msi::ENABLE != 0 { hardware.route(source, self.msi.0) } else { None };
        let Some(message) = message else {
            hardware.write(address, offset + 2, 2, control);
            return;
        };
        hardware.write(address, offset + 4, 4, message.address as u32);
        let data = if capability.wide {
            hardware.write(address, offset + 8, 4, (message.address >> 32) as u32);
            offset + 12
        } else {
            offset + 8
        };
        hardware.write(address, data, 2, message.data);
        hardware.write(address, offset + 2, 2, control | u32::from(msi::ENABLE));
    }

    /// Which entry and word of the MSI-X table is at `hpa`.
    fn table_word(&self, hpa: u64) -> Option<(usize, u64)> {
        let (start, bytes) = self.function.msix_table()?;
        let offset = hpa.checked_sub(start).filter(|&offset| offset < bytes)?;
        Some(((offset / msix::ENTRY) as usize, offset % msix::ENTRY / 4))
    }

    /// Puts the host's message into the function's table, or masks the entry.
    fn program_entry(&self, hardware: &mut (impl Hardware + ?Sized), index: usize) {
        let (Some(entry), Some((start, _))) = (self.msix.get(index), self.function.msix_table()) else {
            return;
        };
        let at = start + index as u64 * msix::ENTRY;
        hardware.write_memory(at + 12, 4, u64::from(msix::MASKED));
        if entry.masked {
            return;
        }
        let source = Source { function: self.index, entry: index as u16 };
        let Some(message) = hardware.route(source, entry.message) else { return };
        hardware.write_memory(at, 4, message.address & 0xffff_ffff);
        hardware.write_memory(at + 4, 4, message.address >> 32);
        hardware.write_memory(at + 8, 4, u64::from(message.data));
        hardware.write_memory(at + 12, 4, 0);
    }
}

/// Bytes of a hidden capability that are certainly its own.
const HIDDEN_BYTES: u16 = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum MsiRegister {
    Control,
    Address,
    Upper,
    Data,
}

/// Both halves of a base address register with this value.
fn raw(kind: BarKind, address: u64) -> (u32, u32) {
    match kind {
        BarKind::Ports => (address as u32 & !3 | BAR_IO, 0),
        BarKind::Memory { wide, prefetchable } => {
            let flags = if wide { BAR_64 } else { 0 } | if prefetchable { BAR_PREFETCHABLE } else { 0 };
            (address as u32 & !15 | flags, (address >> 32) as u32)
        }
    }
}

/// The low `size` bytes.
fn narrow(value: u32, size: u8) -> u32 {
    match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        _ => value,
    }
}

fn entry_word(entry: &Entry, word: u64) -> u32 {
    match word {
        0 => entry.message.address as u32,
        1 => (entry.message.address >> 32) as u32,
        2 => entry.message.data,
        _ => u32::from(entry.masked),
    }
}

fn set_entry_word(entry: &mut Entry, word: u64, value: u32) {
    let message = &mut entry.message;
    match word {
        0 => message.address = message.address & !0xffff_ffff | u64::from(value & !3),
        1 => message.address = message.address & 0xffff_ffff | u64::from(value) << 32,
        2 => message.data = value,
        _ => entry.masked = value & msix::MASKED != 0,
    }
}
