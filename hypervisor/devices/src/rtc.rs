//! The MC146818 real-time clock and its CMOS memory, at ports 0x70 (index) and 0x71 (data).
//!
//! The clock runs on virtual time from a base that the caller gives, and keeps what the guest sets. An update takes
//! no time: `UIP` is set for the 244 µs before each, and the registers are stable at all other times. Interrupts are
//! those of IRQ 8, a level that falls when register C is read; what comes in between falls together, as on the chip.
//! The century is in register 0x32, where the ACPI tables say so, and is kept by the clock.
//!
//! Manual: Motorola MC146818A data sheet, "Address Map" and "Registers"; the index port's NMI bit: Intel ICH data
//! sheets, "NMI_EN".

mod calendar;

use caisson_types::Instant;

use crate::rate::Rate;
use calendar::{Calendar, Format};

const SECOND: u64 = 1_000_000_000;

/// `UIP` is set for this time before an update (data sheet, table 5: t_BUC).
const UPDATE_NOTICE: u64 = 244_000;

/// The first update comes half a second after the divider leaves reset (data sheet, "Divider Stages").
const FIRST_UPDATE: u64 = SECOND / 2;

/// Added to every time, so that a second can be subtracted from one without passing below zero.
const LEAD: u64 = 2 * SECOND;

const CRYSTAL: Rate = Rate::new(32_768);

/// Registers and well-known bytes of the CMOS memory.
pub mod register {
    /// Seconds.
    pub const SECONDS: u8 = 0x00;
    /// Alarm seconds.
    pub const SECONDS_ALARM: u8 = 0x01;
    /// Minutes.
    pub const MINUTES: u8 = 0x02;
    /// Alarm minutes.
    pub const MINUTES_ALARM: u8 = 0x03;
    /// Hours; bit 7 is "p.m." in the 12-hour format.
    pub const HOURS: u8 = 0x04;
    /// Alarm hours.
    pub const HOURS_ALARM: u8 = 0x05;
    /// Day of the week, Sunday is 1.
    pub const WEEKDAY: u8 = 0x06;
    /// Day of the month, from 1.
    pub const DAY: u8 = 0x07;
    /// Month, from 1.
    pub const MONTH: u8 = 0x08;
    /// Year of the century.
    pub const YEAR: u8 = 0x09;
    /// Register A: update in progress, divider, rate.
    pub const A: u8 = 0x0A;
    /// Register B: set, interrupt enables, formats.
    pub const B: u8 = 0x0B;
    /// Register C: interrupt flags, cleared by reading.
    pub const C: u8 = 0x0C;
    /// Register D: valid RAM and time.
    pub const D: u8 = 0x0D;
    /// The century, 19 or 20.
    pub const CENTURY: u8 = 0x32;
}

/// Register A.
mod a {
    pub(super) const UPDATE_IN_PROGRESS: u8 = 1 << 7;
    pub(super) const RATE: u8 = 0x0F;
    /// The two upper divider bits, both set, hold the divider in reset.
    pub(super) const RESET: u8 = 0x60;
    /// 32,768 Hz, 1,024 Hz periodic rate.
    pub(super) const INITIAL: u8 = 0x26;
}

/// Register B.
mod b {
    pub(super) const SET: u8 = 1 << 7;
    pub(super) const PERIODIC: u8 = 1 << 6;
    pub(super) const ALARM: u8 = 1 << 5;
    pub(super) const UPDATE: u8 = 1 << 4;
    pub(super) const SQUARE_WAVE: u8 = 1 << 3;
    pub(super) const BINARY: u8 = 1 << 2;
    pub(super) const HOURS_24: u8 = 1 << 1;
    /// Interrupts that registers B and C share bits for.
    pub(super) const INTERRUPTS: u8 = PERIODIC | ALARM | UPDATE;
}

/// Register C.
const IRQF: u8 = 1 << 7;

/// Register D.
const VALID: u8 = 1 << 7;

/// The time's own registers, which the clock writes.
const TIME: [u8; 8] = [
    register::SECONDS,
    register::MINUTES,
    register::HOURS,
    register::WEEKDAY,
    register::DAY,
    register::MONTH,
    register::YEAR,
    register::CENTURY,
];

fn is_time(index: u8) -> bool {
    TIME.contains(&index)
}

