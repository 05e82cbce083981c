//! A function as its domain sees it.
//!
//! What the domain writes goes to the function where it concerns the function alone. The rest is remembered here, and reads
//! back: base address registers, messages, and, of registers that a reset forgets (a domain may reset its functions, by their
//! own means or by turning them off and on), what must be as the firmware has set it.

mod messages;

use alloc::vec::Vec;
use core::ops::Range;

use crate::function::HeaderKind;
use crate::registers::{
    BARS, CACHE_LINE, CLASS, COMMAND, COMMAND_BITS, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY,
    COMMAND_NO_INTX, EXTENDED, HEADER_END, ID, INTERRUPT_LINE, MULTI_FUNCTION, ROM, express, msix,
};
use crate::{ConfigSpace, Function, Message, OWN_ID, Source};
use messages::{Entry, MsiRegister};

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

/// What a function is to the domain that sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Its own.
    Owned,
    /// Its own, but its pin leads to a line that others' functions share: it is not there, and kept silent.
    OwnedWithoutPin,
    /// The mainboard's, or a bridge: it can be read.
    Shown,
    /// Somebody else's. It is there because it is number 0, without which nobody looks for the others of its device.
    Reserved,
}

/// A function as its domain sees it.
#[derive(Clone, Debug)]
pub struct View {
    function: Function,
    role: Role,
    /// Its number in the domain.
    index: u16,
    /// Base address registers, as they read.
    bars: [u32; 6],
    /// The interrupt line register, which is memory for software.
    line: u8,
    /// What the domain wrote into the MSI capability: message and control word.
    msi: (Message, u16),
    msix: Vec<Entry>,
    /// No entry of the function's own table is open that is not in `msix`.
    msix_known: bool,
}

impl View {
    /// The view of a function that is `index` in its domain.
    #[must_use]
    pub fn new(function: Function, role: Role, index: u16) -> Self {
        let bars = homes(&function);
        let owned = matches!(role, Role::Owned | Role::OwnedWithoutPin);
        let entries = function.msix_table().filter(|_| owned).map_or(0, |(_, bytes)| bytes / msix::ENTRY);
        let msix = (0..entries).map(|_| Entry::MASKED).collect();
        Self { function, role, index, bars, line: 0, msi: (Message::default(), 0), msix, msix_known: false }
    }

    /// The function.
    #[must_use]
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Whether it is the domain's own.
    #[must_use]
    pub fn is_owned(&self) -> bool {
        matches!(self.role, Role::Owned | Role::OwnedWithoutPin)
    }

    /// Reads `size` bytes (1, 2 or 4) at `offset`, naturally aligned, from the configuration space.
    pub fn read(&self, space: &mut (impl ConfigSpace + ?Sized), offset: u16, size: u8) -> u32 {
        let register = offset & !3;
        let word = match self.role {
            Role::Reserved => self.reserved_word(register),
            _ => {
                let word = self.overlaid(register);
                let word = word.unwrap_or_else(|| space.read(self.function.address, register, 4));
                self.disguise(register, word)
            }
        };
        narrow(word >> (8 * (offset & 3)), size)
    }

    /// Writes the low `size` bytes of `value` there.
    pub fn write(&mut self, hardware: &mut (impl Hardware + ?Sized), offset: u16, size: u8, value: u32) {
        if self.role == Role::Reserved {
            return;
        }
        let register = offset & !3;
        let shift = 8 * u32::from(offset & 3);
        let mask = narrow(u32::MAX, size) << shift;
        let bits = value << shift & mask;
        if (BARS..BARS + 4 * self.bar_count()).contains(&register) {
            return self.write_bar(register, bits, mask);
        }
        if !self.is_owned() {
            return;
        }
        match register {
            COMMAND => self.write_command(hardware, offset, size, bits, mask),
            INTERRUPT_LINE if mask & 0xff != 0 => self.line = bits as u8,
            _ if self.msi_register(register).is_some() => self.write_msi(hardware, register, bits, mask),
            _ if self.may_write(register) => {
                let bits = self.filtered(hardware, register, bits, mask);
                hardware.write(self.function.address, offset, size, bits >> shift);
            }
            _ => {}
        }
    }

    /// The function is to do nothing any more, and forgets what the domain wrote: everything masked and off. What it decodes
    /// stays as the firmware has left it.
    pub fn quiesce(&mut self, hardware: &mut (impl ConfigSpace + ?Sized)) {
        if !self.is_owned() {
            return;
        }
        let address = self.function.address;
        if let Some(capability) = self.function.msi {
            hardware.write(address, capability.offset + 2, 2, 0);
        }
        if let Some(capability) = self.function.msix {
            hardware.write(address, capability.offset + 2, 2, 0);
        }
        hardware.write(address, COMMAND, 2, COMMAND_NO_INTX);
        self.bars_home(hardware);
        let command = self.function.header_words[usize::from(COMMAND / 4)] & (COMMAND_IO | COMMAND_MEMORY);
        hardware.write(address, COMMAND, 2, command | COMMAND_NO_INTX);
        self.bars = homes(&self.function);
        self.line = 0;
        self.msi = (Message::default(), 0);
        self.msix.fill(Entry::MASKED);
        self.msix_known = false;
    }

