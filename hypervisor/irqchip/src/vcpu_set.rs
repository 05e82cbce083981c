//! A set of a domain's vCPUs, by index.

/// The most vCPUs that a domain can have. Changing it needs no other change.
pub const MAX_VCPUS: usize = 64;

const WORDS: usize = MAX_VCPUS.div_ceil(64);

/// A set of vCPU indices below [`MAX_VCPUS`]; iterating it gives them in ascending order.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VcpuSet {
    words: [u64; WORDS],
}

impl VcpuSet {
    /// No vCPU.
    pub const EMPTY: Self = Self { words: [0; WORDS] };

    /// The set of `index` alone, or the empty set when `index` is [`MAX_VCPUS`] or more.
    #[inline]
    #[must_use]
    pub fn single(index: usize) -> Self {
        let mut set = Self::EMPTY;
        set.insert(index);
        set
    }

    /// Adds `index`; no effect when it is [`MAX_VCPUS`] or more.
    #[inline]
    pub fn insert(&mut self, index: usize) {
        if index < MAX_VCPUS
            && let Some(word) = self.words.get_mut(index / 64)
        {
            *word |= 1 << (index % 64);
        }
    }

    /// Takes `index` out.
    #[inline]
    pub fn remove(&mut self, index: usize) {
        if let Some(word) = self.words.get_mut(index / 64) {
            *word &= !(1 << (index % 64));
        }
    }

    /// Whether `index` is in the set.
    #[inline]
    #[must_use]
    pub fn contains(&self, index: usize) -> bool {
        self.words.get(index / 64).is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    /// Whether the set has no vCPU.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// How many vCPUs the set has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }
}

impl IntoIterator for VcpuSet {
    type Item = usize;
    type IntoIter = VcpuSetIter;

    fn into_iter(self) -> VcpuSetIter {
        VcpuSetIter { rest: self, word: 0 }
    }
}

impl Extend<usize> for VcpuSet {
    fn extend<I: IntoIterator<Item = usize>>(&mut self, indices: I) {
        indices.into_iter().for_each(|index| self.insert(index));
    }
}

impl FromIterator<usize> for VcpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(indices: I) -> Self {
        let mut set = Self::EMPTY;
        set.extend(indices);
        set
    }
}

/// The members of a [`VcpuSet`], ascending.
#[derive(Clone, Debug)]
pub struct VcpuSetIter {
    rest: VcpuSet,
    word: usize,
}

impl Iterator for VcpuSetIter {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        loop {
            let bits = self.rest.words.get_mut(self.word)?;
            if *bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                *bits &= *bits - 1;
                return Some(self.word * 64 + bit);
            }
            self.word += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn members_come_in_order_and_bounds_hold() {
        let set: VcpuSet = [63, 0, 17, MAX_VCPUS, usize::MAX].into_iter().collect();
        assert_eq!(set.into_iter().collect::<Vec<_>>(), [0, 17, 63]);
        assert_eq!(set.len(), 3);
        assert!(set.contains(17) && !set.contains(18) && !set.contains(MAX_VCPUS));
        assert!(VcpuSet::single(MAX_VCPUS).is_empty());
        let mut one = VcpuSet::single(5);
        one.remove(usize::MAX);
        one.remove(5);
        assert!(one.is_empty());
    }
}
