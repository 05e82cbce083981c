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
    let disk = lab.directory(name)?.join("disk.img");
    let mut bytes = vec![0; DISK as usize];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    fs::write(&disk, bytes).map_err(|error| Failure::new(format!("{}: {error}", disk.display())))?;
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
    let drive = format!("file={},if=none,id=disk,format=raw", disk.display());
    Ok(lab.boot(name, &config)?.qemu("-drive", &drive).qemu("-device", "nvme,drive=disk,serial=caisson"))
}

/// What the workload has written is in the disk's file.
fn is_on_the_disk(lab: &Lab, name: &str) -> Verdict {
    let disk = lab.directory(name)?.join("disk.img");
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
    is_on_the_disk(lab, name)
}

/// And by its pin: a level-triggered line of the I/O APIC.
pub(crate) fn lines(lab: &Lab, name: &str) -> Verdict {
    let mut run = boot(lab, name, "pci=nomsi", "")?;
    workload::disk(&mut run, From::Guest("driver"), (DISK, name), "IO-APIC")?;
    workload::end(&mut run, From::Guest("driver"))?;
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    is_on_the_disk(lab, name)
}

/// On several CPUs, away from the one that QEMU spoils: an owner of two vCPUs that compute, and move, while messages come.
pub(crate) fn on_two_cpus(lab: &Lab, name: &str) -> Verdict {
    let pool = "[[pool]]\nname = \"default\"\ncpus = \"1-2\"\nquantum = \"2ms\"";
    let mut run = machine(lab, name, "", "vcpus = 2", pool)?.cpus(3).start()?;
    workload::disk(&mut run, From::Guest("driver"), (DISK, name), "PCI-MSI")?;
    workload::end(&mut run, From::Guest("driver"))?;
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    is_on_the_disk(lab, name)
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
    is_on_the_disk(lab, name)
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
    is_on_the_disk(lab, name)
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
