//! A machine with functions made of registers, which checks what reaches it; and random domains.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::{
    Address, Bus, ConfigSpace, Function, Hardware, LineMode, Message, Reserved, Source, scan, settle,
};

/// A function's configuration space: what reads, and which bits can be written.
#[derive(Clone, Debug)]
pub struct Registers {
    /// Values.
    pub words: [u32; 1024],
    /// Bits that can be written.
    pub writable: [u32; 1024],
}

/// The machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Its functions.
    pub functions: BTreeMap<Address, Registers>,
    /// Memory of functions that was written.
    pub memory: BTreeMap<u64, u32>,
    /// The interrupts that were asked for, last message.
    pub routes: BTreeMap<Source, Message>,
    /// How lines are to signal, as last told, and how often the service of each has ended.
    pub lines: BTreeMap<u8, (Option<LineMode>, u32)>,
    /// Writes to ports so far.
    pub ports: Vec<(u16, u32)>,
    /// Writes to configuration space so far.
    pub writes: Vec<(Address, u16, u8, u32)>,
}

/// What [`Machine::route`] answers, so that a test recognises it.
pub const HOST: Message = Message { address: 0xfee0_1000, data: 0x55 };

impl Machine {
    /// A function forgets what has been written to it.
    pub fn reset(&mut self, at: Address) {
        let Some(function) = self.functions.get_mut(&at) else { return };
        for (word, writable) in function.words.iter_mut().zip(&function.writable) {
            *word &= !writable;
        }
    }
}

impl ConfigSpace for Machine {
    fn read(&mut self, at: Address, offset: u16, size: u8) -> u32 {
        assert!(offset.is_multiple_of(size.into()) && offset < 4096, "{offset:#x} of {size}");
        let word =
            self.functions.get(&at).map_or(u32::MAX, |function| function.words[usize::from(offset / 4)]);
        let word = word >> (8 * (offset & 3));
        if size == 4 { word } else { word & ((1 << (8 * size)) - 1) }
    }

    fn write(&mut self, at: Address, offset: u16, size: u8, value: u32) {
        assert!(offset.is_multiple_of(size.into()) && offset < 4096, "{offset:#x} of {size}");
        self.writes.push((at, offset, size, value));
        let Some(function) = self.functions.get_mut(&at) else { return };
        let shift = 8 * u32::from(offset & 3);
        let mask = (u32::MAX >> (32 - 8 * u32::from(size))) << shift;
        let word = usize::from(offset / 4);
        let mask = mask & function.writable[word];
        function.words[word] = function.words[word] & !mask | value << shift & mask;
    }
}

impl Hardware for Machine {
    fn route(&mut self, source: Source, message: Message) -> Option<Message> {
        self.routes.insert(source, message);
        (message.data & 0xff != 0xff).then_some(HOST)
    }

    fn set_line(&mut self, line: u8, mode: Option<LineMode>) {
        self.lines.entry(line).or_default().0 = mode;
    }

    fn end_line(&mut self, line: u8) {
        self.lines.entry(line).or_default().1 += 1;
    }

    fn read_port(&mut self, port: u16, size: u8) -> u32 {
        assert!((0xc000..=0xc020 - u16::from(size)).contains(&port), "{port:#x} is not the network card's");
        u32::from(port)
    }

    fn write_port(&mut self, port: u16, size: u8, value: u32) {
        assert_eq!(self.read_port(port, size), u32::from(port));
        self.ports.push((port, value));
    }

    fn read_memory(&mut self, hpa: u64, size: u8) -> u64 {
        assert!(hpa.is_multiple_of(size.into()));
        u64::from(self.memory.get(&hpa).copied().unwrap_or(0))
    }

    fn write_memory(&mut self, hpa: u64, size: u8, value: u64) {
        assert!(hpa.is_multiple_of(size.into()));
        self.memory.insert(hpa, value as u32);
    }
}

/// Where the [`machine`]'s disk is.
pub const DISK: Address = Address::new(0, 0, 4, 0);
/// Its host bridge.
pub const HOST_BRIDGE: Address = Address::new(0, 0, 0, 0);
/// Its bridge to bus 1.
pub const BRIDGE: Address = Address::new(0, 0, 2, 0);
/// The network card behind that.
pub const NETWORK: Address = Address::new(0, 1, 0, 0);
/// Its memory-mapped configuration space.
pub const ECAM: u64 = 0xb000_0000;
/// Host-physical address of the disk's registers; its MSI-X table is 0x2000 further on.
pub const DISK_MEMORY: u64 = 0xfebd_0000;

fn function(words: &[(u16, u32, u32)]) -> Registers {
    let mut registers = Registers { words: [0; 1024], writable: [0; 1024] };
    for &(offset, value, writable) in words {
        registers.words[usize::from(offset / 4)] = value;
        registers.writable[usize::from(offset / 4)] = writable;
    }
    registers
}

/// Two more disks of one device, both with MSI-X and so small that their registers share a page.
pub const SMALL: [Address; 2] = [Address::new(0, 0, 5, 0), Address::new(0, 0, 5, 1)];
/// Where the first one's registers are; the other's are 0x800 further on. Their tables are 0x400 from there.
pub const SMALL_MEMORY: u64 = 0xfebf_0000;

