//! Parsing and checking of a blob, and views of what it holds.

use core::mem::size_of;

use sha2::{Digest, Sha256};
use zerocopy::FromBytes;

use crate::PAYLOAD_ALIGN;
use crate::admission;
use crate::cpus::{CpuList, CpuSet};
use crate::error::{BlobError, Field, NamedFile, Reason};
use crate::layout::{
    DomainRecord, HEADER_SHA256, Header, MAGIC, ModuleRecord, NO_RESTART_LIMIT, PayloadRecord, PoolRecord,
    Text, VERSION,
};
use crate::pools::{ContractValues, Contracts, MAX_POOLS, Pool, PoolValues};
use crate::rules::{self, DomainValues, MachineLimits};
use crate::settings::{
    Console, Contract, LoaderKind, LogLevel, MachineSettings, OnExit, OnExitAction, PoolPolicy, ReservedTime,
    SelectedConsole,
};

/// A blob that has passed every check.
#[derive(Clone, Copy)]
pub struct Blob<'a> {
    bytes: &'a [u8],
    header: &'a Header,
    domains: &'a [DomainRecord],
    modules: &'a [ModuleRecord],
    payloads: &'a [PayloadRecord],
    pools: &'a [PoolRecord],
    text: &'a str,
}

impl<'a> Blob<'a> {
    /// Checks a blob whole: lengths, checksums, the place of every part, and every value. Takes time in proportion to
    /// its length, most of it for the SHA-256 of the payloads.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BlobError<'a>> {
        let meta = check_frame(bytes)?;
        let blob = Self::split(bytes, meta)?;
        blob.check_payloads().map_err(|error| blob.name_file(error))?;
        blob.check_domains()?;
        blob.check_pools()?;
        blob.contracts().check(None)?;
        blob.check_machine_settings()?;
        Ok(blob)
    }

    /// Cuts the metadata into its tables.
    fn split(bytes: &'a [u8], meta: &'a [u8]) -> Result<Self, BlobError<'a>> {
        let (header, rest) = Header::ref_from_prefix(meta).map_err(|_| out_of_bounds("domains"))?;
        if header.reserved1.get() != 0 || header.reserved2.get() != 0 {
            return Err(BlobError::new(Field::Header("reserved"), Reason::NotZero));
        }
        let count = |n: u32, name, min, max| {
            let n = n as usize;
            rules::check_count(n, min, max).map_err(|reason| BlobError::new(Field::Header(name), reason))?;
            Ok(n)
        };
        let domains = count(header.domains.get(), "domains", 1, rules::MAX_DOMAINS)?;
        let modules = count(header.modules.get(), "modules", 0, rules::MAX_MODULES)?;
        let payloads = count(header.payloads.get(), "payloads", 1, rules::MAX_DOMAINS + rules::MAX_MODULES)?;
        let pools = count(header.pools.get(), "pools", 1, MAX_POOLS)?;
        let (domains, rest) = <[DomainRecord]>::ref_from_prefix_with_elems(rest, domains)
            .map_err(|_| out_of_bounds("domains"))?;
        let (modules, rest) = <[ModuleRecord]>::ref_from_prefix_with_elems(rest, modules)
            .map_err(|_| out_of_bounds("modules"))?;
        let (payloads, rest) = <[PayloadRecord]>::ref_from_prefix_with_elems(rest, payloads)
            .map_err(|_| out_of_bounds("payloads"))?;
        let (pools, rest) =
            <[PoolRecord]>::ref_from_prefix_with_elems(rest, pools).map_err(|_| out_of_bounds("pools"))?;
        let (text, padding) =
            rest.split_at_checked(header.text_len.get() as usize).ok_or(out_of_bounds("text_len"))?;
        if padding.len() as u64 >= PAYLOAD_ALIGN {
            let reason = Reason::BadLength(header.meta_len.get());
            return Err(BlobError::new(Field::Header("meta_len"), reason));
        }
        if padding.iter().any(|&byte| byte != 0) {
            return Err(BlobError::new(Field::Header("padding"), Reason::NotZero));
        }
        let text =
            str::from_utf8(text).map_err(|_| BlobError::new(Field::Header("text"), Reason::NotText))?;
        Ok(Self { bytes, header, domains, modules, payloads, pools, text })
    }

    fn check_payloads(&self) -> Result<(), BlobError<'a>> {
        let mut free = self.header.meta_len.get();
        for (index, record) in self.payloads.iter().enumerate() {
            let at = |name, reason| BlobError::new(Field::Payload(index, name), reason);
            let (offset, len) = (record.offset.get(), record.len.get());
            let name = self.check_text(record.name).map_err(|reason| at("name", reason))?;
            rules::check_reference(name).map_err(|reason| at("name", reason))?;
            if record.reserved.get() != 0 {
                return Err(at("reserved", Reason::NotZero));
            }
            if offset % PAYLOAD_ALIGN != 0 {
                return Err(at("offset", Reason::Misaligned(offset)));
            }
            if offset < free {
                return Err(at("offset", Reason::Overlap { offset, free }));
            }
            if offset > free {
                return Err(at("offset", Reason::Gap { offset, expected: free }));
            }
            if len == 0 {
                return Err(at("len", Reason::Empty));
            }
            let end = offset
                .checked_add(len)
                .and_then(|end| end.checked_next_multiple_of(PAYLOAD_ALIGN))
                .ok_or(at("len", Reason::OutOfBounds))?;
            let padded = slice(self.bytes, offset, end - offset).ok_or(at("len", Reason::OutOfBounds))?;
            let (data, padding) =
                padded.split_at_checked(len as usize).ok_or(at("len", Reason::OutOfBounds))?;
            if padding.iter().any(|&byte| byte != 0) {
                return Err(at("padding", Reason::NotZero));
            }
            if <[u8; 32]>::from(Sha256::digest(data)) != record.sha256 {
                return Err(at("sha256", Reason::Damaged));
            }
            free = end;
        }
        if free != self.bytes.len() as u64 {
            let (have, need) = (self.bytes.len() as u64, free);
            return Err(BlobError::new(Field::Blob, Reason::Overlong { have, need }));
        }
        Ok(())
    }

    /// Says which file the payload that `error` is about is, as far as the tables, which are not checked yet, make sense.
    fn name_file(&self, mut error: BlobError<'a>) -> BlobError<'a> {
        let Field::Payload(payload, _) = error.field else { return error };
        let text = |text| self.check_text(text).ok().filter(|name| rules::check_reference(name).is_ok());
        let name = self.payloads.get(payload).and_then(|record| text(record.name));
        let holds = |number: u32| number as usize == payload;
        let kernel_of = self.domains.iter().find(|domain| holds(domain.kernel.get()));
        let module_of = || {
            let module = self.modules.iter().position(|module| holds(module.payload.get()))? as u64;
            self.domains.iter().find(|domain| {
                let first = u64::from(domain.first_module.get());
                (first..first + u64::from(domain.modules.get())).contains(&module)
            })
        };
        error.file = name.map(|name| NamedFile {
            name,
            is_kernel: kernel_of.is_some(),
            domain: kernel_of.or_else(module_of).and_then(|domain| text(domain.name)),
        });
        error
    }

    fn check_domains(&self) -> Result<(), BlobError<'a>> {
        let mut next_module = 0;
        for (index, record) in self.domains.iter().enumerate() {
            let at = |name, reason| BlobError::new(Field::Domain(index, name), reason);
            let name = self.check_text(record.name).map_err(|reason| at("name", reason))?;
            let cmdline = self.check_text(record.cmdline).map_err(|reason| at("cmdline", reason))?;
            let values = DomainValues {
                name,
                memory: record.memory.get(),
                vcpus: u32::from(record.vcpus.get()),
                cmdline,
                tsc_khz: tsc_khz(record),
            };
            rules::check_domain(index, &values)?;
            check_codes(record).map_err(|(name, reason)| at(name, reason))?;
            self.check_payload_index(record.kernel.get()).map_err(|reason| at("kernel", reason))?;
            let (first, count) = (record.first_module.get(), record.modules.get());
            if first != next_module {
                return Err(at("modules", Reason::NoSuch { what: "module", index: first }));
            }
            next_module = first.checked_add(count).filter(|&end| end as usize <= self.modules.len()).ok_or(
                at("modules", Reason::NoSuch { what: "module", index: first.saturating_add(count) }),
            )?;
            self.check_modules(index, first as usize, next_module as usize)?;
        }
        if next_module as usize != self.modules.len() {
            let reason = Reason::BadLength(self.modules.len() as u64);
            return Err(BlobError::new(Field::Header("modules"), reason));
        }
        rules::check_unique(&self.domains.iter().map(|record| self.text(record.name)))
    }

    /// Checks that texts and codes of pools and contracts can be read. What they say is checked with the text's rules.
    fn check_pools(&self) -> Result<(), BlobError<'a>> {
        for (index, record) in self.pools.iter().enumerate() {
            let at = |name, reason| BlobError::new(Field::Pool(index, name), reason);
            for (name, text) in [("name", record.name), ("cpus", record.cpus)] {
                self.check_text(text).map_err(|reason| at(name, reason))?;
            }
            if PoolPolicy::from_code(record.policy).is_none() {
                return Err(at("policy", Reason::UnknownCode(record.policy)));
            }
            if record.reserved != [0; 11] {
                return Err(at("reserved", Reason::NotZero));
            }
        }
        for (index, record) in self.domains.iter().enumerate() {
            let at = |name, reason| BlobError::new(Field::Domain(index, name), reason);
            for (name, text) in [("cpus", record.cpus), ("prefer", record.prefer)] {
                self.check_text(text).map_err(|reason| at(name, reason))?;
            }
            let reserves = record.period.get() != 0 || record.slice.get() != 0;
            if record.extra > 1 || (record.extra == 0 && !reserves) {
                return Err(at("extra", Reason::UnknownCode(record.extra)));
            }
        }
        Ok(())
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
            contract: contract(record),
        });
        Contracts { pools, domains }
    }

    fn check_modules(&self, domain: usize, first: usize, end: usize) -> Result<(), BlobError<'a>> {
        let records = self.modules.get(first..end).unwrap_or_default();
        for (index, record) in records.iter().enumerate() {
            let at = |name, reason| BlobError::new(Field::Module(domain, index, name), reason);
            if record.reserved.get() != 0 {
                return Err(at("reserved", Reason::NotZero));
            }
            self.check_payload_index(record.payload.get()).map_err(|reason| at("file", reason))?;
            let cmdline = self.check_text(record.cmdline).map_err(|reason| at("cmdline", reason))?;
            rules::check_text(cmdline, rules::MAX_CMDLINE).map_err(|reason| at("cmdline", reason))?;
        }
        Ok(())
    }

    fn check_machine_settings(&self) -> Result<(), BlobError<'a>> {
        let at = |name, reason| BlobError::new(Field::Machine(name), reason);
        if LogLevel::from_code(self.header.log_level).is_none() {
            return Err(at("log", Reason::UnknownCode(self.header.log_level)));
        }
        let domain = self.header.console_domain.get();
        match (self.header.console, domain) {
            (CONSOLE_ALL | CONSOLE_LOG, 0) => Ok(()),
            (CONSOLE_ALL | CONSOLE_LOG, _) => Err(at("console", Reason::NotZero)),
            (CONSOLE_DOMAIN, _) => match self.domain(domain as usize) {
                None => Err(at("console", Reason::NoSuch { what: "domain", index: domain })),
                Some(shown) if shown.console() == Console::None => {
                    Err(at("console", Reason::NoConsole(domain as usize)))
                }
                Some(_) => Ok(()),
            },
            (code, _) => Err(at("console", Reason::UnknownCode(code))),
        }
    }

    fn check_text(&self, text: Text) -> Result<&'a str, Reason<'a>> {
        let start = text.offset.get() as usize;
        let end = start.checked_add(text.len.get() as usize).ok_or(Reason::OutOfBounds)?;
        if end > self.text.len() {
            return Err(Reason::OutOfBounds);
        }
        self.text.get(start..end).ok_or(Reason::NotText)
    }

    fn check_payload_index(&self, index: u32) -> Result<(), Reason<'a>> {
        match self.payloads.get(index as usize) {
            Some(_) => Ok(()),
            None => Err(Reason::NoSuch { what: "payload", index }),
        }
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
        self.domains.iter().map(move |record| Domain { blob, record })
    }

    /// The domain with the given index.
    #[must_use]
    pub fn domain(&self, index: usize) -> Option<Domain<'a>> {
        self.domains.get(index).map(|record| Domain { blob: *self, record })
    }

    /// The payloads, in the order of their place in the blob. One payload may serve several domains.
    pub fn payloads(&self) -> impl ExactSizeIterator<Item = Payload<'a>> + Clone + use<'a> {
        let blob = *self;
        (0..self.payloads.len()).map(move |index| Payload { blob, index })
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

/// Checks magic, version, lengths and the header's checksum. Returns the bytes before the first payload.
fn check_frame(bytes: &[u8]) -> Result<&[u8], BlobError<'_>> {
    let have = bytes.len() as u64;
    let header_len = size_of::<Header>() as u64;
    let at = |name, reason| BlobError::new(Field::Header(name), reason);
    if bytes.get(..MAGIC.len()).is_some_and(|magic| magic != MAGIC) {
        return Err(at("magic", Reason::NotABlob));
    }
    let (header, _) = Header::ref_from_prefix(bytes)
        .map_err(|_| BlobError::new(Field::Blob, Reason::Truncated { have, need: header_len }))?;
    if header.version.get() != VERSION {
        return Err(at("version", Reason::UnknownVersion(header.version.get())));
    }
    let (need, meta_len) = (header.total_len.get(), header.meta_len.get());
    if have < need {
        return Err(BlobError::new(Field::Blob, Reason::Truncated { have, need }));
    }
    if have > need {
        return Err(BlobError::new(Field::Blob, Reason::Overlong { have, need }));
    }
    if need % PAYLOAD_ALIGN != 0 {
        return Err(at("total_len", Reason::BadLength(need)));
    }
    if meta_len % PAYLOAD_ALIGN != 0 || meta_len < header_len {
        return Err(at("meta_len", Reason::BadLength(meta_len)));
    }
    let meta = slice(bytes, 0, meta_len).ok_or(at("meta_len", Reason::BadLength(meta_len)))?;
    if seal(meta) != Some(header.sha256) {
        return Err(at("sha256", Reason::Damaged));
    }
    Ok(meta)
}

