//! Compiling a configuration text and its files into a blob.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::PAYLOAD_ALIGN;
use crate::blob::check::seal;
use crate::blob::{Blob, CONSOLE_ALL, CONSOLE_DOMAIN, CONSOLE_LOG, DeviceBackend};
use crate::error::Field;
use crate::layout::{
    DeviceRecord, DomainRecord, HEADER_SHA256, Header, MAGIC, ModuleRecord, NAMED_BACKEND, NO_RESTART_LIMIT,
    PayloadRecord, PoolRecord, Text, VERSION,
};
use crate::settings::{Purpose, SelectedConsole};
use crate::source::{ConfigText, SourceError};

/// Why a blob could not be built: always with the file, and with the field that is at fault.
pub type BuildError = SourceError;

/// Compiles a configuration into a blob. `resolver` is asked once for the bytes of each file that the text names;
/// files of equal content are stored once.
///
/// # Errors
/// The first field that breaks a rule or whose file `resolver` cannot provide.
pub fn build(
    config: &ConfigText,
    resolver: impl FnMut(&str) -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, BuildError> {
    config.check()?;
    let mut tables = Tables::default();
    let mut files =
        Files { config, resolver, by_name: BTreeMap::new(), by_sha256: BTreeMap::new(), all: Vec::new() };
    for (index, domain) in config.domains.iter().enumerate() {
        let first_module = tables.modules.len();
        for (number, module) in domain.modules.iter().enumerate() {
            let payload = files.add(&module.file, Field::Module(index, number, "file"))?;
            let cmdline = tables.text(&module.cmdline);
            tables.modules.push(ModuleRecord { payload: count(payload), reserved: U32::ZERO, cmdline });
        }
        let first_device = tables.devices.len();
        for (number, device) in domain.indexed_devices() {
            let parameters = tables.text(&device.parameters(&domain.name, number));
            // `check` has found it.
            let (backend, name) = match config.backend_of(index, device) {
                Ok(DeviceBackend::Domain(backend)) => (count(backend), ""),
                Ok(DeviceBackend::Named(name)) => (U32::new(NAMED_BACKEND), name),
                Err(_) => (U32::ZERO, ""),
            };
            let kind = U32::new(u32::from(device.kind().code()));
            let backend_name = tables.text(name);
            tables.devices.push(DeviceRecord { kind, backend, parameters, backend_name });
        }
        let contract = &domain.contract;
        let reserved = contract.reservation;
        let record = DomainRecord {
            name: tables.text(&domain.name),
            cmdline: tables.text(&domain.cmdline),
            memory: U64::new(domain.memory),
            // `check` has limited it to MAX_VCPUS.
            vcpus: U16::new(domain.vcpus as u16),
            loader: domain.loader.code(),
            console: domain.console.code(),
            on_poweroff: domain.on_exit.poweroff.code(),
            on_reboot: domain.on_exit.reboot.code(),
            on_crash: domain.on_exit.crash.code(),
            entropy: u8::from(domain.entropy),
            max_restarts: U32::new(domain.max_restarts.unwrap_or(NO_RESTART_LIMIT)),
            kernel: count(files.add(&domain.kernel, Field::Domain(index, "kernel"))?),
            first_module: count(first_module),
            modules: count(domain.modules.len()),
            cpus: tables.text(&domain.cpus),
            prefer: tables.text(&domain.prefer),
            weight: U32::new(contract.weight),
            cap: U32::new(contract.cap.unwrap_or(0)),
            warp: U32::new(contract.warp),
            warp_limit: U32::new(contract.warp_limit),
            period: U32::new(reserved.map_or(0, |time| time.period)),
            slice: U32::new(reserved.map_or(0, |time| time.slice)),
            // `check` has found it.
            pool: U16::new(config.pool_of(domain).unwrap_or(0) as u16),
            extra: u8::from(reserved.is_none_or(|time| time.extra)),
            reserved: 0,
            tsc_khz: U32::new(domain.tsc_khz.unwrap_or(0)),
            privileges: U32::new(domain.privileges.bits()),
            first_device: count(first_device),
            virtio_devices: count(domain.virtio_devices.len()),
            functions: tables.text(&domain.devices),
            private: U64::new(domain.private),
        };
        tables.domains.push(record);
    }
    for pool in &config.pools {
        let record = PoolRecord {
            name: tables.text(&pool.name),
            cpus: tables.text(&pool.cpus),
            quantum: U32::new(pool.quantum),
            policy: pool.policy.code(),
            reserved: [0; 11],
        };
        tables.pools.push(record);
    }
    let payloads = files.all;
    let bytes = tables.write(config, &payloads)?;
    let is_good = Blob::parse(&bytes).and_then(|blob| match config.purpose {
        Purpose::Machine => blob.check_complete(),
        Purpose::Later => Blob::parse_unhashed(&bytes).map(|_| ()),
    });
    match is_good.map_err(|error| config.error(&error)) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(error),
    }
}

