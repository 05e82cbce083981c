//! Prints the CPUID and MSR policy as Markdown tables: `cargo run -p caisson-policy --example tables`.

use std::fmt::Write as _;

use caisson_policy::cpuid::{Subleaves, words};
use caisson_policy::msr::{Condition, PASSTHROUGH, PASSTHROUGH_WHERE_CARRIED, TABLE};

fn condition(condition: Condition) -> String {
    match condition {
        Condition::Always => "always".into(),
        Condition::Only(vendor) => format!("{vendor:?}"),
        Condition::Feature(name) => format!("with {name}"),
    }
}

/// The three tables.
pub(crate) fn tables() -> String {
    let mut text = String::new();
    cpuid(&mut text);
    msrs(&mut text);
    text
}

/// Writing to a string cannot fail.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{
        let _ = writeln!($text, $($format)*);
    }};
}

fn cpuid(text: &mut String) {
    line!(text, "### CPUID\n");
    line!(
        text,
        "| leaf | subleaf | register | bits | name | guest sees | why |\n|---|---|---|--:|---|---|---|"
    );
    for word in words() {
        let subleaf = match word.subleaves {
            Subleaves::All => String::new(),
            Subleaves::Only(n) => n.to_string(),
            Subleaves::From(n) => format!("{n} and up"),
        };
        for field in word.fields {
            let bits = if field.first == field.last {
                field.first.to_string()
            } else {
                format!("{}:{}", field.last, field.first)
            };
            let register = format!("{:?}", word.register).to_uppercase();
            let (name, rule, reason) = (field.name, field.rule, field.reason);
            line!(
                text,
                "| {:X}H | {subleaf} | {register} | {bits} | {name} | {rule} | {reason} |",
                word.leaf
            );
        }
    }
}

fn msrs(text: &mut String) {
    line!(text, "\n### MSRs\n");
    line!(text, "| MSR | name | there | behaviour | why |\n|---|---|---|---|---|");
    for row in TABLE {
        let numbers = if row.first == row.last {
            format!("{:X}H", row.first)
        } else {
            format!("{:X}H-{:X}H", row.first, row.last)
        };
        let there = condition(row.condition);
        line!(text, "| {numbers} | {} | {there} | {} | {} |", row.name, row.behaviour, row.reason);
    }
    line!(text, "\n### MSRs without exits\n");
    line!(text, "| MSR | access | when | why |\n|---|---|---|---|");
    for pass in PASSTHROUGH.iter().chain(PASSTHROUGH_WHERE_CARRIED) {
        let access = if pass.read { "read, write" } else { "write" };
        line!(text, "| {:X}H | {access} | {} | {} |", pass.number, condition(pass.condition), pass.reason);
    }
}

#[allow(dead_code, reason = "the test of the documentation includes this file for its tables alone")]
fn main() {
    print!("{}", tables());
}
