//! Caisson's hypercalls, from ring 0.

use crate::{Regs, Shared, run};

/// Whether the instruction has been found, and which it is: VMMCALL (AMD) or VMCALL (Intel).
static CODE: Shared<Option<[u8; 3]>> = Shared::new(None);

/// Makes a call; gives its answer, a negative `errno` where it is refused.
pub fn call(number: u64, arguments: [u64; 4]) -> i64 {
    let [rbx, rcx, rdx, rsi] = arguments;
    let regs = Regs { rax: number, rbx, rcx, rdx, rsi, ..Regs::default() };
    for code in CODE.get().map_or([[0x0f, 0x01, 0xd9], [0x0f, 0x01, 0xc1]], |known| [known; 2]) {
        let mut regs = regs;
        // The other vendor's is #UD.
        if run(&code, &mut regs).is_ok() {
            CODE.set(Some(code));
            return regs.rax as i64;
        }
    }
    crate::fail(file!(), line!(), format_args!("neither VMMCALL nor VMCALL is there"))
}
