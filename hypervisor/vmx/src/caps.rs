//! What every control is set to, decided by the capability MSRs (SDM vol. 3, appendix A).

use caisson_hwvirt::EnableError;
use caisson_x86::vmx::{
    Capabilities, EntryControls, ExitControls, MissingControl, PinControls, ProcessorControls,
    SecondaryControls, VmxFeatures,
};

/// The control words that all vCPUs start with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Controls {
    pub(crate) pin: u32,
    pub(crate) processor: u32,
    pub(crate) secondary: u32,
    pub(crate) exit: u32,
    /// Without the bit for IA-32e mode, which goes with the guest's EFER.
    pub(crate) entry: u32,
}

impl Controls {
    /// The controls for a CPU with these capabilities, of whose optional features `features` are used.
    ///
    /// # Errors
    /// [`EnableError::MissingControl`] names the word in which something is missing.
    pub(crate) fn choose(caps: &Capabilities, features: VmxFeatures) -> Result<Self, EnableError> {
        let named = |name| move |_: MissingControl| EnableError::MissingControl(name);
        let when = |feature, bits: u32| if features.contains(feature) { bits } else { 0 };
        // Without virtual NMIs the end of an NMI handler could not be seen; every CPU with unrestricted guest has them.
        let pin = PinControls::EXTERNAL_INTERRUPT.bits()
            | PinControls::NMI.bits()
            | PinControls::VIRTUAL_NMIS.bits();
        let pin_optional = when(VmxFeatures::PREEMPTION_TIMER, PinControls::PREEMPTION_TIMER.bits());
        let pin =
            caps.pin.choose(pin | pin_optional, 0, 0).map_err(named("pin-based VM-execution controls"))?;

        let processor = ProcessorControls::TSC_OFFSETTING
            | ProcessorControls::HLT
            | ProcessorControls::MWAIT
            | ProcessorControls::RDPMC
            | ProcessorControls::MOV_DR
            | ProcessorControls::UNCONDITIONAL_IO
            | ProcessorControls::MONITOR
            | ProcessorControls::SECONDARY;
        let task_priority = if features.contains(VmxFeatures::TPR_SHADOW) {
            ProcessorControls::TPR_SHADOW
        } else {
            ProcessorControls::CR8_LOAD | ProcessorControls::CR8_STORE
        };
        let bitmaps = when(VmxFeatures::MSR_BITMAPS, ProcessorControls::MSR_BITMAPS.bits());
        let never =
            ProcessorControls::CR3_LOAD | ProcessorControls::CR3_STORE | ProcessorControls::IO_BITMAPS;
        let processor = caps
            .processor
            .choose((processor | task_priority).bits() | bitmaps, 0, never.bits())
            .map_err(named("primary processor-based VM-execution controls"))?;
        let windows = ProcessorControls::INTERRUPT_WINDOW | ProcessorControls::NMI_WINDOW;
        if caps.processor.may & windows.bits() != windows.bits() {
            return Err(EnableError::MissingControl("interrupt-window and NMI-window exiting"));
        }

        let secondary =
            SecondaryControls::EPT | SecondaryControls::UNRESTRICTED_GUEST | SecondaryControls::WBINVD;
        let optional = [
            (VmxFeatures::VPID, SecondaryControls::VPID),
            (VmxFeatures::RDTSCP, SecondaryControls::RDTSCP),
            (VmxFeatures::INVPCID, SecondaryControls::INVPCID),
            (VmxFeatures::PAUSE_LOOP, SecondaryControls::PAUSE_LOOP),
            (VmxFeatures::ENCLS, SecondaryControls::ENCLS),
            (VmxFeatures::XSAVES, SecondaryControls::XSAVES),
            (VmxFeatures::TSC_SCALING, SecondaryControls::TSC_SCALING),
            (VmxFeatures::VIRTUAL_INTERRUPTS, SecondaryControls::VIRTUAL_INTERRUPTS),
        ];
        // Page-modification logging is turned on for a vCPU when its guest's writes matter.
        let secondary =
            optional.iter().fold(secondary.bits(), |bits, (f, control)| bits | when(*f, control.bits()));
        let secondary = caps
            .secondary
            .choose(secondary, 0, 0)
            .map_err(named("secondary processor-based VM-execution controls"))?;

        let exit = ExitControls::SAVE_DEBUG
            | ExitControls::HOST_64_BIT
            | ExitControls::LOAD_PAT
            | ExitControls::SAVE_EFER
            | ExitControls::LOAD_EFER;
        // Saved at each exit, the timer also ends the run of a guest that exits all the time.
        let saved = when(VmxFeatures::PREEMPTION_TIMER, ExitControls::SAVE_PREEMPTION_TIMER.bits());
        let never = ExitControls::ACKNOWLEDGE_INTERRUPT.bits()
            | (ExitControls::SAVE_PREEMPTION_TIMER.bits() & !saved);
        let exit = caps
            .exit
            .choose(exit.bits(), saved, never)
            .map_err(named("VM-exit controls for EFER and PAT"))?;

        let entry = EntryControls::LOAD_DEBUG | EntryControls::LOAD_PAT | EntryControls::LOAD_EFER;
        let entry = caps
            .entry
            .choose(entry.bits(), 0, EntryControls::LONG_MODE_GUEST.bits())
            .map_err(named("VM-entry controls for EFER and PAT"))?;
        Ok(Self { pin, processor, secondary, exit, entry })
    }
}

