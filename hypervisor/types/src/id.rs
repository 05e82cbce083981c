//! Names of domains and virtual CPUs.

use core::fmt;

/// A domain's number: unique among the living ones, in the order of their creation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainId(pub u16);

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}", self.0)
    }
}

/// A virtual CPU: its domain and its index there, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VcpuId {
    /// The domain that the vCPU belongs to.
    pub domain: DomainId,
    /// The vCPU's index within its domain, from 0.
    pub index: u16,
}

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}v{}", self.domain, self.index)
    }
}
