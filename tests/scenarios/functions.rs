//! A guest that owns the machine's PCI functions: its kernel's own drivers drive them.

use std::fs;

use caisson_tests::{Boot, Failure, From, Lab, Run, Verdict, ensure};
use xtask::outcome::Outcome;

use crate::{
    lifecycle,
    workload::{self, BOOT, STEP},
};

/// Bytes of the disk.
const DISK: u64 = 32 << 20;
/// Where the workload writes to, and how much: 8 MiB from 1 MiB on.
const WRITTEN: std::ops::Range<usize> = 1 << 20..9 << 20;

/// A machine with an NVMe disk, and a guest that owns all of its functions, with these words for its kernel; beside it one
/// that owns none.
fn boot(lab: &Lab, name: &str, words: &str, more: &str) -> Verdict<Run> {
    machine(lab, name, words, more, "")?.start()
}

/// That machine before it is turned on, with these CPU pools.
fn machine<'a>(lab: &'a Lab, name: &str, words: &str, more: &str, pools: &str) -> Verdict<Boot<'a>> {
    let drive = new_disk(lab, name, "disk")?;
    let config = format!(
        r#"
        [machine]
        console = "all"
        log = "debug"

        {pools}

        [[domain]]
        name = "driver"
        memory = "256M"
        devices = "all"
        kernel = "@linux"
        initrd = "@initrd"
        cmdline = "console=ttyS0 panic=-1 caisson.test=disk {words}"
        {more}

        [[domain]]
        name = "other"
        memory = "4M"
        kernel = "@probe/share"
        cmdline = "ms=200"
        on_reboot = "destroy"
        "#
    );
    Ok(lab.boot(name, &config)?.qemu("-drive", &drive).qemu("-device", "nvme,drive=disk,serial=caisson"))
}

/// A new disk, whose first words are the scenario's name: QEMU's words for it.
fn new_disk(lab: &Lab, name: &str, id: &str) -> Verdict<String> {
    let disk = lab.directory(name)?.join(format!("{id}.img"));
    let mut bytes = vec![0; DISK as usize];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    fs::write(&disk, bytes).map_err(|error| Failure::new(format!("{}: {error}", disk.display())))?;
    Ok(format!("file={},if=none,id={id},format=raw", disk.display()))
}

/// What the workload has written is in the disk's file.
fn is_on_the_disk(lab: &Lab, name: &str, id: &str) -> Verdict {
    let disk = lab.directory(name)?.join(format!("{id}.img"));
    let bytes = fs::read(&disk).map_err(|error| Failure::new(format!("{}: {error}", disk.display())))?;
    let line = b"what is written is there\n";
    let same = bytes.get(WRITTEN).is_some_and(|written| {
        written.iter().zip(line.iter().cycle()).all(|(found, expected)| found == expected)
    });
    ensure!(same, "the disk's file holds something else");
    Ok(())
}

/// The disk interrupts by messages: MSI-X.
pub(crate) fn messages(lab: &Lab, name: &str) -> Verdict {
    let mut run = boot(lab, name, "", "")?;
    run.expect(From::Caisson, BOOT, "guest driver owns [0-9]+ PCI functions$")?;
    workload::disk(&mut run, From::Guest("driver"), (DISK, name), "PCI-MSI")?;
    workload::end(&mut run, From::Guest("driver"))?;
    run.expect(From::Guest("other"), STEP, "^probe share: ok$")?;
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    is_on_the_disk(lab, name, "disk")
}

/// And by its pin: a level-triggered line of the I/O APIC.
pub(crate) fn lines(lab: &Lab, name: &str) -> Verdict {
    let mut run = boot(lab, name, "pci=nomsi", "")?;
    workload::disk(&mut run, From::Guest("driver"), (DISK, name), "IO-APIC")?;
    workload::end(&mut run, From::Guest("driver"))?;
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    is_on_the_disk(lab, name, "disk")
}

