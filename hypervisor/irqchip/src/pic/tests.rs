use super::*;
use proptest::prelude::*;

const EOI: u8 = 0x20;

fn initialised(icw4: u8) -> PicPair {
    let mut pic = PicPair::new();
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 0x04),
        (0x21, icw4),
        (0xa0, 0x11),
        (0xa1, 0x38),
        (0xa1, 0x02),
        (0xa1, icw4 & !0x10),
    ] {
        pic.write(port, value);
    }
    pic
}

fn pulse(pic: &mut PicPair, line: u8) {
    pic.set_irq(line, true);
    pic.set_irq(line, false);
}

fn isr(pic: &mut PicPair, port: u16) -> u8 {
    pic.write(port, 0x0b);
    pic.read(port)
}

fn irr(pic: &mut PicPair, port: u16) -> u8 {
    pic.write(port, 0x0a);
    pic.read(port)
}

#[test]
fn silent_until_initialised() {
    let mut pic = PicPair::new();
    assert_eq!(pic.read(0x21), 0xff);
    pic.write(0x21, 0xfb);
    assert_eq!(pic.read(0x21), 0xfb, "Linux probes for the chip in this way");
    pic.write(0x21, 0);
    pulse(&mut pic, 1);
    assert!(!pic.output());
    assert_eq!(pic.acknowledge(), 7);
    assert_eq!(pic.read(0x22), 0xff);
}

#[test]
fn priorities_nest() {
    let mut pic = initialised(1);
    pulse(&mut pic, 5);
    pulse(&mut pic, 3);
    assert_eq!(irr(&mut pic, 0x20), 0x28);
    assert_eq!(pic.acknowledge(), 0x33);
    assert!(!pic.output(), "5 is below 3");
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    assert_eq!(isr(&mut pic, 0x20), 0x0a);
    pic.write(0x20, EOI);
    assert_eq!(isr(&mut pic, 0x20), 0x08);
    assert!(!pic.output());
    pic.write(0x20, EOI);
    assert_eq!(pic.acknowledge(), 0x35);
}

#[test]
fn the_second_chip_goes_through_ir2() {
    let mut pic = initialised(1);
    pulse(&mut pic, 10);
    pulse(&mut pic, 3);
    assert_eq!(irr(&mut pic, 0x20), 0x0c);
    assert_eq!(pic.acknowledge(), 0x3a);
    assert_eq!((isr(&mut pic, 0x20), isr(&mut pic, 0xa0)), (0x04, 0x04));
    pulse(&mut pic, 8);
    assert!(!pic.output(), "IR2 is in service");
    pic.write(0xa0, EOI);
    pic.write(0x20, EOI);
    assert_eq!(pic.acknowledge(), 0x38);
    pic.write(0xa0, EOI);
    pic.write(0x20, EOI);
    assert_eq!(pic.acknowledge(), 0x33);
    pic.set_irq(2, true);
    assert!(!pic.output());
}

#[test]
fn special_fully_nested_mode_lets_the_second_chip_nest() {
    let mut pic = initialised(0x11);
    pulse(&mut pic, 10);
    assert_eq!(pic.acknowledge(), 0x3a);
    pulse(&mut pic, 8);
    assert_eq!(pic.acknowledge(), 0x38);
    pulse(&mut pic, 11);
    assert!(!pic.output());
}

#[test]
fn masked_requests_wait_and_withdrawn_ones_are_spurious() {
    let mut pic = initialised(1);
    pic.write(0x21, 0x10);
    pulse(&mut pic, 4);
    assert!(!pic.output());
    pic.write(0x21, 0);
    assert!(pic.output());
    pic.write(0x21, 0x10);
    assert_eq!(pic.acknowledge(), 0x37);
    assert_eq!(isr(&mut pic, 0x20), 0);
    pic.write(0x4d0, 0x20);
    pic.set_irq(5, true);
    assert!(pic.output());
    pic.set_irq(5, false);
    assert_eq!(pic.acknowledge(), 0x37);
}

