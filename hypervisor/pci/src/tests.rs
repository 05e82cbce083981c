use alloc::string::ToString;
use alloc::vec::Vec;

use proptest::prelude::*;

use crate::testing::{
    BRIDGE, DISK, DISK_MEMORY, ECAM, HOST, HOST_BRIDGE, Machine, NETWORK, SMALL, SMALL_MEMORY, bus, drive,
    functions, machine,
};
use crate::{Address, BarKind, Bus, Collision, Function, Layout, Message, Reserved, Source, scan, settle};

fn at(address: Address, offset: u64) -> u64 {
    ECAM + u64::from(address.routing) * 4096 + offset
}

fn both() -> (Machine, Bus) {
    let mut machine = machine();
    let bus = bus(&mut machine);
    (machine, bus)
}

#[test]
fn a_scan_goes_through_bridges() {
    let mut machine = machine();
    let before = machine.functions.clone();
    let found = scan(&mut machine, 0, 0, 255);
    let addresses: Vec<_> = found.iter().map(|function| function.address).collect();
    assert_eq!(addresses, [HOST_BRIDGE, BRIDGE, DISK, SMALL[0], SMALL[1], NETWORK]);
    let disk = &found[2];
    assert_eq!(disk.class, 0x010802);
    assert_eq!(disk.address.to_string(), "0000:00:04.0");
    assert_eq!(disk.bars.len(), 1);
    assert_eq!((disk.bars[0].address, disk.bars[0].bytes), (DISK_MEMORY, 0x4000));
    assert_eq!(disk.bars[0].kind, BarKind::Memory { wide: true, prefetchable: false });
    assert_eq!(disk.msix_table(), Some((DISK_MEMORY + 0x2000, 65 * 16)));
    assert_eq!(disk.hidden[..], [(0xc0, 0x100), (0x100, 0x140), (0x180, 0x1000)]);
    assert!(disk.can_reset && disk.controls.contains(&(0x88, 0x2020)));
    let network = &found[5];
    assert_eq!(network.bars[0].bytes, 0x20000);
    assert_eq!((network.bars[1].address, network.bars[1].bytes), (0xc000, 32));
    assert!(network.msi.is_some_and(|msi| msi.wide && !msi.maskable));
    // Sizing has left everything as it was.
    for (address, function) in &before {
        assert_eq!(machine.functions[address].words, function.words, "{address}");
    }
}

#[test]
fn an_owner_reaches_whole_pages_of_its_own() {
    let mut machine = machine();
    let found = functions(&mut machine);
    let layout = Layout::new(found.iter(), &[]);
    let direct = [(0xfea0_0000, 0x2_0000), (DISK_MEMORY, 0x2000), (DISK_MEMORY + 0x3000, 0x1000)];
    assert_eq!(layout.direct, direct);
    // Those with tables; and of the small ones there is nothing else.
    assert_eq!(layout.judged, [(DISK_MEMORY + 0x2000, 0x1000), (SMALL_MEMORY, 0x1000)]);
    assert_eq!(Layout::new(found.iter().chain(&found), &[]), layout, "twice is no more than once");
    // A page that others have a part in, one beside the mainboard's, and one that is the function's alone.
    let mut small = found.iter().find(|function| function.address == SMALL[0]).unwrap().clone();
    small.msix = None;
    let one = |function: &Function, foreign: &[(u64, u64)]| Layout::new(core::iter::once(function), foreign);
    let shared = Layout { direct: Vec::new(), judged: [(SMALL_MEMORY, 0x1000)].to_vec() };
    assert_eq!(one(&small, &[(SMALL_MEMORY + 0x800, 0x10)]), shared);
    assert_eq!(one(&small, &[(SMALL_MEMORY + 0x1000, 0x10)]).direct, [(SMALL_MEMORY, 0x1000)]);
    small.bars[0].address = 0xfed0_0800;
    assert_eq!(one(&small, &[]).judged, [(0xfed0_0000, 0x1000)]);
}

