//! When Caisson itself fails, it leaves a record.

use caisson_tests::{From, Lab, Run, Verdict};
use xtask::outcome::Outcome;

use crate::{
    screen,
    tiny::Tiny,
    workload::{BOOT, STEP},
};

/// Starts a machine that is to crash in the way that the boot word `crash=` names.
fn crashing(lab: &Lab, name: &str, how: &str) -> Verdict<Run> {
    Tiny::default().print("started").save(lab, name, "kernel")?;
    lab.boot(name, "[[domain]]\nname = \"one\"\nmemory = \"2M\"\nkernel = \"kernel\"\n")?
        .words(&format!("crash={how}"))
        .start()
}

/// The rest of the record: control registers, names in the backtrace, the guest's last exits, the end.
fn rest(run: &mut Run) -> Verdict {
    run.expect(From::Raw, STEP, "^cr2 0x[0-9a-f]{16}  cr3 ")?;
    run.expect(From::Raw, STEP, "^backtrace:$")?;
    run.expect(From::Raw, STEP, r"^  0xffffffff[0-9a-f]{8}  .*caisson::drill::.*\+0x[0-9a-f]+$")?;
    run.expect(From::Raw, STEP, "^==== tsc 0x")?;
    run.end(STEP, Outcome::Panicked)
}

pub(crate) fn panic(lab: &Lab, name: &str) -> Verdict {
    let mut run = crashing(lab, name, "panic")?;
    run.expect(From::Raw, BOOT, "^==== Caisson crashed: panicked at .*drill.rs:")?;
    run.expect(From::Raw, STEP, "asked for by the boot word crash=panic")?;
    rest(&mut run)
}

pub(crate) fn fault(lab: &Lab, name: &str) -> Verdict {
    let mut run = crashing(lab, name, "fault")?;
    run.expect(From::Raw, BOOT, r"^==== Caisson crashed: page fault \(#PF\), error code 0x0$")?;
    run.expect(From::Raw, STEP, r"^rip 0xffffffff[0-9a-f]{8}  .*caisson::drill::")?;
    run.expect(From::Raw, STEP, "^rsp 0xffffffff[0-9a-f]{8}  rflags 0x")?;
    run.expect(From::Raw, STEP, "^rax 0x[0-9a-f]{16}  rbx ")?;
    run.expect(From::Raw, STEP, "^cr2 0x0000000000000018  cr3 ")?;
    run.expect(From::Raw, STEP, "^==== tsc 0x")?;
    run.end(STEP, Outcome::Panicked)
}

/// The stack ends at a page that is not there, and double faults have a stack of their own.
pub(crate) fn stack(lab: &Lab, name: &str) -> Verdict {
    let mut run = crashing(lab, name, "stack")?;
    run.expect(
        From::Raw,
        BOOT,
        r"^==== Caisson crashed: double fault \(#DF\): most often the stack ran out",
    )?;
    run.expect(From::Raw, STEP, r"^rip 0xffffffff[0-9a-f]{8}  .*caisson::drill::descend")?;
    rest(&mut run)
}

/// Two locks are taken in the wrong order, though nobody else wants them.
pub(crate) fn locks(lab: &Lab, name: &str) -> Verdict {
    let mut run = crashing(lab, name, "locks")?;
    run.expect(From::Raw, BOOT, "^==== Caisson crashed: panicked at .*checked.rs:")?;
    run.expect(
        From::Raw,
        STEP,
        "^lock order: Guest is taken at .*drill.rs:[0-9:]* while Queue is held since .*drill.rs:[0-9:]*: ",
    )?;
    rest(&mut run)
}

/// Without an exit device the record stays on the screen of a halted machine.
pub(crate) fn on_screen(lab: &Lab, name: &str) -> Verdict {
    Tiny::default().print("started").save(lab, name, "kernel")?;
    let mut run = lab
        .boot(name, "[[domain]]\nname = \"one\"\nmemory = \"2M\"\nkernel = \"kernel\"\n")?
        .without_exit_device()
        .words("crash=panic")
        .qemu("-vga", "std")
        .start()?;
    run.expect(From::Raw, BOOT, "^==== tsc 0x")?;
    screen::text(&mut run, lab, name, "asked for by the boot word crash=panic")
}
