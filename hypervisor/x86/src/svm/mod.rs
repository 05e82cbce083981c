//! AMD-V: the VMCB, exit codes, intercepts and feature bits (APM vol. 2, chapter 15 and appendices B and C).

mod exit_code;
mod feature;
mod intercept;
mod vmcb;

pub use exit_code::ExitCode;
pub use feature::SvmFeatures;
pub use intercept::{Intercepts, MSR_MAP_BYTES, MsrIntercept, PORT_MAP_BYTES, msr_map_bit};
pub use vmcb::{Clean, EventInjection, EventKind, TlbControl, Vmcb, VmcbSegment};
