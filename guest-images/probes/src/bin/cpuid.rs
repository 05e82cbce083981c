//! CPUID: what is hidden is hidden, the hypervisor's leaves are what the policy says, and what mirrors other state
//! follows it (SDM vol. 2, CPUID; AMD APM vol. 3, appendix E).

#![no_std]
#![no_main]

use caisson_probes::trap::vector::{GP, UD};
use caisson_probes::{Regs, apic, check, check_eq, check_in, cpu, probe, run, say};

probe!("cpuid", run_probe);

/// A leaf, a register (0 is EAX), bits that must be clear there, and what they are.
const HIDDEN: &[(u32, usize, u32, &str)] = &[
    (1, 2, 1 << 2 | 1 << 4, "DTES64, DS-CPL"),
    (1, 2, 1 << 3, "MONITOR"),
    (1, 2, 1 << 5 | 1 << 6, "VMX, SMX"),
    (1, 2, 1 << 7 | 1 << 8 | 1 << 15, "EIST, TM2, PDCM"),
    (1, 3, 1 << 18 | 1 << 21 | 1 << 22 | 1 << 28 | 1 << 29 | 1 << 31, "PSN, DS, ACPI, HTT, TM, PBE"),
    (6, 0, !(1 << 2), "thermal and power management but ARAT"),
    (6, 2, !0, "thermal and power management"),
    (7, 1, 1 << 2 | 1 << 12 | 1 << 15 | 1 << 25, "SGX, RDT-M, RDT-A, PT"),
    (0xa, 0, !0, "performance counters"),
    (0xf, 3, !0, "RDT monitoring"),
    (0x10, 1, !0, "RDT allocation"),
    (0x12, 0, !0, "SGX"),
    (0x14, 1, !0, "processor trace"),
    (0x8000_0001, 2, 1 << 2, "SVM"),
    (0x8000_0001, 2, 1 << 3 | 1 << 10 | 1 << 12 | 1 << 13, "extended APIC space, IBS, SKINIT, watchdog"),
    (0x8000_0001, 2, 1 << 23 | 1 << 24 | 1 << 27 | 1 << 28, "performance counters"),
    (0x8000_000a, 0, !0, "SVM's revision"),
    (0x8000_000a, 3, !0, "SVM's features"),
    (0x8000_001b, 0, !0, "IBS"),
    (0x8000_001f, 0, !0, "SME and SEV"),
];

fn run_probe() {
    // Intel's CPUs answer a leaf that they do not have with the highest basic one (SDM vol. 2A, CPUID).
    let there = |leaf: u32| leaf <= cpu::cpuid(leaf & 0x8000_0000, 0)[0];
    for &(leaf, register, bits, what) in HIDDEN.iter().filter(|hidden| there(hidden.0)) {
        check_eq!(
            cpu::cpuid(leaf, 0)[register] & bits,
            0,
            "leaf {:#x}, register {}: {}",
            leaf,
            register,
            what
        );
    }
    basics();
    hypervisor();
    mirrors();
    extended_state();
    supervisor_state();
    topology();
}

fn text(words: &[u32]) -> [u8; 12] {
    let mut text = [0; 12];
    for (to, word) in text.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    text
}

fn basics() {
    let [highest, b, c, d] = cpu::cpuid(0, 0);
    check!(highest >= 0xd, "leaves to D at least");
    let vendor = text(&[b, d, c]);
    check!(vendor == *b"AuthenticAMD" || vendor == *b"GenuineIntel", "a vendor's name: {:?}", vendor);
    let [_, _, c, d] = cpu::cpuid(1, 0);
    check_eq!(c & 0x8120_0000, 0x8120_0000, "hypervisor, TSC-deadline timer and x2APIC are announced");
    check_eq!(d & 0x0700_8271, 0x0700_8271, "FPU, TSC, MSR, PAE, APIC, CMOV, SSE, FXSR are announced");
    check_in!(cpu::cpuid(0x8000_0008, 0)[0] & 0xff, 36..=52, "physical address bits");
    if vendor == *b"AuthenticAMD" {
        check_eq!(cpu::cpuid(highest + 1, 0), [0; 4], "a leaf beyond the highest");
        check_eq!(cpu::cpuid(0x0fff_ffff, 7), [0; 4], "a leaf far beyond the highest");
        check_eq!(cpu::cpuid(0x8fff_ffff, 0), [0; 4], "an extended leaf far beyond the highest");
    }
    // All of RAX but EAX is ignored; results are zero-extended.
    let mut regs = Regs { rax: !0 << 32, rbx: !0, rcx: !0 << 32, rdx: !0, ..Regs::default() };
    check!(run(&[0x0f, 0xa2], &mut regs).is_ok(), "CPUID");
    check_eq!([regs.rax, regs.rbx, regs.rcx, regs.rdx].map(|r| r >> 32), [0; 4], "upper halves after CPUID");
    check_eq!(regs.rax as u32, highest, "CPUID with a dirty RAX");
}

