//! The interrupt message: what an I/O APIC pin, an MSI write and an ICR write all become.
//!
//! Intel SDM volume 3, "Message Signalled Interrupts" and "Interrupt Command Register (ICR)"; the 15-bit extended
//! destination id is the one that Linux uses where KVM's CPUID leaf announces `KVM_FEATURE_MSI_EXT_DEST_ID`.

/// The destination that means every APIC. A sender of 8-bit destinations means the same by 0xFF; the constructors here
/// translate it, so that a message has one form of broadcast (Intel SDM volume 3, "Physical Destination Mode", "Logical
/// Destination Mode" and "x2APIC Mode").
pub const BROADCAST: u32 = u32::MAX;

/// The guest-physical addresses whose writes are messages to local APICs (Intel SDM volume 3, "Message Address
/// Register Format").
pub const MSI_WINDOW: core::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// What the receiving CPU does with the message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeliveryMode {
    /// The vector is delivered to every CPU of the destination.
    Fixed,
    /// The vector is delivered to one CPU of the destination.
    LowestPriority,
    /// System-management interrupt. The virtual machine has no SMM: ignored.
    Smi,
    /// Non-maskable interrupt; the vector is ignored.
    Nmi,
    /// INIT: the CPU is reset to wait for SIPI (the boot CPU: to its reset vector).
    Init,
    /// Start-up (SIPI): the vector is the number of the page to start at, 0 included. From an ICR only.
    Startup,
    /// The vector is to be asked from the 8259 pair. From an I/O APIC, MSI or LINT pin only.
    ExtInt,
}

impl DeliveryMode {
    /// The mode of the 3-bit field in an ICR, an LVT entry, a redirection entry or MSI data (further bits are
    /// ignored); `None` for the reserved encoding 3.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }

    /// Whether the message carries a vector that goes through IRR.
    #[must_use]
    pub const fn is_vectored(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// How a destination is compared with an APIC.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DestinationMode {
    /// With its APIC id.
    Physical,
    /// With its logical id, by the model that it uses.
    Logical,
}

/// Whether the interrupt is an event or a condition that an EOI ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TriggerMode {
    /// An event: the EOI stays in the local APIC.
    Edge,
    /// A condition: the EOI is told to the I/O APICs.
    Level,
}

/// One interrupt on its way to local APICs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct InterruptMessage {
    /// APIC id, logical destination or [`BROADCAST`].
    pub destination: u32,
    /// How [`Self::destination`] is compared.
    pub destination_mode: DestinationMode,
    /// What the receiver does.
    pub delivery: DeliveryMode,
    /// The vector; 0 to 15 are illegal for vectored modes and are answered by an error at the receiver.
    pub vector: u8,
    /// Edge or level.
    pub trigger: TriggerMode,
    /// Whether the message asserts. A level-triggered message that deasserts is ignored by every APIC of this
    /// version.
    pub assert: bool,
}

impl InterruptMessage {
    /// An edge-triggered interrupt to one APIC by its id.
    #[must_use]
    pub const fn fixed(destination: u32, vector: u8) -> Self {
        Self {
            destination,
            destination_mode: DestinationMode::Physical,
            delivery: DeliveryMode::Fixed,
            vector,
            trigger: TriggerMode::Edge,
            assert: true,
        }
    }

    /// The message that a write of `data` to `address` in [`MSI_WINDOW`] is; `None` when it is none (outside of the
    /// window, remappable format, reserved delivery mode).
    ///
    /// Address bits 19:12 are the destination's low 8 bits and 11:5 its bits 14:8; a redirection hint makes a fixed
    /// interrupt one of lowest priority.
    #[must_use]
    pub const fn from_msi(address: u64, data: u32) -> Option<Self> {
        const REMAPPABLE: u64 = 1 << 4;
        const REDIRECTION_HINT: u64 = 1 << 3;
        const LOGICAL: u64 = 1 << 2;
        if address < *MSI_WINDOW.start() || address > *MSI_WINDOW.end() || address & REMAPPABLE != 0 {
            return None;
        }
        let low = (address >> 12) as u32 & 0xff;
        let high = (address >> 5) as u32 & 0x7f;
        let delivery = match DeliveryMode::from_bits(data >> 8) {
            None | Some(DeliveryMode::Startup) => return None,
            Some(DeliveryMode::Fixed) if address & REDIRECTION_HINT != 0 => DeliveryMode::LowestPriority,
            Some(mode) => mode,
        };
        let level = data & (1 << 15) != 0 && delivery.is_vectored();
        Some(Self {
            destination: extended_destination(low, high),
            destination_mode: if address & LOGICAL != 0 {
                DestinationMode::Logical
            } else {
                DestinationMode::Physical
            },
            delivery,
            vector: data as u8,
            trigger: if level { TriggerMode::Level } else { TriggerMode::Edge },
            assert: !level || data & (1 << 14) != 0,
        })
    }

