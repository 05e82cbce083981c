//! The description that everything else follows from.

use core::fmt;

use caisson_types::{Gpa, MemoryRegion, PAGE_SIZE, PageSize};

/// Where RAM below 4 GiB ends unless a layout says otherwise: the last GiB is for devices.
pub const DEFAULT_HOLE: u64 = 0xC000_0000;

/// Guest-physical address of the I/O APIC's page.
pub const IOAPIC_ADDRESS: u32 = 0xFEC0_0000;

/// Guest-physical address of each local APIC's page after reset.
pub const LOCAL_APIC_ADDRESS: u32 = 0xFEE0_0000;

/// Guest-physical address of the first virtio device's page; the others' follow.
pub const VIRTIO_ADDRESS: u32 = 0xFEB0_0000;

/// The most virtio devices.
pub const MAX_VIRTIO: usize = 32;

/// The first pin of the I/O APIC that virtio devices have: behind those of the ISA bus.
const VIRTIO_FIRST_PIN: u8 = 16;
/// How many pins they share.
const VIRTIO_PINS: u8 = 8;

/// The pin of the I/O APIC, and so the global system interrupt, of the virtio device with this index.
#[must_use]
pub const fn virtio_pin(index: usize) -> u8 {
    VIRTIO_FIRST_PIN + (index % VIRTIO_PINS as usize) as u8
}

/// Where RAM goes on behind the hole.
pub(crate) const FOUR_GIB: u64 = 1 << 32;

/// The first address of devices that have a fixed place; the hole must start below.
const FIXED_DEVICES: u64 = VIRTIO_ADDRESS as u64;

/// Private memory is given in multiples of this many bytes: what Linux maps of soft-reserved memory at a time (`device_dax`).
pub const PRIVATE_GRANULE: u64 = PageSize::Size2M.bytes();

/// The least RAM of a guest: the first MiB, of which the lower 639 KiB are its own.
const LEAST_RAM: u64 = 1 << 20;

/// What the virtual machine consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestLayout<'a> {
    /// Bytes of RAM, a multiple of 4 KiB. RAM starts at address 0; what does not fit below [`Self::hole`] goes on at
    /// 4 GiB.
    pub ram: u64,
    /// How much of the RAM, the last in the order of addresses, is private: no other domain ever sees it, and the memory map says
    /// that it is soft-reserved. A multiple of [`PRIVATE_GRANULE`], as the RAM and the hole are where it is not 0; less than the RAM.
    pub private: u64,
    /// Where RAM below 4 GiB ends at the latest, and addresses of devices begin: a multiple of 4 KiB.
    pub hole: u64,
    /// The local APIC id of each vCPU; the first is the boot CPU.
    pub apic_ids: &'a [u32],
    /// The I/O APIC's id.
    pub ioapic_id: u8,
    /// How many virtio devices it has, at most [`MAX_VIRTIO`].
    pub virtio: usize,
    /// What a domain that owns real devices has in place of a PC's.
    pub real: Option<RealMachine<'a>>,
}

/// What a domain that owns real devices sees of the machine: memory at its own addresses, and what the firmware tells of the
/// devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RealMachine<'a> {
    /// The memory map from 1 MiB on, in ascending order without overlap. The first MiB is as in any guest.
    pub regions: &'a [MemoryRegion],
    /// Where the ACPI tables go, in RAM below 4 GiB that the map calls [`caisson_types::RegionKind::AcpiReclaim`], and how
    /// many bytes there are for them.
    pub acpi: (Gpa, u64),
    /// The DSDT and SSDTs of the machine, whole tables: the DSDT first.
    pub definitions: &'a [&'a [u8]],
    /// Memory-mapped configuration space.
    pub ecam: &'a [EcamRange],
    /// ISA interrupts that are not wired one to one.
    pub overrides: &'a [SourceOverride],
}

/// Memory-mapped configuration space of some buses (PCI Firmware Specification 3.3, table 4-3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EcamRange {
    /// Where bus 0 is, whether or not the range starts there.
    pub address: u64,
    /// The segment group.
    pub segment: u16,
    /// The first and the last bus.
    pub buses: (u8, u8),
}

