//! The allocator against a model that knows the owner of each frame.

use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use caisson_types::{DomainId, Hpa};
use proptest::prelude::*;

use crate::meta::State;
use crate::zone::Block;
use crate::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const A: Owner = Owner::Domain(DomainId(1));
const B: Owner = Owner::Domain(DomainId(2));

/// A small machine: a bit of low memory, a ragged piece below 4 GiB with a hole, and some above.
const REGIONS: [(u64, u64); 4] =
    [(0x1000, 0x9_e000), (MIB, 3 * MIB + 0x5000), (5 * MIB + 0x3800, 2 * MIB), (4 * GIB, 6 * MIB + 0x1000)];

fn metadata(plan: &ZonePlan) -> Vec<FrameMeta> {
    vec![FrameMeta::ABSENT; plan.frames() as usize]
}

fn plan(regions: &[(u64, u64)]) -> ZonePlan {
    let mut plan = ZonePlan::new();
    for &(start, len) in regions {
        plan.include(Hpa::new(start), len);
    }
    plan
}

fn with_machine(regions: &[(u64, u64)], test: impl FnOnce(&mut FrameAllocator)) {
    let plan = plan(regions);
    let mut meta = metadata(&plan);
    let mut frames = FrameAllocator::new(&plan, &mut meta).unwrap();
    for &(start, len) in regions {
        frames.add_region(Hpa::new(start), len).unwrap();
    }
    test(&mut frames);
}

/// All blocks, after a check that metadata, lists and counts agree.
fn blocks(frames: &FrameAllocator) -> Vec<(Block, State)> {
    let mut all = Vec::new();
    let mut counted: BTreeMap<u8, u32> = BTreeMap::new();
    for zone in frames.zones() {
        let mut pfn = zone.span().start;
        while pfn < zone.span().end {
            match frames.meta(zone.index(pfn) as u32).state() {
                State::Absent => pfn += 1,
                state @ (State::Free { order } | State::Used { order, .. }) => {
                    let block = Block { pfn, order };
                    assert_eq!(pfn % block.frames(), 0, "{block:?} is not aligned");
                    for inside in pfn + 1..block.end() {
                        assert!(frames.meta(zone.index(inside) as u32).is_absent(), "head inside {block:?}");
                    }
                    if matches!(state, State::Free { .. }) {
                        *counted.entry(order).or_default() += 1;
                        let buddy = pfn ^ block.frames();
                        let merges = order < MAX_ORDER
                            && zone.contains(buddy)
                            && frames.meta(zone.index(buddy) as u32).is_free_of(order);
                        assert!(!merges, "{block:?} and its buddy are both free");
                    }
                    all.push((block, state));
                    pfn = block.end();
                }
            }
        }
    }
    let statistics = frames.statistics();
    for order in 0..=MAX_ORDER {
        let counted = counted.get(&order).copied().unwrap_or(0);
        assert_eq!(statistics.free_blocks[usize::from(order)], u64::from(counted));
    }
    let owned = |of: Owner| -> u64 {
        let is = |state: &State| match state {
            State::Used { owner, .. } => *owner == of,
            State::Free { .. } => of == Owner::Free,
            State::Absent => false,
        };
        all.iter().filter(|(_, state)| is(state)).map(|(block, _)| block.frames()).sum()
    };
    for owner in [Owner::Free, Owner::Hypervisor, Owner::Reserved, A, B] {
        assert_eq!(frames.owned_by(owner), owned(owner), "count of {owner}");
    }
    let used = all.iter().filter(|(_, state)| matches!(state, State::Used { .. })).count() as u64;
    assert_eq!(statistics.used_blocks.iter().sum::<u64>(), used);
    all
}

#[test]
fn ordinary_allocations_spare_low_memory() {
    with_machine(&REGIONS, |frames| {
        let high = frames.allocate(0, A).unwrap();
        assert!(high.start().as_u64() >= 4 * GIB);
        let dma = frames.allocate_below(Hpa::new(4 * GIB), 0, A).unwrap();
        assert!((MIB..4 * GIB).contains(&dma.start().as_u64()));
        let trampoline = frames.allocate_below(Hpa::new(MIB), 0, Owner::Hypervisor).unwrap();
        assert!(trampoline.start().as_u64() < MIB);
        let odd = frames.allocate_below(Hpa::new(MIB + 0x2fff), 1, A).unwrap();
        assert_eq!(odd.start().as_u64(), MIB);
        assert_eq!(frames.allocate_below(Hpa::new(MIB + 0x2fff), 0, A), None);
        while frames.allocate(0, B).is_some() {}
        assert_eq!(frames.free_frames(), 0x9_e - 1);
        blocks(frames);
        assert_eq!(frames.release_owner(A, |_, _| {}), 4);
        frames.release_owner(B, |_, _| {});
        frames.free(trampoline).unwrap();
        assert_eq!(frames.statistics().total_frames, frames.free_frames());
        // Tokens of the dead are refused.
        assert!(matches!(frames.free(high), Err(FreeError::NotAllocated(_))));
        blocks(frames);
    });
}

/// Where the blocks of a chain are, in its order, with those that follow each other as one.
fn pieces(frames: &FrameAllocator, chain: &FrameChain) -> Vec<(u64, u64)> {
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    for (start, bytes) in frames.blocks_of(chain) {
        match pieces.last_mut() {
            Some((first, length)) if *first + *length == start.as_u64() => *length += bytes,
            _ => pieces.push((start.as_u64(), bytes)),
        }
    }
    pieces
}

#[test]
fn a_range_is_in_one_piece_where_its_blocks_follow_each_other() {
    // No block of 256 MiB is free in it, but two of 128 MiB are, one behind the other.
    with_machine(&[(128 * MIB, 256 * MIB)], |frames| {
        for bytes in [256 * MIB, 254 * MIB, 130 * MIB, 64 * MIB, 3 * MIB + 0x5000] {
            let chain = frames.allocate_range(bytes, A).unwrap();
            assert_eq!(pieces(frames, &chain).len(), 1, "{bytes:#x}");
            blocks(frames);
            frames.free_range(chain).unwrap();
        }
        // What is in the way parts it, and everything is found all the same.
        let hole = frames.allocate_at(Hpa::new(300 * MIB), 0, B).unwrap();
        let chain = frames.allocate_range(256 * MIB - 0x1000, A).unwrap();
        assert_eq!(frames.free_frames(), 0);
        blocks(frames);
        frames.free_range(chain).unwrap();
        frames.free(hole).unwrap();
    });
}

#[test]
fn wrong_frees_are_told_apart() {
    with_machine(&REGIONS, |frames| {
        let block = frames.allocate(3, A).unwrap();
        let start = block.start();
        assert_eq!(frames.reclaim(start, 2, A), Err(FreeError::WrongOrder { start, actual: 3 }));
        assert_eq!(frames.reclaim(start, 3, B), Err(FreeError::WrongOwner { start, actual: A }));
        let inside = Hpa::new(start.as_u64() + 0x1000);
        assert_eq!(frames.reclaim(inside, 0, A), Err(FreeError::NotAllocated(inside)));
        let odd = Hpa::new(start.as_u64() + 8);
        assert_eq!(frames.reclaim(odd, 3, A), Err(FreeError::NotAllocated(odd)));
        let nowhere = Hpa::new(!0xfff);
        assert_eq!(frames.reclaim(nowhere, 0, A), Err(FreeError::NotManaged(nowhere)));
        let copy = frames.reclaim(start, 3, A).unwrap();
        assert_eq!(frames.free(block), Ok(()));
        assert_eq!(frames.free(copy), Err(FreeError::NotAllocated(start)));

        let mut chain = frames.allocate_range(0x3000, A).unwrap();
        let (first, bytes) = frames.blocks_of(&chain).next().unwrap();
        assert_eq!(bytes, 0x2000);
        assert_eq!(frames.reclaim(first, 1, A), Err(FreeError::Chained(first)));
        let popped = frames.pop(&mut chain).unwrap();
        assert_eq!((popped.start(), popped.bytes(), chain.bytes()), (first, 0x2000, 0x1000));
        frames.free(popped).unwrap();
        assert_eq!(frames.free_range(chain), Ok(3 - 2));
        assert_eq!(frames.owned_by(A), 0);
        blocks(frames);
    });
}

#[test]
fn a_stale_chain_frees_nothing() {
    with_machine(&REGIONS, |frames| {
        let chain = frames.allocate_range(5 * MIB, A).unwrap();
        assert_eq!(frames.release_owner(A, |_, _| {}), (5 * MIB) >> 12);
        let again = frames.allocate_range(5 * MIB, B).unwrap();
        assert!(frames.free_range(chain).is_err());
        assert_eq!(frames.owned_by(B), (5 * MIB) >> 12);
        frames.free_range(again).unwrap();
        blocks(frames);
    });
}

#[test]
fn what_cannot_be_given_changes_nothing() {
    with_machine(&REGIONS, |frames| {
        let before = frames.statistics();
        assert_eq!(frames.allocate(0, Owner::Free), None);
        assert_eq!(frames.allocate(MAX_ORDER, A), None);
        assert_eq!(frames.allocate(MAX_ORDER + 1, A), None);
        assert_eq!(frames.allocate(u8::MAX, A), None);
        assert_eq!(frames.allocate_below(Hpa::new(0x1fff), 0, A), None);
        assert_eq!(frames.allocate_at(Hpa::new(MIB + 1), 0, A), None);
        assert_eq!(frames.allocate_at(Hpa::new(MIB + 0x1000), 1, A), None);
        assert_eq!(frames.allocate_at(Hpa::new(5 * MIB), 0, A), None);
        assert_eq!(frames.allocate_at(Hpa::new(u64::MAX), u8::MAX, A), None);
        assert_eq!(frames.allocate_range(0, A), None);
        assert_eq!(frames.allocate_range(frames.free_frames() << 12, A), None);
        assert_eq!(frames.allocate_range(u64::MAX, A), None);
        for bytes in [0, GIB + 1, u64::MAX] {
            assert_eq!(frames.allocate_piece(bytes, A), None);
        }
        assert_eq!(frames.release_owner(Owner::Free, |_, _| {}), 0);
        let overlap = frames.add_region(Hpa::new(3 * MIB), MIB);
        assert_eq!(overlap, Err(RegionError::Overlap(Hpa::new(3 * MIB))));
        let outside = frames.add_region(Hpa::new(4 * GIB + 6 * MIB + 0x1000), MIB);
        assert_eq!(outside, Err(RegionError::Unplanned(Hpa::new(4 * GIB + 6 * MIB + 0x1000))));
        assert_eq!(frames.statistics(), before);
        blocks(frames);
    });
}

#[test]
fn a_setup_that_does_not_fit_is_refused() {
    let small = plan(&REGIONS);
    let mut meta = metadata(&small);
    let given = meta.len() as u64 - 1;
    let refused = FrameAllocator::new(&small, &mut meta[1..]).err();
    assert_eq!(refused, Some(SetupError::MetadataTooSmall { needed: given + 1, given }));
    let huge = plan(&[(0, 3 << 40)]);
    assert!(matches!(FrameAllocator::new(&huge, &mut []), Err(SetupError::TooManyFrames { .. })));
}

#[test]
fn holes_can_be_filled_later() {
    with_machine(&REGIONS, |frames| {
        assert_eq!(frames.add_region(Hpa::new(4 * MIB + 0x5000), MIB - 0x2000), Ok(0xfe));
        assert_eq!(frames.owner_of(Hpa::new(4 * MIB + 0x5fff)), Some(Owner::Free));
        assert_eq!(frames.owner_of(Hpa::new(5 * MIB + 0x3800)), None);
        assert_eq!(frames.add_region(Hpa::new(5 * MIB + 0x3000), 0x1000), Ok(1));
        // The pieces have become one.
        assert!(frames.allocate_at(Hpa::new(4 * MIB), 9, A).is_some());
        blocks(frames);
    });
}

