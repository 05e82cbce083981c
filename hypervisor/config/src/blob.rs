//! The gate to a blob, and what it tells of the machine: [`check`] has its rules, [`records`] the views of its parts.

pub(crate) mod check;
mod records;

use crate::admission;
use crate::cpus::{CpuList, CpuSet};
use crate::error::{BlobError, Field, Reason};
use crate::layout::{DeviceRecord, DomainRecord, Header, ModuleRecord, PayloadRecord, PoolRecord, Text};
use crate::pools::{ContractValues, Contracts, Pool, PoolValues};
use crate::rules::MachineLimits;
use crate::settings::{DeviceKind, LogLevel, MachineSettings, PoolPolicy, SelectedConsole};
use crate::virtio::DeviceReason;

pub use records::{DeviceBackend, Domain, Module, Payload, VirtioDevice};

/// The most bytes before the payloads of a blob that domains are made of at run time: room for tens of them.
pub const MAX_LATER_TABLES: u64 = 64 << 10;

/// A blob that has passed every check.
#[derive(Clone, Copy)]
pub struct Blob<'a> {
    bytes: &'a [u8],
    header: &'a Header,
    domains: &'a [DomainRecord],
    modules: &'a [ModuleRecord],
    payloads: &'a [PayloadRecord],
    pools: &'a [PoolRecord],
    devices: &'a [DeviceRecord],
    text: &'a str,
}

