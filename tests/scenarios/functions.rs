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

/// What Caisson says when a device reaches for what it has not.
pub(crate) const STOPPED: &str = " stopped: |DMA was stopped";

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

/// Two owners: the first names its disk, and has messages alone; the second has what is left, and with that the lines. Its own
/// disk is behind a bridge, which nobody owns.
pub(crate) fn two_owners(lab: &Lab, name: &str) -> Verdict {
    owners(lab, name, |machine| machine)
}

/// Each with its own part of what an IOMMU lets through.
pub(crate) fn two_owners_vtd(lab: &Lab, name: &str) -> Verdict {
    owners(lab, name, |machine| machine.words("iommu=require").qemu("-device", "intel-iommu"))
}

fn owners(lab: &Lab, name: &str, change: fn(Boot<'_>) -> Boot<'_>) -> Verdict {
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
    machine = machine.qemu("-device", "pcie-root-port,id=behind,chassis=1,addr=0x7");
    for (id, at) in [("first", "addr=0x5"), ("second", "bus=behind")] {
        let drive = new_disk(lab, name, id)?;
        machine = machine
            .qemu("-drive", &drive)
            .qemu("-device", &format!("nvme,drive={id},serial=caisson-{id},{at}"));
    }
    let mut run = change(machine).start()?;
    run.expect(From::Caisson, BOOT, "guest named owns 1 PCI functions$")?;
    run.expect(From::Guest("named"), BOOT, "pci 0000:00:05.0: .1b36:0010.")?;
    for (owner, kind) in [("named", "PCI-MSI"), ("rest", "IO-APIC")] {
        workload::disk(&mut run, From::Guest(owner), (DISK, name), kind)?;
        workload::end(&mut run, From::Guest(owner))?;
        run.never(
            From::Guest(owner),
            if owner == "named" { "0000:01:00.0: .1b36" } else { "0000:00:05.0: .1b36" },
        )?;
    }
    run.end(STEP, Outcome::Clean)?;
    run.never(From::Caisson, STOPPED)?;
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
    let machine = machine(lab, name, "caisson.end=crash", "max_restarts = 1", "")?;
    let mut run = machine.qemu("-device", "e1000e").start()?;
    for _ in 0..2 {
        workload::disk(&mut run, From::Guest("driver"), (DISK, name), "PCI-MSI")?;
        run.expect(From::Guest("driver"), STEP, "Kernel panic - not syncing: sysrq triggered crash")?;
        // The disk, and the network card; the chipset's other functions cannot be.
        run.expect(
            From::Caisson,
            STEP,
            "guest driver: its PCI functions: [12] reset, [01] by power, 0 by bus, [0-9]+ only stopped, 0 lost$",
        )?;
    }
    run.end(STEP, Outcome::GuestFailed)?;
    lifecycle::all_memory_came_back(&run)?;
    is_on_the_disk(lab, name, "disk")
}

/// What Caisson says of an IOMMU that also remaps interrupts.
const REMAPPED: &str = ", and raise the interrupts that are theirs";

/// With an IOMMU: what the driver's disk reaches is translated, and nothing that it does is stopped.
fn translated(lab: &Lab, name: &str, device: &str, unit: &str, more: &str) -> Verdict {
    let machine = machine(lab, name, "", "", "")?;
    let mut run = machine.words("iommu=require").qemu("-device", device).start()?;
    run.expect(
        From::Caisson,
        BOOT,
        &format!("^IOMMU: {unit}, 1 unit: devices reach what their guest has{more}$"),
    )?;
    workload::disk(&mut run, From::Guest("driver"), (DISK, name), "PCI-MSI")?;
    workload::end(&mut run, From::Guest("driver"))?;
    run.end(STEP, Outcome::Clean)?;
    run.never(From::Caisson, STOPPED)?;
    lifecycle::all_memory_came_back(&run)?;
    is_on_the_disk(lab, name, "disk")
}

pub(crate) fn vtd(lab: &Lab, name: &str) -> Verdict {
    translated(lab, name, "intel-iommu", "VT-d", REMAPPED)
}

/// With tables of four levels, and a unit that remembers what is not there and does not remap interrupts.
pub(crate) fn vtd_wide(lab: &Lab, name: &str) -> Verdict {
    translated(lab, name, "intel-iommu,aw-bits=48,caching-mode=on,intremap=off", "VT-d", "")
}

pub(crate) fn amdvi(lab: &Lab, name: &str) -> Verdict {
    translated(lab, name, "amd-iommu", "AMD-Vi", "")
}

/// A machine whose `edu` device belongs to a hostile guest: it moves its own memory, and is told to move others'. Beside it a
/// Linux works.
fn hostile<'a>(lab: &'a Lab, name: &str, words: &str) -> Verdict<Boot<'a>> {
    let config = format!(
        r#"
        [machine]
        console = "all"

        [[domain]]
        name = "hostile"
        memory = "16M"
        devices = "all"
        kernel = "@probe/dma"
        cmdline = "{words}"

        [[domain]]
        name = "other"
        memory = "192M"
        kernel = "@linux"
        initrd = "@initrd"
        cmdline = "console=ttyS0 panic=-1 caisson.test=hash"
        "#
    );
    // Its addresses have 28 bits if nobody says otherwise.
    Ok(lab.boot(name, &config)?.qemu("-device", "edu,dma_mask=0xffffffff"))
}