#[test]
fn reserving_takes_what_is_free() {
    with_machine(&REGIONS, |frames| {
        let kept = frames.allocate_at(Hpa::new(2 * MIB), 0, A).unwrap();
        let len = 4 * MIB;
        // Up to 5 MiB there are 3 MiB and 5 frames of memory, one of which is taken.
        assert_eq!(frames.reserve(Hpa::new(MIB + 0x10), len - 0x20), ((3 * MIB) >> 12) + 5 - 1);
        assert_eq!(frames.owned_by(Owner::Reserved), ((3 * MIB) >> 12) + 4);
        assert_eq!(frames.owner_of(kept.start()), Some(A));
        assert_eq!(frames.reserve(Hpa::new(MIB), 0), 0);
        assert_eq!(frames.reserve(Hpa::new(u64::MAX), u64::MAX), 0);
        frames.release_owner(Owner::Reserved, |_, _| {});
        frames.free(kept).unwrap();
        blocks(frames);
    });
}

#[test]
fn sixty_four_gibibytes_are_seeded_in_a_few_blocks() {
    let regions = [(MIB, 3 * GIB - MIB), (4 * GIB, 61 * GIB)];
    with_machine(&regions, |frames| {
        assert_eq!(frames.statistics().free_blocks[usize::from(MAX_ORDER)], 2 + 61);
        let chain = frames.allocate_range(62 * GIB + 3 * MIB + 1, A).unwrap();
        let sizes: Vec<u64> = frames.blocks_of(&chain).map(|(_, bytes)| bytes).collect();
        assert!(sizes[..62].iter().all(|&bytes| bytes == GIB));
        assert_eq!(sizes[62..], [2 * MIB, MIB, 0x1000]);
        frames.free_range(chain).unwrap();
        assert_eq!(frames.owned_by(A), 0);
        assert_eq!(frames.statistics().free_blocks[usize::from(MAX_ORDER)], 2 + 61);
    });
}

#[derive(Clone, Debug)]
enum Op {
    Allocate(u8, u8),
    Below(u64, u8, u8),
    At(u64, u8, u8),
    Range(u64, u8),
    Piece(u64, u8),
    Reserve(u64, u64),
    Free(prop::sample::Index),
    Pop(prop::sample::Index),
    FreeRange(prop::sample::Index),
    Transfer(prop::sample::Index, u8),
    Split(prop::sample::Index),
    Release(u8),
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0..8 * MIB, 4 * GIB - MIB..4 * GIB + 8 * MIB]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..12u8, 0..4u8).prop_map(|(order, owner)| Op::Allocate(order, owner)),
        2 => (address(), 0..4u8, 0..4u8).prop_map(|(at, order, owner)| Op::Below(at, order, owner)),
        2 => (address(), 0..10u8, 0..4u8).prop_map(|(at, order, owner)| Op::At(at, order, owner)),
        2 => (1..8 * MIB, 0..4u8).prop_map(|(bytes, owner)| Op::Range(bytes, owner)),
        2 => (0..8 * MIB, 0..4u8).prop_map(|(bytes, owner)| Op::Piece(bytes, owner)),
        1 => (address(), 0..MIB).prop_map(|(at, len)| Op::Reserve(at, len)),
        6 => any::<prop::sample::Index>().prop_map(Op::Free),
        2 => any::<prop::sample::Index>().prop_map(Op::Pop),
        2 => any::<prop::sample::Index>().prop_map(Op::FreeRange),
        2 => (any::<prop::sample::Index>(), 0..4u8).prop_map(|(block, owner)| Op::Transfer(block, owner)),
        2 => any::<prop::sample::Index>().prop_map(Op::Split),
        1 => (0..4u8).prop_map(Op::Release),
    ]
}

fn owner(number: u8) -> Owner {
    [A, B, Owner::Hypervisor, Owner::Reserved][usize::from(number)]
}

/// The owner of each frame, and the tokens that are out.
#[derive(Default)]
struct Model {
    frames: BTreeMap<u64, Owner>,
    blocks: Vec<FrameBlock>,
    chains: Vec<FrameChain>,
}

impl Model {
    fn free(&self) -> usize {
        self.frames.values().filter(|&&owner| owner == Owner::Free).count()
    }

    fn set(&mut self, start: Hpa, bytes: u64, from: Owner, to: Owner) {
        for pfn in start.as_u64() >> 12..(start.as_u64() + bytes) >> 12 {
            assert_eq!(self.frames.insert(pfn, to), Some(from), "frame {pfn:#x}");
        }
    }

