//! Random numbers from the CPU: RDSEED where it has that, else RDRAND (SDM vol. 1, section 7.3.17; APM vol. 3, same names).

use core::arch::asm;

use crate::cpu::Features;

/// How often in a row RDRAND may say that it has none before it counts as broken (SDM vol. 1, section 7.3.17.1).
const RDRAND_TRIES: u32 = 10;
/// How often RDSEED is asked; it runs dry where others ask as well.
const RDSEED_TRIES: u32 = 3;

/// The CPU's source of random numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Random {
    seed: bool,
    random: bool,
}

impl Random {
    /// The source of a CPU with these features; `None` where it has none.
    #[must_use]
    pub fn of(features: &Features) -> Option<Self> {
        let source = Self { seed: features.rdseed, random: features.rdrand };
        (source.seed || source.random).then_some(source)
    }

    /// Fills `bytes` from their start, and answers how many it had.
    pub fn fill(self, bytes: &mut [u8]) -> usize {
        let mut filled = 0;
        for part in bytes.chunks_mut(8) {
            let Some(word) = self.word() else { break };
            part.iter_mut().zip(word.to_ne_bytes()).for_each(|(byte, random)| *byte = random);
            filled += part.len();
        }
        filled
    }

    fn word(self) -> Option<u64> {
        let seed = || (0..RDSEED_TRIES).find_map(|_| rdseed());
        let random = || (0..RDRAND_TRIES).find_map(|_| rdrand());
        // A CPU of this kind has been asked for; each is refused where it is not there.
        match (self.seed, self.random) {
            (true, true) => seed().or_else(random),
            (true, false) => seed(),
            (false, _) => random(),
        }
    }
}

macro_rules! random {
    ($name:ident, $instruction:literal) => {
        /// The instruction. Only called where CPUID says that it is there; elsewhere it would be #UD.
        fn $name() -> Option<u64> {
            let (word, good): (u64, u8);
            // SAFETY: changes nothing but the registers that are named and the flags.
            unsafe {
                asm!($instruction, "setc {good}", word = out(reg) word, good = out(reg_byte) good,
                     options(nomem, nostack));
            }
            (good != 0).then_some(word)
        }
    };
}

random!(rdrand, "rdrand {word}");
random!(rdseed, "rdseed {word}");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_without_either_has_no_source() {
        let none = Features { rdrand: false, rdseed: false, ..Features::detect() };
        assert_eq!(Random::of(&none), None);
    }

    #[test]
    fn what_is_filled_differs() {
        let Some(random) = Random::of(&Features::detect()) else { return };
        let mut words = [[0; 13]; 4];
        for word in &mut words {
            assert_eq!(random.fill(word), 13);
        }
        assert!(words[1..].iter().all(|word| *word != words[0]), "{words:?}");
    }
}
