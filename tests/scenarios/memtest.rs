//! Debian's memtest86+, unmodified.

use caisson_tests::{From, Lab, Verdict};
use xtask::outcome::Outcome;

use crate::workload::{BOOT, STEP};

/// It comes to its test screen, which it draws on the serial console by moving the cursor, and tests.
pub(crate) fn memtest(lab: &Lab, name: &str) -> Verdict {
    let mut run = lab.boot_config(name, "memtest")?.start()?;
    run.expect_prompt(From::Raw, BOOT, r"Memtest86\+ v\d")?;
    run.expect_prompt(From::Raw, STEP, r"Memory *: +64MB")?;
    run.expect_prompt(From::Raw, STEP, "Status: Testing")?;
    // The first test comes to its end, and so does a part of the next one.
    run.expect_prompt(From::Raw, STEP, r"#0 +\[Address test, walking ones")?;
    run.expect_prompt(From::Raw, STEP, r"#\d+ +\[Moving inversions")?;
    run.expect_prompt(From::Raw, STEP, "Errors: 0 ")?;
    // Escape leaves it, by a reset.
    run.send("\x1b")?;
    run.expect(From::Caisson, STEP, "guest memtest: reset; destroyed")?;
    run.end(STEP, Outcome::GuestFailed)?;
    run.never(From::Caisson, "error|crashed")
}
