//! The tables of devices that other domains serve, and who may serve.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use caisson_abi::Privileges;
use toml::Spanned;
use toml::de::DeValue;

use super::{Reader, Table};
use crate::error::Field;
use crate::functions::PciAddress;
use crate::settings::{DeviceKind, DiskFormat};
use crate::source::{
    DeviceSettings, DeviceText, DiskText, DomainText, EntropyText, NetworkText, PortText, ShareText,
    SourceError, parse_rate, parse_size,
};
use crate::virtio::{ENTROPY_RATE, PRIVILEGE_WORDS};

impl Reader<'_> {
    /// Which of the machine's PCI functions a domain owns, as the blob has it.
    pub(super) fn functions(&mut self, table: &Table<'_>, field: Field) -> Result<String, SourceError> {
        let Some(value) = table.get("devices") else { return Ok(String::new()) };
        self.remember(field, &value.span());
        let names = match value.get_ref() {
            DeValue::String(text) if text == "all" => return Ok("all".to_owned()),
            DeValue::String(text) if text == "none" => return Ok(String::new()),
            DeValue::Array(names) if !names.is_empty() => names,
            _ => {
                let what = "is no choice; write \"all\", \"none\", or a list such as [\"00:03.0\"]";
                return Err(self.wrong(value, table.path("devices"), what));
            }
        };
        let mut all = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let address = match name.get_ref() {
                DeValue::String(text) => PciAddress::parse(text),
                _ => None,
            };
            let wrong = match address {
                None => "is no PCI function's address; write e.g. \"0000:00:03.0\"",
                Some(address) if all.contains(&address) => "is named already; leave it out",
                Some(address) => {
                    all.push(address);
                    continue;
                }
            };
            return Err(self.wrong(name, format!("{}[{index}]", table.path("devices")), wrong));
        }
        all.sort_unstable();
        Ok(all.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
    }

    /// Where no domain says what it owns, the only one that serves devices owns them all.
    pub(super) fn default_owner(&self, domains: &mut [DomainText]) {
        let said = |index| self.positions.contains_key(&Field::Domain(index, "devices"));
        if (0..domains.len()).any(said) {
            return;
        }
        let mut servers =
            domains.iter_mut().filter(|domain| domain.privileges.contains(Privileges::IO_BACKEND));
        if let (Some(only), None) = (servers.next(), servers.next()) {
            only.devices = "all".to_owned();
        }
    }

    pub(super) fn privileges(&mut self, table: &Table<'_>, field: Field) -> Result<Privileges, SourceError> {
        let Some(value) = table.get("privileges") else { return Ok(Privileges::empty()) };
        self.remember(field, &value.span());
        let words = PRIVILEGE_WORDS.map(|(word, _)| word).join("\", \"");
        let DeValue::Array(names) = value.get_ref() else {
            let what = format!("is not a list; write e.g. [\"{words}\"]");
            return Err(self.wrong(value, table.path("privileges"), &what));
        };
        let mut all = Privileges::empty();
        for (index, name) in names.iter().enumerate() {
            let known = |text: &str| PRIVILEGE_WORDS.iter().find(|(word, _)| *word == text);
            let found = match name.get_ref() {
                DeValue::String(text) => known(text),
                _ => None,
            };
            let Some((_, privilege)) = found else {
                let path = format!("{}[{index}]", table.path("privileges"));
                return Err(self.wrong(name, path, &format!("is no privilege; write one of \"{words}\"")));
            };
            all |= *privilege;
        }
        Ok(all)
    }

    /// Whether Caisson serves a domain random numbers. A list describes who else does.
    pub(super) fn own_entropy(&mut self, table: &Table<'_>, field: Field) -> Result<bool, SourceError> {
        let Some(value) = table.get("entropy") else { return Ok(false) };
        self.remember(field, &value.span());
        match value.get_ref() {
            DeValue::Boolean(own) => Ok(*own),
            DeValue::Array(_) => Ok(false),
            _ => {
                let what =
                    "is neither; write true or false, or begin its description with [[domain.entropy]]";
                Err(self.wrong(value, table.path("entropy"), what))
            }
        }
    }

    /// A domain's devices that others serve, those of a kind in their order.
    pub(super) fn virtio_devices(
        &mut self,
        domain: &Table<'_>,
        number: usize,
    ) -> Result<Vec<DeviceText>, SourceError> {
        let mut devices = Vec::new();
        let kinds =
            [DeviceKind::Disk, DeviceKind::Network, DeviceKind::Share, DeviceKind::Port, DeviceKind::Entropy];
        for kind in kinds {
            let word = kind.word();
            let Some(value) = domain.get(word) else { continue };
            let DeValue::Array(values) = value.get_ref() else {
                if kind == DeviceKind::Entropy {
                    // `own_entropy` has it.
                    continue;
                }
                let reason = format!(
                    "not a list; begin each one's description with [[domain.{word}]], in double brackets"
                );
                return Err(self.error(Some(value.span()), domain.path(word), reason));
            };
            for (index, value) in values.iter().enumerate() {
                devices.push(self.virtio_device(value, kind, number, index)?);
            }
        }
        Ok(devices)
    }

    fn virtio_device(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        kind: DeviceKind,
        domain: usize,
        index: usize,
    ) -> Result<DeviceText, SourceError> {
        let at = |name| Field::Device(domain, Some(kind), index, name);
        let table = self.table(value, format!("domain[{domain}].{}[{index}]", kind.word()))?;
        for name in ["backend", "mac", "path"] {
            // Where nothing is said, the table is to blame.
            self.remember(at(name), &table.span);
        }
        let settings = match kind {
            DeviceKind::Disk => DeviceSettings::Disk(self.disk(&table, at)?),
            DeviceKind::Network => DeviceSettings::Network(self.network(&table, at)?),
            DeviceKind::Share => {
                self.known_keys(&table, &["tag", "path", "backend"])?;
                let tag = self.needed_string(&table, "tag", at("tag"), "\"files\"")?;
                let path = self.needed_string(&table, "path", at("path"), "\"/srv/files\"")?;
                DeviceSettings::Share(ShareText { tag, path })
            }
            DeviceKind::Port => {
                self.known_keys(&table, &["name", "backend"])?;
                let name = self.needed_string(&table, "name", at("name"), "\"agent\"")?;
                DeviceSettings::Port(PortText { name })
            }
            DeviceKind::Entropy => {
                self.known_keys(&table, &["rate", "backend"])?;
                let unit = "bytes per second; write e.g. \"64K\"";
                let rate = self.rate(&table, at("rate"), parse_size, unit)?;
                DeviceSettings::Entropy(EntropyText { rate: rate.unwrap_or(ENTROPY_RATE) })
            }
        };
        Ok(DeviceText { backend: self.string(&table, "backend", at("backend"))?, settings })
    }

    fn disk(
        &mut self,
        table: &Table<'_>,
        at: impl Fn(&'static str) -> Field,
    ) -> Result<DiskText, SourceError> {
        self.known_keys(table, &["path", "format", "read_only", "serial", "backend"])?;
        let path = self.needed_string(table, "path", at("path"), "\"/dev/nvme0n1p1\"")?;
        let format = self.word(table, "format", at("format"), DiskFormat::WORDS, DiskFormat::from_word)?;
        Ok(DiskText {
            path,
            format: format.unwrap_or(DiskFormat::Raw),
            read_only: self.flag(table, "read_only", at("read_only"))?.unwrap_or(false),
            serial: self.string(table, "serial", at("serial"))?,
        })
    }

    fn network(
        &mut self,
        table: &Table<'_>,
        at: impl Fn(&'static str) -> Field,
    ) -> Result<NetworkText, SourceError> {
        let known = ["bridge", "mac", "anti_spoofing", "rate", "vlan", "queues", "backend"];
        self.known_keys(table, &known)?;
        Ok(NetworkText {
            bridge: self.needed_string(table, "bridge", at("bridge"), "\"br0\"")?,
            mac: self.string(table, "mac", at("mac"))?,
            anti_spoofing: self.flag(table, "anti_spoofing", at("anti_spoofing"))?.unwrap_or(true),
            rate: self.rate(table, at("rate"), parse_rate, "bits per second; write e.g. \"100M\"")?,
            vlan: self.number(table, "vlan", at("vlan"))?,
            queues: self.number(table, "queues", at("queues"))?.unwrap_or(1),
        })
    }

    fn rate(
        &mut self,
        table: &Table<'_>,
        field: Field,
        parse: fn(&str) -> Option<u64>,
        unit: &str,
    ) -> Result<Option<u64>, SourceError> {
        let Some(value) = table.get("rate") else { return Ok(None) };
        self.remember(field, &value.span());
        let rate = match value.get_ref() {
            DeValue::String(text) => parse(text),
            _ => None,
        };
        rate.map(Some)
            .ok_or_else(|| self.wrong(value, table.path("rate"), &format!("is not a number of {unit}")))
    }

    fn needed_string(
        &mut self,
        table: &Table<'_>,
        key: &str,
        field: Field,
        example: &str,
    ) -> Result<String, SourceError> {
        let value = self.string(table, key, field)?;
        self.required(value, table, key, example)
    }
}
