//! One counter of the 8254.
//!
//! Ticks are those of the counter's input clock. A count that is written at tick `t` is taken at `t + 1`.

/// How the CPU reads and writes a counter (data sheet, control word bits 5 and 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Low = 1,
    High = 2,
    LowThenHigh = 3,
}

/// The six modes (data sheet, "Mode Definitions").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// 0: the output rises when the count is through.
    TerminalCount,
    /// 1: the gate starts a low pulse as long as the count.
    OneShot,
    /// 2: low for the last tick of each period.
    RateGenerator,
    /// 3: high and low for half of each period.
    SquareWave,
    /// 4: low for one tick when the count is through.
    SoftwareStrobe,
    /// 5: the same, started by the gate.
    HardwareStrobe,
}

impl Mode {
    /// Bits 3 to 1 of the control word; bit 3 does not count in modes 2 and 3.
    fn from_control(control: u8) -> Self {
        match control >> 1 & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    fn repeats(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }

    fn gate_starts(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }
}

/// What the counting element does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Waits for a count or for the gate.
    Idle,
    /// Counts since this tick.
    Counting(u64),
    /// Stopped by the gate after so many ticks.
    Stopped(u64),
}

/// A counter. Invariants: `1 <= period <= 65536`, and the same for `written`.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    mode: Mode,
    access: Access,
    bcd: bool,
    gate: bool,
    state: State,
    /// The count that the counting element works with.
    period: u32,
    /// The count register: what the guest wrote last.
    written: u32,
    /// A count was written since the control word.
    programmed: bool,
    /// In the repeating modes: the tick at which `written` becomes `period`.
    reload_at: Option<u64>,
    /// The low byte of a count of which the high byte is due.
    low: Option<u8>,
    /// The next byte read is the high one.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    /// A counter that was given `control` and the one- or two-byte count `low` (high byte 0) at `t`.
    pub(super) fn started(control: u8, low: u8, gate: bool, t: u64) -> Self {
        let mut counter = Self {
            mode: Mode::TerminalCount,
            access: Access::LowThenHigh,
            bcd: false,
            gate,
            state: State::Idle,
            period: 0x1_0000,
            written: 0x1_0000,
            programmed: false,
            reload_at: None,
            low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        };
        counter.control(control, t);
        counter.write(low, t);
        if counter.low.is_some() {
            counter.write(0, t);
        }
        counter
    }

    /// A control word or a counter latch command for this counter.
    pub(super) fn control(&mut self, value: u8, t: u64) {
        self.access = match value >> 4 & 3 {
            0 => return self.latch_count(t),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowThenHigh,
        };
        self.mode = Mode::from_control(value);
        self.bcd = value & 1 != 0;
        self.state = State::Idle;
        self.programmed = false;
        self.reload_at = None;
        self.low = None;
        self.read_high = false;
        self.latched_count = None;
        self.latched_status = None;
        let modulus = self.modulus();
        self.period = self.period.min(modulus);
        self.written = self.written.min(modulus);
    }

    /// Latches the count for reading; a second latch before that changes nothing.
    pub(super) fn latch_count(&mut self, t: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(t));
        }
    }

    /// Latches the status for reading (data sheet, figure 12); a second latch before that changes nothing.
    pub(super) fn latch_status(&mut self, t: u64) {
        self.settle(t);
        let not_taken = match self.state {
            State::Counting(start) => t < start,
            State::Idle => true,
            State::Stopped(_) => false,
        };
        let null = !self.programmed || self.reload_at.is_some() || not_taken;
        let mode = match self.mode {
            Mode::TerminalCount => 0,
            Mode::OneShot => 1,
            Mode::RateGenerator => 2,
            Mode::SquareWave => 3,
            Mode::SoftwareStrobe => 4,
            Mode::HardwareStrobe => 5,
        };
        let status = u8::from(self.output(t)) << 7
            | u8::from(null) << 6
            | (self.access as u8) << 4
            | mode << 1
            | u8::from(self.bcd);
        self.latched_status.get_or_insert(status);
    }

    /// The next byte for the CPU: a latched status first, then the latched or the living count.
    pub(super) fn read(&mut self, t: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count(t)).to_le_bytes();
        let (byte, done) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::LowThenHigh if self.read_high => (high, true),
            Access::LowThenHigh => (low, false),
        };
        self.read_high = !done;
        if done {
            self.latched_count = None;
        }
        byte
    }

    /// A byte of a new count.
    pub(super) fn write(&mut self, value: u8, t: u64) {
        let count = match (self.access, self.low) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::LowThenHigh, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::LowThenHigh, None) => {
                self.low = Some(value);
                if self.mode == Mode::TerminalCount {
                    // The first byte stops the count and lowers the output at once ("Mode 0").
                    self.state = State::Idle;
                }
                return;
            }
        };
        self.low = None;
        self.load(count, t);
    }

    fn load(&mut self, count: u16, t: u64) {
        self.settle(t);
        self.written = if self.bcd { from_bcd(count) } else { u32::from(count) };
        if self.written == 0 {
            self.written = self.modulus();
        }
        self.programmed = true;
        if self.mode.gate_starts() {
            return;
        }
        if let (true, State::Counting(start)) = (self.mode.repeats(), self.state) {
            self.reload_at = Some(self.end_of_phase(start, t));
            return;
        }
        self.period = self.written;
        self.state = if self.gate { State::Counting(t.saturating_add(1)) } else { State::Stopped(0) };
    }

    /// The tick at which a running mode 2 or 3 takes a new count: the end of its period or of its half-period.
    fn end_of_phase(&self, start: u64, t: u64) -> u64 {
        let period = u64::from(self.period);
        let position = t.saturating_sub(start) % period;
        let high = period.div_ceil(2);
        let end = if self.mode == Mode::SquareWave && position < high { high } else { period };
        t.max(start) - position + end
    }

    /// Takes a pending count whose tick has come.
    fn settle(&mut self, t: u64) {
        if let Some(at) = self.reload_at
            && t >= at
        {
            (self.period, self.state) = (self.written, State::Counting(self.start_after(at)));
            self.reload_at = None;
        }
    }

    /// The start that makes the phase which begins at `at` the right one with the period `written`.
    fn start_after(&self, at: u64) -> u64 {
        match self.state {
            State::Counting(start)
                if self.mode == Mode::SquareWave
                    && !at.saturating_sub(start).is_multiple_of(u64::from(self.period)) =>
            {
                at.saturating_sub(u64::from(self.written).div_ceil(2))
            }
            _ => at,
        }
    }

    /// The gate input changes or stays (data sheet, "Gate Pin Operations Summary").
    pub(super) fn set_gate(&mut self, gate: bool, t: u64) {
        self.settle(t);
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        let next = t.saturating_add(1);
        match self.mode {
            Mode::TerminalCount | Mode::SoftwareStrobe => match self.state {
                State::Counting(start) if falls => self.state = State::Stopped(t.saturating_sub(start)),
                State::Stopped(ticks) if rises => self.state = State::Counting(next.saturating_sub(ticks)),
                _ => {}
            },
            Mode::RateGenerator | Mode::SquareWave => {
                if let (true, State::Counting(start)) = (falls, self.state) {
                    self.state = State::Stopped(t.saturating_sub(start));
                    self.reload_at = None;
                } else if rises && self.programmed {
                    self.period = self.written;
                    self.state = State::Counting(next);
                }
            }
            Mode::OneShot | Mode::HardwareStrobe => {
                if rises && self.programmed {
                    self.period = self.written;
                    self.state = State::Counting(next);
                }
            }
        }
    }

    /// The counter as it is at `t`, with a pending count taken.
    fn settled(&self, t: u64) -> (State, u64) {
        match self.reload_at {
            Some(at) if t >= at => (State::Counting(self.start_after(at)), u64::from(self.written)),
            _ => (self.state, u64::from(self.period)),
        }
    }

    /// The output pin at `t`.
    pub(super) fn output(&self, t: u64) -> bool {
        let (state, period) = self.settled(t);
        let elapsed = match state {
            // A control word sets the output high in all modes but 0.
            State::Idle => return self.mode != Mode::TerminalCount,
            State::Counting(start) => t.saturating_sub(start),
            // Without its gate a generator's output is high.
            State::Stopped(_) if self.mode.repeats() => return true,
            State::Stopped(elapsed) => elapsed,
        };
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= period,
            // A period of one is not legal in these two; the output then stays high.
            Mode::RateGenerator => period == 1 || elapsed % period != period - 1,
            Mode::SquareWave => period == 1 || elapsed % period < period.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != period,
        }
    }

    /// The counting element at `t`, in the number system that the control word chose.
    fn count(&self, t: u64) -> u16 {
        let (state, period) = self.settled(t);
        let elapsed = match state {
            State::Idle => 0,
            State::Counting(start) => t.saturating_sub(start),
            State::Stopped(elapsed) => elapsed,
        };
        let modulus = u64::from(self.modulus());
        let count = match self.mode {
            Mode::RateGenerator => period - elapsed % period,
            Mode::SquareWave => {
                // Counts down by two, from an even number, once in each half.
                let position = elapsed % period;
                let high = period.div_ceil(2);
                let within = if position < high { position } else { position - high };
                (period & !1).saturating_sub(2 * within)
            }
            // The others go on through zero.
            _ => period + modulus - elapsed % modulus,
        };
        let count = (count % modulus) as u16;
        if self.bcd { to_bcd(count) } else { count }
    }

    fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// Ticks between two rising edges of the output, 0 when it does not repeat.
    pub(super) fn period(&self) -> u64 {
        match self.state {
            State::Counting(_) if self.mode.repeats() && self.written > 1 => u64::from(self.written),
            _ => 0,
        }
    }

    /// Rising edges of the output after tick `from`, up to and including `to`.
    pub(super) fn rises(&mut self, from: u64, to: u64) -> u64 {
        let mut edges = 0;
        let mut from = from;
        if let Some(at) = self.reload_at
            && to >= at
        {
            edges = self.rises_now(from, at);
            self.settle(at);
            from = from.max(at);
        }
        edges + self.rises_now(from, to)
    }

    fn rises_now(&self, from: u64, to: u64) -> u64 {
        let State::Counting(start) = self.state else { return 0 };
        let period = u64::from(self.period);
        let once = |at: u64| u64::from(from < at && at <= to);
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => once(start + period),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => once(start + period + 1),
            Mode::RateGenerator | Mode::SquareWave if period == 1 => 0,
            Mode::RateGenerator | Mode::SquareWave => {
                let periods = |t: u64| t.saturating_sub(start) / period;
                periods(to).saturating_sub(periods(from))
            }
        }
    }

    /// The tick of the first rising edge of the output after `t`, if there will be one without the guest's doing.
    pub(super) fn next_rise(&self, t: u64) -> Option<u64> {
        let (state, period) = self.settled(t);
        let State::Counting(start) = state else { return None };
        let rise = match self.mode {
            Mode::TerminalCount | Mode::OneShot => start + period,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => start + period + 1,
            Mode::RateGenerator | Mode::SquareWave => {
                let rise = start + (t.saturating_sub(start) / period + 1) * period;
                match self.reload_at {
                    // The half-period that runs is the last of its length: the next one ends with the new count.
                    Some(at) if at > t && at < rise => at + u64::from(self.written / 2),
                    Some(at) if at > t => rise,
                    _ if period == 1 => return None,
                    _ => rise,
                }
            }
        };
        (rise > t).then_some(rise)
    }
}

/// Four decimal digits; digits above nine are no number, and any answer up to 9999 will do.
fn from_bcd(value: u16) -> u32 {
    let digit = |shift: u16| u32::from(value >> shift & 15);
    (digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0)).min(9999)
}

fn to_bcd(value: u16) -> u16 {
    let digit = |unit: u16, shift: u16| (value / unit % 10) << shift;
    digit(1000, 12) | digit(100, 8) | digit(10, 4) | digit(1, 0)
}