/// The SHA-256 that belongs into the header of the given metadata, if it is long enough to have one.
pub(crate) fn seal(meta: &[u8]) -> Option<[u8; 32]> {
    let mut hasher = Sha256::new();
    hasher.update(meta.get(..HEADER_SHA256.start)?);
    hasher.update([0; 32]);
    hasher.update(meta.get(HEADER_SHA256.end..)?);
    Some(hasher.finalize().into())
}

fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

fn out_of_bounds(name: &'static str) -> BlobError<'static> {
    BlobError::new(Field::Header(name), Reason::OutOfBounds)
}

fn check_codes(record: &DomainRecord) -> Result<(), (&'static str, Reason<'static>)> {
    let known = |name, code, known: bool| {
        if known { Ok(()) } else { Err((name, Reason::UnknownCode(code))) }
    };
    known("loader", record.loader, LoaderKind::from_code(record.loader).is_some())?;
    known("console", record.console, Console::from_code(record.console).is_some())?;
    known("on_poweroff", record.on_poweroff, OnExitAction::from_code(record.on_poweroff).is_some())?;
    known("on_reboot", record.on_reboot, OnExitAction::from_code(record.on_reboot).is_some())?;
    known("on_crash", record.on_crash, OnExitAction::from_code(record.on_crash).is_some())?;
    known("entropy", record.entropy, record.entropy <= 1)?;
    if record.reserved1 != 0 {
        return Err(("reserved", Reason::NotZero));
    }
    Ok(())
}

/// 0 stands for the host's frequency.
fn tsc_khz(record: &DomainRecord) -> Option<u32> {
    Some(record.tsc_khz.get()).filter(|&khz| khz != 0)
}

/// What a record says of its domain's share.
fn contract(record: &DomainRecord) -> Contract {
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

    /// Whether it has a source of random numbers, a virtio device.
    #[must_use]
    pub fn entropy(&self) -> bool {
        self.record.entropy != 0
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

    /// Its bytes; they start at a multiple of [`PAYLOAD_ALIGN`] from the start of the blob.
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