/// Where Caisson's image is, of which nothing is zero.
const IMAGE: &str = "0x101000";

/// Whether a device that moves others' memory gets any of it.
fn reads(run: &mut Run, words: &str) -> Verdict {
    run.expect(From::Guest("hostile"), BOOT, "^probe dma: its own memory from 0x[0-9a-f]+ on is moved$")?;
    run.expect(From::Guest("hostile"), STEP, &format!("^probe dma: {words} words of {IMAGE} are read$"))?;
    Ok(())
}

/// Without an IOMMU it does: what the next ones look for is there.
pub(crate) fn dma_without(lab: &Lab, name: &str) -> Verdict {
    let machine = hostile(lab, name, &format!("read={IMAGE}"))?;
    let mut run = machine.words("iommu=off").qemu("-device", "intel-iommu").start()?;
    run.expect(
        From::Caisson,
        BOOT,
        "^no IOMMU: the devices that a guest owns reach all of the machine's memory$",
    )?;
    reads(&mut run, "[1-9][0-9]*")?;
    run.expect(From::Guest("hostile"), STEP, "^probe dma: ok$")?;
    workload::end(&mut run, From::Guest("other"))?;
    run.end(STEP, Outcome::Clean)
}

/// With one it reads nothing, and what it writes arrives nowhere: everybody goes on.
fn kept_out(lab: &Lab, name: &str, device: &str) -> Verdict<Run> {
    let words = format!("low=1 read={IMAGE} write=0x1e000000");
    let mut run = hostile(lab, name, &words)?.words("iommu=require").qemu("-device", device).start()?;
    reads(&mut run, "0")?;
    run.expect(From::Guest("hostile"), STEP, "^probe dma: [0-9]+ pages of others are written to$")?;
    run.expect(From::Guest("hostile"), STEP, "^probe dma: ok$")?;
    workload::end(&mut run, From::Guest("other"))?;
    run.end(STEP, Outcome::Clean)?;
    lifecycle::all_memory_came_back(&run)?;
    Ok(run)
}

/// And it is told in the log, with the guest, the device, and the address.
pub(crate) fn dma_vtd(lab: &Lab, name: &str) -> Verdict {
    let run = kept_out(lab, name, "intel-iommu")?;
    let said =
        |what: &str| run.count(From::Caisson, &format!("guest hostile: 0000:00:[0-9a-f]+.0: DMA {what}"));
    let reads = said(&format!("read of {IMAGE} stopped: its domain has nothing there$"))?;
    let writes = said("write to 0x[0-9a-f]+000 stopped: its domain may not write there$")?;
    run.never(From::Caisson, "^warning: 0000:")?;
    ensure!(reads == 1 && (1..=24).contains(&writes), "{reads} reads and {writes} writes are told of");
    Ok(())
}

/// QEMU's AMD IOMMU has no events for pages that are not there.
pub(crate) fn dma_amdvi(lab: &Lab, name: &str) -> Verdict {
    kept_out(lab, name, "amd-iommu").map(|_| ())
}

/// Nobody owns devices, and the serial line's own interrupt goes through the IOMMU's table.
pub(crate) fn typed(lab: &Lab, name: &str) -> Verdict {
    let config = r#"
        [machine]
        console = "all"

        [[domain]]
        name = "one"
        memory = "4M"
        kernel = "@probe/share"
        cmdline = "ms=4000"
        on_reboot = "destroy"
        "#;
    let mut run = lab.boot(name, config)?.words("iommu=require").qemu("-device", "intel-iommu").start()?;
    run.expect(
        From::Caisson,
        BOOT,
        &format!("^IOMMU: VT-d, 1 unit: devices reach what their guest has{REMAPPED}$"),
    )?;
    run.expect(From::Caisson, BOOT, "^guest one: 4 MiB, 1 vCPU, started$")?;
    run.send("\x01?")?;
    run.expect(From::Caisson, STEP, "^Ctrl-A t  where the time goes")?;
    run.expect(From::Guest("one"), STEP, "^probe share: ok$")?;
    run.end(STEP, Outcome::Clean)
}
