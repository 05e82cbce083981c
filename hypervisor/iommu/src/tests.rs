//! Units of both vendors, held against their models.

use alloc::boxed::Box;
use alloc::vec::Vec;

use caisson_types::{Extent, Gpa, Hpa, granted};
use proptest::prelude::*;

use crate::testing::{AmdViModel, Translate, VtdModel, VtdOptions, World, drive, parse, random::*};
use crate::*;

const PAGE: u64 = 4096;

fn vtd(options: VtdOptions) -> (World, [VtdModel; 2], Result<Box<dyn Iommu>, Error>) {
    let world = World::default();
    let models = [0, 1].map(|_| VtdModel::new(&world, options));
    let units = coverages().into_iter().zip(models.clone().map(|model| Vtd::new(model, 0).unwrap()));
    let iommus = Iommus::enable(units.collect(), world.clone(), reserved(), &DEVICES.map(address));
    (world, models, iommus.map(|iommus| -> Box<dyn Iommu> { Box::new(iommus) }))
}

fn amdvi(left_on: bool, answers: u32) -> ([AmdViModel; 2], Result<Box<dyn Iommu>, Error>) {
    let world = World::default();
    let models = [0, 1].map(|_| AmdViModel::new(&world, answers != 70_000, left_on, answers));
    let units = models.clone().map(|model| AmdVi::new(model, &ivhd()).unwrap());
    let units = coverages().into_iter().zip(units);
    let iommus = Iommus::enable(units.collect(), world.clone(), reserved(), &DEVICES.map(address));
    (models, iommus.map(|iommus| -> Box<dyn Iommu> { Box::new(iommus) }))
}

#[test]
fn nothing_is_reached_before_it_is_mapped() {
    let (_, mut models, iommus) = vtd(VtdOptions { left_on: true, ..VtdOptions::default() });
    assert!(iommus.is_ok() && models.iter().all(VtdModel::is_on));
    assert_eq!(models[0].look(0x10, 0), None);
    assert_eq!(models[0].look(0x4321, 0x1000), None, "a device that nobody knows");
    assert_eq!(models[1].look(0x100, 0), None);
    let (mut models, iommus) = amdvi(true, u32::MAX);
    assert!(iommus.is_ok());
    assert_eq!(models[0].look(0x10, 0), None);
    assert_eq!(models[0].look(0xffff, 0x1000), None, "a device that nobody knows");
}

#[test]
fn what_the_firmware_left_can_be_turned_off() {
    let world = World::default();
    let model = VtdModel::new(&world, VtdOptions { left_on: true, ..VtdOptions::default() });
    assert_eq!(Vtd::new(model.clone(), 0).unwrap().turn_off(), Ok(()));
    assert_eq!(model.clone().look(8, 0x5000), Some((0x5000, true)));
    let stuck = VtdModel::new(&world, VtdOptions { left_on: true, answers: 0, ..VtdOptions::default() });
    assert!(matches!(Vtd::new(stuck, 0).unwrap().turn_off(), Err(Error::Stuck(_))));
    let mut model = AmdViModel::new(&world, true, true, u32::MAX);
    assert_eq!(AmdVi::new(model.clone(), &ivhd()).unwrap().turn_off(), Ok(()));
    assert_eq!(model.look(8, 0x5000), Some((0x5000, true)));
}

