//! The functions of a domain, behind the ways to them: ports, memory-mapped configuration space, MSI-X tables.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use crate::registers::SPACE;
use crate::view::{Hardware, Role, View};
use crate::{Address, ConfigSpace, Function, Own};

/// The ports of configuration mechanism #1: the address register and the data window (PCI Local Bus Specification 3.0,
/// section 3.2.2.3.2).
pub const PORTS: RangeInclusive<u16> = 0xcf8..=0xcff;

const ADDRESS_PORT: u16 = 0xcf8;
/// Enable; the rest is bus, device, function and register.
const ENABLE: u32 = 1 << 31;
const IMPLEMENTED: u32 = 0x80ff_fffc;
/// Bytes of memory-mapped configuration space of each function (PCI Express Base Specification 4.0, section 7.2.2).
pub const EXPRESS_FUNCTION_BYTES: u64 = SPACE as u64;

/// A range of memory-mapped configuration space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Window {
    /// Where bus `first` is.
    start: u64,
    segment: u16,
    first: u8,
    last: u8,
}

/// The functions of a domain.
#[derive(Clone, Debug, Default)]
pub struct Bus {
    /// In ascending order of their addresses.
    views: Vec<View>,
    windows: Vec<Window>,
    /// Caisson's own function, and where it is.
    own: Option<(Address, Own)>,
    /// The address register of the ports.
    address: u32,
}

impl Bus {
    /// The bus of the domain that owns those of the machine's `functions` for which `owns` says so. `has_lines`: their pins lead
    /// to lines of its own, where nobody else's functions are.
    ///
    /// It sees bridges and what is the mainboard's as well, so that its kernel finds its way, and cannot change them.
    #[must_use]
    pub fn new<'a>(
        functions: &(impl Iterator<Item = &'a Function> + Clone),
        owns: impl Fn(&Function) -> bool,
        has_lines: bool,
    ) -> Self {
        let is_own = |function: &Function| !function.is_mainboard() && owns(function);
        let device = |function: &Function| (function.address.segment, function.address.routing & !7);
        let role = |function: &Function| {
            if function.is_mainboard() {
                return Some(Role::Shown);
            }
            if is_own(function) {
                return Some(if has_lines { Role::Owned } else { Role::OwnedWithoutPin });
            }
            let mut others = functions.clone().filter(|other| device(other) == device(function));
            let is_first = function.address.function() == 0;
            (is_first && others.any(|other| other.is_mainboard() || is_own(other))).then_some(Role::Reserved)
        };
        let mut seen: Vec<(&Function, Role)> =
            functions.clone().filter_map(|function| Some((function, role(function)?))).collect();
        seen.sort_unstable_by_key(|(function, _)| function.address);
        seen.dedup_by_key(|(function, _)| function.address);
        let view =
            |(index, (function, role)): (u16, (&Function, Role))| View::new(function.clone(), role, index);
        Self { views: (0..).zip(seen).map(view).collect(), ..Self::default() }
    }

    /// Adds Caisson's own function, at the last device number of bus 0 that nobody has.
    pub fn add_own(&mut self) {
        let free = (1..31).rev().map(|device| Address::new(0, 0, device, 0));
        let taken =
            |at: &Address| self.views.iter().any(|view| view.function().address.routing & !7 == at.routing);
        self.own = free.into_iter().find(|at| !taken(at)).map(|at| (at, Own::new()));
    }

    /// Caisson's own function.
    pub fn own(&mut self) -> Option<&mut Own> {
        self.own.as_mut().map(|(_, own)| own)
    }

    /// Where in its registers `gpa` is.
    #[must_use]
    pub fn own_register(&self, gpa: u64) -> Option<u16> {
        self.own.as_ref()?.1.register(gpa)
    }

    /// There is memory-mapped configuration space of buses `first` to `last` of a segment, where bus `first`'s starts at
    /// `start`.
    pub fn add_window(&mut self, start: u64, segment: u16, first: u8, last: u8) {
        self.windows.push(Window { start, segment, first, last });
    }

    /// The functions, as they are seen.
    #[must_use]
    pub fn views(&self) -> &[View] {
        &self.views
    }

    /// Reads `size` bytes (1, 2 or 4) at one of [`PORTS`], or at a port that a function decodes; `None` for others.
    pub fn read_port(&mut self, hardware: &mut (impl Hardware + ?Sized), port: u16, size: u8) -> Option<u32> {
        if !PORTS.contains(&port) {
            return self.owns_port(port, size).then(|| hardware.read_port(port, size));
        }
        // The reset register, which is the chipset's, is inside of the address register, where only words are taken.
        if port < ADDRESS_PORT + 4 {
            return ((port, size) == (ADDRESS_PORT, 4)).then_some(self.address);
        }
        Some(match self.selected(port, size) {
            Some((at, offset)) => self.read(hardware, at, offset, size),
            None => ones(size),
        })
    }

