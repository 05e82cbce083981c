//! What the text says of devices that other domains serve, its rules, and the parameters that come of it.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::Write as _;

use caisson_abi::Privileges;
use sha2::{Digest, Sha256};

use super::{ConfigText, DomainText};
use crate::blob::DeviceBackend;
use crate::error::{BlobError, Field, Reason};
use crate::rules;
use crate::settings::{DeviceKind, DiskFormat, Purpose};
use crate::virtio::{self, DeviceReason};

/// A device of a domain that another domain serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceText {
    /// `backend`; `None`: the only domain that serves devices.
    pub backend: Option<String>,
    /// What it is.
    pub settings: DeviceSettings,
}

/// The settings of a device, by its kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceSettings {
    /// A `[[domain.disk]]`.
    Disk(DiskText),
    /// A `[[domain.network]]`.
    Network(NetworkText),
    /// A `[[domain.share]]`.
    Share(ShareText),
    /// A `[[domain.port]]`.
    Port(PortText),
    /// A `[[domain.entropy]]`.
    Entropy(EntropyText),
}

/// A `[[domain.disk]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskText {
    /// `path`, in the domain that serves it.
    pub path: String,
    /// `format`.
    pub format: DiskFormat,
    /// `read_only`.
    pub read_only: bool,
    /// `serial`.
    pub serial: Option<String>,
}

/// A `[[domain.network]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkText {
    /// `bridge`, in the domain that serves it.
    pub bridge: String,
    /// `mac`, as written; `None` for one that follows from the domain's name.
    pub mac: Option<String>,
    /// `anti_spoofing`.
    pub anti_spoofing: bool,
    /// `rate`, in bits per second; `None` for no limit.
    pub rate: Option<u64>,
    /// `vlan`.
    pub vlan: Option<u32>,
    /// `queues`: pairs.
    pub queues: u32,
}

/// A `[[domain.share]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShareText {
    /// `tag`.
    pub tag: String,
    /// `path`, in the domain that serves it.
    pub path: String,
}

/// A `[[domain.port]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortText {
    /// `name`.
    pub name: String,
}

/// A `[[domain.entropy]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntropyText {
    /// `rate`, in bytes per second.
    pub rate: u64,
}

/// The address of the network card with that index, of the domain of that name, where the text gives none: locally
/// administered, and always the same.
#[must_use]
pub fn usual_mac(domain: &str, index: usize) -> [u8; 6] {
    let digest = Sha256::digest(format!("caisson network {index} of {domain}"));
    let mut mac = [0; 6];
    for (byte, random) in mac.iter_mut().zip(digest) {
        *byte = random;
    }
    // IEEE 802, section 8.2: bit 0 of the first byte is a group's, bit 1 a local administrator's.
    mac[0] = (mac[0] & !1) | 2;
    mac
}

/// The address that `text` writes as six pairs of hexadecimal digits, if it is one card's.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next()?;
        if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

impl NetworkText {
    /// The card's address, where the text's is one: it is the network with that index, of the domain of that name.
    #[must_use]
    pub fn address(&self, domain: &str, index: usize) -> Option<[u8; 6]> {
        match &self.mac {
            Some(text) => parse_mac(text),
            None => Some(usual_mac(domain, index)),
        }
    }
}

