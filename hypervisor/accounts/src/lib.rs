//! Exact accounts of time: where each physical CPU's and each vCPU's goes, and what exits cost.
//!
//! | account | of | says |
//! |---|---|---|
//! | [`CpuAccount`] | a physical CPU | ticks in guests, in the hypervisor, idle |
//! | [`VcpuAccount`] | a vCPU | ticks running, ready (runnable without a CPU: what KVM calls *stolen*), blocked; exits by [`ExitClass`] with the ticks that their answers took |
//!
//! A [`Meter`] drives both while a CPU runs a vCPU: [`Meter::enter`] before each entry tells of the exit before it.
//!
//! # Time
//!
//! Time is a parameter: a `u64` count of ticks of any constant rate, in the hypervisor the host's TSC. Every change of
//! state names its moment, and charges the span since the last one to exactly one account. So
//!
//! - of a CPU: guests + hypervisor + idle = the time since its account began;
//! - of a vCPU: running + ready + blocked = the time since its account began;
//! - of a vCPU's running time: in its guest + each class's ticks + those of taking turns = running;
//!
//! all exactly; what has happened since the last exit is a CPU's guests' time until the answer is complete. On one CPU time must not go back (a TSC does not); between CPUs it may differ by their
//! skew: a moment before the last one charges nothing, and the sums hold.
//!
//! # Who writes, who reads
//!
//! Each account has one writer at a time. A CPU's is that CPU. A vCPU's is the CPU that runs it, and while it does not
//! run whoever may change its place in a run queue. Anybody may read at any time, without a lock: a CPU's account is two
//! words, each of them right by itself after every write; a vCPU's times are behind a sequence count; an exit's count
//! and ticks are words that are read one by one.
//!
//! Pure: no hardware, no allocation, and nothing here can panic.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod cpu;
mod meter;
mod sync;
mod vcpu;

#[cfg(all(test, not(loom)))]
mod tests;

pub use caisson_hwvirt::ExitClass;
pub use cpu::{CpuAccount, CpuTimes};
pub use meter::{Charge, Meter};
pub use vcpu::{Activity, Count, VcpuAccount, VcpuTimes};
