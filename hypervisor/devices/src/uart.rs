//! The 16550A UART of COM1, without a baud rate: a byte is sent the moment that it is written.
//!
//! The transmitter is always empty, so `THRE` and `TEMT` always read as one, and the transmitter interrupt is pending
//! again right after each byte. What the model keeps exactly is what makes drivers fast or makes them hang: the order
//! of interrupt sources, which read clears which source, the gate that OUT2 is on a PC, and a request line that drops
//! and rises again where the chip's would, since COM1 is edge-triggered.
//!
//! As the transmitter needs no time, neither do the four character times of the receiver's time-out: with fewer
//! bytes than the trigger level in the FIFO the time-out is pending at once. Word length, parity and divisor are
//! kept but change nothing. The modem lines of the other end (CTS, DSR, DCD) are always on.
//!
//! Manual: National Semiconductor PC16550D, sections 8.0 (registers) to 8.7 (FIFO interrupt mode).

/// Bytes in each FIFO.
const FIFO: usize = 16;

/// Interrupt enable register (section 8.6).
mod ier {
    pub(super) const RECEIVED: u8 = 1 << 0;
    pub(super) const TRANSMIT_EMPTY: u8 = 1 << 1;
    pub(super) const LINE_STATUS: u8 = 1 << 2;
    pub(super) const MODEM_STATUS: u8 = 1 << 3;
    pub(super) const ALL: u8 = 0x0F;
}

/// Interrupt identification register (section 8.5).
mod iir {
    pub(super) const NONE: u8 = 0x01;
    pub(super) const LINE_STATUS: u8 = 0x06;
    pub(super) const RECEIVED: u8 = 0x04;
    pub(super) const TIMEOUT: u8 = 0x0C;
    pub(super) const TRANSMIT_EMPTY: u8 = 0x02;
    pub(super) const MODEM_STATUS: u8 = 0x00;
    pub(super) const FIFOS_ENABLED: u8 = 0xC0;
}

/// FIFO control register (section 8.4).
mod fcr {
    pub(super) const ENABLE: u8 = 1 << 0;
    pub(super) const RESET_RECEIVER: u8 = 1 << 1;
}

/// Line control register (section 8.1): only the divisor latch access bit means something here.
const LCR_DLAB: u8 = 1 << 7;

/// Modem control register (section 8.7).
mod mcr {
    pub(super) const DTR: u8 = 1 << 0;
    pub(super) const RTS: u8 = 1 << 1;
    pub(super) const OUT1: u8 = 1 << 2;
    pub(super) const OUT2: u8 = 1 << 3;
    pub(super) const LOOP: u8 = 1 << 4;
    pub(super) const ALL: u8 = 0x1F;
}

/// Line status register (section 8.3).
mod lsr {
    pub(super) const DATA_READY: u8 = 1 << 0;
    pub(super) const OVERRUN: u8 = 1 << 1;
    pub(super) const BREAK: u8 = 1 << 4;
    pub(super) const TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;
    pub(super) const FIFO_ERROR: u8 = 1 << 7;
}

/// Bits of the line status that reading it clears.
pub(crate) const ERRORS: u8 = lsr::OVERRUN | lsr::BREAK;

/// Modem status register (section 8.8).
mod msr {
    pub(super) const TRAILING_RI: u8 = 1 << 2;
    pub(super) const CTS: u8 = 1 << 4;
    pub(super) const DSR: u8 = 1 << 5;
    pub(super) const RI: u8 = 1 << 6;
    pub(super) const DCD: u8 = 1 << 7;
    /// The other end is there, ready and connected.
    pub(super) const CONNECTED: u8 = CTS | DSR | DCD;
}

/// Pending interrupt sources as a set, the most urgent in the lowest bit.
mod source {
    pub(super) const LINE_STATUS: u8 = 1 << 0;
    pub(super) const RECEIVED: u8 = 1 << 1;
    pub(super) const TIMEOUT: u8 = 1 << 2;
    pub(super) const TRANSMIT_EMPTY: u8 = 1 << 3;
    pub(super) const MODEM_STATUS: u8 = 1 << 4;
}

