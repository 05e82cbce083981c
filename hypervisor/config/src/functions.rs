//! PCI functions of the machine that a domain owns, as text: `all`, or `0000:00:03.0,0000:01:00.0`.

use core::fmt;

/// The most functions that a domain can name.
pub const MAX_FUNCTIONS: usize = 64;
/// How long an address is that is written in full.
const ADDRESS_BYTES: usize = 12;

/// Where a PCI function is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PciAddress {
    /// The segment group.
    pub segment: u16,
    /// The bus.
    pub bus: u8,
    /// The device, up to 31.
    pub device: u8,
    /// The function, up to 7.
    pub function: u8,
}

impl PciAddress {
    /// Reads `0000:00:03.0`, or `00:03.0` of segment 0. `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (segment, rest) = match text.len() {
            ADDRESS_BYTES => (text.get(..4)?, text.get(4..)?.strip_prefix(':')?),
            _ => ("0", text),
        };
        let (bus, rest) = (rest.get(..2)?, rest.get(2..)?.strip_prefix(':')?);
        let (device, rest) = (rest.get(..2)?, rest.get(2..)?.strip_prefix('.')?);
        let digits = [segment, bus, device, rest];
        if rest.len() != 1 || digits.iter().any(|part| !part.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            return None;
        }
        let address = Self {
            segment: u16::from_str_radix(segment, 16).ok()?,
            bus: u8::from_str_radix(bus, 16).ok()?,
            device: u8::from_str_radix(device, 16).ok()?,
            function: u8::from_str_radix(rest, 16).ok()?,
        };
        (address.device < 32 && address.function < 8).then_some(address)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.segment, self.bus, self.device, self.function)
    }
}

/// Which of the machine's PCI functions a domain owns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Functions<'a> {
    /// None.
    None,
    /// All that no other domain names.
    All,
    /// These.
    Named(FunctionList<'a>),
}

impl<'a> Functions<'a> {
    /// Reads the text of a blob: addresses in full, rising, at most [`MAX_FUNCTIONS`]. `None` where it is none.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        match text {
            "" => return Some(Self::None),
            "all" => return Some(Self::All),
            _ => {}
        }
        let mut last = None;
        for (index, part) in text.split(',').enumerate() {
            let address = PciAddress::parse(part).filter(|_| part.len() == ADDRESS_BYTES)?;
            // One address is one text.
            let lower = !part.bytes().any(|byte| byte.is_ascii_uppercase());
            if index >= MAX_FUNCTIONS || !lower || last.is_some_and(|last| last >= address) {
                return None;
            }
            last = Some(address);
        }
        Some(Self::Named(FunctionList(text)))
    }
}

impl fmt::Display for Functions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::All => "all",
            Self::Named(list) => list.0,
        })
    }
}

/// Functions by name, rising; at least one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FunctionList<'a>(&'a str);

impl<'a> FunctionList<'a> {
    /// The functions.
    pub fn iter(&self) -> impl Iterator<Item = PciAddress> + Clone + use<'a> {
        self.0.split(',').filter_map(PciAddress::parse)
    }

    /// The first function that both lists have.
    pub(crate) fn common(&self, other: &Self) -> Option<PciAddress> {
        let (mut left, mut right) = (self.iter().peekable(), other.iter().peekable());
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            match a.cmp(b) {
                core::cmp::Ordering::Less => _ = left.next(),
                core::cmp::Ordering::Greater => _ = right.next(),
                core::cmp::Ordering::Equal => return Some(*a),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, shown) in
            [("0000:00:03.0", "0000:00:03.0"), ("1f:1F.7", "0000:1f:1f.7"), ("ABCD:ff:00.1", "abcd:ff:00.1")]
        {
            assert_eq!(PciAddress::parse(text).unwrap().to_string(), shown);
        }
        for text in [
            "",
            "3",
            "00:03",
            "00:20.0",
            "00:03.8",
            "00:03.00",
            "0:3.0",
            "0000-00:03.0",
            "+0:03.0",
            "00:03.0 ",
            "äää:03.0",
        ] {
            assert_eq!(PciAddress::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_list_has_one_way_to_be_written() {
        let Some(Functions::Named(list)) = Functions::parse("0000:00:03.0,0000:01:00.0") else { panic!() };
        assert_eq!(list.iter().count(), 2);
        let Some(Functions::Named(other)) = Functions::parse("0000:00:02.0,0000:01:00.0,0000:01:00.1") else {
            panic!()
        };
        assert_eq!(list.common(&other).unwrap().to_string(), "0000:01:00.0");
        let Some(Functions::Named(third)) = Functions::parse("0000:00:02.0") else { panic!() };
        assert_eq!(list.common(&third), None);
        for text in [
            "none",
            ",",
            "00:03.0",
            "0000:01:00.0,0000:00:03.0",
            "0000:01:00.0,0000:01:00.0",
            "0000:01:00.0,",
            "all,0000:01:00.0",
            "0000:0A:00.0",
        ] {
            assert_eq!(Functions::parse(text), None, "{text}");
        }
    }
}
