//! ACPI fixed hardware: the PM1a event and control blocks, the power management timer, a small GPE0 block and the
//! SMI command port, which ask for the system control interrupt (SCI).
//!
//! The machine starts in legacy mode; the guest's ACPI driver turns ACPI on through [`SMI_CMD`]. There is no SMM and so
//! nobody who would handle an event in legacy mode: status bits are then set and wait. The one sleep state is S5.
//!
//! Manual: ACPI 6.5, sections 4.8.2 (timer), 4.8.3 (fixed hardware registers), 4.8.4 (general-purpose events) and
//! 5.2.9 (how the FADT announces them).

use caisson_types::Instant;

use crate::rate::Rate;

/// First port of the blocks: event status and enable at +0 and +2, control at +4, timer at +8, GPE0 at +0x20.
pub const BASE: u16 = 0x600;
/// PM1a event block: status word, enable word.
pub const PM1A_EVENT: u16 = BASE;
/// PM1a control block: one word.
pub const PM1A_CONTROL: u16 = BASE + 4;
/// Power management timer: 32 bits, read-only.
pub const TIMER: u16 = BASE + 8;
/// General-purpose event block 0: status byte, enable byte, each padded to 16 bits.
pub const GPE0: u16 = BASE + 0x20;
/// Bytes of the GPE0 block: half of them status, half enable.
pub const GPE0_LENGTH: u8 = 4;
/// The port that takes [`ACPI_ENABLE`] and [`ACPI_DISABLE`].
pub const SMI_CMD: u16 = 0xB2;
/// Status byte beside the SMI command port; scratch.
pub const SMI_STATUS: u16 = 0xB3;
/// Written to [`SMI_CMD`]: hand the fixed hardware to the operating system.
pub const ACPI_ENABLE: u8 = 0xA1;
/// Written to [`SMI_CMD`]: take it back.
pub const ACPI_DISABLE: u8 = 0xA0;
/// The ISA interrupt of the SCI: level-triggered, active high.
pub const SCI_IRQ: u8 = 9;
/// The sleep type of S5 (soft off) that the DSDT's `_S5` object gives.
pub const SLEEP_TYPE_S5: u8 = 5;

/// The timer's frequency in Hz.
pub const TIMER_FREQUENCY: u32 = 3_579_545;

const RATE: Rate = Rate::new(TIMER_FREQUENCY);

/// PM1 status and enable bits (sections 4.8.3.1.1 and 4.8.3.1.2).
mod pm1 {
    pub(super) const TIMER: u16 = 1 << 0;
    pub(super) const GLOBAL: u16 = 1 << 5;
    pub(super) const POWER_BUTTON: u16 = 1 << 8;
    /// Set after a wake from sleep; the guest never sleeps, so it only ever clears it.
    pub(super) const WAKE: u16 = 1 << 15;
    pub(super) const STATUS: u16 = TIMER | GLOBAL | POWER_BUTTON | WAKE;
    /// The real-time clock's alarm. It can be enabled, as Linux does, and never comes: the alarm is IRQ 8's here, and there is
    /// no sleep to wake from.
    pub(super) const RTC: u16 = 1 << 10;
    pub(super) const ENABLE: u16 = TIMER | GLOBAL | POWER_BUTTON | RTC;
}

/// PM1 control bits (section 4.8.3.2.1).
mod control {
    pub(super) const SCI_ENABLE: u16 = 1 << 0;
    pub(super) const BUS_MASTER_RELOAD: u16 = 1 << 1;
    pub(super) const SLEEP_TYPE_SHIFT: u16 = 10;
    pub(super) const SLEEP_TYPE: u16 = 7 << SLEEP_TYPE_SHIFT;
    pub(super) const SLEEP_ENABLE: u16 = 1 << 13;
    /// What a write keeps: global release and sleep enable are write-only.
    pub(super) const KEPT: u16 = BUS_MASTER_RELOAD | SLEEP_TYPE;
}

/// ACPI fixed hardware.
#[derive(Clone, Debug)]
pub struct PowerManagement {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    smi: [u8; 2],
    /// The SLP_TYP that means S5: what the DSDT says.
    soft_off: u8,
    /// Changes of the timer's upper bit that `status` accounts for.
    halves: u64,
    deadline: Instant,
}