/// The registers by offset from the base port.
pub mod offset {
    /// Receiver buffer (read), transmitter holding (write), divisor low (DLAB).
    pub const DATA: u16 = 0;
    /// Interrupt enable, divisor high (DLAB).
    pub const INTERRUPT_ENABLE: u16 = 1;
    /// Interrupt identification (read), FIFO control (write).
    pub const INTERRUPT_ID: u16 = 2;
    /// Line control.
    pub const LINE_CONTROL: u16 = 3;
    /// Modem control.
    pub const MODEM_CONTROL: u16 = 4;
    /// Line status.
    pub const LINE_STATUS: u16 = 5;
    /// Modem status.
    pub const MODEM_STATUS: u16 = 6;
    /// Scratch.
    pub const SCRATCH: u16 = 7;
}

/// Received bytes that the guest has not read yet. Invariant: `head < FIFO`, `len <= FIFO`.
#[derive(Clone, Debug)]
struct Receiver {
    bytes: [u8; FIFO],
    /// Bit `i` is set when `bytes[i]` stands for a break that was not shown in the line status yet.
    breaks: u16,
    head: usize,
    len: usize,
}

impl Receiver {
    const EMPTY: Self = Self { bytes: [0; FIFO], breaks: 0, head: 0, len: 0 };

    fn push(&mut self, byte: u8, is_break: bool) {
        let slot = (self.head + self.len) % FIFO;
        self.bytes[slot] = byte;
        self.breaks = self.breaks & !(1 << slot) | u16::from(is_break) << slot;
        self.len += 1;
    }

    fn pop(&mut self) -> Option<u8> {
        if self.len == 0 {
            return None;
        }
        let byte = self.bytes[self.head % FIFO];
        self.breaks &= !(1 << self.head);
        self.head = (self.head + 1) % FIFO;
        self.len -= 1;
        Some(byte)
    }

    /// Whether the oldest byte is a break; says so once.
    fn take_break(&mut self) -> bool {
        let is_break = self.len > 0 && self.breaks & 1 << self.head != 0;
        self.breaks &= !(1 << self.head);
        is_break
    }
}

