//! The blob: what goes in comes out, and what was damaged is refused.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use caisson_abi::Privileges;
use proptest::prelude::*;

use super::{FULL, full_blob, resolver, text};
use crate::fuzz::{drive, reseal};
use crate::source::{
    ConfigText, DeviceSettings, DeviceText, DiskText, DomainText, EntropyText, ModuleText, NetworkText,
};
use crate::{
    Blob, Console, Contract, DeviceBackend, DeviceKind, DiskFormat, Field, Functions, LoaderKind, LogLevel,
    MachineLimits, OnExit, OnExitAction, PoolPolicy, Reason, ReservedTime, SelectedConsole, build, show,
};

#[test]
fn what_goes_in_comes_out() {
    let bytes = full_blob();
    let blob = Blob::parse(&bytes).unwrap();
    assert_eq!(blob.machine().console, SelectedConsole::Domain(1));
    assert_eq!(blob.machine().log_level, LogLevel::Debug);
    let domains: Vec<_> = blob.domains().collect();
    let first = domains[0];
    assert_eq!((first.name(), first.memory(), first.vcpus()), ("first", 512 << 20, 2));
    assert_eq!((first.loader(), first.console()), (LoaderKind::Linux, Console::None));
    assert_eq!(first.cmdline(), "console=ttyS0 äöü");
    assert_eq!(first.on_exit().poweroff, OnExitAction::Restart);
    assert_eq!(first.on_exit().reboot, OnExitAction::Destroy);
    assert_eq!((first.max_restarts(), first.entropy(), domains[1].entropy()), (Some(3), false, true));
    assert_eq!((first.owns_devices(), domains[1].owns_devices()), (false, true));
    assert_eq!(first.kernel().data(), vec![0x5A; 5000]);
    let second = domains[1];
    assert_eq!(second.max_restarts(), None);
    let modules: Vec<_> = second.modules().collect();
    assert_eq!((modules[0].cmdline(), modules[0].payload().data()), ("one 1", b"@initrd".as_slice()));
    assert_eq!(modules[1].cmdline(), "");
    let pools: Vec<_> = blob.pools().collect();
    assert_eq!((pools[0].name, pools[0].policy, pools[0].quantum), ("rt", PoolPolicy::Sedf, 5000));
    assert_eq!((pools[1].name, pools[1].policy, pools[1].quantum), ("default", PoolPolicy::Bvt, 10_000));
    assert_eq!(blob.pool_cpus(0, 16).iter().collect::<Vec<_>>(), [2, 3, 8]);
    assert_eq!(blob.pool_cpus(1, 6).iter().collect::<Vec<_>>(), [0, 1, 4, 5]);
    assert_eq!((first.pool(), second.pool()), (1, 0));
    let contract = Contract { weight: 512, cap: Some(150), warp: 5000, warp_limit: 1500, reservation: None };
    assert_eq!(first.contract(), contract);
    assert!(first.cpus().is_empty() && first.prefer().contains(1) && !first.prefer().contains(2));
    let reservation = Some(ReservedTime { period: 20_000, slice: 5000, extra: false });
    assert_eq!(second.contract(), Contract { reservation, ..Contract::USUAL });
    assert_eq!(second.cpus().iter().collect::<Vec<_>>(), [2, 8]);
}

#[test]
fn devices_of_backends_come_out() {
    let bytes = full_blob();
    let blob = Blob::parse(&bytes).unwrap();
    let (first, second) = (blob.domain(0).unwrap(), blob.domain(1).unwrap());
    assert_eq!(first.privileges(), Privileges::EVENTS | Privileges::IO_BACKEND);
    assert_eq!((second.privileges(), first.virtio_devices().len()), (Privileges::empty(), 0));
    let devices: Vec<_> =
        second.virtio_devices().map(|device| (device.kind.code(), device.parameters)).collect();
    let expected = [
        (2, "path=/dev/nvme0n1p1\nformat=raw\nread_only=false\n"),
        (2, "path=/srv/data 1.qcow2\nformat=qcow2\nread_only=true\nserial=SN 0001\n"),
        (1, "bridge=br0\nmac=5a:cf:2d:a2:5f:6f\nanti_spoofing=true\nqueues=1\n"),
        (1, "bridge=br1\nmac=02:aa:00:00:00:01\nanti_spoofing=false\nrate=100000000\nvlan=7\nqueues=2\n"),
        (26, "tag=files\npath=/srv/files\n"),
        (3, "name=agent\n"),
    ];
    assert_eq!(devices, expected);
    assert!(second.virtio_devices().all(|device| device.backend == DeviceBackend::Domain(0)));
}

