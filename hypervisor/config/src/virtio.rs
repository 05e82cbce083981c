//! Devices that other domains serve: the limits, and the checks that text and blob share. Caisson hands a device's
//! parameters to the domain that serves it and never interprets them; their values are checked where the text is.

use core::fmt;

use caisson_abi::Privileges;

use crate::error::{BlobError, Field, Reason};
#[cfg(feature = "build")]
use crate::rules;
use crate::settings::DeviceKind;

/// The most devices of a domain that others serve; with the source of random numbers there are 32.
pub const MAX_DEVICES: usize = 31;
/// The longest parameters of a device, in bytes.
pub const MAX_PARAMETERS: usize = 1024;
/// The privileges and their words in the TOML text.
pub const PRIVILEGE_WORDS: [(&str, Privileges); 3] = [
    ("events", Privileges::EVENTS),
    ("control", Privileges::CONTROL),
    ("io-backend", Privileges::IO_BACKEND),
];

/// What is wrong with a device that another domain serves, or with who serves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceReason<'a> {
    /// No domain serves devices.
    NoBackend,
    /// Two domains serve devices, and the text does not say which one is meant.
    WhichBackend(&'a str, &'a str),
    /// A name that is no domain's.
    NoSuchBackend(&'a str),
    /// A domain without the privilege.
    NotBackend(&'a str),
    /// The domain is the one with the device, or a later one.
    LaterBackend(&'a str),
    /// Parameters that are not lines `key=value`.
    BadParameters,
    /// A bit that stands for no privilege.
    UnknownPrivileges(u32),
    /// A path that does not start at the root.
    RelativePath(&'a str),
    /// Not a name that Linux lets a network interface have.
    BadBridge(&'a str),
    /// Not a serial number.
    BadSerial(&'a str),
    /// Not the name of a shared directory or console port.
    BadLabel(&'a str),
    /// The domain has another device of that kind and name: its index among them.
    DuplicateLabel(&'a str, usize),
    /// Not the address of one network card.
    BadMac(&'a str),
    /// Another network card has that address: its domain, and its index there.
    DuplicateMac(usize, usize),
    /// Another disk is the same file, and not both are only read: its domain, and its index there.
    SharedDisk(usize, usize),
    /// More devices than a domain can have.
    TooManyDevices(usize),
    /// A rate that is too low, in bits per second.
    LowRate(u64),
    /// A rate of random numbers that is too low, in bytes per second.
    LowEntropyRate(u64),
    /// A source of random numbers that Caisson serves, and one that a domain does.
    EntropyTwice,
}

/// The longest path of a device, in bytes.
pub const MAX_PATH: usize = 767;
/// The longest name of a network interface, in bytes (Linux, `IFNAMSIZ` less the terminating zero).
pub const MAX_INTERFACE: usize = 15;
/// The longest serial number of a disk, in bytes (VIRTIO 1.2, section 5.2.6).
pub const MAX_SERIAL: usize = 20;
/// The longest name of a shared directory or console port, in bytes (VIRTIO 1.2, section 5.11.4: the tag).
pub const MAX_LABEL: usize = 36;
/// The highest VLAN (IEEE 802.1Q: 4095 is reserved).
pub const MAX_VLAN: u32 = 4094;
/// The most pairs of queues of a network card.
pub const MAX_QUEUES: u32 = 8;
/// The lowest limit of a network card's rate, in bits per second.
pub const MIN_RATE: u64 = 8_000;
/// The lowest limit of a source of random numbers, in bytes per second.
#[cfg(feature = "build")]
pub(crate) const MIN_ENTROPY_RATE: u64 = 1 << 10;
/// Its usual limit, in bytes per second.
#[cfg(feature = "build")]
pub(crate) const ENTROPY_RATE: u64 = 64 << 10;

impl fmt::Display for DeviceReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoBackend => {
                f.write_str("no domain serves devices; give an earlier one privileges = [\"io-backend\"]")
            }
            Self::WhichBackend(one, other) => {
                write!(
                    f,
                    "missing, and both {one:?} and {other:?} serve devices; write e.g. backend = {one:?}"
                )
            }
            Self::NoSuchBackend(name) => {
                write!(f, "{name:?} is no domain's name; write that of the domain which serves the device")
            }
            Self::NotBackend(name) => {
                write!(
                    f,
                    "{name:?} serves no devices; give it privileges = [\"io-backend\"], or name another"
                )
            }
            Self::LaterBackend(name) => {
                write!(
                    f,
                    "{name:?} does not start before this domain; describe it further up, or name another"
                )
            }
            Self::BadParameters => {
                f.write_str("not lines of key=value; build it again with `cargo xtask config build`")
            }
            Self::UnknownPrivileges(bits) => write!(
                f,
                "{bits:#x} has bits that stand for nothing in version {}; build it again with `cargo xtask config \
                 build`",
                crate::VERSION
            ),
            Self::RelativePath(path) => {
                write!(f, "{path:?} does not start with /; write the whole path in the domain that serves it")
            }
            Self::BadBridge(name) => write!(
                f,
                "{name:?} is not the name of a bridge; use 1 to {MAX_INTERFACE} of the characters a-z A-Z 0-9 - _ ."
            ),
            Self::BadSerial(serial) => write!(
                f,
                "{serial:?} is not a serial number; use 1 to {MAX_SERIAL} printable ASCII characters"
            ),
            Self::BadLabel(name) => {
                write!(f, "{name:?} is not a name; use 1 to {MAX_LABEL} of the characters a-z A-Z 0-9 - _ .")
            }
            Self::DuplicateLabel(name, first) => {
                write!(f, "{name:?} is the name of number {first} already; choose another name")
            }
            Self::BadMac(mac) => {
                write!(
                    f,
                    "{mac:?} is not one card's address; write e.g. \"02:00:00:00:00:01\", or leave it out"
                )
            }
            Self::DuplicateMac(domain, index) => write!(
                f,
                "domain[{domain}].network[{index}] has this address already; change it, or leave it out of one"
            ),
            Self::SharedDisk(domain, index) => write!(
                f,
                "domain[{domain}].disk[{index}] is the same, and two that write would destroy it; name another, or give \
                 both read_only = true"
            ),
            Self::TooManyDevices(count) => {
                write!(f, "{count} devices that other domains serve are too many; have at most {MAX_DEVICES}")
            }
            Self::LowRate(rate) => {
                write!(f, "{rate} bits per second are too few; write e.g. \"100M\", at least \"8K\"")
            }
            Self::LowEntropyRate(rate) => {
                write!(f, "{rate} bytes per second are too few; write e.g. \"64K\", at least \"1K\"")
            }
            Self::EntropyTwice => f.write_str(
                "Caisson serves random numbers, and so does another domain; leave one of the two out",
            ),
        }
    }
}

/// Checks that the domain `backend`, called `name`, can serve a device of `domain`: that it starts earlier, so that no two
/// wait for each other, and has the privilege.
pub(crate) fn check_backend(
    domain: usize,
    backend: usize,
    name: &str,
    privileges: Privileges,
) -> Result<(), Reason<'_>> {
    if backend >= domain {
        Err(Reason::Device(DeviceReason::LaterBackend(name)))
    } else if !privileges.contains(Privileges::IO_BACKEND) {
        Err(Reason::Device(DeviceReason::NotBackend(name)))
    } else {
        Ok(())
    }
}

/// Checks that parameters are lines of a key and a value, each ended by a newline, without control characters.
pub(crate) fn check_parameters(text: &str) -> Result<(), Reason<'_>> {
    if text.len() > MAX_PARAMETERS {
        return Err(Reason::TextTooLong { len: text.len() as u64, max: MAX_PARAMETERS as u64 });
    }
    let good = |line: &str| {
        let Some((key, value)) = line.strip_suffix('\n').and_then(|line| line.split_once('=')) else {
            return false;
        };
        let in_key = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        !key.is_empty() && key.bytes().all(in_key) && !value.chars().any(char::is_control)
    };
    if text.split_inclusive('\n').all(good) {
        Ok(())
    } else {
        Err(Reason::Device(DeviceReason::BadParameters))
    }
}

/// Checks a domain's number of devices.
pub(crate) fn check_devices<'a>(domain: usize, count: usize) -> Result<(), BlobError<'a>> {
    if count > MAX_DEVICES {
        let reason = Reason::Device(DeviceReason::TooManyDevices(count));
        return Err(BlobError::new(Field::WholeDomain(domain), reason));
    }
    Ok(())
}

/// Checks that a domain to which Caisson serves random numbers has no device that does too.
pub(crate) fn check_entropy<'a>(
    domain: usize,
    is_own: bool,
    mut kinds: impl Iterator<Item = Option<DeviceKind>>,
) -> Result<(), BlobError<'a>> {
    if is_own && kinds.any(|kind| kind == Some(DeviceKind::Entropy)) {
        let reason = Reason::Device(DeviceReason::EntropyTwice);
        return Err(BlobError::new(Field::Domain(domain, "entropy"), reason));
    }
    Ok(())
}

/// Checks a path in the serving domain.
#[cfg(feature = "build")]
pub(crate) fn check_path(path: &str) -> Result<(), Reason<'_>> {
    rules::check_text(path, MAX_PATH)?;
    if path.starts_with('/') { Ok(()) } else { Err(Reason::Device(DeviceReason::RelativePath(path))) }
}

