//! The legacy devices wired together: ports to registers, interrupt lines to the 8259 pair and the I/O APIC.
//!
//! Each line reaches both interrupt chips, as on a PC; the guest masks it in the one that it does not use. Line `n` is
//! pin `n` of the I/O APIC but for line 0, which is pin 2, as the MADT's interrupt source override says.
//!
//! **The caller's part.** Call [`Chipset::advance`] when [`Chipset::next_deadline`] comes; every other method brings what
//! it touches up to date by itself. After each call of any method, while [`Chipset::has_messages`], deliver what
//! [`Chipset::pop_message`] gives, and look at [`Chipset::pic_output`]. When [`Chipset::console_ready`], offer input that
//! was held back.
//!
//! **Time.** It is the caller's, and never goes back: where a vCPU comes with a time that is before another's, because its
//! CPU's clock is a little behind or it has waited for its turn, it gets the other's.
//!
//! **Wide accesses.** A register that is wider than a byte takes one access of its width. Any other access is split into
//! bytes at consecutive ports, low byte first, as an ISA bus does.

mod lines;
mod outbox;

use caisson_irqchip::InterruptMessage;
use caisson_types::{Instant, Moment};

use crate::{PciConfig, Pit, PowerManagement, ResetControl, Rtc, Uart, pci, pm, reset, uart};
use lines::Interrupts;

/// First port of the UART.
pub const COM1: u16 = 0x3F8;
/// The UART's interrupt line.
pub const COM1_IRQ: u8 = 4;
/// The timer's interrupt line.
pub const PIT_IRQ: u8 = 0;
/// The I/O APIC pin of [`PIT_IRQ`].
pub const PIT_PIN: u8 = 2;
/// The real-time clock's interrupt line.
pub const RTC_IRQ: u8 = 8;

/// The interrupt line of x87 errors.
pub const COPROCESSOR_IRQ: u8 = 13;

const LINE_STATUS: u16 = COM1 + uart::offset::LINE_STATUS;
const KEYBOARD_IRQ: u8 = 1;
const MOUSE_IRQ: u8 = 12;

/// What an access leaves to do outside of the chipset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "an effect is to be carried out by the caller"]
pub enum Effect {
    /// Nothing.
    None,
    /// A byte for the console.
    Console(u8),
    /// The guest resets the machine.
    Reset,
    /// The guest turns the machine off.
    PowerOff,
}

/// The chipset of one virtual machine.
#[derive(Clone, Debug)]
pub struct Chipset {
    uart: Uart,
    pit: Pit,
    rtc: Rtc,
    pm: PowerManagement,
    reset: ResetControl,
    pci: PciConfig,
    interrupts: Interrupts,
    /// POST code, port 0x80, and the page registers beside it, which are plain memory without a DMA controller.
    pages: [u8; 16],
    deadline: Instant,
    /// The latest time that anybody came with.
    latest: Instant,
}

impl Chipset {
    /// A machine that is turned on at `now`, whose real-time clock shows `unix_seconds` (since 1970, UTC) at
    /// [`Instant::ZERO`] and whose I/O APIC has the id `ioapic_id`.
    #[must_use]
    pub fn new(unix_seconds: u64, ioapic_id: u8, now: Instant) -> Self {
        let mut chipset = Self {
            uart: Uart::new(),
            pit: Pit::new(now),
            rtc: Rtc::new(unix_seconds, now),
            pm: PowerManagement::new(now),
            reset: ResetControl::new(),
            pci: PciConfig::new(),
            interrupts: Interrupts::new(ioapic_id),
            pages: [0; 16],
            deadline: Instant::NEVER,
            latest: now,
        };
        chipset.plan();
        chipset
    }

    /// Resets the machine at `now`, as by [`Effect::Reset`]. The battery keeps the clock's time and memory going; lines of
    /// devices outside of the chipset stay as they are driven, and messages that nobody has fetched are gone.
    pub fn reset(&mut self, now: Instant) {
        let now = self.not_before(now);
        self.uart = Uart::new();
        self.pit = Pit::new(now);
        self.rtc.reset(now);
        self.pm = PowerManagement::new(now);
        self.reset = ResetControl::new();
        self.pci.reset();
        self.pages = [0; 16];
        for line in [PIT_IRQ, KEYBOARD_IRQ, COM1_IRQ, RTC_IRQ, pm::SCI_IRQ, MOUSE_IRQ, COPROCESSOR_IRQ] {
            self.interrupts.set(line, false);
        }
        self.interrupts.reset();
        self.plan();
    }