/// A 16550A as firmware leaves it: FIFOs and interrupts off, 115,200 baud.
#[derive(Clone, Debug)]
pub struct Uart {
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: u16,
    fifos: bool,
    /// Bytes in the receiver's FIFO at which its interrupt is raised.
    trigger: usize,
    /// Error bits of the line status that were not read yet.
    errors: u8,
    /// Delta bits of the modem status that were not read yet.
    deltas: u8,
    transmit_empty: bool,
    /// The request line was low for a moment since [`Uart::take_restart`].
    restarted: bool,
    receiver: Receiver,
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart {
    /// A UART in its initial state.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            interrupt_enable: 0,
            line_control: 0x03,
            modem_control: 0,
            scratch: 0,
            divisor: 1,
            fifos: false,
            trigger: 1,
            errors: 0,
            deltas: 0,
            transmit_empty: false,
            restarted: false,
            receiver: Receiver::EMPTY,
        }
    }

    /// The level of the request line (IRQ 4), after the gate that OUT2 controls on a PC. The loopback mode turns
    /// OUT2 off at the pin (section 8.7).
    #[must_use]
    #[inline]
    pub fn irq(&self) -> bool {
        self.modem_control & (mcr::OUT2 | mcr::LOOP) == mcr::OUT2 && self.sources() != 0
    }

    /// Whether the request line dropped for a moment since the last call and is high again: an edge that the level
    /// alone does not show.
    #[inline]
    pub fn take_restart(&mut self) -> bool {
        core::mem::take(&mut self.restarted)
    }

    /// Whether [`Uart::receive`] would take a byte now.
    #[must_use]
    #[inline]
    pub fn can_receive(&self) -> bool {
        self.modem_control & mcr::LOOP == 0 && self.receiver.len < self.capacity()
    }

    /// A byte arrives from the other end. `false` when there is no room (or the loopback mode has cut the line): the
    /// caller keeps the byte and offers it again, so that no input is ever lost.
    #[must_use]
    pub fn receive(&mut self, byte: u8) -> bool {
        self.arrive(byte, false)
    }

    /// A break arrives from the other end, which Linux takes as the SysRq key. `false` as for [`Uart::receive`].
    #[must_use]
    pub fn receive_break(&mut self) -> bool {
        self.arrive(0, true)
    }

    fn arrive(&mut self, byte: u8, is_break: bool) -> bool {
        if !self.can_receive() {
            return false;
        }
        self.push(byte, is_break);
        true
    }

    /// Reads the register at `offset` (modulo 8).
    #[inline]
    pub fn read(&mut self, offset: u16) -> u8 {
        match offset & 7 {
            offset::LINE_STATUS => self.read_line_status(),
            offset::DATA if self.divisor_latched() => self.divisor.to_le_bytes()[0],
            offset::DATA => self.read_data(),
            offset::INTERRUPT_ENABLE if self.divisor_latched() => self.divisor.to_le_bytes()[1],
            offset::INTERRUPT_ENABLE => self.interrupt_enable,
            offset::INTERRUPT_ID => self.read_interrupt_id(),
            offset::LINE_CONTROL => self.line_control,
            offset::MODEM_CONTROL => self.modem_control,
            offset::MODEM_STATUS => self.modem_lines() | core::mem::take(&mut self.deltas),
            _ => self.scratch,
        }
    }

    /// Writes the register at `offset` (modulo 8). Answers the byte that was sent, if one was.
    #[inline]
    pub fn write(&mut self, offset: u16, value: u8) -> Option<u8> {
        match offset & 7 {
            offset::DATA if self.divisor_latched() => {
                self.divisor = self.divisor & 0xFF00 | u16::from(value);
            }
            offset::DATA => return self.transmit(value),
            offset::INTERRUPT_ENABLE if self.divisor_latched() => {
                self.divisor = self.divisor & 0x00FF | u16::from(value) << 8;
            }
            offset::INTERRUPT_ENABLE => {
                let enabled = value & !self.interrupt_enable;
                self.interrupt_enable = value & ier::ALL;
                // Enabling the source while the transmitter is empty raises it (section 8.6).
                self.transmit_empty |= enabled & ier::TRANSMIT_EMPTY != 0;
            }
            offset::INTERRUPT_ID => self.write_fifo_control(value),
            offset::LINE_CONTROL => self.line_control = value,
            offset::MODEM_CONTROL => self.write_modem_control(value),
            offset::SCRATCH => self.scratch = value,
            // The status registers are read-only (writing them is for factory tests).
            _ => {}
        }
        None
    }

    fn divisor_latched(&self) -> bool {
        self.line_control & LCR_DLAB != 0
    }

    fn capacity(&self) -> usize {
        if self.fifos { FIFO } else { 1 }
    }

    /// The enabled sources that ask for an interrupt.
    #[inline]
    fn sources(&self) -> u8 {
        let mut sources = 0;
        if self.errors != 0 && self.interrupt_enable & ier::LINE_STATUS != 0 {
            sources |= source::LINE_STATUS;
        }
        if self.receiver.len > 0 && self.interrupt_enable & ier::RECEIVED != 0 {
            sources |= if self.receiver.len >= self.trigger { source::RECEIVED } else { source::TIMEOUT };
        }
        if self.transmit_empty && self.interrupt_enable & ier::TRANSMIT_EMPTY != 0 {
            sources |= source::TRANSMIT_EMPTY;
        }
        if self.deltas != 0 && self.interrupt_enable & ier::MODEM_STATUS != 0 {
            sources |= source::MODEM_STATUS;
        }
        sources
    }

    fn read_line_status(&mut self) -> u8 {
        let mut status = lsr::TRANSMITTER_EMPTY | core::mem::take(&mut self.errors);
        if self.receiver.len > 0 {
            status |= lsr::DATA_READY;
        }
        if self.fifos && (status & lsr::BREAK != 0 || self.receiver.breaks != 0) {
            status |= lsr::FIFO_ERROR;
        }
        status
    }

    fn read_data(&mut self) -> u8 {
        let Some(byte) = self.receiver.pop() else { return 0 };
        if self.receiver.take_break() {
            self.errors |= lsr::BREAK;
        }
        // A read ends the time-out; with bytes left it comes again, as a new edge (section 8.7, FIFO time-out).
        self.restarted |= self.sources() == source::TIMEOUT;
        byte
    }

    fn read_interrupt_id(&mut self) -> u8 {
        let sources = self.sources();
        let id = match sources & sources.wrapping_neg() {
            source::LINE_STATUS => iir::LINE_STATUS,
            source::RECEIVED => iir::RECEIVED,
            source::TIMEOUT => iir::TIMEOUT,
            source::TRANSMIT_EMPTY => {
                // Only the read that reports it clears it (section 8.5, table IV).
                self.transmit_empty = false;
                iir::TRANSMIT_EMPTY
            }
            source::MODEM_STATUS => iir::MODEM_STATUS,
            _ => iir::NONE,
        };
        if self.fifos { id | iir::FIFOS_ENABLED } else { id }
    }

    #[inline]
    fn transmit(&mut self, byte: u8) -> Option<u8> {
        // The write takes the transmitter's request back, and the byte's departure raises it again.
        self.restarted |= self.transmit_empty && self.sources() == source::TRANSMIT_EMPTY;
        self.transmit_empty = true;
        if self.modem_control & mcr::LOOP == 0 {
            return Some(byte);
        }
        if self.receiver.len >= self.capacity() {
            self.errors |= lsr::OVERRUN;
            if !self.fifos {
                // The holding register takes the new byte; a FIFO keeps what it has (section 8.3, bit 1).
                self.receiver.pop();
                self.push(byte, false);
            }
        } else {
            self.push(byte, false);
        }
        None
    }

    fn push(&mut self, byte: u8, is_break: bool) {
        self.receiver.push(byte, is_break);
        if self.receiver.len == 1 && self.receiver.take_break() {
            self.errors |= lsr::BREAK;
        }
    }

    fn write_fifo_control(&mut self, value: u8) {
        let fifos = value & fcr::ENABLE != 0;
        // Turning the FIFOs on or off empties them, and the other bits count only together with the enable bit.
        if fifos != self.fifos || fifos && value & fcr::RESET_RECEIVER != 0 {
            self.receiver = Receiver::EMPTY;
        }
        self.fifos = fifos;
        self.trigger = if fifos { [1, 4, 8, 14][usize::from(value >> 6)] } else { 1 };
    }

    fn write_modem_control(&mut self, value: u8) {
        let before = self.modem_lines();
        self.modem_control = value & mcr::ALL;
        let after = self.modem_lines();
        let changed = before ^ after;
        self.deltas |= (changed & (msr::CTS | msr::DSR | msr::DCD)) >> 4;
        if changed & before & msr::RI != 0 {
            self.deltas |= msr::TRAILING_RI;
        }
    }

    /// The upper half of the modem status: the other end's lines, or in loopback our own outputs (section 8.7).
    fn modem_lines(&self) -> u8 {
        if self.modem_control & mcr::LOOP == 0 {
            return msr::CONNECTED;
        }
        let line = |output: u8, input: u8| if self.modem_control & output != 0 { input } else { 0 };
        line(mcr::RTS, msr::CTS)
            | line(mcr::DTR, msr::DSR)
            | line(mcr::OUT1, msr::RI)
            | line(mcr::OUT2, msr::DCD)
    }
}