fn hypervisor() {
    let [highest, b, c, d] = cpu::cpuid(0x4000_0000, 0);
    check_eq!((highest, text(&[b, c, d])), (0x4000_0010, *b"KVMKVMKVM\0\0\0"), "KVM's signature");
    // Port delay not needed, clock source 2, steal time, PV EOI, stable clock: what makes sense for one vCPU.
    let features = 1 << 24 | 1 << 6 | 1 << 5 | 1 << 3 | 1 << 1;
    check_eq!(cpu::cpuid(0x4000_0001, 0), [features, 0, 0, 0], "KVM's features");
    let [tsc, apic, ..] = cpu::cpuid(0x4000_0010, 0);
    check!(tsc > 1000 && apic > 1000, "frequencies in kHz: {} {}", tsc, apic);
    let [highest, b, c, d] = cpu::cpuid(0x4000_0100, 0);
    check_eq!((highest, text(&[b, c, d])), (0x4000_0101, *b"CaissonHV\0\0\0"), "Caisson's signature");
    for leaf in [0x4000_0002, 0x4000_0011, 0x4000_0080, 0x4000_0102, 0x4000_1000] {
        check_eq!(cpu::cpuid(leaf, 0), [0; 4], "leaf {:#x}", leaf);
    }
}

/// Bits that mirror CR4 and IA32_APIC_BASE.
fn mirrors() {
    if cpu::cpuid(1, 0)[2] & 1 << 26 != 0 {
        let cr4 = cpu::cr4();
        for on in [true, false, true] {
            cpu::set_cr4(if on { cr4 | 1 << 18 } else { cr4 & !(1 << 18) });
            check_eq!(cpu::cpuid(1, 0)[2] & 1 << 27 != 0, on, "OSXSAVE in CPUID");
        }
        cpu::set_cr4(cr4);
    }
    let base = cpu::rdmsr(apic::BASE_MSR);
    cpu::wrmsr(apic::BASE_MSR, base & !apic::ENABLE);
    check_eq!(cpu::cpuid(1, 0)[3] & 1 << 9, 0, "APIC in CPUID while disabled");
    check_eq!(cpu::cpuid(0x8000_0001, 0)[3] & 1 << 9, 0, "APIC in CPUID 80000001H while disabled");
    cpu::wrmsr(apic::BASE_MSR, base);
    check!(cpu::cpuid(1, 0)[3] & 1 << 9 != 0, "APIC in CPUID");
}