    /// The machine's DSDT calls S5 by this SLP_TYP instead of [`pm::SLEEP_TYPE_S5`].
    pub fn set_soft_off(&mut self, sleep_type: u8) {
        self.pm.set_soft_off(sleep_type);
    }

    /// Its PCI bus has a host bridge.
    pub fn add_host_bridge(&mut self) {
        self.pci.add_bridge();
    }

    /// The real-time clock, for the bytes that firmware keeps in its memory.
    pub fn rtc_mut(&mut self) -> &mut Rtc {
        &mut self.rtc
    }

    /// Reads `size` bytes (1, 2 or 4) at `port`.
    #[inline]
    pub fn port_read(&mut self, port: u16, size: u8, now: impl Moment) -> u32 {
        match (port, size) {
            (_, 1) => u32::from(self.read_byte(port, now)),
            (pm::TIMER, 4) => PowerManagement::timer(self.not_before(now)),
            (pci::ADDRESS, 4) => self.pci.read_address(),
            _ => {
                let now = self.not_before(now);
                self.read_split(port, size, now)
            }
        }
    }

    /// Writes the low `size` bytes (1, 2 or 4) of `value` to `port`.
    #[inline]
    pub fn port_write(&mut self, port: u16, size: u8, value: u32, now: impl Moment) -> Effect {
        match (port, size) {
            (_, 1) => self.write_byte(port, value as u8, now),
            (pci::ADDRESS, 4) => {
                self.pci.write_address(value);
                Effect::None
            }
            _ => {
                let now = self.not_before(now);
                self.write_split(port, size, value, now)
            }
        }
    }

    /// Reads `size` bytes at `offset` of the I/O APIC's page.
    #[must_use]
    pub fn ioapic_mmio_read(&self, offset: u64, size: u8) -> u32 {
        self.interrupts.ioapic.mmio_read(offset, size)
    }

    /// Writes `value` at `offset` of the I/O APIC's page.
    pub fn ioapic_mmio_write(&mut self, offset: u64, value: u32, now: Instant) {
        let now = self.not_before(now);
        // Ticks from before a change of masks meet the masks of their time.
        self.advance_pit(now);
        self.interrupts.ioapic_write(offset, value);
        self.plan();
    }

    /// A local APIC has ended a level-triggered interrupt with `vector`.
    pub fn eoi(&mut self, vector: u8) {
        self.interrupts.eoi(vector);
    }

    /// No local APIC has accepted this level-triggered message.
    pub fn rejected(&mut self, message: &InterruptMessage) {
        self.interrupts.ioapic.rejected(message);
    }

    /// A local APIC may now accept what none did.
    pub fn resend(&mut self) {
        self.interrupts.resend();
    }

    /// Whether the 8259 pair asks the CPU for an interrupt.
    #[must_use]
    #[inline]
    pub fn pic_output(&self) -> bool {
        self.interrupts.pic.output()
    }

    /// The CPU acknowledges the 8259 pair's interrupt: its vector.
    pub fn pic_acknowledge(&mut self) -> u8 {
        self.interrupts.pic.acknowledge()
    }

    /// Whether there are messages to deliver.
    #[must_use]
    #[inline]
    pub fn has_messages(&self) -> bool {
        !self.interrupts.outbox.is_empty()
    }

    /// The oldest message to deliver.
    pub fn pop_message(&mut self) -> Option<InterruptMessage> {
        self.interrupts.outbox.pop()
    }

    /// Drives a line of a device outside of the chipset: an ISA interrupt below 16 (both chips), or a higher pin of the
    /// I/O APIC. Lines of the chipset's own devices are theirs.
    pub fn set_irq(&mut self, line: u8, level: bool) {
        self.interrupts.set(line, level);
    }

    /// A real device has raised line `line` (16 or above), and it is masked at the machine's I/O APIC until
    /// [`Chipset::take_ended_lines`] tells of it.
    pub fn hold_line(&mut self, line: u8) {
        self.interrupts.hold(line);
    }

    /// The lines of real devices whose service has ended, a bit each: they are to be opened again.
    #[must_use]
    pub fn take_ended_lines(&mut self) -> u32 {
        self.interrupts.take_ended()
    }

    /// Whether a level-triggered interrupt of the I/O APIC's pin `pin` is under way: accepted, and its service not ended.
    #[must_use]
    pub fn is_under_way(&self, pin: u8) -> bool {
        self.interrupts.ioapic.is_under_way(usize::from(pin))
    }

