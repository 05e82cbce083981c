//! Snippets of machine code, run with all registers given and taken.

use crate::{Shared, Trap, cpu, gdt, trap};

/// The registers, in the order of their encodings, and RFLAGS. RSP is what the snippet left; it starts with the probe's
/// own stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Regs {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rflags: u64,
}

impl Default for Regs {
    /// All zero, interrupts off.
    fn default() -> Self {
        Self {
            rax: 0,
            rcx: 0,
            rdx: 0,
            rbx: 0,
            rsp: 0,
            rbp: 0,
            rsi: 0,
            rdi: 0,
            r8: 0,
            r9: 0,
            r10: 0,
            r11: 0,
            r12: 0,
            r13: 0,
            r14: 0,
            r15: 0,
            rflags: 2,
        }
    }
}

impl Regs {
    /// The register with this encoding.
    #[must_use]
    pub fn get(&self, encoding: usize) -> u64 {
        let r = self;
        let all = [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15,
        ];
        all[encoding]
    }

    /// Sets the register with this encoding.
    pub fn set(&mut self, encoding: usize, value: u64) {
        let r = self;
        let all = [
            &mut r.rax, &mut r.rcx, &mut r.rdx, &mut r.rbx, &mut r.rsp, &mut r.rbp, &mut r.rsi, &mut r.rdi,
            &mut r.r8, &mut r.r9, &mut r.r10, &mut r.r11, &mut r.r12, &mut r.r13, &mut r.r14, &mut r.r15,
        ];
        for (index, register) in all.into_iter().enumerate() {
            if index == encoding {
                *register = value;
            }
        }
    }
}

/// Bytes of the code area: two pages, so that a snippet can lie across their border, and one for the way back.
const CODE_LEN: usize = 3 * 4096;

#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Area([u8; CODE_LEN]);

static AREA: Shared<Area> = Shared::new(Area([0; CODE_LEN]));

unsafe extern "C" {
    fn probe_run(registers: *mut Regs, code: usize) -> u64;
    fn probe_run_done();
}

/// Where [`run`] puts its code: the start of a page.
#[must_use]
pub fn code_base() -> usize {
    AREA.address()
}

/// Where snippets come to their end.
#[must_use]
pub fn done_address() -> usize {
    probe_run_done as *const () as usize
}

/// Runs `code` at [`code_base`]. It goes on behind its last byte unless it leaves otherwise; it may use the stack.
///
/// # Errors
/// The exception that ended it; the registers are those of that moment.
pub fn run(code: &[u8], regs: &mut Regs) -> Result<(), Trap> {
    run_at(0, code, regs)
}

/// Like [`run`], with the code at an offset of up to two pages.
///
/// # Errors
/// See [`run`].
pub fn run_at(offset: usize, code: &[u8], regs: &mut Regs) -> Result<(), Trap> {
    let at = code_base() + offset;
    place(at, code);
    run_placed(at, regs)
}

/// Writes `code` with a jump to the end behind it.
pub fn place(at: usize, code: &[u8]) {
    cpu::copy_to(at, code);
    // JMP [RIP + 0] and the address.
    let end = at + code.len();
    cpu::copy_to(end, &[0xff, 0x25, 0, 0, 0, 0]);
    cpu::write64(end + 6, done_address() as u64);
}

/// Runs code that lies anywhere and ends with a jump to [`done_address`].
///
/// # Errors
/// See [`run`].
pub fn run_placed(at: usize, regs: &mut Regs) -> Result<(), Trap> {
    trap::catch(|| {
        // SAFETY: the trampoline keeps what compiled code relies on; what the snippet does is the probe's affair.
        let caught = unsafe { probe_run(regs, at) };
        caught != 0
    })
    .map_or(Ok(()), |(trap, frame)| {
        *regs = frame;
        Err(trap)
    })
}

/// Runs `code` in user mode (64 bits, interrupts off) until an exception or an interrupt whose handler calls
/// [`crate::Frame::end_snippet`] ends it; gives the registers of that moment.
pub fn run_user(code: &[u8]) -> Regs {
    let mut regs = Regs::default();
    let _ = try_user(code, &mut regs, gdt::USER_CODE64);
    regs
}

/// Runs `code` in user mode with the given registers and code segment, on the stack of interrupt-stack entry 2, until
/// something ends it. DS and ES are the user's: an IRET to user mode takes the supervisor's away, without which 32-bit code
/// has no data (SDM vol. 3, section 6.12.1).
pub fn try_user(code: &[u8], regs: &mut Regs, selector: u16) -> Trap {
    let at = code_base();
    cpu::copy_to(at, code);
    // SAFETY: in 64-bit mode both are without effect.
    unsafe {
        core::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) gdt::USER_DATA,
            options(nomem, nostack, preserves_flags));
    }
    enter(at, regs, selector, gdt::USER_DATA, gdt::stack_top(2) as u64)
}

/// Enters code by IRET, with the given segments and stack and all other registers, until something ends it.
pub fn enter(at: usize, regs: &mut Regs, cs: u16, ss: u16, rsp: u64) -> Trap {
    // Five pushes of what RIP-relative loads find behind the code, and IRETQ.
    const ENTER: usize = 2 * 4096;
    let frame = [u64::from(ss), rsp, regs.rflags, u64::from(cs), at as u64];
    let mut code = code_base() + ENTER;
    for (index, value) in frame.into_iter().enumerate() {
        // PUSH qword [RIP + distance]
        let data = code_base() + ENTER + 0x100 + index * 8;
        cpu::write64(data, value);
        cpu::copy_to(code, &[0xff, 0x35]);
        cpu::write32(code + 2, (data - (code + 6)) as u32);
        code += 6;
    }
    cpu::copy_to(code, &[0x48, 0xcf]);
    regs.rflags = 2;
    match run_placed(code_base() + ENTER, regs) {
        Err(trap) => trap,
        Ok(()) => crate::fail(file!(), line!(), format_args!("code entered by IRET came to no end")),
    }
}
