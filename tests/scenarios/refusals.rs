//! What Caisson refuses to start on or with: one clear line each, and the result that says so.

use std::fs;

use caisson_tests::{Boot, Failure, From, Lab, Run, Verdict, ensure};
use sha2::{Digest as _, Sha256};
use xtask::outcome::Outcome;

use crate::{
    screen,
    tiny::Tiny,
    workload::{BOOT, STEP},
};

/// Where the blob's header has its version, and its checksum: 32 bytes over everything before the first payload, whose
/// offset is another field (`caisson_config`, "Format").
const VERSION_AT: usize = 8;
const PAYLOADS_AT: usize = 24;
const CHECKSUM_AT: usize = 64;

/// A machine with a small guest that would start.
fn small<'a>(lab: &'a Lab, name: &str) -> Verdict<Boot<'a>> {
    Tiny::default().print("started").save(lab, name, "kernel")?;
    lab.boot(
        name,
        r#"
        [machine]
        console = "all"

        [[domain]]
        name = "one"
        memory = "2M"
        kernel = "kernel"

        [[domain]]
        name = "two"
        memory = "2M"
        kernel = "kernel"
        "#,
    )
}

/// Waits for the one line, and the end.
fn refused(mut run: Run, pattern: &str) -> Verdict {
    run.expect(From::Caisson, BOOT, &format!("^error: cannot start: {pattern}"))?;
    run.end(STEP, Outcome::Refused)?;
    one_line(&run)
}

/// Nothing else went wrong, and nothing is said twice.
fn one_line(run: &Run) -> Verdict {
    let complaints = run.count(From::Anyone, r"^(error|warning): |crashed")?;
    ensure!(complaints == 1, "there are {complaints} complaints, not one");
    run.never(From::Guest("one"), "started")
}

pub(crate) fn memory(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?.memory_mib(12).start()?;
    refused(
        run,
        r"this machine has \d+ KiB of usable memory, and Caisson needs \d+ KiB beside its guests': add memory$",
    )
}

pub(crate) fn no_svm(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?.cpu("EPYC,-monitor,-svm").start()?;
    refused(run, r"this CPU has neither AMD-V \(SVM\) nor Intel VT-x \(VMX\): use a CPU")
}

pub(crate) fn no_nested_paging(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?.cpu("EPYC,-monitor,-npt").start()?;
    refused(run, "this CPU has no nested paging")
}

/// VT-x without EPT, as of 2008.
pub(crate) fn no_ept(lab: &Lab, name: &str) -> Verdict {
    refused(small(lab, name)?.cpu("core2_penryn_t9600").start()?, "this CPU has no nested paging")
}

/// VT-x with EPT, whose guests cannot run in real mode, as of 2009.
pub(crate) fn no_unrestricted_guest(lab: &Lab, name: &str) -> Verdict {
    refused(small(lab, name)?.cpu("corei5_lynnfield_750").start()?, "this CPU has no nested paging")
}

pub(crate) fn no_local_apic(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?.cpu("EPYC,-monitor,-apic").start()?;
    refused(run, "this CPU has no local APIC")
}

pub(crate) fn no_module(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?.without_config().start()?;
    refused(run, "no configuration: name the blob with `module2 /boot/config.blob config`")
}

pub(crate) fn not_a_blob(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?.spoil(|blob| *blob = b"[[domain]]\n".repeat(500)).start()?;
    refused(run, "config: header.magic: not a Caisson config blob")
}

pub(crate) fn damaged(lab: &Lab, name: &str) -> Verdict {
    let flip = |blob: &mut Vec<u8>| {
        // A byte of the kernel.
        let first = u64_at(blob, PAYLOADS_AT) as usize;
        if let Some(byte) = blob.get_mut(first + 40) {
            *byte ^= 0x10;
        }
    };
    refused(small(lab, name)?.spoil(flip).start()?, r"config: payload\[0\]\.\S+: the SHA-256 does not match")
}

pub(crate) fn truncated(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?.spoil(|blob| blob.truncate(blob.len() - 512)).start()?;
    refused(run, r"config: blob: truncated, \d+ of \d+ bytes are there")
}

pub(crate) fn overlong(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?.spoil(|blob| blob.extend([0; 512])).start()?;
    refused(run, r"config: blob: \d+ bytes where \d+ belong")
}

