# How an application processor gets from its start-up IPI to Rust (SDM vol. 3, sections 9.4 and 10.8.5).
#
# The first part is copied to a page below 1 MiB, where the CPU starts in real mode with CS:IP = page:0. It enters 64-bit
# mode with the boot CPU's first tables, which map the first 4 GiB at their own addresses and the image at KERNEL_BASE. From
# there the CPU goes on in the image, takes the real tables and its own stack out of ap_start_block, and calls Rust.
# One CPU at a time: the block is one.

.section .boot.text, "ax"
.code16
.global ap_trampoline_start
ap_trampoline_start:
    cli
    cld
    lgdtl %cs:(ap_gdt_pointer - ap_trampoline_start)
    movl $boot_root_physical, %eax
    movl %eax, %cr3
    movl $(1 << 5), %eax                        # PAE
    movl %eax, %cr4
    movl $0xc0000080, %ecx                      # EFER: LME, NXE
    rdmsr
    orl $((1 << 8) | (1 << 11)), %eax
    wrmsr
    movl %cr0, %eax
    andl $~((1 << 30) | (1 << 29) | (1 << 3) | (1 << 2)), %eax # caches on, x87 there (TS, EM)
    orl $((1 << 31) | (1 << 16) | 1), %eax      # PG, WP, PE
    movl %eax, %cr0
    ljmpl $8, $ap_entry64
.balign 4
ap_gdt_pointer:
    .short boot_gdt_pointer - boot_gdt - 1
    .long boot_gdt
.global ap_trampoline_end
ap_trampoline_end:

.code64
ap_entry64:
    movw $16, %ax
    movw %ax, %ss
    movw %ax, %ds
    movw %ax, %es
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    movabsq $ap_entry_image, %rax
    jmp *%rax

.section .text.ap_entry, "ax"
ap_entry_image:
    leaq ap_start_block(%rip), %rax
    movq (%rax), %rcx
    movq %rcx, %cr3
    movq 8(%rax), %rsp
    movq 16(%rax), %rdi
    xorl %ebp, %ebp
    pushq %rbp                                  # ends the backtrace, and leaves the stack aligned for the call
    pushq %rbp
    movq %rsp, %rbp
    callq *24(%rax)
    ud2
.text
