//! The table of exact counts, `tests/counts.json`: what exits and interrupts cost a probe guest, and what a boot of Linux with a
//! few rows of the benchmark program costs. A test measures them again, and fails where one has risen; who means it accepts
//! the new ones by `cargo xtask bench --accept`.

use std::{collections::BTreeMap, fs, process::Command};

use serde_json::{Value, json};

use super::{accounts::Accounts, guest, measurements};
use crate::{
    error::{Context, Error, Result},
    images::Images,
    packages, process,
};

/// Where the table is in the source tree.
const FILE: &str = "tests/counts.json";

/// The rows that Linux measures: those in which Caisson's part is large enough for a change to show.
const ROWS: &str = "cpuid,hypercall,port,msr,sleep,pipe,fork-exec,fresh-memory";

/// By how many thousandths a count may rise.
const TOLERANCE: u64 = 20;

/// Counts by what is counted.
type Counts = BTreeMap<String, u64>;

/// A table of counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What executed the instructions.
    emulator: String,
    /// The kernel whose own instructions are in Linux's counts.
    kernel: String,
    /// Of the probe guest.
    probe: Counts,
    /// Of Linux.
    linux: Counts,
}

impl Table {
    /// Measures everything.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn measure(images: &Images) -> Result<Self> {
        let version = process::run(Command::new(crate::qemu::PROGRAM).arg("--version"), "asking QEMU", None)?;
        let emulator = String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_owned();
        let kernel = packages::linux(images.workspace())?;
        let kernel = kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let probe = medians(&super::probe(images)?);
        let printed = guest::under_caisson(images, "a boot and rows", ROWS)?;
        let mut linux = medians(&printed);
        let accounts = Accounts::read(&printed, guest::NAME)?;
        let answering: u64 = accounts.ticks.values().sum();
        linux.insert("all exits".to_owned(), accounts.exits.values().sum());
        linux.insert("all exits, instructions".to_owned(), answering);
        linux.insert(
            "made, scheduled and ended, instructions".to_owned(),
            accounts.cpus[1].saturating_sub(answering),
        );
        Ok(Self { emulator, kernel, probe, linux })
    }

    fn json(&self) -> Value {
        let Self { emulator, kernel, probe, linux } = self;
        json!({ "emulator": emulator, "kernel": kernel, "probe": probe, "linux": linux })
    }

    fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let word = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        let counts = |name: &str| {
            let counts = value.get(name)?.as_object()?.iter();
            counts.map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect::<Option<Counts>>()
        };
        Some(Self {
            emulator: word("emulator")?,
            kernel: word("kernel")?,
            probe: counts("probe")?,
            linux: counts("linux")?,
        })
    }

    /// The table that was accepted.
    ///
    /// # Errors
    /// When there is none.
    pub fn accepted(images: &Images) -> Result<Self> {
        let path = images.workspace().source(FILE);
        let text = fs::read_to_string(&path).cannot(|| format!("read {}", path.display()))?;
        Self::parse(&text).ok_or_else(|| {
            Error::Failed(format!("{FILE} is no table of counts; cargo xtask bench --accept writes it anew"))
        })
    }

    /// Writes it as the accepted one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn accept(&self, images: &Images) -> Result<()> {
        super::write(&images.workspace().source(FILE), &format!("{:#}\n", self.json()))
    }

    /// What has risen in `new`, or is not in both: a line each.
    ///
    /// Another kernel executes other instructions: then Linux's counts do not compare.
    #[must_use]
    pub fn risen(&self, new: &Self) -> Vec<String> {
        let mut lines = risen("probe", &self.probe, &new.probe);
        if self.kernel == new.kernel {
            lines.extend(risen("Linux", &self.linux, &new.linux));
        }
        lines
    }

    /// What differs between the machines on which two tables were measured: a line each.
    #[must_use]
    pub fn differences(&self, new: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.emulator != new.emulator {
            lines.push(format!("{FILE} was measured on {}; this is {}", self.emulator, new.emulator));
        }
        if self.kernel != new.kernel {
            let (old, new) = (&self.kernel, &new.kernel);
            lines.push(format!(
                "{FILE} was measured with {old}; this is {new}, so that Linux's counts are not compared"
            ));
        }
        lines
    }
}

