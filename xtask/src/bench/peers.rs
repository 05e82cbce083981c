//! `cargo xtask bench --peers`: the same kernel and RAM disk with the same benchmark program without a hypervisor, under KVM, under
//! Xen and under Caisson, in the same emulator. KVM and Xen are first levels of their own, which that emulator runs on the AMD-V
//! that it emulates: see [`first_level`].

use serde_json::{Value, json};

use super::{
    accounts::Accounts,
    chart::{Bar, Chart, Group, Scale},
    exact, first_level, grouped, guest, measurements,
    rows::{Figure, IDLE, Medians, ONE, ROWS, Row, START, Side},
};
use crate::{
    error::{Error, Result},
    images::Images,
    outcome::Outcome,
};

/// All rows of the benchmark program.
const ALL: &str = "all";

/// What a side measured, and what it said of itself.
struct Measured {
    side: Side,
    medians: Medians,
    /// Median, least and most of each row.
    samples: Value,
    version: String,
}

fn run(images: &Images, side: Side) -> Result<String> {
    let nested = |boot, what| exact(images, what, first_level::MEMORY_MIB, boot, Outcome::NoResult);
    let printed = match side {
        Side::None => guest::bare(images, "no hypervisor", ALL)?,
        Side::Kvm => nested(first_level::kvm(images, ALL)?, "KVM")?,
        Side::Xen => nested(first_level::xen(images, ALL)?, "Xen")?,
        Side::Caisson => guest::under_caisson(images, "Caisson", ALL)?,
    };
    first_level::check(&printed)?;
    Ok(printed)
}

/// The number behind `start` in one of the lines.
fn number(printed: &str, start: &str) -> Option<u64> {
    printed.lines().find_map(|line| line.split_once(start)?.1.trim().parse().ok())
}

/// From the guest's start to init's first step. A guest's own clock tells, where it starts with the guest; in a first level, its
/// clock when the guest's first line came, less what the guest's clock says it did between the two.
fn start(printed: &str) -> Option<u64> {
    let init = number(printed, "caisson-test: boot tsc=")?;
    match number(printed, "bench: relay ") {
        None => Some(init),
        Some(relay) => relay.checked_sub(number(printed, "bench: now ")?.checked_sub(init)?),
    }
}

/// Exits in ten idle seconds, where somebody counts them; measured apart, because counting is work.
fn idle(images: &Images, side: Side) -> Result<Option<u64>> {
    match side {
        Side::None | Side::Xen => Ok(None),
        Side::Kvm => {
            let boot = first_level::kvm(images, "idle:14")?;
            let printed = exact(images, "KVM, idle", first_level::MEMORY_MIB, boot, Outcome::NoResult)?;
            first_level::check(&printed)?;
            let untold =
                || Error::Tool { line: "nobody told KVM's exits".to_owned(), output: printed.clone() };
            left_in_ten(&printed).ok_or_else(untold).map(Some)
        }
        Side::Caisson => {
            let exits = |rows: &str| -> Result<u64> {
                let printed = guest::under_caisson(images, "Caisson, idle", rows)?;
                Ok(Accounts::read(&printed, guest::NAME)?.exits.values().sum())
            };
            Ok(Some(exits("idle:11")?.saturating_sub(exits("idle:1")?)))
        }
    }
}

/// Of the lines `bench: left EXITS`, one a second, what was added in ten seconds near the end. In the last of them the guest may
/// be at its end already.
fn left_in_ten(printed: &str) -> Option<u64> {
    let told = printed.lines().filter_map(|line| line.split_once("bench: left ")?.1.trim().parse().ok());
    let counts: Vec<u64> = told.filter(|&count| count > 0).collect();
    let end = counts.len().checked_sub(2)?;
    Some(counts.get(end)?.saturating_sub(*counts.get(end.checked_sub(10)?)?))
}

