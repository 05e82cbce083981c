//! The three ways to reset a PC without its firmware's help, and the A20 gate.
//!
//! - The reset control register at port 0xCF9, which the FADT names (Intel ICH data sheets, "RST_CNT").
//! - "Fast reset" and the fast A20 gate at port 0x92 (Intel ICH data sheets, "PORT92").
//! - The keyboard controller at ports 0x60 and 0x64 (IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device
//!   Controller"), with neither keyboard nor mouse: what is sent to one comes back as a time-out, at once.
//!
//! On a PC some of these reset only the processor, which then runs the firmware from 0xFFFF_FFF0. There is no firmware
//! here that could tell the difference, so each of them resets the whole virtual machine.
//!
//! The A20 gate's setting reads back, but address line 20 is never masked: no guest that the boot paths start needs
//! the wrap-around of an 8086.

/// The reset control register.
pub const CONTROL: u16 = 0xCF9;
/// What resets the machine when written to [`CONTROL`]: a hard reset, now.
pub const CONTROL_RESET: u8 = 0x06;

/// A20 is gated on; port 0x92 bit 1, keyboard controller output port bit 1.
const A20: u8 = 1 << 1;

/// Reset control register bits.
mod rst_cnt {
    pub(super) const HARD: u8 = 1 << 1;
    pub(super) const RESET: u8 = 1 << 2;
    pub(super) const FULL: u8 = 1 << 3;
}

/// Keyboard controller status, port 0x64.
mod status {
    pub(super) const OUTPUT_FULL: u8 = 1 << 0;
    pub(super) const SYSTEM: u8 = 1 << 2;
    pub(super) const COMMAND: u8 = 1 << 3;
    pub(super) const NOT_LOCKED: u8 = 1 << 4;
    pub(super) const FROM_MOUSE: u8 = 1 << 5;
    pub(super) const TIMEOUT: u8 = 1 << 6;
}

/// The controller's command byte.
mod command_byte {
    pub(super) const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub(super) const MOUSE_INTERRUPT: u8 = 1 << 1;
    pub(super) const SYSTEM: u8 = 1 << 2;
    pub(super) const KEYBOARD_OFF: u8 = 1 << 4;
    pub(super) const MOUSE_OFF: u8 = 1 << 5;
}

/// What the next byte to port 0x60 is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expects {
    Keyboard,
    CommandByte,
    OutputPort,
    KeyboardEcho,
    MouseEcho,
    Mouse,
}

/// Reset registers, keyboard controller and A20 gate.
#[derive(Clone, Debug)]
pub struct ResetControl {
    control: u8,
    a20: bool,
    command_byte: u8,
    expects: Expects,
    /// The byte in the output buffer, and the status bits that belong to it.
    output: Option<(u8, u8)>,
    last_was_command: bool,
}

impl Default for ResetControl {
    fn default() -> Self {
        Self::new()
    }
}

