//! What a blob has to satisfy, from its checksums to its last value.

use core::mem::size_of;

use caisson_abi::Privileges;
use sha2::{Digest, Sha256};
use zerocopy::FromBytes;

use super::records::{device_kind, tsc_khz};
use super::{Blob, CONSOLE_ALL, CONSOLE_DOMAIN, CONSOLE_LOG, slice};
use crate::PAYLOAD_ALIGN;
use crate::error::{BlobError, Field, NamedFile, Reason};
use crate::layout::{
    DeviceRecord, DomainRecord, HEADER_SHA256, Header, MAGIC, ModuleRecord, NAMED_BACKEND, PayloadRecord,
    PoolRecord, Text, VERSION,
};
use crate::pools::MAX_POOLS;
use crate::rules::{self, DomainValues};
use crate::settings::{Console, LoaderKind, LogLevel, OnExitAction, PoolPolicy};
use crate::virtio::{self, DeviceReason};

/// Checks magic, version, lengths and the header's checksum. Returns the bytes before the first payload, at most `longest`.
pub(super) fn frame(bytes: &[u8], longest: u64) -> Result<&[u8], BlobError<'_>> {
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
    if meta_len > longest {
        return Err(BlobError::new(Field::Blob, Reason::TablesTooLong { len: meta_len, max: longest }));
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

impl<'a> Blob<'a> {
    /// Cuts the metadata into its tables.
    pub(super) fn split(bytes: &'a [u8], meta: &'a [u8]) -> Result<Self, BlobError<'a>> {
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
        let devices = count(header.devices.get(), "devices", 0, rules::MAX_DOMAINS * virtio::MAX_DEVICES)?;
        let (domains, rest) = <[DomainRecord]>::ref_from_prefix_with_elems(rest, domains)
            .map_err(|_| out_of_bounds("domains"))?;
        let (modules, rest) = <[ModuleRecord]>::ref_from_prefix_with_elems(rest, modules)
            .map_err(|_| out_of_bounds("modules"))?;
        let (payloads, rest) = <[PayloadRecord]>::ref_from_prefix_with_elems(rest, payloads)
            .map_err(|_| out_of_bounds("payloads"))?;
        let (pools, rest) =
            <[PoolRecord]>::ref_from_prefix_with_elems(rest, pools).map_err(|_| out_of_bounds("pools"))?;
        let (devices, rest) = <[DeviceRecord]>::ref_from_prefix_with_elems(rest, devices)
            .map_err(|_| out_of_bounds("devices"))?;
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
        Ok(Self { bytes, header, domains, modules, payloads, pools, devices, text })
    }

    pub(super) fn check_payloads(&self, is_hashed: bool) -> Result<(), BlobError<'a>> {
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
            if is_hashed && <[u8; 32]>::from(Sha256::digest(data)) != record.sha256 {
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
    pub(super) fn name_file(&self, mut error: BlobError<'a>) -> BlobError<'a> {
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

    pub(super) fn check_domains(&self) -> Result<(), BlobError<'a>> {
        let mut next_module = 0;
        for (index, record) in self.domains.iter().enumerate() {
            let at = |name, reason| BlobError::new(Field::Domain(index, name), reason);
            let name = self.check_text(record.name).map_err(|reason| at("name", reason))?;
            let cmdline = self.check_text(record.cmdline).map_err(|reason| at("cmdline", reason))?;
            let values = DomainValues {
                name,
                memory: record.memory.get(),
                private: record.private.get(),
                functions: self.check_text(record.functions).map_err(|reason| at("devices", reason))?,
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
        rules::check_unique(&self.domains.iter().map(|record| self.text(record.name)))?;
        rules::check_owners(&self.domains.iter().map(|record| self.text(record.functions)))
    }

    /// Checks privileges, and the devices that domains serve for others.
    pub(super) fn check_virtio_devices(&self) -> Result<(), BlobError<'a>> {
        let mut next = 0;
        for (domain, record) in self.domains.iter().enumerate() {
            let at = |name, reason| BlobError::new(Field::Domain(domain, name), reason);
            let privileges = record.privileges.get();
            if Privileges::from_bits(privileges).is_none() {
                return Err(at("privileges", Reason::Device(DeviceReason::UnknownPrivileges(privileges))));
            }
            if record.reserved != 0 {
                return Err(at("reserved", Reason::NotZero));
            }
            let (first, count) = (record.first_device.get(), record.virtio_devices.get() as usize);
            virtio::check_devices(domain, count)?;
            let end = (first as usize).saturating_add(count);
            if first as usize != next || end > self.devices.len() {
                return Err(at("devices", Reason::NoSuch { what: "device", index: first }));
            }
            next = end;
            let records = self.devices.get(first as usize..end).unwrap_or_default();
            virtio::check_entropy(domain, record.entropy != 0, records.iter().map(device_kind))?;
            for (index, device) in records.iter().enumerate() {
                self.check_device(domain, device).map_err(|(name, reason)| {
                    BlobError::new(Field::Device(domain, None, index, name), reason)
                })?;
            }
        }
        if next != self.devices.len() {
            let reason = Reason::BadLength(self.devices.len() as u64);
            return Err(BlobError::new(Field::Header("devices"), reason));
        }
        Ok(())
    }

    fn check_device(&self, domain: usize, record: &DeviceRecord) -> Result<(), (&'static str, Reason<'a>)> {
        if device_kind(record).is_none() {
            let index = record.kind.get();
            return Err(("kind", Reason::NoSuch { what: "virtio device type", index }));
        }
        let name = self.check_text(record.backend_name).map_err(|reason| ("backend", reason))?;
        self.check_backend(domain, record.backend.get(), name).map_err(|reason| ("backend", reason))?;
        self.check_text(record.parameters)
            .and_then(virtio::check_parameters)
            .map_err(|reason| ("parameters", reason))
    }

    /// Checks who serves a device: an earlier domain of the blob by its number, or another one by its name.
    fn check_backend(&self, domain: usize, index: u32, name: &'a str) -> Result<(), Reason<'a>> {
        if index == NAMED_BACKEND {
            let mut others = self.domains.iter();
            return match name {
                "" => Ok(()),
                name if others.any(|other| self.text(other.name) == name) => {
                    Err(Reason::Device(DeviceReason::LaterBackend(name)))
                }
                name => rules::check_name(name),
            };
        }
        let backend = self.domains.get(index as usize);
        let backend = backend.ok_or(Reason::NoSuch { what: "domain", index })?;
        let privileges = Privileges::from_bits_truncate(backend.privileges.get());
        virtio::check_backend(domain, index as usize, self.text(backend.name), privileges)?;
        if name.is_empty() { Ok(()) } else { Err(Reason::NotZero) }
    }

    /// Checks that texts and codes of pools and contracts can be read. What they say is checked with the text's rules.
    pub(super) fn check_pools(&self) -> Result<(), BlobError<'a>> {
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

    pub(super) fn check_machine_settings(&self) -> Result<(), BlobError<'a>> {
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

    pub(super) fn check_text(&self, text: Text) -> Result<&'a str, Reason<'a>> {
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
    known("entropy", record.entropy, record.entropy <= 1)
}
