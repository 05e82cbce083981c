//! What neither vendor's control block carries of a guest: vector state, XCR0, debug address registers, TSC_AUX. It stays
//! in the CPU while exits are answered, because Caisson uses none of it, and is swapped when another vCPU gets the CPU.

use core::arch::asm;

use caisson_frames::Owner;
use caisson_types::DomainId;
use caisson_x86::{Xcr0, msr};

use crate::cpu::{Features, cpuid, read_msr, write_msr};
use crate::memory::PageBox;

/// Bytes for an XSAVE area: x87 to AVX-512 and PKRU take 2,696 (SDM vol. 1, section 13.5).
const AREA_BYTES: usize = 4096;
/// MXCSR after reset, and its place in the area.
const MXCSR_RESET: u32 = 0x1f80;
const MXCSR_OFFSET: usize = 24;
/// Leaf DH subleaf 1 EAX: XSAVES and IA32_XSS.
const XSAVES: u32 = 1 << 3;
/// x87 control word after FNINIT's reset value for FXRSTOR, at offset 0.
const FCW_RESET: u16 = 0x0040;

/// What of it this CPU has and guests may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Carried {
    /// XCR0 with every state component; 0 without XSAVE.
    pub xcr0: u64,
    /// RDTSCP, and with it TSC_AUX.
    pub rdtscp: bool,
}

impl Carried {
    /// Sets this CPU up to carry it: CR4.OSXSAVE where there is XSAVE, and no supervisor state in IA32_XSS, whatever the
    /// firmware left. `policy` is the XCR0 that guests may have.
    ///
    /// # Safety
    /// Once on each CPU, while nothing uses vector state.
    #[must_use]
    pub unsafe fn enable(cpu: &Features, policy: u64) -> Self {
        const OSXSAVE: u64 = 1 << 18;
        let xcr0 = if cpu.xsave { u64::from(cpuid(0xd, 0).eax) & policy } else { 0 };
        if xcr0 != 0 && cpuid(0xd, 1).eax & XSAVES != 0 {
            // SAFETY: a CPU with XSAVES has the MSR; no supervisor state is in use.
            unsafe { write_msr(msr::XSS, 0) };
        }
        if xcr0 != 0 {
            // SAFETY: the CPU has XSAVE; Caisson itself uses no vector state.
            unsafe {
                asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _, in(reg) OSXSAVE, options(nostack));
            }
        }
        Self { xcr0, rdtscp: cpu.rdtscp }
    }
}

/// One vCPU's state beside its control block.
pub struct GuestContext {
    area: PageBox<[u8; AREA_BYTES]>,
    xcr0: u64,
    /// XCR0 while the area is saved and restored; 0 without XSAVE.
    all: u64,
    debug: [u64; 4],
    /// DR0 to DR3 are the guest's and in the CPU.
    debug_loaded: bool,
    rdtscp: bool,
    tsc_aux: u64,
    /// The vCPU is on this CPU.
    loaded: bool,
}

impl GuestContext {
    /// The state after power-on; `None` without memory.
    #[must_use]
    pub fn new(carried: Carried, domain: DomainId) -> Option<Self> {
        let mut context = Self {
            area: PageBox::zeroed(Owner::Domain(domain))?,
            xcr0: Xcr0::X87.bits(),
            all: carried.xcr0,
            debug: [0; 4],
            debug_loaded: false,
            rdtscp: carried.rdtscp,
            tsc_aux: 0,
            loaded: false,
        };
        context.reset_area();
        Some(context)
    }

    /// Power-on values in the area; with XSAVE, components that are not marked in its header start clear by themselves.
    fn reset_area(&mut self) {
        self.area.fill(0);
        self.area[..2].copy_from_slice(&FCW_RESET.to_le_bytes());
        self.area[MXCSR_OFFSET..MXCSR_OFFSET + 4].copy_from_slice(&MXCSR_RESET.to_le_bytes());
    }

    /// Power-on; an INIT leaves vector state alone (SDM vol. 3, table 11-1).
    pub fn reset(&mut self, init: bool) {
        self.debug = [0; 4];
        if self.debug_loaded && self.loaded {
            self.load_debug();
        }
        if !init {
            self.reset_area();
            self.xcr0 = Xcr0::X87.bits();
            self.tsc_aux = 0;
            if self.loaded {
                self.load();
            }
        }
    }

    /// The guest's XCR0: the CPU's own while it is loaded, because QEMU's emulated SVM has no XSETBV intercept.
    #[must_use]
    pub fn xcr0(&self) -> u64 {
        if self.loaded && self.all != 0 {
            // SAFETY: CR4.OSXSAVE is set where there is XSAVE.
            unsafe { xgetbv() & self.all }
        } else {
            self.xcr0
        }
    }

