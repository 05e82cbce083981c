//! The virtual local APIC: its page, delivery out of it, and what of it exits (SDM vol. 3, chapter 30).
//!
//! With virtual-interrupt delivery the CPU takes interrupts out of the page's IRR as soon as the guest can take them. The
//! VMCS holds the highest vectors of IRR and ISR besides; the CPU keeps them as the page says, so that they are never read,
//! and written only where the core has changed them.
//!
//! By itself that leaves every access to the local APIC an exit. Two more controls, of which only one can be on, let some of
//! them through: one for the MSRs of x2APIC, where the MSR bitmap lets them, and one for the page at the address after
//! reset, which stage 2 then maps to the APIC-access page. Where the guest has its APIC elsewhere, or off, neither is on.

use caisson_hwvirt::{ApicPlace, MsrPassthrough};
use caisson_x86::vmx::{SecondaryControls, VmxFeatures, field};
use caisson_x86::{ApicPage, TopVectors};

use crate::vcpu::VmxVcpu;
use crate::vmcs::Register;

/// The first MSR of x2APIC: that of the register with index 0.
const X2APIC_FIRST: u32 = 0x800;
const TPR: u32 = X2APIC_FIRST + 0x08;
const EOI: u32 = X2APIC_FIRST + 0x0b;
const SELF_IPI: u32 = X2APIC_FIRST + 0x3f;

/// The x2APIC registers that the page can answer for: all that can be read but the timer's current count, which moves. A
/// number that is no register must exit, to be #GP.
fn readable(index: u32) -> bool {
    matches!(index, 0x02 | 0x03 | 0x08 | 0x0a | 0x0d | 0x0f | 0x10..=0x28 | 0x30 | 0x32..=0x38 | 0x3e)
}

/// The MSRs that do not exit while x2APIC's are in the page (section 30.5).
pub(crate) fn x2apic_msrs(features: VmxFeatures) -> impl Iterator<Item = MsrPassthrough> {
    let registers = features.contains(VmxFeatures::APIC_REGISTERS);
    (0..0x40).filter_map(move |index| {
        let number = X2APIC_FIRST + index;
        let write = matches!(number, TPR | EOI | SELF_IPI);
        let read = number == TPR || registers && readable(index);
        (read || write).then_some(MsrPassthrough { number, read, write })
    })
}

/// The controls for a guest that finds its local APIC at `place`, on top of those that never change.
fn controls(features: VmxFeatures, place: ApicPlace) -> SecondaryControls {
    let (feature, control) = match place {
        ApicPlace::Software => return SecondaryControls::empty(),
        ApicPlace::Memory => (VmxFeatures::APIC_ACCESSES, SecondaryControls::APIC_ACCESSES),
        ApicPlace::Msrs => (VmxFeatures::X2APIC, SecondaryControls::X2APIC),
    };
    if !features.contains(feature) {
        return SecondaryControls::empty();
    }
    let registers = features.contains(VmxFeatures::APIC_REGISTERS);
    control | if registers { SecondaryControls::APIC_REGISTERS } else { SecondaryControls::empty() }
}

impl VmxVcpu {
    /// Sets what exits for a guest that finds its local APIC at `place`.
    pub(crate) fn place_apic(&mut self, place: ApicPlace) {
        let shared = &*self.shared;
        let mut controls = controls(shared.features, place);
        let eptp = match self.apic_eptp {
            Some(eptp) if controls.contains(SecondaryControls::APIC_ACCESSES) => eptp,
            _ => {
                // Without the page in stage 2 there is nothing to virtualise.
                if controls.contains(SecondaryControls::APIC_ACCESSES) {
                    controls = SecondaryControls::empty();
                }
                self.eptp
            }
        };
        let bitmap = match &shared.x2apic_bitmap {
            Some(bitmap) if controls.contains(SecondaryControls::X2APIC) => bitmap,
            _ => &shared.msr_bitmap,
        };
        let secondary = shared.controls.secondary | controls.bits() | self.log_control().bits();
        self.vmcs.set(Register::SecondaryControls, u64::from(secondary));
        if shared.features.contains(VmxFeatures::MSR_BITMAPS) {
            self.vmcs.set(Register::MsrBitmap, bitmap.hpa().as_u64());
        }
        self.vmcs.set(Register::EptPointer, eptp);
    }

    /// The state after reset.
    pub(crate) fn reset_virtual_apic(&mut self) {
        if let Some(page) = &mut self.virtual_apic {
            **page = ApicPage::new();
        }
        if self.shared.features.contains(VmxFeatures::VIRTUAL_INTERRUPTS) {
            self.top_vectors = Some(TopVectors::default());
            self.write_level_vectors(&[0; 4]);
        }
        self.place_apic(ApicPlace::Software);
    }

    /// Guest interrupt status (section 25.4.2).
    pub(crate) fn write_top_vectors(&mut self, top: TopVectors) {
        let status = u16::from(top.in_service) << 8 | u16::from(top.requested);
        self.vmcs.write(field::GUEST_INTERRUPT_STATUS, status);
    }

    /// The EOI-exit bitmaps (section 25.6.8).
    #[cold]
    pub(crate) fn write_level_vectors(&mut self, vectors: &[u64; 4]) {
        let bitmaps = [field::EOI_EXIT_0, field::EOI_EXIT_1, field::EOI_EXIT_2, field::EOI_EXIT_3];
        for (bitmap, word) in bitmaps.into_iter().zip(vectors) {
            self.vmcs.write(bitmap, *word);
        }
        self.level_vectors = *vectors;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_control_for_each_place() {
        let all = VmxFeatures::all();
        let registers = SecondaryControls::APIC_REGISTERS;
        assert_eq!(controls(all, ApicPlace::Software), SecondaryControls::empty());
        assert_eq!(controls(all, ApicPlace::Memory), SecondaryControls::APIC_ACCESSES | registers);
        assert_eq!(controls(all, ApicPlace::Msrs), SecondaryControls::X2APIC | registers);
        let few = all - VmxFeatures::APIC_REGISTERS - VmxFeatures::APIC_ACCESSES;
        assert_eq!(controls(few, ApicPlace::Memory), SecondaryControls::empty());
        assert_eq!(controls(few, ApicPlace::Msrs), SecondaryControls::X2APIC);
    }

    #[test]
    fn what_passes_in_x2apic_mode() {
        let passing = |features| x2apic_msrs(features).collect::<alloc::vec::Vec<_>>();
        let few = passing(VmxFeatures::X2APIC);
        let pass = |number, read, write| MsrPassthrough { number, read, write };
        assert_eq!(few, [pass(0x808, true, true), pass(0x80b, false, true), pass(0x83f, false, true)]);
        let all = passing(VmxFeatures::all());
        assert!(all.contains(&pass(0x830, true, false)) && all.contains(&pass(0x827, true, false)));
        for number in [0x800, 0x80e, 0x829, 0x831, 0x839] {
            assert!(!all.iter().any(|pass| pass.number == number), "{number:#x} is no register, or moves");
        }
        assert!(all.iter().filter(|pass| pass.write).count() == 3);
    }
}
