//! The 8259 pair, the 8254, the real-time clock and the 16550 with their interrupts: through the 8259s as virtual wire
//! (ExtINT on LINT0), then through the I/O APIC (8259A, 8254, 82093AA, MC146818A and PC16550D data sheets).

#![no_std]
#![no_main]

use caisson_probes::apic::register::{LVT_LINT0, LVT_TIMER};
use caisson_probes::ports::{PIC1, PIC2, PIT, SYSTEM_B, cmos_read, cmos_write, pic_mask, pic_start};
use caisson_probes::{Frame, Shared, apic, check, check_eq, check_in, cpu, probe, time, trap};

probe!("legacy", run);

/// First vectors of the 8259s, and of the I/O APIC's pins.
const PIC_BASE: u8 = 0x20;
const PIN_BASE: u8 = 0x60;
/// Ticks of the 8254 in a second.
const PIT_HZ: u64 = 1_193_182;
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;

static LAST: Shared<u64> = Shared::new(0);

fn run() {
    for irq in 0..16 {
        trap::handle(PIC_BASE + irq, pic_handler as trap::Handler);
        trap::handle(PIN_BASE + irq, apic::count_and_eoi as trap::Handler);
    }
    pic_registers();
    pit_counts();
    channel_2();
    virtual_wire();
    pic_modes();
    io_apic();
}

fn irq(line: u8) -> u64 {
    trap::count(PIC_BASE + line)
}

fn pin(line: u8) -> u64 {
    trap::count(PIN_BASE + line)
}

/// Ends the interrupt at the 8259s, specifically.
fn pic_handler(frame: &mut Frame) {
    let line = frame.vector as u8 - PIC_BASE;
    LAST.set(line.into());
    if line == 8 {
        let _ = cmos_read(0x0c);
    }
    if line >= 8 {
        cpu::outb(PIC2, 0x60 | line & 7);
        cpu::outb(PIC1, 0x62);
    } else {
        cpu::outb(PIC1, 0x60 | line);
    }
}

/// Initialisation and masks.
fn pic_registers() {
    pic_start(PIC_BASE);
    check_eq!((cpu::inb(PIC1 + 1), cpu::inb(PIC2 + 1)), (0xff, 0xff), "masks");
    pic_mask(0xa55a);
    check_eq!((cpu::inb(PIC1 + 1), cpu::inb(PIC2 + 1)), (0x5a, 0xa5), "masks");
    pic_mask(0xffff);
    for port in [PIC1, PIC2] {
        cpu::outb(port, 0x0b);
        check_eq!(cpu::inb(port), 0, "ISR at {:#x}", port);
    }
}

fn pit_mode(counter: u8, mode: u8, count: u16) {
    cpu::outb(0x43, counter << 6 | 0x30 | mode << 1);
    cpu::outb(PIT + u16::from(counter), count as u8);
    cpu::outb(PIT + u16::from(counter), (count >> 8) as u8);
}

fn pit_latched(counter: u8) -> u16 {
    cpu::outb(0x43, counter << 6);
    let port = PIT + u16::from(counter);
    u16::from(cpu::inb(port)) | u16::from(cpu::inb(port)) << 8
}

/// The counter latch, the read-back command, and the rate in mode 2 within 2%. A count wraps after 55 ms: what takes
/// longer, because other guests run meanwhile, is tried again.
fn pit_counts() {
    let quick = |start: u64| cpu::tsc() - start < time::tsc_hz() / 50;
    for attempt in 0.. {
        check!(attempt < 1000, "20 ms without a break");
        let begin = cpu::tsc();
        pit_mode(0, 2, 0);
        time::spin(100);
        let (start, first) = (cpu::tsc(), pit_latched(0));
        time::spin(5000);
        let (end, second) = (cpu::tsc(), pit_latched(0));
        // Latched while it goes on: the value is that of the latch command.
        cpu::outb(0x43, 0);
        time::spin(200);
        let latched = u16::from(cpu::inb(PIT)) | u16::from(cpu::inb(PIT)) << 8;
        let now = pit_latched(0);
        if quick(begin) {
            let expected = (end - start) * PIT_HZ / time::tsc_hz();
            check_in!(u64::from(first - second), expected * 98 / 100..=expected * 102 / 100, "8254 ticks");
            check!(latched >= now + 200, "a latched count, {}, is older than the next one, {}", latched, now);
            break;
        }
    }
    // Read back status of counter 0: mode 2, both bytes, count loaded.
    cpu::outb(0x43, 0xe2);
    check_eq!(cpu::inb(PIT) & 0x7f, 0x34, "status of counter 0");
}