impl ResetControl {
    /// The state that firmware leaves: A20 on, the keyboard controller tested and idle.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            control: 0,
            a20: true,
            command_byte: command_byte::SYSTEM | command_byte::KEYBOARD_OFF | command_byte::MOUSE_OFF,
            expects: Expects::Keyboard,
            output: None,
            last_was_command: true,
        }
    }

    /// The level of IRQ 1.
    #[must_use]
    pub fn keyboard_irq(&self) -> bool {
        self.answers(command_byte::KEYBOARD_INTERRUPT, 0)
    }

    /// The level of IRQ 12.
    #[must_use]
    pub fn mouse_irq(&self) -> bool {
        self.answers(command_byte::MOUSE_INTERRUPT, status::FROM_MOUSE)
    }

    fn answers(&self, enable: u8, from: u8) -> bool {
        let here = self.output.is_some_and(|(_, bits)| bits & status::FROM_MOUSE == from);
        here && self.command_byte & enable != 0
    }

    /// Reads port 0xCF9.
    #[must_use]
    pub fn read_control(&self) -> u8 {
        self.control
    }

    /// Writes port 0xCF9. `true` when it resets: at the rising edge of bit 2.
    #[must_use]
    pub fn write_control(&mut self, value: u8) -> bool {
        let rises = value & !self.control & rst_cnt::RESET != 0;
        self.control = value & (rst_cnt::HARD | rst_cnt::RESET | rst_cnt::FULL);
        rises
    }

    /// Reads port 0x92.
    #[must_use]
    pub fn read_port_92(&self) -> u8 {
        if self.a20 { A20 } else { 0 }
    }

    /// Writes port 0x92. `true` when bit 0 resets.
    #[must_use]
    pub fn write_port_92(&mut self, value: u8) -> bool {
        self.a20 = value & A20 != 0;
        value & 1 != 0
    }

    /// Reads port 0x64: the keyboard controller's status. It is never busy.
    #[must_use]
    pub fn read_status(&self) -> u8 {
        let mut value = status::NOT_LOCKED | self.command_byte & status::SYSTEM;
        if self.last_was_command {
            value |= status::COMMAND;
        }
        match self.output {
            Some((_, bits)) => value | status::OUTPUT_FULL | bits,
            None => value,
        }
    }

    /// Reads port 0x60: the output buffer, or zero when it is empty.
    pub fn read_data(&mut self) -> u8 {
        self.output.take().map_or(0, |(byte, _)| byte)
    }

    /// Writes a command to port 0x64. `true` when it resets.
    #[must_use]
    pub fn write_command(&mut self, value: u8) -> bool {
        self.last_was_command = true;
        self.expects = Expects::Keyboard;
        match value {
            0x20 => self.answer(self.command_byte),
            0x60 => self.expects = Expects::CommandByte,
            0xA7 => self.command_byte |= command_byte::MOUSE_OFF,
            0xA8 => self.command_byte &= !command_byte::MOUSE_OFF,
            // Mouse interface: clock line stuck low, nothing is there.
            0xA9 => self.answer(0x01),
            0xAA => {
                self.command_byte |= command_byte::SYSTEM;
                self.answer(0x55);
            }
            0xAB => self.answer(0x00),
            0xAD => self.command_byte |= command_byte::KEYBOARD_OFF,
            0xAE => self.command_byte &= !command_byte::KEYBOARD_OFF,
            // Input port: not locked.
            0xC0 => self.answer(0x80),
            0xD0 => self.answer(self.output_port()),
            0xD1 => self.expects = Expects::OutputPort,
            0xD2 => self.expects = Expects::KeyboardEcho,
            0xD3 => self.expects = Expects::MouseEcho,
            0xD4 => self.expects = Expects::Mouse,
            0xDD => self.a20 = false,
            0xDF => self.a20 = true,
            // Pulses the output lines of which the bit is clear; line 0 is the reset.
            0xF0..=0xFF => return value & 1 == 0,
            _ => {}
        }
        false
    }

    /// Writes port 0x60: the rest of a command, or a byte for the keyboard. `true` when it resets.
    #[must_use]
    pub fn write_data(&mut self, value: u8) -> bool {
        self.last_was_command = false;
        match core::mem::replace(&mut self.expects, Expects::Keyboard) {
            Expects::CommandByte => self.command_byte = value,
            Expects::OutputPort => {
                self.a20 = value & A20 != 0;
                return value & 1 == 0;
            }
            // Without a mouse the echo comes from the keyboard's side, which is how drivers tell.
            Expects::KeyboardEcho | Expects::MouseEcho => self.answer(value),
            Expects::Keyboard => self.output = Some((0xFE, status::TIMEOUT)),
            Expects::Mouse => self.output = Some((0xFE, status::TIMEOUT | status::FROM_MOUSE)),
        }
        false
    }

    fn answer(&mut self, byte: u8) {
        self.output = Some((byte, 0));
    }

    /// The controller's output port: reset line high, A20, full output buffers, idle keyboard lines.
    fn output_port(&self) -> u8 {
        let full = |irq: bool, bit: u8| if irq { bit } else { 0 };
        0xC1 | self.read_port_92() | full(self.keyboard_irq(), 1 << 4) | full(self.mouse_irq(), 1 << 5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn command(reset: &mut ResetControl, value: u8) -> u8 {
        assert!(!reset.write_command(value));
        assert_eq!(reset.read_status() & status::OUTPUT_FULL, status::OUTPUT_FULL);
        reset.read_data()
    }

    #[test]
    fn the_control_register_resets_on_the_rising_edge() {
        let mut reset = ResetControl::new();
        assert!(!reset.write_control(0x02));
        assert_eq!(reset.read_control(), 0x02);
        assert!(reset.write_control(0x06));
        assert!(!reset.write_control(0x06));
        assert!(!reset.write_control(0xF0));
        assert_eq!(reset.read_control(), 0);
        assert!(reset.write_control(CONTROL_RESET));
    }

    #[test]
    fn port_92_gates_a20_and_resets() {
        let mut reset = ResetControl::new();
        assert_eq!(reset.read_port_92(), 2);
        assert!(!reset.write_port_92(0));
        assert_eq!(reset.read_port_92(), 0);
        assert!(reset.write_port_92(3));
        assert_eq!(reset.read_port_92(), 2);
    }

    #[test]
    fn the_keyboard_controller_resets_by_pulse_and_by_output_port() {
        let mut reset = ResetControl::new();
        assert!(reset.write_command(0xFE));
        assert!(!reset.write_command(0xFF));
        assert!(!reset.write_command(0xD1) && !reset.write_data(0xDF));
        assert_eq!(command(&mut reset, 0xD0), 0xC3);
        assert!(!reset.write_command(0xD1) && !reset.write_data(0xDD));
        assert_eq!(command(&mut reset, 0xD0), 0xC1);
        assert!(!reset.write_command(0xDF));
        assert_eq!(reset.read_port_92(), 2);
        assert!(!reset.write_command(0xD1) && reset.write_data(0xDE));
    }

    #[test]
    fn idle_status_has_nothing_to_read_and_is_never_busy() {
        let mut reset = ResetControl::new();
        assert_eq!(reset.read_status(), 0x1C);
        assert_eq!(reset.read_data(), 0);
    }

    #[test]
    fn self_tests_pass_and_no_mouse_is_found() {
        let mut reset = ResetControl::new();
        assert_eq!(command(&mut reset, 0xAA), 0x55);
        assert_eq!(command(&mut reset, 0xAB), 0x00);
        assert_eq!(command(&mut reset, 0xA9), 0x01);
        assert!(!reset.write_command(0xD3) && !reset.write_data(0x5A));
        assert_eq!(reset.read_status() & status::FROM_MOUSE, 0);
        assert_eq!(reset.read_data(), 0x5A);
    }

    #[test]
    fn what_is_sent_to_a_keyboard_or_mouse_times_out_at_once() {
        let mut reset = ResetControl::new();
        assert!(!reset.write_command(0x60) && !reset.write_data(0x47));
        assert_eq!(command(&mut reset, 0x20), 0x47);
        assert!(!reset.write_data(0xFF));
        assert_eq!(reset.read_status() & 0x61, 0x41);
        assert!(reset.keyboard_irq() && !reset.mouse_irq());
        assert_eq!(reset.read_data(), 0xFE);
        assert!(!reset.keyboard_irq());
        assert!(!reset.write_command(0xD4) && !reset.write_data(0xFF));
        assert_eq!(reset.read_status() & 0x61, 0x61);
        assert!(!reset.keyboard_irq() && reset.mouse_irq());
    }

    proptest! {
        #[test]
        fn no_traffic_breaks_it(ops in proptest::collection::vec((0u8..6, any::<u8>()), 0..200)) {
            let mut reset = ResetControl::new();
            for (kind, value) in ops {
                let _ = match kind {
                    0 => reset.write_command(value),
                    1 => reset.write_data(value),
                    2 => reset.write_control(value),
                    3 => reset.write_port_92(value),
                    _ => reset.read_data() == value,
                };
                prop_assert_eq!(reset.read_status() & 0x02, 0);
                prop_assert!(!(reset.keyboard_irq() && reset.mouse_irq()));
            }
        }
    }
}
