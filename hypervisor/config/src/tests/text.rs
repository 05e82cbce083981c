//! The text: what is understood, and how mistakes are reported.

use alloc::format;
use alloc::string::{String, ToString};

use proptest::prelude::*;

use super::{FULL, resolver, text};
use crate::source::{parse_size, parse_toml};
use crate::{Console, Field, LoaderKind, LogLevel, MachineLimits, OnExit, build};

fn refusal(toml: &str) -> String {
    parse_toml(toml, "t.toml").unwrap_err().to_string()
}

/// The refusal of a domain that has the given line besides what it needs; the line is the fifth of the text.
fn refusal_of(line: &str) -> String {
    refusal(&format!("[[domain]]\nname = \"a\"\nmemory = \"1M\"\nkernel = \"k\"\n{line}\n"))
}

#[test]
fn every_setting_is_understood() {
    let config = text(FULL);
    assert_eq!(config.machine.log_level, LogLevel::Debug);
    let first = &config.domains[0];
    assert_eq!((first.memory, first.vcpus, first.loader), (512 << 20, 2, LoaderKind::Linux));
    assert_eq!((first.private, config.domains[1].private), (16 << 20, 0));
    assert_eq!((first.console, first.max_restarts), (Console::None, Some(3)));
    assert!(!first.entropy && config.domains[1].entropy);
    assert_eq!(first.modules[1].file, "more.cpio");
    let second = &config.domains[1];
    assert_eq!((second.memory, second.vcpus, second.loader), (1 << 20, 1, LoaderKind::Auto));
    assert_eq!((second.console, second.max_restarts), (Console::Serial, None));
    assert_eq!(second.on_exit, OnExit::default());
    assert_eq!(second.modules[0].cmdline, "one 1");
}

#[test]
fn mistakes_are_reported_in_one_line_with_place_field_value_and_remedy() {
    for (line, expected) in [
        ("vcpus = 0", "t.toml:5:9: domain[0].vcpus: 0 is out of range; write a number from 1 to 64"),
        ("vcpus = \"two\"", "t.toml:5:9: domain[0].vcpus: \"two\" is not a number from 0 up; write e.g. 1"),
        ("vcpus = 65", "t.toml:5:9: domain[0].vcpus: 65 is out of range; write a number from 1 to 64"),
        ("cmdline = 5", "t.toml:5:11: domain[0].cmdline: 5 is not text; put it in quotes"),
        (
            "console = \"vga\"",
            "t.toml:5:11: domain[0].console: \"vga\" is no choice; write one of \"none\", \"serial\"",
        ),
        (
            "initrd = \"x\"\nmodules = []",
            "t.toml:6:11: domain[0].modules: initrd is there too; keep initrd for Linux or modules for other kernels",
        ),
        (
            "modules = [\"x\", 5]",
            "t.toml:5:17: domain[0].modules[1]: 5 is not a file's name; write a path or @name in quotes",
        ),
        (
            "modules = [{ cmdline = \"x\" }]",
            "t.toml:5:12: domain[0].modules[0].file: missing; write e.g. file = \"first.bin\"",
        ),
        (
            "max_restarts = 4294967295",
            "t.toml:5:16: domain[0].max_restarts: too many to count; leave the line out for no limit",
        ),
        (
            "[machine]\nconsole = \"b\"",
            "t.toml:6:11: machine.console: \"b\" is no domain's name; write one, or \"all\", or \"caisson\" for the log",
        ),
        (
            "console = \"none\"\n[machine]\nconsole = \"a\"",
            "t.toml:7:11: machine.console: domain[0] has no console to show; give it console = \"serial\"",
        ),
        (
            "devices = \"all\"\n[[domain]]\nname = \"b\"\nmemory = \"1M\"\nkernel = \"k\"\ndevices = \"all\"",
            "t.toml:10:11: domain[1].devices: domain[0] owns the machine's devices already; leave the line out of one of the two, or name functions",
        ),
        (
            "devices = [\"00:04.0\", \"00:03.0\"]\n[[domain]]\nname = \"b\"\nmemory = \"1M\"\nkernel = \"k\"\ndevices = [\"0000:00:03.0\"]",
            "t.toml:10:11: domain[1].devices: domain[0] owns 0000:00:03.0 already; name it in one of the two",
        ),
        (
            "devices = []",
            "t.toml:5:11: domain[0].devices: [] is no choice; write \"all\", \"none\", or a list such as [\"00:03.0\"]",
        ),
        (
            "cmdline = \"a\\u0000b\"",
            "t.toml:5:11: domain[0].cmdline: has a control character in it; write it in one line of printable text",
        ),
        (
            "[[domain]]\nname = \"a\"\nmemory = \"1M\"\nkernel = \"k\"",
            "t.toml:6:8: domain[1].name: \"a\" is the name of domain[0] already; choose another name",
        ),
    ] {
        assert_eq!(refusal_of(line), expected);
    }
    let unknown = refusal_of("memroy = \"1M\"");
    assert!(unknown.starts_with("t.toml:5:1: domain[0].memroy: there is no such setting; use one of name,"));
    let broken = refusal_of("vcpus = = 2");
    assert!(broken.starts_with("t.toml:5:9: not TOML: "), "{broken}");
    assert!(refusal("").starts_with("t.toml: domain: there is none;"));
    assert!(refusal("domain = []").starts_with("t.toml: domain: empty;"));
    assert!(refusal("[domain]").starts_with("t.toml:1:1: domain: not a list;"));
    assert!(refusal("[[domain]]\nmemory = \"1M\"").starts_with("t.toml:1:1: domain[0].name: missing;"));
}