pub(crate) fn unknown_version(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?
        .spoil(|blob| {
            put(blob, VERSION_AT, &7u32.to_le_bytes());
            seal(blob);
        })
        .start()?;
    refused(run, "config: header.version: format version 7 is unknown, version 1 is read here")
}

/// The compiler of configs refuses equal names, so the second name is changed afterwards.
pub(crate) fn duplicate_names(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?
        .spoil(|blob| {
            let end = u64_at(blob, PAYLOADS_AT) as usize;
            let texts = blob.get(..end).unwrap_or_default();
            if let Some(at) = texts.windows(6).position(|text| text == b"onetwo") {
                put(blob, at, b"oneone");
            }
            seal(blob);
        })
        .start()?;
    refused(run, r#"config: domain\[1\]\.name: "one" is the name of domain\[0\] already"#)
}

pub(crate) fn overcommitted(lab: &Lab, name: &str) -> Verdict {
    Tiny::default().print("started").save(lab, name, "kernel")?;
    let run = lab
        .boot(
            name,
            r#"
            [machine]
            console = "all"
            [[domain]]
            name = "one"
            memory = "64M"
            kernel = "kernel"
            [[domain]]
            name = "two"
            memory = "1G"
            kernel = "kernel"
            "#,
        )?
        .memory_mib(256)
        .start()?;
    refused(
        run,
        r"config: domain\[1\]\.memory: 1G is more than the \S+ left of this machine's \S+ for guests",
    )
}

pub(crate) fn not_a_kernel(lab: &Lab, name: &str) -> Verdict {
    let path = lab.directory(name)?.join("text");
    fs::write(&path, "this is no kernel\n".repeat(1000)).map_err(|error| Failure::new(error.to_string()))?;
    let run = lab
        .boot(
            name,
            r#"
            [machine]
            console = "all"
            [[domain]]
            name = "one"
            memory = "16M"
            kernel = "text"
            "#,
        )?
        .start()?;
    refused(run, r"config: domain\[0\] \(one\): kernel: ")
}

/// Without 64-bit mode not even the exit port is known: the machine stops, with a line on its screen.
pub(crate) fn no_long_mode(lab: &Lab, name: &str) -> Verdict {
    let mut run = small(lab, name)?.cpu("EPYC,-monitor,-svm,-lm").qemu("-vga", "std").start()?;
    run.expect(
        From::Raw,
        BOOT,
        "^Caisson: this CPU lacks 64-bit mode or no-execute pages: use an x86-64 CPU$",
    )?;
    screen::text(
        &mut run,
        lab,
        name,
        "Caisson: this CPU lacks 64-bit mode or no-execute pages: use an x86-64 CPU",
    )
}

/// Without an exit port a refused start leaves its line on the screen, and the machine halted.
pub(crate) fn bios_screen(lab: &Lab, name: &str) -> Verdict {
    let mut run =
        small(lab, name)?.without_exit_device().cpu("EPYC,-monitor,-npt").qemu("-vga", "std").start()?;
    let line = run.expect(From::Caisson, BOOT, "^error: cannot start: .*$")?;
    screen::text(&mut run, lab, name, line.group(0))?;
    one_line(&run)
}

/// Under UEFI the screen is a frame buffer, and the line is drawn on it.
pub(crate) fn uefi_screen(lab: &Lab, name: &str) -> Verdict {
    let mut run = small(lab, name)?
        .uefi()
        .without_exit_device()
        .cpu("EPYC,-monitor,-svm")
        .qemu("-vga", "std")
        .start()?;
    let line = run.expect(From::Caisson, BOOT, "^error: cannot start: .*$")?;
    screen::pixels(&mut run, lab, name, line.group(0))?;
    one_line(&run)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|field| field.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + field.len()) {
        place.copy_from_slice(field);
    }
}

/// Makes the header's checksum fit again.
fn seal(blob: &mut [u8]) {
    put(blob, CHECKSUM_AT, &[0; 32]);
    let end = u64_at(blob, PAYLOADS_AT) as usize;
    let hash = Sha256::digest(blob.get(..end).unwrap_or_default());
    put(blob, CHECKSUM_AT, &hash);
}
