//! The distribution's memtest86+, unmodified: version 6 and on, or version 5, which Ubuntu 22.04 has.

use caisson_tests::{From, Lab, Verdict};
use xtask::outcome::Outcome;

use crate::workload::{BOOT, STEP};

/// Seconds in which version 5 has measured the memory's speed, which costs an emulator much.
const MEASURED: u64 = 2 * BOOT;

/// It comes to its test screen, which it draws on the serial console by moving the cursor, and tests.
pub(crate) fn memtest(lab: &Lab, name: &str) -> Verdict {
    let mut run = lab.boot_config(name, "memtest")?.start()?;
    let title = run.expect_prompt(From::Raw, BOOT, r"Memtest86(\+ v\d|  5\.\d)")?;
    if title.group(1).starts_with('+') {
        run.expect_prompt(From::Raw, STEP, r"Memory *: +64MB")?;
        run.expect_prompt(From::Raw, STEP, "Status: Testing")?;
        // The first test comes to its end, and so does a part of the next one.
        run.expect_prompt(From::Raw, STEP, r"#0 +\[Address test, walking ones")?;
        run.expect_prompt(From::Raw, STEP, r"#\d+ +\[Moving inversions")?;
        run.expect_prompt(From::Raw, STEP, "Errors: 0 ")?;
    } else {
        // It moves the cursor between the words; and it measures the memory's speed first, which takes its time here.
        run.expect_prompt(From::Raw, STEP, r"Errors: +0 ")?;
        run.expect_prompt(From::Raw, STEP, r"Running\.\.\.")?;
        run.expect_prompt(From::Raw, MEASURED, r"\[Address test, own address")?;
    }
    // Escape leaves it, by a reset.
    run.send("\x1b")?;
    run.expect(From::Caisson, STEP, "guest memtest: reset; destroyed")?;
    run.end(STEP, Outcome::GuestFailed)?;
    run.never(From::Caisson, "error|crashed")
}