#[test]
fn sizes_have_a_unit() {
    for (size, bytes) in [("4K", 4 << 10), ("512m", 512 << 20), ("3GiB", 3 << 30), ("1T", 1 << 40)] {
        assert_eq!(parse_size(size), Some(bytes));
    }
    for size in ["", "M", "512", "12Q", "-1M", "+1M", "1.5G", " 1G", "1 G", "99999999999T", "1ü", "iB"] {
        assert_eq!(parse_size(size), None, "{size}");
    }
}

#[test]
fn the_shipped_configurations_are_good_and_the_broken_one_is_not() {
    for (name, good) in [
        ("linux.toml", include_str!("../../../../guest-images/configs/linux.toml")),
        ("two-guests.toml", include_str!("../../../../guest-images/configs/two-guests.toml")),
        ("memtest.toml", include_str!("../../../../guest-images/configs/memtest.toml")),
    ] {
        let config = parse_toml(good, name).unwrap();
        build(&config, resolver).unwrap();
    }
    let broken = include_str!("../../../../guest-images/configs/broken.toml");
    let error = parse_toml(broken, "broken.toml").unwrap_err().to_string();
    assert_eq!(error, "broken.toml:13:10: domain[1].memory: \"12Q\" is not a size; write e.g. \"512M\"");
}

#[test]
fn files_that_cannot_be_had_are_named() {
    let config = text(&FULL.replace("more.cpio", "missing"));
    let error = build(&config, resolver).unwrap_err().to_string();
    assert_eq!(error, "test.toml:18:22: domain[0].modules[1].file: \"missing\": no such file; and no hint");
    let config = text(&FULL.replace("probe.elf", "empty"));
    let error = build(&config, resolver).unwrap_err().to_string();
    assert_eq!(error, "test.toml:36:10: domain[1].kernel: \"empty\" is an empty file; name one with content");
}

#[test]
fn a_value_from_elsewhere_is_not_blamed_on_the_text() {
    let mut config = text(FULL);
    config.domains[0].kernel = "empty".into();
    config.set_origin(Field::Domain(0, "kernel"), "--kernel");
    let error = build(&config, resolver).unwrap_err().to_string();
    assert_eq!(error, "--kernel: \"empty\" is an empty file; name one with content");
    assert_eq!(config.kernel_error(0, "no kernel").to_string(), "--kernel: \"empty\": no kernel");
    let error = config.kernel_error(1, "no kernel").to_string();
    assert_eq!(error, "test.toml:36:10: domain[1].kernel: \"probe.elf\": no kernel");
}