#[cfg(test)]
mod tests {
    use super::offset::*;
    use super::*;
    use proptest::prelude::*;

    fn with_interrupts(enable: u8) -> Uart {
        let mut uart = Uart::new();
        uart.write(MODEM_CONTROL, mcr::OUT2);
        uart.write(INTERRUPT_ENABLE, enable);
        uart
    }

    #[test]
    fn linux_finds_a_16550a() {
        let mut uart = Uart::new();
        uart.write(INTERRUPT_ENABLE, 0xFF);
        assert_eq!(uart.read(INTERRUPT_ENABLE), 0x0F);
        uart.write(INTERRUPT_ENABLE, 0);
        uart.write(MODEM_CONTROL, mcr::LOOP | mcr::OUT2 | mcr::RTS);
        assert_eq!(uart.read(MODEM_STATUS) & 0xF0, 0x90);
        uart.write(MODEM_CONTROL, 0);
        uart.write(INTERRUPT_ID, fcr::ENABLE);
        assert_eq!(uart.read(INTERRUPT_ID), 0xC1);
        uart.write(INTERRUPT_ID, 0);
        assert_eq!(uart.read(INTERRUPT_ID), 0x01);
        uart.write(SCRATCH, 0xA5);
        assert_eq!(uart.read(SCRATCH), 0xA5);
        uart.write(LINE_CONTROL, 0x83);
        assert_eq!((uart.read(DATA), uart.read(INTERRUPT_ENABLE)), (1, 0));
        uart.write(INTERRUPT_ENABLE, 3);
        uart.write(DATA, 2);
        assert_eq!(uart.divisor, 0x0302);
    }