    /// Whether APICs ignore the message: it deasserts, or asks for an SMI.
    #[must_use]
    pub const fn is_ignored(&self) -> bool {
        !self.assert || matches!(self.delivery, DeliveryMode::Smi)
    }
}

/// The destination of a sender with 8 bits (`low`) and 7 more where the guest knows of them (`high`).
pub(crate) const fn extended_destination(low: u32, high: u32) -> u32 {
    if low == 0xff && high == 0 { BROADCAST } else { high << 8 | low }
}

/// A destination that an ICR names without an id (Intel SDM volume 3, "Interrupt Command Register (ICR)").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Shorthand {
    /// No shorthand: the message's destination counts.
    None,
    /// The sender alone.
    SelfOnly,
    /// Everyone.
    AllIncludingSelf,
    /// Everyone but the sender.
    AllExcludingSelf,
}

/// An interrupt that a vCPU sends by its ICR.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ipi {
    /// What is sent; its destination counts only without a shorthand.
    pub message: InterruptMessage,
    /// The destination where it is not in the message.
    pub shorthand: Shorthand,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn msi_address_and_data_decode() {
        let m = InterruptMessage::from_msi(0xfee0_3000, 0x0041).unwrap();
        assert_eq!(m, InterruptMessage::fixed(3, 0x41));
        let m = InterruptMessage::from_msi(0xfee0_300c, 0xc041).unwrap();
        assert_eq!(m.destination_mode, DestinationMode::Logical);
        assert_eq!(m.delivery, DeliveryMode::LowestPriority);
        assert_eq!((m.trigger, m.assert), (TriggerMode::Level, true));
        assert!(InterruptMessage::from_msi(0xfee0_3000, 0x8041).unwrap().is_ignored());
        assert!(!InterruptMessage::from_msi(0xfee0_3000, 0x0441).unwrap().is_ignored());
    }

    #[test]
    fn msi_destinations_have_15_bits_and_one_broadcast() {
        let at = |address| InterruptMessage::from_msi(address, 0x41).unwrap().destination;
        assert_eq!(at(0xfee0_0000 | 0x34 << 12 | 0x12 << 5), 0x1234);
        assert_eq!(at(0xfeef_f000), BROADCAST);
        assert_eq!(at(0xfeef_f020), 0x1ff);
    }

    #[test]
    fn what_is_no_msi_is_refused() {
        assert_eq!(InterruptMessage::from_msi(0xfedf_fffc, 0x41), None);
        assert_eq!(InterruptMessage::from_msi(0xfef0_0000, 0x41), None);
        assert_eq!(InterruptMessage::from_msi(0x1_fee0_0000, 0x41), None);
        assert_eq!(InterruptMessage::from_msi(0xfee0_0010, 0x41), None);
        assert_eq!(InterruptMessage::from_msi(0xfee0_0000, 0x341), None);
        assert_eq!(InterruptMessage::from_msi(0xfee0_0000, 0x641), None);
    }

    proptest! {
        #[test]
        fn any_msi_keeps_its_vector(address: u64, data: u32) {
            if let Some(m) = InterruptMessage::from_msi(0xfee0_0000 | address & 0xf_ffff, data) {
                prop_assert_eq!(m.vector, data as u8);
                prop_assert!(m.destination <= 0x7fff || m.destination == BROADCAST);
            }
        }
    }
}