impl PowerManagement {
    /// The hardware at `now`, in legacy mode with no event enabled.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            status: 0,
            enable: 0,
            control: 0,
            gpe_status: 0,
            gpe_enable: 0,
            smi: [0; 2],
            soft_off: SLEEP_TYPE_S5,
            halves: RATE.ticks(now) >> 31,
            deadline: Instant::NEVER,
        }
    }

    /// The machine's DSDT calls S5 by this SLP_TYP.
    pub fn set_soft_off(&mut self, sleep_type: u8) {
        self.soft_off = sleep_type;
    }

    /// The timer: counts up from 0 at [`Instant::ZERO`], 32 bits wide.
    #[must_use]
    #[inline]
    pub fn timer(now: Instant) -> u32 {
        RATE.ticks(now) as u32
    }

    /// The level of the system control interrupt.
    #[must_use]
    #[inline]
    pub fn sci(&self) -> bool {
        self.control & control::SCI_ENABLE != 0
            && (self.status & self.enable & pm1::ENABLE != 0 || self.gpe_status & self.gpe_enable != 0)
    }

    /// When the level of the SCI will next rise by itself: the timer's upper bit changes every 10 minutes.
    #[must_use]
    #[inline]
    pub fn next_deadline(&self) -> Instant {
        self.deadline
    }

    /// Somebody presses the power button.
    pub fn press_power_button(&mut self) {
        self.status |= pm1::POWER_BUTTON;
        self.plan();
    }

    /// Sets the timer's status bit if its upper bit has changed since.
    pub fn advance(&mut self, now: Instant) {
        let halves = RATE.ticks(now) >> 31;
        if halves > self.halves {
            self.halves = halves;
            self.status |= pm1::TIMER;
        }
        self.plan();
    }

    /// Reads the byte at `port`, or `None` where none of these registers is.
    pub fn read(&mut self, port: u16, now: Instant) -> Option<u8> {
        let byte = |word: u16| word.to_le_bytes()[usize::from(port & 1)];
        Some(match port & !1 {
            PM1A_EVENT => {
                self.advance(now);
                byte(self.status)
            }
            0x602 => byte(self.enable),
            PM1A_CONTROL => byte(self.control),
            0x608 | 0x60A => Self::timer(now).to_le_bytes()[usize::from(port & 3)],
            GPE0 => byte(self.gpe_status),
            0x622 => byte(self.gpe_enable),
            SMI_CMD => self.smi[usize::from(port & 1)],
            _ => return None,
        })
    }

    /// Writes the byte `value` to `port`, where one of these registers is. `true` when the guest turns itself off.
    #[must_use]
    pub fn write(&mut self, port: u16, value: u8, now: Instant) -> bool {
        self.advance(now);
        let shift = (port & 1) * 8;
        let (bits, others) = (u16::from(value) << shift, !(0xFF << shift));
        let mut off = false;
        match port & !1 {
            // Status bits are cleared by writing ones.
            PM1A_EVENT => self.status &= !(bits & pm1::STATUS),
            0x602 => self.enable = self.enable & others | bits & pm1::ENABLE,
            PM1A_CONTROL => off = self.write_control(bits, others),
            GPE0 => self.gpe_status &= !bits,
            0x622 => self.gpe_enable = self.gpe_enable & others | bits,
            SMI_CMD => self.write_smi(port, value),
            _ => {}
        }
        self.plan();
        off
    }

    /// SCI_EN belongs to the firmware and does not change here (section 4.8.3.2.1).
    fn write_control(&mut self, bits: u16, others: u16) -> bool {
        self.control = self.control & (others | control::SCI_ENABLE) | bits & control::KEPT;
        let sleep_type = (self.control & control::SLEEP_TYPE) >> control::SLEEP_TYPE_SHIFT;
        bits & control::SLEEP_ENABLE != 0 && sleep_type == u16::from(self.soft_off)
    }

    fn write_smi(&mut self, port: u16, value: u8) {
        self.smi[usize::from(port & 1)] = value;
        match (port, value) {
            (SMI_CMD, ACPI_ENABLE) => self.control |= control::SCI_ENABLE,
            (SMI_CMD, ACPI_DISABLE) => self.control &= !control::SCI_ENABLE,
            _ => {}
        }
    }

    fn plan(&mut self) {
        let waits = self.control & control::SCI_ENABLE != 0 && self.enable & pm1::TIMER != 0 && !self.sci();
        self.deadline = if waits { RATE.instant((self.halves + 1) << 31) } else { Instant::NEVER };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T0: Instant = Instant::ZERO;

    fn word(pm: &mut PowerManagement, port: u16, now: Instant) -> u16 {
        u16::from_le_bytes([pm.read(port, now).unwrap(), pm.read(port + 1, now).unwrap()])
    }

    fn set(pm: &mut PowerManagement, port: u16, value: u16, now: Instant) -> bool {
        let [low, high] = value.to_le_bytes();
        pm.write(port, low, now) | pm.write(port + 1, high, now)
    }

    #[test]
    fn timer_counts_at_its_frequency_and_wraps() {
        assert_eq!(PowerManagement::timer(Instant::from_nanos(1_000_000_000)), TIMER_FREQUENCY);
        let wrap = RATE.instant(1 << 32);
        assert_eq!(PowerManagement::timer(wrap - 1), u32::MAX);
        assert_eq!(PowerManagement::timer(wrap), 0);
        let mut pm = PowerManagement::new(T0);
        let now = RATE.instant(0x1234_5678);
        assert_eq!([0, 1, 2, 3].map(|i| pm.read(TIMER + i, now).unwrap()), [0x78, 0x56, 0x34, 0x12]);
        assert_eq!(pm.read(BASE + 0xC, now), None);
    }

    #[test]
    fn acpi_mode_is_turned_on_and_off_through_the_command_port() {
        let mut pm = PowerManagement::new(T0);
        assert_eq!(word(&mut pm, PM1A_CONTROL, T0), 0);
        assert!(!pm.write(SMI_CMD, ACPI_ENABLE, T0));
        assert_eq!(word(&mut pm, PM1A_CONTROL, T0), 1);
        assert!(!set(&mut pm, PM1A_CONTROL, 0, T0));
        assert_eq!(word(&mut pm, PM1A_CONTROL, T0), 1, "the guest cannot clear SCI_EN itself");
        assert!(!pm.write(SMI_CMD, ACPI_DISABLE, T0));
        assert_eq!(word(&mut pm, PM1A_CONTROL, T0), 0);
    }

    #[test]
    fn power_button_raises_the_sci_until_it_is_cleared() {
        let mut pm = PowerManagement::new(T0);
        pm.press_power_button();
        assert!(!pm.sci());
        assert!(!pm.write(SMI_CMD, ACPI_ENABLE, T0));
        set(&mut pm, PM1A_EVENT + 2, pm1::POWER_BUTTON, T0);
        assert!(pm.sci());
        assert_eq!(word(&mut pm, PM1A_EVENT, T0), pm1::POWER_BUTTON);
        set(&mut pm, PM1A_EVENT, pm1::TIMER, T0);
        assert!(pm.sci(), "only ones clear");
        set(&mut pm, PM1A_EVENT, pm1::POWER_BUTTON, T0);
        assert!(!pm.sci());
    }

    #[test]
    fn timer_status_follows_the_upper_bit() {
        let mut pm = PowerManagement::new(T0);
        assert!(!pm.write(SMI_CMD, ACPI_ENABLE, T0));
        set(&mut pm, PM1A_EVENT + 2, pm1::TIMER, T0);
        let half = RATE.instant(1 << 31);
        assert_eq!(pm.next_deadline(), half);
        pm.advance(half - 1);
        assert!(!pm.sci());
        pm.advance(half);
        assert!(pm.sci());
        assert_eq!(pm.next_deadline(), Instant::NEVER);
        set(&mut pm, PM1A_EVENT, pm1::TIMER, half);
        assert!(!pm.sci());
        assert_eq!(pm.next_deadline(), RATE.instant(2 << 31));
    }

    #[test]
    fn only_s5_with_sleep_enable_powers_off() {
        for sleep_type in 0..8 {
            let mut pm = PowerManagement::new(T0);
            assert!(!set(&mut pm, PM1A_CONTROL, sleep_type << 10, T0));
            let off = set(&mut pm, PM1A_CONTROL, sleep_type << 10 | control::SLEEP_ENABLE, T0);
            assert_eq!(off, sleep_type == u16::from(SLEEP_TYPE_S5));
            assert_eq!(word(&mut pm, PM1A_CONTROL, T0), sleep_type << 10, "SLP_EN reads as zero");
        }
    }

    #[test]
    fn general_purpose_events_have_no_source() {
        let mut pm = PowerManagement::new(T0);
        set(&mut pm, GPE0 + 2, 0xFFFF, T0);
        assert_eq!(word(&mut pm, GPE0 + 2, T0), 0xFFFF);
        set(&mut pm, GPE0, 0xFFFF, T0);
        assert_eq!(word(&mut pm, GPE0, T0), 0);
        assert!(!pm.sci());
    }

    proptest! {
        #[test]
        fn no_port_traffic_breaks_it(ops in proptest::collection::vec((0u16..0x30, any::<u8>(), 0u8..4, 0u64..1 << 45), 0..200)) {
            let mut pm = PowerManagement::new(T0);
            let mut now = T0;
            for (port, value, kind, step) in ops {
                now = now + (step >> (value & 31));
                let port = if port == 0x2F { SMI_CMD } else { BASE + port };
                match kind {
                    0 => { pm.read(port, now); }
                    1 => { let _ = pm.write(port, value, now); }
                    2 => { let _ = pm.write(SMI_CMD, ACPI_ENABLE, now); }
                    _ => pm.press_power_button(),
                }
                pm.advance(now);
                prop_assert!(pm.next_deadline() > now);
            }
        }
    }
}