fn read(side: Side, printed: &str) -> Result<Measured> {
    let samples = measurements(printed);
    let mut medians: Medians =
        samples.iter().map(|(name, [median, ..])| ((*name).to_owned(), *median)).collect();
    let incomplete = |line: String| Error::Tool { line, output: printed.to_owned() };
    let start = start(printed).ok_or_else(|| incomplete(format!("{}: no start was told", side.title())))?;
    medians.insert(START.to_owned(), start);
    for row in ROWS.iter().filter(|row| row.is_of(side) && row.name != IDLE) {
        if !medians.contains_key(row.name) {
            return Err(incomplete(format!("{}: the row {} was not measured", side.title(), row.name)));
        }
    }
    let said = ["bench: kvm ", "bench: xen "]
        .iter()
        .find_map(|start| printed.lines().find_map(|line| Some(line.split_once(start)?.1.trim().to_owned())));
    Ok(Measured { side, samples: json!(samples), medians, version: said.unwrap_or_default() })
}

/// What a side has measured.
fn medians(all: &[Measured]) -> impl Fn(Side) -> Option<Medians> {
    |side| all.iter().find(|one| one.side == side).map(|one| one.medians.clone())
}

/// A row's figures, in the order of the sides.
fn figures(row: &Row, all: &[Measured]) -> Vec<Option<u64>> {
    Side::ALL.iter().map(|side| row.of(*side, &medians(all))).collect()
}

fn shown(row: &Row, figure: Option<u64>) -> String {
    figure.map_or_else(|| "–".to_owned(), |figure| row.shown(figure))
}

/// Whether the goal is met, or by how much not.
fn verdict(row: &Row, figure: Option<u64>) -> String {
    match figure {
        None => "not measured".to_owned(),
        Some(figure) if figure <= row.goal => "met".to_owned(),
        Some(figure) => format!("{} over", row.shown(figure - row.goal)),
    }
}

fn print(all: &[Measured]) {
    let [none, kvm, xen, caisson] = Side::ALL.map(Side::title);
    println!(
        "{:<28} {none:>13} {kvm:>9} {xen:>9} {caisson:>9} {:>10}",
        "instructions, and ratios", "goal, ≤"
    );
    for row in &ROWS {
        let cells: Vec<String> = figures(row, all).into_iter().map(|figure| shown(row, figure)).collect();
        let verdict = verdict(row, figures(row, all).last().copied().flatten());
        let [none, kvm, xen, caisson] = &cells[..] else { continue };
        println!(
            "{:<28} {none:>13} {kvm:>9} {xen:>9} {caisson:>9} {:>10}  {verdict}",
            row.title,
            row.shown(row.goal)
        );
    }
    println!("\nwhat the rows mean:");
    for row in &ROWS {
        println!("  {}: {}", row.title, row.means);
    }
    println!("an instruction is counted whatever it takes; world switches, caches and TLBs are not");
    for one in all.iter().filter(|one| !one.version.is_empty()) {
        println!("{}: {}", one.side.title(), one.version);
    }
}

fn json(all: &[Measured]) -> Value {
    let row = |row: &Row| {
        let by_side: serde_json::Map<String, Value> = Side::ALL
            .iter()
            .zip(figures(row, all))
            .map(|(side, figure)| (side.title().to_owned(), json!(figure)))
            .collect();
        json!({
            "row": row.name,
            "title": row.title,
            "unit": row.unit(),
            "figures": by_side,
            "goal": row.goal,
            "means": row.means,
        })
    };
    let side = |one: &Measured| json!({ "side": one.side.title(), "version": one.version, "samples": one.samples, "start": one.medians.get(START) });
    json!({
        "rows": ROWS.iter().map(row).collect::<Vec<_>>(),
        "sides": all.iter().map(side).collect::<Vec<_>>(),
    })
}

/// A row of a chart: a bar for each side that has one.
fn group(row: &Row, bar: impl Fn(Side) -> Option<(f64, String)>) -> Group {
    let sides = Side::ALL.into_iter().enumerate();
    let bars = sides.filter_map(|(series, side)| {
        let (value, text) = bar(side)?;
        Some(Bar { series, value, text })
    });
    Group { label: row.title.to_owned(), bars: bars.collect() }
}

fn chart(title: &str, groups: Vec<Group>) -> Chart {
    let series = Side::ALL.map(|side| side.title().to_owned()).to_vec();
    Chart { title: title.to_owned(), series, groups, scale: Scale::EachGroup }
}

