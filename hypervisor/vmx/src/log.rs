//! Page-modification logging (SDM vol. 3, section 29.3.6): the CPU writes the address of every page whose dirty bit it sets
//! into a page of the vCPU's, from the last entry down, and exits when that is full.

use caisson_frames::Owner;
use caisson_machine::memory::PageBox;
use caisson_types::{Gpa, PAGE_SIZE};
use caisson_x86::vmx::{SecondaryControls, field};

use crate::vcpu::VmxVcpu;
use crate::vmcs::Register;

/// Addresses that the log has room for.
const ENTRIES: u16 = 512;

/// A vCPU's log.
pub(crate) struct WriteLog {
    page: PageBox<[u64; ENTRIES as usize]>,
    on: bool,
}

impl WriteLog {
    /// A log that is off; `None` without memory.
    pub(crate) fn new(owner: Owner) -> Option<Self> {
        Some(Self { page: PageBox::zeroed(owner)?, on: false })
    }
}

/// The first entry that is in use, when the CPU is at `index`: that of the next one, or anything from [`ENTRIES`] on where the
/// log is full, as an index below 0 wraps.
const fn first_used(index: u16) -> u16 {
    if index < ENTRIES { index + 1 } else { 0 }
}

impl VmxVcpu {
    /// Turns the log on, empty, or off.
    pub(crate) fn turn_log(&mut self, on: bool) {
        let Some(log) = &mut self.log else { return };
        if log.on == on {
            return;
        }
        log.on = on;
        self.vmcs.write(field::LOG_ADDRESS, log.page.hpa().as_u64());
        self.vmcs.write(field::LOG_INDEX, ENTRIES - 1);
        let others = self.vmcs.get(Register::SecondaryControls) & !u64::from(SecondaryControls::PML.bits());
        self.vmcs.set(Register::SecondaryControls, others | u64::from(self.log_control().bits()));
    }

    /// What the log asks for among the secondary controls.
    pub(crate) fn log_control(&self) -> SecondaryControls {
        match &self.log {
            Some(log) if log.on => SecondaryControls::PML,
            _ => SecondaryControls::empty(),
        }
    }

    /// Calls `page` with every page in the log, and empties it.
    pub(crate) fn empty_log(&mut self, mut page: impl FnMut(Gpa)) {
        let Some(log) = self.log.as_ref().filter(|log| log.on) else { return };
        let first = first_used(self.vmcs.read(field::LOG_INDEX));
        for entry in log.page.iter().skip(usize::from(first)) {
            page(Gpa::new(entry & !(PAGE_SIZE - 1)));
        }
        if first < ENTRIES {
            self.vmcs.write(field::LOG_INDEX, ENTRIES - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_fills_downwards() {
        assert_eq!(first_used(511), 512, "empty");
        assert_eq!(first_used(510), 511, "one page");
        assert_eq!(first_used(0), 1, "room for one more");
        assert_eq!(first_used(u16::MAX), 0, "full");
    }
}
