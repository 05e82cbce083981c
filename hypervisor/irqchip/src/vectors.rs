//! A set of interrupt vectors: the shape of IRR, ISR and TMR.
//!
//! Intel SDM volume 3, "Interrupt Acceptance for Fixed Interrupts": each register is 256 bits, one a vector.

/// A set of the 256 interrupt vectors.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VectorSet {
    words: [u64; Self::WORDS],
}

impl VectorSet {
    /// 64-bit words in the set.
    pub const WORDS: usize = 4;

    /// No vectors.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: [0; Self::WORDS] }
    }

    const fn place(vector: u8) -> (usize, u64) {
        ((vector >> 6) as usize, 1 << (vector & 63))
    }

    /// Whether `vector` is in the set.
    #[inline]
    #[must_use]
    pub const fn contains(&self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        self.words[word] & bit != 0
    }

    /// Adds `vector`.
    #[inline]
    pub const fn insert(&mut self, vector: u8) {
        let (word, bit) = Self::place(vector);
        self.words[word] |= bit;
    }

    /// Takes `vector` out; answers whether it was in.
    #[inline]
    pub const fn remove(&mut self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        let was = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        was
    }

    /// The highest vector in the set: that of the highest priority.
    #[inline]
    #[must_use]
    pub const fn highest(&self) -> Option<u8> {
        let mut word = Self::WORDS;
        while word > 0 {
            word -= 1;
            let bits = self.words[word];
            if bits != 0 {
                // At most 3 * 64 + 63.
                return Some((word * 64) as u8 + 63 - bits.leading_zeros() as u8);
            }
        }
        None
    }

    /// Whether there is no vector in the set.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.words[0] | self.words[1] | self.words[2] | self.words[3] == 0
    }

    /// How many vectors the set has (0 to 256).
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Adds the vectors `64 * word` + n for each bit n of `bits`; no effect where `word` is 4 or more.
    #[inline]
    pub(crate) fn insert_word(&mut self, word: usize, bits: u64) {
        if let Some(w) = self.words.get_mut(word) {
            *w |= bits;
        }
    }

    /// Makes the vectors of `mask` in `word` what `bits` says; no effect where `word` is 4 or more.
    #[inline]
    pub(crate) fn assign_word(&mut self, word: usize, mask: u64, bits: u64) {
        if let Some(w) = self.words.get_mut(word) {
            *w = (*w & !mask) | (bits & mask);
        }
    }

    /// The words, vectors 0 to 63 first.
    #[inline]
    #[must_use]
    pub const fn words(&self) -> &[u64; Self::WORDS] {
        &self.words
    }

    /// The set of these words, vectors 0 to 63 first.
    #[inline]
    #[must_use]
    pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
        Self { words }
    }

    /// The `index`th (0 to 7) 32-bit register of the set as software sees it; the index wraps.
    #[must_use]
    pub const fn register(&self, index: u8) -> u32 {
        let index = index & 7;
        (self.words[(index >> 1) as usize] >> ((index & 1) * 32)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_can_be_the_highest() {
        let mut set = VectorSet::new();
        assert_eq!(set.highest(), None);
        for vector in 0..=255 {
            set.insert(vector);
            assert_eq!(set.highest(), Some(vector));
            assert_eq!(set.len(), usize::from(vector) + 1);
        }
        for vector in (0..=255).rev() {
            assert!(set.contains(vector));
            assert!(set.remove(vector));
            assert!(!set.remove(vector));
            assert_eq!(set.highest(), vector.checked_sub(1));
        }
        assert!(set.is_empty());
    }

    #[test]
    fn registers_are_32_vectors_each() {
        let mut set = VectorSet::new();
        set.insert(0x31);
        set.insert(0xff);
        assert_eq!(set.register(1), 1 << 17);
        assert_eq!(set.register(7), 1 << 31);
        assert_eq!(set.register(0), 0);
        set.insert_word(9, u64::MAX);
        set.assign_word(0, 1 << 0x31 | 1 << 0x32, 1 << 0x32);
        assert!(!set.contains(0x31) && set.contains(0x32));
    }
}
