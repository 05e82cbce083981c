//! Pseudo-random numbers (xorshift64*), repeatable by their seed.

/// The generator.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed; any will do.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self((seed.wrapping_mul(2) | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next 64 bits.
    pub fn any(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.any() >> 11) % bound
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A number that is likely to be at an edge: few bits set, few clear, or anything.
    pub fn edgy(&mut self) -> u64 {
        let (shift, value) = (self.below(64), self.any());
        match self.below(6) {
            0 => 1 << shift,
            1 => !(1 << shift),
            2 => value >> shift,
            3 => (value as i64 >> shift) as u64,
            4 => 0u64.wrapping_sub(value & 1),
            _ => value,
        }
    }
}
