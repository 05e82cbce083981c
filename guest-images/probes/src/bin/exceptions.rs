//! Every exception that can be raised at will, with its error code, the RIP it points to and CR2 (SDM vol. 3, section
//! 7.15; AMD APM vol. 2, section 8.2); exceptions during the delivery of others (SDM vol. 3, table 7-5); software
//! interrupts and IRET.
//!
//! What the emulated CPU of QEMU 7.2 lacks is asked for and skipped: INT1, RF, GD, #XM, #AC, EXT in error codes, #SS for non-canonical
//! stacks.

#![no_std]
#![no_main]

use caisson_probes::trap::vector::{AC, BP, BR, DB, DE, DF, GP, MF, NM, NP, OF, PF, SS, TS, UD, XM};
use caisson_probes::{
    Regs, Shared, Trap, apic, check, check_eq, check_in, cpu, gdt, number, paging, probe, run, say, trap,
};

probe!("exceptions", run_probe);

/// An address that nothing is mapped at, above the identity map.
const NOWHERE: u64 = 0x1_2345_6000;
/// A vector that is free.
const FREE: u8 = 0x50;
/// Bytes of a gate as error codes count them: QEMU 7.2 gives twice the gate's index in long mode.
static GATE_BYTES: Shared<u64> = Shared::new(8);

/// The error code of a gate: its index, and that it is in the IDT. EXT, bit 0, is masked by [`no_ext`].
fn gate_error(vector: u8) -> u64 {
    (u64::from(vector) * GATE_BYTES.get()) | 2
}

fn no_ext(trap: Trap) -> Trap {
    Trap { error: trap.error & !1, ..trap }
}

fn run_probe() {
    trap::set_kind(FREE, 0x0e, 0);
    let doubled =
        run(&[0xcd, FREE], &mut Regs::default()).is_err_and(|trap| trap.error == u64::from(FREE) << 4 | 2);
    trap::set_kind(FREE, trap::GATE, 0);
    if doubled {
        say!("skipped: this CPU doubles the index of a gate in error codes");
        GATE_BYTES.set(16);
    }
    faults();
    traps();
    floating_point();
    segments();
    page_faults();
    user_mode();
    delivery();
    returns();
}

/// Runs `code`; it has to end with this exception, `offset` bytes into it.
fn expect(what: &str, code: &[u8], mut regs: Regs, vector: u8, error: u64, offset: usize) -> Trap {
    let Err(trap) = run(code, &mut regs) else {
        check!(false, "{}: an exception", what);
        unreachable!()
    };
    check_eq!((trap.vector, trap.error), (vector, error), "{}: vector and error code", what);
    check_eq!(trap.rip as usize - run::code_base(), offset, "{}: offset of RIP", what);
    check_eq!(trap.cs, gdt::CODE64, "{}: CS", what);
    trap
}

fn faults() {
    let zero = Regs::default();
    expect("DIV by zero", &[0x90, 0xf7, 0xf1], zero, DE, 0, 1);
    expect("IDIV overflow", &[0x48, 0xf7, 0xf9], Regs { rdx: 1, rcx: 1, ..zero }, DE, 0, 0);
    expect("UD2", &[0x90, 0x90, 0x0f, 0x0b], zero, UD, 0, 2);
    expect("LOCK on a register", &[0xf0, 0x01, 0xc0], zero, UD, 0, 0);
    expect("16 bytes", &[0x66; 16], zero, GP, 0, 0);
    let wild = Regs { rax: 0x8000_0000_0000_0000, ..zero };
    expect("non-canonical read", &[0x8b, 0x00], wild, GP, 0, 0);
    let Err(trap) = run(&[0x48, 0x89, 0xe3, 0x48, 0x89, 0xc4, 0x50], &mut { wild }) else {
        return check!(false, "a push to a non-canonical stack raises something");
    };
    // The exception cannot be pushed there either: #DF on its own stack.
    check_eq!(trap.vector, DF, "a push to a non-canonical stack");
}

/// #DB and #BP: RIP is behind the instruction, except for instruction breakpoints and register accesses.
fn traps() {
    let zero = Regs::default();
    expect("INT3", &[0xcc], zero, BP, 0, 1);
    expect("INT 3", &[0xcd, 3], zero, BP, 0, 2);
    match run(&[0xf1], &mut { zero }) {
        Err(trap) if trap.vector == DB => check_eq!(trap.rip as usize - run::code_base(), 1, "INT1: RIP"),
        _ => say!("skipped: this CPU has no INT1"),
    }
    cpu::set_dr6(0);
    // The trampoline's jump is the one instruction after POPF.
    expect("single step", &[0x90], Regs { rflags: 0x102, ..zero }, DB, 0, 0);
    check_eq!(cpu::dr6() & 0xf00f, 1 << 14, "DR6 after a step");

    // Two guests with breakpoints at the same time are too much for QEMU's emulated SVM, which keeps one list for all.
    if number("armed", 1) != 0 {
        breakpoints(zero);
    } else {
        say!("skipped: breakpoints, by armed=0");
    }
}

/// Breakpoints on data and on instructions, and general detection.
fn breakpoints(zero: Regs) {
    let cell = run::code_base() as u64 + 0x800;
    cpu::set_dr6(0);
    cpu::set_dr0(cell);
    cpu::set_dr7(0x000d_0001 | 0x400);
    let store = [0x48, 0x89, 0x07, 0x90];
    expect("data breakpoint", &store, Regs { rdi: cell, ..zero }, DB, 0, 3);
    check_eq!(cpu::dr6() & 0xf00f, 1, "DR6 after a data breakpoint");
    cpu::set_dr6(0);
    cpu::set_dr1(run::code_base() as u64 + 1);
    cpu::set_dr7(0x404);
    let trap = expect("instruction breakpoint", &[0x90, 0x90], zero, DB, 0, 1);
    check_eq!(cpu::dr6() & 0xf00f, 2, "DR6 after an instruction breakpoint");
    if trap.rflags & 1 << 16 == 0 {
        say!("skipped: this CPU sets no RF in a fault's image");
    }
    cpu::set_dr6(0);
    cpu::set_dr7(0x2400);
    // MOV RAX, DR7 with general detection on.
    match run(&[0x0f, 0x21, 0xf8], &mut { zero }) {
        Err(trap) => {
            check_eq!((trap.vector, trap.rip as usize - run::code_base()), (DB, 0), "general detection");
            check_eq!(cpu::dr6() & 0xf00f, 1 << 13, "DR6 after general detection");
            check_eq!(cpu::dr7() & 0x2000, 0, "GD is clear in the handler");
        }
        Ok(()) => say!("skipped: this CPU has no general detection"),
    }
    cpu::set_dr7(0x400);
}

fn floating_point() {
    let zero = Regs::default();
    let cr0 = cpu::cr0();
    cpu::set_cr0(cr0 | 1 << 3);
    expect("FLD1 with TS", &[0xd9, 0xe8], zero, NM, 0, 0);
    expect("XORPS with TS", &[0x0f, 0x57, 0xc0], zero, NM, 0, 0);
    cpu::set_cr0(cr0);
    // FNINIT; FLDCW [RDI]; FLD1; FLDZ; FDIVP; FWAIT, with zero-divide unmasked.
    let cell = run::code_base() + 0x800;
    cpu::write64(cell, 0x037b);
    let code = [0xdb, 0xe3, 0xd9, 0x2f, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b];
    expect("x87 divide by zero", &code, Regs { rdi: cell as u64, ..zero }, MF, 0, 10);
    let _ = run(&[0xdb, 0xe3], &mut { zero });
    // LDMXCSR [RDI]; PCMPEQ.. : XORPS XMM0,XMM0; CVTSI2SS XMM1,EAX; DIVSS XMM1,XMM0
    cpu::write64(cell, 0x1d80);
    let mut regs = Regs { rdi: cell as u64, rax: 1, ..zero };
    let code = [0x0f, 0xae, 0x17, 0x0f, 0x57, 0xc0, 0xf3, 0x0f, 0x2a, 0xc8, 0xf3, 0x0f, 0x5e, 0xc8];
    match run(&code, &mut regs) {
        Err(trap) => check_eq!((trap.vector, trap.error), (XM, 0), "SSE divide by zero"),
        Ok(()) => say!("skipped: this CPU raises no #XM"),
    }
    cpu::write64(cell, 0x1f80);
    let _ = run(&[0x0f, 0xae, 0x17], &mut { regs });
}

