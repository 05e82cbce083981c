//! The crash record: what is left when Caisson itself fails.
//!
//! It names the cause and the registers, the last exits of guests, and a backtrace with names out of the symbol table
//! that the loader kept. It is written to the serial line and the screen whatever state they were in, and ends the run
//! as failed.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering};

use caisson_boot::{BootInfo, Image};
use spin::Once;
use x86_64::registers::control::{Cr2, Cr3};

use crate::power::{self, RunResult};
use crate::trap::TrapFrame;
use crate::{apic, cpu, memory, percpu, screen, serial};

const MAX_FRAMES: usize = 32;
/// Bytes of an ELF64 symbol.
const SYMBOL_BYTES: usize = 24;

struct SymbolTable {
    symbols: &'static [u8],
    names: &'static [u8],
}

static SYMBOLS: Once<SymbolTable> = Once::new();
/// Writes the lines that still wait for the serial line.
static LAST_WORDS: Once<fn()> = Once::new();
/// The number of the CPU that crashed first.
static CRASHING: AtomicU32 = AtomicU32::new(NO_CPU);
const NO_CPU: u32 = u32::MAX;

/// Whether some CPU has crashed: the others stop.
pub(crate) fn is_crashing() -> bool {
    CRASHING.load(Ordering::Acquire) != NO_CPU
}

/// Remembers the symbol table.
///
/// # Safety
/// Once, after [`memory::init`] with the same information.
pub unsafe fn init(info: &BootInfo) {
    if let Some(symbols) = info.symbols {
        // SAFETY: both ranges are the loader's, which the frame allocator leaves alone.
        let (symbols, names) =
            unsafe { (memory::loader_bytes(symbols.symbols), memory::loader_bytes(symbols.names)) };
        SYMBOLS.call_once(|| SymbolTable { symbols, names });
    }
}

/// Names the function that writes the lines that still wait for the serial line. It must not wait for locks.
pub fn set_last_words(write: fn()) {
    LAST_WORDS.call_once(|| write);
}

/// Serial line and screen.
struct Output;

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            let body = line.strip_suffix('\n');
            serial::write(body.unwrap_or(line).as_bytes());
            screen::write(body.unwrap_or(line).as_bytes());
            if body.is_some() {
                serial::write(b"\r\n");
                screen::write(b"\n");
            }
        }
        Ok(())
    }
}

/// A panic of Caisson's.
pub fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let rbp: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    record(format_args!("{info}"), None, rbp)
}

/// An exception in Caisson.
pub fn exception(frame: &TrapFrame) -> ! {
    let name = EXCEPTIONS.get(frame.vector as usize).copied().unwrap_or("reserved exception");
    record(format_args!("{name}, error code {:#x}", frame.error_code), Some(frame), frame.rbp)
}

const EXCEPTIONS: [&str; 22] = [
    "divide error (#DE)",
    "debug exception (#DB)",
    "NMI",
    "breakpoint (#BP)",
    "overflow (#OF)",
    "bound range exceeded (#BR)",
    "invalid opcode (#UD)",
    "device not available (#NM)",
    "double fault (#DF): most often the stack ran out",
    "coprocessor segment overrun",
    "invalid TSS (#TS)",
    "segment not present (#NP)",
    "stack fault (#SS)",
    "general protection (#GP)",
    "page fault (#PF)",
    "reserved exception",
    "x87 error (#MF)",
    "alignment check (#AC)",
    "machine check (#MC)",
    "SIMD error (#XM)",
    "virtualization exception (#VE)",
    "control protection (#CP)",
];

fn record(cause: fmt::Arguments<'_>, frame: Option<&TrapFrame>, rbp: u64) -> ! {
    x86_64::instructions::interrupts::disable();
    // Locks are broken open below, whatever this CPU held.
    caisson_locks::stop_checking();
    let this = percpu::current().index();
    match CRASHING.compare_exchange(NO_CPU, this, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => apic::stop_others(),
        // The record itself failed.
        Err(first) if first == this => power::finish(RunResult::Panic),
        // One record is enough, and the other CPU is at it.
        Err(_) => cpu::halt_forever(),
    }
    // SAFETY: nothing else runs any more, on this CPU or on others.
    unsafe { serial::force_unlock() };
    if let Some(write) = LAST_WORDS.get() {
        write();
    }
    // SAFETY: as above.
    unsafe {
        serial::force_unlock();
        screen::force_unlock();
    }
    let out = &mut Output;
    let _ = write_record(out, cause, frame, rbp);
    power::finish(RunResult::Panic)
}

