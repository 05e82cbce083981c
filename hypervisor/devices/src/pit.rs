//! The 8254 interval timer, and port 0x61, which holds the gate of its third counter.
//!
//! A counter is never stepped: its output and its count follow from the tick at which it began and the tick at which
//! somebody looks. Counter 0 drives IRQ 0, counter 1 stands for memory refresh, counter 2 drives the speaker.
//!
//! **Ticks that come late.** A guest that counts timer interrupts loses time when two of them fall together while
//! it is not looking. So each rising edge of counter 0's output is a debt that [`Pit::advance`] pays, one at a call.
//! Payments are at least [`MIN_GAP`] nanoseconds apart, and the more is owed the closer: half a period with two ticks
//! owed, a third with three, and never less than an eighth. So the guest sees at most [`HASTE`] times the rate that it asked for,
//! and counts right in the long run as long as it has an eighth of a CPU. At most [`MAX_OWED`] ticks are owed, the rest are
//! forgotten, as is the whole debt when the guest programs the counter anew or cannot see its ticks. A rate whose period is
//! under twice [`MIN_GAP`] is thinned out and nothing is owed, so that no guest can make its host spend its time on ticks.
//!
//! Manual: Intel 8254 data sheet (231164), "Operational Description" and "Mode Definitions". Port 0x61: Intel ICH
//! data sheets, "NMI Status and Control".

mod counter;

use caisson_types::Instant;

use crate::rate::Rate;
use counter::Counter;

/// Counter input clock in Hz: a third of the colour carrier's 3.579545 MHz.
pub const FREQUENCY: u32 = 1_193_182;

/// The shortest time between two ticks given to the guest, in nanoseconds.
pub const MIN_GAP: u64 = 50_000;

/// The most ticks that are owed to a guest.
pub const MAX_OWED: u32 = 128;

/// How many times the rate that it asked for a guest sees at most while it catches up.
pub const HASTE: u64 = 8;

const RATE: Rate = Rate::new(FREQUENCY);

/// Added to every tick, so that a period can be subtracted from one without passing below zero.
const EPOCH: u64 = 0x2_0000;

/// Counter ticks between two memory refreshes, which port 0x61 bit 4 shows: 15.085 µs.
const REFRESH: u64 = 18;

/// Port 0x61 (ICH data sheet, "NMI_SC").
mod control_b {
    pub(super) const GATE2: u8 = 1 << 0;
    pub(super) const WRITABLE: u8 = 0x0F;
    pub(super) const REFRESH_TOGGLE: u8 = 1 << 4;
    pub(super) const OUT2: u8 = 1 << 5;
}

/// The three counters and port 0x61, as firmware leaves them: counter 0 in mode 3 at 18.2 Hz.
#[derive(Clone, Debug)]
pub struct Pit {
    counters: [Counter; 3],
    control_b: u8,
    /// Rising edges of counter 0 up to this tick are accounted for.
    counted: u64,
    owed: u32,
    /// No tick is given before this time.
    earliest: Instant,
    /// What [`Pit::next_deadline`] answers.
    deadline: Instant,
}

fn tick(now: Instant) -> u64 {
    RATE.ticks(now).saturating_add(EPOCH)
}

