//! `docs/abi.md` lists the calls, errors and privileges that there are.

#![allow(clippy::expect_used)]

use caisson_abi::events::MAX_PORTS;
use caisson_abi::{BATCH_ENTRY_BYTES, BATCH_MAX, CallError, Number, Privileges, VERSION, hypercall};

const PAGE: &str = include_str!("../../../docs/abi.md");

/// The rows of the table that begins with this heading row: its cells.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let rows = PAGE.split_once(heading).expect("the table's first row").1;
    let rows = rows.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// What a cell lists: nothing for a dash.
fn list(cell: &str) -> Vec<&str> {
    cell.split(", ").filter(|word| *word != "–").map(|word| word.trim_matches('`')).collect()
}

#[test]
fn the_page_lists_the_calls_that_there_are() {
    let rows = table("| number | call | arguments | privileges | errors | cost |");
    assert_eq!(rows.len(), Number::ALL.len());
    for (row, number) in rows.iter().zip(Number::ALL) {
        let [value, name, arguments, privileges, errors, cost] = row[..] else {
            panic!("six cells, not {row:?}");
        };
        assert_eq!(value, format!("`{:#x}`", number.value()));
        assert_eq!(name, format!("[`{0}`](#{0})", number.name()));
        assert_eq!(list(arguments), number.arguments(), "{number:?}");
        let needed: Vec<_> = number.privileges().iter_names().map(|(name, _)| name).collect();
        assert_eq!(list(privileges), needed, "{number:?}");
        let names: Vec<_> = number.errors().iter().map(|error| error.name()).collect();
        assert_eq!(list(errors), names, "{number:?}");
        assert!(!cost.is_empty());
        assert!(PAGE.contains(&format!("\n### `{}`\n", number.name())), "{number:?} has no section");
    }
    let sections = PAGE.matches("\n### `").count();
    assert_eq!(sections, Number::ALL.len(), "a section about no call");
    assert!(PAGE.contains(&format!("Numbers count from `{:#x}`", hypercall::FIRST)));
}

#[test]
fn the_page_lists_the_errors_that_there_are() {
    let rows = table("| errno | name | meaning |");
    let listed: Vec<_> = rows.iter().map(|row| (row[0].to_owned(), row[1].trim_matches('`'))).collect();
    let expected: Vec<_> =
        CallError::ALL.into_iter().map(|error| (error.errno().to_string(), error.name())).collect();
    assert_eq!(listed, expected);
}

#[test]
fn the_page_lists_the_privileges_that_there_are() {
    let rows = table("| privilege | allows |");
    let listed: Vec<_> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    let expected: Vec<_> = Privileges::all().iter_names().map(|(name, _)| name).collect();
    assert_eq!(listed, expected);
}

#[test]
fn the_page_has_the_numbers_that_the_code_has() {
    for words in [
        format!("Answers {VERSION}, the version"),
        format!("up to {BATCH_MAX} calls"),
        format!("more than {BATCH_MAX} entries"),
        format!("entry has {BATCH_ENTRY_BYTES} bytes"),
        format!("| {} | answer |", BATCH_ENTRY_BYTES - 8),
        format!("ports below {MAX_PORTS}"),
    ] {
        assert!(PAGE.contains(&words), "{words}");
    }
}