fn segments() {
    let zero = Regs::default();
    let load_ds = [0x8e, 0xd8];
    let load_ss = [0x8e, 0xd0];
    // LLDT AX: no LDT.
    check!(run(&[0x0f, 0x00, 0xd0], &mut { zero }).is_ok(), "LLDT");
    expect("DS beyond the GDT", &load_ds, Regs { rax: 0x1f8, ..zero }, GP, 0x1f8, 0);
    expect("DS from no LDT", &load_ds, Regs { rax: 0x0c, ..zero }, GP, 0x0c, 0);
    let absent = gdt::FREE;
    gdt::set(absent, gdt::descriptor(0, 0xf_ffff, 0x13, 0xc));
    expect("DS not present", &load_ds, Regs { rax: absent.into(), ..zero }, NP, absent.into(), 0);
    expect("SS not present", &load_ss, Regs { rax: absent.into(), ..zero }, SS, absent.into(), 0);
    expect("SS is code", &load_ss, Regs { rax: gdt::CODE64.into(), ..zero }, GP, gdt::CODE64.into(), 0);
    expect("LTR of a busy task", &[0x0f, 0x00, 0xd8], Regs { rax: gdt::TASK.into(), ..zero }, GP, 0x20, 0);
}

/// Error code: present 0, write 1, user 2, reserved 3, instruction fetch 4 (SDM vol. 3, section 5.7).
fn page_faults() {
    let zero = Regs::default();
    let at = Regs { rdi: NOWHERE + 8, ..zero };
    for (what, code, error) in [("read of nothing", [0x8b, 0x07], 0), ("write of nothing", [0x89, 0x07], 2)] {
        let trap = expect(what, &code, at, PF, error, 0);
        check_eq!(trap.cr2, NOWHERE + 8, "{}: CR2", what);
    }
    let Err(trap) = run(&[0xff, 0xe7], &mut { at }) else { return check!(false, "jump to nothing") };
    check_eq!(
        (trap.vector, trap.error & !0x10, trap.rip, trap.cr2),
        (PF, 0, NOWHERE + 8, NOWHERE + 8),
        "jump"
    );
    // A read across a page border faults at the border.
    let page = run::code_base() as u64 + 0x1000;
    paging::map(NOWHERE as usize - 4096, page | paging::P | paging::W | paging::U);
    let trap = expect("across", &[0x48, 0x8b, 0x07], Regs { rdi: NOWHERE - 3, ..zero }, PF, 0, 0);
    check_in!(trap.cr2, NOWHERE..NOWHERE + 1, "CR2 across a border");
    // A reserved address bit (bit 51, beyond every CPU's that has none of 52).
    if cpu::cpuid(0x8000_0008, 0)[0] & 0xff < 52 {
        paging::map(NOWHERE as usize - 4096, page | 1 << 51 | paging::P | paging::W | paging::U);
        let Err(trap) = run(&[0x8b, 0x07], &mut Regs { rdi: NOWHERE - 4096, ..zero }) else {
            return check!(false, "an exception for a reserved bit");
        };
        // QEMU leaves the present bit out.
        check_eq!((trap.vector, trap.error | 1, trap.cr2), (PF, 9, NOWHERE - 4096), "reserved bit");
    }
    paging::map(NOWHERE as usize - 4096, 0);
}

