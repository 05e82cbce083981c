//! `cargo xtask bench --exits`: for a boot of Linux and for each row of the benchmark program, exits by reason, the instructions
//! that Caisson spent on them, and their share of all. Each is a run of its own, from which one that does the same without the
//! row is taken off; runs repeat to the instruction, so that nothing but the row is left.

use serde_json::{Value, json};

use super::{
    accounts::{Accounts, TURNS},
    chart::{Bar, Chart, Group, Scale},
    grouped, guest,
};
use crate::{bochs, error::Result, images::Images, tools};

/// What is measured: its title, rows of the benchmark program, and those of the run that is taken off; a boot has none.
struct Workload {
    title: &'static str,
    rows: &'static str,
    without: Option<&'static str>,
}

const fn row(title: &'static str, rows: &'static str) -> Workload {
    Workload { title, rows, without: Some("empty") }
}

const WORKLOADS: [Workload; 12] = [
    Workload { title: "Linux, from start to power-off", rows: "", without: None },
    row("1126 × CPUID", "cpuid"),
    row("1126 × VMMCALL in ring 3", "hypercall"),
    row("1126 × IN", "port"),
    Workload { title: "1126 × RDMSR of APIC_BASE", rows: "msr-passed,msr", without: Some("msr-passed") },
    row("200 sleeps of 1 ms", "sleep"),
    row("1126 pipe round trips", "pipe"),
    row("500 × fork and exec", "fork-exec"),
    row("dd, 62.5 MiB to fresh memory", "fresh-memory"),
    row("sha256 of 16 MiB", "sha256"),
    row("gzip of 6 MiB", "gzip"),
    Workload { title: "ten idle seconds", rows: "idle:11", without: Some("idle:1") },
];

/// Idle seconds in the last of them.
const IDLE_SECONDS: u64 = 10;

/// A reason's part in a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    reason: String,
    exits: u64,
    instructions: u64,
}

/// What a workload cost.
struct Cost {
    title: &'static str,
    /// Instructions of guest and hypervisor together.
    all: u64,
    /// Of the hypervisor: those of the parts, and what is between turns.
    hypervisor: u64,
    /// The most expensive first.
    parts: Vec<Part>,
}

impl Cost {
    fn of(title: &'static str, accounts: &Accounts) -> Self {
        let [guests, hypervisor, _] = accounts.cpus;
        let part = |(reason, instructions): (&String, &u64)| Part {
            reason: reason.clone(),
            exits: accounts.exits.get(reason).copied().unwrap_or(0),
            instructions: *instructions,
        };
        let mut parts: Vec<Part> = accounts.ticks.iter().map(part).collect();
        parts.sort_by(|a, b| b.instructions.cmp(&a.instructions).then_with(|| a.reason.cmp(&b.reason)));
        Self { title, all: guests + hypervisor, hypervisor, parts }
    }

    fn exits(&self) -> u64 {
        self.parts.iter().map(|part| part.exits).sum()
    }

    fn print(&self) {
        let line = |name: &str, exits: u64, instructions: u64| {
            let or_dash =
                |number: Option<u64>| number.map_or_else(|| "–".to_owned(), |number| number.to_string());
            let (each, exits) =
                (or_dash(instructions.checked_div(exits)), or_dash((exits > 0).then_some(exits)));
            println!(
                "{name:<40} {exits:>9} {instructions:>13} {each:>9} {:>9}",
                percent(instructions, self.all)
            );
        };
        line(self.title, self.exits(), self.hypervisor);
        for part in &self.parts {
            line(&format!("  {}", part.reason), part.exits, part.instructions);
        }
        let between = self.hypervisor.saturating_sub(self.parts.iter().map(|part| part.instructions).sum());
        line("  the guest made and ended, turns picked", 0, between);
    }

    fn json(&self) -> Value {
        let part = |part: &Part| json!({ "reason": part.reason, "exits": part.exits, "instructions": part.instructions });
        json!({
            "workload": self.title,
            "instructions": self.all,
            "hypervisor": self.hypervisor,
            "exits": self.exits(),
            "reasons": self.parts.iter().map(part).collect::<Vec<_>>(),
        })
    }
}

/// A part of a whole in percent.
fn percent(part: u64, whole: u64) -> String {
    let parts = u128::from(part) * 100_000 / u128::from(whole.max(1));
    format!("{}.{:03}%", parts / 1000, parts % 1000)
}

/// The ten most expensive reasons of a workload.
fn chart(cost: &Cost) -> Chart {
    const MOST: usize = 10;
    let reasons = cost.parts.iter().filter(|part| part.reason != TURNS).take(MOST);
    let group = |part: &Part| Group {
        label: format!("{}, {} ×", part.reason, grouped(part.exits)),
        bars: vec![Bar {
            series: 3,
            value: part.instructions as f64,
            text: format!(
                "{}, {} each",
                grouped(part.instructions),
                grouped(part.instructions / part.exits.max(1))
            ),
        }],
    };
    Chart {
        title: format!(
            "Instructions in Caisson by reason of exit: {} ({} of all)",
            cost.title,
            percent(cost.hypervisor, cost.all)
        ),
        series: vec!["Caisson".to_owned()],
        groups: reasons.map(group).collect(),
        scale: Scale::Common,
    }
}

fn print_head() {
    println!(
        "{:<40} {:>9} {:>13} {:>9} {:>9}",
        "exits, by what they cost", "exits", "instructions", "each", "of all"
    );
}

/// Runs `cargo xtask bench --exits`; with `accept` the picture in `docs` is rewritten.
pub(super) fn command(images: &Images, accept: bool) -> Result<()> {
    let mut runs: Vec<(&str, Accounts)> = Vec::new();
    let mut costs = Vec::new();
    for Workload { title, rows, without } in WORKLOADS {
        let mut accounts = |rows: &'static str| -> Result<Accounts> {
            if let Some((_, known)) = runs.iter().find(|(known, _)| *known == rows) {
                return Ok(known.clone());
            }
            let what = if rows.is_empty() { "a boot" } else { rows };
            let printed = guest::under_caisson(images, what, rows)?;
            let accounts = Accounts::read(&printed, guest::NAME)?;
            runs.push((rows, accounts.clone()));
            Ok(accounts)
        };
        let all = accounts(rows)?;
        let part = match without {
            Some(without) => all.since(&accounts(without)?),
            None => all,
        };
        costs.push(Cost::of(title, &part));
    }
    print_head();
    costs.iter().for_each(Cost::print);
    if let Some(idle) = costs.last() {
        let tenths = idle.exits() * 10 / IDLE_SECONDS;
        println!("{}.{} exits in an idle second", tenths / 10, tenths % 10);
    }
    let workloads: Vec<Value> = costs.iter().map(Cost::json).collect();
    super::leave(images, "exits.json", &format!("{:#}\n", json!({ "workloads": workloads })))?;
    if let Some(boot) = costs.first() {
        super::picture(images, "exits.svg", &chart(boot).draw(), accept)?;
    }
    Ok(())
}

/// Runs `cargo xtask bench --exits --machine bochs`: the boot alone, which takes minutes there; and how often each kind of exit
/// reads and writes the VMCS, which Caisson tells by VT-x's number of the reason.
pub(super) fn on_bochs(images: &Images) -> Result<()> {
    tools::ensure(tools::BOCHS)?;
    let printed = guest::on_bochs(images, "a boot", "")?;
    let accounts = Accounts::read(&printed, guest::NAME)?;
    let cost = Cost::of(WORKLOADS[0].title, &accounts);
    print_head();
    cost.print();
    // A tick of Bochs's TSC is an instruction.
    let rate = cost.exits() * bochs::INSTRUCTIONS_PER_SECOND / accounts.cpus.iter().sum::<u64>().max(1);
    println!(
        "{rate} exits in a second of {} million instructions",
        bochs::INSTRUCTIONS_PER_SECOND / 1_000_000
    );
    println!("VMREADs and VMWRITEs, by VT-x's exit reasons:");
    printed.lines().filter_map(vmcs_accesses).for_each(|line| println!("  {line}"));
    let document = json!({ "workloads": [cost.json()] });
    super::leave(images, "exits-bochs.json", &format!("{document:#}\n"))
}

/// What a line of Caisson's tells of accesses to the VMCS.
fn vmcs_accesses(line: &str) -> Option<&str> {
    let line = line.trim_end();
    let (_, told) = line.split_once("d1v0: ").filter(|_| line.contains(" VMREADs and "))?;
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost() -> Cost {
        let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        Cost::of(
            "boot",
            &Accounts {
                exits: map(&[("mmio", 20), ("hlt", 10)]),
                ticks: map(&[("mmio", 8000), ("hlt", 9000), (TURNS, 500)]),
                cpus: [90_000, 10_000, 7],
            },
        )
    }

    #[test]
    fn the_most_expensive_comes_first_and_turns_are_no_exits() {
        let cost = cost();
        assert_eq!((cost.all, cost.hypervisor, cost.exits()), (100_000, 10_000, 30));
        let reasons: Vec<&str> = cost.parts.iter().map(|part| part.reason.as_str()).collect();
        assert_eq!(reasons, ["hlt", "mmio", TURNS]);
        let svg = chart(&cost).draw();
        assert!(
            svg.contains("hlt, 10 ×") && svg.contains(">9,000, 900 each<") && !svg.contains(TURNS),
            "{svg}"
        );
        assert!(svg.contains("(10.000% of all)"));
        assert_eq!(cost.json()["reasons"][1]["exits"], 20);
    }

    #[test]
    fn accesses_to_the_vmcs_are_told_by_caisson() {
        let line = "[caisson] d1v0: 969 exits 10: 6.0 VMREADs and 1.0 VMWRITEs each\r";
        assert_eq!(vmcs_accesses(line), Some("969 exits 10: 6.0 VMREADs and 1.0 VMWRITEs each"));
        assert_eq!(vmcs_accesses("[caisson] d1v0: something else"), None);
    }

    #[test]
    fn parts_are_told_in_percent() {
        assert_eq!(percent(1, 3), "33.333%");
        assert_eq!(percent(1, 0), "100.000%");
    }
}
