//! KVM's steal-time record: a vCPU's stolen time, and whether it is running (Linux `Documentation/virt/kvm/x86/msr.rst`,
//! `MSR_KVM_STEAL_TIME`).
//!
//! `struct kvm_steal_time`, 64 bytes on a multiple of 64, little-endian: `steal` in nanoseconds (u64 at 0), `version`
//! (u32 at 8), `flags` (u32 at 12, 0), `preempted` (u8 at 16).
//!
//! Two parties write it. The version is the hypervisor's alone: odd while `steal` changes, so that a reader on any vCPU
//! never takes half of it. `preempted` belongs to both: while [`PREEMPTED`] is set, another vCPU may add [`FLUSH_TLB`] by
//! a locked compare-and-exchange instead of sending an IPI for a TLB flush. So it is taken by an atomic swap before the
//! vCPU is entered: what was asked for before the swap is in its answer, and whoever comes after it sends an IPI.

use caisson_types::{Gpa, GuestMemory, MemoryError};

use crate::GeneralProtection;

/// `KVM_VCPU_PREEMPTED`: the vCPU could run and does not.
pub const PREEMPTED: u8 = 1 << 0;
/// `KVM_VCPU_FLUSH_TLB`: flush the vCPU's TLB before it runs again. Set by the guest.
pub const FLUSH_TLB: u8 = 1 << 1;

/// Bit 0 of the MSR: the record is in use.
const ENABLED: u64 = 1 << 0;
/// Bits that must be 0: the record lies on a multiple of 64.
const RESERVED: u64 = 0x3e;
const VERSION: u64 = 8;
const PREEMPTED_BYTE: u64 = 16;
/// Bytes of the record.
const SIZE: u64 = 64;

/// Where a vCPU's record is: a multiple of 64 that 64 bytes do not wrap around.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StealTime(Gpa);

impl StealTime {
    /// The record that a write of `value` to the MSR names; `None` where it turns the record off, or names no memory that
    /// could be.
    ///
    /// # Errors
    /// Reserved bits are set.
    pub const fn from_msr(value: u64) -> Result<Option<Self>, GeneralProtection> {
        if value & RESERVED != 0 {
            return Err(GeneralProtection);
        }
        let at = value & !(SIZE - 1);
        Ok(if value & ENABLED != 0 { Some(Self(Gpa::new(at))) } else { None })
    }

    /// What the MSR reads as.
    #[must_use]
    pub const fn msr(self) -> u64 {
        self.0.as_u64() | ENABLED
    }

    const fn field(self, offset: u64) -> Gpa {
        // Below the record's end, which does not wrap: its start is a multiple of its size.
        Gpa::new(self.0.as_u64() | offset)
    }

    /// Tells the guest that this vCPU has been kept from running for `steal` nanoseconds since it was made.
    ///
    /// # Errors
    /// [`MemoryError`] where the guest has no memory there.
    pub fn publish(self, memory: &impl GuestMemory, steal: u64) -> Result<(), MemoryError> {
        let version = self.field(VERSION);
        // Whatever the guest left there, even or odd, the next odd number is new to a reader.
        let odd = memory.read_u32(version)?.wrapping_add(1) | 1;
        memory.write_u32(version, odd)?;
        memory.write_u64(self.0, steal)?;
        memory.write_u32(version, odd.wrapping_add(1))
    }

    /// Tells the guest that the vCPU does not run although it could.
    ///
    /// # Errors
    /// [`MemoryError`] where the guest has no memory there.
    pub fn set_preempted(self, memory: &impl GuestMemory) -> Result<(), MemoryError> {
        memory.swap_u8(self.field(PREEMPTED_BYTE), PREEMPTED).map(|_| ())
    }

    /// Tells the guest that the vCPU runs; `true` where its TLB is to be flushed first.
    ///
    /// # Errors
    /// [`MemoryError`] where the guest has no memory there.
    pub fn take_preempted(self, memory: &impl GuestMemory) -> Result<bool, MemoryError> {
        Ok(memory.swap_u8(self.field(PREEMPTED_BYTE), 0)? & FLUSH_TLB != 0)
    }
}

#[cfg(test)]
mod tests {
    use caisson_types::SliceMemory;
    use proptest::prelude::*;

    use super::*;

    fn at(address: u64) -> StealTime {
        StealTime::from_msr(address | 1).unwrap().unwrap()
    }

    #[test]
    fn the_msr_names_a_multiple_of_64() {
        assert_eq!(StealTime::from_msr(0x1000), Ok(None));
        assert_eq!(at(0x1040).msr(), 0x1041);
        for bit in 1..6 {
            assert_eq!(StealTime::from_msr(0x1000 | 1 << bit), Err(GeneralProtection));
            assert_eq!(StealTime::from_msr(0x1001 | 1 << bit), Err(GeneralProtection));
        }
    }

    #[test]
    fn the_record_has_the_abi_layout() {
        let mut bytes = [0; 192];
        let memory = SliceMemory::new(&mut bytes);
        let record = at(64);
        for (round, version) in (1..).zip([2_u32, 4, 6]) {
            record.publish(&memory, round * 0x1122_3344_5566).unwrap();
            assert_eq!(memory.read_u64(Gpa::new(64)), Ok(round * 0x1122_3344_5566));
            assert_eq!(memory.read_u32(Gpa::new(72)), Ok(version));
        }
        record.set_preempted(&memory).unwrap();
        assert_eq!(memory.read_u64(Gpa::new(80)), Ok(1));
        assert_eq!(record.take_preempted(&memory), Ok(false));
        assert_eq!(memory.read_u64(Gpa::new(80)), Ok(0));
        record.set_preempted(&memory).unwrap();
        memory.write(Gpa::new(80), &[PREEMPTED | FLUSH_TLB]).unwrap();
        assert_eq!(record.take_preempted(&memory), Ok(true));
        assert_eq!(record.take_preempted(&memory), Ok(false));
        assert!(bytes[..64].iter().chain(&bytes[76..128]).chain(&bytes[128..]).all(|&byte| byte == 0));
    }

    #[test]
    fn a_version_that_the_guest_left_odd_ends_even() {
        let mut bytes = [0; 64];
        let memory = SliceMemory::new(&mut bytes);
        for left in [1, 7, u32::MAX, u32::MAX - 1] {
            memory.write_u32(Gpa::new(8), left).unwrap();
            at(0).publish(&memory, 5).unwrap();
            let version = memory.read_u32(Gpa::new(8)).unwrap();
            assert!(version.is_multiple_of(2) && version != left);
        }
    }

    proptest! {
        #[test]
        fn addresses_outside_of_memory_are_refused_without_a_trace(value: u64, steal: u64) {
            let mut bytes = [0xaa; 4096];
            let memory = SliceMemory::new(&mut bytes);
            if let Ok(Some(record)) = StealTime::from_msr(value & !RESERVED | 0x1000) {
                prop_assert!(record.publish(&memory, steal).is_err());
                prop_assert!(record.set_preempted(&memory).is_err());
                prop_assert!(record.take_preempted(&memory).is_err());
            }
            prop_assert!(bytes.iter().all(|&byte| byte == 0xaa));
        }
    }
}