/// Counter 2, its gate and its output, in port 61H.
fn channel_2() {
    cpu::outb(SYSTEM_B, cpu::inb(SYSTEM_B) & !3 | 1);
    let start = cpu::tsc();
    pit_mode(2, 0, 11_932);
    let output = cpu::inb(SYSTEM_B) & 0x21;
    // Where others had their turns meanwhile, the 10 ms may be over.
    if cpu::tsc() - start < time::tsc_hz() / 200 {
        check_eq!(output, 1, "output of counter 2 at the start");
    }
    while cpu::inb(SYSTEM_B) & 0x20 == 0 {
        check!(cpu::tsc() - start < time::tsc_hz(), "counter 2 ends within a second");
    }
    let microseconds = (cpu::tsc() - start) * 1_000_000 / time::tsc_hz();
    check_in!(microseconds, 9_900..=1_000_000, "microseconds of counter 2 in mode 0");
    // Without its gate it stands still.
    cpu::outb(SYSTEM_B, cpu::inb(SYSTEM_B) & !1);
    pit_mode(2, 0, 2000);
    time::spin(3000);
    check_eq!(cpu::inb(SYSTEM_B) & 0x20, 0, "output of counter 2 without its gate");
}

/// How many of something come in 50 ms, with interrupts on.
fn in_50_ms(mut count: impl FnMut() -> u64) -> u64 {
    let before = count();
    time::wait(50, || false);
    count() - before
}

/// Twenty of something come, in no less time than they may: what was owed from before comes at no more than eight times the
/// rate, and some can be lost while the machine is busy with others.
fn ticks(what: &str, mut count: impl FnMut() -> u64, microseconds: u64) {
    let (before, start) = (count(), cpu::tsc());
    check!(time::wait(10_000, || count() >= before + 20), "{}: twenty interrupts", what);
    let elapsed = (cpu::tsc() - start) * 1_000_000 / time::tsc_hz();
    check_in!(elapsed, microseconds * 19 / 8..=10_000_000, "{}: microseconds of twenty interrupts", what);
}

/// IRQ 0 at 1 kHz and IRQ 8 at 1024 Hz through the 8259s.
fn virtual_wire() {
    apic::enable();
    apic::write(LVT_TIMER, MASKED);
    apic::write(LVT_LINT0, 0x700);
    pit_mode(0, 2, (PIT_HZ / 1000) as u16);
    check_eq!(in_50_ms(|| irq(0)), 0, "IRQ 0 while masked in the 8259");
    pic_mask(!1);
    ticks("IRQ 0", || irq(0), 1000);
    apic::write(LVT_LINT0, MASKED | 0x700);
    time::wait(2, || false);
    check_eq!(in_50_ms(|| irq(0)), 0, "IRQ 0 while masked in LINT0");
    apic::write(LVT_LINT0, 0x700);
    ticks("IRQ 0", || irq(0), 1000);
    // One-shot: mode 0.
    pic_mask(0xffff);
    cpu::take_interrupts();
    pit_mode(0, 0, 2000);
    let before = irq(0);
    pic_mask(!1);
    check!(time::wait(1000, || irq(0) > before), "IRQ 0 in mode 0");
    // An edge of mode 2 may have been waiting in the IRR.
    time::wait(10, || false);
    check_eq!(in_50_ms(|| irq(0)), 0, "more IRQ 0 in mode 0");
    // Periodic interrupts of the real-time clock, acknowledged by reading register C.
    cmos_write(0x0b, cmos_read(0x0b) | 0x40);
    pic_mask(!(1 << 2 | 1 << 8));
    let _ = cmos_read(0x0c);
    ticks("IRQ 8", || irq(8), 976);
    cmos_write(0x0b, cmos_read(0x0b) & !0x40);
    pic_mask(0xffff);
}