/// Leaf D: sizes follow XCR0 (SDM vol. 1, section 13.2).
fn extended_state() {
    if cpu::cpuid(1, 0)[2] & 1 << 26 == 0 {
        return say!("skipped: there is no XSAVE");
    }
    cpu::set_cr4(cpu::cr4() | 1 << 18);
    let [low, _, most, high] = cpu::cpuid(0xd, 0);
    let supported = u64::from(high) << 32 | u64::from(low);
    check_eq!(supported & 3, 3, "x87 and SSE state");
    check_eq!(supported & !0x2e7, 0, "components that Caisson can carry");
    let end = |component: u32| {
        let [size, offset, ..] = cpu::cpuid(0xd, component);
        (offset, offset + size)
    };
    let mut largest = 576;
    for component in (2..63).filter(|component| supported >> component & 1 != 0) {
        // Bochs's Ice Lake and Tiger Lake announce PKRU (component 9) and leave its subleaf empty.
        if cpu::cpuid(0xd, component) == [0; 4] {
            say!("component {}: this CPU does not say where it lies", component);
            continue;
        }
        check!(end(component).0 >= 576, "component {} lies behind the header", component);
        largest = largest.max(end(component).1);
    }
    check_eq!(most, largest, "size for all components");
    for value in [1, 3, 7, supported] {
        if value & !supported != 0 {
            continue;
        }
        let (rax, rdx) = (value & 0xffff_ffff, value >> 32);
        check!(run(&[0x0f, 0x01, 0xd1], &mut Regs { rax, rdx, ..Regs::default() }).is_ok(), "XSETBV");
        let expected = (2..63).filter(|bit| value >> bit & 1 != 0).map(|bit| end(bit).1).max().unwrap_or(576);
        check_eq!(cpu::cpuid(0xd, 0)[1], expected, "size for XCR0 of {:#x}", value);
    }
    for component in (2..63).filter(|component| supported >> component & 1 == 0) {
        check_eq!(cpu::cpuid(0xd, component), [0; 4], "component {} that is not there", component);
    }
}

/// XSAVES, and IA32_XSS with it, which takes no component (SDM vol. 1, section 13.11).
fn supervisor_state() {
    const XSS: u32 = 0xda0;
    if cpu::cpuid(1, 0)[2] & 1 << 26 == 0 {
        return;
    }
    let area = run::code_base() + 0x1000;
    (0..0x1000).step_by(8).for_each(|at| cpu::write64(area + at, 0));
    let regs = Regs { rax: 3, rdi: area as u64, ..Regs::default() };
    let (xsaves, xrstors) = ([0x48, 0x0f, 0xc7, 0x2f], [0x48, 0x0f, 0xc7, 0x1f]);
    let [features, size, xss, high] = cpu::cpuid(0xd, 1);
    check_eq!((xss, high), (0, 0), "components of IA32_XSS");
    if features & 1 << 3 == 0 {
        check!(cpu::try_rdmsr(XSS).is_err(), "IA32_XSS without XSAVES");
        // Intel's CPUs raise #UD by a control, AMD's have none.
        if cpu::cpuid(0, 0)[1] == u32::from_le_bytes(*b"Genu") {
            let ended = run(&xsaves, &mut { regs });
            check!(ended.is_err_and(|trap| trap.vector == UD), "XSAVES, which is not announced");
        }
        return say!("there is no XSAVES");
    }
    check!(size >= 576, "the size for XCR0 and IA32_XSS: {}", size);
    check_eq!(cpu::try_rdmsr(XSS), Ok(0), "IA32_XSS");
    check_eq!(cpu::try_wrmsr(XSS, 0), Ok(()), "IA32_XSS of 0");
    for component in [0, 3, 8, 9, 11, 63] {
        let ended = cpu::try_wrmsr(XSS, 1 << component);
        check!(ended.is_err_and(|trap| trap.vector == GP), "component {} in IA32_XSS", component);
    }
    check!(run(&xsaves, &mut { regs }).is_ok(), "XSAVES");
    check_eq!(cpu::read64(area + 520) >> 63, 1, "XSAVES saves in the compacted form");
    check!(run(&xrstors, &mut { regs }).is_ok(), "XRSTORS");
    // A component of IA32_XSS that is not on.
    cpu::write64(area + 520, 1 << 63 | 1 << 8 | 3);
    check!(run(&xrstors, &mut { regs }).is_err_and(|trap| trap.vector == GP), "XRSTORS of what is off");
    say!("XSAVES works");
}

/// One CPU.
fn topology() {
    let [_, b, ..] = cpu::cpuid(1, 0);
    check_eq!(b >> 24, 0, "initial APIC id");
    let [_, threads, kind, id] = cpu::cpuid(0xb, 0);
    check_eq!((threads & 0xffff, kind & 0xffff, id), (1, 0x100, 0), "leaf B, first level");
    let [_, cpus, kind, id] = cpu::cpuid(0xb, 1);
    check_eq!((cpus & 0xffff, kind & 0xffff, id), (1, 0x201, 0), "leaf B, second level");
    check_eq!(cpu::cpuid(0xb, 2)[2] & 0xff00, 0, "leaf B, end");
}
