//! The Linux guest that runs the benchmark program: under Caisson, and on the bare machine.

use std::path::PathBuf;

use super::{GUEST_MIB, exact, medium, scale::in_step};
use crate::{error::Result, images::Images, outcome::Outcome, qemu::Boot};

/// The guest's name in the log.
pub(super) const NAME: &str = "bench";

/// Its kernel and its RAM disk, the same wherever it runs.
pub(super) const KERNEL: &str = "@linux";
pub(super) const INITRD: [&str; 2] = ["@initrd-stamp", "@measure"];

/// The command line of the kernel: on `console`, for rows of the benchmark program, or only for a boot where `rows` is empty.
pub(super) fn cmdline(console: &str, rows: &str) -> String {
    let run = if rows.is_empty() { String::new() } else { format!(" caisson.run=/usr/sbin/measure+{rows}") };
    // Where programs lie at random, starting one takes now more and now less.
    format!("console={console} quiet nokaslr norandmaps panic=-1 caisson.test=boot{run}")
}

/// The config that has Caisson run the guest, and tell its accounts.
fn config(rows: &str) -> String {
    let initrd = INITRD.map(|name| format!("\"{name}\"")).join(", ");
    format!(
        "[machine]\nconsole = \"all\"\nlog = \"debug\"\n[[domain]]\nname = \"{NAME}\"\nmemory = \"{GUEST_MIB}M\"\non_reboot = \"destroy\"\n\
         kernel = \"{KERNEL}\"\ninitrd = [{initrd}]\ncmdline = \"{}\"\n",
        cmdline("ttyS0", rows)
    )
}

/// Runs the guest under Caisson; gives what it printed, with Caisson's accounts.
pub(super) fn under_caisson(images: &Images, what: &str, rows: &str) -> Result<String> {
    let (iso, memory) = medium(images, "guest", &config(rows))?;
    exact(images, what, memory, Boot::Iso(iso), Outcome::Clean)
}

/// The same on Bochs.
pub(super) fn on_bochs(images: &Images, what: &str, rows: &str) -> Result<String> {
    in_step(images, what, &config(rows), 1)
}

/// The same without a hypervisor.
pub(super) fn bare(images: &Images, what: &str, rows: &str) -> Result<String> {
    let (kernel, initrd) = parts(images)?;
    let boot = Boot::Linux { kernel, initrd, cmdline: cmdline("ttyS0", rows) };
    exact(images, what, GUEST_MIB, boot, Outcome::NoResult)
}

/// The files of kernel and RAM disk.
pub(super) fn parts(images: &Images) -> Result<(PathBuf, PathBuf)> {
    Ok((images.provide(KERNEL)?, images.joined(&INITRD)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_alone_runs_no_program() {
        assert!(!cmdline("ttyS0", "").contains("caisson.run"));
        let line = cmdline("hvc0", "cpuid,port");
        assert!(line.starts_with("console=hvc0 ") && line.ends_with("=/usr/sbin/measure+cpuid,port"));
    }
}