/// Random numbers come from Caisson or from another domain, and not from both.
#[test]
fn random_numbers_have_one_source() {
    let other =
        FULL.replace("entropy = true\n", "") + "[[domain.entropy]]\n[[domain.entropy]]\nrate = \"1M\"\n";
    let bytes = build(&text(&other), resolver).unwrap();
    let domain = Blob::parse(&bytes).unwrap().domain(1).unwrap();
    let sources: Vec<_> =
        domain.virtio_devices().skip(6).map(|one| (one.kind.code(), one.parameters)).collect();
    assert_eq!(sources, [(4, "rate=65536\n"), (4, "rate=1048576\n")]);
    assert!(!domain.entropy());
    let shown = show(&Blob::parse(&bytes).unwrap()).to_string();
    assert!(shown.contains("\n    entropy by first: rate=1048576\n"), "{shown}");
    let mut both = text(&other);
    both.domains[1].entropy = true;
    let error = "domain[1].entropy: Caisson serves random numbers, and so does another domain; leave one of the two out";
    assert!(both.check().unwrap_err().to_string().ends_with(error));
}

#[test]
fn equal_files_are_stored_once_and_aligned() {
    let bytes = full_blob();
    let blob = Blob::parse(&bytes).unwrap();
    let names: Vec<_> = blob.payloads().map(|payload| payload.name()).collect();
    assert_eq!(names, ["@initrd", "more.cpio", "@linux", "probe.elf"]);
    let copy = blob.domain(1).unwrap().modules().nth(1).unwrap().payload();
    assert_eq!(copy.index(), blob.domain(0).unwrap().kernel().index());
    assert!(blob.payloads().all(|payload| payload.offset() % 4096 == 0));
    assert_eq!(blob.total_len(), 6 * 4096);
}

#[test]
fn a_blob_can_be_shown() {
    let bytes = full_blob();
    let shown = show(&Blob::parse(&bytes).unwrap()).to_string();
    for line in [
        "machine: console second, log debug",
        "pool[0] rt: CPUs 2-3,8, sedf, quantum 5ms",
        "pool[1] default: CPUs the rest, bvt, quantum 10ms",
        "    pool default, weight 512, cap 150%, warp 5ms for up to 1500us, preferably on CPUs 0-1",
        "    pool rt, weight 256, 5ms in every 20ms and no more, on CPUs 2,8",
        "domain[0] first: 512M of memory, 2 vCPUs, loader linux, console none, 16M of the memory private, privileges events io-backend",
        "    disk by first: path=/srv/data 1.qcow2 format=qcow2 read_only=true serial=SN 0001",
        "    port by first: name=agent",
        "    kernel @linux (5000 bytes): console=ttyS0 äöü",
        "    module more.cpio (9 bytes)",
        "    on poweroff restart, on reboot destroy, on crash restart, at most 3 restarts",
        "domain[1] second: 1M of memory, 1 vCPU, loader auto, console serial, entropy, the machine's PCI functions",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line:?} is not in\n{shown}");
    }
}

#[test]
fn the_only_console_is_the_one_that_is_shown() {
    let one = FULL.replace("console = \"second\"", "");
    let bytes = build(&text(&one), resolver).unwrap();
    assert_eq!(Blob::parse(&bytes).unwrap().machine().console, SelectedConsole::Domain(1));
    let two = one.replace("console = \"none\"", "");
    let bytes = build(&text(&two), resolver).unwrap();
    assert_eq!(Blob::parse(&bytes).unwrap().machine().console, SelectedConsole::All);
}