    #[test]
    fn transmitting_answers_the_byte_and_never_blocks() {
        let mut uart = Uart::new();
        assert_eq!(uart.write(DATA, b'x'), Some(b'x'));
        assert_eq!(uart.read(LINE_STATUS), 0x60);
        assert!(!uart.irq());
    }

    #[test]
    fn transmitter_interrupt_is_cleared_by_its_report_and_raised_by_the_next_byte() {
        let mut uart = with_interrupts(ier::TRANSMIT_EMPTY);
        assert!(uart.irq());
        assert_eq!(uart.read(INTERRUPT_ID), iir::TRANSMIT_EMPTY);
        assert!(!uart.irq());
        assert_eq!(uart.read(INTERRUPT_ID), iir::NONE);
        uart.write(DATA, 1);
        assert!(uart.irq() && !uart.take_restart());
        // A second byte without asking for the cause: the line drops and rises.
        uart.write(DATA, 2);
        assert!(uart.irq() && uart.take_restart() && !uart.take_restart());
        // Linux's THRE test: off and on again raises it anew.
        uart.read(INTERRUPT_ID);
        uart.write(INTERRUPT_ENABLE, 0);
        uart.write(INTERRUPT_ENABLE, ier::TRANSMIT_EMPTY);
        assert!(uart.irq());
        // Enabling what is enabled raises nothing.
        uart.read(INTERRUPT_ID);
        uart.write(INTERRUPT_ENABLE, ier::TRANSMIT_EMPTY | ier::RECEIVED);
        assert!(!uart.irq());
    }

    #[test]
    fn out2_and_loopback_gate_the_line() {
        let mut uart = with_interrupts(ier::TRANSMIT_EMPTY);
        uart.write(MODEM_CONTROL, 0);
        assert!(!uart.irq());
        uart.write(MODEM_CONTROL, mcr::OUT2 | mcr::LOOP);
        assert!(!uart.irq());
        uart.write(MODEM_CONTROL, mcr::OUT2);
        assert!(uart.irq());
    }

    #[test]
    fn sources_are_reported_by_priority() {
        let mut uart = with_interrupts(ier::ALL);
        uart.write(INTERRUPT_ID, fcr::ENABLE | 0x40);
        uart.write(MODEM_CONTROL, mcr::OUT2 | mcr::LOOP);
        uart.write(MODEM_CONTROL, mcr::OUT2);
        assert!(uart.receive_break());
        assert!(uart.receive(b'a') && uart.receive(b'b') && uart.receive(b'c'));
        assert_eq!(uart.read(INTERRUPT_ID), 0xC0 | iir::LINE_STATUS);
        assert_eq!(uart.read(LINE_STATUS), 0x60 | 0x80 | lsr::BREAK | lsr::DATA_READY);
        assert_eq!(uart.read(LINE_STATUS), 0x60 | lsr::DATA_READY);
        assert_eq!(uart.read(INTERRUPT_ID), 0xC0 | iir::RECEIVED);
        assert_eq!(uart.read(DATA), 0);
        assert_eq!(uart.read(INTERRUPT_ID), 0xC0 | iir::TIMEOUT);
        assert_eq!([uart.read(DATA), uart.read(DATA), uart.read(DATA)], *b"abc");
        assert_eq!(uart.read(INTERRUPT_ID), 0xC0 | iir::TRANSMIT_EMPTY);
        assert_eq!(uart.read(INTERRUPT_ID), 0xC0 | iir::MODEM_STATUS);
        assert_eq!(uart.read(MODEM_STATUS), 0xB3);
        assert_eq!(uart.read(INTERRUPT_ID), 0xC0 | iir::NONE);
    }