fn write_record(
    out: &mut Output,
    cause: fmt::Arguments<'_>,
    frame: Option<&TrapFrame>,
    rbp: u64,
) -> fmt::Result {
    writeln!(out, "\n==== Caisson crashed: {cause}")?;
    writeln!(out, "on CPU {} of {}", percpu::current().index(), percpu::count())?;
    if let Some(f) = frame {
        writeln!(out, "rip {:#018x}  {}", f.rip, Name(f.rip))?;
        writeln!(out, "rsp {:#018x}  rflags {:#x}  cs {:#x}  ss {:#x}", f.rsp, f.rflags, f.cs, f.ss)?;
        writeln!(out, "rax {:#018x}  rbx {:#018x}  rcx {:#018x}  rdx {:#018x}", f.rax, f.rbx, f.rcx, f.rdx)?;
        writeln!(out, "rsi {:#018x}  rdi {:#018x}  rbp {:#018x}  r8  {:#018x}", f.rsi, f.rdi, f.rbp, f.r8)?;
        writeln!(out, "r9  {:#018x}  r10 {:#018x}  r11 {:#018x}  r12 {:#018x}", f.r9, f.r10, f.r11, f.r12)?;
        writeln!(out, "r13 {:#018x}  r14 {:#018x}  r15 {:#018x}", f.r13, f.r14, f.r15)?;
    }
    writeln!(out, "cr2 {:#018x}  cr3 {:#018x}", Cr2::read_raw(), Cr3::read().0.start_address())?;
    writeln!(out, "backtrace:")?;
    if let Some(f) = frame {
        writeln!(out, "  {:#018x}  {}", f.rip, Name(f.rip))?;
    }
    for address in Frames(rbp).take(MAX_FRAMES) {
        writeln!(out, "  {address:#018x}  {}", Caller(address))?;
    }
    writeln!(out, "last exits, oldest first:")?;
    for exit in percpu::current().recent_exits() {
        writeln!(out, "  {}: exit {:#x} at rip {:#x}", exit.vcpu, exit.code, exit.rip)?;
    }
    // On a small screen the record's end has taken the place of its beginning.
    writeln!(out, "==== once more: {cause}")?;
    writeln!(out, "==== tsc {:#x}", cpu::tsc())
}

/// Return addresses, by the chain of frame pointers, as long as it stays inside the image's data or a CPU's stack.
struct Frames(u64);

impl Iterator for Frames {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let data = Image::current().data;
        let inside = self.0 >= data.0 && self.0.saturating_add(16) <= data.1;
        if !self.0.is_multiple_of(8) || !(inside || memory::is_stack(self.0)) {
            return None;
        }
        // SAFETY: two aligned words inside the image's variables, or on a stack. A guard page among them would fault,
        // and end the record: the chain only leads upward, away from guards.
        let [next, address] = unsafe { (self.0 as *const [u64; 2]).read_volatile() };
        self.0 = if next > self.0 { next } else { 0 };
        let text = Image::current().text;
        (text.0..text.1).contains(&address).then_some(address)
    }
}

/// The function that holds an address, and the offset in it.
struct Name(u64);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SYMBOLS.get().and_then(|table| table.find(self.0)) {
            Some((name, offset)) => write!(f, "{:#}+{offset:#x}", rustc_demangle::demangle(name)),
            None => f.write_str("?"),
        }
    }
}

/// The function that holds the call which returns to an address. The call may be the function's last instruction, where it
/// never returns, and then the address is another function's.
struct Caller(u64);

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Name(self.0 - 1))
    }
}

impl SymbolTable {
    /// The nearest function that starts at or below `address` and reaches it.
    fn find(&self, address: u64) -> Option<(&'static str, u64)> {
        const FUNCTION: u8 = 2;
        let word = |s: &[u8], at: usize| -> Option<u64> {
            Some(u64::from_le_bytes(s.get(at..at + 8)?.try_into().ok()?))
        };
        self.symbols.chunks_exact(SYMBOL_BYTES).find_map(|symbol| {
            let (value, size) = (word(symbol, 8)?, word(symbol, 16)?);
            if symbol[4] & 15 != FUNCTION || address.checked_sub(value)? >= size.max(1) {
                return None;
            }
            let name = u32::from_le_bytes(symbol.get(..4)?.try_into().ok()?) as usize;
            let name = core::ffi::CStr::from_bytes_until_nul(self.names.get(name..)?).ok()?;
            Some((name.to_str().ok()?, address - value))
        })
    }
}