/// A machine with a host bridge; a disk with MSI-X, PCI Express, address translation and virtual functions; a bridge; a network
/// card with MSI behind that; and two small disks.
#[must_use]
pub fn machine() -> Machine {
    let mut machine = Machine::default();
    let host_bridge =
        [(0, 0x29c0_8086, 0), (4, 0, 0xffff), (8, 0x0600_0000, 0), (0x60, 0xb000_0001, u32::MAX)];
    machine.functions.insert(HOST_BRIDGE, function(&host_bridge));
    let disk = [
        (0, 0x0010_1b36, 0),
        (4, 0x0010_0007, 0x0407),
        (8, 0x0108_0202, 0),
        (0x10, DISK_MEMORY as u32 | 4, 0xffff_c000),
        (0x14, 0, u32::MAX),
        (0x30, 0, 0xffff_0000),
        (0x3c, 0x0100, 0xff),
        // MSI-X: 65 messages, in the first register's memory at 0x2000.
        (0x40, 0x0040_8011, 0xc000_0000),
        (0x44, 0x2000, 0),
        (0x48, 0x3000, 0),
        (0x80, 0x0002_0010, 0),
        (0x84, 1 << 28, 0),
        (0x88, 0x2020, 0x70ff),
        (0xa8, 9, 0xffff),
        // Addresses of its own.
        (0x34, 0xc0, 0),
        (0xc0, 0x0001_4014, 0),
        (0xc4, 0, u32::MAX),
        (0xc8, 0, u32::MAX),
        // Address translation services, a serial number, virtual functions.
        (0x100, 0x1401_000f, 0),
        (0x104, 0, u32::MAX),
        (0x140, 0x1801_0003, 0),
        (0x144, 0x1234_5678, 0),
        (0x180, 0x0001_0010, 0),
        (0x188, 0, u32::MAX),
        (0x190, 0, u32::MAX),
    ];
    machine.functions.insert(DISK, function(&disk));
    let bridge = [
        (0, 0x000c_1b36, 0),
        (4, 0x0000_0007, 0x0407),
        (8, 0x0604_0000, 0),
        (0xc, 0x0001_0000, 0),
        (0x18, 0x0001_0100, 0x00ff_ffff),
        (0x20, 0xfea0_fea0, 0xfff0_fff0),
        (0x3c, 0, 0x0043_00ff),
    ];
    machine.functions.insert(BRIDGE, function(&bridge));
    let network = [
        (0, 0x10d3_8086, 0),
        (4, 0x0010_0003, 0x0407),
        (8, 0x0200_0000, 0),
        (0x10, 0xfea0_0000, 0xfffe_0000),
        (0x14, 0xc001, 0xffe0),
        (0x34, 0xd0, 0),
        (0x3c, 0x0100, 0xff),
        // MSI with 64 bits and four messages.
        (0xd0, 0x0084_0005, 0x0071_0000),
        (0xd4, 0, !3),
        (0xd8, 0, u32::MAX),
        (0xdc, 0, 0xffff),
    ];
    machine.functions.insert(NETWORK, function(&network));
    for (address, memory) in SMALL.into_iter().zip([SMALL_MEMORY, SMALL_MEMORY + 0x800]) {
        let small = [
            (0, 0x0010_1b37, 0),
            (4, 0x0010_0002, 0x0407),
            (8, 0x0108_0202, 0),
            (0xc, 0x0080_0000, 0),
            (0x10, memory as u32, 0xffff_f800),
            (0x34, 0x40, 0),
            (0x3c, 0x0100, 0xff),
            // MSI-X: 4 messages; power management that forgets.
            (0x40, 0x0003_5011, 0xc000_0000),
            (0x44, 0x400, 0),
            (0x50, 0x0003_0001, 0),
            (0x54, 0, 3),
        ];
        machine.functions.insert(address, function(&small));
    }
    machine
}

/// Its functions.
#[must_use]
pub fn functions(machine: &mut Machine) -> Vec<Function> {
    let mut functions = scan(machine, 0, 0, 255);
    let collisions = settle(&mut functions, &Reserved::default());
    assert!(collisions.is_empty(), "{collisions:?}");
    functions
}

/// A domain's bus with all of the [`machine`]'s functions.
#[must_use]
pub fn bus(machine: &mut Machine) -> Bus {
    let mut bus = Bus::new(&functions(machine).iter(), |_| true, true);
    bus.add_window(ECAM, 0, 0, 255);
    bus.add_own();
    bus
}