/// A real-time clock. Ports take bytes; see [`Rtc::write_index`], [`Rtc::read_data`], [`Rtc::write_data`].
// Times inside are nanoseconds of virtual time plus `LEAD`.
#[derive(Clone, Debug)]
pub struct Rtc {
    index: u8,
    nmi_masked: bool,
    /// All registers. The time's are up to date only while the clock stands.
    ram: [u8; 128],
    /// Seconds since 1970 at some update, and when that was; `None` while the clock stands (register B's SET, or
    /// the divider in reset) and the registers hold the time.
    running: Option<(i64, u64)>,
    /// A time at which the divider wrapped, to which updates and periodic interrupts keep step.
    phase: u64,
    /// Days that the guest's day of the week is ahead of the calendar's, below 7.
    weekday_shift: u8,
    /// Events up to this time are in `flags`.
    flagged: u64,
    /// Register C without its summary bit.
    flags: u8,
    deadline: Instant,
}

impl Rtc {
    /// A clock that shows `unix_seconds` (since 1970, UTC) at [`Instant::ZERO`], and is looked at from `now` on:
    /// BCD, 24 hours, as firmware leaves it.
    #[must_use]
    pub fn new(unix_seconds: u64, now: Instant) -> Self {
        let seconds = i64::try_from(unix_seconds).unwrap_or(i64::MAX).min(calendar::LAST_SECOND);
        let mut ram = [0; 128];
        ram[usize::from(register::A)] = a::INITIAL;
        ram[usize::from(register::B)] = b::HOURS_24;
        let mut rtc = Self {
            index: 0,
            nmi_masked: false,
            ram,
            running: Some((seconds, LEAD)),
            phase: LEAD,
            weekday_shift: 0,
            flagged: lead(now),
            flags: 0,
            deadline: Instant::NEVER,
        };
        rtc.plan();
        rtc
    }

    /// Sets what firmware keeps in CMOS memory for `ram_below_4g` bytes of RAM from 0 and `ram_above_4g` from 4 GiB:
    /// base, extended and high memory sizes, equipment, checksum.
    pub fn set_memory_size(&mut self, ram_below_4g: u64, ram_above_4g: u64) {
        let kib_above = |start: u64| ram_below_4g.saturating_sub(start) >> 10;
        let base = (ram_below_4g >> 10).min(640).to_le_bytes();
        let extended = kib_above(1 << 20).min(0xFFFF).to_le_bytes();
        let above_16m = (kib_above(16 << 20) >> 6).min(0xFFFF).to_le_bytes();
        let above_4g = (ram_above_4g >> 16).min(0xFF_FFFF).to_le_bytes();
        // Equipment: a mathematics coprocessor; no floppy drive, no display.
        self.ram[0x14] = 0x02;
        for (index, bytes) in [(0x15, base), (0x17, extended), (0x30, extended), (0x34, above_16m)] {
            self.ram[index..index + 2].copy_from_slice(&bytes[..2]);
        }
        self.ram[0x5B..0x5E].copy_from_slice(&above_4g[..3]);
        let sum: u16 = self.ram[0x10..0x2E].iter().map(|&byte| u16::from(byte)).sum();
        self.ram[0x2E..0x30].copy_from_slice(&sum.to_be_bytes());
    }

    /// The machine is reset: interrupts are off and their flags clear, time and memory stay (data sheet, "RESET").
    pub fn reset(&mut self, now: Instant) {
        self.advance(now);
        self.ram[usize::from(register::B)] &= !(b::INTERRUPTS | b::SQUARE_WAVE);
        self.flags = 0;
        self.index = 0;
        self.nmi_masked = false;
        self.plan();
    }

    /// Whether the guest masks NMIs (port 0x70 bit 7).
    #[must_use]
    pub fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    /// The level of IRQ 8.
    #[must_use]
    #[inline]
    pub fn irq(&self) -> bool {
        self.flags & self.ram[usize::from(register::B)] & b::INTERRUPTS != 0
    }

    /// When the level of IRQ 8 will next rise by itself.
    #[must_use]
    #[inline]
    pub fn next_deadline(&self) -> Instant {
        self.deadline
    }

    /// Writes the index port, 0x70.
    pub fn write_index(&mut self, value: u8) {
        self.index = value & 0x7F;
        self.nmi_masked = value & 0x80 != 0;
    }

    /// Brings the interrupt flags up to `now`.
    pub fn advance(&mut self, now: Instant) {
        let now = lead(now);
        if now > self.flagged {
            self.flags |= self.events(self.flagged, now);
            self.flagged = now;
        }
        self.plan();
    }

