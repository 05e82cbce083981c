# From the loader to Rust. Multiboot1 (EAX is its magic) and PVH enter alike: 32-bit protected mode, no paging, flat
# segments, interrupts off, EBX at the boot information. AT&T syntax.

.section .boot, "ax"
.balign 4
    .long 0x1badb002, 0x3, -(0x1badb002 + 0x3)      # multiboot1: page-aligned modules, memory map

.section .note.Xen, "a", @note
.balign 4
    .long 4, 8, 18                                  # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad probe_entry32

.section .boot, "ax"
.code32
.global probe_entry32
probe_entry32:
    cli
    cld
    movl $probe_stack_top, %esp
    movl %eax, probe_boot_magic
    movl %ebx, probe_boot_info

    # The first 4 GiB at their own addresses, in 2 MiB pages that everyone may use.
    movl $0x87, %eax
    xorl %ecx, %ecx
1:  movl %eax, probe_pd(, %ecx, 8)
    movl $0, probe_pd + 4(, %ecx, 8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $2048, %ecx
    jb 1b
    movl $probe_pd + 7, %eax
    xorl %ecx, %ecx
1:  movl %eax, probe_pdpt(, %ecx, 8)
    addl $4096, %eax
    incl %ecx
    cmpl $4, %ecx
    jb 1b
    movl $probe_pdpt + 7, probe_pml4

    movl $0x620, %eax                               # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $probe_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx                          # EFER: LME, NXE
    xorl %edx, %edx
    movl $0x900, %eax
    wrmsr
    movl $0x80010033, %eax                          # CR0: PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    lgdt probe_gdtr32
    ljmp $0x08, $1f
.code64
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $probe_stack_top, %esp
    xorl %ebp, %ebp
    call probe_start
    ud2

.section .data
.balign 16
.global probe_gdt, probe_gdtr32
probe_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                        # 0x08 code, 64 bits
    .quad 0x00cf93000000ffff                        # 0x10 data, flat
    .quad 0x00cf9b000000ffff                        # 0x18 code, 32 bits, flat
    .quad 0, 0                                      # 0x20 task state, 64 bits
    .quad 0x00cffb000000ffff                        # 0x30 user code, 32 bits
    .quad 0x00cff3000000ffff                        # 0x38 user data
    .quad 0x00affb000000ffff                        # 0x40 user code, 64 bits
    .fill 23, 8, 0                                  # 0x48 and on: each probe's own
probe_gdt_end:
probe_gdtr32:
    .short probe_gdt_end - probe_gdt - 1
    .quad probe_gdt

.section .bss
.balign 4096
.global probe_pml4, probe_pdpt, probe_pd, probe_stack_top, probe_boot_magic, probe_boot_info
probe_pml4: .skip 4096
probe_pdpt: .skip 4096
probe_pd: .skip 4 * 4096
    .skip 65536
probe_stack_top:
probe_boot_magic: .skip 4
probe_boot_info: .skip 4
