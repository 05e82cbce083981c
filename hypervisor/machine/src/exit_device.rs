//! Devices by which an emulator lets its guest end the run and say how it went. The boot word `exit=` chooses one; a real
//! machine has none of them, and nothing is written to their ports unless the word is there.
//!
//! | word | emulator | device |
//! |---|---|---|
//! | `exit=isa-debug:PORT` | QEMU | `isa-debug-exit` with its `iobase` at PORT (decimal or `0x…`): the code written ends QEMU with the exit status 2 × code + 1 |
//! | `exit=bochs` | Bochs | its shutdown port 0x8900, which ends Bochs at the string `Shutdown`, but with the same exit status for all ends. So the result goes first, as the line `caisson-result: 0x10`, to the debug port 0xE9, which Bochs shows on its standard output (`port_e9_hack`) |

use core::fmt::{self, Write};

use crate::cpu::{outb, outl};
use crate::power::RunResult;

/// Bochs's debug port.
const BOCHS_DEBUG: u16 = 0xe9;
/// Bochs's shutdown port.
const BOCHS_SHUTDOWN: u16 = 0x8900;

/// An emulator's way to end a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitDevice {
    /// QEMU's `isa-debug-exit` at this I/O port.
    IsaDebug(u16),
    /// Bochs's shutdown port.
    Bochs,
}

/// The boot word `exit=` names no device that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownExitDevice;

impl fmt::Display for UnknownExitDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no such exit device: there are exit=isa-debug:PORT and exit=bochs")
    }
}

impl core::str::FromStr for ExitDevice {
    type Err = UnknownExitDevice;

    /// Reads the value of the boot word.
    fn from_str(text: &str) -> Result<Self, UnknownExitDevice> {
        match text.split_once(':') {
            Some(("isa-debug", port)) => {
                let number = match port.strip_prefix("0x") {
                    Some(digits) => u16::from_str_radix(digits, 16),
                    None => port.parse(),
                };
                number.map(Self::IsaDebug).map_err(|_| UnknownExitDevice)
            }
            None if text == "bochs" => Ok(Self::Bochs),
            _ => Err(UnknownExitDevice),
        }
    }
}

impl ExitDevice {
    /// Gives `result` to the emulator, which ends before this returns. When it does return, there is no such device.
    pub(crate) fn end(self, result: RunResult) {
        match self {
            // SAFETY: the person who booted Caisson gave it this port for this.
            Self::IsaDebug(port) => unsafe { outl(port, result as u32) },
            Self::Bochs => {
                // Writing to a port does not fail. The line begins after whatever stands there.
                let _ = writeln!(Port(BOCHS_DEBUG), "\ncaisson-result: {:#x}", result as u8);
                let _ = Port(BOCHS_SHUTDOWN).write_str("Shutdown");
            }
        }
    }
}

/// One of Bochs's ports that takes text.
struct Port(u16);

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the person who booted Caisson said that this is Bochs, where these ports do what is wanted here.
            unsafe { outb(self.0, byte) };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_known_by_their_words() {
        assert_eq!("isa-debug:0xf4".parse(), Ok(ExitDevice::IsaDebug(0xf4)));
        assert_eq!("isa-debug:1281".parse(), Ok(ExitDevice::IsaDebug(0x501)));
        assert_eq!("bochs".parse(), Ok(ExitDevice::Bochs));
    }

    #[test]
    fn other_words_are_refused() {
        for word in
            ["", "isa-debug", "isa-debug:", "isa-debug:0x10000", "isa-debug:x", "bochs:0x8900", "0xf4"]
        {
            assert_eq!(word.parse::<ExitDevice>(), Err(UnknownExitDevice), "{word}");
        }
    }
}