#[test]
fn frames_that_do_not_fit_are_told_apart() {
    let good = full_blob();
    let reason = |bytes: &[u8]| Blob::parse(bytes).unwrap_err().to_string();
    assert!(reason(&[]).starts_with("blob: truncated, 0 of 96 bytes are there;"));
    assert!(reason(b"#!/bin/sh").starts_with("header.magic: not a Caisson config blob;"));
    assert!(reason(&good[..good.len() - 1]).starts_with("blob: truncated, 24575 of 24576"));
    let mut long = good.clone();
    long.push(0);
    assert!(reason(&long).starts_with("blob: 24577 bytes where 24576 belong"));
    let mut new = good.clone();
    new[8] = 4;
    assert!(reason(&new).starts_with("header.version: format version 4 is unknown"));
    let mut bad = good.clone();
    bad[100] ^= 1;
    assert!(reason(&bad).starts_with("header.sha256: the SHA-256 does not match"));
    let mut bad = good.clone();
    bad[4096] ^= 1;
    let file = "file \"@initrd\" of domain \"first\"";
    assert!(reason(&bad).starts_with(&format!("{file} (payload[0].sha256): the SHA-256 does not match")));
    let mut bad = good.clone();
    bad[3 * 4096] ^= 1;
    let file = "kernel \"@linux\" of domain \"first\"";
    assert!(reason(&bad).starts_with(&format!("{file} (payload[2].sha256): the SHA-256 does not match")));
    let mut bad = good.clone();
    *bad.last_mut().unwrap() = 1;
    assert!(reason(&bad).contains("(payload[3].padding): bytes that must be zero"), "{}", reason(&bad));
}

/// What the parser says about the full blob with some bytes of its metadata replaced and the checksum corrected.
fn patched(at: usize, patch: &[u8]) -> (Field, String) {
    let mut bytes = full_blob();
    bytes[at..at + patch.len()].copy_from_slice(patch);
    reseal(&mut bytes);
    let error = Blob::parse(&bytes).unwrap_err();
    (error.field, error.reason.to_string())
}

