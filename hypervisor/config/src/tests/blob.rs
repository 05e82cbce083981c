//! The blob: what goes in comes out, and what was damaged is refused.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::{FULL, full_blob, resolver, text};
use crate::fuzz::{drive, reseal};
use crate::source::{ConfigText, DomainText, ModuleText};
use crate::{
    Blob, Console, Field, LoaderKind, LogLevel, MachineLimits, OnExit, OnExitAction, Reason, SelectedConsole,
    build, show,
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
    assert_eq!(first.max_restarts(), Some(3));
    assert_eq!(first.kernel().data(), vec![0x5A; 5000]);
    let second = domains[1];
    assert_eq!(second.max_restarts(), None);
    let modules: Vec<_> = second.modules().collect();
    assert_eq!((modules[0].cmdline(), modules[0].payload().data()), ("one 1", b"@initrd".as_slice()));
    assert_eq!(modules[1].cmdline(), "");
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
        "domain[0] first: 512M of memory, 2 vCPUs, loader linux, console none",
        "    kernel @linux (5000 bytes): console=ttyS0 äöü",
        "    module more.cpio (9 bytes)",
        "    on poweroff restart, on reboot destroy, on crash restart, at most 3 restarts",
        "domain[1] second: 1M of memory, 1 vCPU, loader auto, console serial",
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
    new[8] = 2;
    assert!(reason(&new).starts_with("header.version: format version 2 is unknown"));
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
    const MODULE: usize = DOMAIN + 2 * 64;
    const PAYLOAD: usize = MODULE + 4 * 16;
    for (at, patch, field) in [
        (12, &[1][..], Field::Header("reserved")),
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
        (DOMAIN + 24, &[0, 0], Field::Domain(0, "vcpus")),
        (DOMAIN + 26, &[4], Field::Domain(0, "loader")),
        (DOMAIN + 27, &[2], Field::Domain(0, "console")),
        (DOMAIN + 28, &[2], Field::Domain(0, "on_poweroff")),
        (DOMAIN + 29, &[2], Field::Domain(0, "on_reboot")),
        (DOMAIN + 30, &[2], Field::Domain(0, "on_crash")),
        (DOMAIN + 31, &[1], Field::Domain(0, "reserved")),
        (DOMAIN + 36, &[4], Field::Domain(0, "kernel")),
        (DOMAIN + 40, &[1], Field::Domain(0, "modules")),
        (DOMAIN + 44, &[0xFF; 4], Field::Domain(0, "modules")),
        (DOMAIN + 44, &[1], Field::Domain(1, "modules")),
        (DOMAIN + 48, &[1], Field::Domain(0, "reserved")),
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
    const PAYLOAD: usize = 96 + 2 * 64 + 4 * 16;
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
        prop::option::of(0u32..u32::MAX),
    )
        .prop_map(|(pages, vcpus, kernel, modules, cmdline, serial, actions, max_restarts)| DomainText {
            name: String::new(),
            memory: pages * 4096,
            vcpus,
            loader: LoaderKind::Auto,
            kernel,
            modules,
            cmdline,
            console: if serial { Console::Serial } else { Console::None },
            on_exit: OnExit { poweroff: actions[0], reboot: actions[1], crash: actions[2] },
            max_restarts,
        })
}

fn config() -> impl Strategy<Value = ConfigText> {
    prop::collection::vec(domain(), 1..6).prop_map(|mut domains| {
        for (index, domain) in domains.iter_mut().enumerate() {
            domain.name = alloc::format!("d-{index}");
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
            prop_assert_eq!(domain.vcpus(), wanted.vcpus);
            prop_assert_eq!(domain.kernel().data(), wanted.kernel.as_bytes());
            prop_assert_eq!(domain.cmdline(), &wanted.cmdline);
            prop_assert_eq!(domain.console(), wanted.console);
            prop_assert_eq!(domain.on_exit(), wanted.on_exit);
            prop_assert_eq!(domain.max_restarts(), wanted.max_restarts);
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
