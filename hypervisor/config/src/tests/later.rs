//! Domains that are made while the machine runs: what their text may leave to the machine, and what their blob tells.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{full_blob, resolver};
use crate::fuzz::reseal;
use crate::source::{parse_later, parse_toml};
use crate::{Blob, DeviceBackend, Domain, Field, MAX_LATER_TABLES, Reason, SelectedConsole, build, show};

const LATER: &str = r#"
[machine]
console = "of-the-machine"
[[pool]]
name = "rt"
cpus = "2-3"
policy = "sedf"
[[domain]]
name = "store"
memory = "64M"
kernel = "k"
privileges = ["events"]
pool = "batch"
cpus = "700"
period = "20ms"
slice = "5ms"
[[domain.disk]]
path = "/srv/store"
[[domain.network]]
bridge = "br0"
backend = "driver"
[[domain]]
name = "web"
memory = "1M"
kernel = "k"
pool = "rt"
[[domain.port]]
name = "agent"
backend = ""
"#;

fn later(text: &str) -> Vec<u8> {
    build(&parse_later(text, "t").unwrap(), resolver).unwrap()
}

fn refusal(text: &str) -> String {
    parse_later(text, "t").unwrap_err().to_string()
}

#[test]
fn what_the_text_does_not_describe_is_the_machines() {
    let bytes = later(LATER);
    let blob = Blob::parse_unhashed(&bytes).unwrap();
    assert_eq!(blob.machine().console, SelectedConsole::All);
    let pools: Vec<_> =
        blob.pools().map(|pool| (pool.name, pool.is_machines(), pool.cpus.is_empty())).collect();
    assert_eq!(pools, [("rt", true, true), ("default", true, true), ("batch", true, true)]);
    let domains: Vec<_> = blob.domains().collect();
    assert_eq!((domains[0].pool(), domains[1].pool()), (2, 0));
    assert_eq!(domains[0].cpus().to_string(), "700", "the machine knows whether the pool has it");
    assert!(domains[0].contract().reservation.is_some());
    let backends: Vec<_> =
        domains.iter().flat_map(Domain::virtio_devices).map(|device| device.backend).collect();
    assert_eq!(backends, ["", "driver", ""].map(DeviceBackend::Named));
    assert_eq!(blob.backend_name(backends[1]), "driver");
    assert!((0..2).all(|index| blob.check_later(index).is_ok()));
    assert_eq!(blob.check_later(2).unwrap_err().field, Field::Domains);
    assert_eq!(blob.check_cpus(1), Ok(()), "of pools that are the machine's");
    assert_eq!(blob.pool_cpus(1, 4).iter().count(), 0);
}

#[test]
fn it_is_shown() {
    let bytes = later(LATER);
    let shown = show(&Blob::parse(&bytes).unwrap()).to_string();
    for line in [
        "pool[0] rt: the machine's",
        "    disk by its maker: path=/srv/store format=raw read_only=false",
        "    network by driver: bridge=br0 mac=",
    ] {
        assert!(shown.lines().any(|shown| shown.starts_with(line)), "{line:?} is not in\n{shown}");
    }
}

/// The domain that serves is one of the text wherever there is one.
#[test]
fn later_domains_are_served_by_earlier_ones() {
    let text = LATER.replace("[\"events\"]", "[\"io-backend\"]").replace("backend = \"\"", "");
    let text = text.replace("[[domain.disk]]\npath = \"/srv/store\"\n", "");
    let bytes = later(&text);
    let blob = Blob::parse(&bytes).unwrap();
    let port = blob.domain(1).unwrap().virtio_devices().next().unwrap();
    assert_eq!(port.backend, DeviceBackend::Domain(0));
    assert_eq!(blob.backend_name(port.backend), "store");
    assert!(!blob.domain(0).unwrap().owns_devices(), "nobody owns by default");
    let own = text.replace("backend = \"driver\"", "");
    let error = "t:17:1: domain[0].network[0].backend: \"store\" does not start before this domain;";
    assert!(refusal(&own).starts_with(error), "{}", refusal(&own));
}

#[test]
fn what_only_a_machine_has_is_refused() {
    for (from, to, error) in [
        (
            "pool = \"batch\"",
            "devices = \"all\"",
            "t:13:11: domain[0].devices: PCI functions belong to domains that there are from the start;",
        ),
        ("pool = \"batch\"", "pool = \"Batch\"", "t:13:8: domain[0].pool: \"Batch\" is not a name;"),
        (
            "\"driver\"",
            "\"Driver\"",
            "t:21:11: domain[0].network[0].backend: \"Driver\" is no domain's name;",
        ),
        ("slice = \"5ms\"", "slice = \"50ms\"", "t:16:9: domain[0].slice: 50ms is longer than the period"),
        ("cpus = \"700\"", "cpus = \"7\"\nprefer = \"8\"", "t:15:10: domain[0].prefer: CPU 8 is not among"),
    ] {
        assert!(LATER.contains(from), "{from}");
        let found = refusal(&LATER.replace(from, to));
        assert!(found.starts_with(error), "{found}");
    }
    let full = full_blob();
    let error = Blob::parse_unhashed(&full).unwrap().check_later(1).unwrap_err();
    assert_eq!((error.field, error.reason), (Field::Domain(1, "devices"), Reason::OwnsFunctions));
}

/// A machine's text is refused as it is read, its blob where it is built and where the machine starts.
#[test]
fn a_machine_starts_with_nothing_unknown() {
    assert_eq!(Blob::parse(&full_blob()).unwrap().check_complete(), Ok(()));
    let bytes = later(LATER);
    let error = Blob::parse(&bytes).unwrap().check_complete().unwrap_err().to_string();
    assert!(error.starts_with("blob: made for `caisson create`, not for a machine's start;"), "{error}");
    let error = parse_toml(LATER, "t").unwrap_err().to_string();
    assert!(error.starts_with("t:17:1: domain[0].disk[0].backend: no domain serves devices;"), "{error}");

    const DEVICE: usize = 96 + 2 * 124 + 4 * 16 + 4 * 64 + 2 * 32;
    let mut bytes = full_blob();
    bytes[DEVICE + 4..DEVICE + 8].fill(0xFF);
    reseal(&mut bytes);
    let error = Blob::parse(&bytes).unwrap().check_complete().unwrap_err().to_string();
    assert!(error.starts_with("domain[1].disk[0].backend: no domain serves devices;"), "{error}");
    // Four letters of the text that are no domain's name.
    let at = bytes.windows(6).position(|bytes| bytes == b"bridge").unwrap();
    let text_start = DEVICE + 6 * 24;
    for (place, value) in [(DEVICE + 16, at - text_start), (DEVICE + 20, 4)] {
        bytes[place..place + 4].copy_from_slice(&u32::try_from(value).unwrap().to_le_bytes());
    }
    reseal(&mut bytes);
    let error = Blob::parse(&bytes).unwrap().check_complete().unwrap_err().to_string();
    assert_eq!(
        error,
        "domain[1].disk[0].backend: \"brid\" is no domain's name; write that of the domain which serves the device"
    );
}

/// Damage to a payload is found by who builds the blob; the rest of the gate stays closed.
#[test]
fn payloads_are_hashed_where_they_are_built() {
    let good = later(LATER);
    let mut bytes = good.clone();
    bytes[4096] ^= 1;
    assert!(Blob::parse(&bytes).unwrap_err().reason == Reason::Damaged);
    assert!(Blob::parse_unhashed(&bytes).is_ok());
    let mut bytes = good.clone();
    bytes[100] ^= 1;
    assert_eq!(Blob::parse_unhashed(&bytes).unwrap_err().field, Field::Header("sha256"));
    let mut bytes = good.clone();
    *bytes.last_mut().unwrap() = 1;
    assert_eq!(Blob::parse_unhashed(&bytes).unwrap_err().field, Field::Payload(0, "padding"));
    assert!(Blob::parse_unhashed(&good[..good.len() - 1]).is_err());
}

#[test]
fn tables_of_later_domains_have_a_limit() {
    let cmdline = "x".repeat(2000);
    let many = |count: usize| -> String {
        (0..count)
            .map(|n| {
                format!(
                    "[[domain]]\nname = \"d{n}\"\nmemory = \"1M\"\nkernel = \"k\"\ncmdline = \"{cmdline}\"\n"
                )
            })
            .collect()
    };
    assert!(later(&many(29)).len() as u64 > MAX_LATER_TABLES - 8192);
    let config = parse_later(&many(32), "t").unwrap();
    let error = build(&config, resolver).unwrap_err().to_string();
    assert!(
        error.starts_with("t: blob: 69632 bytes of names and settings are too many, 65536 have room; make"),
        "{error}"
    );
    assert!(build(&parse_toml(&many(32), "t").unwrap(), resolver).is_ok(), "a machine's have none");
}

/// Where one of several is made, its devices are served by whom they would be, and its mistakes are where they are.
#[test]
fn one_domain_of_a_text_is_kept() {
    let text = LATER.replace("[\"events\"]", "[\"io-backend\"]").replace("backend = \"\"", "");
    let text = text.replace("[[domain.disk]]\npath = \"/srv/store\"\n", "");
    let text = text + "[[domain.network]]\nbridge = \"br0\"\nbackend = \"driver\"\n";
    let mut config = parse_later(&text.replace("pool = \"rt\"", "initrd = \"missing\""), "t").unwrap();
    let before = config.clone();
    assert!(!config.keep_only("nobody") && config == before);
    assert!(config.keep_only("web"));
    let error = build(&config, resolver).unwrap_err().to_string();
    assert_eq!(error, "t:24:10: domain[1].modules[0].file: \"missing\": no such file; and no hint");
    let mut config = parse_later(&text, "t").unwrap();
    assert!(config.keep_only("web"));
    let bytes = build(&config, resolver).unwrap();
    let blob = Blob::parse(&bytes).unwrap();
    assert_eq!(blob.domains().len(), 1);
    let backends: Vec<_> = blob.domain(0).unwrap().virtio_devices().map(|device| device.backend).collect();
    assert_eq!(backends, ["driver", "store"].map(DeviceBackend::Named), "a network, and a port");
}