#[test]
fn contradictions_with_a_good_checksum_are_refused() {
    const DOMAIN: usize = 96;
    const SECOND: usize = DOMAIN + 124;
    const MODULE: usize = DOMAIN + 2 * 124;
    const PAYLOAD: usize = MODULE + 4 * 16;
    const POOL: usize = PAYLOAD + 4 * 64;
    const DEVICE: usize = POOL + 2 * 32;
    for (at, patch, field) in [
        (12, &[0][..], Field::Header("pools")),
        (12, &[65], Field::Header("pools")),
        (50, &[1], Field::Header("reserved")),
        (32, &[0, 0], Field::Header("domains")),
        (32, &[1, 1], Field::Header("domains")),
        (36, &[0, 0x10], Field::Header("modules")),
        (36, &[0xFF, 0xFF], Field::Header("modules")),
        (44, &[0xFF, 0xFF], Field::Header("text_len")),
        (48, &[3], Field::Machine("console")),
        (48, &[0], Field::Machine("console")),
        (49, &[6], Field::Machine("log")),
        (52, &[2], Field::Machine("console")),
        (52, &[0], Field::Machine("console")),
        (DOMAIN, &[0xFF; 4], Field::Domain(0, "name")),
        (DOMAIN + 4, &[0], Field::Domain(0, "name")),
        (DOMAIN + 16, &[1], Field::Domain(0, "memory")),
        (DOMAIN + 16, &[0xFF; 8], Field::Domain(0, "memory")),
        (DOMAIN + 116, &[1], Field::Domain(0, "private")),
        (DOMAIN + 116 + 3, &[0x20], Field::Domain(0, "private")),
        (SECOND + 116 + 2, &[0x20], Field::Domain(1, "private")),
        (DOMAIN + 24, &[0, 0], Field::Domain(0, "vcpus")),
        (DOMAIN + 26, &[4], Field::Domain(0, "loader")),
        (DOMAIN + 27, &[2], Field::Domain(0, "console")),
        (DOMAIN + 28, &[2], Field::Domain(0, "on_poweroff")),
        (DOMAIN + 29, &[2], Field::Domain(0, "on_reboot")),
        (DOMAIN + 30, &[2], Field::Domain(0, "on_crash")),
        (DOMAIN + 31, &[2], Field::Domain(0, "entropy")),
        (DOMAIN + 91, &[1], Field::Domain(0, "reserved")),
        (DOMAIN + 36, &[4], Field::Domain(0, "kernel")),
        (DOMAIN + 40, &[1], Field::Domain(0, "modules")),
        (DOMAIN + 44, &[0xFF; 4], Field::Domain(0, "modules")),
        (DOMAIN + 44, &[1], Field::Domain(1, "modules")),
        (DOMAIN + 48, &[0xFF; 4], Field::Domain(0, "cpus")),
        (SECOND + 48 + 4, &[2], Field::Domain(1, "cpus")),
        (DOMAIN + 56, &[0xFF; 4], Field::Domain(0, "prefer")),
        (DOMAIN + 64, &[0; 4], Field::Domain(0, "weight")),
        (DOMAIN + 68, &[0xFF; 4], Field::Domain(0, "cap")),
        (DOMAIN + 72, &[0; 4], Field::Domain(0, "warp_limit")),
        (DOMAIN + 76, &[0; 4], Field::Domain(0, "warp")),
        (DOMAIN + 80, &[1], Field::Domain(0, "period")),
        (DOMAIN + 84, &[1], Field::Domain(0, "slice")),
        (SECOND + 80, &[0xFF; 4], Field::Domain(1, "period")),
        (SECOND + 84, &[0xFF; 4], Field::Domain(1, "slice")),
        (SECOND + 88, &[1], Field::Domain(1, "slice")),
        (DOMAIN + 88, &[0], Field::Domain(0, "prefer")),
        (DOMAIN + 88, &[2], Field::Domain(0, "pool")),
        (DOMAIN + 90, &[0], Field::Domain(0, "extra")),
        (DOMAIN + 90, &[2], Field::Domain(0, "extra")),
        (DOMAIN + 92, &[1], Field::Domain(0, "tsc_khz")),
        (DOMAIN + 95, &[1], Field::Domain(0, "tsc_khz")),
        (DOMAIN + 96, &[8], Field::Domain(0, "privileges")),
        (DOMAIN + 99, &[1], Field::Domain(0, "privileges")),
        (DOMAIN + 96, &[3], Field::Device(1, None, 0, "backend")),
        (DOMAIN + 100, &[1], Field::Domain(0, "devices")),
        (DOMAIN + 104, &[1], Field::Device(0, None, 0, "backend")),
        (DOMAIN + 104, &[0, 0, 0, 1], Field::WholeDomain(0)),
        (SECOND + 100, &[0xFF; 4], Field::Domain(1, "devices")),
        (SECOND + 104, &[7], Field::Domain(1, "devices")),
        (SECOND + 104, &[5], Field::Header("devices")),
        (DOMAIN + 108, &[0, 0, 0, 0, 1], Field::Domain(0, "devices")),
        (SECOND + 108, &[1], Field::Domain(1, "devices")),
        (SECOND + 112, &[0xFF; 4], Field::Domain(1, "devices")),
        (56, &[5], Field::Header("padding")),
        (56, &[0xFF, 0xFF], Field::Header("devices")),
        (60, &[1], Field::Header("reserved")),
        (DEVICE, &[4], Field::Domain(1, "entropy")),
        (DEVICE, &[5], Field::Device(1, None, 0, "kind")),
        (DEVICE + 2, &[1], Field::Device(1, None, 0, "kind")),
        (DEVICE + 24 + 4, &[1], Field::Device(1, None, 1, "backend")),
        (DEVICE + 24 + 4, &[2], Field::Device(1, None, 1, "backend")),
        (DEVICE + 12, &[1], Field::Device(1, None, 0, "parameters")),
        (DEVICE + 8, &[0xFF; 4], Field::Device(1, None, 0, "parameters")),
        (DEVICE + 16, &[0xFF; 4], Field::Device(1, None, 0, "backend")),
        (DEVICE + 20, &[1], Field::Device(1, None, 0, "backend")),
        (DEVICE + 4, &[0xFF; 3], Field::Device(1, None, 0, "backend")),
        // The name "first", of a domain that is here, where one belongs that is not.
        (
            DEVICE + 4,
            &[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5],
            Field::Device(1, None, 0, "backend"),
        ),
        (POOL + 4, &[0], Field::Pool(0, "name")),
        (POOL + 8, &[0xFF; 4], Field::Pool(0, "cpus")),
        (POOL + 12, &[0], Field::Pool(0, "cpus")),
        (POOL + 12, &[2], Field::Pool(0, "cpus")),
        (POOL + 16, &[0; 4], Field::Pool(0, "quantum")),
        (POOL + 20, &[2], Field::Pool(0, "policy")),
        (POOL + 21, &[1], Field::Pool(0, "reserved")),
        (POOL + 31, &[1], Field::Pool(0, "reserved")),
        (MODULE, &[4], Field::Module(0, 0, "file")),
        (MODULE + 2 * 16 + 4, &[1], Field::Module(1, 0, "reserved")),
        (MODULE + 2 * 16 + 12, &[0xFF; 4], Field::Module(1, 0, "cmdline")),
        (PAYLOAD, &[1], Field::Payload(0, "offset")),
        (PAYLOAD + 1, &[0x00], Field::Payload(0, "offset")),
        (PAYLOAD + 1, &[0x20], Field::Payload(0, "offset")),
        (PAYLOAD + 8, &[0; 8], Field::Payload(0, "len")),
        (PAYLOAD + 8, &[0xFF; 8], Field::Payload(0, "len")),
        (PAYLOAD + 8, &[0, 0, 1], Field::Payload(0, "len")),
        (PAYLOAD + 20, &[0; 4], Field::Payload(0, "name")),
        (PAYLOAD + 24, &[1], Field::Payload(0, "reserved")),
    ] {
        let (found, reason) = patched(at, patch);
        assert_eq!(found, field, "byte {at}: {reason}");
    }
}

