//! Instruction bytes at RIP, and their decoding.
//!
//! Bytes come from what the hardware saved at the exit, or from guest memory through the fast walk (the CPU
//! itself has just fetched them). What lies outside RAM reads all ones, which decodes as #UD. An instruction
//! has at most 15 bytes (SDM vol. 2, section 2.3.11).

use caisson_hwvirt::VcpuState;
use caisson_types::{Gpa, GuestMemory, Gva, PAGE_SIZE};
use caisson_x86::{CpuMode, Exception, SegmentRegister};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use crate::walk::{Access, AccessKind, PagingFeatures, fetch_translate, translate};

/// The longest instruction.
pub(crate) const MAX_LENGTH: usize = 15;

/// The linear address of offset `rip` in the code segment.
#[inline]
pub(crate) fn code_address(state: &impl VcpuState, mode: CpuMode, rip: u64) -> Gva {
    if mode == CpuMode::Long64 {
        Gva::new(rip)
    } else {
        Gva::new(state.segment(SegmentRegister::Cs).base.wrapping_add(rip) & 0xffff_ffff)
    }
}

/// The RIP `length` bytes after `rip`. Outside 64-bit mode EIP has 32 bits. In 16-bit code it does not wrap at
/// 64 KiB: the next fetch then meets the segment's limit and raises #GP, as it has since the 80286.
#[inline]
pub(crate) const fn next_rip(mode: CpuMode, rip: u64, length: u64) -> u64 {
    let next = rip.wrapping_add(length);
    if matches!(mode, CpuMode::Long64) { next } else { next & 0xffff_ffff }
}

/// The bytes of an instruction, and of what follows it; fewer than 15 where the next page cannot be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InstructionBytes {
    bytes: [u8; MAX_LENGTH],
    len: u8,
}

impl InstructionBytes {
    pub(crate) const EMPTY: Self = Self { bytes: [0; MAX_LENGTH], len: 0 };

    /// The bytes.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }

    /// The bytes cut to the instruction's `length`.
    pub(crate) fn truncated(mut self, length: usize) -> Self {
        self.len = self.len.min(length.min(MAX_LENGTH) as u8);
        self
    }

    /// Reads on at `gpa`, up to `end` bytes in all. Beyond RAM, all ones.
    fn extend(&mut self, memory: &impl GuestMemory, gpa: Gpa, end: usize) {
        let start = usize::from(self.len);
        if let Some(buf) = self.bytes.get_mut(start..end) {
            if memory.read(gpa, buf).is_err() {
                buf.fill(0xff);
            }
            self.len = end as u8;
        }
    }
}

impl core::fmt::Debug for InstructionBytes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl core::fmt::Display for InstructionBytes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (index, byte) in self.as_slice().iter().enumerate() {
            if index != 0 {
                f.write_str(" ")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// What is at RIP: the bytes, and where the fetch of more of them failed.
pub(crate) struct Window {
    pub(crate) bytes: InstructionBytes,
    /// The first linear address that could not be fetched, where that is within 15 bytes of RIP.
    pub(crate) missing: Option<Gva>,
}

/// Reads the bytes at RIP.
#[inline]
pub(crate) fn window(state: &impl VcpuState, memory: &impl GuestMemory, mode: CpuMode) -> Window {
    let mut bytes = InstructionBytes::EMPTY;
    let saved = state.fetched_bytes();
    if saved.is_empty() {
        if let Some(bytes) = within_page(state, memory, mode) {
            return Window { bytes, missing: None };
        }
    } else {
        bytes.len = saved.len().min(MAX_LENGTH) as u8;
        bytes.bytes.iter_mut().zip(saved).for_each(|(to, from)| *to = *from);
    }
    let start = code_address(state, mode, state.rip());
    while usize::from(bytes.len) < MAX_LENGTH {
        let mut at = start.wrapping_add(u64::from(bytes.len));
        if mode != CpuMode::Long64 {
            at = Gva::new(at.as_u64() & 0xffff_ffff);
        }
        let Some(gpa) = fetch_translate(state, memory, at) else {
            return Window { bytes, missing: Some(at) };
        };
        let left_in_page = (PAGE_SIZE - at.page_offset()) as usize;
        let end = MAX_LENGTH.min(usize::from(bytes.len) + left_in_page);
        bytes.extend(memory, gpa, end);
    }
    Window { bytes, missing: None }
}

/// The bytes at RIP where 16 are there before the page's end: two reads.
#[inline]
fn within_page(state: &impl VcpuState, memory: &impl GuestMemory, mode: CpuMode) -> Option<InstructionBytes> {
    let start = code_address(state, mode, state.rip());
    if start.page_offset() > PAGE_SIZE - 16 {
        return None;
    }
    let gpa = fetch_translate(state, memory, start)?;
    let (low, high) = (memory.read_u64(gpa).ok()?, memory.read_u64(gpa.wrapping_add(8)).ok()?);
    let [bytes @ .., _] = (u128::from(high) << 64 | u128::from(low)).to_le_bytes();
    Some(InstructionBytes { bytes, len: MAX_LENGTH as u8 })
}

/// Decodes the first instruction of `bytes`.
///
/// # Errors
/// Whether more bytes were needed ([`DecoderError::NoMoreBytes`]) or there is no such instruction.
pub(crate) fn decode(mode: CpuMode, bytes: &InstructionBytes) -> Result<Instruction, DecoderError> {
    // AMD's decoding differs where an instruction means something on Intel that raises #UD there: it is the
    // wider one.
    let options = DecoderOptions::AMD;
    let mut decoder = Decoder::try_with_ip(mode.code_bits(), bytes.as_slice(), 0, options)
        .map_err(|_| DecoderError::InvalidInstruction)?;
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => Ok(instruction),
        error => Err(error),
    }
}

/// Why there is no instruction at RIP to execute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DecodeError {
    /// Its bytes raise this.
    Exception(Exception),
    /// It is a vector instruction, which the decoder is built without.
    Vector,
}

