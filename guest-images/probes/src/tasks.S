# Into 32-bit protected mode and back, with tasks that record how they were entered, for the probe `task-switch`. AT&T
# syntax. The code between tasks_base and tasks_end runs at LOW, where the probe copies it. BLOCK is what both sides share:
#
#   0 CR3, CR0's bits to add             8 address of the code of the first task
#  16 vector, error code, EIP, TR of an exception that nobody expected; 40 EAX of the first task at its end
#  64 what a task saw: entries, EAX, ESP, EFLAGS, TR, CR0, error code, DR6, DR7
# 112 RSP, CR3, CR4, CR0 of long mode

.set LOW, 0x30000
.set BLOCK, LOW + 0xe00
.set SEEN, BLOCK + 64
.set STACK, LOW + 0xa000
.set FIRST, LOW + 0x5000
.set APIC_EOI, 0xfee000b0

.section .rodata.tasks, "ax"
.global tasks_base, tasks_end, tasks_gdt, tasks_stubs, tasks_end_first
.global tasks_return, tasks_jump, tasks_with_code, tasks_skip, tasks_eoi, tasks_narrow
.balign 16
tasks_base:
.code64
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    cli
    movq %rsp, BLOCK + 112
    movq %cr3, %rax
    movq %rax, BLOCK + 120
    movq %cr4, %rax
    movq %rax, BLOCK + 128
    movq %cr0, %rax
    movq %rax, BLOCK + 136
    lgdt LOW + tasks_gdtr - tasks_base
    ljmpl *(LOW + tasks_to32 - tasks_base)

.code32
tasks_in32:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $STACK, %esp
    movl %cr0, %eax
    andl $0x7ffffff7, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx
    rdmsr
    andl $~0x100, %eax
    wrmsr
    movl $0x10, %eax                                # PSE
    movl %eax, %cr4
    movl BLOCK, %eax
    movl %eax, %cr3
    lidt LOW + tasks_idtr - tasks_base
    movl %cr0, %eax
    orl BLOCK + 4, %eax
    movl %eax, %cr0
    jmp 1f
1:  movl $0x40, %eax
    ltr %ax
    xorl %eax, %eax
    lldt %ax
    pushl $2
    popfl
    movl $0x11111111, %eax
    movl $0x22222222, %ecx
    movl $0x33333333, %edx
    movl $0x44444444, %ebx
    movl $0x55555555, %ebp
    movl $0x66666666, %esi
    movl $0x77777777, %edi
    jmp *BLOCK + 8

# Where a task that was interrupted by a fault is made to go on.
tasks_resume:
    movl $0x600d, %eax
# The end of the first task's code.
tasks_end_first:
    movl %eax, BLOCK + 40
tasks_back:
    cli
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $STACK, %esp
    pushl $2
    popfl
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl BLOCK + 128, %eax
    movl %eax, %cr4
    movl BLOCK + 120, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl BLOCK + 136, %eax
    movl %eax, %cr0
    .byte 0xea
    .long LOW + tasks_in64 - tasks_base
    .short 0x08

# What a task sees: into SEEN, but for the error code.
tasks_record:
    incl %ss:SEEN
    movl %eax, %ss:SEEN + 4
    leal 4(%esp), %eax
    movl %eax, %ss:SEEN + 8
    pushfl
    popl %ss:SEEN + 12
    str %eax
    movl %eax, %ss:SEEN + 16
    movl %cr0, %eax
    movl %eax, %ss:SEEN + 20
    movl %dr6, %eax
    movl %eax, %ss:SEEN + 28
    movl %dr7, %eax
    movl %eax, %ss:SEEN + 32
    ret

# Tasks: each starts where it has left off.
tasks_return:
    call tasks_record
    iretl
    jmp tasks_return
tasks_jump:
    call tasks_record
    ljmpl $0x40, $0
    jmp tasks_jump
tasks_with_code:
    call tasks_record
    popl %ss:SEEN + 24
    movl $LOW + tasks_resume - tasks_base, %ss:FIRST + 0x20
    iretl
    jmp tasks_with_code
tasks_skip:                                         # two bytes of the instruction that faulted
    call tasks_record
    addl $2, %ss:FIRST + 0x20
    iretl
    jmp tasks_skip
tasks_eoi:
    call tasks_record
    movl $0, %ss:APIC_EOI
    iretl
    jmp tasks_eoi

# Exceptions that come by interrupt gates.
tasks_trap:
    popl %ss:BLOCK + 16
    popl %ss:BLOCK + 20
    popl %ss:BLOCK + 24
    str %eax
    movl %eax, %ss:BLOCK + 28
    jmp tasks_back

.balign 16
tasks_stubs:
.set vector, 0
.rept 0x60
    .balign 16
    .if (vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17)
    pushl $0
    .endif
    pushl $vector
    jmp tasks_trap
    .set vector, vector + 1
.endr

.code16
tasks_narrow:                                       # CS, SS and DS are based at LOW
    incl SEEN - LOW
    movw %ax, SEEN - LOW + 4
    movw %sp, SEEN - LOW + 8
    pushfw
    popw SEEN - LOW + 12
    strw %ax
    movw %ax, SEEN - LOW + 16
    iretw
    jmp tasks_narrow

.code64
tasks_in64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movq BLOCK + 112, %rsp
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

.balign 8
tasks_to32:
    .long LOW + tasks_in32 - tasks_base
    .short 0x18
tasks_gdtr:
    .short 16 * 8 - 1
    .quad LOW + tasks_gdt - tasks_base
tasks_idtr:
    .short 0x60 * 8 - 1
    .long LOW + 0x4000
.balign 8
tasks_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                        # 0x08 code, 64 bits
    .quad 0x00cf93000000ffff                        # 0x10 data, flat
    .quad 0x00cf9b000000ffff                        # 0x18 code, 32 bits, flat
    .quad 0x00009b030000ffff                        # 0x20 code, 16 bits, at LOW
    .quad 0x00cf13000000ffff                        # 0x28 data, not present
    .fill 10, 8, 0                                  # 0x30 and on: the probe's; 0x40 is the first task
tasks_end:
