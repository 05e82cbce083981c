//! Address-space ids: a vCPU gets a fresh one when its TLB entries must go and the CPU cannot flush a single id, and
//! when the ids have been used up (APM vol. 2, section 15.16).

use core::sync::atomic::{AtomicU64, Ordering};

/// The ids of one CPU. Id 0 is the host's.
pub(crate) struct Asids {
    count: u32,
    /// Generation in the upper half, the next id in the lower.
    next: AtomicU64,
}

/// An id, and the round of ids that it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Asid {
    pub(crate) id: u32,
    pub(crate) generation: u32,
}

impl Asid {
    /// No id of any generation.
    pub(crate) const NONE: Self = Self { id: 0, generation: 0 };
}

impl Asids {
    /// `count` ids, as Fn8000_000A EBX tells.
    pub(crate) fn new(count: u32) -> Self {
        Self { count: count.max(2), next: AtomicU64::new(1 << 32 | 1) }
    }

    /// The generation in force: an id of an earlier one may be somebody else's.
    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        (self.next.load(Ordering::Relaxed) >> 32) as u32
    }

    /// A fresh id. `true` beside it when the ids start anew: the whole TLB must be flushed first.
    pub(crate) fn allocate(&self) -> (Asid, bool) {
        let next = self.next.load(Ordering::Relaxed);
        let (mut generation, mut id) = ((next >> 32) as u32, next as u32);
        let wrapped = id >= self.count;
        if wrapped {
            (generation, id) = (generation.wrapping_add(1).max(1), 1);
        }
        self.next.store(u64::from(generation) << 32 | u64::from(id + 1), Ordering::Relaxed);
        (Asid { id, generation }, wrapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_fresh_until_they_wrap() {
        let ids = Asids::new(4);
        let got: [_; 3] = core::array::from_fn(|_| ids.allocate());
        assert_eq!(got.map(|(a, _)| a.id), [1, 2, 3]);
        assert!(got.iter().all(|(a, wrapped)| a.generation == 1 && !wrapped));
        assert_eq!(ids.allocate(), (Asid { id: 1, generation: 2 }, true));
        assert_eq!(ids.generation(), 2);
    }
}