#[test]
fn what_something_else_decodes_is_nobodys() {
    let mut machine = machine();
    let mut found = scan(&mut machine, 0, 0, 255);
    let reserved = Reserved {
        memory: [(DISK_MEMORY + 0x3fff, DISK_MEMORY + 0x4001)].to_vec(),
        ports: [(0xc01f, 0xc020)].to_vec(),
    };
    let of = |function, register, start| Collision { function, register, start };
    assert_eq!(settle(&mut found, &reserved), [of(DISK, 0, DISK_MEMORY), of(NETWORK, 1, 0xc000)]);
    assert_eq!(settle(&mut found, &reserved), [], "once and for all");
    let mut bus = Bus::new(&found.iter(), |_| true, true);
    bus.add_window(ECAM, 0, 0, 255);
    bus.quiesce(&mut machine);
    assert_eq!(bus.read_memory(&mut machine, at(DISK, 0x10), 4), 4, "not placed");
    assert_eq!(bus.read_memory(&mut machine, DISK_MEMORY + 0x2000, 4), 0xffff_ffff);
    assert_eq!(bus.read_port(&mut machine, 0xc000, 4), None);
    // Decoding stays as the firmware has left it.
    for (address, value) in [(DISK, 0x403), (NETWORK, 0x403)] {
        bus.write_memory(&mut machine, at(address, 4), 2, 0);
        let kept = if address == DISK { 2 } else { 1 };
        assert_eq!(machine.functions[&address].words[1] & 0x407, kept);
        machine.reset(address);
        bus.write_memory(&mut machine, at(address, 4), 2, value);
        assert_eq!(machine.functions[&address].words[1] & 0x407, 0x403 & !kept);
    }
    // Two of the same place.
    let mut found = scan(&mut machine, 0, 0, 255);
    found[4].bars[0].address = found[3].bars[0].address;
    let both = [of(SMALL[0], 0, SMALL_MEMORY), of(SMALL[1], 0, SMALL_MEMORY)];
    assert_eq!(settle(&mut found, &Reserved::default()), both);
}

#[test]
fn a_page_of_several_functions_shows_each_owner_its_own() {
    let (mut machine, mut bus) = (machine(), Bus::default());
    let found = functions(&mut machine);
    for own in SMALL {
        bus = Bus::new(&found.iter(), |function| function.address == own, true);
        bus.add_window(ECAM, 0, 0, 255);
        let other = SMALL_MEMORY + if own == SMALL[0] { 0x800 } else { 0 };
        // The other's table, and its registers.
        for offset in [0x400, 0x40c, 0x10] {
            bus.write_memory(&mut machine, other + offset, 4, 0);
            assert_eq!(bus.read_memory(&mut machine, other + offset, 4), 0xffff_ffff);
        }
    }
    assert!(machine.memory.is_empty());
    // Its own, the second one's: a register, and an entry, which is Caisson's in the table.
    bus.write_memory(&mut machine, SMALL_MEMORY + 0x810, 4, 0x77);
    assert_eq!(bus.read_memory(&mut machine, SMALL_MEMORY + 0x810, 4), 0x77);
    bus.write_memory(&mut machine, SMALL_MEMORY + 0xc00, 4, 0xfee0_5000);
    bus.write_memory(&mut machine, SMALL_MEMORY + 0xc0c, 4, 0);
    assert_eq!(machine.memory[&(SMALL_MEMORY + 0xc00)], HOST.address as u32);
    // Function 0 is there, so that somebody looks for function 1.
    assert_eq!(bus.read_memory(&mut machine, at(SMALL[0], 0), 4), 0x00ff_ca15);
    assert_eq!(bus.read_memory(&mut machine, at(SMALL[0], 0xe), 1), 0x80);
    machine.writes.clear();
    bus.write_memory(&mut machine, at(SMALL[0], 4), 2, 7);
    assert!(machine.writes.is_empty());
    assert_eq!(bus.read_memory(&mut machine, at(DISK, 0), 4), 0xffff_ffff);
}

