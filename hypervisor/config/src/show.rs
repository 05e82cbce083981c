//! A blob's content for people.

use core::fmt;

use caisson_abi::Privileges;

use crate::blob::{Blob, Domain, Payload};
use crate::error::{Size, Time};
use crate::functions::Functions;
use crate::layout::VERSION;
use crate::settings::SelectedConsole;
use crate::virtio::PRIVILEGE_WORDS;

/// The content of a blob as lines of text, the last one terminated.
#[must_use]
pub fn show<'a, 'b>(blob: &'b Blob<'a>) -> Show<'a, 'b> {
    Show(blob)
}

/// Displays a blob; see [`show`].
pub struct Show<'a, 'b>(&'b Blob<'a>);

impl fmt::Display for Show<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blob = self.0;
        writeln!(
            f,
            "config blob version {VERSION}, {} bytes, sha256 {}",
            blob.total_len(),
            Hex(blob.sha256())
        )?;
        let machine = blob.machine();
        f.write_str("machine: console ")?;
        match machine.console {
            SelectedConsole::All => f.write_str(SelectedConsole::ALL_WORD)?,
            SelectedConsole::Log => f.write_str(SelectedConsole::LOG_WORD)?,
            SelectedConsole::Domain(index) => {
                f.write_str(blob.domain(index).map_or("?", |domain| domain.name()))?;
            }
        }
        writeln!(f, ", log {}", machine.log_level)?;
        for (index, pool) in blob.pools().enumerate() {
            if pool.is_machines() {
                writeln!(f, "pool[{index}] {}: the machine's", pool.name)?;
                continue;
            }
            let rest = if pool.cpus.is_empty() { "the rest" } else { "" };
            writeln!(
                f,
                "pool[{index}] {}: CPUs {}{rest}, {}, quantum {}",
                pool.name,
                pool.cpus,
                pool.policy,
                Time(pool.quantum)
            )?;
        }
        for (index, domain) in blob.domains().enumerate() {
            show_domain(f, blob, index, &domain)?;
        }
        for (index, payload) in blob.payloads().enumerate() {
            writeln!(
                f,
                "payload[{index}] {}: {} bytes at {:#x}, sha256 {}",
                payload.name(),
                payload.data().len(),
                payload.offset(),
                Hex(payload.sha256())
            )?;
        }
        Ok(())
    }
}

fn show_domain(
    f: &mut fmt::Formatter<'_>,
    blob: &Blob<'_>,
    index: usize,
    domain: &Domain<'_>,
) -> fmt::Result {
    let vcpus = domain.vcpus();
    let plural = if vcpus == 1 { "" } else { "s" };
    write!(
        f,
        "domain[{index}] {}: {} of memory, {vcpus} vCPU{plural}, loader {}, console {}",
        domain.name(),
        Size(domain.memory()),
        domain.loader(),
        domain.console()
    )?;
    if domain.private() != 0 {
        write!(f, ", {} of the memory private", Size(domain.private()))?;
    }
    if domain.entropy() {
        f.write_str(", entropy")?;
    }
    match domain.functions() {
        Functions::None => {}
        Functions::All => f.write_str(", the machine's PCI functions")?,
        named @ Functions::Named(_) => write!(f, ", PCI functions {named}")?,
    }
    for (index, (word, _)) in privileges(domain).enumerate() {
        write!(f, "{} {word}", if index == 0 { ", privileges" } else { "" })?;
    }
    match domain.tsc_khz() {
        Some(khz) => writeln!(f, ", TSC {khz} kHz")?,
        None => writeln!(f)?,
    }
    show_file(f, "kernel", domain.kernel(), domain.cmdline())?;
    for module in domain.modules() {
        show_file(f, "module", module.payload(), module.cmdline())?;
    }
    for device in domain.virtio_devices() {
        let backend = match blob.backend_name(device.backend) {
            "" => "its maker",
            name => name,
        };
        write!(f, "    {} by {backend}:", device.kind)?;
        device.parameters.lines().try_for_each(|line| write!(f, " {line}"))?;
        writeln!(f)?;
    }
    show_contract(f, blob, domain)?;
    let on_exit = domain.on_exit();
    write!(
        f,
        "    on poweroff {}, on reboot {}, on crash {}",
        on_exit.poweroff, on_exit.reboot, on_exit.crash
    )?;
    match domain.max_restarts() {
        Some(limit) => writeln!(f, ", at most {limit} restarts"),
        None => writeln!(f),
    }
}

fn privileges(domain: &Domain<'_>) -> impl Iterator<Item = (&'static str, Privileges)> + use<> {
    let has = domain.privileges();
    PRIVILEGE_WORDS.into_iter().filter(move |(_, privilege)| has.contains(*privilege))
}

fn show_contract(f: &mut fmt::Formatter<'_>, blob: &Blob<'_>, domain: &Domain<'_>) -> fmt::Result {
    let contract = domain.contract();
    let pool = blob.pools().nth(domain.pool()).map_or("?", |pool| pool.name);
    write!(f, "    pool {pool}, weight {}", contract.weight)?;
    if let Some(cap) = contract.cap {
        write!(f, ", cap {cap}%")?;
    }
    if contract.warp != 0 {
        write!(f, ", warp {} for up to {}", Time(contract.warp), Time(contract.warp_limit))?;
    }
    if let Some(time) = contract.reservation {
        let extra = if time.extra { "and extra time" } else { "and no more" };
        write!(f, ", {} in every {} {extra}", Time(time.slice), Time(time.period))?;
    }
    for (what, cpus) in [("on", domain.cpus()), ("preferably on", domain.prefer())] {
        if !cpus.is_empty() {
            write!(f, ", {what} CPUs {cpus}")?;
        }
    }
    writeln!(f)
}

fn show_file(f: &mut fmt::Formatter<'_>, what: &str, payload: Payload<'_>, cmdline: &str) -> fmt::Result {
    write!(f, "    {what} {} ({} bytes)", payload.name(), payload.data().len())?;
    if !cmdline.is_empty() {
        write!(f, ": {cmdline}")?;
    }
    writeln!(f)
}

struct Hex<'a>(&'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