/// A payload whose name or user makes no sense is told by its number.
#[test]
fn a_payload_without_a_user_is_told_all_the_same() {
    const KERNEL_OF_FIRST: usize = 96 + 36;
    const PAYLOAD: usize = 96 + 2 * 124 + 4 * 16;
    const NAME_OF_THIRD: usize = PAYLOAD + 2 * 64 + 16;
    let damaged = |patches: &[(usize, &[u8])]| {
        let mut bytes = full_blob();
        for (at, patch) in patches {
            bytes[*at..at + patch.len()].copy_from_slice(patch);
        }
        bytes[3 * 4096] ^= 1;
        reseal(&mut bytes);
        Blob::parse(&bytes).unwrap_err().to_string()
    };
    // The second module of the second domain is the same file.
    let line = damaged(&[(KERNEL_OF_FIRST, &[0xFF; 4])]);
    assert!(line.starts_with("file \"@linux\" of domain \"second\" (payload[2].sha256)"), "{line}");
    let line = damaged(&[(96, &[0xFF; 4])]);
    assert!(line.starts_with("kernel \"@linux\" (payload[2].sha256)"), "{line}");
    let line = damaged(&[(NAME_OF_THIRD, &[0xFF; 4])]);
    assert!(line.starts_with("payload[2].name: "), "{line}");
}

#[test]
fn a_machine_that_is_too_small_is_told() {
    let bytes = full_blob();
    let blob = Blob::parse(&bytes).unwrap();
    let limits = MachineLimits { memory: 513 << 20, max_vcpus: 2, address_bits: 40 };
    assert_eq!(blob.check_machine(&limits), Ok(()));
    let error = blob.check_machine(&MachineLimits { memory: 512 << 20, ..limits }).unwrap_err();
    assert_eq!(error.field, Field::Domain(1, "memory"));
    assert_eq!(error.reason, Reason::MemoryOvercommitted { want: 1 << 20, left: 0, have: 512 << 20 });
    let error = blob.check_machine(&MachineLimits { max_vcpus: 1, ..limits }).unwrap_err();
    assert_eq!(error.field, Field::Domain(0, "vcpus"));
}

#[test]
fn cpus_that_the_machine_lacks_are_told() {
    let bytes = full_blob();
    let blob = Blob::parse(&bytes).unwrap();
    assert_eq!(blob.check_cpus(9), Ok(()));
    let error = blob.check_cpus(8).unwrap_err();
    assert_eq!(error.field, Field::Pool(0, "cpus"));
    assert_eq!(error.reason, Reason::CpuBeyondMachine { cpu: 8, have: 8 });
    let mut placed = Vec::new();
    blob.place_reservations(9, |domain, vcpu, cpu| placed.push((domain, vcpu, cpu))).unwrap();
    assert_eq!(placed, [(1, 0, 2)]);
    // The rest of no CPUs.
    let all = FULL.replace("2-3,8", "0-8").replace("prefer = \"0-1\"", "");
    let error = text(&all).check_cpus(9).unwrap_err().to_string();
    let wanted = "domain[0].pool: the pool \"default\" has none of this machine's 9 CPUs;";
    assert!(error.contains(wanted), "{error}");
}