impl DeviceText {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        match self.settings {
            DeviceSettings::Disk(_) => DeviceKind::Disk,
            DeviceSettings::Network(_) => DeviceKind::Network,
            DeviceSettings::Share(_) => DeviceKind::Share,
            DeviceSettings::Port(_) => DeviceKind::Port,
            DeviceSettings::Entropy(_) => DeviceKind::Entropy,
        }
    }

    /// Its own name, where a domain's devices of that kind have names.
    fn label(&self) -> Option<&str> {
        match &self.settings {
            DeviceSettings::Share(share) => Some(&share.tag),
            DeviceSettings::Port(port) => Some(&port.name),
            _ => None,
        }
    }

    /// The key of [`DeviceText::label`] in the text.
    fn label_key(&self) -> &'static str {
        if self.kind() == DeviceKind::Share { "tag" } else { "name" }
    }

    fn check(&self) -> Result<(), (&'static str, Reason<'_>)> {
        let at = |name, result: Result<(), _>| result.map_err(|reason| (name, reason));
        match &self.settings {
            DeviceSettings::Disk(disk) => {
                at("path", virtio::check_path(&disk.path))?;
                at("serial", disk.serial.as_deref().map_or(Ok(()), virtio::check_serial))
            }
            DeviceSettings::Network(network) => {
                at("bridge", virtio::check_bridge(&network.bridge))?;
                if let Some(mac) = network.mac.as_deref().filter(|mac| parse_mac(mac).is_none()) {
                    return Err(("mac", Reason::Device(DeviceReason::BadMac(mac))));
                }
                if let Some(rate) = network.rate.filter(|&rate| rate < virtio::MIN_RATE) {
                    return Err(("rate", Reason::Device(DeviceReason::LowRate(rate))));
                }
                at("vlan", virtio::check_range(network.vlan, virtio::MAX_VLAN))?;
                at("queues", virtio::check_range(Some(network.queues), virtio::MAX_QUEUES))
            }
            DeviceSettings::Share(share) => {
                at("tag", virtio::check_label(&share.tag))?;
                at("path", virtio::check_path(&share.path))
            }
            DeviceSettings::Port(port) => at("name", virtio::check_label(&port.name)),
            DeviceSettings::Entropy(entropy) if entropy.rate < virtio::MIN_ENTROPY_RATE => {
                Err(("rate", Reason::Device(DeviceReason::LowEntropyRate(entropy.rate))))
            }
            DeviceSettings::Entropy(_) => Ok(()),
        }
    }

    /// The parameters for the domain that serves it: one line for each setting that is given or has a default.
    pub(crate) fn parameters(&self, domain: &str, index: usize) -> String {
        let mut lines = String::new();
        let mut line = |key: &str, value: &str| {
            lines.extend([key, "=", value, "\n"]);
        };
        match &self.settings {
            DeviceSettings::Disk(disk) => {
                line("path", &disk.path);
                line("format", disk.format.word());
                line("read_only", &disk.read_only.to_string());
                disk.serial.iter().for_each(|serial| line("serial", serial));
            }
            DeviceSettings::Network(network) => {
                line("bridge", &network.bridge);
                line("mac", &shown_mac(network.address(domain, index).unwrap_or_default()));
                line("anti_spoofing", &network.anti_spoofing.to_string());
                network.rate.iter().for_each(|rate| line("rate", &rate.to_string()));
                network.vlan.iter().for_each(|vlan| line("vlan", &vlan.to_string()));
                line("queues", &network.queues.to_string());
            }
            DeviceSettings::Share(share) => {
                line("tag", &share.tag);
                line("path", &share.path);
            }
            DeviceSettings::Port(port) => line("name", &port.name),
            DeviceSettings::Entropy(entropy) => line("rate", &entropy.rate.to_string()),
        }
        lines
    }
}

fn shown_mac(mac: [u8; 6]) -> String {
    let mut shown = String::new();
    for (index, byte) in mac.iter().enumerate() {
        let colon = if index == 0 { "" } else { ":" };
        // A `String` takes all that is written to it.
        let _ = write!(shown, "{colon}{byte:02x}");
    }
    shown
}

impl DomainText {
    /// The devices, each with its index among those of its kind.
    pub(crate) fn indexed_devices(&self) -> impl Iterator<Item = (usize, &DeviceText)> + Clone {
        self.virtio_devices.iter().enumerate().map(|(number, device)| {
            let earlier = self.virtio_devices.iter().take(number);
            (earlier.filter(|other| other.kind() == device.kind()).count(), device)
        })
    }
}