/// An ISA interrupt that is not wired one to one (ACPI 6.5, section 5.2.12.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceOverride {
    /// The ISA interrupt.
    pub irq: u8,
    /// Where it arrives.
    pub gsi: u32,
    /// Polarity and trigger mode, as MPS INTI flags.
    pub flags: u16,
}

/// Why a description is not one of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayoutError {
    /// So many bytes of RAM are below the least that a guest needs.
    TooLittleRam(u64),
    /// An amount of RAM or the hole's start is no multiple of 4 KiB.
    Unaligned(u64),
    /// The hole cannot start at this address.
    BadHole(u64),
    /// So many bytes of RAM cannot be private.
    BadPrivate(u64),
    /// There is no vCPU.
    NoVcpu,
    /// Two vCPUs have this local APIC id, or it means "all".
    BadApicId(u32),
    /// The tables for so many vCPUs do not fit into the firmware's area.
    TooManyVcpus(usize),
    /// There is no room for so many virtio devices.
    TooManyDevices(usize),
    /// The machine's own ACPI tables do not fit into the room for them; so many bytes are missing.
    NoRoomForAcpi(u64),
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLittleRam(bytes) => {
                write!(f, "{bytes} bytes of RAM are too few: give the guest at least {LEAST_RAM}")
            }
            Self::Unaligned(value) => write!(f, "{value:#x} is no multiple of {PAGE_SIZE} bytes"),
            Self::BadHole(at) => {
                write!(
                    f,
                    "the device hole cannot start at {at:#x}: choose {LEAST_RAM:#x} to {FIXED_DEVICES:#x}"
                )
            }
            Self::BadPrivate(bytes) => {
                write!(
                    f,
                    "{bytes:#x} bytes of RAM cannot be private: let them and all RAM be multiples of {PRIVATE_GRANULE:#x}, and less"
                )
            }
            Self::NoVcpu => write!(f, "the guest has no vCPU: give it at least one"),
            Self::BadApicId(id) => write!(f, "APIC id {id:#x} is taken or means all CPUs: choose another"),
            Self::NoRoomForAcpi(bytes) => {
                write!(f, "the machine's ACPI tables are {bytes} bytes too long for the room kept for them")
            }
            Self::TooManyVcpus(count) => write!(f, "the firmware tables have no room for {count} vCPUs"),
            Self::TooManyDevices(count) => {
                write!(f, "{count} virtio devices are too many: give it at most {MAX_VIRTIO}")
            }
        }
    }
}

impl<'a> GuestLayout<'a> {
    /// A machine with `ram` bytes of RAM, none of it private, and a vCPU for each of `apic_ids`, with the usual hole, an I/O APIC of id 0, and no
    /// virtio device.
    #[must_use]
    pub const fn new(ram: u64, apic_ids: &'a [u32]) -> Self {
        Self { ram, private: 0, hole: DEFAULT_HOLE, apic_ids, ioapic_id: 0, virtio: 0, real: None }
    }