/// Where the pool's CPUs are known, the text is enough; else the machine must be.
#[test]
fn reservations_beyond_the_cpus_are_refused() {
    let vcpus = |n: u32| FULL.replace("pool = \"rt\"\n", &alloc::format!("pool = \"rt\"\nvcpus = {n}\n"));
    // Two CPUs of 95% hold three slices of a quarter each.
    assert!(crate::source::parse_toml(&vcpus(6), "t").is_ok());
    let error = crate::source::parse_toml(&vcpus(7), "t").unwrap_err().to_string();
    let wanted = "domain[1].slice: 5ms in every 20ms finds no room for vCPU 6 in the pool \"rt\", of whose CPUs 95.0% \
                  each can be reserved; shorten a slice, or give the pool more CPUs";
    assert!(error.ends_with(wanted), "{error}");
    let rest = vcpus(7).replace("name = \"rt\"\ncpus = \"2-3,8\"", "name = \"default\"");
    let rest = rest.replace("pool = \"rt\"", "").replace("cpus = \"2,8\"", "");
    let config = crate::source::parse_toml(&rest, "t").unwrap();
    assert!(config.check_cpus(2).is_err());
    assert!(config.check_cpus(3).is_ok());
    let bytes = build(&config, resolver).unwrap();
    let blob = Blob::parse(&bytes).unwrap();
    assert_eq!(blob.check_cpus(2).map_err(|error| error.field), Err(Field::Domain(1, "slice")));
    assert_eq!(blob.check_cpus(3), Ok(()));
}

fn domain() -> impl Strategy<Value = DomainText> {
    let module = ("[a-z]{1,3}", "[ -~]{0,20}").prop_map(|(file, cmdline)| ModuleText { file, cmdline });
    let action = prop_oneof![Just(OnExitAction::Destroy), Just(OnExitAction::Restart)];
    (
        256u64..1 << 30,
        1u32..=64,
        "[a-z]{1,3}",
        prop::collection::vec(module, 0..4),
        "[ -~äß]{0,60}",
        any::<bool>(),
        [action.clone(), action.clone(), action],
        (prop::option::of(0u32..u32::MAX), prop::option::of(1_000u32..=10_000_000)),
        (contract(), prop::collection::vec(device(), 0..8)),
    )
        .prop_map(
            |(pages, vcpus, kernel, modules, cmdline, serial, actions, (max_restarts, tsc_khz), other)| {
                let (contract, virtio_devices) = other;
                let is_served = virtio_devices.iter().any(|device| device.kind() == DeviceKind::Entropy);
                DomainText {
                    name: String::new(),
                    memory: if pages % 2 == 0 { pages * 4096 } else { (pages << 21).max(4 << 20) },
                    private: if pages % 2 == 0 { 0 } else { (pages / 2) << 21 },
                    vcpus,
                    tsc_khz,
                    loader: LoaderKind::Auto,
                    kernel,
                    modules,
                    cmdline,
                    console: if serial { Console::Serial } else { Console::None },
                    devices: String::new(),
                    entropy: vcpus % 2 == 0 && !is_served,
                    privileges: Privileges::empty(),
                    virtio_devices,
                    on_exit: OnExit { poweroff: actions[0], reboot: actions[1], crash: actions[2] },
                    max_restarts,
                    pool: "rt".into(),
                    cpus: if serial { "3".into() } else { String::new() },
                    prefer: if serial { String::new() } else { "2,8".into() },
                    contract,
                }
            },
        )
}

/// Disks that nobody writes, so that two may be one file.
fn device() -> impl Strategy<Value = DeviceText> {
    let disk = ("/[ -~ä]{0,40}", prop::option::of("[!-~]{1,20}")).prop_map(|(path, serial)| {
        DeviceSettings::Disk(DiskText { path, format: DiskFormat::Qcow2, read_only: true, serial })
    });
    let network = ("[a-z]{1,15}", prop::option::of(8_000u64..), prop::option::of(1u32..=4094), 1u32..=8)
        .prop_map(|(bridge, rate, vlan, queues)| {
            DeviceSettings::Network(NetworkText {
                bridge,
                mac: None,
                anti_spoofing: vlan.is_some(),
                rate,
                vlan,
                queues,
            })
        });
    let entropy = (1024_u64..).prop_map(|rate| DeviceSettings::Entropy(EntropyText { rate }));
    prop_oneof![disk, network, entropy].prop_map(|settings| DeviceText { backend: None, settings })
}

