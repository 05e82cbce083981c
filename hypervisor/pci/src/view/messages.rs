//! Messages: what the domain wrote is here, and Caisson's own is in the function (PCI Local Bus Specification 3.0, section 6.8).

use super::{View, narrow};
use crate::registers::{COMMAND, COMMAND_MEMORY, msi, msix};
use crate::{Hardware, Message, Source};

/// An entry of an MSI-X table, as the domain wrote it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    message: Message,
    masked: bool,
}

impl Entry {
    /// After a reset.
    pub(super) const MASKED: Self = Self { message: Message { address: 0, data: 0 }, masked: true };

    fn word(&self, word: u64) -> u32 {
        match word {
            0 => self.message.address as u32,
            1 => (self.message.address >> 32) as u32,
            2 => self.message.data,
            _ => u32::from(self.masked),
        }
    }

    fn set_word(&mut self, word: u64, value: u32) {
        let message = &mut self.message;
        match word {
            0 => message.address = message.address & !0xffff_ffff | u64::from(value & !3),
            1 => message.address = message.address & 0xffff_ffff | u64::from(value) << 32,
            2 => message.data = value,
            _ => self.masked = value & msix::MASKED != 0,
        }
    }
}

/// A register of the MSI capability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MsiRegister {
    Control,
    Address,
    Upper,
    Data,
}

impl View {
    /// Reads memory of the function's that is not the domain's to reach by itself.
    pub fn read_memory(&self, hardware: &mut (impl Hardware + ?Sized), hpa: u64, size: u8) -> u64 {
        let Some((entry, word)) = self.table_word(hpa) else {
            return hardware.read_memory(hpa, size);
        };
        let word_at = |word: u64| u64::from(self.msix.get(entry).map_or(u32::MAX, |entry| entry.word(word)));
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
            4 => entry.set_word(word, value as u32),
            8 => {
                entry.set_word(word, value as u32);
                entry.set_word(word + 1, (value >> 32) as u32);
            }
            _ => return,
        }
        self.program_entry(hardware, index);
    }

    pub(super) fn msi_register(&self, register: u16) -> Option<MsiRegister> {
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

    /// The MSI capability's first word: the domain's switch, and one message.
    pub(super) fn disguise_msi(&self, word: u32) -> u32 {
        let control = (word >> 16) as u16 & !(msi::MULTIPLE | msi::ENABLE) | self.msi.1 & msi::ENABLE;
        word & 0xffff | u32::from(control) << 16
    }

    pub(super) fn write_msi(
        &mut self,
        hardware: &mut (impl Hardware + ?Sized),
        register: u16,
        bits: u32,
        mask: u32,
    ) {
        let merge = |old: u32| old & !mask | bits;
        let place = self.msi_register(register);
        let message = &mut self.msi.0;
        let (low, high) = (message.address as u32, (message.address >> 32) as u32);
        match place {
            Some(MsiRegister::Address) => {
                message.address = u64::from(high) << 32 | u64::from(merge(low) & !3);
            }
            Some(MsiRegister::Upper) => message.address = u64::from(merge(high)) << 32 | u64::from(low),
            Some(MsiRegister::Data) => message.data = merge(message.data) & 0xffff,
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

    /// Which bits of the MSI-X capability's control word must stay as they are: the switch, until the function's own table
    /// holds nothing that an earlier owner has left open. Its memory has to be decoded for that.
    pub(super) fn held_msix(
        &mut self,
        hardware: &mut (impl Hardware + ?Sized),
        register: u16,
        bits: u32,
        mask: u32,
    ) -> u32 {
        if self.function.msix.is_none_or(|capability| capability.offset != register) {
            return 0;
        }
        let enable = mask & msix::ENABLE;
        if self.msix_known || bits & enable == 0 {
            return 0;
        }
        let is_decoded = hardware.read(self.function.address, COMMAND, 2) & COMMAND_MEMORY != 0;
        let Some((start, bytes)) = self.function.msix_table().filter(|_| is_decoded) else {
            return enable;
        };
        for entry in (start..start + bytes).step_by(msix::ENTRY as usize) {
            hardware.write_memory(entry + 12, 4, u64::from(msix::MASKED));
        }
        self.msix_known = true;
        (0..self.msix.len()).for_each(|index| self.program_entry(hardware, index));
        0
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
