# From long mode into every other mode and back, for the probe `modes`. AT&T syntax. The code between modes_base and
# modes_end runs at LOW, where the probe copies it; all addresses are absolute. BLOCK is what both sides share:
#
#   0 EAX, ECX, EDX, EBX, ESI, EDI, EBP, EFLAGS     32 far pointer of the snippet: offset, selector
#  40 0: protected, 1: real, 2: virtual-8086        44 CR3, CR4, CR0's bits to add
#  56 vector, error code, EIP, CS, EFLAGS of an exception                         80 RSP, CR3, CR4, CR0 of long mode
# 112 interrupts counted                           124 far pointer of the snippet in real mode: offset, segment

.set LOW, 0x30000
.set BLOCK, LOW + 0xe00
.set STACK, LOW + 0xa000

.section .rodata.modes, "ax"
.global modes_base, modes_end, modes_gdt, modes_stubs, modes_ret32, modes_real_ret, modes_real_stubs
.global modes_real_count, modes_real_irq
.balign 16
modes_base:
.code64
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    cli
    movq %rsp, BLOCK + 80
    movq %cr3, %rax
    movq %rax, BLOCK + 88
    movq %cr4, %rax
    movq %rax, BLOCK + 96
    movq %cr0, %rax
    movq %rax, BLOCK + 104
    lgdt LOW + modes_gdtr - modes_base
    ljmpl *(LOW + modes_to32 - modes_base)

.code32
modes_in32:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $STACK, %esp
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx
    rdmsr
    andl $~0x100, %eax
    wrmsr
    movl BLOCK + 48, %eax
    movl %eax, %cr4
    movl BLOCK + 44, %eax
    movl %eax, %cr3
    lidt LOW + modes_idtr - modes_base
    movl %cr0, %eax
    orl BLOCK + 52, %eax
    movl %eax, %cr0
    jmp 1f
1:  movb $0x89, LOW + modes_gdt - modes_base + 0x45
    movl $0x40, %eax
    ltr %ax
    cmpl $1, BLOCK + 40
    je modes_to_real
    cmpl $2, BLOCK + 40
    je modes_to_v86
    pushl BLOCK + 28
    call modes_load
    popfl
    ljmpl *BLOCK + 32

modes_load:
    movl BLOCK + 4, %ecx
    movl BLOCK + 8, %edx
    movl BLOCK + 12, %ebx
    movl BLOCK + 16, %esi
    movl BLOCK + 20, %edi
    movl BLOCK + 24, %ebp
    movl BLOCK, %eax
    ret

modes_to_v86:
    pushl $0                                        # GS, FS, DS, ES
    pushl $0
    pushl $0x3000
    pushl $0x3000
    pushl $0x3800                                   # SS, ESP
    pushl $0x0ff0
    movl BLOCK + 28, %eax
    orl $0x20000, %eax
    pushl %eax
    pushl BLOCK + 36
    pushl BLOCK + 32
    call modes_load
    iretl

# The end of a snippet in protected mode.
modes_ret32:
    movl %eax, BLOCK
    movl %ecx, BLOCK + 4
    movl %edx, BLOCK + 8
    movl %ebx, BLOCK + 12
    movl %esi, BLOCK + 16
    movl %edi, BLOCK + 20
    movl %ebp, BLOCK + 24
    pushfl
    popl BLOCK + 28
modes_back:
    cli
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $STACK, %esp
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl BLOCK + 96, %eax
    movl %eax, %cr4
    movl BLOCK + 88, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl BLOCK + 104, %eax
    movl %eax, %cr0
    .byte 0xea
    .long LOW + modes_in64 - modes_base
    .short 0x08

# Exceptions in protected and virtual-8086 mode: the CPU has cleared DS there, SS is flat.
modes_trap32:
    movl %eax, %ss:BLOCK
    movl %ecx, %ss:BLOCK + 4
    movl %edx, %ss:BLOCK + 8
    movl %ebx, %ss:BLOCK + 12
    movl %esi, %ss:BLOCK + 16
    movl %edi, %ss:BLOCK + 20
    movl %ebp, %ss:BLOCK + 24
    popl %ss:BLOCK + 56
    popl %ss:BLOCK + 60
    popl %ss:BLOCK + 64
    popl %ss:BLOCK + 68
    popl %ss:BLOCK + 72
    jmp modes_back

