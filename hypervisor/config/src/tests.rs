//! Tests of text, blob and parser together.

mod blob;
mod later;
mod text;

use alloc::string::String;
use alloc::vec::Vec;

use crate::source::{ConfigText, parse_toml};

/// A text with every setting in it.
const FULL: &str = r#"
[machine]
console = "second"
log = "debug"

[[pool]]
name = "rt"
cpus = "2-3,8"
policy = "sedf"
quantum = "5ms"

[[domain]]
name = "first"
memory = "512M"
vcpus = 2
loader = "linux"
kernel = "@linux"
initrd = ["@initrd", "more.cpio"]
cmdline = "console=ttyS0 äöü"
console = "none"
privileges = ["events", "io-backend"]
on_poweroff = "restart"
on_reboot = "destroy"
on_crash = "restart"
max_restarts = 3
weight = 512
cap = 150
prefer = "0-1"
warp = "5ms"
warp_limit = "1500us"
private = "16M"

[[domain]]
name = "second"
memory = "1024K"
kernel = "probe.elf"
modules = [{ file = "@initrd", cmdline = "one 1" }, "copy-of-linux"]
pool = "rt"
cpus = "2,8"
period = "20ms"
slice = "5ms"
extra = false
entropy = true
devices = "all"

[[domain.disk]]
path = "/dev/nvme0n1p1"

[[domain.disk]]
path = "/srv/data 1.qcow2"
format = "qcow2"
read_only = true
serial = "SN 0001"
backend = "first"

[[domain.network]]
bridge = "br0"

[[domain.network]]
bridge = "br1"
mac = "02:AA:00:00:00:01"
anti_spoofing = false
rate = "100M"
vlan = 7
queues = 2

[[domain.share]]
tag = "files"
path = "/srv/files"

[[domain.port]]
name = "agent"
"#;

fn text(toml: &str) -> ConfigText {
    parse_toml(toml, "test.toml").unwrap()
}

/// Files whose content follows from their name; two of them are the same.
fn resolver(name: &str) -> Result<Vec<u8>, String> {
    match name {
        "@linux" | "copy-of-linux" => Ok(alloc::vec![0x5A; 5000]),
        "missing" => Err("no such file\nand no hint".into()),
        "empty" => Ok(Vec::new()),
        other => Ok(other.as_bytes().to_vec()),
    }
}

fn full_blob() -> Vec<u8> {
    crate::build(&text(FULL), resolver).unwrap()
}