    /// Sets the guest's XCR0, which is a subset of what the CPU and the policy have.
    pub fn set_xcr0(&mut self, value: u64) {
        self.xcr0 = value;
        if self.loaded && self.all != 0 {
            // SAFETY: the value was checked against what the CPU has.
            unsafe { xsetbv(value) };
        }
    }

    /// TSC_AUX.
    #[must_use]
    pub fn tsc_aux(&self) -> u64 {
        if self.loaded && self.rdtscp {
            // SAFETY: a CPU with RDTSCP has the MSR.
            unsafe { read_msr(msr::TSC_AUX) }
        } else {
            self.tsc_aux
        }
    }

    /// Sets TSC_AUX.
    pub fn set_tsc_aux(&mut self, value: u64) {
        self.tsc_aux = value;
        if self.loaded && self.rdtscp {
            // SAFETY: a CPU with RDTSCP has the MSR; Caisson does not use it.
            unsafe { write_msr(msr::TSC_AUX, value & 0xffff_ffff) };
        }
    }

    /// Loads everything onto this CPU.
    pub fn load(&mut self) {
        let at = self.area.as_ptr();
        let zero = &0_u32;
        // AMD's CPUs before Zen 2 leave the x87's last instruction and operand pointers as they are where the area marks
        // no pending exception (APM vol. 2, section 11.4.4): an x87 load of Caisson's own takes another guest's away.
        // SAFETY: CR0.EM and TS are clear, the exceptions that FILD could report are cleared before it, and the x87's
        // state is overwritten next.
        unsafe { asm!("fnclex", "emms", "fild dword ptr [{}]", in(reg) zero, options(nostack, readonly)) };
        // SAFETY: the area is a page of this vCPU's that holds what XSAVE or FXSAVE wrote, or reset values; Caisson uses
        // no vector state. XCR0 has been checked.
        unsafe {
            if self.all == 0 {
                asm!("fxrstor64 [{}]", in(reg) at, options(nostack, readonly));
            } else {
                xsetbv(self.all);
                asm!("xrstor64 [{}]", in(reg) at, in("eax") self.all as u32, in("edx") (self.all >> 32) as u32,
                     options(nostack, readonly));
                xsetbv(self.xcr0);
            }
        }
        if self.debug_loaded {
            self.load_debug();
        }
        self.loaded = true;
        self.set_tsc_aux(self.tsc_aux);
    }

    /// Stores everything off this CPU.
    pub fn store(&mut self) {
        self.tsc_aux = self.tsc_aux();
        self.xcr0 = self.xcr0();
        self.loaded = false;
        let at = self.area.as_mut_ptr();
        // SAFETY: the area is a page of this vCPU's, and large enough.
        unsafe {
            if self.all == 0 {
                asm!("fxsave64 [{}]", in(reg) at, options(nostack));
            } else {
                xsetbv(self.all);
                asm!("xsave64 [{}]", in(reg) at, in("eax") self.all as u32, in("edx") (self.all >> 32) as u32,
                     options(nostack));
            }
        }
        if self.debug_loaded {
            self.store_debug();
        }
    }

    /// Puts the guest's DR0 to DR3 into the CPU. DR6 and DR7 are the backend's.
    pub fn load_debug(&mut self) {
        let [a, b, c, d] = self.debug;
        // SAFETY: DR7 of the host is clear, so that the addresses match nothing outside the guest.
        unsafe {
            asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) a, in(reg) b, in(reg) c,
                 in(reg) d, options(nomem, nostack, preserves_flags));
        }
        self.debug_loaded = true;
    }

    /// Whether DR0 to DR3 are the guest's and in the CPU whenever it runs.
    #[must_use]
    pub fn debug_loaded(&self) -> bool {
        self.debug_loaded
    }

    /// The guest has stopped using DR0 to DR3: they are not loaded any more.
    pub fn release_debug(&mut self) {
        self.debug_loaded = false;
    }

    /// Whether this is the context in the CPU.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    fn store_debug(&mut self) {
        let [a, b, c, d];
        // SAFETY: reads registers.
        unsafe {
            asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) a, out(reg) b, out(reg) c,
                 out(reg) d, options(nomem, nostack, preserves_flags));
        }
        self.debug = [a, b, c, d];
    }
}

/// Reads XCR0.
///
/// # Safety
/// CR4.OSXSAVE must be set.
unsafe fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: promised by the caller.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Executes XSETBV of XCR0.
///
/// # Safety
/// CR4.OSXSAVE must be set, and the value one that the CPU accepts.
unsafe fn xsetbv(value: u64) {
    // SAFETY: promised by the caller.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nomem, nostack, preserves_flags));
    }
}