    /// Whether the guest wants the I/O APIC's pin `pin`, and then whether it is active low, and level-triggered.
    #[must_use]
    pub fn wants_line(&self, pin: u8) -> Option<(bool, bool)> {
        self.interrupts.ioapic.wants(usize::from(pin))
    }

    /// An x87 instruction has met an error that the guest takes by interrupt: raises [`COPROCESSOR_IRQ`] until the
    /// guest writes port 0xF0, as a PC's latch behind FERR# does (Intel 440FX PCIset, PIIX3, "Coprocessor Error Register").
    /// The other half of that write, IGNNE#, which lets errors be ignored, has no counterpart in a virtual CPU.
    pub fn coprocessor_error(&mut self) {
        self.interrupts.set(COPROCESSOR_IRQ, true);
    }

    /// Whether the console can take a byte of input.
    #[must_use]
    #[inline]
    pub fn console_ready(&self) -> bool {
        self.uart.can_receive()
    }

    /// A byte of console input. `false` when there is no room: keep it and offer it again.
    #[must_use]
    pub fn console_input(&mut self, byte: u8) -> bool {
        let taken = self.uart.receive(byte);
        self.update_uart();
        taken
    }

    /// A break on the console's line, which Linux takes as the SysRq key. `false` as for [`Chipset::console_input`].
    #[must_use]
    pub fn console_break(&mut self) -> bool {
        let taken = self.uart.receive_break();
        self.update_uart();
        taken
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&mut self) {
        self.pm.press_power_button();
        self.update_pm();
    }

    /// Lets the time pass until `now`.
    pub fn advance(&mut self, now: Instant) {
        if now < self.deadline {
            return;
        }
        let now = self.not_before(now);
        self.advance_pit(now);
        if now >= self.rtc.next_deadline() {
            self.rtc.advance(now);
            self.interrupts.set(RTC_IRQ, self.rtc.irq());
        }
        if now >= self.pm.next_deadline() {
            self.pm.advance(now);
            self.interrupts.set(pm::SCI_IRQ, self.pm.sci());
        }
        self.plan();
    }

    /// When [`Chipset::advance`] is to be called at the latest.
    #[must_use]
    #[inline]
    pub fn next_deadline(&self) -> Instant {
        self.deadline
    }

    #[inline]
    fn not_before(&mut self, now: impl Moment) -> Instant {
        self.latest = self.latest.max(now.instant());
        self.latest
    }

    fn plan(&mut self) {
        // Nobody waits for ticks that are masked everywhere: they are caught up with at the unmasking.
        let pit = if self.interrupts.pit_visible() { self.pit.next_deadline() } else { Instant::NEVER };
        self.deadline = pit.min(self.rtc.next_deadline()).min(self.pm.next_deadline());
    }

    /// Brings the PIT up to `now`, where it has anything to do.
    #[inline]
    fn advance_pit(&mut self, now: impl Moment) {
        let deadline = self.pit.next_deadline();
        if deadline == Instant::NEVER {
            return;
        }
        let now = self.not_before(now);
        if now >= deadline {
            self.tick(now);
        }
    }

    #[cold]
    fn tick(&mut self, now: Instant) {
        if self.pit.advance(now, self.interrupts.pit_visible()) {
            self.interrupts.set(PIT_IRQ, false);
            self.interrupts.set(PIT_IRQ, true);
        }
        self.interrupts.set(PIT_IRQ, self.pit.output(now));
    }

    fn update_uart(&mut self) {
        if self.uart.take_restart() {
            self.interrupts.set(COM1_IRQ, false);
        }
        self.interrupts.set(COM1_IRQ, self.uart.irq());
    }

    fn update_rtc(&mut self) {
        self.interrupts.set(RTC_IRQ, self.rtc.irq());
        self.plan();
    }

    fn update_pm(&mut self) {
        self.interrupts.set(pm::SCI_IRQ, self.pm.sci());
        self.plan();
    }

    fn update_keyboard(&mut self) {
        self.interrupts.set(KEYBOARD_IRQ, self.reset.keyboard_irq());
        self.interrupts.set(MOUSE_IRQ, self.reset.mouse_irq());
    }

