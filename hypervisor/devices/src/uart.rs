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
mod tests;