/// A file's name, content and SHA-256.
struct File {
    name: String,
    data: Vec<u8>,
    sha256: [u8; 32],
}

/// The files named so far.
struct Files<'a, R> {
    config: &'a ConfigText,
    resolver: R,
    by_name: BTreeMap<String, usize>,
    by_sha256: BTreeMap<[u8; 32], usize>,
    all: Vec<File>,
}

impl<R: FnMut(&str) -> Result<Vec<u8>, String>> Files<'_, R> {
    /// The payload number of the file that `field` names.
    fn add(&mut self, name: &str, field: Field) -> Result<usize, BuildError> {
        if let Some(&index) = self.by_name.get(name) {
            return Ok(index);
        }
        let data = (self.resolver)(name)
            .map_err(|reason| self.config.error_at(field, format!("{name:?}: {}", one_line(&reason))))?;
        if data.is_empty() {
            let reason = format!("{name:?} is an empty file; name one with content");
            return Err(self.config.error_at(field, reason));
        }
        let sha256: [u8; 32] = Sha256::digest(&data).into();
        let index = *self.by_sha256.entry(sha256).or_insert(self.all.len());
        if index == self.all.len() {
            self.all.push(File { name: name.to_string(), data, sha256 });
        }
        self.by_name.insert(name.to_string(), index);
        Ok(index)
    }
}

fn one_line(text: &str) -> String {
    let parts: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    parts.join("; ")
}

#[derive(Default)]
struct Tables {
    domains: Vec<DomainRecord>,
    modules: Vec<ModuleRecord>,
    pools: Vec<PoolRecord>,
    devices: Vec<DeviceRecord>,
    text: String,
}

impl Tables {
    fn text(&mut self, text: &str) -> Text {
        let offset = count(self.text.len());
        self.text.push_str(text);
        Text { offset, len: count(text.len()) }
    }

    fn write(mut self, config: &ConfigText, files: &[File]) -> Result<Vec<u8>, BuildError> {
        let names: Vec<Text> = files.iter().map(|file| self.text(&file.name)).collect();
        let tables_len = size_of::<Header>()
            + size_of_val(self.domains.as_slice())
            + size_of_val(self.modules.as_slice())
            + files.len() * size_of::<PayloadRecord>()
            + size_of_val(self.pools.as_slice())
            + size_of_val(self.devices.as_slice())
            + self.text.len();
        let meta_len = align(tables_len);
        let mut offset = meta_len;
        let mut payloads = Vec::new();
        for (file, &name) in files.iter().zip(&names) {
            payloads.push(PayloadRecord {
                offset: U64::new(offset as u64),
                len: U64::new(file.data.len() as u64),
                name,
                reserved: U64::ZERO,
                sha256: file.sha256,
            });
            offset += align(file.data.len());
        }
        let (console, console_domain) = match config.selected_console()? {
            SelectedConsole::All => (CONSOLE_ALL, 0),
            SelectedConsole::Log => (CONSOLE_LOG, 0),
            SelectedConsole::Domain(index) => (CONSOLE_DOMAIN, index),
        };
        let header = Header {
            magic: MAGIC,
            version: U32::new(VERSION),
            pools: count(self.pools.len()),
            total_len: U64::new(offset as u64),
            meta_len: U64::new(meta_len as u64),
            domains: count(self.domains.len()),
            modules: count(self.modules.len()),
            payloads: count(payloads.len()),
            text_len: count(self.text.len()),
            console,
            log_level: config.machine.log_level.code(),
            reserved1: U16::ZERO,
            console_domain: count(console_domain),
            devices: count(self.devices.len()),
            reserved2: U32::ZERO,
            sha256: [0; 32],
        };
        let mut bytes = Vec::with_capacity(offset);
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(self.domains.as_bytes());
        bytes.extend_from_slice(self.modules.as_bytes());
        bytes.extend_from_slice(payloads.as_bytes());
        bytes.extend_from_slice(self.pools.as_bytes());
        bytes.extend_from_slice(self.devices.as_bytes());
        bytes.extend_from_slice(self.text.as_bytes());
        bytes.resize(meta_len, 0);
        if let (Some(sha256), Some(place)) = (seal(&bytes), bytes.get_mut(HEADER_SHA256)) {
            place.copy_from_slice(&sha256);
        }
        for file in files {
            bytes.extend_from_slice(&file.data);
            bytes.resize(align(bytes.len()), 0);
        }
        Ok(bytes)
    }
}

fn align(len: usize) -> usize {
    len.next_multiple_of(PAYLOAD_ALIGN as usize)
}

/// A count or length in a record. What `check` lets through is far below the limit of 32 bits.
fn count(n: usize) -> U32 {
    U32::new(n as u32)
}