impl ConfigText {
    /// Checks the devices that domains serve for others.
    pub(super) fn check_virtio_devices(&self) -> Result<(), BlobError<'_>> {
        for (number, domain) in self.domains.iter().enumerate() {
            virtio::check_devices(number, domain.virtio_devices.len())?;
            let kinds = domain.virtio_devices.iter().map(|device| Some(device.kind()));
            virtio::check_entropy(number, domain.entropy, kinds)?;
            for (index, device) in domain.indexed_devices() {
                let at = |name, reason| {
                    BlobError::new(Field::Device(number, Some(device.kind()), index, name), reason)
                };
                device.check().map_err(|(name, reason)| at(name, reason))?;
                if let Some(label) = device.label() {
                    let mut same =
                        domain.indexed_devices().filter(|(_, other)| other.kind() == device.kind());
                    let first =
                        same.find(|(_, other)| other.label() == Some(label)).map_or(index, |(n, _)| n);
                    if first != index {
                        let reason = Reason::Device(DeviceReason::DuplicateLabel(label, first));
                        return Err(at(device.label_key(), reason));
                    }
                }
                let backend = self.backend_of(number, device).map_err(|reason| at("backend", reason))?;
                self.check_single(number, index, device, backend)
                    .map_err(|(name, reason)| at(name, reason))?;
            }
        }
        Ok(())
    }

    /// Checks that no earlier network card has a device's address, and no earlier disk its file, unless neither writes.
    fn check_single(
        &self,
        number: usize,
        index: usize,
        device: &DeviceText,
        backend: DeviceBackend<'_>,
    ) -> Result<(), (&'static str, Reason<'_>)> {
        let all = self.domains.iter().enumerate().flat_map(|(number, domain)| {
            domain.indexed_devices().map(move |(index, device)| (number, domain, index, device))
        });
        let name = self.domains.get(number).map_or("", |domain| &domain.name);
        let earlier =
            all.take_while(|&(n, _, i, other)| (n, i) != (number, index) || other.kind() != device.kind());
        for (other_number, other_domain, other_index, other) in earlier {
            match (&device.settings, &other.settings) {
                (DeviceSettings::Network(one), DeviceSettings::Network(other))
                    if one.address(name, index) == other.address(&other_domain.name, other_index) =>
                {
                    return Err((
                        "mac",
                        Reason::Device(DeviceReason::DuplicateMac(other_number, other_index)),
                    ));
                }
                (DeviceSettings::Disk(one), DeviceSettings::Disk(second))
                    if one.path == second.path
                        && !(one.read_only && second.read_only)
                        && self.backend_of(other_number, other) == Ok(backend) =>
                {
                    return Err((
                        "path",
                        Reason::Device(DeviceReason::SharedDisk(other_number, other_index)),
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Who serves a device of the domain `number`: one of the text, or where that is for domains that are made later, one that it
    /// does not describe.
    pub(crate) fn backend_of<'a>(
        &'a self,
        number: usize,
        device: &'a DeviceText,
    ) -> Result<DeviceBackend<'a>, Reason<'a>> {
        let refuse = |reason| Err(Reason::Device(reason));
        let is_later = self.purpose == Purpose::Later;
        let (index, backend) = match &device.backend {
            Some(name) => match self.domains.iter().enumerate().find(|(_, domain)| domain.name == *name) {
                Some(found) => found,
                None if is_later && (name.is_empty() || rules::check_name(name).is_ok()) => {
                    return Ok(DeviceBackend::Named(name));
                }
                None => return refuse(DeviceReason::NoSuchBackend(name)),
            },
            None => {
                let serves = |domain: &DomainText| domain.privileges.contains(Privileges::IO_BACKEND);
                let mut all = self.domains.iter().enumerate().filter(|(_, domain)| serves(domain));
                match (all.next(), all.next()) {
                    (Some(only), None) => only,
                    (Some((_, one)), Some((_, other))) => {
                        return refuse(DeviceReason::WhichBackend(&one.name, &other.name));
                    }
                    (None, _) if is_later => return Ok(DeviceBackend::Named("")),
                    (None, _) => return refuse(DeviceReason::NoBackend),
                }
            }
        };
        virtio::check_backend(number, index, &backend.name, backend.privileges)?;
        Ok(DeviceBackend::Domain(index))
    }
}

/// The number of bits per second that a rate such as `100M` stands for: digits and one of `K`, `M`, `G` (powers of 1000,
/// either case).
///
/// ```
/// # use caisson_config::source::parse_rate;
/// assert_eq!(parse_rate("100M"), Some(100_000_000));
/// assert_eq!(parse_rate("1g"), Some(1_000_000_000));
/// assert_eq!(parse_rate("100"), None);
/// ```
#[must_use]
pub fn parse_rate(text: &str) -> Option<u64> {
    let unit = text.chars().last()?;
    let factor = match unit.to_ascii_uppercase() {
        'K' => 1_000,
        'M' => 1_000_000,
        'G' => 1_000_000_000,
        _ => return None,
    };
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_one_cards() {
        assert_eq!(parse_mac("02:00:00:00:00:01"), Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(parse_mac("AC:de:48:00:11:22"), Some([0xAC, 0xDE, 0x48, 0, 0x11, 0x22]));
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "02-00-00-00-00-01",
            "+2:00:00:00:00:01",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
        for group_or_none in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert_eq!(parse_mac(group_or_none), None, "{group_or_none}");
        }
    }

    /// A guest's card keeps its address, whatever else changes: these must never be others.
    #[test]
    fn the_usual_address_is_stable_and_local() {
        assert_eq!(shown_mac(usual_mac("web", 0)), "2a:1d:fc:91:56:64");
        assert_eq!(shown_mac(usual_mac("web", 1)), "72:d4:39:bc:a7:c2");
        for index in 0..100 {
            let mac = usual_mac("a", index);
            assert_eq!(mac[0] & 3, 2);
            assert_eq!(parse_mac(&shown_mac(mac)), Some(mac));
        }
    }
}
