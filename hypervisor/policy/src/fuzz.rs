//! Entry point for fuzz targets and property tests: a host made of bytes, and a guest that does what the bytes say.

use caisson_types::{Gpa, GuestMemory, MemoryError, SliceMemory};
use caisson_x86::{Efer, msr};

use crate::cpuid::{CpuidSetup, CpuidTable, Dynamic, HostCaps, Paravirt, Topology};
use crate::limits::{Cr0Context, Cr4Context};
use crate::msr::{MsrClass, check_hardware};
use crate::pvclock::{ClockParameters, TimeInfo, WallClock, enabled_address, wall_clock_address};
use crate::{CpuidResult, MsrSetup, MsrState};

/// Bytes to draw numbers from; zeros once they are used up.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let (head, tail) = self.0.split_at(N.min(self.0.len()));
        bytes.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
        self.0 = tail;
        bytes
    }

    fn u8(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// A number near one that means something, so that a fuzzer finds it.
    fn msr(&mut self) -> u32 {
        const BASES: [u32; 6] =
            [0, msr::MTRR_PHYSBASE0, msr::KVM_WALL_CLOCK_NEW, msr::EFER, msr::SYSCFG, 0x800];
        match BASES.get(usize::from(self.u8() & 7)) {
            Some(base) => base.wrapping_add(u32::from(self.u8())),
            None => self.u32(),
        }
    }
}

/// Builds a table from a host that `data` describes, then lets a guest use CPUID, MSRs and control registers, and checks
/// what must hold. Panics where it does not: a bug of this crate's.
pub fn drive(data: &[u8]) {
    let mut source = Source(data);
    let intel = source.u8() & 1 != 0;
    let host_data = source.bytes::<64>();
    let vcpu_count = u16::from_le_bytes(source.bytes());
    let setup = CpuidSetup {
        caps: HostCaps {
            physical_bits: source.u8(),
            xcr0: source.u64(),
            spec_ctrl: source.u8() & 1 != 0,
            tsc_aux: source.u8() & 1 != 0,
            arch_capabilities: source.u8() & 1 != 0,
            xsaves: source.u8() & 1 != 0,
        },
        topology: Topology { vcpus: vcpu_count, threads_per_core: source.u8() },
        paravirt: Paravirt::from_bits_truncate(source.u32()),
        tsc_khz: source.u32(),
        apic_khz: source.u32(),
    };
    let table = CpuidTable::build(&setup, |leaf, subleaf| host(&host_data, intel, leaf, subleaf));
    let msrs = MsrSetup {
        paravirt: setup.paravirt,
        microcode: source.u64(),
        arch_capabilities: Some(source.u64()),
        lfence_serializes: source.u8() & 1 != 0,
        spec_ctrl: setup.caps.spec_ctrl,
        low_memory_end: source.u64(),
        high_memory_end: source.u64(),
    };
    let mut state = MsrState::new(&table, &msrs);
    let mut vcpu = Dynamic { xcr0: 1, cr4: 0, apic_id: source.u32(), apic_enabled: true };
    let (mut cr0, mut efer) = (0x10, 0);
    while !source.0.is_empty() {
        match source.u8() % 6 {
            0 => cpuid(&table, &vcpu, source.u32(), source.u32()),
            1 => access_msr(&mut state, &table, source.msr(), source.u64()),
            2 => {
                let context = Cr4Context { old: vcpu.cr4, cr3: source.u64(), efer };
                let value = source.u64();
                if table.limits().check_cr4(value, &context).is_ok() {
                    vcpu.cr4 = value;
                }
            }
            3 => {
                let kind = source.u8();
                let (long_code, task_16) = (kind & 1 != 0, kind & 2 != 0);
                let context = Cr0Context { old: cr0, cr4: vcpu.cr4, efer, long_code, task_16 };
                cr0 = table.limits().check_cr0(source.u64(), &context).unwrap_or(cr0);
            }
            4 => {
                let new = table.limits().check_efer(efer, source.u64(), cr0).unwrap_or(efer);
                assert_eq!(new & Efer::SVME.bits(), 0, "a guest turned SVM on");
                efer = new;
            }
            _ => {
                let value = source.u64();
                if table.limits().check_xcr(0, value).is_ok() {
                    vcpu.xcr0 = value;
                }
                clock(source.u64(), value);
                publish(value, source.u64(), source.u32());
            }
        }
    }
}