    #[test]
    fn a_time_out_left_with_bytes_is_a_new_edge() {
        let mut uart = with_interrupts(ier::RECEIVED);
        uart.write(INTERRUPT_ID, fcr::ENABLE | 0xC0);
        assert!(uart.receive(1) && uart.receive(2));
        assert_eq!(uart.read(DATA), 1);
        assert!(uart.take_restart() && uart.irq());
        assert_eq!(uart.read(DATA), 2);
        assert!(!uart.take_restart() && !uart.irq());
    }

    #[test]
    fn the_receiver_is_one_byte_deep_without_fifos_and_sixteen_with() {
        let mut uart = Uart::new();
        assert!(uart.receive(1) && !uart.receive(2));
        assert_eq!(uart.read(DATA), 1);
        uart.write(INTERRUPT_ID, fcr::ENABLE);
        for byte in 0..16 {
            assert!(uart.receive(byte));
        }
        assert!(!uart.receive(16) && !uart.receive_break());
        uart.write(INTERRUPT_ID, fcr::ENABLE | fcr::RESET_RECEIVER);
        assert_eq!(uart.read(LINE_STATUS) & lsr::DATA_READY, 0);
        assert!(uart.can_receive());
    }

    #[test]
    fn loopback_returns_bytes_and_reports_overrun() {
        let mut uart = Uart::new();
        uart.write(MODEM_CONTROL, mcr::LOOP);
        assert_eq!(uart.write(DATA, 7), None);
        assert!(!uart.receive(9), "the line is cut");
        assert_eq!(uart.write(DATA, 8), None);
        assert_eq!(uart.read(LINE_STATUS) & 3, lsr::DATA_READY | lsr::OVERRUN);
        assert_eq!(uart.read(DATA), 8, "the holding register was overwritten");
    }

    #[test]
    fn trailing_ring_is_a_delta_of_its_own() {
        let mut uart = Uart::new();
        uart.write(MODEM_CONTROL, mcr::LOOP | mcr::OUT1);
        uart.read(MODEM_STATUS);
        uart.write(MODEM_CONTROL, mcr::LOOP);
        assert_eq!(uart.read(MODEM_STATUS), msr::TRAILING_RI);
    }

    proptest! {
        /// Whatever the guest does, a byte that was taken is read back in order unless the guest itself reset the FIFO.
        #[test]
        fn input_is_never_lost(ops in proptest::collection::vec((0u16..8, any::<u8>(), any::<bool>()), 0..200)) {
            let mut uart = Uart::new();
            uart.write(INTERRUPT_ID, fcr::ENABLE);
            let (mut sent, mut got) = (0u8, 0u8);
            for (offset, value, write) in ops {
                if uart.receive(sent) {
                    sent = sent.wrapping_add(1);
                }
                let lossy = matches!(offset, DATA | INTERRUPT_ID | LINE_CONTROL | MODEM_CONTROL);
                if write && !lossy {
                    uart.write(offset, value);
                } else {
                    let ready = uart.read(LINE_STATUS) & lsr::DATA_READY != 0;
                    let byte = uart.read(offset);
                    if offset == DATA && ready {
                        prop_assert_eq!(byte, got);
                        got = got.wrapping_add(1);
                    }
                }
            }
        }

        #[test]
        fn no_register_traffic_breaks_it(ops in proptest::collection::vec((any::<u16>(), any::<u8>(), 0u8..4), 0..300)) {
            let mut uart = Uart::new();
            for (offset, value, kind) in ops {
                match kind {
                    0 => { uart.read(offset); }
                    1 => { uart.write(offset, value); }
                    2 => { let _ = uart.receive(value); }
                    _ => { let _ = uart.receive_break(); }
                }
                prop_assert!(uart.receiver.len <= uart.capacity() && uart.receiver.head < FIFO);
                prop_assert_eq!(uart.read(LINE_STATUS) & 0x60, 0x60);
            }
        }
    }
}