fn stopped(iommus: &mut dyn Iommu, model: &mut impl Translate) {
    let (device, page) = (address(DEVICES[0]), 0x5000);
    let tag = iommus.create().unwrap();
    iommus.map(tag, Gpa::new(page), Hpa::new(0x9000), PAGE, false).unwrap();
    iommus.attach(tag, device).unwrap();
    assert!(model.access(DEVICES[0], page, false));
    assert_eq!(iommus.take_fault(), None);
    assert!(!model.access(DEVICES[0], page, true));
    assert!(!model.access(DEVICES[0], page + PAGE, false));
    assert!(!model.access(0x33, page, true));
    let kind = |address, write| FaultKind::Memory { address, write };
    let mut next = || iommus.take_fault().map(|(fault, tag)| (fault.device, fault.kind, tag));
    assert_eq!(next(), Some((Some(device), kind(page, true), Some(tag))));
    assert_eq!(next(), Some((Some(device), kind(page + PAGE, false), Some(tag))));
    assert_eq!(next(), Some((Some(address(0x33)), kind(page, true), None)));
    assert_eq!(next(), None);
    // More than it remembers: some are lost, and it goes on afterwards.
    for _ in 0..1000 {
        assert!(!model.access(DEVICES[0], 0, true));
    }
    let mut count = 0;
    while iommus.take_fault().is_some() {
        count += 1;
    }
    assert!((1..=256).contains(&count), "{count}");
    assert!(!model.access(DEVICES[0], 0x7000, true));
    assert_eq!(iommus.take_fault().map(|(fault, _)| fault.kind), Some(kind(0x7000, true)));
}

#[test]
fn who_is_stopped_is_told() {
    let (_, mut models, iommus) = vtd(VtdOptions::default());
    stopped(&mut *iommus.unwrap(), &mut models[0]);
    let (mut models, iommus) = amdvi(false, u32::MAX);
    stopped(&mut *iommus.unwrap(), &mut models[0]);
}

#[test]
fn faults_interrupt_where_they_are_told_to() {
    let (_, models, iommus) = vtd(VtdOptions::default());
    let mut iommus = iommus.unwrap();
    assert_eq!(models[0].message(), None);
    iommus.interrupt(Some(Message { address: 0xfee0_1000, data: 0x41 }));
    assert_eq!(models[1].message(), Some((0xfee0_1000, 0x41)));
    iommus.interrupt(None);
    assert_eq!(models[1].message(), None);
}

#[test]
fn messages_arrive_as_the_table_says() {
    // The message that names entry 0x41, and one that names none.
    let (named, old) = (0xfee0_0000 | 0x41 << 5 | 1 << 4, 0xfee0_3000);
    let (_, mut models, iommus) = vtd(VtdOptions { left_on: true, ..VtdOptions::default() });
    let mut iommus = iommus.unwrap();
    assert_eq!(models[0].message_from(8, old, 0x30), Some((0x30, 3, false)));
    assert_eq!(iommus.set_interrupt(0x41, None), Err(Error::NoRemapping));
    assert_eq!(iommus.remap(true), Ok(false), "ids are not wide");
    assert_eq!(iommus.remap(false), Ok(true));
    assert_eq!(models[0].message_from(8, old, 0x30), None);
    assert_eq!(models[0].message_from(8, named, 0), None);
    let interrupt =
        Interrupt { vector: 0x77, processor: 3, level: false, sender: Sender::of(&[address(0x101)]) };
    for (interrupt, expected) in [
        (interrupt, [Some((0x77, 3, false)), None]),
        (Interrupt { processor: 1, ..interrupt }, [Some((0x77, 1, false)), None]),
        (Interrupt { sender: Sender::Device(0x102), ..interrupt }, [None; 2]),
        (
            Interrupt { level: true, sender: Sender::of(&[address(0x101), address(0x300)]), ..interrupt },
            [Some((0x77, 3, true)), Some((0x77, 3, true))],
        ),
        (Interrupt { sender: Sender::of(&[]), ..interrupt }, [Some((0x77, 3, false)); 2]),
    ] {
        assert_eq!(iommus.set_interrupt(0x41, Some(interrupt)), Ok(()));
        for model in &mut models {
            let found = [0x101, 0x200].map(|device| model.message_from(device, named, 0));
            assert_eq!(found, expected, "{interrupt:?}");
        }
    }
    assert_eq!(iommus.set_interrupt(0x41, None), Ok(()));
    assert_eq!(models[0].message_from(0x101, named, 0), None);
    // Units without a queue, and of the other vendor, do not.
    let (_, _, iommus) = vtd(VtdOptions { queue: false, ..VtdOptions::default() });
    assert_eq!(iommus.unwrap().remap(false), Ok(false));
    let (_, iommus) = amdvi(false, u32::MAX);
    assert_eq!(iommus.unwrap().remap(false), Ok(false));
}

