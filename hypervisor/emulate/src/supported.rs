//! The instructions that the emulator executes on a device, as a table: for the documentation, and for guests
//! that probe each of them.

/// An instruction and its forms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Supported {
    /// The mnemonic, as in the manuals.
    pub mnemonic: &'static str,
    /// The encodings, as in the manuals.
    pub encodings: &'static str,
    /// Bytes of the memory operand: any of 1, 2, 4, 8.
    pub sizes: &'static [u8],
    /// One encoding for 64-bit mode; its memory operand is at RDI, or at RSI (or both) for string instructions.
    pub example: &'static [u8],
}

const ALL: &[u8] = &[1, 2, 4, 8];
const WORDS: &[u8] = &[2, 4, 8];
const BYTE: &[u8] = &[1];

macro_rules! supported {
    ($($mnemonic:literal, $encodings:literal, $sizes:expr, [$($byte:literal),*];)*) => {
        /// Everything that [`crate::step`] executes. Addressing: every form of ModRM and SIB with 16, 32 and 64
        /// address bits, moffs, RIP-relative, any segment. Crossing a page is fine, and so is a device on one
        /// side of it only.
        ///
        /// LOCK is accepted where the CPU accepts it, and REP, REPE and REPNE with the string instructions. INS
        /// and OUTS are in [`crate::string_io`].
        pub const SUPPORTED: &[Supported] = &[
            $(Supported {
                mnemonic: $mnemonic,
                encodings: $encodings,
                sizes: $sizes,
                example: &[$($byte),*],
            },)*
        ];
    };
}

supported! {
    "MOV", "88-8C, A0-A3, C6 /0, C7 /0 (not to a segment register)", ALL, [0x89, 0x07];
    "MOVZX", "0F B6, 0F B7", &[1, 2], [0x0f, 0xb6, 0x07];
    "MOVSX", "0F BE, 0F BF", &[1, 2], [0x0f, 0xbf, 0x07];
    "MOVSXD", "63", &[2, 4], [0x48, 0x63, 0x07];
    "MOVBE", "0F 38 F0, 0F 38 F1", WORDS, [0x0f, 0x38, 0xf1, 0x07];
    "MOVNTI", "0F C3", &[4, 8], [0x0f, 0xc3, 0x07];
    "CMOVcc", "0F 40-4F", WORDS, [0x0f, 0x45, 0x07];
    "SETcc", "0F 90-9F", BYTE, [0x0f, 0x95, 0x07];
    "ADD", "00-03, 80 /0, 81 /0, 83 /0", ALL, [0x01, 0x07];
    "OR", "08-0B, 80 /1, 81 /1, 83 /1", ALL, [0x09, 0x07];
    "ADC", "10-13, 80 /2, 81 /2, 83 /2", ALL, [0x11, 0x07];
    "SBB", "18-1B, 80 /3, 81 /3, 83 /3", ALL, [0x19, 0x07];
    "AND", "20-23, 80 /4, 81 /4, 83 /4", ALL, [0x21, 0x07];
    "SUB", "28-2B, 80 /5, 81 /5, 83 /5", ALL, [0x29, 0x07];
    "XOR", "30-33, 80 /6, 81 /6, 83 /6", ALL, [0x31, 0x07];
    "CMP", "38-3B, 80 /7, 81 /7, 83 /7", ALL, [0x39, 0x07];
    "TEST", "84, 85, F6 /0, F7 /0", ALL, [0x85, 0x07];
    "NOT", "F6 /2, F7 /2", ALL, [0xf7, 0x17];
    "NEG", "F6 /3, F7 /3", ALL, [0xf7, 0x1f];
    "INC", "FE /0, FF /0", ALL, [0xff, 0x07];
    "DEC", "FE /1, FF /1", ALL, [0xff, 0x0f];
    "ROL", "C0, C1, D0-D3 /0", ALL, [0xd1, 0x07];
    "ROR", "C0, C1, D0-D3 /1", ALL, [0xd1, 0x0f];
    "RCL", "C0, C1, D0-D3 /2", ALL, [0xd1, 0x17];
    "RCR", "C0, C1, D0-D3 /3", ALL, [0xd1, 0x1f];
    "SHL", "C0, C1, D0-D3 /4 and /6", ALL, [0xd1, 0x27];
    "SHR", "C0, C1, D0-D3 /5", ALL, [0xd1, 0x2f];
    "SAR", "C0, C1, D0-D3 /7", ALL, [0xd1, 0x3f];
    "BT", "0F A3, 0F BA /4", WORDS, [0x0f, 0xa3, 0x07];
    "BTS", "0F AB, 0F BA /5", WORDS, [0x0f, 0xab, 0x07];
    "BTR", "0F B3, 0F BA /6", WORDS, [0x0f, 0xb3, 0x07];
    "BTC", "0F BB, 0F BA /7", WORDS, [0x0f, 0xbb, 0x07];
    "XCHG", "86, 87", ALL, [0x87, 0x07];
    "XADD", "0F C0, 0F C1", ALL, [0x0f, 0xc1, 0x07];
    "CMPXCHG", "0F B0, 0F B1", ALL, [0x0f, 0xb1, 0x07];
    "PUSH", "FF /6", WORDS, [0xff, 0x37];
    "POP", "8F /0", WORDS, [0x8f, 0x07];
    "MOVS", "A4, A5", ALL, [0xf3, 0xa5];
    "CMPS", "A6, A7", ALL, [0xf3, 0xa7];
    "STOS", "AA, AB", ALL, [0xf3, 0xab];
    "LODS", "AC, AD", ALL, [0xad];
    "SCAS", "AE, AF", ALL, [0xf2, 0xaf];
}
