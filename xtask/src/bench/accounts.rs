//! What Caisson's accounts say at the end of a run, at the log level debug: a guest's exits by reason, the ticks that answering
//! them took, and the CPUs' time.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// What a guest's turns on a CPU took before it was entered, among the reasons of ticks.
pub(super) const TURNS: &str = "turns";

/// The accounts of a run with one guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Accounts {
    /// How often the guest exited, by reason.
    pub(super) exits: BTreeMap<String, u64>,
    /// Ticks from those exits to the next entries, and of [`TURNS`].
    pub(super) ticks: BTreeMap<String, u64>,
    /// Ticks that the CPUs spent in guests, in the hypervisor, and idle.
    pub(super) cpus: [u64; 3],
}

impl Accounts {
    /// Reads them in what a machine has printed.
    pub(super) fn read(printed: &str, guest: &str) -> Result<Self> {
        let cpus = || {
            let text = printed.lines().find_map(|line| line.split_once("the CPUs' ticks: "))?.1;
            let kinds = kinds(text);
            let of = |name: &str| kinds.get(name).copied();
            Some([of("guests")?, of("hypervisor")?, of("idle")?])
        };
        let cpus = cpus().ok_or_else(|| untold("nobody told the CPUs' time", printed))?;
        Ok(Self { exits: exits(printed, guest)?, ticks: of(printed, guest, "ticks")?, cpus })
    }

    /// What was added since `before`, the accounts of another run that did the same so far.
    pub(super) fn since(&self, before: &Self) -> Self {
        let less = |more: &BTreeMap<String, u64>, less: &BTreeMap<String, u64>| {
            let rest = more.iter().map(|(name, count)| {
                (name.clone(), count.saturating_sub(less.get(name).copied().unwrap_or(0)))
            });
            rest.filter(|(_, count)| *count > 0).collect()
        };
        let cpu = |index: usize| self.cpus[index].saturating_sub(before.cpus[index]);
        Self {
            exits: less(&self.exits, &before.exits),
            ticks: less(&self.ticks, &before.ticks),
            cpus: [cpu(0), cpu(1), cpu(2)],
        }
    }
}

/// The exits of a guest by reason.
pub(super) fn exits(printed: &str, guest: &str) -> Result<BTreeMap<String, u64>> {
    of(printed, guest, "exits")
}

fn of(printed: &str, guest: &str, what: &str) -> Result<BTreeMap<String, u64>> {
    let (start, end) = (format!("guest {guest}: "), format!(" {what}, "));
    let text = printed.lines().find_map(|line| Some(line.split_once(&start)?.1.split_once(&end)?.1));
    text.map(kinds).ok_or_else(|| untold(&format!("nobody told the {what} of {guest}"), printed))
}

/// The names and numbers of `NAME NUMBER, NAME NUMBER`.
fn kinds(text: &str) -> BTreeMap<String, u64> {
    let kind = |words: &str| {
        let (name, count) = words.trim().split_once(' ')?;
        Some((name.to_owned(), count.trim().parse().ok()?))
    };
    text.split(',').filter_map(kind).collect()
}

fn untold(line: &str, printed: &str) -> Error {
    Error::Tool { line: line.to_owned(), output: printed.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "[caisson] guest bench: 30 exits, mmio 20, hlt 10\r\n\
        [caisson] guest bench: 9500 ticks, turns 500, mmio 8000, hlt 1000\r\n\
        [caisson] the CPUs' ticks: guests 90000, hypervisor 10000, idle 7\r\n";

    #[test]
    fn accounts_are_read_and_subtracted() {
        let accounts = Accounts::read(PRINTED, "bench").unwrap();
        assert_eq!(accounts.exits["mmio"], 20);
        assert_eq!((accounts.ticks[TURNS], accounts.ticks["hlt"]), (500, 1000));
        assert_eq!(accounts.cpus, [90_000, 10_000, 7]);
        let mut before = accounts.clone();
        before.exits.insert("mmio".to_owned(), 5);
        before.cpus = [1, 2, 9];
        let added = accounts.since(&before);
        assert_eq!(added.exits.into_iter().collect::<Vec<_>>(), [("mmio".to_owned(), 15)]);
        assert_eq!(added.cpus, [89_999, 9998, 0]);
    }

    #[test]
    fn what_nobody_told_is_an_error() {
        assert!(Accounts::read(PRINTED, "other").is_err());
        assert!(exits("guest guest: powered off", "guest").is_err());
    }
}