fn medians(printed: &str) -> Counts {
    measurements(printed).into_iter().map(|(name, [median, ..])| (name.to_owned(), median)).collect()
}

fn risen(of: &str, old: &Counts, new: &Counts) -> Vec<String> {
    let all = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
    let line = |name: &String| match (old.get(name), new.get(name)) {
        (Some(old), Some(new)) => {
            let limit = u128::from(*old) * u128::from(1000 + TOLERANCE) / 1000;
            (u128::from(*new) > limit).then(|| {
                let per_mille = u128::from(new - old) * 1000 / u128::from(*old).max(1);
                format!("{of}: {name}: {old} -> {new}, {}.{}% more", per_mille / 10, per_mille % 10)
            })
        }
        (Some(old), None) => Some(format!("{of}: {name}: {old} -> not measured")),
        (None, new) => Some(format!("{of}: {name}: not in {FILE} -> {}", new.copied().unwrap_or(0))),
    };
    all.filter_map(line).collect()
}

/// Measures, and compares with the accepted table.
///
/// # Errors
/// With each count that has risen by more than 2%.
pub fn check(images: &Images) -> Result<()> {
    let old = Table::accepted(images)?;
    let new = Table::measure(images)?;
    for line in old.differences(&new) {
        println!("note: {line}");
    }
    let risen = old.risen(&new);
    if risen.is_empty() {
        return Ok(());
    }
    let line =
        "exact counts have risen; if that is meant: cargo xtask bench --accept, and the reason in the commit";
    Err(Error::Tool { line: line.to_owned(), output: risen.join("\n") })
}

/// Runs `cargo xtask bench --accept`.
pub(super) fn command(images: &Images) -> Result<()> {
    let new = Table::measure(images)?;
    if let Ok(old) = Table::accepted(images) {
        old.risen(&new).iter().for_each(|line| println!("{line}"));
    }
    new.accept(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(counts: &[(&str, u64)]) -> Table {
        let counts: Counts = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Table { emulator: "Q".into(), kernel: "K".into(), probe: counts.clone(), linux: counts }
    }

    #[test]
    fn a_rise_is_told_with_row_old_and_new_figure() {
        let old = table(&[("cpuid", 377), ("port", 1000)]);
        assert!(old.risen(&table(&[("cpuid", 384), ("port", 10)])).is_empty());
        let lines = old.risen(&table(&[("cpuid", 477), ("port", 1000)]));
        assert_eq!(lines, ["probe: cpuid: 377 -> 477, 26.5% more", "Linux: cpuid: 377 -> 477, 26.5% more"]);
    }

    #[test]
    fn rows_have_to_be_in_both() {
        let lines = table(&[("old", 5)]).risen(&table(&[("new", 7)]));
        assert_eq!(
            lines[..2],
            ["probe: old: 5 -> not measured", "probe: new: not in tests/counts.json -> 7"]
        );
        assert!(!table(&[("none", 0)]).risen(&table(&[("none", 1)])).is_empty());
    }

    #[test]
    fn another_kernels_counts_are_not_compared_and_that_is_said() {
        let old = table(&[("cpuid", 377)]);
        let new = Table { kernel: "L".into(), emulator: "P".into(), ..table(&[("cpuid", 900)]) };
        assert_eq!(old.risen(&new).len(), 1);
        let notes = old.differences(&new);
        assert!(notes[0].contains('P') && notes[1].contains("not compared"), "{notes:?}");
        assert!(old.differences(&old).is_empty());
    }

    #[test]
    fn what_is_written_can_be_read() {
        let table = table(&[("cpuid", 377), ("all exits", 5)]);
        assert_eq!(Table::parse(&format!("{:#}", table.json())), Some(table));
        assert_eq!(Table::parse("{}"), None);
        assert_eq!(Table::parse("x"), None);
    }

    #[test]
    fn the_committed_table_can_be_read() {
        let images = Images::new(crate::paths::Workspace::find());
        let table = Table::accepted(&images).unwrap();
        assert!(table.probe.contains_key("cpuid") && table.linux.contains_key("all exits"));
    }
}