#[cfg(test)]
mod tests {
    use caisson_x86::vmx::{Allowed, Basic, EptVpid, Misc};

    use super::*;

    fn all() -> Capabilities {
        let anything = Allowed { must: 0, may: u32::MAX };
        Capabilities {
            basic: Basic(u64::MAX),
            misc: Misc(u64::MAX),
            pin: Allowed { must: 0x16, may: u32::MAX },
            processor: Allowed { must: 0x0400_6172, may: u32::MAX },
            secondary: anything,
            exit: Allowed { must: 0x0003_6dfb & !(1 << 15), may: u32::MAX },
            entry: Allowed { must: 0x11fb & !(1 << 9), may: u32::MAX },
            ept_vpid: EptVpid::all(),
            cr0: (0, u64::MAX),
            cr4: (0, u64::MAX),
        }
    }

    #[test]
    fn task_priority_exits_where_there_is_no_shadow() {
        let caps = all();
        let with = Controls::choose(&caps, VmxFeatures::all()).unwrap();
        let without = Controls::choose(&caps, VmxFeatures::empty()).unwrap();
        let cr8 = ProcessorControls::CR8_LOAD | ProcessorControls::CR8_STORE;
        assert_eq!(with.processor & cr8.bits(), 0);
        assert_eq!(without.processor & cr8.bits(), cr8.bits());
        assert_eq!(without.secondary & SecondaryControls::VPID.bits(), 0);
        let virtual_interrupts = SecondaryControls::VIRTUAL_INTERRUPTS.bits();
        assert_eq!(with.secondary & virtual_interrupts, virtual_interrupts);
        assert_eq!(without.secondary & virtual_interrupts, 0);
        assert_eq!(without.pin & PinControls::PREEMPTION_TIMER.bits(), 0);
        assert_eq!((with.pin, without.pin), (0x16 | 0x69, 0x16 | 0x29));
        let saved = ExitControls::SAVE_PREEMPTION_TIMER.bits();
        assert_eq!((with.exit & saved, without.exit & saved), (saved, 0));
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut caps = all();
        caps.processor.must |= ProcessorControls::CR3_LOAD.bits();
        assert!(matches!(
            Controls::choose(&caps, VmxFeatures::empty()),
            Err(EnableError::MissingControl(name)) if name.starts_with("primary")
        ));
        let mut caps = all();
        caps.exit.may &= !ExitControls::LOAD_EFER.bits();
        assert!(matches!(
            Controls::choose(&caps, VmxFeatures::empty()),
            Err(EnableError::MissingControl(name)) if name.contains("EFER")
        ));
    }
}