    /// Reads the data port, 0x71.
    pub fn read_data(&mut self, now: Instant) -> u8 {
        match self.index {
            register::A => self.register_a(lead(now)),
            register::C => {
                self.advance(now);
                let summary = if self.irq() { IRQF } else { 0 };
                let value = core::mem::take(&mut self.flags) | summary;
                self.plan();
                value
            }
            register::D => VALID,
            index => match self.running {
                Some(running) if is_time(index) => self.shown(index, seconds_at(running, lead(now))),
                _ => self.ram[usize::from(index & 0x7F)],
            },
        }
    }

    /// Writes the data port, 0x71.
    pub fn write_data(&mut self, value: u8, now: Instant) {
        self.advance(now);
        let now = lead(now);
        let slot = usize::from(self.index & 0x7F);
        match self.index {
            register::A => self.control(now, slot, value & !a::UPDATE_IN_PROGRESS),
            // SET also turns the update interrupt off (data sheet, "Register B").
            register::B if value & b::SET != 0 => self.control(now, slot, value & !b::UPDATE),
            register::B => self.control(now, slot, value),
            register::C | register::D => {}
            index if is_time(index) && self.running.is_some() => {
                self.stop(now);
                self.ram[slot] = value;
                self.start(now);
            }
            _ => self.ram[slot] = value,
        }
        self.plan();
    }

    fn b(&self) -> u8 {
        self.ram[usize::from(register::B)]
    }

    fn format(&self) -> Format {
        Format { binary: self.b() & b::BINARY != 0, hours_24: self.b() & b::HOURS_24 != 0 }
    }

    fn divider_in_reset(&self) -> bool {
        self.ram[usize::from(register::A)] & a::RESET == a::RESET
    }

    /// Writes register A or B, with what follows for the flow of time.
    fn control(&mut self, now: u64, slot: usize, value: u8) {
        let was_in_reset = self.divider_in_reset();
        self.ram[slot] = value;
        if was_in_reset && !self.divider_in_reset() {
            self.phase = now.saturating_sub(SECOND - FIRST_UPDATE);
        }
        let stands = self.divider_in_reset() || self.b() & b::SET != 0;
        match self.running {
            Some(_) if stands => self.stop(now),
            None if !stands => self.start(now),
            _ => {}
        }
    }

    /// Puts the time into the registers, where a standing clock keeps it.
    fn stop(&mut self, now: u64) {
        if let Some(running) = self.running.take() {
            for index in TIME {
                self.ram[usize::from(index)] = self.shown(index, seconds_at(running, now));
            }
        }
    }

    /// Takes the time from the registers, as it was at the divider's last wrap. Numbers that are no date become
    /// the nearest one.
    fn start(&mut self, now: u64) {
        let format = self.format();
        let number = |index: u8| format.parse(self.ram[usize::from(index)]).unwrap_or(0);
        let century = u16::from(number(register::CENTURY).min(99));
        let date = Calendar {
            second: number(register::SECONDS).min(59),
            minute: number(register::MINUTES).min(59),
            hour: format.parse_hour(self.ram[usize::from(register::HOURS)]).unwrap_or(0),
            day: number(register::DAY),
            month: number(register::MONTH),
            year: century * 100 + u16::from(number(register::YEAR).min(99)),
            weekday: 0,
        };
        let seconds = date.to_unix();
        let weekday = number(register::WEEKDAY).clamp(1, 7) - 1;
        self.weekday_shift = (7 + weekday - Calendar::from_unix(seconds).weekday) % 7;
        self.running = Some((seconds, now - now.saturating_sub(self.phase) % SECOND));
    }

    fn register_a(&self, now: u64) -> u8 {
        let value = self.ram[usize::from(register::A)];
        match self.running {
            Some((_, since)) if SECOND - now.saturating_sub(since) % SECOND <= UPDATE_NOTICE => {
                value | a::UPDATE_IN_PROGRESS
            }
            _ => value,
        }
    }

    fn shown(&self, index: u8, seconds: i64) -> u8 {
        let format = self.format();
        let date = Calendar::from_unix(seconds);
        match index {
            register::SECONDS => format.number(date.second),
            register::MINUTES => format.number(date.minute),
            register::HOURS => format.hour(date.hour),
            register::WEEKDAY => (date.weekday + self.weekday_shift) % 7 + 1,
            register::DAY => format.number(date.day),
            register::MONTH => format.number(date.month),
            register::YEAR => format.number((date.year % 100) as u8),
            _ => format.number((date.year / 100) as u8),
        }
    }

