# Where the IDT's 256 gates lead, and the trampoline that runs a snippet with all registers given. AT&T syntax.

.section .text.probe_trap
.code64
.balign 16
.global probe_trap_stubs
probe_trap_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if (vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17) && (vector != 21)
    pushq $0
    .endif
    pushq $vector
    jmp probe_trap_common
    .set vector, vector + 1
.endr

probe_trap_common:
    pushq %r15
    pushq %r14
    pushq %r13
    pushq %r12
    pushq %r11
    pushq %r10
    pushq %r9
    pushq %r8
    pushq %rdi
    pushq %rsi
    pushq %rbp
    pushq %rsp                                      # stands for the RSP slot; the frame has the real one
    pushq %rbx
    pushq %rdx
    pushq %rcx
    pushq %rax
    movq %rsp, %rdi
    movq %rsp, %rbp
    andq $-16, %rsp
    cld
    call probe_trap
    movq %rbp, %rsp
    popq %rax
    popq %rcx
    popq %rdx
    popq %rbx
    addq $8, %rsp
    popq %rbp
    popq %rsi
    popq %rdi
    popq %r8
    popq %r9
    popq %r10
    popq %r11
    popq %r12
    popq %r13
    popq %r14
    popq %r15
    addq $16, %rsp
    iretq

# probe_run(registers: rdi, code: rsi) -> 0 when the code came to its end, 1 when an exception ended it.
.global probe_run, probe_run_done, probe_run_caught, probe_run_sp
probe_run:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    movq %rdi, run_registers(%rip)
    movq %rsi, run_target(%rip)
    movq %rsp, probe_run_sp(%rip)
    pushq 128(%rdi)
    movq (%rdi), %rax
    movq 8(%rdi), %rcx
    movq 16(%rdi), %rdx
    movq 24(%rdi), %rbx
    movq 40(%rdi), %rbp
    movq 48(%rdi), %rsi
    movq 64(%rdi), %r8
    movq 72(%rdi), %r9
    movq 80(%rdi), %r10
    movq 88(%rdi), %r11
    movq 96(%rdi), %r12
    movq 104(%rdi), %r13
    movq 112(%rdi), %r14
    movq 120(%rdi), %r15
    movq 56(%rdi), %rdi
    popfq
    jmp *run_target(%rip)
probe_run_done:
    movq %rdi, run_rdi(%rip)
    movq run_registers(%rip), %rdi
    movq %rax, (%rdi)
    movq %rcx, 8(%rdi)
    movq %rdx, 16(%rdi)
    movq %rbx, 24(%rdi)
    movq %rsp, 32(%rdi)
    movq %rbp, 40(%rdi)
    movq %rsi, 48(%rdi)
    movq %r8, 64(%rdi)
    movq %r9, 72(%rdi)
    movq %r10, 80(%rdi)
    movq %r11, 88(%rdi)
    movq %r12, 96(%rdi)
    movq %r13, 104(%rdi)
    movq %r14, 112(%rdi)
    movq %r15, 120(%rdi)
    movq run_rdi(%rip), %rax
    movq %rax, 56(%rdi)
    movq probe_run_sp(%rip), %rsp
    pushfq
    popq 128(%rdi)
    xorl %eax, %eax
1:  popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
probe_run_caught:
    movl $1, %eax
    jmp 1b

.section .bss
.balign 8
run_registers: .skip 8
run_target: .skip 8
run_rdi: .skip 8
probe_run_sp: .skip 8
