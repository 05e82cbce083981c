//! What Caisson refuses to start on or with: one clear line each, and the result that says so.

use caisson_config::Blob;
use caisson_tests::{Boot, From, Lab, Run, Verdict, ensure};
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
    let pattern =
        r#"config: kernel "kernel" of domain "one" \(payload\[0\]\.sha256\): the SHA-256 does not match"#;
    refused(small(lab, name)?.spoil(flip).start()?, pattern)
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
    refused(run, "config: header.version: format version 7 is unknown, version [0-9]+ is read here")
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

/// The compiler of configs refuses a kernel that is none, so it is changed afterwards.
pub(crate) fn not_a_kernel(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?
        .spoil(|blob| {
            let Ok(good) = Blob::parse(blob) else { return };
            let Some(kernel) = good.payloads().next() else { return };
            let (at, hash, length) = (kernel.offset() as usize, *kernel.sha256(), kernel.data().len());
            let text: Vec<u8> = b"this is no kernel\n".iter().copied().cycle().take(length).collect();
            put(blob, at, &text);
            if let Some(at) = blob.windows(hash.len()).position(|bytes| bytes == hash) {
                put(blob, at, &Sha256::digest(&text));
            }
            seal(blob);
        })
        .start()?;
    refused(
        run,
        r#"config: domain\[0\] \(one\): kernel "kernel": no Linux bzImage, PVH ELF or multiboot1 kernel"#,
    )
}

/// As with VT-x turned off in the firmware's setup. Bochs's BIOS turns it on and locks it, before any loader could do
/// otherwise (`mov ecx, 0x3a; rdmsr; or eax, 5; wrmsr`): here it only locks it.
pub(crate) fn vt_x_locked(lab: &Lab, name: &str) -> Verdict {
    let lock_only = |bios: &mut Vec<u8>| {
        let read = [0x3A, 0, 0, 0, 0x0F, 0x32];
        // In 16-bit code the OR has a prefix.
        let writes: [&[u8]; 2] = [&[0x83, 0xC8, 0x05, 0x0F, 0x30], &[0x66, 0x83, 0xC8, 0x05, 0x0F, 0x30]];
        let mut found = 0;
        for pattern in writes.map(|write| [&read, write].concat()) {
            while let Some(at) = bios.windows(pattern.len()).position(|code| code == pattern) {
                put(bios, at + pattern.len() - 3, &[1]);
                found += 1;
            }
        }
        ensure!(found > 0, "this BIOS leaves VT-x to the loader: have GRUB lock it by `wrmsr 0x3a 1`");
        Ok(())
    };
    let run = small(lab, name)?.bios(lock_only)?.start()?;
    refused(
        run,
        "hardware virtualisation is disabled and locked by the firmware: enable SVM or VT-x in its setup$",
    )
}

/// Nothing of the sort in QEMU's machine unless it is asked for.
pub(crate) fn no_iommu(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?.words("iommu=require").start()?;
    refused(run, "iommu=require: ACPI tells of no IOMMU: turn VT-d or AMD-Vi on in the firmware's setup")
}

/// A word that nobody knows might have been meant to require one.
pub(crate) fn iommu_word(lab: &Lab, name: &str) -> Verdict {
    let run = small(lab, name)?.words("iommu=required").start()?;
    refused(run, "the boot word `iommu=` takes `on`, `off` or `require`: change it$")
}

/// QEMU without HPET and 8254, and GRUB turns the PM timer's ports off (ICH9, ACPI_CNTL), which SeaBIOS needs until then.
pub(crate) fn no_clock(lab: &Lab, name: &str) -> Verdict {
    let run =
        small(lab, name)?.qemu("-machine", "hpet=off,pit=off").before("setpci -s 00:1f.0 44.b=0").start()?;
    refused(run, r"no clock of this machine counts \(HPET, ACPI PM timer, 8254\)")
}

pub(crate) fn no_named_module(lab: &Lab, name: &str) -> Verdict {
    let modules = "module2 /boot/config.blob first\nmodule2 /boot/config.blob second configuration";
    let run = small(lab, name)?.modules(modules).start()?;
    refused(run, "several modules and none is called `config`: name the configuration's module so$")
}

/// Of several modules, the one that is called so is the configuration.
pub(crate) fn named_module(lab: &Lab, name: &str) -> Verdict {
    let modules = "module2 /boot/caisson first\nmodule2 /boot/config.blob the config";
    let mut run = small(lab, name)?.modules(modules).start()?;
    run.expect(From::Guest("two"), BOOT, "^started$")?;
    run.never(From::Caisson, "cannot start")
}

/// A multiboot1 loader enters with another word in EAX. Caisson's image has no header for such a loader: it is given one
/// here, in place of its own.
pub(crate) fn other_loader(lab: &Lab, name: &str) -> Verdict {
    const LINE: &str = "Caisson: not started by a multiboot2 loader: use GRUB's `multiboot2` command";
    let mut run = small(lab, name)?
        .disguise(multiboot1)?
        .before("multiboot /boot/caisson\nset gfxpayload=text\nboot")
        .qemu("-vga", "std")
        .start()?;
    run.expect(From::Raw, BOOT, &format!("^{LINE}$"))?;
    screen::text(&mut run, lab, name, LINE)
}

/// The segments of an ELF64 image as they lie in memory, with a multiboot1 header at their start that says so
/// (Multiboot Specification 0.6.96, section 3.1.1).
fn multiboot1(elf: &[u8]) -> Verdict<Vec<u8>> {
    const MAGIC: u32 = 0x1BAD_B002;
    const HAS_ADDRESSES: u32 = 1 << 16;
    let half = |at: usize| u64_at(elf, at) & 0xFFFF;
    let (entry, table, entry_len, count) = (u64_at(elf, 24), u64_at(elf, 32), half(54), half(56));
    let mut flat: Vec<u8> = Vec::new();
    let (mut base, mut end) = (0, 0);
    for header in (0..count).map(|index| (table + index * entry_len) as usize) {
        let [offset, physical, file_len, memory_len] =
            [8, 24, 32, 40].map(|field| u64_at(elf, header + field) as usize);
        ensure!(u64_at(elf, header) as u32 == 1, "a segment that is not loaded");
        if flat.is_empty() {
            base = physical;
        }
        flat.resize(physical - base, 0);
        flat.extend(elf.get(offset..offset + file_len).unwrap_or_default());
        end = physical + memory_len;
    }
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(HAS_ADDRESSES);
    let load_end = base + flat.len();
    let addresses = [base, base, load_end, end, entry as usize].map(|address| address as u32);
    let words = [MAGIC, HAS_ADDRESSES, checksum].into_iter().chain(addresses);
    put(&mut flat, 0, &words.flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    Ok(flat)
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