fn user_mode() {
    let mut regs = Regs { rdi: NOWHERE, rflags: 2, ..Regs::default() };
    let user = |what: &str, code: &[u8], want: (u8, u64, u64)| {
        let mut regs = Regs { rsp: 0, ..regs };
        let trap = run::try_user(code, &mut regs, gdt::USER_CODE64);
        let got = (trap.vector, trap.error, trap.rip - run::code_base() as u64);
        check_eq!(got, want, "user mode: {}", what);
        check_eq!(trap.cs, gdt::USER_CODE64, "user mode: {}: CS", what);
        check_eq!(trap.rsp, gdt::stack_top(2) as u64, "user mode: {}: RSP", what);
    };
    user("HLT", &[0xf4], (GP, 0, 0));
    user("CLI", &[0xfa], (GP, 0, 0));
    user("IN", &[0xe4, 0x60], (GP, 0, 0));
    user("RDMSR", &[0x0f, 0x32], (GP, 0, 0));
    user("MOV CR0", &[0x0f, 0x20, 0xc0], (GP, 0, 0));
    user("LGDT", &[0x0f, 0x01, 0x17], (GP, 0, 0));
    user("INT through a gate of ring 0", &[0xcd, FREE], (GP, gate_error(FREE), 0));
    user("INT3 through a gate of ring 0", &[0xcc], (GP, gate_error(BP), 0));
    user("read of nothing", &[0x8b, 0x07], (PF, 4, 0));
    user("write of nothing", &[0x89, 0x07], (PF, 6, 0));
    // The I/O permission bitmap of the task (SDM vol. 1, section 19.5.2).
    cpu::write8(gdt::io_bitmap() + 0x80 / 8, 0xfe);
    user("IN of an allowed port", &[0xe4, 0x80, 0x0f, 0x0b], (UD, 0, 2));
    user("IN of two ports, one allowed", &[0xe5, 0x80], (GP, 0, 0));
    cpu::write8(gdt::io_bitmap() + 0x80 / 8, 0xff);
    trap::set_kind(BP, trap::GATE_USER, 0);
    user("INT3", &[0xcc], (BP, 0, 1));
    trap::set_kind(BP, trap::GATE, 0);

    // Instructions of 32-bit code: INTO, BOUND, and a selector with a base.
    let mut compatible = |what: &str, code: &[u8], want: (u8, u64)| {
        let trap = run::try_user(code, &mut regs, gdt::USER_CODE32);
        check_eq!((trap.vector, trap.rip - run::code_base() as u64), want, "compatibility mode: {}", what);
    };
    trap::set_kind(OF, trap::GATE_USER, 0);
    // MOV AL,7F; ADD AL,1; INTO
    compatible("INTO", &[0xb0, 0x7f, 0x04, 0x01, 0xce], (OF, 5));
    // MOV EDI,cell; BOUND EAX,[EDI] with bounds 5 and 6.
    let cell = run::code_base() + 0x800;
    cpu::write64(cell, 5 | 6 << 32);
    let [a, b, c, d] = (cell as u32).to_le_bytes();
    compatible("BOUND", &[0xbf, a, b, c, d, 0x62, 0x07], (BR, 5));
    compatible("PUSHA", &[0x60, 0x0f, 0x0b], (UD, 1));

    // Alignment: AM and AC, in user mode only.
    let cr0 = cpu::cr0();
    cpu::set_cr0(cr0 | 1 << 18);
    let mut regs = Regs { rdi: cell as u64 + 1, rflags: 1 << 18 | 2, ..Regs::default() };
    let trap = run::try_user(&[0x8b, 0x07, 0x0f, 0x0b], &mut regs, gdt::USER_CODE64);
    match trap.vector {
        AC => check_eq!(trap.error, 0, "error code of #AC"),
        _ => {
            check_eq!(trap.vector, UD, "alignment check");
            say!("skipped: this CPU raises no #AC");
        }
    }
    cpu::set_cr0(cr0);
}