#[test]
fn a_function_that_was_reset_decodes_nothing_before_it_is_home() {
    let (mut machine, mut bus) = both();
    machine.reset(DISK);
    machine.writes.clear();
    assert_eq!(machine.functions[&DISK].words[4], 4, "it has forgotten where it is");
    assert_eq!(bus.read_memory(&mut machine, at(DISK, 0x10), 8), DISK_MEMORY | 4);
    bus.write_memory(&mut machine, at(DISK, 4), 2, 6);
    assert_eq!(machine.functions[&DISK].words[4], DISK_MEMORY as u32 | 4);
    let order: Vec<_> = machine.writes.iter().map(|(_, offset, ..)| *offset).collect();
    assert_eq!(order, [0x10, 4], "first the place");
}

#[test]
fn tables_of_messages_are_closed_before_they_are_used() {
    let (mut machine, mut bus) = both();
    let control = at(SMALL[0], 0x42);
    machine.memory.insert(SMALL_MEMORY + 0x40c, 0);
    bus.write_memory(&mut machine, at(SMALL[0], 4), 2, 0);
    bus.write_memory(&mut machine, control, 2, 0x8000);
    assert_eq!(bus.read_memory(&mut machine, control, 2), 3, "without its memory it cannot be turned on");
    bus.write_memory(&mut machine, at(SMALL[0], 4), 2, 2);
    bus.write_memory(&mut machine, control, 2, 0x8000);
    assert_eq!(bus.read_memory(&mut machine, control, 2), 0x8003);
    assert_eq!(machine.memory[&(SMALL_MEMORY + 0x40c)], 1);
}

#[test]
fn without_lines_a_pin_is_silent() {
    let mut machine = machine();
    let found = functions(&mut machine);
    let mut bus = Bus::new(&found.iter(), |_| true, false);
    bus.add_window(ECAM, 0, 0, 255);
    assert_eq!(bus.read_memory(&mut machine, at(DISK, 0x3d), 1), 0, "no pin");
    for size in [1, 2, 4] {
        machine.reset(DISK);
        bus.write_memory(&mut machine, at(DISK, 4), size, 6);
        assert_eq!(machine.functions[&DISK].words[1] & 0x407, 0x406);
        assert_eq!(bus.read_memory(&mut machine, at(DISK, 4), 2), 6);
    }
}

#[test]
fn packets_stay_as_large_as_the_path_carries() {
    let (mut machine, mut bus) = both();
    bus.write_memory(&mut machine, at(DISK, 0x88), 2, 0x50e0);
    assert_eq!(machine.functions[&DISK].words[0x88 / 4], 0x5020);
}

#[test]
fn base_address_registers_can_be_sized_and_not_moved() {
    let (mut machine, mut bus) = both();
    let bar = at(DISK, 0x10);
    assert_eq!(bus.read_memory(&mut machine, bar, 4), DISK_MEMORY | 4);
    bus.write_memory(&mut machine, bar, 4, u64::from(u32::MAX));
    bus.write_memory(&mut machine, bar + 4, 4, u64::from(u32::MAX));
    assert_eq!(bus.read_memory(&mut machine, bar, 8), 0xffff_ffff_ffff_c004);
    bus.write_memory(&mut machine, bar, 4, 0xd000_0000);
    bus.write_memory(&mut machine, bar + 4, 4, 0);
    assert_eq!(bus.read_memory(&mut machine, bar, 8), DISK_MEMORY | 4);
    // The ROM is not there.
    bus.write_memory(&mut machine, at(DISK, 0x30), 4, 0xffff_f800);
    assert_eq!(bus.read_memory(&mut machine, at(DISK, 0x30), 4), 0);
}