impl From<Exception> for DecodeError {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// Decodes the instruction at RIP.
///
/// # Errors
/// #PF where its bytes are not all there (and fetching them faults), #UD where they are no instruction or too
/// long for one (the CPU has #GP for the latter, and raises it without an exit).
pub(crate) fn decode_at_rip(
    state: &impl VcpuState,
    memory: &impl GuestMemory,
    mode: CpuMode,
    window: &mut Window,
    features: &PagingFeatures,
) -> Result<Instruction, DecodeError> {
    loop {
        match (decode(mode, &window.bytes), window.missing) {
            (Ok(instruction), _) => return Ok(instruction),
            (Err(DecoderError::NoMoreBytes), Some(at)) => {
                // The fast walk found nothing there; the full walk tells the fault. Should it find the page
                // after all (another CPU has mapped it by now, or a table lies outside RAM), reading goes on.
                let gpa = translate(state, memory, at, Access::explicit(AccessKind::Fetch, state), features)?;
                let left_in_page = (PAGE_SIZE - at.page_offset()) as usize;
                let end = MAX_LENGTH.min(usize::from(window.bytes.len) + left_in_page);
                window.bytes.extend(memory, gpa, end);
                window.missing = (end < MAX_LENGTH).then(|| at.wrapping_add(left_in_page as u64));
            }
            (Err(_), _) if is_vector(mode, window.bytes.as_slice()) => return Err(DecodeError::Vector),
            (Err(_), _) => return Err(Exception::UNDEFINED.into()),
        }
    }
}

/// Whether `bytes` start a VEX-, EVEX- or XOP-encoded instruction (SDM vol. 2, sections 2.3 and 2.7; APM vol. 3,
/// section 1.1.4). Outside 64-bit mode these share their first byte with LES, LDS and BOUND, whose ModRM never
/// names a register; XOP shares it with POP.
fn is_vector(mode: CpuMode, bytes: &[u8]) -> bool {
    let long = mode == CpuMode::Long64;
    let legacy = |byte: &u8| {
        matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
            || (long && byte & 0xf0 == 0x40)
    };
    let mut opcode = bytes.iter().skip_while(|&byte| legacy(byte));
    match (opcode.next(), opcode.next()) {
        (Some(0xc4 | 0xc5 | 0x62), Some(next)) => long || next & 0xc0 == 0xc0,
        (Some(0x8f), Some(next)) => next & 0x1f >= 8,
        _ => false,
    }
}

/// Builds the decoder's tables.
///
/// The decoder allocates them on the heap once, at its first use: about 100 KiB in 2,000 pieces, which costs less
/// than a million instructions. Call this at boot, so that no exit does it.
pub fn prepare() {
    // Whatever it decodes to, the tables are there afterwards.
    let _ = decode(CpuMode::Long64, &InstructionBytes { bytes: [0x90; MAX_LENGTH], len: 1 });
}
