//! Dates of the proleptic Gregorian calendar, and the number formats of the clock's registers.

/// 9999-12-31 23:59:59 UTC, the last second that four digits can show.
pub(super) const LAST_SECOND: i64 = 253_402_300_799;

/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: i64 = 719_468;

/// Days in 400 years.
const ERA_DAYS: i64 = 146_097;

/// A date and time of day. From [`Calendar::from_unix`] all fields are in range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Calendar {
    pub(super) second: u8,
    pub(super) minute: u8,
    pub(super) hour: u8,
    /// From 1.
    pub(super) day: u8,
    /// From 1.
    pub(super) month: u8,
    /// 0 to 9999.
    pub(super) year: u16,
    /// Sunday is 0.
    pub(super) weekday: u8,
}

impl Calendar {
    /// The date `seconds` after 1970-01-01 00:00:00 UTC, years 0 to 9999.
    pub(super) fn from_unix(seconds: i64) -> Self {
        let days = seconds.div_euclid(86_400);
        let time = seconds.rem_euclid(86_400);
        // Years that start in March have their leap day at the end, where it moves nothing.
        let since_march = days + EPOCH_DAYS;
        let era = since_march.div_euclid(ERA_DAYS);
        let day_of_era = since_march.rem_euclid(ERA_DAYS);
        // The guess is never too low; the last day of an era is the 366th of its year 399.
        let mut year = (day_of_era / 365).min(399);
        while days_before_year(year) > day_of_era {
            year -= 1;
        }
        let day_of_year = day_of_era - days_before_year(year);
        let mut month = day_of_year / 30;
        while days_before_month(month) > day_of_year {
            month -= 1;
        }
        let day = day_of_year - days_before_month(month) + 1;
        let next_year = i64::from(month >= 10);
        Self {
            second: (time % 60) as u8,
            minute: (time / 60 % 60) as u8,
            hour: (time / 3600) as u8,
            day: day as u8,
            month: ((month + 2) % 12 + 1) as u8,
            year: (era * 400 + year + next_year).clamp(0, 9999) as u16,
            weekday: (days + 4).rem_euclid(7) as u8,
        }
    }

    /// Seconds since 1970 of the date nearest to this one; the day of the week is not looked at.
    pub(super) fn to_unix(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let leap =
            self.year.is_multiple_of(4) && !self.year.is_multiple_of(100) || self.year.is_multiple_of(400);
        let longest = match month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let day = i64::from(self.day).clamp(1, longest);
        let year = i64::from(self.year) - i64::from(month <= 2);
        let days = year.div_euclid(400) * ERA_DAYS
            + days_before_year(year.rem_euclid(400))
            + days_before_month((month + 9) % 12)
            + day
            - 1
            - EPOCH_DAYS;
        let time = i64::from(self.hour.min(23)) * 3600
            + i64::from(self.minute.min(59)) * 60
            + i64::from(self.second.min(59));
        days * 86_400 + time
    }
}

/// Days in the `year` years (March to February) from the start of a 400-year era.
fn days_before_year(year: i64) -> i64 {
    year * 365 + year / 4 - year / 100
}

/// Days from 1 March to the first of the month `month` months later: 31, 30, 31, 30, 31 over and over.
fn days_before_month(month: i64) -> i64 {
    (month * 153 + 2) / 5
}

/// How register B makes the registers show numbers and hours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Format {
    pub(super) binary: bool,
    pub(super) hours_24: bool,
}

/// The bit of the hours that means "p.m.".
const AFTERNOON: u8 = 0x80;

impl Format {
    /// A number below 100 for a register.
    pub(super) fn number(self, value: u8) -> u8 {
        if self.binary { value } else { value / 10 * 16 + value % 10 }
    }

    /// The number in a register, or `None` for a digit above nine.
    pub(super) fn parse(self, value: u8) -> Option<u8> {
        if self.binary {
            return Some(value);
        }
        let (tens, ones) = (value >> 4, value & 15);
        (tens <= 9 && ones <= 9).then_some(tens * 10 + ones)
    }

    /// An hour from 0 to 23 for a register.
    pub(super) fn hour(self, hour: u8) -> u8 {
        if self.hours_24 {
            return self.number(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.number(twelve) | if hour >= 12 { AFTERNOON } else { 0 }
    }

    /// The hour from 0 to 23 in a register, or `None` for a number that is none.
    pub(super) fn parse_hour(self, value: u8) -> Option<u8> {
        if self.hours_24 {
            return self.parse(value).filter(|&hour| hour < 24);
        }
        let hour = self.parse(value & !AFTERNOON).filter(|hour| (1..=12).contains(hour))?;
        Some(hour % 12 + if value & AFTERNOON != 0 { 12 } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        let date = |seconds| {
            let c = Calendar::from_unix(seconds);
            (c.year, c.month, c.day, c.hour, c.minute, c.second, c.weekday)
        };
        assert_eq!(date(0), (1970, 1, 1, 0, 0, 0, 4));
        assert_eq!(date(951_826_600), (2000, 2, 29, 12, 16, 40, 2));
        assert_eq!(date(1_700_000_000), (2023, 11, 14, 22, 13, 20, 2));
        assert_eq!(date(4_107_542_399), (2100, 2, 28, 23, 59, 59, 0));
        assert_eq!(date(4_107_542_400), (2100, 3, 1, 0, 0, 0, 1));
        assert_eq!(date(-1), (1969, 12, 31, 23, 59, 59, 3));
        assert_eq!(date(LAST_SECOND), (9999, 12, 31, 23, 59, 59, 5));
    }

    #[test]
    fn hours_in_both_formats() {
        for binary in [false, true] {
            for hours_24 in [false, true] {
                let format = Format { binary, hours_24 };
                for hour in 0..24 {
                    assert_eq!(format.parse_hour(format.hour(hour)), Some(hour));
                }
            }
        }
        let bcd = Format { binary: false, hours_24: false };
        assert_eq!((bcd.hour(0), bcd.hour(12), bcd.hour(23)), (0x12, 0x92, 0x91));
        assert_eq!((bcd.parse_hour(0), bcd.parse_hour(0x13), bcd.parse(0x5A)), (None, None, None));
    }

    proptest! {
        #[test]
        fn dates_are_seconds(seconds in -62_000_000_000i64..LAST_SECOND) {
            prop_assert_eq!(Calendar::from_unix(seconds).to_unix(), seconds);
        }
    }
}