impl Pit {
    /// The timer at `now`, the moment of power-on or reset.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let start = tick(now);
        // Control words: both bytes, mode 3; and the low byte, mode 2.
        let counters = [
            Counter::started(0x36, 0, true, start),
            Counter::started(0x14, REFRESH as u8, true, start),
            Counter::started(0x36, 0, false, start),
        ];
        let mut pit =
            Self { counters, control_b: 0, counted: start, owed: 0, earliest: now, deadline: Instant::NEVER };
        pit.plan();
        pit
    }

    /// Reads port 0x40 + `register`; the control port (3) is write-only and reads all ones.
    pub fn read(&mut self, register: u16, now: Instant) -> u8 {
        match self.counters.get_mut(usize::from(register & 3)) {
            Some(counter) => counter.read(tick(now)),
            None => 0xFF,
        }
    }

    /// Writes port 0x40 + `register`. Call [`Pit::advance`] first, so that ticks of the old programme are not lost.
    pub fn write(&mut self, register: u16, value: u8, now: Instant) {
        let t = tick(now);
        let before = self.counters[0].output(t);
        let touched = match self.counters.get_mut(usize::from(register & 3)) {
            Some(counter) => {
                counter.write(value, t);
                register & 3 == 0
            }
            None => self.control(value, t),
        };
        if touched {
            self.counted = self.counted.max(t);
            self.earliest = self.earliest.min(now + MIN_GAP);
            self.owed = u32::from(!before && self.counters[0].output(t));
            self.plan();
        }
    }

    /// A word to the control port; `true` when it concerned counter 0's programme.
    fn control(&mut self, value: u8, t: u64) -> bool {
        let select = value >> 6;
        if let Some(counter) = self.counters.get_mut(usize::from(select)) {
            counter.control(value, t);
            return select == 0 && value & 0x30 != 0;
        }
        // Read-back command (data sheet, "Read-Back Command"): zeros ask for the latches.
        for (i, counter) in self.counters.iter_mut().enumerate() {
            if value & 2 << i != 0 {
                if value & 0x20 == 0 {
                    counter.latch_count(t);
                }
                if value & 0x10 == 0 {
                    counter.latch_status(t);
                }
            }
        }
        false
    }

    /// Reads port 0x61.
    #[must_use]
    pub fn read_control_b(&self, now: Instant) -> u8 {
        let t = tick(now);
        let mut value = self.control_b;
        if (t / REFRESH) & 1 != 0 {
            value |= control_b::REFRESH_TOGGLE;
        }
        if self.counters[2].output(t) {
            value |= control_b::OUT2;
        }
        value
    }

    /// Writes port 0x61: the gate of counter 2, the speaker and the error enables (which only read back).
    pub fn write_control_b(&mut self, value: u8, now: Instant) {
        self.control_b = value & control_b::WRITABLE;
        self.counters[2].set_gate(value & control_b::GATE2 != 0, tick(now));
    }

    /// The level of counter 0's output, which is IRQ 0.
    #[must_use]
    pub fn output(&self, now: Instant) -> bool {
        self.counters[0].output(tick(now))
    }

    /// Accounts for the time up to `now`; `true` when the guest is given a tick: a rising edge of IRQ 0.
    ///
    /// With `visible` false (the interrupt is masked everywhere) edges that fall together stay together, as on the
    /// chip, and nothing is owed.
    pub fn advance(&mut self, now: Instant, visible: bool) -> bool {
        let t = tick(now);
        if t > self.counted {
            let edges = self.counters[0].rises(self.counted, t);
            self.counted = t;
            let most = if visible && self.period() >= 2 * MIN_GAP { MAX_OWED } else { 1 };
            self.owed = u32::try_from(edges).unwrap_or(most).saturating_add(self.owed).min(most);
        }
        let give = self.owed > 0 && now >= self.earliest;
        if give {
            self.earliest = now + MIN_GAP.max(self.period() / u64::from(self.owed).clamp(2, HASTE));
            self.owed -= 1;
        }
        self.plan();
        give
    }

    /// When [`Pit::advance`] will next have something to give.
    #[must_use]
    #[inline]
    pub fn next_deadline(&self) -> Instant {
        self.deadline
    }

    /// Counter 0's period in nanoseconds, 0 when it does not repeat.
    fn period(&self) -> u64 {
        self.counters[0].period() * 1_000_000_000 / u64::from(FREQUENCY)
    }

    fn plan(&mut self) {
        self.deadline = if self.owed > 0 {
            self.earliest
        } else {
            match self.counters[0].next_rise(self.counted) {
                Some(t) => RATE.instant(t.saturating_sub(EPOCH)).max(self.earliest),
                None => Instant::NEVER,
            }
        };
    }
}

#[cfg(test)]
mod tests;