    /// What reads where somebody else's function is: a device of no class and without registers.
    fn reserved_word(&self, register: u16) -> u32 {
        const CLASSLESS: u32 = 0xff_0000;
        const RESERVED: u32 = 0x00ff;
        match register {
            ID => u32::from(OWN_ID.0) | RESERVED << 16,
            CLASS => CLASSLESS << 8,
            CACHE_LINE => MULTI_FUNCTION << 16,
            _ => 0,
        }
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
        if !self.is_owned() && !self.is_bridge() {
            return None;
        }
        if (BARS..BARS + 4 * self.bar_count()).contains(&register) {
            return self.bars.get(usize::from((register - BARS) / 4)).copied();
        }
        // What an expansion ROM's register decodes would be memory of its own.
        if register == ROM && self.function.header == HeaderKind::Device {
            return Some(0);
        }
        if !self.is_owned() {
            return None;
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
        // Functions come and go with the machine: no slot's device is changed.
        if self.function.express == Some(register) && self.is_bridge() {
            return word & !(express::SLOT << 16);
        }
        // The link to the next one stays: id 0 is no capability's (PCI Express Base Specification 4.0, section 7.9.28).
        if register >= EXTENDED && self.function.hidden.iter().any(|&(start, _)| start == register) {
            return word & 0xfff0_0000;
        }
        if !self.is_owned() {
            return word;
        }
        match register {
            COMMAND if self.role == Role::OwnedWithoutPin => word & !COMMAND_NO_INTX,
            INTERRUPT_LINE => {
                let pin = if self.role == Role::Owned { 0xff00 } else { 0 };
                word & (0xffff_0000 | pin) | u32::from(self.line)
            }
            _ if self.msi_register(register) == Some(MsiRegister::Control) => self.disguise_msi(word),
            _ => word,
        }
    }

    /// Whether the domain may write this register of the function itself.
    fn may_write(&self, register: u16) -> bool {
        match register {
            CACHE_LINE => true,
            0..HEADER_END => false,
            _ => !self.function.hidden.iter().any(|&(start, end)| (start..end).contains(&register)),
        }
    }

    /// What of `bits`, which are to be written where `mask` is, may be: the rest stays as it is.
    fn filtered(
        &mut self,
        hardware: &mut (impl Hardware + ?Sized),
        register: u16,
        bits: u32,
        mask: u32,
    ) -> u32 {
        let kept = match self.function.express {
            // The path to memory carries no larger packets than its bridges do.
            Some(at) if register == at + express::CONTROL => mask & express::PAYLOAD,
            _ => 0,
        };
        let kept = kept | self.held_msix(hardware, register, bits, mask);
        if kept == 0 {
            return bits;
        }
        bits & !kept | hardware.read(self.function.address, register, 4) & kept
    }

    /// The command register: a kind of decoding can be turned on where all registers of that kind have a place of their own,
    /// and they have it again before that.
    fn write_command(
        &mut self,
        hardware: &mut (impl Hardware + ?Sized),
        offset: u16,
        size: u8,
        bits: u32,
        mask: u32,
    ) {
        let address = self.function.address;
        let mut bits = bits;
        if mask & COMMAND_BITS != 0 {
            let mut kept = 0;
            for (decoding, is_memory) in [(COMMAND_IO, false), (COMMAND_MEMORY, true)] {
                let mut bars = self.function.bars.iter().filter(|bar| bar.is_memory() == is_memory);
                if bars.any(|bar| !bar.is_placed()) {
                    kept |= decoding & mask;
                }
            }
            if kept != 0 {
                bits = bits & !kept | hardware.read(address, COMMAND, 2) & kept;
            }
            if self.role == Role::OwnedWithoutPin {
                bits |= COMMAND_NO_INTX & mask;
            }
            if bits & (COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER) != 0 {
                self.bars_home(hardware);
                // It has not been said in so few bytes, and a reset has forgotten it.
                if self.role == Role::OwnedWithoutPin && mask & COMMAND_NO_INTX == 0 {
                    let command = hardware.read(address, COMMAND, 2);
                    hardware.write(address, COMMAND, 2, command | COMMAND_NO_INTX);
                }
            }
        }
        hardware.write(address, offset, size, bits >> (8 * u32::from(offset & 3)));
    }

    /// Has the function's base address registers say what the firmware has written there, if it has forgotten it.
    fn bars_home(&self, hardware: &mut (impl ConfigSpace + ?Sized)) {
        let address = self.function.address;
        for bar in &self.function.bars {
            for half in 0..if bar.is_wide() { 2 } else { 1 } {
                let at = BARS + 4 * (u16::from(bar.index) + half);
                let home = self.function.header_words[usize::from(at / 4)];
                if hardware.read(address, at, 4) != home {
                    hardware.write(address, at, 4, home);
                }
            }
        }
    }

    fn write_bar(&mut self, register: u16, bits: u32, mask: u32) {
        let index = usize::from((register - BARS) / 4);
        let found = self.function.bars.iter().find(|bar| {
            let first = usize::from(bar.index);
            index == first || bar.is_wide() && index == first + 1
        });
        // What is not there reads as zero.
        let (Some(bar), Some(value)) = (found, self.bars.get_mut(index)) else { return };
        let upper = index > usize::from(bar.index);
        let (home, size) = (bar.raw(bar.address), bar.raw(!(bar.bytes - 1)));
        let pick = |(low, high): (u32, u32)| if upper { high } else { low };
        // Sizing reads back the size. Every other value reads back as where the registers are.
        let written = *value & !mask | bits;
        *value = if matches!(written, u32::MAX | 0xffff_fffc) { pick(size) } else { pick(home) };
    }
}

/// What the base address registers read: where the firmware has put the function.
fn homes(function: &Function) -> [u32; 6] {
    let mut bars = [0; 6];
    for bar in &function.bars {
        let (low, high) = bar.raw(bar.address);
        let at = usize::from(bar.index);
        bars[at] = low;
        if let (true, Some(place)) = (bar.is_wide(), bars.get_mut(at + 1)) {
            *place = high;
        }
    }
    bars
}

/// The low `size` bytes.
fn narrow(value: u32, size: u8) -> u32 {
    match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        _ => value,
    }
}
