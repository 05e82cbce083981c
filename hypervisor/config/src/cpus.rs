//! Lists of CPUs, as text: `0-3,8`.

use core::fmt;

/// The highest number of a CPU that a list can name.
pub const MAX_CPU: u32 = 1023;

/// Some CPUs, by their numbers in the order of the machine's list, from 0. Empty text stands for no restriction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuList<'a>(&'a str);

impl<'a> CpuList<'a> {
    /// The CPUs of `text`: numbers and ranges, ascending, separated by commas. `None` where it is none.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut free = 0;
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (first, last) = range(part)?;
            if first < free || last < first || last > MAX_CPU {
                return None;
            }
            free = last + 1;
        }
        Some(Self(text))
    }

    /// The list without CPUs.
    pub(crate) fn none() -> Self {
        Self("")
    }

    /// Whether the list is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the list has a CPU. An empty one has none.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        self.ranges().any(|(first, last)| (first..=last).contains(&cpu))
    }

    /// The CPUs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + Clone + use<'a> {
        self.ranges().flat_map(|(first, last)| first..=last)
    }

    /// The list as a set.
    pub(crate) fn set(&self) -> CpuSet {
        let mut set = CpuSet::NONE;
        self.iter().for_each(|cpu| set.add(cpu));
        set
    }

    fn ranges(&self) -> impl Iterator<Item = (u32, u32)> + Clone + use<'a> {
        self.0.split(',').filter_map(range)
    }
}

impl fmt::Display for CpuList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Some CPUs, up to [`MAX_CPU`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuSet([u64; CpuSet::WORDS]);

impl CpuSet {
    const WORDS: usize = (MAX_CPU as usize + 1) / 64;
    /// No CPU.
    pub const NONE: Self = Self([0; Self::WORDS]);

    /// Whether the set has a CPU.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.get(cpu as usize / 64).is_some_and(|word| word >> (cpu % 64) & 1 != 0)
    }

    /// The CPUs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..=MAX_CPU).filter(|&cpu| self.contains(cpu))
    }

    pub(crate) fn add(&mut self, cpu: u32) {
        if let Some(word) = self.0.get_mut(cpu as usize / 64) {
            *word |= 1 << (cpu % 64);
        }
    }

    pub(crate) fn invert(&mut self) {
        self.0.iter_mut().for_each(|word| *word = !*word);
    }

    pub(crate) fn keep_below(&mut self, cpus: u32) {
        for (index, word) in self.0.iter_mut().enumerate() {
            let kept = cpus.saturating_sub(index as u32 * 64).min(64);
            *word &= u64::MAX.checked_shl(kept).map_or(u64::MAX, |above| !above);
        }
    }
}

fn range(part: &str) -> Option<(u32, u32)> {
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    Some((number(first)?, number(last)?))
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::CpuList;

    #[test]
    fn lists() {
        for (text, cpus) in [("", &[][..]), ("3", &[3]), ("0-2,5,1022-1023", &[0, 1, 2, 5, 1022, 1023])] {
            let list = CpuList::parse(text).unwrap();
            assert_eq!(list.iter().collect::<Vec<_>>(), cpus);
            let mut set = super::CpuSet::NONE;
            list.iter().for_each(|cpu| set.add(cpu));
            assert_eq!(set.iter().collect::<Vec<_>>(), cpus);
            set.invert();
            assert!((0..1100).all(|cpu| set.contains(cpu) == (cpu < 1024 && !cpus.contains(&cpu))));
            set.keep_below(3);
            assert_eq!(set.iter().count(), 3 - cpus.iter().filter(|&&cpu| cpu < 3).count());
            assert!((0..1100).all(|cpu| list.contains(cpu) == cpus.contains(&cpu)));
        }
        for text in
            [",", "1,", "-1", "1-", "2-1", "1,1", "3,0", "1024", "0-99999", "a", " 1", "+1", "0x1", "1--2"]
        {
            assert_eq!(CpuList::parse(text), None, "{text}");
        }
    }
}