    /// Checks the description.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self) -> Result<(), LayoutError> {
        if self.ram < LEAST_RAM {
            return Err(LayoutError::TooLittleRam(self.ram));
        }
        if let Some(&value) = [self.ram, self.hole].iter().find(|value| !value.is_multiple_of(PAGE_SIZE)) {
            return Err(LayoutError::Unaligned(value));
        }
        if !(LEAST_RAM..=FIXED_DEVICES).contains(&self.hole) {
            return Err(LayoutError::BadHole(self.hole));
        }
        let whole =
            [self.ram, self.hole, self.private].iter().all(|bytes| bytes.is_multiple_of(PRIVATE_GRANULE));
        if self.private != 0 && (!whole || self.private >= self.ram || self.real.is_some()) {
            return Err(LayoutError::BadPrivate(self.private));
        }
        if self.apic_ids.is_empty() {
            return Err(LayoutError::NoVcpu);
        }
        if self.virtio > MAX_VIRTIO {
            return Err(LayoutError::TooManyDevices(self.virtio));
        }
        for (index, &id) in self.apic_ids.iter().enumerate() {
            if id == u32::MAX || self.apic_ids.iter().take(index).any(|&other| other == id) {
                return Err(LayoutError::BadApicId(id));
            }
        }
        Ok(())
    }

    /// Bytes of RAM below the hole, from address 0.
    #[must_use]
    pub fn ram_below_4g(&self) -> u64 {
        self.ram.min(self.hole)
    }

    /// Bytes of RAM from 4 GiB on.
    #[must_use]
    pub fn ram_above_4g(&self) -> u64 {
        self.ram.saturating_sub(self.hole)
    }

    /// Bytes of RAM below the hole that are not private.
    #[must_use]
    pub fn shared_below_4g(&self) -> u64 {
        let above = self.private.min(self.ram_above_4g());
        self.ram_below_4g().saturating_sub(self.private - above)
    }

    /// Bytes of RAM from 4 GiB on that are not private.
    #[must_use]
    pub fn shared_above_4g(&self) -> u64 {
        self.ram_above_4g().saturating_sub(self.private)
    }

    /// Where private RAM begins: all RAM from there on is. Where there is none, the end of all addresses.
    #[must_use]
    pub fn private_from(&self) -> Gpa {
        Gpa::new(match (self.private, self.shared_above_4g()) {
            (0, _) => u64::MAX,
            (_, 0) => self.shared_below_4g(),
            (_, above) => FOUR_GIB.saturating_add(above),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn each_mistake_is_named() {
        let good = GuestLayout::new(64 << 20, &[0, 1]);
        assert_eq!(good.check(), Ok(()));
        let cases = [
            (GuestLayout { ram: 4096, ..good }, LayoutError::TooLittleRam(4096)),
            (GuestLayout { ram: (64 << 20) + 1, ..good }, LayoutError::Unaligned((64 << 20) + 1)),
            (GuestLayout { hole: 0xFFFF_F000, ..good }, LayoutError::BadHole(0xFFFF_F000)),
            (GuestLayout { private: 64 << 20, ..good }, LayoutError::BadPrivate(64 << 20)),
            (GuestLayout { private: 1 << 20, ..good }, LayoutError::BadPrivate(1 << 20)),
            (GuestLayout { private: 2 << 20, ram: 63 << 20, ..good }, LayoutError::BadPrivate(2 << 20)),
            (GuestLayout { private: 2 << 20, hole: 63 << 20, ..good }, LayoutError::BadPrivate(2 << 20)),
            (GuestLayout { apic_ids: &[], ..good }, LayoutError::NoVcpu),
            (GuestLayout { apic_ids: &[3, 4, 3], ..good }, LayoutError::BadApicId(3)),
            (GuestLayout { apic_ids: &[u32::MAX], ..good }, LayoutError::BadApicId(u32::MAX)),
            (GuestLayout { virtio: 33, ..good }, LayoutError::TooManyDevices(33)),
        ];
        for (layout, error) in cases {
            assert_eq!(layout.check(), Err(error));
            assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn ram_is_split_at_the_hole() {
        let small = GuestLayout::new(1 << 30, &[0]);
        assert_eq!((small.ram_below_4g(), small.ram_above_4g()), (1 << 30, 0));
        let large = GuestLayout::new(8 << 30, &[0]);
        assert_eq!((large.ram_below_4g(), large.ram_above_4g()), (3 << 30, 5 << 30));
    }

    #[test]
    fn private_ram_is_the_last() {
        for (ram, private, below, above, from) in [
            (64 << 20, 0, 64 << 20, 0, u64::MAX),
            (64 << 20, 16 << 20, 48 << 20, 0, 48 << 20),
            (8 << 30, 1 << 30, 3 << 30, 4 << 30, 8 << 30),
            (8 << 30, 5 << 30, 3 << 30, 0, 3 << 30),
            (8 << 30, 6 << 30, 2 << 30, 0, 2 << 30),
        ] {
            let layout = GuestLayout { private, ..GuestLayout::new(ram, &[0]) };
            assert_eq!(layout.check(), Ok(()));
            assert_eq!(
                (layout.shared_below_4g(), layout.shared_above_4g()),
                (below, above),
                "{private:#x} of {ram:#x}"
            );
            assert_eq!(layout.private_from(), Gpa::new(from), "{private:#x} of {ram:#x}");
        }
    }
}
