//! The end of a run: power-off, reset, or a test's exit device.

use spin::Once;

use crate::acpi::Platform;
use crate::cpu::{PATIENCE, halt_forever, inw, outb, outw, wait_until};
use crate::exit_device::ExitDevice;
use crate::serial;

/// How a run ended, by the codes that a test's [`ExitDevice`] reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RunResult {
    /// Every guest ended by its own power-off.
    Clean = 0x10,
    /// Some guest crashed or was ended.
    GuestFailed = 0x11,
    /// Caisson could not start on this machine or with this configuration.
    Refused = 0x12,
    /// Caisson failed.
    Panic = 0x13,
}

struct Ways {
    platform: Platform,
    exit_device: Option<ExitDevice>,
}

static WAYS: Once<Ways> = Once::new();

/// Remembers how this machine is turned off, and the exit device of the boot command line, if any.
pub fn init(platform: &Platform, exit_device: Option<ExitDevice>) {
    WAYS.call_once(|| Ways { platform: platform.clone(), exit_device });
}

/// Ends the run. With an exit device the result goes there. Otherwise a run that ended well turns the machine off, and
/// one that did not leaves it halted, so that a person can read why.
pub fn finish(result: RunResult) -> ! {
    serial::flush();
    if let Some(device) = WAYS.get().and_then(|w| w.exit_device) {
        device.end(result);
    }
    if matches!(result, RunResult::Clean | RunResult::GuestFailed) {
        off();
    }
    halt_forever()
}

/// ACPI soft-off: SLP_TYP and SLP_EN into the PM1 control registers (ACPI 6.4, section 4.8.3.2.1).
///
/// The registers do nothing before the firmware has handed them over, which SCI_EN tells.
fn off() {
    const SCI_ENABLE: u16 = 1 << 0;
    const SLEEP_ENABLE: u16 = 1 << 13;
    let Some(soft_off) = WAYS.get().and_then(|w| w.platform.soft_off) else { return };
    let value = |sleep_type: u8| u16::from(sleep_type & 7) << 10 | SLEEP_ENABLE;
    // SAFETY: the ports are the firmware's PM1 control registers and SMI_CMD; the machine is Caisson's to turn off.
    unsafe {
        let handed_over = || inw(soft_off.pm1a) & SCI_ENABLE != 0;
        if let Some((port, value)) = soft_off.enable
            && !handed_over()
        {
            outb(port, value);
            // Firmware that never says so gets its chance all the same.
            let _ = wait_until(PATIENCE, handed_over);
        }
        outw(soft_off.pm1a, value(soft_off.sleep_type.0));
        if let Some(pm1b) = soft_off.pm1b {
            outw(pm1b, value(soft_off.sleep_type.1));
        }
    }
}

/// Restarts the machine: the ACPI reset register, then the keyboard controller's line.
pub fn reset() -> ! {
    if let Some(reset) = WAYS.get().and_then(|w| w.platform.reset) {
        // SAFETY: the firmware's reset register.
        unsafe { outb(reset.port, reset.value) };
    }
    // SAFETY: the 8042's pulse command; the machine is Caisson's to restart.
    unsafe { outb(0x64, 0xfe) };
    halt_forever()
}