    fn is_free(&self, start: u64, frames: u64) -> bool {
        (start..start + frames).all(|pfn| self.frames.get(&pfn) == Some(&Owner::Free))
    }

    fn take(&mut self, block: Option<FrameBlock>) {
        if let Some(block) = block {
            self.set(block.start(), block.bytes(), Owner::Free, block.owner());
            self.blocks.push(block);
        }
    }

    fn step(&mut self, frames: &mut FrameAllocator, op: &Op) {
        let before = frames.free_frames();
        match *op {
            Op::Allocate(order, who) => {
                let possible =
                    |&pfn: &u64| pfn >= 0x100 && pfn % (1 << order) == 0 && self.is_free(pfn, 1 << order);
                let expected = self.frames.keys().any(possible);
                let block = frames.allocate(order, owner(who));
                assert_eq!(block.is_some(), expected);
                self.take(block);
            }
            Op::Below(limit, order, who) => {
                let lowest = if limit < MIB + 0x1000 { 0 } else { 0x100 };
                let possible = |&pfn: &u64| {
                    pfn >= lowest
                        && pfn % (1 << order) == 0
                        && pfn + (1 << order) <= limit >> 12
                        && self.is_free(pfn, 1 << order)
                };
                let expected = self.frames.keys().any(possible);
                let block = frames.allocate_below(Hpa::new(limit), order, owner(who));
                assert_eq!(block.is_some(), expected);
                assert!(block.iter().all(|block| block.start().as_u64() + block.bytes() <= limit));
                self.take(block);
            }
            Op::At(at, order, who) => {
                let at = at & !((1 << (order + 12)) - 1);
                let block = frames.allocate_at(Hpa::new(at), order, owner(who));
                assert_eq!(block.is_some(), self.is_free(at >> 12, 1 << order));
                assert!(block.iter().all(|block| block.start().as_u64() == at));
                self.take(block);
            }
            Op::Range(bytes, who) => {
                let low = self.frames.range(..0x100).filter(|(_, owner)| **owner == Owner::Free).count();
                let chain = frames.allocate_range(bytes, owner(who));
                assert_eq!(chain.is_some(), bytes.div_ceil(4096) <= (self.free() - low) as u64);
                if let Some(chain) = chain {
                    assert_eq!(chain.bytes(), bytes.next_multiple_of(4096));
                    let blocks: Vec<_> = frames.blocks_of(&chain).collect();
                    assert_eq!(blocks.len(), chain.blocks() as usize);
                    assert!(blocks.windows(2).all(|pair| pair[0].1 >= pair[1].1));
                    for (start, bytes) in blocks {
                        assert!(start.as_u64().is_multiple_of(bytes) && start.as_u64() >= MIB);
                        self.set(start, bytes, Owner::Free, chain.owner());
                    }
                    self.chains.push(chain);
                }
            }
            Op::Piece(bytes, who) => {
                let order = bytes.div_ceil(4096).next_power_of_two().ilog2();
                let possible =
                    |&pfn: &u64| pfn >= 0x100 && pfn % (1 << order) == 0 && self.is_free(pfn, 1 << order);
                let expected = bytes > 0 && self.frames.keys().any(possible);
                let chain = frames.allocate_piece(bytes, owner(who));
                assert_eq!(chain.is_some(), expected);
                if let Some(chain) = chain {
                    assert_eq!(chain.bytes(), bytes.next_multiple_of(4096));
                    let blocks: Vec<_> = frames.blocks_of(&chain).collect();
                    assert_eq!(blocks.len(), chain.blocks() as usize);
                    assert!(
                        blocks.windows(2).all(|pair| pair[0].0.as_u64() + pair[0].1 == pair[1].0.as_u64())
                    );
                    assert!(blocks.windows(2).all(|pair| pair[0].1 > pair[1].1));
                    for (start, bytes) in blocks {
                        self.set(start, bytes, Owner::Free, chain.owner());
                    }
                    self.chains.push(chain);
                }
            }
            Op::Reserve(at, len) => {
                let touched = if len == 0 { 0..0 } else { at >> 12..(at + len).div_ceil(4096) };
                let mut count = 0;
                for pfn in touched {
                    if let Some(owner @ Owner::Free) = self.frames.get_mut(&pfn) {
                        *owner = Owner::Reserved;
                        count += 1;
                    }
                }
                assert_eq!(frames.reserve(Hpa::new(at), len), count);
            }
            Op::Free(ref which) if !self.blocks.is_empty() => {
                let block = self.blocks.swap_remove(which.index(self.blocks.len()));
                self.set(block.start(), block.bytes(), block.owner(), Owner::Free);
                assert_eq!(frames.free(block), Ok(()));
            }
            Op::Pop(ref which) if !self.chains.is_empty() => {
                let at = which.index(self.chains.len());
                let popped = frames.pop(&mut self.chains[at]);
                assert!(popped.is_some() || self.chains[at].is_empty());
                self.blocks.extend(popped);
            }
            Op::FreeRange(ref which) if !self.chains.is_empty() => {
                let chain = self.chains.swap_remove(which.index(self.chains.len()));
                let blocks: Vec<_> = frames.blocks_of(&chain).collect();
                for (start, bytes) in blocks {
                    self.set(start, bytes, chain.owner(), Owner::Free);
                }
                let expected = chain.bytes() >> 12;
                assert_eq!(frames.free_range(chain), Ok(expected));
            }
            Op::Transfer(ref which, who) if !self.blocks.is_empty() => {
                let block = self.blocks.swap_remove(which.index(self.blocks.len()));
                self.set(block.start(), block.bytes(), block.owner(), owner(who));
                self.blocks.push(frames.transfer(block, owner(who)).unwrap());
            }
            Op::Split(ref which) if !self.blocks.is_empty() => {
                let block = self.blocks.swap_remove(which.index(self.blocks.len()));
                let (start, order) = (block.start(), block.order());
                match frames.split(block) {
                    Ok((lower, upper)) => {
                        assert_eq!((lower.start(), lower.order() + 1), (start, order));
                        assert_eq!(upper.start().as_u64(), start.as_u64() + lower.bytes());
                        assert_eq!((upper.order(), upper.owner()), (lower.order(), lower.owner()));
                        self.blocks.extend([lower, upper]);
                    }
                    Err(block) => {
                        assert_eq!(block.order(), 0);
                        self.blocks.push(block);
                    }
                }
            }
            Op::Release(who) => {
                let who = owner(who);
                self.blocks.retain(|block| block.owner() != who);
                self.chains.retain(|chain| chain.owner() != who);
                let mut count = 0;
                let freed = frames.release_owner(who, |start, bytes| {
                    self.set(start, bytes, who, Owner::Free);
                    count += bytes >> 12;
                });
                assert_eq!(freed, count);
                assert!(self.frames.values().all(|&owner| owner != who));
            }
            Op::Free(_) | Op::Pop(_) | Op::FreeRange(_) | Op::Transfer(..) | Op::Split(_) => {
                assert_eq!(frames.free_frames(), before);
            }
        }
        assert_eq!(frames.free_frames(), self.free() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn agrees_with_the_model(ops in prop::collection::vec(op(), 1..60)) {
        with_machine(&REGIONS, |frames| {
            let mut model = Model::default();
            let pristine = blocks(frames).len();
            for (block, _) in blocks(frames) {
                model.frames.extend((block.pfn..block.end()).map(|pfn| (pfn, Owner::Free)));
            }
            for op in ops {
                model.step(frames, &op);
            }
            for (block, state) in blocks(frames) {
                let owner = match state {
                    State::Used { owner, .. } => owner,
                    _ => Owner::Free,
                };
                for pfn in block.pfn..block.end() {
                    assert_eq!(model.frames.get(&pfn), Some(&owner));
                    assert_eq!(frames.owner_of(Hpa::new(pfn << 12)), Some(owner));
                }
            }
            // Freed, all memory falls together into the blocks that it was seeded with.
            for owner in [A, B, Owner::Hypervisor, Owner::Reserved] {
                frames.release_owner(owner, |_, _| {});
            }
            assert_eq!(blocks(frames).len(), pristine);
            assert_eq!(frames.free_frames(), frames.statistics().total_frames);
        });
    }
}