#[test]
fn msi_is_the_hosts_in_the_function() {
    let (mut machine, mut bus) = both();
    let mut write = |offset, size, value| {
        bus.write_memory(&mut machine, at(NETWORK, offset), size, value);
    };
    write(0xd4, 4, 0xfee0_2004);
    write(0xd8, 4, 0);
    write(0xdc, 2, 0x4041);
    write(0xd2, 2, 0x31);
    let source = Source { function: 5, entry: 0 };
    assert_eq!(machine.routes[&source], Message { address: 0xfee0_2004, data: 0x4041 });
    let words = machine.functions[&NETWORK].words;
    assert_eq!((words[0xd4 / 4], words[0xdc / 4]), (HOST.address as u32, HOST.data));
    assert_eq!(words[0xd0 / 4] >> 16 & !0xe, 0x81, "enabled, one message of the four");
    // The domain sees its own.
    assert_eq!(bus.read_memory(&mut machine, at(NETWORK, 0xd4), 4), 0xfee0_2004);
    assert_eq!(bus.read_memory(&mut machine, at(NETWORK, 0xdc), 2), 0x4041);
    assert_eq!(bus.read_memory(&mut machine, at(NETWORK, 0xd2), 2), 0x81);
    bus.write_memory(&mut machine, at(NETWORK, 0xd2), 2, 0);
    assert_eq!(machine.functions[&NETWORK].words[0xd0 / 4] >> 16 & 1, 0);
}

#[test]
fn msix_is_the_hosts_in_the_table() {
    let (mut machine, mut bus) = both();
    let entry = DISK_MEMORY + 0x2000 + 3 * 16;
    assert_eq!(bus.read_memory(&mut machine, entry + 12, 4), 1, "masked at first");
    bus.write_memory(&mut machine, entry, 8, 0xfee0_1004);
    bus.write_memory(&mut machine, entry + 8, 4, 0x33);
    assert_eq!(machine.memory.get(&(entry + 12)), Some(&1), "still masked");
    bus.write_memory(&mut machine, entry + 12, 4, 0);
    assert_eq!(
        machine.routes[&Source { function: 2, entry: 3 }],
        Message { address: 0xfee0_1004, data: 0x33 }
    );
    assert_eq!(machine.memory[&entry], HOST.address as u32);
    assert_eq!((machine.memory[&(entry + 8)], machine.memory[&(entry + 12)]), (HOST.data, 0));
    assert_eq!(bus.read_memory(&mut machine, entry, 8), 0xfee0_1004);
    // No interrupt of the host's is left: the entry stays masked.
    bus.write_memory(&mut machine, entry + 8, 4, 0xff);
    assert_eq!(machine.memory[&(entry + 12)], 1);
    // Control goes to the function.
    bus.write_memory(&mut machine, at(DISK, 0x42), 2, 0xc000);
    assert_eq!(machine.functions[&DISK].words[0x40 / 4] >> 30, 3);
}

#[test]
fn what_reaches_beyond_a_function_is_hidden() {
    let (mut machine, mut bus) = both();
    assert_eq!(bus.read_memory(&mut machine, at(DISK, 0x100), 4), 0x1400_0000, "the link stays");
    bus.write_memory(&mut machine, at(DISK, 0x104), 4, 0x8000_0000);
    assert_eq!(machine.functions[&DISK].words[0x104 / 4], 0);
    assert_eq!(bus.read_memory(&mut machine, at(DISK, 0x140), 4), 0x1801_0003);
    bus.write_memory(&mut machine, at(DISK, 0x188), 4, 1);
    assert_eq!(machine.functions[&DISK].words[0x188 / 4], 0, "virtual functions");
    bus.write_memory(&mut machine, at(DISK, 0xc4), 4, 0xfec0_0000);
    assert_eq!(machine.functions[&DISK].words[0xc4 / 4], 0, "addresses beside the registers");
    // Chipset and bridges.
    bus.write_memory(&mut machine, at(HOST_BRIDGE, 0x60), 4, 0);
    bus.write_memory(&mut machine, at(BRIDGE, 0x18), 4, 0);
    bus.write_memory(&mut machine, at(BRIDGE, 0x20), 4, 0);
    assert_eq!(machine.functions[&HOST_BRIDGE].words[0x60 / 4], 0xb000_0001);
    assert_eq!(machine.functions[&BRIDGE].words[0x18 / 4], 0x0001_0100);
    assert_eq!(machine.functions[&BRIDGE].words[0x20 / 4], 0xfea0_fea0);
}

