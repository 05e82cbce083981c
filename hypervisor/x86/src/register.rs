//! General-purpose registers in the order of their encoding.

/// A general-purpose register; the discriminant is its encoding in ModRM, REX and opcodes (SDM vol. 2, section 2.1.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Gpr {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    Rbx = 3,
    Rsp = 4,
    Rbp = 5,
    Rsi = 6,
    Rdi = 7,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
    R12 = 12,
    R13 = 13,
    R14 = 14,
    R15 = 15,
}

impl Gpr {
    /// All sixteen, in the order of their encoding.
    pub const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];

    /// The register with the low four bits of `encoding`.
    #[must_use]
    pub const fn from_encoding(encoding: u8) -> Self {
        Self::ALL[(encoding & 15) as usize]
    }
}

/// The sixteen general-purpose registers, indexed by [`Gpr`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Gprs(pub [u64; 16]);

impl Gprs {
    /// The register's value.
    #[inline]
    #[must_use]
    pub const fn get(&self, register: Gpr) -> u64 {
        self.0[register as usize]
    }

    /// Sets the whole register.
    #[inline]
    pub const fn set(&mut self, register: Gpr, value: u64) {
        self.0[register as usize] = value;
    }
}