/// Lets a domain do what `input` says, byte by byte, and checks what must never happen: a base address register that moves, a
/// message of the domain's own in the hardware, writes to the mainboard and to what is not the domain's. It owns all functions
/// but the second small disk, which has something in its own table, and is without pins.
pub fn drive(input: &[u8]) {
    let mut machine = machine();
    let before = machine.functions.clone();
    let mut bus = Bus::new(&functions(&mut machine).iter(), |function| function.address != SMALL[1], false);
    bus.add_window(ECAM, 0, 0, 255);
    bus.add_own();
    bus.quiesce(&mut machine);
    for offset in (0..64).step_by(4) {
        machine.memory.insert(SMALL_MEMORY + 0xc00 + offset, 0xfee0_3000 + offset as u32);
        // What the firmware or another owner has left open in the first one's.
        machine.memory.insert(SMALL_MEMORY + 0x400 + offset, 0);
    }
    for bytes in input.chunks_exact(8) {
        let [op, a, b, c, v0, v1, v2, v3] = *bytes else { continue };
        let value = u32::from_le_bytes([v0, v1, v2, v3]);
        let size = 1 << (op >> 2 & 3);
        let own = Address::new(0, 0, 30, 0);
        let mut at = [HOST_BRIDGE, DISK, BRIDGE, NETWORK, SMALL[0], SMALL[1], own][usize::from(a % 7)];
        at.routing ^= u16::from(a >> 6) << 3;
        let offset = u64::from(b) | u64::from(c & 15) << 8;
        let gpa = match op >> 4 & 3 {
            0 | 1 => ECAM + u64::from(at.routing) * 4096 + offset,
            2 => DISK_MEMORY + 0x2000 + offset,
            _ => SMALL_MEMORY + offset,
        };
        // The functions reset themselves where they are told to, or at any other time.
        if op >> 6 == 3 && ![HOST_BRIDGE, BRIDGE, SMALL[1]].contains(&at) {
            machine.reset(at);
        }
        match op & 3 {
            0 => {
                let _ = bus.read_memory(&mut machine, gpa, size);
            }
            1 => bus.write_memory(&mut machine, gpa, size, u64::from(value) * 0x1_0000_0001),
            2 => {
                let address = 1 << 31 | u32::from(at.routing) << 8 | u32::from(b);
                assert!(bus.write_port(&mut machine, 0xcf8, 4, address));
                let _ = bus.read_port(&mut machine, 0xcf8 + u16::from(c & 7), size.min(4));
                let _ = bus.read_port(&mut machine, 0xbff0 | u16::from(c & 63), size.min(4));
            }
            _ => {
                assert!(bus.write_port(&mut machine, 0xcf8, 4, value | 1 << 31));
                let _ = bus.write_port(&mut machine, 0xcf8 + u16::from(c & 7), size.min(4), value);
                let _ = bus.write_port(&mut machine, 0xbff0 + u16::from(c & 63), size.min(4), value);
            }
        }
        check(&machine, &before);
    }
    bus.quiesce(&mut machine);
    check(&machine, &before);
    for address in [DISK, NETWORK, SMALL[0]] {
        let function = &machine.functions[&address];
        assert_eq!(
            function.words[1] & 0x407,
            0x400 | before[&address].words[1] & 3,
            "{address} is not quiet"
        );
        assert_eq!(function.words[4..10], before[&address].words[4..10], "{address} is not at home");
    }
}

fn check(machine: &Machine, before: &BTreeMap<Address, Registers>) {
    for address in [HOST_BRIDGE, BRIDGE, SMALL[1]] {
        assert!(machine.functions[&address].words == before[&address].words, "{address} was written");
    }
    for address in [DISK, NETWORK, SMALL[0]] {
        let (now, then) = (&machine.functions[&address].words, &before[&address].words);
        assert!(now[1] & 3 == 0 || now[4..10] == then[4..10], "{address} decodes what is not its own");
        assert!(now[1] & 7 == 0 || now[1] & 0x400 != 0, "{address} uses a line of others'");
    }
    let (now, then) = (&machine.functions[&DISK].words, &before[&DISK].words);
    assert!(now[0x100 / 4..] == then[0x100 / 4..], "what is hidden was written");
    let network = &machine.functions[&NETWORK].words;
    if network[0xd0 / 4] >> 16 & 1 != 0 {
        let message = (u64::from(network[0xd4 / 4]) | u64::from(network[0xd8 / 4]) << 32, network[0xdc / 4]);
        assert_eq!(message, (HOST.address, HOST.data), "MSI that is not the host's");
        assert_eq!(network[0xd0 / 4] >> 20 & 7, 0, "several messages");
    }
    let enabled = |address, at: usize| machine.functions[&address].words[at / 4] >> 31 != 0;
    for (table, entries, is_on) in
        [(DISK_MEMORY + 0x2000, 65, true), (SMALL_MEMORY + 0x400, 4, enabled(SMALL[0], 0x40))]
    {
        for entry in 0..entries {
            let word = |at| machine.memory.get(&(table + entry * 16 + at)).copied();
            if is_on && word(12).is_some_and(|control| control & 1 == 0) {
                let expected = (Some(HOST.address as u32), Some(0), Some(HOST.data));
                assert_eq!((word(0), word(4), word(8)), expected, "MSI-X that is not the host's");
            }
        }
    }
    for offset in (0..64).step_by(4) {
        let word = machine.memory[&(SMALL_MEMORY + 0xc00 + offset)];
        assert_eq!(word, 0xfee0_3000 + offset as u32, "another's table was written");
    }
}