#[test]
fn ports_lead_to_the_same_registers() {
    let (mut machine, mut bus) = both();
    assert!(bus.write_port(&mut machine, 0xcf8, 4, 1 << 31 | u32::from(DISK.routing) << 8));
    // Its own ports, and no others.
    assert_eq!(bus.read_port(&mut machine, 0xc01e, 2), Some(0xc01e));
    assert!(bus.write_port(&mut machine, 0xc000, 4, 7));
    assert_eq!(machine.ports, [(0xc000, 7)]);
    assert_eq!(bus.read_port(&mut machine, 0xc01e, 4), None);
    assert_eq!(bus.read_port(&mut machine, 0xcf9, 1), None, "the reset register");
    assert!(!bus.write_port(&mut machine, 0x604, 2, 0x2000));
    assert_eq!(bus.read_port(&mut machine, 0xcf8, 4), Some(1 << 31 | u32::from(DISK.routing) << 8));
    assert_eq!(bus.read_port(&mut machine, 0xcfc, 4), Some(0x0010_1b36));
    assert_eq!(bus.read_port(&mut machine, 0xcfe, 2), Some(0x0010));
    assert_eq!(bus.read_port(&mut machine, 0xcfd, 1), Some(0x1b));
    assert_eq!(bus.read_port(&mut machine, 0xcfd, 2), Some(0xffff), "not aligned");
    assert!(bus.write_port(&mut machine, 0xcf8, 4, u32::from(DISK.routing) << 8));
    assert_eq!(bus.read_port(&mut machine, 0xcfc, 4), Some(u32::MAX), "not enabled");
    assert!(bus.write_port(&mut machine, 0xcf8, 4, 1 << 31 | 0x5000));
    assert_eq!(bus.read_port(&mut machine, 0xcfc, 4), Some(u32::MAX), "nobody there");
}

#[test]
fn caissons_own_function_is_among_them() {
    let (mut machine, mut bus) = both();
    let own = Address::new(0, 0, 30, 0);
    assert_eq!(bus.read_memory(&mut machine, at(own, 0), 4), 0x0001_ca15);
    assert_eq!(bus.read_memory(&mut machine, at(own, 2), 2), 1);
    bus.write_memory(&mut machine, at(own, 0x10), 4, 0xc000_0000);
    bus.write_memory(&mut machine, at(own, 4), 2, 2);
    assert_eq!(bus.own_register(0xc000_0018), Some(0x18));
    assert!(machine.writes.iter().all(|(at, ..)| *at != own), "it is nowhere in the machine");
}

#[test]
fn a_function_that_is_not_the_domains_is_not_there() {
    let mut machine = machine();
    let functions = functions(&mut machine);
    let mut bus = Bus::new(&functions.iter(), |function| function.address != DISK, true);
    bus.add_window(ECAM, 0, 0, 255);
    assert_eq!(bus.read_memory(&mut machine, at(DISK, 0), 4), 0xffff_ffff);
    machine.writes.clear();
    bus.write_memory(&mut machine, at(DISK, 4), 2, 7);
    assert!(machine.writes.is_empty());
    bus.write_memory(&mut machine, DISK_MEMORY + 0x200c, 4, 0);
    assert!(machine.memory.is_empty());
}

proptest! {
    #[test]
    fn no_domain_breaks_out(input in proptest::collection::vec(any::<u8>(), 0..4000)) {
        drive(&input);
    }

    #[test]
    fn no_function_is_too_strange(words in proptest::collection::vec(any::<u32>(), 64), header in 0u32..4) {
        let mut machine = machine();
        if let Some(function) = machine.functions.get_mut(&DISK) {
            function.words[..64].copy_from_slice(&words);
            function.words[3] = header << 16;
        }
        let mut found = scan(&mut machine, 0, 0, 255);
        let _ = settle(&mut found, &Reserved::default());
        let _ = Layout::new(found.iter(), &[]);
        for function in found {
            for bar in &function.bars {
                prop_assert!(bar.bytes.is_power_of_two() && bar.address.is_multiple_of(bar.bytes));
            }
        }
        drive(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
    }
}