#[cfg(feature = "build")]
fn is_plain(text: &str, max: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=max).contains(&text.len()) && text.bytes().all(allowed) && text != "." && text != ".."
}

/// Checks the name of a bridge.
#[cfg(feature = "build")]
pub(crate) fn check_bridge(name: &str) -> Result<(), Reason<'_>> {
    if is_plain(name, MAX_INTERFACE) { Ok(()) } else { Err(Reason::Device(DeviceReason::BadBridge(name))) }
}

/// Checks a disk's serial number.
#[cfg(feature = "build")]
pub(crate) fn check_serial(serial: &str) -> Result<(), Reason<'_>> {
    let allowed = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    if (1..=MAX_SERIAL).contains(&serial.len()) && serial.bytes().all(allowed) {
        Ok(())
    } else {
        Err(Reason::Device(DeviceReason::BadSerial(serial)))
    }
}

/// Checks the name of a shared directory or console port.
#[cfg(feature = "build")]
pub(crate) fn check_label(name: &str) -> Result<(), Reason<'_>> {
    if is_plain(name, MAX_LABEL) { Ok(()) } else { Err(Reason::Device(DeviceReason::BadLabel(name))) }
}

/// A number from 1 to a limit, or none.
#[cfg(feature = "build")]
pub(crate) fn check_range(value: Option<u32>, max: u32) -> Result<(), Reason<'static>> {
    match value {
        Some(value) if !(1..=max).contains(&value) => Err(Reason::OutOfRange { value, max }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;

    #[test]
    fn parameters_are_lines_of_key_and_value() {
        for good in ["", "a=\n", "path=/dev/sda\nread_only=true\n", "x= =ä\n"] {
            assert_eq!(check_parameters(good), Ok(()), "{good:?}");
        }
        for bad in
            ["\n", "a", "a=b", "a\n", "=b\n", "A=b\n", "a b=c\n", "a=\r\n", "a=b\n\n", "a=\u{85}\n", "a=\0\n"]
        {
            let reason = Reason::Device(DeviceReason::BadParameters);
            assert_eq!(check_parameters(bad), Err(reason), "{bad:?}");
        }
        let mut long = String::from("a=");
        long.extend(core::iter::repeat_n('x', MAX_PARAMETERS - 3));
        long.push('\n');
        assert_eq!(check_parameters(&long), Ok(()));
        long.insert(2, 'x');
        let reason = Reason::TextTooLong { len: 1025, max: 1024 };
        assert_eq!(check_parameters(&long), Err(reason));
    }

    #[test]
    fn only_an_earlier_domain_with_the_privilege_serves() {
        let all = Privileges::all();
        assert_eq!(check_backend(1, 0, "d", Privileges::IO_BACKEND), Ok(()));
        for later in [1, 2] {
            let reason = Reason::Device(DeviceReason::LaterBackend("d"));
            assert_eq!(check_backend(1, later, "d", all), Err(reason));
        }
        let reason = Reason::Device(DeviceReason::NotBackend("d"));
        assert_eq!(check_backend(1, 0, "d", all - Privileges::IO_BACKEND), Err(reason));
    }

    #[test]
    fn names_of_devices() {
        for name in ["br0", "a", "x.y_z-0", &"b".repeat(15)] {
            assert_eq!(check_bridge(name), Ok(()));
        }
        for name in ["", ".", "..", "a/b", "a b", "ä", &"b".repeat(16)] {
            assert!(check_bridge(name).is_err(), "{name:?}");
        }
        assert_eq!((check_label(&"t".repeat(36)), check_serial("SN 0001~")), (Ok(()), Ok(())));
        assert!(check_label(&"t".repeat(37)).is_err() && check_serial(&"s".repeat(21)).is_err());
        assert!(check_serial("").is_err() && check_serial("a\tb").is_err() && check_path("dev").is_err());
        assert!(check_path("/a\nb").is_err() && check_path(&"/".repeat(768)).is_err());
        assert_eq!(check_path(&"/".repeat(767)), Ok(()));
        assert!(check_range(Some(0), 8).is_err() && check_range(Some(9), 8).is_err());
        assert_eq!((check_range(Some(8), 8), check_range(None, 8)), (Ok(()), Ok(())));
    }

    #[test]
    fn every_privilege_has_a_word() {
        let all = PRIVILEGE_WORDS.iter().fold(Privileges::empty(), |all, (_, privilege)| all | *privilege);
        assert_eq!(all, Privileges::all());
        assert_eq!(PRIVILEGE_WORDS.map(|(_, privilege)| privilege.bits()), [1, 2, 4]);
    }
}