    /// Writes the low `size` bytes of `value` there. `false` for other ports.
    pub fn write_port(
        &mut self,
        hardware: &mut (impl Hardware + ?Sized),
        port: u16,
        size: u8,
        value: u32,
    ) -> bool {
        if !PORTS.contains(&port) {
            let owned = self.owns_port(port, size);
            if owned {
                hardware.write_port(port, size, value);
            }
            return owned;
        }
        if port < ADDRESS_PORT + 4 {
            let whole = (port, size) == (ADDRESS_PORT, 4);
            if whole {
                self.address = value & IMPLEMENTED;
            }
            return whole;
        }
        if let Some((at, offset)) = self.selected(port, size) {
            self.write(hardware, at, offset, size, value);
        }
        true
    }

    /// Whether a base address register of the domain's decodes all of these ports.
    fn owns_port(&self, port: u16, size: u8) -> bool {
        self.views.iter().any(|view| view.is_owned() && view.function().decodes_ports(port, size))
    }

    /// Reads `size` bytes (1, 2, 4 or 8) of memory that the domain does not reach by itself: configuration space, and
    /// [`crate::Layout::judged`]. All ones elsewhere.
    pub fn read_memory(&mut self, hardware: &mut (impl Hardware + ?Sized), gpa: u64, size: u8) -> u64 {
        let missing = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        if !gpa.is_multiple_of(u64::from(size.max(1))) {
            return missing;
        }
        if let Some((address, offset)) = self.window(gpa) {
            return if size == 8 {
                let low = self.read(hardware, address, offset, 4);
                u64::from(low) | u64::from(self.read(hardware, address, offset + 4, 4)) << 32
            } else {
                u64::from(self.read(hardware, address, offset, size))
            };
        }
        match self.views.iter().find(|view| Self::owns_memory(view, gpa, size)) {
            Some(view) => view.read_memory(hardware, gpa, size),
            None => missing,
        }
    }

    /// Writes the low `size` bytes of `value` there.
    pub fn write_memory(&mut self, hardware: &mut (impl Hardware + ?Sized), gpa: u64, size: u8, value: u64) {
        if !gpa.is_multiple_of(u64::from(size.max(1))) {
            return;
        }
        if let Some((address, offset)) = self.window(gpa) {
            if size == 8 {
                self.write(hardware, address, offset, 4, value as u32);
                self.write(hardware, address, offset + 4, 4, (value >> 32) as u32);
            } else {
                self.write(hardware, address, offset, size, value as u32);
            }
        } else if let Some(view) = self.views.iter_mut().find(|view| Self::owns_memory(view, gpa, size)) {
            view.write_memory(hardware, gpa, size, value);
        }
    }

    /// Stops all functions: no interrupts, no access to memory. For when their domain ends, and before it begins.
    pub fn quiesce(&mut self, hardware: &mut (impl ConfigSpace + ?Sized)) {
        self.views.iter_mut().for_each(|view| view.quiesce(hardware));
        if let Some((_, own)) = &mut self.own {
            *own = Own::new();
        }
        self.address = 0;
    }

    /// Reads from the configuration space at `at`: all ones where there is none.
    fn read(&self, hardware: &mut (impl Hardware + ?Sized), at: Address, offset: u16, size: u8) -> u32 {
        if let Some((_, own)) = self.own.as_ref().filter(|(place, _)| *place == at) {
            return own.read(offset) >> (8 * (offset & 3)) & ones(size);
        }
        let view = self.find(at).and_then(|index| self.views.get(index));
        view.map_or(ones(size), |view| view.read(hardware, offset, size))
    }

    /// Writes to it.
    fn write(
        &mut self,
        hardware: &mut (impl Hardware + ?Sized),
        at: Address,
        offset: u16,
        size: u8,
        value: u32,
    ) {
        if let Some((_, own)) = self.own.as_mut().filter(|(place, _)| *place == at) {
            let shift = 8 * u32::from(offset & 3);
            own.write(offset, value << shift, ones(size) << shift);
        } else if let Some(view) = self.find(at).and_then(|index| self.views.get_mut(index)) {
            view.write(hardware, offset, size, value);
        }
    }

    fn find(&self, address: Address) -> Option<usize> {
        self.views.binary_search_by_key(&address, |view| view.function().address).ok()
    }

    /// The function and offset that the ports have selected, for an access that lies in one register.
    fn selected(&self, port: u16, size: u8) -> Option<(Address, u16)> {
        let byte = port & 3;
        if self.address & ENABLE == 0 || !byte.is_multiple_of(u16::from(size.max(1))) {
            return None;
        }
        let address = Address { segment: 0, routing: (self.address >> 8) as u16 };
        Some((address, (self.address & 0xfc) as u16 | byte))
    }

    /// What of configuration space is at `gpa`.
    fn window(&self, gpa: u64) -> Option<(Address, u16)> {
        self.windows.iter().find_map(|window| {
            let offset = gpa.checked_sub(window.start)?;
            let routing = (offset / EXPRESS_FUNCTION_BYTES).checked_add(u64::from(window.first) << 8)?;
            let address = Address { segment: window.segment, routing: u16::try_from(routing).ok()? };
            (address.bus() <= window.last).then_some((address, (offset % EXPRESS_FUNCTION_BYTES) as u16))
        })
    }

    /// Whether the view's function is the domain's, and decodes this memory.
    fn owns_memory(view: &View, gpa: u64, size: u8) -> bool {
        view.is_owned() && view.function().decodes_memory(gpa, size)
    }
}

fn ones(size: u8) -> u32 {
    u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)))
}