/// Small enough that all of them fit.
fn contract() -> impl Strategy<Value = Contract> {
    let reservation = (100_000u32..10_000_000, any::<bool>()).prop_map(|(period, extra)| ReservedTime {
        period,
        slice: 100 + period / 10_000,
        extra,
    });
    (
        1u32..=65_535,
        prop::option::of(1u32..=6400),
        any::<bool>(),
        100u32..10_000_000,
        prop::option::of(reservation),
    )
        .prop_map(|(weight, cap, warps, warp, reservation)| Contract {
            weight,
            cap,
            warp: if warps { warp } else { 0 },
            warp_limit: if warps { 100 } else { 0 },
            reservation,
        })
}

fn config() -> impl Strategy<Value = ConfigText> {
    prop::collection::vec(domain(), 1..6).prop_map(|mut domains| {
        for (index, domain) in domains.iter_mut().enumerate() {
            domain.name = alloc::format!("d-{index}");
            domain.devices = match index {
                1 => "all".into(),
                2 => String::new(),
                _ => alloc::format!("0000:{index:02x}:00.0,0001:{index:02x}:1f.7"),
            };
            if !domain.devices.is_empty() {
                domain.private = 0;
            }
            if index == 0 {
                domain.privileges = Privileges::IO_BACKEND;
                domain.virtio_devices.clear();
            }
        }
        let mut config = text(FULL);
        config.machine.console = None;
        config.domains = domains;
        config
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn round_trip(config in config()) {
        let bytes = build(&config, resolver).unwrap();
        let blob = Blob::parse(&bytes).unwrap();
        prop_assert_eq!(blob.domains().len(), config.domains.len());
        for (domain, wanted) in blob.domains().zip(&config.domains) {
            prop_assert_eq!(domain.name(), &wanted.name);
            prop_assert_eq!(domain.memory(), wanted.memory);
            prop_assert_eq!(domain.private(), wanted.private);
            prop_assert_eq!(domain.vcpus(), wanted.vcpus);
            prop_assert_eq!(domain.tsc_khz(), wanted.tsc_khz);
            prop_assert_eq!(domain.kernel().data(), wanted.kernel.as_bytes());
            prop_assert_eq!(domain.cmdline(), &wanted.cmdline);
            prop_assert_eq!(domain.console(), wanted.console);
            prop_assert_eq!(domain.on_exit(), wanted.on_exit);
            prop_assert_eq!(domain.entropy(), wanted.entropy);
            prop_assert_eq!(domain.max_restarts(), wanted.max_restarts);
            prop_assert_eq!(domain.contract(), wanted.contract);
            prop_assert_eq!(domain.cpus().to_string(), wanted.cpus.as_str());
            prop_assert_eq!(domain.prefer().to_string(), wanted.prefer.as_str());
            prop_assert_eq!(domain.privileges(), wanted.privileges);
            prop_assert_eq!(Some(domain.functions()), Functions::parse(&wanted.devices));
            let devices: Vec<_> =
                domain.virtio_devices().map(|device| (device.kind, device.parameters.to_string())).collect();
            let wanted_devices: Vec<_> = wanted
                .indexed_devices()
                .map(|(index, device)| (device.kind(), device.parameters(&wanted.name, index)))
                .collect();
            prop_assert_eq!(devices, wanted_devices);
            prop_assert_eq!(domain.modules().len(), wanted.modules.len());
            for (module, wanted) in domain.modules().zip(&wanted.modules) {
                prop_assert_eq!(module.cmdline(), &wanted.cmdline);
                prop_assert_eq!(module.payload().data(), wanted.file.as_bytes());
            }
        }
    }

    #[test]
    fn any_flipped_bit_is_refused(bit in 0..6 * 4096 * 8usize) {
        let mut bytes = full_blob();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Blob::parse(&bytes).is_err());
    }

    #[test]
    fn any_flipped_bit_of_header_and_tables_is_refused(bit in 0..0x400 * 8usize) {
        let mut bytes = full_blob();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Blob::parse(&bytes).is_err());
    }

    #[test]
    fn any_truncation_is_refused(len in 0..6 * 4096usize) {
        prop_assert!(Blob::parse(&full_blob()[..len]).is_err());
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        drive(&bytes);
    }

    #[test]
    fn resealed_damage_never_panics(patches in prop::collection::vec((0..0x300usize, any::<u8>()), 1..4)) {
        let mut bytes = full_blob();
        for (at, byte) in patches {
            bytes[at] = byte;
        }
        drive(&bytes);
    }
}