#[test]
fn units_that_never_answer_are_given_up() {
    for answers in 0..12 {
        for queue in [false, true] {
            let options = VtdOptions { answers, queue, left_on: true, ..VtdOptions::default() };
            let (_, _, iommus) = vtd(options);
            check_stuck(iommus);
        }
        check_stuck(amdvi(true, answers).1);
    }
}

/// At some point nothing works any more, and says so, again and again, with no time wasted.
fn check_stuck(iommus: Result<Box<dyn Iommu>, Error>) {
    let mut iommus = match iommus {
        Ok(iommus) => iommus,
        Err(error) => return assert!(matches!(error, Error::Stuck(_)), "{error}"),
    };
    let tag = iommus.create().unwrap();
    let mut failed = false;
    for turn in 0..30 {
        let attached = iommus.attach(tag, address(DEVICES[0]));
        let mapped = iommus.map(tag, Gpa::new(turn * PAGE), Hpa::new(0), PAGE, true);
        let unmapped = iommus.unmap(tag, Gpa::new(turn * PAGE), PAGE);
        for result in [attached, mapped, unmapped] {
            assert!(matches!(result, Ok(()) | Err(Error::Stuck(_))), "{result:?}");
        }
        assert!(!failed || unmapped.is_err(), "it works again");
        failed = unmapped.is_err();
    }
    // A model that gives no answer to a command by register has none to give up on.
    if failed {
        assert!(matches!(iommus.destroy(tag), Err(Error::Stuck(_))));
        assert_eq!(iommus.destroy(tag), Err(Error::NoDomain(tag)));
        assert_ne!(iommus.create(), Ok(tag), "what may be in use is not used again");
    }
}

#[test]
fn every_unit_forgets_one_by_one_if_it_must() {
    let (mut models, iommus) = amdvi(true, 70_000);
    // It cannot forget all at once; it runs out of answers on the way.
    assert_eq!(iommus.err(), Some(Error::Stuck("commands")));
    assert_eq!(models[0].look(0x10, 0), None, "the first devices are forgotten");
}

/// What the devices of a driver, which has its own memory, find while a guest's is granted to it that is private from a page on: the
/// pages of the guest's that they reach, by their guest-physical addresses.
fn found_of_a_guest(iommus: &mut dyn Iommu, model: &mut impl Translate, private_from: u64) -> Vec<u64> {
    let page = |number: u64| number * PAGE;
    let piece =
        |gpa, hpa, pages| Extent { gpa: Gpa::new(page(gpa)), hpa: Hpa::new(page(hpa)), bytes: page(pages) };
    // In three pieces, with a hole, and not in the machine's order; one is large.
    let guest = [piece(0, 0x4003, 3), piece(3, 0x2000, 512), piece(0x400, 0x4000, 2)];
    let own = [0x10, 0x11, 0x1fff, 0x4006];
    let tag = iommus.create().unwrap();
    for at in own {
        iommus.map(tag, Gpa::new(page(at)), Hpa::new(page(at)), PAGE, true).unwrap();
    }
    iommus.attach(tag, address(DEVICES[0])).unwrap();
    let of_the_guest = || {
        let pages =
            guest.iter().flat_map(|piece| (0..piece.bytes).step_by(PAGE as usize).map(move |at| (piece, at)));
        pages.map(|(piece, at)| ((piece.gpa.as_u64() + at) / PAGE, piece.hpa.as_u64() + at))
    };
    let found = |model: &mut dyn Translate| -> Vec<u64> {
        let reached = of_the_guest().filter(|(_, at)| match model.look(DEVICES[0], *at) {
            None => false,
            Some(found) => {
                assert_eq!(found, (*at, true), "somewhere else");
                true
            }
        });
        reached.map(|(gpa, _)| gpa).collect()
    };
    assert_eq!(found(model), [0; 0]);
    let of_it = || granted(&guest, Gpa::new(page(private_from)));
    iommus.grant(tag, &mut of_it()).unwrap();
    let reached = found(model);
    let others = [DEVICES[1], DEVICES[4]]
        .map(|other| of_the_guest().filter_map(|(_, at)| model.look(other, at)).count());
    assert_eq!(others, [0; 2], "another's devices");
    iommus.revoke(tag, &mut of_it()).unwrap();
    assert_eq!(found(model), [0; 0], "revoked");
    for at in own {
        assert_eq!(model.look(DEVICES[0], page(at)), Some((page(at), true)), "the driver's own memory");
    }
    iommus.destroy(tag).unwrap();
    reached
}