/// Exceptions while another event is delivered.
fn delivery() {
    let zero = Regs::default();
    // A benign one (#UD) whose gate is absent: #NP with the gate's error code.
    trap::set_kind(UD, 0x0e, 0);
    let Err(trap) = run(&[0x0f, 0x0b], &mut { zero }) else { return check!(false, "UD2") };
    check_eq!((no_ext(trap).vector, no_ext(trap).error), (NP, gate_error(UD)), "absent gate of #UD");
    trap::set_kind(UD, trap::GATE, 0);
    expect(
        "INT through an absent gate",
        &{
            trap::set_kind(FREE, 0x0e, 0);
            [0xcd, FREE]
        },
        zero,
        NP,
        gate_error(FREE),
        0,
    );
    trap::set_kind(FREE, trap::GATE, 0);
    // Contributory within contributory, contributory within #PF, #PF within #PF: #DF with error code 0.
    trap::set_kind(GP, 0x0e, 0);
    expect("#NP in #GP", &[0x8e, 0xd8], Regs { rax: 0x1f8, ..zero }, DF, 0, 0);
    trap::set_kind(GP, trap::GATE, 0);
    trap::set_kind(PF, 0x0e, 0);
    expect("#NP in #PF", &[0x8b, 0x07], Regs { rdi: NOWHERE, ..zero }, DF, 0, 0);
    gdt::set_stack(3, NOWHERE + 0x800);
    trap::set_kind(PF, trap::GATE, 3);
    let trap = expect("#PF in #PF", &[0x8b, 0x07], Regs { rdi: NOWHERE + 0x1000, ..zero }, DF, 0, 0);
    check_in!(trap.cr2, NOWHERE..NOWHERE + 0x800, "CR2 of the second #PF");
    trap::set_kind(PF, trap::GATE, 0);
    // #PF within a contributory one is delivered as itself, and so within a software interrupt.
    trap::set_kind(GP, trap::GATE, 3);
    let trap = expect("#PF in #GP", &[0x8e, 0xd8], Regs { rax: 0x1f8, ..zero }, PF, 2, 0);
    check_in!(trap.cr2, NOWHERE..NOWHERE + 0x800, "CR2 of a stack");
    trap::set_kind(GP, trap::GATE, 0);
    trap::set_kind(FREE, trap::GATE, 3);
    expect("#PF in INT", &[0xcd, FREE], zero, PF, 2, 0);
    // An interrupt: it was acknowledged and is in service.
    apic::enable();
    let spin = [0xfb, 0x90, 0xeb, 0xfd];
    apic::send(0, 0x4_4000 | u32::from(FREE));
    let Err(trap) = run(&spin, &mut { zero }) else { return check!(false, "an interrupt") };
    check_eq!((trap.vector, trap.error), (PF, 2), "#PF in an interrupt");
    check!(apic::in_service(FREE), "the interrupt whose delivery failed is in service");
    check!(!apic::requested(FREE), "the interrupt whose delivery failed is not requested");
    apic::eoi();
    trap::set_kind(FREE, trap::GATE, 0);

    // A stack switch beyond the limit of the task (SDM vol. 3, section 7.14.4): to ring 1, whose RSP1 lies outside.
    let ring1 = gdt::FREE + 8;
    gdt::set(ring1, gdt::descriptor(0, 0xf_ffff, 0xbb, 0xa));
    let task = cpu::read64(gdt::base() + usize::from(gdt::TASK));
    gdt::set(gdt::TASK, task & !0xffff & !(2 << 40) & !(0xf << 48) | 11);
    cpu::ltr(gdt::TASK);
    trap::set_gate(FREE, trap::stub(FREE), ring1 | 1, trap::GATE_USER, 0);
    let trap = no_ext(run::try_user(&[0xcd, FREE], &mut { zero }, gdt::USER_CODE64));
    check_eq!((trap.vector, trap.error), (TS, u64::from(gdt::TASK)), "RSP1 outside of the task");
    gdt::set(gdt::TASK, task & !(2 << 40));
    cpu::ltr(gdt::TASK);
    trap::set_kind(FREE, trap::GATE, 0);
}

/// INT and IRET (SDM vol. 2, "IRET").
fn returns() {
    trap::handle(FREE, (|frame: &mut caisson_probes::Frame| frame.registers[0] += 1) as trap::Handler);
    let mut regs = Regs { rax: 41, rflags: 0x202, ..Regs::default() };
    check!(run(&[0xcd, FREE], &mut regs).is_ok(), "INT returns");
    check_eq!((regs.rax, regs.rflags & 0x200), (42, 0x200), "RAX and IF after INT");
    let frame = |rip: u64, cs: u16| {
        // PUSH 10H; PUSH RSP's value; PUSHF; PUSH RCX; PUSH RDX; IRETQ
        let code = [0x48, 0x89, 0xe0, 0x6a, 0x10, 0x50, 0x6a, 0x02, 0x51, 0x52, 0x48, 0xcf];
        run(&code, &mut Regs { rcx: cs.into(), rdx: rip, ..Regs::default() })
    };
    check!(frame(run::done_address() as u64, gdt::CODE64).is_ok(), "IRETQ returns");
    let faulted = |what: &str, rip, cs, want: (u8, u64)| match frame(rip, cs) {
        Err(trap) => check_eq!((trap.vector, trap.error), want, "IRETQ {}", what),
        Ok(()) => check!(false, "IRETQ {}", what),
    };
    faulted("to CS beyond the GDT", 0, 0x1f8, (GP, 0x1f8));
    faulted("to a null CS", 0, 0, (GP, 0));
    faulted("to data", 0, gdt::DATA, (GP, gdt::DATA.into()));
    faulted("to a non-canonical RIP", 1 << 63, gdt::CODE64, (GP, 0));
    // NT in long mode: #GP(0). PUSHF; OR [RSP],4000H; POPF; IRETQ
    let code = [0x9c, 0x48, 0x81, 0x0c, 0x24, 0, 0x40, 0, 0, 0x9d, 0x48, 0xcf];
    expect("IRETQ with NT", &code, Regs::default(), GP, 0, 10);
}
