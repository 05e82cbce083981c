//! Views of what a blob holds. [`Blob::parse`] has checked all that they read.

use caisson_abi::Privileges;

use super::{Blob, slice};
use crate::cpus::CpuList;
use crate::functions::Functions;
use crate::layout::{
    DeviceRecord, DomainRecord, ModuleRecord, NAMED_BACKEND, NO_RESTART_LIMIT, PayloadRecord,
};
use crate::settings::{Console, Contract, DeviceKind, LoaderKind, OnExit, OnExitAction, ReservedTime};

/// 0 stands for the host's frequency.
pub(super) fn tsc_khz(record: &DomainRecord) -> Option<u32> {
    Some(record.tsc_khz.get()).filter(|&khz| khz != 0)
}

/// What a record says of its domain's share.
pub(super) fn contract(record: &DomainRecord) -> Contract {
    let (period, slice) = (record.period.get(), record.slice.get());
    let reserves = period != 0 || slice != 0;
    Contract {
        weight: record.weight.get(),
        cap: Some(record.cap.get()).filter(|&cap| cap != 0),
        warp: record.warp.get(),
        warp_limit: record.warp_limit.get(),
        reservation: reserves.then_some(ReservedTime { period, slice, extra: record.extra != 0 }),
    }
}

/// One domain's description.
#[derive(Clone, Copy)]
pub struct Domain<'a> {
    blob: Blob<'a>,
    record: &'a DomainRecord,
}

impl<'a> Domain<'a> {
    pub(super) fn new(blob: Blob<'a>, record: &'a DomainRecord) -> Self {
        Self { blob, record }
    }

    /// The domain's name: 1 to [`MAX_NAME`](crate::MAX_NAME) of `a-z0-9-`, unique in its blob.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.blob.text(self.record.name)
    }

    /// The domain's memory in bytes: a multiple of [`MEMORY_GRANULE`](crate::MEMORY_GRANULE) from
    /// [`MIN_MEMORY`](crate::MIN_MEMORY) to [`MAX_MEMORY`](crate::MAX_MEMORY).
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.record.memory.get()
    }

    /// How much of the memory, the last in the order of the domain's addresses, no other domain sees, in bytes: a multiple of
    /// [`PRIVATE_GRANULE`](crate::PRIVATE_GRANULE), as the memory is where it is not 0, of which it leaves
    /// [`MIN_SHARED`](crate::MIN_SHARED) at least.
    #[must_use]
    pub fn private(&self) -> u64 {
        self.record.private.get()
    }

    /// The number of vCPUs, 1 to [`MAX_VCPUS`](crate::MAX_VCPUS).
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        u32::from(self.record.vcpus.get())
    }

    /// The frequency of the domain's TSC in kHz, 1,000 to 10,000,000; `None` for the host's.
    #[must_use]
    pub fn tsc_khz(&self) -> Option<u32> {
        tsc_khz(self.record)
    }

    /// How the kernel is to be loaded.
    #[must_use]
    pub fn loader(&self) -> LoaderKind {
        LoaderKind::from_code(self.record.loader).unwrap_or(LoaderKind::Auto)
    }

    /// The kernel's image.
    #[must_use]
    pub fn kernel(&self) -> Payload<'a> {
        Payload { blob: self.blob, index: self.record.kernel.get() as usize }
    }

    /// The kernel's command line, at most [`MAX_CMDLINE`](crate::MAX_CMDLINE) bytes, without control characters.
    #[must_use]
    pub fn cmdline(&self) -> &'a str {
        self.blob.text(self.record.cmdline)
    }

    /// The modules in their order. For Linux they are the pieces of the initial RAM disk.
    pub fn modules(&self) -> impl ExactSizeIterator<Item = Module<'a>> + Clone + use<'a> {
        let blob = self.blob;
        let first = self.record.first_module.get() as usize;
        let end = first.saturating_add(self.record.modules.get() as usize);
        let records = blob.modules.get(first..end).unwrap_or_default();
        records.iter().map(move |record| Module { blob, record })
    }

    /// Where the first serial port leads.
    #[must_use]
    pub fn console(&self) -> Console {
        Console::from_code(self.record.console).unwrap_or(Console::None)
    }

    /// Which of the machine's PCI functions it owns. One domain at most owns all that others do not name.
    #[must_use]
    pub fn functions(&self) -> Functions<'a> {
        Functions::parse(self.blob.text(self.record.functions)).unwrap_or(Functions::None)
    }

    /// Whether it owns any.
    #[must_use]
    pub fn owns_devices(&self) -> bool {
        self.functions() != Functions::None
    }

    /// Whether Caisson serves it random numbers. Then no device of another domain does.
    #[must_use]
    pub fn entropy(&self) -> bool {
        self.record.entropy != 0
    }

    /// What it may do beyond running.
    #[must_use]
    pub fn privileges(&self) -> Privileges {
        Privileges::from_bits_truncate(self.record.privileges.get())
    }

    /// Its devices that other domains serve, at most [`MAX_DEVICES`](crate::MAX_DEVICES).
    pub fn virtio_devices(&self) -> impl ExactSizeIterator<Item = VirtioDevice<'a>> + Clone + use<'a> {
        let blob = self.blob;
        let first = self.record.first_device.get() as usize;
        let end = first.saturating_add(self.record.virtio_devices.get() as usize);
        let records = blob.devices.get(first..end).unwrap_or_default();
        records.iter().map(move |record| VirtioDevice {
            kind: device_kind(record).unwrap_or(DeviceKind::Network),
            backend: match record.backend.get() {
                NAMED_BACKEND => DeviceBackend::Named(blob.text(record.backend_name)),
                index => DeviceBackend::Domain(index as usize),
            },
            parameters: blob.text(record.parameters),
        })
    }

    /// The number of the CPU pool that the domain runs in.
    #[must_use]
    pub fn pool(&self) -> usize {
        usize::from(self.record.pool.get())
    }

    /// What its vCPUs get of the pool's CPUs.
    #[must_use]
    pub fn contract(&self) -> Contract {
        contract(self.record)
    }

    /// The CPUs that it may run on, all of its pool; empty: the whole pool.
    #[must_use]
    pub fn cpus(&self) -> CpuList<'a> {
        CpuList::parse(self.blob.text(self.record.cpus)).unwrap_or_else(CpuList::none)
    }

    /// The CPUs where it should run while they are free, of those that it may run on; empty: no preference.
    #[must_use]
    pub fn prefer(&self) -> CpuList<'a> {
        CpuList::parse(self.blob.text(self.record.prefer)).unwrap_or_else(CpuList::none)
    }

    /// What becomes of the domain when it ends.
    #[must_use]
    pub fn on_exit(&self) -> OnExit {
        let action = |code| OnExitAction::from_code(code).unwrap_or(OnExitAction::Destroy);
        OnExit {
            poweroff: action(self.record.on_poweroff),
            reboot: action(self.record.on_reboot),
            crash: action(self.record.on_crash),
        }
    }

    /// How many restarts [`Domain::on_exit`] may cause before the domain is destroyed after all; `None` for no limit.
    #[must_use]
    pub fn max_restarts(&self) -> Option<u32> {
        match self.record.max_restarts.get() {
            NO_RESTART_LIMIT => None,
            limit => Some(limit),
        }
    }
}

/// A device that another domain serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VirtioDevice<'a> {
    /// What it is; [`DeviceKind::code`] is the virtio device type.
    pub kind: DeviceKind,
    /// Who serves it.
    pub backend: DeviceBackend<'a>,
    /// For that domain: lines `key=value`, each ended by a newline, at most [`MAX_PARAMETERS`](crate::MAX_PARAMETERS)
    /// bytes, without other control characters.
    pub parameters: &'a str,
}

/// Who serves a device. [`Blob::backend_name`] has the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceBackend<'a> {
    /// A domain of the blob, by its index: an earlier one, with the privilege [`IO_BACKEND`](Privileges::IO_BACKEND).
    Domain(usize),
    /// A domain of that name which the blob does not describe and which lives already, or with an empty name the domain that makes
    /// the one with the device. Only in a blob for domains that are made later; see [`Blob::check_complete`].
    Named(&'a str),
}

/// The kind of device that a record describes, if there is such a kind.
pub(super) fn device_kind(record: &DeviceRecord) -> Option<DeviceKind> {
    u8::try_from(record.kind.get()).ok().and_then(DeviceKind::from_code)
}

/// A file that a kernel is started with.
#[derive(Clone, Copy)]
pub struct Module<'a> {
    blob: Blob<'a>,
    record: &'a ModuleRecord,
}

impl<'a> Module<'a> {
    /// The module's content.
    #[must_use]
    pub fn payload(&self) -> Payload<'a> {
        Payload { blob: self.blob, index: self.record.payload.get() as usize }
    }

    /// The module's command line, at most [`MAX_CMDLINE`](crate::MAX_CMDLINE) bytes, without control characters.
    #[must_use]
    pub fn cmdline(&self) -> &'a str {
        self.blob.text(self.record.cmdline)
    }
}

/// A kernel or module inside the blob.
#[derive(Clone, Copy)]
pub struct Payload<'a> {
    blob: Blob<'a>,
    index: usize,
}

impl<'a> Payload<'a> {
    pub(super) fn new(blob: Blob<'a>, index: usize) -> Self {
        Self { blob, index }
    }

    /// The payload's record. `Blob::parse` has checked every index, so that there always is one.
    fn record(&self) -> Option<&'a PayloadRecord> {
        self.blob.payloads.get(self.index)
    }

    /// The payload's number in the blob. Equal numbers are the same bytes.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// What the TOML text called it: a path, or `@name`.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.record().map_or("", |record| self.blob.text(record.name))
    }

    /// Its bytes; they start at a multiple of [`PAYLOAD_ALIGN`](crate::PAYLOAD_ALIGN) from the start of the blob.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        self.record()
            .and_then(|record| slice(self.blob.bytes, record.offset.get(), record.len.get()))
            .unwrap_or_default()
    }

    /// Its offset from the start of the blob in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.record().map_or(0, |record| record.offset.get())
    }

    /// The SHA-256 of its bytes.
    #[must_use]
    pub fn sha256(&self) -> &'a [u8; 32] {
        self.record().map_or(&[0; 32], |record| &record.sha256)
    }
}