#[test]
fn overcommitment_is_reported_with_its_place() {
    let limits = MachineLimits { memory: 512 << 20, max_vcpus: 64, address_bits: 48 };
    let error = text(FULL).check_machine(&limits).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "test.toml:35:10: domain[1].memory: 1M is more than the 0 left of this machine's 512M"
        ),
        "{error}"
    );
}

proptest! {
    #[test]
    fn no_text_panics(text in "(\\[\\[domain\\]\\]\n|\\[machine\\]\n|[a-z_]{1,9} = |\"[a-z@0-9M]{0,9}\"|[0-9]{1,3}|\n|\\PC){0,40}") {
        crate::fuzz::drive_source(text.as_bytes());
    }

    #[test]
    fn no_mutated_text_panics(at in 0..FULL.len(), byte in 0u8..128) {
        let mut text = FULL.as_bytes().to_vec();
        text[at] = byte;
        crate::fuzz::drive_source(&text);
    }
}

/// A domain that serves, another, and one with the given devices; the first device is the fourteenth line.
fn refusal_of_devices(devices: &str) -> String {
    let domain = |name: &str, more: &str| {
        format!("[[domain]]\nname = \"{name}\"\nmemory = \"1M\"\nkernel = \"k\"\n{more}")
    };
    let text =
        domain("driver", "privileges = [\"io-backend\"]\n") + &domain("idle", "") + &domain("web", devices);
    match parse_toml(&text, "t") {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn devices_of_backends_are_checked() {
    const DISK: &str = "[[domain.disk]]\npath = \"/a\"\n";
    const NET: &str = "[[domain.network]]\nbridge = \"br0\"\n";
    for good in [
        "",
        DISK,
        &format!("{DISK}read_only = true\n{DISK}read_only = true"),
        &format!("{NET}vlan = 4094\nrate = \"8K\"\nqueues = 8\nbackend = \"driver\"\n{NET}"),
        "[[domain.share]]\ntag = \"a\"\npath = \"/\"\n[[domain.port]]\nname = \"a\"",
        &NET.repeat(31),
        "[[domain.entropy]]\n",
        "[[domain.entropy]]\nrate = \"1K\"\nbackend = \"driver\"",
        "entropy = true\n[[domain.port]]\nname = \"a\"",
    ] {
        assert_eq!(refusal_of_devices(good), "", "{good}");
    }
    let label = "[[domain.port]]\nname = \"a\"\n";
    for (text, error) in [
        (
            &*format!("{DISK}backend = \"web\""),
            "t:16:11: domain[2].disk[0].backend: \"web\" does not start before",
        ),
        (
            &format!("{DISK}backend = \"idle\""),
            "t:16:11: domain[2].disk[0].backend: \"idle\" serves no devices;",
        ),
        (&format!("{DISK}backend = \"x\""), "t:16:11: domain[2].disk[0].backend: \"x\" is no domain's name;"),
        (
            &DISK.repeat(2),
            "t:17:8: domain[2].disk[1].path: domain[2].disk[0] is the same, and two that write",
        ),
        (
            &format!("{DISK}read_only = true\n{DISK}"),
            "t:18:8: domain[2].disk[1].path: domain[2].disk[0] is the same",
        ),
        (
            &format!("{NET}mac = \"02:00:00:00:00:01\"\n").repeat(2),
            "t:19:7: domain[2].network[1].mac: domain[2].network[0]",
        ),
        (&label.repeat(2), "t:17:8: domain[2].port[1].name: \"a\" is the name of number 0 already;"),
        (&NET.repeat(32), "t: domain[2]: 32 devices that other domains serve are too many; have at most 31"),
        (
            "disk = {}",
            "t:14:8: domain[2].disk: not a list; begin each one's description with [[domain.disk]]",
        ),
        ("entropy = {}", "t:14:11: domain[2].entropy: {} is neither; write true or false, or begin"),
        (
            "entropy = [{ rate = 64 }]",
            "t:14:21: domain[2].entropy[0].rate: 64 is not a number of bytes per second; write e.g. \"64K\"",
        ),
        (
            "entropy = [{ rate = \"0K\" }]",
            "t:14:21: domain[2].entropy[0].rate: 0 bytes per second are too few; write e.g. \"64K\", at least \"1K\"",
        ),
        (
            "entropy = [{ path = \"/a\" }]",
            "t:14:14: domain[2].entropy[0].path: there is no such setting; use one of rate, backend",
        ),
        ("entropy = true\n[[domain.entropy]]", "t:15:10: not TOML: "),
        ("disk = [1]", "t:14:9: domain[2].disk[0]: 1 is not a table of settings;"),
        (
            &format!("{NET}rate = 5"),
            "t:16:8: domain[2].network[0].rate: 5 is not a number of bits per second;",
        ),
    ] {
        let found = refusal_of_devices(text);
        assert!(found.starts_with(error), "{found:?} is not {error:?}");
    }
    let two = "[[domain]]\nname = \"d2\"\nmemory = \"1M\"\nkernel = \"k\"\nprivileges = [\"io-backend\"]\n[[domain]]\n\
               name = \"n\"\nmemory = \"1M\"\nkernel = \"k\"\n[[domain.port]]\nname = \"a\"";
    let found = refusal_of_devices(two);
    let error = "t:23:1: domain[4].port[0].backend: missing, and both \"driver\" and \"d2\" serve devices;";
    assert!(found.starts_with(error), "{found}");
}

#[test]
fn an_emulated_machine_has_what_the_text_says() {
    let domain = "\n[[domain]]\nname = \"a\"\nmemory = \"1M\"\nkernel = \"k\"\n";
    let good =
        "[emulator]\ndisks = [\"a.img\", \"@web-disk\"]\nnetwork = true\nforward = [\"80:10.0.2.3:8080\"]";
    let emulator = text(&format!("{good}{domain}")).emulator;
    assert_eq!((emulator.disks.len(), emulator.network, emulator.forward[0].port), (2, true, 80));
    assert_eq!(emulator.forward[0].to.to_string(), "10.0.2.3:8080");
    for (line, error) in [
        ("disks = \"a\"", "t.toml:2:9: emulator.disks: \"a\" is not a list; write e.g. [\"disk.img\"]"),
        (
            "disks = [\"\"]",
            "t.toml:2:10: emulator.disks[0]: \"\" is not a file's name; write a path or @name in quotes",
        ),
        ("network = 1", "t.toml:2:11: emulator.network: 1 is neither; write true or false"),
        (
            "forward = [\"80\"]",
            "t.toml:2:12: emulator.forward[0]: \"80\" is not a port and where it leads; write e.g. \"8080:10.0.2.20:80\"",
        ),
        (
            "forward = [\"0:1.2.3.4:5\"]",
            "t.toml:2:12: emulator.forward[0]: \"0:1.2.3.4:5\" is not a port and where it leads; write e.g. \"8080:10.0.2.20:80\"",
        ),
    ] {
        assert_eq!(refusal(&format!("[emulator]\n{line}{domain}")), error);
    }
}

/// A text with pools and a domain that say what is given of them.
fn pools(pools: &str, domain: &str) -> String {
    let good = "name = \"one\"\nmemory = \"1M\"\nkernel = \"k\"\n";
    match parse_toml(&format!("{pools}\n[[domain]]\n{good}{domain}"), "t") {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn pools_and_contracts_that_contradict_each_other_are_refused() {
    const TWO: &str =
        "[[pool]]\nname = \"a\"\ncpus = \"0-1\"\n[[pool]]\nname = \"b\"\ncpus = \"3\"\npolicy = \"sedf\"";
    assert_eq!(pools(TWO, "pool = \"a\"\ncpus = \"1\"\nprefer = \"1\""), "");
    assert_eq!(pools(TWO, "cpus = \"2,4-1023\""), "");
    let sedf = "pool = \"b\"\nperiod = \"10ms\"\n";
    for (text, domain, error) in [
        ("[[pool]]\nname = \"a\"", "", "t:1:1: pool[0].cpus: missing; write e.g. cpus = \"0-3\""),
        ("[pool]\nname = \"a\"", "", "t:1:1: pool: not a list; begin each pool's description with [[pool]]"),
        ("[[pool]]\nname = \"a\"\ncpus = \"9-8\"", "", "t:3:8: pool[0].cpus: \"9-8\" is not a list of CPUs"),
        ("[[pool]]\nname = \"A\"\ncpus = \"1\"", "", "t:2:8: pool[0].name: \"A\" is not a name;"),
        (&TWO.replace("\"3\"", "\"1-3\""), "", "t:6:8: pool[1].cpus: CPU 1 is in pool[0] already;"),
        (&TWO.replace("\"b\"", "\"a\""), "", "t:5:8: pool[1].name: \"a\" is the name of pool[0] already;"),
        (
            &TWO.replace("policy = \"sedf\"", "quantum = \"11s\""),
            "",
            "t:7:11: pool[1].quantum: 11s is out of range;",
        ),
        (TWO, "pool = \"c\"", "t:12:8: domain[0].pool: \"c\" is no pool's name;"),
        (TWO, "pool = \"a\"\ncpus = \"1-2\"", "t:13:8: domain[0].cpus: CPU 2 is not in the pool \"a\";"),
        (TWO, "prefer = \"3\"", "t:12:10: domain[0].prefer: CPU 3 is not in the pool \"default\";"),
        (
            TWO,
            "cpus = \"4\"\nprefer = \"4-5\"",
            "t:13:10: domain[0].prefer: CPU 5 is not among this domain's cpus;",
        ),
        (
            TWO,
            "slice = \"1ms\"\nperiod = \"9ms\"",
            "t:12:9: domain[0].slice: the pool \"default\" reserves nothing;",
        ),
        (
            TWO,
            &format!("{sedf}slice = \"11ms\""),
            "t:14:9: domain[0].slice: 11ms is longer than the period of 10ms;",
        ),
        (TWO, &format!("{sedf}slice = \"1us\""), "t:14:9: domain[0].slice: 1us is out of range;"),
        (
            TWO,
            &format!("{sedf}slice = \"9600us\""),
            "t:14:9: domain[0].slice: 9600us in every 10ms finds no room for vCPU 0",
        ),
        (TWO, sedf, "t:13:10: domain[0].period: has no effect without slice;"),
    ] {
        let found = pools(text, domain);
        assert!(found.starts_with(error), "{found:?} is not {error:?}");
    }
}

#[test]
fn functions_are_named_in_any_way_and_told_in_one() {
    let owned = |first: &str, second: &str| -> alloc::vec::Vec<String> {
        let domain = |name: &str, more: &str| {
            format!("[[domain]]\nname = \"{name}\"\nmemory = \"1M\"\nkernel = \"k\"\n{more}\n")
        };
        let text = domain("a", first) + &domain("b", second);
        parse_toml(&text, "t").unwrap().domains.iter().map(|domain| domain.devices.clone()).collect()
    };
    let serves = "privileges = [\"io-backend\"]";
    assert_eq!(
        owned("devices = [\"0A:1f.7\", \"0000:00:03.0\"]", "devices = \"all\""),
        ["0000:00:03.0,0000:0a:1f.7", "all"]
    );
    assert_eq!(owned("", ""), ["", ""]);
    assert_eq!(owned(serves, ""), ["all", ""], "the driver domain");
    assert_eq!(owned(serves, serves), ["", ""], "which of them?");
    assert_eq!(owned(serves, "devices = \"none\""), ["", ""], "it has been said");
    assert_eq!(owned(serves, "devices = [\"00:03.0\"]"), ["", "0000:00:03.0"]);
}