    /// The flags of register C that events after `from`, up to and including `to`, set.
    fn events(&self, from: u64, to: u64) -> u8 {
        let mut flags = 0;
        if let Some(running) = self.running {
            let (before, after) = (seconds_at(running, from), seconds_at(running, to));
            if after > before {
                flags |= b::UPDATE;
            }
            if self.next_alarm(before).is_some_and(|alarm| alarm <= after) {
                flags |= b::ALARM;
            }
        }
        if let Some(cycles) = self.periodic()
            && self.cycles(to) / cycles > self.cycles(from) / cycles
        {
            flags |= b::PERIODIC;
        }
        flags
    }

    fn plan(&mut self) {
        // While the line is high, nothing that happens can be seen before register C is read.
        let enabled = if self.irq() { 0 } else { self.b() };
        let mut next = u64::MAX;
        if let Some((seconds, since)) = self.running {
            let now = seconds_at((seconds, since), self.flagged);
            let time_of = |second: i64| since.saturating_add(second.abs_diff(seconds).saturating_mul(SECOND));
            if enabled & b::UPDATE != 0 && now < calendar::LAST_SECOND {
                next = next.min(time_of(now + 1));
            }
            if enabled & b::ALARM != 0
                && let Some(alarm) = self.next_alarm(now)
            {
                next = next.min(time_of(alarm));
            }
        }
        if enabled & b::PERIODIC != 0
            && let Some(cycles) = self.periodic()
        {
            let count = (self.cycles(self.flagged) / cycles + 1) * cycles;
            next = next.min(CRYSTAL.instant(count).as_nanos().saturating_add(self.phase));
        }
        self.deadline =
            if next == u64::MAX { Instant::NEVER } else { Instant::from_nanos(next.saturating_sub(LEAD)) };
    }

    /// Cycles of the crystal since `phase`.
    fn cycles(&self, at: u64) -> u64 {
        CRYSTAL.ticks(Instant::from_nanos(at.saturating_sub(self.phase)))
    }

    /// Cycles of the crystal between two periodic interrupts (data sheet, table 5), if there are any.
    fn periodic(&self) -> Option<u64> {
        let rate = self.ram[usize::from(register::A)] & a::RATE;
        match rate {
            _ if self.divider_in_reset() => None,
            0 => None,
            // The two lowest codes stand for 256 and 128 Hz.
            1 | 2 => Some(64 << rate),
            _ => Some(1 << (rate - 1)),
        }
    }

    /// The first second after `second` that the alarm registers match.
    fn next_alarm(&self, second: i64) -> Option<i64> {
        let format = self.format();
        let alarm = |index: u8| self.ram[usize::from(index)];
        // Two set upper bits mean "any".
        let any = |value: u8| value & 0xC0 == 0xC0;
        let field = |value: u8, parsed: Option<u8>, below: i64| match parsed.map(i64::from) {
            _ if any(value) => Some(None),
            Some(number) if number < below => Some(Some(number)),
            _ => None,
        };
        let [s, m, h] = [register::SECONDS_ALARM, register::MINUTES_ALARM, register::HOURS_ALARM].map(alarm);
        let seconds = field(s, format.parse(s), 60)?;
        let minutes = field(m, format.parse(m), 60)?;
        let hours = field(h, format.parse_hour(h), 24)?;
        let mut t = second.saturating_add(1);
        // Each turn fixes one field and clears those below it; a carry can ask for a second round.
        for _ in 0..8 {
            let (hour, minute) = (t.div_euclid(3600).rem_euclid(24), t.div_euclid(60).rem_euclid(60));
            if let Some(wanted) = hours.filter(|&wanted| wanted != hour) {
                t += (wanted - hour).rem_euclid(24) * 3600 - t.rem_euclid(3600);
            } else if let Some(wanted) = minutes.filter(|&wanted| wanted != minute) {
                t += (wanted - minute).rem_euclid(60) * 60 - t.rem_euclid(60);
            } else if let Some(wanted) = seconds.filter(|&wanted| wanted != t.rem_euclid(60)) {
                t += (wanted - t).rem_euclid(60);
            } else {
                return (t <= calendar::LAST_SECOND).then_some(t);
            }
        }
        None
    }
}

fn lead(now: Instant) -> u64 {
    now.as_nanos().saturating_add(LEAD)
}

/// Seconds since 1970 at `now` of a clock that showed `seconds` at `since`.
fn seconds_at((seconds, since): (i64, u64), now: u64) -> i64 {
    let passed = now.saturating_sub(since) / SECOND;
    seconds.saturating_add_unsigned(passed).min(calendar::LAST_SECOND)
}

#[cfg(test)]
mod tests;
