//! Intercept bits and permission maps (APM vol. 2, sections 15.9 to 15.12).

use bitflags::bitflags;

/// Bytes of an MSR permission map: two bits an MSR for three ranges of 8192 (section 15.11).
pub const MSR_MAP_BYTES: usize = 8192;
/// Bytes of an I/O permission map: a bit a port, and what an access at the top may straddle into (section 15.10).
pub const PORT_MAP_BYTES: usize = 12288;

bitflags! {
    /// The third to fifth intercept words as one, bit 0 the third word's bit 0 (VMCB 00Ch, 010h).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Intercepts: u64 {
        /// Physical interrupts.
        const INTR = 1 << 0;
        /// Physical NMIs.
        const NMI = 1 << 1;
        /// Physical SMIs.
        const SMI = 1 << 2;
        /// Physical INIT.
        const INIT = 1 << 3;
        /// The virtual interrupt is about to be taken: the interrupt window.
        const VINTR = 1 << 4;
        /// CR0 writes beyond TS and MP.
        const CR0_SELECTIVE_WRITE = 1 << 5;
        /// RDTSC.
        const RDTSC = 1 << 14;
        /// RDPMC.
        const RDPMC = 1 << 15;
        /// CPUID.
        const CPUID = 1 << 18;
        /// RSM.
        const RSM = 1 << 19;
        /// IRET: the end of an NMI handler.
        const IRET = 1 << 20;
        /// INVD.
        const INVD = 1 << 22;
        /// PAUSE.
        const PAUSE = 1 << 23;
        /// HLT.
        const HLT = 1 << 24;
        /// INVLPG.
        const INVLPG = 1 << 25;
        /// INVLPGA.
        const INVLPGA = 1 << 26;
        /// Port I/O, by the permission map.
        const IOIO = 1 << 27;
        /// MSR access, by the permission map.
        const MSR = 1 << 28;
        /// Task switches.
        const TASK_SWITCH = 1 << 29;
        /// FERR freezes.
        const FERR_FREEZE = 1 << 30;
        /// Shutdown: a triple fault.
        const SHUTDOWN = 1 << 31;
        /// VMRUN; must be set.
        const VMRUN = 1 << 32;
        /// VMMCALL.
        const VMMCALL = 1 << 33;
        /// VMLOAD.
        const VMLOAD = 1 << 34;
        /// VMSAVE.
        const VMSAVE = 1 << 35;
        /// STGI.
        const STGI = 1 << 36;
        /// CLGI.
        const CLGI = 1 << 37;
        /// SKINIT.
        const SKINIT = 1 << 38;
        /// RDTSCP.
        const RDTSCP = 1 << 39;
        /// ICEBP (INT1).
        const ICEBP = 1 << 40;
        /// WBINVD and WBNOINVD.
        const WBINVD = 1 << 41;
        /// MONITOR and MONITORX.
        const MONITOR = 1 << 42;
        /// MWAIT and MWAITX.
        const MWAIT = 1 << 43;
        /// MWAIT when armed.
        const MWAIT_CONDITIONAL = 1 << 44;
        /// XSETBV.
        const XSETBV = 1 << 45;
        /// RDPRU.
        const RDPRU = 1 << 46;
    }
}

/// Which accesses of an MSR exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MsrIntercept {
    /// Neither: the guest reaches the register.
    None,
    /// Reads exit.
    Read,
    /// Writes exit.
    Write,
    /// Both exit.
    ReadWrite,
}

impl MsrIntercept {
    /// The two bits of the map: bit 0 read, bit 1 write.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Read => 1,
            Self::Write => 2,
            Self::ReadWrite => 3,
        }
    }
}

/// The first of the two bits of `msr` in the MSR permission map, or `None` where the map does not reach (an access
/// there always exits).
#[must_use]
pub const fn msr_map_bit(msr: u32) -> Option<usize> {
    let (block, offset) = match msr {
        0x0000_0000..=0x0000_1fff => (0, msr),
        0xc000_0000..=0xc000_1fff => (1, msr - 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (2, msr - 0xc001_0000),
        _ => return None,
    };
    Some(block * 0x800 * 8 + offset as usize * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msr_map_blocks_are_2_kib_apart() {
        assert_eq!(msr_map_bit(0x10), Some(0x20));
        assert_eq!(msr_map_bit(0xc000_0080), Some(0x800 * 8 + 0x100));
        assert_eq!(msr_map_bit(0xc001_0117), Some(0x1000 * 8 + 0x22e));
        assert_eq!(msr_map_bit(0x4b56_4d00), None);
    }
}
