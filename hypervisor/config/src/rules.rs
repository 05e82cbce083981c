//! What a configuration may say: the limits, and the checks of values. The blob's parser and the TOML text's compiler
//! apply these very functions, so that both refuse the same things in the same words.

use crate::error::{BlobError, Field, Reason};
use crate::functions::Functions;
use crate::private;
use crate::settings::SelectedConsole;

/// The longest name of a domain, in bytes.
pub const MAX_NAME: usize = 31;
/// Names that a domain cannot have: the console uses them for all consoles at once and for Caisson's own log.
pub const RESERVED_NAMES: [&str; 2] = [SelectedConsole::ALL_WORD, SelectedConsole::LOG_WORD];
/// The most domains that a blob describes.
pub const MAX_DOMAINS: usize = 256;
/// The most vCPUs that a domain has.
pub const MAX_VCPUS: u32 = 64;
/// The most modules that all domains have together.
pub const MAX_MODULES: usize = 4096;
/// The least memory of a domain, in bytes: the address space of the real mode that every guest can return to.
pub const MIN_MEMORY: u64 = 1 << 20;
/// Memory is given in multiples of this many bytes.
pub const MEMORY_GRANULE: u64 = 4096;
/// The most memory of a domain, in bytes: with [`ADDRESS_OVERHEAD`], the 52 address bits of the architecture.
pub const MAX_MEMORY: u64 = (1 << 52) - ADDRESS_OVERHEAD;
/// How far above its amount of memory a guest's highest address can be, in bytes: devices have a hole below 4 GiB, and
/// the memory that it displaces continues at 4 GiB.
pub const ADDRESS_OVERHEAD: u64 = 4 << 30;
/// The slowest TSC of a domain, in kHz.
pub const MIN_TSC_KHZ: u32 = 1_000;
/// The fastest TSC of a domain, in kHz.
pub const MAX_TSC_KHZ: u32 = 10_000_000;
/// The longest command line, in bytes: Linux keeps 2048 with the terminating zero.
pub const MAX_CMDLINE: usize = 2047;
/// The longest name of a payload (the path or `@name` that the TOML text gives), in bytes.
pub const MAX_REFERENCE: usize = 1023;

/// The values of a domain that have rules beyond their type.
#[derive(Clone, Copy)]
pub(crate) struct DomainValues<'a> {
    pub(crate) name: &'a str,
    pub(crate) memory: u64,
    pub(crate) private: u64,
    /// What it owns of the machine's functions, as a text.
    pub(crate) functions: &'a str,
    pub(crate) vcpus: u32,
    pub(crate) cmdline: &'a str,
    pub(crate) tsc_khz: Option<u32>,
}

/// Checks the values of the domain with the given index.
pub(crate) fn check_domain<'a>(index: usize, values: &DomainValues<'a>) -> Result<(), BlobError<'a>> {
    let at = |name, result: Result<(), Reason<'a>>| {
        result.map_err(|reason| BlobError::new(Field::Domain(index, name), reason))
    };
    at("name", check_name(values.name))?;
    at("memory", check_memory(values.memory))?;
    // What is no such text is told later.
    let owns_functions =
        Functions::parse(values.functions).is_some_and(|functions| functions != Functions::None);
    let private = private::check(values.private, values.memory, owns_functions);
    at("private", private.map_err(Reason::Private))?;
    at("vcpus", check_vcpus(values.vcpus))?;
    at("tsc_khz", values.tsc_khz.map_or(Ok(()), check_tsc_khz))?;
    at("cmdline", check_text(values.cmdline, MAX_CMDLINE))
}

/// Checks that no two domains have one name.
pub(crate) fn check_unique<'a>(names: &(impl Iterator<Item = &'a str> + Clone)) -> Result<(), BlobError<'a>> {
    for (index, name) in names.clone().enumerate() {
        if let Some(first) = names.clone().take(index).position(|earlier| earlier == name) {
            let reason = Reason::DuplicateName { name, first };
            return Err(BlobError::new(Field::Domain(index, "name"), reason));
        }
    }
    Ok(())
}

/// Checks the texts of what domains own of the machine's functions: that no two own one.
pub(crate) fn check_owners<'a>(
    domains: &(impl Iterator<Item = &'a str> + Clone),
) -> Result<(), BlobError<'a>> {
    let at = |index, reason| BlobError::new(Field::Domain(index, "devices"), reason);
    let read = |(index, text)| Functions::parse(text).ok_or(at(index, Reason::BadFunctions(text)));
    for (index, text) in domains.clone().enumerate() {
        let own = read((index, text))?;
        if own == Functions::None {
            continue;
        }
        for (first, text) in domains.clone().take(index).enumerate() {
            match (own, read((first, text))?) {
                (Functions::All, Functions::All) => return Err(at(index, Reason::SecondOwner(first))),
                (Functions::Named(own), Functions::Named(other)) => {
                    if let Some(address) = own.common(&other) {
                        return Err(at(index, Reason::SameFunction(address, first)));
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

pub(crate) fn check_name(name: &str) -> Result<(), Reason<'_>> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
        Err(Reason::BadName(name))
    } else if RESERVED_NAMES.contains(&name) {
        Err(Reason::ReservedName(name))
    } else {
        Ok(())
    }
}

fn check_memory(bytes: u64) -> Result<(), Reason<'static>> {
    if bytes < MIN_MEMORY {
        Err(Reason::MemoryTooSmall(bytes))
    } else if bytes > MAX_MEMORY {
        Err(Reason::MemoryTooLarge(bytes))
    } else if !bytes.is_multiple_of(MEMORY_GRANULE) {
        Err(Reason::MemoryNotPages(bytes))
    } else {
        Ok(())
    }
}

fn check_vcpus(vcpus: u32) -> Result<(), Reason<'static>> {
    if (1..=MAX_VCPUS).contains(&vcpus) { Ok(()) } else { Err(Reason::BadVcpus(vcpus)) }
}

fn check_tsc_khz(khz: u32) -> Result<(), Reason<'static>> {
    if (MIN_TSC_KHZ..=MAX_TSC_KHZ).contains(&khz) { Ok(()) } else { Err(Reason::BadTsc(khz)) }
}