/// The UART's transmitter-empty interrupt (IRQ 4), priorities, in-service bits, and polling.
fn pic_modes() {
    let before = irq(4);
    pic_mask(!(1 << 4));
    cpu::outb(0x3f9, 2);
    check!(time::wait(1000, || irq(4) > before), "IRQ 4 of the UART");
    check_eq!(cpu::inb(0x3fa) & 0xf, 2, "IIR: transmitter empty");
    check_eq!(cpu::inb(0x3fa) & 0xf, 1, "IIR after it was read");
    cpu::outb(0x3f9, 0);
    pic_mask(0xffff);
    // A request stays while masked, and is seen in the IRR; polled, it is acknowledged (OCW3).
    pit_mode(0, 0, 100);
    time::spin(500);
    cpu::outb(PIC1, 0x0a);
    check_eq!(cpu::inb(PIC1) & 1, 1, "IRR with IRQ 0 raised");
    pic_mask(!1);
    cpu::outb(PIC1, 0x0c);
    check_eq!(cpu::inb(PIC1), 0x80, "poll of IRQ 0");
    cpu::outb(PIC1, 0x0b);
    check_eq!(cpu::inb(PIC1), 1, "ISR after the poll");
    cpu::outb(PIC1, 0x20);
    check_eq!(cpu::inb(PIC1), 0, "ISR after a nonspecific EOI");
    pic_mask(0xffff);
}

/// Pins 2 (8254), 8 (clock) and 4 (UART); edge and level, masks, remote IRR and EOI.
fn io_apic() {
    apic::write(LVT_LINT0, MASKED);
    check_eq!(apic::io_read(1) >> 16 & 0xff, 23, "last pin");
    check_eq!(apic::io_read(1) & 0xff, 0x20, "version");
    apic::io_route(2, 0, u32::from(PIN_BASE + 2));
    check_eq!(apic::io_read(0x14) & 0x1_ffff, u32::from(PIN_BASE + 2), "redirection of pin 2");
    pit_mode(0, 2, (PIT_HZ / 1000) as u16);
    ticks("pin 2", || pin(2), 1000);
    apic::io_route(2, 0x55, u32::from(PIN_BASE + 2));
    time::wait(2, || false);
    check_eq!(in_50_ms(|| pin(2)), 0, "pin 2 for another CPU");
    // The destination is written before the mask: a tick in between would still come.
    apic::io_route(2, 0x55, MASKED | u32::from(PIN_BASE + 2));
    apic::io_route(2, 0, MASKED | u32::from(PIN_BASE + 2));
    check_eq!(in_50_ms(|| pin(2)), 0, "pin 2 while masked");

    cmos_write(0x0b, cmos_read(0x0b) | 0x40);
    trap::handle(
        PIN_BASE + 8,
        (|_: &mut Frame| {
            let _ = cmos_read(0x0c);
            apic::eoi();
        }) as trap::Handler,
    );
    apic::io_route(8, 0, u32::from(PIN_BASE + 8));
    // The line may have risen while it was masked, and falls when register C is read.
    let _ = cmos_read(0x0c);
    ticks("pin 8", || pin(8), 976);
    cmos_write(0x0b, cmos_read(0x0b) & !0x40);
    apic::io_route(8, 0, MASKED);

    // The UART's line stays asserted until IIR is read: level-triggered, it comes again after each EOI.
    trap::handle(
        PIN_BASE + 4,
        (|_: &mut Frame| {
            check_eq!(apic::io_read(0x18) & 1 << 14, 1 << 14, "remote IRR in the handler");
            if pin(4) == 5 {
                check_eq!(cpu::inb(0x3fa) & 0xf, 2, "IIR: transmitter empty");
            }
            apic::eoi();
        }) as trap::Handler,
    );
    cpu::outb(0x3f9, 2);
    apic::io_route(4, 0, LEVEL | u32::from(PIN_BASE + 4));
    check!(time::wait(1000, || pin(4) == 5), "a level-triggered pin comes again");
    check_eq!(in_50_ms(|| pin(4)), 0, "pin 4 after IIR was read");
    check_eq!(apic::io_read(0x18) & 1 << 14, 0, "remote IRR at the end");
    cpu::outb(0x3f9, 0);
    apic::io_route(4, 0, MASKED);
    // Its edge comes once.
    trap::handle(PIN_BASE + 4, apic::count_and_eoi as trap::Handler);
    apic::io_route(4, 0, u32::from(PIN_BASE + 4));
    let before = pin(4);
    cpu::outb(0x3f9, 2);
    time::wait(10, || false);
    check_eq!(pin(4), before + 1, "edges of pin 4");
    cpu::outb(0x3f9, 0);
    check_eq!(LAST.get() & !0xf, 0, "lines");
}
