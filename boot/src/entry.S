# From a multiboot2 loader to Rust (Multiboot2 specification 2.0, sections 3.1 to 3.3): 32-bit protected mode without
# paging on entry, EAX the loader's magic, EBX the physical address of the boot information.
#
# The tables built here map the first 4 GiB at their own addresses and the first 1 GiB at KERNEL_BASE, writable and
# executable: they serve until `machine` has built the real ones.

.set KERNEL_BASE, 0xffffffff80000000
.set MAGIC_HEADER, 0xe85250d6
.set MAGIC_LOADER, 0x36d76289

.section .boot.header, "a"
.balign 8
multiboot_header:
    .long MAGIC_HEADER
    .long 0                                     # i386, 32-bit protected mode
    .long multiboot_header_end - multiboot_header
    .long -(MAGIC_HEADER + (multiboot_header_end - multiboot_header))
    .balign 8
    .short 1, 0                                 # information request: memory map, modules
    .long 16
    .long 6, 3
    .balign 8
    .short 4, 1                                 # console flags, optional: EGA text is understood
    .long 12
    .long 2
    .balign 8
    .short 5, 1                                 # frame buffer, optional: whatever there is
    .long 20
    .long 0, 0, 0
    .balign 8
    .short 6, 0                                 # modules are page-aligned
    .long 8
    .balign 8
    .short 0, 0                                 # end
    .long 8
multiboot_header_end:

.section .boot.text, "ax"
.code32
.global boot_entry32
boot_entry32:
    cli
    cld
    mov esp, offset boot_stack_top_physical
    mov edi, ebx                                # first argument of boot_main
    lea esi, [boot_message_loader]
    cmp eax, MAGIC_LOADER
    jne boot_refuse

    # Long mode and no-execute pages (CPUID 8000_0001 EDX bits 29 and 20), or one clear line.
    lea esi, [boot_message_cpu]
    mov eax, 0x80000000
    push ebx
    cpuid
    cmp eax, 0x80000001
    jb boot_refuse
    mov eax, 0x80000001
    cpuid
    pop ebx
    and edx, (1 << 29) | (1 << 20)
    cmp edx, (1 << 29) | (1 << 20)
    jne boot_refuse

    # Level 2: 2048 entries of 2 MiB.
    mov eax, 0x83
    xor ecx, ecx
    lea ebx, [boot_directory_physical]
1:  mov [ebx + ecx * 8], eax
    mov dword ptr [ebx + ecx * 8 + 4], 0
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jb 1b
    # Level 3: four directories for the low half, the first of them again at KERNEL_BASE.
    lea eax, [boot_directory_physical + 3]
    xor ecx, ecx
1:  mov [boot_pointers_low_physical + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, 4
    jb 1b
    lea eax, [boot_directory_physical + 3]
    mov [boot_pointers_high_physical + 510 * 8], eax
    # Level 4.
    lea eax, [boot_pointers_low_physical + 3]
    mov [boot_root_physical], eax
    lea eax, [boot_pointers_high_physical + 3]
    mov [boot_root_physical + 511 * 8], eax

    lea eax, [boot_root_physical]
    mov cr3, eax
    mov eax, 1 << 5                             # PAE, and nothing that firmware left on (5-level paging, PCIDs)
    mov cr4, eax
    mov ecx, 0xc0000080                         # EFER: LME, NXE
    rdmsr
    or eax, (1 << 8) | (1 << 11)
    wrmsr
    mov eax, cr0
    or eax, (1 << 31) | (1 << 16)               # PG, WP
    and eax, ~((1 << 30) | (1 << 29) | (1 << 3) | (1 << 2)) # caches on, x87 there (TS, EM)
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    # A far jump to 64-bit code, by way of the stack: the assembler has no syntax for it in this mode.
    push 8
    lea eax, [boot_entry64]
    push eax
    retf

# ESI: the message. Serial line and text screen, then halt.
boot_refuse:
    mov edi, 0xb8000
1:  mov al, [esi]
    test al, al
    jz 4f
    mov byte ptr [edi], al
    mov byte ptr [edi + 1], 0x4f
    add edi, 2
    mov ah, al
    mov dx, 0x3fd
    mov ecx, 100000
2:  in al, dx
    test al, 0x20
    jnz 3f
    dec ecx
    jnz 2b
3:  mov al, ah
    mov dx, 0x3f8
    out dx, al
    inc esi
    jmp 1b
4:  cli
    hlt
    jmp 4b

.code64
boot_entry64:
    mov ax, 16
    mov ss, ax
    mov ds, ax
    mov es, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    movabs rsp, offset boot_stack_top
    xor ebp, ebp
    push rbp                                    # ends the backtrace, and leaves the stack aligned for the call
    push rbp
    mov rbp, rsp
    mov edi, edi                                # the upper half is undefined after the switch
    movabs rax, offset boot_main
    call rax
    ud2

.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                    # 64-bit code
    .quad 0x00cf93000000ffff                    # data
boot_gdt_pointer:
    .short boot_gdt_pointer - boot_gdt - 1
    .long boot_gdt

boot_message_loader:
    .asciz "\r\nCaisson: not started by a multiboot2 loader: use GRUB's `multiboot2` command\r\n"
boot_message_cpu:
    .asciz "\r\nCaisson: this CPU lacks 64-bit mode or no-execute pages: use an x86-64 CPU\r\n"

.section .bss.boot_tables, "aw", @nobits
.balign 4096
boot_root:
    .skip 4096
boot_pointers_low:
    .skip 4096
boot_pointers_high:
    .skip 4096
boot_directory:
    .skip 4 * 4096

.section .stacks, "aw", @nobits
.balign 4096
.global boot_stack_guard
boot_stack_guard:
    .skip 4096
    .skip 262144
.global boot_stack_top
boot_stack_top:

.set boot_root_physical, boot_root - KERNEL_BASE
.set boot_pointers_low_physical, boot_pointers_low - KERNEL_BASE
.set boot_pointers_high_physical, boot_pointers_high - KERNEL_BASE
.set boot_directory_physical, boot_directory - KERNEL_BASE
.set boot_stack_top_physical, boot_stack_top - KERNEL_BASE
.text