#[test]
fn what_a_guest_keeps_private_no_device_of_its_driver_reaches() {
    let (mut vtd, mut amdvi) =
        (vtd(VtdOptions { large: true, ..VtdOptions::default() }), amdvi(false, u32::MAX));
    let (vtd, vtd_model) = (vtd.2.as_mut().unwrap(), &mut vtd.1[0]);
    let (amdvi, amdvi_model) = (amdvi.1.as_mut().unwrap(), &mut amdvi.0[0]);
    let all = || (0..515).chain([0x400, 0x401]);
    for private_from in [0, 1, 3, 4, 259, 514, 515, 0x3ff, 0x400, 0x401, 0x402, 1 << 40] {
        let expected: Vec<u64> = all().filter(|page| *page < private_from).collect();
        assert_eq!(found_of_a_guest(vtd.as_mut(), vtd_model, private_from), expected, "VT-d");
        assert_eq!(found_of_a_guest(amdvi.as_mut(), amdvi_model, private_from), expected, "AMD-Vi");
    }
}

#[test]
fn units_have_to_be_there_and_alike() {
    struct Nothing;
    impl Hardware for Nothing {
        fn read32(&self, _: u64) -> u32 {
            u32::MAX
        }
        fn write32(&mut self, _: u64, _: u32) {}
        fn read64(&self, _: u64) -> u64 {
            u64::MAX
        }
        fn write64(&mut self, _: u64, _: u64) {}
        fn now(&self) -> u64 {
            0
        }
    }
    assert_eq!(Vtd::new(Nothing, 0).err(), Some(Error::Absent));
    assert_eq!(AmdVi::new(Nothing, &ivhd()).err(), Some(Error::Absent));
    let world = World::default();
    let units = [[true, false, false], [false, true, false]].map(|levels| {
        let options = VtdOptions { levels, ..VtdOptions::default() };
        Vtd::new(VtdModel::new(&world, options), 0).unwrap()
    });
    let units: Vec<_> = coverages().into_iter().zip(units).collect();
    assert_eq!(Iommus::enable(units, world, Vec::new(), &[]).err(), Some(Error::NoShape));
}

#[test]
fn tags_are_as_many_as_the_units_know() {
    let (world, _, iommus) = vtd(VtdOptions::default());
    assert!(world.is_snooped());
    let mut iommus = iommus.unwrap();
    // 256, without that of nobody and that of the firmware.
    for _ in 0..254 {
        assert!(iommus.create().is_ok());
    }
    assert_eq!(iommus.create(), Err(Error::TooManyDomains));
    assert_eq!(iommus.destroy(Tag(77)), Ok(()));
    assert_eq!(iommus.create(), Ok(Tag(77)));
    assert_eq!(iommus.destroy(Tag(0)), Err(Error::NoDomain(Tag(0))));
    let elsewhere = caisson_pci::Address { segment: 1, routing: 0 };
    assert_eq!(iommus.attach(Tag(77), elsewhere), Err(Error::NoUnit(elsewhere)));
    assert!(!iommus.covers(elsewhere) && iommus.covers(address(0x100)));
}

#[test]
fn units_that_do_not_snoop_are_known() {
    let (world, _, iommus) = vtd(VtdOptions { snoops: false, ..VtdOptions::default() });
    assert!(iommus.is_ok() && !world.is_snooped());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn devices_reach_what_they_should(data in prop::collection::vec(any::<u8>(), 1..200)) {
        drive(&data);
    }

    #[test]
    fn tables_of_acpi_never_surprise(data in prop::collection::vec(any::<u8>(), 0..200)) {
        parse(&data);
    }
}
