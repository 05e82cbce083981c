# Where other CPUs start (SDM vol. 3, sections 9.4 and 10.8.5). The first part is copied to the page that the start-up IPI
# names; from there it goes the way of the boot CPU, with its tables. AT&T syntax.

.section .text.probe_ap, "ax"
.code16
.global probe_ap_start, probe_ap_end
probe_ap_start:
    cli
    cld
    lgdtl %cs:(ap_gdt_pointer - probe_ap_start)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $probe_ap32
.balign 4
ap_gdt_pointer:
    .short 32 * 8 - 1
    .long probe_gdt
probe_ap_end:

.code32
probe_ap32:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
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
    ljmp $0x08, $1f
.code64
1:  movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $1, %eax                                   # CPUID: the APIC id
    cpuid
    shrl $24, %ebx
    movl %ebx, %edi
    incl %ebx
    shll $13, %ebx                                  # 8 KiB of stack for each
    leal probe_ap_stacks(%rbx), %esp
    xorl %ebp, %ebp
    call probe_ap_main
    ud2

.section .bss.probe_ap, "aw", @nobits
.balign 4096
probe_ap_stacks: .skip 64 * 8192