impl<'a> Blob<'a> {
    /// Checks a blob whole: lengths, checksums, the place of every part, and every value. Takes time in proportion to
    /// its length, most of it for the SHA-256 of the payloads.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BlobError<'a>> {
        Self::gate(bytes, true)
    }

    /// Checks a blob but for the SHA-256 of its payloads, in a time that has a bound however long it is: for one that comes piece
    /// by piece over hypercalls, from a domain that knows what it reads from its disks, while other domains wait for the CPU.
    /// What comes before the payloads is checked with its SHA-256, and has at most [`MAX_LATER_TABLES`] bytes.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn parse_unhashed(bytes: &'a [u8]) -> Result<Self, BlobError<'a>> {
        Self::gate(bytes, false)
    }

    fn gate(bytes: &'a [u8], is_hashed: bool) -> Result<Self, BlobError<'a>> {
        let meta = check::frame(bytes, if is_hashed { u64::MAX } else { MAX_LATER_TABLES })?;
        let blob = Self::split(bytes, meta)?;
        blob.check_payloads(is_hashed).map_err(|error| blob.name_file(error))?;
        blob.check_domains()?;
        blob.check_virtio_devices()?;
        blob.check_pools()?;
        blob.contracts().check(None)?;
        blob.check_machine_settings()?;
        Ok(blob)
    }

    /// Checks that a machine can start with the blob: that it describes all pools, and the domains that serve devices.
    ///
    /// # Errors
    /// The first field that names something else.
    pub fn check_complete(&self) -> Result<(), BlobError<'a>> {
        if self.pools().any(|pool| pool.is_machines()) {
            return Err(BlobError::new(Field::Blob, Reason::ForLater));
        }
        for (domain, device, kind, number) in self.devices_by_kind() {
            let reason = match device.backend {
                DeviceBackend::Domain(_) => continue,
                DeviceBackend::Named("") => DeviceReason::NoBackend,
                DeviceBackend::Named(name) => DeviceReason::NoSuchBackend(name),
            };
            let field = Field::Device(domain, Some(kind), number, "backend");
            return Err(BlobError::new(field, Reason::Device(reason)));
        }
        Ok(())
    }

    /// Checks that a domain can be made while the machine runs, as far as the blob tells: that it owns nothing which only belongs
    /// to domains that there are from the start.
    ///
    /// # Errors
    /// The field that says otherwise.
    pub fn check_later(&self, domain: usize) -> Result<(), BlobError<'a>> {
        match self.domain(domain) {
            Some(record) if record.owns_devices() => {
                Err(BlobError::new(Field::Domain(domain, "devices"), Reason::OwnsFunctions))
            }
            Some(_) => Ok(()),
            None => {
                let reason = Reason::NoSuch { what: "domain", index: domain as u32 };
                Err(BlobError::new(Field::Domains, reason))
            }
        }
    }

    /// The name of the domain that serves a device, which may be one that the blob describes; empty for the domain that makes the
    /// one with the device.
    #[must_use]
    pub fn backend_name(&self, backend: DeviceBackend<'a>) -> &'a str {
        match backend {
            DeviceBackend::Domain(index) => self.domain(index).map_or("", |domain| domain.name()),
            DeviceBackend::Named(name) => name,
        }
    }

    /// All devices that other domains serve: the domain, the device, its kind and its number among the domain's of that kind.
    fn devices_by_kind(&self) -> impl Iterator<Item = (usize, VirtioDevice<'a>, DeviceKind, usize)> {
        self.domains().enumerate().flat_map(|(index, domain)| {
            domain.virtio_devices().enumerate().map(move |(place, device)| {
                let earlier = domain.virtio_devices().take(place);
                (index, device, device.kind, earlier.filter(|other| other.kind == device.kind).count())
            })
        })
    }

    fn contracts(
        &self,
    ) -> Contracts<
        impl Iterator<Item = PoolValues<'a>> + Clone + use<'a>,
        impl Iterator<Item = ContractValues<'a>> + Clone + use<'a>,
    > {
        let blob = *self;
        let pools = self.pools.iter().map(move |record| PoolValues {
            name: blob.text(record.name),
            cpus: blob.text(record.cpus),
            policy: PoolPolicy::from_code(record.policy).unwrap_or(PoolPolicy::Bvt),
            quantum: record.quantum.get(),
        });
        let domains = self.domains.iter().map(move |record| ContractValues {
            pool: Some(usize::from(record.pool.get())),
            pool_name: "",
            cpus: blob.text(record.cpus),
            prefer: blob.text(record.prefer),
            vcpus: u32::from(record.vcpus.get()),
            contract: records::contract(record),
        });
        Contracts { pools, domains }
    }

    /// Text that `parse` has checked.
    fn text(&self, text: Text) -> &'a str {
        self.check_text(text).unwrap_or_default()
    }

    /// Checks that a machine can carry all of the blob's domains at once.
    ///
    /// # Errors
    /// The first domain that is too much.
    pub fn check_machine(&self, limits: &MachineLimits) -> Result<(), BlobError<'a>> {
        limits.check(self.domains.iter().map(|record| (record.memory.get(), u32::from(record.vcpus.get()))))
    }

    /// Checks that a machine with so many CPUs has those that the pools need, and room for all reservations.
    ///
    /// # Errors
    /// The first field that asks for more.
    pub fn check_cpus(&self, cpus: u32) -> Result<(), BlobError<'a>> {
        self.contracts().check(Some(cpus))
    }

    /// The CPU pools, at least one.
    pub fn pools(&self) -> impl ExactSizeIterator<Item = Pool<'a>> + Clone + use<'a> {
        let blob = *self;
        self.pools.iter().map(move |record| Pool {
            name: blob.text(record.name),
            cpus: CpuList::parse(blob.text(record.cpus)).unwrap_or_else(CpuList::none),
            policy: PoolPolicy::from_code(record.policy).unwrap_or(PoolPolicy::Bvt),
            quantum: record.quantum.get(),
        })
    }

    /// The CPUs of a pool, given by its number, on a machine with so many.
    #[must_use]
    pub fn pool_cpus(&self, pool: usize, cpus: u32) -> CpuSet {
        self.contracts().cpus_of(pool, Some(cpus))
    }

    /// Tells `placed` on which CPU each vCPU with a reservation starts, on a machine with so many CPUs: domain, vCPU,
    /// CPU. They are admitted there. Needs a few KiB of stack.
    ///
    /// # Errors
    /// As [`Blob::check_cpus`].
    pub fn place_reservations(
        &self,
        cpus: u32,
        mut placed: impl FnMut(usize, u32, u32),
    ) -> Result<(), BlobError<'a>> {
        let contracts = self.contracts();
        (0..self.pools.len()).try_for_each(|pool| admission::place(&contracts, pool, Some(cpus), &mut placed))
    }

    /// The blob's length in bytes.
    #[must_use]
    pub fn total_len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The SHA-256 of everything before the payloads; as the payload records hold the payloads' own, it identifies the
    /// whole blob.
    #[must_use]
    pub fn sha256(&self) -> &'a [u8; 32] {
        &self.header.sha256
    }

    /// The machine's settings.
    #[must_use]
    pub fn machine(&self) -> MachineSettings {
        MachineSettings {
            console: match self.header.console {
                CONSOLE_DOMAIN => SelectedConsole::Domain(self.header.console_domain.get() as usize),
                CONSOLE_LOG => SelectedConsole::Log,
                _ => SelectedConsole::All,
            },
            log_level: LogLevel::from_code(self.header.log_level).unwrap_or(LogLevel::Info),
        }
    }

    /// The domains, in the order of their start.
    pub fn domains(&self) -> impl ExactSizeIterator<Item = Domain<'a>> + Clone + use<'a> {
        let blob = *self;
        self.domains.iter().map(move |record| Domain::new(blob, record))
    }

    /// The domain with the given index.
    #[must_use]
    pub fn domain(&self, index: usize) -> Option<Domain<'a>> {
        self.domains.get(index).map(|record| Domain::new(*self, record))
    }

    /// The payloads, in the order of their place in the blob. One payload may serve several domains.
    pub fn payloads(&self) -> impl ExactSizeIterator<Item = Payload<'a>> + Clone + use<'a> {
        let blob = *self;
        (0..self.payloads.len()).map(move |index| Payload::new(blob, index))
    }
}

impl core::fmt::Debug for Blob<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Blob").field("len", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// [`Header::console`](Header) when all consoles are shown.
pub(crate) const CONSOLE_ALL: u8 = 0;
/// [`Header::console`](Header) when Caisson's log is shown.
pub(crate) const CONSOLE_LOG: u8 = 1;
/// [`Header::console`](Header) when one domain's console is shown.
pub(crate) const CONSOLE_DOMAIN: u8 = 2;

/// `len` bytes from `offset` on, where there are as many.
fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}