/// Two owners: the first names its disk, and has messages alone; the second has what is left, and with that the lines.
pub(crate) fn two_owners(lab: &Lab, name: &str) -> Verdict {
    let domain = |owner: &str, devices: &str, words: &str| {
        format!(
            r#"
            [[domain]]
            name = "{owner}"
            memory = "192M"
            devices = {devices}
            kernel = "@linux"
            initrd = "@initrd"
            cmdline = "console=ttyS0 panic=-1 caisson.test=disk {words}"
            "#
        )
    };
    let config = "[machine]\nconsole = \"all\"\nlog = \"debug\"\n".to_owned()
        + &domain("named", r#"["00:05.0"]"#, "")
        + &domain("rest", r#""all""#, "pci=nomsi");
    let mut machine = lab.boot(name, &config)?;
    for (id, at) in [("first", "0x5"), ("second", "0x6")] {
        let drive = new_disk(lab, name, id)?;
        machine = machine
            .qemu("-drive", &drive)
            .qemu("-device", &format!("nvme,drive={id},serial=caisson-{id},addr={at}"));
    }
    let mut run = machine.start()?;
    run.expect(From::Caisson, BOOT, "guest named owns 1 PCI functions$")?;
    run.expect(From::Guest("named"), BOOT, "pci 0000:00:05.0: .1b36:0010.")?;
    for (owner, kind) in [("named", "PCI-MSI"), ("rest", "IO-APIC")] {
        workload::disk(&mut run, From::Guest(owner), (DISK, name), kind)?;
        workload::end(&mut run, From::Guest(owner))?;
        run.never(From::Guest(owner), if owner == "named" { "0000:00:06.0" } else { "0000:00:05.0" })?;
    }
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    is_on_the_disk(lab, name, "first")?;
    is_on_the_disk(lab, name, "second")
}

/// A function that the machine has not is told, with those that it has.
pub(crate) fn missing(lab: &Lab, name: &str) -> Verdict {
    let config = r#"
        [[domain]]
        name = "driver"
        memory = "4M"
        devices = ["00:1e.7"]
        kernel = "@probe/share"
    "#;
    let mut run = lab.boot(name, config)?.start()?;
    run.expect(
        From::Caisson,
        BOOT,
        "cannot start: config: domain.0..devices: this machine has no PCI function 0000:00:1e.7 to own; name others, of 0000:",
    )?;
    run.end(STEP, Outcome::Refused)
}

/// On several CPUs, away from the one that QEMU spoils: an owner of two vCPUs that compute, and move, while messages come.
pub(crate) fn on_two_cpus(lab: &Lab, name: &str) -> Verdict {
    let pool = "[[pool]]\nname = \"default\"\ncpus = \"1-2\"\nquantum = \"2ms\"";
    let mut run = machine(lab, name, "", "vcpus = 2", pool)?.cpus(3).start()?;
    workload::disk(&mut run, From::Guest("driver"), (DISK, name), "PCI-MSI")?;
    workload::end(&mut run, From::Guest("driver"))?;
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    is_on_the_disk(lab, name, "disk")
}

/// Its owner crashes in the midst of it, and starts again: the disk is reset in between, and works again afterwards.
pub(crate) fn restart(lab: &Lab, name: &str) -> Verdict {
    let mut run = boot(lab, name, "caisson.end=crash", "max_restarts = 1")?;
    for _ in 0..2 {
        workload::disk(&mut run, From::Guest("driver"), (DISK, name), "PCI-MSI")?;
        run.expect(From::Guest("driver"), STEP, "Kernel panic - not syncing: sysrq triggered crash")?;
        // The disk; the chipset's other functions cannot be.
        run.expect(
            From::Caisson,
            STEP,
            "guest driver: its PCI functions: 1 reset, 0 by power, 0 by bus, [0-9]+ only stopped, 0 lost$",
        )?;
    }
    run.end(STEP, Outcome::GuestFailed)?;
    lifecycle::all_memory_came_back(&run)?;
    is_on_the_disk(lab, name, "disk")
}

/// With an IOMMU: what the driver's disk reaches is translated, and nothing that it does is stopped.
fn translated(lab: &Lab, name: &str, device: &str, unit: &str) -> Verdict {
    let machine = machine(lab, name, "", "", "")?;
    let mut run = machine.words("iommu=require").qemu("-device", device).start()?;
    run.expect(From::Caisson, BOOT, &format!("^IOMMU: {unit}, 1 unit: devices reach what their guest has$"))?;
    workload::disk(&mut run, From::Guest("driver"), (DISK, name), "PCI-MSI")?;
    workload::end(&mut run, From::Guest("driver"))?;
    run.end(STEP, Outcome::Clean)?;
    run.never(From::Caisson, " stopped: |DMA was stopped")?;
    lifecycle::all_memory_came_back(&run)?;
    is_on_the_disk(lab, name, "disk")
}

pub(crate) fn vtd(lab: &Lab, name: &str) -> Verdict {
    translated(lab, name, "intel-iommu", "VT-d")
}

/// With tables of four levels, and a unit that remembers what is not there.
pub(crate) fn vtd_wide(lab: &Lab, name: &str) -> Verdict {
    translated(lab, name, "intel-iommu,aw-bits=48,caching-mode=on", "VT-d")
}

pub(crate) fn amdvi(lab: &Lab, name: &str) -> Verdict {
    translated(lab, name, "amd-iommu", "AMD-Vi")
}