    #[inline]
    fn read_byte(&mut self, port: u16, now: impl Moment) -> u8 {
        match port {
            COM1..=0x3FF => {
                let value = self.uart.read(port - COM1);
                // Polling the line status changes the line only where it has reported an error.
                if port != LINE_STATUS || value & uart::ERRORS != 0 {
                    self.update_uart();
                }
                value
            }
            0x20 | 0x21 | 0xA0 | 0xA1 | 0x4D0 | 0x4D1 => {
                self.advance_pit(now);
                self.interrupts.pic.read(port)
            }
            _ => {
                let now = self.not_before(now);
                self.read_rare(port, now)
            }
        }
    }

    fn read_rare(&mut self, port: u16, now: Instant) -> u8 {
        match port {
            0x40..=0x43 => self.pit.read(port - 0x40, now),
            0x61 => self.pit.read_control_b(now),
            0x71 => {
                let value = self.rtc.read_data(now);
                self.update_rtc();
                value
            }
            0x60 => {
                let value = self.reset.read_data();
                self.update_keyboard();
                value
            }
            0x64 => self.reset.read_status(),
            0x80..=0x8F => self.pages[usize::from(port & 15)],
            0x92 => self.reset.read_port_92(),
            reset::CONTROL => self.reset.read_control(),
            pci::DATA..=pci::DATA_END => self.pci.read_data(port - pci::DATA),
            _ => match self.pm.read(port, now) {
                Some(value) => {
                    self.update_pm();
                    value
                }
                None => 0xFF,
            },
        }
    }

    #[inline]
    fn write_byte(&mut self, port: u16, value: u8, now: impl Moment) -> Effect {
        match port {
            COM1..=0x3FF => {
                let sent = self.uart.write(port - COM1, value);
                self.update_uart();
                return sent.map_or(Effect::None, Effect::Console);
            }
            0x20 | 0x21 | 0xA0 | 0xA1 | 0x4D0 | 0x4D1 => {
                self.advance_pit(now);
                self.interrupts.pic_write(port, value);
                self.plan();
            }
            0x70 => self.rtc.write_index(value),
            _ => {
                let now = self.not_before(now);
                return self.write_rare(port, value, now);
            }
        }
        Effect::None
    }

    fn write_rare(&mut self, port: u16, value: u8, now: Instant) -> Effect {
        let resets = match port {
            0x40..=0x43 => {
                self.advance_pit(now);
                self.pit.write(port - 0x40, value, now);
                self.interrupts.set(PIT_IRQ, self.pit.output(now));
                self.plan();
                false
            }
            0x61 => {
                self.pit.write_control_b(value, now);
                false
            }
            0x71 => {
                self.rtc.write_data(value, now);
                self.update_rtc();
                false
            }
            0x60 | 0x64 => {
                let resets =
                    if port == 0x60 { self.reset.write_data(value) } else { self.reset.write_command(value) };
                self.update_keyboard();
                resets
            }
            0x80..=0x8F => {
                self.pages[usize::from(port & 15)] = value;
                false
            }
            0x92 => self.reset.write_port_92(value),
            0xF0 => {
                self.interrupts.set(COPROCESSOR_IRQ, false);
                false
            }
            reset::CONTROL => self.reset.write_control(value),
            _ => {
                let off = self.pm.write(port, value, now);
                self.update_pm();
                return if off { Effect::PowerOff } else { Effect::None };
            }
        };
        if resets { Effect::Reset } else { Effect::None }
    }

    #[cold]
    fn read_split(&mut self, port: u16, size: u8, now: Instant) -> u32 {
        let mut bytes = [0xFF; 4];
        for (i, byte) in (0..).zip(bytes.iter_mut().take(usize::from(size))) {
            *byte = self.read_byte(port.wrapping_add(i), now);
        }
        let value = u32::from_le_bytes(bytes);
        match size {
            2 => value & 0xFFFF,
            _ => value,
        }
    }

    #[cold]
    fn write_split(&mut self, port: u16, size: u8, value: u32, now: Instant) -> Effect {
        let mut effect = Effect::None;
        for (i, byte) in (0..).zip(value.to_le_bytes()).take(usize::from(size)) {
            match self.write_byte(port.wrapping_add(i), byte, now) {
                Effect::None => {}
                // No two of these can come of one access: their ports are more than four bytes apart.
                other => effect = other,
            }
        }
        effect
    }
}

#[cfg(any(test, feature = "fuzzing"))]
mod drive;
#[cfg(any(test, feature = "fuzzing"))]
pub use drive::drive;
#[cfg(test)]
mod tests;