#[test]
fn levels_request_as_long_as_they_last() {
    let mut pic = initialised(1);
    pic.write(0x4d0, 0xff);
    pic.write(0x4d1, 0xff);
    assert_eq!((pic.read(0x4d0), pic.read(0x4d1)), (0xf8, 0xde));
    pic.set_irq(11, true);
    assert_eq!(pic.acknowledge(), 0x3b);
    pic.write(0xa0, EOI);
    pic.write(0x20, EOI);
    assert_eq!(pic.acknowledge(), 0x3b);
    pic.set_irq(11, false);
    pic.write(0xa0, EOI);
    pic.write(0x20, EOI);
    assert!(!pic.output());
}

#[test]
fn automatic_eoi_and_rotation() {
    let mut pic = initialised(0x03);
    pic.write(0x20, 0x80);
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x30);
    assert_eq!(isr(&mut pic, 0x20), 0);
    pulse(&mut pic, 0);
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x31, "0 is now the last");
    assert_eq!(pic.acknowledge(), 0x30);
}

#[test]
fn rotation_by_command() {
    let mut pic = initialised(1);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x33);
    pic.write(0x20, 0xa0);
    pulse(&mut pic, 3);
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x34);
    pic.write(0x20, 0xe4);
    pic.write(0x20, 0xc2);
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x33, "3 is first");
    pic.write(0x20, 0x63);
    assert_eq!(isr(&mut pic, 0x20), 0);
    assert_eq!(pic.acknowledge(), 0x30);
    pic.write(0x20, 0x40);
    assert_eq!(isr(&mut pic, 0x20), 1);
}

#[test]
fn special_mask_mode_lets_lower_ones_through() {
    let mut pic = initialised(1);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x33);
    pulse(&mut pic, 6);
    pic.write(0x21, 0x08);
    assert!(!pic.output());
    pic.write(0x20, 0x68);
    assert_eq!(pic.acknowledge(), 0x36);
    pic.write(0x20, EOI);
    assert_eq!(isr(&mut pic, 0x20), 0x08, "the masked one stays");
    pic.write(0x20, EOI);
    assert_eq!(isr(&mut pic, 0x20), 0x08);
    pic.write(0x20, 0x48);
    pic.write(0x20, EOI);
    assert_eq!(isr(&mut pic, 0x20), 0);
}

#[test]
fn a_poll_acknowledges() {
    let mut pic = initialised(1);
    pulse(&mut pic, 9);
    pic.write(0x20, 0x0c);
    assert_eq!(pic.read(0x20), 0x82);
    pic.write(0xa0, 0x0c);
    assert_eq!(pic.read(0xa0), 0x81);
    pic.write(0xa0, 0x0c);
    assert_eq!(pic.read(0xa0), 0x00);
    assert_eq!(isr(&mut pic, 0xa0), 0x02);
}

#[test]
fn icw1_alone_makes_a_single_chip_without_icw4() {
    let mut pic = initialised(3);
    pic.write(0x20, 0x12);
    pic.write(0x21, 0x47);
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x40);
    assert_eq!(isr(&mut pic, 0x20), 1, "no automatic EOI without ICW4");
}

#[test]
fn icw1_forgets_edges_but_not_levels() {
    let mut pic = initialised(1);
    pic.write(0x4d0, 0x80);
    pic.set_irq(7, true);
    pic.set_irq(6, true);
    pic.write(0x20, 0x13);
    pic.write(0x21, 0x30);
    pic.write(0x21, 0x01);
    assert_eq!(irr(&mut pic, 0x20), 0x80);
}

proptest! {
    /// In the usual mode every edge of an unmasked line is served exactly once, if it comes after the service of the last.
    #[test]
    fn edges_are_neither_lost_nor_doubled(lines in proptest::collection::vec(0u8..16, 1..100)) {
        let mut pic = initialised(1);
        for chunk in lines.chunks(5) {
            let mut expected = 0u16;
            for &line in chunk.iter().filter(|&&line| line != CASCADE) {
                pulse(&mut pic, line);
                expected |= 1 << line;
            }
            let mut served = 0u16;
            while pic.output() {
                let line = pic.acknowledge() - 0x30;
                prop_assert_eq!(served & 1 << line, 0);
                served |= 1 << line;
                if line >= 8 {
                    pic.write(0xa0, EOI);
                }
                pic.write(0x20, EOI);
            }
            prop_assert_eq!(served, expected);
        }
    }
}