/// Checks text that may be empty: a command line.
pub(crate) fn check_text(text: &str, max: usize) -> Result<(), Reason<'static>> {
    if text.len() > max {
        Err(Reason::TextTooLong { len: text.len() as u64, max: max as u64 })
    } else if text.chars().any(char::is_control) {
        Err(Reason::ControlCharacter)
    } else {
        Ok(())
    }
}

/// Checks the name of a payload.
pub(crate) fn check_reference(text: &str) -> Result<(), Reason<'static>> {
    if text.is_empty() { Err(Reason::Empty) } else { check_text(text, MAX_REFERENCE) }
}

/// Checks a number of things against its limits.
pub(crate) fn check_count(count: usize, min: usize, max: usize) -> Result<(), Reason<'static>> {
    if count < min {
        Err(Reason::Empty)
    } else if count > max {
        Err(Reason::TooMany { count: count as u64, max: max as u64 })
    } else {
        Ok(())
    }
}

/// What a machine has for its guests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MachineLimits {
    /// Bytes of memory that all domains can have together.
    pub memory: u64,
    /// The most vCPUs of one domain.
    pub max_vcpus: u32,
    /// The CPU's guest-physical address bits (CPUID 8000_0008h, EAX).
    pub address_bits: u8,
}

impl MachineLimits {
    /// Checks that a machine can carry all domains at once, given each one's memory and vCPUs.
    pub(crate) fn check<'a>(&self, domains: impl Iterator<Item = (u64, u32)>) -> Result<(), BlobError<'a>> {
        let reach = 1u64.checked_shl(u32::from(self.address_bits)).unwrap_or(u64::MAX);
        let mut left = self.memory;
        for (index, (memory, vcpus)) in domains.enumerate() {
            let memory_at = Field::Domain(index, "memory");
            if vcpus > self.max_vcpus {
                let reason = Reason::VcpusBeyondMachine { want: vcpus, max: self.max_vcpus };
                return Err(BlobError::new(Field::Domain(index, "vcpus"), reason));
            }
            if memory.saturating_add(ADDRESS_OVERHEAD) > reach {
                let reason = Reason::MemoryBeyondAddressBits { want: memory, bits: self.address_bits };
                return Err(BlobError::new(memory_at, reason));
            }
            let overcommitted = Reason::MemoryOvercommitted { want: memory, left, have: self.memory };
            left = left.checked_sub(memory).ok_or(BlobError::new(memory_at, overcommitted))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a", "linux", "web-1", "0", &"x".repeat(MAX_NAME)] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", "Linux", "a b", "ü", "a\0", &"x".repeat(MAX_NAME + 1)] {
            assert_eq!(check_name(name), Err(Reason::BadName(name)));
        }
        assert_eq!(check_name("all"), Err(Reason::ReservedName("all")));
        assert!(check_unique(&["a", "b", "c"].into_iter()).is_ok());
        let twice = check_unique(&["a", "b", "b"].into_iter());
        let reason = Reason::DuplicateName { name: "b", first: 1 };
        assert_eq!(twice, Err(BlobError::new(Field::Domain(2, "name"), reason)));
    }

    #[test]
    fn amounts() {
        assert_eq!(check_memory(MIN_MEMORY), Ok(()));
        assert_eq!(check_memory(MAX_MEMORY), Ok(()));
        assert_eq!(check_memory(0), Err(Reason::MemoryTooSmall(0)));
        assert_eq!(check_memory(MIN_MEMORY + 1), Err(Reason::MemoryNotPages(MIN_MEMORY + 1)));
        assert_eq!(check_memory(u64::MAX), Err(Reason::MemoryTooLarge(u64::MAX)));
        assert_eq!(check_vcpus(0), Err(Reason::BadVcpus(0)));
        assert_eq!(check_vcpus(MAX_VCPUS), Ok(()));
        assert_eq!((check_tsc_khz(MIN_TSC_KHZ), check_tsc_khz(MAX_TSC_KHZ)), (Ok(()), Ok(())));
        assert_eq!(check_tsc_khz(0), Err(Reason::BadTsc(0)));
        assert_eq!(check_tsc_khz(MAX_TSC_KHZ + 1), Err(Reason::BadTsc(MAX_TSC_KHZ + 1)));
    }

    #[test]
    fn a_machine_is_not_overcommitted() {
        let machine = MachineLimits { memory: 3 << 20, max_vcpus: 2, address_bits: 40 };
        assert_eq!(machine.check([(1 << 20, 1), (2 << 20, 2)].into_iter()), Ok(()));
        let error = machine.check([(1 << 20, 1), (3 << 20, 1)].into_iter()).unwrap_err();
        assert_eq!(error.field, Field::Domain(1, "memory"));
        assert!(machine.check([(1 << 20, 3)].into_iter()).is_err());
        let machine = MachineLimits { memory: u64::MAX, ..machine };
        assert!(machine.check([(1 << 40, 1)].into_iter()).is_err());
        let machine = MachineLimits { address_bits: 64, ..machine };
        assert_eq!(machine.check([(MAX_MEMORY, 1); 256].into_iter()), Ok(()));
    }
}