/// The rows that are numbers of instructions; from start to init is one in itself.
fn instructions(all: &[Measured]) -> Chart {
    let bar = |row: &Row, side: Side| {
        let medians = medians(all);
        let figure =
            if row.name == START { medians(side)?.get(START).copied() } else { row.of(side, &medians) }?;
        Some((figure as f64, grouped(figure)))
    };
    let rows = ROWS.iter().filter(|row| row.unit() == "instructions" || row.name == START);
    chart(
        "Instructions; bars of one row compare",
        rows.map(|row| group(row, |side| bar(row, side))).collect(),
    )
}

/// The others, as what is added to the work.
fn work(all: &[Measured]) -> Chart {
    let bar = |row: &Row, side: Side| {
        let figure = row.of(side, &medians(all)).filter(|_| side != Side::None)?;
        let added = (figure as f64 - ONE as f64) * 100.0 / ONE as f64;
        Some((added, format!("{added:+.3}%")))
    };
    let rows = ROWS.iter().filter(|row| row.figure == Figure::TimesNone);
    chart(
        "What is added to the instructions of work without a hypervisor; bars of one row compare",
        rows.map(|row| group(row, |side| bar(row, side))).collect(),
    )
}

/// Runs `cargo xtask bench --peers`; with `accept` the pictures in `docs` are rewritten.
pub(super) fn command(images: &Images, accept: bool) -> Result<()> {
    let measure = |side: Side| {
        let mut measured = read(side, &run(images, side)?)?;
        measured.medians.extend(idle(images, side)?.map(|exits| (IDLE.to_owned(), exits)));
        Ok(measured)
    };
    let all = Side::ALL.into_iter().map(measure).collect::<Result<Vec<_>>>()?;
    print(&all);
    super::leave(images, "peers.json", &format!("{:#}\n", json(&all)))?;
    super::picture(images, "peers.svg", &instructions(&all).draw(), accept)?;
    super::picture(images, "peers-work.svg", &work(&all).draw(), accept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_told_by_the_clock_that_saw_it() {
        let own = "bench: now 1600\r\ncaisson-test: boot tsc=1000\r\n";
        assert_eq!(start(own), Some(1000));
        let nested = "bench: relay 1900\nbench: now 1600\r\ncaisson-test: boot tsc=1000\r\n";
        assert_eq!(start(nested), Some(1300));
        assert_eq!(start("bench: now 1"), None);
    }

    #[test]
    fn exits_of_ten_seconds_are_counted_before_the_end() {
        let counts = (1..=14).map(|second| format!("bench: left {}\n", 1000 + 20 * second));
        let printed = counts.collect::<String>() + "bench: left 1500\nbench: left 0\n";
        assert_eq!(left_in_ten(&printed), Some(200));
        assert_eq!(left_in_ten("bench: left 5\n"), None);
    }

    #[test]
    fn goals_are_met_or_not() {
        let row = &ROWS[0];
        assert_eq!(verdict(row, Some(300)), "met");
        assert_eq!(verdict(row, Some(1377)), "1,077 over");
        assert_eq!(verdict(row, None), "not measured");
    }

    #[test]
    fn charts_have_a_bar_for_each_side_that_was_measured() {
        let medians = |cpuid, pipe, start| {
            let pairs = [("cpuid", cpuid), ("pipe", pipe), (START, start)];
            pairs.map(|(name, median): (&str, u64)| (name.to_owned(), median)).into_iter().collect()
        };
        let one = |side, medians| Measured { side, medians, samples: Value::Null, version: String::new() };
        let all = [one(Side::None, medians(7, 1000, 50)), one(Side::Caisson, medians(300, 1005, 40))];
        let instructions = instructions(&all);
        let bars = |chart: &Chart, title: &str| {
            chart.groups.iter().find(|group| group.label == title).unwrap().bars.clone()
        };
        assert_eq!(bars(&instructions, "CPUID").len(), 2);
        assert_eq!(bars(&instructions, "start to init")[1].text, "40");
        let work = bars(&work(&all), "pipe round trip");
        assert_eq!((work.len(), work[0].series, work[0].text.as_str()), (1, 3, "+0.500%"));
    }

    #[test]
    fn a_side_that_did_not_measure_a_row_is_an_error() {
        let printed = "bench: now 5\r\ncaisson-test: boot tsc=1\r\nbench: cpuid 3 2 4\r\n";
        assert!(read(Side::Kvm, printed).err().unwrap().to_string().starts_with("KVM: the row hypercall"));
    }
}