.balign 16
modes_stubs:
.set vector, 0
.rept 0x41
    .balign 16
    .if (vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17)
    pushl $0
    .endif
    pushl $vector
    jmp modes_trap32
    .set vector, vector + 1
.endr

modes_to_real:
    lidt LOW + modes_ivtr - modes_base
    .byte 0xea
    .long modes_real_prepare - modes_base
    .short 0x20

.code16
modes_real_prepare:                                 # CS is based at LOW; DS stays flat, with 4 GiB
    movw $0x28, %ax
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    movw %ax, %ss
    movl %cr0, %eax
    andl $0xfffffffe, %eax
    movl %eax, %cr0
    .byte 0xea
    .short modes_real_start - modes_base, 0x3000
modes_real_start:
    movw $0x3800, %ax
    movw %ax, %ss
    movw $0x0ff0, %sp
    movw $0x3000, %ax
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    pushl %fs:0xe00 + 28
    popfl
    movl %fs:0xe00 + 4, %ecx
    movl %fs:0xe00 + 8, %edx
    movl %fs:0xe00 + 12, %ebx
    movl %fs:0xe00 + 16, %esi
    movl %fs:0xe00 + 20, %edi
    movl %fs:0xe00 + 24, %ebp
    movl %fs:0xe00, %eax
    ljmpw *%fs:0xe00 + 124

# The end of a snippet in real mode.
modes_real_ret:
    movl %eax, %fs:0xe00
    movl %ecx, %fs:0xe00 + 4
    movl %edx, %fs:0xe00 + 8
    movl %ebx, %fs:0xe00 + 12
    movl %esi, %fs:0xe00 + 16
    movl %edi, %fs:0xe00 + 20
    movl %ebp, %fs:0xe00 + 24
    pushfl
    popl %fs:0xe00 + 28
modes_real_back:
    cli
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    .byte 0x66, 0xea
    .long LOW + modes_back - modes_base
    .short 0x18

modes_real_trap:                                    # IP, CS and FLAGS, below them the vector
    popw %fs:0xe00 + 56
    popw %fs:0xe00 + 64
    popw %fs:0xe00 + 68
    popw %fs:0xe00 + 72
    movw $0, %fs:0xe00 + 58
    jmp modes_real_back

.balign 8
modes_real_stubs:
.set vector, 0
.rept 32
    .balign 8
    pushw $vector
    jmp modes_real_trap
    .set vector, vector + 1
.endr

modes_real_count:
    incl %cs:0xe00 + 112
    iretw

modes_real_irq:
    pushw %ax
    incl %cs:0xe00 + 112
    movb $0x20, %al
    outb %al, $0x20
    popw %ax
    iretw

.code64
modes_in64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movq BLOCK + 80, %rsp
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

.balign 8
modes_to32:
    .long LOW + modes_in32 - modes_base
    .short 0x18
modes_gdtr:
    .short 16 * 8 - 1
    .quad LOW + modes_gdt - modes_base
modes_idtr:
    .short 0x41 * 8 - 1
    .long LOW + 0x4000
modes_ivtr:
    .short 0x3ff
    .long 0
.balign 8
modes_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                        # 0x08 code, 64 bits
    .quad 0x00cf93000000ffff                        # 0x10 data, flat
    .quad 0x00cf9b000000ffff                        # 0x18 code, 32 bits, flat
    .quad 0x00009b030000ffff                        # 0x20 code, 16 bits, at LOW
    .quad 0x000093030000ffff                        # 0x28 data, 16 bits, at LOW
    .quad 0x00009b031000ffff                        # 0x30 code, 16 bits, at LOW + 0x1000
    .quad 0x00409b031000ffff                        # 0x38 code, 32 bits, at LOW + 0x1000
    .quad 0x0000890350002100                        # 0x40 task, at LOW + 0x5000, with its I/O bitmap
    .quad 0x00409b800000ffff                        # 0x48 code, 32 bits, at 8 MiB
    .quad 0x00009b800000ffff                        # 0x50 code, 16 bits, at 8 MiB
    .quad 0x00409b831000ffff                        # 0x58 code, 32 bits, at 8 MiB + LOW + 0x1000
    .fill 4, 8, 0
modes_end:
