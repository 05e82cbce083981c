//! A binary heap of small indices with a place for each, so that any member can be moved or taken out in O(log n).

use alloc::vec;
use alloc::vec::Vec;

/// How many members [`IndexHeap::visit`] shows at most.
pub(crate) const VISITED: usize = 32;

/// The place of an index that is not in the heap.
const ABSENT: u32 = u32::MAX;

/// Makes a table one of `count` entries, if that is more, the new ones `blank`. Takes no more memory than that needs.
pub(crate) fn grow<T: Clone>(table: &mut Vec<T>, count: usize, blank: T) {
    let more = count.saturating_sub(table.len());
    table.reserve_exact(more);
    table.extend(core::iter::repeat_n(blank, more));
}

/// A min-heap over the indices `0..capacity`, each at most once, ordered by a key.
///
/// Invariants: `place[nodes[p].1] == p` for every `p`, all other places are marked absent; no node's key is less than its
/// parent's. It allocates in [`IndexHeap::new`] and [`IndexHeap::grow`] only.
pub struct IndexHeap<K> {
    nodes: Vec<(K, u32)>,
    place: Vec<u32>,
    /// How many keys were compared.
    #[cfg(test)]
    pub(crate) comparisons: core::cell::Cell<u64>,
}

impl<K: Ord + Copy> IndexHeap<K> {
    /// An empty heap over `0..capacity`.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            nodes: Vec::with_capacity(capacity),
            place: vec![ABSENT; capacity],
            #[cfg(test)]
            comparisons: core::cell::Cell::new(0),
        }
    }

    /// Makes it one over `0..capacity`, if that is more. Allocates.
    pub fn grow(&mut self, capacity: usize) {
        self.nodes.reserve_exact(capacity.saturating_sub(self.nodes.len()));
        grow(&mut self.place, capacity, ABSENT);
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        self.place.get(index).is_some_and(|&p| p != ABSENT)
    }

    /// The least key and whose it is.
    #[must_use]
    pub fn first(&self) -> Option<(K, usize)> {
        self.nodes.first().map(|&(key, index)| (key, index as usize))
    }

    /// The least key apart from that of [`IndexHeap::first`], and whose it is.
    pub(crate) fn second(&self) -> Option<(K, usize)> {
        let least = match (self.nodes.get(1), self.nodes.get(2)) {
            (Some(a), Some(b)) => Some(if self.less(&b.0, &a.0) { b } else { a }),
            (a, _) => a,
        };
        least.map(|&(key, index)| (key, index as usize))
    }

    /// Shows up to `most` (and up to [`VISITED`]) members in their order, until `visitor` answers `true`.
    pub(crate) fn visit(&self, most: usize, mut visitor: impl FnMut(K, usize) -> bool) {
        // Those not shown yet whose parent has been shown: one more for each that was.
        let mut frontier = [0usize; VISITED + 1];
        let mut len = usize::from(!self.nodes.is_empty());
        for _ in 0..most.min(VISITED) {
            let mut least = 0;
            for at in 1..len {
                if self.less(&self.nodes[frontier[at]].0, &self.nodes[frontier[least]].0) {
                    least = at;
                }
            }
            if len == 0 {
                return;
            }
            let at = frontier[least];
            let (key, index) = self.nodes[at];
            if visitor(key, index as usize) {
                return;
            }
            len -= 1;
            frontier[least] = frontier[len];
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.nodes.len() {
                    frontier[len] = child;
                    len += 1;
                }
            }
        }
    }

    /// Puts `index` in with `key`, or gives it that key where it is in. An index beyond the capacity is ignored.
    pub fn set(&mut self, index: usize, key: K) {
        match self.place.get(index) {
            None => {}
            Some(&ABSENT) => {
                let at = self.nodes.len();
                self.nodes.push((key, index as u32));
                self.place[index] = at as u32;
                self.rise(at);
            }
            Some(&at) => {
                let at = at as usize;
                let rises = self.less(&key, &self.nodes[at].0);
                self.nodes[at].0 = key;
                if rises {
                    self.rise(at);
                } else {
                    self.sink(at);
                }
            }
        }
    }

    /// Takes `index` out; `false` where it was not in.
    pub fn remove(&mut self, index: usize) -> bool {
        if !self.contains(index) {
            return false;
        }
        let at = self.place[index] as usize;
        self.place[index] = ABSENT;
        let (old, _) = self.nodes.swap_remove(at);
        if let Some(&(key, moved)) = self.nodes.get(at) {
            self.place[moved as usize] = at as u32;
            if self.less(&key, &old) {
                self.rise(at);
            } else {
                self.sink(at);
            }
        }
        true
    }

    fn less(&self, a: &K, b: &K) -> bool {
        #[cfg(test)]
        self.comparisons.set(self.comparisons.get() + 1);
        a < b
    }

    fn rise(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if !self.less(&self.nodes[at].0, &self.nodes[parent].0) {
                break;
            }
            self.swap(at, parent);
            at = parent;
        }
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let left = 2 * at + 1;
            if left >= self.nodes.len() {
                return;
            }
            let right = left + 1;
            let least = if right < self.nodes.len() && self.less(&self.nodes[right].0, &self.nodes[left].0) {
                right
            } else {
                left
            };
            if !self.less(&self.nodes[least].0, &self.nodes[at].0) {
                return;
            }
            self.swap(at, least);
            at = least;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.nodes.swap(a, b);
        self.place[self.nodes[a].1 as usize] = a as u32;
        self.place[self.nodes[b].1 as usize] = b as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::IndexHeap;

    proptest! {
        /// Against a map that is searched.
        #[test]
        fn behaves_like_a_sorted_map(steps in proptest::collection::vec((0usize..20, 0u8..3, 0u32..50), 1..300)) {
            let mut heap = IndexHeap::new(18);
            let mut model = BTreeMap::new();
            for (index, what, key) in steps {
                if what == 0 {
                    prop_assert_eq!(heap.remove(index), model.remove(&index).is_some());
                } else {
                    heap.set(index, key);
                    if index < 18 {
                        model.insert(index, key);
                    }
                }
                let mut keys: Vec<u32> = model.values().copied().collect();
                keys.sort_unstable();
                prop_assert_eq!(heap.len(), keys.len());
                prop_assert_eq!(heap.first().map(|f| f.0), keys.first().copied());
                prop_assert_eq!(heap.second().map(|s| s.0), keys.get(1).copied());
                let mut seen = Vec::new();
                heap.visit(18, |key, _| {
                    seen.push(key);
                    false
                });
                prop_assert_eq!(&seen, &keys);
                if let Some((key, index)) = heap.first() {
                    prop_assert_eq!(model.get(&index), Some(&key));
                }
                prop_assert_eq!(heap.contains(index), model.contains_key(&index));
            }
        }
    }
}