/// A host's CPUID, of whatever the data says, with the vendor's names in place.
fn host(data: &[u8; 64], intel: bool, leaf: u32, subleaf: u32) -> CpuidResult {
    let word = |n: usize| {
        let at = (leaf as usize).wrapping_mul(5).wrapping_add(subleaf as usize * 3).wrapping_add(n);
        let byte = |k: usize| data[at.wrapping_mul(4).wrapping_add(k) % data.len()];
        u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
    };
    match leaf {
        0 if intel => CpuidResult::new(word(0) & 0x3f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
        0 => CpuidResult::new(word(0) & 0x3f, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
        0x8000_0000 => CpuidResult::new(0x8000_0000 | word(0) & 0x3f, 0, 0, 0),
        _ => CpuidResult::new(word(0), word(1), word(2), word(3)),
    }
}

fn cpuid(table: &CpuidTable, vcpu: &Dynamic, leaf: u32, subleaf: u32) {
    let _ = table.lookup(leaf, subleaf, vcpu);
    let near = 0x8000_0000 | leaf & 0x3f;
    let _ = table.lookup(near, subleaf & 0xf, vcpu);
    let identity = table.lookup(1, subleaf, vcpu);
    assert_eq!(identity.ecx & (1 << 5 | 1 << 3), 0, "VMX or MONITOR shown");
    assert_eq!(identity.ecx >> 31, 1, "hypervisor bit hidden");
    assert_eq!(table.lookup(0x8000_0001, 0, vcpu).ecx & 4, 0, "SVM shown");
    let area = table.lookup(0xd, 0, vcpu);
    assert!(area.ebx <= area.ecx || table.limits().xcr0 == 0, "XSAVE area larger than announced");
}

fn access_msr(state: &mut MsrState, table: &CpuidTable, number: u32, value: u64) {
    let class = state.classify(number);
    let before = state.read(number);
    assert_eq!(before.is_ok(), class == MsrClass::State, "{number:#x}");
    let _ = check_hardware(table.limits(), number, value);
    if state.write(number, value).is_err() {
        assert_eq!(state.read(number), before, "{number:#x} changed by a refused write");
    } else {
        assert_eq!(class, MsrClass::State, "{number:#x}");
    }
    let _ = state.write_tsc(value, u64::from(number));
}

fn clock(hz: u64, ns: u64) {
    let parameters = ClockParameters::from_tsc_hz(hz);
    let tick = parameters.ns_to_tsc(ns);
    assert!(tick == u64::MAX || parameters.tsc_to_ns(tick) >= ns, "a timer at {ns} ns would be early");
}

/// A guest's structures at an address that the guest chooses, in two pages of RAM that hold `before`.
fn publish(address: u64, tsc: u64, before: u32) {
    let mut ram = [0; 0x2000];
    let memory = SliceMemory::new(&mut ram);
    let parameters = ClockParameters::from_tsc_hz(tsc);
    let versions = |at: Gpa, publish: &dyn Fn() -> Result<(), MemoryError>| {
        let _ = memory.write_u32(at, before);
        if publish().is_ok() {
            let after = memory.read_u32(at).unwrap_or(1);
            assert!(after & 1 == 0 && after != before, "version {before:#x} became {after:#x}");
        }
    };
    // Near the RAM's start more often than anywhere.
    let address = if tsc & 1 == 0 { address & 0x2fff } else { address };
    if let Ok(Some(at)) = enabled_address(address) {
        let time = TimeInfo::new(&parameters, tsc);
        versions(at, &|| time.publish(&memory, at));
        assert_eq!(time.time_at(tsc), 0);
    }
    if let Ok(at) = wall_clock_address(address) {
        let clock = WallClock::from_nanos(tsc);
        assert!(clock.nanoseconds < 1_000_000_000);
        versions(at, &|| clock.publish(&memory, at));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_that_a_guest_does_panics(data in proptest::collection::vec(any::<u8>(), 0..512)) {
            super::drive(&data);
        }
    }
}
