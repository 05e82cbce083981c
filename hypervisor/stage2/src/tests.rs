//! The engine in its formats: by example, and by random operations against the model.

use alloc::vec::Vec;

use caisson_types::{Gpa, Hpa, PageSize};
use proptest::prelude::*;

use crate::model::{Checked, Op, Tables, drive};
use crate::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const RAM: (Permissions, MemoryType) = (Permissions::ALL, MemoryType::WriteBack);

/// A test for each format.
macro_rules! both {
    ($(fn $name:ident<$format:ident>() $body:block)*) => {
        mod npt {
            use super::*;
            $(#[test] fn $name() { type $format = Npt; $body })*
        }
        mod ept {
            use super::*;
            $(#[test] fn $name() { type $format = Ept; $body })*
        }
    };
}

fn map<F: Format>(
    space: &mut Stage2<F>,
    memory: &mut Tables,
    gpa: u64,
    hpa: u64,
    len: u64,
) -> Result<(), Error> {
    let flush = space.map(memory, Gpa::new(gpa), Hpa::new(hpa), len, RAM.0, RAM.1)?;
    assert_eq!(flush, Flush::None);
    Ok(())
}

fn size_at<F: Format>(space: &Stage2<F>, memory: &Tables, gpa: u64) -> Option<(u64, PageSize)> {
    space.translate(memory, Gpa::new(gpa)).map(|found| (found.hpa.as_u64(), found.size))
}

both! {
    fn leaves_are_as_large_as_alignment_allows<F>() {
        let mut memory = Tables::new(100);
        let mut space = Stage2::<F>::new(&mut memory, Config::four_levels(true)).unwrap();
        // 1 MiB of 4 KiB pages on either side of 2 MiB pages, on either side of 1 GiB pages.
        let (start, len) = (GIB - 3 * MIB, 2 * GIB + 6 * MIB);
        assert_eq!(map(&mut space, &mut memory, start, start + 4 * GIB, len), Ok(()));
        let expected = |gpa, size| {
            assert_eq!(size_at(&space, &memory, gpa), Some((gpa + 4 * GIB, size)), "{gpa:#x}");
        };
        expected(start, PageSize::Size4K);
        expected(GIB - 2 * MIB - 1, PageSize::Size4K);
        expected(GIB - 2 * MIB, PageSize::Size2M);
        expected(GIB, PageSize::Size1G);
        expected(3 * GIB - 1, PageSize::Size1G);
        expected(3 * GIB + 2 * MIB - 1, PageSize::Size2M);
        expected(3 * GIB + 3 * MIB - 1, PageSize::Size4K);
        assert_eq!(size_at(&space, &memory, start - 1), None);
        assert_eq!(size_at(&space, &memory, start + len), None);
        // Root, one level 3, two level 2, two level 1.
        assert_eq!(memory.count(), 6);
        space.destroy(&mut memory);
        assert_eq!(memory.count(), 0);
    }

    fn addresses_that_do_not_line_up_take_smaller_leaves<F>() {
        let mut memory = Tables::new(2000);
        let mut space = Stage2::<F>::new(&mut memory, Config::four_levels(true)).unwrap();
        map(&mut space, &mut memory, 0, 2 * MIB, GIB).unwrap();
        assert_eq!(size_at(&space, &memory, GIB - 1), Some((GIB + 2 * MIB - 1, PageSize::Size2M)));
        map(&mut space, &mut memory, GIB, 0x1000, 4 * MIB).unwrap();
        assert_eq!(size_at(&space, &memory, GIB + 5), Some((0x1005, PageSize::Size4K)));
        space.destroy(&mut memory);
        let mut space = Stage2::<F>::new(&mut memory, Config::four_levels(false)).unwrap();
        map(&mut space, &mut memory, 0, 0, GIB).unwrap();
        assert_eq!(size_at(&space, &memory, 0), Some((0, PageSize::Size2M)));
        space.destroy(&mut memory);
        let small = Config { largest_leaf: PageSize::Size4K, ..Config::four_levels(false) };
        let mut space = Stage2::<F>::new(&mut memory, small).unwrap();
        map(&mut space, &mut memory, 0, 0, 2 * MIB).unwrap();
        assert_eq!(size_at(&space, &memory, 0), Some((0, PageSize::Size4K)));
        space.destroy(&mut memory);
        assert_eq!(memory.count(), 0);
    }

    fn five_levels_reach_further<F>() {
        let config = Config { levels: Levels::Five, largest_leaf: PageSize::Size1G, address_bits: 64 };
        let mut memory = Tables::new(100);
        let mut space = Stage2::<F>::new(&mut memory, config).unwrap();
        assert_eq!(space.address_bits(), 57);
        let last = (1 << 57) - 0x1000;
        map(&mut space, &mut memory, last, 0x5000, 0x1000).unwrap();
        assert_eq!(size_at(&space, &memory, last + 1), Some((0x5001, PageSize::Size4K)));
        assert_eq!(size_at(&space, &memory, 1 << 57), None);
        assert_eq!(map(&mut space, &mut memory, last, 0, 0x2000), Err(Error::BeyondWidth));
        space.destroy(&mut memory);
        assert_eq!(memory.count(), 0);
    }

    fn what_cannot_be_done_is_refused<F>() {
        let mut memory = Tables::new(100);
        let mut space = Stage2::<F>::new(&mut memory, Config::four_levels(true)).unwrap();
        map(&mut space, &mut memory, 2 * MIB, 0, 2 * MIB).unwrap();
        let tables = memory.count();
        let at = Gpa::new(MIB);
        let overlap = Err(Error::Overlap(Gpa::new(2 * MIB)));
        assert_eq!(map(&mut space, &mut memory, MIB, 0, 2 * MIB), overlap);
        assert_eq!(map(&mut space, &mut memory, 0, 0, GIB), Err(Error::Overlap(Gpa::new(0))));
        assert_eq!(map(&mut space, &mut memory, 1, 0, 0x1000), Err(Error::Misaligned));
        assert_eq!(map(&mut space, &mut memory, 0, 1, 0x1000), Err(Error::Misaligned));
        assert_eq!(map(&mut space, &mut memory, 0, 0, 1), Err(Error::Misaligned));
        assert_eq!(map(&mut space, &mut memory, 1 << 48, 0, 0x1000), Err(Error::BeyondWidth));
        assert_eq!(map(&mut space, &mut memory, 0x1000, 0, u64::MAX - 0xfff), Err(Error::BeyondWidth));
        assert_eq!(map(&mut space, &mut memory, 0, 1 << 52, 0x1000), Err(Error::BeyondWidth));
        assert_eq!(map(&mut space, &mut memory, 0, 0, 0), Ok(()));
        let hole = space.protect(&mut memory, at, 2 * MIB, Permissions::READ);
        assert_eq!(hole, Err(Error::NotMapped(at)));
        let blind = Permissions { read: false, ..Permissions::ALL };
        assert_eq!(space.protect(&mut memory, at, MIB, blind), Err(Error::Unreadable));
        assert_eq!(memory.count(), tables);
        assert_eq!(size_at(&space, &memory, 3 * MIB), Some((MIB, PageSize::Size2M)));
        // Unmapping nothing needs no flush.
        assert_eq!(space.unmap(&mut memory, Gpa::new(0), 2 * MIB), Ok(Flush::None));
        space.destroy(&mut memory);
    }

    fn a_huge_leaf_is_cut_where_needed<F>() {
        const M2: u64 = 512;
        let mut checked = Checked::<F>::new(Config::four_levels(true), 100);
        let ram = Op::Map { gpa: 0, hpa: 512 * M2, pages: 512 * M2, permissions: RAM.0, memory_type: RAM.1 };
        assert_eq!(checked.step(ram), Ok(Flush::None));
        assert_eq!(checked.memory.count(), 2);
        let protect = Op::Protect { gpa: 2 * M2 + 3, pages: 1, permissions: Permissions::READ };
        let flush = checked.step(protect);
        assert_eq!(flush, Ok(Flush::Range { gpa: Gpa::new(4 * MIB + 0x3000), len: 0x1000 }));
        assert_eq!(checked.memory.count(), 4);
        assert_eq!(size_at(&checked.space, &checked.memory, 0), Some((GIB, PageSize::Size2M)));
        let cut = checked.space.translate(&checked.memory, Gpa::new(4 * MIB + 0x3008)).unwrap();
        assert_eq!((cut.permissions, cut.remaining, cut.size), (Permissions::READ, 0xff8, PageSize::Size4K));
        // Both edges in different parts.
        let _ = checked.step(Op::Unmap { gpa: 4 * M2 + 1, pages: 250 * M2 }).unwrap();
        assert_eq!(checked.memory.count(), 6);
        assert_eq!(size_at(&checked.space, &checked.memory, 508 * MIB), None);
        // Protecting with what is there already splits nothing.
        let same = Op::Protect { gpa: 300 * M2 + 1, pages: 1, permissions: Permissions::ALL };
        assert_eq!((checked.step(same), checked.memory.count()), (Ok(Flush::None), 6));
        checked.finish();
    }

    fn both_edges_of_a_cut_may_need_tables<F>() {
        for (gpa, pages, tables) in [
            (0, 1, 2),
            (1, 1, 2),
            (1, 512, 3),
            (512, 512, 1),
            (513, 511, 2),
            (512, 513, 2),
            (1, (1 << 18) - 2, 3),
        ] {
            let mut checked = Checked::<F>::new(Config::four_levels(true), 100);
            let huge = Op::Map { gpa: 0, hpa: 0, pages: 1 << 18, permissions: RAM.0, memory_type: RAM.1 };
            assert_eq!(checked.step(huge), Ok(Flush::None));
            let before = checked.memory.count();
            assert!(checked.step(Op::Unmap { gpa, pages }).is_ok());
            assert_eq!(checked.memory.count() - before, tables, "{pages} pages from {gpa}");
            checked.finish();
        }
    }

    fn tables_wait_for_the_flush<F>() {
        let mut memory = Tables::new(100);
        let mut space = Stage2::<F>::new(&mut memory, Config::four_levels(true)).unwrap();
        map(&mut space, &mut memory, 0x1000, 0, 0x4000).unwrap();
        assert_eq!(memory.count(), 4);
        assert_ne!(space.unmap(&mut memory, Gpa::new(0), MIB), Ok(Flush::None));
        assert_eq!(memory.count(), 4);
        space.flushed(&mut memory);
        assert_eq!(memory.count(), 1);
        space.flushed(&mut memory);
        map(&mut space, &mut memory, 0, 0, 2 * MIB).unwrap();
        assert_eq!(size_at(&space, &memory, 0), Some((0, PageSize::Size2M)));
        let _ = space.unmap(&mut memory, Gpa::new(0), 1 << 48).unwrap();
        space.destroy(&mut memory);
        assert_eq!(memory.count(), 0);
    }

    fn running_out_of_tables_changes_nothing<F>() {
        for left in 0..8 {
            let mut space = Checked::<F>::new(Config::four_levels(false), left);
            let ram = Op::Map { gpa: 511, hpa: 511, pages: 1026, permissions: RAM.0, memory_type: RAM.1 };
            let mapped = space.step(ram);
            // Level 3, level 2, and a level 1 on either side.
            assert_eq!(mapped.is_ok(), left >= 4);
            let cut = Op::Unmap { gpa: 700, pages: 1 };
            assert_eq!(mapped.and_then(|_| space.step(cut)).is_ok(), left >= 5);
            space.finish();
        }
    }

    fn traces_are_harvested_once<F>() {
        let mut memory = Tables::new(100);
        let mut space = Stage2::<F>::new(&mut memory, Config::four_levels(true)).unwrap();
        map(&mut space, &mut memory, 2 * MIB - 0x2000, 0, 0x2000).unwrap();
        map(&mut space, &mut memory, 2 * MIB, 0, 2 * MIB).unwrap();
        for trace in [Trace::Dirty, Trace::Accessed] {
            let mut found = Vec::new();
            let from = Gpa::new(2 * MIB - 0x1000);
            let flush = space.harvest(&mut memory, from, MIB, trace, |gpa, size| found.push((gpa, size)));
            assert_eq!(flush, Ok(Flush::Range { gpa: from, len: MIB }));
            assert_eq!(found, [(from, PageSize::Size4K), (Gpa::new(2 * MIB), PageSize::Size2M)]);
            let again = space.harvest(&mut memory, from, MIB, trace, |_, _| panic!("harvested twice"));
            assert_eq!(again, Ok(Flush::None));
        }
        // The processor writes just as the page is being protected: the trace is kept.
        memory.race = F::DIRTY;
        let _ = space.protect(&mut memory, Gpa::new(2 * MIB), 2 * MIB, Permissions::READ).unwrap();
        let mut dirty = 0;
        let _ = space.harvest(&mut memory, Gpa::new(0), GIB, Trace::Dirty, |_, _| dirty += 1).unwrap();
        assert_eq!(dirty, 2);
        let found = space.translate(&memory, Gpa::new(2 * MIB)).unwrap();
        assert_eq!(found.permissions, Permissions::READ);
        space.destroy(&mut memory);
    }

    fn leaves_are_split_and_joined_again<F>() {
        let mut memory = Tables::new(1000);
        let mut space = Stage2::<F>::new(&mut memory, Config::four_levels(true)).unwrap();
        map(&mut space, &mut memory, GIB, 4 * GIB, GIB + 2 * MIB + 0x3000).unwrap();
        let tables = memory.count();
        // A part of a huge leaf: the rest of it becomes large leaves.
        let flush = space.split_leaves(&mut memory, Gpa::new(GIB + 3 * MIB), 2 * MIB);
        assert_eq!((flush, memory.count()), (Ok(Flush::All), tables + 3));
        let leaf = |gpa, size| Some((gpa + 3 * GIB, size));
        for (gpa, size) in [(GIB + MIB, PageSize::Size2M), (GIB + 2 * MIB, PageSize::Size4K)] {
            assert_eq!(size_at(&space, &memory, gpa), leaf(gpa, size));
        }
        // All of it, and what is not mapped; then each page has a trace of its own.
        assert_eq!(space.split_leaves(&mut memory, Gpa::new(0), 4 * GIB), Ok(Flush::All));
        assert_eq!(space.split_leaves(&mut memory, Gpa::new(0), 4 * GIB), Ok(Flush::None));
        let mut dirty = 0;
        let _ = space.harvest(&mut memory, Gpa::new(0), 4 * GIB, Trace::Dirty, |_, size| {
            assert_eq!(size, PageSize::Size4K);
            dirty += 1;
        });
        assert_eq!(dirty, (GIB + 2 * MIB) / 4096 + 3);
        // A page that is not like the others stays apart, with the leaf around it.
        let _ = space.protect(&mut memory, Gpa::new(2 * GIB), 0x1000, Permissions::READ).unwrap();
        let flush = space.join_leaves(&mut memory, Gpa::new(0), 4 * GIB);
        assert_eq!(flush, Ok(Flush::Range { gpa: Gpa::new(0), len: 4 * GIB }));
        space.flushed(&mut memory);
        assert_eq!(size_at(&space, &memory, GIB), leaf(GIB, PageSize::Size1G));
        assert_eq!(size_at(&space, &memory, 2 * GIB + 0x1000), leaf(2 * GIB + 0x1000, PageSize::Size4K));
        let _ = space.protect(&mut memory, Gpa::new(2 * GIB), 0x1000, Permissions::ALL).unwrap();
        assert!(space.join_leaves(&mut memory, Gpa::new(2 * GIB), 2 * MIB).is_ok());
        space.flushed(&mut memory);
        assert_eq!(size_at(&space, &memory, 2 * GIB), leaf(2 * GIB, PageSize::Size2M));
        assert_eq!(memory.count(), tables);
        assert_eq!(space.join_leaves(&mut memory, Gpa::new(0), 4 * GIB), Ok(Flush::None));
        space.destroy(&mut memory);
    }

    fn splitting_without_memory_changes_nothing<F>() {
        let mut space = Checked::<F>::new(Config::four_levels(true), 4);
        let (permissions, memory_type) = RAM;
        let ram = Op::Map { gpa: 0, hpa: 1 << 20, pages: 1 << 18, permissions, memory_type };
        assert!(space.step(ram).is_ok());
        assert_eq!(space.step(Op::Split { gpa: 0, pages: 1 << 18 }), Err(Error::OutOfTables));
        assert_eq!(space.step(Op::Split { gpa: 700, pages: 1 }), Ok(Flush::All));
        space.finish();
    }

    fn a_walk_reads_one_entry_a_level<F>() {
        let mut memory = Tables::new(100);
        let mut space = Stage2::<F>::new(&mut memory, Config::four_levels(true)).unwrap();
        map(&mut space, &mut memory, GIB, 0, GIB + 2 * MIB + 0x1000).unwrap();
        for (gpa, reads) in [(0, 2), (GIB, 2), (2 * GIB, 3), (2 * GIB + 2 * MIB, 4), (1 << 40, 1), (1 << 50, 0)] {
            let before = memory.reads();
            let _ = space.translate(&memory, Gpa::new(gpa));
            assert_eq!(memory.reads() - before, reads, "{gpa:#x}");
        }
        space.destroy(&mut memory);
    }

    fn every_type_and_permission_reads_back<F>() {
        use MemoryType::{Uncacheable, WriteBack, WriteCombining, WriteThrough};
        for memory_type in [WriteBack, WriteThrough, WriteCombining, Uncacheable] {
            for permissions in [
                Permissions::ALL,
                Permissions::READ_WRITE,
                Permissions::READ_EXECUTE,
                Permissions::READ,
            ] {
                let mut space = Checked::<F>::new(Config::four_levels(true), 100);
                let page = Op::Map { gpa: 511, hpa: 1023, pages: 514, permissions, memory_type };
                assert_eq!(space.step(page), Ok(Flush::None));
                // Splitting keeps them.
                assert!(space.step(Op::Unmap { gpa: 600, pages: 3 }).is_ok());
                space.finish();
            }
        }
    }
}

/// What differs for devices: three levels, and entries without types.
fn a_device_has_three_levels<F: Format>() {
    let config = Config { levels: Levels::Three, largest_leaf: PageSize::Size1G, address_bits: 48 };
    let mut space = Checked::<F>::new(config, 100);
    assert_eq!(space.space.address_bits(), 39);
    let ram = Op::Map { gpa: 511, hpa: 511, pages: 1 << 20, permissions: RAM.0, memory_type: RAM.1 };
    assert_eq!(space.step(ram.by_device()), Ok(Flush::None));
    let beyond = Op::Map { gpa: (1 << 27) - 1, hpa: 0, pages: 2, permissions: RAM.0, memory_type: RAM.1 };
    assert_eq!(space.step(beyond.by_device()), Err(Error::BeyondWidth));
    for (pages, permissions) in [(1, Permissions::READ), (5000, Permissions::READ_WRITE)] {
        assert!(space.step(Op::Protect { gpa: 600_000, pages, permissions }).is_ok());
    }
    assert!(space.step(Op::Unmap { gpa: 600, pages: 300_000 }).is_ok());
    assert!(space.step(Op::Flushed).is_ok());
    let whole = space.space.translate(&space.memory, Gpa::new(2 * GIB)).map(|found| found.size);
    assert_eq!(whole, Some(PageSize::Size2M), "the leaf was split");
    space.finish();
}

#[test]
fn devices_have_three_levels() {
    a_device_has_three_levels::<Vtd>();
    a_device_has_three_levels::<AmdVi>();
}

#[test]
fn flushes_combine() {
    let range = |gpa, len| Flush::Range { gpa: Gpa::new(gpa), len };
    assert_eq!(Flush::None.and(range(1, 2)), range(1, 2));
    assert_eq!(range(1, 2).and(Flush::None), range(1, 2));
    assert_eq!(range(1, 2).and(Flush::All), Flush::All);
    assert_eq!(range(0x1000, 0x1000).and(range(0x4000, 0x1000)), range(0x1000, 0x4000));
    assert_eq!(range(0x4000, 0x1000).and(range(0x1000, 0x9000)), range(0x1000, 0x9000));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_operations_agree_with_the_model(data in prop::collection::vec(any::<u8>(), 1..200)) {
        drive(&data);
    }
}
